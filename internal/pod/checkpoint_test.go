package pod

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/test/fakerunsc"
)

func (n *node) save(pod string, containers ...*Container) (dir string, err error) {
	n.t.Helper()
	dir = n.t.TempDir()
	req := &runtime.CheckpointPodRequest{PodSandboxId: pod, OutputPath: dir}
	for _, c := range containers {
		req.ContainerIds = append(req.ContainerIds, c.ID)
	}
	return dir, Checkpoint(n.t.Context(), n.Registry, req)
}

func (n *node) restoreRequest(dir, name string, containers ...*Container) *runtime.RestorePodRequest {
	n.Handlers["runsc"].Version = "fake"
	req := &runtime.RestorePodRequest{CheckpointPath: dir, Config: n.podRequest(name).Config}
	for _, c := range containers {
		config := n.containerRequest("", c.Config().Metadata.Name, c.Config().Command...).Config
		config.LogPath = name + "-" + config.LogPath
		req.ContainerConfigs = append(req.ContainerConfigs, config)
	}
	return req
}

// restore restores containers under the name of a pod.
func (n *node) restore(dir, name string, containers ...*Container) (pod string, restored []*Container) {
	n.t.Helper()
	pod, ids, err := Restore(n.t.Context(), n.Registry, n.restoreRequest(dir, name, containers...))
	n.must(err)
	for _, c := range containers {
		again, err := n.Container(ids[c.Config().Metadata.Name])
		n.must(err)
		restored = append(restored, again)
	}
	return pod, restored
}

func TestAPodComesBackAsItWas(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("one")
	n.ended(n.start(pod, "first", "exit", "0"), 0, reasonCompleted)
	a, b := n.start(pod, "a", "trap"), n.start(pod, "b", "sleep")
	dir, err := n.save(pod, b, a)
	n.must(err)
	if names := entries(dir); !slices.Equal(names, []string{"checkpoint.img", "manifest.json", "pages.img", "pages_meta.img"}) {
		t.Errorf("checkpoint of %q", names)
	}
	before := n.leftovers()
	two, again := n.restore(dir, "two", a, b)
	if two == pod || n.has(two) == false {
		t.Errorf("pod %s", two)
	}
	n.must(n.StartContainer(t.Context(), again[1].ID))
	if calls := n.Calls(); slices.ContainsFunc(calls, func(c string) bool { return c == "rpc.RestoreSubcontainer" }) {
		t.Errorf("restored before the last was started: %q", calls)
	}
	_, err = n.ExecSync(t.Context(), again[1].ID, []string{"exit"}, 0)
	n.is(err, errdefs.IsFailedPrecondition, `started too: ["a"]`)
	_, err = n.CreateContainer(t.Context(), n.containerRequest(two, "late", "sleep"))
	n.is(err, errdefs.IsFailedPrecondition, "started too")
	n.must(n.StartContainer(t.Context(), again[0].ID))
	_, err = n.ExecSync(t.Context(), again[1].ID, []string{"exit"}, 0)
	n.must(err)
	n.must(n.StopContainer(t.Context(), again[0].ID, time.Minute))
	n.ended(again[0], 0, reasonCompleted)
	if log := n.log("two-a"); log != "stdout F signal 15\n" {
		t.Errorf("log %q", log)
	}
	n.must(n.RemovePod(t.Context(), two))
	n.nothing(before...)
}

// TestACheckpointThatFailsLeavesNothing has each step of a checkpoint fail. The pod is
// not paused afterwards, and can be saved.
func TestACheckpointThatFailsLeavesNothing(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("one")
	c := n.start(pod, "a", "sleep")
	for _, op := range []string{"rpc.debug.Stacks", "rpc.Pause", "rpc.Checkpoint", "rpc.ContainerRuntimeState"} {
		n.Fail(op, "no such luck")
		dir, err := n.save(pod, c)
		n.is(err, func(err error) bool { return err != nil }, "no such luck")
		if left := entries(dir); len(left) > 0 {
			t.Errorf("%s: left %q", op, left)
		}
		n.Clear(op)
	}
	p, err := n.Pod(pod)
	n.must(err)
	if saving := p.Facts().Saving; saving.Path != "" {
		t.Errorf("on record: %v", saving)
	}
	_, err = n.save(pod, c)
	n.must(err)
}

