package pod

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/limit"
)

// cgroup gives a pod a cgroup of version 2, with a memory limit that is lower than
// that of the one above.
func (n *node) cgroup(p *Pod) string {
	n.t.Helper()
	dir := filepath.Join(n.cgroups, "kubepods", p.Config().Metadata.Name)
	n.must(os.CopyFS(dir, os.DirFS("testdata/cgroup")))
	dir = filepath.Join(dir, "sandbox")
	n.kills(dir, 0)
	n.must(p.update(func(f *podRecord) {
		f.Cgroup = dir
		f.Resources.M = &runtime.LinuxContainerResources{MemoryLimitInBytes: 128 << 20} // as there
	}))
	return dir
}

// kills has the kernel kill for memory in a cgroup.
func (n *node) kills(cgroup string, count int) {
	n.t.Helper()
	for _, dir := range []string{cgroup, filepath.Dir(cgroup)} {
		n.must(os.WriteFile(filepath.Join(dir, "memory.events"), fmt.Appendf(nil, "low 0\noom %d\noom_kill %d\n", count, count), 0o600))
	}
}

const shortage = "killed by the kernel for memory: memory limit of 134217728 bytes of cgroup /kubepods/p/sandbox"

func (n *node) message(got, want string) {
	n.t.Helper()
	if !strings.Contains(got, want) || want == "" && got != "" {
		n.t.Errorf("message %q, want %q", got, want)
	}
}

func TestOOMMessages(t *testing.T) {
	n := newNode(t)
	p, err := n.Pod(n.runPod("p"))
	n.must(err)
	cgroup := n.cgroup(p)

	c := n.start(p.ID, "one", "sleep")
	n.kills(cgroup, 1)
	n.must(c.signal(t.Context(), unix.SIGKILL, true)) // in the kernel's place
	n.ended(c, 137, reasonOOMKilled)
	n.message(c.Facts().Message, shortage)

	c = n.start(p.ID, "fault", "sleep")
	n.kills(cgroup, 2)
	n.must(c.signal(t.Context(), unix.SIGSEGV, true)) // its memory has gone with its process
	n.ended(c, 139, reasonOOMKilled)

	c = n.start(p.ID, "two", "sleep")
	n.kills(cgroup, 3)
	n.must(unix.Kill(p.Facts().Host.PID, unix.SIGKILL))
	n.ended(c, 137, reasonOOMKilled)
	n.message(c.Facts().Message, shortage)
	<-p.ended
	n.message(p.Facts().Message, "sandbox ended by itself with status 137: "+shortage)
}

// TestOOMOfSomethingElse has the kernel kill a process whose container goes on:
// who ends the container later is not the kernel.
func TestOOMOfSomethingElse(t *testing.T) {
	n := newNode(t)
	p, err := n.Pod(n.runPod("p"))
	n.must(err)
	cgroup := n.cgroup(p)
	c, d := n.start(p.ID, "one", "ignore-term"), n.start(p.ID, "two", "sleep")
	n.kills(cgroup, 1)
	n.must(n.StopContainer(t.Context(), c.ID, 0))
	n.ended(c, 137, reasonError)
	n.must(n.StopPod(t.Context(), p.ID))
	n.ended(d, 137, reasonError)
	n.message(p.Facts().Message, "")
}

// TestOOMBeforeAnotherLimit has the pod's limit raised between the kill and its being
// told.
func TestOOMBeforeAnotherLimit(t *testing.T) {
	n := newNode(t)
	p, err := n.Pod(n.runPod("p"))
	n.must(err)
	cgroup := n.cgroup(p)
	c := n.start(p.ID, "one", "sleep")
	n.kills(cgroup, 1)
	n.must(p.limiter.hold(t.Context(), limit.Limits{Sizes: map[string]int64{"memory.max": 200 << 20}}, false))
	n.must(c.signal(t.Context(), unix.SIGKILL, true)) // in the kernel's place
	n.ended(c, 137, reasonOOMKilled)
	n.message(c.Facts().Message, shortage)
}

// TestOOMWithoutTheDaemon has the kernel kill while no daemon is there.
func TestOOMWithoutTheDaemon(t *testing.T) {
	for name, killed := range map[string]func(n *node, p *Pod, c *Container){
		"the container": func(n *node, _ *Pod, c *Container) { n.must(c.signal(n.t.Context(), unix.SIGKILL, true)); <-c.ended },
		"the sandbox": func(n *node, p *Pod, c *Container) {
			n.must(unix.Kill(p.Facts().Host.PID, unix.SIGKILL))
			<-p.ended
			<-c.ended
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			p, err := n.Pod(n.runPod("p"))
			n.must(err)
			cgroup := n.cgroup(p)
			c := n.start(p.ID, "one", "sleep")
			n.crash()
			n.kills(cgroup, 1)
			killed(n, p, c)
			n.open()
			c, err = n.Container(c.ID)
			n.must(err)
			n.ended(c, 137, reasonOOMKilled)
			n.message(c.Facts().Message, shortage)
		})
	}
}

// TestOOMAfterTheCgroup has the pod torn down before anybody has asked why it
// ended: the cgroup goes with the sandbox.
func TestOOMAfterTheCgroup(t *testing.T) {
	n := newNode(t)
	p, err := n.Pod(n.runPod("p"))
	n.must(err)
	cgroup := n.cgroup(p)
	n.kills(cgroup, 1)
	p.memoryKills() // as the teardown does
	n.must(os.RemoveAll(cgroup))
	n.message(p.outOfMemory(false), shortage)
	n.message(p.outOfMemory(true), shortage)
	n.message(p.outOfMemory(true), "")
}
