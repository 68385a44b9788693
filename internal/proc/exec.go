package proc

import (
	"context"
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
// its own.
type Exec struct {
	init *Init
	pid  int
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
	return &Exec{init: p, pid: pid}, nil
}

// Wait returns the exit status: 0–255, 128+n for signal n. It is for one
// caller, and once: the sentry forgets the status when it has told it, also to
// a caller that gave up.
func (e *Exec) Wait(ctx context.Context) (int, error) {
	status, err := e.init.control.WaitExec(ctx, e.init.ID, e.pid)
	if errdefs.IsUnavailable(err) {
		return killed, nil // it ended with the sandbox
	}
	return status, err
}

// Kill sends a signal to the whole process group. A group that is gone is no
// error.
func (e *Exec) Kill(ctx context.Context, sig syscall.Signal) error {
	err := e.init.control.Signal(ctx, e.init.ID, e.pid, sig, runsc.ToGroup)
	if errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) {
		return nil
	}
	return err
}
