package image

import (
	"context"
	"sync"
)

// keyLocks is a lock per key. It implements unpack.KeyedLocker, with which
// concurrent pulls share the fetching of a blob and the unpacking of a layer.
type keyLocks struct {
	mu sync.Mutex
	// +checklocks:mu
	locks map[string]*keyLock
}

type keyLock struct {
	held  chan struct{} // capacity 1: full while someone holds the lock
	users int           // holders and waiters; guarded by keyLocks.mu
}

// Lock returns once the caller alone holds key, or with the error of ctx.
func (l *keyLocks) Lock(ctx context.Context, key string) error {
	l.mu.Lock()
	if l.locks == nil {
		l.locks = make(map[string]*keyLock)
	}
	k := l.locks[key]
	if k == nil {
		k = &keyLock{held: make(chan struct{}, 1)}
		l.locks[key] = k
	}
	k.users++
	l.mu.Unlock()

	select {
	case k.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		l.leave(key, k)
		return ctx.Err()
	}
}

// Unlock releases key, which the caller must hold.
func (l *keyLocks) Unlock(key string) {
	l.mu.Lock()
	k := l.locks[key]
	l.mu.Unlock()
	<-k.held
	l.leave(key, k)
}

func (l *keyLocks) leave(key string, k *keyLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.locks, key)
	}
}
