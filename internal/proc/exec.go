package proc

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/runscd/runscd/internal/runsc"
)

// ExecConfig is what an Exec is made of.
type ExecConfig struct {
	Process *specs.Process
	Stdio   runsc.Stdio // given to the process; the caller keeps its own ends
	Program *os.File    // run in place of the command; see runsc.Control.Exec
}

// execTimeout bounds how long a sandbox may take to start a process. It needs
// about a millisecond.
const execTimeout = 10 * time.Second

// Exec is a process added to a running container. It leads a process group of
// its own, and a session of its own if it has a terminal.
type Exec struct {
	init *Init
	pid  int

	done   chan struct{} // closed after status and err are set
	status int
	err    error
}

// Exec starts a process in the container, also when ctx ends meanwhile. Errors about the command are of the
// kinds runsc.ErrNoExecutable, ErrPermissionDenied and ErrInvalidArgument.
func (p *Init) Exec(ctx context.Context, c ExecConfig) (*Exec, error) {
	end, err := p.life.Begin(ctx, OpExec)
	if err != nil {
		return nil, err
	}
	defer end()
	// Once it is asked the sandbox must be heard, or what it starts would run on
	// and nobody know of it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), execTimeout)
	defer cancel()
	pid, err := p.control.Exec(ctx, p.ID, c.Process, c.Stdio, c.Program)
	if err != nil {
		return nil, err
	}
	e := &Exec{init: p, pid: pid, done: make(chan struct{})}
	go e.watch()
	return e, nil
}

// watch takes the exit status, which the sentry forgets when it has told it. It
// ends with the process, or with the sandbox.
func (e *Exec) watch() {
	defer close(e.done)
	alive := e.init.alive
	if e.init.Sandbox != nil {
		alive = e.init.Sandbox.alive
	}
	e.status, e.err = e.init.control.WaitExec(alive, e.init.ID, e.pid)
	if errdefs.IsUnavailable(e.err) || e.err != nil && alive.Err() != nil {
		e.status, e.err = killed, nil // it ended with the sandbox
	}
}

// Wait returns the exit status: 0–255, 128+n for signal n.
func (e *Exec) Wait(ctx context.Context) (int, error) {
	select {
	case <-e.done:
		return e.status, e.err
	default:
	}
	select {
	case <-e.done:
		return e.status, e.err
	case <-ctx.Done():
		return 0, fmt.Errorf("process has not ended: %w", ctx.Err())
	}
}

// Kill sends a signal to the whole process group. A group that is gone is no
// error.
func (e *Exec) Kill(ctx context.Context, sig syscall.Signal) error {
	return e.killGroup(ctx, e.pid, sig)
}

func (e *Exec) killGroup(ctx context.Context, group int, sig syscall.Signal) error {
	err := e.init.control.Signal(ctx, e.init.ID, group, sig, runsc.ToGroup)
	if errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) {
		return nil
	}
	return err
}
