package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/test/isolate"
	"github.com/runscd/runscd/test/registry/loopback"
)

// hostTmpfs mounts a tmpfs with a file in it for the time of the test.
func hostTmpfs(t *testing.T, dir string) {
	t.Helper()
	check(t, os.MkdirAll(dir, 0o755))
	check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	check(t, os.WriteFile(filepath.Join(dir, "file"), []byte("below\n"), 0o644))
}

// fails checks that a script in the container fails with some words.
func (c *container) fails(t *testing.T, script string, words ...string) {
	t.Helper()
	out, code := c.exec(t, script)
	if code == 0 {
		t.Errorf("%s: %q, succeeded", script, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("%s: %q, want %q", script, out, w)
		}
	}
}

// TestRecursiveReadOnly has what is mounted in a volume read-only too, also for
// a container that makes its own mount of it writable.
func TestRecursiveReadOnly(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	host := t.TempDir()
	hostTmpfs(t, filepath.Join(host, "sub"))
	c := p.run(t, forever, func(c *runtime.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &runtime.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		c.Mounts = []*runtime.Mount{
			{HostPath: host, ContainerPath: "/ro", Readonly: true},
			{HostPath: host, ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true},
			{HostPath: filepath.Join(host, "sub/file"), ContainerPath: "/file", Readonly: true, RecursiveReadOnly: true},
		}
	})
	c.says(t, "cat /rro/sub/file /file", "below\nbelow\n")
	for _, path := range []string{"/ro/x", "/rro/x", "/rro/sub/x", "/rro/sub/file", "/file"} {
		c.fails(t, "echo no >"+path, "Read-only file system")
	}
	c.exec(t, "mount -o remount,rw /ro; mount -o remount,rw /rro; mount -o remount,rw /file")
	for _, path := range []string{"/ro/x", "/rro/x", "/rro/sub/x", "/rro/sub/file", "/file"} {
		c.fails(t, "echo no >"+path)
	}
	if found := names(host); len(found) != 1 {
		t.Errorf("the host's directory has %q", found)
	}
	if found := names(filepath.Join(host, "sub")); len(found) != 1 {
		t.Errorf("the directory mounted in it has %q", found)
	}
	d.stop(t, unix.SIGKILL)
	check(t, os.Remove(d.path("l/containers/"+c.id+".json")))
	d.start(t)
	if found := isolate.MountsBelow(d.path("s/containers")); len(found) != 0 {
		t.Errorf("mounts of a container without a record: %q", found)
	}
	resp, err := d.pods.Status(ctx(t), false)
	check(t, err)
	for _, h := range resp.RuntimeHandlers {
		if !h.Features.GetRecursiveReadOnlyMounts() {
			t.Errorf("handler %q does not tell of it", h.Name)
		}
	}
	if !resp.Features.GetMountOptions() {
		t.Errorf("features: %v", resp.Features)
	}
}

// TestReadOnlyAlone has what is mounted in a read-only volume as it is on the host,
// where the CRI does not ask for more, but not in one with the daemon's own mounts.
func TestReadOnlyAlone(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	host := t.TempDir()
	hostTmpfs(t, filepath.Join(host, "sub"))
	c := p.run(t, forever, func(c *runtime.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &runtime.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		c.Mounts = []*runtime.Mount{
			{HostPath: host, ContainerPath: "/ro", Readonly: true},
			{HostPath: d.dir, ContainerPath: "/own", Readonly: true},
		}
	})
	c.says(t, "echo yes >/ro/sub/new && cat /ro/sub/new", "yes\n")
	c.fails(t, "echo no >/ro/x", "Read-only file system")
	c.exec(t, "mount -o remount,rw /ro; mount -o remount,rw,bind /ro")
	c.fails(t, "echo no >/ro/x", "Read-only file system")
	c.fails(t, "echo no >/own/s/x", "Read-only file system")
	if found := names(host); len(found) != 1 {
		t.Errorf("the host's directory has %q", found)
	}
	if found := isolate.MountsBelow(d.path("s/containers/" + c.id + "/volumes")); len(found) != 2 {
		t.Errorf("mounts made for it: %q", found)
	}
	d.stop(t, unix.SIGKILL)
	d.start(t)
	check(t, d.pods.RemoveContainer(ctx(t), c.id))
	if found := isolate.MountsBelow(d.path("s/containers/" + c.id)); len(found) != 0 {
		t.Errorf("mounts of a container that is gone: %q", found)
	}
	if text, err := os.ReadFile(filepath.Join(host, "sub/new")); err != nil || string(text) != "yes\n" {
		t.Errorf("on the host: %q, %v", text, err)
	}
}

