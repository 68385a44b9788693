package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/test/isolate"
)

// leftovers tells what is there of pods when there should be none.
func (d *daemon) leftovers(t *testing.T) error {
	var errs []error
	left := func(what string, items ...string) {
		if len(items) > 0 {
			errs = append(errs, fmt.Errorf("%s: %q", what, items))
		}
	}
	for _, dir := range []string{"l/pods", "l/containers", "l/cni/results", "s/pods", "s/containers", "s/netns"} {
		left(dir, names(d.path(dir))...)
	}
	for _, handler := range names(d.path("s/runsc")) {
		left("runsc state", names(d.path("s/runsc/"+handler))...)
	}
	left("leases", d.addresses()...)
	if n := len(d.snapshots()); n != d.layer {
		left("snapshots", d.snapshots()...)
	}
	left("processes", d.processes()...)
	left("mounts", slices.DeleteFunc(d.mounts(), func(path string) bool {
		return path == d.disk || path == d.path("s/null-netns") // runsc keeps that for the next sandbox
	})...)
	left("cgroups", cgroupsBelow(d.cgroup)...)
	left("open files", more(d.open(t), d.held)...)
	return errors.Join(errs...)
}

// addresses are those that pods have.
func (d *daemon) addresses() []string {
	var found []string
	for _, network := range names(d.path("leases")) {
		for _, name := range names(d.path("leases/" + network)) {
			if _, err := netip.ParseAddr(name); err == nil {
				found = append(found, name)
			}
		}
	}
	return found
}

func (d *daemon) snapshots() []string {
	dirs, _ := filepath.Glob(d.path("l/images/*/snapshots/*"))
	return dirs
}

// processes are the command lines of those that work for the daemon or are its
// children, zombies included.
func (d *daemon) processes() []string {
	if d.cmd == nil {
		return nil
	}
	var found []string
	child := fmt.Sprintf("PPid:\t%d\n", d.cmd.Process.Pid)
	for _, pid := range pids() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if pid != d.cmd.Process.Pid && strings.Contains(string(line), d.dir+"/") || strings.Contains(string(status), child) {
			found = append(found, fmt.Sprint(pid, " ", strings.ReplaceAll(string(line), "\x00", " ")))
		}
	}
	return found
}

func (d *daemon) mounts() []string { return isolate.MountsBelow(d.dir) }

// open are the files that the daemon has open, but for connections to registries.
func (d *daemon) open(t *testing.T) []string {
	proc := fmt.Sprintf("/proc/%d/", d.cmd.Process.Pid)
	unixSockets, err := os.ReadFile("/proc/self/net/unix")
	check(t, err)
	var found []string
	for _, fd := range names(proc + "fd") {
		target, err := os.Readlink(proc + "fd/" + fd)
		if err != nil {
			continue
		}
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			if !strings.Contains(string(unixSockets), " "+strings.TrimSuffix(inode, "]")) {
				continue
			}
			target = "unix socket"
		} else if kind, _, ok := strings.Cut(target, ":["); ok {
			target = kind // of a pipe
		}
		found = append(found, target)
	}
	return found
}

// more are the items of now that before did not have, or not as often.
func more(now, before []string) []string {
	rest := slices.Clone(before)
	var extra []string
	for _, item := range now {
		if i := slices.Index(rest, item); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
		} else {
			extra = append(extra, item)
		}
	}
	return extra
}

func names(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	return found
}

func pids() []int {
	var found []int
	for _, name := range names("/proc") {
		if pid, err := strconv.Atoi(name); err == nil {
			found = append(found, pid)
		}
	}
	return found
}

// hierarchies are the roots of the cgroup hierarchies, one with version 2.
func hierarchies() []string {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err == nil {
		return []string{root}
	}
	var found []string
	for _, name := range names(root) {
		if _, err := os.Stat(filepath.Join(root, name, "cgroup.procs")); err == nil { // not a place that is only meant for one
			found = append(found, filepath.Join(root, name))
		}
	}
	return found
}

// makeCgroup makes the parent of pods' cgroups, as the kubelet does.
func makeCgroup(name string) error {
	for _, root := range hierarchies() {
		if err := os.Mkdir(root+name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		// A cpuset of version 1 holds no process until it is filled.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if text, err := os.ReadFile(filepath.Join(root, file)); err == nil {
				if err := os.WriteFile(filepath.Join(root+name, file), text, 0o644); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func removeCgroup(name string) {
	for _, path := range append(cgroupsBelow(name), name) {
		for _, root := range hierarchies() {
			_ = os.Remove(root + path)
		}
	}
}

// cgroupsBelow are the cgroups in one of ours, the innermost first.
func cgroupsBelow(name string) []string {
	found := map[string]bool{}
	for _, root := range hierarchies() {
		_ = filepath.WalkDir(root+name, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() && path != root+name {
				found[strings.TrimPrefix(path, root)] = true
			}
			return nil
		})
	}
	var sorted []string
	for path := range found {
		sorted = append(sorted, path)
	}
	slices.Sort(sorted)
	slices.Reverse(sorted)
	return sorted
}

func kill(pid int) error { return unix.Kill(pid, unix.SIGKILL) }
