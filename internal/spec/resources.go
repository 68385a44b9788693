package spec

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/cpuset"
)

// maxResource leaves room for sums: an exbibyte. maxQuota does for a quota, in
// microseconds: a million CPUs.
const (
	maxResource = 1 << 60
	maxQuota    = 1 << 40
)

// unlimited is the kernel's word for it.
const unlimited = "max"

// sizes are the names of unified that are honoured as sizes in bytes: limits, or
// what is reserved.
var sizes = map[string]struct{ reserved bool }{
	"memory.min": {true}, "memory.low": {true}, "memory.high": {}, "memory.max": {}, "memory.swap.max": {},
}

var (
	pageSize = regexp.MustCompile(`^[1-9][0-9]{0,3}[KMG]B$`)
	// cpuList has numbers of four digits at most, and is not long to unfold.
	cpuList = regexp.MustCompile(`^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$`)
)

// CheckResources returns ErrInvalidArgument if a value has no meaning, and names
// the field.
func CheckResources(r *runtime.LinuxContainerResources) error {
	for _, field := range []struct {
		name            string
		value, min, max int64
	}{
		{"cpu_period", r.GetCpuPeriod(), 1000, 1e6}, // the kernel's own bounds, as of the quota
		{"cpu_quota", r.GetCpuQuota(), minQuota, maxQuota},
		{"cpu_shares", r.GetCpuShares(), 0, maxResource},
		{"memory_limit_in_bytes", r.GetMemoryLimitInBytes(), 0, maxResource},
		{"memory_swap_limit_in_bytes", r.GetMemorySwapLimitInBytes(), r.GetMemoryLimitInBytes(), maxResource},
		{"oom_score_adj", r.GetOomScoreAdj(), -1000, 1000},
	} {
		unset := field.value == 0 || field.value == -1 && (field.name == "cpu_quota" || field.name == "memory_swap_limit_in_bytes")
		if !unset && (field.value < field.min || field.value > field.max) {
			return fmt.Errorf("%s %d: %w", field.name, field.value, errdefs.ErrInvalidArgument)
		}
	}
	if swap := r.GetMemorySwapLimitInBytes(); swap > 0 && r.GetMemoryLimitInBytes() == 0 {
		return fmt.Errorf("memory_swap_limit_in_bytes %d without memory_limit_in_bytes: %w", swap, errdefs.ErrInvalidArgument)
	}
	for _, set := range []struct{ name, list string }{{"cpuset_cpus", r.GetCpusetCpus()}, {"cpuset_mems", r.GetCpusetMems()}} {
		ok := set.list == ""
		if cpuList.MatchString(set.list) { // before it is unfolded
			_, err := cpuset.Parse(set.list)
			ok = err == nil
		}
		if !ok {
			return fmt.Errorf("%s %q: no list of numbers: %w", set.name, set.list, errdefs.ErrInvalidArgument)
		}
	}
	for _, h := range r.GetHugepageLimits() {
		if !pageSize.MatchString(h.GetPageSize()) {
			return fmt.Errorf("hugepage_limits: page_size %q: %w", h.GetPageSize(), errdefs.ErrInvalidArgument)
		}
	}
	return checkUnified(r.GetUnified())
}

func checkUnified(unified map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(unified)) {
		value := unified[name]
		n, err := strconv.ParseUint(value, 10, 64)
		_, size := sizes[name]
		ok := false
		switch {
		case size:
			ok = value == unlimited || err == nil && n <= maxResource
		case name == "pids.max":
			ok = value == unlimited || err == nil && n > 0 && n <= maxPIDs
		case name == "memory.oom.group": // a sandbox is one in any case
			ok = value == "0" || value == "1"
		default:
			return fmt.Errorf("unified %q: nothing that a sandbox can be held to: %w", name, errdefs.ErrInvalidArgument)
		}
		if !ok {
			return fmt.Errorf("unified %q: %q: %w", name, value, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// maxPIDs is the kernel's.
const maxPIDs = 1 << 22

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