// TestACheckpointEndsWithTheDaemon cuts a checkpoint off at its steps. The next daemon
// lets the pod go on.
func TestACheckpointEndsWithTheDaemon(t *testing.T) {
	for _, op := range []string{"rpc.debug.Stacks", "rpc.ContainerRuntimeState", "rpc.Checkpoint"} {
		t.Run(op, func(t *testing.T) {
			n := newNode(t)
			pod := n.runPod("one")
			c := n.start(pod, "a", "sleep")
			n.Fault(op, fakerunsc.Hang)
			dir := t.TempDir()
			done := make(chan error, 1)
			old := n.Registry
			go func() {
				done <- Checkpoint(t.Context(), old, &runtime.CheckpointPodRequest{PodSandboxId: pod, OutputPath: dir, ContainerIds: []string{c.ID}})
			}()
			n.Await(op)
			n.crash()
			n.must(os.WriteFile(filepath.Join(dir, "checkpoint.img"), nil, 0o600)) // of a save that goes on
			n.Clear(op)
			<-done
			_ = os.WriteFile(filepath.Join(dir, "checkpoint.img"), nil, 0o600)
			n.open()
			if left := entries(dir); slices.Contains(left, "checkpoint.img") && !slices.Contains(left, "manifest.json") {
				t.Errorf("left %q", left)
			}
			p, err := n.Pod(pod)
			n.must(err)
			if p.State() != proc.Running || p.Facts().Saving.Path != "" {
				t.Errorf("pod is %s, on record %v", p.State(), p.Facts().Saving)
			}
			again, err := n.Container(c.ID)
			n.must(err)
			_, err = n.save(pod, again)
			n.must(err)
		})
	}
}

// TestARestoreThatFailsLeavesNothing has each step of a restore fail.
func TestARestoreThatFailsLeavesNothing(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("one")
	a, b := n.start(pod, "a", "sleep"), n.start(pod, "b", "sleep")
	dir, err := n.save(pod, a, b)
	n.must(err)
	before := n.leftovers()
	restore := func() error {
		_, _, err := Restore(t.Context(), n.Registry, n.restoreRequest(dir, "two", a, b))
		return err
	}
	for _, op := range []string{"create", "restore", "rpc.Restore"} {
		n.Fail(op, "no such luck")
		n.is(restore(), func(err error) bool { return err != nil }, "no such luck")
		n.Clear(op)
		n.nothing(before...)
	}
	n.network.addErr = errFault
	n.is(restore(), func(err error) bool { return err != nil }, errFault.Error())
	n.network.addErr = nil
	n.nothing(before...)
	n.images.mountErr = errFault
	n.is(restore(), func(err error) bool { return err != nil }, errFault.Error())
	n.images.mountErr = nil
	n.nothing(before...)
	n.must(restore())
}

// TestARestoredPodThatCannotRunEnds has the sandbox refuse a container.
func TestARestoredPodThatCannotRunEnds(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("one")
	a, b := n.start(pod, "a", "sleep"), n.start(pod, "b", "sleep")
	dir, err := n.save(pod, a, b)
	n.must(err)
	two, again := n.restore(dir, "two", a, b)
	n.must(n.StartContainer(t.Context(), again[0].ID))
	n.Fail("rpc.RestoreSubcontainer", "cannot be loaded")
	err = n.StartContainer(t.Context(), again[1].ID)
	n.is(err, func(err error) bool { return err != nil }, "cannot be loaded")
	n.ended(again[0], 137, reasonError)
	n.ended(again[1], startErrorCode, reasonStartError)
	n.must(n.RemovePod(t.Context(), two))
}

