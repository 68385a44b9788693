package pod

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// limited is a pod with a cgroup of version 2 that has all files of limits.
func (n *node) limited() (p *Pod, cgroup string) {
	n.t.Helper()
	p, err := n.Pod(n.runPod("p"))
	n.must(err)
	cgroup = n.cgroup(p)
	n.must(p.update(func(f *podRecord) { f.Resources.M = nil }))
	for _, name := range []string{"cpu.weight", "cpu.max", "memory.max", "memory.high", "memory.swap.max", "cpuset.cpus"} {
		n.must(os.WriteFile(filepath.Join(cgroup, name), []byte("max"), 0o600))
	}
	return p, cgroup
}

// held checks files of a cgroup.
func (n *node) held(cgroup string, files map[string]string) {
	n.t.Helper()
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(cgroup, name))
		if err != nil || strings.TrimSpace(string(got)) != want {
			n.t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
}

// uses creates a container with limits.
func (n *node) uses(pod, name string, r *runtime.LinuxContainerResources) (*Container, error) {
	req := n.containerRequest(pod, name, "sleep")
	req.Config.Linux = &runtime.LinuxContainerConfig{Resources: r}
	id, err := n.CreateContainer(n.t.Context(), req)
	if err != nil {
		return nil, err
	}
	return n.Container(id)
}

const mib = 1 << 20

// TestLimitsAreOfAllContainers has the sandbox held to the sum of its containers
// when they come, change and go.
func TestLimitsAreOfAllContainers(t *testing.T) {
	n := newNode(t)
	p, cgroup := n.limited()
	one, err := n.uses(p.ID, "one", &runtime.LinuxContainerResources{CpuQuota: 20_000, CpuPeriod: 100_000, CpuShares: 512, MemoryLimitInBytes: 128 * mib})
	n.must(err)
	n.held(cgroup, map[string]string{"cpu.max": "20000 100000", "cpu.weight": "20", "memory.max": "134217728"})
	if got := n.CgroupFile(one.ID, "memory.max") + " " + n.CgroupFile(one.ID, "cpu.max"); got != "134217728 20000 100000" {
		t.Errorf("before its start the container sees %q", got)
	}
	two, err := n.uses(p.ID, "two", &runtime.LinuxContainerResources{CpuQuota: 15_000, CpuPeriod: 50_000, CpuShares: 512, MemoryLimitInBytes: 256 * mib})
	n.must(err)
	n.must(n.StartContainer(t.Context(), two.ID))
	n.held(cgroup, map[string]string{"cpu.weight": "39", "memory.max": "402653184"})
	n.must(UpdatePod(t.Context(), n.Registry, p.ID, &runtime.LinuxContainerResources{MemoryLimitInBytes: 16 * mib}, nil))
	n.held(cgroup, map[string]string{"memory.max": "419430400"})
	n.must(UpdatePod(t.Context(), n.Registry, p.ID, nil, &runtime.LinuxContainerResources{MemoryLimitInBytes: 200 * mib}))
	n.held(cgroup, map[string]string{"memory.max": "226492416"})
	n.crash()
	n.open()
	free, err := n.uses(p.ID, "free", nil)
	n.must(err)
	n.held(cgroup, map[string]string{"cpu.max": "max 100000", "memory.max": "max"})
	n.must(n.RemoveContainer(t.Context(), free.ID))
	n.held(cgroup, map[string]string{"memory.max": "226492416"})
	two, err = n.Container(two.ID)
	n.must(err)
	n.must(n.StopContainer(t.Context(), two.ID, 0))
	p, err = n.Pod(p.ID)
	n.must(err)
	p.limiter.relimit() // or the watch, which may be later than the end
	n.held(cgroup, map[string]string{"cpu.max": "20000 100000", "memory.max": "150994944"})
}

