package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/spec"
)

// A restored pod is frozen until the last of its containers is started: the sandbox
// loads what was saved as one, and all of it runs at once. So the start of any but the
// last is only noted, and that of the last restores them all.

// awaited are the names of the containers that a restored pod waits for.
func awaited(p *Pod) []string {
	if !p.init.Restored {
		return nil
	}
	var names []string
	for _, c := range p.home.ContainersOf(p) {
		if c.init.Restored && c.State() == proc.Created {
			names = append(names, c.Config().Metadata.Name)
		}
	}
	slices.Sort(names)
	return names
}

// thawed returns an error while nothing in the pod can run: it is restored and frozen, or
// paused. It is ErrFailedPrecondition.
func (p *Pod) thawed() error {
	if p.Facts().Paused {
		return fmt.Errorf("pod sandbox %s: paused: %w", p.ID, errdefs.ErrFailedPrecondition)
	}
	if names := awaited(p); len(names) > 0 {
		return fmt.Errorf("pod sandbox %s: restored from a checkpoint, and runs when these containers are started too: %q: %w", p.ID, names, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// startRestored starts a container of a frozen pod.
func startRestored(ctx context.Context, c *Container) error {
	p := c.Pod
	unlock, err := lock(ctx, p.saving)
	if err != nil {
		return err
	}
	defer unlock()
	if len(awaited(p)) == 1 {
		if err := thaw(ctx, p); err != nil {
			return errors.Join(err, p.condemn(ctx, err))
		}
	}
	c.started()
	return nil
}

// thaw restores the containers of a frozen pod, in the order in which they were
// started before. With the last the pod runs.
func thaw(ctx context.Context, p *Pod) error {
	var containers []*Container
	for _, c := range p.home.ContainersOf(p) {
		if c.init.State() == proc.Created && c.init.Restored {
			containers = append(containers, c)
		}
	}
	slices.SortFunc(containers, func(a, b *Container) int {
		return cmp.Compare(a.Facts().Restored.Place, b.Facts().Restored.Place)
	})
	for _, c := range containers {
		ends := c.waiting.Swap(nil)
		if ends == nil {
			return fmt.Errorf("container %s: its streams are closed: %w", c.ID, errdefs.ErrFailedPrecondition)
		}
		if err := errors.Join(c.init.Start(ctx, *ends), closeEnds(ends)); err != nil {
			return fmt.Errorf("container %s: %w", c.ID, err)
		}
	}
	return nil
}

// holdStreams makes the streams of a restored container, for the time when it runs, and opens
// its log.
func holdStreams(c *Container) error {
	dir := c.Pod.home.containerDir(c.ID)
	stdin, input, err := openStdin(dir, c.Config())
	if err != nil {
		return err
	}
	files, err := createFIFOs(dir)
	if err != nil {
		return errors.Join(err, closeAll([]*os.File{stdin, input}))
	}
	ends := &runsc.Stdio{In: stdin, Out: files[0], Err: files[1]}
	log, err := c.Pod.home.logs.Open(c.ID, c.Facts().LogPath)
	if err == nil {
		c.output, err = c.openOutput(log)
	}
	if err != nil {
		return errors.Join(err, closeEnds(ends), closeAll([]*os.File{input}))
	}
	if input != nil {
		c.kept().keep(keptStdin, input)
		c.output.offer(input)
	}
	c.waiting.Store(ends)
	return nil
}

// dropStreams undoes holdStreams for a container that did not run.
func dropStreams(c *Container) error {
	err := closeEnds(c.waiting.Swap(nil))
	if c.State() == proc.Created || c.State() == proc.Creating {
		err = errors.Join(err, c.output.close())
		c.output = nil
	}
	return err
}

func closeEnds(ends *runsc.Stdio) error {
	if ends == nil {
		return nil
	}
	return closeAll([]*os.File{ends.In, ends.Out, ends.Err})
}

// condemn ends a restored pod that can never run, since a container of it is stopped
// or removed, or could not be restored.
func (p *Pod) condemn(ctx context.Context, why error) error {
	logrus.WithField("pod", p.ID).WithError(why).Error("restored pod is given up")
	p.stopping.Store(true)
	return p.init.Kill(ctx, unix.SIGKILL, true)
}

// endFrozen ends the containers of a frozen pod whose sandbox has ended.
func endFrozen(p *Pod) {
	for _, c := range p.home.ContainersOf(p) {
		if c.init.Restored && c.init.State() == proc.Created {
			c.init.Gone()
			if err := closeEnds(c.waiting.Swap(nil)); err != nil {
				logrus.WithField("container", c.ID).WithError(err).Error("streams of the container")
			}
		}
	}
}

// takeShm gives a container that is about to start the name by which the pod's
// /dev/shm can be restored, unless another that has not ended has it.
func takeShm(c *Container) error {
	p := c.Pod
	held := p.Facts().Shm
	if holder, err := p.home.Container(held); held != "" && err == nil && holder.State() != proc.Stopped {
		return nil
	}
	s, err := readBundle(c.init.Bundle)
	if err != nil || !spec.TakeShm(s, filepath.Join(p.home.podDir(p.ID), "shm")) {
		return err
	}
	taken := false
	err = p.update(func(f *podRecord) {
		if taken = f.Shm == held; taken { // and not another that starts at the same time
			f.Shm = c.ID
		}
	})
	if err != nil || !taken {
		return err
	}
	return writeBundle(c.init.Bundle, s)
}
