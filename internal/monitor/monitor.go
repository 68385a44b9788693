// Package monitor adopts, watches and reaps processes. It is the only package
// that does.
//
// What it keeps true: every child of this process is reaped exactly once, by
// its owner, and the owner of a process is whoever in this process holds a
// pidfd of it. os/exec holds one from fork until Wait returns, a Process holds
// one until it has reported the exit. A dead child of which nobody holds a
// pidfd is an orphan that the kernel handed to us, and the sweep reaps it. So
// neither a library that runs commands nor an adopted sandbox ever loses an
// exit status to the sweep.
package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Monitor is this process's subreaper.
type Monitor struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	reaped atomic.Uint64
}

// New makes this process the subreaper of its descendants and starts to reap
// orphans. It needs a kernel with pidfds (Linux 5.4).
func New() (*Monitor, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("child subreaper: %w", err)
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd: %w", err)
	}
	unix.Close(fd)

	ctx, cancel := context.WithCancel(context.Background())
	m := &Monitor{ctx: ctx, cancel: cancel}
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	m.wg.Go(func() {
		defer signal.Stop(died)
		m.sweepOn(died)
	})
	return m, nil
}

// Close stops the reaping of orphans and every watch that is left; processes
// are not touched, and their handles report nothing any more.
func (m *Monitor) Close() {
	m.cancel()
	m.wg.Wait()
}

// Reaped returns how many orphans have been reaped.
func (m *Monitor) Reaped() uint64 { return m.reaped.Load() }

// StartTime returns when the process started, in clock ticks since boot. With
// its pid it names a process for as long as the machine is up. The error is
// ErrNotFound if there is no such process.
func StartTime(pid int) (uint64, error) {
	fields, err := stat(pid)
	if err != nil {
		return 0, err
	}
	start, err := strconv.ParseUint(string(fields[statStart]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("start time of process %d: %w", pid, err)
	}
	return start, nil
}

// The fields of /proc/<pid>/stat behind the command name, see proc(5).
const (
	statState = 0
	statStart = 19
)

// stat returns the fields of /proc/<pid>/stat from the state on. The command
// name before it may hold anything, so they begin behind its last bracket.
func stat(pid int) ([][]byte, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) <= statStart {
		return nil, fmt.Errorf("/proc/%d/stat of %d fields", pid, len(fields))
	}
	return fields, nil
}
