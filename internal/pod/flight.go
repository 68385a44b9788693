package pod

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"google.golang.org/protobuf/proto"
)

// names reserves the names of objects and keeps the results of creations whose
// client has gone: one that timed out and asks for the same again gets what
// was made for it.
type names struct {
	mu sync.Mutex
	// +checklocks:mu
	taken map[string]*flight
}

// flight is the creation of one object.
type flight struct {
	request proto.Message
	done    chan struct{} // closed after id and err are set
	id      string
	err     error
	// taken says that a client has the id; guarded by names.mu.
	taken bool
}

func newNames() *names { return &names{taken: map[string]*flight{}} }

// create returns the id that build makes for the request under a name. Build
// runs on when ctx ends. The error is ErrAlreadyExists if the name belongs to
// another object.
func (n *names) create(ctx context.Context, name string, request proto.Message, build func(context.Context) (string, error)) (string, error) {
	n.mu.Lock()
	f := n.taken[name]
	switch {
	case f == nil:
		f = &flight{request: request, done: make(chan struct{})}
		n.taken[name] = f
		go n.fly(context.WithoutCancel(ctx), name, f, build)
	case f.taken || !proto.Equal(f.request, request):
		n.mu.Unlock()
		return "", fmt.Errorf("name %q is reserved%s: %w", name, f.owner(), errdefs.ErrAlreadyExists)
	}
	n.mu.Unlock()

	select {
	case <-f.done:
	case <-ctx.Done():
	}
	if err := ctx.Err(); err != nil { // also when both are true: nobody takes the result
		return "", fmt.Errorf("creation of %q: the client has gone: %w", name, err)
	}
	n.mu.Lock()
	f.taken = true
	n.mu.Unlock()
	return f.id, f.err
}

func (n *names) fly(ctx context.Context, name string, f *flight, build func(context.Context) (string, error)) {
	f.id, f.err = guarded(ctx, build)
	if f.err != nil {
		n.mu.Lock()
		delete(n.taken, name)
		n.mu.Unlock()
	}
	close(f.done)
}

// guarded makes a panic of build its error: no interceptor is above it.
func guarded(ctx context.Context, build func(context.Context) (string, error)) (id string, err error) {
	defer func() {
		if p := recover(); p != nil {
			logrus.WithField("stack", string(debug.Stack())).Errorf("panic: %v", p)
			err = fmt.Errorf("panic: %v: %w", p, errdefs.ErrInternal)
		}
	}()
	return build(ctx)
}

// keep reserves a name for an object that exists already, found at start: the
// client that asked for it never heard of it, perhaps. A nil request is nobody's.
func (n *names) keep(name, id string, request proto.Message) {
	f := &flight{request: request, done: make(chan struct{}), id: id}
	close(f.done)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.taken[name] = f
}

// release gives a name free if it is the object's.
func (n *names) release(name, id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f := n.taken[name]
	if f == nil {
		return
	}
	select {
	case <-f.done:
		if f.id == id {
			delete(n.taken, name)
		}
	default: // somebody else is making an object of this name
	}
}

// owner tells for whom a name is reserved, for messages.
func (f *flight) owner() string {
	select {
	case <-f.done:
		return " for " + f.id
	default:
		return " by a creation that is not over"
	}
}
