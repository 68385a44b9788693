package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sicknesses are what can befall a sandbox from outside.
var sicknesses = map[string]struct {
	strike func(t *testing.T, victim *container)
	kills  string // what ends at once by it: the container or its pod
}{
	"sentry hangs":         {func(t *testing.T, c *container) { c.pod.hang(t) }, ""},
	"sentry killed":        {func(t *testing.T, c *container) { c.pod.killSandbox(t) }, "pod"},
	"gofer killed":         {func(t *testing.T, c *container) { c.killGofer(t) }, "container"},
	"control socket gone":  {func(t *testing.T, c *container) { check(t, os.Remove(c.pod.controlSocket())) }, ""},
	"control socket mute":  {mute, ""},
	"control socket stale": {func(t *testing.T, c *container) { replaceSocket(t, c.pod).Close() }, ""},
}

func (p *pod) hang(t *testing.T) {
	t.Helper()
	for _, pid := range p.sandboxPIDs() {
		check(t, unix.Kill(pid, unix.SIGSTOP))
	}
}

func (p *pod) controlSocket() string { return p.path("s/runsc/runsc/runsc-" + p.id + ".sock") }

// replaceSocket puts a listener where the sandbox's control socket was.
func replaceSocket(t *testing.T, p *pod) *net.UnixListener {
	t.Helper()
	dir, err := os.Open(filepath.Dir(p.controlSocket())) // the path is too long for an address
	check(t, err)
	defer dir.Close()
	check(t, os.Remove(p.controlSocket()))
	l, err := net.ListenUnix("unix", &net.UnixAddr{
		Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(p.controlSocket())),
	})
	check(t, err)
	l.SetUnlinkOnClose(false)
	return l
}

// mute puts a listener that never answers in place of the sandbox.
func mute(t *testing.T, c *container) {
	t.Helper()
	l := replaceSocket(t, c.pod)
	t.Cleanup(func() { l.Close() })
}

func (c *container) killGofer(t *testing.T) {
	t.Helper()
	for _, line := range c.processes() {
		if strings.Contains(line, "runsc-gofer") && strings.Contains(line, c.id) {
			pid := 0
			_, _ = fmt.Sscan(line, &pid)
			check(t, kill(pid))
		}
	}
}

// TestSickSandbox strikes a sandbox in each way. Its pod can be stopped and
// removed, its container's end is told, and other pods do not notice.
func TestSickSandbox(t *testing.T) {
	for name, sickness := range sicknesses {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t, noNetwork)
			p, other := d.runPod(t), d.runPod(t)
			victim, second, well := p.run(t, forever), p.run(t, forever), other.run(t, forever)
			sickness.strike(t, victim)
			if sickness.kills != "" {
				if s := victim.ended(t); s.ExitCode != 137 || s.Reason != "Error" {
					t.Errorf("status: %v", s)
				}
			}
			if sickness.kills == "pod" {
				if s := second.ended(t); s.ExitCode != 137 || s.Reason != "Error" {
					t.Errorf("status: %v", s)
				}
				eventually(t, "the pod is not ready", func() error {
					if s := p.status(t); s.State == runtime.PodSandboxState_SANDBOX_READY {
						return fmt.Errorf("%v", s)
					}
					return nil
				})
			}
			begin := time.Now()
			check(t, d.pods.StopContainer(ctx(t), victim.id, 1))
			t.Logf("StopContainer took %v", time.Since(begin).Round(time.Millisecond))
			if s := victim.status(t); s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 || s.Reason != "Error" {
				t.Errorf("status: %v", s)
			}
			if sickness.kills == "container" {
				second.says(t, "echo fine", "fine\n")
			}
			well.says(t, "echo fine", "fine\n")
			begin = time.Now()
			check(t, d.pods.StopPodSandbox(ctx(t), p.id))
			check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
			t.Logf("StopPodSandbox and RemovePodSandbox took %v", time.Since(begin).Round(time.Millisecond))
			well.says(t, "echo fine", "fine\n")
		})
	}
}

// latencies are the times of a call, in order.
type latencies []time.Duration

func (l latencies) String() string {
	slices.Sort(l)
	at := func(percent int) time.Duration { return l[(len(l)-1)*percent/100].Round(10 * time.Microsecond) }
	return fmt.Sprintf("p50 %v, p99 %v", at(50), at(99))
}

