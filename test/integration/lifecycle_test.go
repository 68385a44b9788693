package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPod is the whole life of a pod with all that the kubelet reads of it.
func TestPod(t *testing.T) {
	d := newDaemon(t, noNetwork)
	begin := time.Now().UnixNano()
	p := d.runPod(t)
	pod := p.status(t)
	if pod.State != runtime.PodSandboxState_SANDBOX_READY {
		t.Errorf("state of the sandbox: %v", pod.State)
	}

	c := p.create(t, "cat /proc/version; echo oops >&2; "+forever)
	s := c.status(t)
	if s.State != runtime.ContainerState_CONTAINER_CREATED || s.StartedAt != 0 || s.FinishedAt != 0 {
		t.Errorf("status of a created container: %v", s)
	}
	check(t, d.pods.StartContainer(ctx(t), c.id))
	c.waitFor(t, "oops\n")
	if s = c.status(t); s.State != runtime.ContainerState_CONTAINER_RUNNING || s.StartedAt < s.CreatedAt || s.CreatedAt < begin || s.FinishedAt != 0 {
		t.Errorf("status of a running container: %v", s)
	}
	if out, code := c.exec(t, "cat /proc/version; echo err >&2; exit 42"); code != 42 || !strings.Contains(out, "gvisor") || !strings.HasSuffix(out, "err\n") {
		t.Errorf("exec: code %d, output %q", code, out)
	}

	check(t, d.pods.StopContainer(ctx(t), c.id, 30))
	s = c.status(t)
	if s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != 3 || s.Reason != "Error" || s.FinishedAt < s.StartedAt {
		t.Errorf("status of a stopped container: %v", s)
	}
	for _, l := range readLog(t, c.logPath()) {
		if l.tag != "F" || l.at.UnixNano() < begin || (l.stream == "stderr") != (l.contents == "oops") || !strings.HasPrefix(l.contents, "Linux version") && l.contents != "oops" {
			t.Errorf("log line %v", l)
		}
	}
	check(t, d.pods.RemoveContainer(ctx(t), c.id))
	check(t, d.pods.StopPodSandbox(ctx(t), p.id))
	if pod := p.status(t); pod.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("state of the stopped sandbox: %v", pod.State)
	}
	check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
	if err := unfound(d.pods.PodSandboxStatus(ctx(t), p.id, false)); err != nil {
		t.Error(err)
	}
}

// TestStatus has everything in the statuses that the kubelet looks at.
func TestStatus(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	p := d.runPod(t)
	resp, err := d.pods.PodSandboxStatus(ctx(t), p.id, true)
	check(t, err)
	s := resp.Status
	if s.Id != p.id || !proto.Equal(s.Metadata, p.config.Metadata) || s.CreatedAt == 0 || s.Network.GetIp() == "" || len(s.Network.AdditionalIps) != 1 {
		t.Errorf("status of the sandbox: %v", s)
	}
	if want := p.config.Linux.SecurityContext.NamespaceOptions; !proto.Equal(s.GetLinux().GetNamespaces().GetOptions(), want) {
		t.Errorf("namespaces %v, want %v", s.GetLinux().GetNamespaces().GetOptions(), want)
	}
	same(t, "labels", s.Labels, p.config.Labels)
	same(t, "annotations", s.Annotations, p.config.Annotations)
	isJSON(t, resp.Info)
	if resp.Timestamp == 0 || len(resp.ContainersStatuses) != 0 {
		t.Errorf("timestamp %d, containers %v", resp.Timestamp, resp.ContainersStatuses)
	}

	host := t.TempDir()
	c := p.run(t, forever, func(c *runtime.ContainerConfig) {
		c.Annotations = map[string]string{"io.kubernetes.container.restartCount": "0"}
		c.Mounts = []*runtime.Mount{{ContainerPath: "/dev/termination-log", HostPath: host}}
		c.StopSignal = runtime.Signal_SIGNAL_SIGUSR1
		c.Linux.Resources = &runtime.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000, MemoryLimitInBytes: 128 << 20}
	})
	image, err := d.images.ImageStatus(ctx(t), &runtime.ImageSpec{Image: busybox}, false)
	check(t, err)
	verbose, err := d.pods.ContainerStatus(ctx(t), c.id, true)
	check(t, err)
	isJSON(t, verbose.Info)
	cs := verbose.Status
	if cs.Id != c.id || !proto.Equal(cs.Metadata, c.config.Metadata) || cs.Image.GetImage() != busybox || cs.ImageId != image.Image.Id || !strings.Contains(cs.ImageRef, "@sha256:") {
		t.Errorf("status: %v", cs)
	}
	same(t, "labels", cs.Labels, c.config.Labels)
	same(t, "annotations", cs.Annotations, c.config.Annotations)
	if cs.LogPath != c.logPath() || !filepath.IsAbs(cs.LogPath) || cs.StopSignal != runtime.Signal_SIGNAL_SIGUSR1 {
		t.Errorf("log path %q, stop signal %v", cs.LogPath, cs.StopSignal)
	}
	if len(cs.Mounts) != 1 || !proto.Equal(cs.Mounts[0], c.config.Mounts[0]) {
		t.Errorf("mounts: %v", cs.Mounts)
	}
	if !proto.Equal(cs.GetResources().GetLinux(), c.config.Linux.Resources) {
		t.Errorf("resources: %v", cs.Resources)
	}
	if u := cs.GetUser().GetLinux(); u == nil || u.Uid != 0 || u.Gid != 0 {
		t.Errorf("user: %v", cs.User)
	}
	resp, err = d.pods.PodSandboxStatus(ctx(t), p.id, false)
	check(t, err)
	if len(resp.ContainersStatuses) != 1 || !proto.Equal(resp.ContainersStatuses[0], cs) {
		t.Errorf("containers of the sandbox: %v", resp.ContainersStatuses)
	}
	list, err := d.pods.ListContainers(ctx(t), nil)
	check(t, err)
	if len(list) != 1 || list[0].ImageId != image.Image.Id || list[0].PodSandboxId != p.id || list[0].CreatedAt != cs.CreatedAt {
		t.Errorf("list: %v", list)
	}
}

