package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/emptypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/cri"
)

// pauseTimeout bounds how long a pod is waited for. One that is being saved can take
// long.
const pauseTimeout = time.Minute

func pauseCommand(file *string) *cobra.Command {
	return pausing(file, cri.PauseMethod, &cobra.Command{
		Use:   "pause POD",
		Short: "Let a pod stand still",
		Long: `Let all processes of a pod stand still until runscd resume, also over a restart of
the daemon. POD is a name, namespace/name, or the beginning of an id. What would have to
run in the pod is refused meanwhile; so a probe of the kubelet's fails, and it may end
the pod.`,
	})
}

func resumeCommand(file *string) *cobra.Command {
	return pausing(file, cri.ResumeMethod, &cobra.Command{
		Use:   "resume POD",
		Short: "Let a pod go on that stands still",
		Long:  `Let a pod go on after runscd pause. One that runs is left alone.`,
	})
}

// pausing completes a command that calls a method of the daemon's for a pod.
func pausing(file *string, method string, cmd *cobra.Command) *cobra.Command {
	c := client{file: file}
	cmd.Args = cobra.ExactArgs(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		conn, err := c.dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), pauseTimeout)
		defer cancel()
		p, err := findPod(ctx, runtime.NewRuntimeServiceClient(conn), args[0])
		if err != nil {
			return err
		}
		return conn.Invoke(ctx, method, &runtime.PodSandboxStatusRequest{PodSandboxId: p.Id}, new(emptypb.Empty))
	}
	c.register(cmd)
	return cmd
}
