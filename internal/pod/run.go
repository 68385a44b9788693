package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
)

// startTimeout bounds one runsc start. runsc itself needs some 50 ms.
const startTimeout = 2 * time.Minute

// drainTimeout bounds how long the output that a dead container left is read:
// what is left is at most a full pipe, unless the log cannot be written.
const drainTimeout = 10 * time.Second

// StartContainer starts a created container. If its command cannot be run the
// container has ended, with the reason, and the pod is unharmed.
func (r *Registry) StartContainer(ctx context.Context, id string) error {
	c, err := r.Container(id)
	if err != nil {
		return err
	}
	unlock, err := lock(ctx, c.release)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.ID, err)
	}
	defer unlock()
	if _, err := r.Container(c.ID); err != nil {
		return err // removed meanwhile
	}
	if s := c.State(); s != proc.Created {
		return fmt.Errorf("container %s: %s, not created: %w", c.ID, s, errdefs.ErrFailedPrecondition)
	}
	if s := c.Pod.State(); s != proc.Running {
		return fmt.Errorf("pod sandbox %s of container %s: %s, not running: %w", c.Pod.ID, c.ID, s, errdefs.ErrFailedPrecondition)
	}
	restored := c.init.Restored
	if err := c.Pod.thawed(); err != nil && !restored {
		return err
	}
	// A started container is not undone because its client has gone.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	if restored {
		err = startRestored(ctx, c)
	} else {
		err = c.start(ctx)
	}
	if err != nil {
		reason := reasonStartError
		if oom := c.Pod.outOfMemory(false); oom != "" {
			reason, err = reasonOOMKilled, fmt.Errorf("%s: %w", oom, err)
		}
		c.end(containerRecord{
			FinishedAt: time.Now(), ExitCode: startErrorCode, Reason: reason, Message: err.Error(),
		})
		return fmt.Errorf("start of container %s: %w", c.ID, err)
	}
	return nil
}

func (c *Container) start(ctx context.Context) error {
	if err := takeShm(c); err != nil {
		return err
	}
	o, err := c.launch(ctx)
	if err != nil {
		return errors.Join(err, c.undoStart(ctx))
	}
	c.output = o
	c.started()
	return nil
}

// started notes and tells that the container runs.
func (c *Container) started() {
	if err := c.Pod.limiter.setOOMScore(); err != nil { // runsc goes by the scores that it was given
		logrus.WithField("container", c.ID).WithError(err).Warn("limits of the sandbox")
	}
	started := time.Now()
	if err := c.update(func(f *containerRecord) { f.StartedAt = started }); err != nil {
		// It runs, and recovery would find that out from the sandbox.
		logrus.WithField("container", c.ID).WithError(err).Error("container record")
	}
	c.Pod.home.events.publish(Event{Type: runtime.ContainerEventType_CONTAINER_STARTED_EVENT, Pod: c.Pod, Container: c})
	go c.watch()
}

// undoStart ends what a failed start may have left running.
func (c *Container) undoStart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTimeout)
	defer cancel()
	c.kept().end()
	return c.init.Delete(ctx)
}

// watch waits for a started container's exit and writes it down. What
// the container has written is in the log before its end is told.
func (c *Container) watch() {
	<-c.init.Done()
	exit := c.init.Exit()
	oom := ""
	// By any signal: a program whose host process has been killed may die of
	// SIGSEGV, its memory being gone.
	if exit.Status > 128 && !c.killed.Load() && !c.Pod.stopping.Load() {
		oom = c.Pod.outOfMemory(exit.Known)
	}

	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := c.output.drain(ctx); err != nil {
		logrus.WithField("container", c.ID).WithError(err).Error("last output of the container")
		if errdefs.IsUnavailable(err) {
			return // the next daemon learns the end again, behind the rest of the output
		}
	}
	facts := containerRecord{FinishedAt: exit.At, ExitCode: exit.Status, Reason: reasonError}
	switch {
	case oom != "":
		facts.Reason, facts.Message = reasonOOMKilled, oom
	case exit.Status == 0:
		facts.Reason = reasonCompleted
	case !exit.Known && !c.Pod.stopping.Load():
		facts.Message = "the sandbox was gone before the container's exit status could be read"
	}
	c.end(facts)
	c.kept().end()
}

// end writes down how a container ended and tells it.
func (c *Container) end(how containerRecord) {
	err := c.update(func(f *containerRecord) {
		f.FinishedAt, f.ExitCode, f.Reason, f.Message = how.FinishedAt, how.ExitCode, how.Reason, how.Message
		if f.FinishedAt.Before(f.StartedAt) { // its end was seen before its start was noted
			f.FinishedAt = f.StartedAt
		}
	})
	if err != nil {
		// The sentry tells the same again after a restart, but not for ever.
		logrus.WithField("container", c.ID).WithError(err).Error("container record")
		go c.saveLater(c.Pod.home.copying)
	}
	close(c.ended)
	c.Pod.home.events.publish(Event{Type: runtime.ContainerEventType_CONTAINER_STOPPED_EVENT, Pod: c.Pod, Container: c})
	c.Pod.limiter.relimit()
}

