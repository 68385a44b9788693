package pod

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/runscd/runscd/internal/stdio"
)

// Exec is still to come.
func (r *Registry) Exec(context.Context, string, []string, bool, stdio.Streams) (int, error) {
	return 0, errdefs.ErrNotImplemented
}

// Attach is still to come.
func (r *Registry) Attach(context.Context, string, stdio.Streams) error {
	return errdefs.ErrNotImplemented
}
