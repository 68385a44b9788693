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

// CheckResources returns ErrInvalidArgument if a value has no meaning, and names
// the field.
func CheckResources(r *runtime.LinuxContainerResources) error {
	for _, field := range []struct {
		name       string
		value, min int64
	}{
		{"cpu_period", r.GetCpuPeriod(), 0},
		{"cpu_quota", r.GetCpuQuota(), -1},
		{"cpu_shares", r.GetCpuShares(), 0},
		{"memory_limit_in_bytes", r.GetMemoryLimitInBytes(), 0},
		{"memory_swap_limit_in_bytes", r.GetMemorySwapLimitInBytes(), -1},
		{"oom_score_adj", r.GetOomScoreAdj(), -1000},
	} {
		if field.value < field.min {
			return fmt.Errorf("%s %d: %w", field.name, field.value, errdefs.ErrInvalidArgument)
		}
	}
	if v := r.GetOomScoreAdj(); v > 1000 {
		return fmt.Errorf("oom_score_adj %d: %w", v, errdefs.ErrInvalidArgument)
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
	sum := &runtime.LinuxContainerResources{}
	for i, r := range []*runtime.LinuxContainerResources{cfg.GetResources(), cfg.GetOverhead()} {
		if err := CheckResources(r); err != nil {
			return nil, fmt.Errorf("%s: %w", []string{"resources", "overhead"}[i], err)
		}
		sum.CpuShares += r.GetCpuShares()
		sum.CpuQuota += max(r.GetCpuQuota(), 0)
		sum.CpuPeriod = max(sum.CpuPeriod, r.GetCpuPeriod())
		sum.MemoryLimitInBytes += r.GetMemoryLimitInBytes()
	}
	limits := &specs.LinuxResources{}
	cpu := &specs.LinuxCPU{}
	if sum.CpuShares > 0 {
		shares := uint64(sum.CpuShares)
		cpu.Shares = &shares
		limits.CPU = cpu
	}
	if cfg.GetCgroupParent() != "" {
		return limits, nil
	}
	// An overhead alone is no limit of the pod.
	if cfg.GetResources().GetCpuQuota() > 0 && sum.CpuPeriod > 0 {
		period := uint64(sum.CpuPeriod)
		cpu.Quota, cpu.Period = &sum.CpuQuota, &period
		limits.CPU = cpu
	}
	if cfg.GetResources().GetMemoryLimitInBytes() > 0 {
		limits.Memory = &specs.LinuxMemory{Limit: &sum.MemoryLimitInBytes}
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
