package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// says checks what a script prints in the container.
func (c *container) says(t *testing.T, script, want string) {
	t.Helper()
	if out, code := c.exec(t, script); out != want || code != 0 {
		t.Errorf("%s: %q, code %d, want %q", script, out, code, want)
	}
}

// security changes a container's security context.
func security(change func(*runtime.LinuxContainerSecurityContext)) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) { change(c.Linux.SecurityContext) }
}

// TestProcess has the command, environment and user of a container and of what
// is executed in it.
func TestProcess(t *testing.T) {
	ref, _ := put(t, registry, "process:1", func(c *v1.Config) {
		c.User, c.WorkingDir, c.Env = "user", "/home/user", append(c.Env, "A=image", "B=image")
		c.Entrypoint, c.Cmd = []string{"/bin/sh", "-c"}, []string{"echo $A $B $PWD; " + forever}
	})
	d := newDaemon(t, noNetwork)
	_, err := d.images.PullImage(ctx(t), &runtime.ImageSpec{Image: ref}, nil, nil)
	check(t, err)
	p := d.runPod(t)
	c := p.run(t, "", func(c *runtime.ContainerConfig) {
		c.Image, c.Command = &runtime.ImageSpec{Image: ref}, nil
		c.Envs = []*runtime.KeyValue{{Key: "B", Value: []byte("pod")}}
	})
	c.waitFor(t, "image pod /home/user\n")
	c.says(t, "id; echo $A $B $PWD", "uid=1000(user) gid=1000(user) groups=1000(user),2000(extra)\nimage pod /home/user\n")
	if u := c.status(t).User.GetLinux(); u.GetUid() != 1000 || u.GetGid() != 1000 {
		t.Errorf("user: %v", u)
	}
	for name, test := range map[string]struct {
		change func(*runtime.LinuxContainerSecurityContext)
		want   string
	}{
		"uid": {func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUser = &runtime.Int64Value{Value: 65534}
		}, "uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)\n"},
		"uid, gid, more": {func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &runtime.Int64Value{Value: 77}, &runtime.Int64Value{Value: 88}
			s.SupplementalGroups = []int64{2000}
		}, "uid=77 gid=88 groups=88,2000(extra)\n"},
		"name": {func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUsername = "user"
		}, "uid=1000(user) gid=1000(user) groups=1000(user),2000(extra)\n"},
		"strict": {func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUsername = "user"
			s.SupplementalGroupsPolicy = runtime.SupplementalGroupsPolicy_Strict
		}, "uid=1000(user) gid=1000(user) groups=1000(user)\n"},
	} {
		t.Run(name, func(t *testing.T) { p.run(t, forever, security(test.change)).says(t, "id", test.want) })
	}
	for name, user := range map[string]func(*runtime.LinuxContainerSecurityContext){
		"nosuch": func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUsername = "nosuch" },
		"1234":   func(s *runtime.LinuxContainerSecurityContext) { s.RunAsGroup = &runtime.Int64Value{Value: 1234} },
	} {
		config := p.containerConfig(forever)
		user(config.Linux.SecurityContext)
		_, err := d.pods.CreateContainer(ctx(t), p.id, config, p.config)
		refused(t, err, codes.InvalidArgument, name)
	}
}

func TestCapabilities(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	const effective = "grep CapEff /proc/self/status | cut -f2"
	some := func(names ...string) func(*runtime.ContainerConfig) {
		return security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: names}
		})
	}
	p.run(t, forever, some()).says(t, effective, "0000000000000000\n")
	p.run(t, forever, some("NET_BIND_SERVICE")).says(t, effective, "0000000000000400\n")
	p.run(t, forever, some("CHOWN", "KILL")).says(t, effective, "0000000000000021\n")
	p.run(t, forever).says(t, "chown 1000 /tmp && stat -c %u /tmp", "1000\n")
	if out, code := p.run(t, forever, some()).exec(t, "chown 1000 /etc/passwd"); code == 0 {
		t.Errorf("chown without the capability: %q", out)
	}
	p.run(t, forever, security(func(s *runtime.LinuxContainerSecurityContext) { s.NoNewPrivs = true })).
		says(t, "grep NoNewPrivs /proc/1/status | cut -f2", "1\n")
}

