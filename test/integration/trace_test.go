package integration

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A step is a system call by which the daemon changes something outside of its own
// memory. A tracer, a process of this binary, stops the daemon at each, and at the
// one that is asked for it kills the daemon, or fails the call as a full disk does;
// either way it is not done. So no step of the product, or of a library in it, can be
// forgotten, and the product knows nothing of it.

// traced says what the tracer does, as "<pid of the daemon> <fault> <step>": what
// happens at that step, at none for 0.
const traced = "RUNSCD_TEST_TRACED"

// What happens at a step.
const (
	killedAt  = "killed"
	refusedAt = "refused" // only those are counted that want room on a disk
)

// steps are the system calls that are one, and of some the argument that decides,
// with the bits in it. So is write to a file. The pages of a database are not, but
// its fdatasync is.
var steps = map[uint64]struct {
	name string
	arg  int
	bits uint64 // one of them at least; none if 0
	not  uint64 // none of them
}{
	unix.SYS_OPENAT:            {"open", 2, unix.O_CREAT, 0},
	unix.SYS_RENAMEAT:          {name: "rename"},
	unix.SYS_RENAMEAT2:         {name: "rename"},
	unix.SYS_UNLINKAT:          {name: "unlink"},
	unix.SYS_MKDIRAT:           {name: "mkdir"},
	unix.SYS_MKNODAT:           {name: "mknod"},
	unix.SYS_SYMLINKAT:         {name: "symlink"},
	unix.SYS_LINKAT:            {name: "link"},
	unix.SYS_FDATASYNC:         {name: "fdatasync"},
	unix.SYS_SYNCFS:            {name: "syncfs"},
	unix.SYS_FSYNC:             {name: "fsync"},
	unix.SYS_MOUNT:             {name: "mount"},
	unix.SYS_MOVE_MOUNT:        {name: "mount"},
	unix.SYS_UMOUNT2:           {name: "umount"},
	unix.SYS_UNSHARE:           {"unshare", 0, unix.CLONE_NEWNET, 0},
	unix.SYS_CLONE:             {"fork", 0, unix.CLONE_VFORK, unix.CLONE_THREAD},
	unix.SYS_CONNECT:           {name: "connect"}, // above all to a sandbox
	unix.SYS_PIDFD_SEND_SIGNAL: {"signal", 1, ^uint64(0), 0},
}

// roomy are the steps that want room on a disk.
var roomy = map[string]bool{
	"open": true, "write": true, "rename": true, "mkdir": true, "mknod": true,
	"symlink": true, "link": true, "fdatasync": true, "fsync": true,
}

// syscallInfo is struct ptrace_syscall_info.
type syscallInfo struct {
	op   uint8
	_    [7]byte
	_    [2]uint64
	nr   uint64
	args [6]uint64
	_    [2]uint64
}

// step is the name of the step that a process is about to do, if it is one.
func (i *syscallInfo) step(pid int) (string, bool) {
	if i.op != 1 { // not an entry
		return "", false
	}
	if i.nr == unix.SYS_WRITE {
		return "write", i.args[0] > 2 && isFile(pid, i.args[0])
	}
	s, ok := steps[i.nr]
	return s.name, ok && (s.bits == 0 || i.args[s.arg]&s.bits != 0 && i.args[s.arg]&s.not == 0)
}

// isFile tells whether a descriptor of a process is a file on disk.
func isFile(pid int, fd uint64) bool {
	var st unix.Stat_t
	err := unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, fd), &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// trace is the tracer. It prints the name of each step.
func trace() (int, error) {
	runtime.LockOSThread()
	var pid, last int
	var fault string
	if _, err := fmt.Sscan(os.Getenv(traced), &pid, &fault, &last); err != nil {
		return 0, err
	}
	if err := seize(pid); err != nil {
		return 0, err
	}
	if err := tellReady(); err != nil {
		return 0, err
	}
	for n, failed := 0, 0; ; { // failed is the thread whose call is made to fail
		var ws unix.WaitStatus
		tid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD): // all threads have ended
			return 0, nil
		case err != nil:
			return 0, err
		case !ws.Stopped():
			continue
		}
		sig := ws.StopSignal()
		switch {
		case sig == unix.SIGTRAP|0x80:
			sig = 0
			var info syscallInfo
			_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
			if errno != 0 {
				break // killed
			}
			if tid == failed && info.op != 1 {
				failed = 0
				if err := setResult(tid, unix.ENOSPC); err != nil {
					return 0, err
				}
			}
			name, ok := info.step(pid)
			if !ok || fault == refusedAt && !roomy[name] {
				break
			}
			fmt.Println(name)
			if n++; n != last {
				break
			}
			if fault == refusedAt {
				failed = tid
				err = skipCall(tid)
			} else {
				err = unix.Kill(pid, unix.SIGKILL)
			}
			if err != nil {
				return 0, err
			}
		case ws>>16 != 0: // an event, such as a new thread
			sig = 0
		}
		_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SYSCALL, uintptr(tid), 0, uintptr(sig), 0, 0)
		if errno != 0 && errno != unix.ESRCH {
			return 0, errno
		}
	}
}

// tellReady tells whoever started the tracer, by its fourth file.
func tellReady() error {
	f := os.NewFile(3, "ready")
	_, err := f.WriteString("ready")
	return errors.Join(err, f.Close())
}

// seize stops all threads of a process and attaches to them, and to those that they
// will make.
func seize(pid int) error {
	seized := map[string]bool{}
	for found := true; found; {
		found = false
		for _, name := range names(fmt.Sprintf("/proc/%d/task", pid)) {
			if seized[name] {
				continue
			}
			tid, err := strconv.Atoi(name)
			if err != nil {
				return err
			}
			_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(tid), 0, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE, 0, 0)
			// The second is for what came with a thread that was seized before.
			if errno != 0 && errno != unix.ESRCH && errno != unix.EPERM {
				return fmt.Errorf("ptrace of %d: %w", tid, errno)
			}
			if errno == 0 {
				if err := unix.PtraceInterrupt(tid); err != nil && !errors.Is(err, unix.ESRCH) {
					return err
				}
			}
			seized[name], found = true, true
		}
	}
	return nil
}

// tracer follows a daemon.
type tracer struct {
	cmd *exec.Cmd
	out *os.File // what it prints, to be read when it has ended
}

// trace has something happen to the daemon at its n-th step from now on, at none for 0.
func (d *daemon) trace(t *testing.T, fault string, n int) *tracer {
	t.Helper()
	out, err := os.CreateTemp(d.dir, "trace")
	check(t, err)
	defer os.Remove(out.Name())
	ready, ours, err := os.Pipe()
	check(t, err)
	defer ready.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s %d", traced, d.cmd.Process.Pid, fault, n), noSleep)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, os.Stderr, []*os.File{ours}
	check(t, errors.Join(cmd.Start(), ours.Close()))
	if word, err := io.ReadAll(ready); string(word) != "ready" {
		t.Fatalf("tracer: %q, %v", word, err)
	}
	return &tracer{cmd: cmd, out: out}
}

// end ends the tracing of a daemon that lives, which goes on, and returns the names
// of the steps.
func (r *tracer) end(t *testing.T, alive bool) []string {
	t.Helper()
	defer r.out.Close()
	if alive {
		_ = r.cmd.Process.Kill()
	}
	if err := r.cmd.Wait(); err != nil && !alive {
		t.Errorf("tracer: %v", err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", r.out.Fd()))
	check(t, err)
	return strings.Fields(string(text))
}
