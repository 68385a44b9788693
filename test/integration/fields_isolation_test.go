package integration

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
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
