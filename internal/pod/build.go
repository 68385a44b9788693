package pod

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/pause"
	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/spec"
	"github.com/runscd/runscd/internal/stats"
)

// Deadlines of the ways up and down. A client that gives up earlier finds what
// was made when it asks again.
const (
	buildTimeout    = 4 * time.Minute
	teardownTimeout = 90 * time.Second
)

// RunPod makes and starts a pod's sandbox and returns its id. After an error
// nothing is left of it.
func (r *Registry) RunPod(ctx context.Context, req *runtime.RunPodSandboxRequest) (string, error) {
	if err := admit(r, req.Config, req.RuntimeHandler); err != nil {
		return "", err
	}
	name := podName(req.Config.Metadata)
	return r.podNames.create(ctx, name, req, func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, buildTimeout)
		defer cancel()
		return r.buildPod(ctx, req)
	})
}

// admit refuses a pod that a handler cannot run.
func admit(r *Registry, config *runtime.PodSandboxConfig, handler string) error {
	h, err := r.Handler(handler)
	if err != nil {
		return err
	}
	if h.unusable != nil {
		return h.unusable
	}
	if h.noUserNS != nil && userNS(config) != nil {
		return fmt.Errorf("userns_options: user namespaces do not work here: %w: %w", h.noUserNS, errdefs.ErrNotImplemented)
	}
	return nil
}

func (r *Registry) buildPod(ctx context.Context, req *runtime.RunPodSandboxRequest) (id string, err error) {
	rec, err := podRecordOf(r, req.Config, req.RuntimeHandler)
	if err != nil {
		return "", err
	}
	p := r.newPod(newID(), rec)
	return p.ID, raise(ctx, p, func(ctx context.Context) error {
		if err := p.init.Start(ctx, runsc.Stdio{}); err != nil {
			return err
		}
		return setSysctls(ctx, p)
	})
}

// podRecordOf are the first facts of a pod.
func podRecordOf(r *Registry, config *runtime.PodSandboxConfig, requested string) (podRecord, error) {
	handler := cmp.Or(requested, r.Default)
	h := r.Handlers[handler]
	origin, err := h.Runtime.Origin()
	if err != nil {
		return podRecord{}, fmt.Errorf("runtime handler %q: %w", handler, err)
	}
	return podRecord{
		Config: message[*runtime.PodSandboxConfig]{config}, Handler: handler, Requested: requested, Boot: r.boot,
		Runsc: origin, Annotations: h.Annotations, Devices: h.Devices,
	}, nil
}

