package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/test/fakerunsc"
)

func TestLifeOfAPod(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	events, cancel := n.Subscribe()
	defer cancel()
	id := n.runPod("web")
	p, err := n.Pod(id[:12])
	n.must(err)
	if p.ID != id || p.State() != proc.Running {
		t.Errorf("pod %s in state %s", p.ID, p.State())
	}
	if f := p.Facts(); fmt.Sprint(f.IPs) != "[10.88.0.2 fd00::2]" || f.Host.PID == 0 || f.Cgroup == "" || f.Handler != "runsc" || f.Requested != "" {
		t.Errorf("facts %+v", f)
	}
	c := n.create(id, "app", "print", "hello")
	if f := c.Facts(); c.State() != proc.Created || f.ImageID != "sha256:1234" || f.ImageRef != "example.com/busybox@sha256:5678" || f.User == nil {
		t.Errorf("state %s, facts %+v", c.State(), f)
	}
	n.must(n.StartContainer(ctx, c.ID))
	n.ended(c, 0, "Completed")
	if got := n.log("app"); got != "stdout F hello\n" {
		t.Errorf("log %q", got)
	}
	n.is(n.StartContainer(ctx, c.ID), errdefs.IsFailedPrecondition, "stopped, not created")
	for range 2 {
		n.must(n.StopContainer(ctx, c.ID, time.Hour))
		n.must(n.RemoveContainer(ctx, c.ID))
	}
	for range 2 {
		n.must(n.StopPod(ctx, id))
	}
	if p.State() != proc.Stopped || !p.Facts().Released {
		t.Errorf("stopped pod in state %s, facts %+v", p.State(), p.Facts())
	}
	n.is(n.StartContainer(ctx, c.ID), errdefs.IsNotFound, c.ID)
	for range 2 {
		n.must(n.RemovePod(ctx, id))
	}
	n.nothing()

	const podEvent, containerEvent = "pod ", "container "
	want := []string{
		podEvent + "CREATED", podEvent + "STARTED", containerEvent + "CREATED", containerEvent + "STARTED",
		containerEvent + "STOPPED", containerEvent + "DELETED", podEvent + "STOPPED", podEvent + "DELETED",
	}
	for i, w := range want {
		e := <-events
		got := podEvent
		if e.Container != nil {
			got = containerEvent
		}
		got += strings.TrimSuffix(strings.TrimPrefix(e.Type.String(), "CONTAINER_"), "_EVENT")
		if got != w || e.Pod.ID != id || e.At.IsZero() {
			t.Errorf("event %d: %s, want %s", i, got, w)
		}
	}
}

func TestExitReasons(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	n.ended(n.start(id, "completed", "exit", "0"), 0, "Completed")
	n.ended(n.start(id, "error", "exit", "7"), 7, "Error")

	p, err := n.Pod(id)
	n.must(err)
	cgroup := t.TempDir()
	n.must(p.update(func(f *podRecord) { f.Cgroup = cgroup }))
	kills := func(count int) {
		n.must(os.WriteFile(filepath.Join(cgroup, "memory.events"), fmt.Appendf(nil, "low 0\noom 9\noom_kill %d\n", count), 0o600))
	}
	kills(0)
	killed := func(name string) *Container {
		c := n.start(id, name, "sleep")
		n.must(c.signal(t.Context(), unix.SIGKILL, true))
		return c
	}
	n.ended(killed("killed"), 137, "Error")
	kills(1)
	n.ended(killed("oom"), 137, "OOMKilled")
	n.ended(killed("killed-after-oom"), 137, "Error")
	c, d := n.start(id, "one", "sleep"), n.start(id, "two", "sleep")
	kills(2) // and this time the kernel chose the sandbox
	n.must(unix.Kill(p.Facts().Host.PID, unix.SIGKILL))
	n.ended(c, 137, "OOMKilled")
	n.ended(d, 137, "OOMKilled")
}

func TestACommandThatIsNotThereHarmsNobody(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	other := n.start(id, "other", "sleep")
	for command, kind := range map[string]error{"/nothing": runsc.ErrNoExecutable, "nothing": runsc.ErrNoExecutable, "/secret": errdefs.ErrPermissionDenied} {
		c := n.create(id, strings.ReplaceAll(command, "/", "-"), command)
		err := n.StartContainer(t.Context(), c.ID)
		if !errors.Is(err, kind) || !strings.Contains(err.Error(), command) {
			t.Errorf("start of %s: %v", command, err)
		}
		n.ended(c, 128, "StartError")
		if !strings.Contains(c.Facts().Message, command) {
			t.Errorf("message %q", c.Facts().Message)
		}
		if _, err := os.Stat(filepath.Join(n.logs, strings.ReplaceAll(command, "/", "-")+".log")); err == nil {
			t.Error("what runsc said is in the container's log")
		}
		n.must(n.RemoveContainer(t.Context(), c.ID))
	}
	if other.State() != proc.Running {
		t.Errorf("the other container is %s", other.State())
	}
}

