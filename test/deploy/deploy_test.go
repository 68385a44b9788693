// Package deploy installs runscd and removes it, by node-setup.sh and by the
// Debian package, in roots of its own.
//
// What it keeps true: the programs in it are no runscd, and nothing is started on
// this machine; the package's scripts run chrooted, with a systemctl that writes
// down what it is asked.
package deploy

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// programs is a directory with a runscd and a runsc that print a version.
func programs(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"runscd", "runsc"} {
		write(t, dir, name, "#!/bin/sh\necho "+name+" "+version+"\n", 0o755)
	}
	return dir
}

func write(t *testing.T, root, name, content string, mode fs.FileMode) {
	t.Helper()
	path := filepath.Join(root, name)
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.WriteFile(path, []byte(content), mode))
	check(t, os.Chmod(path, mode))
}

func read(t *testing.T, root, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	check(t, err)
	return string(text)
}

func exists(root, name string) bool {
	_, err := os.Lstat(filepath.Join(root, name))
	return err == nil
}

// files are all that is below root but directories.
func files(t *testing.T, root string) []string {
	t.Helper()
	var found []string
	check(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			found = append(found, strings.TrimPrefix(path, root))
		}
		return err
	}))
	return found
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// output is what a command prints; it must succeed.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

func setup(t *testing.T, root, from string, args ...string) string {
	t.Helper()
	cmd := exec.Command("../../deploy/node-setup.sh", args...)
	cmd.Env = append(os.Environ(), "DESTDIR="+root, "FROM="+from)
	return output(t, cmd)
}

func TestNodeSetup(t *testing.T) {
	root := t.TempDir()
	setup(t, root, programs(t, "1"))
	if to, err := os.Readlink(filepath.Join(root, "usr/local/bin/runscd")); err != nil || to != "/usr/local/lib/runscd/runscd" {
		t.Errorf("link to %q, %v", to, err)
	}
	for _, name := range []string{
		"usr/local/lib/runscd/runsc", "etc/runscd/runscd.toml", "etc/cni/net.d/10-runscd.conflist",
		"etc/crictl.yaml", "etc/kubernetes/kubelet.conf.d/50-runscd.conf",
	} {
		if !exists(root, name) {
			t.Errorf("no %s", name)
		}
	}
	before := files(t, root)

	write(t, root, "etc/runscd/runscd.toml", "# mine\n", 0o644)
	setup(t, root, programs(t, "2"), "install")
	if now := files(t, root); !slices.Equal(now, before) {
		t.Errorf("a second run made %q of %q", now, before)
	}
	if got := read(t, root, "usr/local/lib/runscd/runscd"); !strings.Contains(got, "runscd 2") {
		t.Errorf("not brought up to date: %s", got)
	}
	if got := read(t, root, "etc/runscd/runscd.toml"); got != "# mine\n" {
		t.Errorf("settings are replaced: %s", got)
	}

	out := setup(t, root, "", "uninstall")
	if !strings.Contains(out, "/etc/runscd/runscd.toml") {
		t.Errorf("changed settings are not told: %s", out)
	}
	if now := files(t, root); !slices.Equal(now, []string{"/etc/runscd/runscd.toml"}) {
		t.Errorf("left: %q", now)
	}
	setup(t, root, "", "uninstall")
}

// TestNodeSetupKeepsTheNetwork leaves the CNI configuration to who has made one.
func TestNodeSetupKeepsTheNetwork(t *testing.T) {
	root := t.TempDir()
	write(t, root, "etc/cni/net.d/05-other.conflist", "{}", 0o644)
	setup(t, root, programs(t, "1"))
	setup(t, root, "", "uninstall")
	if now := files(t, root); !slices.Equal(now, []string{"/etc/cni/net.d/05-other.conflist"}) {
		t.Errorf("left: %q", now)
	}
}

func TestNodeSetupRefuses(t *testing.T) {
	for _, cmd := range []*exec.Cmd{
		exec.Command("../../deploy/node-setup.sh", "instal"),
		exec.Command("env", "FROM="+t.TempDir(), "../../deploy/node-setup.sh"),
	} {
		cmd.Env = append(os.Environ(), "DESTDIR="+t.TempDir())
		var exit *exec.ExitError
		if out, err := cmd.CombinedOutput(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("%q: %v: %s", cmd.Args, err, out)
		}
	}
}
