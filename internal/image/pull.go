package image

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// A pull in flight holds what it fetches for pullLease, longer than any pull
// takes. What a pull that failed had fetched is kept for resumeLease.
const (
	pullLease   = 24 * time.Hour
	resumeLease = time.Hour
)

// flight is a pull that any number of callers wait for.
type flight struct {
	cancel  context.CancelFunc
	callers int // guarded by Store.mu

	done  chan struct{}
	image *Image // these two are set before done is closed
	err   error
}

type flightKey struct {
	name string
	auth Auth
}

// Pull fetches and unpacks the image that its registry has under ref. Callers
// with the same reference and credentials share one pull, which ends early only
// when the last of them has gone.
//
// Kinds of error: ErrInvalidArgument for a malformed reference or credentials
// and for what is no container image; ErrNotFound if the registry does not have
// the image, or not for this platform; ErrUnauthenticated and
// ErrPermissionDenied if the registry refuses; ErrUnavailable if the registry
// cannot be reached or stopped sending.
func (s *Store) Pull(ctx context.Context, ref string, auth Auth) (*Image, error) {
	name, err := parseName(ref)
	if err != nil {
		return nil, err
	}
	if err := auth.validate(); err != nil {
		return nil, err
	}
	key := flightKey{name: name.String(), auth: auth}
	f, err := s.join(key, name)
	if err != nil {
		return nil, err
	}
	defer s.leave(key, f)
	select {
	case <-f.done:
		return f.image, f.err
	case <-ctx.Done():
		return nil, fmt.Errorf("image %s: pull: %w", name, ctx.Err())
	}
}

// join adds a caller to the flight of key and starts it if there is none.
func (s *Store) join(key flightKey, name reference.Named) (*flight, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("image store: closed: %w", errdefs.ErrUnavailable)
	}
	f := s.flights[key]
	if f == nil {
		ctx, cancel := context.WithCancel(s.ctx)
		f = &flight{cancel: cancel, done: make(chan struct{})}
		s.flights[key] = f
		s.wg.Go(func() {
			p := &pull{Store: s, name: name, auth: key.auth}
			f.image, f.err = p.run(ctx)
			s.mu.Lock()
			s.forget(key, f)
			s.mu.Unlock()
			close(f.done)
		})
	}
	f.callers++
	return f, nil
}

// leave takes a caller from a flight, and ends it after the last one.
func (s *Store) leave(key flightKey, f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.callers--; f.callers == 0 {
		s.forget(key, f)
		f.cancel()
	}
}

// forget lets the next caller start a new flight.
//
// +checklocks:s.mu
func (s *Store) forget(key flightKey, f *flight) {
	if s.flights[key] == f {
		delete(s.flights, key)
	}
}

// pull is one pull of an image.
type pull struct {
	*Store
	name reference.Named
	auth Auth
}

func (p *pull) run(ctx context.Context) (*Image, error) {
	img, err := p.runAlone(ctx)
	if err != nil {
		return nil, fmt.Errorf("image %s: pull: %w", p.name, err)
	}
	return img, nil
}

// runAlone waits for pulls of the same name with other credentials: the lease
// is of the name. It asks the registry all the same, which may refuse.
func (p *pull) runAlone(ctx context.Context) (*Image, error) {
	key := "pull://" + p.name.String()
	if err := p.locks.Lock(ctx, key); err != nil {
		return nil, err
	}
	defer p.locks.Unlock(key)

	lease := leases.Lease{ID: "pull-" + digest.FromString(p.name.String()).Encoded()}
	if err := p.renew(ctx, lease, pullLease); err != nil {
		return nil, err
	}
	f, err := p.fetch(leases.WithLease(ctx, lease.ID))
	if err != nil {
		if again, drop := p.dropDamaged(ctx, lease); drop != nil {
			err = errors.Join(err, drop)
		} else if again {
			f, err = p.fetch(leases.WithLease(ctx, lease.ID))
		}
	}
	if err == nil {
		err = p.record(ctx, p.name, f)
	}
	if err != nil {
		return nil, errors.Join(err, p.renew(context.WithoutCancel(ctx), lease, resumeLease))
	}
	// From here on the records hold the image.
	if err := p.leases.Delete(ctx, lease); err != nil {
		return nil, err
	}
	return p.Get(ctx, p.name.String())
}

// renew lets a lease expire in d, and makes it if it is not there. What it
// holds it keeps.
func (s *Store) renew(ctx context.Context, lease leases.Lease, d time.Duration) error {
	err := s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		held, err := s.leases.ListResources(ctx, lease)
		if err == nil {
			err = s.leases.Delete(ctx, lease)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		if _, err := s.leases.Create(ctx, leases.WithID(lease.ID), leases.WithExpiration(d)); err != nil {
			return err
		}
		for _, r := range held {
			if err := s.leases.AddResource(ctx, lease, r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("lease %s: %w", lease.ID, err)
	}
	return nil
}
