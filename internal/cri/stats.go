package cri

import (
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/pod"
	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/stats"
)

// micro is a microsecond in the CRI's nanoseconds.
const micro = uint64(time.Microsecond)

// ContainerStats tells what a container uses. One that does not run has figures
// of its writable layer only.
func (s *RuntimeServer) ContainerStats(ctx context.Context, req *runtime.ContainerStatsRequest) (*runtime.ContainerStatsResponse, error) {
	c, err := s.pods.Container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	cs := s.pods.ContainerStats(ctx, c)
	return &runtime.ContainerStatsResponse{Stats: s.containerStats(&cs)}, nil
}

// ListContainerStats tells what the running containers use that pass the filter.
func (s *RuntimeServer) ListContainerStats(ctx context.Context, req *runtime.ListContainerStatsRequest) (*runtime.ListContainerStatsResponse, error) {
	return &runtime.ListContainerStatsResponse{Stats: s.listContainerStats(ctx, req.Filter)}, nil
}

// StreamContainerStats is ListContainerStats in parts that stay below the message
// limit.
func (s *RuntimeServer) StreamContainerStats(req *runtime.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[runtime.StreamContainerStatsResponse]) error {
	return inParts(s.listContainerStats(stream.Context(), req.Filter), func(part []*runtime.ContainerStats) error {
		return stream.Send(&runtime.StreamContainerStatsResponse{ContainerStats: part})
	})
}

func (s *RuntimeServer) listContainerStats(ctx context.Context, f *runtime.ContainerStatsFilter) []*runtime.ContainerStats {
	wanted := func(c *pod.Container) bool {
		return c.State() == proc.Running && idMatches(f.GetId(), c.ID) && idMatches(f.GetPodSandboxId(), c.Pod.ID) &&
			labelsMatch(f.GetLabelSelector(), c.Config().Labels)
	}
	pods := map[*pod.Pod]bool{}
	for _, c := range s.pods.Containers() {
		if wanted(c) {
			pods[c.Pod] = true
		}
	}
	var items []*runtime.ContainerStats
	for _, ps := range s.pods.Stats(ctx, slices.Collect(maps.Keys(pods)), false) {
		for i := range ps.Containers {
			if wanted(ps.Containers[i].Container) {
				items = append(items, s.containerStats(&ps.Containers[i]))
			}
		}
	}
	return items
}

// PodSandboxStats tells what a pod uses. One that does not run has no figures.
func (s *RuntimeServer) PodSandboxStats(ctx context.Context, req *runtime.PodSandboxStatsRequest) (*runtime.PodSandboxStatsResponse, error) {
	p, err := s.pods.Pod(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	return &runtime.PodSandboxStatsResponse{Stats: s.podStats(s.pods.Stats(ctx, []*pod.Pod{p}, false)[0])}, nil
}

// ListPodSandboxStats tells what the ready pods use that pass the filter.
func (s *RuntimeServer) ListPodSandboxStats(ctx context.Context, req *runtime.ListPodSandboxStatsRequest) (*runtime.ListPodSandboxStatsResponse, error) {
	return &runtime.ListPodSandboxStatsResponse{Stats: s.listPodStats(ctx, req.Filter)}, nil
}

// StreamPodSandboxStats is ListPodSandboxStats in parts that stay below the
// message limit.
func (s *RuntimeServer) StreamPodSandboxStats(req *runtime.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxStatsResponse]) error {
	return inParts(s.listPodStats(stream.Context(), req.Filter), func(part []*runtime.PodSandboxStats) error {
		return stream.Send(&runtime.StreamPodSandboxStatsResponse{PodSandboxStats: part})
	})
}

func (s *RuntimeServer) listPodStats(ctx context.Context, f *runtime.PodSandboxStatsFilter) []*runtime.PodSandboxStats {
	pods := slices.DeleteFunc(s.pods.Pods(), func(p *pod.Pod) bool {
		return p.State() != proc.Running || !idMatches(f.GetId(), p.ID) || !labelsMatch(f.GetLabelSelector(), p.Config().Labels)
	})
	var items []*runtime.PodSandboxStats
	for _, ps := range s.pods.Stats(ctx, pods, false) {
		items = append(items, s.podStats(ps))
	}
	return items
}