// watch waits for the end of the sandbox, asked for or not.
func (p *Pod) watch() {
	<-p.init.Done()
	exit := p.init.Exit()
	log := logrus.WithField("pod", p.ID)
	message := ""
	if !p.stopping.Load() {
		message = fmt.Sprintf("sandbox ended by itself with status %d", exit.Status)
		if cause := cmp.Or(p.outOfMemory(false), runsc.Cause(p.init.Bundle)); cause != "" {
			message += ": " + cause
		}
		log.Error(message)
	}
	if err := p.update(func(f *podRecord) { f.StoppedAt, f.Message = exit.At, message }); err != nil {
		log.WithError(err).Error("pod record")
	}
	endFrozen(p)
	p.home.events.publish(Event{Type: runtime.ContainerEventType_CONTAINER_STOPPED_EVENT, Pod: p})
	close(p.ended)
}

// signalTimeout is how long a sandbox may take to deliver a signal. killTimeout
// is how long a container may outlive SIGKILL; past it the sandbox hangs, and
// is killed as a process of the host.
const (
	signalTimeout = 5 * time.Second
	killTimeout   = 10 * time.Second
)

// StopContainer sends a container its stop signal, SIGKILL when it still runs
// after timeout, and returns when it is dead. A later call with a shorter
// timeout shortens an earlier one. A container that does not run, or that there
// is not, is no error.
func (r *Registry) StopContainer(ctx context.Context, id string, timeout time.Duration) error {
	c, err := r.Container(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	// A start that is under way is over first.
	unlock, err := lock(ctx, c.release)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.ID, err)
	}
	unlock()
	if c.State() != proc.Running {
		return nil
	}
	// A paused container, or one that is frozen, cannot hear a signal.
	if err := Resume(ctx, r, c.Pod.ID); err != nil {
		logrus.WithField("container", c.ID).WithError(err).Warn("stop of a container that is paused")
	}
	if err := c.Pod.thawed(); err != nil {
		c.killed.Store(true)
		if err := c.Pod.condemn(ctx, fmt.Errorf("stop of container %s: %w", c.ID, err)); err != nil {
			return err
		}
		timeout = 0
	}
	if timeout > 0 {
		// From here on, so that a sandbox that hangs is given no more.
		grace := time.NewTimer(timeout)
		defer grace.Stop()
		short, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		if err := c.signal(short, syscall.Signal(c.Facts().Signal), false); err != nil {
			logrus.WithField("container", c.ID).WithError(err).Warn("stop signal")
		}
		select {
		case <-c.ended:
			return nil
		case <-grace.C:
		case <-ctx.Done():
			return fmt.Errorf("stop of container %s: %w", c.ID, ctx.Err())
		}
	}
	return c.kill(ctx)
}

// kill ends a container and, if its sandbox does not do it, the sandbox.
func (c *Container) kill(ctx context.Context) error {
	select {
	case <-c.init.Done(): // by itself
	default:
		c.killed.Store(true)
	}
	overdue := time.NewTimer(c.Pod.home.killTimeout)
	defer overdue.Stop()
	if err := c.signal(ctx, unix.SIGKILL, true); err != nil {
		logrus.WithField("container", c.ID).WithError(err).Warn("kill signal")
	}
	for last := false; ; last = true {
		select {
		case <-c.ended:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("stop of container %s: %w", c.ID, ctx.Err())
		case <-overdue.C:
		}
		if last {
			return fmt.Errorf("container %s: its sandbox survives SIGKILL: %w", c.ID, errdefs.ErrUnavailable)
		}
		logrus.WithFields(logrus.Fields{"pod": c.Pod.ID, "container": c.ID}).Error("sandbox hangs and is killed")
		if err := c.Pod.init.Kill(ctx, unix.SIGKILL, true); err != nil {
			return err
		}
		overdue.Reset(c.Pod.home.killTimeout)
	}
}

func (c *Container) signal(ctx context.Context, sig syscall.Signal, all bool) error {
	ctx, cancel := context.WithTimeout(ctx, c.Pod.home.signalTimeout)
	defer cancel()
	return c.init.Kill(ctx, sig, all)
}

// lock takes the one token of ch and returns the function that gives it back.
func lock(ctx context.Context, ch chan struct{}) (unlock func(), err error) {
	select {
	case ch <- struct{}{}:
		return func() { <-ch }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("another operation is not over: %w", ctx.Err())
	}
}
