package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	ready    = runtime.PodSandboxState_SANDBOX_READY
	notReady = runtime.PodSandboxState_SANDBOX_NOTREADY
	running  = runtime.ContainerState_CONTAINER_RUNNING
	exited   = runtime.ContainerState_CONTAINER_EXITED
)

func ago(d time.Duration) int64 { return time.Now().Add(-d).UnixNano() }

func fakePod(id, name string, state runtime.PodSandboxState) *runtime.PodSandbox {
	return &runtime.PodSandbox{
		Id: id, Metadata: &runtime.PodSandboxMetadata{Namespace: "default", Name: name}, State: state, CreatedAt: ago(2*time.Hour + 90*time.Second),
	}
}

func fakeContainer(id, pod, name string, state runtime.ContainerState, attempt uint32) *runtime.Container {
	return &runtime.Container{
		Id: id, PodSandboxId: pod, Metadata: &runtime.ContainerMetadata{Name: name, Attempt: attempt}, State: state,
		CreatedAt: ago(30*time.Minute + 30*time.Second - time.Duration(attempt)*time.Second),
	}
}

func fakeNode() *fakeCRI {
	return &fakeCRI{
		pods: []*runtime.PodSandbox{fakePod("cccccccccccccccc", "web", ready), fakePod("bbbb", "old", notReady), fakePod("aaaa", "db", ready)},
		containers: []*runtime.Container{
			fakeContainer("c2c2c2c2c2c2c2c2", "cccccccccccccccc", "proxy", running, 1), fakeContainer("c1", "cccccccccccccccc", "app", running, 0),
			fakeContainer("b1", "bbbb", "job", exited, 0), fakeContainer("c0", "cccccccccccccccc", "app", exited, 2),
		},
	}
}

// sameTable checks a printed table, the columns parted by any number of spaces, and
// missing cells left out.
func sameTable(t *testing.T, got string, want ...string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(got) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	if text := strings.Join(want, "\n"); strings.Join(lines, "\n") != text {
		t.Errorf("printed\n%s\nwant\n%s", got, text)
	}
}

func TestPs(t *testing.T) {
	socket := fakeNode().serve(t)
	out, err := execute(t, "ps", "--socket", socket)
	if err != nil {
		t.Fatal(err)
	}
	sameTable(t, out,
		"POD CONTAINER STATE ATTEMPT AGE ID",
		"default/db ready 0 121m aaaa",
		"default/web ready 0 121m ccccccccccccc",
		"app running 0 30m c1",
		"proxy running 1 30m c2c2c2c2c2c2c")
	out, err = execute(t, "ps", "-a", "--socket", socket)
	if err != nil {
		t.Fatal(err)
	}
	sameTable(t, out,
		"POD CONTAINER STATE ATTEMPT AGE ID",
		"default/db ready 0 121m aaaa",
		"default/old stopped 0 121m bbbb",
		"job exited 0 30m b1",
		"default/web ready 0 121m ccccccccccccc",
		"app running 0 30m c1",
		"proxy running 1 30m c2c2c2c2c2c2c",
		"app exited 2 30m c0")
}

// used are the figures of an object at a second of some day: seconds of CPU time
// and bytes.
func used(second int64, cpu float64, bytes uint64) (*runtime.CpuUsage, *runtime.MemoryUsage) {
	return &runtime.CpuUsage{Timestamp: second * 1e9, UsageCoreNanoSeconds: &runtime.UInt64Value{Value: uint64(cpu * 1e9)}},
		&runtime.MemoryUsage{WorkingSetBytes: &runtime.UInt64Value{Value: bytes}}
}

// webStats are figures of the pod web and its container app; of proxy there are none.
func webStats(second int64, pod, app float64) []*runtime.PodSandboxStats {
	linux := &runtime.LinuxPodSandboxStats{Process: &runtime.ProcessUsage{ProcessCount: &runtime.UInt64Value{Value: 7}}}
	linux.Cpu, linux.Memory = used(second, pod, 96<<20)
	linux.Network = &runtime.NetworkUsage{Timestamp: second * 1e9, // 3 KiB a second, and half of it
		DefaultInterface: &runtime.NetworkInterfaceUsage{
			RxBytes: &runtime.UInt64Value{Value: uint64(second) * 3 << 10}, TxBytes: &runtime.UInt64Value{Value: uint64(second) * 3 << 9}}}
	c := &runtime.ContainerStats{Attributes: &runtime.ContainerAttributes{Id: "c1"}}
	c.Cpu, c.Memory = used(second, app, 64<<20)
	c.WritableLayer = &runtime.FilesystemUsage{UsedBytes: &runtime.UInt64Value{Value: 20 << 20}}
	linux.Containers = []*runtime.ContainerStats{c}
	return []*runtime.PodSandboxStats{{Attributes: &runtime.PodSandboxAttributes{Id: "cccccccccccccccc"}, Linux: linux}}
}

