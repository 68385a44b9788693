package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	runc "github.com/containerd/go-runc"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/config"
	"github.com/runscd/runscd/internal/doctor"
	"github.com/runscd/runscd/internal/image"
	"github.com/runscd/runscd/internal/monitor"
	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/observe"
	"github.com/runscd/runscd/internal/pod"
)

// answerTimeout is how long a daemon is given to tell its version.
const answerTimeout = 5 * time.Second

func doctorCommand(file *string) *cobra.Command {
	output, kubelet := "text", ""
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Examine the node: whether pods can run, and what to do if not",
		Long: `Examine the node: kernel, cgroups, runsc and its platform, directories, network,
socket, the kubelet's configuration; and run a sandbox that is thrown away. Each line
is OK, WARN or FAIL with what to do. The exit status is 1 if there is a FAIL. It may be
run before the daemon is started and beside it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("--output %q: neither text nor json", output)
			}
			c, err := config.Load(*file)
			if err != nil {
				return err
			}
			logrus.SetOutput(io.Discard) // it is said in the report
			n := &doctor.Node{
				Config: c, Root: "/", KubeletConfig: kubelet,
				Network: networkOf(c).Status,
				Daemon:  func(ctx context.Context) (string, error) { return daemonVersion(ctx, c.Socket) },
				Try:     func(ctx context.Context) ([]doctor.Handler, error) { return tryHandlers(ctx, *c) },
			}
			report := n.Examine(cmd.Context())
			write := report.Text
			if output == "json" {
				write = report.JSON
			}
			if err := write(cmd.OutOrStdout()); err != nil {
				return err
			}
			if report.Failed() {
				return exitCode(1)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", output, "text or json")
	cmd.Flags().StringVar(&kubelet, "kubelet-config", "", "the kubelet's configuration file (default: looked for in the usual places)")
	return cmd
}

// daemonVersion asks who serves on a socket.
func daemonVersion(ctx context.Context, socket string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := (&client{socket: socket}).dial()
	if err != nil {
		return "", err
	}
	defer conn.Close()
	v, err := runtime.NewRuntimeServiceClient(conn).Version(ctx, &runtime.VersionRequest{})
	return v.GetRuntimeVersion(), err
}

// tryHandlers runs a sandbox of each handler as the daemon does when it starts, in
// directories beside the daemon's own.
func tryHandlers(ctx context.Context, c config.Config) (tried []doctor.Handler, err error) {
	for _, dir := range []*string{&c.Root, &c.State} {
		if *dir, err = os.MkdirTemp(doctor.Existing(*dir), ".runscd-doctor-"); err != nil {
			return nil, err
		}
		defer func() {
			// runsc leaves a mount for all sandboxes of a directory to share.
			err = errors.Join(err, mount.UnmountRecursive(*dir, unix.MNT_DETACH), os.RemoveAll(*dir))
		}()
		if err := os.Chmod(*dir, 0o711); err != nil {
			return nil, err
		}
	}
	reaper, err := monitor.New()
	if err != nil {
		return nil, err
	}
	defer reaper.Close()
	runc.Monitor = reaper
	if err := clearTempMounts(filepath.Join(c.State, "mounts")); err != nil {
		return nil, err
	}
	images, err := image.Open(ctx, image.Options{Root: filepath.Join(c.Root, "images")})
	if err != nil {
		return nil, err
	}
	defer images.Close()
	handlers, err := handlersOf(&c, observe.New(version, nil))
	if err != nil {
		return nil, err
	}
	pods, err := pod.Open(ctx, pod.Options{
		Root: c.Root, State: c.State, Handlers: handlers, Default: c.Runtime.Default,
		SystemdCgroup: c.Cgroup.DriverInUse() == "systemd", Images: images, Network: network.None{}, Monitor: reaper,
	})
	if err != nil {
		return nil, err
	}
	defer pods.Close()
	pods.Check(ctx)
	for _, name := range slices.Sorted(maps.Keys(handlers)) {
		h := handlers[name]
		unusable, noUserNS := h.Checked()
		tried = append(tried, doctor.Handler{Name: name, Path: h.Runtime.Path(), Version: h.Version, Unusable: unusable, NoUserNS: noUserNS})
	}
	return tried, nil
}
