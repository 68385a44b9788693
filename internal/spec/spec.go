// Package spec turns what the CRI asks for into the OCI runtime specs that
// runsc is given.
//
// What it keeps true: a spec never asks for something that runsc would silently
// leave out while the CRI promises it; such a request is an error that names
// the field. Nothing that a pod's author may write, such as annotations, becomes
// a key of runsc. What comes from an image is hostile input.
package spec

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/limit"
)

// The annotations that tell runsc which container of which sandbox a spec is,
// and its metrics what to call it.
const (
	containerType    = "io.kubernetes.cri.container-type"
	sandboxID        = "io.kubernetes.cri.sandbox-id"
	containerName    = "io.kubernetes.cri.container-name"
	sandboxName      = "io.kubernetes.cri.sandbox-name"
	sandboxNamespace = "io.kubernetes.cri.sandbox-namespace"
	sandboxUID       = "io.kubernetes.cri.sandbox-uid"
)

// shmOptions are the mount options of a pod's /dev/shm.
var shmOptions = []string{"rw", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}

// SandboxOptions is what the daemon decides about a pod's root container.
type SandboxOptions struct {
	ID          string
	Rootfs      string            // read-only directory with the pause program
	Args        []string          // of the pause program
	NetNS       string            // path of the network namespace; empty for the host's
	CgroupsPath string            // see CgroupsPath
	Shm         string            // host directory that stands for the pod's /dev/shm
	Memory      []MemoryVolume    // that its containers may mount
	Annotations map[string]string // of runsc, as for an EROFS rootfs
	// Above are the limits of the cgroup_parent, as far as runsc does not look
	// there itself for the CPUs and the memory that it shows to the pod.
	Above limit.Limits
	// Allowed are the names of the pod's annotations that runsc is given. A * at
	// the end of one stands for any rest.
	Allowed []string
}

