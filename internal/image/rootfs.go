package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// labelRoot keeps a snapshot, and the layers beneath it, from being collected.
const labelRoot = "containerd.io/gc.root"

// Mount makes a writable root file system from an image and mounts it at
// target, an existing directory. Unmount with the same key undoes it. The error
// is of kind ErrNotFound if the image is not there and ErrAlreadyExists if the
// key is in use; then nothing was done.
func (s *Store) Mount(ctx context.Context, key, imageID, target string) error {
	return s.mount(inNamespace(ctx), s.snapshots.Prepare, key, imageID, target)
}

// MountVolume is like Mount for an image that is read as a volume: what it
// mounts cannot be written.
func (s *Store) MountVolume(ctx context.Context, key, imageID, target string) error {
	return s.mount(inNamespace(ctx), s.snapshots.View, key, imageID, target)
}

// prepareFunc makes a snapshot of a parent: to write on (Prepare) or only to
// read (View).
type prepareFunc func(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error)

func (s *Store) mount(ctx context.Context, prepare prepareFunc, key, imageID, target string) error {
	img, err := s.Get(ctx, imageID)
	if err != nil {
		return err
	}
	mounts, err := prepare(ctx, key, chainID(&img.Spec), snapshots.WithLabels(map[string]string{labelRoot: "true"}))
	if err != nil {
		return fmt.Errorf("root file system %s of image %s: %w", key, imageID, err)
	}
	if err := mount.All(mounts, target); err != nil {
		return fmt.Errorf("root file system %s: mount at %s: %w", key, target, errors.Join(err, s.Unmount(ctx, key, target)))
	}
	return nil
}

// Unmount undoes Mount and MountVolume, as far as they were done: what is not
// there needs no undoing. What was written is lost.
func (s *Store) Unmount(ctx context.Context, key, target string) error {
	// Detached, so that a process that still has a file open in it cannot hold
	// up the teardown of its container.
	if err := mount.UnmountAll(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("root file system %s: unmount %s: %w", key, target, err)
	}
	if err := s.snapshots.Remove(inNamespace(ctx), key); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("root file system %s: %w", key, err)
	}
	s.collect()
	return nil
}

// Snapshots lists the keys given to Mount and MountVolume and not yet to
// Unmount, by this process or an earlier one.
func (s *Store) Snapshots(ctx context.Context) ([]string, error) {
	var keys []string
	err := s.snapshots.Walk(inNamespace(ctx), func(_ context.Context, info snapshots.Info) error {
		if info.Labels[labelRoot] != "" {
			keys = append(keys, info.Name)
		}
		return nil
	})
	return keys, err
}
