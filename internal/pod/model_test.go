package pod

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/proc"
)

// How far an object of the model has come. A pod is ready, then ended.
const (
	ready = iota + 1
	running
	ended
	removed
)

// modelled is a pod or container as the model knows it: it has come at least as far
// as low, by calls that are over and states that were seen, and at most as far as
// high, by calls that have begun. Every answer must fit a state in between.
type modelled struct {
	id, name  string
	pod       *modelled // of a container
	low, high int
	starts    int // begun
	started   int // by these many calls
	claimed   int // when the first creation that returned it was over; 0 for not yet
}

// surely and perhaps are low and high with what the pod's end means for a container.
func (o *modelled) surely() int {
	if o.pod != nil && o.pod.low >= removed {
		return removed
	}
	if o.pod != nil && o.pod.low >= ended && o.low >= running {
		return max(o.low, ended)
	}
	return o.low
}

func (o *modelled) perhaps() int {
	if o.pod != nil && o.pod.high >= ended {
		return max(o.high, o.pod.high)
	}
	return o.high
}

// model makes random calls and checks their answers.
type model struct {
	*node
	t *testing.T

	mu sync.Mutex
	// +checklocks:mu
	objects map[string]*modelled // by id
	// +checklocks:mu
	clock int
	// +checklocks:mu
	creating map[string]int // creations under way, by name
	// +checklocks:mu
	begun map[string]int // creations ever, by name
	// +checklocks:mu
	calls map[string]int
}

// know returns what is known of an object that was met.
//
// +checklocks:m.mu
func (m *model) know(id, name string, pod *modelled) *modelled {
	o := m.objects[id]
	if o == nil {
		o = &modelled{id: id, name: name, pod: pod, low: ready, high: ready}
		m.objects[id] = o
	}
	return o
}

func (m *model) wrong(o *modelled, call string, err error) {
	m.t.Errorf("%s of %s %.8s: %v; it is between %d and %d", call, o.name, o.id, err, o.surely(), o.perhaps())
}

// gaveUp tells whether an error is only that the client has gone.
func gaveUp(ctx context.Context, err error) bool {
	return ctx.Err() != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled))
}

// TestModel makes random calls from all sides at once, of which some clients give
// up, and holds the answers against a model of the CRI's states.
func TestModel(t *testing.T) {
	const clients, each = 200, 12
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	n := newNode(t)
	n.runPod("warm") // what is made once
	n.must(n.RemovePod(t.Context(), n.Pods()[0].ID))
	before := goruntime.NumGoroutine()
	m := &model{node: n, t: t, objects: map[string]*modelled{}, creating: map[string]int{}, begun: map[string]int{}, calls: map[string]int{}}
	events, cancel := n.Subscribe()
	over, seen := make(chan struct{}), make(chan map[string][]string)
	go func() { seen <- history(events, over) }()
	var wg sync.WaitGroup
	for i := range clients {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for range each {
				m.call(r)
			}
		})
	}
	wg.Wait()
	for _, p := range n.Pods() {
		n.must(n.RemovePod(t.Context(), p.ID))
	}
	// A creation whose client has gone may have come to its end just now.
	for len(taken(n.podNames))+len(taken(n.containerNames)) > 0 {
		for _, p := range n.Pods() {
			n.must(n.RemovePod(t.Context(), p.ID))
		}
		time.Sleep(time.Millisecond)
	}
	n.nothing()
	cancel()
	close(over)
	m.checkHistory(<-seen)
	m.checkCommands()
	for end := time.Now().Add(20 * time.Second); goruntime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines are left:\n%s", goruntime.NumGoroutine()-before, stacks[:goruntime.Stack(stacks, true)])
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t.Logf("calls: %v; objects made: %d; left: 0", m.calls, len(m.objects))
}

// history gathers the events of each object until all is over.
func history(events <-chan Event, over <-chan struct{}) map[string][]string {
	seen := map[string][]string{}
	note := func(e Event) {
		id := e.Pod.ID
		if e.Container != nil {
			id = e.Container.ID
		}
		seen[id] = append(seen[id], e.Type.String())
	}
	for {
		select {
		case e := <-events:
			note(e)
		case <-over:
			for len(events) > 0 {
				note(<-events)
			}
			return seen
		}
	}
}

