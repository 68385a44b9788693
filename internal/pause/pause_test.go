package pause

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The bytes in the tree are those that build.sh makes of the source in the tree.
func TestRebuild(t *testing.T) {
	for _, tool := range []string{"gcc", "objcopy", "mkfs.erofs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is needed (Debian: gcc, binutils, erofs-utils): %v", tool, err)
		}
	}
	out := filepath.Join(t.TempDir(), "pause.erofs")
	if text, err := exec.Command("./build.sh", out).CombinedOutput(); err != nil {
		t.Fatalf("build.sh: %v\n%s", err, text)
	}
	built, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(built, image) {
		t.Errorf("pause.erofs is not what build.sh makes: %d bytes in the tree, %d made", len(image), len(built))
	}
}

func TestInstallKeepsAnEqualFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pause.erofs")
	stat := func() os.FileInfo {
		if err := Install(path); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	first := stat()
	if !os.SameFile(first, stat()) {
		t.Error("an equal image was replaced")
	}
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if replaced := stat(); replaced.Size() != int64(len(image)) {
		t.Errorf("size after replacement is %d, want %d", replaced.Size(), len(image))
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("%d files are left, want 1", len(entries))
	}
}
