package observe

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/runscd/runscd/internal/pod"
	"github.com/runscd/runscd/internal/proc"
)

// Node is what is read when Prometheus asks.
type Node struct {
	Pods   *pod.Registry
	Reaped func() uint64 // orphans
}

// Watch adds the series of a node. It is to be called once.
func (o *Observer) Watch(n Node) {
	o.registry.MustRegister(
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "runscd_reaped_processes_total", Help: "Orphans of the daemon's that it has reaped.",
		}, func() float64 { return float64(n.Reaped()) }),
		newStates(n.Pods), sentries{n.Pods},
	)
}

// states tells how many pods and containers are in each state.
type states struct {
	registry         *pod.Registry
	pods, containers *prometheus.Desc
}

func newStates(r *pod.Registry) states {
	return states{
		registry:   r,
		pods:       prometheus.NewDesc("runscd_pods", "Pods by state.", []string{"state"}, nil),
		containers: prometheus.NewDesc("runscd_containers", "Containers by state.", []string{"state"}, nil),
	}
}

func (s states) Describe(ch chan<- *prometheus.Desc) {
	ch <- s.pods
	ch <- s.containers
}

func (s states) Collect(ch chan<- prometheus.Metric) {
	pods := map[proc.State]int{proc.Running: 0, proc.Stopped: 0}
	for _, p := range s.registry.Pods() {
		pods[p.State()]++
	}
	containers := map[proc.State]int{proc.Created: 0, proc.Running: 0, proc.Stopped: 0}
	for _, c := range s.registry.Containers() {
		containers[c.State()]++
	}
	for desc, counts := range map[*prometheus.Desc]map[proc.State]int{s.pods: pods, s.containers: containers} {
		for state, n := range counts {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), state.String())
		}
	}
}

// sentrySeries are the sentry's own figures that are passed on, by its names for
// them.
var sentrySeries = map[string]struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}{
	"fs_opens":                         {sentryDesc("fs_opens_total", "Files opened in the sandbox."), prometheus.CounterValue},
	"fs_reads":                         {sentryDesc("fs_reads_total", "Reads of files in the sandbox."), prometheus.CounterValue},
	"gofer_opens_host":                 {sentryDesc("gofer_opens_host_total", "Files of the host opened for the sandbox."), prometheus.CounterValue},
	"gofer_reads_host":                 {sentryDesc("gofer_reads_host_total", "Reads of files of the host for the sandbox."), prometheus.CounterValue},
	"netstack_tcp_current_established": {sentryDesc("tcp_established", "Established TCP connections of the pod."), prometheus.GaugeValue},
	"netstack_tcp_current_open":        {sentryDesc("tcp_open", "Open TCP connections of the pod."), prometheus.GaugeValue},
	"unimplemented_syscalls":           {sentryDesc("unimplemented_syscalls_total", "System calls that the sandbox does not implement."), prometheus.CounterValue},
}

func sentryDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("runsc_"+name, help, []string{"namespace", "pod", "sandbox"}, nil)
}

// sentries tells what sentries count of themselves.
type sentries struct{ pods *pod.Registry }

func (sentries) Describe(ch chan<- *prometheus.Desc) {
	for _, s := range sentrySeries {
		ch <- s.desc
	}
}

func (s sentries) Collect(ch chan<- prometheus.Metric) {
	// The library gives no context; SentryFigures has a deadline of its own.
	for p, figures := range s.pods.SentryFigures(context.Background()) {
		meta := p.Config().Metadata
		for name, series := range sentrySeries {
			if v, ok := figures[name]; ok {
				ch <- prometheus.MustNewConstMetric(series.desc, series.kind, v, meta.Namespace, meta.Name, p.ID)
			}
		}
	}
}
