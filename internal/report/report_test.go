package report

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/runscd/runscd/internal/monitor"
)

// write makes files below dir.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func podJSON(namespace, name string, pid int, start uint64) string {
	return fmt.Sprintf(`{"version":1,"config":{"metadata":{"name":%q,"namespace":%q}},"handler":"runsc","host_process":{"pid":%d,"start":%d}}`,
		name, namespace, pid, start)
}

func TestFind(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{
		"pods/aa11.json": podJSON("default", "web", 0, 0), "pods/aa22.json": podJSON("test", "web", 0, 0),
		"pods/bb33.json": podJSON("test", "db", 0, 0), "pods/cc44.json": "{damaged",
		"containers/c1.json": `{"pod":"bb33"}`, "containers/c2.json": `{"pod":"aa11"}`, "containers/c3.json": "{damaged",
	})
	for name, id := range map[string]string{
		"default/web": "aa11", "test/web": "aa22", "db": "bb33", "bb": "bb33", "aa22": "aa22", "cc": "cc44",
	} {
		if p, err := Find(root, name); err != nil || p.ID != id {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	if p, err := Find(root, "db"); err != nil || !slices.Equal(p.containers, []string{"c1"}) {
		t.Errorf("%+v, %v", p, err)
	}
	for name, kind := range map[string]func(error) bool{"web": errdefs.IsInvalidArgument, "aa": errdefs.IsInvalidArgument, "x": errdefs.IsNotFound, "": errdefs.IsNotFound} {
		if _, err := Find(root, name); !kind(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestRedact(t *testing.T) {
	got, err := redact([]byte(`{
		"created": 1234567890123456789,
		"process": {"env": ["PATH=/bin", "TOKEN=s3cret=x", "EMPTY="], "args": ["sh"]},
		"config": {"envs": [{"key": "TOKEN", "value": "s3cret"}, {"key": "NONE"}], "annotations": {
			"kubectl.kubernetes.io/last-applied-configuration": "s3cret", "io.kubernetes.cri.sandbox-id": "1", "dev.gvisor.x": "2"}},
		"list": [{"env": ["A=s3cret"]}], "env": "s3cret of no known form is kept"}`))
	if err != nil {
		t.Fatal(err)
	}
	want := `{
		"created": 1234567890123456789,
		"process": {"env": ["PATH=(redacted)", "TOKEN=(redacted)", "EMPTY=(redacted)"], "args": ["sh"]},
		"config": {"envs": [{"key": "TOKEN", "value": "(redacted)"}, {"key": "NONE"}], "annotations": {
			"kubectl.kubernetes.io/last-applied-configuration": "(redacted)", "io.kubernetes.cri.sandbox-id": "1", "dev.gvisor.x": "2"}},
		"list": [{"env": ["A=(redacted)"]}], "env": "s3cret of no known form is kept"}`
	var a, b any
	if err := errors.Join(json.Unmarshal(got, &a), json.Unmarshal([]byte(want), &b)); err != nil || !reflect.DeepEqual(a, b) {
		t.Errorf("%v\n%s", err, got)
	}
	if !bytes.Contains(got, []byte("1234567890123456789")) {
		t.Errorf("the number has changed: %s", got)
	}
}

// unpack returns the files of an archive, by their names without the directory.
func unpack(t *testing.T, data []byte) map[string]string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		files[name] = string(text)
	}
}

// TestReport has no sandbox that answers; this process stands for its process.
func TestReport(t *testing.T) {
	root, state := t.TempDir(), t.TempDir()
	start, err := monitor.StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, map[string]string{
		"pods/aa11.json":           podJSON("default", "web", os.Getpid(), start),
		"containers/c1.json":       `{"pod":"aa11","config":{"envs":[{"key":"TOKEN","value":"s3cret"}]}}`,
		"cni/results/net-aa11-eth": `{"kind": "cniCacheV1"}`,
	})
	write(t, state, map[string]string{
		"pods/aa11/config.json": `{"process":{"env":["TOKEN=s3cret"]}}`, "pods/aa11/runsc.log": strings.Repeat("x", maxFile) + "the end",
		"containers/c1/config.json": `{}`, "containers/c1/panic.log": "panic: no",
	})
	p, err := Find(root, "web")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := p.Write(t.Context(), &out, Options{Root: root, State: state, About: map[string]string{"versions.txt": "runscd 1.2.3"},
		Daemon: func(context.Context) (string, error) { return "goroutine 1", nil }}); err != nil {
		t.Fatal(err)
	}
	files := unpack(t, out.Bytes())
	for name, want := range map[string]string{
		"versions.txt": "runscd 1.2.3", "daemon/goroutines.txt": "goroutine 1",
		"records/pod.json": `"web"`, "records/c1.json": `"TOKEN"`, "network/net-aa11-eth": "cniCacheV1",
		"bundles/pod/config.json": "TOKEN=", "bundles/pod/runsc.log": "the end", "bundles/c1/panic.log": "panic: no",
		"host/process/status": fmt.Sprintf("Pid:\t%d\n", os.Getpid()), "network/dev": "lo:", "host/mounts": "",
		"missing.txt": "sandbox/stacks.txt: control socket of sandbox aa11: ",
	} {
		if text, ok := files[name]; !ok || !strings.Contains(text, want) {
			t.Errorf("%s: no %q in %.200q", name, want, text)
		}
	}
	if len(files["bundles/pod/runsc.log"]) != maxFile {
		t.Errorf("log of %d bytes", len(files["bundles/pod/runsc.log"]))
	}
	for name, text := range files {
		if strings.Contains(text, "s3cret") {
			t.Errorf("%s has a secret: %s", name, text)
		}
	}
	if t.Failed() {
		t.Logf("%q", slices.Sorted(maps.Keys(files)))
	}
}

// TestReportOfAnotherProcess has the sandbox gone and its pid given to another.
func TestReportOfAnotherProcess(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{"pods/aa11.json": podJSON("default", "web", os.Getpid(), 1)})
	p, err := Find(root, "aa11")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = p.Write(t.Context(), &out, Options{Root: root, State: t.TempDir(),
		Daemon: func(context.Context) (string, error) { return "", errors.New("no debug socket") }})
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, out.Bytes())
	for _, want := range []string{"is another by now", "daemon/goroutines.txt: no debug socket", "bundles/pod/config.json: "} {
		if !strings.Contains(files["missing.txt"], want) {
			t.Errorf("no %q in %s", want, files["missing.txt"])
		}
	}
	if _, ok := files["host/process/status"]; ok {
		t.Error("a stranger is in the report")
	}
}

func TestCgroupDirs(t *testing.T) {
	for text, want := range map[string]map[string]string{
		"0::/pod/x\n":                     {"unified": "/c/pod/x"},
		"5:cpu,cpuacct:/a\n3:memory:/b\n": {"cpu,cpuacct": "/c/cpu,cpuacct/a", "memory": "/c/memory/b"},
		"nonsense":                        {},
	} {
		if got := cgroupDirs("/c", text); !maps.Equal(got, want) {
			t.Errorf("%q: %v", text, got)
		}
	}
}
