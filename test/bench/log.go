package main

import (
	"context"
	"fmt"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	logBytes = 200 << 20
	logLine  = 100
)

// log measures one container that writes lines as fast as it can.
func (n *node) log(ctx context.Context) (LogReport, error) {
	p := n.newPod("log")
	if err := n.runPod(ctx, p); err != nil {
		return LogReport{}, err
	}
	// yes writes the line again and again, in big pieces.
	line := fmt.Sprintf("%0*d", logLine-1, 7)
	if err := n.create(ctx, p, "sh", "-c", fmt.Sprintf("yes %s | head -c %d", line, logBytes)); err != nil {
		return LogReport{}, err
	}
	daemon := n.daemon.Process.Pid
	before, begin := spent(daemon), time.Now()
	if err := n.start(ctx, p); err != nil {
		return LogReport{}, err
	}
	for {
		s, err := n.pods.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: p.containers[0]})
		if err != nil {
			return LogReport{}, err
		}
		if s.Status.State == runtime.ContainerState_CONTAINER_EXITED {
			took := s.Status.FinishedAt - begin.UnixNano()
			r := LogReport{MBps: logBytes / 1e6 / time.Duration(took).Seconds(), DaemonCPU: spent(daemon) - before}
			return r, n.remove(ctx, p)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return LogReport{}, err
		}
	}
}
