package proc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/runscd/runscd/internal/runsc"
)

// saveTimeout bounds how long a sandbox may write a checkpoint, at which it cannot
// be stopped. resumeTimeout is how long it may take to pause, or to go on.
const (
	saveTimeout   = time.Hour
	resumeTimeout = 10 * time.Second
)

// Save writes a checkpoint of the sandbox with all its containers to new files in
// dir and returns how long it was paused. settle is called while it is paused and
// before anything is saved; its error ends the save.
//
// The sandbox goes on in any case. If ctx ends while it writes, Save waits until it
// has written: it is paused so long.
func (p *Init) Save(ctx context.Context, dir string, o runsc.CheckpointOptions, settle func(context.Context) error) (paused time.Duration, err error) {
	end, err := p.life.Begin(ctx, OpSave)
	if err != nil {
		return 0, err
	}
	defer end()
	if was, err := p.control.Paused(ctx); err != nil || was {
		return 0, errors.Join(err, fmt.Errorf("sandbox %s: paused: %w", p.ID, errdefs.ErrFailedPrecondition))
	}
	// Neither is cut off half-way: nobody would know whether the sandbox is paused.
	patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveTimeout)
	defer cancel()
	begin := time.Now()
	if err := p.control.Pause(patient); err != nil {
		return 0, errors.Join(err, p.Resume(context.WithoutCancel(ctx)))
	}
	defer func() {
		err = errors.Join(err, p.goOn(ctx))
		paused = time.Since(begin)
	}()
	if err := settle(ctx); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := p.control.Checkpoint(patient, dir, o); err != nil {
		return 0, err
	}
	return 0, ctx.Err()
}

// goOn lets a paused sandbox go on, also when ctx has ended. One that is gone is no error.
func (p *Init) goOn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeTimeout)
	defer cancel()
	if err := p.control.Resume(ctx); err != nil && !errdefs.IsUnavailable(err) {
		return fmt.Errorf("resume of sandbox %s: %w", p.ID, err)
	}
	return nil
}

// Alive returns an error if the process of a container has exited, whether or not that
// is told yet. It can be asked while the sandbox is paused.
func (p *Init) Alive(ctx context.Context) error {
	state, err := p.control.State(ctx, p.ID)
	if err == nil && state != runsc.StateRunning {
		err = fmt.Errorf("not running: %w", errdefs.ErrFailedPrecondition)
	}
	return err
}

// Pause stops all processes in the sandbox where they are. After an error they are not
// stopped.
func (p *Init) Pause(ctx context.Context) error {
	end, err := p.life.Begin(ctx, OpPause)
	if err != nil {
		return err
	}
	defer end()
	// Not cut off half-way, as in Save.
	patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeTimeout)
	defer cancel()
	if err := p.control.Pause(patient); err != nil {
		return errors.Join(err, p.Resume(context.WithoutCancel(ctx)))
	}
	return nil
}

// Resume lets a sandbox go on that is paused: by Pause, or by a Save which was cut off
// by the end of the daemon. One that is not paused, or gone, is no error.
func (p *Init) Resume(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, resumeTimeout)
	defer cancel()
	paused, err := p.control.Paused(limited)
	if errdefs.IsUnavailable(err) {
		return nil // gone
	}
	if err != nil || !paused {
		return err
	}
	return p.goOn(ctx)
}

// Restore is Start for a root container that comes back from the checkpoint in dir.
// The sandbox runs once each of its containers has been started, which are to be as
// many as were saved.
func (p *Init) Restore(ctx context.Context, dir string) error {
	return p.start(ctx, func(ctx context.Context) error {
		return p.Runtime.RestoreSandbox(ctx, p.ID, dir, p.config())
	})
}
