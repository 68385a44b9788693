package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/stdio"
)

// execOutputLimit is how much of each output ExecSync returns, in bytes: what
// a CRI message may hold.
const execOutputLimit = 16 << 20

// ExecResult is what a command did.
type ExecResult struct {
	Stdout, Stderr []byte // each cut off at 16 MiB
	ExitCode       int    // 0–255, 128+n for signal n
}

// ExecSync runs a command in a running container, as the container's user, and
// returns what it wrote until it exited. When timeout (0: none) or ctx ends the
// command's process group is killed and the error is a DeadlineExceeded.
func (r *Registry) ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (*ExecResult, error) {
	c, err := r.Container(id)
	if err != nil {
		return nil, err
	}
	if s := c.State(); s != proc.Running {
		return nil, fmt.Errorf("container %s: %s, not running: %w", c.ID, s, errdefs.ErrFailedPrecondition)
	}
	init, err := r.processes.Get(c.ID)
	if err != nil {
		return nil, err
	}
	process, err := c.execProcess(command)
	if err != nil {
		return nil, err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	return execSync(ctx, init, process)
}

func execSync(ctx context.Context, init *proc.Init, process *specs.Process) (result *ExecResult, err error) {
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	out, outEnd, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, stdin.Close())
	}
	errs, errsEnd, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, closeAll([]*os.File{stdin, out, outEnd}))
	}
	exec, err := init.Exec(ctx, proc.ExecConfig{
		Process: process, Stdio: runsc.Stdio{In: stdin, Out: outEnd, Err: errsEnd},
	})
	if err := errors.Join(err, closeAll([]*os.File{stdin, outEnd, errsEnd})); err != nil {
		return nil, errors.Join(fmt.Errorf("command %q: %w", process.Args, err), closeAll([]*os.File{out, errs}))
	}
	stdout, stderr := stdio.NewCapture(out, execOutputLimit), stdio.NewCapture(errs, execOutputLimit)
	status, err := exec.Wait(ctx)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), signalTimeout)
		defer cancel()
		err = errors.Join(fmt.Errorf("command %q: %w", process.Args, err), exec.Kill(ctx, unix.SIGKILL))
	}
	result = &ExecResult{Stdout: stdout.Drain(), Stderr: stderr.Drain(), ExitCode: status}
	if err != nil {
		return nil, err
	}
	return result, nil
}

// execProcess is the container's own process with another command.
func (c *Container) execProcess(command []string) (*specs.Process, error) {
	s, err := readBundle(c.init.Bundle)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.ID, err)
	}
	s.Process.Args = command
	s.Process.Terminal = false
	return s.Process, nil
}

// ReopenLog goes on in a new log file after the kubelet has renamed the old one.
func (r *Registry) ReopenLog(ctx context.Context, id string) error {
	c, err := r.Container(id)
	if err != nil {
		return err
	}
	if s := c.State(); s != proc.Running {
		return fmt.Errorf("container %s: %s, not running: %w", c.ID, s, errdefs.ErrFailedPrecondition)
	}
	if c.output == nil {
		return fmt.Errorf("log of container %s: not open since the daemon was restarted: %w", c.ID, errdefs.ErrUnavailable)
	}
	return c.output.log.Reopen(ctx)
}