func same(t *testing.T, what string, have, want map[string]string) {
	t.Helper()
	if len(have) != len(want) {
		t.Errorf("%s: %v, want %v", what, have, want)
	}
	for k, v := range want {
		if have[k] != v {
			t.Errorf("%s: %v, want %v", what, have, want)
		}
	}
}

func isJSON(t *testing.T, info map[string]string) {
	t.Helper()
	if len(info) == 0 {
		t.Error("no verbose information")
	}
	for k, v := range info {
		if !json.Valid([]byte(v)) {
			t.Errorf("verbose information %q is not JSON: %s", k, v)
		}
	}
}

// TestStopRemoveTwice repeats what the kubelet repeats, also for what never was.
func TestStopRemoveTwice(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	c := p.run(t, forever)
	const unknown = "0123456789012345678901234567890123456789012345678901234567890123"
	for _, id := range []string{c.id, c.id, unknown} {
		check(t, d.pods.StopContainer(ctx(t), id, 10))
	}
	for _, id := range []string{c.id, c.id, unknown} {
		check(t, d.pods.RemoveContainer(ctx(t), id))
	}
	for _, id := range []string{p.id, p.id, unknown} {
		check(t, d.pods.StopPodSandbox(ctx(t), id))
	}
	for _, id := range []string{p.id, p.id, unknown} {
		check(t, d.pods.RemovePodSandbox(ctx(t), id))
	}
	if err := unfound(d.pods.ContainerStatus(ctx(t), c.id, false)); err != nil {
		t.Error(err)
	}
}

// TestRemoveRunning removes what nobody has stopped.
func TestRemoveRunning(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	check(t, d.pods.RemoveContainer(ctx(t), p.run(t, forever).id))
	p.run(t, forever)
	p.create(t, forever)
	check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
	list, err := d.pods.ListContainers(ctx(t), nil)
	check(t, err)
	if len(list) != 0 {
		t.Errorf("containers: %v", list)
	}
}

// TestStopPodWithContainers tells the ends of the containers it takes along.
func TestStopPodWithContainers(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	running, done := p.run(t, forever), p.run(t, "exit 5")
	done.ended(t)
	check(t, d.pods.StopPodSandbox(ctx(t), p.id))
	if s := running.status(t); s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("container of a stopped pod: %v", s)
	}
	if s := done.status(t); s.ExitCode != 5 {
		t.Errorf("container that had ended before: %v", s)
	}
}

// TestAtOnce has eight pods come up and go down at the same time.
func TestAtOnce(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	check(t, os.MkdirAll(d.podConfig().LogDirectory, 0o755))
	var g errgroup.Group
	for range 8 {
		p := &pod{daemon: d, config: d.podConfig()}
		g.Go(func() error { return p.upAndDown(ctx(t)) })
	}
	check(t, g.Wait())
}

func (p *pod) upAndDown(ctx context.Context) (err error) {
	if p.id, err = p.pods.RunPodSandbox(ctx, p.config, ""); err != nil {
		return err
	}
	c, err := p.pods.CreateContainer(ctx, p.id, p.containerConfig(forever), p.config)
	if err != nil {
		return err
	}
	if err := p.pods.StartContainer(ctx, c); err != nil {
		return err
	}
	if out, _, err := p.pods.ExecSync(ctx, c, []string{"hostname"}, 0); err != nil || string(out) != p.config.Hostname+"\n" {
		return fmt.Errorf("exec: %q, %w", out, err)
	}
	if err := p.pods.StopContainer(ctx, c, 0); err != nil {
		return err
	}
	if s, err := p.pods.ContainerStatus(ctx, c, false); err != nil || s.Status.ExitCode != 137 {
		return fmt.Errorf("status: %v, %w", s, err)
	}
	if err := p.pods.StopPodSandbox(ctx, p.id); err != nil {
		return err
	}
	return p.pods.RemovePodSandbox(ctx, p.id)
}
