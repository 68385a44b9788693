package proc

import (
	"context"
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
	if err != nil {
		return err
	}
	for _, sig := range []syscall.Signal{unix.SIGHUP, unix.SIGCONT} {
		for g := range groups {
			if err := e.killGroup(ctx, g, sig); err != nil {
				return err
			}
		}
	}
	grace := time.NewTimer(hangupGrace)
	defer grace.Stop()
	select {
	case <-e.done:
	case <-grace.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return e.killSession(ctx, groups)
}

// killSession kills the groups, and those that are there besides. What is
// stopped makes no new ones; so they are stopped until there is no new one.
func (e *Exec) killSession(ctx context.Context, groups map[int]bool) error {
	for stopped := map[int]bool{}; len(stopped) < len(groups); {
		for g := range groups {
			if stopped[g] {
				continue
			}
			if err := e.killGroup(ctx, g, unix.SIGSTOP); err != nil {
				return err
			}
			stopped[g] = true
		}
		more, err := e.groups(ctx)
		if err != nil {
			return err
		}
		maps.Copy(groups, more)
	}
	for g := range groups {
		if err := e.killGroup(ctx, g, unix.SIGKILL); err != nil {
			return err
		}
	}
	return nil
}

// groups returns the process group of the process and those of its descendants
// with a terminal. Once it has ended what it has started belongs to others.
func (e *Exec) groups(ctx context.Context) (map[int]bool, error) {
	all, err := e.init.control.Processes(ctx, e.init.ID)
	if err != nil && !errdefs.IsUnavailable(err) && !errdefs.IsNotFound(err) {
		return nil, err
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
	return groups, nil
}
