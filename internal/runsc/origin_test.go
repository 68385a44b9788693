package runsc

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// program puts a program at path and returns the path.
func program(t *testing.T, path string) string {
	t.Helper()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil { // a new inode each time
		t.Fatal(err)
	}
	return path
}

// TestOriginIsFoundAgain takes the binary from under a sandbox, for which a process
// stands that runs it.
func TestOriginIsFoundAgain(t *testing.T) {
	dir := t.TempDir()
	path, successor := program(t, filepath.Join(dir, "runsc-1")), program(t, filepath.Join(dir, "runsc-2"))
	link := filepath.Join(dir, "runsc")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	handler := New(Options{Path: link, Root: "/root", Flags: []string{"--platform=kvm"}})
	origin, err := handler.Origin()
	if err != nil {
		t.Fatal(err)
	}
	r := handler.Of(origin, successor)
	cmd := exec.Command(path, "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	expect := func(what, want string) {
		t.Helper()
		got, done := r.binary()
		defer done()
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	held := func(what string) {
		t.Helper()
		got, done := r.binary()
		defer done()
		f, err := os.Open(got)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if info, err := f.Stat(); err != nil || !origin.is(info) {
			t.Errorf("%s: %s is another file, %v", what, got, err)
		}
		if _, err := io.ReadFull(f, make([]byte, 4)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}

	expect("as it was", path)
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	expect("link gone", path)
	program(t, path)
	expect("replaced, no sandbox known", path)
	r.Drive(cmd.Process.Pid)
	held("replaced")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	held("removed")
	r.Drive(os.Getpid())
	expect("removed, pid of another process", successor)
	if r.root != "/root" || len(r.flags) != len(handler.flags) {
		t.Errorf("root %s, flags %q", r.root, r.flags)
	}
}
