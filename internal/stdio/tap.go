package stdio

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
)

// tapLimit is how much of a stream waits for a client that is slower, in bytes,
// besides what is being written to it. With 1 MiB a client on the same machine was
// cut off in a flood of output when the processors were busy.
const tapLimit = 8 << 20

// Tap is one client of a stream: it gets what the stream reads from now on. It
// never holds the stream up. A client that falls back too far is cut off.
type Tap struct {
	stream *Stream
	w      io.Writer
	cut    context.CancelCauseFunc
	news   chan struct{} // a token: there is more, or the end

	mu sync.Mutex
	// +checklocks:mu
	waiting []byte
	// +checklocks:mu
	ended bool
}

// Tap adds a client that writes to w. cut is called, with the reason, when the
// client is cut off; it must not block. The caller has to Run the tap and to
// Close it.
func (s *Stream) Tap(w io.Writer, cut context.CancelCauseFunc) *Tap {
	t := &Tap{stream: s, w: w, cut: cut, news: make(chan struct{}, 1)}
	s.taps.add(t)
	return t
}

// Close removes the client from the stream.
func (t *Tap) Close() { t.stream.taps.remove(t) }

// Run writes to the client until the stream has ended and the client has all of
// it, a write fails or ctx ends.
func (t *Tap) Run(ctx context.Context) error {
	for spare := []byte(nil); ; {
		t.mu.Lock()
		data, ended := t.waiting, t.ended
		t.waiting = spare[:0]
		t.mu.Unlock()
		if len(data) > 0 {
			if _, err := t.w.Write(data); err != nil {
				return fmt.Errorf("client of %s: %w", t.stream.name, err)
			}
		}
		if spare = data; cap(spare) > tapLimit/8 {
			spare = nil // a burst is over
		}
		if ended {
			return nil
		}
		select {
		case <-t.news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// put gives the client more.
func (t *Tap) put(b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting)+len(b) > tapLimit {
		t.cut(fmt.Errorf("client does not keep up with %s: %d bytes wait for it: %w", t.stream.name, len(t.waiting), errdefs.ErrResourceExhausted))
		return
	}
	t.waiting = append(t.waiting, b...)
	t.tell()
}

func (t *Tap) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	t.tell()
}

func (t *Tap) tell() {
	select {
	case t.news <- struct{}{}:
	default:
	}
}

// taps are the clients of a stream. The list is replaced when it changes, and is
// nil while there is none, which is what a stream without clients pays for.
type taps struct {
	list atomic.Pointer[[]*Tap]

	mu sync.Mutex // of changes
	// +checklocks:mu
	ended bool
}

func (s *taps) put(b []byte) {
	list := s.list.Load()
	if list == nil {
		return
	}
	for _, t := range *list {
		t.put(b)
	}
}

func (s *taps) add(t *Tap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		t.end()
		return
	}
	s.set(append(s.all(), t))
}

func (s *taps) remove(t *Tap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(slices.DeleteFunc(s.all(), func(other *Tap) bool { return other == t }))
}

// end tells all that there is no more.
func (s *taps) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, t := range s.all() {
		t.end()
	}
}

// all is a copy of the list.
func (s *taps) all() []*Tap {
	list := s.list.Load()
	if list == nil {
		return nil
	}
	return slices.Clone(*list)
}

func (s *taps) set(list []*Tap) {
	if len(list) == 0 {
		s.list.Store(nil)
		return
	}
	s.list.Store(&list)
}