// TestAFrozenPodOutlivesTheDaemon restarts the daemon at each step of a restore.
func TestAFrozenPodOutlivesTheDaemon(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("one")
	a, b := n.start(pod, "a", "print", "x"), n.start(pod, "b", "sleep")
	n.ended(a, 0, reasonCompleted)
	a = n.start(pod, "c", "sleep")
	dir, err := n.save(pod, a, b)
	n.must(err)
	two, again := n.restore(dir, "two", a, b)
	find := func(state proc.State, old *Container) *Container {
		t.Helper()
		c, err := n.Container(old.ID)
		n.must(err)
		if c.State() != state {
			t.Errorf("container is %s, not %s", c.State(), state)
		}
		return c
	}
	n.crash()
	n.open()
	n.must(n.StartContainer(t.Context(), find(proc.Created, again[0]).ID))
	n.crash()
	n.open()
	find(proc.Running, again[0])
	n.must(n.StartContainer(t.Context(), find(proc.Created, again[1]).ID))
	n.crash()
	n.open()
	for _, c := range again {
		_, err := n.ExecSync(t.Context(), find(proc.Running, c).ID, []string{"exit"}, 0)
		n.must(err)
	}
	n.must(n.RemovePod(t.Context(), two))
}

// TestAHalfRestoredPodIsUndone has the daemon die in the midst of a restore.
func TestAHalfRestoredPodIsUndone(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("one")
	a := n.start(pod, "a", "sleep")
	dir, err := n.save(pod, a)
	n.must(err)
	before := n.leftovers()
	n.Fault("restore", fakerunsc.Hang)
	done := make(chan error, 1)
	old, req := n.Registry, n.restoreRequest(dir, "two", a)
	go func() {
		_, _, err := Restore(t.Context(), old, req)
		done <- err
	}()
	for !slices.ContainsFunc(n.Calls(), func(c string) bool { return strings.Contains(c, " restore ") }) {
		time.Sleep(time.Millisecond)
	}
	n.crash()
	n.open()
	n.Clear("restore")
	<-done
	n.crash()
	n.open()
	n.nothing(before...)
}

// TestPause has a paused pod refuse what would have to run in it, outlive the daemon
// as it is, and end when it is told to.
func TestPause(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("one")
	c := n.start(pod, "a", "trap")
	pause := func() { n.must(Pause(t.Context(), n.Registry, pod)) }
	refuses := func() {
		t.Helper()
		_, err := n.ExecSync(t.Context(), c.ID, []string{"exit"}, 0)
		n.is(err, errdefs.IsFailedPrecondition, "paused")
		_, err = n.CreateContainer(t.Context(), n.containerRequest(pod, "late", "sleep"))
		n.is(err, errdefs.IsFailedPrecondition, "paused")
		_, err = n.save(pod, c)
		n.is(err, errdefs.IsFailedPrecondition, "paused")
	}
	pause()
	pause() // once is enough
	refuses()
	n.crash()
	n.open()
	c = n.found(c)
	refuses()
	n.must(Resume(t.Context(), n.Registry, pod))
	n.must(Resume(t.Context(), n.Registry, pod))
	_, err := n.ExecSync(t.Context(), c.ID, []string{"exit"}, 0)
	n.must(err)

	n.Fail("rpc.Pause", "no such luck")
	n.is(Pause(t.Context(), n.Registry, pod), func(err error) bool { return err != nil }, "no such luck")
	n.Clear("rpc.Pause")
	_, err = n.ExecSync(t.Context(), c.ID, []string{"exit"}, 0)
	n.must(err)

	pause()
	n.must(n.StopContainer(t.Context(), c.ID, time.Minute))
	n.ended(c, 0, reasonCompleted) // by its signal
	pause()
	n.must(n.StopPod(t.Context(), pod))
	n.is(Pause(t.Context(), n.Registry, pod), errdefs.IsFailedPrecondition, "not running")
	n.must(n.RemovePod(t.Context(), pod))
	n.is(Pause(t.Context(), n.Registry, pod), errdefs.IsNotFound, pod)
	n.nothing()
}
