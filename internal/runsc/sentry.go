package runsc

import "context"

// SentryFigures returns the counters and gauges that the sentry keeps of itself,
// by their names, each summed over its labels. The sandbox is not to be trusted: a
// name may be anything.
func (c *Control) SentryFigures(ctx context.Context) (map[string]float64, error) {
	type number struct {
		Float float64 `json:"float"`
		Int   int64   `json:"int"`
	}
	var answer struct {
		Snapshot struct {
			Data []struct {
				Metric struct {
					Name string `json:"name"`
				} `json:"metric"`
				Value *number `json:"val"` // nil for a histogram
			} `json:"data"`
		} `json:"snapshot"`
	}
	if err := c.call(ctx, "Metrics.Export", struct{}{}, nil, &answer); err != nil {
		return nil, err
	}
	figures := map[string]float64{}
	for _, d := range answer.Snapshot.Data {
		if d.Value != nil {
			figures[d.Metric.Name] += d.Value.Float + float64(d.Value.Int)
		}
	}
	return figures, nil
}

// Stacks returns the stacks of all goroutines of the sentry.
func (c *Control) Stacks(ctx context.Context) (string, error) {
	var stacks string
	err := c.call(ctx, "debug.Stacks", nil, nil, &stacks)
	return stacks, err
}
