package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestSame(t *testing.T) {
	rules := Rules{Free: []string{"a.free", "list[].free"}, Secret: []string{"secret"}, Keys: map[string]string{"keyed": "key"}}
	for name, test := range map[string]struct{ was, is, want string }{
		"equal":             {`{"a": {"b": [1, {"c": "x"}]}}`, `{"a": {"b": [1, {"c": "x"}]}}`, ""},
		"nothing is empty":  {`{"a": {"b": ""}, "c": [], "d": 0, "e": false}`, `{}`, ""},
		"free":              {`{"a": {"free": 1}, "list": [{"free": 1}]}`, `{"a": {"free": 2}, "list": [{"free": 2}]}`, ""},
		"another value":     {`{"a": {"b": 1}}`, `{"a": {"b": 2}}`, "a.b: 2, the checkpoint has 1"},
		"added":             {`{}`, `{"a": {"b": {"c": "x"}}}`, `a.b.c: "x", the checkpoint has none`},
		"removed":           {`{"a": {"b": {"c": "x"}}}`, `{}`, `a.b.c: none, the checkpoint has "x"`},
		"item":              {`{"l": ["x", "y"]}`, `{"l": ["x", "z"]}`, "l[1]: "},
		"more items":        {`{"l": ["x"]}`, `{"l": ["x", "z"]}`, `l: ["x","z"], the checkpoint has ["x"]`},
		"another kind":      {`{"a": {"b": 1}}`, `{"a": [1]}`, "a: [1]"},
		"large numbers":     {`{"n": 9007199254740993}`, `{"n": 9007199254740992}`, "n: "},
		"keyed":             {`{"keyed": [{"key": "a", "v": 1}, {"key": "b", "v": 2}]}`, `{"keyed": [{"key": "b", "v": 2}, {"key": "a", "v": 1}]}`, ""},
		"keyed, another":    {`{"keyed": [{"key": "a", "v": 1}]}`, `{"keyed": [{"key": "a", "v": 2}]}`, `keyed["a"].v: 2`},
		"keyed, missing":    {`{"keyed": [{"key": "a", "v": 1}]}`, `{}`, `keyed["a"].key: none`},
		"secret":            {`{"secret": [{"v": "hush"}]}`, `{"secret": [{"v": "quiet"}]}`, "secret[0].v: not as in the checkpoint"},
		"as free in a list": {`{"list": [{"b": 1}]}`, `{"list": [{"b": 2}]}`, "list[0].b: "},
	} {
		err := rules.Same([]byte(test.was), []byte(test.is))
		if test.want == "" && err != nil || test.want != "" && (!errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if err != nil && (strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "quiet")) {
			t.Errorf("%s: a secret in %v", name, err)
		}
	}
}

