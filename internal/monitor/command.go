package monitor

import (
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	runc "github.com/containerd/go-runc"
)

// outputDelay is how long a command's output is read on after its exit. A
// process that it left behind and that holds its output is not waited for.
const outputDelay = time.Second

var _ runc.ProcessMonitor = (*Monitor)(nil)

// Start starts a command that go-runc made; the channel gives its one exit.
// os/exec waits for it, so commands with a context end with it.
func (m *Monitor) Start(c *exec.Cmd) (chan runc.Exit, error) {
	if c.WaitDelay == 0 {
		c.WaitDelay = outputDelay
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	exits := make(chan runc.Exit, 1)
	m.wg.Go(func() {
		// The error repeats the status, or says that output was left unread.
		_ = c.Wait()
		exit := runc.Exit{Timestamp: time.Now(), Pid: c.Process.Pid, Status: 255}
		if c.ProcessState != nil {
			if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok {
				exit.Status = status(ws)
			}
		}
		exits <- exit
		close(exits)
	})
	return exits, nil
}

// StartLocked would start a command that dies with the thread which started it.
// Nothing that runsc starts may die with the daemon, so it is ErrNotImplemented.
func (m *Monitor) StartLocked(*exec.Cmd) (chan runc.Exit, error) {
	return nil, fmt.Errorf("parent death signal: %w", errdefs.ErrNotImplemented)
}

// Wait returns the status of a command from its channel.
func (m *Monitor) Wait(_ *exec.Cmd, exits chan runc.Exit) (int, error) {
	exit := <-exits
	return exit.Status, nil
}
