package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/checkpoint"
	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/spec"
)

// Checkpoint saves a running pod with all its containers to an empty directory.
// The pod is paused once, for all of it, and goes on in any case. After an error the
// directory is empty.
func Checkpoint(ctx context.Context, r *Registry, req *runtime.CheckpointPodRequest) error {
	o, err := checkpointOptions(req.Options)
	if err != nil {
		return err
	}
	p, err := r.Pod(req.PodSandboxId)
	if err != nil {
		return err
	}
	containers, err := chosen(p, req.ContainerIds)
	if err != nil {
		return err
	}
	unlock, err := lock(ctx, p.saving)
	if err != nil {
		return fmt.Errorf("checkpoint of pod sandbox %s: %w", p.ID, err)
	}
	defer unlock()
	if err := emptyDir(req.OutputPath); err != nil {
		return err
	}
	if err := save(ctx, p, req.OutputPath, containers, o); err != nil {
		return fmt.Errorf("checkpoint of pod sandbox %s: %w", p.ID, err)
	}
	return nil
}

// checkpointOptions reads the options of a request. The error is ErrInvalidArgument.
func checkpointOptions(options map[string]string) (o runsc.CheckpointOptions, err error) {
	for key, value := range options {
		known := true
		switch key {
		case "compression":
			o.Compress, known = value == "flate-best-speed", value == "flate-best-speed" || value == "none"
		case "exclude-committed-zero-pages":
			o.ExcludeZeroPages, err = strconv.ParseBool(value)
		case "direct":
			o.Direct, err = strconv.ParseBool(value)
		default:
			return o, fmt.Errorf("options: %q: not an option of checkpoints: %w", key, errdefs.ErrInvalidArgument)
		}
		if err != nil || !known {
			return o, fmt.Errorf("options: %q: %q: %w", key, value, errdefs.ErrInvalidArgument)
		}
	}
	if o.Compress && o.Direct {
		return o, fmt.Errorf("options: \"direct\": not with compression: %w", errdefs.ErrInvalidArgument)
	}
	return o, nil
}

// chosen returns the containers of ids, which are to be all that run in the pod.
func chosen(p *Pod, ids []string) ([]*Container, error) {
	if s := p.State(); s != proc.Running {
		return nil, fmt.Errorf("pod sandbox %s: %s, not running: %w", p.ID, s, errdefs.ErrFailedPrecondition)
	}
	if err := p.thawed(); err != nil {
		return nil, err
	}
	var chosen []*Container
	for i, id := range ids {
		c, err := p.home.Container(id)
		if err != nil {
			return nil, fmt.Errorf("container_ids[%d]: %w", i, err)
		}
		if c.Pod != p {
			return nil, fmt.Errorf("container_ids[%d] %q: of another pod sandbox: %w", i, id, errdefs.ErrInvalidArgument)
		}
		if s := c.State(); s != proc.Running {
			return nil, fmt.Errorf("container_ids[%d] %q: %s, not running: %w", i, id, s, errdefs.ErrFailedPrecondition)
		}
		chosen = append(chosen, c)
	}
	names := map[string]bool{}
	for _, c := range p.home.ContainersOf(p) {
		if c.State() != proc.Running {
			continue
		}
		name := c.Config().Metadata.Name
		switch {
		case !slices.Contains(chosen, c):
			return nil, fmt.Errorf("container_ids: container %s %q runs and is not among them: %w", c.ID, name, errdefs.ErrFailedPrecondition)
		case names[name]:
			return nil, fmt.Errorf("container_ids: two containers %q run, and are restored by their names: %w", name, errdefs.ErrFailedPrecondition)
		case c.Config().Tty:
			return nil, fmt.Errorf("container %s %q: its terminal cannot be restored: %w", c.ID, name, errdefs.ErrFailedPrecondition)
		}
		names[name] = true
	}
	if shm := p.Facts().Shm; shm != "" && !slices.ContainsFunc(chosen, func(c *Container) bool { return c.ID == shm }) {
		return nil, fmt.Errorf("container %s: ended, and /dev/shm is restored with it: %w", shm, errdefs.ErrFailedPrecondition)
	}
	// As they were started. What has /dev/shm may be younger, and is restored first.
	slices.SortFunc(chosen, func(a, b *Container) int { return a.Facts().StartedAt.Compare(b.Facts().StartedAt) })
	slices.SortStableFunc(chosen, func(a, b *Container) int {
		switch p.Facts().Shm {
		case a.ID:
			return -1
		case b.ID:
			return 1
		}
		return 0
	})
	return chosen, nil
}

// emptyDir refuses what is no empty directory.
func emptyDir(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("output_path: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if !info.IsDir() {
		return fmt.Errorf("output_path %q: not a directory: %w", path, errdefs.ErrInvalidArgument)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("output_path: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("output_path %q: not empty: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// save saves the pod to dir. The place is on record meanwhile: what a killed daemon
// leaves there is removed by the next.
func save(ctx context.Context, p *Pod, dir string, containers []*Container, o runsc.CheckpointOptions) (err error) {
	if err := p.update(func(f *podRecord) { f.Saving = saving{Path: dir} }); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, checkpoint.Remove(dir, runsc.CheckpointFiles()))
		}
		err = errors.Join(err, p.update(func(f *podRecord) { f.Saving = saving{} }))
	}()
	return write(ctx, p, dir, containers, o)
}

