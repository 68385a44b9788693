// Package stats has the figures of what pods use, and their arithmetic.
//
// What it keeps true: a figure is what the kernel or the sandbox has counted, or
// it is not there; there are no estimates and no zeros in place of the unknown.
// Both cgroup versions are read into the names of version 2. Nothing is sampled
// unasked.
package stats

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
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
	root := c.Root
	if c.Legacy() {
		root = filepath.Join(root, "memory")
	}
	return filepath.Join("/", strings.TrimPrefix(c.Memory, root))
}

// Parent returns the cgroup above; the root's is itself.
func (c Cgroup) Parent() Cgroup {
	if c.Path() == "/" {
		return c
	}
	return Cgroup{c.Root, filepath.Dir(c.Memory)}
}

// Legacy tells whether the cgroup is one of version 1.
func (c Cgroup) Legacy() bool {
	return strings.HasPrefix(c.Memory+"/", filepath.Join(c.Root, "memory")+"/")
}

// Dir is the cgroup's directory for a controller.
func (c Cgroup) Dir(controller string) string {
	if c.Legacy() {
		return filepath.Join(c.Root, controller, c.Path())
	}
	return c.Memory
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

// source is a file of a cgroup: its fields by their names in it, with the figures
// that they are. The field of a file that is one number is "".
type source struct {
	controller, file string // the controller matters to version 1
	figures          map[string]string
	detail           bool // not read unless asked for
}

var version2 = []source{
	{"cpu", "cpu.stat", map[string]string{
		"usage_usec": "cpu.stat.usage_usec", "user_usec": "cpu.stat.user_usec", "system_usec": "cpu.stat.system_usec",
		"nr_periods": "cpu.stat.nr_periods", "nr_throttled": "cpu.stat.nr_throttled", "throttled_usec": "cpu.stat.throttled_usec",
	}, false},
	{"memory", "memory.current", map[string]string{"": "memory.current"}, false},
	{"memory", "memory.peak", map[string]string{"": "memory.peak"}, true},
	{"memory", "memory.max", map[string]string{"": "memory.max"}, false},
	{"memory", "memory.swap.current", map[string]string{"": "memory.swap.current"}, false},
	{"memory", "memory.events", map[string]string{
		"high": "memory.events.high", "max": "memory.events.max", "oom": "memory.events.oom", "oom_kill": "memory.events.oom_kill",
	}, true},
	{"memory", "memory.stat", map[string]string{
		"anon": "memory.stat.anon", "file": "memory.stat.file", "kernel": "memory.stat.kernel", "shmem": "memory.stat.shmem",
		"file_mapped": "memory.stat.file_mapped", "file_dirty": "memory.stat.file_dirty", "file_writeback": "memory.stat.file_writeback",
		"inactive_file": "memory.stat.inactive_file", "active_file": "memory.stat.active_file",
		"pgfault": "memory.stat.pgfault", "pgmajfault": "memory.stat.pgmajfault", "pgscan": "memory.stat.pgscan", "pgsteal": "memory.stat.pgsteal",
		"workingset_refault_file": "memory.stat.workingset_refault_file", "workingset_refault_anon": "memory.stat.workingset_refault_anon",
	}, false},
}

var version1 = []source{
	{"cpuacct", "cpuacct.usage", map[string]string{"": "cpu.stat.usage_usec"}, false},
	{"cpuacct", "cpuacct.usage_user", map[string]string{"": "cpu.stat.user_usec"}, true},
	{"cpuacct", "cpuacct.usage_sys", map[string]string{"": "cpu.stat.system_usec"}, true},
	{"cpu", "cpu.stat", map[string]string{
		"nr_periods": "cpu.stat.nr_periods", "nr_throttled": "cpu.stat.nr_throttled", "throttled_time": "cpu.stat.throttled_usec",
	}, true},
	{"memory", "memory.usage_in_bytes", map[string]string{"": "memory.current"}, false},
	{"memory", "memory.max_usage_in_bytes", map[string]string{"": "memory.peak"}, true},
	{"memory", "memory.limit_in_bytes", map[string]string{"": "memory.max"}, false},
	{"memory", "memory.failcnt", map[string]string{"": "memory.events.max"}, true},
	{"memory", "memory.kmem.usage_in_bytes", map[string]string{"": "memory.stat.kernel"}, true},
	{"memory", "memory.oom_control", map[string]string{"oom_kill": "memory.events.oom_kill"}, true},
	{"memory", "memory.stat", map[string]string{
		"total_rss": "memory.stat.anon", "total_cache": "memory.stat.file", "total_shmem": "memory.stat.shmem",
		"total_mapped_file": "memory.stat.file_mapped", "total_dirty": "memory.stat.file_dirty", "total_writeback": "memory.stat.file_writeback",
		"total_inactive_file": "memory.stat.inactive_file", "total_active_file": "memory.stat.active_file",
		"total_pgfault": "memory.stat.pgfault", "total_pgmajfault": "memory.stat.pgmajfault", "total_swap": "memory.swap.current",
		"total_workingset_refault_file": "memory.stat.workingset_refault_file", "total_workingset_refault_anon": "memory.stat.workingset_refault_anon",
	}, false},
}

func (c Cgroup) sources() []source {
	if c.Legacy() {
		return version1
	}
	return version2
}

// Figures reads what the kernel counts: CPU time and memory, and with detail all
// that there is. The error is ErrNotFound when the cgroup is gone.
func (c Cgroup) Figures(detail bool) (Figures, error) {
	f := make(Figures, 32)
	var r reader
	for _, s := range c.sources() {
		if detail || !s.detail {
			c.read(&r, s, f)
		}
	}
	if _, ok := f["memory.current"]; !ok {
		return nil, fmt.Errorf("cgroup %s: %w", c.Memory, errdefs.ErrNotFound)
	}
	return f, nil
}

// unlimited is the least that version 1 shows for no limit; the exact number
// depends on the size of a page.
const unlimited = 1 << 62

// read adds the figures of a file that is there.
func (c Cgroup) read(r *reader, s source, to Figures) {
	text, err := r.read(c.Dir(s.controller) + "/" + s.file)
	if err != nil {
		return
	}
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		i := bytes.LastIndexByte(line, ' ')
		name, ok := s.figures[string(line[:max(i, 0)])]
		if !ok {
			continue
		}
		v, err := strconv.ParseUint(string(line[i+1:]), 10, 64)
		switch {
		case err != nil || name == "memory.max" && v >= unlimited: // such as "max"
			continue
		case strings.HasSuffix(name, "_usec") && c.Legacy():
			v /= uint64(time.Microsecond) // from nanoseconds
		}
		to[name] = v
	}
}

