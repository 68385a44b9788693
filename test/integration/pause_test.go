package integration

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cli runs a command of runscd for the daemon's settings.
func (d *daemon) cli(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.command(t, args...)
	if err != nil {
		t.Fatalf("runscd %q: %v: %s", args, err, out)
	}
	return out
}

// TestPause has a pod stand still over a restart of the daemon.
func TestPause(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	c := p.run(t, counting)
	c.waitFor(t, "3\n")
	d.cli(t, "pause", p.config.Metadata.Name)
	d.cli(t, "pause", p.id) // it is, already
	still := c.output(t)
	_, err := d.raw.CheckpointPod(soon(t), saveRequest(p, t.TempDir(), nil, c))
	denied(t, err, codes.FailedPrecondition, "paused")
	refuses := func() {
		t.Helper()
		_, err := d.raw.ExecSync(ctx(t), &runtime.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}})
		denied(t, err, codes.FailedPrecondition, "paused")
	}
	refuses()
	_, err = d.pods.PodSandboxStats(ctx(t), p.id)
	check(t, err)
	d.stop(t, unix.SIGKILL)
	d.start(t)
	if s := c.status(t); s.State != runtime.ContainerState_CONTAINER_RUNNING {
		t.Errorf("container: %v", s)
	}
	refuses()
	if out := c.output(t); out != still {
		t.Errorf("it went on: %q after %q", out, still)
	}
	d.cli(t, "resume", p.id)
	d.cli(t, "resume", p.id) // it does, already
	c.waitFor(t, fmt.Sprintf("%d\n", strings.Count(still, "\n")+20))
	p.save(t, nil, c)
}

// TestPausedPodEnds has paused pods stopped in all ways.
func TestPausedPodEnds(t *testing.T) {
	d := newDaemon(t, noNetwork)
	for name, end := range map[string]func(p *pod, c *container) error{
		"container": func(_ *pod, c *container) error { return d.pods.StopContainer(ctx(t), c.id, 1) },
		"pod":       func(p *pod, _ *container) error { return d.pods.StopPodSandbox(ctx(t), p.id) },
		"removed":   func(p *pod, _ *container) error { return d.pods.RemovePodSandbox(ctx(t), p.id) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := d.runPod(t)
			c := p.run(t, forever)
			d.cli(t, "pause", p.id)
			check(t, end(p, c))
			if name != "removed" && c.status(t).State != runtime.ContainerState_CONTAINER_EXITED {
				t.Errorf("container: %v", c.status(t))
			}
		})
	}
}

// TestCheckpointCommands saves, restores and clones a pod by the commands.
func TestCheckpointCommands(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	c := p.run(t, counting)
	c.waitFor(t, "20\n")
	dir := t.TempDir() + "/saved"
	if out := d.cli(t, "checkpoint", p.config.Metadata.Name, dir); !strings.Contains(out, "paused for") {
		t.Errorf("checkpoint: %q", out)
	}
	rows := d.cli(t, "restore", "--name", "again", dir) + d.cli(t, "clone", "-n", "2", p.id)
	list, err := d.pods.ListContainers(ctx(t), nil)
	check(t, err)
	if strings.Count(rows, "\n") != 3 || len(list) != 4 {
		t.Errorf("made %q, there are %d containers", rows, len(list))
	}
	for _, copied := range list {
		if copied.State != runtime.ContainerState_CONTAINER_RUNNING {
			t.Errorf("container: %v", copied)
		}
		if n := (&container{pod: p, id: copied.Id}).count(t); n < 20 {
			t.Errorf("it counts %d", n)
		}
	}
}
