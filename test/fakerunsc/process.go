package fakerunsc

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is a process in a sandbox.
type process struct {
	sandbox    *sandbox
	cid        string
	pid, group int
	parent     int
	terminal   bool // it has one
	args       []string
	stdio      []*os.File
	program    *exec.Cmd // runs on the host instead; nil for a command
	signals    chan int
	done       chan struct{} // closed after status is set
	status     uint32        // as wait(2) has it
}

// start runs a process, which leads a group unless it has one.
func (s *sandbox) start(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastPID++
	p.sandbox, p.pid = s, s.lastPID
	if p.group == 0 {
		p.group = p.pid
	}
	p.signals, p.done = make(chan int, 64), make(chan struct{})
	s.all[p] = true
	go p.run()
}

// executable tells why the command cannot be run.
func executable(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("no command")
	}
	switch args[0] {
	case "/pause", "exit", "print", "eprint", "flood", "cat", "sleep", "ignore-term", "trap", "leave", "jobs":
		return nil
	case "/secret":
		return fmt.Errorf("failed to load %s: permission denied", args[0])
	}
	if strings.Contains(args[0], "/") {
		return fmt.Errorf("failed to load %s: no such file or directory", args[0])
	}
	return fmt.Errorf("error finding executable %q in PATH [/bin]: no such file or directory", args[0])
}

func (p *process) signal(n int) {
	select {
	case p.signals <- n:
	default: // 64 are waiting already
	}
}

// run is the process.
func (p *process) run() {
	ended := make(chan uint32, 1)
	go func() { ended <- p.command() }()
	for status, over := uint32(0), false; !over; {
		select {
		case status = <-ended:
			over = true
		case sig := <-p.signals:
			status, over = p.caught(sig)
		}
		if over {
			p.status = status
		}
	}
	p.sandbox.mu.Lock()
	delete(p.sandbox.all, p)
	p.sandbox.mu.Unlock()
	for _, f := range p.stdio {
		f.Close()
	}
	close(p.done)
}

// caught tells whether a signal ends the process, and how.
func (p *process) caught(sig int) (status uint32, over bool) {
	switch s := unix.Signal(sig); {
	case p.program != nil:
		_ = p.program.Process.Signal(s) // and it ends by itself
		return 0, false
	case s == unix.SIGKILL:
		return uint32(sig), true
	case s == unix.SIGCHLD || s == unix.SIGCONT || s == unix.SIGWINCH && p.args[0] != "trap" || s == unix.SIGSTOP || p.args[0] == "ignore-term":
		return 0, false
	case p.args[0] == "trap":
		fmt.Fprintf(p.stdio[1], "signal %d\n", sig)
		return 0, true
	}
	return uint32(sig), true
}

// command does what the arguments say and returns the wait status.
func (p *process) command() uint32 {
	if p.program != nil {
		_ = p.program.Wait()
		return uint32(p.program.ProcessState.Sys().(syscall.WaitStatus))
	}
	arg := ""
	if len(p.args) > 1 {
		arg = p.args[1]
	}
	number, _ := strconv.Atoi(arg)
	if p.args[0] == "/pause" && len(p.args) > 1 {
		return uint32(p.sandbox.writeFiles(p.args[1:])) << 8
	}
	switch p.args[0] {
	case "exit":
		return uint32(number) << 8
	case "print":
		fmt.Fprintln(p.stdio[1], arg)
	case "eprint":
		fmt.Fprintln(p.stdio[2], arg)
	case "flood":
		_, _ = io.CopyN(p.stdio[1], repeat{}, int64(number))
	case "cat":
		_, _ = io.Copy(p.stdio[1], p.stdio[0])
	case "leave":
		p.leave(process{group: p.group, args: []string{"sleep"}})
	case "jobs":
		p.leave(process{terminal: p.terminal, args: []string{"ignore-term"}})
		p.leave(process{args: []string{"sleep"}})
		fmt.Fprintln(p.stdio[1], "started")
		select {} // until a signal
	default:
		select {} // until a signal
	}
	return 0
}

// startProgram has the process be a program that came with the call, run by the
// host. It is killed with its sandbox.
func (p *process) startProgram(program *os.File) error {
	defer program.Close()
	p.program = &exec.Cmd{
		Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), program.Fd()), Args: p.args,
		Stdin: p.stdio[0], Stdout: p.stdio[1], Stderr: p.stdio[2],
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL},
	}
	return p.program.Start()
}

// leave starts a process that holds the output.
func (p *process) leave(child process) {
	for _, f := range p.stdio {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			continue
		}
		child.stdio = append(child.stdio, os.NewFile(uintptr(fd), f.Name()))
	}
	child.cid, child.parent = p.cid, p.pid
	p.sandbox.start(&child)
}

// repeat is an endless text of short lines.
type repeat struct{}

func (repeat) Read(b []byte) (int, error) {
	return copy(b, bytes.Repeat([]byte("0123456789abcde\n"), len(b)/16+1)), nil
}

// exitCode is the shell's number for a wait status.
func exitCode(status uint32) int {
	w := unix.WaitStatus(status)
	if w.Signaled() {
		return 128 + int(w.Signal())
	}
	return w.ExitStatus()
}
