package pod

import (
	"context"
	"time"
)

// saveAgain is how often it is tried to save facts that could not be saved.
const saveAgain = time.Second

// saveLater saves facts that could not be saved, as on a full disk, once that is
// possible. It ends with ctx.
func (f *facts[T]) saveLater(ctx context.Context) {
	tick := time.NewTicker(saveAgain)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if f.update(func(*T) {}) == nil {
			return
		}
	}
}
