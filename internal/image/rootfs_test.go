package image

import (
	"archive/tar"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/runscd/runscd/test/registry/loopback"
)

func TestRootfs(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	s := open(t, Options{})
	lower := must(loopback.Layer(false, loopback.Dir("d", 0o755), loopback.File("d/gone", 0o644, nil), loopback.File("d/kept", 0o600, []byte("1"))))(t)
	upper := must(loopback.Layer(true, loopback.File("d/.wh.gone", 0, nil), loopback.Link("link", "/etc/shadow")))(t)
	src := must(loopback.Image(loopback.Config(), lower, upper))(t)
	img := must(s.Pull(t.Context(), must(r.Put("app:1", src))(t), Auth{}))(t)

	key, target := strings.Repeat("ab", 32), t.TempDir()
	check(t, s.Mount(t.Context(), key, img.ID, target, nil))
	if got := entries(t, target, "d"); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("whiteout ignored: %v", got)
	}
	if err := s.Mount(t.Context(), key, img.ID, target, nil); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second mount: %v", err)
	}
	before := must(s.WritableUsage(t.Context(), key))(t)
	check(t, os.WriteFile(filepath.Join(target, "new"), make([]byte, 1<<20), 0o644))
	after := must(s.WritableUsage(t.Context(), key))(t)
	if d := after.Bytes - before.Bytes; d < 1<<20 || d > 2<<20 || after.Inodes <= before.Inodes {
		t.Errorf("usage %+v, then %+v", before, after)
	}
	if keys := must(s.Snapshots(t.Context()))(t); !slices.Equal(keys, []string{key}) {
		t.Errorf("snapshots %v", keys)
	}
	for range 2 {
		check(t, s.Unmount(t.Context(), key, target))
	}
	check(t, s.Unmount(t.Context(), key, filepath.Join(target, "not", "there")))
	if got := entries(t, target); len(got) != 0 {
		t.Errorf("still mounted: %v", got)
	}
	if _, err := s.WritableUsage(t.Context(), key); !errdefs.IsNotFound(err) {
		t.Errorf("usage of what is not there: %v", err)
	}
	if err := s.Mount(t.Context(), key, "sha256:"+hex, target, nil); !errdefs.IsNotFound(err) {
		t.Errorf("mount of an unknown image: %v", err)
	}
	if err := s.Mount(t.Context(), key, img.ID, filepath.Join(target, "not", "there"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("mount at no directory: %v", err)
	}
	if keys := must(s.Snapshots(t.Context()))(t); len(keys) != 0 {
		t.Errorf("snapshots of failed mounts: %v", keys)
	}
}

func TestVolumeIsReadOnly(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	s := open(t, Options{})
	for name, seeds := range map[string][]uint64{"one:1": {1}, "two:1": {1, 2}} {
		img := must(s.Pull(t.Context(), must(r.Put(name, noise(t, 100, seeds...)))(t), Auth{}))(t)
		target := t.TempDir()
		check(t, s.MountVolume(t.Context(), "volume", img.ID, target, nil))
		if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: write: %v", name, err)
		}
		if got := entries(t, target); len(got) != len(seeds) {
			t.Errorf("%s: files %v", name, got)
		}
		check(t, s.Unmount(t.Context(), "volume", target))
	}
}

// The layers of an image that is removed while a container uses it go with the
// container.
func TestRemoveInUse(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	s := open(t, Options{})
	img := must(s.Pull(t.Context(), must(r.Put("app:1", noise(t, 100, 1, 2)))(t), Auth{}))(t)
	target := t.TempDir()
	check(t, s.Mount(t.Context(), "c", img.ID, target, nil))
	check(t, s.Remove(t.Context(), img.ID))
	eventually(t, "blobs stay", func() bool { return len(entries(t, s.Root(), "content", "blobs", "sha256")) == 0 })
	if got := entries(t, target); len(got) != 2 {
		t.Errorf("files %v", got)
	}
	if got := entries(t, s.Root(), "snapshots", "snapshots"); len(got) != 3 {
		t.Errorf("snapshots %v", got)
	}
	check(t, s.Unmount(t.Context(), "c", target))
	eventually(t, "layers stay", func() bool { return len(entries(t, s.Root(), "snapshots", "snapshots")) == 0 })
}

func TestSnapshotsSurviveRestart(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	root := filepath.Join(t.TempDir(), "images")
	s := open(t, Options{Root: root})
	img := must(s.Pull(t.Context(), must(r.Put("app:1", noise(t, 100, 1)))(t), Auth{}))(t)
	target := t.TempDir()
	check(t, s.Mount(t.Context(), "c", img.ID, target, nil))
	check(t, s.Close())

	s = open(t, Options{Root: root})
	if got := must(s.List(t.Context()))(t); len(got) != 1 || got[0].ID != img.ID {
		t.Errorf("images %v", got)
	}
	if keys := must(s.Snapshots(t.Context()))(t); !slices.Equal(keys, []string{"c"}) {
		t.Errorf("snapshots %v", keys)
	}
	if got := entries(t, target); len(got) != 1 {
		t.Errorf("files %v", got)
	}
	check(t, s.Unmount(t.Context(), "c", target))
}

