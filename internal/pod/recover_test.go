package pod

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/test/fakerunsc"
)

// found returns the container of the present registry.
func (n *node) found(c *Container) *Container {
	n.t.Helper()
	c, err := n.Container(c.ID)
	n.must(err)
	return c
}

// sent sends a signal to a container of an earlier registry, and waits for its
// end there.
func (n *node) sent(c *Container, sig unix.Signal) {
	n.t.Helper()
	n.must(c.init.Kill(n.t.Context(), sig, true))
	<-c.init.Done()
}

func TestPodsDoNotNoticeARestart(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	id := n.runPod("p")
	running := n.start(id, "running", "trap")
	away := n.start(id, "away", "trap")
	stopped := n.start(id, "stopped", "exit", "3")
	n.ended(stopped, 3, "Error")
	created := n.create(id, "created", "exit", "4")
	failed := n.create(id, "failed", "/nothing")
	if err := n.StartContainer(ctx, failed.ID); err == nil {
		t.Error("no error")
	}
	n.crash()
	n.sent(away, unix.SIGUSR1)
	n.open()

	p, err := n.Pod(id)
	n.must(err)
	if p.State() != proc.Running || fmt.Sprint(p.Facts().IPs) != "[10.88.0.2 fd00::2]" || len(n.network.ids()) != 1 {
		t.Errorf("pod in state %s, facts %+v, attached %v", p.State(), p.Facts(), n.network.ids())
	}
	n.ended(n.found(stopped), 3, "Error")
	n.ended(n.found(failed), 128, "StartError")
	n.ended(n.found(away), 0, "Completed")
	if s := n.found(running).State(); s != proc.Running {
		t.Errorf("state %s", s)
	}
	n.must(n.StopContainer(ctx, running.ID, time.Hour))
	n.ended(n.found(running), 0, "Completed")
	if got := n.log("running"); got != "stdout F signal 15\n" {
		t.Errorf("log %q", got)
	}
	if s := n.found(created).State(); s != proc.Created {
		t.Errorf("state %s", s)
	}
	n.must(n.StartContainer(ctx, created.ID))
	n.ended(n.found(created), 4, "Error")
	n.must(n.RemovePod(ctx, id))
	n.nothing()
}

func TestNamesAreKeptOverARestart(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	c := n.create(id, "c", "sleep")
	n.crash()
	n.open()
	other := n.podRequest("p")
	other.Config.Hostname = "other"
	_, err := n.RunPod(t.Context(), other)
	n.is(err, errdefs.IsAlreadyExists, id)
	if again := n.runPod("p"); again != id {
		t.Errorf("another pod for the same request: %s", again)
	}
	_, err = n.RunPod(t.Context(), n.podRequest("p"))
	n.is(err, errdefs.IsAlreadyExists, id)
	_, err = n.CreateContainer(t.Context(), n.containerRequest(id, "c", "exit", "1"))
	n.is(err, errdefs.IsAlreadyExists, c.ID)
}

func TestASandboxThatDiedWhileNobodyWasThere(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	c, created := n.start(id, "c", "sleep"), n.create(id, "created", "sleep")
	p, err := n.Pod(id)
	n.must(err)
	n.crash()
	n.must(unix.Kill(p.Facts().Host.PID, unix.SIGKILL))
	<-p.init.Done()
	n.open()
	p, err = n.Pod(id)
	n.must(err)
	n.ended(n.found(c), 137, "Error")
	if s := n.found(created).State(); s != proc.Created {
		t.Errorf("state %s of what never ran", s)
	}
	<-p.init.Done()
	n.is(n.StartContainer(t.Context(), created.ID), errdefs.IsFailedPrecondition, "not")
	n.must(n.RemovePod(t.Context(), id))
	n.nothing()
}

// halfPod returns when a pod has a sandbox and waits for its network, until add is
// closed; then built tells how it ended.
func (n *node) halfPod() (add chan<- struct{}, built <-chan error) {
	adding, added, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	n.network.onAdd = func() { close(adding); <-added }
	go func() {
		_, err := n.RunPod(n.t.Context(), n.podRequest("p"))
		ended <- err
	}()
	<-adding
	for len(n.runscIDs()) == 0 { // the sandbox is made meanwhile
		time.Sleep(time.Millisecond)
	}
	return added, ended
}