func TestMountOptions(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	host := t.TempDir()
	busybox, err := os.ReadFile("/bin/busybox")
	check(t, err)
	check(t, os.WriteFile(filepath.Join(host, "busybox"), busybox, 0o755))
	check(t, os.Chmod(filepath.Join(host, "busybox"), 0o755|os.ModeSetuid))
	check(t, os.Chmod(host, 0o755))
	check(t, unix.Mknod(filepath.Join(host, "mem"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 1))))
	c := p.run(t, forever, func(c *runtime.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUser = &runtime.Int64Value{Value: 1000}
		c.Mounts = []*runtime.Mount{
			{HostPath: host, ContainerPath: "/plain"},
			{HostPath: host, ContainerPath: "/noexec", MountOptions: []string{"noexec"}},
			{HostPath: host, ContainerPath: "/nodev", MountOptions: []string{"nodev"}},
			{HostPath: host, ContainerPath: "/nosuid", MountOptions: []string{"nosuid"}},
		}
	})
	c.says(t, "/plain/busybox echo runs; /nodev/busybox echo runs", "runs\nruns\n")
	c.fails(t, "/noexec/busybox echo runs", "Permission denied")
	const su = "/busybox su 2>&1 </dev/null | grep -o 'must be suid' || echo is suid"
	c.says(t, "/plain"+su, "is suid\n")
	c.says(t, "/nosuid"+su, "must be suid\n")
	p.run(t, forever, security(func(s *runtime.LinuxContainerSecurityContext) {
		s.RunAsUser, s.NoNewPrivs = &runtime.Int64Value{Value: 1000}, true
	}), func(c *runtime.ContainerConfig) {
		c.Mounts = []*runtime.Mount{{HostPath: host, ContainerPath: "/plain"}}
	}).says(t, "/plain"+su, "must be suid\n")
	c.fails(t, "head -c 1 /nodev/mem")
	c.says(t, "grep -oE '9p rw,no(suid|exec)' /proc/mounts | sort", "9p rw,noexec\n9p rw,nosuid\n")
}

