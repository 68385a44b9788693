package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/test/registry/loopback"
)

// lives are what a kubelet asks of a daemon, and the settings of that.
var lives = map[string]struct {
	live     func(*kubelet)
	settings string
}{
	"pod": {(*kubelet).podLife, ""},
	// The handler's check, which fails then, is most of the daemon's start.
	"image": {(*kubelet).imageLife, noNetwork + "runtime = {path = '/bin/true'}\n"},
}

// TestKilledAtEveryStep kills the daemon at each step of what a kubelet asks of it,
// and starts it again. The kubelet repeats the call that was cut off and goes on;
// in the end nothing is left of it all.
func TestKilledAtEveryStep(t *testing.T) { faultAtEveryStep(t, killedAt, 1) }

// TestRefusedAtEveryStep has the disk have no room at a step of what a kubelet asks,
// and have room again when the kubelet repeats the call that was refused. Each fifth
// step is tried in all tests, each in `make soak`.
func TestRefusedAtEveryStep(t *testing.T) {
	every := int32(5)
	if os.Getenv("RUNSCD_TEST_LIVES") != "" {
		every = 1
	}
	faultAtEveryStep(t, refusedAt, every)
}

func faultAtEveryStep(t *testing.T, fault string, every int32) {
	for name, life := range lives {
		t.Run(name, func(t *testing.T) {
			var next, survived atomic.Int32
			begin := time.Now()
			t.Run("daemons", func(t *testing.T) {
				for range 2 {
					t.Run("", func(t *testing.T) {
						k := newKubelet(t, life.settings)
						for k.live(life.live, fault, int(next.Add(every))) {
							survived.Add(1)
						}
					})
				}
			})
			// The last one of each daemon was beyond the end of the life.
			t.Logf("steps of the life of a %s: tried %d, survived %d, leaks found: 0; in %.0f s", name, next.Load()/every-2, survived.Load(), time.Since(begin).Seconds())
		})
	}
}

// kubelet asks things of a daemon that has one fault, and repeats them.
type kubelet struct {
	*daemon
	t     *testing.T
	trace *tracer
	steps []string // the names of those before the death
	blobs int      // what images have in the content store
}

func newKubelet(t *testing.T, settings string) *kubelet {
	d := newDaemon(t, settings)
	d.addNetwork(t)
	check(t, os.MkdirAll(d.path("logs"), 0o755))
	return &kubelet{daemon: d, t: t, blobs: d.blobs()}
}

// live lives a life with a daemon that has a fault at its n-th step, and tells whether
// it had so many.
func (k *kubelet) live(life func(*kubelet), fault string, n int) (faulted bool) {
	k.trace = k.daemon.trace(k.t, fault, n)
	defer func() {
		if k.t.Failed() {
			k.t.Logf("%s at step %d, the last of %q", fault, n, k.steps)
		}
	}()
	life(k)
	eventually(k.t, "nothing is left behind", func() error { // what nobody waits for is of the life too
		k.restarted()
		return k.nothing()
	})
	if k.trace != nil {
		k.steps = k.trace.end(k.t, true)
		k.trace = nil
	}
	return len(k.steps) >= n
}

// nothing is an error while anything is left of a life.
func (k *kubelet) nothing() error {
	if n := k.daemon.blobs(); n != k.blobs {
		return fmt.Errorf("%d blobs, before there were %d", n, k.blobs)
	}
	return k.leftovers(k.t)
}

// restarted starts the daemon when it has died of a step.
func (k *kubelet) restarted() bool {
	if k.trace == nil {
		return false
	}
	select {
	case <-k.exited:
	case <-time.After(10 * time.Millisecond):
		return false
	}
	k.steps = k.trace.end(k.t, false)
	k.trace = nil
	k.disconnect(k.t)
	k.start(k.t)
	return true
}

// try makes a call, twice if the daemon dies meanwhile or the disk refuses something.
func (k *kubelet) try(call func() error) {
	k.t.Helper()
	err := call()
	if err != nil && strings.Contains(err.Error(), unix.ENOSPC.Error()) {
		err = call()
	}
	for end := time.Now().Add(patience); status.Code(err) == codes.Unavailable && time.Now().Before(end); {
		if k.restarted() {
			err = call()
			break
		}
	}
	check(k.t, err)
}

