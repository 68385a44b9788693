package spec

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// MaxMounts is how many mounts of the host a container can have. runsc sends the
// sandbox a file for each with one message, and that holds 128.
const MaxMounts = 120

// containerMounts returns all mounts of a container, parents first. A mount of
// the configuration replaces one of ours at the same place.
func containerMounts(cfg *runtime.ContainerConfig, o ContainerOptions) ([]specs.Mount, error) {
	list := ownMounts(cfg.GetLinux().GetSecurityContext(), o)
	for i, m := range cfg.GetMounts() {
		mount, err := bind(m, o.Volumes[i])
		if err != nil {
			return nil, fmt.Errorf("mounts[%d] %q: %w", i, m.GetContainerPath(), err)
		}
		list = put(list, mount)
	}
	inMemory(list, o.MemoryVolumes)
	list, err := hide(list, cfg.GetLinux().GetSecurityContext(), o.Rootfs)
	if err != nil {
		return nil, err
	}
	sortMounts(list)
	return list, nil
}

// countMounts refuses more mounts than a container can have.
func countMounts(list []specs.Mount) error {
	n := 0
	for _, m := range list {
		// Those of CDI files are told by their options, as runsc does.
		if m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind") {
			n++
		}
	}
	if n > MaxMounts {
		return fmt.Errorf("mounts: %d of the host with those over masked and read-only paths and of CDI devices, more than %d: %w", n, MaxMounts, errdefs.ErrInvalidArgument)
	}
	return nil
}

// sortMounts puts parents first.
func sortMounts(list []specs.Mount) {
	slices.SortStableFunc(list, func(a, b specs.Mount) int {
		return cmp.Compare(strings.Count(a.Destination, "/"), strings.Count(b.Destination, "/"))
	})
}

// put adds a mount in place of one at the same destination.
func put(list []specs.Mount, mount specs.Mount) []specs.Mount {
	list = slices.DeleteFunc(list, func(m specs.Mount) bool { return m.Destination == mount.Destination })
	return append(list, mount)
}

// ownMounts are the mounts that every container has. Without the one of the
// cgroups, runsc has no figure for the memory of a container and divides the
// sandbox's by their number.
func ownMounts(security *runtime.LinuxContainerSecurityContext, o ContainerOptions) []specs.Mount {
	access := "ro"
	if security.GetPrivileged() {
		access = "rw"
	}
	list := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec"}},
	}
	// runsc knows this source from the sandbox's annotations, and mounts one
	// tmpfs of its own for all containers that have it.
	if o.Shm != "" {
		list = append(list, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: o.Shm, Options: slices.Concat([]string{"rbind"}, shmOptions)})
	}
	access = "rw"
	if security.GetReadonlyRootfs() {
		access = "ro"
	}
	for _, file := range []struct{ path, source string }{
		{"/etc/hostname", o.Hostname},
		{"/etc/hosts", o.Hosts},
		{"/etc/resolv.conf", o.ResolvConf},
	} {
		if file.source != "" {
			list = append(list, specs.Mount{Destination: file.path, Type: "bind", Source: file.source, Options: []string{"rbind", "rprivate", access}})
		}
	}
	return list
}

// MemoryVolume is a directory of the host in whose place the containers of a pod
// share a file system in the sandbox's memory.
type MemoryVolume struct {
	Path     string
	Size     uint64 // in bytes; 0: no limit
	Mode     uint32
	UID, GID uint32
}

// annotations tell runsc of the nth volume.
func (v MemoryVolume) annotations(n int) map[string]string {
	prefix := fmt.Sprintf("dev.gvisor.spec.mount.memory%d.", n)
	options := fmt.Sprintf("rw,mode=%o,uid=%d,gid=%d", v.Mode, v.UID, v.GID)
	if v.Size > 0 {
		options += fmt.Sprintf(",size=%d", v.Size)
	}
	return map[string]string{
		prefix + "source": v.Path, prefix + "type": "tmpfs", prefix + "share": "pod", prefix + "options": options,
	}
}

// inMemory makes mounts of the pod's volumes in memory what runsc takes for them.
func inMemory(list []specs.Mount, volumes []string) {
	for i, m := range list {
		if m.Type == "bind" && slices.Contains(volumes, m.Source) {
			list[i].Type = "tmpfs"
			list[i].Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "rbind" })
			list[i].UIDMappings, list[i].GIDMappings = nil, nil // it has the ids that they are mapped to
		}
	}
}

