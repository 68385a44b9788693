package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestRestart ends the daemon, one way and the other, while pods run.
func TestRestart(t *testing.T) {
	for _, sig := range []syscall.Signal{unix.SIGKILL, unix.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			d := newDaemon(t, "")
			d.addNetwork(t)
			p, dead := d.runPod(t), d.runPod(t)
			idle, writer := p.run(t, forever), p.run(t, counter)
			shared := t.TempDir()
			exiting := p.run(t, "until [ -e /shared/go ]; do sleep 0.1; done; exit 7", share(shared))
			created, victim := p.create(t, "exit 9"), dead.run(t, forever)
			before := p.status(t)
			eventually(t, "the container writes", func() error { return larger(writer.logPath(), 4096) })

			d.stop(t, sig)
			if sig == unix.SIGTERM && !d.cmd.ProcessState.Success() {
				t.Errorf("daemon: %v", d.cmd.ProcessState)
			}
			dead.killSandbox(t)
			check(t, os.WriteFile(filepath.Join(shared, "go"), nil, 0o644))
			check(t, exec.Command(os.Getenv("RUNSCD_RUNSC"), "--root", d.path("s/runsc/runsc"), "wait", exiting.id).Run())
			d.start(t)

			after := p.status(t)
			if after.State != runtime.PodSandboxState_SANDBOX_READY || after.CreatedAt != before.CreatedAt || after.Network.GetIp() != before.Network.GetIp() || len(after.Network.AdditionalIps) != 1 {
				t.Errorf("sandbox: %v, was %v", after, before)
			}
			if s := exiting.ended(t); s.ExitCode != 7 || s.Reason != "Error" {
				t.Errorf("container that ended meanwhile: %v", s)
			}
			if s := victim.ended(t); s.ExitCode != 137 || dead.status(t).State != runtime.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("container of a sandbox that died meanwhile: %v", s)
			}
			if out, code := idle.exec(t, "echo alive; exit 4"); out != "alive\n" || code != 4 {
				t.Errorf("exec: %q, %d", out, code)
			}
			if s := created.status(t); s.State != runtime.ContainerState_CONTAINER_CREATED {
				t.Errorf("created container: %v", s)
			}
			check(t, d.pods.StartContainer(ctx(t), created.id))
			if s := created.ended(t); s.ExitCode != 9 {
				t.Errorf("created container: %v", s)
			}
			writer.exec(t, "touch /stop")
			writer.ended(t)
			inOrder(t, writer)
			check(t, d.pods.StopContainer(ctx(t), idle.id, 30))
			if s := idle.status(t); s.ExitCode != 3 {
				t.Errorf("stopped container: %v", s)
			}
		})
	}
}

// TestBegunLine has a line of output that is begun under one daemon and ended
// under the next.
func TestBegunLine(t *testing.T) {
	d := newDaemon(t, noNetwork)
	shared := t.TempDir()
	c := d.runPod(t).run(t, "printf begun; touch /shared/begun; until [ -e /shared/go ]; do sleep 0.1; done; echo ' ended'", share(shared))
	eventually(t, "the line is begun", func() error { return larger(filepath.Join(shared, "begun"), 0) })
	d.stop(t, unix.SIGTERM)
	d.start(t)
	check(t, os.WriteFile(filepath.Join(shared, "go"), nil, 0o644))
	c.ended(t)
	if out := c.output(t); out != "begun ended\n" {
		t.Errorf("output %q", out)
	}
}

// share mounts a directory of the host as /shared.
func share(dir string) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) {
		c.Mounts = []*runtime.Mount{{HostPath: dir, ContainerPath: "/shared"}}
	}
}

func larger(path string, size int64) error {
	if s, err := os.Stat(path); err != nil || s.Size() < size {
		return fmt.Errorf("%v, %w", s, err)
	}
	return nil
}

// inOrder checks the log of a counter: whole lines in order to the last, and returns
// how many.
func inOrder(t *testing.T, c *container) int {
	t.Helper()
	log := readLog(t, c.logPath())
	for i, l := range log {
		want := fmt.Sprint(i)
		if i == len(log)-1 {
			want += " last"
		}
		if l.contents != want || l.tag != "F" {
			t.Fatalf("line %v, want %q", l, want)
		}
	}
	return len(log)
}

