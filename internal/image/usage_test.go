package image

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/runscd/runscd/test/registry/loopback"
)

// onDisk is what blobs, downloads and layers take, in bytes.
func onDisk(t *testing.T, s *Store) int64 {
	t.Helper()
	var sum int64
	for _, dir := range []string{"content/blobs", "snapshots/snapshots"} {
		err := filepath.WalkDir(filepath.Join(s.Root(), dir), func(_ string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // just being collected
			}
			if err != nil || d.IsDir() {
				return err
			}
			fi, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil {
				sum += fi.Sys().(*syscall.Stat_t).Blocks * 512
			}
			return err
		})
		check(t, err)
	}
	return sum
}

func TestUsageAddsUp(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	s := open(t, Options{})
	start, containers, err := s.Usage(t.Context())
	check(t, err)
	if start != (Usage{}) || containers != (Usage{}) {
		t.Errorf("empty store: %+v %+v", start, containers)
	}
	img := must(s.Pull(t.Context(), must(r.Put("app:1", noise(t, 1<<20, 1, 2)))(t), Auth{}))(t)
	target := t.TempDir()
	check(t, s.Mount(t.Context(), "c", img.ID, target, nil))
	check(t, os.WriteFile(filepath.Join(target, "f"), make([]byte, 1<<20), 0o644))
	images, containers, err := s.Usage(t.Context())
	check(t, err)
	disk := onDisk(t, s)
	if d := disk - int64(images.Bytes+containers.Bytes); d < -64<<10 || d > 64<<10 {
		t.Errorf("images %d and containers %d, on disk %d", images.Bytes, containers.Bytes, disk)
	}
	if images.Bytes < 4<<20 || containers.Bytes < 1<<20 || containers.Bytes > 2<<20 || images.Inodes < 6 {
		t.Errorf("images %+v, containers %+v", images, containers)
	}

	check(t, s.Unmount(t.Context(), "c", target))
	check(t, s.Remove(t.Context(), img.ID))
	eventually(t, "space not freed", func() bool {
		images, containers, err := s.Usage(t.Context())
		return err == nil && images == start && containers == Usage{} && onDisk(t, s) == 0
	})
}

// Whatever an earlier process left half done goes when the store is opened,
// also what its database no longer knows.
func TestOpenSweeps(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	root := filepath.Join(t.TempDir(), "images")
	s := open(t, Options{Root: root})
	img := must(s.Pull(t.Context(), must(r.Put("app:1", noise(t, 100, 1)))(t), Auth{}))(t)

	ctx := leases.WithLease(s.ctx, must(s.leases.Create(s.ctx, leases.WithID("pull-old"), leases.WithExpiration(pullLease)))(t).ID)
	must(s.snapshots.Prepare(ctx, snapshots.UnpackKeyPrefix+"-123 sha256:"+hex, ""))(t)
	must(s.snapshots.Prepare(s.ctx, "forgotten", ""))(t)
	must(s.backend.Prepare(s.ctx, "unknown to the database", ""))(t)
	stray := []byte("stray")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(stray), Size: int64(len(stray))}
	check(t, content.WriteBlob(s.ctx, s.content, "stray", bytes.NewReader(stray), desc))
	check(t, s.Close())
	// The numbers that the next snapshots get, for one that was not put down.
	for id := range 20 {
		dir := filepath.Join(root, "snapshots", "snapshots", fmt.Sprint(id))
		if err := os.Mkdir(dir, 0o700); err == nil {
			check(t, os.Mkdir(filepath.Join(dir, "fs"), 0o755))
		}
	}
	unknown := filepath.Join(root, "content", "blobs", "sha256", hex)
	check(t, os.WriteFile(unknown, []byte("?"), 0o644))

	s = open(t, Options{Root: root})
	if got := entries(t, root, "snapshots", "snapshots"); len(got) != 1 {
		t.Errorf("snapshots %v", got)
	}
	if got := entries(t, root, "content", "blobs", "sha256"); len(got) != 3 {
		t.Errorf("blobs %v", got)
	}
	must(s.Get(t.Context(), img.ID))(t)
	target := t.TempDir()
	check(t, s.Mount(t.Context(), "c", img.ID, target, nil))
	check(t, s.Unmount(t.Context(), "c", target))
}

func BenchmarkMount(b *testing.B) {
	r := loopback.Start(b, loopback.Options{})
	s := open(b, Options{})
	img := must(s.Pull(b.Context(), must(r.Put("app:1", must(loopback.Busybox(loopback.Config()))(b)))(b), Auth{}))(b)
	target := b.TempDir()
	for b.Loop() {
		check(b, s.Mount(b.Context(), "c", img.ID, target, nil))
		check(b, s.Unmount(b.Context(), "c", target))
	}
}
