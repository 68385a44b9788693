package spec

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// userNS is a user namespace of one range.
func userNS(mode runtime.NamespaceMode, host, length uint32) *runtime.UserNamespace {
	ids := []*runtime.IDMapping{{HostId: host, Length: length}}
	return &runtime.UserNamespace{Mode: mode, Uids: ids, Gids: ids}
}

// refused checks an error's kind and that it names the field.
func refused(t *testing.T, err, kind error, field string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), field) {
		t.Errorf("error %v, want %v that names %q", err, kind, field)
	}
}

func TestSandboxRefuses(t *testing.T) {
	security := func(s *runtime.LinuxSandboxSecurityContext) *runtime.LinuxPodSandboxConfig {
		return &runtime.LinuxPodSandboxConfig{SecurityContext: s}
	}
	namespace := func(o *runtime.NamespaceOption) *runtime.LinuxPodSandboxConfig {
		return security(&runtime.LinuxSandboxSecurityContext{NamespaceOptions: o})
	}
	localhost := &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "p.json"}
	for _, test := range []struct {
		linux *runtime.LinuxPodSandboxConfig
		kind  error
		field string
	}{
		{namespace(&runtime.NamespaceOption{Pid: runtime.NamespaceMode_NODE}), errdefs.ErrInvalidArgument, "host pid namespace"},
		{namespace(&runtime.NamespaceOption{Ipc: runtime.NamespaceMode_NODE}), errdefs.ErrInvalidArgument, "ipc namespace"},
		{namespace(&runtime.NamespaceOption{Ipc: runtime.NamespaceMode_CONTAINER}), errdefs.ErrInvalidArgument, "ipc namespace"},
		{namespace(&runtime.NamespaceOption{Network: runtime.NamespaceMode_CONTAINER}), errdefs.ErrInvalidArgument, "network namespace"},
		{namespace(&runtime.NamespaceOption{UsernsOptions: userNS(runtime.NamespaceMode_CONTAINER, 1<<16, 1<<16)}), errdefs.ErrInvalidArgument, "userns_options: mode"},
		{namespace(&runtime.NamespaceOption{UsernsOptions: userNS(runtime.NamespaceMode_NODE, 1<<16, 1<<16)}), errdefs.ErrInvalidArgument, "userns_options: id mappings"},
		{namespace(&runtime.NamespaceOption{UsernsOptions: userNS(runtime.NamespaceMode_POD, 1<<16, 0)}), errdefs.ErrInvalidArgument, "userns_options: "},
		{namespace(&runtime.NamespaceOption{UsernsOptions: userNS(runtime.NamespaceMode_POD, 1<<32-1, 1)}), errdefs.ErrInvalidArgument, "userns_options: "},
		{namespace(&runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{}}), errdefs.ErrInvalidArgument, "userns_options: "},
		{namespace(&runtime.NamespaceOption{
			Network: runtime.NamespaceMode_NODE, UsernsOptions: userNS(runtime.NamespaceMode_POD, 1<<16, 1<<16),
		}), errdefs.ErrInvalidArgument, "userns_options: a user namespace with the host's network"},
		{security(&runtime.LinuxSandboxSecurityContext{RunAsGroup: &runtime.Int64Value{}}), errdefs.ErrInvalidArgument, "run_as_group"},
		{security(&runtime.LinuxSandboxSecurityContext{Seccomp: localhost}), errdefs.ErrInvalidArgument, `seccomp profile Localhost "p.json"`},
		{security(&runtime.LinuxSandboxSecurityContext{Apparmor: localhost}), errdefs.ErrInvalidArgument, `apparmor profile "p.json"`},
		//lint:ignore SA1019 it is refused
		{security(&runtime.LinuxSandboxSecurityContext{SeccompProfilePath: "runtime/default"}), errdefs.ErrInvalidArgument, "seccomp_profile_path"},
		{&runtime.LinuxPodSandboxConfig{Sysctls: map[string]string{"net.ipv6.conf.all.disable_ipv6": "no"}}, errdefs.ErrInvalidArgument, "net.ipv6.conf.all.disable_ipv6"},
		{&runtime.LinuxPodSandboxConfig{Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "1024"}}, errdefs.ErrInvalidArgument, "net.ipv4.ip_unprivileged_port_start"},
		{&runtime.LinuxPodSandboxConfig{Sysctls: map[string]string{"net....kcore": "1"}}, errdefs.ErrInvalidArgument, `sysctl "net....kcore"`},
		{&runtime.LinuxPodSandboxConfig{Sysctls: map[string]string{"net/../../kcore": "1"}}, errdefs.ErrInvalidArgument, "net/../../kcore"},
		{&runtime.LinuxPodSandboxConfig{
			Sysctls:         map[string]string{"net.ipv4.tcp_sack": "1"},
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE}},
		}, errdefs.ErrInvalidArgument, "the network is the host's"},
		{&runtime.LinuxPodSandboxConfig{Resources: &runtime.LinuxContainerResources{CpuShares: -2}}, errdefs.ErrInvalidArgument, "resources: cpu_shares -2"},
		{&runtime.LinuxPodSandboxConfig{Overhead: &runtime.LinuxContainerResources{MemoryLimitInBytes: -1}}, errdefs.ErrInvalidArgument, "overhead: memory_limit_in_bytes -1"},
	} {
		cfg, o := sandbox(t)
		cfg.Linux = test.linux
		_, err := Sandbox(cfg, o)
		refused(t, err, test.kind, test.field)
	}
	_, err := Sandbox(&runtime.PodSandboxConfig{Windows: &runtime.WindowsPodSandboxConfig{}}, SandboxOptions{})
	refused(t, err, errdefs.ErrInvalidArgument, "windows")
}

