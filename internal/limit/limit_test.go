package limit

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// tree makes files with a content in a directory.
func tree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// has checks the contents of files.
func has(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
}

// pod are limits of all kinds.
var pod = Limits{
	Shares: 512, Quota: 150_000, Period: 50_000, CPUs: "0-1,3", Mems: "0",
	Sizes: map[string]int64{
		"memory.max": 128 << 20, "memory.swap.max": 32 << 20, "memory.high": 100 << 20, "memory.min": 64 << 20,
		"hugetlb.2MB.max": 4 << 20,
	},
}

func TestVersion2(t *testing.T) {
	dir := t.TempDir()
	c := Cgroup{Dir: func(string) string { return dir }}
	tree(t, dir, map[string]string{
		"cpu.weight": "100", "cpu.max": "max 100000", "cpuset.cpus": "", "cpuset.mems": "",
		"memory.min": "0", "memory.low": "1", "memory.high": "max", "memory.max": "max", "memory.swap.max": "max",
		"hugetlb.2MB.max": "max", "hugetlb.1GB.max": "0", "hugetlb.2MB.rsvd.max": "max",
	})
	if err := c.Set(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	has(t, dir, map[string]string{
		"cpu.weight": "20", "cpu.max": "150000 50000", "cpuset.cpus": "0-1,3", "cpuset.mems": "0",
		"memory.min": "67108864", "memory.low": "0", "memory.high": "104857600", "memory.max": "134217728", "memory.swap.max": "33554432",
		"hugetlb.2MB.max": "4194304", "hugetlb.1GB.max": "max", "hugetlb.2MB.rsvd.max": "max",
	})
	if err := c.Set(t.Context(), Limits{}); err != nil {
		t.Fatal(err)
	}
	has(t, dir, map[string]string{
		"cpu.weight": "100", "cpu.max": "max 100000", "cpuset.cpus": "", "cpuset.mems": "",
		"memory.min": "0", "memory.high": "max", "memory.max": "max", "memory.swap.max": "max", "hugetlb.2MB.max": "max",
	})
}

func TestVersion1(t *testing.T) {
	root := t.TempDir()
	c := Cgroup{Dir: func(controller string) string { return filepath.Join(root, controller, "pod", "s") }, Legacy: true}
	tree(t, root, map[string]string{
		"cpu/pod/s/cpu.shares": "1024", "cpu/pod/s/cpu.cfs_quota_us": "-1", "cpu/pod/s/cpu.cfs_period_us": "100000",
		"cpuset/pod/cpuset.cpus": "0-7", "cpuset/pod/cpuset.mems": "0-1", "cpuset/pod/s/cpuset.cpus": "0-7", "cpuset/pod/s/cpuset.mems": "0-1",
		"memory/pod/s/memory.limit_in_bytes": "9223372036854771712", "memory/pod/s/memory.memsw.limit_in_bytes": "9223372036854771712",
		"hugetlb/pod/s/hugetlb.2MB.limit_in_bytes": "9223372036854771712",
	})
	if err := c.Set(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	has(t, root, map[string]string{
		"cpu/pod/s/cpu.shares": "512", "cpu/pod/s/cpu.cfs_quota_us": "150000", "cpu/pod/s/cpu.cfs_period_us": "50000",
		"cpuset/pod/s/cpuset.cpus": "0-1,3", "cpuset/pod/s/cpuset.mems": "0",
		"memory/pod/s/memory.limit_in_bytes": "134217728", "memory/pod/s/memory.memsw.limit_in_bytes": "167772160",
		"hugetlb/pod/s/hugetlb.2MB.limit_in_bytes": "4194304",
	})
	if got := c.Of(); got.Quota != pod.Quota || got.Period != pod.Period || got.Sizes["memory.max"] != 128<<20 {
		t.Errorf("limits read: %v", got)
	}
	if err := c.Set(t.Context(), Limits{}); err != nil {
		t.Fatal(err)
	}
	has(t, root, map[string]string{
		"cpu/pod/s/cpu.shares": "1024", "cpu/pod/s/cpu.cfs_quota_us": "-1",
		"cpuset/pod/s/cpuset.cpus": "0-7", "cpuset/pod/s/cpuset.mems": "0-1",
		"memory/pod/s/memory.limit_in_bytes": "-1", "memory/pod/s/memory.memsw.limit_in_bytes": "-1",
		"hugetlb/pod/s/hugetlb.2MB.limit_in_bytes": "-1",
	})
	if got := c.Of(); got.Quota != 0 || len(got.Sizes) != 0 {
		t.Errorf("limits read where there are none: %v", got)
	}
}

// TestWhatAKernelDoesNotHave has a kernel without swap, without controllers of sets
// of CPUs and of huge pages. That matters only to who wants a set of CPUs.
func TestWhatAKernelDoesNotHave(t *testing.T) {
	dir := t.TempDir()
	c := Cgroup{Dir: func(string) string { return dir }}
	tree(t, dir, map[string]string{
		"cpu.weight": "100", "cpu.max": "max 100000", "memory.min": "0", "memory.low": "0", "memory.high": "max", "memory.max": "max",
	})
	l := Limits{Sizes: map[string]int64{"memory.max": 1 << 20, "memory.swap.max": 0, "hugetlb.2MB.max": 0}}
	if err := c.Set(t.Context(), l); err != nil {
		t.Error(err)
	}
	has(t, dir, map[string]string{"memory.max": "1048576"})
	l.CPUs = "1"
	if err := c.Set(t.Context(), l); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "cpuset.cpus") {
		t.Errorf("a set of CPUs: %v", err)
	}
	c.Dir = func(string) string { return filepath.Join(dir, "gone") }
	if err := c.Set(t.Context(), l); !errdefs.IsNotFound(err) {
		t.Errorf("a cgroup that is gone: %v", err)
	}
}

func TestWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 100, 1: 1, 2: 1, 1024: 39, 262144: 10000, 1 << 40: 10000} {
		if got := (Limits{Shares: shares}).Weight(); got != want {
			t.Errorf("%d shares: weight %d, want %d", shares, got, want)
		}
	}
}

