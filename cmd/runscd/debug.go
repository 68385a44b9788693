package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/internal/config"
	"github.com/runscd/runscd/internal/observe"
	"github.com/runscd/runscd/internal/report"
)

func debugCommand(file *string) *cobra.Command {
	output := ""
	cmd := &cobra.Command{
		Use:   "debug POD",
		Short: "Gather what an issue report needs of a pod",
		Long: `Gather what an issue report needs of a pod into one archive: records, bundles and
runsc's logs, stacks of the sandbox and, with [debug] socket, of the daemon, mounts,
network, cgroup, versions, settings. POD is a name, namespace/name, or the beginning
of an id. Values of environment variables and of users' annotations are left out, and
so is what containers have written; commands and arguments are in it. The daemon need
not run.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := config.Load(*file)
			if err != nil {
				return err
			}
			p, err := report.Find(c.Root, args[0])
			if err != nil {
				return err
			}
			about, err := aboutNode(cmd.Context(), c)
			if err != nil {
				return err
			}
			o := report.Options{Root: c.Root, State: c.State, About: about, Daemon: func(ctx context.Context) (string, error) {
				return goroutines(ctx, c.Debug.Socket)
			}}
			if output == "-" {
				return p.Write(cmd.Context(), cmd.OutOrStdout(), o)
			}
			if output == "" {
				output = "runscd-debug-" + shortID(p.ID) + ".tar.gz"
			}
			if err := writeReport(cmd.Context(), p, output, o); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: look it through before you show it to others\n", output)
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "the archive, - for standard output (default runscd-debug-<id>.tar.gz)")
	return cmd
}

func writeReport(ctx context.Context, p *report.Pod, path string, o report.Options) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(p.Write(ctx, f, o), f.Close())
}

// aboutNode is what does not depend on the pod: versions and settings.
func aboutNode(ctx context.Context, c *config.Config) (map[string]string, error) {
	var versions, settings bytes.Buffer
	fmt.Fprintln(&versions, "runscd", version)
	handlers, err := handlersOf(c, observe.New(version, nil))
	if err != nil {
		fmt.Fprintln(&versions, err)
	}
	for name, h := range handlers {
		v, err := h.Runtime.Version(ctx)
		fmt.Fprintln(&versions, "handler", name, h.Runtime.Path(), v, err)
	}
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return nil, err
	}
	fmt.Fprintln(&versions, "kernel", unix.ByteSliceToString(host.Release[:]), unix.ByteSliceToString(host.Version[:]), unix.ByteSliceToString(host.Machine[:]))
	if err := c.Print(&settings); err != nil {
		return nil, err
	}
	return map[string]string{"versions.txt": versions.String(), "runscd.toml": settings.String()}, nil
}

// goroutines asks a daemon's debug socket.
func goroutines(ctx context.Context, socket string) (string, error) {
	if socket == "" {
		return "", fmt.Errorf("debug.socket is not set: %w", errdefs.ErrNotFound)
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://runscd/debug/pprof/goroutine?debug=2", nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}
