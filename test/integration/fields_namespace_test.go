package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func pidMode(m runtime.NamespaceMode, target string) func(*runtime.ContainerConfig) {
	return security(func(s *runtime.LinuxContainerSecurityContext) {
		s.NamespaceOptions = &runtime.NamespaceOption{Pid: m, TargetId: target}
	})
}

// TestPIDTarget has a debugging container see the processes of its target and
// signal them, and refuses targets that are none.
func TestPIDTarget(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p, other := d.runPod(t), d.runPod(t)
	target := p.run(t, "trap 'echo signalled' USR1; echo up; while :; do sleep 1000 & wait; done", pidMode(runtime.NamespaceMode_CONTAINER, ""))
	target.waitFor(t, "up\n")
	debug := p.run(t, forever, pidMode(runtime.NamespaceMode_TARGET, target.id))
	debug.says(t, "kill -USR1 1", "")
	target.waitFor(t, "signalled\n")
	third := p.run(t, forever, pidMode(runtime.NamespaceMode_TARGET, debug.id)) // the target's, too
	third.says(t, "tr '\\0' ' ' </proc/1/cmdline | grep -o signalled", "signalled\n")

	stopped := p.run(t, "true", pidMode(runtime.NamespaceMode_CONTAINER, ""))
	stopped.ended(t)
	for _, test := range []struct {
		target string
		code   codes.Code
	}{
		{"", codes.InvalidArgument},
		{strings.Repeat("0", 64), codes.NotFound},
		{other.run(t, forever).id, codes.InvalidArgument},
		{stopped.id, codes.FailedPrecondition},
		{p.create(t, forever).id, codes.FailedPrecondition},
	} {
		config := p.containerConfig(forever)
		pidMode(runtime.NamespaceMode_TARGET, test.target)(config)
		_, err := d.pods.CreateContainer(ctx(t), p.id, config, p.config)
		refused(t, err, test.code, "target_id", test.target)
	}
}

// TestOrphansAreReaped has no zombies stay in a shared PID namespace, where the
// pod's root process is their parent.
func TestOrphansAreReaped(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
	})
	c := p.run(t, "for i in 1 2 3 4 5; do (true & true & exec true) & done; echo left; exec sleep 1000")
	c.waitFor(t, "left\n")
	c.exec(t, "(sleep 0 & sleep 0 &) & true")
	eventually(t, "no orphan is a zombie", func() error {
		if out, _ := c.exec(t, "grep -l '^PPid:.1$' /proc/[0-9]*/status | xargs grep -h '^State:.Z' | cat"); out != "" {
			return errors.New(out)
		}
		return nil
	})
}

// TestUserNamespace has the root of a pod be somebody else on the host, with the
// image's files and mapped volumes belonging to it nonetheless.
func TestUserNamespace(t *testing.T) {
	const root = 200000
	d := newDaemon(t, "")
	d.addNetwork(t)
	// containerd's library leaves the pidfd of a child that it has waited for to the
	// garbage collector.
	d.held = append(d.held, "anon_inode", "anon_inode")
	check(t, os.Chmod(d.dir, 0o711)) // as the directories that are used by default
	ids := []*runtime.IDMapping{{HostId: root, Length: 65536}}
	p := d.runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids}
	})
	host := t.TempDir()
	check(t, os.WriteFile(filepath.Join(host, "file"), []byte("of the host\n"), 0o600))
	c := p.run(t, forever, func(c *runtime.ContainerConfig) {
		c.Mounts = []*runtime.Mount{
			{HostPath: host, ContainerPath: "/mapped", UidMappings: ids, GidMappings: ids},
			{HostPath: host, ContainerPath: "/plain"},
			{HostPath: host, ContainerPath: "/rro", UidMappings: ids, GidMappings: ids, Readonly: true, RecursiveReadOnly: true},
			{Image: &runtime.ImageSpec{Image: d.image}, ContainerPath: "/image", UidMappings: ids, GidMappings: ids, Readonly: true},
		}
		c.Linux.SecurityContext.MaskedPaths = []string{"/etc/group", "/home"}
	})
	c.says(t, "id -u; stat -c %u:%g /bin/busybox /root /image/home/user /etc/hosts /mapped/file", "0\n0:0\n0:0\n1000:1000\n0:0\n0:0\n")
	c.says(t, "cat /mapped/file; echo back >/mapped/new; chown 1000:1000 /mapped/new; stat -c %u /mapped/new", "of the host\n1000\n")
	info, err := os.Stat(filepath.Join(host, "new"))
	check(t, err)
	if s := info.Sys().(*syscall.Stat_t); s.Uid != 1000 || s.Gid != 1000 {
		t.Errorf("file written through a mapped mount: of %d:%d", s.Uid, s.Gid)
	}
	c.fails(t, "cat /plain/file")
	c.says(t, "cat /rro/file /etc/group; ls /home", "of the host\n")
	c.fails(t, "echo no >/rro/file")
	resp, err := d.pods.Status(ctx(t), false)
	check(t, err)
	for _, h := range resp.RuntimeHandlers {
		if !h.Features.GetUserNamespaces() {
			t.Errorf("handler %q does not tell of it", h.Name)
		}
	}
	c.says(t, "echo new >/x; chown 5:6 /x; stat -c %u:%g /x; echo s >/dev/shm/s; cat /dev/shm/s; ip addr show eth0 | grep -q 'inet ' && echo net", "5:6\ns\nnet\n")
	uid := -1
	for _, line := range d.processes() {
		pid, status := 0, ""
		_, _ = fmt.Sscan(line, &pid)
		if !strings.Contains(line, "-sandbox") && !strings.Contains(line, "-gofer") {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		check(t, err)
		_, status, _ = strings.Cut(string(text), "\nUid:\t")
		_, _ = fmt.Sscan(status, &uid)
		if uid < root {
			t.Errorf("runs as %d on the host: %s", uid, line)
		}
	}
	if uid < 0 {
		t.Error("no process of the sandbox found")
	}
}
