// Package stats has the figures of what pods use, and their arithmetic.
//
// What it keeps true: a figure is what the kernel or the sandbox has counted, or
// it is not there; there are no estimates and no zeros in place of the unknown.
// Both cgroup versions are read into the names of version 2. Nothing is sampled
// unasked.
package stats

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Cgroup is a cgroup of the host.
type Cgroup struct {
	// Root is where the hierarchy of version 2 is mounted, or below what those of
	// version 1 are.
	Root string
	// Memory is the directory of the cgroup, in version 1 that of its memory
	// controller.
	Memory string
}

// CgroupOf returns the cgroup of a process of the host.
func CgroupOf(root string, pid int) (Cgroup, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return Cgroup{}, err
	}
	return cgroupIn(root, string(text))
}

// cgroupIn reads /proc/<pid>/cgroup: "n:controllers:path" a line, where
// version 2 has the one line "0::path".
func cgroupIn(root, text string) (Cgroup, error) {
	unified := ""
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		for _, controller := range strings.Split(fields[1], ",") {
			if controller == "memory" {
				return Cgroup{root, filepath.Join(root, "memory", fields[2])}, nil
			}
		}
		if fields[0] == "0" {
			unified = filepath.Join(root, fields[2])
		}
	}
	if unified == "" {
		return Cgroup{}, errors.New("no memory cgroup")
	}
	return Cgroup{root, unified}, nil
}

// Path is the cgroup's path in its hierarchy.
func (c Cgroup) Path() string {
	path, ok := c.legacy()
	if !ok {
		path = strings.TrimPrefix(c.Memory, c.Root)
	}
	return filepath.Join("/", path)
}

// Parent returns the cgroup above; the root's is itself.
func (c Cgroup) Parent() Cgroup {
	if c.Path() == "/" {
		return c
	}
	return Cgroup{c.Root, filepath.Dir(c.Memory)}
}

// legacy returns the path in the hierarchies of version 1, if it is one of these.
func (c Cgroup) legacy() (path string, ok bool) {
	if c.Memory == filepath.Join(c.Root, "memory") {
		return "", true
	}
	return strings.CutPrefix(c.Memory, filepath.Join(c.Root, "memory")+"/")
}

// Figures are what the kernel counts for a cgroup: by the file and its field in
// version 2, such as "memory.current" and "memory.stat.anon". Times are in
// microseconds, sizes in bytes. What this kernel does not count is not there, and
// neither is a limit that is not set.
type Figures map[string]uint64

// WorkingSet is the memory that cannot be taken away without harm: all but the file
// cache that has not been used lately.
func (f Figures) WorkingSet() uint64 {
	return f["memory.current"] - min(f["memory.stat.inactive_file"], f["memory.current"])
}

// RSS is the memory that is no file's. What the containers of a sandbox have of it
// is shared memory to the host.
func (f Figures) RSS() uint64 { return f["memory.stat.anon"] + f["memory.stat.shmem"] }

// unified are the files of version 2.
var unified = []string{
	"cpu.stat", "memory.stat", "memory.events", "memory.current", "memory.peak", "memory.max",
	"memory.swap.current", "memory.swap.max", "pids.current",
}

// legacyFiles are the files of version 1, with the fields that they have of
// version 2. The field of a file that is one number is "".
var legacyFiles = []struct {
	controller, file string
	fields           map[string]string
}{
	{"cpuacct", "cpuacct.usage", map[string]string{"": "cpu.stat.usage_usec"}},
	{"cpuacct", "cpuacct.usage_user", map[string]string{"": "cpu.stat.user_usec"}},
	{"cpuacct", "cpuacct.usage_sys", map[string]string{"": "cpu.stat.system_usec"}},
	{"cpu", "cpu.stat", map[string]string{
		"nr_periods": "cpu.stat.nr_periods", "nr_throttled": "cpu.stat.nr_throttled", "throttled_time": "cpu.stat.throttled_usec",
	}},
	{"memory", "memory.usage_in_bytes", map[string]string{"": "memory.current"}},
	{"memory", "memory.max_usage_in_bytes", map[string]string{"": "memory.peak"}},
	{"memory", "memory.limit_in_bytes", map[string]string{"": "memory.max"}},
	{"memory", "memory.failcnt", map[string]string{"": "memory.events.max"}},
	{"memory", "memory.kmem.usage_in_bytes", map[string]string{"": "memory.stat.kernel"}},
	{"memory", "memory.oom_control", map[string]string{"oom_kill": "memory.events.oom_kill"}},
	{"memory", "memory.stat", map[string]string{
		"total_rss": "memory.stat.anon", "total_cache": "memory.stat.file", "total_shmem": "memory.stat.shmem",
		"total_mapped_file": "memory.stat.file_mapped", "total_dirty": "memory.stat.file_dirty", "total_writeback": "memory.stat.file_writeback",
		"total_inactive_file": "memory.stat.inactive_file", "total_active_file": "memory.stat.active_file",
		"total_pgfault": "memory.stat.pgfault", "total_pgmajfault": "memory.stat.pgmajfault", "total_swap": "memory.swap.current",
		"total_workingset_refault_file": "memory.stat.workingset_refault_file", "total_workingset_refault_anon": "memory.stat.workingset_refault_anon",
	}},
	{"pids", "pids.current", map[string]string{"": "pids.current"}},
}

