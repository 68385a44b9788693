package spec

import (
	"maps"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/limit"
)

type resources = runtime.LinuxContainerResources

const mib = 1 << 20

func TestPodLimits(t *testing.T) {
	sizes := func(name string, size int64) map[string]int64 { return map[string]int64{name: size} }
	cpu := func(quota, period int64) *resources { return &resources{CpuQuota: quota, CpuPeriod: period} }
	for name, tt := range map[string]struct {
		overhead, pod *resources
		containers    []*resources
		want          limit.Limits
	}{
		"nothing said":   {want: limit.Limits{Period: 100_000}},
		"no container":   {overhead: &resources{CpuShares: 2, MemoryLimitInBytes: mib}, pod: &resources{CpuShares: 100, MemoryLimitInBytes: 5 * mib}, want: limit.Limits{Shares: 102, Period: 100_000, Sizes: sizes("memory.max", 6*mib)}},
		"overhead alone": {overhead: &resources{MemoryLimitInBytes: mib}, want: limit.Limits{Period: 100_000}},
		"sum": {
			overhead:   &resources{CpuQuota: 5000, MemoryLimitInBytes: mib, CpuShares: 10},
			containers: []*resources{{CpuQuota: 20_000, CpuPeriod: 100_000, MemoryLimitInBytes: 2 * mib, CpuShares: 100}, {CpuQuota: 1000, CpuPeriod: 10_000, MemoryLimitInBytes: 3 * mib}},
			want:       limit.Limits{Shares: 1134, Quota: 35_000, Period: 100_000, Sizes: sizes("memory.max", 6*mib)},
		},
		"one has no limit":   {pod: &resources{MemoryLimitInBytes: 2 * mib}, containers: []*resources{{MemoryLimitInBytes: 2 * mib}, {}}, want: limit.Limits{Shares: 2048, Period: 100_000}},
		"none has a limit":   {pod: &resources{MemoryLimitInBytes: 2 * mib}, containers: []*resources{{}, nil}, want: limit.Limits{Shares: 2048, Period: 100_000, Sizes: sizes("memory.max", 2*mib)}},
		"not by what is old": {pod: &resources{MemoryLimitInBytes: 2 * mib}, containers: []*resources{{MemoryLimitInBytes: 3 * mib}}, want: limit.Limits{Shares: 1024, Period: 100_000, Sizes: sizes("memory.max", 3*mib)}},
		"bounded, not all":   {pod: &resources{MemoryLimitInBytes: 2 * mib}, containers: []*resources{{MemoryLimitInBytes: 2 * mib}, {}}, want: limit.Limits{Shares: 2048, Period: 100_000}},
		"bounded by the pod": {pod: &resources{MemoryLimitInBytes: 2 * mib}, containers: []*resources{{MemoryLimitInBytes: 3 * mib}}, want: limit.Limits{Shares: 1024, Period: 100_000, Sizes: sizes("memory.max", 2*mib)}},
		"no overflow of another": {
			containers: []*resources{cpu(1<<40, 1000), cpu(1000, 1_000_000)},
			want:       limit.Limits{Shares: 2048, Quota: 1 << 42, Period: 1_000_000},
		},
		"period of the only one": {containers: []*resources{cpu(10_007, 30_000)}, want: limit.Limits{Shares: 1024, Quota: 10_007, Period: 30_000}},
		"quota without a period": {containers: []*resources{cpu(10_000, 0)}, want: limit.Limits{Shares: 1024, Quota: 10_000, Period: 100_000}},
		"quota lifted":           {containers: []*resources{cpu(-1, 100_000)}, want: limit.Limits{Shares: 1024, Period: 100_000}},
		"the kernel's least":     {containers: []*resources{cpu(1000, 1_000_000), {}}, want: limit.Limits{Shares: 2048, Period: 1_000_000}},
		"no overflow": {
			containers: []*resources{{MemoryLimitInBytes: 1 << 60, CpuQuota: 1 << 40, CpuPeriod: 1000}, {MemoryLimitInBytes: 1 << 60, CpuQuota: 1 << 40, CpuPeriod: 1000}},
			want:       limit.Limits{Shares: 2048, Quota: (1 << 42) / 1000, Period: 1000, Sizes: sizes("memory.max", 1<<60)},
		},
		"swap": {
			containers: []*resources{{MemoryLimitInBytes: mib, MemorySwapLimitInBytes: mib}, {MemoryLimitInBytes: mib, MemorySwapLimitInBytes: 3 * mib}},
			want:       limit.Limits{Shares: 2048, Period: 100_000, Sizes: map[string]int64{"memory.max": 2 * mib, "memory.swap.max": 2 * mib}},
		},
		"unified": {
			containers: []*resources{
				{Unified: map[string]string{"memory.high": "1000", "memory.min": "7", "memory.low": "3", "memory.oom.group": "1", "pids.max": "5", "memory.swap.max": "0"}},
				{Unified: map[string]string{"memory.high": "max", "memory.min": "2", "memory.swap.max": "0"}},
			},
			want: limit.Limits{Shares: 2048, Period: 100_000, Sizes: map[string]int64{"memory.min": 9, "memory.low": 3, "memory.swap.max": 0}},
		},
		"huge pages": {
			containers: []*resources{{HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 4 * mib}, {PageSize: "1GB"}}}, {HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 2 * mib}, {PageSize: "1GB"}}}},
			want:       limit.Limits{Shares: 2048, Period: 100_000, Sizes: map[string]int64{"hugetlb.2MB.max": 6 * mib, "hugetlb.1GB.max": 0}},
		},
		"sets of CPUs":      {containers: []*resources{{CpusetCpus: "0-1", CpusetMems: "0"}, {CpusetCpus: "1,4"}}, want: limit.Limits{Shares: 2048, Period: 100_000, CPUs: "0-1,4"}},
		"the set of a pod":  {pod: &resources{CpusetCpus: "2"}, want: limit.Limits{Period: 100_000, CPUs: "2"}},
		"no set of a third": {containers: []*resources{{CpusetCpus: "0"}, {}}, want: limit.Limits{Shares: 2048, Period: 100_000}},
	} {
		got := PodLimits(tt.overhead, tt.pod, tt.containers, strings.HasPrefix(name, "bounded"))
		if got.Shares != tt.want.Shares || got.Quota != tt.want.Quota || got.Period != tt.want.Period || got.CPUs != tt.want.CPUs || got.Mems != tt.want.Mems || !maps.Equal(got.Sizes, tt.want.Sizes) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

func TestCheckResources(t *testing.T) {
	for want, r := range map[string]*resources{
		"cpu_period 999":                                 {CpuPeriod: 999},
		"cpu_period 1000001":                             {CpuPeriod: 1_000_001},
		"cpu_quota -2":                                   {CpuQuota: -2},
		"cpu_quota 999":                                  {CpuQuota: 999},
		"cpu_quota 9223372036854775807":                  {CpuQuota: 1<<63 - 1},
		"cpu_shares -1":                                  {CpuShares: -1},
		"memory_limit_in_bytes -1":                       {MemoryLimitInBytes: -1},
		"memory_limit_in_bytes 9223372036854775807":      {MemoryLimitInBytes: 1<<63 - 1},
		"memory_swap_limit_in_bytes -2":                  {MemorySwapLimitInBytes: -2},
		"memory_swap_limit_in_bytes 5":                   {MemorySwapLimitInBytes: 5, MemoryLimitInBytes: 6},
		"memory_swap_limit_in_bytes 7 without":           {MemorySwapLimitInBytes: 7},
		"oom_score_adj 1001":                             {OomScoreAdj: 1001},
		`cpuset_cpus "0-4294967295"`:                     {CpusetCpus: "0-4294967295"},
		`cpuset_cpus "1-"`:                               {CpusetCpus: "1-"},
		`cpuset_mems "a"`:                                {CpusetMems: "a"},
		`page_size "../x"`:                               {HugepageLimits: []*runtime.HugepageLimit{{PageSize: "../x"}}},
		`unified "io.max"`:                               {Unified: map[string]string{"io.max": "1"}},
		`unified "../memory.max"`:                        {Unified: map[string]string{"../memory.max": "1"}},
		`unified "memory.high": "-1"`:                    {Unified: map[string]string{"memory.high": "-1"}},
		`unified "pids.max": "0"`:                        {Unified: map[string]string{"pids.max": "0"}},
		`unified "memory.min": "99999999999999999999999`: {Unified: map[string]string{"memory.min": "99999999999999999999999"}},
	} {
		if err := CheckResources(r); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", r, err, want)
		}
	}
	if err := CheckResources(&resources{
		CpuPeriod: 100_000, CpuQuota: -1, CpuShares: 2, MemoryLimitInBytes: 6 * mib, MemorySwapLimitInBytes: -1, OomScoreAdj: -999, CpusetCpus: "0-3,8", CpusetMems: "0",
		HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB", Limit: 1 << 63}},
		Unified:        map[string]string{"memory.high": "max", "memory.min": "0", "memory.oom.group": "1", "memory.swap.max": "0", "pids.max": "max"},
	}); err != nil {
		t.Error(err)
	}
}

