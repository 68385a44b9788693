package spec

import (
	"cmp"
	"fmt"
	"maps"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/cpuset"

	"github.com/runscd/runscd/internal/limit"
)

// cpuTime is the CPU time in a second, in microseconds: the name of the amount
// that is no size.
const cpuTime = "cpu"

// amounts are what resources limit, by the names of cgroup version 2.
func amounts(r *runtime.LinuxContainerResources) map[string]int64 {
	a := map[string]int64{}
	if quota := r.GetCpuQuota(); quota > 0 {
		p := period(r)
		a[cpuTime] = (quota*1e6 + p - 1) / p
	}
	if memory := r.GetMemoryLimitInBytes(); memory > 0 {
		a["memory.max"] = memory
		if swap := r.GetMemorySwapLimitInBytes(); swap > 0 { // and memory
			a["memory.swap.max"] = swap - memory
		}
	}
	for _, h := range r.GetHugepageLimits() {
		a["hugetlb."+h.GetPageSize()+".max"] = int64(min(h.GetLimit(), maxResource))
	}
	for name, value := range r.GetUnified() {
		if _, ok := sizes[name]; ok {
			delete(a, name)
			if value != unlimited {
				a[name], _ = strconv.ParseInt(value, 10, 64) // see CheckResources
			}
		}
	}
	return a
}

// What the kernel has where nothing is said, and the least quota that it takes;
// times in microseconds.
const (
	defaultShares = 1024
	defaultPeriod = 100_000
	minQuota      = 1000
)

// maxCPUTime leaves room for a product with a period: four million CPUs.
const maxCPUTime = 1 << 42

func period(r *runtime.LinuxContainerResources) int64 { return cmp.Or(r.GetCpuPeriod(), defaultPeriod) }

// PodLimits returns the limits of a sandbox: the sum of its containers' and the
// overhead.
//
// What one container does not limit the sandbox does not. Then what is said of the
// pod is no limit either, for the kubelet's sum leaves out containers without a
// limit. Where none has one the pod's is the limit. Where all have, it bounds the sum
// if it is binding: said after the pod was made, for what was said then is old when
// containers are changed.
func PodLimits(overhead, pod *runtime.LinuxContainerResources, containers []*runtime.LinuxContainerResources, binding bool) limit.Limits {
	of := containers
	if len(of) == 0 {
		of = []*runtime.LinuxContainerResources{pod}
	}
	l := limit.Limits{Shares: uint64(overhead.GetCpuShares()), Sizes: map[string]int64{}}
	for _, r := range of {
		l.Period = max(l.Period, period(r))
	}
	names, parts := amounts(pod), make([]map[string]int64, len(containers))
	for i, c := range containers {
		parts[i] = amounts(c)
		maps.Copy(names, parts[i])
	}
	more, bounds := amounts(overhead), amounts(pod)
	for name := range names {
		sum, ok := together(name, parts)
		if bound, bounded := bounds[name]; bounded && (!ok && sum == 0 || ok && binding && bound < sum) {
			sum, ok = bound, true
		}
		switch {
		case !ok:
		case name == cpuTime:
			l.Quota = max(min(sum+more[name], maxCPUTime)*l.Period/1e6, minQuota)
		default:
			l.Sizes[name] = min(sum+more[name], maxResource)
		}
	}
	for _, c := range containers {
		l.Shares += uint64(cmp.Or(c.GetCpuShares(), defaultShares))
	}
	if len(containers) == 0 {
		l.Shares += uint64(pod.GetCpuShares())
	}
	l.CPUs = setUnion(of, (*runtime.LinuxContainerResources).GetCpusetCpus)
	l.Mems = setUnion(of, (*runtime.LinuxContainerResources).GetCpusetMems)
	return l
}