// raise makes what a pod needs on the host and its sandbox, has that started, and
// makes the pod known. After an error nothing is left of it.
func raise(ctx context.Context, p *Pod, start func(context.Context) error) (err error) {
	r, config := p.home, p.Config()
	if !hostNetwork(config) {
		if err := r.Network.Status(ctx); err != nil {
			return fmt.Errorf("network not ready: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.discard(ctx))
		}
	}()
	if err := p.update(func(*podRecord) {}); err != nil {
		return err
	}
	if err := r.preparePod(p); err != nil {
		return err
	}
	// The sandbox comes up while the network is made: it reads the addresses
	// when it is started.
	var ips []string
	var g errgroup.Group // neither is cut off when the other fails: a whole thing is easier undone than half of one
	g.Go(func() (err error) {
		if !hostNetwork(config) {
			ips, err = r.Network.Add(ctx, p.network())
		}
		return err
	})
	g.Go(func() error { return p.init.Create(ctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	if err := start(ctx); err != nil {
		return err
	}
	host := p.init.Host()
	cgroup, err := stats.CgroupOf(r.CgroupRoot, host.PID)
	if err != nil {
		return fmt.Errorf("cgroup of the sandbox: %w", err)
	}
	kills, _ := cgroup.OOMKills() // a cgroup that was there before may have some
	err = p.update(func(f *podRecord) {
		f.CreatedAt, f.Host, f.Cgroup, f.OOMKills, f.IPs = time.Now(), host, cgroup.Memory, kills, ips
	})
	if err != nil {
		return err
	}
	p.ended = make(chan struct{})
	r.addPod(p)
	go p.watch()
	r.events.publish(Event{Type: runtime.ContainerEventType_CONTAINER_CREATED_EVENT, Pod: p})
	r.events.publish(Event{Type: runtime.ContainerEventType_CONTAINER_STARTED_EVENT, Pod: p})
	return nil
}

// newPod returns a pod that nothing has been done for.
func (r *Registry) newPod(id string, rec podRecord) *Pod {
	p := &Pod{
		ID:    id,
		home:  r,
		facts: facts[podRecord]{id: id, records: r.podRecords, now: rec},
		init: r.processes.New(proc.CreateConfig{
			ID: id, Bundle: r.podDir(id), Runtime: r.runtimeOf(&rec), HostNetwork: hostNetwork(rec.Config.M),
			Restored: rec.Restored,
		}),
		release: make(chan struct{}, 1),
		saving:  make(chan struct{}, 1),
	}
	p.limiter = &limiter{p, make(chan struct{}, 1)}
	return p
}

// preparePod makes the network namespace, the files that containers see, and
// the bundle.
func (r *Registry) preparePod(p *Pod) error {
	c := p.Config()
	dir := r.podDir(p.ID)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	netNS := ""
	if !hostNetwork(c) {
		netNS = r.netNS(p.ID)
		if err := network.CreateNS(netNS); err != nil {
			return err
		}
	}
	volumes, err := memoryVolumes(r.KubeletRoot, c)
	if err != nil {
		return err
	}
	if len(volumes) > 0 {
		err := p.update(func(f *podRecord) {
			for _, v := range volumes {
				f.MemoryVolumes = append(f.MemoryVolumes, v.Path)
			}
		})
		if err != nil {
			return err
		}
	}
	if err := r.writeSandbox(p.ID, netNS, c, p.Facts().Annotations, volumes); err != nil {
		return err
	}
	return writePodFiles(dir, c, rootOf(c))
}

// writeSandbox writes the bundle of a sandbox. Of the pod's annotations runsc
// is given those that are allowed.
func (r *Registry) writeSandbox(id, netNS string, c *runtime.PodSandboxConfig, allowed []string, volumes []spec.MemoryVolume) error {
	cgroup, err := spec.CgroupsPath(r.SystemdCgroup, c.GetLinux().GetCgroupParent(), id)
	if err != nil {
		return err
	}
	dir := r.podDir(id)
	s, err := spec.Sandbox(c, spec.SandboxOptions{
		ID: id, NetNS: netNS, CgroupsPath: cgroup, Rootfs: dir, Shm: filepath.Join(dir, "shm"),
		Args: []string{pause.Command}, Allowed: allowed, Memory: volumes, Above: limitsAbove(r, c.GetLinux().GetCgroupParent()),
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.source": pauseImage(r.State), "dev.gvisor.spec.rootfs.type": "erofs",
		},
	})
	if err != nil {
		return err
	}
	if s.Hostname, err = hostname(c); err != nil {
		return err
	}
	return writeBundle(dir, s)
}

// writeBundle writes the configuration of an OCI bundle, also in place of one: there
// is never half of it.
func writeBundle(dir string, s *specs.Spec) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "config.json")
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// readBundle reads the configuration of an OCI bundle.
func readBundle(dir string) (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return nil, err
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("bundle %s: %w", dir, err)
	}
	return &s, nil
}

// CreateContainer makes a container that can be started, in a pod that runs,
// and returns its id. After an error nothing is left of it.
func (r *Registry) CreateContainer(ctx context.Context, req *runtime.CreateContainerRequest) (string, error) {
	p, err := r.Pod(req.PodSandboxId)
	if err != nil {
		return "", err
	}
	if s := p.State(); s != proc.Running {
		return "", fmt.Errorf("pod sandbox %s: %s, not running: %w", p.ID, s, errdefs.ErrFailedPrecondition)
	}
	if err := p.thawed(); err != nil {
		return "", err
	}
	name := containerName(p.ID, req.Config.Metadata)
	return r.containerNames.create(ctx, name, req, func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, buildTimeout)
		defer cancel()
		return r.buildContainer(ctx, p, req.Config)
	})
}

