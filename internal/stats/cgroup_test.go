package stats

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// The trees in testdata are recorded, of a sandbox in a pod's cgroup: v1 with kernel
// 6.18; v2 with 6.1, after the sandbox had burnt CPU time under a limit and written 50
// MiB to a tmpfs, and the kernel had killed a process beside it for the pod's memory.
var (
	v1 = Cgroup{"testdata/v1", "testdata/v1/memory/kubepods/pod1/sandbox"}
	v2 = Cgroup{"testdata/v2", "testdata/v2/kubepods.slice/kubepods-pod1.slice/runscd-sandbox.scope"}
)

func TestCgroupOfAProcess(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"version 1", "9:memory:/a/b\n8:cpu,cpuacct:/c\n1:name=systemd:/d\n", "/cg/memory/a/b"},
		{"beside another", "9:hugetlb,memory:/a\n", "/cg/memory/a"},
		{"hybrid", "0::/unified\n9:memory:/a\n", "/cg/memory/a"},
		{"hybrid in another order", "9:memory:/a\n0::/unified\n", "/cg/memory/a"},
		{"version 2", "0::/kubepods.slice/x:y.scope\n", "/cg/kubepods.slice/x:y.scope"},
		{"version 1 without it", "8:cpu:/c\n", ""},
		{"nothing", "", ""},
		{"nonsense", "memory\n:\n", ""},
	} {
		got, err := cgroupIn("/cg", tt.text)
		if got.Memory != tt.want || (err == nil) == (tt.want == "") {
			t.Errorf("%s: %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}
	if _, err := CgroupOf("/sys/fs/cgroup", os.Getpid()); err != nil {
		t.Errorf("of this process: %v", err)
	}
}

func TestPaths(t *testing.T) {
	for c, want := range map[Cgroup][]string{
		v1:                        {"/kubepods/pod1/sandbox", "/kubepods/pod1", "/kubepods", "/", "/"},
		v2:                        {"/kubepods.slice/kubepods-pod1.slice/runscd-sandbox.scope", "/kubepods.slice/kubepods-pod1.slice", "/kubepods.slice", "/", "/"},
		{"/cg", "/cg/memory"}:     {"/", "/"},
		{"/cg", "/cg"}:            {"/", "/"},
		{"/cg", "/cg/memories/a"}: {"/memories/a", "/memories", "/"},
	} {
		for i, path := range want {
			if c.Path() != path {
				t.Errorf("path %d is %s, want %s", i, c.Path(), path)
			}
			c = c.Parent()
		}
	}
}

func TestFigures(t *testing.T) {
	for name, tt := range map[string]struct {
		cgroup          Cgroup
		want            Figures
		absent          []string
		workingSet, rss uint64
	}{
		"v1": {v1, Figures{
			"memory.current": 23834624, "memory.stat.anon": 19787776, "memory.stat.shmem": 1077248, "memory.stat.file": 1081344,
			"memory.stat.pgfault": 10432, "memory.stat.pgmajfault": 0, "memory.stat.file_mapped": 1064960, "memory.stat.kernel": 2715648,
			"memory.peak": 24375296, "memory.swap.current": 0, "memory.events.max": 0, "memory.events.oom_kill": 0,
			"cpu.stat.usage_usec": 169977, "cpu.stat.user_usec": 99991, "cpu.stat.system_usec": 63987, "cpu.stat.nr_periods": 0, "cpu.stat.throttled_usec": 0,
		}, []string{"memory.max", "memory.events.high", "memory.stat.pgscan"}, 23834624 - 12288, 19787776 + 1077248},
		"v2": {v2, Figures{
			"memory.current": 76677120, "memory.stat.anon": 22228992, "memory.stat.shmem": 52801536, "memory.stat.file": 52801536,
			"memory.stat.pgfault": 31860, "memory.stat.pgmajfault": 0, "memory.stat.pgscan": 0, "memory.stat.kernel": 1630208,
			"memory.peak": 134471680, "memory.swap.current": 0, "memory.events.max": 0, "memory.events.oom_kill": 1,
			"cpu.stat.usage_usec": 32629959, "cpu.stat.user_usec": 13625358, "cpu.stat.system_usec": 19004600,
			"cpu.stat.nr_periods": 558, "cpu.stat.nr_throttled": 530, "cpu.stat.throttled_usec": 56150472,
		}, []string{"memory.max"}, 76677120 - 0, 22228992 + 52801536},
	} {
		got, err := tt.cgroup.Figures(true)
		if err != nil {
			t.Fatal(err)
		}
		for figure, want := range tt.want {
			if v, ok := got[figure]; v != want || !ok {
				t.Errorf("%s: %s is %d, %t; want %d", name, figure, v, ok, want)
			}
		}
		for _, figure := range tt.absent {
			if v, ok := got[figure]; ok {
				t.Errorf("%s: %s is %d, want none", name, figure, v)
			}
		}
		brief, err := tt.cgroup.Figures(false)
		if err != nil {
			t.Fatal(err)
		}
		for figure, v := range brief {
			if v != got[figure] {
				t.Errorf("%s: %s is %d without detail", name, figure, v)
			}
		}
		if brief["cpu.stat.usage_usec"] == 0 || brief["memory.current"] == 0 || brief["memory.stat.anon"] == 0 || len(brief) >= len(got) {
			t.Errorf("%s: without detail %v", name, brief)
		}
		if got.WorkingSet() != tt.workingSet || got.RSS() != tt.rss {
			t.Errorf("%s: working set %d and RSS %d, want %d and %d", name, got.WorkingSet(), got.RSS(), tt.workingSet, tt.rss)
		}
	}
}

func TestCgroupThatIsGone(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []Cgroup{{dir, filepath.Join(dir, "memory/x")}, {dir, filepath.Join(dir, "x")}} {
		if f, err := c.Figures(true); !errdefs.IsNotFound(err) {
			t.Errorf("figures %v, %v", f, err)
		}
		if n, err := c.OOMKills(); !errdefs.IsNotFound(err) {
			t.Errorf("kills %d, %v", n, err)
		}
		if c.MemoryLimit() != 0 || c.Pressure("cpu") != nil {
			t.Errorf("limit %d, pressure %v", c.MemoryLimit(), c.Pressure("cpu"))
		}
	}
}

func TestMemoryLimit(t *testing.T) {
	for _, c := range []Cgroup{v1, v2} {
		if got := c.MemoryLimit(); got != 0 {
			t.Errorf("%s: limit %d, want none", c.Path(), got)
		}
		if got := c.Parent().MemoryLimit(); got != 128<<20 {
			t.Errorf("%s: limit %d", c.Parent().Path(), got)
		}
	}
}

func TestOOMKills(t *testing.T) {
	for c, want := range map[Cgroup]uint64{v1: 0, v2: 1} {
		if got, err := c.OOMKills(); got != want || err != nil {
			t.Errorf("%s: %d kills, %v; want %d", c.Path(), got, err, want)
		}
	}
}

func TestShortage(t *testing.T) {
	for c, want := range map[Cgroup]string{
		v1:                   "memory limit of 134217728 bytes of cgroup /kubepods/pod1",
		v2:                   "memory limit of 134217728 bytes of cgroup /kubepods.slice/kubepods-pod1.slice",
		v2.Parent().Parent(): "memory limit of 1073741824 bytes of cgroup /kubepods.slice",
	} {
		if got := c.Shortage(); got != want {
			t.Errorf("%s: %q, want %q", c.Path(), got, want)
		}
	}
	// Version 1 does not count that a limit of memory and swap together was met.
	swap := Cgroup{t.TempDir(), ""}
	swap.Memory = filepath.Join(swap.Root, "memory/pod")
	if err := os.MkdirAll(swap.Memory, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"limit_in_bytes": "4096\n", "max_usage_in_bytes": "4096\n", "failcnt": "0\n"} {
		if err := os.WriteFile(filepath.Join(swap.Memory, "memory."+name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := swap.Shortage(); got != "memory limit of 4096 bytes of cgroup /pod" {
		t.Errorf("%q", got)
	}
	// Where no limit was met, it was the machine's memory.
	root := t.TempDir()
	if err := errors.Join(os.CopyFS(root, os.DirFS("testdata/v2")),
		os.WriteFile(filepath.Join(root, "kubepods.slice/memory.events"), []byte("oom 0\n"), 0o600),
		os.WriteFile(filepath.Join(root, "kubepods.slice/kubepods-pod1.slice/memory.events"), []byte("oom 0\n"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	c := Cgroup{root, filepath.Join(root, strings.TrimPrefix(v2.Memory, v2.Root))}
	if got := c.Shortage(); got != "the node is out of memory" {
		t.Errorf("%q", got)
	}
}

func TestPressure(t *testing.T) {
	got := map[string]Pressure{}
	for _, resource := range []string{"cpu", "memory", "io"} {
		if p := v2.Pressure(resource); p != nil {
			got[resource] = *p
		}
		if p := v1.Pressure(resource); p != nil {
			t.Errorf("version 1: %v", p)
		}
	}
	want := map[string]Pressure{
		"cpu":    {Some: Stall{37.48, 35.6, 11.06, 36473001}, Full: Stall{32.36, 30.21, 9.33, 30711026}},
		"memory": {Some: Stall{0, 0, 0, 19042}, Full: Stall{0, 0, 0, 19042}},
		"io":     {},
	}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestFileSystemOf(t *testing.T) {
	f, err := FileSystemOf(t.TempDir())
	if err != nil || f.Bytes == 0 || f.Inodes < f.InodeFree {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err := FileSystemOf("/nosuch"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
}
