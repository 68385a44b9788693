package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// limits are a container's resources.
func limits(r *runtime.LinuxContainerResources) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) { c.Linux.Resources = r }
}

// held reads what the host holds a sandbox to, by the names of either version.
func (p *pod) held(t *testing.T, controller, version1, version2 string) string {
	t.Helper()
	path := filepath.Join("/sys/fs/cgroup", controller, p.config.Linux.CgroupParent, p.id, version1)
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		path = filepath.Join("/sys/fs/cgroup", p.config.Linux.CgroupParent, p.id, version2)
	}
	text, err := os.ReadFile(path)
	check(t, err)
	return strings.TrimSpace(string(text))
}

func (p *pod) memoryLimit(t *testing.T) string {
	return p.held(t, "memory", "memory.limit_in_bytes", "memory.max")
}

// throttled is how often the host has made the sandbox wait for its quota.
func (p *pod) throttled(t *testing.T) int {
	t.Helper()
	for line := range strings.Lines(p.held(t, "cpu", "cpu.stat", "cpu.stat")) {
		if n, ok := strings.CutPrefix(line, "nr_throttled "); ok {
			times, err := strconv.Atoi(strings.TrimSpace(n))
			check(t, err)
			return times
		}
	}
	t.Fatal("no count")
	return 0
}

const mib = 1 << 20

// TestLimits has the host hold a sandbox to the sum of its containers, and each
// container see its own limits from its first instruction on.
func TestLimits(t *testing.T) {
	d := newDaemon(t, noNetwork)
	check(t, limitMemory(d.cgroup, 1<<30)) // as the kubelet does
	p := d.runPod(t, func(c *runtime.PodSandboxConfig) { c.Linux.Overhead.MemoryLimitInBytes = 32 * mib })
	const look = "cd /sys/fs/cgroup; cat cpu.max memory.max pids.max"
	one := p.run(t, look+"; "+forever, limits(&runtime.LinuxContainerResources{
		CpuQuota: 20_000, CpuPeriod: 100_000, CpuShares: 204, MemoryLimitInBytes: 128 * mib, Unified: map[string]string{"pids.max": "8"},
	}))
	const seen = "20000 100000\n134217728\n8\n"
	one.waitFor(t, seen)
	one.says(t, look, seen)
	one.says(t, "grep -o 'MemTotal: *[0-9]*' /proc/meminfo | tr -s ' '", "MemTotal: 1048576\n")
	if got := p.memoryLimit(t); got != "167772160" {
		t.Errorf("memory limit of the sandbox: %s", got)
	}
	eventually(t, "the host holds the pod to its quota", func() error {
		one.exec(t, "for i in $(seq 20000); do :; done")
		if p.throttled(t) == 0 {
			return errors.New("never throttled")
		}
		return nil
	})
	if out, code := one.exec(t, "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done"); code == 0 || !strings.Contains(out, "fork") {
		t.Errorf("more processes than may be: %q, code %d", out, code)
	}

	two := p.run(t, look+"; "+forever, limits(&runtime.LinuxContainerResources{MemoryLimitInBytes: 64 * mib}))
	two.waitFor(t, "max 100000\n67108864\nmax\n")
	if got := p.memoryLimit(t); got != "234881024" {
		t.Errorf("memory limit of two containers: %s", got)
	}
	check(t, d.pods.StopContainer(ctx(t), two.id, 0))
	eventually(t, "a limit goes with its container", func() error {
		if got := p.memoryLimit(t); got != "167772160" {
			return errors.New(got)
		}
		return nil
	})
	p.create(t, forever) // has none
	if got, err := strconv.ParseUint(p.memoryLimit(t), 10, 64); err == nil && got < 1<<62 {
		t.Errorf("memory limit with a container that has none: %d", got)
	}
}

