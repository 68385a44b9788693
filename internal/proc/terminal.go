package proc

import (
	"context"
	"errors"
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/internal/runsc"
)

// The sentry does not know the terminal of the host that a process has: what a
// kernel does to the processes of a terminal is done here.

// SignalForeground sends a signal to the foreground group of the container's
// terminal. A process that is gone is no error.
func (p *Init) SignalForeground(ctx context.Context, sig syscall.Signal) error {
	return p.signalForeground(ctx, 0, sig)
}

// SignalForeground sends a signal to the foreground group of the process's
// terminal. A process that is gone is no error.
func (e *Exec) SignalForeground(ctx context.Context, sig syscall.Signal) error {
	return e.init.signalForeground(ctx, e.pid, sig)
}

func (p *Init) signalForeground(ctx context.Context, pid int, sig syscall.Signal) error {
	err := p.control.Signal(ctx, p.ID, pid, sig, runsc.ToForegroundGroup)
	if errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) {
		return nil
	}
	return err
}

// hangupGrace is how long the processes of a terminal may take to end by
// themselves when it hangs up.
const hangupGrace = time.Second

// Hangup ends all processes that have the terminal of this one, and were started
// by it directly or not: shells, their jobs, and the jobs' children. They are
// sent SIGHUP, as by a terminal that hangs up, and a second later SIGKILL. The
// terminal has to stay open meanwhile. Processes that have left it by setsid(2)
// go on.
func (e *Exec) Hangup(ctx context.Context) error {
	groups, err := e.groups(ctx)
	err = errors.Join(err, e.killGroups(ctx, groups, unix.SIGHUP), e.killGroups(ctx, groups, unix.SIGCONT))
	grace := time.NewTimer(hangupGrace)
	defer grace.Stop()
	select {
	case <-e.done:
	case <-grace.C:
	case <-ctx.Done():
	}
	return errors.Join(err, e.killSession(ctx, groups))
}

// killSession kills the groups, and those that are there besides. What is
// stopped makes no new ones; so they are stopped until there is no new one.
func (e *Exec) killSession(ctx context.Context, groups map[int]bool) error {
	var err error
	for before := 0; before < len(groups) && err == nil; {
		before = len(groups)
		err = e.killGroups(ctx, groups, unix.SIGSTOP)
		more, unlisted := e.groups(ctx)
		err = errors.Join(err, unlisted)
		maps.Copy(groups, more)
	}
	return errors.Join(err, e.killGroups(ctx, groups, unix.SIGKILL))
}

func (e *Exec) killGroups(ctx context.Context, groups map[int]bool, sig syscall.Signal) error {
	var errs []error
	for g := range groups {
		errs = append(errs, e.killGroup(ctx, g, sig))
	}
	return errors.Join(errs...)
}

// groups returns the process group of the process and those of its descendants
// with a terminal. Once it has ended what it has started belongs to others.
func (e *Exec) groups(ctx context.Context) (map[int]bool, error) {
	all, err := e.init.control.Processes(ctx, e.init.ID)
	if errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) { // gone
		err = nil
	}
	groups, family := map[int]bool{e.pid: true}, []int{e.pid}
	for i := 0; i < len(family); i++ {
		for _, p := range all {
			if p.Parent == family[i] && !slices.Contains(family, p.PID) {
				family = append(family, p.PID)
			}
			if p.PID == family[i] && p.Terminal {
				groups[p.Group] = true
			}
		}
	}
	return groups, err
}
