package integration

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	cri "k8s.io/cri-client/pkg"
)

// relister is a daemon that is asked by the kubelet's client and in the kubelet's
// order; `make e2e` has a real one.
type relister struct {
	*daemon
	done    chan struct{}
	relists chan error
}

// startKubelet asks what the kubelet asks before it starts a pod, and relists from
// then on.
func (d *daemon) startKubelet(t *testing.T) *relister {
	t.Helper()
	k := &relister{d, make(chan struct{}), make(chan error, 1)}
	v, err := d.pods.Version(ctx(t), "0.1.0")
	check(t, err)
	if v.RuntimeName != "runscd" || v.RuntimeApiVersion != "v1" {
		t.Errorf("version %v", v)
	}
	_, err = d.raw.PodSandboxStats(ctx(t), &runtime.PodSandboxStatsRequest{})
	if status.Code(err) == codes.Unimplemented { // is asked to learn just this
		t.Error(err)
	}
	for range 3 {
		c, err := d.pods.RuntimeConfig(ctx(t))
		check(t, err)
		if c.Linux.GetCgroupDriver() != runtime.CgroupDriver_CGROUPFS {
			t.Errorf("configuration %v", c)
		}
	}
	s, err := d.pods.Status(ctx(t), true)
	check(t, err)
	for _, c := range s.Status.Conditions {
		if !c.Status {
			t.Errorf("condition %v", c)
		}
	}
	if !slices.ContainsFunc(s.RuntimeHandlers, func(h *runtime.RuntimeHandler) bool { return h.Name == "" }) {
		t.Errorf("no default among the handlers %v", s.RuntimeHandlers)
	}
	go func() { k.relists <- k.relist(t) }()
	return k
}

