package proc

import (
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// Registry holds the Inits of the node by container id.
type Registry struct {
	monitor ProcessMonitor

	mu sync.RWMutex
	// +checklocks:mu
	inits map[string]*Init
}

// NewRegistry returns an empty registry whose processes m watches.
func NewRegistry(m ProcessMonitor) *Registry {
	return &Registry{monitor: m, inits: map[string]*Init{}}
}

// New adds an Init that is still to be created, or recovered.
func (r *Registry) New(c CreateConfig) *Init {
	p := newInit(c, r.monitor)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inits[c.ID] = p
	return p
}

// Get returns the Init of a container.
func (r *Registry) Get(id string) (*Init, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	p, ok := r.inits[id]
	if !ok {
		return nil, fmt.Errorf("process of container %s: %w", id, errdefs.ErrNotFound)
	}
	return p, nil
}

// Remove forgets an Init. It need not be there.
func (r *Registry) Remove(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.inits, id)
}
