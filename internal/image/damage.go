package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// A disk that loses power may keep less than it has told to be written. Blobs and
// databases are found damaged here: the one is fetched again, the other told.

// openDatabase opens a database of the store in dir and reads all of it, so that a
// damaged one is told now and does not crash the daemon later. It is ErrDataLoss
// then, and left as it is.
func openDatabase(path, dir string) (db *bolt.DB, err error) {
	// What the file has lost is a fault where it is mapped.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if cause := recover(); cause != nil {
			err = damaged(path, dir, fmt.Errorf("%v", cause))
		}
	}()
	fi, err := os.Stat(path)
	if err == nil && fi.Size() == 0 { // a new one would be made of it, and all images be garbage
		return nil, damaged(path, dir, io.ErrUnexpectedEOF)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("in use by another process: %w", errdefs.ErrFailedPrecondition)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, damaged(path, dir, err)
	case err != nil:
		return nil, err
	}
	err = db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return readAll(b) })
	})
	if err != nil {
		return nil, errors.Join(damaged(path, dir, err), db.Close())
	}
	return db, nil
}

func damaged(path, dir string, cause error) error {
	return fmt.Errorf("database %s is damaged: %w; to begin anew remove %s, when no pods run, and all images are pulled again: %w",
		path, cause, dir, errdefs.ErrDataLoss)
}

func readAll(b *bolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		if v != nil {
			return nil
		}
		nested := b.Bucket(k)
		if nested == nil {
			return fmt.Errorf("bucket %q: %w", k, berrors.ErrInvalid)
		}
		return readAll(nested)
	})
}

// checkSnapshots checks the snapshotter's own database, which that opens when it is
// first used.
func checkSnapshots(dir string) error {
	path := filepath.Join(dir, "snapshots", "metadata.db")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	db, err := openDatabase(path, dir)
	if err != nil {
		return err
	}
	return db.Close()
}

// blobs are the blobs of a store: their files, and what the database knows of them.
type blobs struct{ files, known content.Store }

// dropDamagedImages takes the names from images that are not whole, so that they
// are pulled again. Of layers, which were unpacked and synced, the length is looked
// at, of all else the content.
func dropDamagedImages(ctx context.Context, records images.Store, b blobs) error {
	list, err := records.List(ctx)
	if err != nil {
		return err
	}
	children := onePlatform(images.ChildrenHandler(b.known), platforms.Default())
	for _, r := range list {
		err := images.Walk(ctx, images.Handlers(images.HandlerFunc(b.check), children), r.Target)
		if err == nil {
			continue
		}
		if ctx.Err() != nil { // that is perhaps all that is wrong
			return ctx.Err()
		}
		logrus.WithField("image", r.Name).WithError(err).Error("image is damaged and has to be pulled again")
		if err := records.Delete(ctx, r.Name); err != nil {
			return err
		}
	}
	return nil
}

// check removes a blob that is damaged, and returns why it is.
func (b blobs) check(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	info, err := b.files.Info(ctx, desc.Digest)
	if err == nil && info.Size != desc.Size {
		err = fmt.Errorf("%d bytes, not %d: %w", info.Size, desc.Size, errdefs.ErrDataLoss)
	}
	if err == nil && !images.IsLayerType(desc.MediaType) {
		err = b.verify(ctx, desc.Digest)
	}
	if err == nil {
		return nil, nil
	}
	return nil, errors.Join(fmt.Errorf("blob %s: %w", desc.Digest, err), b.drop(ctx, desc.Digest))
}

// verify reads a blob and compares it with its digest.
func (b blobs) verify(ctx context.Context, d digest.Digest) error {
	r, err := b.files.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
	if err != nil {
		return err
	}
	defer r.Close()
	v := d.Verifier()
	if _, err := io.Copy(v, io.NewSectionReader(r, 0, r.Size())); err != nil {
		return err
	}
	if !v.Verified() {
		return fmt.Errorf("its content has another digest: %w", errdefs.ErrDataLoss)
	}
	return nil
}

// drop removes a blob, so that it is fetched again.
func (b blobs) drop(ctx context.Context, d digest.Digest) error {
	// The file first: what the database does not know, but the directory has, it
	// would take for fetched.
	for _, from := range []content.Store{b.files, b.known} {
		if err := from.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("damaged blob %s: %w", d, err)
		}
	}
	return nil
}

// dropDamaged removes the blobs that a pull which failed has, or took for had, and
// that are damaged. It tells whether there were any.
func (p *pull) dropDamaged(ctx context.Context, lease leases.Lease) (bool, error) {
	if ctx.Err() != nil {
		return false, nil
	}
	held, err := p.leases.ListResources(ctx, lease)
	if err != nil {
		return false, err
	}
	dropped := false
	for _, r := range held {
		d, err := digest.Parse(r.ID)
		if r.Type != "content" || err != nil {
			continue
		}
		if err := p.blobs.verify(ctx, d); err != nil {
			logrus.WithField("image", p.name).WithError(err).Warn("blob is damaged and is fetched again")
			if err := p.blobs.drop(ctx, d); err != nil {
				return false, err
			}
			dropped = true
		}
	}
	return dropped, nil
}
