package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func runOnce(s *scene) {
	s.pods = append(s.pods, s.name)
	out, err := s.command(strings.NewReader("typed\n"), "run", s.name, "--image="+s.c.image, "--restart=Never", "-i", "--rm", "-q",
		`--overrides={"spec": {"nodeName": "`+nodeName+`"}}`, "--", "sh", "-c", "read x; echo got $x; exit 3")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		s.Errorf("exit status: %v", err)
	}
	s.has("output", out, "got typed")
}

func inASandbox(s *scene) {
	s.once("cat /proc/version; dmesg | head -n 3")
	s.ended(corev1.PodSucceeded)
	s.logHas("gvisor")
}

func restartAlways(s *scene) {
	s.run("exit 4")
	p := s.waitPod("two restarts", func(p *corev1.Pod) bool { return status(p, "c").RestartCount >= 2 })
	if last := status(p, "c").LastTerminationState.Terminated; last == nil || last.ExitCode != 4 {
		s.Errorf("last state %+v", last)
	}
	s.waitPod("CrashLoopBackOff", func(p *corev1.Pod) bool {
		w := status(p, "c").State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff"
	})
}

func restartOnFailure(s *scene) {
	s.pod(`
restartPolicy: OnFailure
volumes: [{name: v, emptyDir: {}}]
containers: [` + s.container("c", "[ -e /v/seen ] && exit 0; touch /v/seen; exit 1", "volumeMounts: [{name: v, mountPath: /v}]") + `]`)
	p := s.ended(corev1.PodSucceeded)
	if got := status(p, "c").RestartCount; got != 1 {
		s.Errorf("%d restarts", got)
	}
}

func restartNever(s *scene) {
	s.once("exit 7")
	e := s.exit(corev1.PodFailed)
	if e.ExitCode != 7 || e.Reason != "Error" {
		s.Errorf("ended with %+v", e)
	}
}

func badCommand(s *scene) {
	s.pod("restartPolicy: Never\ncontainers: [{name: c, image: " + s.c.image + ", command: [/no/such/program]}]")
	e := s.exit(corev1.PodFailed)
	if e.ExitCode != 128 && e.ExitCode != 127 || !strings.Contains(e.Message, "/no/such/program") {
		s.Errorf("ended with %+v", e)
	}
}

func initContainers(s *scene) {
	const mount = "volumeMounts: [{name: v, mountPath: /v}]"
	s.pod(`
restartPolicy: Never
volumes: [{name: v, emptyDir: {}}]
initContainers:
- ` + s.container("one", "sleep 1; echo one >>/v/order", mount) + `
- ` + s.container("two", "echo two >>/v/order", mount) + `
containers: [` + s.container("c", "echo three >>/v/order; cat /v/order", mount) + `]`)
	s.ended(corev1.PodSucceeded)
	s.same("order", s.kubectl("logs", s.name, "-c", "c"), "one\ntwo\nthree")
}

func initFails(s *scene) {
	s.pod(`
restartPolicy: Never
initContainers: [` + s.container("i", "exit 5") + `]
containers: [` + s.container("c", "echo never") + `]`)
	p := s.ended(corev1.PodFailed)
	if e := status(p, "i").State.Terminated; e == nil || e.ExitCode != 5 {
		s.Errorf("init container: %+v", status(p, "i").State)
	}
	if status(p, "c").State.Waiting == nil {
		s.Errorf("the container was started: %+v", status(p, "c").State)
	}
}

func sidecar(s *scene) {
	const mount = "volumeMounts: [{name: v, mountPath: /v}]"
	s.pod(`
restartPolicy: Never
volumes: [{name: v, emptyDir: {}}]
initContainers:
- ` + s.container("side", "sleep 1; touch /v/up; "+forever, mount, "restartPolicy: Always",
		"startupProbe: {exec: {command: [test, -e, /v/up]}, periodSeconds: 1, failureThreshold: 60}") + `
containers: [` + s.container("c", "test -e /v/up", mount) + `]`)
	p := s.ended(corev1.PodSucceeded)
	if e := status(p, "side").State.Terminated; e == nil || e.ExitCode != 0 {
		s.Errorf("the sidecar was not told to end: %+v", status(p, "side").State)
	}
}

