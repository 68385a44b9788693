package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/checkpoint"
)

// saver is what the commands have in common that save and restore pods.
type saver struct {
	client
	timeout time.Duration
	options map[string]string

	pods  runtime.RuntimeServiceClient
	out   io.Writer
	err   io.Writer
	every time.Duration // between two lines of progress
}

func newSaver(file *string) *saver {
	return &saver{client: client{file: file}, every: 2 * time.Second}
}

func (s *saver) register(cmd *cobra.Command) {
	s.client.register(cmd)
	cmd.Flags().DurationVar(&s.timeout, "timeout", 10*time.Minute, "give up after this time")
}

func (s *saver) registerOptions(cmd *cobra.Command) {
	cmd.Flags().StringToStringVarP(&s.options, "option", "o", nil, "option of the checkpoint as key=value, see docs/checkpoint.md")
}

// connected runs a command with a connection and a deadline.
func (s *saver) connected(cmd *cobra.Command, run func(context.Context) error) error {
	conn, err := s.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	s.pods = runtime.NewRuntimeServiceClient(conn)
	s.out, s.err = cmd.OutOrStdout(), cmd.ErrOrStderr()
	ctx, cancel := context.WithTimeout(cmd.Context(), s.timeout)
	defer cancel()
	return run(ctx)
}

func checkpointCommand(file *string) *cobra.Command {
	s := newSaver(file)
	cmd := &cobra.Command{
		Use:   "checkpoint POD DIR",
		Short: "Save a running pod with its memory to a directory",
		Long: `Save a running pod with all its containers, their memory and their files to a
directory, which is made or must be empty. The pod stands still meanwhile and then
goes on. POD is a name, namespace/name, or the beginning of an id. What is saved has
the pod's secrets in it; it is its owner's alone.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.connected(cmd, func(ctx context.Context) error {
				dir, err := filepath.Abs(args[1])
				if err != nil {
					return err
				}
				m, err := s.checkpoint(ctx, args[0], dir)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(s.out, "%s: %s, paused for %s\n", dir, size(new(float64(sizeOf(dir)))), m.Paused.Round(time.Millisecond))
				return err
			})
		},
	}
	s.register(cmd)
	s.registerOptions(cmd)
	return cmd
}

// checkpoint saves a pod to a directory that is made if it is not there. After an
// error a directory that was made is gone.
func (s *saver) checkpoint(ctx context.Context, pod, dir string) (_ *checkpoint.Manifest, err error) {
	p, err := findPod(ctx, s.pods, pod)
	if err != nil {
		return nil, err
	}
	req := &runtime.CheckpointPodRequest{PodSandboxId: p.Id, OutputPath: dir, Options: s.options}
	for _, c := range p.containers {
		req.ContainerIds = append(req.ContainerIds, c.Id)
	}
	mkdir := os.Mkdir(dir, 0o700)
	if mkdir != nil && !errors.Is(mkdir, os.ErrExist) {
		return nil, mkdir
	}
	defer func() {
		if err != nil && mkdir == nil {
			err = errors.Join(err, os.Remove(dir))
		}
	}()
	stop := s.progress(func() string {
		return fmt.Sprintf("saving %s: %s written", p.name(), size(new(float64(sizeOf(dir)))))
	})
	_, err = s.pods.CheckpointPod(ctx, req)
	stop()
	if err != nil {
		return nil, err
	}
	return checkpoint.Read(dir)
}

// progress shows what is being done, again and again, until stop is called.
func (s *saver) progress(what func() string) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	begin := time.Now()
	go func() {
		defer close(ended)
		tick := time.NewTicker(s.every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				fmt.Fprintf(s.err, "%s after %s\n", what(), time.Since(begin).Round(time.Second))
			case <-end:
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// sizeOf is how many bytes the files in a directory have.
func sizeOf(dir string) (size int64) {
	entries, _ := os.ReadDir(dir) // as much as there is
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			size += info.Size()
		}
	}
	return size
}
