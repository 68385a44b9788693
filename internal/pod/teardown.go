package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/proc"
)

// Everything that is undone is undone here. Each step may be repeated and
// takes "not there" for done; a step that fails does not keep the others from
// being tried; and what was made for an object is found by its id alone.

// StopPod ends a pod's containers and its sandbox and gives back all that the
// host held for it but its containers' file systems. It may be repeated; a pod
// that there is not is no error.
func (r *Registry) StopPod(ctx context.Context, id string) error {
	p, err := r.Pod(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.stop(ctx, p.disconnect)
}

// stop gives the pod up, its network by disconnect.
func (p *Pod) stop(ctx context.Context, disconnect func(context.Context) error) error {
	if p.Facts().Released {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTimeout)
	defer cancel()
	unlock, err := lock(ctx, p.release)
	if err != nil {
		return fmt.Errorf("pod sandbox %s: %w", p.ID, err)
	}
	defer unlock()
	if p.Facts().Released {
		return nil
	}
	if err := p.giveUp(ctx, disconnect); err != nil {
		return fmt.Errorf("stop of pod sandbox %s: %w", p.ID, err)
	}
	return p.update(func(f *podRecord) {
		f.Released = true
		if f.StoppedAt.IsZero() {
			f.StoppedAt = time.Now()
		}
	})
}

// giveUp ends the sandbox with all in it and takes its network away.
func (p *Pod) giveUp(ctx context.Context, disconnect func(context.Context) error) error {
	select {
	case <-p.init.Done(): // by itself
	default:
		p.stopping.Store(true)
	}
	// The kernel ends everything in a sandbox with its process, so the
	// containers need no signals of their own, and nothing of the pod uses the
	// network when it goes.
	err := p.init.Kill(ctx, unix.SIGKILL, true)
	p.memoryKills() // goes with the cgroup, and is perhaps not told yet
	var g errgroup.Group
	g.Go(func() error { return p.init.Delete(ctx) })
	if !hostNetwork(p.Config()) {
		g.Go(func() error { return errors.Join(disconnect(ctx), network.RemoveNS(p.home.netNS(p.ID))) })
	}
	err = errors.Join(err, g.Wait())
	if err == nil && p.ended != nil {
		<-p.ended // at once, for the sandbox is deleted
	}
	for _, c := range p.home.ContainersOf(p) {
		err = errors.Join(err, c.awaitEnd(ctx))
	}
	return err
}

// awaitEnd waits until the end of a container is told whose sandbox has ended, also
// of one that is just being started.
func (c *Container) awaitEnd(ctx context.Context) error {
	unlock, err := lock(ctx, c.release)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.ID, err)
	}
	unlock()
	if c.State() != proc.Running {
		return nil
	}
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s has not ended: %w", c.ID, ctx.Err())
	}
}

// disconnect releases what the network holds for the pod.
func (p *Pod) disconnect(ctx context.Context) error {
	return p.home.Network.Del(ctx, p.network())
}

// abandonNetwork is disconnect for a pod that is removed: a plugin that will never
// work again must not keep the pod for ever. What is not released stays on record
// with the network, and is tried again at the start of the daemon.
func (p *Pod) abandonNetwork(ctx context.Context) error {
	if err := p.disconnect(ctx); err != nil {
		logrus.WithField("pod", p.ID).WithError(err).Error("pod is removed without its network being released")
	}
	return nil
}

