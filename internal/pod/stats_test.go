package pod

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/image"
	"github.com/runscd/runscd/internal/proc"
)

// cpu sets the CPU time that the host has counted for a pod.
func (n *node) cpu(cgroup string, usec int) {
	n.t.Helper()
	n.must(os.WriteFile(filepath.Join(cgroup, "cpu.stat"), fmt.Appendf(nil, "usage_usec %d\n", usec), 0o600))
}

// counted sets the CPU time that the sandbox has counted for a container.
func (n *node) counted(c *Container, usec int) {
	n.t.Helper()
	n.Cgroup(c.ID, "cpu.stat", fmt.Sprintf("usage_usec %d\nuser_usec %d\nsystem_usec 0", usec, usec))
}

func TestStats(t *testing.T) {
	n := newNode(t)
	p, err := n.Pod(n.runPod("p"))
	n.must(err)
	cgroup := n.cgroup(p)
	one, three := n.start(p.ID, "one", "sleep"), n.start(p.ID, "three", "sleep")
	n.create(p.ID, "created", "sleep")
	n.ended(n.start(p.ID, "exited", "exit"), 0, reasonCompleted)
	n.cpu(cgroup, 5_000_000)
	n.counted(one, 1_000_000)
	n.counted(three, 3_000_000)

	begin := time.Now()
	s := n.Stats(t.Context(), []*Pod{p}, false)[0]
	if s.Pod != p || s.At.Before(begin) || s.AskedAt.Before(begin) || s.Stale || s.NanoCores != nil {
		t.Errorf("%+v", s)
	}
	if s.Host["memory.current"] != 96665600 || s.Limit != 128<<20 || s.Pressure["cpu"].Some.Total != 2276947 || s.Pressure["io"] != nil {
		t.Errorf("host %v, limit %d, pressure %v", s.Host, s.Limit, s.Pressure)
	}
	if s.Processes() != 4 {
		t.Errorf("%d processes", s.Processes())
	}
	if len(s.Containers) != 2 {
		t.Fatalf("%d containers", len(s.Containers))
	}
	for _, c := range s.Containers {
		want := map[string]uint64{one.ID: 1_000_000, three.ID: 3_000_000}[c.ID]
		if c.CPU.Total() != want || c.Usage.Memory != 1<<20 || c.Layer != (image.Usage{Bytes: 4096, Inodes: 2}) || !c.NoSwap || c.Stale || c.NanoCores != nil {
			t.Errorf("container %+v, want %d µs", c, want)
		}
	}
	// Its clock goes four times too fast now.
	n.counted(one, 5_000_000)
	n.cpu(cgroup, 6_000_000)
	if got := n.ContainerStats(t.Context(), one).CPU.Total(); got < 2_000_000 || got > 2_100_000 {
		t.Errorf("%d µs, the host has counted a second", got)
	}
	if got := n.ContainerStats(t.Context(), three).CPU.Total(); got != 3_000_000 {
		t.Errorf("%d µs of the one that is idle", got)
	}
}

func TestStatsOfWhatDoesNotRun(t *testing.T) {
	n := newNode(t)
	p, err := n.Pod(n.runPod("p"))
	n.must(err)
	created, exited := n.create(p.ID, "created", "sleep"), n.start(p.ID, "exited", "exit")
	n.ended(exited, 0, reasonCompleted)
	for _, c := range []*Container{created, exited} {
		s := n.ContainerStats(t.Context(), c)
		if s.Container != c || !s.AskedAt.IsZero() || s.LayerAt.IsZero() || s.Layer.Bytes != 4096 {
			t.Errorf("%s: %+v", c.State(), s)
		}
	}
	n.must(n.StopPod(t.Context(), p.ID))
	if s := n.Stats(t.Context(), []*Pod{p}, false)[0]; s.Pod != p || s.Host != nil || !s.AskedAt.IsZero() || len(s.Containers) > 0 {
		t.Errorf("stopped pod: %+v", s)
	}
}

