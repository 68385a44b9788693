package spec

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxResource leaves room for sums: an exbibyte, or as many microseconds.
const maxResource = 1 << 60

// CheckResources returns ErrInvalidArgument if a value has no meaning, and names
// the field.
func CheckResources(r *runtime.LinuxContainerResources) error {
	for _, field := range []struct {
		name            string
		value, min, max int64
	}{
		{"cpu_period", r.GetCpuPeriod(), 0, 1e6}, // one second, the kernel's own bound
		{"cpu_quota", r.GetCpuQuota(), -1, maxResource},
		{"cpu_shares", r.GetCpuShares(), 0, maxResource},
		{"memory_limit_in_bytes", r.GetMemoryLimitInBytes(), 0, maxResource},
		{"memory_swap_limit_in_bytes", r.GetMemorySwapLimitInBytes(), -1, maxResource},
		{"oom_score_adj", r.GetOomScoreAdj(), -1000, 1000},
	} {
		if field.value < field.min || field.value > field.max {
			return fmt.Errorf("%s %d: %w", field.name, field.value, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// sandboxResources are the limits of the sandbox's cgroup: the sum of the pod's
// containers and its overhead.
//
// Below a cgroup_parent only the CPU shares are of use. The kubelet's sums leave
// out containers without a limit, so that a pod of one container with a limit of
// 50 MB and one without any says 50 MB; but the cgroup that it made for the pod,
// which the parent is, has the right limit or none.
//
// Huge pages, unified values and cpusets are left to the parent as well. Not nil
// even if empty: `runsc update` of a sandbox relies on it.
func sandboxResources(cfg *runtime.LinuxPodSandboxConfig) (*specs.LinuxResources, error) {
	pod, overhead := cfg.GetResources(), cfg.GetOverhead()
	if err := CheckResources(pod); err != nil {
		return nil, fmt.Errorf("resources: %w", err)
	}
	if err := CheckResources(overhead); err != nil {
		return nil, fmt.Errorf("overhead: %w", err)
	}
	limits := &specs.LinuxResources{}
	cpu := &specs.LinuxCPU{}
	if shares := uint64(pod.GetCpuShares()) + uint64(overhead.GetCpuShares()); shares > 0 {
		cpu.Shares = &shares
		limits.CPU = cpu
	}
	if cfg.GetCgroupParent() != "" {
		return limits, nil
	}
	// An overhead alone is no limit of the pod.
	if quota, period := pod.GetCpuQuota(), uint64(pod.GetCpuPeriod()); quota > 0 && period > 0 {
		if overhead.GetCpuPeriod() == pod.GetCpuPeriod() {
			quota += max(overhead.GetCpuQuota(), 0)
		}
		cpu.Quota, cpu.Period = &quota, &period
		limits.CPU = cpu
	}
	if memory := pod.GetMemoryLimitInBytes(); memory > 0 {
		memory += overhead.GetMemoryLimitInBytes()
		limits.Memory = &specs.LinuxMemory{Limit: &memory}
	}
	return limits, nil
}

// MinOOMScoreAdj returns the lowest oom_score_adj that this process may give to
// another one: its own, if it lacks CAP_SYS_RESOURCE.
func MinOOMScoreAdj() (int, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return -1000, nil
	}
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(bytes.TrimSpace(b)))
}
