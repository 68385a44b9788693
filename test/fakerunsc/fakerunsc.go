// Package fakerunsc is a runsc for tests: the test binary itself, run again
// under the name runsc. It needs no kernel feature, no cgroup and no time, and
// fails, hangs or dies wherever a test wants it to.
//
// What it keeps true: to its caller it is runsc. It has the files, flags, exit
// codes, error texts and control protocol of the runsc that runscd is built
// for, as far as runscd uses them, and its sandboxes are orphans that outlive
// the command that made them. They do not outlive the test.
//
// A container's command is one of a few words:
//
//	exit N        exits with status N
//	print TEXT    writes TEXT and a newline
//	eprint TEXT   the same to standard error
//	flood N       writes N bytes
//	cat           copies its input to its output
//	sleep         runs until a signal ends it
//	ignore-term   the same, but only SIGKILL does
//	trap          writes "signal N" at the first signal and exits with status 0
//	leave         exits and leaves a process behind that holds its output
//	jobs          writes "started" and runs until a signal ends it, with two processes
//	              in groups of their own: one without a terminal, and one that has
//	              the same and that only SIGKILL ends
//
// Everything else is a command that the file system does not have. A program that
// comes with an exec is run as a process of the host.
package fakerunsc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/internal/monitor"
)

// The names by which the binary knows what it is.
const (
	nameCLI     = "runsc"
	nameSandbox = "runsc-sandbox"
)

// Main is for the begin of TestMain. In a process that was run as runsc it does
// not return; in the test's it makes and returns the reaper of the process, which
// go-runc uses too. There must be one only: two would take each other for the owner
// of an orphan.
func Main() *monitor.Monitor {
	switch filepath.Base(os.Args[0]) {
	case nameCLI:
		os.Exit(command(os.Args[1:]))
	case nameSandbox:
		os.Exit(sandboxMain(os.Args[1:]))
	}
	// A race detector's process would sleep for a second before its end.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	reaper, err := monitor.New()
	if err != nil {
		panic(err)
	}
	runc.Monitor = reaper
	return reaper
}

// Fake is a fake runsc with faults of its own.
type Fake struct {
	Path string // the binary
	dir  string
	t    testing.TB
}

// Install makes a fake for the test. Its sandboxes end with the test.
func Install(t testing.TB) *Fake {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f := &Fake{dir: t.TempDir(), t: t}
	f.Path = filepath.Join(f.dir, nameCLI)
	// Not a symlink: runscd remembers where that leads.
	if err := os.Link(self, f.Path); err != nil { // not on the same file system
		text, err := os.ReadFile(self)
		if err == nil {
			err = os.WriteFile(f.Path, text, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(f.dir, faultDir), 0o700); err != nil {
		t.Fatal(err)
	}
	leash := filepath.Join(f.dir, leashFile)
	if err := unix.Mkfifo(leash, 0o600); err != nil {
		t.Fatal(err)
	}
	held, err := os.OpenFile(leash, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { held.Close() })
	return f
}

// leashFile is a FIFO that the test holds open and every sandbox reads: its end
// is the end of the test.
const leashFile = "leash"

// Faults. An operation is a subcommand, such as "create", or a method of the
// control socket, such as "rpc.Wait".
const (
	// Hang waits until the fault is cleared, and then goes on.
	Hang = "hang"
	// HoldOutput hangs, and a child holds the output even after a kill.
	HoldOutput = "hold-output"
	// Die ends a command, by SIGKILL, before it has done anything.
	Die = "die"
	// DieBeforeState ends create or run when the processes are there, but
	// nothing tells of them.
	DieBeforeState = "die-before-state"
	// DieBeforePID ends create when only its pid file is missing, and run when
	// only the start is.
	DieBeforePID = "die-before-pid"
	// Unknown is for a method that the sandbox does not know.
	Unknown = "unknown"
	// Cut closes the connection in the midst of the answer.
	Cut = "cut"
	// Garbage answers what is not JSON.
	Garbage = "garbage"
	// Flood answers without end.
	Flood = "flood"
)

// Fail lets the operation fail with an error text, of which each line is an
// error of its own.
func (f *Fake) Fail(op, text string) { f.Fault(op, "fail "+text) }

// Panic lets create fail because the sentry panics, which it writes to its
// panic log; runsc itself only sees it end.
func (f *Fake) Panic(text string) { f.Fault("create", "panic "+text) }

// Fault lets the operation go wrong until Clear.
func (f *Fake) Fault(op, fault string) {
	f.t.Helper()
	path := filepath.Join(f.dir, faultDir, op)
	if err := os.WriteFile(path+".new", []byte(fault), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		f.t.Fatal(err)
	}
}

// Clear ends the fault of the operation.
func (f *Fake) Clear(op string) {
	f.t.Helper()
	if err := os.Remove(filepath.Join(f.dir, faultDir, op)); err != nil {
		f.t.Fatal(err)
	}
}

// Calls returns the command lines so far, and the methods called of the control
// sockets as "rpc.Method", in their order.
func (f *Fake) Calls() []string {
	f.t.Helper()
	text, err := os.ReadFile(filepath.Join(f.dir, callFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// Holder waits for a command with the fault HoldOutput and returns the child
// that holds its output. The test has to kill it.
func (f *Fake) Holder() int {
	f.t.Helper()
	path := filepath.Join(f.dir, holderFile)
	for {
		text, err := os.ReadFile(path)
		if err == nil {
			pid, err := strconv.Atoi(string(text))
			if err != nil {
				f.t.Fatal(err)
			}
			return pid
		}
		if !errors.Is(err, os.ErrNotExist) {
			f.t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// Sandboxes returns the command lines of the fake's sandboxes that run.
func (f *Fake) Sandboxes() []string {
	f.t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		f.t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		line, _ := os.ReadFile(file) // it may have ended
		if text := strings.ReplaceAll(string(line), "\x00", " "); strings.HasPrefix(text, nameSandbox+" "+f.dir+" ") {
			found = append(found, text)
		}
	}
	return found
}

// Await waits until a call that begins so was made; see Calls.
func (f *Fake) Await(prefix string) {
	f.t.Helper()
	for !slices.ContainsFunc(f.Calls(), func(call string) bool { return strings.HasPrefix(call, prefix) }) {
		time.Sleep(time.Millisecond)
	}
}

const (
	callFile   = "calls"
	holderFile = "holder"
)

// called writes a call down.
func called(dir, call string) error {
	f, err := os.OpenFile(filepath.Join(dir, callFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, call)
	return err
}
