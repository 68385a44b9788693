package monitor

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func newMonitor(t *testing.T) *Monitor {
	t.Helper()
	m, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// orphan runs a shell line in the background of a shell that exits at once,
// and returns its pid: a process that the kernel has given to us. Its input
// ends, and so does the line if it reads, when the returned file is closed.
func orphan(t *testing.T, line string) (pid int, input *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	// The shell gives background jobs no input unless they are told to.
	cmd := exec.Command("sh", "-c", fmt.Sprintf("exec 3<&0; (%s) <&3 >/dev/null 2>&1 & echo $!", line))
	cmd.Stdin = r
	out, err := cmd.Output()
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	return pid, w
}

func adopt(t *testing.T, m *Monitor, pid int) *Process {
	t.Helper()
	start, err := StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	p, err := m.Adopt(pid, start)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func await(t *testing.T, p *Process) Exit {
	t.Helper()
	select {
	case <-p.Done():
		return p.Exit()
	case <-time.After(10 * time.Second):
		t.Fatal("no exit")
		return Exit{}
	}
}

func TestAdoptedOrphanGivesItsStatus(t *testing.T) {
	m := newMonitor(t)
	pid, input := orphan(t, "read x; exit 33")
	p := adopt(t, m, pid)
	if got := p.Exit(); got != (Exit{}) {
		t.Errorf("exit of a living process: %+v", got)
	}
	input.Close()
	exit := await(t, p)
	if exit.Pid != pid || exit.Status != 33 || !exit.Known || exit.At.IsZero() {
		t.Errorf("exit %+v, want status 33 of %d", exit, pid)
	}
	if _, err := StartTime(pid); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("not reaped: %v", err)
	}
	if err := p.Signal(unix.SIGTERM); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("signal after the exit: %v", err)
	}
}

func TestSignalledProcessIs128AndSignal(t *testing.T) {
	m := newMonitor(t)
	pid, _ := orphan(t, "read x")
	p := adopt(t, m, pid)
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit := await(t, p); exit.Status != 137 || !exit.Known {
		t.Errorf("exit %+v, want status 137", exit)
	}
}

// A sandbox after a restart of the daemon is the child of another process.
func TestAdoptedStrangerHasNoStatus(t *testing.T) {
	m := newMonitor(t)
	parent := exec.Command("sh", "-c", "exec 3<&0; sh -c 'read x; exit 5' <&3 & echo $!; wait; cat <&3")
	input, err := parent.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(line))
	p := adopt(t, m, pid)
	fmt.Fprintln(input, "end")
	if exit := await(t, p); exit.Known || exit.Status != 0 || exit.Pid != pid {
		t.Errorf("exit %+v, want one that is not known", exit)
	}
	input.Close()
	if err := parent.Wait(); err != nil {
		t.Error(err)
	}
}

func TestAdoptKnowsAReusedPid(t *testing.T) {
	m := newMonitor(t)
	pid, _ := orphan(t, "read x")
	start, err := StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Adopt(pid, start-1); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("adopted with another start time: %v", err)
	}
	// Above the kernel's highest pid.
	if _, err := m.Adopt(1<<22+1, start); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("adopted nothing: %v", err)
	}
}

func TestCloseLeavesTheProcess(t *testing.T) {
	m, err := New()
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := orphan(t, "read x")
	p := adopt(t, m, pid)
	m.Close()
	select {
	case <-p.Done():
		t.Error("done after Close")
	default:
	}
	if _, err := StartTime(pid); err != nil {
		t.Error(err)
	}
}

// A library's child may be dead for long before the library waits for it, and
// many orphans may be swept meanwhile.
func TestSweepLeavesOwnedChildren(t *testing.T) {
	m := newMonitor(t)
	const late = 8
	var cmds []*exec.Cmd
	for i := range late {
		cmd := exec.Command("sh", "-c", fmt.Sprintf("exit %d", 40+i))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	adopted, input := orphan(t, "read x; exit 7")
	p := adopt(t, m, adopted)

	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				if out, err := exec.Command("sh", "-c", "true & echo yes").Output(); err != nil || string(out) != "yes\n" {
					t.Errorf("command: %q, %v", out, err)
				}
			}
		})
	}
	wg.Wait()
	pid, end := orphan(t, "read x")
	end.Close()
	awaitReaped(t, pid)

	for i, cmd := range cmds {
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 40+i {
			t.Errorf("late wait: %v, want exit status %d", err, 40+i)
		}
	}
	input.Close()
	if exit := await(t, p); exit.Status != 7 || !exit.Known {
		t.Errorf("exit %+v, want status 7", exit)
	}
}

func TestSweepReapsEveryOrphan(t *testing.T) {
	newMonitor(t)
	var pids []int
	for range 10 {
		pid, input := orphan(t, "read x; exit 1")
		input.Close()
		pids = append(pids, pid)
	}
	for _, pid := range pids {
		awaitReaped(t, pid)
	}
}

// awaitReaped returns when the process is gone, or fails.
func awaitReaped(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, err := StartTime(pid); errors.Is(err, errdefs.ErrNotFound) {
			return
		}
	}
	t.Fatalf("orphan %d is not reaped", pid)
}

func TestCommands(t *testing.T) {
	m := newMonitor(t)
	for line, want := range map[string]int{
		"true":          0,
		"exit 3":        3,
		"kill -KILL $$": 137,
	} {
		cmd := exec.Command("sh", "-c", line)
		exits, err := m.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := m.Wait(cmd, exits); err != nil || got != want {
			t.Errorf("%q: status %d, %v, want %d", line, got, err, want)
		}
	}
	if _, err := m.Start(exec.Command("/nonexistent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such command: %v", err)
	}
}

// The process that a command leaves behind may hold its output for ever.
func TestCommandWithHeldOutput(t *testing.T) {
	m := newMonitor(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	cmd := exec.Command("sh", "-c", "exec 3<&0; (read x <&3) & echo said")
	cmd.Stdin = r
	cmd.WaitDelay = time.Millisecond
	var said strings.Builder
	cmd.Stdout = &said
	exits, err := m.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := m.Wait(cmd, exits); err != nil || got != 0 {
		t.Errorf("status %d, %v", got, err)
	}
}

func TestStatParsesAnyName(t *testing.T) {
	name := t.TempDir() + "/a) Z 1 ("
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(sleep, name); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Signal(syscall.SIGKILL)
	plain, err := StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if start, err := StartTime(cmd.Process.Pid); err != nil || start < plain {
		t.Errorf("start time %d, %v, want at least ours of %d", start, err, plain)
	}
}
