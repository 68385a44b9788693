package proc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/internal/monitor"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/test/fakerunsc"
)

// reaper is the one of this process; see fakerunsc.Main.
var reaper *monitor.Monitor

func TestMain(m *testing.M) {
	reaper = fakerunsc.Main()
	os.Exit(m.Run())
}

// node is a registry over a fake runsc.
type node struct {
	*Registry
	*fakerunsc.Fake
	runtime *runsc.Runtime
	root    string
	t       *testing.T
}

func newNode(t *testing.T) *node {
	t.Helper()
	fake := fakerunsc.Install(t)
	n := &node{Fake: fake, root: filepath.Join(t.TempDir(), "r"), t: t}
	n.runtime = runsc.New(runsc.Options{Path: fake.Path, Root: n.root})
	n.restart()
	return n
}

// restart gives the node a registry that knows nothing.
func (n *node) restart() { n.Registry = NewRegistry(reaper) }

func id(name string) string { return name + strings.Repeat("0", 64-len(name)) }

// add makes an Init and its bundle; sandbox is nil for a root.
func (n *node) add(name string, sandbox *Init, args ...string) *Init {
	n.t.Helper()
	annotations := map[string]string{"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": id(name)}
	if sandbox != nil {
		annotations = map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": sandbox.ID}
	}
	data, err := json.Marshal(&specs.Spec{Process: &specs.Process{Args: args}, Annotations: annotations})
	if err != nil {
		n.t.Fatal(err)
	}
	dir := n.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		n.t.Fatal(err)
	}
	return n.New(CreateConfig{ID: id(name), Sandbox: sandbox, Bundle: dir, Runtime: n.runtime})
}

// again makes an Init for one of an earlier registry.
func (n *node) again(p, sandbox *Init) *Init {
	c := p.CreateConfig
	c.Sandbox = sandbox
	return n.New(c)
}

func (n *node) sandbox(name string) *Init {
	n.t.Helper()
	p := n.add(name, nil)
	n.must(p.Create(n.t.Context()))
	n.must(p.Start(n.t.Context(), runsc.Stdio{}))
	return p
}

func (n *node) container(name string, sandbox *Init, args ...string) *Init {
	n.t.Helper()
	p := n.add(name, sandbox, args...)
	n.must(p.Create(n.t.Context()))
	n.must(p.Start(n.t.Context(), n.null()))
	return p
}

