package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// denied checks that a call failed with a code and a text.
func denied(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want %s with %q", err, code, text)
	}
}

// TestRestoreRestart ends the daemon between the steps of a restore.
func TestRestoreRestart(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	first, second := p.run(t, counting), p.run(t, counting)
	first.waitFor(t, "20\n")
	dir := p.save(t, nil, first, second)
	_, again := d.restore(t, restoreRequest(dir, first, second))
	check(t, os.RemoveAll(dir)) // it is not needed any more
	restart := func() {
		d.stop(t, unix.SIGKILL)
		d.start(t)
	}
	restart()
	for _, c := range again {
		if s := c.status(t); s.State != runtime.ContainerState_CONTAINER_CREATED {
			t.Errorf("restored container: %v", s)
		}
	}
	check(t, d.pods.StartContainer(ctx(t), again[0].id))
	restart()
	if s := again[0].status(t); s.State != runtime.ContainerState_CONTAINER_RUNNING {
		t.Errorf("started container: %v", s)
	}
	_, _, err := d.pods.ExecSync(ctx(t), again[0].id, []string{"true"}, 0)
	denied(t, err, codes.FailedPrecondition, again[1].config.Metadata.Name)
	check(t, d.pods.StartContainer(ctx(t), again[1].id))
	restart()
	for _, c := range again {
		if n := c.count(t); n < 20 {
			t.Errorf("it counts %d", n)
		}
		c.waitFor(t, "22\n")
	}
	// Once more, of what was restored.
	dir = again[0].save(t, map[string]string{"compression": "flate-best-speed"}, again...)
	_, third := d.restore(t, restoreRequest(dir, again...))
	for _, c := range third {
		check(t, d.pods.StartContainer(ctx(t), c.id))
	}
	if n := third[1].count(t); n < 20 {
		t.Errorf("it counts %d", n)
	}
	stats, err := d.pods.ContainerStats(ctx(t), third[0].id)
	check(t, err)
	if stats.Memory.GetUsageBytes().GetValue() == 0 {
		t.Errorf("stats: %v", stats)
	}
}

// TestFrozen is about a restored pod of which one container is started: it does not
// run, and says so.
func TestFrozen(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	first, second := p.run(t, counting), p.run(t, counting)
	first.waitFor(t, "3\n")
	dir := p.save(t, nil, first, second)
	for name, end := range map[string]func(q *pod, c []*container) error{
		"stopped": func(_ *pod, c []*container) error { return d.pods.StopContainer(ctx(t), c[0].id, 1000) },
		"removed": func(_ *pod, c []*container) error { return d.pods.RemoveContainer(ctx(t), c[1].id) },
		"pod":     func(q *pod, _ []*container) error { return d.pods.StopPodSandbox(ctx(t), q.id) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q, again := d.restore(t, restoreRequest(dir, first, second))
			check(t, d.pods.StartContainer(ctx(t), again[0].id))
			if out := again[0].output(t); out != "" {
				t.Errorf("it has run: %q", out)
			}
			_, err := d.raw.CheckpointPod(soon(t), saveRequest(q, t.TempDir(), nil, again[0]))
			denied(t, err, codes.FailedPrecondition, "started too")
			_, err = d.pods.CreateContainer(ctx(t), q.id, q.containerConfig("true"), q.config)
			denied(t, err, codes.FailedPrecondition, "started too")
			_, err = d.pods.PodSandboxStats(ctx(t), q.id)
			check(t, err)
			check(t, end(q, again))
			if s := again[0].ended(t); s.ExitCode != 137 {
				t.Errorf("started container: %v", s)
			}
			if s := q.status(t); s.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("sandbox: %v", s)
			}
		})
	}
}

// TestCheckpointKilled kills the daemon while a checkpoint is written.
func TestCheckpointKilled(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	c := p.run(t, "dd if=/dev/urandom of=/tmp/memory bs=1M count=200 2>/dev/null; "+counting)
	c.waitFor(t, "3\n")
	dir := t.TempDir()
	failed := make(chan error, 1)
	go func() {
		_, err := d.raw.CheckpointPod(soon(t), saveRequest(p, dir, nil, c))
		failed <- err
	}()
	eventually(t, "the checkpoint begins", func() error {
		_, err := os.Stat(filepath.Join(dir, "pages.img"))
		return err
	})
	d.stop(t, unix.SIGKILL)
	if err := <-failed; err == nil {
		t.Error("the call succeeded")
	}
	d.start(t)
	if left := names(dir); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	n := c.count(t)
	eventually(t, "the pod goes on", func() error {
		if now := c.count(t); now <= n {
			return fmt.Errorf("it counts %d", now)
		}
		return nil
	})
	p.save(t, nil, c)
}

