package integration

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestRemoveAtOnce stops and removes the same things from all sides.
func TestRemoveAtOnce(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	p := d.runPod(t)
	c := p.run(t, forever)
	p.create(t, forever)
	var g errgroup.Group
	for range 3 {
		g.Go(func() error { return d.pods.StopContainer(ctx(t), c.id, 30) })
		g.Go(func() error { return d.pods.RemoveContainer(ctx(t), c.id) })
		g.Go(func() error { return d.pods.StopPodSandbox(ctx(t), p.id) })
		g.Go(func() error { return d.pods.RemovePodSandbox(ctx(t), p.id) })
	}
	check(t, g.Wait())
}

// TestStartAtOnce starts a container several times: one call succeeds.
func TestStartAtOnce(t *testing.T) {
	d := newDaemon(t, noNetwork)
	c := d.runPod(t).create(t, forever)
	results := make(chan error)
	for range 4 {
		go func() { results <- d.pods.StartContainer(ctx(t), c.id) }()
	}
	started := 0
	for range 4 {
		err := <-results
		if err == nil {
			started++
		} else if status.Code(err) != codes.FailedPrecondition {
			t.Error(err)
		}
	}
	if started != 1 {
		t.Errorf("%d calls succeeded", started)
	}
	c.says(t, "echo runs", "runs\n")
}

// TestRemoveWhileCreating removes a pod while containers are made in it.
func TestRemoveWhileCreating(t *testing.T) {
	d := newDaemon(t, noNetwork)
	for i := range 4 {
		p := d.runPod(t)
		var wg sync.WaitGroup
		for range 4 {
			config := p.containerConfig(forever)
			wg.Go(func() {
				id, err := p.pods.CreateContainer(ctx(t), p.id, config, p.config)
				if err == nil {
					_ = p.pods.StartContainer(ctx(t), id)
				}
			})
		}
		time.Sleep(time.Duration(i) * 10 * time.Millisecond)
		check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
		wg.Wait()
		if list, err := d.pods.ListContainers(ctx(t), nil); err != nil || len(list) != 0 {
			t.Errorf("containers: %v, %v", list, err)
		}
		eventually(t, "nothing is left behind", func() error { return d.leftovers(t) })
	}
}

// TestHungSandbox has a sandbox that does nothing any more: its pod can be
// stopped, and others do not notice.
func TestHungSandbox(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p, other := d.runPod(t), d.runPod(t)
	c, well := p.run(t, forever), other.run(t, forever)
	for _, pid := range p.sandboxPIDs() {
		check(t, unix.Kill(pid, unix.SIGSTOP))
	}
	_, err := d.raw.ExecSync(ctx(t), &runtime.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}, Timeout: 1})
	refused(t, err, codes.DeadlineExceeded)
	well.says(t, "echo fine", "fine\n")
	short, cancel := context.WithTimeout(ctx(t), time.Second)
	defer cancel()
	_, err = d.raw.StopContainer(short, &runtime.StopContainerRequest{ContainerId: c.id, Timeout: 3600})
	refused(t, err, codes.DeadlineExceeded)
	if s := c.status(t); s.State != runtime.ContainerState_CONTAINER_RUNNING {
		t.Errorf("status: %v", s)
	}
	check(t, d.pods.StopPodSandbox(ctx(t), p.id))
	if s := c.status(t); s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("status: %v", s)
	}
	well.says(t, "echo fine", "fine\n")
}

// TestHungSandboxAtStart has the daemon start while a sandbox hangs.
func TestHungSandboxAtStart(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p, other := d.runPod(t), d.runPod(t)
	c, well := p.run(t, forever), other.run(t, forever)
	pids := p.sandboxPIDs()
	d.stop(t, unix.SIGKILL)
	for _, pid := range pids {
		check(t, unix.Kill(pid, unix.SIGSTOP))
	}
	d.start(t)
	well.says(t, "echo fine", "fine\n")
	for _, pid := range pids {
		check(t, unix.Kill(pid, unix.SIGCONT))
	}
	eventually(t, "the sandbox is itself again", func() error {
		out, _, err := d.pods.ExecSync(ctx(t), c.id, []string{"echo", "back"}, patience)
		if err == nil && string(out) != "back\n" {
			err = fmt.Errorf("output %q", out)
		}
		return err
	})
}
