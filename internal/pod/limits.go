package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/limit"
	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/spec"
	"github.com/runscd/runscd/internal/stats"
)

// limiter holds a pod to its limits. Only the sandbox has a cgroup on the host, so
// its limits are the sum of what its containers may use, and change with each of them.
type limiter struct {
	*Pod
	// limiting is a token for whoever changes limits, or which containers there are.
	limiting chan struct{}
}

// limitTimeout bounds how long limits are set. The kernel may have to take memory
// away before it answers.
const limitTimeout = 20 * time.Second

// Resources are what a container may use now.
func (c *Container) Resources() *runtime.LinuxContainerResources {
	f := c.Facts()
	if f.Resources.M != nil {
		return f.Resources.M
	}
	return f.Config.M.GetLinux().GetResources()
}

// resources are what is said now of the pod as a whole.
func (p *limiter) resources() (overhead, total *runtime.LinuxContainerResources) {
	f := p.Facts()
	if f.Resources.M != nil {
		return f.Overhead.M, f.Resources.M
	}
	linux := f.Config.M.GetLinux()
	return linux.GetOverhead(), linux.GetResources()
}

// living are the resources of the pod's containers that run or may come to run.
func (p *limiter) living() map[*Container]*runtime.LinuxContainerResources {
	living := map[*Container]*runtime.LinuxContainerResources{}
	for _, c := range p.home.ContainersOf(p.Pod) {
		if s := c.State(); s == proc.Created || s == proc.Running {
			living[c] = c.Resources()
		}
	}
	return living
}

// What a sandbox and each of its containers take before any program does, and some
// more: with less no container starts.
const (
	sandboxMemory   = 16 << 20
	containerMemory = 8 << 20
)

// limits are what the sandbox may use if its containers may use that. It never is
// less memory than it takes to start them: who limits a container thinks of its
// program.
func (p *limiter) limits(containers map[*Container]*runtime.LinuxContainerResources) limit.Limits {
	overhead, total := p.resources()
	list := make([]*runtime.LinuxContainerResources, 0, len(containers))
	for _, r := range containers {
		list = append(list, r)
	}
	l := spec.PodLimits(overhead, total, list, p.Facts().Resources.M != nil)
	if memory, limited := l.Sizes["memory.max"]; limited && len(list) > 0 {
		l.Sizes["memory.max"] = max(memory, sandboxMemory+containerMemory*int64(len(list)))
	}
	return l
}

// hold puts limits in place of those that the sandbox has. If it uses more memory
// than it shall have, that is an error, or with gently set the limit stays as it
// is: the kernel would kill for it.
func (p *limiter) hold(ctx context.Context, l limit.Limits, gently bool) error {
	p.memoryKills()
	host := p.cgroup()
	figures, err := host.Figures(false)
	if errdefs.IsNotFound(err) {
		return nil // the sandbox is ending
	}
	if err != nil {
		return err
	}
	shall, limited := l.Sizes["memory.max"]
	now := figures["memory.max"] // 0: none
	if used := figures.RSS(); limited && uint64(shall) < used && (now == 0 || uint64(shall) < now) {
		if !gently {
			return fmt.Errorf("memory limit of %d bytes for the sandbox, of its containers and the overhead: it uses %d already: %w",
				shall, used, errdefs.ErrFailedPrecondition)
		}
		l.Sizes["memory.max"] = int64(now)
		if now == 0 {
			delete(l.Sizes, "memory.max")
		}
	}
	cgroup := limit.Cgroup{Dir: host.Dir, Legacy: host.Legacy()}
	if p.home.SystemdCgroup && !cgroup.Legacy {
		cgroup.Unit = spec.Scope(p.ID)
	}
	if err := cgroup.Set(ctx, l); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return p.setOOMScore()
}

