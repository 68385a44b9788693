package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/test/registry/loopback"
)

// mounts are n mounts of a directory of the host.
func mounts(host string, n int) []*runtime.Mount {
	var list []*runtime.Mount
	for i := range n {
		list = append(list, &runtime.Mount{HostPath: host, ContainerPath: fmt.Sprintf("/m/%d", i), Readonly: true, RecursiveReadOnly: i%2 == 0})
	}
	return list
}

// TestHostileMounts has mounts that are too many or at odd places refused, or
// inside the container.
func TestHostileMounts(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	host := t.TempDir()
	check(t, os.WriteFile(filepath.Join(host, "file"), []byte("of the host\n"), 0o644))
	many := p.run(t, forever, func(c *runtime.ContainerConfig) { c.Mounts = mounts(host, 116) })
	many.says(t, "cat /m/0/file /m/115/file", "of the host\nof the host\n")
	check(t, d.pods.RemoveContainer(ctx(t), many.id))
	for _, test := range map[string]struct {
		mounts []*runtime.Mount
		words  string
	}{
		"10,000":       {mounts(host, 10000), "config.mounts: 10000"},
		"at the root":  {[]*runtime.Mount{{HostPath: host, ContainerPath: "/a/../.."}}, "container_path"},
		"at proc":      {[]*runtime.Mount{{HostPath: host, ContainerPath: "/etc/../proc"}}, "/proc"},
		"from nowhere": {[]*runtime.Mount{{HostPath: "../../etc", ContainerPath: "/etc"}}, "host_path"},
	} {
		config := p.containerConfig(forever)
		config.Mounts = test.mounts
		_, err := d.pods.CreateContainer(ctx(t), p.id, config, p.config)
		refused(t, err, codes.InvalidArgument, test.words)
	}

	// What lies on the way to a mount is the image's author's choice.
	layer, err := loopback.Layer(false, loopback.Link("up", "../../../../../../../.."+d.dir), loopback.Link("etc/link", "/../../../bin"))
	check(t, err)
	img, err := loopback.Busybox(v1.Config{}, layer)
	check(t, err)
	ref, err := registry.Put("links:1", img)
	check(t, err)
	_, err = d.images.PullImage(ctx(t), &runtime.ImageSpec{Image: ref}, nil, nil)
	check(t, err)
	d.layer++ // the image has one more than busybox
	before := names(d.dir)
	c := p.run(t, forever, func(c *runtime.ContainerConfig) {
		c.Image = &runtime.ImageSpec{Image: ref}
		c.Mounts = []*runtime.Mount{{HostPath: host, ContainerPath: "/up/mounted"}, {HostPath: host, ContainerPath: "/etc/link/mounted"}}
		c.Linux.SecurityContext.MaskedPaths = []string{"/up/conf.toml"}
		c.Linux.SecurityContext.ReadonlyPaths = []string{"/up/log"}
	})
	c.says(t, "cat /bin/mounted/file "+d.dir+"/mounted/file", "of the host\nof the host\n")
	if now := names(d.dir); len(more(now, before)) > 0 {
		t.Errorf("on the host: %q", more(now, before))
	}
}

// TestRemount has a container with CAP_SYS_ADMIN try to undo what it is held to.
func TestRemount(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	host := t.TempDir()
	check(t, os.WriteFile(filepath.Join(host, "file"), []byte("of the host\n"), 0o644))
	c := p.run(t, forever, func(c *runtime.ContainerConfig) {
		s := c.Linux.SecurityContext
		s.Capabilities = &runtime.Capability{AddCapabilities: []string{"ALL"}}
		s.MaskedPaths = []string{"/masked"}
		s.ReadonlyPaths = []string{"/etc"}
		c.Mounts = []*runtime.Mount{{HostPath: host, ContainerPath: "/ro", Readonly: true}, {HostPath: filepath.Join(host, "file"), ContainerPath: "/masked"}}
	})
	c.exec(t, "mount -o remount,rw /ro; mount -o remount,rw,bind /ro; umount /etc; mount -t tmpfs none /mnt; mount --bind / /mnt")
	c.fails(t, "echo no >/ro/file")
	c.fails(t, "echo no >/ro/new")
	c.fails(t, "echo no >/masked/x")
	if text, err := os.ReadFile(filepath.Join(host, "file")); err != nil || string(text) != "of the host\n" || len(names(host)) != 1 {
		t.Errorf("on the host: %q, %v, %q", text, err, names(host))
	}
	// A container of the same pod and image sees nothing of it.
	p.run(t, forever).says(t, "ls /mnt /ro /masked 2>/dev/null | cat", "")
}

// TestAmbientCapabilities has a user that is not root keep a capability, and
// nothing more.
func TestAmbientCapabilities(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	c := p.run(t, forever, security(func(s *runtime.LinuxContainerSecurityContext) {
		s.RunAsUser = &runtime.Int64Value{Value: 1000}
		s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
	}))
	const sets = "grep -E '^Cap(Eff|Amb)' /proc/%s/status | cut -f2"
	for _, pid := range []string{"1", "self"} {
		c.says(t, fmt.Sprintf(sets, pid), strings.Repeat("0000000000000400\n", 2))
	}
}
