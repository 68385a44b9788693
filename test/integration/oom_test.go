package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const oomLimit = 160 << 20

// TestOOMShapes has the kernel kill the one or the other of a sandbox's processes
// for memory: that of the sandbox, or one in which a container's program runs.
func TestOOMShapes(t *testing.T) {
	t.Run("sandbox", func(t *testing.T) {
		d := newDaemon(t, noNetwork)
		p, idle, hog := d.outOfMemory(t, (*pod).sandboxPIDs)
		why := p.shortage()
		for _, c := range []*container{hog, idle} {
			if s := c.ended(t); s.ExitCode != 137 || s.Reason != "OOMKilled" || s.Message != why {
				t.Errorf("container: %v", s)
			}
		}
		eventually(t, "the pod has ended", func() error {
			if s := p.status(t); s.State == runtime.PodSandboxState_SANDBOX_READY {
				return fmt.Errorf("%v", s)
			}
			return nil
		})
		resp, err := p.pods.PodSandboxStatus(ctx(t), p.id, true)
		check(t, err)
		if !strings.Contains(resp.Info["info"], why) {
			t.Errorf("pod: %s", resp.Info["info"])
		}
	})
	t.Run("program", func(t *testing.T) {
		// Until the sandbox has given the dead program's memory back the kernel may
		// kill once more, and then that.
		d := newDaemon(t, noNetwork)
		for try := 0; ; try++ {
			p, idle, hog := d.outOfMemory(t, func(p *pod) []int { return descendants(p.sandboxPIDs()) })
			if s := hog.ended(t); s.ExitCode <= 128 || s.Reason != "OOMKilled" || s.Message != p.shortage() {
				t.Errorf("container: %v", s)
			}
			_, _, err := p.pods.ExecSync(ctx(t), idle.id, []string{"true"}, patience)
			if err != nil && try < 10 {
				t.Logf("the sandbox was killed too: %v", err)
				check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
				continue
			}
			check(t, err)
			check(t, p.pods.StopContainer(ctx(t), idle.id, 0))
			if s := idle.ended(t); s.ExitCode != 137 || s.Reason != "Error" {
				t.Errorf("another container, that we have killed: %v", s)
			}
			return
		}
	})
}

// outOfMemory runs a pod of which one container takes more memory than there is, while
// the kernel likes some processes best to kill.
func (d *daemon) outOfMemory(t *testing.T, victims func(*pod) []int) (p *pod, idle, hog *container) {
	t.Helper()
	check(t, limitMemory(d.cgroup, oomLimit))
	p = d.runPod(t)
	idle = p.run(t, forever)
	// The program is there before it takes memory, so that its process is known.
	hog = p.run(t, "mkfifo /tmp/f; echo there; exec tail /tmp/f")
	hog.waitFor(t, "there")
	eventually(t, "the program runs", func() error {
		if out, _ := hog.exec(t, "cat /proc/1/comm"); strings.TrimSpace(out) != "tail" {
			return fmt.Errorf("%q", out)
		}
		return nil
	})
	for _, pid := range victims(p) {
		check(t, os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("1000"), 0o644))
	}
	// It has no end of its own to tell of: the sandbox may be gone.
	_, _, _ = p.pods.ExecSync(ctx(t), hog.id, []string{"/bin/sh", "-c", "cat /dev/zero >/tmp/f"}, patience)
	return p, idle, hog
}

// shortage is what a container is told that was killed for memory.
func (p *pod) shortage() string {
	return fmt.Sprintf("killed by the kernel for memory: memory limit of %d bytes of cgroup %s", oomLimit, p.daemon.cgroup)
}

// descendants are the processes below others.
func descendants(of []int) []int {
	below := map[int]bool{}
	for _, pid := range of {
		below[pid] = true
	}
	var found []int
	for again := true; again; {
		again = false
		for _, pid := range pids() {
			if !below[pid] && below[parent(pid)] {
				below[pid], again = true, true
				found = append(found, pid)
			}
		}
	}
	return found
}

// parent is the parent of a process, 0 if it has ended.
func parent(pid int) (ppid int) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(status), "PPid:")
	_, _ = fmt.Sscan(rest, &ppid)
	return ppid
}
