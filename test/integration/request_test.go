package integration

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// refused checks an error's code and that its text has all of some words.
func refused(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%v, want %v", err, code)
	}
	for _, w := range words {
		if err != nil && !strings.Contains(err.Error(), w) {
			t.Errorf("%v, does not name %q", err, w)
		}
	}
}

// tenMB are labels of that size.
func tenMB() map[string]string { return map[string]string{"large": strings.Repeat("x", 10<<20)} }

func TestBadPod(t *testing.T) {
	d := newDaemon(t, noNetwork)
	d.runPod(t)
	taken := d.podConfig()
	_, err := d.pods.RunPodSandbox(ctx(t), taken, "")
	check(t, err)
	for name, test := range map[string]struct {
		change  func(*runtime.PodSandboxConfig)
		handler string
		code    codes.Code
		words   []string
	}{
		"no metadata":  {func(c *runtime.PodSandboxConfig) { c.Metadata = nil }, "", codes.InvalidArgument, []string{"config.metadata"}},
		"no name":      {func(c *runtime.PodSandboxConfig) { c.Metadata.Name = "" }, "", codes.InvalidArgument, []string{"config.metadata.name"}},
		"no namespace": {func(c *runtime.PodSandboxConfig) { c.Metadata.Namespace = "" }, "", codes.InvalidArgument, []string{"config.metadata.namespace"}},
		"no uid":       {func(c *runtime.PodSandboxConfig) { c.Metadata.Uid = "" }, "", codes.InvalidArgument, []string{"config.metadata.uid"}},
		"name taken":   {func(c *runtime.PodSandboxConfig) { c.Metadata = taken.Metadata }, "", codes.AlreadyExists, []string{taken.Metadata.Name}},
		"handler":      {func(*runtime.PodSandboxConfig) {}, "nosuch", codes.NotFound, []string{"runtime_handler", `"nosuch"`}},
		"group without user": {func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext.RunAsGroup = &runtime.Int64Value{Value: 1234}
		}, "", codes.InvalidArgument, []string{"run_as_group", "1234"}},
		"labels":        {func(c *runtime.PodSandboxConfig) { c.Labels = tenMB() }, "", codes.InvalidArgument, []string{"config.labels"}},
		"annotations":   {func(c *runtime.PodSandboxConfig) { c.Annotations = tenMB() }, "", codes.InvalidArgument, []string{"config.annotations"}},
		"log directory": {func(c *runtime.PodSandboxConfig) { c.LogDirectory = "/var/log/../../etc" }, "", codes.InvalidArgument, []string{"log_directory", `"/var/log/../../etc"`}},
	} {
		t.Run(name, func(t *testing.T) {
			config := d.podConfig()
			test.change(config)
			_, err := d.pods.RunPodSandbox(ctx(t), config, test.handler)
			refused(t, err, test.code, test.words...)
		})
	}
	_, err = d.raw.RunPodSandbox(ctx(t), &runtime.RunPodSandboxRequest{})
	refused(t, err, codes.InvalidArgument, "config")
	if pods, err := d.pods.ListPodSandbox(ctx(t), nil); err != nil || len(pods) != 2 {
		t.Errorf("pods: %v, %v", pods, err)
	}
}