func TestALogThatCannotBeOpenedIsAFailedStart(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	c := n.create(id, "c", "sleep")
	n.must(os.RemoveAll(n.logs))
	n.is(n.StartContainer(t.Context(), c.ID), func(err error) bool { return errors.Is(err, os.ErrNotExist) }, n.logs)
	n.ended(c, 128, "StartError")
	ids, err := n.Handlers["runsc"].Runtime.List()
	if err != nil || len(ids) != 1 {
		t.Errorf("runsc has %v, %v; want the sandbox only", ids, err)
	}
}

// A start whose runsc was cut off may have started the container nonetheless.
func TestAStartThatDiedLeavesNothingRunning(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	c := n.create(id, "c", "sleep")
	n.Fault("run", fakerunsc.DieBeforePID)
	if err := n.StartContainer(t.Context(), c.ID); err == nil {
		t.Error("no error")
	}
	n.ended(c, 128, "StartError")
	if ids, err := n.Handlers["runsc"].Runtime.List(); err != nil || len(ids) != 1 {
		t.Errorf("runsc has %v, %v; want the sandbox only", ids, err)
	}
}

func TestStopSendsTheContainersSignal(t *testing.T) {
	n := newNode(t)
	n.images.stopSignal = "SIGRTMIN+3"
	id := n.runPod("p")
	c := n.start(id, "image", "trap")
	req := n.containerRequest(id, "own", "trap")
	req.Config.StopSignal = runtime.Signal_SIGNAL_SIGUSR1
	own, err := n.CreateContainer(t.Context(), req)
	n.must(err)
	n.must(n.StartContainer(t.Context(), own))
	for _, id := range []string{c.ID, own} {
		n.must(n.StopContainer(t.Context(), id, time.Hour))
	}
	if got := n.log("image"); got != "stdout F signal 37\n" {
		t.Errorf("log %q", got)
	}
	if got := n.log("own"); got != "stdout F signal 10\n" {
		t.Errorf("log %q", got)
	}
}

func TestStopKillsWhatIgnoresTheSignal(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	c := n.start(id, "c", "ignore-term")
	n.must(n.StopContainer(t.Context(), c.ID, time.Millisecond))
	n.ended(c, 137, "Error")
	d := n.start(id, "d", "ignore-term")
	n.must(n.StopContainer(t.Context(), d.ID, 0))
	n.ended(d, 137, "Error")
}

func TestASecondStopShortensTheFirst(t *testing.T) {
	n := newNode(t)
	c := n.start(n.runPod("p"), "c", "ignore-term")
	first := make(chan error, 1)
	go func() { first <- n.StopContainer(t.Context(), c.ID, time.Hour) }()
	n.Await("rpc.Signal")
	n.must(n.StopContainer(t.Context(), c.ID, time.Millisecond))
	n.must(<-first)
	n.ended(c, 137, "Error")
}

func TestAClientThatGivesUpDoesNotEndTheContainer(t *testing.T) {
	n := newNode(t)
	c := n.start(n.runPod("p"), "c", "ignore-term")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	n.is(n.StopContainer(ctx, c.ID, time.Hour), func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }, c.ID)
	if c.State() != proc.Running {
		t.Errorf("state %s", c.State())
	}
}

func TestAHungSandboxIsKilled(t *testing.T) {
	t.Parallel() // it waits
	n := newNode(t)
	n.signalTimeout, n.killTimeout = 10*time.Millisecond, time.Second
	id := n.runPod("p")
	c := n.start(id, "c", "sleep")
	n.Fault("rpc.Signal", fakerunsc.Hang)
	n.must(n.StopContainer(t.Context(), c.ID, time.Millisecond))
	n.ended(c, 137, "Error")
	n.must(n.RemovePod(t.Context(), id))
	n.Clear("rpc.Signal")
	n.nothing()
}

func TestASandboxThatDiesTellsWhy(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	c := n.start(id, "c", "sleep")
	p, err := n.Pod(id)
	n.must(err)
	n.must(os.WriteFile(filepath.Join(n.podDir(id), "panic.log"), []byte("panic: oh\n"), 0o600))
	events, cancel := n.Subscribe()
	defer cancel()
	n.must(unix.Kill(p.Facts().Host.PID, unix.SIGKILL))
	for e := range events {
		if e.Container == nil {
			break
		}
	}
	if f := p.Facts(); p.State() != proc.Stopped || !strings.HasSuffix(f.Message, ": sentry: panic: oh") || f.Released {
		t.Errorf("state %s, facts %+v", p.State(), f)
	}
	n.ended(c, 137, "Error")
	if !strings.Contains(c.Facts().Message, "sandbox was gone") {
		t.Errorf("message %q", c.Facts().Message)
	}
	_, err = n.CreateContainer(t.Context(), n.containerRequest(id, "d", "sleep"))
	n.is(err, errdefs.IsFailedPrecondition, "stopped, not running")
	n.must(n.RemovePod(t.Context(), id))
	n.nothing()
}

