package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// allCapabilities are those of Linux that runsc knows, all of them.
var allCapabilities = []string{
	"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER",
	"CAP_FSETID", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE",
	"CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE",
	"CAP_NET_BROADCAST", "CAP_NET_RAW", "CAP_PERFMON", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
	"CAP_SETUID", "CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE",
	"CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM",
}

// netRaw is the capability that is up to the handler.
const netRaw = "CAP_NET_RAW"

// defaultCapabilities are those that a container has everywhere if it asks for
// nothing.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_MKNOD", "CAP_NET_BIND_SERVICE", netRaw, "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
	"CAP_SETUID", "CAP_SYS_CHROOT",
}

// capabilities returns the sets of a container. The inheritable one has only
// what is ambient: more would let unprivileged processes gain capabilities from
// files. CAP_NET_RAW is in none unless the sandbox has it: runsc would leave it out
// for the container, and give it to what is executed there.
func capabilities(security *runtime.LinuxContainerSecurityContext, withNetRaw bool) (*specs.LinuxCapabilities, error) {
	absent := func(c string) bool { return c == netRaw && !withNetRaw }
	if security.GetPrivileged() {
		all := slices.DeleteFunc(slices.Clone(allCapabilities), absent)
		return &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}, nil
	}
	asked := security.GetCapabilities()
	add, addAll, err := named("add_capabilities", asked.GetAddCapabilities())
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := named("drop_capabilities", asked.GetDropCapabilities())
	if err != nil {
		return nil, err
	}
	ambient, allAmbient, err := named("add_ambient_capabilities", asked.GetAddAmbientCapabilities())
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(slices.Concat(add, ambient), absent) {
		return nil, fmt.Errorf("capability %s: the handler's net_raw is not set: %w", netRaw, errdefs.ErrInvalidArgument)
	}
	set := defaultCapabilities
	if addAll || allAmbient {
		set = allCapabilities
	}
	if allAmbient {
		ambient = allCapabilities
	}
	if dropAll {
		set = nil
	}
	// ALL is where the list begins, and a name in the other list is the exception
	// to it. A name that is added and dropped is dropped.
	dropped := func(c string) bool { return slices.Contains(drop, c) || absent(c) }
	set = slices.DeleteFunc(union(set, add, ambient), dropped)
	ambient = slices.DeleteFunc(union(ambient), dropped)
	return &specs.LinuxCapabilities{
		Bounding: set, Effective: set, Permitted: set,
		Inheritable: ambient, Ambient: ambient,
	}, nil
}

// AllCapabilities are those of a process that may do anything in its sandbox.
func AllCapabilities() *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: allCapabilities, Effective: allCapabilities, Permitted: allCapabilities}
}

// named returns the full names of a list and whether ALL is among them.
func named(field string, list []string) (names []string, all bool, err error) {
	for _, name := range list {
		full := strings.ToUpper(name)
		if full == "ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(full, "CAP_") {
			full = "CAP_" + full
		}
		if !slices.Contains(allCapabilities, full) {
			return nil, false, fmt.Errorf("%s: capability %q: %w", field, name, errdefs.ErrInvalidArgument)
		}
		names = append(names, full)
	}
	return names, all, nil
}

// union returns the names of all lists, sorted, each once.
func union(lists ...[]string) []string {
	all := slices.Concat(lists...)
	slices.Sort(all)
	return slices.Compact(all)
}
