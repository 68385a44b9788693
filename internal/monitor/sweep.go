package monitor

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// sweepOn reaps orphans each time that a child has died.
func (m *Monitor) sweepOn(died <-chan os.Signal) {
	for {
		m.reaped.Add(sweep())
		select {
		case <-m.ctx.Done():
			return
		case <-died:
		}
	}
}

// sweep reaps the dead children that nobody owns, and returns how many it has.
//
// It opens a pidfd of each first and then counts the pidfds that this process
// holds of it. One that its owner reaps in between is gone from the pidfd too,
// even if its pid is given to a new child at once: so there is no moment at
// which the wrong process could be reaped.
func sweep() (reaped uint64) {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err != nil || info.Signo == 0 {
		return 0 // no dead child: the usual case, its owner was faster
	}
	pidfds := map[int]int{}
	for _, pid := range zombies() {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			pidfds[pid] = fd
		}
	}
	held := holders()
	for pid, fd := range pidfds {
		if held[pid] == 1 {
			// ECHILD: its owner has reaped it.
			if unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOHANG, nil) == nil {
				reaped++
			}
		}
		unix.Close(fd)
	}
	return reaped
}

// zombies returns the children of this process that are dead and not reaped.
func zombies() []int {
	var dead []int
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		b, _ := os.ReadFile(list) // a thread may have ended
		for _, f := range bytes.Fields(b) {
			pid, err := strconv.Atoi(string(f))
			if err != nil {
				continue
			}
			if fields, err := stat(pid); err == nil && fields[statState][0] == 'Z' {
				dead = append(dead, pid)
			}
		}
	}
	return dead
}

// holders counts the pidfds that this process has open, by pid.
func holders() map[int]int {
	n := map[int]int{}
	infos, _ := filepath.Glob("/proc/self/fdinfo/*")
	for _, info := range infos {
		b, _ := os.ReadFile(info) // the descriptor may have been closed
		_, b, ok := bytes.Cut(b, []byte("\nPid:\t"))
		if !ok {
			continue
		}
		line, _, _ := bytes.Cut(b, []byte("\n"))
		if pid, err := strconv.Atoi(string(line)); err == nil {
			n[pid]++
		}
	}
	return n
}