func TestAPodThatWasNotFinishedIsUndone(t *testing.T) {
	n := newNode(t)
	add, built := n.halfPod()
	before := n.Registry
	n.crash()
	n.network.onAdd = nil
	n.open()
	n.nothing()
	close(add)
	if err := <-built; err == nil {
		t.Error("the pod of a daemon that is dead")
	}
	if len(before.Pods()) != 0 {
		t.Errorf("pods %v", before.Pods())
	}
}

// The daemon may die while it writes the bundle.
func TestAPodWithHalfABundleIsUndone(t *testing.T) {
	n := newNode(t)
	add, built := n.halfPod()
	n.crash()
	n.network.onAdd = nil
	for _, id := range entries(filepath.Join(n.state, "pods")) {
		n.must(os.WriteFile(filepath.Join(n.podDir(id), "config.json"), []byte(`{"ociVer`), 0o600))
	}
	n.open()
	n.nothing()
	close(add)
	<-built
}

func (n *node) runscIDs() map[string]string {
	n.t.Helper()
	ids, err := n.Handlers["runsc"].Runtime.List()
	n.must(err)
	return ids
}

func TestAContainerThatWasNotFinishedIsUndone(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	before := n.leftovers()
	n.images.onMount = n.crash
	_, err := n.CreateContainer(t.Context(), n.containerRequest(id, "c", "sleep"))
	n.must(err)
	n.images.onMount = nil
	n.open()
	n.nothing(before...)
}

// The daemon may die after runsc has started a container and before it is
// recorded, and before runsc has.
func TestAStartThatWasNotRecorded(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	started, half := n.create(id, "started", "sleep"), n.create(id, "half", "exit", "5")
	n.crash()
	n.must(n.StartContainer(t.Context(), started.ID))
	n.must(started.output.close())
	n.Fault("run", fakerunsc.DieBeforePID)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	n.must(err)
	defer null.Close()
	if err := half.init.Start(t.Context(), runsc.Stdio{In: null, Out: null, Err: null}); err == nil {
		t.Error("no error")
	}
	n.Clear("run")
	n.open()
	if c := n.found(started); c.State() != proc.Running || c.Facts().StartedAt.IsZero() {
		t.Errorf("state %s, facts %+v", c.State(), c.Facts())
	}
	n.must(n.StopContainer(t.Context(), started.ID, 0))
	n.ended(n.found(started), 137, "Error")
	n.must(n.StartContainer(t.Context(), half.ID))
	n.ended(n.found(half), 5, "Error")
}

func TestAContainerThatTheSandboxDoesNotKnow(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	c := n.start(id, "c", "sleep")
	n.crash()
	n.must(n.Handlers["runsc"].Runtime.Delete(t.Context(), c.ID))
	n.open()
	n.ended(n.found(c), 128, "StartError")
}

func TestPodsOfAnEarlierBootAreStopped(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	c, created := n.start(id, "c", "sleep"), n.create(id, "created", "sleep")
	n.crash()
	n.edit("pods", id, "boot", "an earlier one")
	n.open()
	p, err := n.Pod(id)
	n.must(err)
	if p.State() != proc.Stopped || !p.Facts().Released || p.Facts().Message != "the machine was started anew" {
		t.Errorf("state %s, facts %+v", p.State(), p.Facts())
	}
	n.ended(n.found(c), 137, "Error")
	if s := n.found(created).State(); s != proc.Created {
		t.Errorf("state %s of what never ran", s)
	}
	if len(n.network.ids()) > 0 || len(entries(filepath.Join(n.state, "netns"))) > 0 || len(n.runscIDs()) > 0 {
		t.Errorf("left: %v", n.leftovers())
	}
	n.must(n.RemovePod(t.Context(), id))
	n.nothing()
}

