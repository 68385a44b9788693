package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/checkpoint"
	"github.com/runscd/runscd/internal/spec"
)

// What may differ between a checkpoint and the pod that is made of it, by the names
// of the CRI's fields. The rest is in the memory of the sandbox.
var (
	podRules = checkpoint.Rules{Free: []string{
		"metadata", "hostname", "log_directory", "dns_config", "port_mappings", "labels", "annotations",
		"linux.cgroup_parent", "linux.overhead", "linux.resources",
	}}
	containerRules = checkpoint.Rules{
		Free: []string{
			"metadata.attempt", "image", "labels", "annotations", "log_path", "stop_signal", "linux.resources",
			"mounts[].host_path", "mounts[].image", "linux.security_context.namespace_options.target_id",
		},
		Keys:   map[string]string{"envs": "key", "mounts": "container_path"},
		Secret: []string{"envs"},
	}
	specRules = checkpoint.Rules{
		Free: []string{
			"hostname", "domainname", "root.path", "process.env", "process.oomScoreAdj", "mounts[].source",
			"linux.cgroupsPath", "linux.resources", "linux.namespaces",
		},
		Keys: map[string]string{"mounts": "destination"},
	}
)

// Restore makes a pod of a checkpoint and returns its id, and those of its
// containers by their names. All is as it was saved and nothing runs until each
// container is started. After an error, also that of ctx, nothing is left of it.
func Restore(ctx context.Context, r *Registry, req *runtime.RestorePodRequest) (id string, containers map[string]string, err error) {
	if err := admit(r, req.Config, req.RuntimeHandler); err != nil {
		return "", nil, err
	}
	m, err := checkpoint.Read(req.CheckpointPath)
	if err != nil {
		return "", nil, fmt.Errorf("checkpoint_path: %w", err)
	}
	if err := compatible(ctx, r, m, req); err != nil {
		return "", nil, err
	}
	if err := m.Verify(req.CheckpointPath); err != nil {
		return "", nil, fmt.Errorf("checkpoint_path: %w", err)
	}
	// Who gives up finds nothing, unlike with RunPodSandbox: so it is the build that
	// heeds ctx.
	id, err = r.podNames.create(context.WithoutCancel(ctx), podName(req.Config.Metadata), req, func(context.Context) (string, error) {
		return buildRestored(ctx, r, m, req)
	})
	if err != nil {
		return "", nil, err
	}
	p, err := r.Pod(id)
	if err != nil {
		return "", nil, err
	}
	containers = map[string]string{}
	for _, c := range r.ContainersOf(p) {
		containers[c.Config().Metadata.Name] = c.ID
	}
	return id, containers, nil
}

// compatible compares a request with the checkpoint. The error names the field.
func compatible(ctx context.Context, r *Registry, m *checkpoint.Manifest, req *runtime.RestorePodRequest) error {
	h, err := r.Handler(req.RuntimeHandler)
	if err != nil {
		return err
	}
	here, err := machineOf(h.Runtime, h.Runtime.Path(), h.Version)
	if err != nil {
		return err
	}
	if err := m.Machine.Check(here); err != nil {
		return fmt.Errorf("runtime_handler %q: %w", req.RuntimeHandler, err)
	}
	config, err := encode(req.Config)
	if err != nil {
		return err
	}
	if err := podRules.Same(m.Pod.Config, config); err != nil {
		return fmt.Errorf("config.%w", err)
	}
	var names []string
	for _, c := range req.ContainerConfigs {
		names = append(names, c.GetMetadata().GetName())
	}
	slices.Sort(names)
	if saved := slices.Sorted(maps.Keys(m.Containers)); !slices.Equal(names, saved) {
		return fmt.Errorf("container_configs: of %q, the checkpoint has %q: %w", names, saved, errdefs.ErrInvalidArgument)
	}
	for _, c := range req.ContainerConfigs {
		if err := compatibleContainer(ctx, r, m.Containers[c.Metadata.Name], c); err != nil {
			return fmt.Errorf("container_configs[%q].%w", c.Metadata.Name, err)
		}
	}
	return nil
}

