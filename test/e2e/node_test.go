package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/runscd/runscd/test/isolate"
)

func staticPod(s *scene) {
	manifest := s.c.path("static.yaml")
	check(s.T, os.WriteFile(manifest, []byte(podManifest("static", "containers: ["+s.container("c", "echo static; "+forever)+"]")), 0o644))
	// The kubelet reads a file as soon as it is there.
	check(s.T, os.Rename(manifest, s.c.path("manifests/static.yaml")))
	name := "static-" + nodeName
	s.waitNamed(name, "the static pod is ready", isReady)
	s.same("log", s.kubectl("logs", name), "static")
	check(s.T, os.Remove(s.c.path("manifests/static.yaml")))
	s.kubectl("wait", "--for=delete", "pod/"+name, "--timeout=60s")
}

// kubeletRestart is that the pods go on while the kubelet is away and after.
func kubeletRestart(s *scene) {
	s.run("while true; do date +%s; sleep 0.5; done")
	before := status(s.ready(), "c").ContainerID
	s.c.kubelet.end(unix.SIGKILL)
	s.c.startKubelet(s.T)
	s.answers("after the restart")
	if c := status(s.ready(), "c"); c.RestartCount != 0 || c.ContainerID != before {
		s.Errorf("another container: %+v", c)
	}
}

// answers waits until kubectl exec works again.
func (s *scene) answers(word string) {
	s.Helper()
	s.eventually("exec works", func() error {
		out, err := s.command(nil, "exec", s.name, "--", "echo", word)
		if err == nil && strings.TrimSpace(out) != word {
			err = errors.New(out)
		}
		return err
	})
}

// runscdRestart is that pods do not notice that runscd is killed, and that one
// that ends meanwhile is told with its exit code.
func runscdRestart(s *scene) {
	s.run("i=0; while true; do i=$((i+1)); echo line $i; sleep 0.1; done")
	before := status(s.ready(), "c").ContainerID
	short := s.name + "-2"
	s.podNamed(short, "restartPolicy: Never\nvolumes: [{name: v, hostPath: {path: "+s.c.path("away")+", type: DirectoryOrCreate}}]\ncontainers: ["+
		s.container("c", "until [ -e /v/go ]; do sleep 0.1; done; touch /v/gone; exit 7", "volumeMounts: [{name: v, mountPath: /v}]")+"]")
	s.waitNamed(short, "the other pod is ready", isReady)

	s.c.runscd.end(unix.SIGKILL)
	check(s.T, os.WriteFile(s.c.path("away/go"), nil, 0o644))
	s.eventually("the other pod ends", func() error { _, err := os.Stat(s.c.path("away/gone")); return err })
	s.c.startRunscd(s.T)

	p := s.waitNamed(short, "the exit is told", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if e := status(p, "c").State.Terminated; e.ExitCode != 7 {
		s.Errorf("the other pod: %+v", e)
	}
	s.answers("after the restart")
	if c := status(s.ready(), "c"); c.RestartCount != 0 || c.ContainerID != before {
		s.Errorf("another container: %+v", c)
	}
	var last int
	for line := range strings.Lines(s.kubectl("logs", s.name)) {
		var n int
		if _, err := fmt.Sscanf(line, "line %d", &n); err != nil || n != last+1 {
			s.Fatalf("after line %d of the log: %q", last, line)
		}
		last = n
	}
}

// runscdStop is that a stop by systemd, which sends SIGTERM, leaves the pods.
func runscdStop(s *scene) {
	s.run(forever)
	before := status(s.ready(), "c").ContainerID
	s.c.runscd.end(unix.SIGTERM)
	s.c.startRunscd(s.T)
	s.answers("after the restart")
	if c := status(s.ready(), "c"); c.ContainerID != before {
		s.Errorf("another container: %+v", c)
	}
}

func checkpoint(s *scene) {
	s.run(forever)
	s.ready()
	out, err := s.c.ask(http.MethodPost, kubelet+"/checkpoint/default/"+s.name+"/c")
	check(s.T, err)
	s.has("answer", string(out), "checkpoint-"+s.name)
	found, _ := filepath.Glob(s.c.path("k/checkpoints/checkpoint-" + s.name + "_*.tar"))
	if len(found) != 1 {
		s.Errorf("archives %q", found)
	}
}

// nothingLeft is that deletion of all pods leaves nothing of them: the kubelet
// removes the last sandboxes a minute later.
func nothingLeft(s *scene) {
	s.kubectl("delete", "pod", "--all")
	s.eventually("nothing is left", func() error {
		var errs []error
		for _, dir := range []string{"l/pods", "l/containers", "l/cni/results", "s/pods", "s/containers", "s/netns", "s/runsc/runsc"} {
			for _, name := range names(s.c.path(dir)) {
				errs = append(errs, fmt.Errorf("%s/%s", dir, name))
			}
		}
		for _, name := range names(s.c.path("leases/e2e")) {
			if name[0] >= '0' && name[0] <= '9' {
				errs = append(errs, fmt.Errorf("lease of %s", name))
			}
		}
		for _, path := range isolate.MountsBelow(s.c.path("s")) {
			if path != s.c.path("s/null-netns") { // runsc keeps it for the next sandbox
				errs = append(errs, fmt.Errorf("mount %s", path))
			}
		}
		for _, dir := range cgroups(s.c.cgroup) {
			if strings.HasPrefix(filepath.Base(dir), "pod") {
				errs = append(errs, fmt.Errorf("cgroup %s", dir))
			}
		}
		return errors.Join(append(errs, s.c.sandboxes())...)
	})
}

func names(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return []string{err.Error()}
	}
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	return found
}

// sandboxes is an error that names the processes of runsc that there are.
func (c *cluster) sandboxes() error {
	var errs []error
	for _, pid := range names("/proc") {
		line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		if args := strings.Split(string(line), "\x00"); slices.ContainsFunc(args, func(arg string) bool {
			return strings.HasPrefix(arg, "--root="+c.path("s/runsc"))
		}) {
			errs = append(errs, fmt.Errorf("process %s: %q", pid, args))
		}
	}
	return errors.Join(errs...)
}