// calls times calls on a pod, round after round.
func (c *container) calls(t *testing.T, rounds int) map[string]latencies {
	t.Helper()
	stopped := make([]*container, rounds/10)
	for i := range stopped {
		stopped[i] = c.pod.run(t, "sleep 1000")
	}
	took := map[string]latencies{}
	timed := func(name string, call func() error) {
		begin := time.Now()
		check(t, call())
		took[name] = append(took[name], time.Since(begin))
	}
	for i := range rounds {
		timed("Version", func() error { return errOf(c.pods.Version(ctx(t), "")) })
		timed("ListContainers", func() error { return errOf(c.pods.ListContainers(ctx(t), nil)) })
		timed("ContainerStatus", func() error { return errOf(c.pods.ContainerStatus(ctx(t), c.id, false)) })
		timed("ExecSync", func() error {
			return errOf(c.raw.ExecSync(ctx(t), &runtime.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}}))
		})
		if i < len(stopped) {
			timed("StopContainer", func() error { return c.pods.StopContainer(ctx(t), stopped[i].id, 0) })
		}
	}
	for _, s := range stopped {
		check(t, c.pods.RemoveContainer(ctx(t), s.id))
	}
	return took
}

// TestHealthyPodsBesideHungOnes times calls on one pod before and while others
// hang and calls on those are under way.
func TestHealthyPodsBesideHungOnes(t *testing.T) {
	d := newDaemon(t, noNetwork)
	well := d.runPod(t).run(t, forever)
	var sick []*container
	for range 3 {
		sick = append(sick, d.runPod(t).run(t, forever))
	}
	before := well.calls(t, 100)
	for _, c := range sick {
		c.pod.hang(t)
	}
	waiting, release := context.WithCancel(ctx(t))
	var g errgroup.Group
	for _, c := range sick {
		g.Go(func() error {
			_, err := d.raw.ExecSync(waiting, &runtime.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}})
			return err
		})
		g.Go(func() error {
			_, err := d.raw.StopContainer(waiting, &runtime.StopContainerRequest{ContainerId: c.id, Timeout: 3600})
			return err
		})
		g.Go(func() error {
			return errOf(d.raw.PodSandboxStats(waiting, &runtime.PodSandboxStatsRequest{PodSandboxId: c.pod.id}))
		})
	}
	during := well.calls(t, 100)
	release()
	_ = g.Wait() // each was cut off
	for _, name := range []string{"Version", "ListContainers", "ContainerStatus", "ExecSync", "StopContainer"} {
		t.Logf("%-15s before: %v; beside 3 hung pods: %v", name, before[name], during[name])
		slices.Sort(during[name])
		if p50 := during[name][len(during[name])/2]; p50 > 2*time.Second {
			t.Errorf("%s takes %v beside hung pods", name, p50)
		}
	}
	for _, c := range sick {
		check(t, d.pods.RemovePodSandbox(ctx(t), c.pod.id))
	}
}

// sickRunsc is a runsc whose subcommands hang or fail on demand.
type sickRunsc string

func newSickRunsc(t *testing.T) sickRunsc {
	t.Helper()
	dir := t.TempDir()
	script := fmt.Sprintf(`#!/bin/sh
for word; do
	[ -e %[1]s/hang-$word ] && exec sleep 3600
	[ -e %[1]s/fail-$word ] && { echo "runsc $word: no such luck" >&2; exit 128; }
done
exec %[2]s "$@"
`, dir, os.Getenv("RUNSCD_RUNSC"))
	check(t, os.WriteFile(filepath.Join(dir, "runsc"), []byte(script), 0o755))
	return sickRunsc(dir)
}

func (s sickRunsc) settings() string {
	return fmt.Sprintf("%s[runtime.handlers.sick]\npath = %q\n", noNetwork, filepath.Join(string(s), "runsc"))
}

// fault has a subcommand go wrong, by "hang" or "fail", until the result is called.
func (s sickRunsc) fault(t *testing.T, how, subcommand string) (end func()) {
	t.Helper()
	path := filepath.Join(string(s), how+"-"+subcommand)
	check(t, os.WriteFile(path, nil, 0o644))
	return func() { check(t, os.Remove(path)) }
}

