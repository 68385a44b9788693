package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// labelRoot keeps a snapshot, and the layers beneath it, from being collected.
const labelRoot = "containerd.io/gc.root"

// IDMap shifts the owners of an image's files to those of a user namespace. Both
// are of the form container:host:length.
type IDMap struct{ UIDs, GIDs string }

// CheckIDMap returns why the owners of files cannot be shifted to those of a user
// namespace, nil if they can.
func (s *Store) CheckIDMap(userns *os.File) (err error) {
	target := filepath.Join(s.options.Root, "idmap")
	// A killed daemon may have left it mounted.
	if err := errors.Join(os.MkdirAll(target, 0o700), mount.UnmountAll(target, unix.MNT_DETACH)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.UnmountAll(target, unix.MNT_DETACH), os.Remove(target)) }()
	if err := mount.IDMapMount(filepath.Join(s.options.Root, "snapshots"), target, int(userns.Fd())); err != nil {
		return fmt.Errorf("mount of the layers with shifted ids: %w", err)
	}
	return nil
}

// Mount makes a writable root file system from an image and mounts it at
// target, an existing directory. ids is nil for files that keep their owners.
// Unmount with the same key undoes it. The error is of kind ErrNotFound if the
// image is not there and ErrAlreadyExists if the key is in use; then nothing was
// done.
func (s *Store) Mount(ctx context.Context, key, imageID, target string, ids *IDMap) error {
	return s.mount(inNamespace(ctx), snapshot{s.snapshots.Prepare, key, ids}, imageID, target)
}

// MountVolume is like Mount for an image that is read as a volume: what it
// mounts cannot be written.
func (s *Store) MountVolume(ctx context.Context, key, imageID, target string, ids *IDMap) error {
	return s.mount(inNamespace(ctx), snapshot{s.snapshots.View, key, ids}, imageID, target)
}

// snapshot is a snapshot that is to be made: to write on (Prepare) or only to
// read (View).
type snapshot struct {
	prepare func(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error)
	key     string
	ids     *IDMap
}

func (s *Store) mount(ctx context.Context, sn snapshot, imageID, target string) error {
	img, err := s.Get(ctx, imageID)
	if err != nil {
		return err
	}
	labels := map[string]string{labelRoot: "true"}
	if sn.ids != nil {
		labels[snapshots.LabelSnapshotUIDMapping] = sn.ids.UIDs
		labels[snapshots.LabelSnapshotGIDMapping] = sn.ids.GIDs
	}
	mounts, err := sn.prepare(ctx, sn.key, chainID(&img.Spec), snapshots.WithLabels(labels))
	if err != nil {
		return fmt.Errorf("root file system %s of image %s: %w", sn.key, imageID, err)
	}
	err = mount.All(mounts, target)
	if bound := mounts[0]; err == nil && sn.ids != nil && bound.Type == "bind" && slices.Contains(bound.Options, "ro") {
		err = shift(target, sn.ids)
	}
	if err != nil {
		return fmt.Errorf("root file system %s: mount at %s: %w", sn.key, target, errors.Join(err, s.Unmount(ctx, sn.key, target)))
	}
	return nil
}

// shift does to a read-only bind mount what the library does to all others but
// to those.
func shift(target string, ids *IDMap) error {
	fd, err := mount.GetUsernsFD(ids.UIDs, ids.GIDs)
	if err != nil {
		return err
	}
	defer fd.Close()
	return mount.IDMapMountWithAttrs(target, target, int(fd.Fd()), unix.MOUNT_ATTR_RDONLY, 0)
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