func TestCheckpointRefused(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p, q := d.runPod(t), d.runPod(t)
	c, other := p.run(t, counting), q.run(t, forever)
	second, ended, created := p.run(t, forever), p.run(t, "exit"), p.create(t, "exit")
	ended.ended(t)
	full := t.TempDir()
	check(t, os.WriteFile(filepath.Join(full, "file"), nil, 0o600))
	request := func(change func(r *runtime.CheckpointPodRequest)) *runtime.CheckpointPodRequest {
		r := saveRequest(p, t.TempDir(), nil, c, second)
		change(r)
		return r
	}
	for name, test := range map[string]struct {
		change func(r *runtime.CheckpointPodRequest)
		code   codes.Code
		text   string
	}{
		"no pod":        {func(r *runtime.CheckpointPodRequest) { r.PodSandboxId = "none" }, codes.NotFound, "none"},
		"no path":       {func(r *runtime.CheckpointPodRequest) { r.OutputPath = "" }, codes.InvalidArgument, "output_path"},
		"relative":      {func(r *runtime.CheckpointPodRequest) { r.OutputPath = "x" }, codes.InvalidArgument, "output_path"},
		"not there":     {func(r *runtime.CheckpointPodRequest) { r.OutputPath += "/x" }, codes.InvalidArgument, "output_path"},
		"a file":        {func(r *runtime.CheckpointPodRequest) { r.OutputPath = full + "/file" }, codes.InvalidArgument, "output_path"},
		"not empty":     {func(r *runtime.CheckpointPodRequest) { r.OutputPath = full }, codes.InvalidArgument, "not empty"},
		"none":          {func(r *runtime.CheckpointPodRequest) { r.ContainerIds = nil }, codes.InvalidArgument, "container_ids"},
		"twice":         {func(r *runtime.CheckpointPodRequest) { r.ContainerIds = []string{c.id, c.id} }, codes.InvalidArgument, "container_ids[1]"},
		"not all":       {func(r *runtime.CheckpointPodRequest) { r.ContainerIds = []string{c.id} }, codes.FailedPrecondition, second.id},
		"another pod's": {func(r *runtime.CheckpointPodRequest) { r.ContainerIds[0] = other.id }, codes.InvalidArgument, "another pod"},
		"ended":         {func(r *runtime.CheckpointPodRequest) { r.ContainerIds[0] = ended.id }, codes.FailedPrecondition, "not running"},
		"created":       {func(r *runtime.CheckpointPodRequest) { r.ContainerIds[0] = created.id }, codes.FailedPrecondition, "not running"},
		"option":        {func(r *runtime.CheckpointPodRequest) { r.Options = map[string]string{"leave-running": "true"} }, codes.InvalidArgument, "leave-running"},
		"value":         {func(r *runtime.CheckpointPodRequest) { r.Options = map[string]string{"compression": "zip"} }, codes.InvalidArgument, "zip"},
	} {
		r := request(test.change)
		_, err := d.raw.CheckpointPod(soon(t), r)
		if status.Code(err) != test.code || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v, want %s with %q", name, err, test.code, test.text)
		}
		if left := names(r.OutputPath); r.OutputPath != full && len(left) > 0 {
			t.Errorf("%s: left: %q", name, left)
		}
	}
	_, err := d.raw.CheckpointPod(context.Background(), request(func(*runtime.CheckpointPodRequest) {}))
	denied(t, err, codes.InvalidArgument, "deadline")
	brief, cancel := context.WithTimeout(ctx(t), time.Nanosecond)
	defer cancel()
	_, err = d.raw.CheckpointPod(brief, request(func(*runtime.CheckpointPodRequest) {}))
	denied(t, err, codes.DeadlineExceeded, "")
	q.run(t, "cat", func(c *runtime.ContainerConfig) { c.Tty, c.Stdin = true, true })
	_, err = d.raw.CheckpointPod(soon(t), saveRequest(q, t.TempDir(), nil, other))
	denied(t, err, codes.FailedPrecondition, "container_ids")
	n := c.count(t)
	eventually(t, "the pod goes on", func() error {
		if c.count(t) <= n {
			return errors.New("it does not count")
		}
		return nil
	})
}

