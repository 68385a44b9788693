package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Exit is the end of a process.
type Exit struct {
	Pid    int
	At     time.Time // when it was seen
	Status int       // 0 to 255; 128+n if signal n killed it; 0 if not Known
	Known  bool      // false if another process's child: its status is not ours to see
}

// Process is a watched process, a child or not.
type Process struct {
	pid   int
	pidfd *os.File
	done  chan struct{}
	exit  Exit // set before done is closed
}

// Adopt watches the process with this pid that started at start (see
// StartTime). It need not be a child. The error is ErrNotFound if the process
// is gone, even if its pid is in use again; a child that is dead but not yet
// reaped is still there, and its exit is reported at once.
func (m *Monitor) Adopt(pid int, start uint64) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	// Only a file that does not block goes to the runtime's poller, which is
	// the epoll loop of all watches.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	p := &Process{pid: pid, pidfd: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}

	// The pid now has the process that started at start, so it has had it all
	// the time since, and it is the one that was opened.
	now, err := StartTime(pid)
	if err == nil && now != start {
		err = fmt.Errorf("process %d started at %d, not %d: %w", pid, now, start, errdefs.ErrNotFound)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	stop := context.AfterFunc(m.ctx, p.Close)
	m.wg.Go(func() {
		defer stop()
		p.watch()
	})
	return p, nil
}

// Done is closed once the process has exited and, if it was a child, is reaped.
// It stays open if the handle is closed first.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit tells how the process ended. It is empty before Done.
func (p *Process) Exit() Exit {
	select {
	case <-p.done:
		return p.exit
	default:
		return Exit{}
	}
}

// Signal sends a signal to the process, never to a later one with its pid. The
// error is ErrNotFound if the process has exited or the handle is closed.
func (p *Process) Signal(sig syscall.Signal) error {
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	sent := unix.ESRCH
	if err := conn.Control(func(fd uintptr) {
		sent, _ = unix.PidfdSendSignal(int(fd), sig, nil, 0).(unix.Errno)
	}); err != nil || sent == unix.ESRCH {
		return fmt.Errorf("process %d: %w", p.pid, errdefs.ErrNotFound)
	}
	if sent != 0 {
		return fmt.Errorf("signal %d to process %d: %w", sig, p.pid, sent)
	}
	return nil
}

// Close ends the watch and leaves the process as it is.
func (p *Process) Close() { p.pidfd.Close() }

// watch waits for the process to end.
func (p *Process) watch() {
	defer p.pidfd.Close()
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		return
	}
	if err := conn.Read(func(fd uintptr) bool {
		if !readable(int(fd)) {
			return false
		}
		p.exit = reap(p.pid, int(fd))
		return true
	}); err != nil {
		return // closed
	}
	close(p.done)
}

// readable reports whether the process of a pidfd has exited.
func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// reap collects the status of a process that has exited.
func reap(pid, fd int) Exit {
	exit := Exit{Pid: pid, At: time.Now()}
	// WNOWAIT asks whether it is our child. If it is, the pid stays taken until
	// the next line, which therefore cannot meet another process.
	if err := unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		return exit
	}
	var ws unix.WaitStatus
	if got, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil); err != nil || got != pid {
		return exit
	}
	exit.Known = true
	exit.Status = status(syscall.WaitStatus(ws))
	return exit
}

// status is the shell's number for how a process ended.
func status(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
