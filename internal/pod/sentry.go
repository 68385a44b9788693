package pod

import (
	"context"
	"sync"

	"github.com/runscd/runscd/internal/proc"
)

// SentryFigures returns what the sentries of the pods that run count of
// themselves, see runsc. All are asked at once; one that does not answer in half
// a second is left out.
func (r *Registry) SentryFigures(ctx context.Context) map[*Pod]map[string]float64 {
	ctx, cancel := context.WithTimeout(ctx, r.statsTimeout)
	defer cancel()
	var mu sync.Mutex
	found := map[*Pod]map[string]float64{}
	var wg sync.WaitGroup
	for _, p := range r.Pods() {
		if p.State() != proc.Running {
			continue
		}
		wg.Go(func() {
			figures, err := p.init.Runtime.Control(p.ID).SentryFigures(ctx)
			if err != nil {
				return // Stats tells about it
			}
			mu.Lock()
			defer mu.Unlock()
			found[p] = figures
		})
	}
	wg.Wait()
	return found
}