const topTitle = "POD CONTAINER CPU MEMORY DISK PIDS RX/s TX/s"

func TestTopOnce(t *testing.T) {
	for name, test := range map[string]struct {
		stats [][]*runtime.PodSandboxStats
		want  []string
	}{
		"two readings": {
			[][]*runtime.PodSandboxStats{webStats(10, 5, 2), webStats(12, 8, 4)},
			[]string{
				"default/web 1.50 96.0 MiB 20.0 MiB 7 3.0 KiB 1.5 KiB",
				"app 1.00 64.0 MiB 20.0 MiB",
				"proxy - - -",
				"(overhead) - -",
				"default/db - - - - - -",
				"(overhead) - -",
			},
		},
		"a sandbox that hangs": {
			[][]*runtime.PodSandboxStats{webStats(10, 5, 2)},
			[]string{
				"default/db - - - - - -",
				"(overhead) - -",
				"default/web - 96.0 MiB? 20.0 MiB 7 - -",
				"app - 64.0 MiB? 20.0 MiB",
				"proxy - - -",
				"(overhead) - -",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			node := fakeNode()
			node.stats = test.stats
			out, err := execute(t, "top", "--once", "--interval", "1ms", "--socket", node.serve(t))
			if err != nil {
				t.Fatal(err)
			}
			sameTable(t, out, append([]string{topTitle}, test.want...)...)
		})
	}
}

func TestTopOverhead(t *testing.T) {
	node := fakeNode()
	node.containers = node.containers[1:2] // app
	node.pods = node.pods[:1]
	node.stats = [][]*runtime.PodSandboxStats{webStats(10, 5, 2), webStats(12, 8, 4)}
	out, err := execute(t, "top", "--once", "--interval", "1ms", "--socket", node.serve(t))
	if err != nil {
		t.Fatal(err)
	}
	sameTable(t, out,
		topTitle,
		"default/web 1.50 96.0 MiB 20.0 MiB 7 3.0 KiB 1.5 KiB",
		"app 1.00 64.0 MiB 20.0 MiB",
		"(overhead) 0.50 32.0 MiB")
}

func TestTopLiveEndsWithItsContext(t *testing.T) {
	node := fakeNode()
	node.stats = [][]*runtime.PodSandboxStats{webStats(10, 5, 2)}
	if out := topLive(t, node, 3); strings.Count(out, "\x1b[2J") < 2 {
		t.Errorf("screens:\n%s", out)
	}
}

// topLive is what runscd top shows until it has asked a node so many times.
func topLive(t *testing.T, node *fakeCRI, times int) string {
	t.Helper()
	node.asked = make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out bytes.Buffer
	cmd := command()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"top", "--interval", "1ms", "--socket", node.serve(t)})
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx) }()
	for range times {
		<-node.asked
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	return out.String()
}

func TestSize(t *testing.T) {
	for bytes, want := range map[float64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1.5 * (1 << 30): "1.5 GiB", 1 << 51: "2048.0 TiB"} {
		if got := size(&bytes); got != want {
			t.Errorf("%v: %s, want %s", bytes, got, want)
		}
	}
}

// TestTopFitsTheTerminal has more rows than a terminal has lines.
func TestTopFitsTheTerminal(t *testing.T) {
	const text = "POD\na\nb\nc\n"
	for lines, want := range map[int]string{0: "POD\na\nb\nc", 4: "POD\na\nb\nc", 3: "POD\na\n… 2 more", 2: "POD\n… 3 more"} {
		if got := cut(text, lines); got != want {
			t.Errorf("%d lines: %q, want %q", lines, got, want)
		}
	}
}

// TestTopGoesOn has the daemon away for one reading, as when it is restarted.
func TestTopGoesOn(t *testing.T) {
	node := fakeNode()
	node.stats = [][]*runtime.PodSandboxStats{webStats(10, 5, 2), nil, webStats(14, 8, 4)}
	screens := strings.Split(topLive(t, node, 4), "\x1b[2J")
	if len(screens) < 4 || !strings.Contains(screens[2], "away") || !strings.Contains(screens[3], "default/web") {
		t.Errorf("%q", screens)
	}
}