// unlimited is the least that version 1 shows for no limit; the exact number
// depends on the size of a page.
const unlimited = 1 << 62

// Figures reads what the kernel counts. The error is ErrNotFound when the cgroup
// is gone.
func (c Cgroup) Figures() (Figures, error) {
	f := Figures{}
	path, legacy := c.legacy()
	if legacy {
		for _, file := range legacyFiles {
			for field, v := range numbers(filepath.Join(c.Root, file.controller, path, file.file)) {
				f.setLegacy(file.fields[field], v)
			}
		}
	} else {
		for _, file := range unified {
			for field, v := range numbers(filepath.Join(c.Memory, file)) {
				f[strings.TrimSuffix(file+"."+field, ".")] = v
			}
		}
	}
	if _, ok := f["memory.current"]; !ok {
		return nil, fmt.Errorf("cgroup %s: %w", c.Memory, errdefs.ErrNotFound)
	}
	return f, nil
}

// setLegacy takes over a value of version 1.
func (f Figures) setLegacy(name string, v uint64) {
	switch {
	case name == "" || name == "memory.max" && v >= unlimited:
		return
	case strings.HasSuffix(name, "_usec"):
		v /= uint64(time.Microsecond) // from nanoseconds
	}
	f[name] = v
}

// numbers reads a file that is one number, or has a name and a number a line. A
// file that is not there has none, and "max" is none.
func numbers(path string) map[string]uint64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	found := map[string]uint64{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		i := strings.LastIndexByte(line, ' ')
		if v, err := strconv.ParseUint(line[i+1:], 10, 64); err == nil {
			found[line[:max(i, 0)]] = v
		}
	}
	return found
}

// MemoryLimit returns the memory that the cgroup may have, in bytes; 0 if that is
// not limited.
func (c Cgroup) MemoryLimit() uint64 {
	file := "memory.max"
	if _, legacy := c.legacy(); legacy {
		file = "memory.limit_in_bytes"
	}
	limit := numbers(filepath.Join(c.Memory, file))[""]
	if limit >= unlimited {
		return 0
	}
	return limit
}

// OOMKills returns how often the kernel has killed for memory in the cgroup.
// The error is ErrNotFound when the cgroup is gone.
func (c Cgroup) OOMKills() (uint64, error) {
	file := "memory.events"
	if _, legacy := c.legacy(); legacy {
		file = "memory.oom_control"
	}
	kills, ok := numbers(filepath.Join(c.Memory, file))["oom_kill"]
	if !ok {
		return 0, fmt.Errorf("count of kills for memory in %s: %w", c.Memory, errdefs.ErrNotFound)
	}
	return kills, nil
}

// Shortage tells which memory limit, of the cgroup or of one above it, has made
// the kernel kill; for people.
func (c Cgroup) Shortage() string {
	for ; c.Path() != "/"; c = c.Parent() {
		f, err := c.Figures()
		if err != nil {
			continue
		}
		hit, exact := f["memory.events.oom"]
		if !exact { // version 1 counts how often the limit was met
			hit = f["memory.events.max"]
		}
		if limit, ok := f["memory.max"]; ok && hit > 0 {
			return fmt.Sprintf("memory limit of %d bytes of cgroup %s", limit, c.Path())
		}
	}
	return "the node is out of memory"
}