// together is the sum of one amount, false for no limit; -1 if only some containers
// have a limit.
func together(name string, containers []map[string]int64) (sum int64, limited bool) {
	n := 0
	for _, c := range containers {
		if v, ok := c[name]; ok {
			sum = min(sum+v, maxResource)
			n++
		}
	}
	if n > 0 && n < len(containers) && !sizes[name].reserved {
		return -1, false
	}
	return sum, n > 0
}

// setUnion is the set of what any container may use, "" if one has no set of its own.
func setUnion(containers []*runtime.LinuxContainerResources, list func(*runtime.LinuxContainerResources) string) string {
	all := cpuset.New()
	for _, c := range containers {
		set, err := cpuset.Parse(list(c))
		if err != nil || set.IsEmpty() {
			return ""
		}
		all = all.Union(set)
	}
	return all.String()
}

// OwnLimits are the control files by which a container sees its own limits in the
// sandbox, and what they have. Of them pids.max is enforced there.
func OwnLimits(r *runtime.LinuxContainerResources) map[string]string {
	l := PodLimits(nil, nil, []*runtime.LinuxContainerResources{r}, false)
	files := map[string]string{"memory.max": unlimited, "memory.high": unlimited, "pids.max": unlimited}
	for name := range files {
		if size, ok := l.Sizes[name]; ok {
			files[name] = strconv.FormatInt(size, 10)
		}
	}
	if pids := r.GetUnified()["pids.max"]; pids != "" {
		files["pids.max"] = pids
	}
	quota := unlimited
	if l.Quota > 0 {
		quota = strconv.FormatInt(l.Quota, 10)
	}
	files["cpu.max"] = fmt.Sprint(quota, " ", l.Period)
	files["cpu.weight"] = strconv.FormatUint(l.Weight(), 10)
	return files
}

// MergeResources returns resources with those of a change in place of the old. What
// the change does not name stays, the swap beyond the memory too.
func MergeResources(old, change *runtime.LinuxContainerResources) *runtime.LinuxContainerResources {
	merged := &runtime.LinuxContainerResources{}
	proto.Merge(merged, old)
	if len(change.GetHugepageLimits()) > 0 {
		merged.HugepageLimits = nil
	}
	proto.Merge(merged, change)
	if merged.MemorySwapLimitInBytes > 0 && change.GetMemorySwapLimitInBytes() == 0 {
		merged.MemorySwapLimitInBytes += merged.MemoryLimitInBytes - old.GetMemoryLimitInBytes()
	}
	return merged
}

// sandboxResources are what runsc holds the sandbox's cgroup to when it makes that,
// and shows in the sandbox as its CPUs and memory for good: the limits that are said
// of the pod or, below a cgroup_parent, those of that. The kubelet's sums leave out
// containers without a limit, but what it has made has the right one. From the first
// container on PodLimits hold.
func sandboxResources(cfg *runtime.LinuxPodSandboxConfig, above limit.Limits) (*specs.LinuxResources, error) {
	pod, overhead := cfg.GetResources(), cfg.GetOverhead()
	if err := CheckResources(pod); err != nil {
		return nil, fmt.Errorf("resources: %w", err)
	}
	if err := CheckResources(overhead); err != nil {
		return nil, fmt.Errorf("overhead: %w", err)
	}
	l := PodLimits(overhead, pod, nil, false)
	if cfg.GetCgroupParent() != "" {
		l.Quota, l.Period, l.Sizes = above.Quota, above.Period, above.Sizes
	}
	cpu := specs.LinuxCPU{Cpus: l.CPUs, Mems: l.Mems}
	if l.Shares > 0 {
		cpu.Shares = &l.Shares
	}
	if l.Quota > 0 {
		cpu.Quota, cpu.Period = &l.Quota, new(uint64(l.Period))
	}
	r := &specs.LinuxResources{}
	if cpu != (specs.LinuxCPU{}) {
		r.CPU = &cpu
	}
	if memory, ok := l.Sizes["memory.max"]; ok {
		r.Memory = &specs.LinuxMemory{Limit: &memory}
	}
	return r, nil
}
