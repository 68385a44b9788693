package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/test/registry/loopback"
)

// trap is a script that ends with a code of its own at each of some signals,
// once it has said that it is ready.
func trap(signals map[string]int) string {
	var b strings.Builder
	for name, code := range signals {
		fmt.Fprintf(&b, "trap 'exit %d' %s; ", code, name)
	}
	return b.String() + "echo ready; while :; do sleep 1000 & wait; done"
}

func TestStop(t *testing.T) {
	config := loopback.Config()
	config.StopSignal = "SIGUSR2"
	img, err := loopback.Busybox(config)
	check(t, err)
	usr2, err := registry.Put("usr2:latest", img)
	check(t, err)
	signals := map[string]int{"TERM": 10, "USR1": 11, "USR2": 12, "QUIT": 13}
	ofImage := func(c *runtime.ContainerConfig) { c.Image = &runtime.ImageSpec{Image: usr2} }
	d := newDaemon(t, noNetwork)
	_, err = d.images.PullImage(ctx(t), &runtime.ImageSpec{Image: usr2}, nil, nil)
	check(t, err)
	d.layer = len(d.snapshots())
	p := d.runPod(t)
	for name, test := range map[string]struct {
		change  func(*runtime.ContainerConfig)
		timeout int64
		code    int32
	}{
		"default":   {func(*runtime.ContainerConfig) {}, 60, 10},
		"image":     {ofImage, 60, 12},
		"container": {func(c *runtime.ContainerConfig) { ofImage(c); c.StopSignal = runtime.Signal_SIGNAL_SIGQUIT }, 60, 13},
		"at once":   {ofImage, 0, 137},
		"ignored":   {func(c *runtime.ContainerConfig) { c.StopSignal = runtime.Signal_SIGNAL_SIGCONT }, 1, 137},
		"real-time": {func(c *runtime.ContainerConfig) { c.StopSignal = runtime.Signal_SIGNAL_SIGRTMINPLUS3 }, 60, 128 + 37},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := p.run(t, trap(signals), test.change)
			c.waitFor(t, "ready")
			check(t, d.pods.StopContainer(ctx(t), c.id, test.timeout))
			s := c.status(t)
			if s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != test.code || s.Reason != "Error" {
				t.Errorf("status: %v", s)
			}
		})
	}
}

// TestStopShortened has a second stop with a shorter timeout end a first.
func TestStopShortened(t *testing.T) {
	d := newDaemon(t, noNetwork)
	c := d.runPod(t).run(t, "trap '' TERM; echo ready; sleep 1000")
	c.waitFor(t, "ready")
	first := make(chan error, 1)
	go func() { first <- d.pods.StopContainer(ctx(t), c.id, 3600) }()
	check(t, d.pods.StopContainer(ctx(t), c.id, 0))
	check(t, <-first)
}

// TestStopGivenUp has the client go before the container does: it runs on.
func TestStopGivenUp(t *testing.T) {
	d := newDaemon(t, noNetwork)
	c := d.runPod(t).run(t, "trap 'echo term' TERM; echo ready; while :; do sleep 1000 & wait; done")
	c.waitFor(t, "ready")
	short, cancel := context.WithCancel(ctx(t))
	first := make(chan error, 1)
	go func() {
		_, err := d.raw.StopContainer(short, &runtime.StopContainerRequest{ContainerId: c.id, Timeout: 3600})
		first <- err
	}()
	c.waitFor(t, "term")
	cancel()
	if err := <-first; status.Code(err) != codes.Canceled {
		t.Errorf("stop: %v", err)
	}
	if s := c.status(t); s.State != runtime.ContainerState_CONTAINER_RUNNING {
		t.Errorf("status: %v", s)
	}
}

func TestExit(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	for script, want := range map[string]struct {
		code   int32
		reason string
	}{
		"exit 0":        {0, "Completed"},
		"exit 7":        {7, "Error"},
		"kill -9 $$":    {137, "Error"},
		"kill -SEGV $$": {139, "Error"},
	} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			if s := p.run(t, script).ended(t); s.ExitCode != want.code || s.Reason != want.reason || s.FinishedAt < s.StartedAt {
				t.Errorf("status: %v", s)
			}
		})
	}
}

// TestNoCommand starts what cannot be started; the pod is unharmed.
func TestNoCommand(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	before := p.run(t, forever)
	for name, command := range map[string][]string{
		"absolute":   {"/no/such"},
		"in PATH":    {"nosuch"},
		"no program": {"/etc/passwd"},
		"directory":  {"/etc"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := p.create(t, "", func(c *runtime.ContainerConfig) { c.Command = command })
			err := d.pods.StartContainer(ctx(t), c.id)
			if err == nil || !strings.Contains(err.Error(), command[0]) {
				t.Errorf("start: %v", err)
			}
			s := c.status(t)
			if s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != 128 || s.Reason != "StartError" ||
				!strings.Contains(s.Message, command[0]) || s.FinishedAt == 0 {
				t.Errorf("status: %v", s)
			}
			if err := d.pods.StartContainer(ctx(t), c.id); err == nil {
				t.Error("it can be started again")
			}
			check(t, d.pods.StopContainer(ctx(t), c.id, 10))
			check(t, d.pods.RemoveContainer(ctx(t), c.id))
		})
	}
	if out, code := before.exec(t, "echo fine"); out != "fine\n" || code != 0 {
		t.Errorf("exec in another container: %q, %d", out, code)
	}
	p.run(t, forever)
}

func TestExecSync(t *testing.T) {
	d := newDaemon(t, noNetwork)
	c := d.runPod(t).run(t, forever)
	call := func(timeout int64, command ...string) (*runtime.ExecSyncResponse, error) {
		return d.raw.ExecSync(ctx(t), &runtime.ExecSyncRequest{ContainerId: c.id, Cmd: command, Timeout: timeout})
	}
	r, err := call(0, "/bin/sh", "-c", "echo out; echo err >&2; exit 3")
	check(t, err)
	if string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || r.ExitCode != 3 {
		t.Errorf("response: %v", r)
	}
	r, err = call(0, "/bin/sh", "-c", "kill -9 $$")
	check(t, err)
	if r.ExitCode != 137 {
		t.Errorf("response: %v", r)
	}
	if _, err = call(0, "/no/such"); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("unknown command: %v", err)
	}
	// The children go with the command.
	if _, err = call(1, "/bin/sh", "-c", "sleep 4321; true"); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("timeout: %v", err)
	}
	eventually(t, "the command is killed", func() error {
		if out, _ := c.exec(t, "pgrep -f 'sleep 4321' || true"); strings.Count(out, "\n") > 1 { // finds itself
			return fmt.Errorf("it runs: %q", out)
		}
		return nil
	})
	// More than a message may hold is cut off.
	r, err = call(0, "/bin/sh", "-c", "dd if=/dev/zero bs=1M count=15; dd if=/dev/zero bs=1M count=15 >&2")
	check(t, err)
	if len(r.Stdout) != 15<<20 || len(r.Stderr) < 1<<19 {
		t.Errorf("%d and %d bytes", len(r.Stdout), len(r.Stderr))
	}
	// A child that keeps the output open does not hold up the answer.
	begin := time.Now()
	r, err = call(0, "/bin/sh", "-c", "sleep 3600 & echo done")
	check(t, err)
	if string(r.Stdout) != "done\n" || time.Since(begin) > patience {
		t.Errorf("response: %v", r)
	}
	check(t, d.pods.StopContainer(ctx(t), c.id, 30))
	if _, err = call(0, "true"); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("exec in a stopped container: %v", err)
	}
}
