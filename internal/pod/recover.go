package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/pause"
	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/stdio"
	"github.com/runscd/runscd/internal/store"
	"github.com/runscd/runscd/internal/systemd"
)

// recoverTimeout bounds what is done for one pod at start.
const recoverTimeout = time.Minute

// Open returns the registry of what the records tell. Pods that run are found
// again, what was half made or half undone is undone, and what has no record
// is removed. The registry is to be closed.
func Open(ctx context.Context, o Options) (*Registry, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	if o.Unit == nil {
		o.Unit = new(systemd.Unit)
	}
	if o.VolumeLabel == nil {
		o.VolumeLabel = volumeLabel
	}
	o.CgroupRoot = cmp.Or(o.CgroupRoot, "/sys/fs/cgroup")
	r := &Registry{
		Options:        o,
		index:          index{pods: map[string]*Pod{}, containers: map[string]*Container{}},
		layout:         layout(o.State),
		processes:      proc.NewRegistry(o.Monitor),
		podNames:       newNames(),
		containerNames: newNames(),
		events:         newEvents(),
		boot:           strings.TrimSpace(string(boot)),
		signalTimeout:  signalTimeout,
		killTimeout:    killTimeout,
		statsTimeout:   statsTimeout,
	}
	r.copying, r.stopCopying = context.WithCancel(context.WithoutCancel(ctx))
	for _, dir := range []string{"pods", "containers", "netns", "runsc"} {
		if err := os.MkdirAll(filepath.Join(o.State, dir), 0o711); err != nil {
			return nil, err
		}
	}
	if err := pause.Install(pauseImage(o.State)); err != nil {
		return nil, err
	}
	if r.logs, err = stdio.OpenLogs(filepath.Join(o.State, "output")); err != nil {
		return nil, fmt.Errorf("output: %w", err)
	}
	if r.podRecords, err = store.Open[podRecord](filepath.Join(o.Root, "pods"), recordVersion); err != nil {
		return nil, err
	}
	if r.containerRecords, err = store.Open[containerRecord](filepath.Join(o.Root, "containers"), recordVersion); err != nil {
		return nil, err
	}
	return r, r.recover(ctx)
}

func (r *Registry) recover(ctx context.Context) error {
	pods, containers, err := loadRecords(r)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for id, p := range pods {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
			defer cancel()
			if p.Err != nil {
				losePod(ctx, r, id, p, containers[id])
			} else {
				r.recoverPod(ctx, r.newPod(id, *p.Record), containers[id])
			}
		})
	}
	for pod, of := range containers {
		if _, ok := pods[pod]; ok {
			continue
		}
		for id, c := range of { // what is held for it goes with the strays
			log := logrus.WithFields(logrus.Fields{"container": id, "pod": pod})
			if c.Err != nil {
				log = log.WithError(c.Err)
			}
			log.Error("record of a container without a pod")
			if err := r.containerRecords.Delete(id); err != nil {
				return err
			}
		}
	}
	wg.Wait()
	r.logs.Forget(r.has)
	r.Unit.Forget(r.has)
	r.removeStrays(ctx)
	return nil
}

// recoverPod finds one pod and its containers again.
func (r *Registry) recoverPod(ctx context.Context, p *Pod, containers loaded[containerRecord]) {
	log := logrus.WithField("pod", p.ID)
	if p.State() == proc.Creating {
		var made []*Container // by a restore
		for id, l := range containers {
			made = append(made, r.newContainer(id, p, *l.Record))
		}
		if err := errors.Join(discardAll(ctx, made), p.discard(ctx)); err != nil {
			log.WithError(err).Error("pod that was not finished")
		}
		return
	}
	p.recover(ctx)
	r.addPod(p)
	var asked proto.Message // nobody waits for what has ended
	if p.State() == proc.Running && !p.init.Restored {
		asked = &runtime.RunPodSandboxRequest{Config: p.Config(), RuntimeHandler: p.Facts().Requested}
	}
	r.podNames.keep(podName(p.Config().Metadata), p.ID, asked)
	// One that hangs is waited for no longer than this, with all of its containers.
	asking, cancel := context.WithTimeout(ctx, r.signalTimeout)
	defer cancel()
	if p.State() == proc.Running {
		if err := recoverCheckpoint(asking, p); err != nil {
			log.WithError(err).Error("checkpoint that was not finished")
		}
		if err := recoverPause(asking, p); err != nil {
			log.WithError(err).Error("paused pod")
		}
	}
	for id, l := range containers {
		var err error
		if l.Err == nil {
			err = r.newContainer(id, p, *l.Record).recover(asking)
		} else if c := p.loseContainer(id, *l.Record, l.Err); !mayBeGood(l.Err) {
			err = c.init.Delete(ctx)
		}
		if err != nil {
			log.WithField("container", id).WithError(err).Error("container not recovered")
		}
	}
	p.limiter.relimit()
	f := p.Facts()
	log.WithField("state", p.State()).Info("pod recovered")
	if f.StoppedAt.IsZero() || f.Released {
		return
	}
	p.undo(asking, log)
}