// TestUpdateResources changes what a container may use while it runs.
func TestUpdateResources(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	c := p.create(t, "cat /sys/fs/cgroup/memory.max; mkfifo /tmp/f; sleep 1000 </tmp/f & dd if=/dev/zero of=/tmp/f bs=40M count=1", limits(&runtime.LinuxContainerResources{
		CpuPeriod: 100_000, CpuQuota: 150_000, CpuShares: 204, MemoryLimitInBytes: 128 * mib,
	}))
	update := func(r *runtime.LinuxContainerResources) error {
		return d.pods.UpdateContainerResources(ctx(t), c.id, &runtime.ContainerResources{Linux: r})
	}
	check(t, update(&runtime.LinuxContainerResources{MemoryLimitInBytes: 256 * mib}))
	if s := c.status(t); s.Resources.Linux.MemoryLimitInBytes != 256*mib || s.Resources.Linux.CpuShares != 204 {
		t.Errorf("status before the start: %v", s.Resources)
	}
	check(t, d.pods.StartContainer(ctx(t), c.id))
	c.waitFor(t, "268435456\n")
	eventually(t, "the container uses memory", func() error {
		out, _ := c.exec(t, "cat /sys/fs/cgroup/memory.current")
		if n, _ := strconv.Atoi(strings.TrimSpace(out)); n < 40*mib {
			return errors.New(out)
		}
		return nil
	})
	check(t, update(&runtime.LinuxContainerResources{MemoryLimitInBytes: 512 * mib, CpuQuota: 50_000}))
	c.says(t, "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max", "536870912\n50000 100000\n")
	if got := p.memoryLimit(t); got != "536870912" {
		t.Errorf("memory limit of the sandbox: %s", got)
	}
	if got := p.held(t, "cpu", "cpu.cfs_quota_us", "cpu.max"); !strings.HasPrefix(got, "50000") {
		t.Errorf("quota of the sandbox: %s", got)
	}
	unchanged := c.status(t).Resources.String()
	for want, r := range map[string]*runtime.LinuxContainerResources{
		"memory_limit_in_bytes 20971520: it uses": {MemoryLimitInBytes: 20 * mib, CpuQuota: 20_000},
		"cpu_quota -2":             {CpuQuota: -2, MemoryLimitInBytes: 600 * mib},
		"memory_limit_in_bytes -1": {MemoryLimitInBytes: -1},
		`unified "io.weight"`:      {Unified: map[string]string{"io.weight": "1"}},
	} {
		code := codes.InvalidArgument
		if strings.Contains(want, "uses") {
			code = codes.FailedPrecondition
		}
		refused(t, update(r), code, want)
		if s := c.status(t); s.Resources.String() != unchanged || p.memoryLimit(t) != "536870912" {
			t.Errorf("%s: changed to %v, %s", want, s.Resources, p.memoryLimit(t))
		}
	}
	d.stop(t, unix.SIGKILL)
	d.start(t)
	if s := c.status(t); s.Resources.String() != unchanged {
		t.Errorf("after a restart: %v", s.Resources)
	}
	updatePod := func(memory int64) error {
		_, err := d.raw.UpdatePodSandboxResources(ctx(t), &runtime.UpdatePodSandboxResourcesRequest{
			PodSandboxId: p.id, Overhead: &runtime.LinuxContainerResources{MemoryLimitInBytes: 16 * mib}, Resources: &runtime.LinuxContainerResources{MemoryLimitInBytes: memory},
		})
		return err
	}
	check(t, updatePod(256*mib))
	refused(t, updatePod(20*mib), codes.FailedPrecondition, "memory limit of 37748736 bytes for the sandbox", "it uses")
	if got := p.memoryLimit(t); got != "285212672" {
		t.Errorf("memory limit of the sandbox, bounded by the pod: %s", got)
	}
}

// TestUpdateSavesAContainer has a container take more memory than it first might.
func TestUpdateSavesAContainer(t *testing.T) {
	d := newDaemon(t, noNetwork)
	take := func(p *pod) *container {
		return p.run(t, "read go </tmp/go; dd if=/dev/zero of=/dev/null bs=96M count=1", limits(&runtime.LinuxContainerResources{MemoryLimitInBytes: 64 * mib}),
			func(c *runtime.ContainerConfig) { c.Command[2] = "mkfifo /tmp/go; echo there; " + c.Command[2] })
	}
	for name, update := range map[string]bool{"low": false, "raised": true} {
		t.Run(name, func(t *testing.T) {
			c := take(d.runPod(t))
			c.waitFor(t, "there")
			if update {
				check(t, d.pods.UpdateContainerResources(ctx(t), c.id, &runtime.ContainerResources{Linux: &runtime.LinuxContainerResources{MemoryLimitInBytes: 256 * mib}}))
			}
			_, _, _ = d.pods.ExecSync(ctx(t), c.id, []string{"/bin/sh", "-c", "echo go >/tmp/go"}, patience)
			s := c.ended(t)
			if update && (s.ExitCode != 0 || s.Reason != "Completed") || !update && s.Reason != "OOMKilled" {
				t.Errorf("status: %v", s)
			}
			if !update && !strings.Contains(s.Message, fmt.Sprint("memory limit of ", 64*mib, " bytes")) {
				t.Errorf("message: %q", s.Message)
			}
		})
	}
}

// TestALimitBelowTheSandbox has containers run with less memory than their sandbox
// takes, and killed for what their programs take beyond.
func TestALimitBelowTheSandbox(t *testing.T) {
	d := newDaemon(t, noNetwork)
	small := func(c *runtime.ContainerConfig) {
		c.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 12 * mib, MemorySwapLimitInBytes: 12 * mib}
	}
	p := d.runPod(t)
	one, two := p.run(t, forever, small), p.run(t, forever, small)
	for _, c := range []*container{one, two} {
		c.says(t, "cat /sys/fs/cgroup/memory.max", "12582912\n")
	}
	hog := d.runPod(t).run(t, "dd if=/dev/zero of=/dev/null bs=48M", small)
	if s := hog.ended(t); s.ExitCode != 137 || s.Reason != "OOMKilled" || !strings.Contains(s.Message, "memory limit of 25165824 bytes") {
		t.Errorf("status: %v", s)
	}
}

// TestLayerSize has a container write no more to its root file system than it may.
func TestLayerSize(t *testing.T) {
	d := newDaemon(t, noNetwork+"[runtime.handlers.runsc]\nlayer_size = '16m'\n")
	p := d.runPod(t)
	one, two := p.run(t, forever), p.run(t, forever)
	one.says(t, "dd if=/dev/zero of=/file bs=1M count=12 2>/dev/null && echo fits", "fits\n")
	if out, code := one.exec(t, "dd if=/dev/zero of=/more bs=1M count=12"); code == 0 || !strings.Contains(out, "No space left") {
		t.Errorf("more than it may: %q, code %d", out, code)
	}
	two.says(t, "dd if=/dev/zero of=/file bs=1M count=12 2>/dev/null && echo fits", "fits\n")
	one.says(t, "rm /file /more; dd if=/dev/zero of=/file bs=1M count=12 2>/dev/null && echo fits", "fits\n")
}
