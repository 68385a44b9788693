package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// system is the root of a small Debian with packages and a systemd that is but
// a log.
type system struct {
	*testing.T
	root string
}

func newSystem(t *testing.T) *system {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("chroot needs root")
	}
	s := &system{t, t.TempDir()}
	busybox, err := os.ReadFile("/bin/busybox")
	check(t, err)
	write(t, s.root, "bin/busybox", string(busybox), 0o755)
	for _, name := range []string{"sh", "ls", "rm", "cat"} {
		check(t, os.Symlink("busybox", filepath.Join(s.root, "bin", name)))
	}
	check(t, os.MkdirAll(filepath.Join(s.root, "run/systemd/system"), 0o755))
	write(t, s.root, "bin/systemctl", "#!/bin/sh\necho \"$*\" >>/asked\n", 0o755)
	write(t, s.root, "dev/null", "", 0o666)
	write(t, s.root, "var/lib/dpkg/status", "", 0o644)
	write(t, s.root, "var/lib/dpkg/available", "", 0o644)
	for _, dir := range []string{"info", "updates", "triggers"} {
		check(t, os.MkdirAll(filepath.Join(s.root, "var/lib/dpkg", dir), 0o755))
	}
	return s
}

// deb builds a package of programs that are none.
func (s *system) deb(version string) string {
	s.Helper()
	out := filepath.Join(s.TempDir(), "runscd.deb")
	output(s.T, exec.Command("../../deploy/debian/build.sh", programs(s.T, version), version, out))
	return out
}

// dpkg returns what it printed and what systemctl was asked.
func (s *system) dpkg(args ...string) (string, []string) {
	s.Helper()
	check(s.T, os.WriteFile(filepath.Join(s.root, "asked"), nil, 0o644))
	out := output(s.T, exec.Command("dpkg", append([]string{"--root=" + s.root, "--log=" + filepath.Join(s.root, "log")}, args...)...))
	return out, strings.Split(strings.TrimSpace(read(s.T, s.root, "asked")), "\n")
}

func TestPackage(t *testing.T) {
	s := newSystem(t)
	s.dpkg("--install", s.deb("1.0.0-rc1"))
	for _, name := range []string{
		"usr/bin/runscd", "usr/lib/runscd/runscd", "usr/lib/runscd/runsc", "etc/runscd/runscd.toml",
		"usr/share/doc/runscd/copyright", "usr/share/doc/runscd/examples/10-runscd.conflist",
		"usr/share/man/man8/runscd-doctor.8.gz", "usr/share/bash-completion/completions/runscd",
		"usr/share/zsh/vendor-completions/_runscd", "usr/share/fish/vendor_completions.d/runscd.fish",
	} {
		if !exists(s.root, name) {
			t.Errorf("no %s", name)
		}
	}
	write(t, s.root, "etc/runscd/runscd.toml", "# mine\n", 0o644)
	write(t, s.root, "var/lib/runscd/pods/x.json", "{}", 0o644)

	s.dpkg("--install", s.deb("1.0.0")) // the release is newer than its candidate
	if got := read(t, s.root, "etc/runscd/runscd.toml"); got != "# mine\n" {
		t.Errorf("settings are replaced: %s", got)
	}
	if got := read(t, s.root, "usr/lib/runscd/runscd"); !strings.Contains(got, "runscd 1.0.0\n") {
		t.Errorf("not upgraded: %s", got)
	}

	s.dpkg("--remove", "runscd")
	if exists(s.root, "usr/lib/runscd") || !exists(s.root, "etc/runscd/runscd.toml") || !exists(s.root, "var/lib/runscd/pods/x.json") {
		t.Errorf("after removal: %q", files(t, s.root))
	}
	s.dpkg("--purge", "runscd")
	if exists(s.root, "etc/runscd") || exists(s.root, "var/lib/runscd") {
		t.Errorf("after purge: %q", files(t, s.root))
	}
}

// TestPackageWithPods keeps the records of pods that run.
func TestPackageWithPods(t *testing.T) {
	s := newSystem(t)
	s.dpkg("--install", s.deb("1.0.0"))
	write(t, s.root, "var/lib/runscd/pods/x.json", "{}", 0o644)
	check(t, os.MkdirAll(filepath.Join(s.root, "run/runscd/pods/x"), 0o755))
	if out, _ := s.dpkg("--remove", "runscd"); !strings.Contains(out, "there are pods") {
		t.Errorf("removal says: %s", out)
	}
	if out, _ := s.dpkg("--purge", "runscd"); !strings.Contains(out, "there are pods") {
		t.Errorf("purge says: %s", out)
	}
	if !exists(s.root, "var/lib/runscd/pods/x.json") {
		t.Error("the record is gone")
	}
}

// TestPackageService has the daemon started, replaced and stopped, but never
// stopped before its replacement is there.
func TestPackageService(t *testing.T) {
	s := newSystem(t)
	_, asked := s.dpkg("--install", s.deb("1.0.0"))
	s.order(asked, "daemon-reload", "enable runscd.service", "restart runscd.service")
	_, asked = s.dpkg("--install", s.deb("1.0.1"))
	s.order(asked, "daemon-reload", "restart runscd.service")
	if text := strings.Join(asked, "\n"); strings.Contains(text, "stop") || strings.Contains(text, "able ") {
		t.Errorf("an upgrade asks systemd: %q", asked)
	}
	_, asked = s.dpkg("--remove", "runscd")
	s.order(asked, "disable --now runscd.service", "daemon-reload")
}

// order is that systemctl was asked these, in this order.
func (s *system) order(asked []string, want ...string) {
	s.Helper()
	rest := want
	for _, line := range asked {
		if len(rest) > 0 && line == rest[0] {
			rest = rest[1:]
		}
	}
	if len(rest) > 0 {
		s.Errorf("systemctl was asked %q, not %q", asked, rest)
	}
}
