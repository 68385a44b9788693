package pod

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/internal/runsc"
)

func TestExecSync(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	id := n.runPod("p")
	c := n.create(id, "c", "sleep")
	_, err := n.ExecSync(ctx, c.ID, []string{"exit", "0"}, 0)
	n.is(err, errdefs.IsFailedPrecondition, "created, not running")
	n.must(n.StartContainer(ctx, c.ID))
	for _, tt := range []struct {
		command   []string
		out, errs string
		code      int
	}{
		{[]string{"print", "hello"}, "hello\n", "", 0},
		{[]string{"eprint", "oh"}, "", "oh\n", 0},
		{[]string{"exit", "7"}, "", "", 7},
		{[]string{"leave"}, "", "", 0}, // and what it leaves behind is not waited for
	} {
		r, err := n.ExecSync(ctx, c.ID, tt.command, time.Hour)
		n.must(err)
		if string(r.Stdout) != tt.out || string(r.Stderr) != tt.errs || r.ExitCode != tt.code {
			t.Errorf("%v: %q, %q, %d", tt.command, r.Stdout, r.Stderr, r.ExitCode)
		}
	}
	_, err = n.ExecSync(ctx, c.ID, []string{"/nothing"}, 0)
	n.is(err, func(err error) bool { return errors.Is(err, runsc.ErrNoExecutable) }, `command ["/nothing"]`)
	_, err = n.ExecSync(ctx, "zz", nil, 0)
	n.is(err, errdefs.IsNotFound, `"zz"`)
}

func TestExecSyncReturnsAsMuchAsAMessageHolds(t *testing.T) {
	n := newNode(t)
	c := n.start(n.runPod("p"), "c", "sleep")
	r, err := n.ExecSync(t.Context(), c.ID, []string{"flood", "17000000"}, 0)
	n.must(err)
	if len(r.Stdout) != execOutputLimit || r.ExitCode != 0 {
		t.Errorf("%d bytes, exit code %d", len(r.Stdout), r.ExitCode)
	}
}

func TestExecSyncKillsTheGroupAtItsTimeout(t *testing.T) {
	n := newNode(t)
	c := n.start(n.runPod("p"), "c", "sleep")
	_, err := n.ExecSync(t.Context(), c.ID, []string{"ignore-term"}, time.Millisecond)
	n.is(err, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }, "ignore-term")
	ctx, cancel := context.WithCancel(t.Context())
	execs := func() (k int) {
		for _, call := range n.Calls() {
			if call == "rpc.WaitPID" {
				k++
			}
		}
		return k
	}
	waiting := execs() + 1
	go func() {
		for execs() < waiting {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	_, err = n.ExecSync(ctx, c.ID, []string{"ignore-term"}, 0)
	n.is(err, func(err error) bool { return errors.Is(err, context.Canceled) }, "ignore-term")
	kills := slices.DeleteFunc(n.Calls(), func(call string) bool { return call != "rpc.Signal" })
	if len(kills) != 2 {
		t.Errorf("calls %q", n.Calls())
	}
	// The sandbox has no process but the container's own: nobody else gets it.
	if err := c.init.Kill(t.Context(), unix.SIGTERM, true); err != nil {
		t.Error(err)
	}
	n.ended(c, 143, "Error")
}

func TestExecSyncInASandboxThatDies(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	c := n.start(id, "c", "sleep")
	p, err := n.Pod(id)
	n.must(err)
	go func() {
		n.Await("rpc.WaitPID")
		_ = unix.Kill(p.Facts().Host.PID, unix.SIGKILL)
	}()
	r, err := n.ExecSync(t.Context(), c.ID, []string{"sleep"}, 0)
	n.must(err)
	if r.ExitCode != 137 {
		t.Errorf("exit code %d", r.ExitCode)
	}
	<-c.ended
	_, err = n.ExecSync(t.Context(), c.ID, []string{"sleep"}, 0)
	n.is(err, errdefs.IsFailedPrecondition, "stopped, not running")
	if strings.Contains(c.Facts().Message, "command") {
		t.Errorf("message %q", c.Facts().Message)
	}
}
