package spec

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "write the configurations of the table anew")

// request is a row of the table testdata/*.txtar: what is asked for, files of the
// host and the image that this is about, and the configuration that comes of it.
// $DIR stands for the directory of the files.
type request struct {
	*testing.T
	path  string
	files []txtar.File
	dir   string
}

// open reads a row and makes its files in a directory.
func open(t *testing.T, name, dir string) *request {
	t.Helper()
	path := filepath.Join("testdata", name+".txtar")
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := &request{t, path, archive.Files, dir}
	for _, f := range r.files {
		name, link, isLink := strings.Cut(f.Name, " -> ")
		if !strings.Contains(name, "/") {
			continue // what is asked for
		}
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if isLink {
			err = os.Symlink(link, file)
		} else {
			err = os.WriteFile(file, r.here(f.Data), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// here has the directory in the place of its name.
func (r *request) here(text []byte) []byte {
	return bytes.ReplaceAll(text, []byte("$DIR"), []byte(r.dir))
}

// get returns a part of the row, nil if it has none of that name.
func (r *request) get(name string) []byte {
	i := slices.IndexFunc(r.files, func(f txtar.File) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	return r.here(r.files[i].Data)
}

func (r *request) message(name string, m proto.Message) {
	r.Helper()
	if err := protojson.Unmarshal(r.get(name), m); err != nil {
		r.Fatalf("%s: %s: %v", r.path, name, err)
	}
}

func (r *request) options(o any) {
	r.Helper()
	decoder := json.NewDecoder(bytes.NewReader(r.get("options.json")))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(o); err != nil {
		r.Fatalf("%s: options.json: %v", r.path, err)
	}
}

func (r *request) sandbox() (*runtime.PodSandboxConfig, SandboxOptions) {
	r.Helper()
	var cfg runtime.PodSandboxConfig
	var o SandboxOptions
	r.message("pod.json", &cfg)
	r.options(&o)
	return &cfg, o
}

func (r *request) container() (*runtime.ContainerConfig, ContainerOptions) {
	r.Helper()
	var cfg runtime.ContainerConfig
	o := ContainerOptions{Pod: &runtime.PodSandboxConfig{}}
	r.message("container.json", &cfg)
	r.message("pod.json", o.Pod)
	r.options(&o)
	return &cfg, o
}

// short are lists and objects that have none in them.
var short = regexp.MustCompile(`[{\[]\n[^{}\[\]]*[}\]]`)

// gives checks a spec against the row's.
func (r *request) gives(s *specs.Spec) {
	r.Helper()
	got, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		r.Fatal(err)
	}
	got = short.ReplaceAllFunc(append(got, '\n'), func(long []byte) []byte { // on one line
		line := regexp.MustCompile(`\n\t*`).ReplaceAll(long, []byte(" "))
		line = slices.Delete(slices.Delete(line, len(line)-2, len(line)-1), 1, 2)
		if len(line) > 110 {
			return long
		}
		return line
	})
	if bytes.Equal(got, r.get("config.json")) {
		return
	}
	if !*update {
		r.Errorf("not as in %s (see -update):\n%s", r.path, got)
		return
	}
	archive, err := txtar.ParseFile(r.path)
	if err != nil {
		r.Fatal(err)
	}
	archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return f.Name == "config.json" })
	archive.Files = append(archive.Files, txtar.File{Name: "config.json", Data: bytes.ReplaceAll(got, []byte(r.dir), []byte("$DIR"))})
	if err := os.WriteFile(r.path, txtar.Format(archive), 0o644); err != nil {
		r.Fatal(err)
	}
}

// each runs a test for the rows whose names begin with a word.
func each(t *testing.T, word string, test func(r *request)) {
	t.Helper()
	rows, err := filepath.Glob("testdata/" + word + "-*.txtar")
	if err != nil || len(rows) == 0 {
		t.Fatalf("rows of %s: %q, %v", word, rows, err)
	}
	for _, path := range rows {
		name := strings.TrimSuffix(filepath.Base(path), ".txtar")
		t.Run(name, func(t *testing.T) { test(open(t, name, t.TempDir())) })
	}
}

func TestSandbox(t *testing.T) {
	each(t, "sandbox", func(r *request) {
		s, err := Sandbox(r.sandbox())
		if err != nil {
			r.Fatal(err)
		}
		r.gives(s)
	})
}

func TestContainer(t *testing.T) {
	each(t, "container", func(r *request) {
		s, err := Container(r.container())
		if err != nil {
			r.Fatal(err)
		}
		r.gives(s)
	})
}

// sandbox returns a pod as the kubelet's.
func sandbox(t *testing.T) (*runtime.PodSandboxConfig, SandboxOptions) {
	t.Helper()
	return open(t, "sandbox-kubelet", t.TempDir()).sandbox()
}

// container returns a container as the kubelet's, for a rootfs in dir.
func container(t *testing.T, dir string) (*runtime.ContainerConfig, ContainerOptions) {
	t.Helper()
	return open(t, "container-kubelet", dir).container()
}
