package pod

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"

	"github.com/runscd/runscd/internal/image"
	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/stats"
)

// statsTimeout bounds how long a sandbox is asked what it uses. It answers in
// under a millisecond, or hangs, or the machine is overloaded.
const statsTimeout = 500 * time.Millisecond

// Stats are the figures of a pod. What is nil or zero in it nobody has counted.
type Stats struct {
	Pod *Pod
	// At is when the host's figures were read. They are of the sandbox with all
	// that it costs.
	At        time.Time
	Host      stats.Figures
	Pressure  map[string]*stats.Pressure // on cpu, memory and io
	NanoCores *uint64
	Limit     uint64 // of memory, in bytes; 0 for none
	// Interfaces are those of the pod's own network, the default one first.
	Interfaces []stats.Interface
	// AskedAt is when the sandbox told what its containers use; zero if it never
	// has. Stale says that it does not answer now, and this is of an earlier time.
	AskedAt    time.Time
	Stale      bool
	Containers []ContainerStats // that run
}

// ContainerStats are the figures of a container.
type ContainerStats struct {
	*Container
	// AskedAt is when the sandbox told Usage, CPU and NanoCores; zero if it never
	// has. CPU is what the container is held to have spent; see stats.Budget.
	AskedAt   time.Time
	Stale     bool
	Usage     runsc.Usage
	CPU       stats.CPU
	NanoCores *uint64
	// NoSwap says that nothing of the pod is swapped out, so nothing of the
	// container is.
	NoSwap bool
	// Layer is what the container has written to its root file system, as it was
	// at LayerAt; zero if that cannot be told.
	LayerAt time.Time
	Layer   image.Usage
}

// Processes is the number of processes in the pod, but for the one that holds
// the sandbox.
func (s *Stats) Processes() (n uint64) {
	for _, c := range s.Containers {
		n += c.Usage.Processes
	}
	return n
}

// CgroupPath is the path of the sandbox's cgroup on the host.
func (p *Pod) CgroupPath() string { return p.cgroup().Path() }

// ContainerStats returns the figures of a container. One that does not run has
// no others than those of its root file system.
func (r *Registry) ContainerStats(ctx context.Context, c *Container) ContainerStats {
	for _, s := range r.Stats(ctx, []*Pod{c.Pod}, false)[0].Containers {
		if s.Container == c {
			return s
		}
	}
	s := ContainerStats{Container: c}
	s.readLayer(ctx)
	return s
}

// Stats returns the figures of pods, in their order; of the host's, those of CPU
// time and memory, and with detail all that there are. All sandboxes are asked at
// once, so that those that hang cost one timeout together. A pod that does not
// run has no figures.
func (r *Registry) Stats(ctx context.Context, pods []*Pod, detail bool) []*Stats {
	found := make([]*Stats, len(pods))
	running := map[*Pod][]*Container{}
	for _, c := range r.Containers() {
		if c.State() == proc.Running {
			running[c.Pod] = append(running[c.Pod], c)
		}
	}
	var wg sync.WaitGroup
	for i, p := range pods {
		if p.State() != proc.Running {
			found[i] = &Stats{Pod: p}
			continue
		}
		wg.Go(func() { found[i] = p.stats(ctx, running[p], detail) })
	}
	wg.Wait()
	return found
}

func (p *Pod) stats(ctx context.Context, containers []*Container, detail bool) *Stats {
	s := &Stats{Pod: p}
	told := p.ask(ctx, containers)
	// After the sandbox's, so that the host has counted what the sandbox has.
	cgroup := p.cgroup()
	host, err := cgroup.Figures(detail)
	if err != nil {
		told = nil // it is ending
	} else {
		s.At, s.Host, s.Limit, s.Interfaces = time.Now(), host, p.limit(host), p.interfaces()
		s.Pressure = map[string]*stats.Pressure{}
		for _, resource := range []string{"cpu", "memory", "io"} {
			s.Pressure[resource] = cgroup.Pressure(resource)
		}
	}
	p.meter.read(s, told, containers)
	for i := range s.Containers {
		s.Containers[i].readLayer(ctx)
	}
	return s
}

// limit is the memory that the pod may have: the limit of the sandbox's cgroup, or
// of the pod's above it, which the kubelet has made and may change at any time.
func (p *Pod) limit(host stats.Figures) uint64 {
	limit := host["memory.max"]
	if p.Config().GetLinux().GetCgroupParent() != "" {
		if above := p.cgroup().Parent().MemoryLimit(); above > 0 && (limit == 0 || above < limit) {
			return above
		}
	}
	return limit
}

