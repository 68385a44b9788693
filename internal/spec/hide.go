package spec

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sentryFiles are the files among what the sentry itself has in /proc; all else
// there and in /sys is taken for a directory.
var sentryFiles = map[string]bool{
	"/proc/cgroups":        true,
	"/proc/cmdline":        true,
	"/proc/cpuinfo":        true,
	"/proc/devices":        true,
	"/proc/filesystems":    true,
	"/proc/loadavg":        true,
	"/proc/meminfo":        true,
	"/proc/modules":        true,
	"/proc/sentry-meminfo": true,
	"/proc/stat":           true,
	"/proc/sysrq-trigger":  true,
	"/proc/uptime":         true,
	"/proc/version":        true,
}

// sentryLacks are the paths that Kubernetes masks by default. The sentry, which
// is the kernel of a container, has nothing there to be masked.
var sentryLacks = []string{
	"/proc/acpi",
	"/proc/asound",
	"/proc/interrupts",
	"/proc/kcore",
	"/proc/keys",
	"/proc/latency_stats",
	"/proc/sched_debug",
	"/proc/scsi",
	"/proc/timer_list",
	"/proc/timer_stats",
	"/sys/devices/system/cpu/cpu*/thermal_throttle",
	"/sys/devices/virtual/powercap",
	"/sys/firmware",
}

// hide adds mounts over the masked and read-only paths of a container, which
// runsc leaves out of account in a spec. A path that is not in the container is
// passed over.
func hide(list []specs.Mount, security *runtime.LinuxContainerSecurityContext, rootfs string) ([]specs.Mount, error) {
	if security.GetPrivileged() {
		return list, nil
	}
	for _, field := range []struct {
		name  string
		paths []string
		over  func(p, rootfs string, list []specs.Mount) (*specs.Mount, error)
	}{
		{"masked_paths", security.GetMaskedPaths(), mask},
		{"readonly_paths", security.GetReadonlyPaths(), protect},
	} {
		for _, p := range field.paths {
			if !path.IsAbs(p) || path.Clean(p) == "/" {
				return nil, fmt.Errorf("%s: %q: %w", field.name, p, errdefs.ErrInvalidArgument)
			}
			m, err := field.over(path.Clean(p), rootfs, list)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", field.name, err)
			}
			if m != nil {
				list = put(list, *m)
			}
		}
	}
	return list, nil
}

// mask returns the mount that makes a directory or a file empty.
func mask(p, rootfs string, list []specs.Mount) (*specs.Mount, error) {
	for _, pattern := range sentryLacks {
		if match, _ := path.Match(pattern, p); match {
			return nil, nil
		}
	}
	dir := !sentryFiles[p]
	if !sentryOwns(p) {
		at, err := locate(p, rootfs, list)
		if err != nil || at == nil {
			return nil, err
		}
		dir = at.dir
	}
	if dir {
		return &specs.Mount{Destination: p, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}}, nil
	}
	return &specs.Mount{Destination: p, Type: "bind", Source: os.DevNull, Options: []string{"rbind", "rprivate", "ro"}}, nil
}

// protect returns the mount that makes a path read-only.
func protect(p, rootfs string, list []specs.Mount) (*specs.Mount, error) {
	// In the sentry's own trees there is only /proc/sys to be written to, which
	// changes nothing but the sandbox, and no mount that would prevent it.
	if sentryOwns(p) {
		return nil, nil
	}
	at, err := locate(p, rootfs, list)
	if err != nil || at == nil {
		return nil, err
	}
	// Whoever shares the volume could put a link to the host there meanwhile.
	if at.below {
		return nil, fmt.Errorf("%q in a volume: %w", p, errdefs.ErrNotImplemented)
	}
	return &specs.Mount{Destination: p, Type: "bind", Source: at.source, Options: []string{"rbind", "rprivate", "ro"}}, nil
}

// sentryOwns reports whether a path is in a tree that is not the image's.
func sentryOwns(p string) bool {
	for _, tree := range []string{"/proc", "/sys", "/dev"} {
		if p == tree || strings.HasPrefix(p, tree+"/") {
			return true
		}
	}
	return false
}

// place is where on the host a path of the container is.
type place struct {
	source string
	dir    bool
	below  bool // inside a bind mount, which may change at any time
}

// locate finds a path of the container, in the rootfs or in a bind mount. It
// returns nil if there is nothing.
func locate(p, rootfs string, list []specs.Mount) (*place, error) {
	root, rest, volume := rootfs, p, false
	for _, m := range list {
		below, ok := strings.CutPrefix(p+"/", m.Destination+"/")
		if ok && m.Type == "bind" && len(below) < len(rest) {
			root, rest, volume = m.Source, below, true
		}
	}
	source, err := securejoin.SecureJoin(root, rest)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", p, err)
	}
	info, err := os.Lstat(source)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", p, err)
	}
	return &place{source: source, dir: info.IsDir(), below: volume && rest != ""}, nil
}