// reader reads small files of the kernel's. os.ReadFile would need twice the system
// calls, and there are a dozen files for each pod.
type reader struct{ buffer []byte }

// read returns what is in a file. It is overwritten by the next read.
func (r *reader) read(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	r.buffer = r.buffer[:0]
	for {
		if len(r.buffer) == cap(r.buffer) {
			r.buffer = slices.Grow(r.buffer, 4096)
		}
		n, err := unix.Read(fd, r.buffer[len(r.buffer):cap(r.buffer)])
		if n <= 0 || err != nil {
			return r.buffer, err
		}
		r.buffer = r.buffer[:len(r.buffer)+n]
	}
}

// figure reads one figure.
func (c Cgroup) figure(name string) (uint64, bool) {
	f := Figures{}
	var r reader
	for _, s := range c.sources() {
		for _, figure := range s.figures {
			if figure == name {
				c.read(&r, s, f)
			}
		}
	}
	v, ok := f[name]
	return v, ok
}

// MemoryLimit returns the memory that the cgroup may have, in bytes; 0 if that is
// not limited.
func (c Cgroup) MemoryLimit() uint64 {
	limit, _ := c.figure("memory.max")
	return limit
}

// OOMKills returns how often the kernel has killed for memory in the cgroup.
// The error is ErrNotFound when the cgroup is gone.
func (c Cgroup) OOMKills() (uint64, error) {
	kills, ok := c.figure("memory.events.oom_kill")
	if !ok {
		return 0, fmt.Errorf("count of kills for memory in %s: %w", c.Memory, errdefs.ErrNotFound)
	}
	return kills, nil
}

// Shortage tells which memory limit, of the cgroup or of one above it, has made
// the kernel kill; for people.
func (c Cgroup) Shortage() string {
	for ; c.Path() != "/"; c = c.Parent() {
		limit := c.MemoryLimit()
		hit, exact := c.figure("memory.events.oom")
		if !exact { // version 1 counts how often the limit was met, but not with swap
			hit, _ = c.figure("memory.events.max")
			if peak, _ := c.figure("memory.peak"); peak >= limit {
				hit++
			}
		}
		if limit > 0 && hit > 0 {
			return fmt.Sprintf("memory limit of %d bytes of cgroup %s", limit, c.Path())
		}
	}
	return "the node is out of memory"
}
