package doctor

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/internal/spec"
)

// kernel looks at the kernel's version and what this process may do.
func (n *Node) kernel(context.Context) []Finding {
	var list []Finding
	data, err := os.ReadFile(n.path("proc/sys/kernel/osrelease"))
	release := strings.TrimSpace(string(data))
	var major, minor int
	if _, serr := fmt.Sscanf(release, "%d.%d", &major, &minor); err == nil {
		err = serr
	}
	newer := func(a, b int) bool { return major > a || major == a && minor >= b }
	switch {
	case err != nil:
		list = append(list, found(Fail, "kernel", fmt.Sprintf("version: %v", err), "mount /proc"))
	case !newer(5, 4):
		list = append(list, found(Fail, "kernel", release+" has no pidfds", "run Linux 5.4 or newer, best 5.19 or newer"))
	case !newer(5, 19):
		list = append(list, found(Warn, "kernel", release+" cannot map the ids of overlayfs layers",
			"for pods with user namespaces run Linux 5.19 or newer"))
	default:
		list = append(list, ok("kernel", "%s", release))
	}
	if os.Geteuid() != 0 {
		return append(list, found(Fail, "privileges", fmt.Sprintf("user %d", os.Geteuid()), "run as root"))
	}
	lowest, err := spec.MinOOMScoreAdj()
	if err != nil || lowest > -1000 {
		return append(list, found(Warn, "privileges", fmt.Sprintf("root without CAP_SYS_RESOURCE: oom_score_adj no lower than %d", lowest),
			"give the daemon CAP_SYS_RESOURCE, or critical pods are killed for memory as early as others"))
	}
	return append(list, ok("privileges", "root"))
}

// controllers are what limits and figures of pods need.
var controllers = []string{"cpu", "cpuset", "memory", "pids"}

// cgroups looks at the version, the controllers and the driver.
func (n *Node) cgroups(context.Context) []Finding {
	driver := n.Config.Cgroup.DriverInUse()
	root := n.path("sys/fs/cgroup")
	data, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	unified := err == nil
	var missing, undelegated []string
	if unified {
		have := strings.Fields(string(data))
		passed, _ := os.ReadFile(filepath.Join(root, "cgroup.subtree_control"))
		for _, c := range controllers {
			if !slices.Contains(have, c) {
				missing = append(missing, c)
			} else if !slices.Contains(strings.Fields(string(passed)), c) {
				undelegated = append(undelegated, c)
			}
		}
	} else {
		for _, c := range controllers {
			if _, err := os.Stat(filepath.Join(root, c)); err != nil {
				missing = append(missing, c)
			}
		}
	}
	var list []Finding
	version := "version 1"
	if unified {
		version = "version 2"
	}
	switch {
	case len(missing) > 0:
		list = append(list, found(Fail, "cgroup", fmt.Sprintf("%s without %s", version, strings.Join(missing, ", ")),
			"mount the controllers, or enable them on the kernel's command line, cgroup_enable=memory for one"))
	case unified:
		list = append(list, ok("cgroup", "%s, driver %s", version, driver))
	default:
		list = append(list, found(Warn, "cgroup", fmt.Sprintf("%s, driver %s", version, driver),
			"boot with systemd.unified_cgroup_hierarchy=1: Kubernetes gives version 1 up, set failCgroupV1: false in the kubelet's configuration until then"))
	}
	if len(undelegated) > 0 {
		list = append(list, found(Warn, "cgroup", "the root does not pass on "+strings.Join(undelegated, ", "),
			"write +"+strings.Join(undelegated, " +")+" to /sys/fs/cgroup/cgroup.subtree_control; systemd and the kubelet do it when they start"))
	}
	if _, err := os.Stat(n.path("run/systemd/system")); driver == "systemd" && err != nil {
		list = append(list, found(Fail, "cgroup", "driver systemd, but systemd does not run this machine", `set cgroup.driver = "cgroupfs" or "auto"`))
	}
	return list
}

// platforms looks for what the handlers' platforms need, and for their binaries.
func (n *Node) platforms(context.Context) []Finding {
	var list []Finding
	for _, name := range slices.Sorted(maps.Keys(n.Config.Runtime.Handlers)) {
		h := n.Config.Runtime.Handlers[name]
		path, err := n.Config.Runtime.Runsc(h)
		if err == nil {
			err = unix.Access(path, unix.X_OK)
		}
		if err != nil {
			list = append(list, found(Fail, "runsc", fmt.Sprintf("handler %s: %s: %v", name, path, err),
				"install runsc beside runscd, or set runtime.path"))
			continue
		}
		if h.Platform == "kvm" {
			f, err := os.OpenFile(n.path("dev/kvm"), os.O_RDWR, 0)
			if err != nil {
				list = append(list, found(Fail, "platform", fmt.Sprintf("handler %s: kvm: %v", name, err),
					"load the module kvm_intel or kvm_amd, switch on nested virtualization, or set the handler's platform = \"systrap\""))
				continue
			}
			f.Close()
		}
		list = append(list, ok("platform", "handler %s: %s, %s", name, h.Platform, path))
	}
	return list
}

// sandboxes runs one of each handler.
func (n *Node) sandboxes(ctx context.Context) []Finding {
	if os.Geteuid() != 0 {
		return nil // said already
	}
	handlers, err := n.Try(ctx)
	if err != nil {
		return []Finding{found(Fail, "sandbox", err.Error(), "mend what is said above, then run this again")}
	}
	var list []Finding
	for _, h := range handlers {
		switch {
		case h.Unusable != nil:
			list = append(list, found(Fail, "sandbox", h.Unusable.Error(),
				"run "+h.Path+" do true as root to see it fail by itself; with platform systrap try kvm, and the other way round"))
		case h.NoUserNS != nil:
			list = append(list, found(Warn, "sandbox", fmt.Sprintf("handler %s: %s, without user namespaces: %v", h.Name, h.Version, h.NoUserNS),
				"pods with hostUsers: false are refused; they need idmapped mounts, which ext4, xfs, btrfs and overlayfs have from Linux 5.19 on"))
		default:
			list = append(list, ok("sandbox", "handler %s: %s, with user namespaces", h.Name, h.Version))
		}
	}
	return list
}
