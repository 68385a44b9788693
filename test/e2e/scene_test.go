package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// scene is what a behaviour is shown on: pods of its own, of which the first has
// its name.
type scene struct {
	*testing.T
	c    *cluster
	name string
	pods []string
}

var notInName = regexp.MustCompile("[^a-z0-9]+")

// forever is the end of a script that waits to be told to stop.
const forever = "trap 'exit 0' TERM; sleep 1h & wait"

// container is a container of a pod specification, in YAML, which runs a script.
// More are further fields; an image among them is in place of busybox.
func (s *scene) container(name, script string, more ...string) string {
	fields := append([]string{"name: " + name, "command: [sh, -c, " + strconv.Quote(script) + "]"}, more...)
	all := strings.Join(fields, ", ")
	if !strings.Contains(all, "image: ") {
		all += ", image: " + s.c.image
	}
	return "{" + all + "}"
}

// run makes the scene's pod of one container.
func (s *scene) run(script string, more ...string) {
	s.Helper()
	s.pod("containers: [" + s.container("c", script, more...) + "]")
}

// once makes the scene's pod of one container that is not restarted.
func (s *scene) once(script string, more ...string) {
	s.Helper()
	s.pod("restartPolicy: Never\ncontainers: [" + s.container("c", script, more...) + "]")
}

// pod makes the scene's pod by a specification.
func (s *scene) pod(spec string) {
	s.Helper()
	s.podNamed(s.name, spec)
}

func (s *scene) podNamed(name, spec string) {
	s.Helper()
	s.pods = append(s.pods, name)
	s.apply(podManifest(name, spec))
}

func podManifest(name, spec string) string {
	if !strings.Contains(spec, "terminationGracePeriodSeconds") {
		spec += "\nterminationGracePeriodSeconds: 2"
	}
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + ", labels: {run: " + name + "}}\nspec:\n  nodeName: " + nodeName +
		"\n  " + strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  ") + "\n"
}

// apply gives manifests to kubectl.
func (s *scene) apply(manifest string) {
	s.Helper()
	if _, err := s.command(strings.NewReader(manifest), "apply", "-f", "-"); err != nil {
		s.Fatalf("%s\n%v", manifest, err)
	}
}

// kubectl returns the output of a command that succeeds.
func (s *scene) kubectl(args ...string) string {
	s.Helper()
	out, err := s.command(nil, args...)
	if err != nil {
		s.Fatalf("kubectl %q: %v", args, err)
	}
	return out
}

// command returns the output and the errors of a command; so does its error.
func (s *scene) command(stdin *strings.Reader, args ...string) (string, error) {
	cmd, cancel := s.start(args...)
	defer cancel()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if stdin != nil {
		cmd.Stdin = stdin
	}
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out.String())
	}
	return out.String(), err
}

// start prepares a command that ends by itself or is killed.
func (s *scene) start(args ...string) (*exec.Cmd, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	cmd := exec.CommandContext(ctx, s.c.kube("kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.c.path("kubeconfig"), "HOME="+s.c.dir)
	cmd.Dir = s.c.dir
	cmd.WaitDelay = time.Second
	return cmd, cancel
}

// sh runs a script in the scene's pod, and returns what it prints.
func (s *scene) sh(script string) string {
	s.Helper()
	return s.kubectl("exec", s.name, "--", "sh", "-c", script)
}

// says is that a script in the pod prints just this.
func (s *scene) says(script, want string) {
	s.Helper()
	s.same(script, s.sh(script), want)
}

func (s *scene) same(what, got, want string) {
	s.Helper()
	if strings.TrimSpace(got) != want {
		s.Fatalf("%s: %q, want %q", what, got, want)
	}
}

func (s *scene) has(what, text, part string) {
	s.Helper()
	if !strings.Contains(text, part) {
		s.Fatalf("%s has no %q:\n%s", what, part, text)
	}
}

// logHas waits for something in the log of the pod.
func (s *scene) logHas(part string, args ...string) {
	s.Helper()
	s.eventually(fmt.Sprintf("the log has %q", part), func() error {
		out, err := s.command(nil, append([]string{"logs", s.name}, args...)...)
		if err == nil && !strings.Contains(out, part) {
			err = errors.New(out)
		}
		return err
	})
}

func (s *scene) eventually(what string, try func() error) {
	s.Helper()
	eventually(s.T, what, try)
}

func (s *scene) getPod(name string) (*corev1.Pod, error) {
	body, err := s.c.get("/api/v1/namespaces/default/pods/" + name)
	if err != nil {
		return nil, err
	}
	p := &corev1.Pod{}
	return p, json.Unmarshal(body, p)
}

// waitPod waits until a pod is as it should be.
func (s *scene) waitPod(what string, is func(*corev1.Pod) bool) *corev1.Pod {
	s.Helper()
	return s.waitNamed(s.name, what, is)
}

func (s *scene) waitNamed(name, what string, is func(*corev1.Pod) bool) *corev1.Pod {
	s.Helper()
	var p *corev1.Pod
	s.eventually(what, func() error {
		var err error
		if p, err = s.getPod(name); err != nil {
			return err
		}
		if !is(p) {
			status, _ := json.Marshal(p.Status)
			return fmt.Errorf("%s", status)
		}
		return nil
	})
	return p
}

// ready waits until all containers of the pod run and are ready.
func (s *scene) ready() *corev1.Pod {
	s.Helper()
	return s.waitPod("the pod is ready", isReady)
}

func isReady(p *corev1.Pod) bool {
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

// ended waits until the pod has ended with success or failure.
func (s *scene) ended(phase corev1.PodPhase) *corev1.Pod {
	s.Helper()
	p := s.waitPod("the pod ends", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
	if p.Status.Phase != phase {
		s.Fatalf("the pod is %s, want %s", p.Status.Phase, phase)
	}
	return p
}

// exit is how the pod's container, which is not restarted, has ended.
func (s *scene) exit(phase corev1.PodPhase) *corev1.ContainerStateTerminated {
	s.Helper()
	return s.ended(phase).Status.ContainerStatuses[0].State.Terminated
}

// status is that of a container of any kind.
func status(p *corev1.Pod, container string) corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{
		p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses,
	} {
		for _, cs := range list {
			if cs.Name == container {
				return cs
			}
		}
	}
	return corev1.ContainerStatus{}
}

// event waits for an event of the scene's pod.
func (s *scene) event(reason, part string) {
	s.Helper()
	s.eventually(fmt.Sprintf("event %s with %q", reason, part), func() error {
		out, err := s.command(nil, "get", "events", "--field-selector", "involvedObject.name="+s.name,
			"-o", `jsonpath={range .items[*]}{.reason}: {.message}{"\n"}{end}`)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, reason+": ") && strings.Contains(line, part) {
				return nil
			}
		}
		return errors.New(out)
	})
}

// explain shows what became of the scene's pods.
func (s *scene) explain() {
	for _, name := range s.pods {
		out, _ := s.command(nil, "describe", "pod", name)
		log, _ := s.command(nil, "logs", name, "--all-containers", "--tail=20")
		s.Logf("%s\n%s", out, log)
	}
}

// remove lets the scene's pods go.
func (s *scene) remove() {
	if len(s.pods) > 0 {
		_, _ = s.command(nil, append([]string{"delete", "pod", "--wait=false", "--ignore-not-found"}, s.pods...)...)
	}
}