func (n *node) null() runsc.Stdio {
	n.t.Helper()
	f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	n.must(err)
	n.t.Cleanup(func() { f.Close() })
	return runsc.Stdio{In: f, Out: f, Err: f}
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// empty checks that runsc keeps nothing.
func (n *node) empty() {
	n.t.Helper()
	list, err := os.ReadDir(n.root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Fatal(err)
	}
	for _, e := range list {
		n.t.Errorf("left in runsc's root: %s", e.Name())
	}
}

// ended waits for the end and checks how it was.
func (n *node) ended(p *Init, status int, known bool) {
	n.t.Helper()
	select {
	case <-p.Done():
	case <-time.After(20 * time.Second):
		n.t.Fatalf("%s has not ended", p.ID)
	}
	if e := p.Exit(); e.Status != status || e.Known != known || e.At.IsZero() {
		n.t.Errorf("exit %+v, want status %d, known %t", e, status, known)
	}
}

func (n *node) inState(p *Init, want State) {
	n.t.Helper()
	if got := p.State(); got != want {
		n.t.Errorf("state %s, want %s", got, want)
	}
}

func TestLifeOfASandboxAndItsContainer(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	sandbox := n.add("a", nil)
	n.inState(sandbox, Creating)
	n.must(sandbox.Create(ctx))
	n.inState(sandbox, Created)
	if h := sandbox.Host(); h.PID == 0 || h.Start == 0 {
		t.Errorf("host process %+v", h)
	}
	n.must(sandbox.Start(ctx, runsc.Stdio{}))
	n.inState(sandbox, Running)

	c := n.container("b", sandbox, "sleep")
	n.inState(c, Running)
	n.must(c.Kill(ctx, unix.SIGUSR1, false))
	n.ended(c, 128+int(unix.SIGUSR1), true)
	n.inState(c, Stopped)
	n.must(c.Kill(ctx, unix.SIGKILL, true))
	n.must(c.Delete(ctx))
	n.inState(c, Deleted)

	n.must(sandbox.Kill(ctx, unix.SIGKILL, false))
	n.ended(sandbox, 137, true)
	for range 2 {
		n.must(sandbox.Delete(ctx))
	}
	n.inState(sandbox, Deleted)
	n.empty()
}

func TestAnExitIsReportedOnceAndStays(t *testing.T) {
	n := newNode(t)
	c := n.container("b", n.sandbox("a"), "exit", "7")
	n.ended(c, 7, true)
	first := c.Exit()
	c.Gone()
	n.must(c.Delete(t.Context()))
	if c.Exit() != first {
		t.Errorf("exit %+v, later %+v", first, c.Exit())
	}
}

func TestADeadSandboxTakesItsContainersWithIt(t *testing.T) {
	n := newNode(t)
	sandbox := n.sandbox("a")
	containers := []*Init{n.container("b", sandbox, "sleep"), n.container("c", sandbox, "ignore-term")}
	n.must(unix.Kill(sandbox.Host().PID, unix.SIGKILL))
	n.ended(sandbox, 137, true)
	for _, c := range containers {
		n.ended(c, 137, false)
		n.must(c.Kill(t.Context(), unix.SIGTERM, false))
		n.must(c.Delete(t.Context()))
	}
	n.must(sandbox.Delete(t.Context()))
	n.empty()
}

func TestDeleteInEveryStateAndTwice(t *testing.T) {
	for name, make := range map[string]func(*node) *Init{
		"creating root":      func(n *node) *Init { return n.add("a", nil) },
		"created root":       func(n *node) *Init { p := n.add("a", nil); n.must(p.Create(n.t.Context())); return p },
		"running root":       func(n *node) *Init { return n.sandbox("a") },
		"creating container": func(n *node) *Init { return n.add("b", n.sandbox("a"), "sleep") },
		"created container": func(n *node) *Init {
			p := n.add("b", n.sandbox("a"), "sleep")
			n.must(p.Create(n.t.Context()))
			return p
		},
		"running container":     func(n *node) *Init { return n.container("b", n.sandbox("a"), "ignore-term") },
		"stopped container":     func(n *node) *Init { p := n.container("b", n.sandbox("a"), "exit", "0"); <-p.Done(); return p },
		"container that is not": func(n *node) *Init { p := n.add("b", n.sandbox("a"), "/x"); n.must(p.Create(n.t.Context())); return p },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			p := make(n)
			if name == "container that is not" {
				if err := p.Start(t.Context(), n.null()); !errors.Is(err, runsc.ErrNoExecutable) {
					t.Errorf("start: %v", err)
				}
			}
			for range 2 {
				n.must(p.Delete(t.Context()))
			}
			n.inState(p, Deleted)
			<-p.Done()
			if p.Sandbox != nil {
				list, err := n.runtime.List()
				if err != nil || len(list) != 1 {
					t.Errorf("runsc keeps %v, %v", list, err)
				}
				n.must(p.Sandbox.Delete(t.Context()))
			}
			n.empty()
		})
	}
}

// A command that was cut off may have left a container that nobody has heard of.
func TestDeleteAfterAStartThatDied(t *testing.T) {
	for _, point := range []string{fakerunsc.Die, fakerunsc.DieBeforePID} {
		t.Run(point, func(t *testing.T) {
			n := newNode(t)
			c := n.add("b", n.sandbox("a"), "sleep")
			n.must(c.Create(t.Context()))
			n.Fault("run", point)
			if err := c.Start(t.Context(), n.null()); err == nil {
				t.Error("no error")
			}
			n.must(c.Delete(t.Context()))
			if list, err := n.runtime.List(); err != nil || len(list) != 1 {
				t.Errorf("runsc keeps %v, %v", list, err)
			}
		})
	}
}