// TestStatsOfAHungSandbox has one sandbox of three hang, from before it was ever
// asked.
func TestStatsOfAHungSandbox(t *testing.T) {
	n := newNode(t)
	n.statsTimeout = 2 * time.Second
	var pods []*Pod
	for i := range 3 {
		p, err := n.Pod(n.runPod(fmt.Sprint("p", i)))
		n.must(err)
		n.start(p.ID, fmt.Sprint("c", i), "sleep")
		n.cgroup(p)
		pods = append(pods, p)
	}
	hung, pid := pods[1], pods[1].Facts().Host.PID
	stop := func(sig unix.Signal) {
		n.must(unix.Kill(pid, sig))
		for sig == unix.SIGSTOP && !stopped(pid) {
			time.Sleep(time.Millisecond)
		}
	}
	defer stop(unix.SIGCONT)
	check := func(want time.Time) {
		t.Helper()
		begin := time.Now()
		all := n.Stats(t.Context(), pods, false)
		if took := time.Since(begin); took < n.statsTimeout || took > 5*n.statsTimeout {
			t.Errorf("it took %v", took)
		}
		for i, s := range all {
			if s.Pod != pods[i] || len(s.Containers) != 1 || s.Stale != (s.Pod == hung) {
				t.Fatalf("pod %d: %+v", i, s)
			}
		}
		s := all[1]
		if c := s.Containers[0]; !s.AskedAt.Equal(want) || !c.AskedAt.Equal(want) || !c.Stale {
			t.Errorf("told at %v, its container at %v, want %v", s.AskedAt, c.AskedAt, want)
		}
		if s.At.Before(begin) || s.Host == nil {
			t.Errorf("the host does not hang, its figures are of %v", s.At)
		}
	}
	stop(unix.SIGSTOP)
	check(time.Time{})
	stop(unix.SIGCONT)
	told := n.Stats(t.Context(), []*Pod{hung}, false)[0]
	if told.Stale || told.AskedAt.IsZero() {
		t.Fatalf("%+v", told)
	}
	stop(unix.SIGSTOP)
	check(told.AskedAt)
}

// stopped tells whether no thread of a process runs any more.
func stopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, thread := range threads {
		if text, err := os.ReadFile(thread); err == nil && !strings.Contains(string(text), "State:\tT") {
			return false
		}
	}
	return true
}

func TestStatsOfTheHostsNetwork(t *testing.T) {
	n := newNode(t)
	req := n.podRequest("p")
	req.Config.Linux.SecurityContext = &runtime.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE},
	}
	id, err := n.RunPod(t.Context(), req)
	n.must(err)
	p, err := n.Pod(id)
	n.must(err)
	n.cgroup(p)
	if s := n.Stats(t.Context(), []*Pod{p}, false)[0]; s.At.IsZero() || s.Interfaces != nil {
		t.Errorf("%+v", s)
	}
}

// TestStatsMeanwhile asks while containers come and go.
func TestStatsMeanwhile(t *testing.T) {
	n := newNode(t)
	p, err := n.Pod(n.runPod("p"))
	n.must(err)
	n.cgroup(p)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 5 {
			c := n.start(p.ID, fmt.Sprint("c", i), "exit")
			<-c.ended
			n.must(n.RemoveContainer(t.Context(), c.ID))
		}
	}()
	for {
		for _, c := range n.Stats(t.Context(), []*Pod{p}, false)[0].Containers {
			if !c.AskedAt.IsZero() && c.Usage.Memory == 0 {
				t.Errorf("%+v", c)
			}
		}
		select {
		case <-done:
			n.Stats(t.Context(), []*Pod{p}, false)
			p.meter.mu.Lock()
			defer p.meter.mu.Unlock()
			for c := range p.meter.containers {
				if c.State() != proc.Running {
					t.Errorf("figures are kept of container %s", c.ID)
				}
			}
			return
		default:
		}
	}
}

// TestStatsStartNothing has figures cost no process, and one call for a pod.
func TestStatsStartNothing(t *testing.T) {
	n := newNode(t)
	p, err := n.Pod(n.runPod("p"))
	n.must(err)
	n.cgroup(p)
	for _, name := range []string{"a", "b", "c"} {
		n.start(p.ID, name, "sleep")
	}
	before := len(n.Calls())
	n.Stats(t.Context(), n.Pods(), false)
	calls := slices.DeleteFunc(n.Calls()[before:], func(c string) bool { return c == "rpc.Wait" }) // of the last start
	if strings.Join(calls, " ") != "rpc.Cgroups.ReadControlFiles" {
		t.Errorf("calls %q", calls)
	}
}

// TestLimits has a pod's limit where the kubelet puts it, above the sandbox.
func TestLimits(t *testing.T) {
	n := newNode(t)
	for name, tt := range map[string]struct {
		parent, own, above string
		want               uint64
	}{
		"by-parent":      {"/kubepods", "max", "1000", 1000},
		"lower-own":      {"/kubepods", "500", "1000", 500},
		"lower-parent":   {"/kubepods", "2000", "1000", 1000},
		"not-the-pods":   {"", "max", "1000", 0},
		"without-limits": {"/kubepods", "max", "max", 0},
	} {
		req := n.podRequest(name)
		req.Config.Linux.CgroupParent = tt.parent
		id, err := n.RunPod(t.Context(), req)
		n.must(err)
		p, err := n.Pod(id)
		n.must(err)
		cgroup := n.cgroup(p)
		n.must(os.WriteFile(filepath.Join(cgroup, "memory.max"), []byte(tt.own+"\n"), 0o600))
		n.must(os.WriteFile(filepath.Join(cgroup, "../memory.max"), []byte(tt.above+"\n"), 0o600))
		if got := n.Stats(t.Context(), []*Pod{p}, false)[0].Limit; got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}
