// Command runscd serves the Kubernetes CRI and runs every pod as one gVisor
// sandbox.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/internal/config"
)

// version is runscd's, semantic; the Makefile stamps it in.
var version = "0.1.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	err := command().ExecuteContext(ctx)
	stop()
	var exit exitCode
	switch {
	case err == nil:
	case errors.As(err, &exit):
		os.Exit(int(exit))
	default:
		fmt.Fprintln(os.Stderr, "runscd:", err)
		os.Exit(1)
	}
}

// exitCode is an error that is only told by the exit status.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "runscd",
		Short:         "Run Kubernetes pods in gVisor sandboxes",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	file := root.PersistentFlags().StringP("config", "c", "", "settings file (default "+config.DefaultPath+", if there is one)")
	root.AddCommand(
		serveCommand(file), configCommand(file), doctorCommand(file), runCommand(file),
		psCommand(file), topCommand(file), debugCommand(file), versionCommand(),
		checkpointCommand(file), restoreCommand(file), cloneCommand(file), pauseCommand(file), resumeCommand(file),
	)
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), "runscd version", version) },
	}
}

func configCommand(file *string) *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print the settings in effect, with comments",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(*file)
			if err != nil {
				return err
			}
			return c.Print(cmd.OutOrStdout())
		},
	}
}
