package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Quantiles are of one kind of call, in milliseconds.
type Quantiles struct {
	P50 float64 `json:"p50_ms"`
	P95 float64 `json:"p95_ms"`
}

// Calls are the quantiles by call.
type Calls map[string]Quantiles

// stopwatch collects the times of calls.
type stopwatch struct {
	mu sync.Mutex
	// +checklocks:mu
	times map[string][]time.Duration
}

func newStopwatch() *stopwatch { return &stopwatch{times: map[string][]time.Duration{}} }

// time measures a call that succeeds.
func (s *stopwatch) time(name string, call func() error) error {
	begin := time.Now()
	if err := call(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.add(name, time.Since(begin))
	return nil
}

func (s *stopwatch) add(name string, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.times[name] = append(s.times[name], took)
}

func (s *stopwatch) calls() Calls {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := Calls{}
	for name, times := range s.times {
		slices.Sort(times)
		calls[name] = Quantiles{P50: ms(times[len(times)/2]), P95: ms(times[len(times)*95/100])}
	}
	return calls
}

func ms(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}

// step is a part of a pod's life.
type step struct {
	name string
	call func(context.Context) error
}

func (s *stopwatch) steps(ctx context.Context, steps []step) error {
	for _, st := range steps {
		if err := s.time(st.name, func() error { return st.call(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// warmUp fills the page cache.
func (n *node) warmUp(ctx context.Context) error {
	_, _, err := n.cycles(ctx, 3, 1)
	return err
}

// cycles takes pods through their lives, some at once, and returns the times
// and the CPU that a life costs.
func (n *node) cycles(ctx context.Context, pods, atOnce int) (Calls, float64, error) {
	watch := newStopwatch()
	before := busy()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i := range pods {
		g.Go(func() error {
			p := n.newPod(fmt.Sprintf("cycle-%d-%d", atOnce, i))
			return watch.steps(ctx, []step{
				{"RunPodSandbox", func(ctx context.Context) error { return n.runPod(ctx, p) }},
				{"CreateContainer", func(ctx context.Context) error { return n.create(ctx, p, "sleep", "1000000") }},
				{"StartContainer", func(ctx context.Context) error { return n.start(ctx, p) }},
				{"ExecSync", func(ctx context.Context) error { return n.execTrue(ctx, p) }},
				{"Stop+Remove", func(ctx context.Context) error { return n.remove(ctx, p) }},
			})
		})
	}
	err := g.Wait()
	return watch.calls(), (busy() - before) / float64(pods), err
}