func TestMachine(t *testing.T) {
	was := Machine{Runsc: "1", Build: "b", Platform: "systrap", Arch: "amd64", Features: []string{"avx", "sse2"}}
	for want, change := range map[string]func(m *Machine){
		"runsc version":   func(m *Machine) { m.Runsc = "2" },
		"build of runsc":  func(m *Machine) { m.Build = "" },
		"platform":        func(m *Machine) { m.Platform = "kvm" },
		"architecture":    func(m *Machine) { m.Arch = "arm64" },
		"processor: avx ": func(m *Machine) { m.Features = []string{"sse2"} },
		"":                func(m *Machine) { m.Features = []string{"avx", "avx2", "sse2"} },
	} {
		here := was
		change(&here)
		err := was.Check(here)
		words := strings.Split(want, ": ")
		if want == "" && err != nil || want != "" && (!errdefs.IsFailedPrecondition(err) || !strings.HasPrefix(err.Error(), words[0]) ||
			!strings.Contains(err.Error(), strings.TrimSpace(words[len(words)-1]))) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

func TestFeatures(t *testing.T) {
	for text, want := range map[string][]string{
		"processor\t: 0\nflags\t\t: sse2 fpu lm avx2 avx512f lahf_lm arat pti ibrs\n\nprocessor\t: 1\nflags\t: none\n": {"avx2", "avx512f", "lahf_lm", "lm", "sse2"},
		"Features\t: fp asimd aes\n": {"fp", "asimd", "aes"},
	} {
		path := filepath.Join(t.TempDir(), "cpuinfo")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := features(path); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	if _, err := features("/dev/null"); err == nil {
		t.Error("a file without features")
	}
}

func TestThisMachine(t *testing.T) {
	m, err := ThisMachine("/proc/self/exe", "1", "systrap")
	if err != nil || m.Build == "" || len(m.Features) == 0 || m.Arch == "" {
		t.Errorf("%+v, %v", m, err)
	}
	if err := m.Check(m); err != nil {
		t.Error(err)
	}
}

// saved is a complete checkpoint of three files, of which one has three blocks.
func saved(t *testing.T) (dir string, m *Manifest) {
	dir = t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("content of "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	big, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(big.Truncate(2*BlockSize+1), big.Close()); err != nil {
		t.Fatal(err)
	}
	m = &Manifest{Paused: time.Second, Order: []string{"c"}, Containers: map[string]Container{"c": {ID: "1", VolumeIDs: map[int]string{2: "sha256:x"}}}}
	if err := m.Write(dir, []string{"a", "b", "big", "not there"}); err != nil {
		t.Fatal(err)
	}
	return dir, m
}

func TestManifest(t *testing.T) {
	dir, _ := saved(t)
	m, err := Read(dir)
	if err != nil || m.Version != Version || m.Paused != time.Second || m.Containers["c"].VolumeIDs[2] != "sha256:x" || len(m.Files) != 3 {
		t.Fatalf("%+v, %v", m, err)
	}
	if err := m.Verify(dir); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(filepath.Join(dir, ManifestFile))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestDamage(t *testing.T) {
	for want, damage := range map[string]func(dir string, m *Manifest) error{
		"a: 5 bytes, not 12": func(dir string, _ *Manifest) error { return os.Truncate(filepath.Join(dir, "a"), 5) },
		"a: checksum of block 0": func(dir string, _ *Manifest) error {
			return os.WriteFile(filepath.Join(dir, "a"), []byte("content of b"), 0o600)
		},
		"big: checksum of block 1": func(dir string, _ *Manifest) error {
			big, err := os.OpenFile(filepath.Join(dir, "big"), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = big.WriteAt([]byte{1}, BlockSize+1)
			return errors.Join(err, big.Close())
		},
		"a: 1 checksums, not 0": func(_ string, m *Manifest) error {
			m.Files["a"] = File{Size: 12}
			return nil
		},
		"a: no such file": func(dir string, _ *Manifest) error { return os.Remove(filepath.Join(dir, "a")) },
		`"../a"`: func(_ string, m *Manifest) error {
			m.Files = map[string]File{"../a": {}}
			return nil
		},
	} {
		dir, m := saved(t)
		if err := damage(dir, m); err != nil {
			t.Fatal(err)
		}
		if err := m.Verify(dir); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestUnusableManifest(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "damaged",
		"{":                              "damaged",
		`{"version": 2}`:                 "version 2",
		`{}`:                             "version 0",
		`{"version": 1}`:                 "no files",
		`{"version": 1, "files": []}`:    "damaged",
		`{"version": 1, "files": {}}`:    "no files",
		`{"version": 1, "files": {"a": `: "damaged",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, ManifestFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(dir); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := Read(t.TempDir()); !errdefs.IsFailedPrecondition(err) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no manifest: %v", err)
	}
}

func TestDiscard(t *testing.T) {
	dir, _ := saved(t)
	names := []string{"a", "b", "big"}
	left := func() []string {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	if err := os.WriteFile(filepath.Join(dir, "somebody's"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Discard(dir, names); err != nil || len(left()) != 5 {
		t.Errorf("a complete one: left %q, %v", left(), err)
	}
	if err := os.Rename(filepath.Join(dir, ManifestFile), filepath.Join(dir, temporary)); err != nil {
		t.Fatal(err)
	}
	if err := Discard(dir, names); err != nil || !slices.Equal(left(), []string{"somebody's"}) {
		t.Errorf("one that is not complete: left %q, %v", left(), err)
	}
	if err := Remove(dir, names); err != nil {
		t.Errorf("again: %v", err)
	}
}