func (s *RuntimeServer) podStats(ps *pod.Stats) *runtime.PodSandboxStats {
	c := ps.Pod.Config()
	// The kubelet relies on linux being there.
	linux := &runtime.LinuxPodSandboxStats{Network: networkUsage(ps)}
	if ps.Host != nil {
		host, at := ps.Host, ps.At.UnixNano()
		linux.Cpu = &runtime.CpuUsage{
			Timestamp: at, UsageCoreNanoSeconds: figure(host, "cpu.stat.usage_usec", micro),
			UsageNanoCores: optional(ps.NanoCores), Psi: psi(ps.Pressure["cpu"]),
		}
		linux.Memory = podMemory(ps)
		if p := psi(ps.Pressure["io"]); p != nil {
			linux.Io = &runtime.IoUsage{Timestamp: at, Psi: p}
		}
	}
	if !ps.AskedAt.IsZero() {
		linux.Process = &runtime.ProcessUsage{Timestamp: ps.AskedAt.UnixNano(), ProcessCount: value(ps.Processes())}
	}
	for i := range ps.Containers {
		linux.Containers = append(linux.Containers, s.containerStats(&ps.Containers[i]))
	}
	return &runtime.PodSandboxStats{
		Attributes: &runtime.PodSandboxAttributes{Id: ps.Pod.ID, Metadata: c.Metadata, Labels: c.Labels, Annotations: c.Annotations},
		Linux:      linux,
	}
}

func podMemory(ps *pod.Stats) *runtime.MemoryUsage {
	workingSet := ps.Host.WorkingSet()
	m := &runtime.MemoryUsage{
		Timestamp: ps.At.UnixNano(), WorkingSetBytes: value(workingSet), UsageBytes: figure(ps.Host, "memory.current", 1), RssBytes: value(ps.Host.RSS()),
		PageFaults: figure(ps.Host, "memory.stat.pgfault", 1), MajorPageFaults: figure(ps.Host, "memory.stat.pgmajfault", 1),
		Psi: psi(ps.Pressure["memory"]),
	}
	if ps.Limit > 0 {
		m.AvailableBytes = value(ps.Limit - min(workingSet, ps.Limit))
	}
	return m
}

func (s *RuntimeServer) containerStats(cs *pod.ContainerStats) *runtime.ContainerStats {
	c := cs.Config()
	r := &runtime.ContainerStats{
		Attributes: &runtime.ContainerAttributes{Id: cs.ID, Metadata: c.Metadata, Labels: c.Labels, Annotations: c.Annotations},
	}
	if !cs.AskedAt.IsZero() {
		at := cs.AskedAt.UnixNano()
		r.Cpu = &runtime.CpuUsage{
			Timestamp: at, UsageCoreNanoSeconds: value(cs.CPU.Total() * micro), UsageNanoCores: optional(cs.NanoCores),
		}
		// The sandbox keeps no file cache for a container, so it works with all of it.
		r.Memory = &runtime.MemoryUsage{Timestamp: at, WorkingSetBytes: value(cs.Usage.Memory), UsageBytes: value(cs.Usage.Memory)}
		if limit := uint64(cs.Resources().GetMemoryLimitInBytes()); limit > 0 {
			r.Memory.AvailableBytes = value(limit - min(cs.Usage.Memory, limit))
		}
		if cs.NoSwap {
			r.Swap = &runtime.SwapUsage{Timestamp: at, SwapUsageBytes: value(0)}
		}
	}
	if !cs.LayerAt.IsZero() {
		r.WritableLayer = &runtime.FilesystemUsage{
			Timestamp: cs.LayerAt.UnixNano(), FsId: &runtime.FilesystemIdentifier{Mountpoint: s.pods.Images.Root()},
			UsedBytes: value(cs.Layer.Bytes), InodesUsed: value(cs.Layer.Inodes),
		}
	}
	return r
}

// networkUsage is nil for a pod without interfaces: the kubelet relies on there being
// a default one.
func networkUsage(ps *pod.Stats) *runtime.NetworkUsage {
	var list []*runtime.NetworkInterfaceUsage
	for _, i := range ps.Interfaces {
		list = append(list, &runtime.NetworkInterfaceUsage{
			Name: i.Name, RxBytes: value(i.Rx.Bytes), RxErrors: value(i.Rx.Errors), TxBytes: value(i.Tx.Bytes), TxErrors: value(i.Tx.Errors),
		})
	}
	if len(list) == 0 {
		return nil
	}
	return &runtime.NetworkUsage{Timestamp: ps.At.UnixNano(), DefaultInterface: list[0], Interfaces: list[1:]}
}

// psi is a pressure for the CRI, which wants nanoseconds.
func psi(p *stats.Pressure) *runtime.PsiStats {
	if p == nil {
		return nil
	}
	data := func(s stats.Stall) *runtime.PsiData {
		return &runtime.PsiData{Total: s.Total * micro, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &runtime.PsiStats{Some: data(p.Some), Full: data(p.Full)}
}

// figure is what the host has counted, in another unit; nil if it has not.
func figure(host stats.Figures, name string, scale uint64) *runtime.UInt64Value {
	v, ok := host[name]
	if !ok {
		return nil
	}
	return value(v * scale)
}

func value(v uint64) *runtime.UInt64Value { return &runtime.UInt64Value{Value: v} }

func optional(v *uint64) *runtime.UInt64Value {
	if v == nil {
		return nil
	}
	return value(*v)
}