// undo stops a pod that is known to be stopped, and waits for that while ctx
// lasts, so that a plugin that hangs does not hold up the start. Whoever stops
// the pod again waits for the rest.
func (p *Pod) undo(ctx context.Context, log *logrus.Entry) {
	undone := make(chan struct{})
	go func() {
		defer close(undone)
		if err := p.stop(ctx, p.disconnect); err != nil {
			log.WithError(err).Error("pod that was not undone")
		}
	}()
	select {
	case <-undone:
	case <-ctx.Done():
	}
}

// recover watches a sandbox again. One of an earlier boot, and one that
// cannot be watched, is taken for stopped, and then undone.
func (p *Pod) recover(ctx context.Context) {
	f := p.Facts()
	if f.Boot == p.home.boot && f.StoppedAt.IsZero() {
		err := p.init.Recover(ctx, f.Host)
		if err == nil {
			p.ended = make(chan struct{})
			go p.watch()
			return
		}
		logrus.WithField("pod", p.ID).WithError(err).Error("sandbox not found again")
	}
	p.init.Gone()
	if !f.StoppedAt.IsZero() {
		return
	}
	message := "the sandbox was not found again"
	if f.Boot != p.home.boot {
		message = "the machine was started anew"
	}
	if err := p.update(func(f *podRecord) { f.StoppedAt, f.Message = time.Now(), message }); err != nil {
		logrus.WithField("pod", p.ID).WithError(err).Error("pod record")
	}
}

// recover finds one container again and adds it.
func (c *Container) recover(ctx context.Context) error {
	state := c.State()
	if state == proc.Creating {
		return c.discard(ctx)
	}
	c.Pod.home.addContainer(c)
	var asked proto.Message
	if state == proc.Created && !c.init.Restored {
		asked = &runtime.CreateContainerRequest{PodSandboxId: c.Pod.ID, Config: c.Config(), SandboxConfig: c.Pod.Config()}
	}
	c.Pod.home.containerNames.keep(containerName(c.Pod.ID, c.Config().Metadata), c.ID, asked)
	if state == proc.Stopped {
		c.init.Gone()
		close(c.ended)
		return nil
	}
	if state == proc.Created && c.Pod.init.State() >= proc.Stopped {
		return nil // if it ever ran, its sandbox took that with it
	}
	err := c.init.Recover(ctx, proc.HostProcess{})
	if c.init.State() == proc.Created && c.init.Restored {
		return recoverFrozen(ctx, c, err)
	}
	if c.init.State() == proc.Created {
		if state == proc.Running { // by the record
			c.end(containerRecord{
				FinishedAt: time.Now(), ExitCode: startErrorCode, Reason: reasonStartError,
				Message: "the sandbox does not know the container",
			})
		}
		return err
	}
	if c.Pod.Facts().Boot == c.Pod.home.boot { // of an earlier one no output is left
		err = c.recoverOutput(ctx)
	}
	if state == proc.Created {
		// The daemon died between the start and its record: believe the sandbox.
		err = errors.Join(err, c.update(func(f *containerRecord) { f.StartedAt = time.Now() }))
	}
	go c.watch()
	return err
}

// recoverFrozen finds a container again whose pod waits for the start of others, or of
// this one. If its own restore was cut off, nobody knows how far that came.
func recoverFrozen(ctx context.Context, c *Container, cut error) error {
	err := cut
	if err == nil {
		err = holdStreams(c)
	}
	if c.State() == proc.Running {
		go c.watch()
	}
	if err != nil {
		err = errors.Join(err, c.Pod.condemn(ctx, err))
	}
	select {
	case <-c.Pod.init.Done(): // and was told before there was this container
		c.init.Gone()
	default:
	}
	return err
}