func TestUpdateContainer(t *testing.T) {
	n := newNode(t)
	p, cgroup := n.limited()
	r := &runtime.LinuxContainerResources{CpuQuota: 20_000, CpuPeriod: 100_000, MemoryLimitInBytes: 128 * mib}
	c, err := n.uses(p.ID, "c", r)
	n.must(err)
	update := func(change *runtime.LinuxContainerResources) error {
		return UpdateContainer(t.Context(), n.Registry, c.ID, change)
	}

	n.must(update(&runtime.LinuxContainerResources{OomScoreAdj: 500, CpuShares: 77})) // before its start
	if s, err := readBundle(n.containerDir(c.ID)); err != nil || *s.Process.OOMScoreAdj != 500 {
		t.Errorf("bundle: %v, %v", s.Process.OOMScoreAdj, err)
	}
	n.must(n.StartContainer(t.Context(), c.ID))
	n.must(update(&runtime.LinuxContainerResources{MemoryLimitInBytes: 256 * mib, Unified: map[string]string{"pids.max": "7", "memory.high": "max"}}))
	n.held(cgroup, map[string]string{"cpu.max": "20000 100000", "memory.max": "268435456"})
	if got := n.CgroupFile(c.ID, "memory.max") + " " + n.CgroupFile(c.ID, "pids.max"); got != "268435456 7" {
		t.Errorf("the container sees %q", got)
	}
	n.must(update(&runtime.LinuxContainerResources{CpuQuota: -1}))
	n.held(cgroup, map[string]string{"cpu.max": "max 100000"})

	n.Cgroup(c.ID, "memory.current", "150000000")
	n.is(update(&runtime.LinuxContainerResources{MemoryLimitInBytes: 130 * mib}), errdefs.IsFailedPrecondition, "memory_limit_in_bytes 136314880: it uses 150000000")
	n.Cgroup(c.ID, "memory.current", "1000")
	n.is(update(&runtime.LinuxContainerResources{MemoryLimitInBytes: 64 * mib}), errdefs.IsFailedPrecondition, "it uses 72216576 already")
	n.is(update(&runtime.LinuxContainerResources{CpuQuota: -2}), errdefs.IsInvalidArgument, "cpu_quota -2")
	n.is(UpdateContainer(t.Context(), n.Registry, "none", nil), errdefs.IsNotFound, "none")
	n.Fail("rpc.ExecuteAsync", "no")
	n.is(update(&runtime.LinuxContainerResources{MemoryLimitInBytes: 512 * mib}), func(err error) bool { return err != nil }, "limits inside")
	n.held(cgroup, map[string]string{"memory.max": "268435456"})
	if got := c.Resources(); got.MemoryLimitInBytes != 256*mib || got.CpuShares != 77 || got.CpuQuota != -1 {
		t.Errorf("resources: %v", got)
	}
	if r.MemoryLimitInBytes != 128*mib || c.Config().Linux.Resources.CpuShares != 0 {
		t.Error("the configuration has changed")
	}
	n.must(n.StopContainer(t.Context(), c.ID, 0))
	n.is(update(&runtime.LinuxContainerResources{CpuShares: 2}), errdefs.IsFailedPrecondition, "stopped")
}

// TestALimitThatIsTooLow has nothing of a container left that would have the kernel
// kill the sandbox, and no limit lowered below what is used when one goes.
func TestALimitThatIsTooLow(t *testing.T) {
	n := newNode(t)
	p, cgroup := n.limited()
	before := n.leftovers()
	_, err := n.uses(p.ID, "low", &runtime.LinuxContainerResources{MemoryLimitInBytes: 32 * mib})
	n.is(err, errdefs.IsFailedPrecondition, "memory limit of 33554432 bytes for the sandbox")
	n.nothing(before...)
	n.held(cgroup, map[string]string{"memory.max": "max"})

	_, err = n.uses(p.ID, "kept", &runtime.LinuxContainerResources{MemoryLimitInBytes: 70 * mib})
	n.must(err)
	stat := filepath.Join(cgroup, "memory.stat")
	gone, err := n.uses(p.ID, "gone", &runtime.LinuxContainerResources{MemoryLimitInBytes: 30 * mib})
	n.must(err)
	n.must(os.WriteFile(stat, []byte("anon 90000000\nshmem 1\n"), 0o600))
	n.must(n.RemoveContainer(t.Context(), gone.ID))
	n.held(cgroup, map[string]string{"memory.max": "104857600"}) // still
	n.must(os.WriteFile(stat, []byte("anon 50000000\nshmem 1\n"), 0o600))
	p.limiter.relimit()
	n.held(cgroup, map[string]string{"memory.max": "73400320"})
}

// TestALimitForTheProgram has a sandbox get what it takes to start its containers,
// where they may use less.
func TestALimitForTheProgram(t *testing.T) {
	n := newNode(t)
	p, cgroup := n.limited()
	n.must(os.WriteFile(filepath.Join(cgroup, "memory.stat"), []byte("anon 9000000\nshmem 1\n"), 0o600))
	c, err := n.uses(p.ID, "one", &runtime.LinuxContainerResources{MemoryLimitInBytes: 4 * mib})
	n.must(err)
	n.held(cgroup, map[string]string{"memory.max": "25165824"})
	if got := n.CgroupFile(c.ID, "memory.max"); got != "4194304" {
		t.Errorf("the container sees %q", got)
	}
	_, err = n.uses(p.ID, "two", &runtime.LinuxContainerResources{MemoryLimitInBytes: 30 * mib})
	n.must(err)
	n.held(cgroup, map[string]string{"memory.max": "35651584"})
}

// TestUnifiedOnVersion1 has only what the sandbox itself can do.
func TestUnifiedOnVersion1(t *testing.T) {
	n := newNode(t)
	p, err := n.Pod(n.runPod("p"))
	n.must(err)
	dir := filepath.Join(n.cgroups, "memory", "x")
	n.must(os.MkdirAll(dir, 0o755))
	n.must(p.update(func(f *podRecord) { f.Cgroup = dir }))
	_, err = n.uses(p.ID, "a", &runtime.LinuxContainerResources{Unified: map[string]string{"memory.high": "max"}})
	n.is(err, errdefs.IsInvalidArgument, `unified "memory.high"`)
	_, err = n.uses(p.ID, "b", &runtime.LinuxContainerResources{Unified: map[string]string{"pids.max": "100"}})
	n.must(err)
}
