package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// counting is a script with a number in its memory, which it writes to its root file
// system and logs.
const counting = "echo written > /kept; i=0; while :; do i=$((i+1)); echo $i > /count; echo $i; sleep 0.05; done"

// soon is a context with the deadline that checkpoints and restores must have.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(ctx(t), patience)
	t.Cleanup(cancel)
	return ctx
}

// save checkpoints a pod to a new directory.
func (p *pod) save(t *testing.T, options map[string]string, containers ...*container) string {
	t.Helper()
	dir := t.TempDir()
	_, err := p.raw.CheckpointPod(soon(t), saveRequest(p, dir, options, containers...))
	check(t, err)
	return dir
}

func saveRequest(p *pod, dir string, options map[string]string, containers ...*container) *runtime.CheckpointPodRequest {
	req := &runtime.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: dir, Options: options}
	for _, c := range containers {
		req.ContainerIds = append(req.ContainerIds, c.id)
	}
	return req
}

// restoreRequest asks for another pod like that of the containers.
func restoreRequest(dir string, containers ...*container) *runtime.RestorePodRequest {
	p := containers[0].pod
	config := proto.Clone(p.config).(*runtime.PodSandboxConfig)
	n := serial.Add(1)
	config.Metadata.Name = fmt.Sprintf("pod-%d", n)
	config.Metadata.Uid = fmt.Sprintf("uid-%d", n)
	config.Hostname = config.Metadata.Name
	req := &runtime.RestorePodRequest{CheckpointPath: dir, Config: config}
	for _, c := range containers {
		config := proto.Clone(c.config).(*runtime.ContainerConfig)
		config.LogPath = fmt.Sprintf("%d-%s.log", n, config.Metadata.Name)
		req.ContainerConfigs = append(req.ContainerConfigs, config)
	}
	return req
}

// restore makes another pod of a checkpoint, whose containers are created.
func (d *daemon) restore(t *testing.T, req *runtime.RestorePodRequest) (*pod, []*container) {
	t.Helper()
	resp, err := d.raw.RestorePod(soon(t), req)
	check(t, err)
	p := &pod{daemon: d, id: resp.PodSandboxId, config: req.Config}
	var containers []*container
	for i, c := range resp.RestoredContainers {
		if c.Name != req.ContainerConfigs[i].Metadata.Name {
			t.Errorf("restored container %d: %v", i, c)
		}
		containers = append(containers, &container{pod: p, id: c.ContainerId, config: req.ContainerConfigs[i]})
	}
	return p, containers
}

// count is the number that a counting container has come to. The file is empty for a
// moment at each.
func (c *container) count(t *testing.T) (n int) {
	t.Helper()
	eventually(t, "there is a number", func() (err error) {
		out, _ := c.exec(t, "cat /count")
		n, err = strconv.Atoi(strings.TrimSpace(out))
		return err
	})
	return n
}

func TestCheckpoint(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	p := d.runPod(t)
	p.run(t, "echo shared > /dev/shm/file").ended(t) // as an init container
	shared := t.TempDir()
	first := p.run(t, "read x < /shared/in; "+counting, share(shared))
	check(t, os.WriteFile(filepath.Join(shared, "in"), []byte("x\n"), 0o644))
	second, third := p.run(t, counting), p.run(t, forever)
	gone := p.run(t, "exit 3")
	gone.ended(t)
	for _, c := range []*container{first, second} {
		c.waitFor(t, "20\n")
	}
	dir := p.save(t, nil, first, second, third)
	for _, name := range names(dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		check(t, err)
		if info.Mode() != 0o600 || !slices.Contains([]string{"manifest.json", "checkpoint.img", "pages_meta.img", "pages.img"}, name) {
			t.Errorf("%s: %s", name, info.Mode())
		}
	}
	saved := first.count(t)
	eventually(t, "the pod goes on", func() error {
		if n := first.count(t); n <= saved {
			return fmt.Errorf("it counts %d", n)
		}
		return nil
	})
	q, again := d.restore(t, restoreRequest(dir, first, second, third))
	if ip := q.status(t).Network.GetIp(); ip == "" || ip == p.status(t).Network.GetIp() {
		t.Errorf("address %q", ip)
	}
	for _, c := range again {
		if s := c.status(t); s.State != runtime.ContainerState_CONTAINER_CREATED {
			t.Errorf("restored container: %v", s)
		}
	}
	for _, c := range slices.Backward(again) {
		check(t, d.pods.StartContainer(ctx(t), c.id))
	}
	for i, c := range again[:2] {
		eventually(t, "it counts on", func() error {
			if n := c.count(t); n < 20 || n > saved+1000 {
				return fmt.Errorf("it is at %d", n)
			}
			return nil
		})
		if out, _ := c.exec(t, "cat /kept /dev/shm/file; hostname"); out != "written\nshared\n"+q.config.Hostname+"\n" {
			t.Errorf("exec: %q", out)
		}
		lines := readLog(t, c.logPath())
		if n, _ := strconv.Atoi(lines[0].contents); n < 20 {
			t.Errorf("container %d: the log begins with %q", i, lines[0].contents)
		}
	}
	stats, err := d.pods.PodSandboxStats(ctx(t), q.id)
	check(t, err)
	for _, c := range stats.Linux.Containers {
		if c.Memory.GetUsageBytes().GetValue() == 0 || c.WritableLayer.GetUsedBytes().GetValue() == 0 {
			t.Errorf("stats: %v", c)
		}
	}
	check(t, d.pods.StopContainer(ctx(t), again[2].id, 30))
	if s := again[2].status(t); s.ExitCode != 3 {
		t.Errorf("stopped: %v", s)
	}
}