func TestDeleteAfterACreationThatDied(t *testing.T) {
	n := newNode(t)
	p := n.add("a", nil)
	n.Fault("create", fakerunsc.DieBeforePID)
	if err := p.Create(t.Context()); err == nil {
		t.Error("no error")
	}
	n.must(p.Delete(t.Context()))
	n.empty()
}

func TestRecoverEveryState(t *testing.T) {
	n := newNode(t)
	before := map[string]*Init{"a": n.sandbox("a")}
	sandbox := before["a"]
	before["b"] = n.container("b", sandbox, "ignore-term")
	before["c"] = n.container("c", sandbox, "exit", "9")
	<-before["c"].Done()
	before["d"] = n.add("d", sandbox, "sleep")
	n.must(before["d"].Create(t.Context()))
	before["e"] = n.add("e", sandbox, "sleep")
	n.must(before["e"].Create(t.Context()))
	n.Fault("run", fakerunsc.DieBeforePID)
	if err := before["e"].Start(t.Context(), n.null()); err == nil {
		t.Error("a start that dies: no error")
	}
	n.Clear("run")

	n.restart()
	root := n.again(sandbox, nil)
	n.must(root.Recover(t.Context(), sandbox.Host()))
	n.inState(root, Running)
	after := map[string]*Init{}
	for _, name := range []string{"b", "c", "d", "e"} {
		after[name] = n.again(before[name], root)
		n.must(after[name].Recover(t.Context(), HostProcess{}))
	}
	n.inState(after["b"], Running)
	n.must(after["b"].Kill(t.Context(), unix.SIGKILL, true))
	n.ended(after["b"], 137, true)
	n.ended(after["c"], 9, true)
	for _, name := range []string{"d", "e"} {
		// Never started, so it can be started now.
		n.inState(after[name], Created)
		n.must(after[name].Start(t.Context(), n.null()))
		n.must(after[name].Kill(t.Context(), unix.SIGTERM, false))
		n.ended(after[name], 143, true)
	}
	n.must(root.Delete(t.Context()))
	if status := root.Exit().Status; status != 137 {
		t.Errorf("exit status %d of a sandbox that was killed", status)
	}
	n.empty()
}

func TestRecoverWhatDiedMeanwhile(t *testing.T) {
	n := newNode(t)
	sandbox := n.sandbox("a")
	c := n.container("b", sandbox, "sleep")
	n.must(unix.Kill(sandbox.Host().PID, unix.SIGKILL))
	<-sandbox.Done()
	n.restart()
	root := n.again(sandbox, nil)
	n.must(root.Recover(t.Context(), sandbox.Host()))
	n.ended(root, 137, false)
	sub := n.again(c, root)
	n.must(sub.Recover(t.Context(), HostProcess{}))
	n.ended(sub, 137, false)
	n.must(sub.Delete(t.Context()))
	n.must(root.Delete(t.Context()))
	n.empty()
}

func TestRecoverDoesNotTakeAnotherProcessForTheSandbox(t *testing.T) {
	n := newNode(t)
	p := n.add("a", nil)
	n.must(p.Recover(t.Context(), HostProcess{PID: os.Getpid(), Start: 1}))
	n.ended(p, 137, false)
	n.must(p.Kill(t.Context(), unix.SIGKILL, true))
	n.must(p.Delete(t.Context()))
}

