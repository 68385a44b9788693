package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
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

// head keeps the first execOutputLimit bytes that are written to it.
type head []byte

func (h *head) Write(b []byte) (int, error) {
	*h = append(*h, b[:min(len(b), execOutputLimit-len(*h))]...)
	return len(b), nil
}

// Running returns a container that runs. The errors are ErrNotFound and
// ErrFailedPrecondition.
func (r *Registry) Running(id string) (*Container, error) {
	c, err := r.Container(id)
	if err != nil {
		return nil, err
	}
	if s := c.State(); s != proc.Running {
		return nil, fmt.Errorf("container %s: %s, not running: %w", c.ID, s, errdefs.ErrFailedPrecondition)
	}
	return c, nil
}

// ExecSync runs a command in a running container, as the container's user, and
// returns what it wrote until it exited. When timeout (0: none) or ctx ends the
// command's process group is killed and the error is a DeadlineExceeded.
func (r *Registry) ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (*ExecResult, error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var stdout, stderr head
	status, err := r.Exec(ctx, id, command, false, stdio.Streams{Out: &stdout, Err: &stderr})
	if err != nil {
		return nil, err
	}
	return &ExecResult{Stdout: stdout, Stderr: stderr, ExitCode: status}, nil
}

// Exec runs a command in a running container, as the container's user, with a
// client's streams, and with a terminal if tty is set. It returns the exit
// status, 0–255 or 128+n for signal n, when the client has what the command wrote
// until it exited. Processes that the command left behind are not waited for.
//
// When ctx ends, so does the command: its process group is killed, or with a
// terminal all processes that have it. The end of the client's input is the
// command's; a terminal has none, as ^D is typed.
//
// A Read of s.In may still be under way when Exec returns, and so may a receive
// from s.Resize: both are the caller's to end.
func (r *Registry) Exec(ctx context.Context, id string, command []string, tty bool, s stdio.Streams) (int, error) {
	c, err := r.Running(id)
	if err != nil {
		return 0, err
	}
	if err := c.Pod.thawed(); err != nil {
		return 0, err
	}
	process, err := c.execProcess(command, tty)
	if err != nil {
		return 0, err
	}
	run := c.exec
	if tty {
		run = c.execTerminal
	}
	status, err := run(ctx, process, s)
	if err != nil {
		return 0, fmt.Errorf("command %q: %w", command, err)
	}
	return status, nil
}

// execProcess is the container's own process with another command.
func (c *Container) execProcess(command []string, tty bool) (*specs.Process, error) {
	s, err := readBundle(c.init.Bundle)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.ID, err)
	}
	p := s.Process
	p.Args, p.Terminal = command, tty
	if tty && !slices.ContainsFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, "TERM=") }) {
		p.Env = append(p.Env, "TERM=xterm")
	}
	return p, nil
}

// exec runs a process whose standard streams are pipes.
func (c *Container) exec(ctx context.Context, p *specs.Process, s stdio.Streams) (int, error) {
	theirs, ours, err := openPipes(s)
	if err != nil {
		return 0, err
	}
	exec, err := c.init.Exec(ctx, proc.ExecConfig{
		Process: p, Stdio: runsc.Stdio{In: theirs[0], Out: theirs[1], Err: theirs[2]},
	})
	if err := errors.Join(err, closeAll(theirs)); err != nil {
		return 0, errors.Join(err, closeAll(ours))
	}
	input := ours[0]
	if input != nil {
		go func() {
			stdio.Feed(input, s.In)
			input.Close()
		}()
	}
	var copiers []*stdio.Copier
	for i, w := range []io.Writer{s.Out, s.Err} {
		if w != nil {
			copiers = append(copiers, stdio.NewCopier(ours[1+i], w))
		}
	}
	status, err := c.await(ctx, exec, func(ctx context.Context) error { return exec.Kill(ctx, unix.SIGKILL) })
	input.Close() // also ends a write that nobody reads
	for _, copier := range copiers {
		copier.Drain()
	}
	return status, err
}

// openPipes makes the pipes for the streams that a client wants: the ends of the
// process, and ours. What it does not want is /dev/null for the process, and nil
// for us.
func openPipes(s stdio.Streams) (theirs, ours []*os.File, err error) {
	for i, wanted := range []bool{s.In != nil, s.Out != nil, s.Err != nil} {
		var r, w *os.File
		if wanted {
			r, w, err = os.Pipe()
		} else {
			w, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
		}
		if err != nil {
			return nil, nil, errors.Join(err, closeAll(theirs), closeAll(ours))
		}
		if wanted && i == 0 { // the process reads its input
			r, w = w, r
		}
		theirs, ours = append(theirs, w), append(ours, r)
	}
	return theirs, ours, nil
}

// execTerminal runs a process whose standard streams are a terminal.
func (c *Container) execTerminal(ctx context.Context, p *specs.Process, s stdio.Streams) (int, error) {
	master, slave, err := stdio.OpenTerminal(s.Resize)
	if err != nil {
		return 0, err
	}
	exec, err := c.init.Exec(ctx, proc.ExecConfig{Process: p, Stdio: runsc.Stdio{In: slave, Out: slave, Err: slave}})
	if err := errors.Join(err, slave.Close()); err != nil {
		return 0, errors.Join(err, master.Close())
	}
	terminal := stdio.NewTerminal(master, c.signalled(exec.SignalForeground))
	if s.In != nil {
		go stdio.Feed(terminal, s.In)
	}
	if s.Resize != nil {
		go terminal.Follow(s.Resize)
	}
	if s.Out == nil {
		s.Out = io.Discard
	}
	copier := stdio.NewCopier(master, s.Out)
	status, err := c.await(ctx, exec, exec.Hangup)
	copier.Drain()
	return status, err
}

// await returns the exit status of a process. When ctx ends it ends the process.
func (c *Container) await(ctx context.Context, exec *proc.Exec, end func(context.Context) error) (int, error) {
	status, err := exec.Wait(ctx)
	if ctx.Err() == nil || err == nil {
		return status, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.Pod.home.signalTimeout)
	defer cancel()
	if end := end(ctx); end != nil {
		return 0, errors.Join(err, end)
	}
	_, _ = exec.Wait(ctx) // so that nothing of it is left
	return 0, err
}

// signalled is how a terminal has its signals delivered.
func (c *Container) signalled(deliver func(context.Context, unix.Signal) error) func(unix.Signal) {
	return func(sig unix.Signal) {
		ctx, cancel := context.WithTimeout(context.Background(), c.Pod.home.signalTimeout)
		defer cancel()
		if err := deliver(ctx, sig); err != nil {
			logrus.WithField("container", c.ID).WithError(err).Warn("signal of a terminal")
		}
	}
}

// ReopenLog goes on in a new log file after the kubelet has renamed the old one.
func (r *Registry) ReopenLog(ctx context.Context, id string) error {
	c, err := r.Running(id)
	if err != nil {
		return err
	}
	if c.output == nil {
		return fmt.Errorf("log of container %s: not open since the daemon was restarted: %w", c.ID, errdefs.ErrUnavailable)
	}
	return c.output.log.Reopen(ctx)
}
