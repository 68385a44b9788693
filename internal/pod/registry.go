package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/image"
	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/stdio"
	"github.com/runscd/runscd/internal/store"
)

// Images gives containers their root file systems; internal/image is it.
type Images interface {
	Get(ctx context.Context, ref string) (*image.Image, error)
	Mount(ctx context.Context, id, imageID, target string) error
	Unmount(ctx context.Context, id, target string) error
	Snapshots(ctx context.Context) ([]string, error)
}

// Network connects pods' network namespaces; internal/network has two.
type Network interface {
	Status(ctx context.Context) error
	Add(ctx context.Context, p network.Pod) ([]string, error)
	Del(ctx context.Context, p network.Pod) error
	GC(ctx context.Context, ids []string) error
}

// Handler is one way to run sandboxes, by which a pod's RuntimeClass chooses.
type Handler struct {
	Runtime *runsc.Runtime
	NetRaw  bool   // containers may have CAP_NET_RAW
	Version string // of the binary; set by Check

	unusable error // set by Check
}

// Options are what a Registry works with.
type Options struct {
	Root          string // directory of the records
	State         string // directory of all that is gone after a reboot
	Handlers      map[string]*Handler
	Default       string // the handler for "", a key of Handlers
	SystemdCgroup bool   // cgroup parents are systemd slices
	// MinOOMScoreAdj is the lowest oom_score_adj that may be given; a lower one
	// that is asked for becomes this.
	MinOOMScoreAdj int
	Images         Images
	Network        Network
	Monitor        proc.ProcessMonitor
}

// Registry holds the pods and containers of the node. Its methods are what the
// CRI asks of them, and may be called concurrently.
type Registry struct {
	Options
	podRecords       *store.Records[podRecord]
	containerRecords *store.Records[containerRecord]
	processes        *proc.Registry
	podNames         *names
	containerNames   *names
	events           *events
	logs             stdio.Logs
	boot             string
	signalTimeout    time.Duration
	killTimeout      time.Duration

	mu sync.RWMutex
	// +checklocks:mu
	pods map[string]*Pod
	// +checklocks:mu
	containers map[string]*Container
}

// Handler returns the handler of a name, "" being the default. It may be one
// that is not usable here. The error is ErrNotFound.
func (r *Registry) Handler(name string) (*Handler, error) {
	if name == "" {
		name = r.Default
	}
	h, ok := r.Handlers[name]
	if !ok {
		return nil, fmt.Errorf("runtime_handler %q: not configured: %w", name, errdefs.ErrNotFound)
	}
	return h, nil
}

// Pods returns all pods.
func (r *Registry) Pods() []*Pod {
	r.mu.RLock()
	defer r.mu.RUnlock()
	pods := make([]*Pod, 0, len(r.pods))
	for _, p := range r.pods {
		pods = append(pods, p)
	}
	return pods
}

// Containers returns all containers.
func (r *Registry) Containers() []*Container {
	return r.ContainersOf(nil)
}

// ContainersOf returns the containers of a pod, or all for nil.
func (r *Registry) ContainersOf(p *Pod) []*Container {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var found []*Container
	for _, c := range r.containers {
		if p == nil || c.Pod == p {
			found = append(found, c)
		}
	}
	return found
}

// Pod returns the pod of an id or of an unambiguous beginning of one. The error
// is ErrNotFound.
func (r *Registry) Pod(id string) (*Pod, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	p, err := find(r.pods, id)
	if err != nil {
		return nil, fmt.Errorf("pod sandbox %q: %w", id, err)
	}
	return p, nil
}

// Container returns the container of an id or of an unambiguous beginning of
// one. The error is ErrNotFound.
func (r *Registry) Container(id string) (*Container, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	c, err := find(r.containers, id)
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

// Subscribe returns all events from now on. The channel is closed when its
// reader lags too far behind; cancel ends the subscription.
func (r *Registry) Subscribe() (ch <-chan Event, cancel func()) {
	return r.events.subscribe()
}

func (r *Registry) addPod(p *Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pods[p.ID] = p
}

func (r *Registry) addContainer(c *Container) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers[c.ID] = c
}

// addContainerTo adds a container unless its pod has stopped: whoever removes
// the pod has counted its containers then.
func (r *Registry) addContainerTo(p *Pod, c *Container) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.State() != proc.Running {
		return false
	}
	r.containers[c.ID] = c
	return true
}

// idLength is the length of every id. It is fixed because runsc takes the
// beginning of an id for the whole.
const idLength = 64

func newID() string {
	b := make([]byte, idLength/2)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// What the host holds for an object has its name from the id alone.

func (r *Registry) podDir(id string) string       { return filepath.Join(r.State, "pods", id) }
func (r *Registry) containerDir(id string) string { return filepath.Join(r.State, "containers", id) }
func (r *Registry) rootfs(id string) string       { return filepath.Join(r.containerDir(id), "rootfs") }
func (r *Registry) netNS(id string) string        { return filepath.Join(r.State, "netns", id) }

// pauseImage is where the root containers' image is in a state directory.
func pauseImage(state string) string { return filepath.Join(state, "pause.erofs") }

// RunscRoot is runsc's root directory for a handler. The name of a control
// socket in it must fit into a socket address.
func RunscRoot(state, handler string) string { return filepath.Join(state, "runsc", handler) }

func podName(m *runtime.PodSandboxMetadata) string {
	return fmt.Sprintf("%s/%s/%s/%d", m.Namespace, m.Name, m.Uid, m.Attempt)
}

func containerName(pod string, m *runtime.ContainerMetadata) string {
	return fmt.Sprintf("%s/%s/%d", pod, m.Name, m.Attempt)
}
