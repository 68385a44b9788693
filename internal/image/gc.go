package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
)

const (
	// collectDelay lets removals that come together be collected together.
	collectDelay = 500 * time.Millisecond
	// collectEvery finds what becomes garbage without a removal: the leases
	// of pulls that were not tried again, and what a removal could not remove.
	collectEvery = 15 * time.Minute
	// collectAgain is the pause behind a collection that failed, as on a full disk.
	collectAgain = 10 * time.Second
)

// collect asks for a collection soon.
func (s *Store) collect() {
	select {
	case s.dirty <- struct{}{}:
	default: // one is due already
	}
}

// runCollector collects when asked to and now and then, until Close.
func (s *Store) runCollector() {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	var again <-chan time.Time // after a failure
	for {
		everywhere := true
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		case <-again:
		case <-s.dirty:
			everywhere = false
			select {
			case <-s.ctx.Done():
				return
			case <-time.After(collectDelay):
			}
		}
		again = nil
		if err := s.collectNow(s.ctx, everywhere); err != nil && s.ctx.Err() == nil {
			logrus.WithError(err).Warn("garbage of images not collected")
			again = time.After(collectAgain)
		}
	}
}

// collectNow removes what is not needed any more; with everywhere also what an earlier
// collection has removed from the database alone.
func (s *Store) collectNow(ctx context.Context, everywhere bool) error {
	if everywhere {
		if err := markDirty(ctx, s); err != nil {
			return err
		}
	}
	s.stuck.Store(false)
	_, err := s.db.GarbageCollect(ctx)
	if err == nil && s.stuck.Load() {
		err = errStuck
	}
	return err
}

// errStuck says that the database is rid of things that are there. The library that
// collects only logs that, so the stores beneath it tell, by a collectible and by
// downloads.
var errStuck = errors.New("something could not be removed")

// collectible is the snapshotter as the database has it.
type collectible struct {
	snapshots.Snapshotter
	stuck *atomic.Bool
}

func (c collectible) Remove(ctx context.Context, key string) error {
	return watchRemoval(c.stuck, c.Snapshotter.Remove(ctx, key))
}

func (c collectible) Cleanup(ctx context.Context) error {
	return watchRemoval(c.stuck, c.Snapshotter.(snapshots.Cleaner).Cleanup(ctx))
}

func watchRemoval(stuck *atomic.Bool, err error) error {
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		stuck.Store(true)
	}
	return err
}

// sweep removes what an earlier process left half done. What its unfinished
// pulls had fetched stays for a while, so that they can be resumed.
func (s *Store) sweep(ctx context.Context) error {
	// A process that was killed may have left the directory of a snapshot whose
	// number was not taken: it would be in the way of the next one. Before the
	// first snapshot there is no database to clean up by.
	if err := s.backend.(snapshots.Cleaner).Cleanup(ctx); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	held, err := s.leases.List(ctx)
	if err != nil {
		return err
	}
	for _, l := range held {
		if err := s.renew(ctx, l, resumeLease); err != nil {
			return err
		}
	}
	var unpacking []string
	err = s.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if strings.HasPrefix(info.Name, snapshots.UnpackKeyPrefix) {
			unpacking = append(unpacking, info.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range unpacking {
		if err := s.snapshots.Remove(ctx, key); err != nil {
			return err
		}
	}
	if err := dropDamagedImages(ctx, s.images, s.blobs); err != nil {
		return err
	}
	err = s.collectNow(ctx, true)
	if errors.Is(err, errStuck) { // no reason not to serve
		logrus.WithError(err).Warn("garbage of images not collected")
		return nil
	}
	return err
}

// markDirty makes the next collection look into the content store and the
// snapshotter too. It looks only where something was removed since the last, and so
// would miss what that had removed from the database alone.
func markDirty(ctx context.Context, s *Store) error {
	const name = "sweep"
	if _, err := s.snapshots.Prepare(ctx, name, ""); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	if err := s.snapshots.Remove(ctx, name); err != nil {
		return err
	}
	blob := []byte(name)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	if err := content.WriteBlob(ctx, s.content, name, bytes.NewReader(blob), desc); err != nil {
		return fmt.Errorf("blob: %w", err)
	}
	return s.content.Delete(ctx, desc.Digest)
}