// interfaces are the pod's, as its network namespace has them: the sandbox's packets
// pass through there.
func (p *Pod) interfaces() []stats.Interface {
	if hostNetwork(p.Config()) {
		return nil
	}
	list, err := stats.Interfaces(p.Facts().Host.PID, network.InterfaceName)
	if err != nil || p.init.State() != proc.Running { // or it is another process by now
		return nil
	}
	return list
}

// answer is what a sandbox tells of its containers.
type answer struct {
	at    time.Time
	usage map[string]runsc.Usage // by the container's cgroup
}

// ask asks the sandbox. It returns nil when there is no answer in time.
func (p *Pod) ask(ctx context.Context, containers []*Container) *answer {
	if len(awaited(p)) > 0 { // it does not answer before it is restored
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.home.statsTimeout)
	defer cancel()
	cgroups := make([]string, len(containers))
	for i, c := range containers {
		cgroups[i] = cgroupIn(c)
	}
	a := &answer{at: time.Now()}
	if len(cgroups) == 0 {
		return a
	}
	var err error
	a.usage, err = p.init.Runtime.Control(p.ID).Usage(ctx, cgroups)
	if err != nil {
		if !errdefs.IsUnavailable(err) && !errors.Is(err, context.Canceled) { // neither the pod nor the client is gone
			logrus.WithField("pod", p.ID).WithError(err).Warn("the sandbox does not tell what it uses")
		}
		return nil
	}
	return a
}

// meter is what is kept of a pod's figures from one reading to the next. The zero
// value is ready.
type meter struct {
	mu sync.Mutex
	// +checklocks:mu
	budget stats.Budget
	// +checklocks:mu
	rate stats.Rate
	// +checklocks:mu
	at time.Time // of the sandbox's last answer
	// +checklocks:mu
	containers map[*Container]*containerMeter
}

type containerMeter struct {
	account stats.Account
	rate    stats.Rate
	last    ContainerStats
}

// read completes s with the sandbox's answer, or with its last one where told is
// nil.
func (m *meter) read(s *Stats, told *answer, containers []*Container) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if usage, ok := s.Host["cpu.stat.usage_usec"]; ok {
		s.NanoCores = m.rate.Add(s.At, usage)
		if told != nil && told.at.After(m.at) { // not overtaken by another call
			m.settle(usage, told, containers)
		}
	}
	s.AskedAt, s.Stale = m.at, told == nil
	swap, known := s.Host["memory.swap.current"]
	for _, c := range containers {
		cs := ContainerStats{Container: c}
		if cm := m.containers[c]; cm != nil {
			cs = cm.last
		}
		cs.NoSwap = known && swap == 0
		cs.Stale = s.Stale || cs.AskedAt != m.at
		s.Containers = append(s.Containers, cs)
	}
}

// settle takes a sandbox's answer in. host is the CPU time that the host has
// counted, in microseconds.
//
// +checklocks:m.mu
func (m *meter) settle(host uint64, told *answer, containers []*Container) {
	m.at = told.at
	for c := range m.containers {
		if c.State() != proc.Running {
			delete(m.containers, c)
		}
	}
	if m.containers == nil {
		m.containers = map[*Container]*containerMeter{}
	}
	counted := map[*stats.Account]stats.CPU{}
	for _, c := range containers {
		u, ok := told.usage[cgroupIn(c)]
		if !ok {
			continue
		}
		cm := m.containers[c]
		if cm == nil {
			cm = &containerMeter{}
			m.containers[c] = cm
		}
		cm.last = ContainerStats{Container: c, AskedAt: told.at, Usage: u}
		counted[&cm.account] = stats.CPU{User: u.User, System: u.System}
	}
	m.budget.Settle(host, counted)
	for _, cm := range m.containers {
		if cm.last.AskedAt == told.at {
			cm.last.CPU = cm.account.Granted()
			cm.last.NanoCores = cm.rate.Add(told.at, cm.last.CPU.Total())
		}
	}
}

// readLayer reads what the container has written.
func (s *ContainerStats) readLayer(ctx context.Context) {
	layer, err := s.Pod.home.Images.WritableUsage(ctx, s.ID)
	switch {
	case err == nil:
		s.LayerAt, s.Layer = time.Now(), layer
	case !errdefs.IsNotFound(err) && ctx.Err() == nil:
		logrus.WithField("container", s.ID).WithError(err).Warn("writable layer")
	}
}
