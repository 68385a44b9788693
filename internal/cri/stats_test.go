package cri

import (
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/image"
	"github.com/runscd/runscd/internal/pod"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/stats"
)

// running starts a container.
func (s *server) running(pod, name string) string {
	s.t.Helper()
	id := s.container(pod, name, "sleep")
	_, err := s.StartContainer(s.t.Context(), &runtime.StartContainerRequest{ContainerId: id})
	s.must(err)
	return id
}

// figures are those of a pod with one container, as a host of version 2 and a
// sandbox have told them.
func (s *server) figures() *pod.Stats {
	s.t.Helper()
	c := podConfig("web", map[string]string{"app": "web"})
	resp, err := s.RunPodSandbox(s.t.Context(), &runtime.RunPodSandboxRequest{Config: c})
	s.must(err)
	p, err := s.pods.Pod(resp.PodSandboxId)
	s.must(err)
	created, err := s.CreateContainer(s.t.Context(), &runtime.CreateContainerRequest{PodSandboxId: p.ID, Config: &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "main"}, Command: []string{"sleep"}, Labels: map[string]string{"name": "main"},
		Image: &runtime.ImageSpec{Image: "sha256:1234", UserSpecifiedImage: "busybox"},
		Linux: &runtime.LinuxContainerConfig{Resources: &runtime.LinuxContainerResources{
			CpuPeriod: 100_000, CpuQuota: 50_000, CpuShares: 512, MemoryLimitInBytes: 300 << 20,
		}},
	}})
	s.must(err)
	main, err := s.pods.Container(created.ContainerId)
	s.must(err)
	at, asked := time.Unix(1_700_000_002, 0), time.Unix(1_700_000_001, 0)
	cores, half := uint64(1_500_000_000), uint64(500_000_000)
	return &pod.Stats{
		Pod: p, At: at, AskedAt: asked, NanoCores: &cores, Limit: 512 << 20,
		Host: stats.Figures{
			"cpu.stat.usage_usec": 7_900_000, "cpu.stat.user_usec": 5_000_000, "cpu.stat.system_usec": 2_900_000,
			"memory.current": 400 << 20, "memory.stat.inactive_file": 50 << 20, "memory.stat.anon": 20 << 20, "memory.stat.shmem": 200 << 20,
			"memory.stat.pgfault": 1234, "memory.stat.pgmajfault": 5, "memory.events.oom_kill": 1,
		},
		Pressure: map[string]*stats.Pressure{
			"cpu": {Some: stats.Stall{Avg10: 1.5, Avg60: 0.5, Avg300: 0.25, Total: 3_000_000}, Full: stats.Stall{Total: 2_000_000}},
			"io":  {Some: stats.Stall{Total: 7}},
		},
		Interfaces: []stats.Interface{
			{Name: "eth0", Rx: stats.Traffic{Bytes: 10, Packets: 1, Errors: 3, Dropped: 4}, Tx: stats.Traffic{Bytes: 20, Packets: 2, Errors: 5, Dropped: 6}}, {Name: "net1"},
		},
		Containers: []pod.ContainerStats{{
			Container: main, AskedAt: asked, CPU: stats.CPU{User: 3_500_000, System: 500_000}, NanoCores: &half, NoSwap: true,
			Usage:   runsc.Usage{Memory: 200 << 20, Processes: 2, Threads: 9},
			LayerAt: at, Layer: image.Usage{Bytes: 20 << 20, Inodes: 3},
		}},
	}
}

func TestFiguresInTheCRI(t *testing.T) {
	s := newServer(t)
	f := s.figures()
	service := NewRuntimeServer(s.pods, Options{})
	ids := map[string]string{f.Pod.ID: "POD", f.Containers[0].ID: "CONTAINER"}
	s.golden("pod-stats", service.podStats(f), ids)
	// A sandbox that has never told anything, on a host of version 1, without a
	// limit and a network.
	f.Host = stats.Figures{"memory.current": 1 << 20, "cpu.stat.usage_usec": 1}
	f.Pressure, f.Limit, f.NanoCores, f.AskedAt, f.Interfaces = nil, 0, nil, time.Time{}, nil
	f.Containers[0] = pod.ContainerStats{Container: f.Containers[0].Container}
	s.golden("pod-stats-little", service.podStats(f), ids)
}

func TestContainerStats(t *testing.T) {
	s, ctx := newServer(t), t.Context()
	p := s.pod("p", nil)
	c := s.running(p, "main")
	get := func(id string) *runtime.ContainerStats {
		t.Helper()
		resp, err := s.ContainerStats(ctx, &runtime.ContainerStatsRequest{ContainerId: id})
		s.must(err)
		return resp.Stats
	}
	got := get(c[:12])
	for got.Memory == nil { // it has half a second, which a busy machine may take
		got = get(c[:12])
	}
	if got.Attributes.Id != c || got.Attributes.Metadata.Name != "main" || got.Attributes.Annotations["note"] != "x" ||
		got.Memory.WorkingSetBytes.Value != 1<<20 || got.Cpu.Timestamp == 0 || got.Cpu.UsageCoreNanoSeconds == nil ||
		got.WritableLayer.FsId.Mountpoint != "/" || got.WritableLayer.UsedBytes.Value != 4096 {
		t.Errorf("%v", got)
	}
	if got := get(s.container(p, "created", "sleep")); got.Cpu != nil || got.Memory != nil || got.WritableLayer == nil || got.Attributes == nil {
		t.Errorf("of a created one: %v", got)
	}
	for _, id := range []string{"", "nosuch"} {
		if _, err := s.ContainerStats(ctx, &runtime.ContainerStatsRequest{ContainerId: id}); grpcstatus.Code(err) != codes.NotFound {
			t.Errorf("of %q: %v", id, err)
		}
		if _, err := s.PodSandboxStats(ctx, &runtime.PodSandboxStatsRequest{PodSandboxId: id}); grpcstatus.Code(err) != codes.NotFound {
			t.Errorf("of pod %q: %v", id, err)
		}
	}
}

