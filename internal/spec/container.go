package spec

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ContainerOptions is what the daemon decides about a container in a pod.
type ContainerOptions struct {
	ID, SandboxID string
	Pod           *runtime.PodSandboxConfig
	Image         ocispec.ImageConfig
	Rootfs        string // mounted
	NetNS         string // as the sandbox's
	Shm           string // as the sandbox's
	PIDOwner      string // ID of the container in whose PID namespace it is, which may be itself; empty for the sandbox's

	// Host files for the paths in /etc; empty for the image's own.
	Hostname, Hosts, ResolvConf string

	// MemoryVolumes are the paths of the sandbox's.
	MemoryVolumes []string

	// Volumes says where on the host the daemon has mounted mounts of the
	// configuration, by their place in it.
	Volumes map[int]string

	// Allowed are the names of the annotations, of the container and of its pod,
	// that runsc is given; see SandboxOptions.
	Allowed []string

	// CDISpecDirs are where the node's CDI files are.
	CDISpecDirs []string
	// ProxiedDevices are patterns of the devices, by their paths in the
	// container, that runsc lets a sandbox have besides the sentry's own.
	ProxiedDevices []string

	MinOOMScoreAdj int // see MinOOMScoreAdj

	// NetRaw says that the sandbox has CAP_NET_RAW.
	NetRaw bool
}

// Container returns the spec of a container. It reads the image's user database,
// looks at the host paths of mounts and makes those that are missing. The error
// is ErrInvalidArgument or ErrNotImplemented and names the field of the
// configuration, or it is one of the host.
func Container(cfg *runtime.ContainerConfig, o ContainerOptions) (*specs.Spec, error) {
	security := cfg.GetLinux().GetSecurityContext()
	if err := checkContainer(cfg, o.Pod); err != nil {
		return nil, err
	}
	process, err := containerProcess(cfg, o)
	if err != nil {
		return nil, err
	}
	var filter *specs.LinuxSeccomp
	if !security.GetPrivileged() {
		if filter, err = seccompProfile(security.GetSeccomp(), process.Capabilities); err != nil {
			return nil, err
		}
	}
	mounts, err := containerMounts(cfg, o)
	if err != nil {
		return nil, err
	}
	userNS := o.Pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	annotations := allowed(o.Allowed, o.Pod.GetAnnotations())
	maps.Copy(annotations, allowed(o.Allowed, cfg.GetAnnotations()))
	maps.Copy(annotations, podAnnotations(o.Pod, "container", o.SandboxID))
	annotations[containerName] = cfg.GetMetadata().GetName()

	s := &specs.Spec{
		Version:     specs.Version,
		Process:     process,
		Root:        &specs.Root{Path: o.Rootfs, Readonly: security.GetReadonlyRootfs()},
		Mounts:      mounts,
		Annotations: annotations,
		Linux: &specs.Linux{
			// A container has no cgroup of its own on the host, and runsc
			// enforces limits of the sandbox only.
			Resources: &specs.LinuxResources{},
			Seccomp:   filter,
			Namespaces: namespaces(o.NetNS, slices.Concat(pidNamespace(o.PIDOwner), userNamespace(userNS),
				[]specs.LinuxNamespace{{Type: specs.CgroupNamespace}})...),
			UIDMappings: idMappings(userNS.GetUids()),
			GIDMappings: idMappings(userNS.GetGids()),
		},
	}
	if err := addDevices(s, cfg, o); err != nil {
		return nil, err
	}
	if err := countMounts(s.Mounts); err != nil {
		return nil, err
	}
	return s, nil
}