func TestLayerCannotEscape(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	s := open(t, Options{})
	outside := filepath.Join(t.TempDir(), "outside")
	check(t, os.Mkdir(outside, 0o755))
	up := strings.Repeat("../", 30)
	hard := loopback.Entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: up + "etc/hostname"}}
	for name, layerEntries := range map[string][]loopback.Entry{
		"evil:dots":     {loopback.File(up+outside[1:]+"/file", 0o644, nil)},
		"evil:absolute": {loopback.File(outside+"/file", 0o644, nil)},
		"evil:link":     {loopback.Link("l", outside), loopback.File("l/file", 0o644, nil)},
		"evil:hard":     {hard},
		"evil:whiteout": {loopback.Link("l", outside), loopback.File("l/.wh.marker", 0o644, nil)},
	} {
		check(t, os.WriteFile(filepath.Join(outside, "marker"), nil, 0o644))
		src := must(loopback.Image(loopback.Config(), must(loopback.Layer(false, layerEntries...))(t)))(t)
		// Whether it is refused or unpacked within its root is the library's choice.
		_, err := s.Pull(t.Context(), must(r.Put(name, src))(t), Auth{})
		t.Logf("%s: %v", name, err)
		if got := entries(t, outside); !slices.Equal(got, []string{"marker"}) {
			t.Errorf("%s: outside: %v", name, got)
		}
	}
}

// The image for `make run` works, also for a user of its own.
func TestBusyboxRuns(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	s := open(t, Options{})
	config := loopback.Config()
	img := must(s.Pull(t.Context(), must(r.Put("busybox:1", must(loopback.Busybox(config))(t)))(t), Auth{}))(t)
	target := t.TempDir()
	check(t, s.Mount(t.Context(), "c", img.ID, target, nil))
	defer func() { check(t, s.Unmount(t.Context(), "c", target)) }()
	cmd := exec.Command("/bin/sh", "-c", "id -un && id -Gn && cat /etc/group | wc -l && touch /tmp/x ~/x && ls /root")
	cmd.Dir = "/"
	cmd.Env = append(config.Env, "HOME=/home/user")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: target, Credential: &syscall.Credential{Uid: 1000, Gid: 1000, Groups: []uint32{2000}}}
	out, err := cmd.CombinedOutput()
	want := "user\nuser extra\n4\nls: can't open '/root': Permission denied\n"
	if string(out) != want || err == nil {
		t.Errorf("output %q, %v", out, err)
	}
}

// TestIDMap has the files of an image, and what is new beside them, belong to
// others; the layers themselves are as they were.
func TestIDMap(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	s := open(t, Options{})
	ids := &IDMap{UIDs: "0:70000:65536", GIDs: "0:70000:65536"}
	userns := must(mount.GetUsernsFD(ids.UIDs, ids.GIDs))(t)
	defer userns.Close()
	for range 2 {
		check(t, s.CheckIDMap(userns))
	}
	check(t, mount.SetTempMountLocation(t.TempDir()))
	lower := must(loopback.Layer(false, loopback.Dir("d", 0o755), loopback.File("d/file", 0o644, nil)))(t)
	one := must(s.Pull(t.Context(), must(r.Put("one:1", must(loopback.Image(loopback.Config(), lower))(t)))(t), Auth{}))(t)
	upper := must(loopback.Layer(false, loopback.File("d/other", 0o644, nil)))(t)
	two := must(s.Pull(t.Context(), must(r.Put("two:1", must(loopback.Image(loopback.Config(), lower, upper))(t)))(t), Auth{}))(t)
	owner := func(path string) uint32 {
		t.Helper()
		return must(os.Stat(path))(t).Sys().(*syscall.Stat_t).Uid
	}
	for name, img := range map[string]*Image{"one layer": one, "two layers": two} {
		rootfs, volume, plain := t.TempDir(), t.TempDir(), t.TempDir()
		check(t, s.Mount(t.Context(), "c", img.ID, rootfs, ids))
		check(t, s.MountVolume(t.Context(), "c-1", img.ID, volume, ids))
		check(t, s.Mount(t.Context(), "d", img.ID, plain, nil))
		for _, path := range []string{rootfs, filepath.Join(rootfs, "d/file"), filepath.Join(volume, "d/file")} {
			if got := owner(path); got != 70000 {
				t.Errorf("%s: %s belongs to %d", name, path, got)
			}
		}
		if got := owner(filepath.Join(plain, "d/file")); got != 0 {
			t.Errorf("%s: without a map it belongs to %d", name, got)
		}
		for key, target := range map[string]string{"c": rootfs, "c-1": volume, "d": plain} {
			check(t, s.Unmount(t.Context(), key, target))
		}
	}
}