func (r *Registry) buildContainer(ctx context.Context, p *Pod, config *runtime.ContainerConfig) (id string, err error) {
	c, err := makeContainer(ctx, p, config, nil)
	if err != nil {
		return "", err
	}
	if err := p.limiter.admit(ctx, c); err != nil {
		return "", errors.Join(err, c.discard(ctx))
	}
	r.events.publish(Event{Type: runtime.ContainerEventType_CONTAINER_CREATED_EVENT, Pod: p, Container: c})
	return c.ID, nil
}

// makeContainer makes a container that nobody knows yet. restored is that of its record. After
// an error nothing is left of it.
func makeContainer(ctx context.Context, p *Pod, config *runtime.ContainerConfig, restored *restoredFrom) (_ *Container, err error) {
	r := p.home
	img, err := r.Images.Get(ctx, config.GetImage().GetImage())
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	if err := checkSubPaths(p, config); err != nil {
		return nil, err
	}
	rec := containerRecord{
		Pod:     p.ID,
		Config:  message[*runtime.ContainerConfig]{config},
		ImageID: img.ID, ImageRef: imageRef(img), Restored: restored,
	}
	if rec.VolumeIDs, err = resolveVolumes(ctx, r.Images, config); err != nil {
		return nil, err
	}
	if rec.LogPath, err = logPath(p.Config().LogDirectory, config.LogPath); err != nil {
		return nil, err
	}
	if rec.Signal, err = stopSignal(config.StopSignal, img.Spec.Config.StopSignal); err != nil {
		return nil, err
	}
	id := newID()
	owner := "" // a restored container has the namespace that it had
	if restored == nil {
		owner, err = pidOwner(r, p, config.GetLinux().GetSecurityContext().GetNamespaceOptions(), id)
		if err != nil {
			return nil, err
		}
	}
	c := r.newContainer(id, p, rec)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.discard(ctx))
		}
	}()
	if err := c.update(func(*containerRecord) {}); err != nil {
		return nil, err
	}
	user, err := r.prepareContainer(ctx, c, img, owner)
	if err != nil {
		return nil, err
	}
	if err := c.init.Create(ctx); err != nil {
		return nil, err
	}
	err = c.update(func(f *containerRecord) { f.CreatedAt, f.User = time.Now(), user })
	return c, err
}

// pidOwner returns the container whose PID namespace is asked for, "" for the
// sandbox's. A target must run: runsc would make a namespace of its own for one
// that it does not know.
func pidOwner(r *Registry, p *Pod, o *runtime.NamespaceOption, id string) (string, error) {
	switch o.GetPid() {
	case runtime.NamespaceMode_POD:
		return "", nil
	case runtime.NamespaceMode_TARGET:
	default:
		return id, nil
	}
	if o.TargetId == "" {
		return "", fmt.Errorf("pid namespace mode TARGET without target_id: %w", errdefs.ErrInvalidArgument)
	}
	target, err := r.Container(o.TargetId)
	if err != nil {
		return "", fmt.Errorf("target_id: %w", err)
	}
	if target.Pod != p {
		return "", fmt.Errorf("target_id %q: a container of another pod: %w", o.TargetId, errdefs.ErrInvalidArgument)
	}
	if s := target.State(); s != proc.Running {
		return "", fmt.Errorf("target_id %q: %s, not running: %w", o.TargetId, s, errdefs.ErrFailedPrecondition)
	}
	return pidOwner(r, p, target.Config().GetLinux().GetSecurityContext().GetNamespaceOptions(), target.ID)
}

// newContainer returns a container that nothing has been done for.
func (r *Registry) newContainer(id string, p *Pod, rec containerRecord) *Container {
	return &Container{
		ID: id, Pod: p,
		facts: facts[containerRecord]{id: id, records: r.containerRecords, now: rec},
		init: r.processes.New(proc.CreateConfig{
			ID: id, Sandbox: p.init, Bundle: r.containerDir(id), Runtime: p.init.Runtime, Restored: rec.Restored != nil,
		}),
		ended:   make(chan struct{}),
		release: make(chan struct{}, 1),
	}
}
