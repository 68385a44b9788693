package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RecoveryReport is about a daemon that is started after it was killed: until it
// tells of all pods.
type RecoveryReport struct {
	Pods int `json:"pods"`
	Quantiles
}

// recovery fills the node with pods, kills the daemon a few times and starts it.
func (n *node) recovery(ctx context.Context, pods int) (r RecoveryReport, err error) {
	if r.Pods, err = n.fill(ctx, pods); err != nil {
		return r, err
	}
	watch := newStopwatch()
	for range 10 {
		if err := n.daemon.Process.Signal(unix.SIGKILL); err != nil {
			return r, err
		}
		_ = n.daemon.Wait()
		err := watch.time("start", func() error {
			found, err := n.restart(ctx)
			if err == nil && found != r.Pods {
				err = fmt.Errorf("%d pods of %d", found, r.Pods)
			}
			return err
		})
		if err != nil {
			return r, err
		}
	}
	r.Quantiles = watch.calls()["start"]
	return r, nil
}

// fill starts pods until so many run, and returns how many do.
func (n *node) fill(ctx context.Context, pods int) (int, error) {
	have, err := n.running(ctx)
	for ; err == nil && have < pods; have++ {
		_, err = n.sleeper(ctx, fmt.Sprint("fill-", have), 1)
	}
	return have, err
}

// restart starts the daemon and returns how many pods run, once it answers.
func (n *node) restart(ctx context.Context) (pods int, err error) {
	if err := n.startDaemon(); err != nil {
		return 0, err
	}
	if err := n.conn.Close(); err != nil {
		return 0, err
	}
	again := backoff.Config{BaseDelay: time.Millisecond, MaxDelay: time.Millisecond, Multiplier: 1}
	n.conn, err = grpc.NewClient("unix://"+n.path("state/runscd.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: again, MinConnectTimeout: time.Second}))
	if err != nil {
		return 0, err
	}
	n.pods = runtime.NewRuntimeServiceClient(n.conn)
	return n.running(ctx)
}

// running counts the pods that run, once the daemon answers.
func (n *node) running(ctx context.Context) (int, error) {
	ready := &runtime.PodSandboxFilter{State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY}}
	list, err := n.pods.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{Filter: ready}, grpc.WaitForReady(true))
	return len(list.GetItems()), err
}
