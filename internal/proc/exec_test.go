package proc

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/internal/runsc"
)

func TestExecs(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	sandbox := n.sandbox("a")
	c := n.container("b", sandbox, "sleep")
	exec := func(args ...string) (*Exec, error) {
		return c.Exec(ctx, ExecConfig{Process: &specs.Process{Args: args}, Stdio: n.null()})
	}
	e, err := exec("exit", "5")
	n.must(err)
	if status, err := e.Wait(ctx); status != 5 || err != nil {
		t.Errorf("wait: %d, %v", status, err)
	}
	n.must(e.Kill(ctx, unix.SIGKILL)) // its group is gone
	if _, err := exec("/x"); !errors.Is(err, runsc.ErrNoExecutable) {
		t.Errorf("no such command: %v", err)
	}
	e, err = exec("sleep")
	n.must(err)
	n.must(e.Kill(ctx, unix.SIGHUP))
	if status, err := e.Wait(ctx); status != 129 || err != nil {
		t.Errorf("wait: %d, %v", status, err)
	}
	e, err = exec("sleep")
	n.must(err)
	n.must(sandbox.Kill(ctx, unix.SIGKILL, true))
	if status, err := e.Wait(ctx); status != 137 || err != nil {
		t.Errorf("wait for an exec whose sandbox died: %d, %v", status, err)
	}
	n.must(e.Kill(ctx, unix.SIGKILL))
	<-c.Done()
	if _, err := exec("sleep"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in a stopped container: %v", err)
	}
}
