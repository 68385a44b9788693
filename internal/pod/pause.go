package pod

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"

	"github.com/runscd/runscd/internal/proc"
)

// Pause stops all processes of a running pod where they are, until Resume. Figures of
// the pod can be had meanwhile and it can be stopped; what would have to run in it is
// refused. A pod that is paused already is no error. The error is ErrNotFound, or
// ErrFailedPrecondition if the pod does not run.
func Pause(ctx context.Context, r *Registry, id string) error {
	p, unlock, err := pausing(ctx, r, id)
	if err != nil {
		return err
	}
	defer unlock()
	if s := p.State(); s != proc.Running {
		return fmt.Errorf("pod sandbox %s: %s, not running: %w", p.ID, s, errdefs.ErrFailedPrecondition)
	}
	if p.Facts().Paused {
		return nil
	}
	if err := p.thawed(); err != nil {
		return err
	}
	if err := p.setPaused(true); err != nil {
		return err
	}
	if err := p.init.Pause(ctx); err != nil {
		return errors.Join(fmt.Errorf("pause of pod sandbox %s: %w", p.ID, err), p.setPaused(false))
	}
	logrus.WithField("pod", p.ID).Info("pod paused")
	return nil
}

// Resume lets a paused pod go on. One that is not paused is no error.
func Resume(ctx context.Context, r *Registry, id string) error {
	p, unlock, err := pausing(ctx, r, id)
	if err != nil {
		return err
	}
	defer unlock()
	if !p.Facts().Paused {
		return nil
	}
	if err := p.init.Resume(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	logrus.WithField("pod", p.ID).Info("pod resumed")
	return p.setPaused(false)
}

// pausing returns a pod that nobody else pauses, resumes or saves until unlock.
func pausing(ctx context.Context, r *Registry, id string) (p *Pod, unlock func(), err error) {
	if p, err = r.Pod(id); err != nil {
		return nil, nil, err
	}
	if unlock, err = lock(ctx, p.saving); err != nil {
		return nil, nil, fmt.Errorf("pod sandbox %s: %w", p.ID, err)
	}
	return p, unlock, nil
}

func (p *Pod) setPaused(paused bool) error {
	return p.update(func(f *podRecord) { f.Paused = paused })
}

// recoverPause finds out whether a pod is paused that is by its record: the daemon may
// have died between the one and the other.
func recoverPause(ctx context.Context, p *Pod) error {
	if !p.Facts().Paused {
		return nil
	}
	paused, err := p.init.Runtime.Control(p.ID).Paused(ctx)
	if err != nil || paused {
		return err
	}
	return p.setPaused(false)
}