func TestFiles(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	host := t.TempDir()
	check(t, os.WriteFile(filepath.Join(host, "file"), []byte("of the host\n"), 0o644))
	c := p.run(t, forever, func(c *runtime.ContainerConfig) {
		c.Linux.SecurityContext.ReadonlyRootfs = true
		c.Linux.SecurityContext.MaskedPaths = []string{"/proc/meminfo", "/etc/group", "/home", "/no/such", "/proc/kcore"}
		c.Linux.SecurityContext.ReadonlyPaths = []string{"/proc/sys", "/var"}
		c.Mounts = []*runtime.Mount{
			{HostPath: host, ContainerPath: "/rw"},
			{HostPath: host, ContainerPath: "/ro", Readonly: true},
			{HostPath: filepath.Join(host, "file"), ContainerPath: "/etc/file"},
			{HostPath: filepath.Join(host, "made"), ContainerPath: "/made"},
		}
	})
	c.says(t, "cat /rw/file /ro/file /etc/file; echo back >/rw/new", strings.Repeat("of the host\n", 3))
	if text, err := os.ReadFile(filepath.Join(host, "new")); err != nil || string(text) != "back\n" {
		t.Errorf("file written by the container: %q, %v", text, err)
	}
	c.says(t, "cat /proc/meminfo /etc/group; ls -A /home /made", "/home:\n\n/made:\n")
	for _, path := range []string{"/ro/x", "/x", "/etc/x", "/var/x", "/home/x"} {
		if out, code := c.exec(t, "echo no >"+path); code == 0 || !strings.Contains(out, "Read-only file system") {
			t.Errorf("write of %s: %q, code %d", path, out, code)
		}
	}
	c.says(t, "cat /etc/hostname; hostname; cat /etc/resolv.conf; grep -c localhost /etc/hosts | grep -q '^[1-9]' && echo hosts",
		p.config.Hostname+"\n"+p.config.Hostname+"\nsearch example.com\nnameserver 192.0.2.53\noptions ndots:5\nhosts\n")

	other := p.run(t, forever)
	other.says(t, "echo mine >/x && echo shared >/dev/shm/x", "")
	c.says(t, "cat /dev/shm/x", "shared\n")
	d.runPod(t).run(t, forever).says(t, "ls /dev/shm", "")
	check(t, d.pods.RemoveContainer(ctx(t), other.id))
	p.run(t, forever).says(t, "test -e /x || cat /dev/shm/x", "shared\n")
}

func TestPIDNamespace(t *testing.T) {
	d := newDaemon(t, noNetwork)
	mode := func(m runtime.NamespaceMode, target string) func(*runtime.ContainerConfig) {
		return security(func(s *runtime.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &runtime.NamespaceOption{Pid: m, TargetId: target}
		})
	}
	p := d.runPod(t)
	own := p.run(t, "sleep 1001 & "+forever, mode(runtime.NamespaceMode_CONTAINER, ""))
	alone := p.run(t, forever, mode(runtime.NamespaceMode_CONTAINER, ""))
	debug := p.run(t, forever, mode(runtime.NamespaceMode_TARGET, own.id))
	eventually(t, "the target's process is seen", func() error {
		if out, _ := debug.exec(t, "ps -o args | grep '^sleep 1001'"); out != "sleep 1001\n" {
			return errors.New(out)
		}
		return nil
	})
	alone.says(t, "ps -o args | grep '^sleep 1001' || echo unseen", "unseen\n")

	shared := d.runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
	})
	first := shared.run(t, "sleep 1002 & "+forever)
	second := shared.run(t, forever)
	eventually(t, "the other container's process is seen", func() error {
		if out, _ := second.exec(t, "ps -o args | grep '^sleep 1002'"); out != "sleep 1002\n" {
			return errors.New(out)
		}
		return nil
	})
	second.says(t, "ps -o pid,args | grep '^ *1 ' | grep -o pause", "pause\n")
	check(t, d.pods.StopContainer(ctx(t), first.id, 30))
	if s := first.status(t); s.ExitCode != 3 {
		t.Errorf("status: %v", s)
	}
	second.says(t, "echo alive; ps -o args | grep '^sleep 1002' || true", "alive\n") // the whole container ended

	config := p.containerConfig(forever)
	mode(runtime.NamespaceMode_NODE, "")(config)
	_, err := d.pods.CreateContainer(ctx(t), p.id, config, p.config)
	refused(t, err, codes.InvalidArgument, "pid namespace")
}