// TestPropagation has mounts that the host makes later seen where that is asked
// for, and not elsewhere.
func TestPropagation(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	host := d.path("shared")
	check(t, os.MkdirAll(host, 0o755))
	check(t, unix.Mount(host, host, "", unix.MS_BIND, ""))
	t.Cleanup(func() { check(t, unix.Unmount(host, unix.MNT_DETACH)) })
	check(t, unix.Mount("", host, "", unix.MS_SHARED, ""))
	c := p.run(t, forever, func(c *runtime.ContainerConfig) {
		c.Mounts = []*runtime.Mount{
			{HostPath: host, ContainerPath: "/slave", Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
			{HostPath: host, ContainerPath: "/private"},
		}
	})
	hostTmpfs(t, filepath.Join(host, "later"))
	eventually(t, "the mount is seen", func() error {
		if out, _ := c.exec(t, "cat /slave/later/file"); out != "below\n" {
			return errors.New(out)
		}
		return nil
	})
	c.says(t, "ls /private/later", "")

	config := p.containerConfig(forever)
	config.Mounts = []*runtime.Mount{{HostPath: host, ContainerPath: "/shared", Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	_, err := d.pods.CreateContainer(ctx(t), p.id, config, p.config)
	refused(t, err, codes.InvalidArgument, "propagation", "BIDIRECTIONAL", "never reach the host")
}

func TestImageVolume(t *testing.T) {
	layer, err := loopback.Layer(false, loopback.Dir("data", 0o755), loopback.File("data/file", 0o644, []byte("of the image\n")),
		loopback.Link("data/out", "/../../etc"), loopback.File("top", 0o644, nil))
	check(t, err)
	img, err := loopback.Image(v1.Config{}, layer)
	check(t, err)
	ref, err := registry.Put("volume:1", img)
	check(t, err)
	d := newDaemon(t, noNetwork)
	before := len(d.snapshots())
	id, err := d.images.PullImage(ctx(t), &runtime.ImageSpec{Image: ref}, nil, nil)
	check(t, err)
	p := d.runPod(t)
	volume := func(ref, sub string) func(*runtime.ContainerConfig) {
		return func(c *runtime.ContainerConfig) {
			c.Mounts = append(c.Mounts, &runtime.Mount{
				ContainerPath: fmt.Sprint("/v", len(c.Mounts)), Image: &runtime.ImageSpec{Image: ref}, ImageSubPath: sub, Readonly: true,
			})
		}
	}
	c := p.run(t, forever, volume(id, ""), volume(ref, "data"), volume(id, "data/file"),
		security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Capabilities = &runtime.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		}))
	c.says(t, "cat /v0/data/file /v1/file /v2", strings.Repeat("of the image\n", 3))
	c.fails(t, "echo no >/v0/x", "Read-only file system")
	c.fails(t, "mount -o remount,rw /v0; echo no >/v0/x")
	for i, m := range c.status(t).Mounts {
		if m.Image.GetImage() != id || m.Image.ImageRef != id {
			t.Errorf("mount %d in the status: %v, want the image's id %s", i, m, id)
		}
	}
	check(t, d.images.RemoveImage(ctx(t), &runtime.ImageSpec{Image: id})) // the volume stays
	c.says(t, "cat /v1/file", "of the image\n")
	d.stop(t, unix.SIGKILL)
	d.start(t)
	c.says(t, "cat /v1/file", "of the image\n")

	_, err = d.images.PullImage(ctx(t), &runtime.ImageSpec{Image: ref}, nil, nil)
	check(t, err)
	for name, change := range map[string]func(*runtime.ContainerConfig){
		"no image":  volume("sha256:"+strings.Repeat("0", 64), ""),
		"no path":   volume(id, "none"),
		"out":       volume(id, "data/../../../etc"),
		"by a link": volume(id, "data/out/passwd"),
	} {
		config := p.containerConfig(forever)
		change(config)
		_, err := d.pods.CreateContainer(ctx(t), p.id, config, p.config)
		if err == nil || !strings.Contains(err.Error(), "desc = ImageVolumeMountFailed: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	check(t, d.pods.RemoveContainer(ctx(t), c.id))
	check(t, d.images.RemoveImage(ctx(t), &runtime.ImageSpec{Image: id}))
	eventually(t, "the image is gone", func() error {
		if n := len(d.snapshots()); n != before {
			return fmt.Errorf("%d snapshots, not %d", n, before)
		}
		return nil
	})
}

func TestDevices(t *testing.T) {
	files := t.TempDir()
	zero := filepath.Join(files, "zero")
	check(t, unix.Mknod(zero, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	check(t, os.WriteFile(filepath.Join(files, "example.json"), fmt.Appendf(nil, `{"cdiVersion": "0.6.0", "kind": "example.com/device", "devices": [{"name": "a",
		"containerEdits": {"deviceNodes": [{"path": "/dev/cdi/a", "hostPath": %q}], "env": ["DEVICE=a"]}}]}`, zero), 0o644))
	d := newDaemon(t, noNetwork+fmt.Sprintf("[runtime]\ncdi_spec_dirs = [%q]\n", files))
	p := d.runPod(t)
	c := p.run(t, forever, func(c *runtime.ContainerConfig) {
		c.Devices = []*runtime.Device{{HostPath: zero, ContainerPath: "/dev/mine", Permissions: "rw"}}
		c.CDIDevices = []*runtime.CDIDevice{{Name: "example.com/device=a"}}
	})
	c.says(t, "head -c 3 /dev/mine | wc -c; head -c 4 /dev/cdi/a | wc -c; echo $DEVICE", "3\n4\na\n")

	config := p.containerConfig(forever)
	mem := filepath.Join(files, "mem")
	check(t, unix.Mknod(mem, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 1))))
	config.Devices = []*runtime.Device{{HostPath: mem, ContainerPath: "/dev/mem"}}
	_, err := d.pods.CreateContainer(ctx(t), p.id, config, p.config)
	refused(t, err, codes.InvalidArgument, "/dev/mem")
}
