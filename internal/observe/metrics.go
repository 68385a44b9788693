// Package observe counts and traces what the daemon does.
//
// What it keeps true: nothing below knows of Prometheus or OpenTelemetry. The
// packages of lower floors tell an observer, or are seen at their seams, where this
// package stands between two of them. Everything is counted always, which costs
// next to nothing; who reads it is a setting. What a sandbox tells of itself only
// ever becomes the value of a series that is named here.
package observe

import (
	"context"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/trace"
)

// Observer counts and traces. Its methods may be called concurrently.
type Observer struct {
	registry *prometheus.Registry
	provider trace.TracerProvider // nil for no traces

	rpcs     *prometheus.HistogramVec
	phases   *prometheus.HistogramVec
	calls    *prometheus.CounterVec
	pulls    *prometheus.HistogramVec
	received prometheus.Counter
	sessions *prometheus.CounterVec
	open     *prometheus.GaugeVec
	recovery prometheus.Gauge
}

// seconds are the buckets of all histograms: from an RPC that reads to a pull of a
// large image.
var seconds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300}

// New returns an observer. version is the daemon's. With a provider that is nil
// nothing is traced.
func New(version string, provider trace.TracerProvider) *Observer {
	o := &Observer{
		registry: prometheus.NewRegistry(),
		provider: provider,
		rpcs: histogram("runscd_rpc_seconds",
			"RPCs of the CRI that have ended, by method and gRPC code.", "method", "code"),
		phases: histogram("runscd_phase_seconds",
			"Phases in which pods and containers are made and undone.", "phase", "result"),
		calls: counter("runscd_control_calls_total",
			"Calls on the control sockets of sandboxes, by method and how they ended: ok, gone, timeout, canceled or refused.", "method", "result"),
		pulls: histogram("runscd_image_pull_seconds",
			"Image pulls that have ended, by result.", "result"),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "runscd_image_pull_bytes_total", Help: "Bytes that registries have sent."}),
		sessions: counter("runscd_sessions_total",
			"Sessions of exec, attach and port-forward that have begun; of port-forward, connections.", "kind"),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "runscd_sessions", Help: "Sessions that are open."}, []string{"kind"}),
		recovery: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "runscd_recovery_seconds", Help: "How long the daemon took at its start to find pods again and to undo what was half done."}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "runscd_build_info", Help: "1, labelled with the version.", ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	o.registry.MustRegister(o.rpcs, o.phases, o.calls, o.pulls, o.received, o.sessions, o.open, o.recovery, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return o
}

func histogram(name, help string, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: seconds}, labels)
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

// Handler serves the series to Prometheus.
func (o *Observer) Handler() http.Handler {
	return promhttp.HandlerFor(o.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// rpc counts an RPC that has ended.
func (o *Observer) rpc(method, code string, took time.Duration) {
	o.rpcs.WithLabelValues(method, code).Observe(took.Seconds())
}

// commandPhases are the phases that are one runsc command each.
var commandPhases = map[string]string{
	"create": "sandbox_create", "start": "sandbox_start", "run": "container_start", "restore": "restore", "delete": "delete",
}

// Command counts and traces a runsc command.
func (o *Observer) Command(ctx context.Context, command string, since time.Time, err error) {
	if phase, ok := commandPhases[command]; ok {
		o.phase(ctx, phase, since, err)
	}
}

// phase counts and traces a phase.
func (o *Observer) phase(ctx context.Context, name string, since time.Time, err error) {
	o.phases.WithLabelValues(name, result(err)).Observe(time.Since(since).Seconds())
	o.span(ctx, name, since, err)
}

// Call counts a call on a control socket.
func (o *Observer) Call(_ context.Context, method string, _ time.Time, err error) {
	how := "refused"
	switch {
	case err == nil:
		how = "ok"
	case errdefs.IsUnavailable(err):
		how = "gone"
	case errdefs.IsDeadlineExceeded(err):
		how = "timeout"
	case errdefs.IsCanceled(err):
		how = "canceled"
	}
	o.calls.WithLabelValues(method, how).Inc()
}

// Received counts bytes that a registry has sent.
func (o *Observer) Received(n int) { o.received.Add(float64(n)) }

// Recovered notes how long the recovery took.
func (o *Observer) Recovered(took time.Duration) { o.recovery.Set(took.Seconds()) }

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}