// checkHistory checks that no object came to the same point twice or went back.
func (m *model) checkHistory(seen map[string][]string) {
	order := []string{
		runtime.ContainerEventType_CONTAINER_CREATED_EVENT.String(), runtime.ContainerEventType_CONTAINER_STARTED_EVENT.String(),
		runtime.ContainerEventType_CONTAINER_STOPPED_EVENT.String(), runtime.ContainerEventType_CONTAINER_DELETED_EVENT.String(),
	}
	for id, events := range seen {
		last := -1
		for _, e := range events {
			if at := slices.Index(order, e); at <= last {
				m.t.Errorf("events of %.8s: %q", id, events)
			} else {
				last = at
			}
		}
	}
}

// checkCommands checks that nothing was made or started twice.
func (m *model) checkCommands() {
	done := map[string]int{}
	for _, call := range m.Calls() {
		words := strings.Fields(call)
		for _, op := range []string{"create", "run"} {
			if slices.Contains(words, op) {
				done[op+" "+words[len(words)-1]]++
			}
		}
	}
	for what, times := range done {
		if times > 1 {
			m.t.Errorf("runsc %s: %d times", what, times)
		}
	}
}

// call makes one call.
func (m *model) call(r *rand.Rand) {
	ctx := m.t.Context()
	if r.IntN(6) == 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(r.IntN(30))*time.Millisecond)
		defer cancel()
	}
	op := []string{
		"RunPod", "RunPod", "RunPod", "CreateContainer", "CreateContainer", "CreateContainer", "CreateContainer",
		"StartContainer", "StartContainer", "StartContainer", "StartContainer", "StopContainer", "RemoveContainer",
		"StopPod", "RemovePod", "ExecSync", "ExecSync", "PodStatus", "ContainerStatus", "Stats",
	}[r.IntN(20)]
	m.mu.Lock()
	m.calls[op]++
	m.mu.Unlock()
	switch op {
	case "RunPod":
		name := fmt.Sprintf("p%d", r.IntN(10))
		m.create(ctx, name, nil, func() (string, error) { return m.RunPod(ctx, m.podRequest(name)) })
	case "CreateContainer":
		if pod := m.pick(r, false); pod != nil {
			name := fmt.Sprintf("c%d", r.IntN(4))
			command := []string{"sleep"}
			if name == "c0" {
				command = []string{"exit", "0"}
			}
			m.create(ctx, name, pod, func() (string, error) {
				return m.CreateContainer(ctx, m.containerRequest(pod.id, name, command...))
			})
		}
	case "StopPod", "RemovePod", "PodStatus":
		if pod := m.pick(r, false); pod != nil {
			m.onPod(ctx, op, pod)
		}
	case "Stats":
		m.Stats(ctx, m.Pods(), r.IntN(2) == 0)
	default:
		if c := m.pick(r, true); c != nil {
			m.onContainer(ctx, op, c, time.Duration(r.IntN(2))*time.Hour)
		}
	}
}

// pick chooses a pod or container, also one that is removed or that nobody was
// told of, for its client has gone.
func (m *model) pick(r *rand.Rand, container bool) *modelled {
	pods, containers := m.Pods(), m.Containers()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range pods {
		m.know(p.ID, p.Config().Metadata.Name, nil)
	}
	for _, c := range containers {
		m.know(c.ID, c.Config().Metadata.Name, m.know(c.Pod.ID, c.Pod.Config().Metadata.Name, nil))
	}
	var choice []*modelled
	for _, o := range m.objects {
		if (o.pod != nil) == container && (o.surely() < removed || r.IntN(20) == 0) {
			choice = append(choice, o)
		}
	}
	if len(choice) == 0 {
		return nil
	}
	return choice[r.IntN(len(choice))]
}

// create makes a pod, or a container of a pod.
func (m *model) create(ctx context.Context, name string, pod *modelled, call func() (string, error)) {
	key := name
	surely := ready
	m.mu.Lock()
	if pod != nil {
		key, surely = pod.id+"/"+name, pod.low
	}
	m.clock++
	begin, others, sofar := m.clock, m.creating[key], m.begun[key]
	occupied := m.occupied(name, pod, (*modelled).surely)
	m.creating[key]++
	m.begun[key]++
	m.mu.Unlock()

	id, err := call()

	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	m.creating[key]--
	switch {
	case err == nil:
		if surely > ready {
			m.wrong(pod, "creation in a pod that has ended: nothing", nil)
		}
		o := m.know(id, name, pod)
		if o.claimed == 0 {
			o.claimed = m.clock
		} else if begin > o.claimed {
			m.wrong(o, "a second creation", nil)
		}
		if other := m.occupied(name, pod, (*modelled).perhaps); other != nil && other != o {
			m.wrong(other, "another object beside", nil)
		}
	case gaveUp(ctx, err):
	case errdefs.IsAlreadyExists(err) && (occupied != nil || others > 0 || m.begun[key] > sofar+1):
	case pod != nil && errdefs.IsFailedPrecondition(err) && pod.perhaps() >= ended:
	case pod != nil && errdefs.IsNotFound(err) && pod.perhaps() >= removed:
	default:
		m.t.Errorf("creation of %s: %v", key, err)
	}
}

