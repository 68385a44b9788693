package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func psCommand(file *string) *cobra.Command {
	c := client{file: file}
	all := false
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the pods and containers of the node",
		Long: `List the pods of the node with their containers. ATTEMPT counts how often the
kubelet has made a container, or a pod's sandbox, anew.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := c.dial()
			if err != nil {
				return err
			}
			defer conn.Close()
			return ps(cmd.Context(), runtime.NewRuntimeServiceClient(conn), all, cmd.OutOrStdout())
		},
	}
	c.register(cmd)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also pods and containers that do not run")
	return cmd
}

func ps(ctx context.Context, pods runtime.RuntimeServiceClient, all bool, out io.Writer) error {
	rows, err := listPods(ctx, pods, all)
	if err != nil {
		return err
	}
	now := time.Now()
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "POD\tCONTAINER\tSTATE\tATTEMPT\tAGE\tID")
	for _, p := range rows {
		fmt.Fprintf(w, "%s\t\t%s\t%d\t%s\t%s\n", p.name(), podState(p.State), p.Metadata.Attempt, age(now, p.CreatedAt), shortID(p.Id))
		for _, c := range p.containers {
			fmt.Fprintf(w, "\t%s\t%s\t%d\t%s\t%s\n",
				c.Metadata.Name, containerState(c.State), c.Metadata.Attempt, age(now, c.CreatedAt), shortID(c.Id))
		}
	}
	return w.Flush()
}

func podState(s runtime.PodSandboxState) string {
	if s == runtime.PodSandboxState_SANDBOX_READY {
		return "ready"
	}
	return "stopped"
}

func containerState(s runtime.ContainerState) string {
	switch s {
	case runtime.ContainerState_CONTAINER_CREATED:
		return "created"
	case runtime.ContainerState_CONTAINER_RUNNING:
		return "running"
	case runtime.ContainerState_CONTAINER_EXITED:
		return "exited"
	}
	return "unknown"
}

// age is how long ago a time in nanoseconds was.
func age(now time.Time, nanos int64) string {
	return duration.HumanDuration(now.Sub(time.Unix(0, nanos)))
}

// shortID is as much of an id as tells it from the others, and as all commands
// take.
func shortID(id string) string { return id[:min(len(id), 13)] }
