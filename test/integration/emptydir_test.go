package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// emptyDir makes a volume as the kubelet does, in memory with a size.
func (d *daemon) emptyDir(t *testing.T, uid, name string, size int) (dir string) {
	t.Helper()
	dir = d.path(filepath.Join("kubelet/pods", uid, "volumes/kubernetes.io~empty-dir", name))
	check(t, os.MkdirAll(dir, 0o777))
	if size > 0 {
		check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)))
		t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	}
	check(t, os.Chown(dir, 0, 2000)) // fsGroup
	check(t, os.Chmod(dir, 0o777|os.ModeSetgid))
	return dir
}

func at(path, source string) *runtime.Mount {
	return &runtime.Mount{HostPath: source, ContainerPath: path}
}

// TestEmptyDir has volumes seen by all containers of the pod: those in memory as file
// systems of the sandbox that are as the host's were, those on disk by the host too.
func TestEmptyDir(t *testing.T) {
	d := newDaemon(t, noNetwork)
	d.write(t, "conf.toml.d/20.toml", fmt.Sprintf("kubelet = {root = %q}\n", d.path("kubelet")))
	d.stop(t, unix.SIGTERM)
	d.start(t)
	config := d.podConfig()
	memory, disk := d.emptyDir(t, config.Metadata.Uid, "memory", 8*mib), d.emptyDir(t, config.Metadata.Uid, "disk", 0)
	used := d.emptyDir(t, config.Metadata.Uid, "used", 8*mib)
	check(t, os.WriteFile(filepath.Join(used, "before"), nil, 0o644))
	p := d.runPod(t, func(c *runtime.PodSandboxConfig) { c.Metadata.Uid = config.Metadata.Uid })
	mounts := func(m ...*runtime.Mount) func(*runtime.ContainerConfig) {
		return func(c *runtime.ContainerConfig) { c.Mounts = m }
	}
	one := p.run(t, forever, mounts(at("/memory", memory), at("/disk", disk), at("/used", used)))
	readonly := at("/memory", memory)
	readonly.Readonly = true
	two := p.run(t, forever, mounts(readonly, at("/other", memory), at("/disk", disk)))

	one.says(t, "grep ' /memory ' /proc/mounts | cut -d' ' -f3; stat -c '%a %u %g' /memory; ls /used", "tmpfs\n2777 0 2000\nbefore\n")
	one.says(t, "echo fast >/memory/f; echo slow >/disk/f; echo here >/used/f; stat -c %g /memory/f", "2000\n")
	two.says(t, "cat /memory/f /disk/f; echo more >>/other/f; cat /memory/f", "fast\nslow\nfast\nmore\n")
	if out, code := two.exec(t, "echo no >/memory/g"); code == 0 || !strings.Contains(out, "Read-only") {
		t.Errorf("write to a read-only mount: %q", out)
	}
	if out, code := one.exec(t, "dd if=/dev/zero of=/memory/big bs=1M count=9; rm /memory/big"); !strings.Contains(out, "No space left") {
		t.Errorf("more than its size: %q, %d", out, code)
	}
	for file, want := range map[string]string{filepath.Join(disk, "f"): "slow\n", filepath.Join(used, "f"): "here\n"} {
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("on the host: %q, %v, want %q", got, err, want)
		}
	}
	// It outlives its containers, and the daemon.
	check(t, d.pods.RemoveContainer(ctx(t), one.id))
	check(t, d.pods.RemoveContainer(ctx(t), two.id))
	d.stop(t, unix.SIGKILL)
	d.start(t)
	p.run(t, forever, mounts(at("/memory", memory))).says(t, "cat /memory/f", "fast\nmore\n")

	part := d.path(filepath.Join("kubelet/pods", config.Metadata.Uid, "volume-subpaths/memory/c/0"))
	check(t, os.MkdirAll(part, 0o777))
	refusedMount := p.containerConfig(forever)
	refusedMount.Mounts = []*runtime.Mount{at("/part", part)}
	_, err := d.pods.CreateContainer(ctx(t), p.id, refusedMount, p.config)
	refused(t, err, codes.Unimplemented, `the volume "memory" in memory`)
}

// TestSocketsInVolumes has a socket in a volume in memory lead from one container to
// another, and one in a directory of the host stay with the container that made it.
func TestSocketsInVolumes(t *testing.T) {
	d := newDaemon(t, noNetwork)
	d.write(t, "conf.toml.d/20.toml", fmt.Sprintf("kubelet = {root = %q}\n", d.path("kubelet")))
	d.stop(t, unix.SIGTERM)
	d.start(t)
	uid := d.podConfig().Metadata.Uid
	memory, disk := d.emptyDir(t, uid, "memory", 8*mib), d.emptyDir(t, uid, "disk", 0)
	p := d.runPod(t, func(c *runtime.PodSandboxConfig) { c.Metadata.Uid = uid })
	pair := func(volume string) (server, client *container) {
		mounted := func(c *runtime.ContainerConfig) { c.Mounts = []*runtime.Mount{at("/v", volume)} }
		server = p.run(t, "ln -s /v/log /dev/log; exec syslogd -n -O -", mounted)
		server.waitFor(t, "syslogd started")
		return server, p.run(t, "ln -s /v/log /dev/log; echo linked; "+forever, mounted)
	}
	server, client := pair(memory)
	client.waitFor(t, "linked")
	client.says(t, "logger across", "")
	server.waitFor(t, "across")

	server, client = pair(disk)
	server.says(t, "test -S /v/log && echo has", "has\n")
	client.says(t, "test -S /v/log || echo has not", "has not\n")
}
