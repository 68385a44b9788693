package image

import (
	"context"
	"errors"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
)

// forgetful is a database whose transactions fail at their end.
type forgetful struct{ content.Store }

func (f forgetful) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	if _, err := f.Store.Writer(ctx, opts...); err != nil {
		return nil, err
	}
	return nil, errors.New("no space left on device")
}

// TestAFailedTransactionLocksNoDownload has the database fail when it has opened a
// download: the next pull can have it.
func TestAFailedTransactionLocksNoDownload(t *testing.T) {
	files := must(local.NewStore(t.TempDir()))(t)
	s := recorded{forgetful{downloads{walkedFiles: files.(walkedFiles)}}}
	for range 2 {
		if _, err := s.Writer(t.Context(), content.WithRef("layer")); err == nil || err.Error() != "no space left on device" {
			t.Errorf("error %v", err)
		}
	}
	w := must(files.Writer(t.Context(), content.WithRef("layer")))(t)
	check(t, w.Close())
}