func postStart(s *scene) {
	s.run("until [ -e /tmp/hook ]; do sleep 0.1; done; echo hooked; "+forever,
		`lifecycle: {postStart: {exec: {command: [sh, -c, "sleep 0.3; touch /tmp/hook"]}}}`)
	s.ready()
	s.logHas("hooked")
}

func postStartFails(s *scene) {
	s.run(forever, `lifecycle: {postStart: {exec: {command: [sh, -c, "echo no good; exit 1"]}}}`)
	s.waitPod("a restart", func(p *corev1.Pod) bool { return status(p, "c").RestartCount > 0 })
	s.event("FailedPostStartHook", "")
}

func preStop(s *scene) {
	s.pod(`
terminationGracePeriodSeconds: 20
volumes: [{name: v, hostPath: {path: ` + s.c.path("prestop") + `, type: DirectoryOrCreate}}]
containers: [` + s.container("c", "trap 'echo term >>/v/order; exit 0' TERM; sleep 1h & wait",
		`lifecycle: {preStop: {exec: {command: [sh, -c, "sleep 0.5; echo hook >>/v/order"]}}}`,
		"volumeMounts: [{name: v, mountPath: /v}]") + `]`)
	s.ready()
	s.kubectl("delete", "pod", s.name)
	s.same("order", s.read("prestop/order"), "hook\nterm")
}

// otherHooks is a hook that the kubelet waits for and one that it calls by HTTP.
func otherHooks(s *scene) {
	s.pod(`
terminationGracePeriodSeconds: 20
volumes: [{name: v, hostPath: {path: ` + s.c.path("hooks") + `, type: DirectoryOrCreate}}]
containers: [` + s.container("c", "mkdir -p /tmp/w/cgi-bin; printf '#!/bin/sh\necho hook >>/v/order; echo; echo\n' >/tmp/w/cgi-bin/stop; chmod 755 /tmp/w/cgi-bin/stop; "+
		"httpd -p 8080 -h /tmp/w; trap 'echo term >>/v/order; exit 0' TERM; sleep 1h & wait",
		"lifecycle: {postStart: {sleep: {seconds: 1}}, preStop: {httpGet: {port: 8080, path: /cgi-bin/stop}}}",
		"volumeMounts: [{name: v, mountPath: /v}]") + `]`)
	s.ready()
	s.kubectl("delete", "pod", s.name)
	s.same("order", s.read("hooks/order"), "hook\nterm")
}

// grace is that a container has its grace period and no more.
func grace(s *scene) {
	s.pod("terminationGracePeriodSeconds: 3\ncontainers: [" +
		s.container("c", "trap 'echo asked' TERM; while true; do sleep 0.1; done") + "]")
	s.ready()
	follow := s.follow("logs", "-f", s.name)
	begin := time.Now()
	s.kubectl("delete", "pod", s.name)
	if took := time.Since(begin); took < 3*time.Second {
		s.Errorf("gone after %v", took)
	}
	s.same("log", follow(), "asked")
}

func noGrace(s *scene) {
	s.pod("terminationGracePeriodSeconds: 600\ncontainers: [" + s.container("c", "trap '' TERM; while true; do sleep 0.1; done") + "]")
	s.ready()
	s.kubectl("delete", "pod", s.name, "--now")
}

func imageStopSignal(s *scene) {
	s.stopSignal("image: " + s.c.signal)
}

func podStopSignal(s *scene) {
	s.stopSignal("lifecycle: {stopSignal: SIGUSR1}")
}

// stopSignal is that a container with the fields given is stopped by SIGUSR1.
func (s *scene) stopSignal(fields string) {
	s.pod("os: {name: linux}\nterminationGracePeriodSeconds: 60\ncontainers: [" +
		s.container("c", "trap 'echo usr1; exit 0' USR1; trap 'echo term' TERM; while true; do sleep 0.1; done", fields) + "]")
	s.ready()
	follow := s.follow("logs", "-f", s.name)
	s.kubectl("delete", "pod", s.name)
	s.same("log", follow(), "usr1")
}

