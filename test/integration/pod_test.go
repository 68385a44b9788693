package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/exec"
)

// pod is a sandbox and what it was made of.
type pod struct {
	*daemon
	id     string
	config *runtime.PodSandboxConfig
}

// container is a container and what it was made of.
type container struct {
	*pod
	id     string
	config *runtime.ContainerConfig
}

var serial atomic.Int32 // makes names unique

// podConfig is the configuration of an ordinary pod of the kubelet's.
func (d *daemon) podConfig() *runtime.PodSandboxConfig {
	n := serial.Add(1)
	name := fmt.Sprintf("pod-%d", n)
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: fmt.Sprintf("uid-%d", n)},
		Hostname:     name,
		LogDirectory: d.path("logs"),
		Labels:       map[string]string{"app": name},
		Annotations:  map[string]string{"example.com/annotation": "kept"},
		DnsConfig:    &runtime.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"example.com"}, Options: []string{"ndots:5"}},
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent: d.cgroup,
			Overhead:     &runtime.LinuxContainerResources{},
			Resources:    &runtime.LinuxContainerResources{},
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{
				Pid:           runtime.NamespaceMode_CONTAINER,
				UsernsOptions: &runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE},
			}},
		},
	}
}

// runPod runs a sandbox.
func (d *daemon) runPod(t *testing.T, changes ...func(*runtime.PodSandboxConfig)) *pod {
	t.Helper()
	config := d.podConfig()
	for _, change := range changes {
		change(config)
	}
	check(t, os.MkdirAll(config.LogDirectory, 0o755))
	id, err := d.pods.RunPodSandbox(ctx(t), config, "")
	check(t, err)
	return &pod{daemon: d, id: id, config: config}
}

// containerConfig is the configuration of a container that runs a shell script.
func (p *pod) containerConfig(script string) *runtime.ContainerConfig {
	name := fmt.Sprintf("c%d", serial.Add(1))
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: p.image, UserSpecifiedImage: busybox},
		Command:  []string{"/bin/sh", "-c", script},
		LogPath:  name + ".log",
		Labels:   map[string]string{"name": name},
		Linux: &runtime.LinuxContainerConfig{
			Resources:       &runtime.LinuxContainerResources{},
			SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions},
		},
	}
}

// create makes a container that runs a shell script.
func (p *pod) create(t *testing.T, script string, changes ...func(*runtime.ContainerConfig)) *container {
	t.Helper()
	config := p.containerConfig(script)
	for _, change := range changes {
		change(config)
	}
	id, err := p.pods.CreateContainer(ctx(t), p.id, config, p.config)
	check(t, err)
	return &container{pod: p, id: id, config: config}
}

// run makes and starts a container that runs a shell script.
func (p *pod) run(t *testing.T, script string, changes ...func(*runtime.ContainerConfig)) *container {
	t.Helper()
	c := p.create(t, script, changes...)
	check(t, p.pods.StartContainer(ctx(t), c.id))
	return c
}

// forever is a script that does nothing and ends at SIGTERM with code 3.
const forever = "trap 'exit 3' TERM; while :; do sleep 1000 & wait; done"

func (p *pod) status(t *testing.T) *runtime.PodSandboxStatus {
	t.Helper()
	resp, err := p.pods.PodSandboxStatus(ctx(t), p.id, false)
	check(t, err)
	return resp.Status
}

func (c *container) status(t *testing.T) *runtime.ContainerStatus {
	t.Helper()
	resp, err := c.pods.ContainerStatus(ctx(t), c.id, false)
	check(t, err)
	return resp.Status
}

// ended waits for the container's end.
func (c *container) ended(t *testing.T) *runtime.ContainerStatus {
	t.Helper()
	var s *runtime.ContainerStatus
	eventually(t, "the container ends", func() error {
		if s = c.status(t); s.State != runtime.ContainerState_CONTAINER_EXITED {
			return errors.New(s.State.String())
		}
		return nil
	})
	return s
}

// exec runs a shell script in the container.
func (c *container) exec(t *testing.T, script string) (output string, code int) {
	t.Helper()
	stdout, stderr, err := c.pods.ExecSync(ctx(t), c.id, []string{"/bin/sh", "-c", script}, 0)
	var exit exec.CodeExitError
	if errors.As(err, &exit) {
		return string(stdout) + string(stderr), exit.Code
	}
	check(t, err)
	return string(stdout) + string(stderr), 0
}

// logLine is a line of a CRI log.
type logLine struct {
	at                    time.Time
	stream, tag, contents string
}

func (c *container) logPath() string {
	return filepath.Join(c.pod.config.LogDirectory, c.config.LogPath)
}

// log is the container's log, or another of its files.
func readLog(t *testing.T, path string) []logLine {
	t.Helper()
	text, err := os.ReadFile(path)
	check(t, err)
	var lines []logLine
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(fields) != 4 || !strings.HasSuffix(line, "\n") {
			t.Fatalf("log line %q", line)
		}
		at, err := time.Parse(time.RFC3339Nano, fields[0])
		check(t, err)
		lines = append(lines, logLine{at, fields[1], fields[2], fields[3]})
	}
	return lines
}

// output is what the container has logged, without the times and tags.
func (c *container) output(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, l := range readLog(t, c.logPath()) {
		b.WriteString(l.contents)
		if l.tag == "F" {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// waitFor waits until the container has written something.
func (c *container) waitFor(t *testing.T, text string) {
	t.Helper()
	eventually(t, "output "+text, func() error {
		if out := c.output(t); !strings.Contains(out, text) {
			return fmt.Errorf("it is %q", out)
		}
		return nil
	})
}

// unfound is an error if a call did not fail with NotFound.
func unfound(_ any, err error) error {
	if status.Code(err) != codes.NotFound {
		return fmt.Errorf("not NotFound: %w", err)
	}
	return nil
}
