package pod

import (
	"fmt"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/runscd/runscd/internal/proc"
)

// index finds pods and containers by id.
type index struct {
	mu sync.RWMutex
	// +checklocks:mu
	pods map[string]*Pod
	// +checklocks:mu
	containers map[string]*Container
}

// Pods returns all pods.
func (x *index) Pods() []*Pod {
	x.mu.RLock()
	defer x.mu.RUnlock()
	pods := make([]*Pod, 0, len(x.pods))
	for _, p := range x.pods {
		pods = append(pods, p)
	}
	return pods
}

// Containers returns all containers.
func (x *index) Containers() []*Container {
	return x.ContainersOf(nil)
}

// ContainersOf returns the containers of a pod, or all for nil.
func (x *index) ContainersOf(p *Pod) []*Container {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var found []*Container
	for _, c := range x.containers {
		if p == nil || c.Pod == p {
			found = append(found, c)
		}
	}
	return found
}

// Pod returns the pod of an id or of an unambiguous beginning of one. The error
// is ErrNotFound.
func (x *index) Pod(id string) (*Pod, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	p, err := find(x.pods, id)
	if err != nil {
		return nil, fmt.Errorf("pod sandbox %q: %w", id, err)
	}
	return p, nil
}

// Container returns the container of an id or of an unambiguous beginning of
// one. The error is ErrNotFound.
func (x *index) Container(id string) (*Container, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	c, err := find(x.containers, id)
	if err != nil {
		return nil, fmt.Errorf("container %q: %w", id, err)
	}
	return c, nil
}

func find[T any](objects map[string]T, id string) (T, error) {
	if o, ok := objects[id]; ok || len(id) >= idLength {
		if ok {
			return o, nil
		}
		return o, errdefs.ErrNotFound
	}
	var found T
	n := 0
	for full, o := range objects {
		if id != "" && strings.HasPrefix(full, id) {
			found = o
			n++
		}
	}
	if n != 1 {
		var none T
		return none, errdefs.ErrNotFound
	}
	return found, nil
}

func (x *index) addPod(p *Pod) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pods[p.ID] = p
}

func (x *index) addContainer(c *Container) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.containers[c.ID] = c
}

// addContainerTo adds a container unless its pod has stopped: whoever removes
// the pod has counted its containers then.
func (x *index) addContainerTo(p *Pod, c *Container) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p.State() != proc.Running {
		return false
	}
	x.containers[c.ID] = c
	return true
}

func (x *index) dropPod(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.pods, id)
}

func (x *index) dropContainer(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.containers, id)
}

// has tells whether there is a pod or a container of the id.
func (x *index) has(id string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.pods[id] != nil || x.containers[id] != nil
}
