package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/test/isolate"
)

// waiting is a client that waits for a daemon when there is none.
func (d *daemon) waiting(t *testing.T) runtime.RuntimeServiceClient {
	t.Helper()
	again := backoff.Config{BaseDelay: time.Millisecond, MaxDelay: time.Millisecond, Multiplier: 1}
	conn, err := grpc.NewClient("unix://"+d.path("s/runscd.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: again, MinConnectTimeout: time.Second}), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	return runtime.NewRuntimeServiceClient(conn)
}

// TestKilledUnderLoad kills the daemon again and again while pods come up and go down,
// commands run in them and a container writes as fast as it can. Every client repeats
// what was cut off, and gets it.
func TestKilledUnderLoad(t *testing.T) {
	const clients, kills = 3, 5
	d := newDaemon(t, "")
	d.addNetwork(t)
	p := d.runPod(t)
	idle, writer := p.run(t, forever), p.run(t, flood)
	client := d.waiting(t)
	var over atomic.Bool
	var lives, repeated atomic.Int32
	var g errgroup.Group
	for range clients {
		g.Go(func() error {
			for !over.Load() {
				if err := d.liveOn(t, client, &repeated); err != nil {
					over.Store(true)
					return err
				}
				lives.Add(1)
			}
			return nil
		})
	}
	for range kills {
		time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
		d.stop(t, unix.SIGKILL)
		d.start(t)
	}
	over.Store(true)
	check(t, g.Wait())
	idle.says(t, "echo alive", "alive\n")
	writer.exec(t, "touch /stop")
	writer.ended(t)
	lines := inOrder(t, writer)
	check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
	t.Logf("%d kills in %d lives of pods, %d calls repeated; %d lines written, %d kept",
		kills, lives.Load(), repeated.Load(), lines, lines)
}

// liveOn is the life of a pod for a client that repeats a call that was cut off.
func (d *daemon) liveOn(t *testing.T, client runtime.RuntimeServiceClient, repeated *atomic.Int32) error {
	p := &pod{daemon: d, config: d.podConfig()}
	c := &container{pod: p, config: p.containerConfig(forever)}
	for i, step := range []func() error{
		func() error {
			resp, err := client.RunPodSandbox(ctx(t), &runtime.RunPodSandboxRequest{Config: p.config})
			p.id = resp.GetPodSandboxId()
			return err
		},
		func() error {
			resp, err := client.CreateContainer(ctx(t), &runtime.CreateContainerRequest{PodSandboxId: p.id, Config: c.config, SandboxConfig: p.config})
			c.id = resp.GetContainerId()
			return err
		},
		func() error {
			_, err := client.StartContainer(ctx(t), &runtime.StartContainerRequest{ContainerId: c.id})
			if status.Code(err) == codes.FailedPrecondition { // the daemon died when it had started it
				return stateIs(t, client, c.id, runtime.ContainerState_CONTAINER_RUNNING, 0)
			}
			return err
		},
		func() error {
			resp, err := client.ExecSync(ctx(t), &runtime.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"hostname"}})
			if err == nil && string(resp.Stdout) != p.config.Hostname+"\n" {
				err = fmt.Errorf("exec: %v", resp)
			}
			return err
		},
		func() error {
			return errOf(client.StopContainer(ctx(t), &runtime.StopContainerRequest{ContainerId: c.id}))
		},
		func() error { return stateIs(t, client, c.id, runtime.ContainerState_CONTAINER_EXITED, 137) },
		func() error {
			return errOf(client.StopPodSandbox(ctx(t), &runtime.StopPodSandboxRequest{PodSandboxId: p.id}))
		},
		func() error {
			return errOf(client.RemovePodSandbox(ctx(t), &runtime.RemovePodSandboxRequest{PodSandboxId: p.id}))
		},
	} {
		err := step()
		for end := time.Now().Add(patience); status.Code(err) == codes.Unavailable && time.Now().Before(end); err = step() {
			repeated.Add(1)
		}
		if err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

// stateIs is an error if a container is not in a state.
func stateIs(t *testing.T, client runtime.RuntimeServiceClient, id string, state runtime.ContainerState, code int32) error {
	resp, err := client.ContainerStatus(ctx(t), &runtime.ContainerStatusRequest{ContainerId: id})
	if err == nil && (resp.Status.State != state || resp.Status.ExitCode != code) {
		err = fmt.Errorf("status: %v", resp.Status)
	}
	return err
}

// reboot takes from the host what a reboot does: processes, mounts, cgroups and all
// that is in memory. There is no daemon then.
func (d *daemon) reboot(t *testing.T) {
	t.Helper()
	eventually(t, "all processes end", func() error {
		left := d.processes()
		for _, line := range left {
			pid := 0
			_, _ = fmt.Sscan(line, &pid)
			_ = kill(pid)
		}
		if len(left) > 0 {
			return fmt.Errorf("%q", left)
		}
		return nil
	})
	check(t, isolate.UnmountBelow(d.dir))
	check(t, os.RemoveAll(d.path("s")))
	eventually(t, "the cgroups go", func() error { // which dead processes leave a little later
		removeCgroup(d.cgroup)
		if left := cgroupsBelow(d.cgroup); len(left) > 0 {
			return fmt.Errorf("%q", left)
		}
		return nil
	})
	check(t, makeCgroup(d.cgroup))
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	check(t, err)
	for _, name := range names(d.path("l/pods")) {
		path := d.path("l/pods/" + name)
		record, err := os.ReadFile(path)
		check(t, err)
		old := replaced(string(boot[:len(boot)-1]), "of-the-boot-before")(record)
		check(t, os.WriteFile(path, old, 0o600))
	}
}

// TestReboot has the daemon start after a reboot: what ran is told to have ended, its
// addresses are given back, and a pod of the same name takes its place.
func TestReboot(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	p := d.runPod(t)
	running, created, done := p.run(t, forever), p.create(t, forever), p.run(t, "exit 7")
	done.ended(t)
	d.stop(t, unix.SIGKILL)
	d.reboot(t)
	d.start(t)
	if s := p.status(t); s.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("sandbox: %v", s)
	}
	if s := running.ended(t); s.ExitCode != 137 || s.Reason != "Error" || s.StartedAt == 0 || s.FinishedAt < s.StartedAt {
		t.Errorf("container that ran: %v", s)
	}
	if s := done.ended(t); s.ExitCode != 7 {
		t.Errorf("container that had ended: %v", s)
	}
	if s := created.status(t); s.State == runtime.ContainerState_CONTAINER_RUNNING {
		t.Errorf("container that had not been started: %v", s)
	}
	if left := d.addresses(); len(left) > 0 {
		t.Errorf("leases: %q", left)
	}
	again := d.runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Metadata.Name, c.Metadata.Namespace, c.Metadata.Uid = p.config.Metadata.Name, p.config.Metadata.Namespace, p.config.Metadata.Uid
		c.Metadata.Attempt = 1
	})
	again.run(t, forever).says(t, "echo again", "again\n")
	check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
}