// TestLinesOfAKilledDaemon kills the daemon again and again while containers write.
func TestLinesOfAKilledDaemon(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	slow, fast := p.run(t, counter), p.run(t, flood)
	for range 5 {
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
		d.stop(t, unix.SIGKILL)
		d.start(t)
	}
	for _, c := range []*container{slow, fast} {
		c.exec(t, "touch /stop")
		c.ended(t)
		lines := inOrder(t, c) // to the number in the last one
		t.Logf("%d lines written, %d kept", lines, lines)
	}
}

// flood is counter as fast as the container can.
const flood = "i=0; while ! [ -e /stop ]; do seq $i $((i+499)); i=$((i+500)); done; echo $i last"

// TestRestartInCreation ends the daemon while it makes a pod: at the next start
// nothing is there of it.
func TestRestartInCreation(t *testing.T) {
	for _, sig := range []syscall.Signal{unix.SIGKILL, unix.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			d := newDaemon(t, "")
			d.addNetwork(t)
			release := d.stall(t)
			failed := make(chan error, 1)
			raw, config := d.raw, d.podConfig()
			go func() { failed <- errOf(raw.RunPodSandbox(ctx(t), &runtime.RunPodSandboxRequest{Config: config})) }()
			eventually(t, "the network is being made", func() error { return larger(d.path("stalled"), 0) })
			d.stop(t, sig)
			if err := <-failed; err == nil {
				t.Error("RunPodSandbox succeeded")
			}
			release()
			eventually(t, "the plugin ends", func() error { return noProcess(d, "bin/stall") })
			if sig == unix.SIGKILL && len(names(d.path("l/pods"))) != 1 {
				t.Error("no record of the pod")
			}
			d.start(t)
			if pods, err := d.pods.ListPodSandbox(ctx(t), nil); err != nil || len(pods) != 0 {
				t.Errorf("pods: %v, %v", pods, err)
			}
			check(t, d.leftovers(t))
			_, err := d.pods.RunPodSandbox(ctx(t), config, "")
			check(t, err)
		})
	}
}

// stall adds a plugin to the network that waits until release is called, and
// makes the file stalled while it does.
func (d *daemon) stall(t *testing.T) (release func()) {
	t.Helper()
	check(t, os.Mkdir(d.path("bin"), 0o755))
	d.write(t, "gate", "")
	d.write(t, "bin/stall", fmt.Sprintf(`#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}' ;;
ADD)
	input=$(cat)
	: >%s
	while [ -e %s ]; do sleep 0.05; done
	echo "$input" | sed 's/.*"prevResult":\(.*\),"type":.*/\1/' ;;
esac
`, d.path("stalled"), d.path("gate")))
	check(t, os.Chmod(d.path("bin/stall"), 0o755))
	conf, err := os.ReadFile(d.path("cni/10.conflist"))
	check(t, err)
	d.write(t, "cni/10.conflist", strings.Replace(string(conf), `"type": "portmap"`, `"type": "stall"`, 1))
	d.write(t, "conf.toml.d/20.toml", fmt.Sprintf("network = {bin_dirs = ['/usr/lib/cni', %q]}\n", d.path("bin")))
	d.stop(t, unix.SIGTERM)
	d.start(t)
	return func() { check(t, os.Remove(d.path("gate"))) }
}

// noProcess is an error while a process of the daemon's has a word in its
// command line.
func noProcess(d *daemon, word string) error {
	for _, line := range d.processes() {
		if strings.Contains(line, word) {
			return errors.New(line)
		}
	}
	return nil
}

// TestKilledAnywhere kills the daemon at some points of a pod's life; whatever
// it was doing, the next one can remove it all.
func TestKilledAnywhere(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	check(t, os.MkdirAll(d.podConfig().LogDirectory, 0o755))
	for i := range 10 {
		p := &pod{daemon: d, config: d.podConfig()}
		done := make(chan error, 1)
		old := *d // with the clients of the daemon that dies
		p.daemon = &old
		go func() { done <- p.upAndDown(ctx(t)) }()
		time.Sleep(time.Duration(i) * 40 * time.Millisecond)
		d.stop(t, unix.SIGKILL)
		<-done
		d.start(t)
		pods, err := d.pods.ListPodSandbox(ctx(t), nil)
		check(t, err)
		for _, p := range pods {
			check(t, d.pods.RemovePodSandbox(ctx(t), p.Id))
		}
		eventually(t, "nothing is left behind", func() error { return d.leftovers(t) })
	}
}
