package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"
	"k8s.io/apimachinery/pkg/util/rand"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/checkpoint"
)

// What the kubelet writes into the labels of its pods.
const (
	labelName = "io.kubernetes.pod.name"
	labelUID  = "io.kubernetes.pod.uid"
)

// cleanTimeout bounds the removal of pods that a command has made in vain.
const cleanTimeout = time.Minute

func restoreCommand(file *string) *cobra.Command {
	s := newSaver(file)
	name := ""
	cmd := &cobra.Command{
		Use:   "restore DIR",
		Short: "Run a pod from a checkpoint",
		Long: `Make a pod of the checkpoint in a directory and let it run from where it was, under
another name, with another address, in the same namespace. Its directories of the host
are those of the pod that was saved, and its host ports are left out. A kubelet that
serves the node ends pods that it did not make: restore where there is none, or let a
client of the CRI call RestorePod.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.connected(cmd, func(ctx context.Context) error {
				dir, err := filepath.Abs(args[0])
				if err != nil {
					return err
				}
				m, err := checkpoint.Read(dir)
				if err != nil {
					return err
				}
				return s.copies(ctx, dir, m, []string{name})
			})
		},
	}
	s.register(cmd)
	cmd.Flags().StringVar(&name, "name", "", "the pod's name (default: that of the saved one and five more characters)")
	return cmd
}

func cloneCommand(file *string) *cobra.Command {
	s := newSaver(file)
	n := 1
	cmd := &cobra.Command{
		Use:   "clone POD",
		Short: "Run copies of a running pod, from where it is",
		Long: `Save a running pod and restore copies of it, as checkpoint and restore do. The
checkpoint is a temporary directory, in $TMPDIR or /tmp, which must have room for the
pod's memory. If one copy fails, all are removed.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if n < 1 {
				return fmt.Errorf("--copies %d: not positive", n)
			}
			return s.connected(cmd, func(ctx context.Context) error { return s.clone(ctx, args[0], n) })
		},
	}
	s.register(cmd)
	s.registerOptions(cmd)
	cmd.Flags().IntVarP(&n, "copies", "n", 1, "how many")
	return cmd
}

func (s *saver) clone(ctx context.Context, pod string, n int) (err error) {
	temp, err := os.MkdirTemp("", "runscd-clone-")
	if err != nil {
		return err
	}
	// The sandboxes have the files open.
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	m, err := s.checkpoint(ctx, pod, temp)
	if err != nil {
		return err
	}
	return s.copies(ctx, temp, m, make([]string, n))
}

// copies restores pods of a checkpoint, which get the names if they are not empty, and
// prints them with their ids. It is all or none.
func (s *saver) copies(ctx context.Context, dir string, m *checkpoint.Manifest, names []string) error {
	done := s.progress(func() string { return "restoring" })
	made, rows := make([]string, len(names)), make([]string, len(names))
	var g errgroup.Group // none is cut off by another's error, or it would not be known whether it is made
	g.SetLimit(8)        // at once
	for i, name := range names {
		g.Go(func() error {
			req, err := restoreRequest(dir, m, name)
			if err == nil {
				err = makeLogs(req)
			}
			if err != nil {
				return err
			}
			made[i], err = s.restore(ctx, req)
			rows[i] = fmt.Sprintf("%s/%s %s\n", req.Config.Metadata.Namespace, req.Config.Metadata.Name, shortID(made[i]))
			return err
		})
	}
	err := g.Wait()
	done()
	if err != nil {
		return errors.Join(err, s.remove(ctx, made))
	}
	for _, row := range rows {
		if _, err := fmt.Fprint(s.out, row); err != nil {
			return err
		}
	}
	return nil
}

// restore restores a pod and starts its containers. It returns its id also with an
// error, if there is one.
func (s *saver) restore(ctx context.Context, req *runtime.RestorePodRequest) (id string, err error) {
	restored, err := s.pods.RestorePod(ctx, req)
	if err != nil {
		return "", err
	}
	for _, c := range restored.RestoredContainers {
		if _, err := s.pods.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
			return restored.PodSandboxId, err
		}
	}
	return restored.PodSandboxId, nil
}

// makeLogs makes the directories for logs, which the CRI leaves to its clients.
func makeLogs(req *runtime.RestorePodRequest) error {
	for _, c := range req.ContainerConfigs {
		if req.Config.LogDirectory == "" || c.LogPath == "" {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(req.Config.LogDirectory, c.LogPath)), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// remove removes pods, also when ctx has ended.
func (s *saver) remove(ctx context.Context, ids []string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	var errs []error
	for _, id := range ids {
		if id != "" {
			_, err := s.pods.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: id})
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// restoreRequest asks for a pod like the saved one, beside it: what can be had only
// once is the copy's own, or left out.
func restoreRequest(dir string, m *checkpoint.Manifest, name string) (*runtime.RestorePodRequest, error) {
	pod := new(runtime.PodSandboxConfig)
	if err := protojson.Unmarshal(m.Pod.Config, pod); err != nil {
		return nil, fmt.Errorf("pod in %s: %w", dir, err)
	}
	if name == "" {
		name = pod.Metadata.Name + "-" + rand.String(5)
	}
	pod.Metadata.Name, pod.Metadata.Uid, pod.Metadata.Attempt = name, name, 0
	if pod.LogDirectory != "" {
		pod.LogDirectory = filepath.Join(filepath.Dir(pod.LogDirectory), fmt.Sprintf("%s_%s_%s", pod.Metadata.Namespace, name, name))
	}
	if pod.Linux.GetSecurityContext().GetNamespaceOptions().GetNetwork() != runtime.NamespaceMode_NODE {
		pod.Hostname = name
	}
	if pod.Linux != nil {
		pod.Linux.CgroupParent = "" // the saved pod's own
	}
	pod.PortMappings = nil
	for _, label := range []string{labelName, labelUID} {
		if _, ok := pod.Labels[label]; ok {
			pod.Labels[label] = name
		}
	}
	req := &runtime.RestorePodRequest{CheckpointPath: dir, Config: pod, RuntimeHandler: m.Handler}
	for _, name := range m.Order {
		c := new(runtime.ContainerConfig)
		if err := protojson.Unmarshal(m.Containers[name].Config, c); err != nil {
			return nil, fmt.Errorf("container %q in %s: %w", name, dir, err)
		}
		req.ContainerConfigs = append(req.ContainerConfigs, c)
	}
	return req, nil
}