// recoverOutput goes on with the container's log. If that cannot be opened what
// the container writes must go somewhere nonetheless, or it would stop.
func (c *Container) recoverOutput(ctx context.Context) error {
	log, err := c.Pod.home.logs.Open(c.ID, c.Facts().LogPath)
	if err != nil {
		var discarded error
		if log, discarded = c.Pod.home.logs.Open(c.ID, ""); discarded != nil {
			return errors.Join(err, discarded)
		}
	}
	var failed error
	if c.Config().Tty {
		c.output, failed = recoverTerminal(ctx, c, log)
		return errors.Join(err, failed)
	}
	if c.output, failed = c.openOutput(log); failed != nil {
		return errors.Join(err, failed)
	}
	if input := c.kept().claim(keptStdin); input != nil {
		c.output.offer(input)
	}
	return err
}

// recoverTerminal goes on with the container's terminal. If nobody has kept that it
// has hung up with the last daemon, and only what had been read of it is left.
func recoverTerminal(ctx context.Context, c *Container, log *stdio.Log) (*output, error) {
	if master := c.kept().claim(keptTerminal); master != nil {
		o, err := c.copyOutput(log, master)
		if err == nil {
			o.terminal = stdio.NewTerminal(master, c.signalled(c.init.SignalForeground))
		}
		return o, err
	}
	err := c.init.Kill(ctx, unix.SIGHUP, false)
	end, w, failed := os.Pipe()
	if failed != nil {
		return nil, errors.Join(err, failed, log.Close())
	}
	w.Close()
	o, failed := c.copyOutput(log, end)
	return o, errors.Join(err, failed)
}

// removeStrays removes what the host holds for ids that have no record.
func (r *Registry) removeStrays(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	var errs []error
	try := func(err error) { errs = append(errs, err) }
	for _, handler := range entries(filepath.Join(r.State, "runsc")) {
		rt := r.runtime(handler)
		ids, err := rt.List()
		try(err)
		for id, sandbox := range ids {
			if r.has(id) {
				continue
			}
			try(rt.Delete(ctx, id))
			if id == sandbox {
				try(rt.Forget(id))
			}
		}
	}
	snapshots, err := r.Images.Snapshots(ctx)
	try(err)
	for _, key := range append(snapshots, entries(filepath.Join(r.State, "containers"))...) {
		if id, _, _ := strings.Cut(key, "-"); !r.has(id) {
			if err := unmountStray(ctx, r, key); err != nil {
				try(err) // its directory must not be walked
				continue
			}
			if id == key {
				try(os.RemoveAll(r.containerDir(id)))
			}
		}
	}
	for _, id := range entries(filepath.Join(r.State, "netns")) {
		if !r.has(id) {
			try(network.RemoveNS(r.netNS(id)))
		}
	}
	for _, id := range entries(filepath.Join(r.State, "pods")) {
		if !r.has(id) {
			try(os.RemoveAll(r.podDir(id)))
		}
	}
	attached := []string{}
	for _, p := range r.Pods() {
		attached = append(attached, p.ID)
	}
	try(r.Network.GC(ctx, attached))
	if err := errors.Join(errs...); err != nil {
		// The daemon is of more use with them than not started.
		logrus.WithError(err).Error("strays not removed")
	}
}

// entries returns the names in a directory, none if it cannot be read.
func entries(dir string) []string {
	list, _ := os.ReadDir(dir)
	names := make([]string, 0, len(list))
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// runtime returns the runsc of a handler. For one that is not configured any
// more it is the default's binary with the handler's root directory, which is
// enough to end what runs there.
func (o *Options) runtime(handler string) *runsc.Runtime {
	if h, ok := o.Handlers[handler]; ok {
		return h.Runtime
	}
	return runsc.New(runsc.Options{
		Path: o.Handlers[o.Default].Runtime.Path(), Root: RunscRoot(o.State, handler),
	})
}

// runtimeOf returns the runsc of a pod.
func (o *Options) runtimeOf(rec *podRecord) *runsc.Runtime {
	present := o.runtime(rec.Handler)
	if rec.Runsc.Path == "" { // of an earlier runscd, or lost
		return present
	}
	return present.Of(rec.Runsc, o.Handlers[o.Default].Runtime.Path())
}
