package integration

import (
	"errors"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// silent counts as counting does, and writes no log.
const silent = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done"

// TestCheckpointKilledAtEveryStep kills the daemon at each step of a checkpoint. The pod
// goes on, and what is left can be restored or is nothing.
func TestCheckpointKilledAtEveryStep(t *testing.T) {
	k := newKubelet(t, noNetwork)
	p := k.runPod(t)
	c := p.run(t, silent)
	eventually(t, "it counts", func() error { _, code := c.exec(t, "cat /count"); return failure(code) })
	n, complete := 0, 0
	for died := true; died; n++ {
		dir, before := t.TempDir(), c.count(t)
		died = k.dies(t, n+1, func() error {
			_, err := k.raw.CheckpointPod(soon(t), saveRequest(p, dir, nil, c))
			return err
		})
		eventually(t, "the pod goes on", func() error {
			if c.count(t) <= before {
				return errors.New("it does not count")
			}
			return nil
		})
		left := names(dir)
		if !slices.Contains(left, "manifest.json") {
			if len(left) > 0 || !died {
				t.Errorf("killed at step %d, the last of %q: left %q", n+1, k.steps, left)
			}
			continue
		}
		complete++
		q, again := k.restore(t, restoreRequest(dir, c))
		check(t, k.pods.StartContainer(ctx(t), again[0].id))
		if now := again[0].count(t); now < before {
			t.Errorf("restored of step %d: it counts %d after %d", n+1, now, before)
		}
		check(t, k.pods.RemovePodSandbox(ctx(t), q.id))
	}
	t.Logf("steps of a checkpoint: %d, complete after %d", n-1, complete)
}

// TestRestoreKilledAtEveryStep kills the daemon at each step of a restore and of the start
// of its container. A pod that was not told of is not there, or as it should be.
func TestRestoreKilledAtEveryStep(t *testing.T) {
	k := newKubelet(t, noNetwork)
	p := k.runPod(t)
	c := p.run(t, silent)
	eventually(t, "it counts", func() error { _, code := c.exec(t, "cat /count"); return failure(code) })
	dir := p.save(t, nil, c)
	check(t, k.pods.RemovePodSandbox(ctx(t), p.id))
	n := 0
	for died := true; died; n++ {
		req := restoreRequest(dir, c)
		died = k.dies(t, n+1, func() error {
			resp, err := k.raw.RestorePod(soon(t), req)
			if err == nil {
				err = k.pods.StartContainer(ctx(t), resp.RestoredContainers[0].ContainerId)
			}
			return err
		})
		pods, err := k.pods.ListPodSandbox(ctx(t), nil)
		check(t, err)
		containers, err := k.pods.ListContainers(ctx(t), nil)
		check(t, err)
		if len(pods) != len(containers) || len(pods) > 1 || len(pods) == 0 && !died {
			t.Fatalf("killed at step %d, the last of %q: pods %v, containers %v", n+1, k.steps, pods, containers)
		}
		for i, restored := range containers {
			k.runs(t, &container{pod: p, id: restored.Id})
			check(t, k.pods.RemovePodSandbox(ctx(t), pods[i].Id))
		}
		eventually(t, "nothing is left behind", k.nothing)
	}
	t.Logf("steps of a restore: %d", n-1)
}

// runs checks that a restored container can be started, or runs, or has ended with its
// pod, when its start was cut off.
func (k *kubelet) runs(t *testing.T, c *container) {
	t.Helper()
	if c.status(t).State == runtime.ContainerState_CONTAINER_CREATED {
		check(t, k.pods.StartContainer(ctx(t), c.id))
	}
	if c.status(t).State == runtime.ContainerState_CONTAINER_RUNNING {
		if n := c.count(t); n == 0 {
			t.Error("it does not count")
		}
	}
}

// dies makes calls with a daemon that dies at its n-th step from now on, waits until there
// is another, and tells whether it had so many.
func (k *kubelet) dies(t *testing.T, n int, call func() error) (died bool) {
	t.Helper()
	k.trace = k.daemon.trace(t, killedAt, n)
	err := call()
	if err != nil && status.Code(err) != codes.Unavailable && status.Code(err) != codes.Unknown {
		check(t, err)
	}
	if err == nil && !k.restarted() {
		k.trace.end(t, true)
		k.trace = nil
		return false
	}
	eventually(t, "the daemon dies", func() error {
		if k.trace != nil && !k.restarted() {
			return err
		}
		return nil
	})
	return true
}

// failure is an error for an exit code that is not 0.
func failure(code int) error {
	if code != 0 {
		return errors.New("not yet")
	}
	return nil
}
