package proc

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// State is how far a process has come. It only moves forward.
type State int

// The states, in their order.
const (
	Creating State = iota
	Created
	Running
	Stopped
	Deleted
)

func (s State) String() string {
	return [...]string{"creating", "created", "running", "stopped", "deleted"}[s]
}

// Op is something that is done to a process.
type Op int

// The operations.
const (
	OpCreate Op = iota
	OpStart
	OpExec
	OpKill
	OpResize
	OpUpdate
	OpStat
	OpSave
	OpPause
	OpDelete
)

func (o Op) String() string { return ops[o].name }

// ops is the whole of the state machine: in which states an operation is
// allowed, and whether it must be alone.
var ops = [...]struct {
	name      string
	allowed   [Deleted + 1]bool
	exclusive bool
}{
	//                creating created running stopped deleted
	OpCreate: {"create", [...]bool{true, false, false, false, false}, true},
	OpStart:  {"start", [...]bool{false, true, false, false, false}, true},
	OpExec:   {"exec in", [...]bool{false, false, true, false, false}, false},
	OpKill:   {"kill", [...]bool{true, true, true, true, true}, false},
	OpResize: {"resize", [...]bool{false, true, true, false, false}, false},
	OpUpdate: {"update", [...]bool{false, true, true, false, false}, false},
	OpStat:   {"stat", [...]bool{false, true, true, false, false}, false},
	OpSave:   {"save", [...]bool{false, false, true, false, false}, false},
	OpPause:  {"pause", [...]bool{false, false, true, false, false}, false},
	OpDelete: {"delete", [...]bool{true, true, true, true, true}, true},
}

// Life is the state of one process and the claim of its exclusive operation.
// The zero value is not ready; see NewLife.
type Life struct {
	claim chan struct{} // holds a token while an exclusive operation runs

	mu sync.Mutex
	// +checklocks:mu
	state State
}

// NewLife returns a life in the given state.
func NewLife(s State) *Life {
	return &Life{claim: make(chan struct{}, 1), state: s}
}

// State returns the present state.
func (l *Life) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// Begin claims an operation; end must be called when it is over. An exclusive
// operation waits for the one before it, at most until ctx is done. The error
// is ErrFailedPrecondition when the state does not allow the operation.
func (l *Life) Begin(ctx context.Context, op Op) (end func(), err error) {
	end = func() {}
	if ops[op].exclusive {
		select {
		case l.claim <- struct{}{}:
			end = func() { <-l.claim }
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: another operation is not over: %w", op, ctx.Err())
		}
	}
	if s := l.State(); !ops[op].allowed[s] {
		end()
		return nil, fmt.Errorf("%s: not possible in state %s: %w", op, s, errdefs.ErrFailedPrecondition)
	}
	return end, nil
}

// Settle waits until no exclusive operation runs, at most until ctx is done.
func (l *Life) Settle(ctx context.Context) error {
	select {
	case l.claim <- struct{}{}:
		<-l.claim
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Advance moves to a state unless that or a later one is reached already.
func (l *Life) Advance(to State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = max(l.state, to)
}
