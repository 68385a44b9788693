package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/spec"
)

// memoryVolumes finds the pod's emptyDir volumes that are in memory, where the kubelet
// has put them. They become file systems of the sandbox, with the size, the mode and
// the owners that they have here. One with files in it stays the host's.
//
// Those on disk stay the host's too: they are as good as there, and the kubelet
// measures them.
func memoryVolumes(kubeletRoot string, c *runtime.PodSandboxConfig) ([]spec.MemoryVolume, error) {
	uid := c.GetMetadata().GetUid()
	if kubeletRoot == "" || uid == "" || uid == "." || uid == ".." || strings.Contains(uid, "/") {
		return nil, nil
	}
	root, err := filepath.EvalSymlinks(filepath.Join(kubeletRoot, "pods", uid, "volumes", "kubernetes.io~empty-dir"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var volumes []spec.MemoryVolume
	for _, name := range entries(root) {
		path := filepath.Join(root, name)
		var here, above unix.Stat_t
		var fs unix.Statfs_t
		if err := errors.Join(unix.Lstat(path, &here), unix.Lstat(root, &above), unix.Statfs(path, &fs)); err != nil {
			return nil, fmt.Errorf("volume %s: %w", path, err)
		}
		// The kubelet's own directory may be in memory too.
		if fs.Type != unix.TMPFS_MAGIC || here.Dev == above.Dev || strings.Contains(name, ".") || len(entries(path)) > 0 {
			continue
		}
		volumes = append(volumes, spec.MemoryVolume{
			Path: path, Size: fs.Blocks * uint64(fs.Bsize), Mode: here.Mode & 0o7777, UID: here.Uid, GID: here.Gid,
		})
	}
	return volumes, nil
}

// checkSubPaths refuses a container that has a part of a volume in memory when others,
// or itself, have the whole: the part can only be had on the host, and would be another
// volume.
func checkSubPaths(p *Pod, c *runtime.ContainerConfig) error {
	configs := []*runtime.ContainerConfig{c}
	for _, other := range p.home.ContainersOf(p) {
		configs = append(configs, other.Config())
	}
	for _, volume := range p.Facts().MemoryVolumes {
		// <root>/pods/<uid>/volumes/<kind>/<name>, <root>/pods/<uid>/volume-subpaths/<name>/<container>/<n>
		dir, name := filepath.Dir(filepath.Dir(filepath.Dir(volume))), filepath.Base(volume)
		parts := filepath.Join(dir, "volume-subpaths", name) + "/"
		has := func(match func(source string) bool) bool {
			return slices.ContainsFunc(configs, func(c *runtime.ContainerConfig) bool {
				return slices.ContainsFunc(c.GetMounts(), func(m *runtime.Mount) bool {
					source, err := filepath.EvalSymlinks(m.GetHostPath())
					return err == nil && match(source)
				})
			})
		}
		if has(func(s string) bool { return s == volume }) && has(func(s string) bool { return strings.HasPrefix(s, parts) }) {
			return fmt.Errorf("mounts: the volume %q in memory as a whole and a part of it by a sub path: %w", name, errdefs.ErrNotImplemented)
		}
	}
	return nil
}
