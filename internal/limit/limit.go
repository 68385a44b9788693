// Package limit holds the host's cgroups to limits.
//
// What it keeps true: one description does for both cgroup versions; what it does
// not limit is unlimited afterwards, whatever was set before; and a limit that the
// kernel cannot set is an error, not left out.
package limit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Limits are what a cgroup may use. The zero value limits nothing.
type Limits struct {
	// Shares weigh the cgroup against its siblings when CPU time is short, by the
	// scale of version 1, 2 to 262144; 0 is the kernel's default.
	Shares uint64
	// Quota is the CPU time in each Period, both in microseconds; 0: no limit.
	Quota, Period int64
	// CPUs and Mems are lists such as "0-2,7"; "": all that the cgroup above has.
	CPUs, Mems string
	// Sizes are in bytes, by the names of version 2: "memory.max",
	// "memory.swap.max", "hugetlb.2MB.max", and what version 1 has not, such as
	// "memory.high". A name that is not there: no limit, and nothing reserved.
	Sizes map[string]int64
}

// Cgroup is a cgroup of the host.
type Cgroup struct {
	// Dir is the cgroup's directory for a controller of version 1; in version 2
	// they all have the same.
	Dir    func(controller string) string
	Legacy bool   // version 1
	Unit   string // systemd's, if that makes the cgroup; version 2 only
}

// Set puts limits in place of those that the cgroup has. The error is ErrNotFound
// if the cgroup is gone, and ErrFailedPrecondition if it uses more memory than it
// shall have. After an error some limits are set.
func (c Cgroup) Set(ctx context.Context, l Limits) error {
	if _, err := os.Stat(c.Dir("memory")); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cgroup %s: %w", c.Dir("memory"), errdefs.ErrNotFound)
	}
	if c.Unit != "" {
		// Otherwise systemd would set its own again when it is reloaded.
		if err := setUnit(ctx, c.Unit, l); err != nil {
			return err
		}
	}
	settings := l.version2()
	if c.Legacy {
		settings = l.version1()
	}
	settings = append(settings, c.hugePages(l)...)
	for _, s := range settings {
		if err := c.write(s); err != nil {
			return err
		}
	}
	return nil
}

// Of reads the limits of CPU time and memory that a cgroup of version 1 has.
func (c Cgroup) Of() Limits {
	number := func(controller, file string) int64 {
		text, _ := os.ReadFile(filepath.Join(c.Dir(controller), file))
		n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return n
	}
	l := Limits{Period: number("cpu", "cpu.cfs_period_us"), Sizes: map[string]int64{}}
	if l.Period > 0 {
		l.Quota = max(number("cpu", "cpu.cfs_quota_us"), 0)
	}
	// No limit is a number that depends on the size of a page.
	if memory := number("memory", "memory.limit_in_bytes"); memory > 0 && memory < 1<<62 {
		l.Sizes["memory.max"] = memory
	}
	return l
}

// setting is what a file of a cgroup shall have.
type setting struct {
	controller, file, value string
	// optional says that nothing is lost if the kernel does not have the file.
	optional bool
}

func (c Cgroup) write(s setting) error {
	path := filepath.Join(c.Dir(s.controller), s.file)
	if c.Legacy && s.value == "" { // of a set of CPUs: there is no empty one
		above, err := os.ReadFile(filepath.Join(filepath.Dir(c.Dir(s.controller)), s.file))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		s.value = string(above)
	}
	// Most stay as they are, and what is set has the kernel go through the cgroup's memory.
	if text, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(text)) == s.value {
		return nil
	}
	// Not to be created, where the cgroup is gone.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) && s.optional {
		return nil
	}
	if err != nil {
		return fmt.Errorf("limit: %w", err)
	}
	n, err := f.WriteString(s.value + "\n")
	if err == nil {
		err = f.Truncate(int64(n)) // only now: who reads it meanwhile finds a limit
	}
	err = errors.Join(err, f.Close())
	switch {
	case errors.Is(err, unix.EINVAL) && s.file == "cpu.cfs_quota_us":
		return nil // the cgroup above has less, and version 1 has no child with more
	case errors.Is(err, unix.EINVAL): // such as a CPU that there is not
		return fmt.Errorf("limit %s %s: %w: %w", s.file, s.value, err, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.EBUSY) && s.controller == "memory":
		return fmt.Errorf("limit %s %s: the memory is in use: %w: %w", s.file, s.value, err, errdefs.ErrFailedPrecondition)
	case err != nil:
		return fmt.Errorf("limit %s %s: %w", s.file, s.value, err)
	}
	return nil
}