func TestCgroupsPath(t *testing.T) {
	for _, test := range []struct {
		systemd      bool
		parent, want string
	}{
		{false, "/kubepods/burstable/pod1", "/kubepods/burstable/pod1/id"},
		{false, "", "/id"},
		{false, "../../up", "/up/id"},
		{true, "/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:runscd:id"},
		{true, "", "system.slice:runscd:id"},
		{true, "/kubepods/pod1", ""},
		{true, "a:b.slice", ""},
	} {
		got, err := CgroupsPath(test.systemd, test.parent, "id")
		if got != test.want || (err != nil) != (test.want == "") || err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("CgroupsPath(%v, %q) = %q, %v, want %q", test.systemd, test.parent, got, err, test.want)
		}
	}
}

func TestContainerRefuses(t *testing.T) {
	localhost := &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "p.json"}
	type security = runtime.LinuxContainerSecurityContext
	for _, test := range []struct {
		kind   error
		field  string
		change func(*runtime.ContainerConfig, *security, *ContainerOptions)
	}{
		{errdefs.ErrInvalidArgument, "command", func(c *runtime.ContainerConfig, _ *security, o *ContainerOptions) {
			c.Args, o.Image = nil, ocispec.ImageConfig{}
		}},
		{errdefs.ErrInvalidArgument, "userns_options: not the pod's", func(c *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			s.NamespaceOptions.UsernsOptions = userNS(runtime.NamespaceMode_POD, 1<<16, 1<<16)
		}},
		{errdefs.ErrInvalidArgument, "uidMappings", func(c *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			c.Mounts[0].UidMappings = userNS(runtime.NamespaceMode_POD, 1<<16, 1<<16).Uids
		}},
		{errdefs.ErrInvalidArgument, "windows", func(c *runtime.ContainerConfig, _ *security, _ *ContainerOptions) {
			c.Windows = &runtime.WindowsContainerConfig{}
		}},
		{errdefs.ErrInvalidArgument, "envs[0]", func(c *runtime.ContainerConfig, _ *security, _ *ContainerOptions) { c.Envs[0].Key = "A=B" }},
		{errdefs.ErrInvalidArgument, "privileged", func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) { s.Privileged = true }},
		{errdefs.ErrInvalidArgument, "host pid namespace", func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			s.NamespaceOptions.Pid = runtime.NamespaceMode_NODE
		}},
		{errdefs.ErrInvalidArgument, `seccomp profile Localhost "p.json"`, func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			s.Seccomp = localhost
		}},
		{errdefs.ErrInvalidArgument, "seccomp profile_type 7", func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			s.Seccomp = &runtime.SecurityProfile{ProfileType: 7}
		}},
		{errdefs.ErrInvalidArgument, `apparmor profile "p.json"`, func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			s.Apparmor = localhost
		}},
		{errdefs.ErrInvalidArgument, "seccomp_profile_path", func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			//lint:ignore SA1019 it is refused
			s.SeccompProfilePath = "localhost/p.json"
		}},
		{errdefs.ErrInvalidArgument, "apparmor_profile", func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			//lint:ignore SA1019 it is refused
			s.ApparmorProfile = "localhost/p"
		}},
		{errdefs.ErrInvalidArgument, `add_capabilities: capability "FLY"`, func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			s.Capabilities = &runtime.Capability{AddCapabilities: []string{"FLY"}}
		}},
		{errdefs.ErrInvalidArgument, "capability CAP_NET_RAW: the handler's net_raw", func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			s.Capabilities = &runtime.Capability{AddCapabilities: []string{"NET_RAW"}}
		}},
		{errdefs.ErrInvalidArgument, "capability CAP_NET_RAW", func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			s.Capabilities = &runtime.Capability{AddAmbientCapabilities: []string{"net_raw"}}
		}},
		{errdefs.ErrInvalidArgument, "run_as_user -1", func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			s.RunAsUser = &runtime.Int64Value{Value: -1}
		}},
		{errdefs.ErrInvalidArgument, "run_as_group", func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			s.RunAsGroup = &runtime.Int64Value{}
		}},
		{errdefs.ErrInvalidArgument, "supplemental_groups[0] -5", func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			s.SupplementalGroups = []int64{-5}
		}},
		{errdefs.ErrInvalidArgument, "oom_score_adj 1001", func(c *runtime.ContainerConfig, _ *security, _ *ContainerOptions) {
			c.Linux.Resources.OomScoreAdj = 1001
		}},
		{errdefs.ErrInvalidArgument, `image "x"`, func(c *runtime.ContainerConfig, _ *security, _ *ContainerOptions) {
			c.Mounts[0].Image = &runtime.ImageSpec{Image: "x"}
		}},
		{errdefs.ErrInvalidArgument, `image "x" without readonly`, func(c *runtime.ContainerConfig, _ *security, _ *ContainerOptions) {
			c.Mounts[0].HostPath, c.Mounts[0].Readonly, c.Mounts[0].Image = "", false, &runtime.ImageSpec{Image: "x"}
		}},
		{errdefs.ErrInvalidArgument, "image_sub_path", func(c *runtime.ContainerConfig, _ *security, _ *ContainerOptions) {
			c.Mounts[0].ImageSubPath = "x"
		}},
		{errdefs.ErrInvalidArgument, "propagation", func(c *runtime.ContainerConfig, _ *security, _ *ContainerOptions) {
			c.Mounts[0].Propagation = runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}},
		{errdefs.ErrInvalidArgument, "recursive_read_only", func(c *runtime.ContainerConfig, _ *security, _ *ContainerOptions) {
			c.Mounts[0].RecursiveReadOnly = true
		}},
		{errdefs.ErrInvalidArgument, "host_path", func(c *runtime.ContainerConfig, _ *security, _ *ContainerOptions) { c.Mounts[0].HostPath = "a" }},
		{errdefs.ErrInvalidArgument, "container_path", func(c *runtime.ContainerConfig, _ *security, _ *ContainerOptions) {
			c.Mounts[0].ContainerPath = "/x/.."
		}},
		{errdefs.ErrInvalidArgument, "/dev", func(c *runtime.ContainerConfig, _ *security, _ *ContainerOptions) {
			c.Mounts[0].ContainerPath = "/dev"
		}},
		{errdefs.ErrInvalidArgument, "/proc", func(c *runtime.ContainerConfig, _ *security, _ *ContainerOptions) {
			c.Mounts[0].ContainerPath = "/x/../proc/"
		}},
		{errdefs.ErrInvalidArgument, "mounts: 122", func(c *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			for i := range 117 { // and two of the configuration, and three of ours
				c.Mounts = append(c.Mounts, &runtime.Mount{HostPath: c.Mounts[0].HostPath, ContainerPath: fmt.Sprint("/m/", i)})
			}
		}},
		{errdefs.ErrNotImplemented, "mount_options", func(c *runtime.ContainerConfig, _ *security, _ *ContainerOptions) {
			c.Mounts[0].MountOptions = []string{"shared"}
		}},
		{errdefs.ErrInvalidArgument, "masked_paths", func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			s.MaskedPaths = []string{"etc"}
		}},
		{errdefs.ErrNotImplemented, "readonly_paths", func(_ *runtime.ContainerConfig, s *security, _ *ContainerOptions) {
			s.ReadonlyPaths = []string{"/data/file"}
		}},
	} {
		cfg, o := container(t, t.TempDir())
		test.change(cfg, cfg.Linux.SecurityContext, &o)
		_, err := Container(cfg, o)
		refused(t, err, test.kind, test.field)
	}
}