// RemovePod stops a pod and removes it with its containers. It may be repeated;
// a pod that there is not is no error.
func (r *Registry) RemovePod(ctx context.Context, id string) error {
	p, err := r.Pod(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := p.stop(ctx, p.abandonNetwork); err != nil {
		return err
	}
	var g errgroup.Group
	for _, c := range r.ContainersOf(p) {
		g.Go(func() error { return c.remove(ctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	unlock, err := lock(ctx, p.release)
	if err != nil {
		return fmt.Errorf("pod sandbox %s: %w", p.ID, err)
	}
	defer unlock()
	if _, err := r.Pod(p.ID); err != nil {
		return nil // another call was faster
	}
	if err := p.forget(); err != nil {
		return fmt.Errorf("removal of pod sandbox %s: %w", p.ID, err)
	}
	r.events.publish(Event{Type: runtime.ContainerEventType_CONTAINER_DELETED_EVENT, Pod: p})
	return nil
}

// discard undoes a pod that was not finished. If that fails the pod is listed
// as stopped, so that whoever removes it tries again.
func (p *Pod) discard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTimeout)
	defer cancel()
	err := p.giveUp(ctx, p.disconnect)
	if err == nil {
		err = p.forget()
	}
	if err == nil {
		return nil
	}
	now := time.Now()
	p.home.addPod(p)
	return errors.Join(
		fmt.Errorf("undoing pod sandbox %s: %w", p.ID, err),
		p.update(func(f *podRecord) { f.CreatedAt, f.StoppedAt = now, now }),
	)
}

// forget removes the pod's directory and, last, its record.
func (p *Pod) forget() error {
	// A start of a container that was under way has made runsc's lock anew.
	if err := p.init.Runtime.Forget(p.ID); err != nil {
		return err
	}
	if err := os.RemoveAll(p.home.podDir(p.ID)); err != nil {
		return err
	}
	if err := p.erase(); err != nil {
		return err
	}
	p.home.processes.Remove(p.ID)
	p.home.dropPod(p.ID)
	p.home.podNames.release(podName(p.Config().Metadata), p.ID)
	return nil
}

// RemoveContainer kills a container if it runs and removes it. It may be
// repeated; a container that there is not is no error. The log stays: it
// belongs to the kubelet.
func (r *Registry) RemoveContainer(ctx context.Context, id string) error {
	c, err := r.Container(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.remove(ctx)
}

func (c *Container) remove(ctx context.Context) error {
	if err := c.Pod.home.StopContainer(ctx, c.ID, 0); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTimeout)
	defer cancel()
	unlock, err := lock(ctx, c.release)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.ID, err)
	}
	defer unlock()
	if _, err := c.Pod.home.Container(c.ID); err != nil {
		return nil // another call was faster
	}
	if c.init.Restored && c.State() == proc.Created && c.Pod.State() == proc.Running {
		if err := c.Pod.condemn(ctx, fmt.Errorf("container %s is removed", c.ID)); err != nil {
			return err
		}
	}
	if err := c.forget(ctx); err != nil {
		return fmt.Errorf("removal of container %s: %w", c.ID, err)
	}
	c.Pod.home.events.publish(Event{Type: runtime.ContainerEventType_CONTAINER_DELETED_EVENT, Pod: c.Pod, Container: c})
	c.Pod.limiter.relimit() // it may have been one that never ran
	return nil
}

// discard undoes a container that was not finished. If that fails the
// container is listed as ended, so that whoever removes it tries again.
func (c *Container) discard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTimeout)
	defer cancel()
	err := c.forget(ctx)
	if err == nil {
		return nil
	}
	now := time.Now()
	close(c.ended)
	c.Pod.home.addContainer(c)
	return errors.Join(
		fmt.Errorf("undoing container %s: %w", c.ID, err),
		c.update(func(f *containerRecord) {
			f.CreatedAt, f.FinishedAt, f.ExitCode, f.Reason = now, now, startErrorCode, reasonStartError
		}),
	)
}

// forget undoes all of a container that does not run, its record last.
func (c *Container) forget(ctx context.Context) error {
	r := c.Pod.home
	err := errors.Join(c.init.Delete(ctx), dropStreams(c), r.Images.Unmount(ctx, c.ID, r.rootfs(c.ID)), unmountVolumes(ctx, c))
	if err != nil {
		// The directory has mounts in it and must not be walked.
		return err
	}
	if err := os.RemoveAll(r.containerDir(c.ID)); err != nil {
		return err
	}
	if err := c.erase(); err != nil {
		return err
	}
	r.processes.Remove(c.ID)
	r.dropContainer(c.ID)
	r.containerNames.release(containerName(c.Pod.ID, c.Config().Metadata), c.ID)
	return nil
}
