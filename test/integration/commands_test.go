package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/doctor"
)

// command runs a command of runscd's with the daemon's settings.
func (d *daemon) command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(runscd, append([]string{"--config", d.path("conf.toml")}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if errs.Len() > 0 {
		t.Logf("%q says: %s", args, errs.String())
	}
	return out.String(), err
}

// TestDoctor examines the node beside a daemon that works, with a pod that does not
// notice.
func TestDoctor(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	c := p.run(t, forever)
	out, err := d.command(t, "doctor", "-o", "json")
	check(t, err)
	var report doctor.Report
	check(t, json.Unmarshal([]byte(out), &report))
	found := map[string]doctor.Finding{}
	for _, f := range report {
		found[f.Check] = f
	}
	if f := found["socket"]; f.Verdict != doctor.OK || !strings.Contains(f.Found, " serves") {
		t.Errorf("%+v", f)
	}
	if f := found["sandbox"]; f.Verdict == doctor.Fail || !strings.HasPrefix(f.Found, "handler runsc: ") {
		t.Errorf("%+v", f)
	}
	if out, code := c.exec(t, "echo alive"); out != "alive\n" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
}

// TestDoctorFindsFault has a handler that does not work.
func TestDoctorFindsFault(t *testing.T) {
	d := newDaemon(t, noNetwork)
	d.write(t, "conf.toml.d/20.toml", "[runtime.handlers.broken]\npath = '/bin/false'\n")
	out, err := d.command(t, "doctor")
	if err == nil || !strings.Contains(out, `FAIL  sandbox       runtime handler "broken" with /bin/false: `) {
		t.Errorf("%v:\n%s", err, out)
	}
}

// TestPsAndTop show a pod with its figures.
func TestPsAndTop(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	c := p.run(t, forever)
	name := "default/" + p.config.Metadata.Name
	out, err := d.command(t, "ps")
	check(t, err)
	for _, want := range []string{name, c.config.Metadata.Name, c.id[:13], "running"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	out, err = d.command(t, "top", "--once", "--interval", "100ms")
	check(t, err)
	for _, want := range []string{name, "(overhead)", " MiB"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
}

// TestDebug gathers a pod by its name and has no secret of it.
func TestDebug(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "o")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := newDaemon(t, noNetwork+fmt.Sprintf("debug.socket = '%s/d'\n", dir))
	p := d.runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Annotations["kubectl.kubernetes.io/last-applied-configuration"] = "s3cret"
	})
	c := p.run(t, forever, func(c *runtime.ContainerConfig) {
		c.Envs = []*runtime.KeyValue{{Key: "TOKEN", Value: []byte("s3cret")}}
	})
	out, err := d.command(t, "debug", p.config.Metadata.Name, "-o", "-")
	check(t, err)
	z, err := gzip.NewReader(strings.NewReader(out))
	check(t, err)
	files := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		check(t, err)
		text, err := io.ReadAll(r)
		check(t, err)
		_, name, _ := strings.Cut(h.Name, "/")
		files[name] = string(text)
		if bytes.Contains(text, []byte("s3cret")) || bytes.Contains(text, []byte("czNjcmV0")) {
			t.Errorf("%s has a secret:\n%s", h.Name, text)
		}
	}
	for name, want := range map[string]string{
		"sandbox/stacks.txt": "gvisor.dev/gvisor/", "daemon/goroutines.txt": "pod.(*Pod).watch", "versions.txt": "handler runsc",
		"records/pod.json": p.config.Metadata.Name, "records/" + c.id + ".json": "TOKEN", "bundles/" + c.id + "/config.json": "TOKEN=",
		"host/process/status": "Name:", "runscd.toml": "[runtime]", "host/mounts": c.id,
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s: no %q in %.300q", name, want, files[name])
		}
	}
	t.Logf("missing:\n%s", files["missing.txt"])
}

// TestREADME runs what README.md shows for looking at a node.
func TestREADME(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t, func(c *runtime.PodSandboxConfig) { c.Metadata.Name = "web" })
	p.run(t, forever)
	readme, err := os.ReadFile("../../README.md")
	check(t, err)
	_, section, _ := strings.Cut(string(readme), "## Looking at a node\n")
	section, _, _ = strings.Cut(section, "\n## ")
	examples := 0
	for line := range strings.Lines(section) {
		line, ok := strings.CutPrefix(line, "    runscd ")
		line, _, _ = strings.Cut(line, "#")
		args := strings.Fields(line)
		if !ok || len(args) == 1 && args[0] == "top" { // which goes on
			continue
		}
		if args[0] == "debug" { // not where the test is
			args = append(args, "--output", d.path("debug.tar.gz"))
		}
		if out, err := d.command(t, args...); err != nil || out == "" {
			t.Errorf("runscd %q: %v\n%s", args, err, out)
		}
		examples++
	}
	if examples < 5 {
		t.Errorf("%d examples", examples)
	}
}
