package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func runCommand(file *string) *cobra.Command {
	c := client{file: file}
	r := &runner{}
	cmd := &cobra.Command{
		Use:   "run IMAGE [COMMAND [ARG…]]",
		Short: "Run a pod of one container, show its output and remove it",
		Long: `Run a pod of one container through the daemon's socket: pull the image if it is
not there, show what the container writes, return its exit code, and remove the
pod. It is for a first try and for debugging.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conn, err := c.dial()
			if err != nil {
				return err
			}
			defer conn.Close()
			r.pods, r.images = runtime.NewRuntimeServiceClient(conn), runtime.NewImageServiceClient(conn)
			r.out, r.err = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return r.run(cmd.Context(), args[0], args[1:])
		},
	}
	c.register(cmd)
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows the image belongs to the command
	flags.StringVar(&r.handler, "runtime-handler", "", "runtime handler (default: the daemon's)")
	flags.StringVar(&r.exec, "exec", "", "while the container runs, run this by /bin/sh in it and show its output and exit code")
	flags.BoolVar(&r.hostNetwork, "host-network", false, "use the host's network")
	return cmd
}

// runner is one `runscd run`.
type runner struct {
	handler, exec string
	hostNetwork   bool
	out, err      io.Writer

	pods   runtime.RuntimeServiceClient
	images runtime.ImageServiceClient
	pod    *runtime.PodSandboxConfig
}

func (r *runner) run(ctx context.Context, image string, command []string) (err error) {
	logs, err := os.MkdirTemp("", "runscd-run-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(logs)
	name := filepath.Base(logs)
	r.pod = &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Namespace: "runscd-run", Uid: name},
		Hostname:     name,
		LogDirectory: logs,
		Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
		}},
	}
	if r.hostNetwork {
		r.pod.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	}
	spec, err := r.pull(ctx, image)
	if err != nil {
		return err
	}
	// Not given up on ^C: the daemon would go on, with nobody to remove the pod.
	sandbox, err := r.pods.RunPodSandbox(context.WithoutCancel(ctx), &runtime.RunPodSandboxRequest{Config: r.pod, RuntimeHandler: r.handler})
	if err != nil {
		return err
	}
	defer func() {
		// Also after ^C.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		_, rerr := r.pods.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
		err = errors.Join(err, rerr)
	}()
	return r.runContainer(ctx, sandbox.PodSandboxId, spec, command)
}

// pull makes the image present and returns its id.
func (r *runner) pull(ctx context.Context, image string) (*runtime.ImageSpec, error) {
	spec := &runtime.ImageSpec{Image: image, RuntimeHandler: r.handler}
	status, err := r.images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: spec})
	if err != nil {
		return nil, err
	}
	id := status.GetImage().GetId()
	if id == "" {
		pulled, err := r.images.PullImage(ctx, &runtime.PullImageRequest{Image: spec, SandboxConfig: r.pod})
		if err != nil {
			return nil, err
		}
		id = pulled.ImageRef
	}
	return &runtime.ImageSpec{Image: id, UserSpecifiedImage: image, RuntimeHandler: r.handler}, nil
}

func (r *runner) runContainer(ctx context.Context, sandbox string, image *runtime.ImageSpec, command []string) error {
	events, err := r.pods.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err != nil {
		return err
	}
	if _, err := events.Header(); err != nil { // from here on no event is missed
		return err
	}
	created, err := r.pods.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: sandbox, SandboxConfig: r.pod,
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "main"}, Image: image, Command: command, LogPath: "main.log",
			Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: r.pod.Linux.SecurityContext.NamespaceOptions,
			}},
		},
	})
	if err != nil {
		return err
	}
	id := created.ContainerId
	if _, err := r.pods.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: id}); err != nil {
		return err
	}
	follower := newFollower(filepath.Join(r.pod.LogDirectory, "main.log"), r.out, r.err)
	following, stop := context.WithCancel(ctx)
	defer stop()
	followed := make(chan error, 1)
	go func() { followed <- follower.follow(following) }()
	if r.exec != "" {
		if err := r.execIn(ctx, id); err != nil {
			return err
		}
	}
	for {
		e, err := events.Recv()
		if err != nil {
			return err
		}
		if e.ContainerId == id && e.ContainerEventType == runtime.ContainerEventType_CONTAINER_STOPPED_EVENT {
			break
		}
	}
	stop() // the log is complete before the end is told
	if err := <-followed; err != nil {
		return err
	}
	status, err := r.pods.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return err
	}
	s := status.Status
	if s.Reason != "Completed" && s.Reason != "Error" {
		fmt.Fprintf(r.err, "runscd: container ended: %s\n", strings.TrimSpace(s.Reason+" "+s.Message))
	}
	if s.ExitCode != 0 {
		return exitCode(s.ExitCode)
	}
	return nil
}

// execIn runs the --exec command and shows what it did.
func (r *runner) execIn(ctx context.Context, id string) error {
	resp, err := r.pods.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/sh", "-c", r.exec}})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(r.out, "%s", resp.Stdout)
	_, err2 := fmt.Fprintf(r.err, "%s", resp.Stderr)
	_, err3 := fmt.Fprintf(r.out, "exec exited with code %d\n", resp.ExitCode)
	return errors.Join(err, err2, err3)
}
