package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares a spec with testdata/<test name>.json; dir is the one path
// that differs from run to run.
func golden(t *testing.T, spec *specs.Spec, dir string) {
	t.Helper()
	got, err := json.MarshalIndent(spec, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(bytes.ReplaceAll(got, []byte(dir), []byte("/test")), '\n')
	file := filepath.Join("testdata", strings.ReplaceAll(strings.TrimPrefix(t.Name(), "Test"), "/", "-")+".json")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("not as in %s (see -update):\n%s", file, got)
	}
}

func podConfig() *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata:    &runtime.PodSandboxMetadata{Name: "web", Namespace: "shop", Uid: "0a1b", Attempt: 1},
		Hostname:    "web-0",
		Annotations: map[string]string{"dev.gvisor.spec.mount.evil.source": "/etc"},
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods/pod0a1b",
			Resources:    &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 204, MemoryLimitInBytes: 64 << 20},
			Overhead:     &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 10000, CpuShares: 102, MemoryLimitInBytes: 16 << 20},
		},
	}
}

func sandboxOptions() SandboxOptions {
	return SandboxOptions{
		ID:          "s1",
		Rootfs:      "/test/pause",
		Args:        []string{"/pause"},
		NetNS:       "/test/netns/s1",
		CgroupsPath: "/kubepods/pod0a1b/s1",
		Shm:         "/test/pods/s1/shm",
	}
}

func TestSandbox(t *testing.T) {
	for name, change := range map[string]func(*runtime.PodSandboxConfig, *SandboxOptions){
		"kubelet": func(*runtime.PodSandboxConfig, *SandboxOptions) {},
		"annotations": func(cfg *runtime.PodSandboxConfig, o *SandboxOptions) {
			cfg.Annotations = map[string]string{
				"dev.gvisor.flag.debug": "true", "dev.gvisor.flag.debug-log": "/x", "example.com/a": "a", "example.com/b": "b",
				sandboxID: "other", "dev.gvisor.spec.mount.shm.source": "/etc",
			}
			o.Allowed = []string{"dev.gvisor.flag.debug", "example.com/*", "io.kubernetes.cri.*", "dev.gvisor.spec.mount.shm.source"}
		},
		"userns": func(cfg *runtime.PodSandboxConfig, o *SandboxOptions) {
			cfg.Linux.SecurityContext = &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{
				UsernsOptions: userNS(runtime.NamespaceMode_POD, 1<<16, 1<<16),
			}}
		},
		"sysctls": func(cfg *runtime.PodSandboxConfig, o *SandboxOptions) {
			cfg.Linux.Sysctls = map[string]string{"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.tcp_sack": "0"}
		},
		"no-parent": func(cfg *runtime.PodSandboxConfig, o *SandboxOptions) {
			cfg.Linux.CgroupParent = ""
		},
		"host-network": func(cfg *runtime.PodSandboxConfig, o *SandboxOptions) {
			cfg.Linux = nil
			o.NetNS, o.Shm = "", ""
			o.Annotations = map[string]string{"dev.gvisor.spec.rootfs.type": "erofs"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, o := podConfig(), sandboxOptions()
			change(cfg, &o)
			spec, err := Sandbox(cfg, o)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, spec, "/test")
		})
	}
}

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
		cfg := podConfig()
		cfg.Linux = test.linux
		_, err := Sandbox(cfg, sandboxOptions())
		refused(t, err, test.kind, test.field)
	}
	_, err := Sandbox(&runtime.PodSandboxConfig{Windows: &runtime.WindowsPodSandboxConfig{}}, sandboxOptions())
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

// container returns a configuration as the kubelet's, for a rootfs in dir.
func container(t *testing.T, dir string) (*runtime.ContainerConfig, ContainerOptions) {
	t.Helper()
	for name, content := range map[string]string{
		"rootfs/etc/passwd":       "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/srv:/bin/sh\n",
		"rootfs/etc/group":        "root:x:0:\nweb:x:102:\naudio:x:29:root,web\n",
		"rootfs/etc/secret/key":   "k",
		"rootfs/etc/machine-id":   "m",
		"volume/file":             "f",
		"volume/rw":               "",
		"pod/hosts":               "",
		"rootfs/srv/www/index":    "",
		"rootfs/etc/hosts":        "",
		"rootfs/etc/resolv.conf":  "",
		"rootfs/etc/nsswitch/con": "",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cfg := &runtime.ContainerConfig{
		Metadata:    &runtime.ContainerMetadata{Name: "app", Attempt: 2},
		Annotations: map[string]string{"dev.gvisor.flag.debug": "true"},
		Args:        []string{"--port", "80"},
		Envs:        []*runtime.KeyValue{{Key: "MODE", Value: []byte("fast")}, {Key: "EMPTY"}},
		Mounts: []*runtime.Mount{
			{ContainerPath: "/data", HostPath: filepath.Join(dir, "volume")},
			{ContainerPath: "/etc/hosts", HostPath: filepath.Join(dir, "pod/hosts"), Readonly: true},
		},
		Linux: &runtime.LinuxContainerConfig{
			Resources: &runtime.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 204, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 985,
				HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}},
			},
			SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
				SelinuxOptions:   &runtime.SELinuxOption{Type: "container_t"},
				Seccomp:          &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined},
				MaskedPaths: []string{
					"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
					"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
				},
				ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}
	return cfg, ContainerOptions{
		ID:        "c1",
		SandboxID: "s1",
		Pod:       podConfig(),
		Image: ocispec.ImageConfig{
			User:       "web",
			Env:        []string{"PATH=/bin", "MODE=slow"},
			Entrypoint: []string{"/bin/serve"},
			Cmd:        []string{"--help"},
			WorkingDir: "/srv",
		},
		Rootfs:         filepath.Join(dir, "rootfs"),
		NetNS:          "/test/netns/s1",
		Shm:            "/test/pods/s1/shm",
		PIDOwner:       "c1",
		Hostname:       "/test/pods/s1/hostname",
		Hosts:          "/test/pods/s1/hosts",
		ResolvConf:     "/test/pods/s1/resolv.conf",
		MinOOMScoreAdj: -1000,
	}
}

