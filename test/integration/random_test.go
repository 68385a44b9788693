package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// random makes random calls, as internal/pod's model does with many more, on the
// real runsc.
type random struct {
	*daemon
	t *testing.T

	mu sync.Mutex
	// +checklocks:mu
	pods []*pod
	// +checklocks:mu
	containers []*container
	// +checklocks:mu
	seen map[string]runtime.ContainerState // the furthest that a container was seen in
	// +checklocks:mu
	started map[string]int
}

// TestRandomCalls has clients make the calls of a pod's life in any order at once, in
// the end 200 of them: no container starts twice or goes back in its life, and nothing
// stays.
func TestRandomCalls(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	d := newDaemon(t, "")
	d.addNetwork(t)
	check(t, os.MkdirAll(d.path("logs"), 0o755))
	x := &random{daemon: d, t: t, seen: map[string]runtime.ContainerState{}, started: map[string]int{}}
	for _, phase := range []struct{ clients, each int }{{8, 30}, {200, 1}} {
		var wg sync.WaitGroup
		for i := range phase.clients {
			r := rand.New(rand.NewPCG(seed, uint64(phase.clients+i)))
			wg.Go(func() {
				for range phase.each {
					x.call(r)
				}
			})
		}
		wg.Wait()
	}
	eventually(t, "what nobody waits for any more is over", func() error {
		pods, err := d.pods.ListPodSandbox(ctx(t), nil)
		if n := len(names(d.path("l/pods"))); err == nil && n != len(pods) {
			err = fmt.Errorf("%d pods, %d records", len(pods), n)
		}
		return err
	})
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, n := range x.started {
		if n > 1 {
			t.Errorf("container %s was started %d times", id, n)
		}
	}
	t.Logf("%d pods and %d containers made", len(x.pods), len(x.containers))
}

func (x *random) call(r *rand.Rand) {
	ctx := ctx(x.t)
	if r.IntN(8) == 0 { // the client gives up
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(r.IntN(200))*time.Millisecond)
		defer cancel()
	}
	x.mu.Lock()
	var p *pod
	var c *container
	if len(x.pods) > 0 {
		p = x.pods[r.IntN(len(x.pods))]
	}
	if len(x.containers) > 0 {
		c = x.containers[r.IntN(len(x.containers))]
	}
	x.mu.Unlock()
	switch op := r.IntN(12); {
	case p == nil || op == 0:
		x.runPod(ctx)
	case c == nil || op < 4:
		x.createContainer(ctx, p)
	case op < 6:
		_, err := x.raw.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c.id})
		x.allow("StartContainer", err, codes.FailedPrecondition, codes.NotFound, codes.Unknown, codes.Unavailable)
		if err == nil {
			x.mu.Lock()
			x.started[c.id]++
			x.mu.Unlock()
		}
	case op == 6:
		_, err := x.raw.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.id, Timeout: int64(r.IntN(2))})
		x.allow("StopContainer", err)
	case op == 7:
		_, err := x.raw.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: c.id})
		x.allow("RemoveContainer", err)
	case op == 8 && r.IntN(2) == 0:
		_, err := x.raw.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.id})
		x.allow("StopPodSandbox", err)
	case op == 8:
		_, err := x.raw.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id})
		x.allow("RemovePodSandbox", err)
	case op == 9:
		_, err := x.raw.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}})
		x.allow("ExecSync", err, codes.FailedPrecondition, codes.NotFound, codes.Unknown, codes.Unavailable)
	default:
		x.look(ctx, c)
	}
}

func (x *random) runPod(ctx context.Context) {
	p := &pod{daemon: x.daemon, config: x.podConfig()}
	resp, err := x.raw.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: p.config})
	x.allow("RunPodSandbox", err)
	if err == nil {
		p.id = resp.PodSandboxId
		x.mu.Lock()
		x.pods = append(x.pods, p)
		x.mu.Unlock()
	}
}

func (x *random) createContainer(ctx context.Context, p *pod) {
	c := &container{pod: p, config: p.containerConfig(forever)}
	resp, err := x.raw.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: p.id, Config: c.config, SandboxConfig: p.config})
	x.allow("CreateContainer", err, codes.FailedPrecondition, codes.NotFound)
	if err == nil {
		c.id = resp.ContainerId
		x.mu.Lock()
		x.containers = append(x.containers, c)
		x.mu.Unlock()
	}
}

// look checks that a container has not gone back in its life.
func (x *random) look(ctx context.Context, c *container) {
	x.mu.Lock()
	before := x.seen[c.id]
	x.mu.Unlock()
	resp, err := x.raw.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: c.id})
	x.allow("ContainerStatus", err, codes.NotFound)
	if err != nil {
		return
	}
	if resp.Status.State < before {
		x.t.Errorf("container %s is %v, was %v", c.id, resp.Status.State, before)
	}
	x.mu.Lock()
	x.seen[c.id] = max(x.seen[c.id], resp.Status.State)
	x.mu.Unlock()
}

// allow checks an error's code; a client that gave up is always allowed to have.
func (x *random) allow(call string, err error, allowed ...codes.Code) {
	for _, code := range append(allowed, codes.OK, codes.Canceled, codes.DeadlineExceeded) {
		if status.Code(err) == code {
			return
		}
	}
	x.t.Errorf("%s: %v", call, err)
}

// TestSecondDaemon starts a daemon where one is already: it says who that is.
func TestSecondDaemon(t *testing.T) {
	d := newDaemon(t, noNetwork)
	out, err := exec.Command(runscd, "serve", "--config", d.path("conf.toml")).CombinedOutput()
	want := fmt.Sprintf("held by pid %d", d.cmd.Process.Pid)
	if err == nil || !strings.Contains(string(out), want) || !strings.Contains(string(out), d.path("l")) {
		t.Errorf("%v: %s", err, out)
	}
}
