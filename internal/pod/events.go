package pod

import (
	"sync"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Event is something that happened to a container or, with Container nil, to a
// pod's sandbox. It is published when the record tells it too.
type Event struct {
	Type      runtime.ContainerEventType
	At        time.Time
	Pod       *Pod
	Container *Container
}

// backlog is how many events a subscriber may lag behind.
const backlog = 1000

// events hands each event to every subscriber. One that lags too far is cut
// off, and nobody waits for it.
type events struct {
	mu sync.Mutex
	// +checklocks:mu
	subscribers map[chan Event]struct{}
}

func newEvents() *events { return &events{subscribers: map[chan Event]struct{}{}} }

// subscribe returns a channel of all events from now on, which is closed when
// its reader lags behind; and the function that ends the subscription.
func (e *events) subscribe() (<-chan Event, func()) {
	ch := make(chan Event, backlog)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.subscribers[ch] = struct{}{}
	return ch, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.subscribers, ch)
	}
}

func (e *events) publish(ev Event) {
	ev.At = time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for ch := range e.subscribers {
		select {
		case ch <- ev:
		default:
			delete(e.subscribers, ch)
			close(ch)
		}
	}
}