func TestStopAndRemoveAtOnce(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	n.start(id, "c", "ignore-term")
	n.create(id, "d", "sleep")
	events, cancel := n.Subscribe()
	defer cancel()
	errs := make(chan error)
	for i := range 6 {
		go func() {
			if i%2 == 0 {
				errs <- n.StopPod(t.Context(), id)
			} else {
				errs <- n.RemovePod(t.Context(), id)
			}
		}()
	}
	for range 6 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	n.nothing()
	removed := map[string]int{}
	for len(events) > 0 {
		switch e := <-events; {
		case e.Type != runtime.ContainerEventType_CONTAINER_DELETED_EVENT:
		case e.Container != nil:
			removed[e.Container.Config().Metadata.Name]++
		default:
			removed["pod"]++
		}
	}
	if removed["pod"] != 1 || removed["c"] != 1 || removed["d"] != 1 {
		t.Errorf("events of removals %v, want one each", removed)
	}
}

func TestAStopThatFailsIsRepeated(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	n.network.delErr = errFault
	for range 2 {
		n.is(n.StopPod(t.Context(), id), isFault, id)
	}
	n.network.delErr = nil
	n.must(n.StopPod(t.Context(), id))
	if left := n.network.ids(); len(left) > 0 {
		t.Errorf("attached: %v", left)
	}
	n.must(n.RemovePod(t.Context(), id))
	n.nothing()
}

// A network that will never be released again must not keep the pod for ever. It is
// tried again at the next start.
func TestRemovalDoesNotWaitForTheNetwork(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	n.network.delErr = errFault
	n.is(n.StopPod(t.Context(), id), isFault, id)
	n.must(n.RemovePod(t.Context(), id))
	n.nothing("attached " + id)
	n.network.delErr = nil
	n.crash()
	n.open()
	n.nothing()
}

// An exit code that could not be saved is saved when there is a disk again.
func TestAnExitIsSavedLater(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	c := n.create(id, "c", "exit", "7")
	records := filepath.Join(n.root, "containers")
	n.must(os.Rename(records, records+".gone"))
	n.must(n.StartContainer(t.Context(), c.ID))
	n.ended(c, 7, "Error")
	n.must(os.Rename(records+".gone", records))
	for saved := []byte(nil); !strings.Contains(string(saved), `"exit_code":7`); time.Sleep(time.Millisecond) {
		saved, _ = os.ReadFile(filepath.Join(records, c.ID+".json"))
	}
	n.must(n.RemovePod(t.Context(), id))
	n.nothing()
}

// A start that waits while the container is removed does not start it.
func TestStartOfARemovedContainer(t *testing.T) {
	n := newNode(t)
	c := n.create(n.runPod("p"), "c", "sleep")
	c.release <- struct{}{} // a removal is under way
	failed := make(chan error, 1)
	go func() { failed <- n.StartContainer(t.Context(), c.ID) }()
	n.must(c.forget(t.Context()))
	<-c.release
	n.is(<-failed, errdefs.IsNotFound, c.ID)
}

// Whoever watched an object may still write down how it ended when the object
// has been removed already.
func TestLateFactsDoNotBringARecordBack(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	p, err := n.Pod(id)
	n.must(err)
	c := n.create(id, "c", "sleep")
	n.must(n.RemovePod(t.Context(), id))
	n.must(p.update(func(f *podRecord) { f.StoppedAt = time.Now() }))
	n.must(c.update(func(f *containerRecord) { f.FinishedAt = time.Now() }))
	n.nothing()
}

func TestAllOutputIsLoggedBeforeTheEndIsTold(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	c := n.start(id, "flood", "flood", "320000")
	n.ended(c, 0, "Completed")
	if got := strings.Count(n.log("flood"), "stdout F 0123456789abcde\n"); got != 20000 {
		t.Errorf("%d lines, want 20000", got)
	}
	n.ended(n.start(id, "both", "eprint", "oh"), 0, "Completed")
	if got := n.log("both"); got != "stderr F oh\n" {
		t.Errorf("log %q", got)
	}
	// A process that is left behind holds the output and is not waited for.
	n.ended(n.start(id, "leave", "leave"), 0, "Completed")
}

func TestReopenLog(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	req := n.containerRequest(id, "c", "cat")
	req.Config.Stdin = true
	cid, err := n.CreateContainer(t.Context(), req)
	n.must(err)
	n.is(n.ReopenLog(t.Context(), cid), errdefs.IsFailedPrecondition, "created, not running")
	n.must(n.StartContainer(t.Context(), cid))
	in, err := os.OpenFile(filepath.Join(n.containerDir(cid), "stdin"), os.O_WRONLY, 0)
	n.must(err)
	defer in.Close()
	path := filepath.Join(n.logs, "c.log")
	write := func(text string) {
		fmt.Fprintln(in, text)
		for {
			if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), text) {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	write("one")
	n.must(os.Rename(path, path+".1"))
	n.must(n.ReopenLog(t.Context(), cid))
	write("two")
	if got := n.log("c"); got != "stdout F two\n" {
		t.Errorf("new log %q", got)
	}
	n.must(n.StopContainer(t.Context(), cid, 0))
	n.is(n.ReopenLog(t.Context(), cid), errdefs.IsFailedPrecondition, "stopped, not running")
}