// What a sandbox answers that is hung or out of its mind must not keep the
// container from being watched.
func TestRecoverFromASandboxThatDoesNotAnswer(t *testing.T) {
	for _, fault := range []string{fakerunsc.Hang, fakerunsc.Garbage, fakerunsc.Cut} {
		t.Run(fault, func(t *testing.T) {
			n := newNode(t)
			sandbox := n.sandbox("a")
			c, created := n.container("b", sandbox, "sleep"), n.add("c", sandbox, "sleep")
			n.restart()
			root := n.again(sandbox, nil)
			n.must(root.Recover(t.Context(), sandbox.Host()))
			sub, created := n.again(c, root), n.again(created, root)
			n.Fault("rpc.ContainerRuntimeState", fault)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			n.must(sub.Recover(ctx, HostProcess{}))
			n.inState(sub, Running)
			n.must(created.Recover(ctx, HostProcess{}))
			n.inState(created, Created)
			n.must(root.Kill(t.Context(), unix.SIGKILL, true))
			n.ended(sub, 137, false)
			n.must(root.Delete(t.Context()))
		})
	}
}

func TestAHungSandboxCanBeKilled(t *testing.T) {
	n := newNode(t)
	sandbox := n.sandbox("a")
	c := n.container("b", sandbox, "sleep")
	n.Fault("rpc.Signal", fakerunsc.Hang)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Kill(ctx, unix.SIGKILL, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("kill through a hung sandbox: %v", err)
	}
	n.must(sandbox.Kill(t.Context(), unix.SIGKILL, true))
	n.ended(sandbox, 137, true)
	n.ended(c, 137, false)
	n.must(sandbox.Delete(t.Context()))
}

func TestKillDuringAStartWaitsForIt(t *testing.T) {
	n := newNode(t)
	c := n.add("b", n.sandbox("a"), "sleep")
	n.must(c.Create(t.Context()))
	n.Fault("run", fakerunsc.Hang)
	started := make(chan error, 1)
	go func() { started <- c.Start(t.Context(), n.null()) }()
	n.Await("--root " + n.root + " --log " + filepath.Join(c.Bundle, "runsc.log"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.Kill(ctx, unix.SIGKILL, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("kill of what is not started: %v", err)
	}
	killed := make(chan error, 1)
	go func() { killed <- c.Kill(t.Context(), unix.SIGKILL, true) }()
	n.Clear("run")
	n.must(<-started)
	n.must(<-killed)
	n.ended(c, 137, true)
}

// A watch that fails goes on, and ends with the process and not later.
func TestTheWatchOutlivesItsCalls(t *testing.T) {
	n := newNode(t)
	sandbox := n.sandbox("a")
	n.Fault("rpc.Wait", fakerunsc.Garbage)
	c := n.container("b", sandbox, "exit", "3")
	n.Await("rpc.Wait")
	n.Clear("rpc.Wait")
	n.ended(c, 3, true)

	n.Fault("rpc.Wait", fakerunsc.Garbage)
	d := n.container("c", sandbox, "sleep")
	watched := make(chan struct{})
	go func() {
		d.watch()
		close(watched)
	}()
	n.must(d.Delete(t.Context()))
	select {
	case <-watched:
	case <-time.After(20 * time.Second):
		t.Error("a deleted container is watched on")
	}
}

func TestManyContainersAtOnce(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	sandbox := n.sandbox("a")
	var wg sync.WaitGroup
	for i := range 8 {
		c := n.add(fmt.Sprintf("b%d", i), sandbox, "sleep")
		streams := n.null()
		wg.Go(func() {
			if err := errors.Join(c.Create(ctx), c.Start(ctx, streams)); err != nil {
				t.Error(err)
				return
			}
			// Two who kill and one who deletes.
			for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
				wg.Go(func() {
					if err := c.Kill(ctx, sig, true); err != nil {
						t.Error(err)
					}
				})
			}
			<-c.Done()
			if err := c.Delete(ctx); err != nil {
				t.Error(err)
			}
			n.Remove(c.ID)
		})
	}
	wg.Wait()
	for i := range 8 {
		if _, err := n.Get(id(fmt.Sprintf("b%d", i))); !errdefs.IsNotFound(err) {
			t.Errorf("still registered: %v", err)
		}
	}
	if p, err := n.Get(id("a")); p != sandbox || err != nil {
		t.Errorf("sandbox %v, %v", p, err)
	}
	n.must(sandbox.Delete(ctx))
	n.empty()
}