// TestRlimits has every process start with all its limits. runsc keeps one set
// for a sandbox, and what is not in a spec, or what a first process lowers for
// itself, would otherwise be seen by all that start later.
func TestRlimits(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	first := p.run(t, forever)
	before, _ := first.exec(t, "ulimit -a")
	p.run(t, "ulimit -n 64; ulimit -c 0; echo lowered; "+forever).waitFor(t, "lowered")
	if after, _ := first.exec(t, "ulimit -a"); after != before {
		t.Errorf("limits: %s\nwere: %s", after, before)
	}
	if out, code := first.exec(t, "ulimit -n 32 && ulimit -s 512 && ulimit -n"); out != "32\n" || code != 0 {
		t.Errorf("lowered by what is executed: %q", out)
	}
	if after, _ := first.exec(t, "ulimit -a"); after != before {
		t.Errorf("limits after a process has lowered its own: %s\nwere: %s", after, before)
	}
	if later, _ := p.run(t, forever).exec(t, "ulimit -a"); later != before {
		t.Errorf("limits: %s\nof another container: %s", later, before)
	}
}

// TestMemoryOfContainers tells a large container from a small one.
func TestMemoryOfContainers(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	large := p.run(t, "mkfifo /tmp/f; sleep 1000 </tmp/f & dd if=/dev/zero of=/tmp/f bs=64M count=1")
	small := p.run(t, forever)
	bytes := func(c *container) int {
		out, _ := c.exec(t, "cat /sys/fs/cgroup/memory.current")
		n, err := strconv.Atoi(strings.TrimSpace(out))
		check(t, err)
		return n
	}
	eventually(t, "only one is large", func() error {
		if l, s := bytes(large), bytes(small); l < 64<<20 || s > 32<<20 {
			return fmt.Errorf("%d and %d bytes", l, s)
		}
		return nil
	})
}

// TestOOM has a container use up the memory of its pod.
func TestOOM(t *testing.T) {
	const limit = 128 << 20
	hog := "tail /dev/zero"
	for name, limited := range map[string]func(d *daemon, c *runtime.PodSandboxConfig){
		"by parent": func(d *daemon, c *runtime.PodSandboxConfig) { // as the kubelet does
			check(t, limitMemory(d.cgroup, limit))
		},
		"by sandbox": func(d *daemon, c *runtime.PodSandboxConfig) {
			c.Linux.CgroupParent = ""
			c.Linux.Resources.MemoryLimitInBytes = limit
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t, noNetwork)
			p := d.runPod(t, func(c *runtime.PodSandboxConfig) { limited(d, c) })
			idle := p.run(t, forever)
			c := p.run(t, hog)
			if s := c.ended(t); s.ExitCode <= 128 || s.Reason != "OOMKilled" {
				t.Errorf("status: %v", s)
			}
			if p.status(t).State == runtime.PodSandboxState_SANDBOX_READY {
				if s := idle.status(t); s.State != runtime.ContainerState_CONTAINER_RUNNING {
					t.Errorf("another container: %v", s)
				}
			} else if s := idle.ended(t); s.ExitCode != 137 || s.Reason != "OOMKilled" {
				t.Errorf("another container: %v", s)
			}
			check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
			for _, root := range hierarchies() {
				if _, err := os.Stat(filepath.Join(root, p.id)); err == nil {
					t.Errorf("cgroup %s is left in %s", p.id, root)
				}
			}
		})
	}
}

// limitMemory limits a cgroup of ours.
func limitMemory(name string, bytes int) error {
	for _, file := range []string{"/sys/fs/cgroup/memory" + name + "/memory.limit_in_bytes", "/sys/fs/cgroup" + name + "/memory.max"} {
		if _, err := os.Stat(file); err == nil {
			return os.WriteFile(file, fmt.Append(nil, bytes), 0o644)
		}
	}
	return errors.New("no memory controller")
}