func TestUnitProperties(t *testing.T) {
	for _, tt := range []struct {
		limits Limits
		want   map[string]string
	}{
		{pod, map[string]string{
			"CPUWeight": "@t 20", "CPUQuotaPeriodUSec": "@t 50000", "CPUQuotaPerSecUSec": "@t 3000000",
			"MemoryMin": "@t 67108864", "MemoryLow": "@t 0", "MemoryHigh": "@t 104857600", "MemoryMax": "@t 134217728", "MemorySwapMax": "@t 33554432",
			"AllowedCPUs": "@ay [0xb]", "AllowedMemoryNodes": "@ay [0x1]",
		}},
		{Limits{Quota: 33_333, Period: 100_000, CPUs: "9"}, map[string]string{
			"CPUWeight": "@t 100", "CPUQuotaPeriodUSec": "@t 100000", "CPUQuotaPerSecUSec": "@t 340000",
			"MemoryMax": "@t 18446744073709551615", "MemorySwapMax": "@t 18446744073709551615", "AllowedCPUs": "@ay [0x0, 0x2]",
			"AllowedMemoryNodes": "@ay []",
		}},
		{Limits{}, map[string]string{"CPUQuotaPerSecUSec": "@t 18446744073709551615", "AllowedCPUs": "@ay []"}},
	} {
		properties, err := tt.limits.properties()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, p := range properties {
			got[p.Name] = p.Value.String()
		}
		for name, want := range tt.want {
			if got[name] != want {
				t.Errorf("%v: %s is %s, want %s", tt.limits, name, got[name], want)
			}
		}
	}
	if _, err := (Limits{CPUs: "x"}).properties(); err == nil {
		t.Error("no list of CPUs, and no error")
	}
}