// setOOMScore gives the sandbox's process the lowest score of its containers, as
// runsc has done with those that they were started with.
func (p *limiter) setOOMScore() error {
	lowest, differs := int64(1000), false
	for c, r := range p.living() {
		lowest = min(lowest, r.GetOomScoreAdj())
		differs = differs || c.Facts().Resources.M != nil
	}
	if !differs {
		return nil
	}
	lowest = max(lowest, int64(p.home.MinOOMScoreAdj))
	path := fmt.Sprintf("/proc/%d/oom_score_adj", p.Facts().Host.PID)
	if err := os.WriteFile(path, []byte(strconv.FormatInt(lowest, 10)), 0); err != nil && p.init.State() == proc.Running {
		return fmt.Errorf("oom_score_adj of the sandbox: %w", err)
	}
	return nil
}

// relimit sets the sandbox's limits anew when a container has ended or gone, or the
// daemon was away.
func (p *limiter) relimit() {
	if p.stopping.Load() || p.State() != proc.Running || p.init.State() != proc.Running {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), limitTimeout)
	defer cancel()
	unlock, err := lock(ctx, p.limiting)
	if err == nil {
		defer unlock()
		err = p.hold(ctx, p.limits(p.living()), true)
	}
	if err != nil && p.init.State() == proc.Running {
		logrus.WithField("pod", p.ID).WithError(err).Warn("limits of the sandbox")
	}
}

