// Package report gathers what the maintainers need to see of a pod that does not
// do what it should: one archive for an issue report.
//
// What it keeps true: it reads and asks only, needs no daemon that answers, and
// ends though sandbox and daemon hang; what could not be had is told in the archive
// and is no reason to go without the rest; the values of environment variables and
// of users' annotations are not in it, nor what containers have written.
package report

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/runscd/runscd/internal/pod"
	"github.com/runscd/runscd/internal/runsc"
)

// askTimeout bounds how long a sandbox, and the daemon, are given to answer.
const askTimeout = 5 * time.Second

// maxFile is how much of a file is taken, in bytes, from its end.
const maxFile = 1 << 20

// Options say where things are.
type Options struct {
	Root, State string
	// Daemon returns the stacks of the daemon's goroutines.
	Daemon func(context.Context) (string, error)
	// About is put into the archive as it is, by file name.
	About map[string]string
}

// Pod is a pod that a report can be made of.
type Pod struct {
	ID, Namespace, Name string

	record     podRecord
	containers []string
}

// podRecord is what is needed of a pod's record; see docs/records.md.
type podRecord struct {
	Config struct {
		Metadata struct{ Name, Namespace string }
	} `json:"config"`
	Handler string `json:"handler"`
	Host    struct {
		PID   int    `json:"pid"`
		Start uint64 `json:"start"`
	} `json:"host_process"`
}

// Find returns the pod of a name, with its namespace before it or not, or of the
// beginning of an id. The error is ErrNotFound, or ErrInvalidArgument if there are
// several.
func Find(root, pod string) (*Pod, error) {
	files, err := filepath.Glob(filepath.Join(root, "pods", "*.json"))
	if err != nil {
		return nil, err
	}
	var found []*Pod
	for _, file := range files {
		p := &Pod{ID: strings.TrimSuffix(filepath.Base(file), ".json")}
		data, _ := os.ReadFile(file)
		_ = json.Unmarshal(data, &p.record) // a damaged one is found by its id
		p.Namespace, p.Name = p.record.Config.Metadata.Namespace, p.record.Config.Metadata.Name
		if pod != "" && (pod == p.Name || pod == p.Namespace+"/"+p.Name || strings.HasPrefix(p.ID, pod)) {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("pod %q: no record in %s: %w", pod, root, errdefs.ErrNotFound)
	case 1:
		found[0].containers = containersOf(root, found[0].ID)
		return found[0], nil
	}
	var ids []string
	for _, p := range found {
		ids = append(ids, p.ID)
	}
	return nil, fmt.Errorf("pod %q: several, name one by its id: %s: %w", pod, strings.Join(ids, ", "), errdefs.ErrInvalidArgument)
}

// containersOf returns the ids of a pod's containers.
func containersOf(root, pod string) []string {
	files, _ := filepath.Glob(filepath.Join(root, "containers", "*.json"))
	var ids []string
	for _, file := range files {
		var record struct {
			Pod string `json:"pod"`
		}
		data, err := os.ReadFile(file)
		if err == nil && json.Unmarshal(data, &record) == nil && record.Pod == pod {
			ids = append(ids, strings.TrimSuffix(filepath.Base(file), ".json"))
		}
	}
	return ids
}

// archive is a report that is being written.
type archive struct {
	options Options
	pod     *Pod
	tar     *tar.Writer
	now     time.Time
	missing []string // what could not be had, and why
	err     error    // of the writing; nothing is written after it
}

// Write writes the report as a gzipped tar file.
func (p *Pod) Write(ctx context.Context, w io.Writer, o Options) error {
	z := gzip.NewWriter(w)
	a := &archive{options: o, pod: p, tar: tar.NewWriter(z), now: time.Now()}
	for _, name := range sorted(o.About) {
		a.add(name, []byte(o.About[name]))
	}
	a.records()
	a.bundles()
	a.sandbox(ctx)
	a.daemon(ctx)
	a.host()
	a.add("missing.txt", []byte(strings.Join(a.missing, "")))
	return errors.Join(a.err, a.tar.Close(), z.Close())
}

// add adds a file.
func (a *archive) add(name string, data []byte) {
	if a.err != nil {
		return
	}
	// Everything is in one directory, for whoever unpacks it among other files.
	name = filepath.Join("runscd-debug-"+a.pod.ID[:min(13, len(a.pod.ID))], name)
	a.err = a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: a.now})
	if a.err == nil {
		_, a.err = a.tar.Write(data)
	}
}

// got adds what was had, or notes why it was not.
func (a *archive) got(name string, data []byte, err error) {
	if err != nil {
		a.missing = append(a.missing, fmt.Sprintf("%s: %v\n", name, err))
		return
	}
	a.add(name, data)
}

// records adds what the daemon has written down.
func (a *archive) records() {
	root := a.options.Root
	a.json("records/pod.json", filepath.Join(root, "pods", a.pod.ID+".json"))
	for _, id := range a.pod.containers {
		a.json("records/"+id+".json", filepath.Join(root, "containers", id+".json"))
	}
	networks, _ := filepath.Glob(filepath.Join(root, "cni", "results", "*"+a.pod.ID+"*"))
	for _, file := range networks {
		a.json("network/"+filepath.Base(file), file)
	}
}

// bundles adds the configurations and the logs of runsc.
func (a *archive) bundles() {
	dirs := map[string]string{"bundles/pod": filepath.Join(a.options.State, "pods", a.pod.ID)}
	for _, id := range a.pod.containers {
		dirs["bundles/"+id] = filepath.Join(a.options.State, "containers", id)
	}
	for _, name := range sorted(dirs) {
		a.json(name+"/config.json", filepath.Join(dirs[name], "config.json"))
		logs, _ := filepath.Glob(filepath.Join(dirs[name], "*.log"))
		for _, log := range logs {
			a.file(name+"/"+filepath.Base(log), log)
		}
	}
}

// sandbox adds what the sandbox tells of itself.
func (a *archive) sandbox(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	control := runsc.New(runsc.Options{Root: pod.RunscRoot(a.options.State, a.pod.record.Handler)}).Control(a.pod.ID)
	stacks, err := control.Stacks(ctx)
	a.got("sandbox/stacks.txt", []byte(stacks), err)
	for _, id := range append([]string{a.pod.ID}, a.pod.containers...) {
		processes, err := control.Processes(ctx, id)
		text := ""
		for _, p := range processes {
			text += fmt.Sprintf("%+v\n", p)
		}
		a.got("sandbox/processes-"+id+".txt", []byte(text), err)
	}
}

func (a *archive) daemon(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	stacks, err := a.options.Daemon(ctx)
	a.got("daemon/goroutines.txt", []byte(stacks), err)
}

// json adds a JSON file without its secrets.
func (a *archive) json(name, path string) {
	data, err := os.ReadFile(path)
	if err == nil {
		data, err = redact(data)
	}
	a.got(name, data, err)
}

// file adds the end of a file.
func (a *archive) file(name, path string) {
	data, err := os.ReadFile(path)
	if len(data) > maxFile {
		data = data[len(data)-maxFile:]
	}
	a.got(name, data, err)
}

func sorted[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
