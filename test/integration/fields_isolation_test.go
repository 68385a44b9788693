package integration

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/test/registry/loopback"
)

// TestSeccomp has the profiles hold in the container's process and in what is
// executed in it, and not in a container beside it.
func TestSeccomp(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	file := filepath.Join(t.TempDir(), "profile.json")
	check(t, os.WriteFile(file, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`), 0o644))
	filtered := func(kind runtime.SecurityProfile_ProfileType, ref string, caps ...string) func(*runtime.ContainerConfig) {
		return security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Seccomp = &runtime.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
			s.Capabilities = &runtime.Capability{AddCapabilities: caps}
		})
	}
	const (
		mode    = "grep '^Seccomp:' /proc/1/status /proc/self/status | cut -f2 | tr -d '\n'; "
		unshare = "unshare -U true 2>/dev/null && echo may unshare; "
		mkdir   = "mkdir /tmp/d 2>/dev/null && echo may mkdir"
	)
	for _, test := range []struct {
		container *container
		want      string
	}{
		{p.run(t, forever, filtered(runtime.SecurityProfile_Unconfined, "")), "00may unshare\nmay mkdir\n"},
		{p.run(t, forever, filtered(runtime.SecurityProfile_RuntimeDefault, "")), "22may mkdir\n"},
		{p.run(t, forever, filtered(runtime.SecurityProfile_RuntimeDefault, "", "SYS_ADMIN")), "22may unshare\nmay mkdir\n"},
		{p.run(t, forever, filtered(runtime.SecurityProfile_Localhost, file)), "22may unshare\n"},
	} {
		if out, _ := test.container.exec(t, mode+unshare+mkdir); out != test.want {
			t.Errorf("%v: %q, want %q", test.container.config.Linux.SecurityContext.Seccomp, out, test.want)
		}
	}
	first := p.run(t, unshare+mkdir+"; echo end", filtered(runtime.SecurityProfile_RuntimeDefault, ""))
	first.waitFor(t, "end\n")
	if out := first.output(t); out != "may mkdir\nend\n" {
		t.Errorf("the first process: %q", out)
	}

	privileged := d.runPod(t, func(c *runtime.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	privileged.run(t, forever, filtered(runtime.SecurityProfile_RuntimeDefault, ""), security(func(s *runtime.LinuxContainerSecurityContext) {
		s.Privileged, s.Capabilities = true, nil
	})).says(t, mode+unshare, "00may unshare\n")

	check(t, os.WriteFile(file, []byte(`{"defaultAction":"SCMP_ACT_LOG"}`), 0o644))
	config := p.containerConfig(forever)
	filtered(runtime.SecurityProfile_Localhost, file)(config)
	_, err := d.pods.CreateContainer(ctx(t), p.id, config, p.config)
	refused(t, err, codes.Unimplemented, file, "SCMP_ACT_LOG")
}

// TestSetUserID has programs that are set-user-id work, such as su, where nothing
// forbids it.
func TestSetUserID(t *testing.T) {
	d := newDaemon(t, noNetwork)
	busybox, err := os.ReadFile("/bin/busybox")
	check(t, err)
	layer, err := loopback.Layer(false, loopback.File("bin/su", 0o4755, busybox),
		loopback.File("etc/passwd", 0o644, []byte("root::0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")))
	check(t, err)
	img, err := loopback.Busybox(loopback.Config(), layer)
	check(t, err)
	ref, err := registry.Put("setuserid:1", img)
	check(t, err)
	d.image, err = d.images.PullImage(ctx(t), &runtime.ImageSpec{Image: ref}, nil, nil)
	check(t, err)
	d.layer = len(d.snapshots())
	p := d.runPod(t)
	host := t.TempDir()
	check(t, os.WriteFile(filepath.Join(host, "su"), busybox, 0o755))
	check(t, os.Chmod(filepath.Join(host, "su"), 0o755|os.ModeSetuid))
	run := func(noNewPrivs bool) *container {
		return p.run(t, forever, security(func(s *runtime.LinuxContainerSecurityContext) {
			s.NoNewPrivs, s.RunAsUser = noNewPrivs, &runtime.Int64Value{Value: 1000}
		}), func(c *runtime.ContainerConfig) {
			c.Mounts = []*runtime.Mount{
				{HostPath: host, ContainerPath: "/plain"},
				{HostPath: host, ContainerPath: "/nosuid", MountOptions: []string{"nosuid"}},
			}
		})
	}
	c := run(false)
	c.says(t, "id -u; /bin/su -c 'id -u'; /plain/su -c 'id -u'", "1000\n0\n0\n")
	c.fails(t, "/nosuid/su -c id", "must be suid")
	run(true).fails(t, "/bin/su -c id", "must be suid")
}

// TestNetRaw has raw sockets in the pods of handlers that have them, for what is
// executed too, and nowhere else.
func TestNetRaw(t *testing.T) {
	d := newDaemon(t, noNetwork+"[runtime.handlers.raw]\nnet_raw = true\n")
	const (
		has  = "for p in 1 self; do [ $((0x$(grep CapBnd /proc/$p/status | cut -f2) >> 13 & 1)) = 1 ] && echo has; done; "
		open = "arping -c 1 -w 1 -I lo 127.0.0.1 2>&1 | grep -o 'not permitted' || echo opens"
	)
	all := &runtime.Capability{AddCapabilities: []string{"ALL"}}
	one := &runtime.Capability{AddCapabilities: []string{"NET_RAW"}, DropCapabilities: []string{"ALL"}}
	with := func(c *runtime.Capability) func(*runtime.ContainerConfig) {
		return security(func(s *runtime.LinuxContainerSecurityContext) { s.Capabilities = c })
	}
	p := d.runPod(t)
	for _, c := range []*runtime.Capability{nil, all} {
		p.run(t, forever, with(c)).says(t, has+open, "not permitted\n")
	}
	config := p.containerConfig(forever)
	with(one)(config)
	_, err := d.pods.CreateContainer(ctx(t), p.id, config, p.config)
	refused(t, err, codes.InvalidArgument, "CAP_NET_RAW", "net_raw")

	raw := &pod{daemon: d, config: d.podConfig()}
	raw.id, err = d.pods.RunPodSandbox(ctx(t), raw.config, "raw")
	check(t, err)
	for _, c := range []*runtime.Capability{nil, all, one} {
		raw.run(t, forever, with(c)).says(t, has+open, "has\nhas\nopens\n")
	}
}
