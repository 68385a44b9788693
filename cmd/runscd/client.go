package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/config"
)

// maxMessage is the kubelet's limit for a message in bytes.
const maxMessage = 16 << 20

// client is how a command finds and speaks to the daemon.
type client struct {
	file   *string // of settings
	socket string
}

// register adds the client's flag to a command.
func (c *client) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.socket, "socket", "", "the daemon's socket (default: as the settings say)")
}

// dial returns a connection to the daemon, which is made by the first call.
func (c *client) dial() (*grpc.ClientConn, error) {
	if c.socket == "" {
		settings, err := config.Load(*c.file)
		if err != nil {
			return nil, err
		}
		c.socket = settings.Socket
	}
	return grpc.NewClient("unix://"+c.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
}

// podRow is a pod and its containers, the oldest first.
type podRow struct {
	*runtime.PodSandbox
	containers []*runtime.Container
}

// name is what a person calls the pod.
func (p *podRow) name() string { return p.Metadata.Namespace + "/" + p.Metadata.Name }

// listPods returns the pods with their containers, by name; with all also those
// that do not run.
func listPods(ctx context.Context, pods runtime.RuntimeServiceClient, all bool) ([]*podRow, error) {
	list, err := pods.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	containers, err := pods.ListContainers(ctx, &runtime.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	var rows []*podRow
	for _, p := range list.Items {
		if all || p.State == runtime.PodSandboxState_SANDBOX_READY {
			rows = append(rows, &podRow{PodSandbox: p})
		}
	}
	for _, c := range containers.Containers {
		i := slices.IndexFunc(rows, func(p *podRow) bool { return p.Id == c.PodSandboxId })
		if i >= 0 && (all || c.State == runtime.ContainerState_CONTAINER_RUNNING) {
			rows[i].containers = append(rows[i].containers, c)
		}
	}
	slices.SortFunc(rows, func(a, b *podRow) int {
		return cmp.Or(cmp.Compare(a.name(), b.name()), cmp.Compare(a.CreatedAt, b.CreatedAt))
	})
	for _, p := range rows {
		slices.SortFunc(p.containers, func(a, b *runtime.Container) int { return cmp.Compare(a.CreatedAt, b.CreatedAt) })
	}
	return rows, nil
}

// findPod returns the running pod of a name, with its namespace before it or not, or of
// the beginning of an id.
func findPod(ctx context.Context, pods runtime.RuntimeServiceClient, name string) (*podRow, error) {
	rows, err := listPods(ctx, pods, false)
	if err != nil {
		return nil, err
	}
	rows = slices.DeleteFunc(rows, func(p *podRow) bool {
		return name != p.Metadata.Name && name != p.name() && !strings.HasPrefix(p.Id, name)
	})
	switch len(rows) {
	case 0:
		return nil, fmt.Errorf("pod %q: none that runs: %w", name, errdefs.ErrNotFound)
	case 1:
		return rows[0], nil
	}
	var ids []string
	for _, p := range rows {
		ids = append(ids, shortID(p.Id))
	}
	return nil, fmt.Errorf("pod %q: several, name one by its id: %s: %w", name, strings.Join(ids, ", "), errdefs.ErrInvalidArgument)
}