func deadline(s *scene) {
	s.pod("restartPolicy: Never\nactiveDeadlineSeconds: 2\ncontainers: [" + s.container("c", forever) + "]")
	if p := s.ended(corev1.PodFailed); p.Status.Reason != "DeadlineExceeded" {
		s.Errorf("reason %q", p.Status.Reason)
	}
}

func terminationMessage(s *scene) {
	s.once("echo a message >/dev/termination-log; exit 1")
	s.same("message", s.exit(corev1.PodFailed).Message, "a message")
}

func terminationLog(s *scene) {
	s.once("echo the last words; exit 1", "terminationMessagePolicy: FallbackToLogsOnError", "terminationMessagePath: /tmp/own")
	s.same("message", s.exit(corev1.PodFailed).Message, "the last words")
}

func probeExec(s *scene) {
	s.run("touch /tmp/ok; sleep 1; rm /tmp/ok; "+forever, "livenessProbe: {exec: {command: [test, -e, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1}")
	s.waitPod("a restart", func(p *corev1.Pod) bool { return status(p, "c").RestartCount > 0 })
	s.event("Unhealthy", "Liveness probe failed")
}

func probeTimeout(s *scene) {
	s.run(forever, "readinessProbe: {exec: {command: [sleep, '30']}, periodSeconds: 1, timeoutSeconds: 1}")
	s.event("Unhealthy", "timed out")
	if p, err := s.getPod(s.name); err != nil || isReady(p) {
		s.Errorf("ready, or %v", err)
	}
}

func probeHTTP(s *scene) {
	s.run("mkdir /tmp/w; httpd -p 8080 -h /tmp/w; "+forever, "readinessProbe: {httpGet: {path: /ok, port: 8080}, periodSeconds: 1}")
	s.event("Unhealthy", "404")
	s.sh("echo ok >/tmp/w/ok")
	s.ready()
	s.sh("rm /tmp/w/ok")
	s.waitPod("the pod is not ready any more", func(p *corev1.Pod) bool { return !isReady(p) })
}

func probeTCP(s *scene) {
	s.run("sleep 1; httpd -p 8080; "+forever, "readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}",
		"livenessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1, failureThreshold: 30, initialDelaySeconds: 1}")
	s.ready()
	s.event("Unhealthy", "Liveness probe failed")
}

func probeGRPC(s *scene) {
	s.pod("containers: [{name: c, image: \"" + s.c.health + "\", readinessProbe: {grpc: {port: 9000}, periodSeconds: 1}, " +
		"livenessProbe: {grpc: {port: 9000, service: nobody}, periodSeconds: 1, failureThreshold: 100}}]")
	s.ready()
	s.event("Unhealthy", "Liveness probe failed")
}

func probeStartup(s *scene) {
	s.run("sleep 2; touch /tmp/up; "+forever, "startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1, failureThreshold: 60}",
		"livenessProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1, failureThreshold: 1}")
	if n := status(s.ready(), "c").RestartCount; n != 0 {
		s.Errorf("%d restarts", n)
	}
}

func oom(s *scene) {
	s.once("tail -c 400000000 </dev/zero", "resources: {limits: {memory: 96Mi}}")
	e := s.exit(corev1.PodFailed)
	if e.Reason != "OOMKilled" || e.ExitCode != 137 {
		s.Errorf("ended with %+v", e)
	}
	s.has("message", e.Message, "memory")
}

// thirty is that many pods at once come and go.
func thirty(s *scene) {
	const n = 30
	var manifests []string
	for i := range n {
		name := fmt.Sprintf("many-%d", i)
		s.pods = append(s.pods, name)
		manifests = append(manifests, podManifest(name, "containers: ["+s.container("c", "echo here; "+forever)+"]"))
	}
	s.apply(strings.Join(manifests, "---\n"))
	for _, name := range s.pods {
		s.waitNamed(name, name+" is ready", isReady)
	}
	s.kubectl(append([]string{"delete", "pod"}, s.pods...)...)
	s.pods = nil
}