func TestStatsOfAStoppedPod(t *testing.T) {
	s, ctx := newServer(t), t.Context()
	p := s.pod("p", nil)
	s.running(p, "main")
	_, err := s.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p})
	s.must(err)
	resp, err := s.PodSandboxStats(ctx, &runtime.PodSandboxStatsRequest{PodSandboxId: p})
	s.must(err)
	if resp.Stats.Attributes.Id != p || resp.Stats.Linux == nil || resp.Stats.Linux.Cpu != nil || len(resp.Stats.Linux.Containers) > 0 {
		t.Errorf("%v", resp.Stats)
	}
	list, err := s.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{})
	s.must(err)
	metrics, err := s.ListPodSandboxMetrics(ctx, &runtime.ListPodSandboxMetricsRequest{})
	s.must(err)
	if len(list.Stats) > 0 || len(metrics.PodMetrics) > 0 {
		t.Errorf("lists %v, %v", list, metrics)
	}
}

func TestStatsAndTheirFilters(t *testing.T) {
	s, ctx := newServer(t), t.Context()
	a, b := s.pod("a", map[string]string{"app": "web", "tier": "1"}), s.pod("b", map[string]string{"app": "web"})
	c, d, e := s.running(a, "c"), s.running(a, "d"), s.running(b, "e")
	s.container(a, "created", "sleep")
	names := map[string]string{a: "a", b: "b", c: "c", d: "d", e: "e"}
	type podFilter = runtime.PodSandboxStatsFilter
	for want, f := range map[string]*podFilter{
		"a b": nil, "a  b": {}, "a": {Id: a}, " a": {Id: a[:12]}, "a b ": {LabelSelector: map[string]string{"app": "web"}},
		"a ": {LabelSelector: map[string]string{"tier": "1"}}, "": {Id: b, LabelSelector: map[string]string{"tier": "1"}},
	} {
		resp, err := s.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{Filter: f})
		s.must(err)
		var got []string
		for _, p := range resp.Stats {
			got = append(got, names[p.Attributes.Id])
		}
		slices.Sort(got)
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%v: %v, want %q", f, got, want)
		}
	}
	type containerFilter = runtime.ContainerStatsFilter
	for want, f := range map[string]*containerFilter{
		"c d e": nil, "c": {Id: c}, "c ": {Id: c[:12]}, "c d": {PodSandboxId: a}, "e": {PodSandboxId: b[:12]}, "": {Id: e, PodSandboxId: a},
		"d": {LabelSelector: map[string]string{"name": "d"}}, " ": {LabelSelector: map[string]string{"name": ""}},
	} {
		resp, err := s.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{Filter: f})
		s.must(err)
		var got []string
		for _, c := range resp.Stats {
			got = append(got, names[c.Attributes.Id])
		}
		slices.Sort(got)
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%v: %v, want %q", f, got, want)
		}
	}
}

// TestStreamedStats has more than one part of each.
func TestStreamedStats(t *testing.T) {
	s, ctx := newServer(t), t.Context()
	pods, containers := map[string]bool{}, map[string]bool{}
	for _, name := range strings.Split("abcdefghi", "") {
		p := s.pod(name, nil)
		pods[p], containers[s.running(p, "c")] = true, true
	}
	check := func(what string, want map[string]bool, parts [][]string) {
		t.Helper()
		got := map[string]bool{}
		for _, part := range parts {
			if len(part) == 0 || len(part) > partSize {
				t.Errorf("%s: a part of %d", what, len(part))
			}
			for _, id := range part {
				got[id] = true
			}
		}
		if len(parts) != 2 || !maps.Equal(got, want) {
			t.Errorf("%s: %v", what, parts)
		}
	}
	podStats, err := s.StreamPodSandboxStats(ctx, &runtime.StreamPodSandboxStatsRequest{})
	s.must(err)
	check("pods", pods, drain(s, podStats, func(r *runtime.StreamPodSandboxStatsResponse) (ids []string) {
		for _, p := range r.PodSandboxStats {
			ids = append(ids, p.Attributes.Id)
		}
		return ids
	}))
	containerStats, err := s.StreamContainerStats(ctx, &runtime.StreamContainerStatsRequest{})
	s.must(err)
	check("containers", containers, drain(s, containerStats, func(r *runtime.StreamContainerStatsResponse) (ids []string) {
		for _, c := range r.ContainerStats {
			ids = append(ids, c.Attributes.Id)
		}
		return ids
	}))
	metrics, err := s.StreamPodSandboxMetrics(ctx, &runtime.StreamPodSandboxMetricsRequest{})
	s.must(err)
	check("metrics", pods, drain(s, metrics, func(r *runtime.StreamPodSandboxMetricsResponse) (ids []string) {
		for _, p := range r.PodSandboxMetrics {
			ids = append(ids, p.PodSandboxId)
		}
		return ids
	}))
}

// drain reads a stream to its end and returns the ids of each part.
func drain[T any](s *server, stream interface{ Recv() (*T, error) }, ids func(*T) []string) (parts [][]string) {
	s.t.Helper()
	for {
		part, err := stream.Recv()
		if err == io.EOF {
			return parts
		}
		s.must(err)
		parts = append(parts, ids(part))
	}
}