func TestCommandLine(t *testing.T) {
	for _, test := range []struct{ command, args, entrypoint, cmd, want string }{
		{"", "", "e", "c", "e c"},
		{"", "a", "e", "c", "e a"},
		{"x", "", "e", "c", "x"},
		{"x", "a", "e", "c", "x a"},
		{"", "", "", "c", "c"},
		{"", "a", "", "c", "a"},
	} {
		cfg := &runtime.ContainerConfig{Command: strings.Fields(test.command), Args: strings.Fields(test.args)}
		image := ocispec.ImageConfig{Entrypoint: strings.Fields(test.entrypoint), Cmd: strings.Fields(test.cmd)}
		got, err := commandLine(cfg, image)
		if err != nil || strings.Join(got, " ") != test.want {
			t.Errorf("%+v: %q, %v", test, got, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	all, none := len(allCapabilities), len(defaultCapabilities)
	for name, test := range map[string]struct {
		asked        *runtime.Capability
		set, ambient int
		has, hasNot  string
	}{
		"default":        {nil, none, 0, "CAP_CHOWN", "CAP_SYS_ADMIN"},
		"add":            {&runtime.Capability{AddCapabilities: []string{"cap_sys_admin", "CHOWN"}}, none + 1, 0, "CAP_SYS_ADMIN", "CAP_BPF"},
		"add all":        {&runtime.Capability{AddCapabilities: []string{"ALL"}}, all, 0, "CAP_BPF", ""},
		"all but one":    {&runtime.Capability{AddCapabilities: []string{"all"}, DropCapabilities: []string{"BPF"}}, all - 1, 0, "CAP_CHOWN", "CAP_BPF"},
		"only one":       {&runtime.Capability{AddCapabilities: []string{"BPF"}, DropCapabilities: []string{"all"}}, 1, 0, "CAP_BPF", "CAP_CHOWN"},
		"all and no all": {&runtime.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"ALL"}}, 0, 0, "", "CAP_CHOWN"},
		"ambient":        {&runtime.Capability{AddAmbientCapabilities: []string{"BPF"}, DropCapabilities: []string{"ALL"}}, 1, 1, "CAP_BPF", "CAP_CHOWN"},
		"add raw":        {&runtime.Capability{AddCapabilities: []string{"NET_RAW"}, DropCapabilities: []string{"ALL"}}, 1, 0, "CAP_NET_RAW", ""},
		"drop ambient":   {&runtime.Capability{AddAmbientCapabilities: []string{"BPF"}, DropCapabilities: []string{"BPF"}}, none, 0, "", "CAP_BPF"},
	} {
		caps, err := capabilities(&runtime.LinuxContainerSecurityContext{Capabilities: test.asked}, true)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		has := func(c string) bool { return strings.Contains(strings.Join(caps.Effective, " ")+" ", c+" ") }
		if len(caps.Bounding) != test.set || len(caps.Ambient) != test.ambient || test.has != "" && !has(test.has) || test.hasNot != "" && has(test.hasNot) {
			t.Errorf("%s: %v, ambient %v", name, caps.Bounding, caps.Ambient)
		}
	}
	for name, s := range map[string]*runtime.LinuxContainerSecurityContext{
		"default": nil, "privileged": {Privileged: true},
		"all":         {Capabilities: &runtime.Capability{AddCapabilities: []string{"ALL"}}},
		"all ambient": {Capabilities: &runtime.Capability{AddAmbientCapabilities: []string{"ALL"}}},
	} {
		caps, err := capabilities(s, false)
		if err != nil || slices.Contains(slices.Concat(caps.Bounding, caps.Effective, caps.Permitted, caps.Inheritable, caps.Ambient), netRaw) || len(caps.Bounding) < none-1 {
			t.Errorf("%s, without raw sockets: %+v, %v", name, caps, err)
		}
	}
}
