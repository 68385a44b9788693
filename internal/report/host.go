package report

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/runscd/runscd/internal/monitor"
)

// host adds what the host holds for the pod.
func (a *archive) host() {
	a.mounts()
	pid, err := a.pid()
	if err != nil {
		a.missing = append(a.missing, fmt.Sprintf("host: %v\n", err))
		return
	}
	proc := fmt.Sprintf("/proc/%d", pid)
	for _, name := range []string{"status", "limits", "cgroup", "oom_score_adj", "stack"} {
		a.file("host/process/"+name, filepath.Join(proc, name))
	}
	// Of the network namespace that the sandbox is in.
	for _, name := range []string{"dev", "route", "arp", "if_inet6", "ipv6_route", "snmp"} {
		a.file("network/"+name, filepath.Join(proc, "net", name))
	}
	text, err := os.ReadFile(filepath.Join(proc, "cgroup"))
	if err != nil {
		a.missing = append(a.missing, fmt.Sprintf("host/cgroup: %v\n", err))
		return
	}
	for controllers, dir := range cgroupDirs("/sys/fs/cgroup", string(text)) {
		a.cgroup(filepath.Join("host/cgroup", controllers), dir)
	}
}

// pid is the sandbox's process, if it is still that.
func (a *archive) pid() (int, error) {
	host := a.pod.record.Host
	if host.PID == 0 {
		return 0, fmt.Errorf("process of the sandbox: none is recorded: %w", errdefs.ErrNotFound)
	}
	start, err := monitor.StartTime(host.PID)
	if err == nil && start != host.Start {
		err = fmt.Errorf("process %d is another by now: %w", host.PID, errdefs.ErrNotFound)
	}
	return host.PID, err
}

// mounts adds the mounts that belong to the pod or to all.
func (a *archive) mounts() {
	data, err := os.ReadFile("/proc/self/mountinfo")
	var kept bytes.Buffer
	for line := range bytes.Lines(data) {
		if bytes.Contains(line, []byte(a.options.State)) || bytes.Contains(line, []byte(a.options.Root)) {
			kept.Write(line)
		}
	}
	a.got("host/mounts", kept.Bytes(), err)
}

// cgroupDirs are the directories that /proc/<pid>/cgroup names, by their
// controllers; version 2 has none to name.
func cgroupDirs(root, text string) map[string]string {
	dirs := map[string]string{}
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && fields[1] == "" {
			dirs["unified"] = filepath.Join(root, fields[2])
		} else if len(fields) == 3 {
			dirs[fields[1]] = filepath.Join(root, fields[1], fields[2])
		}
	}
	return dirs
}

// cgroup adds the files of a cgroup that can be read.
func (a *archive) cgroup(name, dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // a hierarchy that is not mounted
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o400 == 0 {
			continue
		}
		if data, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil && len(data) <= maxFile {
			a.add(filepath.Join(name, e.Name()), data) // what cannot be read is not switched on
		}
	}
}
