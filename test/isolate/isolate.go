// Package isolate gives tests PID, mount and network namespaces of their own, so
// that no process, mount, bridge or packet filter rule of theirs outlives or
// disturbs anything.
package isolate

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// stage tells a test binary which of three processes it is: the one that go test
// started, PID 1 of the namespaces, or the one that runs the tests.
const stage = "RUNSCD_TEST_STAGE"

// Run calls run in namespaces, where only the loopback interface is up, and
// returns the exit code of this process. Without being root it calls nothing.
// The kernel ends the processes that run has left.
func Run(run func() (int, error)) int {
	code, err := 0, error(nil)
	switch os.Getenv(stage) {
	case "":
		code, err = enter()
	case "init":
		code, err = reap()
	default:
		code, err = run()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		return 1
	}
	return code
}

// enter starts PID 1 of new namespaces and waits for it.
func enter() (int, error) {
	if os.Getuid() != 0 {
		fmt.Println("not run, needs root")
		return 0, nil
	}
	runtime.LockOSThread() // or Pdeathsig is that of the thread's end
	cmd := again("init")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  unix.SIGKILL,
	}
	err := cmd.Run()
	if cmd.ProcessState != nil {
		return cmd.ProcessState.ExitCode(), nil
	}
	return 0, err
}

// again is this program with the same arguments in another stage.
func again(next string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stage+"="+next)
	return cmd
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
