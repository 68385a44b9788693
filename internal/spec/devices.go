package spec

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// sentryDevices are the character devices that the sentry has itself, by their
// numbers. A file of another number cannot be opened in a sandbox.
var sentryDevices = map[[2]uint32]bool{
	{1, 3}: true, {1, 5}: true, {1, 7}: true, {1, 8}: true, {1, 9}: true, // null, zero, full, random, urandom
	{5, 0}: true, {5, 2}: true, // tty, ptmx
	{10, 200}: true, {10, 229}: true, // net/tun, fuse
}

// addDevices adds the devices of a container and what the CDI has for others. A
// device that a sandbox cannot have is refused by name.
func addDevices(s *specs.Spec, cfg *runtime.ContainerConfig, o ContainerOptions) error {
	for i, d := range cfg.GetDevices() {
		device, err := hostDevice(d)
		if err != nil {
			return fmt.Errorf("devices[%d] %q: %w", i, d.GetHostPath(), err)
		}
		s.Linux.Devices = append(s.Linux.Devices, *device)
	}
	if err := injectCDI(s, cfg.GetCDIDevices(), o.CDISpecDirs); err != nil {
		return err
	}
	for _, d := range s.Linux.Devices {
		proxied := slices.ContainsFunc(o.ProxiedDevices, func(pattern string) bool {
			match, _ := path.Match(pattern, d.Path)
			return match
		})
		if !sentryHas(d) && !proxied {
			return fmt.Errorf("device %s (%s %d:%d): not one that a sandbox has: %w", d.Path, d.Type, d.Major, d.Minor, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// sentryHas tells whether the sentry has a device itself.
func sentryHas(d specs.LinuxDevice) bool {
	return d.Type == "c" && sentryDevices[[2]uint32{uint32(d.Major), uint32(d.Minor)}]
}

// HostDevice returns the path of a device that is the host's, empty if there is none.
func HostDevice(s *specs.Spec) string {
	for _, d := range s.Linux.Devices {
		if !sentryHas(d) {
			return d.Path
		}
	}
	return ""
}

// hostDevice returns a device of the configuration. There is no cgroup for the
// devices of a sandbox that would hold a process to less than reading and writing.
func hostDevice(d *runtime.Device) (*specs.LinuxDevice, error) {
	if p := d.GetPermissions(); p != "" && (!strings.Contains(p, "r") || !strings.Contains(p, "w") || strings.Trim(p, "rwm") != "") {
		return nil, fmt.Errorf("permissions %q: %w", p, errdefs.ErrInvalidArgument)
	}
	inside := d.GetContainerPath()
	if inside == "" {
		inside = d.GetHostPath()
	}
	if !strings.HasPrefix(path.Clean(inside), "/dev/") {
		return nil, fmt.Errorf("container_path %q: not in /dev: %w", inside, errdefs.ErrInvalidArgument)
	}
	real, err := filepath.EvalSymlinks(d.GetHostPath())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	var st unix.Stat_t
	if err := unix.Lstat(real, &st); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	kind := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b"}[st.Mode&unix.S_IFMT]
	if kind == "" {
		return nil, fmt.Errorf("no device: %w", errdefs.ErrInvalidArgument)
	}
	return &specs.LinuxDevice{
		Path: path.Clean(inside), Type: kind,
		Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
	}, nil
}

// injectCDI makes the changes to a spec that the node's CDI files have for
// devices. The files are the administrator's.
func injectCDI(s *specs.Spec, devices []*runtime.CDIDevice, dirs []string) error {
	if len(devices) == 0 {
		return nil
	}
	var names []string
	for _, d := range devices {
		names = append(names, d.GetName())
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("CDI_devices %q: %w", names, err)
	}
	unresolved, err := cache.InjectDevices(s, names...)
	if err != nil {
		var problems []error
		for _, list := range cache.GetErrors() {
			problems = append(problems, list...)
		}
		return fmt.Errorf("CDI_devices %q: %w: %w", unresolved, errors.Join(append(problems, err)...), errdefs.ErrInvalidArgument)
	}
	sortMounts(s.Mounts)
	return nil
}
