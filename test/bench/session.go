package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ExecReport is of running `true` in a container, some at once.
type ExecReport struct {
	Sync    map[string]Execs `json:"exec_sync"`
	Session map[string]Execs `json:"exec_session"` // with kubectl's client, which is a part of what is measured
	Floor   map[string]Execs `json:"bare_runsc_exec"`
}

// Execs is how fast and how dear.
type Execs struct {
	Quantiles
	PerSecond float64 `json:"per_s"`
	CPU       float64 `json:"cpu_ms"`
}

// execs measures ExecSync and Exec.
func (n *node) execs(ctx context.Context, count int, r *ExecReport) error {
	p, err := n.sleeper(ctx, "execs", 1)
	if err != nil {
		return err
	}
	if r.Sync, err = execsAtOnce(ctx, count, func(ctx context.Context) error { return n.execTrue(ctx, p) }); err != nil {
		return err
	}
	r.Session, err = execsAtOnce(ctx, count, func(ctx context.Context) error {
		resp, err := n.pods.Exec(ctx, &runtime.ExecRequest{ContainerId: p.containers[0], Cmd: []string{"true"}, Stdout: true})
		if err != nil {
			return err
		}
		return stream(ctx, resp.Url, io.Discard)
	})
	return errors.Join(err, n.remove(ctx, p))
}

// execsAtOnce measures a call by how many are under way at once.
func execsAtOnce(ctx context.Context, count int, call func(context.Context) error) (map[string]Execs, error) {
	found := map[string]Execs{}
	for _, atOnce := range []int{1, 4, 16} {
		watch := newStopwatch()
		before, begin := busy(), time.Now()
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(atOnce)
		for range count {
			g.Go(func() error { return watch.time("exec", func() error { return call(ctx) }) })
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		found[fmt.Sprint(atOnce, "_at_once")] = Execs{
			Quantiles: watch.calls()["exec"],
			PerSecond: float64(count) / time.Since(begin).Seconds(),
			CPU:       (busy() - before) / float64(count),
		}
	}
	return found, nil
}

// stream takes the output of a session.
func stream(ctx context.Context, at string, out io.Writer) error {
	u, err := url.Parse(at)
	if err != nil {
		return err
	}
	client, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
	if err != nil {
		return err
	}
	return client.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: out})
}

// audience is clients that are attached to a container.
type audience struct {
	clients errgroup.Group
	bytes   atomic.Int64
	cutOff  atomic.Int64
	begin   time.Time
}

// attach attaches clients, which read as fast as they can.
func (n *node) attach(ctx context.Context, container string, clients int) (*audience, error) {
	a := &audience{begin: time.Now()}
	for range clients {
		resp, err := n.pods.Attach(ctx, &runtime.AttachRequest{ContainerId: container, Stdout: true})
		if err != nil {
			return nil, err
		}
		a.clients.Go(func() error {
			if stream(ctx, resp.Url, a) != nil {
				a.cutOff.Add(1)
			}
			return nil
		})
	}
	return a, nil
}

func (a *audience) Write(b []byte) (int, error) {
	a.bytes.Add(int64(len(b)))
	return len(b), nil
}

// end waits until all clients are done, and returns what they got.
func (a *audience) end() AttachReport {
	_ = a.clients.Wait()
	return AttachReport{
		MBps:   float64(a.bytes.Load()) / 1e6 / time.Since(a.begin).Seconds(),
		CutOff: int(a.cutOff.Load()),
	}
}