// Sandbox returns the spec of a pod's root container, a pause program that holds
// the sandbox. The error is ErrInvalidArgument or ErrNotImplemented and names
// the field of the configuration.
func Sandbox(cfg *runtime.PodSandboxConfig, o SandboxOptions) (*specs.Spec, error) {
	security := cfg.GetLinux().GetSecurityContext()
	if cfg.GetWindows() != nil {
		return nil, fmt.Errorf("windows: %w", errdefs.ErrInvalidArgument)
	}
	if err := checkNamespaces(security.GetNamespaceOptions()); err != nil {
		return nil, err
	}
	if security.GetRunAsGroup() != nil && security.GetRunAsUser() == nil {
		return nil, fmt.Errorf("run_as_group %d without run_as_user: %w", security.GetRunAsGroup().GetValue(), errdefs.ErrInvalidArgument)
	}
	if err := checkSandboxProfiles(security); err != nil {
		return nil, err
	}
	sysctls, err := sandboxSysctls(cfg.GetLinux())
	if err != nil {
		return nil, err
	}
	resources, err := sandboxResources(cfg.GetLinux(), o.Above)
	if err != nil {
		return nil, err
	}

	userNS := security.GetNamespaceOptions().GetUsernsOptions()
	annotations := allowed(o.Allowed, cfg.GetAnnotations())
	maps.Copy(annotations, podAnnotations(cfg, "sandbox", o.ID))
	if o.Shm != "" {
		maps.Copy(annotations, map[string]string{
			"dev.gvisor.spec.mount.shm.source":  o.Shm,
			"dev.gvisor.spec.mount.shm.type":    "tmpfs",
			"dev.gvisor.spec.mount.shm.share":   "pod",
			"dev.gvisor.spec.mount.shm.options": strings.Join(shmOptions, ","),
		})
	}
	for i, v := range o.Memory {
		maps.Copy(annotations, v.annotations(i))
	}
	maps.Copy(annotations, o.Annotations)

	return &specs.Spec{
		Version:  specs.Version,
		Hostname: cfg.GetHostname(),
		Process: &specs.Process{
			Args:            o.Args,
			Cwd:             "/",
			Capabilities:    &specs.LinuxCapabilities{},
			NoNewPrivileges: true,
			Rlimits:         rlimits(),
		},
		Root: &specs.Root{Path: o.Rootfs, Readonly: true},
		// From here containers are shown their limits.
		Mounts:      []specs.Mount{{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev"}}},
		Annotations: annotations,
		Linux: &specs.Linux{
			CgroupsPath: o.CgroupsPath,
			Namespaces:  namespaces(o.NetNS, append(userNamespace(userNS), specs.LinuxNamespace{Type: specs.PIDNamespace})...),
			Resources:   resources,
			Sysctl:      sysctls,
			UIDMappings: idMappings(userNS.GetUids()),
			GIDMappings: idMappings(userNS.GetGids()),
		},
	}, nil
}

// CgroupsPath returns the cgroup of a sandbox below its pod's cgroup, in the
// form that runsc has for the cgroup driver: a path, or slice:prefix:name for
// systemd. A pod without a parent is below the root, or in system.slice.
func CgroupsPath(systemd bool, parent, id string) (string, error) {
	if !systemd {
		return path.Join("/", parent, id), nil
	}
	slice := "system.slice"
	if parent != "" {
		slice = path.Base(parent)
	}
	if !strings.HasSuffix(slice, ".slice") || strings.Contains(slice, ":") {
		return "", fmt.Errorf("cgroup_parent %q is no slice: %w", parent, errdefs.ErrInvalidArgument)
	}
	return slice + ":runscd:" + id, nil
}

// Scope is the unit that systemd makes of a sandbox's CgroupsPath.
func Scope(id string) string { return "runscd-" + id + ".scope" }

// allowed returns the annotations whose names are in a list, see SandboxOptions.
func allowed(list []string, annotations map[string]string) map[string]string {
	chosen := map[string]string{}
	for name, value := range annotations {
		if slices.ContainsFunc(list, func(a string) bool {
			prefix, any := strings.CutSuffix(a, "*")
			return name == a || any && strings.HasPrefix(name, prefix)
		}) {
			chosen[name] = value
		}
	}
	return chosen
}

func podAnnotations(pod *runtime.PodSandboxConfig, kind, sandbox string) map[string]string {
	return map[string]string{
		containerType:    kind,
		sandboxID:        sandbox,
		sandboxName:      pod.GetMetadata().GetName(),
		sandboxNamespace: pod.GetMetadata().GetNamespace(),
		sandboxUID:       pod.GetMetadata().GetUid(),
	}
}

// checkNamespaces refuses the host's namespaces that a sandbox cannot be in.
func checkNamespaces(o *runtime.NamespaceOption) error {
	if o.GetPid() == runtime.NamespaceMode_NODE {
		return fmt.Errorf("host pid namespace: processes of a sandbox are not the host's: %w", errdefs.ErrInvalidArgument)
	}
	if m := o.GetIpc(); m != runtime.NamespaceMode_POD {
		return fmt.Errorf("ipc namespace mode %s: a sandbox has one, its own: %w", m, errdefs.ErrInvalidArgument)
	}
	if m := o.GetNetwork(); m != runtime.NamespaceMode_POD && m != runtime.NamespaceMode_NODE {
		return fmt.Errorf("network namespace mode %s: %w", m, errdefs.ErrInvalidArgument)
	}
	return checkUserNS(o)
}

// sysctlName is the form of a sysctl's name: words with dots between.
var sysctlName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+$`)

// sandboxSysctls returns the sysctls that runsc itself reads. The others are set
// in the sandbox; see HasNoFile.
func sandboxSysctls(cfg *runtime.LinuxPodSandboxConfig) (map[string]string, error) {
	hostNetwork := cfg.GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtime.NamespaceMode_NODE
	var read map[string]string
	for name, value := range cfg.GetSysctls() {
		switch {
		case !sysctlName.MatchString(name):
			return nil, fmt.Errorf("sysctl %q: no such name: %w", name, errdefs.ErrInvalidArgument)
		case hostNetwork && strings.HasPrefix(name, "net."):
			return nil, fmt.Errorf("sysctl %q: the network is the host's: %w", name, errdefs.ErrInvalidArgument)
		case name == unprivilegedPorts:
			if value != "0" {
				return nil, fmt.Errorf("sysctl %q: %q: a sandbox keeps no port from anybody: %w", name, value, errdefs.ErrInvalidArgument)
			}
		case name == disableIPv6:
			if value != "0" && value != "1" {
				return nil, fmt.Errorf("sysctl %q: %q: %w", name, value, errdefs.ErrInvalidArgument)
			}
			read = map[string]string{name: value}
		}
	}
	return read, nil
}

// The sysctls that hold in a sandbox, which has no file for them: runsc reads the one
// from the spec, and the other one is 0 in each.
const (
	disableIPv6       = "net.ipv6.conf.all.disable_ipv6"
	unprivilegedPorts = "net.ipv4.ip_unprivileged_port_start"
)

// HasNoFile tells whether a sysctl of a pod is not one to be set in the sandbox.
func HasNoFile(sysctl string) bool { return sysctl == disableIPv6 || sysctl == unprivilegedPorts }

// namespaces are those of a container in the network namespace at netns, or in
// the host's. The IPC and UTS namespaces are the sandbox's in any case.
func namespaces(netns string, more ...specs.LinuxNamespace) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{
		{Type: specs.MountNamespace},
		{Type: specs.IPCNamespace},
		{Type: specs.UTSNamespace},
	}
	if netns != "" {
		list = append(list, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netns})
	}
	return append(list, more...)
}

// rlimits returns all limits there are. runsc keeps one set for the whole
// sandbox: a limit that is left out is the one of the container before.
func rlimits() []specs.POSIXRlimit {
	const unlimited = ^uint64(0)
	limit := func(name string, soft, hard uint64) specs.POSIXRlimit {
		return specs.POSIXRlimit{Type: "RLIMIT_" + name, Soft: soft, Hard: hard}
	}
	return []specs.POSIXRlimit{
		limit("AS", unlimited, unlimited),
		limit("CORE", unlimited, unlimited),
		limit("CPU", unlimited, unlimited),
		limit("DATA", unlimited, unlimited),
		limit("FSIZE", unlimited, unlimited),
		limit("LOCKS", unlimited, unlimited),
		limit("MEMLOCK", 64<<10, 64<<10),
		limit("MSGQUEUE", 800<<10, 800<<10),
		limit("NICE", 0, 0),
		limit("NOFILE", 1<<20, 1<<20),
		limit("NPROC", unlimited, unlimited),
		limit("RSS", unlimited, unlimited),
		limit("RTPRIO", 0, 0),
		limit("RTTIME", unlimited, unlimited),
		limit("SIGPENDING", 0, 0),
		limit("STACK", 8<<20, unlimited),
	}
}

// SandboxOf returns the id of the sandbox of a container's spec.
func SandboxOf(s *specs.Spec) string { return s.Annotations[sandboxID] }