// occupied returns an object of the name that, by the one or the other measure, is
// not removed.
//
// +checklocks:m.mu
func (m *model) occupied(name string, pod *modelled, measure func(*modelled) int) *modelled {
	for _, o := range m.objects {
		if o.name == name && o.pod == pod && measure(o) < removed {
			return o
		}
	}
	return nil
}

func (m *model) onPod(ctx context.Context, op string, o *modelled) {
	target := map[string]int{"StopPod": ended, "RemovePod": removed}[op]
	m.mu.Lock()
	low := o.low
	o.high = max(o.high, target)
	m.mu.Unlock()
	var err error
	switch op {
	case "StopPod":
		err = m.StopPod(ctx, o.id)
	case "RemovePod":
		err = m.RemovePod(ctx, o.id)
	case "PodStatus":
		var p *Pod
		if p, err = m.Pod(o.id); err == nil {
			target = ready
			if p.State() == proc.Stopped {
				target = ended
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		if op == "PodStatus" && target < low || target > o.high {
			m.wrong(o, fmt.Sprint(op, " tells ", target), nil)
		}
		o.low = max(o.low, target)
	case gaveUp(ctx, err):
	case op == "PodStatus" && errdefs.IsNotFound(err) && o.perhaps() >= removed:
	default:
		m.wrong(o, op, err)
	}
}

func (m *model) onContainer(ctx context.Context, op string, o *modelled, timeout time.Duration) {
	m.mu.Lock()
	low, podLow := o.surely(), o.pod.low
	switch op {
	case "StartContainer":
		o.starts++
		o.high = max(o.high, running)
		if o.name == "c0" { // it ends by itself
			o.high = max(o.high, ended)
		}
	case "StopContainer":
		o.high = max(o.high, ended)
	case "RemoveContainer":
		o.high = removed
	}
	m.mu.Unlock()
	var err error
	saw := 0
	switch op {
	case "StartContainer":
		err = m.StartContainer(ctx, o.id)
	case "StopContainer":
		err = m.StopContainer(ctx, o.id, timeout)
	case "RemoveContainer":
		err = m.RemoveContainer(ctx, o.id)
	case "ExecSync":
		_, err = m.ExecSync(ctx, o.id, []string{"print", "x"}, 0)
	case "ContainerStatus":
		var c *Container
		if c, err = m.Container(o.id); err == nil {
			saw = map[proc.State]int{proc.Created: ready, proc.Running: running, proc.Stopped: ended}[c.State()]
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		m.succeeded(op, o, []int{low, podLow}, saw)
	case gaveUp(ctx, err):
	case errdefs.IsNotFound(err) && o.perhaps() >= removed && op != "StopContainer" && op != "RemoveContainer":
	case op == "StartContainer" && (o.starts > 1 || o.perhaps() >= ended):
		o.high = max(o.high, ended) // its pod was ended meanwhile, perhaps, and so has it
	case op == "ExecSync" && (low < running || o.perhaps() > running):
	default:
		m.wrong(o, op, err)
	}
}

// succeeded checks a call on a container that succeeded: lows are what the container
// and its pod surely were when it began.
//
// +checklocks:m.mu
func (m *model) succeeded(op string, o *modelled, lows []int, saw int) {
	switch op {
	case "StartContainer":
		if o.started++; o.started > 1 || lows[0] > ready || lows[1] > ready {
			m.wrong(o, "another start", nil)
		}
		o.low = max(o.low, running)
	case "StopContainer":
		if lows[0] >= running {
			o.low = max(o.low, ended)
		}
	case "RemoveContainer":
		o.low = removed
	case "ExecSync":
		if lows[0] > running || o.perhaps() < running {
			m.wrong(o, op, nil)
		}
		o.low = max(o.low, running)
	case "ContainerStatus":
		if saw < lows[0] || saw > o.perhaps() {
			m.wrong(o, fmt.Sprint(op, " tells ", saw), nil)
		}
		o.low = max(o.low, saw)
	}
}