// write writes a checkpoint of the pod to dir.
func write(ctx context.Context, p *Pod, dir string, containers []*Container, o runsc.CheckpointOptions) error {
	if err := forgetStopped(ctx, p); err != nil {
		return err
	}
	m, err := manifest(p, containers)
	if err != nil {
		return err
	}
	m.CreatedAt = time.Now()
	m.Paused, err = p.init.Save(ctx, dir, o, func(ctx context.Context) error { return settle(ctx, containers) })
	if err != nil {
		return err
	}
	image, err := runsc.ReadCheckpoint(dir)
	if err != nil {
		return err
	}
	if n := len(containers) + 1; image.Containers != n {
		// One was started since they were counted.
		return fmt.Errorf("%d containers were saved, not %d: started meanwhile: %w", image.Containers, n, errdefs.ErrUnavailable)
	}
	m.Machine.Runsc = image.Version
	if err := m.Write(dir, runsc.CheckpointFiles()); err != nil {
		return err
	}
	logrus.WithFields(logrus.Fields{"pod": p.ID, "path": dir, "paused": m.Paused.String()}).Info("pod saved")
	return ctx.Err()
}

// forgetStopped has the sandbox forget the containers that have ended, whose facts are
// on record: it would save them, and want them back to restore any.
func forgetStopped(ctx context.Context, p *Pod) error {
	var g errgroup.Group
	for _, c := range p.home.ContainersOf(p) {
		if c.State() == proc.Stopped {
			g.Go(func() error { return c.init.Delete(ctx) })
		}
	}
	return g.Wait()
}

// settle returns when the output of containers that are paused has been read: the
// sentry would save what is in their pipes as input of theirs, and so take it from
// their logs. All of them must be alive.
func settle(ctx context.Context, containers []*Container) error {
	for _, c := range containers {
		if err := c.init.Alive(ctx); err != nil {
			return fmt.Errorf("container %s: %w", c.ID, err)
		}
		if c.output == nil {
			continue
		}
		for _, s := range c.output.streams {
			if err := s.Settle(ctx); err != nil {
				return fmt.Errorf("container %s: %w", c.ID, err)
			}
		}
	}
	return nil
}

// manifest describes the pod.
func manifest(p *Pod, containers []*Container) (*checkpoint.Manifest, error) {
	// The sandbox's own binary, which may have been replaced at its path.
	machine, err := machineOf(p.init.Runtime, fmt.Sprintf("/proc/%d/exe", p.Facts().Host.PID), "")
	if err != nil {
		return nil, err
	}
	m := &checkpoint.Manifest{Handler: p.Facts().Handler, Machine: machine, Containers: map[string]checkpoint.Container{}}
	if m.Pod, err = object(p.Config(), p.init.Bundle); err != nil {
		return nil, err
	}
	for _, c := range containers {
		o, err := object(c.Config(), c.init.Bundle)
		if err != nil {
			return nil, err
		}
		f := c.Facts()
		if device := spec.HostDevice(o.Spec); device != "" {
			return nil, fmt.Errorf("container %s: device %s is the host's and cannot be saved: %w", c.ID, device, errdefs.ErrFailedPrecondition)
		}
		m.Order = append(m.Order, f.Config.M.Metadata.Name)
		m.Containers[f.Config.M.Metadata.Name] = checkpoint.Container{
			Object: o, ID: c.ID, Cgroup: cgroupIn(c), ImageID: f.ImageID, ImageRef: f.ImageRef, VolumeIDs: f.VolumeIDs,
		}
	}
	return m, nil
}

func machineOf(rt *runsc.Runtime, binary, version string) (checkpoint.Machine, error) {
	return checkpoint.ThisMachine(binary, version, rt.Platform())
}

func object(config proto.Message, bundle string) (o checkpoint.Object, err error) {
	if o.Config, err = encode(config); err != nil {
		return o, err
	}
	o.Spec, err = readBundle(bundle)
	return o, err
}

// encode writes a configuration with the names of api.proto.
func encode(m proto.Message) (json.RawMessage, error) {
	return protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
}

// recoverCheckpoint undoes a checkpoint that was cut off by the end of the daemon,
// unless it is complete.
func recoverCheckpoint(ctx context.Context, p *Pod) error {
	s := p.Facts().Saving
	if s.Path == "" {
		return nil
	}
	err := p.init.Resume(ctx)
	if s.Scratch {
		err = errors.Join(err, os.RemoveAll(s.Path))
	} else {
		err = errors.Join(err, checkpoint.Discard(s.Path, runsc.CheckpointFiles()))
	}
	return errors.Join(err, p.update(func(f *podRecord) { f.Saving = saving{} }))
}