func TestBadContainer(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p, stopped := d.runPod(t), d.runPod(t)
	check(t, d.pods.StopPodSandbox(ctx(t), stopped.id))
	taken := p.run(t, forever)
	for name, test := range map[string]struct {
		pod    string
		change func(*runtime.ContainerConfig)
		code   codes.Code
		words  []string
	}{
		"no pod":         {"", nil, codes.InvalidArgument, []string{"pod_sandbox_id"}},
		"unknown pod":    {"0123", nil, codes.NotFound, []string{`"0123"`}},
		"stopped pod":    {stopped.id, nil, codes.FailedPrecondition, []string{stopped.id, "stopped"}},
		"no metadata":    {p.id, func(c *runtime.ContainerConfig) { c.Metadata = nil }, codes.InvalidArgument, []string{"config.metadata"}},
		"no name":        {p.id, func(c *runtime.ContainerConfig) { c.Metadata.Name = "" }, codes.InvalidArgument, []string{"config.metadata.name"}},
		"name taken":     {p.id, func(c *runtime.ContainerConfig) { c.Metadata = taken.config.Metadata }, codes.AlreadyExists, []string{taken.config.Metadata.Name}},
		"no image":       {p.id, func(c *runtime.ContainerConfig) { c.Image = nil }, codes.InvalidArgument, []string{"config.image"}},
		"empty image":    {p.id, func(c *runtime.ContainerConfig) { c.Image.Image = "" }, codes.InvalidArgument, []string{"config.image.image"}},
		"bad image":      {p.id, func(c *runtime.ContainerConfig) { c.Image.Image = "Not:A:Ref" }, codes.InvalidArgument, []string{"image", "Not:A:Ref"}},
		"absent image":   {p.id, func(c *runtime.ContainerConfig) { c.Image.Image = "example.com/absent:1" }, codes.NotFound, []string{"image", "example.com/absent:1"}},
		"labels":         {p.id, func(c *runtime.ContainerConfig) { c.Labels = tenMB() }, codes.InvalidArgument, []string{"config.labels"}},
		"log outside":    {p.id, func(c *runtime.ContainerConfig) { c.LogPath = "../../outside.log" }, codes.InvalidArgument, []string{"log_path", `"../../outside.log"`}},
		"absolute log":   {p.id, func(c *runtime.ContainerConfig) { c.LogPath = "/tmp/../outside.log" }, codes.InvalidArgument, []string{"log_path", `"/tmp/../outside.log"`}},
		"unknown signal": {p.id, func(c *runtime.ContainerConfig) { c.StopSignal = 999 }, codes.InvalidArgument, []string{"stop_signal", "999"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := p.containerConfig(forever)
			if test.change != nil {
				test.change(config)
			}
			_, err := d.raw.CreateContainer(ctx(t), &runtime.CreateContainerRequest{PodSandboxId: test.pod, Config: config, SandboxConfig: p.config})
			refused(t, err, test.code, test.words...)
		})
	}
	_, err := d.raw.CreateContainer(ctx(t), &runtime.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config})
	refused(t, err, codes.InvalidArgument, "config")
	if list, err := d.pods.ListContainers(ctx(t), nil); err != nil || len(list) != 1 || list[0].Id != taken.id {
		t.Errorf("containers: %v, %v", list, err)
	}
	if left := names(d.path("s/containers")); len(left) != 1 {
		t.Errorf("directories of containers: %q", left)
	}
	if left := names(d.path("l/containers")); len(left) != 1 {
		t.Errorf("records of containers: %q", left)
	}
}

