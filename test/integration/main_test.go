// Package integration runs the daemon with the real runsc, the real CNI plugins
// and a registry on loopback, and talks to it as the kubelet does, by the
// kubelet's own client.
//
// What it keeps true: the tests live in PID, mount and network namespaces of
// their own, so that no process, mount, bridge or packet filter rule of theirs
// outlives or disturbs anything; each test has a daemon of its own, on
// directories of its own, and fails if that leaves anything behind.
package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/test/registry/loopback"
)

// stage tells the test binary which of three processes it is: the one that go
// test started, PID 1 of the namespaces, or the one that runs the tests.
const stage = "RUNSCD_TEST_STAGE"

func TestMain(m *testing.M) {
	code, err := 0, error(nil)
	switch os.Getenv(stage) {
	case "":
		code, err = enter()
	case "trace":
		code, err = trace()
	case "init":
		code, err = reap()
	default:
		code, err = run(m)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		code = 1
	}
	os.Exit(code)
}

// enter starts PID 1 of new namespaces and waits for it.
func enter() (int, error) {
	if os.Getuid() != 0 {
		fmt.Println("integration: not run, needs root")
		return 0, nil
	}
	if os.Getenv("RUNSCD_RUNSC") == "" {
		path, err := filepath.Abs("../../bin/runsc") // where make build puts it
		if err != nil {
			return 0, err
		}
		if err := os.Setenv("RUNSCD_RUNSC", path); err != nil {
			return 0, err
		}
	}
	if _, err := os.Stat(os.Getenv("RUNSCD_RUNSC")); err != nil {
		return 0, fmt.Errorf("runsc (make build makes it): %w", err)
	}
	runtime.LockOSThread() // or Pdeathsig is that of the thread's end
	cmd := again("init")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  unix.SIGKILL,
	}
	return exitCode(cmd.Run(), cmd)
}

// again is this program with the same arguments in another stage.
func again(next string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stage+"="+next)
	return cmd
}

func exitCode(err error, cmd *exec.Cmd) (int, error) {
	if cmd.ProcessState != nil {
		return cmd.ProcessState.ExitCode(), nil
	}
	return 0, err
}

// reap is PID 1: it starts the tests and reaps orphans until they end. The
// kernel ends all other processes with it.
func reap() (int, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return 0, err
	}
	if err := loopbackUp(); err != nil {
		return 0, err
	}
	cmd := again("tests")
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case pid == cmd.Process.Pid && ws.Signaled():
			return 128 + int(ws.Signal()), nil
		case pid == cmd.Process.Pid:
			return ws.ExitStatus(), nil
		}
	}
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo)
}

// What all tests share.
var (
	runscd   string // the daemon's binary, which reports data races
	registry *loopback.Registry
	busybox  string // the reference of an image in the registry
)

func run(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("/tmp", "itest")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	runscd = filepath.Join(dir, "runscd")
	build := exec.Command("go", "build", "-race", "-o", runscd, "../../cmd/runscd")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		return 0, fmt.Errorf("build of the daemon: %w", err)
	}
	registry = loopback.New(loopback.Options{})
	defer registry.Close()
	img, err := loopback.Busybox(loopback.Config())
	if err != nil {
		return 0, err
	}
	if busybox, err = registry.Put("busybox:latest", img); err != nil {
		return 0, err
	}
	return m.Run(), nil
}
