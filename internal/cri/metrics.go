package cri

import (
	"context"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/pod"
	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/stats"
)

// The series are those of the kubelet's /metrics/cadvisor, by the names and labels
// that they have there. docs/metrics.md tells what each one means here, and which
// there are not.

// baseLabels are the labels that every series begins with.
var baseLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

// series is a metric of pods, of containers, or of both.
type series struct {
	name, help string
	kind       runtime.MetricType
	labels     []string // besides the base labels
	pod        func(*pod.Stats) []sample
	container  func(*pod.ContainerStats) []sample
}

// sample is one value of a series.
type sample struct {
	value  uint64
	labels []string // values of the series' own labels
	// at is when it was taken, if that was not just now.
	at time.Time
}

const (
	counter = runtime.MetricType_COUNTER
	gauge   = runtime.MetricType_GAUGE
)

// allSeries returns the series. disk is the file system of the containers' root
// file systems; it may be nil if only the names matter, or if it is not known.
func allSeries(disk *stats.FileSystem) []series {
	return slices.Concat(generalSeries, cpuSeries, memorySeries, pressureSeries, networkSeries, diskSeries(disk), processSeries, specSeries)
}

// ListMetricDescriptors tells names and labels of the series.
func (s *RuntimeServer) ListMetricDescriptors(context.Context, *runtime.ListMetricDescriptorsRequest) (*runtime.ListMetricDescriptorsResponse, error) {
	resp := &runtime.ListMetricDescriptorsResponse{}
	for _, m := range allSeries(nil) {
		resp.Descriptors = append(resp.Descriptors, &runtime.MetricDescriptor{
			Name: m.name, Help: m.help, LabelKeys: slices.Concat(baseLabels, m.labels),
		})
	}
	return resp, nil
}

// ListPodSandboxMetrics tells the values of the series for all ready pods and
// their running containers.
func (s *RuntimeServer) ListPodSandboxMetrics(ctx context.Context, _ *runtime.ListPodSandboxMetricsRequest) (*runtime.ListPodSandboxMetricsResponse, error) {
	return &runtime.ListPodSandboxMetricsResponse{PodMetrics: s.metrics(ctx)}, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in parts that stay below the
// message limit.
func (s *RuntimeServer) StreamPodSandboxMetrics(_ *runtime.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxMetricsResponse]) error {
	return inParts(s.metrics(stream.Context()), func(part []*runtime.PodSandboxMetrics) error {
		return stream.Send(&runtime.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part})
	})
}

func (s *RuntimeServer) metrics(ctx context.Context) []*runtime.PodSandboxMetrics {
	pods := slices.DeleteFunc(s.pods.Pods(), func(p *pod.Pod) bool { return p.State() != proc.Running })
	disk, err := stats.FileSystemOf(s.pods.Images.Root())
	if err != nil {
		logrus.WithError(err).Warn("file system of the images")
	}
	all := allSeries(disk)
	var items []*runtime.PodSandboxMetrics
	for _, ps := range s.pods.Stats(ctx, pods, true) {
		items = append(items, podMetrics(all, ps))
	}
	return items
}

func podMetrics(all []series, ps *pod.Stats) *runtime.PodSandboxMetrics {
	meta := ps.Pod.Config().Metadata
	r := &runtime.PodSandboxMetrics{PodSandboxId: ps.Pod.ID}
	labels := []string{"", ps.Pod.CgroupPath(), "", ps.Pod.ID, meta.Namespace, meta.Name}
	for _, m := range all {
		if m.pod != nil && ps.Host != nil {
			r.Metrics = append(r.Metrics, m.metrics(m.pod(ps), labels)...)
		}
	}
	for i := range ps.Containers {
		cs := &ps.Containers[i]
		c := cs.Config()
		labels := []string{c.Metadata.Name, ps.Pod.CgroupPath() + "/" + cs.ID, statusImage(c.Image).Image, cs.ID, meta.Namespace, meta.Name}
		cm := &runtime.ContainerMetrics{ContainerId: cs.ID}
		for _, m := range all {
			if m.container != nil {
				cm.Metrics = append(cm.Metrics, m.metrics(m.container(cs), labels)...)
			}
		}
		r.ContainerMetrics = append(r.ContainerMetrics, cm)
	}
	return r
}

// metrics are the samples of a series for one object.
func (m *series) metrics(samples []sample, labels []string) []*runtime.Metric {
	var list []*runtime.Metric
	for _, v := range samples {
		list = append(list, &runtime.Metric{
			Name: m.name, Timestamp: nanos(v.at), MetricType: m.kind,
			LabelValues: slices.Concat(labels, v.labels), Value: value(v.value),
		})
	}
	return list
}

// host is what the kernel has counted for a pod, divided by scale.
func host(figure string, scale uint64, labels ...string) func(*pod.Stats) []sample {
	return func(s *pod.Stats) []sample {
		v, ok := s.Host[figure]
		if !ok {
			return nil
		}
		return []sample{{value: v / scale, labels: labels}}
	}
}

// told is what the sandbox has told of a container.
func told(f func(*pod.ContainerStats) uint64, labels ...string) func(*pod.ContainerStats) []sample {
	return func(s *pod.ContainerStats) []sample {
		if s.AskedAt.IsZero() {
			return nil
		}
		v := sample{value: f(s), labels: labels}
		if s.Stale {
			v.at = s.AskedAt
		}
		return []sample{v}
	}
}
