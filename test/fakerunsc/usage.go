package fakerunsc

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupDir has the control files that a test has set, a directory a container.
const cgroupDir = "cgroup"

// controlFiles are those of a container in a sandbox, unless a test has set others.
var controlFiles = map[string]string{
	"cpu.stat":       "usage_usec 40000\nuser_usec 30000\nsystem_usec 10000",
	"memory.current": "1048576",
	"cgroup.procs":   "1\n7",
	"pids.current":   "3",
}

// Cgroup sets a control file of a container's cgroup in its sandbox. The empty
// text takes it away.
func (f *Fake) Cgroup(id, name, text string) {
	f.t.Helper()
	dir := filepath.Join(f.dir, cgroupDir, id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// sentryMetrics is what every sandbox counts of itself.
var sentryMetrics = json.RawMessage(`{"snapshot": {"data": [
	{"metric": {"name": "fs_opens"}, "val": {"int": 42}},
	{"metric": {"name": "unimplemented_syscalls"}, "labels": {"sysno": "1"}, "val": {"int": 2}},
	{"metric": {"name": "unimplemented_syscalls"}, "labels": {"sysno": "2"}, "val": {"int": 3}},
	{"metric": {"name": "netstack_tcp_current_open"}, "val": {}},
	{"metric": {"name": "of_a_later_runsc"}, "val": {"float": 0.5}},
	{"metric": {"name": "fs_read_wait"}, "histogram": {"total": {"int": 7}}}
]}}`)

type readArgs struct {
	Args []struct {
		File struct{ Path, Name string }
	}
}

type readResult struct {
	Value   string `json:"value"`
	IsError bool   `json:"is_error"`
}

// readControlFiles has only containers that run have a cgroup.
func (s *sandbox) readControlFiles(arg json.RawMessage) (any, error) {
	var a readArgs
	if err := json.Unmarshal(arg, &a); err != nil {
		return nil, err
	}
	var results []readResult
	for _, r := range a.Args {
		text, err := s.controlFile(filepath.Base(r.File.Path), r.File.Name)
		if err != nil {
			text = err.Error()
		}
		results = append(results, readResult{text, err != nil})
	}
	return map[string]any{"results": results}, nil
}

func (s *sandbox) controlFile(cid, name string) (string, error) {
	text := controlFiles[name]
	if set, err := os.ReadFile(filepath.Join(s.dir, cgroupDir, cid, name)); err == nil {
		text = string(set)
	}
	if s.state(cid) != stateRunning || text == "" {
		return "", errors.New("controller not active")
	}
	return text, nil
}

// writeFiles does what the pause program does with pairs of arguments, in the
// directory of cgroups.
func (s *sandbox) writeFiles(pairs []string) (errno int) {
	for i := 0; i+1 < len(pairs); i += 2 {
		path := filepath.Join(s.dir, cgroupDir, strings.TrimPrefix(pairs[i], "/sys/fs/cgroup/"))
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if err == nil && pairs[i+1] != "" {
			err = os.WriteFile(path, []byte(pairs[i+1]), 0o600)
		}
		if err != nil {
			return int(unix.EIO)
		}
	}
	return 0
}

// CgroupFile returns what a control file of a container's cgroup has, "" for
// nothing.
func (f *Fake) CgroupFile(id, name string) string {
	text, _ := os.ReadFile(filepath.Join(f.dir, cgroupDir, id, name))
	return string(text)
}
