package integration

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/stats"
)

// stats are the pod's figures and those of its containers by id, all of now.
func (p *pod) stats(t *testing.T) (*runtime.LinuxPodSandboxStats, map[string]*runtime.ContainerStats) {
	t.Helper()
	begin := time.Now().UnixNano()
	var linux *runtime.LinuxPodSandboxStats
	containers := map[string]*runtime.ContainerStats{}
	// A sandbox has half a second to answer, which a busy machine may take.
	eventually(t, "the sandbox answers", func() error {
		s, err := p.pods.PodSandboxStats(ctx(t), p.id)
		check(t, err)
		linux = s.Linux
		for _, c := range linux.Containers {
			if c.Cpu.GetTimestamp() < begin {
				return fmt.Errorf("old figures: %v", c)
			}
			containers[c.Attributes.Id] = c
		}
		return nil
	})
	return linux, containers
}

// host is what the kernel counts for the pod's sandbox.
func (p *pod) host(t *testing.T) stats.Figures {
	t.Helper()
	pids := p.sandboxPIDs()
	if len(pids) == 0 {
		t.Fatal("no sandbox")
	}
	cgroup, err := stats.CgroupOf("/sys/fs/cgroup", pids[0])
	check(t, err)
	f, err := cgroup.Figures(true)
	check(t, err)
	return f
}

// near tells whether a figure is within a tenth of the truth.
func near(got, truth uint64) bool {
	return math.Abs(float64(got)-float64(truth)) <= 0.1*float64(truth)
}

// burn is a script that waits for a line, burns CPU time, about a second in 800,000
// rounds, and waits again. Before and after it tells how much its kernel has counted.
func burn(rounds int) string {
	return fmt.Sprintf("times; read go; i=0; while [ $i -lt %d ]; do i=$((i+1)); done; times; read go", rounds)
}

// times are the microseconds that the script of burn tells at its begin, or its end.
func (c *container) times(t *testing.T, begun int) (usec uint64) {
	t.Helper()
	var lines []string
	eventually(t, "the script tells its times", func() error {
		if lines = strings.Split(c.output(t), "\n"); len(lines) <= 2*begun { // of itself and its children
			return fmt.Errorf("%q", lines)
		}
		return nil
	})
	for _, field := range strings.Fields(lines[2*(begun-1)]) { // user and system
		minutes, rest, _ := strings.Cut(strings.TrimSuffix(field, "s"), "m")
		m, err := strconv.ParseFloat(minutes, 64)
		check(t, err)
		s, err := strconv.ParseFloat(rest, 64)
		check(t, err)
		usec += uint64((60*m + s) * 1e6)
	}
	return usec
}

// TestCPUStats burns three times as much in one container as in another.
func TestCPUStats(t *testing.T) {
	for name, tt := range map[string]struct{ limit, rounds int }{"without limit": {0, 800_000}, "limited": {40, 200_000}} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t, noNetwork)
			p := d.runPod(t)
			if tt.limit > 0 {
				check(t, limitCPU(d.cgroup, tt.limit))
				t.Cleanup(func() { _ = limitCPU(d.cgroup, 0) })
			}
			burners := []*container{p.run(t, burn(tt.rounds), withStdin), p.run(t, burn(3*tt.rounds), withStdin)}
			spent := map[*container]uint64{} // by what its kernel tells, in µs
			for _, c := range burners {
				spent[c] -= c.times(t, 1)
			}
			podBefore, before := p.stats(t)
			for _, c := range burners {
				c.attach(t, true).write("go\n")
			}
			for _, c := range burners {
				spent[c] += c.times(t, 2)
			}
			podAfter, after := p.stats(t)
			host := (podAfter.Cpu.UsageCoreNanoSeconds.Value - podBefore.Cpu.UsageCoreNanoSeconds.Value) / 1000
			all := spent[burners[0]] + spent[burners[1]]
			// Of what the host has counted, if that is less than what the sandbox has.
			share := min(1, float64(host)/float64(all))
			sum := uint64(0)
			for _, c := range burners {
				total := after[c.id].Cpu.UsageCoreNanoSeconds.Value / 1000
				got := total - before[c.id].Cpu.UsageCoreNanoSeconds.Value/1000
				// What comes before and after takes some ticks of 10 ms.
				if truth := uint64(float64(spent[c]) * share); !near(got, truth) && !near(got, truth+40_000) {
					t.Errorf("%d µs of CPU time, the container has spent %d", got, truth)
				}
				sum += total
			}
			pod, total := podAfter.Cpu.UsageCoreNanoSeconds.Value/1000, p.host(t)["cpu.stat.usage_usec"]
			if sum > pod || pod > total {
				t.Errorf("%d µs of the containers, %d of the pod, %d of the host", sum, pod, total)
			}
			t.Logf("burnt %d and %d µs, host %d", spent[burners[0]], spent[burners[1]], host)
		})
	}
}