// relist lists without a filter again and again, as the kubelet does each second,
// and asks for what has changed. A state never goes back.
func (k *relister) relist(t *testing.T) error {
	states := map[string]runtime.ContainerState{}
	for {
		pods, err := k.pods.ListPodSandbox(ctx(t), nil)
		if err != nil {
			return err
		}
		for _, p := range pods {
			if _, err := k.pods.PodSandboxStatus(ctx(t), p.Id, false); err != nil && status.Code(err) != codes.NotFound {
				return err
			}
		}
		containers, err := k.pods.ListContainers(ctx(t), nil)
		if err != nil {
			return err
		}
		for _, c := range containers {
			if c.State < states[c.Id] {
				return fmt.Errorf("container %s was %v and is %v", c.Id, states[c.Id], c.State)
			}
			states[c.Id] = c.State
			resp, err := k.pods.ContainerStatus(ctx(t), c.Id, false)
			if err != nil && status.Code(err) != codes.NotFound {
				return err
			}
			if err == nil && resp.Status.State < c.State {
				return fmt.Errorf("container %s is %v in the list and %v in its status", c.Id, c.State, resp.Status.State)
			}
		}
		select {
		case <-k.done:
			return nil
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// syncPod makes a pod with its image pulled, and its init containers run.
func (k *relister) syncPod(t *testing.T) (*pod, *container) {
	t.Helper()
	_, err := k.images.ImageStatus(ctx(t), &runtime.ImageSpec{Image: busybox}, false)
	check(t, err)
	p := k.runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Linux.CgroupParent = k.cgroup + "/kubepods/poduid"
	})
	if got := p.status(t); got.Network.GetIp() == "" || got.State != runtime.PodSandboxState_SANDBOX_READY {
		t.Errorf("sandbox %v", got)
	}
	first := p.run(t, "echo initialized")
	if got := first.ended(t); got.ExitCode != 0 || got.Reason != "Completed" {
		t.Errorf("init container: %v", got)
	}
	resources := limits(&runtime.LinuxContainerResources{
		CpuPeriod: 100_000, CpuQuota: 50_000, CpuShares: 512, MemoryLimitInBytes: 64 * mib,
		MemorySwapLimitInBytes: 64 * mib, OomScoreAdj: 900,
	})
	c := p.run(t, "trap 'echo asked; exit 4' TERM; while :; do sleep 1000 & wait; done", resources, func(c *runtime.ContainerConfig) {
		c.Annotations = map[string]string{"io.kubernetes.container.hash": "1234", "io.kubernetes.container.restartCount": "0"}
	})
	if got := c.status(t); got.Annotations["io.kubernetes.container.hash"] != "1234" || got.Resources.GetLinux().GetMemoryLimitInBytes() != 64*mib {
		t.Errorf("status %v", got)
	}
	return p, c
}

// probe makes a probe that succeeds, one that fails and one that takes too long.
func (c *container) probe(t *testing.T) {
	t.Helper()
	for script, want := range map[string]int{"true": 0, "exit 9": 9} {
		if _, code := c.exec(t, script); code != want {
			t.Errorf("%s: code %d", script, code)
		}
	}
	_, _, err := c.pods.ExecSync(ctx(t), c.id, []string{"sleep", "1000"}, time.Second)
	if !errors.Is(err, cri.ErrCommandTimedOut) {
		t.Errorf("a probe that takes too long: %v", err)
	}
}

// resize gives the container more memory: the pod is told, then its cgroup has it,
// then the container is told.
func (c *container) resize(t *testing.T) {
	t.Helper()
	more := &runtime.LinuxContainerResources{
		CpuPeriod: 100_000, CpuQuota: 50_000, CpuShares: 512, MemoryLimitInBytes: 128 * mib, MemorySwapLimitInBytes: 128 * mib,
	}
	_, err := c.pods.UpdatePodSandboxResources(ctx(t), &runtime.UpdatePodSandboxResourcesRequest{PodSandboxId: c.pod.id, Resources: more})
	check(t, err)
	check(t, limitMemory(c.pod.config.Linux.CgroupParent, 128*mib))
	check(t, c.pods.UpdateContainerResources(ctx(t), c.id, &runtime.ContainerResources{Linux: more}))
	if got := c.memoryLimit(t); got != fmt.Sprint(128*mib) {
		t.Errorf("memory limit of the sandbox: %s", got)
	}
	c.says(t, "cat /sys/fs/cgroup/memory.max", fmt.Sprintln(128*mib))
}

// rotate renames the log and has it reopened.
func (c *container) rotate(t *testing.T) {
	t.Helper()
	old := c.logPath() + ".old"
	check(t, os.Rename(c.logPath(), old))
	check(t, c.pods.ReopenContainerLog(ctx(t), c.id))
	if _, err := os.Stat(c.logPath()); err != nil {
		t.Error(err)
	}
}

// kill ends a pod as its deletion does: hook, containers, sandbox. What is told
// twice is done once.
func (p *pod) kill(t *testing.T, c *container) {
	t.Helper()
	if out, code := c.exec(t, "echo hook"); out != "hook\n" || code != 0 {
		t.Errorf("hook: %q, %d", out, code)
	}
	check(t, p.pods.StopContainer(ctx(t), c.id, 30))
	if got := c.ended(t); got.ExitCode != 4 {
		t.Errorf("container: %v", got)
	}
	if out := c.output(t); !strings.HasSuffix(out, "asked\n") {
		t.Errorf("output %q", out)
	}
	for range 2 {
		check(t, p.pods.StopPodSandbox(ctx(t), p.id))
	}
	if got := p.status(t).State; got != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("sandbox %v", got)
	}
	list, err := p.pods.ListContainers(ctx(t), &runtime.ContainerFilter{PodSandboxId: p.id})
	check(t, err)
	for _, c := range list {
		check(t, p.pods.RemoveContainer(ctx(t), c.Id))
		check(t, unfound(p.pods.ContainerStatus(ctx(t), c.Id, false)))
	}
	check(t, p.pods.RemovePodSandbox(ctx(t), p.id))
	check(t, unfound(p.pods.PodSandboxStatus(ctx(t), p.id, false)))
}

// TestKubelet leads a life of a pod in the kubelet's order while that relists, with
// the daemon killed in the middle.
func TestKubelet(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	podCgroup := d.cgroup + "/kubepods/poduid"
	check(t, errors.Join(makeCgroup(d.cgroup+"/kubepods"), makeCgroup(podCgroup), limitMemory(podCgroup, 64*mib)))
	k := d.startKubelet(t)
	p, c := k.syncPod(t)
	c.probe(t)
	c.resize(t)
	c.rotate(t)
	close(k.done) // a call that meets the kill fails
	check(t, <-k.relists)

	d.stop(t, 9)
	d.start(t)
	k = d.startKubelet(t)
	if got := c.status(t); got.State != runtime.ContainerState_CONTAINER_RUNNING || got.Resources.Linux.MemoryLimitInBytes != 128*mib {
		t.Errorf("after the restart: %v", got)
	}
	if stats, err := d.pods.ListPodSandboxStats(ctx(t), nil); err != nil || len(stats) != 1 || len(stats[0].Linux.Containers) != 1 {
		t.Errorf("figures %v, %v", stats, err)
	}
	if metrics, err := d.pods.ListPodSandboxMetrics(ctx(t)); err != nil || len(metrics) != 1 {
		t.Errorf("metrics %v, %v", metrics, err)
	}
	p.kill(t, c)
	if fs, err := d.images.ImageFsInfo(ctx(t)); err != nil || len(fs.ImageFilesystems) != 1 {
		t.Errorf("image file system %v, %v", fs, err)
	}
	close(k.done)
	check(t, <-k.relists)
	removeCgroup(d.cgroup + "/kubepods") // if there is nothing in it
}