func compatibleContainer(ctx context.Context, r *Registry, was checkpoint.Container, is *runtime.ContainerConfig) error {
	config, err := encode(is)
	if err != nil {
		return err
	}
	if err := containerRules.Same(was.Config, config); err != nil {
		return err
	}
	ref := is.GetImage().GetImage()
	img, err := r.Images.Get(ctx, ref)
	if err != nil {
		return fmt.Errorf("image %q: %w", ref, err)
	}
	if img.ID != was.ImageID {
		return fmt.Errorf("image %q: %s, the checkpoint has %s: %w", ref, img.ID, was.ImageID, errdefs.ErrInvalidArgument)
	}
	volumes, err := resolveVolumes(ctx, r.Images, is)
	if err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	if !maps.Equal(volumes, was.VolumeIDs) {
		return fmt.Errorf("mounts: images %v, the checkpoint has %v: %w", volumes, was.VolumeIDs, errdefs.ErrInvalidArgument)
	}
	return nil
}

func buildRestored(ctx context.Context, r *Registry, m *checkpoint.Manifest, req *runtime.RestorePodRequest) (string, error) {
	rec, err := podRecordOf(r, req.Config, req.RuntimeHandler)
	if err != nil {
		return "", err
	}
	rec.Restored = true
	p := r.newPod(newID(), rec)
	var containers []*Container
	err = raise(ctx, p, func(ctx context.Context) error {
		if err := sameSpec(p.init.Bundle, m.Pod.Spec); err != nil {
			return fmt.Errorf("config: %w", err)
		}
		var g errgroup.Group
		g.Go(func() error { return p.init.Restore(ctx, req.CheckpointPath) })
		g.Go(func() (err error) {
			containers, err = makeRestored(ctx, p, m, req.ContainerConfigs)
			return err
		})
		if err := errors.Join(g.Wait(), ctx.Err()); err != nil {
			return err
		}
		for _, c := range containers {
			r.containerNames.keep(containerName(p.ID, c.Config().Metadata), c.ID, nil)
			r.addContainer(c)
		}
		return nil
	})
	if err != nil {
		return "", errors.Join(err, discardAll(ctx, containers))
	}
	p.limiter.relimit()
	for _, c := range containers {
		r.events.publish(Event{Type: runtime.ContainerEventType_CONTAINER_CREATED_EVENT, Pod: p, Container: c})
	}
	return p.ID, nil
}

// makeRestored makes the containers of a pod that is being restored, and returns those
// that it has made also with an error.
func makeRestored(ctx context.Context, p *Pod, m *checkpoint.Manifest, configs []*runtime.ContainerConfig) ([]*Container, error) {
	var mu sync.Mutex
	var made []*Container
	var g errgroup.Group
	for _, config := range configs {
		name := config.Metadata.Name
		was := m.Containers[name]
		g.Go(func() error {
			c, err := makeContainer(ctx, p, config, &restoredFrom{Cgroup: was.Cgroup, Place: slices.Index(m.Order, name)})
			if err == nil {
				mu.Lock()
				made = append(made, c)
				mu.Unlock()
				err = errors.Join(sameSpec(c.init.Bundle, was.Spec), holdStreams(c))
			}
			if err == nil && spec.HasShm(was.Spec) {
				err = takeShm(c)
			}
			if err != nil {
				return fmt.Errorf("container_configs[%q]: %w", name, err)
			}
			return nil
		})
	}
	err := g.Wait()
	return made, err
}

// sameSpec compares the spec in a bundle with the one of the checkpoint: what images,
// handlers and the daemon's settings have made of the configuration.
func sameSpec(bundle string, was *specs.Spec) error {
	is, err := readBundle(bundle)
	if err != nil {
		return err
	}
	var data [2][]byte
	for i, s := range []specs.Spec{*was, *is} {
		// Only runsc's own annotations count. Sources of mounts are the host's.
		s.Annotations = maps.Clone(s.Annotations)
		maps.DeleteFunc(s.Annotations, func(name, _ string) bool {
			return !strings.HasPrefix(name, "dev.gvisor.") || strings.HasSuffix(name, ".source")
		})
		if data[i], err = json.Marshal(s); err != nil {
			return err
		}
	}
	return specRules.Same(data[0], data[1])
}

func discardAll(ctx context.Context, containers []*Container) error {
	var errs []error
	for _, c := range containers {
		errs = append(errs, c.discard(ctx))
	}
	return errors.Join(errs...)
}