func TestContainer(t *testing.T) {
	for name, change := range map[string]func(*runtime.ContainerConfig, *ContainerOptions){
		"kubelet": func(*runtime.ContainerConfig, *ContainerOptions) {},
		"userns": func(cfg *runtime.ContainerConfig, o *ContainerOptions) {
			u := userNS(runtime.NamespaceMode_POD, 1<<16, 1<<16)
			o.Pod.Linux.SecurityContext = &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{UsernsOptions: u}}
			cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userNS(runtime.NamespaceMode_POD, 1<<16, 1<<16)
			cfg.Mounts[0].UidMappings, cfg.Mounts[0].GidMappings = u.Uids, u.Gids
		},
		"annotations": func(cfg *runtime.ContainerConfig, o *ContainerOptions) {
			o.Pod.Annotations = map[string]string{"example.com/pod": "p", "example.com/both": "p", "other": "o"}
			cfg.Annotations = map[string]string{"example.com/both": "c", "dev.gvisor.flag.debug": "true", containerType: "sandbox"}
			o.Allowed = []string{"example.com/*", containerType}
		},
		"privileged-tty": func(cfg *runtime.ContainerConfig, o *ContainerOptions) {
			cfg.Tty = true
			cfg.Linux.SecurityContext.Privileged = true
			o.Pod.Linux.SecurityContext = &runtime.LinuxSandboxSecurityContext{Privileged: true}
		},
		"restricted": func(cfg *runtime.ContainerConfig, o *ContainerOptions) {
			cfg.Command = []string{"/bin/sh"}
			cfg.WorkingDir = "/tmp"
			cfg.Linux.Resources = nil
			o.MinOOMScoreAdj = 5
			s := cfg.Linux.SecurityContext
			s.RunAsUser, s.RunAsGroup = &runtime.Int64Value{Value: 1000}, &runtime.Int64Value{Value: 3000}
			s.SupplementalGroups = []int64{2000, 3000}
			s.NoNewPrivs, s.ReadonlyRootfs = true, true
			s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
			s.MaskedPaths = []string{"/etc/secret", "/etc/machine-id", "/etc/none", "/proc/version", "/proc/bus", "/data/file"}
			s.ReadonlyPaths = []string{"/srv/www", "/data"}
		},
		"mounts": func(cfg *runtime.ContainerConfig, o *ContainerOptions) {
			volume := cfg.Mounts[0].HostPath
			o.Shm, o.Hostname, o.ResolvConf, o.NetNS, o.PIDOwner = "", "", "", "", ""
			cfg.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE}
			cfg.Mounts = []*runtime.Mount{
				{ContainerPath: "/a/b/c", HostPath: volume + "/link", Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
				{ContainerPath: "a/", HostPath: volume + "/new/dir", Readonly: true},
				{ContainerPath: "/rro", HostPath: volume, Readonly: true, RecursiveReadOnly: true},
				{ContainerPath: "/image", Readonly: true, Image: &runtime.ImageSpec{Image: "x"}, ImageSubPath: "d"},
				{ContainerPath: "/a/b", HostPath: volume, MountOptions: []string{"noexec", "nodev"}},
				{ContainerPath: "/dev/shm", HostPath: volume},
				{ContainerPath: "/sys", HostPath: volume},
			}
			o.Volumes = map[int]string{2: "/test/containers/c1/volumes/2", 3: "/test/containers/c1/volumes/3/d"}
			if err := os.Symlink("rw", volume+"/link"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cfg, o := container(t, dir)
			change(cfg, &o)
			spec, err := Container(cfg, o)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, spec, dir)
		})
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