// edit changes a field of a record.
func (n *node) edit(kind, id, field string, value any) {
	n.t.Helper()
	path := filepath.Join(n.root, kind, id+".json")
	data, err := os.ReadFile(path)
	n.must(err)
	var fields map[string]any
	n.must(json.Unmarshal(data, &fields))
	fields[field] = value
	data, err = json.Marshal(fields)
	n.must(err)
	n.must(os.WriteFile(path, data, 0o600))
}

func TestAStoppedPodThatWasNotReleasedIsReleased(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	n.network.delErr = errFault
	n.is(n.StopPod(t.Context(), id), isFault, "")
	n.crash()
	n.network.delErr = nil
	n.open()
	p, err := n.Pod(id)
	n.must(err)
	if !p.Facts().Released || len(n.network.ids()) > 0 {
		t.Errorf("facts %+v, attached %v", p.Facts(), n.network.ids())
	}
}

func TestStraysAreRemoved(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	c := n.start(id, "c", "sleep")
	before := n.leftovers()
	stray := n.runPod("stray")
	n.start(stray, "d", "sleep")
	n.crash()
	for _, kind := range []string{"pods", "containers"} {
		for _, e := range entries(filepath.Join(n.root, kind)) {
			if !strings.HasPrefix(e, id) && !strings.HasPrefix(e, c.ID) {
				n.must(os.Remove(filepath.Join(n.root, kind, e)))
			}
		}
	}
	// One of each kind alone, too.
	for i, make := range []func(id string) error{
		func(id string) error { return network.CreateNS(n.netNS(id)) },
		func(id string) error { return os.MkdirAll(filepath.Join(n.podDir(id), "shm"), 0o700) },
		func(id string) error { return os.MkdirAll(n.rootfs(id), 0o700) },
		func(id string) error { return n.images.Mount(t.Context(), id, "", "", nil) },
		func(id string) error { return n.images.MountVolume(t.Context(), volumeKey(id, 2), "", "", nil) },
		func(id string) error { return os.MkdirAll(n.volume(volumeKey(id, 2)), 0o700) },
		func(id string) error { _, err := n.network.Add(t.Context(), network.Pod{ID: id}); return err },
	} {
		n.must(make(fmt.Sprintf("%064d", i)))
	}
	n.open()
	n.nothing(before...)
	if s := n.found(c).State(); s != proc.Running {
		t.Errorf("state %s", s)
	}
}

func TestAContainerRecordWithoutAPodIsRemoved(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	n.create(id, "c", "sleep")
	n.crash()
	n.must(os.Remove(filepath.Join(n.root, "pods", id+".json")))
	n.open()
	n.nothing()
}

// A hung sandbox must not keep the daemon from starting.
func TestAHungSandboxIsRecoveredAndCanBeRemoved(t *testing.T) {
	t.Parallel() // it waits
	n := newNode(t)
	id := n.runPod("p")
	c := n.start(id, "c", "sleep")
	n.crash()
	n.Fault("rpc.ContainerRuntimeState", fakerunsc.Garbage)
	n.Fault("rpc.Signal", fakerunsc.Hang)
	n.open()
	n.signalTimeout, n.killTimeout = 10*time.Millisecond, time.Second
	n.must(n.StopContainer(t.Context(), c.ID, 0))
	n.ended(n.found(c), 137, "Error")
	n.must(n.RemovePod(t.Context(), id))
	n.Clear("rpc.Signal")
	n.nothing()
}

func TestASubscriberThatLagsIsCutOff(t *testing.T) {
	e := newEvents()
	slow, _ := e.subscribe()
	quick, cancel := e.subscribe()
	for range backlog + 1 {
		e.publish(Event{Type: runtime.ContainerEventType_CONTAINER_CREATED_EVENT})
		<-quick
	}
	got := 0
	for range slow {
		got++
	}
	if got != backlog {
		t.Errorf("%d events before the end, want %d", got, backlog)
	}
	cancel()
	e.publish(Event{})
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(quick) > 0 || len(e.subscribers) > 0 {
		t.Errorf("%d events after the end of a subscription, %d subscribers", len(quick), len(e.subscribers))
	}
}