// TestSickRunsc has each subcommand of runsc fail or hang: other pods do not
// notice, the pod can be stopped and removed meanwhile, and nothing stays.
func TestSickRunsc(t *testing.T) {
	for _, how := range []string{"fail", "hang"} {
		for _, subcommand := range []string{"create", "start", "run", "delete"} {
			t.Run(how+" "+subcommand, func(t *testing.T) {
				runsc := newSickRunsc(t)
				d := newDaemon(t, runsc.settings())
				well := d.runPod(t).run(t, forever)
				p := &pod{daemon: d, config: d.podConfig()}
				switch subcommand {
				case "create", "start":
					defer runsc.fault(t, how, subcommand)()
					short, cancel := context.WithTimeout(ctx(t), 3*time.Second)
					defer cancel()
					_, err := d.raw.RunPodSandbox(short, &runtime.RunPodSandboxRequest{Config: p.config, RuntimeHandler: "sick"})
					well.says(t, "echo fine", "fine\n")
					if how == "hang" {
						refused(t, err, codes.DeadlineExceeded)
						for _, line := range d.processes() { // as its deadline would
							if strings.Contains(line, "sleep 3600") {
								pid := 0
								_, _ = fmt.Sscan(line, &pid)
								check(t, kill(pid))
							}
						}
						return
					}
					refused(t, err, codes.Unknown, "sandbox", "exit status 128")
					return
				}
				var err error
				p.id, err = d.pods.RunPodSandbox(ctx(t), p.config, "sick")
				check(t, err)
				c := p.run(t, forever)
				created := p.create(t, forever)
				defer runsc.fault(t, how, subcommand)()
				started := make(chan error, 1)
				go func() {
					_, err := d.raw.StartContainer(ctx(t), &runtime.StartContainerRequest{ContainerId: created.id})
					started <- err
				}()
				if how == "fail" && subcommand == "run" {
					refused(t, <-started, codes.Unknown, "exit status 128")
				}
				well.says(t, "echo fine", "fine\n")
				begin := time.Now()
				check(t, d.pods.StopPodSandbox(ctx(t), p.id))
				check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
				took := time.Since(begin).Round(time.Millisecond)
				t.Logf("StopPodSandbox and RemovePodSandbox took %v", took)
				if took > patience {
					t.Errorf("that is too long")
				}
				check(t, unfound(d.pods.ContainerStatus(ctx(t), c.id, false)))
			})
		}
	}
}

// TestHangingRunscAtStart has the runsc of a handler hang when the daemon starts:
// that refuses the handler's pods and serves the others.
func TestHangingRunscAtStart(t *testing.T) {
	for _, subcommand := range []string{"--version", "create", "delete"} {
		t.Run(subcommand, func(t *testing.T) {
			runsc := newSickRunsc(t)
			d := newDaemon(t, runsc.settings())
			well := d.runPod(t).run(t, forever)
			d.stop(t, unix.SIGKILL)
			end := runsc.fault(t, "hang", subcommand)
			begin := time.Now()
			d.start(t)
			t.Logf("the daemon was ready after %v", time.Since(begin).Round(time.Millisecond))
			well.says(t, "echo fine", "fine\n")
			_, err := d.pods.RunPodSandbox(ctx(t), d.podConfig(), "sick")
			if subcommand != "delete" && (err == nil || !strings.Contains(err.Error(), "deadline exceeded")) {
				t.Errorf("pod of the handler that hangs: %v", err)
			}
			end()
			eventually(t, "nothing hangs any more", func() error {
				for _, line := range d.processes() {
					if pid := 0; strings.Contains(line, "sleep 3600") {
						_, _ = fmt.Sscan(line, &pid)
						return errors.Join(errors.New(line), kill(pid))
					}
				}
				return nil
			})
		})
	}
}

// TestSickAtStart has the daemon start while sandboxes are sick: it does not
// wait for them, and takes their containers for what they are.
func TestSickAtStart(t *testing.T) {
	for name, sickness := range sicknesses {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t, noNetwork)
			p, other := d.runPod(t), d.runPod(t)
			running, created, ended := p.run(t, forever), p.create(t, forever), p.run(t, "exit 7")
			well := other.run(t, forever)
			ended.ended(t)
			d.stop(t, unix.SIGKILL)
			sickness.strike(t, running)
			begin := time.Now()
			d.start(t)
			t.Logf("the daemon was ready after %v", time.Since(begin).Round(time.Millisecond))
			well.says(t, "echo fine", "fine\n")
			want := runtime.ContainerState_CONTAINER_RUNNING
			if sickness.kills != "" {
				want = runtime.ContainerState_CONTAINER_EXITED
				running.ended(t)
			}
			if s := running.status(t); s.State != want {
				t.Errorf("running container: %v", s)
			}
			if s := created.status(t); s.State != runtime.ContainerState_CONTAINER_CREATED {
				t.Errorf("created container: %v", s)
			}
			if s := ended.status(t); s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != 7 {
				t.Errorf("ended container: %v", s)
			}
			begin = time.Now()
			check(t, d.pods.StopPodSandbox(ctx(t), p.id))
			if s := running.status(t); s.State != runtime.ContainerState_CONTAINER_EXITED {
				t.Errorf("running container: %v", s)
			}
			check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
			t.Logf("StopPodSandbox and RemovePodSandbox took %v", time.Since(begin).Round(time.Millisecond))
		})
	}
}