// defaultPeriod is the kernel's, in microseconds.
const defaultPeriod = 100_000

func (l Limits) version2() []setting {
	quota, period := "max", int64(defaultPeriod)
	if l.Quota > 0 {
		quota, period = strconv.FormatInt(l.Quota, 10), l.Period
	}
	settings := []setting{
		{"cpu", "cpu.weight", strconv.FormatUint(l.Weight(), 10), true},
		{"cpu", "cpu.max", fmt.Sprint(quota, " ", period), l.Quota == 0},
		{"cpuset", "cpuset.cpus", l.CPUs, l.CPUs == ""},
		{"cpuset", "cpuset.mems", l.Mems, l.Mems == ""},
	}
	for _, name := range []string{"memory.min", "memory.low"} {
		settings = append(settings, setting{"memory", name, strconv.FormatInt(l.Sizes[name], 10), l.Sizes[name] == 0})
	}
	for _, name := range []string{"memory.high", "memory.max", swapMax} {
		settings = append(settings, setting{"memory", name, l.size(name, "max"), l.unlimited(name) || name == swapMax})
	}
	return settings
}

func (l Limits) version1() []setting {
	shares := l.Shares
	if shares == 0 {
		shares = 1024
	}
	settings := []setting{
		{"cpu", "cpu.shares", strconv.FormatUint(shares, 10), true},
		// No limit meanwhile: a quota may be too much for the other period.
		{"cpu", "cpu.cfs_quota_us", "-1", true},
		{"cpuset", "cpuset.cpus", l.CPUs, l.CPUs == ""},
		{"cpuset", "cpuset.mems", l.Mems, l.Mems == ""},
		// Memory with swap is never less than without.
		{"memory", "memory.memsw.limit_in_bytes", "-1", true},
	}
	if l.Quota > 0 {
		settings = append(settings,
			setting{"cpu", "cpu.cfs_period_us", strconv.FormatInt(l.Period, 10), false},
			setting{"cpu", "cpu.cfs_quota_us", strconv.FormatInt(l.Quota, 10), false})
	}
	settings = append(settings, setting{"memory", "memory.limit_in_bytes", l.size("memory.max", "-1"), l.unlimited("memory.max")})
	if !l.unlimited("memory.max") && !l.unlimited(swapMax) {
		both := strconv.FormatInt(l.Sizes["memory.max"]+l.Sizes[swapMax], 10)
		settings = append(settings, setting{"memory", "memory.memsw.limit_in_bytes", both, true})
	}
	return settings
}

// hugePages are the settings of the sizes of pages that the kernel has.
func (c Cgroup) hugePages(l Limits) []setting {
	file, none := ".max", "max"
	if c.Legacy {
		file, none = ".limit_in_bytes", "-1"
	}
	found, _ := filepath.Glob(filepath.Join(c.Dir("hugetlb"), "hugetlb.*"+file)) // the pattern is right
	var settings []setting
	for _, path := range found {
		name := strings.TrimSuffix(filepath.Base(path), file)
		if strings.HasSuffix(name, ".rsvd") { // of what is reserved: follows by itself
			continue
		}
		settings = append(settings, setting{"hugetlb", name + file, l.size(name+".max", none), true})
	}
	return settings
}

// swapMax is the one size that a kernel without swap has no file for.
const swapMax = "memory.swap.max"

func (l Limits) unlimited(name string) bool {
	_, limited := l.Sizes[name]
	return !limited
}

// size is the value of a size, or the word for none.
func (l Limits) size(name, none string) string {
	if l.unlimited(name) {
		return none
	}
	return strconv.FormatInt(l.Sizes[name], 10)
}

// Weight is Shares by the scale of version 2, 1 to 10000.
func (l Limits) Weight() uint64 {
	if l.Shares == 0 {
		return 100
	}
	return 1 + (min(max(l.Shares, 2), 262144)-2)*9999/262142
}