// TestBadID asks for what is not there, and for nothing in particular.
func TestBadID(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	c := p.run(t, "exit 0")
	c.ended(t)
	for name, call := range map[string]func(id string) error{
		"PodSandboxStatus": func(id string) error {
			_, err := d.raw.PodSandboxStatus(ctx(t), &runtime.PodSandboxStatusRequest{PodSandboxId: id})
			return err
		},
		"ContainerStatus": func(id string) error {
			_, err := d.raw.ContainerStatus(ctx(t), &runtime.ContainerStatusRequest{ContainerId: id})
			return err
		},
		"StartContainer": func(id string) error {
			_, err := d.raw.StartContainer(ctx(t), &runtime.StartContainerRequest{ContainerId: id})
			return err
		},
		"ExecSync": func(id string) error {
			_, err := d.raw.ExecSync(ctx(t), &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		},
		"ReopenContainerLog": func(id string) error {
			_, err := d.raw.ReopenContainerLog(ctx(t), &runtime.ReopenContainerLogRequest{ContainerId: id})
			return err
		},
	} {
		refused(t, call("0123456789abcdef"), codes.NotFound, "0123456789abcdef")
		if err := call(""); status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.NotFound {
			t.Errorf("%s without an id: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"StopPodSandbox":   errOf(d.raw.StopPodSandbox(ctx(t), &runtime.StopPodSandboxRequest{})),
		"RemovePodSandbox": errOf(d.raw.RemovePodSandbox(ctx(t), &runtime.RemovePodSandboxRequest{})),
		"StopContainer":    errOf(d.raw.StopContainer(ctx(t), &runtime.StopContainerRequest{})),
		"RemoveContainer":  errOf(d.raw.RemoveContainer(ctx(t), &runtime.RemoveContainerRequest{})),
	} {
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s without an id: %v", name, err)
		}
	}
	refused(t, errOf(d.raw.StopContainer(ctx(t), &runtime.StopContainerRequest{ContainerId: c.id, Timeout: -1})), codes.InvalidArgument, "timeout", "-1")
	refused(t, errOf(d.raw.ExecSync(ctx(t), &runtime.ExecSyncRequest{ContainerId: c.id})), codes.InvalidArgument, "cmd")
	refused(t, d.pods.StartContainer(ctx(t), c.id), codes.FailedPrecondition, c.id)
	refused(t, d.pods.ReopenContainerLog(ctx(t), c.id), codes.FailedPrecondition, c.id)
}

func errOf(_ any, err error) error { return err }

// TestBadImage pulls what is no image.
func TestBadImage(t *testing.T) {
	d := newDaemon(t, noNetwork)
	for ref, test := range map[string]struct {
		code  codes.Code
		words []string
	}{
		"":                          {codes.InvalidArgument, []string{"image.image"}},
		"UPPER:case":                {codes.InvalidArgument, []string{"UPPER:case"}},
		"a b":                       {codes.InvalidArgument, []string{"a b"}},
		registry.Host + "/nosuch:1": {codes.NotFound, []string{"nosuch"}},
		"127.0.0.1:1/refused:1":     {codes.Unknown, []string{"RegistryUnavailable"}},
	} {
		t.Run(ref, func(t *testing.T) {
			_, err := d.images.PullImage(ctx(t), &runtime.ImageSpec{Image: ref}, nil, nil)
			refused(t, err, test.code, test.words...)
		})
	}
	_, err := d.raw.Version(ctx(t), &runtime.VersionRequest{})
	check(t, err)
}

// TestBadSettings starts the daemon with settings that do not parse.
func TestBadSettings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := &daemon{dir: dir}
	for content, words := range map[string][]string{
		"root = ":             {"conf.toml"},
		"nosuch = 1":          {"conf.toml", "nosuch"},
		"root = 'relative'":   {"root", "relative"},
		"[log]\nlevel = 'no'": {"log.level", "no"},
	} {
		d.write(t, "conf.toml", content)
		out, err := exec.Command(runscd, "serve", "--config", d.path("conf.toml")).CombinedOutput()
		if err == nil {
			t.Errorf("%q: it serves", content)
		}
		for _, w := range words {
			if !strings.Contains(string(out), w) {
				t.Errorf("%q: %s does not name %q", content, out, w)
			}
		}
	}
	if left := names(dir); len(left) != 1 {
		t.Errorf("files: %q", left)
	}
}

// TestRetry has the client give up, ask again, and get what was made meanwhile.
func TestRetry(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	release := d.stall(t)
	config := d.podConfig()
	request := &runtime.RunPodSandboxRequest{Config: config}
	short, cancel := context.WithCancel(ctx(t))
	first := make(chan error, 1)
	go func() { first <- errOf(d.raw.RunPodSandbox(short, request)) }()
	eventually(t, "the network is being made", func() error { return larger(d.path("stalled"), 0) })
	cancel()
	refused(t, <-first, codes.Canceled)

	other := &runtime.RunPodSandboxRequest{Config: d.podConfig()}
	other.Config.Metadata = config.Metadata
	refused(t, errOf(d.raw.RunPodSandbox(ctx(t), other)), codes.AlreadyExists, config.Metadata.Name)
	release()
	resp, err := d.raw.RunPodSandbox(ctx(t), request)
	check(t, err)
	pods, err := d.pods.ListPodSandbox(ctx(t), nil)
	check(t, err)
	if len(pods) != 1 || pods[0].Id != resp.PodSandboxId || pods[0].State != runtime.PodSandboxState_SANDBOX_READY {
		t.Errorf("pods: %v, want %s", pods, resp.PodSandboxId)
	}
	refused(t, errOf(d.raw.RunPodSandbox(ctx(t), request)), codes.AlreadyExists, resp.PodSandboxId)
}

// TestRetryContainer has a client give up on a container within a millisecond,
// whether the daemon has heard of it by then or not.
func TestRetryContainer(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	request := &runtime.CreateContainerRequest{PodSandboxId: p.id, Config: p.containerConfig(forever), SandboxConfig: p.config}
	short, cancel := context.WithTimeout(ctx(t), time.Millisecond)
	defer cancel()
	refused(t, errOf(d.raw.CreateContainer(short, request)), codes.DeadlineExceeded)
	created, err := d.raw.CreateContainer(ctx(t), request)
	check(t, err)
	list, err := d.pods.ListContainers(ctx(t), nil)
	check(t, err)
	if len(list) != 1 || list[0].Id != created.ContainerId {
		t.Errorf("containers: %v, want %s", list, created.ContainerId)
	}
	refused(t, errOf(d.raw.CreateContainer(ctx(t), request)), codes.AlreadyExists, created.ContainerId)
}
