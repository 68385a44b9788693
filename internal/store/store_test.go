package store

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

type record struct {
	Name   string            `json:"name"`
	Count  int               `json:"count,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
}

var (
	idA = strings.Repeat("a", 64)
	idB = strings.Repeat("0123456789abcdef", 4)
)

func open(t *testing.T, dir string, version int) *Records[record] {
	t.Helper()
	r, err := Open[record](dir, version)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func load(t *testing.T, r *Records[record]) map[string]Loaded[record] {
	t.Helper()
	records, err := r.Load()
	if err != nil {
		t.Fatal(err)
	}
	return records
}

func TestSaveLoadDelete(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pods")
	r := open(t, dir, 1)
	for _, rec := range []record{{Name: "old", Count: 7}, {Name: "new", Labels: map[string]string{"k": "v"}}} {
		if err := r.Save(idA, &rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Save(idB, &record{Name: "b"}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, idA+".json"))
	if want := `{"version":1,"name":"new","labels":{"k":"v"}}` + "\n"; err != nil || string(data) != want {
		t.Errorf("file = %q, %v; want %q", data, err, want)
	}
	records := load(t, open(t, dir, 1))
	if got := slices.Sorted(maps.Keys(records)); !slices.Equal(got, []string{idB, idA}) {
		t.Errorf("ids = %v", got)
	}
	if got := records[idA]; got.Err != nil || got.Record.Name != "new" || got.Record.Count != 0 {
		t.Errorf("a = %+v, %v", got.Record, got.Err)
	}
	for range 2 {
		if err := r.Delete(idA); err != nil {
			t.Fatal(err)
		}
	}
	if records := load(t, r); len(records) != 1 {
		t.Errorf("after delete: %v", records)
	}
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x", "pods")
	r := open(t, dir, 1)
	if err := r.Save(idA, &record{}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, r.path(idA): 0o600} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", path, fi.Mode(), err, want)
		}
	}
}

func TestBadRecordHarmsOnlyItself(t *testing.T) {
	whole := `{"version":1,"name":"x","count":3}`
	for name, c := range map[string]struct {
		content string
		kind    error
		name    string // what can be read
	}{
		"empty":         {"", errdefs.ErrDataLoss, ""},
		"truncated":     {whole[:len(whole)-4], errdefs.ErrDataLoss, "x"},
		"zeros at end":  {whole[:10] + strings.Repeat("\x00", 24), errdefs.ErrDataLoss, ""},
		"zeros within":  {`{"version":1,"name":"` + strings.Repeat("\x00", 512) + `"}`, errdefs.ErrDataLoss, ""},
		"two records":   {whole + whole, errdefs.ErrDataLoss, "x"},
		"garbage":       {"hello", errdefs.ErrDataLoss, ""},
		"null":          {"null", errdefs.ErrDataLoss, ""},
		"list":          {"[1]", errdefs.ErrDataLoss, ""},
		"wrong type":    {`{"version":1,"name":5}`, errdefs.ErrDataLoss, ""},
		"no version":    {`{"name":"x"}`, errdefs.ErrDataLoss, "x"},
		"newer version": {`{"version":2,"name":"x","count":{"of":"x"}}`, errdefs.ErrFailedPrecondition, "x"},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, t.TempDir(), 1)
			if err := r.Save(idB, &record{Name: "good"}); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(r.path(idA), []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			records := load(t, r)
			if bad := records[idA]; bad.Record.Name != c.name || !errors.Is(bad.Err, c.kind) || !strings.Contains(bad.Err.Error(), r.path(idA)) {
				t.Errorf("bad record: %+v, %v", bad.Record, bad.Err)
			}
			if good := records[idB]; good.Err != nil || good.Record.Name != "good" {
				t.Errorf("good record: %+v, %v", good.Record, good.Err)
			}
			if data, err := os.ReadFile(r.path(idA)); err != nil || string(data) != c.content {
				t.Errorf("file was touched: %q, %v", data, err)
			}
		})
	}
}

func TestForeignFieldsAreKept(t *testing.T) {
	r := open(t, t.TempDir(), 1)
	content := `{"version":1,"name":"x","count":3,"zone":{"a":[1, 2]},"color":"red"}`
	if err := os.WriteFile(r.path(idA), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	load(t, r)
	if err := r.Save(idA, &record{Name: "y"}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(r.path(idA))
	if want := `{"version":1,"name":"y","color":"red","zone":{"a":[1, 2]}}` + "\n"; err != nil || string(data) != want {
		t.Errorf("file = %q, %v; want %q", data, err, want)
	}
	// A deleted record's fields do not come back with its id.
	if err := r.Delete(idA); err != nil {
		t.Fatal(err)
	}
	if err := r.Save(idA, &record{Name: "z"}); err != nil {
		t.Fatal(err)
	}
	data, err = os.ReadFile(r.path(idA))
	if want := `{"version":1,"name":"z"}` + "\n"; err != nil || string(data) != want {
		t.Errorf("file = %q, %v; want %q", data, err, want)
	}
}

func TestLoadRemovesTempFiles(t *testing.T) {
	r := open(t, t.TempDir(), 1)
	temp, other := filepath.Join(r.dir, idA+tempSuffix), filepath.Join(r.dir, "README")
	for _, path := range []string{temp, other} {
		if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if records := load(t, r); len(records) != 0 {
		t.Errorf("records = %v", records)
	}
	if _, err := os.Stat(temp); !os.IsNotExist(err) {
		t.Errorf("temporary file is still there: %v", err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("foreign file: %v", err)
	}
}

func TestFailedSaveKeepsOldRecord(t *testing.T) {
	r, err := Open[struct {
		Any any `json:"any"`
	}](t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	good := struct {
		Any any `json:"any"`
	}{"old"}
	if err := r.Save(idA, &good); err != nil {
		t.Fatal(err)
	}
	bad := good
	bad.Any = make(chan int)
	if err := r.Save(idA, &bad); err == nil {
		t.Error("saved a channel")
	}
	if records, err := r.Load(); err != nil || records[idA].Err != nil || records[idA].Record.Any != "old" {
		t.Errorf("records = %v, %v", records, err)
	}
	// A directory cannot be replaced: the temporary file must not stay.
	if err := os.Mkdir(r.path(idB), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.Save(idB, &good); err == nil {
		t.Error("replaced a directory")
	}
	if _, err := os.Stat(filepath.Join(r.dir, idB+tempSuffix)); !os.IsNotExist(err) {
		t.Errorf("temporary file is still there: %v", err)
	}
}

func TestFullDiskKeepsOldRecord(t *testing.T) {
	r := open(t, t.TempDir(), 1)
	if err := r.Save(idA, &record{Name: "old"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", filepath.Join(r.dir, idA+tempSuffix)); err != nil {
		t.Fatal(err)
	}
	if err := r.Save(idA, &record{Name: "new"}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Save = %v", err)
	}
	if records := load(t, r); records[idA].Err != nil || records[idA].Record.Name != "old" {
		t.Errorf("records = %v", records)
	}
	if err := r.Save(idA, &record{Name: "new"}); err != nil {
		t.Error(err)
	}
}

func TestIDs(t *testing.T) {
	r := open(t, t.TempDir(), 1)
	for _, id := range []string{"", "a", idA[1:], idA + "a", strings.ToUpper(idA), "../" + idA[3:], idA[:31] + "/" + idA[:32], idA[1:] + "\x00"} {
		if err := r.Save(id, &record{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Save(%q) = %v", id, err)
		}
		if err := r.Delete(id); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Delete(%q) = %v", id, err)
		}
	}
}

func TestVersionFieldIsReserved(t *testing.T) {
	type clash struct {
		V int `json:"version"`
	}
	if _, err := Open[clash](t.TempDir(), 1); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Open = %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	r := open(t, t.TempDir(), 1)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				if err := r.Save(idA, &record{Name: strings.Repeat("x", 1000*i)}); err != nil {
					t.Error(err)
				}
				if err := r.Delete(idB); err != nil {
					t.Error(err)
				}
				if err := r.Save(idB, &record{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for id, l := range load(t, r) {
		if l.Err != nil {
			t.Errorf("%s: %v", id, l.Err)
		}
	}
}

// TestLock has a second process hold the lock, and die holding it.
func TestLock(t *testing.T) {
	if dir := os.Getenv("STORE_TEST_LOCK"); dir != "" {
		if _, err := Lock(dir); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("\nlocked\n")
		_, _ = io.Copy(io.Discard, os.Stdin) // until the parent kills it or ends
	}
	dir := filepath.Join(t.TempDir(), "root")
	cmd := exec.Command(os.Args[0], "-test.run=^TestLock$")
	cmd.Env = append(os.Environ(), "STORE_TEST_LOCK="+dir)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "locked" {
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("pid %d:", cmd.Process.Pid)
	if _, err := Lock(dir); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), want) {
		t.Errorf("Lock while held = %v; want %q", err, want)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	l, err := Lock(dir)
	if err != nil {
		t.Fatalf("Lock after the holder's death = %v", err)
	}
	if _, err := Lock(dir); err == nil {
		t.Error("locked twice by one process")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Lock(dir)
	if err != nil {
		t.Fatalf("Lock after Close = %v", err)
	}
	_ = again.Close()
}