// admit adds a container to its pod, whose sandbox may use that much more from now
// on.
func (p *limiter) admit(ctx context.Context, c *Container) error {
	unlock, err := lock(ctx, p.limiting)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.checkUnified(c.Resources()); err != nil {
		return err
	}
	living := p.living()
	living[c] = c.Resources()
	if err := p.hold(ctx, p.limits(living), false); err != nil {
		return errors.Join(err, p.hold(ctx, p.limits(p.living()), true))
	}
	if own := spec.OwnLimits(c.Resources()); !maps.Equal(own, spec.OwnLimits(nil)) {
		if err := show(ctx, c, own); err != nil && p.init.State() == proc.Running {
			return err
		}
	}
	if !p.home.addContainerTo(p.Pod, c) {
		return fmt.Errorf("pod sandbox %s: stopped meanwhile: %w", p.ID, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// checkUnified refuses what only cgroup version 2 has, where that is not.
func (p *limiter) checkUnified(r *runtime.LinuxContainerResources) error {
	for name := range r.GetUnified() {
		if name != "pids.max" && p.cgroup().Legacy() { // that is the sandbox's own
			return fmt.Errorf("unified %q: the host has cgroups of version 1: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// UpdateContainer changes what a container may use. Values that the change does not
// name stay. If it cannot be done as a whole nothing has changed. The error is
// ErrInvalidArgument, and ErrFailedPrecondition if the container has ended or uses
// more memory than it shall have.
func UpdateContainer(ctx context.Context, r *Registry, id string, change *runtime.LinuxContainerResources) error {
	c, err := r.Container(id)
	if err != nil {
		return err
	}
	p := c.Pod.limiter
	// A start that is under way is over first.
	for _, token := range []chan struct{}{c.release, p.limiting} {
		unlock, err := lock(ctx, token)
		if err != nil {
			return fmt.Errorf("container %s: %w", c.ID, err)
		}
		defer unlock()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limitTimeout)
	defer cancel()
	old := c.Resources()
	to := spec.MergeResources(old, change)
	if err := errors.Join(spec.CheckResources(to), p.checkUnified(to)); err != nil {
		return err
	}
	if s := c.State(); s != proc.Created && s != proc.Running {
		return fmt.Errorf("container %s: %s: %w", c.ID, s, errdefs.ErrFailedPrecondition)
	}
	if err := p.thawed(); err != nil {
		return err
	}
	if err := checkUse(ctx, c, old, to); err != nil {
		return fmt.Errorf("container %s: %w", c.ID, err)
	}
	living := p.living()
	living[c] = to
	err = p.hold(ctx, p.limits(living), false)
	if err == nil {
		err = show(ctx, c, spec.OwnLimits(to))
	}
	before := c.Facts().Resources
	if err == nil {
		err = c.update(func(f *containerRecord) { f.Resources.M = to })
	}
	if err == nil {
		err = errors.Join(p.setOOMScore(), rewriteBundle(c))
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("resources of container %s: %w", c.ID, err),
			c.update(func(f *containerRecord) { f.Resources = before }), rewriteBundle(c),
			p.hold(ctx, p.limits(p.living()), true), show(ctx, c, spec.OwnLimits(old)))
	}
	return err
}

// checkUse refuses a lower limit than what a container uses.
func checkUse(ctx context.Context, c *Container, old, to *runtime.LinuxContainerResources) error {
	limit := to.GetMemoryLimitInBytes()
	if before := old.GetMemoryLimitInBytes(); limit == 0 || before > 0 && limit >= before || c.State() != proc.Running {
		return nil
	}
	usage, err := c.Pod.init.Runtime.Control(c.Pod.ID).Usage(ctx, []string{c.ID})
	if err != nil {
		return err
	}
	if used := usage[c.ID].Memory; used > uint64(limit) {
		return fmt.Errorf("memory_limit_in_bytes %d: it uses %d: %w", limit, used, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// show has a container see its limits in its own cgroup of the sandbox, which is
// there before the container starts. The root container sees all of them. (The call of
// the sentry's for this takes the sandbox down.)
func show(ctx context.Context, c *Container, own map[string]string) error {
	dir := path.Join("/sys/fs/cgroup", cgroupIn(c))
	files := []string{dir, ""}
	for name, value := range own {
		files = append(files, path.Join(dir, name), value)
	}
	if _, err := c.Pod.writeInside(ctx, files); err != nil {
		return fmt.Errorf("limits inside: %w", err)
	}
	return nil
}

// rewriteBundle has a container that is not started yet start with its present
// resources.
func rewriteBundle(c *Container) error {
	if c.State() != proc.Created {
		return nil
	}
	dir := c.Pod.home.containerDir(c.ID)
	s, err := readBundle(dir)
	if err != nil {
		return err
	}
	s.Process.OOMScoreAdj = new(max(int(c.Resources().GetOomScoreAdj()), c.Pod.home.MinOOMScoreAdj))
	return writeBundle(dir, s)
}

// UpdatePod changes what is said of a pod as a whole, as UpdateContainer does. What
// the sandbox may use is bounded by it where that is right, see spec.PodLimits.
func UpdatePod(ctx context.Context, r *Registry, id string, overhead, total *runtime.LinuxContainerResources) error {
	found, err := r.Pod(id)
	if err != nil {
		return err
	}
	p := found.limiter
	unlock, err := lock(ctx, p.limiting)
	if err != nil {
		return fmt.Errorf("pod sandbox %s: %w", p.ID, err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limitTimeout)
	defer cancel()
	f := p.Facts()
	oldOverhead, oldTotal := p.resources()
	overhead, total = spec.MergeResources(oldOverhead, overhead), spec.MergeResources(oldTotal, total)
	for field, to := range map[string]*runtime.LinuxContainerResources{"overhead": overhead, "resources": total} {
		if err := errors.Join(spec.CheckResources(to), p.checkUnified(to)); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
	}
	if s := p.State(); s != proc.Running {
		return fmt.Errorf("pod sandbox %s: %s: %w", p.ID, s, errdefs.ErrFailedPrecondition)
	}
	err = p.update(func(f *podRecord) { f.Overhead.M, f.Resources.M = overhead, total })
	if err == nil {
		err = p.hold(ctx, p.limits(p.living()), false)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("resources of pod sandbox %s: %w", p.ID, err),
			p.update(func(now *podRecord) { now.Overhead, now.Resources = f.Overhead, f.Resources }),
			p.hold(ctx, p.limits(p.living()), true))
	}
	return err
}

// limitsAbove are the limits of a pod's cgroup_parent where runsc does not look: in
// version 1.
func limitsAbove(r *Registry, parent string) limit.Limits {
	above := stats.Cgroup{Root: r.CgroupRoot, Memory: filepath.Join(r.CgroupRoot, "memory", parent)}
	return limit.Cgroup{Dir: above.Dir, Legacy: true}.Of()
}