// bind returns a mount of the configuration, whose source the daemon may have
// mounted for it.
func bind(m *runtime.Mount, mounted string) (specs.Mount, error) {
	destination := path.Join("/", m.GetContainerPath())
	image := m.GetImage().GetImage() != ""
	switch {
	case destination == "/":
		return specs.Mount{}, fmt.Errorf("container_path %q: %w", m.GetContainerPath(), errdefs.ErrInvalidArgument)
	case destination == "/dev", destination == "/dev/pts", destination == "/proc":
		return specs.Mount{}, fmt.Errorf("the sandbox has its own %s: %w", destination, errdefs.ErrInvalidArgument)
	case image && m.GetHostPath() != "":
		return specs.Mount{}, fmt.Errorf("host_path %q and image %q: %w", m.GetHostPath(), m.GetImage().GetImage(), errdefs.ErrInvalidArgument)
	case image && !m.GetReadonly():
		return specs.Mount{}, fmt.Errorf("image %q without readonly: %w", m.GetImage().GetImage(), errdefs.ErrInvalidArgument)
	case !image && m.GetImageSubPath() != "":
		return specs.Mount{}, fmt.Errorf("image_sub_path %q without image: %w", m.GetImageSubPath(), errdefs.ErrInvalidArgument)
	case (len(m.GetUidMappings()) > 0) != (len(m.GetGidMappings()) > 0):
		return specs.Mount{}, fmt.Errorf("uidMappings without gidMappings, or these alone: %w", errdefs.ErrInvalidArgument)
	case m.GetRecursiveReadOnly() && (!m.GetReadonly() || m.GetPropagation() != runtime.MountPropagation_PROPAGATION_PRIVATE):
		return specs.Mount{}, fmt.Errorf("recursive_read_only without readonly and private: %w", errdefs.ErrInvalidArgument)
	}
	options, err := bindOptions(m, mounted != "")
	if err != nil {
		return specs.Mount{}, err
	}
	source := mounted
	if source == "" {
		if source, err = HostPath(m); err != nil {
			return specs.Mount{}, err
		}
	}
	bound := specs.Mount{Destination: destination, Type: "bind", Source: source, Options: options}
	if !image { // its files are shifted where it is mounted
		bound.UIDMappings, bound.GIDMappings = idMappings(m.GetUidMappings()), idMappings(m.GetGidMappings())
	}
	return bound, nil
}

// bindOptions are runsc's options for a mount. One that is read-only on the host, but
// not with all that is mounted in it, is for the host to refuse writes to.
func bindOptions(m *runtime.Mount, mounted bool) ([]string, error) {
	options := []string{"rbind"}
	switch m.GetPropagation() {
	case runtime.MountPropagation_PROPAGATION_PRIVATE:
		options = append(options, "rprivate")
	case runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		options = append(options, "rslave")
	default:
		return nil, fmt.Errorf("propagation %s: mounts in a sandbox never reach the host: %w", m.GetPropagation(), errdefs.ErrInvalidArgument)
	}
	access := "rw"
	if m.GetReadonly() && (!mounted || m.GetRecursiveReadOnly() || m.GetImage().GetImage() != "") {
		access = "ro"
	}
	options = append(options, access)
	for _, o := range m.GetMountOptions() {
		switch o {
		case "noexec", "nosuid", "nodev", "noatime":
			options = append(options, o)
		default:
			return nil, fmt.Errorf("mount_options: %q: %w", o, errdefs.ErrNotImplemented)
		}
	}
	return options, nil
}

// HostPath follows the links of a mount's path on the host. One that is not
// there becomes a directory, as users have come to expect of hostPath volumes.
func HostPath(m *runtime.Mount) (string, error) {
	hostPath := m.GetHostPath()
	if !filepath.IsAbs(hostPath) {
		return "", fmt.Errorf("host_path %q: %w", hostPath, errdefs.ErrInvalidArgument)
	}
	real, err := filepath.EvalSymlinks(hostPath)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(hostPath, 0o755); err != nil {
			return "", fmt.Errorf("host_path: %w", err)
		}
		real, err = filepath.EvalSymlinks(hostPath)
	}
	if err != nil {
		return "", fmt.Errorf("host_path: %w", err)
	}
	return real, nil
}
