package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// Usage is what something takes of a file system.
type Usage struct {
	Bytes, Inodes uint64
}

// Root is the directory on whose file system everything of the store is.
func (s *Store) Root() string { return s.options.Root }

// Usage says what the images take (blobs, downloads and unpacked layers) and
// what the containers have written, together all that the store has on disk
// but its databases.
func (s *Store) Usage(ctx context.Context) (images, containers Usage, err error) {
	ctx = inNamespace(ctx)
	var infos []snapshots.Info
	err = s.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		infos = append(infos, info)
		return nil
	})
	if err != nil {
		return Usage{}, Usage{}, err
	}
	for _, info := range infos {
		u, err := s.snapshotUsage(ctx, info.Name)
		if errdefs.IsNotFound(err) {
			continue // removed since
		}
		if err != nil {
			return Usage{}, Usage{}, err
		}
		if info.Labels[labelRoot] != "" {
			containers.add(u)
		} else {
			images.add(u)
		}
	}
	err = s.content.Walk(ctx, func(info content.Info) error {
		images.add(Usage{Bytes: uint64(info.Size), Inodes: 1})
		return nil
	})
	if err != nil {
		return Usage{}, Usage{}, err
	}
	downloads, err := s.content.ListStatuses(ctx)
	if err != nil {
		return Usage{}, Usage{}, err
	}
	for _, d := range downloads {
		images.add(Usage{Bytes: uint64(d.Offset), Inodes: 1})
	}
	return images, containers, nil
}

// WritableUsage says what has been written to the root file system of a key.
// The error is of kind ErrNotFound if there is none.
func (s *Store) WritableUsage(ctx context.Context, key string) (Usage, error) {
	return s.snapshotUsage(inNamespace(ctx), key)
}

func (s *Store) snapshotUsage(ctx context.Context, key string) (Usage, error) {
	u, err := s.snapshots.Usage(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		// The files of an active snapshot went while they were counted.
		err = errdefs.ErrNotFound
	}
	if err != nil {
		return Usage{}, fmt.Errorf("usage of root file system %s: %w", key, err)
	}
	return Usage{Bytes: uint64(u.Size), Inodes: uint64(u.Inodes)}, nil
}

func (u *Usage) add(v Usage) {
	u.Bytes += v.Bytes
	u.Inodes += v.Inodes
}
