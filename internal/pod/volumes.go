package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/spec"
)

// volumeKey names what is mounted for a mount of a container's configuration.
func volumeKey(id string, mount int) string { return id + "-" + strconv.Itoa(mount) }

// ownedMounts are the mounts of a container that the daemon itself makes on the
// host first, by their place in the configuration: images, and directories that
// are read-only with all that is mounted in them.
func ownedMounts(c *runtime.ContainerConfig) map[int]*runtime.Mount {
	owned := map[int]*runtime.Mount{}
	for i, m := range c.GetMounts() {
		if m.GetImage().GetImage() != "" || m.GetRecursiveReadOnly() {
			owned[i] = m
		}
	}
	return owned
}

// mountsToMake are the ownedMounts, and those read-only ones of directories in which
// something is mounted: what is below stays as it is on the host, but runsc has a
// mount read-only as a whole. A directory with mounts of the daemon's own is left to
// runsc: each copy of it would have all copies that were made before.
func mountsToMake(r *Registry, c *runtime.ContainerConfig) (map[int]*runtime.Mount, error) {
	owned := ownedMounts(c)
	var points []string
	for i, m := range c.GetMounts() {
		if owned[i] != nil || !m.GetReadonly() || m.GetPropagation() != runtime.MountPropagation_PROPAGATION_PRIVATE {
			continue
		}
		source, err := filepath.EvalSymlinks(m.GetHostPath())
		if err != nil {
			continue // it is made, or refused
		}
		if points == nil {
			all, err := mountinfo.GetMounts(nil)
			if err != nil {
				return nil, err
			}
			for _, p := range all {
				points = append(points, p.Mountpoint)
			}
		}
		if slices.ContainsFunc(points, below(source)) && !below(source)(r.State) && source != r.State {
			owned[i] = m
		}
	}
	return owned, nil
}

// below tells whether a path is below a directory.
func below(dir string) func(path string) bool {
	prefix := strings.TrimSuffix(dir, "/") + "/"
	return func(path string) bool { return strings.HasPrefix(path, prefix) }
}

// resolveVolumes finds the images that are mounted as volumes: their ids by the
// mount's place in the configuration.
func resolveVolumes(ctx context.Context, images Images, c *runtime.ContainerConfig) (map[int]string, error) {
	var ids map[int]string
	for i, m := range ownedMounts(c) {
		ref := m.GetImage().GetImage()
		if ref == "" {
			continue
		}
		img, err := images.Get(ctx, ref)
		if err != nil {
			return nil, volumeFailed(i, m, err)
		}
		if ids == nil {
			ids = map[int]string{}
		}
		ids[i] = img.ID
	}
	return ids, nil
}

// volumeFailed is an error about an image volume. The kubelet knows it by the
// first word.
func volumeFailed(i int, m *runtime.Mount, err error) error {
	return fmt.Errorf("ImageVolumeMountFailed: mounts[%d] %q: image %q: %w", i, m.GetContainerPath(), m.GetImage().GetImage(), err)
}

// mountVolumes mounts what the daemon makes of the container's mounts and returns
// where, by the place in the configuration. Unmounting is the teardown's.
func mountVolumes(ctx context.Context, c *Container) (map[int]string, error) {
	r := c.Pod.home
	owned, err := mountsToMake(r, c.Config())
	if err != nil {
		return nil, err
	}
	mounted := map[int]string{}
	for i, m := range owned {
		target := r.volume(volumeKey(c.ID, i))
		if err := os.MkdirAll(filepath.Dir(target), 0o711); err != nil {
			return nil, err
		}
		if id := c.Facts().VolumeIDs[i]; id != "" {
			err := os.Mkdir(target, 0o711)
			if err != nil {
				return nil, err
			}
			if err := r.Images.MountVolume(ctx, volumeKey(c.ID, i), id, target, c.Pod.idMap()); err != nil {
				return nil, volumeFailed(i, m, err)
			}
			if target, err = inImage(target, m.GetImageSubPath()); err != nil {
				return nil, volumeFailed(i, m, err)
			}
		} else if err := mountReadOnly(m, target); err != nil {
			return nil, fmt.Errorf("mounts[%d] %q: read-only: %w", i, m.GetContainerPath(), err)
		}
		mounted[i] = target
	}
	return mounted, nil
}

// inImage returns the place of a sub path in a mounted image. The image cannot
// be written, so what is found stays there.
func inImage(mounted, subPath string) (string, error) {
	place, err := securejoin.SecureJoin(mounted, subPath)
	if err == nil {
		_, err = os.Lstat(place)
	}
	if err != nil || subPath != "" && !filepath.IsLocal(subPath) {
		return "", fmt.Errorf("image_sub_path %q: %w: %w", subPath, cmp.Or(err, fs.ErrInvalid), errdefs.ErrInvalidArgument)
	}
	return place, nil
}

// mountReadOnly mounts the source of a mount at target, read-only, with all that
// is mounted in it where that is asked for. It never is there writable.
func mountReadOnly(m *runtime.Mount, target string) error {
	source, err := spec.HostPath(m)
	if err != nil {
		return err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("open_tree %s: %w", source, err)
	}
	defer unix.Close(tree)
	private := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &private); err != nil {
		return fmt.Errorf("mount_setattr of %s: %w", source, err)
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if m.GetRecursiveReadOnly() {
		flags |= unix.AT_RECURSIVE
	}
	if err := unix.MountSetattr(tree, "", flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("mount_setattr of %s: %w", source, err)
	}
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.Mkdir(target, 0o711)
	} else {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil {
		return err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount to %s: %w", target, err)
	}
	return nil
}

// HasRecursiveReadOnly tells whether the kernel can make mounts read-only with
// all that is mounted in them.
func HasRecursiveReadOnly() bool {
	return !errors.Is(unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}), unix.ENOSYS)
}

// unmountVolumes undoes mountVolumes, as far as it was done.
func unmountVolumes(ctx context.Context, c *Container) error {
	if c.foreign {
		return unmountLost(ctx, c)
	}
	r := c.Pod.home
	keys := map[string]bool{}
	for i := range ownedMounts(c.Config()) {
		keys[volumeKey(c.ID, i)] = true
	}
	for _, n := range entries(filepath.Join(r.containerDir(c.ID), "volumes")) {
		keys[c.ID+"-"+n] = true
	}
	var errs []error
	for key := range keys {
		errs = append(errs, r.Images.Unmount(ctx, key, r.volume(key)))
	}
	return errors.Join(errs...)
}

// unmountStray takes away what is mounted for a container without a record, by
// the key of a snapshot or the name of a directory.
func unmountStray(ctx context.Context, r *Registry, key string) error {
	id, _, volume := strings.Cut(key, "-")
	if volume {
		return r.Images.Unmount(ctx, key, r.volume(key))
	}
	errs := []error{r.Images.Unmount(ctx, id, r.rootfs(id))}
	for _, n := range entries(filepath.Join(r.containerDir(id), "volumes")) {
		errs = append(errs, r.Images.Unmount(ctx, id+"-"+n, filepath.Join(r.containerDir(id), "volumes", n)))
	}
	return errors.Join(errs...)
}
