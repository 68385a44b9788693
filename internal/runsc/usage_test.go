package runsc

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestUsageOfContainers(t *testing.T) {
	n := newNode(t)
	n.sandbox(id("a"))
	for _, name := range []string{"b", "c", "d"} {
		n.container(id(name), id("a"), "sleep")
	}
	n.Cgroup(id("c"), "cpu.stat", "usage_usec 4000000\nuser_usec 3000000\nsystem_usec 1000000\nnice_usec 0")
	n.Cgroup(id("c"), "memory.current", "209715200")
	n.Cgroup(id("c"), "cgroup.procs", "3\n4\n5")
	n.Cgroup(id("c"), "pids.current", "12")
	n.Cgroup(id("d"), "memory.current", "") // it is ending
	got, err := n.Control(id("a")).Usage(t.Context(), []string{id("b"), id("c"), id("d"), id("e")})
	want := map[string]Usage{
		id("b"): {User: 30_000, System: 10_000, Memory: 1 << 20, Processes: 2, Threads: 3},
		id("c"): {User: 3_000_000, System: 1_000_000, Memory: 200 << 20, Processes: 3, Threads: 12},
	}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if calls := n.Calls(); calls[len(calls)-1] != "rpc.Cgroups.ReadControlFiles" || slices.Contains(calls[:len(calls)-1], "rpc.Cgroups.ReadControlFiles") {
		t.Errorf("calls %q", calls)
	}
}

func TestUsageWithoutAnAnswer(t *testing.T) {
	n := newNode(t)
	n.sandbox(id("a"))
	c := n.Control(id("a"))
	for fault, text := range map[string]string{"fail some reason": "some reason", "unknown": "unknown method", "garbage": "invalid character"} {
		n.Fault("rpc.Cgroups.ReadControlFiles", fault)
		if _, err := c.Usage(t.Context(), []string{id("a")}); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", fault, err)
		}
	}
	if _, err := n.Control(id("f")).Usage(t.Context(), []string{id("f")}); !errdefs.IsUnavailable(err) {
		t.Errorf("of a sandbox that there is not: %v", err)
	}
}