// limitCPU limits a cgroup of ours, in percent of a core; 0 ends it.
func limitCPU(name string, percent int) error {
	const period = 100_000
	quota, max := -1, "max"
	if percent > 0 {
		quota, max = percent*period/100, fmt.Sprint(percent*period/100, " ", period)
	}
	for file, text := range map[string]string{"cpu" + name + "/cpu.cfs_quota_us": fmt.Sprint(quota), name + "/cpu.max": max} {
		file = filepath.Join("/sys/fs/cgroup", file)
		if _, err := os.Stat(file); err == nil {
			return os.WriteFile(file, []byte(text), 0o644)
		}
	}
	return errors.New("no CPU controller")
}

// allocate is a script that holds so many megabytes of memory.
func allocate(megabytes int) string {
	return fmt.Sprintf("mkfifo /tmp/f; sleep 100000 </tmp/f & dd if=/dev/zero of=/tmp/f bs=%dM count=1", megabytes)
}

func TestMemoryStats(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	large, small := p.run(t, allocate(200)), p.run(t, allocate(50))
	limited := p.run(t, forever, func(c *runtime.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 100 << 20 })
	eventually(t, "the memory is there", func() error {
		pod, containers := p.stats(t)
		sum := uint64(0)
		for c, truth := range map[*container]uint64{large: 200 << 20, small: 50 << 20} {
			m := containers[c.id].Memory
			if !near(m.WorkingSetBytes.Value, truth) || m.UsageBytes.Value != m.WorkingSetBytes.Value || m.AvailableBytes != nil {
				return fmt.Errorf("%v of a container that has allocated %d bytes", m, truth)
			}
			sum += m.UsageBytes.Value
		}
		m := containers[limited.id].Memory
		if m.AvailableBytes.GetValue() != 100<<20-m.WorkingSetBytes.Value {
			return fmt.Errorf("available: %v", m)
		}
		sum += m.UsageBytes.Value
		if pod.Memory.UsageBytes.Value < sum || pod.Memory.WorkingSetBytes.Value < sum || pod.Memory.RssBytes.Value < sum-16<<20 ||
			pod.Memory.PageFaults.Value == 0 || !near(pod.Memory.UsageBytes.Value, p.host(t)["memory.current"]) {
			return fmt.Errorf("pod %v, containers %d bytes, host %v", pod.Memory, sum, p.host(t))
		}
		return nil
	})
}

func TestLayerStats(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	writer, idle := p.run(t, forever), p.run(t, forever)
	_, before := p.stats(t)
	if out, code := writer.exec(t, "dd if=/dev/urandom of=/data bs=1M count=20; sync"); code != 0 {
		t.Fatal(out)
	}
	_, after := p.stats(t)
	info, err := d.images.ImageFsInfo(ctx(t))
	check(t, err)
	layer := after[writer.id].WritableLayer
	written := layer.UsedBytes.Value - before[writer.id].WritableLayer.UsedBytes.Value
	if !near(written, 20<<20) || layer.InodesUsed.Value == 0 || layer.FsId.Mountpoint != info.ImageFilesystems[0].FsId.Mountpoint {
		t.Errorf("20 MiB were written: %v", layer)
	}
	if got := after[idle.id].WritableLayer.UsedBytes.Value; got > 1<<20 {
		t.Errorf("nothing was written: %d bytes", got)
	}
	if all := info.ContainerFilesystems[0].UsedBytes.Value; all < layer.UsedBytes.Value {
		t.Errorf("%d bytes of all containers", all)
	}
	if out, code := writer.exec(t, "rm /data; sync"); code != 0 {
		t.Fatal(out)
	}
	eventually(t, "the space is given back", func() error {
		if _, now := p.stats(t); now[writer.id].WritableLayer.UsedBytes.Value > 2<<20 {
			return fmt.Errorf("%v", now[writer.id].WritableLayer)
		}
		return nil
	})
}

