package proc

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/test/fakerunsc"
)

// A runsc that fails or hangs must not keep a sandbox for ever.
func TestDeleteWithoutRunsc(t *testing.T) {
	n := newNode(t)
	sandbox := n.sandbox("a")
	c := n.container("b", sandbox, "sleep")
	n.Fail("delete", "no such luck")
	n.must(sandbox.Delete(t.Context()))
	n.ended(c, 137, false)
	n.must(c.Delete(t.Context()))
	n.empty()
}

// A start whose runsc hangs ends with the sandbox.
func TestAStartThatHangsEndsWithTheSandbox(t *testing.T) {
	n := newNode(t)
	sandbox := n.sandbox("a")
	c := n.add("b", sandbox, "sleep")
	n.must(c.Create(t.Context()))
	n.Fault("run", fakerunsc.Hang)
	failed := make(chan error, 1)
	go func() { failed <- c.Start(t.Context(), n.null()) }()
	n.Await("--root " + n.root + " --log " + filepath.Join(c.Bundle, "runsc.log"))
	n.must(sandbox.Kill(t.Context(), unix.SIGKILL, true))
	if err := <-failed; err == nil {
		t.Error("it has started")
	}
	n.must(sandbox.Delete(t.Context()))
	n.must(c.Delete(t.Context()))
}

// So does the deletion of a container.
func TestADeletionThatHangsEndsWithTheSandbox(t *testing.T) {
	n := newNode(t)
	sandbox := n.sandbox("a")
	c := n.container("b", sandbox, "sleep")
	n.Fault("delete", fakerunsc.Hang)
	deleted := make(chan error, 1)
	go func() { deleted <- c.Delete(t.Context()) }()
	n.must(sandbox.Kill(t.Context(), unix.SIGKILL, true))
	n.must(<-deleted)
}

// A container whose start was cut off is not taken for one that runs because its
// sandbox does not say otherwise.
func TestRecoverHalfAStartInAHungSandbox(t *testing.T) {
	n := newNode(t)
	sandbox := n.sandbox("a")
	half, running := n.add("b", sandbox, "sleep"), n.container("c", sandbox, "sleep")
	n.must(half.Create(t.Context()))
	n.Fault("run", fakerunsc.DieBeforePID)
	if err := half.Start(t.Context(), n.null()); err == nil {
		t.Error("a start that dies: no error")
	}
	n.restart()
	root := n.again(sandbox, nil)
	n.must(root.Recover(t.Context(), sandbox.Host()))
	n.Fault("rpc.ContainerRuntimeState", fakerunsc.Hang)
	half, running = n.again(half, root), n.again(running, root)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_ = half.Recover(ctx, HostProcess{}) // what is there of it cannot be removed now
	n.inState(half, Created)
	n.must(running.Recover(ctx, HostProcess{}))
	n.inState(running, Running)
	n.must(root.Delete(t.Context()))
	n.ended(running, 137, false)
}

// A bundle that was cut short does not keep its pod from being undone.
func TestDeleteWithHalfABundle(t *testing.T) {
	n := newNode(t)
	sandbox := n.add("a", nil)
	n.must(os.WriteFile(filepath.Join(sandbox.Bundle, "config.json"), []byte(`{"linux":{"cgro`), 0o600))
	n.must(sandbox.Delete(t.Context()))
}