func (k *kubelet) podLife() {
	t := k.t
	p := &pod{daemon: k.daemon, config: k.podConfig()}
	k.try(func() (err error) {
		p.id, err = k.pods.RunPodSandbox(ctx(t), p.config, "")
		return err
	})
	c := &container{pod: p, config: p.containerConfig("echo begun; " + forever)}
	k.try(func() (err error) {
		c.id, err = k.pods.CreateContainer(ctx(t), p.id, c.config, p.config)
		return err
	})
	k.try(func() error {
		err := k.pods.StartContainer(ctx(t), c.id)
		if status.Code(err) != codes.FailedPrecondition {
			return err
		}
		switch s := c.status(t); s.State {
		case runtime.ContainerState_CONTAINER_RUNNING: // the daemon died when it had started it
			return nil
		case runtime.ContainerState_CONTAINER_EXITED: // the disk refused something, so there is to be another
			c.config.Metadata.Attempt++
			if c.id, err = k.pods.CreateContainer(ctx(t), p.id, c.config, p.config); err == nil {
				err = k.pods.StartContainer(ctx(t), c.id)
			}
		}
		return err
	})
	k.try(func() error {
		out, _, err := k.pods.ExecSync(ctx(t), c.id, []string{"hostname"}, 0)
		if err == nil && string(out) != p.config.Hostname+"\n" {
			t.Errorf("exec: %q", out)
		}
		return err
	})
	k.try(func() error { return k.pods.StopContainer(ctx(t), c.id, 0) })
	k.try(func() error {
		s, err := k.pods.ContainerStatus(ctx(t), c.id, false)
		if err == nil && s.Status.ExitCode != 137 {
			t.Errorf("status: %v", s.Status)
		}
		return err
	})
	k.try(func() error { return k.pods.RemoveContainer(ctx(t), c.id) })
	k.try(func() error { return k.pods.StopPodSandbox(ctx(t), p.id) })
	k.try(func() error { return k.pods.RemovePodSandbox(ctx(t), p.id) })
	k.try(func() error {
		pods, err := k.pods.ListPodSandbox(ctx(t), nil)
		if err == nil && len(pods) != 0 {
			t.Errorf("pods: %v", pods)
		}
		return err
	})
	k.try(func() error {
		containers, err := k.pods.ListContainers(ctx(t), nil)
		if err == nil && len(containers) != 0 {
			t.Errorf("containers: %v", containers)
		}
		return err
	})
}

func (k *kubelet) imageLife() {
	t := k.t
	n := fmt.Sprint(serial.Add(1)) // so that nothing of it has been there before
	lower, err := loopback.Layer(false, loopback.Dir("dir", 0o755), loopback.File("dir/file", 0o644, []byte(n)))
	check(t, err)
	upper, err := loopback.Layer(true, loopback.Link("link", n))
	check(t, err)
	img, err := loopback.Image(v1.Config{}, lower, upper)
	check(t, err)
	ref, err := registry.Put("steps:"+n, img)
	check(t, err)
	spec := &runtime.ImageSpec{Image: ref}
	id := ""
	k.try(func() (err error) {
		id, err = k.images.PullImage(ctx(t), spec, nil, nil)
		return err
	})
	k.try(func() error {
		resp, err := k.images.ImageStatus(ctx(t), spec, false)
		if err == nil && resp.Image.GetId() != id {
			t.Errorf("image: %v, pulled was %s", resp.Image, id)
		}
		return err
	})
	k.try(func() error { return k.images.RemoveImage(ctx(t), spec) })
}

// blobs counts what the content store has, downloads included.
func (d *daemon) blobs() int {
	return len(names(d.path("l/images/content/blobs/sha256"))) + len(names(d.path("l/images/content/ingest")))
}

// TestKilledWhileRecovering kills the daemon at an early step of its start, then at a
// later one, and so on until it comes to the end: what it has to undo it undoes bit by
// bit.
func TestKilledWhileRecovering(t *testing.T) {
	k := newKubelet(t, "")
	well := k.runPod(t).run(t, forever)
	dead, stray, half := k.runPod(t), k.runPod(t), k.runPod(t)
	for _, p := range []*pod{dead, stray, half} {
		p.run(t, forever)
		p.create(t, forever)
	}
	k.daemon.stop(t, unix.SIGKILL)
	dead.killSandbox(t)
	check(t, os.Remove(stray.recordPath()))
	record, err := os.ReadFile(half.recordPath())
	check(t, err)
	check(t, os.WriteFile(half.recordPath(), bytes.Replace(record, []byte(`"created_at"`), []byte(`"made_at"`), 1), 0o600))

	starts := 0
	for k.diesAtStart(1 + 3*starts) {
		starts++
	}
	t.Logf("the daemon was killed %d times while it recovered", starts)
	k.start(t)
	well.says(t, "echo fine", "fine\n")
	pods, err := k.pods.ListPodSandbox(ctx(t), nil)
	check(t, err)
	if len(pods) != 2 || dead.status(t).State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("pods: %v", pods)
	}
	if got := k.addresses(); len(got) != 2 {
		t.Errorf("leases: %q", got)
	}
}

func (p *pod) recordPath() string { return p.path("l/pods/" + p.id + ".json") }

// diesAtStart starts the daemon, kills it at the n-th step, and tells whether it had
// so many before it served.
func (k *kubelet) diesAtStart(n int) bool {
	t := k.t
	cmd := exec.Command("/bin/sh", "-c", `kill -STOP $$; exec "$0" "$@"`, runscd, "serve", "--config", k.path("conf.toml"))
	log, err := os.Create(k.path("start.log"))
	check(t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), noSleep)
	check(t, cmd.Start())
	eventually(t, "the process stops", func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if err == nil && !strings.Contains(string(stat), ") T ") {
			err = errors.New(string(stat))
		}
		return err
	})
	_ = os.Remove(k.path("s/runscd.sock"))
	k.cmd, k.exited = cmd, make(chan struct{})
	trace := k.daemon.trace(t, killedAt, n)
	go func(exited chan struct{}) {
		_ = cmd.Wait()
		close(exited)
	}(k.exited)
	died := true
	eventually(t, "the daemon dies or serves", func() error {
		select {
		case <-k.exited:
			return nil
		default:
		}
		said, err := os.ReadFile(log.Name())
		if died = !strings.Contains(string(said), "msg=serving"); died && err == nil {
			err = errors.New(string(said))
		}
		return err
	})
	if !died {
		trace.end(t, true)
		check(t, cmd.Process.Kill())
		<-k.exited
		return false
	}
	trace.end(t, false)
	return true
}