func TestNetworkStats(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	p := d.runPod(t)
	c := p.run(t, forever)
	l, err := net.Listen("tcp", fmt.Sprintf("10.86.%d.1:0", d.subnet))
	check(t, err)
	defer l.Close()
	received := make(chan int64, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			received <- 0
			return
		}
		defer conn.Close()
		n, _ := io.Copy(io.Discard, conn)
		received <- n
	}()
	before, _ := p.stats(t)
	host, port, err := net.SplitHostPort(l.Addr().String())
	check(t, err)
	if out, code := c.exec(t, fmt.Sprintf("head -c 10000000 /dev/zero | nc %s %s", host, port)); code != 0 {
		t.Fatal(out)
	}
	sent := uint64(<-received)
	after, _ := p.stats(t)
	if n := after.Network; n.DefaultInterface.Name != "eth0" || len(n.Interfaces) > 0 ||
		!near(n.DefaultInterface.TxBytes.Value-before.Network.DefaultInterface.TxBytes.Value, sent) || sent != 10_000_000 {
		t.Errorf("%d bytes were sent: %v", sent, n)
	}
}

// TestStatsOfMany has the lists tell the same as the single calls, and a sandbox
// that hangs keep nobody waiting for long.
func TestStatsOfMany(t *testing.T) {
	d := newDaemon(t, noNetwork)
	hung, other := d.runPod(t), d.runPod(t)
	c := hung.run(t, forever)
	other.run(t, forever)
	other.create(t, forever)
	_, known := hung.stats(t)
	told := known[c.id].Memory.Timestamp
	pid := hung.sandboxPIDs()[0]
	check(t, unix.Kill(pid, unix.SIGSTOP))
	eventually(t, "the sandbox hangs", func() error {
		for _, task := range names(fmt.Sprintf("/proc/%d/task", pid)) {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, task))
			if err == nil && !strings.Contains(string(text), "State:\tT") {
				return fmt.Errorf("thread %s runs", task)
			}
		}
		return nil
	})
	defer unix.Kill(pid, unix.SIGCONT) //nolint:errcheck
	eventually(t, "the other one answers", func() error {
		begin := time.Now()
		list, err := d.pods.ListPodSandboxStats(ctx(t), nil)
		check(t, err)
		if took := time.Since(begin); took > patience/2 || len(list) != 2 {
			t.Errorf("%d pods after %v", len(list), took)
		}
		for _, s := range list {
			if len(s.Linux.Containers) != 1 || s.Attributes.Labels["app"] == "" || s.Linux.Cpu.Timestamp < begin.UnixNano() {
				t.Errorf("%v", s)
			}
			at := s.Linux.Containers[0].Memory.GetTimestamp()
			if s.Attributes.Id == hung.id && at != told {
				t.Errorf("told at %d, was at %d", at, told)
			}
			if s.Attributes.Id == other.id && at < begin.UnixNano() {
				return fmt.Errorf("%v", s)
			}
		}
		return nil
	})
	containers, err := d.pods.ListContainerStats(ctx(t), nil)
	check(t, err)
	if len(containers) != 2 {
		t.Errorf("%v", containers)
	}
	metrics, err := d.raw.ListPodSandboxMetrics(ctx(t), &runtime.ListPodSandboxMetricsRequest{})
	check(t, err)
	descriptors, err := d.pods.ListMetricDescriptors(ctx(t))
	check(t, err)
	keys := map[string]int{}
	for _, d := range descriptors {
		keys[d.Name] = len(d.LabelKeys)
	}
	for _, pod := range metrics.PodMetrics {
		all := pod.Metrics
		for _, c := range pod.ContainerMetrics {
			all = append(all, c.Metrics...)
		}
		for _, m := range all {
			if n, ok := keys[m.Name]; !ok || n != len(m.LabelValues) {
				t.Errorf("metric without a descriptor: %v", m)
			}
		}
		if len(pod.ContainerMetrics) != 1 || len(all) < 40 {
			t.Errorf("%d metrics of a pod with %d containers", len(all), len(pod.ContainerMetrics))
		}
	}
	check(t, unfound(d.pods.PodSandboxStats(ctx(t), "")))
	check(t, unfound(d.pods.ContainerStats(ctx(t), "nosuch")))
}
