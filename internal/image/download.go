package image

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
)

// The database opens a download in the files within a transaction. If that fails, as on
// a full disk, it forgets the download, which stays open and with that locked: every
// later pull of the blob would wait for it until the daemon is started anew. So the
// files tell what was opened, and whoever asked the database closes it then.

// openedKey is the key of a *content.Writer in a context, which the files fill.
type openedKey struct{}

// downloads are the files as the database has them.
type downloads struct {
	walkedFiles
	stuck *atomic.Bool
}

// walkedFiles is a content store on disk. The database looks for the second method.
type walkedFiles interface {
	content.Store
	WalkStatusRefs(ctx context.Context, fn func(ref string) error) error
}

func (d downloads) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := d.walkedFiles.Writer(ctx, opts...)
	if opened, ok := ctx.Value(openedKey{}).(*content.Writer); ok && err == nil {
		*opened = w
	}
	return w, err
}

func (d downloads) Delete(ctx context.Context, blob digest.Digest) error {
	return watchRemoval(d.stuck, d.walkedFiles.Delete(ctx, blob))
}

func (d downloads) Abort(ctx context.Context, ref string) error {
	return watchRemoval(d.stuck, d.walkedFiles.Abort(ctx, ref))
}

// recorded is the content store of the database.
type recorded struct{ content.Store }

func (r recorded) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var opened content.Writer
	w, err := r.Store.Writer(context.WithValue(ctx, openedKey{}, &opened), opts...)
	if err != nil && opened != nil {
		err = errors.Join(err, opened.Close())
	}
	return w, err
}
