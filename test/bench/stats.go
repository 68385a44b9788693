package main

import (
	"context"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StatsReport is about the figures of 100 pods, asked once a second: by call, its
// times and the CPU that it costs, all of the machine's and the daemon's.
type StatsReport struct {
	Pods       int                `json:"pods"`
	Containers int                `json:"containers"`
	Calls      Calls              `json:"calls"`
	CPU        map[string]float64 `json:"cpu_ms_per_call"`
	DaemonCPU  map[string]float64 `json:"daemon_cpu_ms_per_call"`
}

// stats asks for the figures of all pods.
func (n *node) stats(ctx context.Context) (StatsReport, error) {
	r := StatsReport{CPU: map[string]float64{}, DaemonCPU: map[string]float64{}}
	if _, err := n.fill(ctx, 100); err != nil {
		return r, err
	}
	watch := newStopwatch()
	for _, s := range []step{
		{"ListPodSandboxStats", func(ctx context.Context) error {
			resp, err := n.pods.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{})
			r.Pods = len(resp.GetStats())
			return err
		}},
		{"ListContainerStats", func(ctx context.Context) error {
			resp, err := n.pods.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{})
			r.Containers = len(resp.GetStats())
			return err
		}},
		{"ListPodSandboxMetrics", func(ctx context.Context) error {
			_, err := n.pods.ListPodSandboxMetrics(ctx, &runtime.ListPodSandboxMetricsRequest{})
			return err
		}},
	} {
		const calls = 20
		daemon, all := spent(n.daemon.Process.Pid), 0.0
		for range calls {
			before := busy()
			if err := watch.steps(ctx, []step{s}); err != nil {
				return r, err
			}
			all += busy() - before
			if err := sleep(ctx, time.Second); err != nil {
				return r, err
			}
		}
		r.CPU[s.name], r.DaemonCPU[s.name] = all/calls, (spent(n.daemon.Process.Pid)-daemon)*1000/calls
	}
	r.Calls = watch.calls()
	return r, nil
}
