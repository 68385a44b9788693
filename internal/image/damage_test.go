package image

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/runscd/runscd/test/registry/loopback"
)

// damage is what a disk that lost power may have made of a file.
var damage = map[string]func(path string) error{
	"gone":      os.Remove,
	"empty":     func(path string) error { return os.Truncate(path, 0) },
	"truncated": func(path string) error { return half(path, false) },
	"zeroed":    func(path string) error { return half(path, true) },
}

// half cuts off the second half of a file, or makes it zeros.
func half(path string, zero bool) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(path, fi.Size()/2); err != nil || !zero {
		return err
	}
	return os.Truncate(path, fi.Size())
}

func (s *Store) blobPath(d string) string {
	return filepath.Join(s.options.Root, "content", "blobs", "sha256", strings.TrimPrefix(d, "sha256:"))
}

// whole checks that an image is as it was made, down to its files.
func (s *Store) whole(t *testing.T, ref string, src v1.Image) {
	t.Helper()
	img := must(s.Get(t.Context(), ref))(t)
	if want := must(src.ConfigName())(t).String(); img.ID != want {
		t.Errorf("id %s, want %s", img.ID, want)
	}
	check(t, dropDamagedImages(inNamespace(t.Context()), s.images, s.blobs))
	must(s.Get(t.Context(), ref))(t)
	for i := range must(src.Layers())(t) {
		blob := layer(t, src, i).String()
		sum := must(os.ReadFile(s.blobPath(blob)))(t)
		if h, _, err := v1.SHA256(strings.NewReader(string(sum))); err != nil || h.String() != blob {
			t.Errorf("layer %s has digest %s, %v", blob, h, err)
		}
	}
	target := t.TempDir()
	check(t, s.Mount(t.Context(), "whole", img.ID, target, nil))
	if len(entries(t, target)) == 0 {
		t.Error("the root file system is empty")
	}
	check(t, s.Unmount(t.Context(), "whole", target))
}

// TestDamagedImage damages one blob of an image while nobody has the store. The
// image is not there then, and the next pull fetches what is damaged.
func TestDamagedImage(t *testing.T) {
	for how, damage := range damage {
		for what, of := range map[string]func(v1.Image) (v1.Hash, error){
			"manifest": v1.Image.Digest, "config": v1.Image.ConfigName,
			"layer": func(i v1.Image) (v1.Hash, error) { return layer(t, i, 0), nil },
		} {
			if how == "zeroed" && what == "layer" {
				continue // the length is right, and nobody needs it any more
			}
			t.Run(what+" "+how, func(t *testing.T) {
				r := loopback.Start(t, loopback.Options{})
				src, other := noise(t, 1<<16, 1, 2), noise(t, 1<<16, 3)
				ref, well := must(r.Put("app:1", src))(t), must(r.Put("well:1", other))(t)
				s := open(t, Options{})
				must(s.Pull(t.Context(), ref, Auth{}))(t)
				must(s.Pull(t.Context(), well, Auth{}))(t)
				check(t, s.Close())
				check(t, damage(s.blobPath(must(of(src))(t).String())))

				s = open(t, Options{Root: s.options.Root})
				if _, err := s.Get(t.Context(), ref); !errdefs.IsNotFound(err) {
					t.Errorf("damaged image: %v", err)
				}
				if list := must(s.List(t.Context()))(t); len(list) != 1 {
					t.Errorf("images: %v", list)
				}
				must(s.Pull(t.Context(), ref, Auth{}))(t)
				s.whole(t, ref, src)
				s.whole(t, well, other)
			})
		}
	}
}

// TestDamagedLayer has a layer be damaged when its snapshot has to be made again.
func TestDamagedLayer(t *testing.T) {
	for how, damage := range damage {
		t.Run(how, func(t *testing.T) {
			r := loopback.Start(t, loopback.Options{})
			src := noise(t, 1<<16, 1)
			ref := must(r.Put("app:1", src))(t)
			s := open(t, Options{})
			img := must(s.Pull(t.Context(), ref, Auth{}))(t)
			check(t, s.snapshots.Remove(inNamespace(t.Context()), chainID(&img.Spec)))
			check(t, damage(s.blobPath(layer(t, src, 0).String())))
			must(s.Pull(t.Context(), ref, Auth{}))(t)
			s.whole(t, ref, src)
		})
	}
}

// TestPowerLossInAPull kills a pull and then takes from the disk what it had.
func TestPowerLossInAPull(t *testing.T) {
	for how, damage := range damage {
		t.Run(how, func(t *testing.T) {
			var reached atomic.Bool
			hold := make(chan struct{})
			src := noise(t, 1<<20, 1, 2)
			last := layer(t, src, 1)
			r := loopback.Start(t, loopback.Options{OnChunk: func(ctx context.Context, blob v1.Hash, offset int64) error {
				if blob == last && offset > 0 {
					reached.Store(true)
					return wait(ctx, hold)
				}
				return nil
			}})
			ref := must(r.Put("app:1", src))(t)
			root := filepath.Join(t.TempDir(), "images")
			open(t, Options{Root: root}).Close()
			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), envKilledRoot+"="+root, envKilledRef+"="+ref)
			check(t, child.Start())
			blobs := filepath.Join(root, "content", "blobs", "sha256")
			eventually(t, "child does not pull", func() bool { return reached.Load() && len(entries(t, blobs)) >= 3 })
			check(t, child.Process.Kill())
			_ = child.Wait()
			close(hold)
			for _, name := range entries(t, blobs) {
				check(t, damage(filepath.Join(blobs, name)))
			}
			s := open(t, Options{Root: root})
			must(s.Pull(t.Context(), ref, Auth{}))(t)
			s.whole(t, ref, src)
		})
	}
}

// TestDamagedDatabase has a database that cannot be read be told, by name and with
// what to do, and be left as it is.
func TestDamagedDatabase(t *testing.T) {
	for _, name := range []string{"meta.db", "snapshots/metadata.db"} {
		for how, damage := range damage {
			if how == "gone" {
				continue
			}
			t.Run(name+" "+how, func(t *testing.T) {
				r := loopback.Start(t, loopback.Options{})
				ref := must(r.Put("app:1", noise(t, 1<<10, 1, 2, 3, 4)))(t)
				s := open(t, Options{})
				must(s.Pull(t.Context(), ref, Auth{}))(t)
				check(t, s.Close())
				path := filepath.Join(s.options.Root, name)
				check(t, damage(path))
				before := must(os.ReadFile(path))(t)
				s, err := Open(t.Context(), Options{Root: s.options.Root})
				if err == nil {
					t.Log("what is damaged is not in use")
					check(t, s.Close())
					return
				}
				if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "remove ") {
					t.Errorf("error: %v", err)
				}
				if after := must(os.ReadFile(path))(t); string(after) != string(before) {
					t.Error("it was changed")
				}
			})
		}
	}
}