// checkContainer refuses what cannot be honoured.
func checkContainer(cfg *runtime.ContainerConfig, pod *runtime.PodSandboxConfig) error {
	security := cfg.GetLinux().GetSecurityContext()
	if cfg.GetWindows() != nil {
		return fmt.Errorf("windows: %w", errdefs.ErrInvalidArgument)
	}
	if err := checkNamespaces(security.GetNamespaceOptions()); err != nil {
		return err
	}
	if err := checkSameUserNS(security.GetNamespaceOptions(), pod.GetLinux().GetSecurityContext().GetNamespaceOptions()); err != nil {
		return err
	}
	if err := checkProfiles(security); err != nil {
		return err
	}
	if err := CheckResources(cfg.GetLinux().GetResources()); err != nil {
		return err
	}
	if security.GetPrivileged() && !pod.GetLinux().GetSecurityContext().GetPrivileged() {
		return fmt.Errorf("privileged container in a pod that is not: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// pidNamespace returns the entry for a container's PID namespace. A path that is
// no process of the sandbox is a name to runsc: the first container with it gets
// a new namespace, later ones join. So a container's own is named by its ID, and
// no entry means the namespace of the sandbox.
func pidNamespace(owner string) []specs.LinuxNamespace {
	if owner == "" {
		return nil
	}
	return []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: "/runscd/" + owner}}
}

func containerProcess(cfg *runtime.ContainerConfig, o ContainerOptions) (*specs.Process, error) {
	security := cfg.GetLinux().GetSecurityContext()
	args, err := commandLine(cfg, o.Image)
	if err != nil {
		return nil, err
	}
	env, err := environment(cfg, o)
	if err != nil {
		return nil, err
	}
	user, err := runAs(security, o.Image.User, o.Rootfs)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(security, o.NetRaw)
	if err != nil {
		return nil, err
	}
	cwd := cfg.GetWorkingDir()
	if cwd == "" {
		cwd = o.Image.WorkingDir
	}
	// Set even if it is 0, or the container would have the daemon's own.
	oom := max(int(cfg.GetLinux().GetResources().GetOomScoreAdj()), o.MinOOMScoreAdj)
	return &specs.Process{
		Terminal:        cfg.GetTty(),
		User:            user,
		Args:            args,
		Env:             env,
		Cwd:             path.Join("/", cwd),
		Capabilities:    caps,
		Rlimits:         rlimits(),
		NoNewPrivileges: security.GetNoNewPrivs(),
		OOMScoreAdj:     &oom,
	}, nil
}

// commandLine merges the command of the configuration with the image's, as Kubernetes
// does: a command replaces all of the image's, arguments replace its arguments.
func commandLine(cfg *runtime.ContainerConfig, image ocispec.ImageConfig) ([]string, error) {
	command, args := cfg.GetCommand(), cfg.GetArgs()
	if len(command) == 0 {
		command = image.Entrypoint
		if len(args) == 0 {
			args = image.Cmd
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 || all[0] == "" {
		return nil, fmt.Errorf("command: none in the configuration and none in the image: %w", errdefs.ErrInvalidArgument)
	}
	return all, nil
}

// environment returns the variables; a later one replaces one before.
func environment(cfg *runtime.ContainerConfig, o ContainerOptions) ([]string, error) {
	all := []string{defaultPath}
	if cfg.GetTty() {
		all = append(all, "TERM=xterm")
	}
	if h := o.Pod.GetHostname(); h != "" {
		all = append(all, "HOSTNAME="+h)
	}
	all = append(all, o.Image.Env...)
	for i, e := range cfg.GetEnvs() {
		key, value := e.GetKey(), string(e.GetValue())
		if key == "" || strings.ContainsAny(key, "=\x00") || strings.Contains(value, "\x00") {
			return nil, fmt.Errorf("envs[%d] %q: %w", i, key, errdefs.ErrInvalidArgument)
		}
		all = append(all, key+"="+value)
	}
	place := map[string]int{}
	env := all[:0]
	for _, kv := range all {
		key, _, _ := strings.Cut(kv, "=")
		if i, ok := place[key]; ok {
			env[i] = kv
			continue
		}
		place[key] = len(env)
		env = append(env, kv)
	}
	return env, nil
}