func TestMergeResources(t *testing.T) {
	old := &resources{
		CpuQuota: 1000, CpuPeriod: 2000, MemoryLimitInBytes: 5 * mib, MemorySwapLimitInBytes: 6 * mib,
		HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 1}}, Unified: map[string]string{"memory.high": "1", "pids.max": "2"},
	}
	before := proto.CloneOf(old)
	got := MergeResources(old, &resources{
		CpuQuota: -1, MemoryLimitInBytes: 9 * mib, HugepageLimits: []*runtime.HugepageLimit{{PageSize: "1GB"}}, Unified: map[string]string{"memory.high": "3"},
	})
	want := &resources{
		CpuQuota: -1, CpuPeriod: 2000, MemoryLimitInBytes: 9 * mib, MemorySwapLimitInBytes: 10 * mib,
		HugepageLimits: []*runtime.HugepageLimit{{PageSize: "1GB"}}, Unified: map[string]string{"memory.high": "3", "pids.max": "2"},
	}
	if !proto.Equal(got, want) || !proto.Equal(old, before) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := MergeResources(nil, &resources{CpuShares: 5}); got.CpuShares != 5 {
		t.Errorf("of nothing: %v", got)
	}
}

func TestOwnLimits(t *testing.T) {
	for _, tt := range []struct {
		r    *resources
		want map[string]string
	}{
		{nil, map[string]string{"memory.max": "max", "memory.high": "max", "pids.max": "max", "cpu.max": "max 100000", "cpu.weight": "39"}},
		{&resources{CpuQuota: 50_000, CpuPeriod: 200_000, CpuShares: 2, MemoryLimitInBytes: mib, Unified: map[string]string{"pids.max": "9", "memory.high": "4096"}},
			map[string]string{"memory.max": "1048576", "memory.high": "4096", "pids.max": "9", "cpu.max": "50000 200000", "cpu.weight": "1"}},
	} {
		if got := OwnLimits(tt.r); !maps.Equal(got, tt.want) {
			t.Errorf("%v: %v, want %v", tt.r, got, tt.want)
		}
	}
}
