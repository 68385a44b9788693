// Package image keeps container images and the root file systems made from
// them, on containerd's libraries in this process: blobs in its content store,
// layers in its overlay snapshotter, names, leases and references between all
// of these in its metadata database.
//
// What the package keeps true:
//
//   - An image that has a record is complete: its layers are unpacked and were
//     synced to disk before the record was written.
//   - Nothing that a record, a container's root file system or a pull that may
//     still be resumed needs is collected; everything else is, at Open and
//     soon after the last thing that needed it is gone.
//   - Credentials reach the registry they were given for and the token server
//     that it names, and no other host.
//   - A blob is fetched once, whatever number of pulls wants it, and what a
//     failed or killed pull had fetched is not fetched again.
//
// A store belongs to one process: a second Open of the same root fails.
package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
)

const (
	// namespace of all records in the metadata database.
	namespace = "runscd"
	// snapshotter is the name under which content refers to snapshots. The
	// unpacker converts whiteouts only for a snapshotter of this name.
	snapshotter = "overlayfs"
	// lockWait is how long Open waits for another process to let go of the
	// root, long enough for a predecessor that is just shutting down.
	lockWait = 5 * time.Second
)

// Options say where a store is and how it pulls.
type Options struct {
	// Root is the directory of everything the store keeps.
	Root string
	// CertsDir holds a directory per registry with a hosts.toml or
	// certificates, in the layout of containerd's certs.d. It need not exist;
	// "" means none.
	CertsDir string
	// Pinned are the references of images that the kubelet should not collect.
	Pinned []string
	// ProgressTimeout ends a pull that waits for its registry and gets no byte
	// for so long. 0 means never.
	ProgressTimeout time.Duration
	// Downloads and Unpacks limit how many layers of one pull are downloaded
	// and unpacked at once. 0 means 3 and 2.
	Downloads, Unpacks int
	// OnReceive is told of bytes that a registry has sent, by their number. It may
	// be nil.
	OnReceive func(n int)
}

// Store is a set of images and of root file systems made from them. Its
// methods may be called concurrently.
type Store struct {
	options Options
	pinned  map[string]bool

	db        *metadata.DB
	content   content.Store
	snapshots snapshots.Snapshotter
	images    images.Store
	leases    leases.Manager
	backend   snapshots.Snapshotter // beneath snapshots, to close it
	blobs     blobs

	locks keyLocks      // blobs and layers being fetched, references being pulled
	dirty chan struct{} // asks the collector to run; capacity 1
	stuck atomic.Bool   // something could not be removed since the last collection began

	ctx    context.Context // ends with Close; carries the namespace
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu sync.Mutex
	// +checklocks:mu
	flights map[flightKey]*flight
	// +checklocks:mu
	closed bool
}

// Open opens the store at o.Root, makes it if it is not there, and removes what
// an earlier process left half done. The error is of kind ErrInvalidArgument
// for a bad option and ErrFailedPrecondition if another process has the store.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.OnReceive == nil {
		o.OnReceive = func(int) {}
	}
	if o.Downloads == 0 {
		o.Downloads = 3
	}
	if o.Unpacks == 0 {
		o.Unpacks = 2
	}
	pinned := make(map[string]bool)
	for _, p := range o.Pinned {
		name, err := parseName(p)
		if err != nil {
			return nil, fmt.Errorf("pinned image: %w", err)
		}
		pinned[name.String()] = true
	}
	s := &Store{
		options: o,
		pinned:  pinned,
		dirty:   make(chan struct{}, 1),
		flights: make(map[flightKey]*flight),
	}
	s.ctx, s.cancel = context.WithCancel(namespaces.WithNamespace(context.WithoutCancel(ctx), namespace))
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("image store %s: %w", o.Root, errors.Join(err, s.Close()))
	}
	if err := s.sweep(inNamespace(ctx)); err != nil {
		return nil, fmt.Errorf("image store %s: sweep: %w", o.Root, errors.Join(err, s.Close()))
	}
	s.wg.Go(s.runCollector)
	return s, nil
}

func (s *Store) open() error {
	root := s.options.Root
	if !filepath.IsAbs(root) {
		return fmt.Errorf("not an absolute path: %w", errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(root, 0o711); err != nil {
		return err
	}
	// The database comes first: its lock guards all that follows.
	db, err := openDatabase(filepath.Join(root, "meta.db"), root)
	if err != nil {
		return err
	}
	if err := checkSnapshots(root); err != nil {
		return errors.Join(err, db.Close())
	}
	files, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		return errors.Join(err, db.Close())
	}
	// Removal is asynchronous so that the directories are deleted by the
	// collector, outside of every transaction.
	s.backend, err = overlay.NewSnapshotter(filepath.Join(root, "snapshots"), overlay.AsynchronousRemove, overlay.WithRemapIDs)
	if err != nil {
		return errors.Join(err, db.Close())
	}
	s.db = metadata.NewDB(db, downloads{files.(walkedFiles), &s.stuck},
		map[string]snapshots.Snapshotter{snapshotter: collectible{s.backend, &s.stuck}})
	s.content = recorded{s.db.ContentStore()}
	s.blobs = blobs{files: files, known: s.content}
	s.snapshots = s.db.Snapshotter(snapshotter)
	s.images = metadata.NewImageStore(s.db)
	s.leases = metadata.NewLeaseManager(s.db)
	return s.db.Init(s.ctx)
}

// Close ends all pulls, waits for them and lets go of the root. Mounts made by
// the store stay.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()

	var errs []error
	if s.backend != nil {
		errs = append(errs, s.backend.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	return errors.Join(errs...)
}

// inNamespace gives ctx the namespace that the metadata database requires.
func inNamespace(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, namespace)
}
