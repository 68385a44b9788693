package integration

import (
	"errors"
	"strings"
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