// TestRestoreRefused has requests and checkpoints that do not fit together. Nothing is
// made for any.
func TestRestoreRefused(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	c := p.run(t, counting, func(c *runtime.ContainerConfig) { c.Envs = []*runtime.KeyValue{{Key: "K", Value: []byte("v")}} })
	dir := p.save(t, nil, c)
	check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
	request := func(change func(r *runtime.RestorePodRequest)) error {
		r := restoreRequest(dir, c)
		change(r)
		_, err := d.raw.RestorePod(soon(t), r)
		return err
	}
	for name, test := range map[string]struct {
		change func(r *runtime.RestorePodRequest)
		code   codes.Code
		text   string
	}{
		"not there": {func(r *runtime.RestorePodRequest) { r.CheckpointPath += "/x" }, codes.FailedPrecondition, "no checkpoint"},
		"handler":   {func(r *runtime.RestorePodRequest) { r.RuntimeHandler = "kata" }, codes.NotFound, "kata"},
		"options":   {func(r *runtime.RestorePodRequest) { r.Options = map[string]string{"o": "1"} }, codes.InvalidArgument, `"o"`},
		"none":      {func(r *runtime.RestorePodRequest) { r.ContainerConfigs = nil }, codes.InvalidArgument, "container_configs"},
		"another name": {func(r *runtime.RestorePodRequest) { r.ContainerConfigs[0].Metadata.Name = "other" },
			codes.InvalidArgument, `container_configs: of ["other"]`},
		"twice": {func(r *runtime.RestorePodRequest) {
			r.ContainerConfigs = append(r.ContainerConfigs, r.ContainerConfigs[0])
		}, codes.InvalidArgument, "container_configs[1]"},
		"command": {func(r *runtime.RestorePodRequest) { r.ContainerConfigs[0].Command[2] = "x" }, codes.InvalidArgument, ".command[2]"},
		"environment": {func(r *runtime.RestorePodRequest) { r.ContainerConfigs[0].Envs[0].Value = []byte("w") },
			codes.InvalidArgument, `.envs["K"].value`},
		"user": {func(r *runtime.RestorePodRequest) {
			r.ContainerConfigs[0].Linux.SecurityContext.RunAsUser = &runtime.Int64Value{}
		}, codes.InvalidArgument, ".linux.security_context.run_as_user"},
		"mount": {func(r *runtime.RestorePodRequest) {
			r.ContainerConfigs[0].Mounts = []*runtime.Mount{{ContainerPath: "/m", HostPath: "/"}}
		}, codes.InvalidArgument, `.mounts["/m"]`},
		"image":   {func(r *runtime.RestorePodRequest) { r.ContainerConfigs[0].Image.Image = "none" }, codes.NotFound, "none"},
		"sysctls": {func(r *runtime.RestorePodRequest) { r.Config.Linux.Sysctls = map[string]string{"a.b": "1"} }, codes.InvalidArgument, "config.linux.sysctls"},
	} {
		err := request(test.change)
		if status.Code(err) != test.code || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v, want %s with %q", name, err, test.code, test.text)
		}
	}
	for name, damage := range map[string]struct {
		do   func(dir string) error
		text string
	}{
		"no manifest":      {func(dir string) error { return os.Remove(dir + "/manifest.json") }, "no checkpoint"},
		"no manifest's":    {func(dir string) error { return os.WriteFile(dir+"/manifest.json", []byte("{"), 0o600) }, "manifest"},
		"another format":   {edit("manifest.json", `"version": 1`, `"version": 2`), "version 2"},
		"another runsc":    {edit("manifest.json", `"runsc": "`, `"runsc": "x`), "runsc version"},
		"another build":    {edit("manifest.json", `"build": "`, `"build": "x`), "build of runsc"},
		"another platform": {edit("manifest.json", `"platform": "`, `"platform": "x`), "platform"},
		"other processor":  {edit("manifest.json", `"cpu_features": [`, `"cpu_features": ["avx1024",`), "avx1024"},
		"truncated":        {func(dir string) error { return os.Truncate(dir+"/pages.img", 4096) }, "pages.img: 4096 bytes"},
		"missing":          {func(dir string) error { return os.Remove(dir + "/pages_meta.img") }, "pages_meta.img"},
		"damaged": {func(dir string) error {
			f, err := os.OpenFile(dir+"/checkpoint.img", os.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("damage"), 100_000)
			return errors.Join(err, f.Close())
		}, "checkpoint.img: checksum"},
	} {
		copied := t.TempDir()
		check(t, os.CopyFS(copied, os.DirFS(dir)))
		check(t, damage.do(copied))
		err := request(func(r *runtime.RestorePodRequest) { r.CheckpointPath = copied })
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), damage.text) {
			t.Errorf("%s: %v, want %q", name, err, damage.text)
		}
	}
	_, err := d.raw.RestorePod(context.Background(), restoreRequest(dir, c))
	denied(t, err, codes.InvalidArgument, "deadline")
	eventually(t, "nothing is left", func() error { return d.leftovers(t) })
	// A name that is there already.
	r := restoreRequest(dir, c)
	d.restore(t, r)
	r = proto.Clone(r).(*runtime.RestorePodRequest)
	_, err = d.raw.RestorePod(soon(t), r)
	denied(t, err, codes.AlreadyExists, r.Config.Metadata.Name)
}

// edit replaces a text in a file of a checkpoint.
func edit(name, old, replacement string) func(dir string) error {
	return func(dir string) error {
		path := filepath.Join(dir, name)
		text, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(text), old) {
			err = fmt.Errorf("%s has no %q", name, old)
		}
		if err != nil {
			return err
		}
		return os.WriteFile(path, []byte(strings.Replace(string(text), old, replacement, 1)), 0o600)
	}
}
