package e2e

import (
	"errors"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

func configMap(s *scene) {
	const object = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {key: VALUE, other: o}\n"
	s.apply(strings.Replace(object, "VALUE", "old", 1))
	s.pod(`
volumes: [{name: v, configMap: {name: settings}}]
containers: [` + s.container("c", forever, "volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /one, subPath: other}]",
		"env: [{name: KEY, valueFrom: {configMapKeyRef: {name: settings, key: key}}}]", "envFrom: [{prefix: ALL_, configMapRef: {name: settings}}]") + `]`)
	s.ready()
	s.says("cat /v/key /v/other /one; echo; echo $KEY $ALL_other", "oldoo\nold o")
	s.apply(strings.Replace(object, "VALUE", "new", 1))
	s.eventually("the change is seen", func() error {
		if got := s.sh("cat /v/key"); got != "new" {
			return errors.New(got)
		}
		return nil
	})
}

func secret(s *scene) {
	s.kubectl("create", "secret", "generic", "word", "--from-literal=key=hidden")
	s.pod(`
volumes: [{name: v, secret: {secretName: word, defaultMode: 0400}}]
containers: [` + s.container("c", forever, "volumeMounts: [{name: v, mountPath: /v, readOnly: true}]",
		"env: [{name: KEY, valueFrom: {secretKeyRef: {name: word, key: key}}}]") + `]`)
	s.ready()
	s.says("cat /v/key; echo; echo $KEY; stat -L -c %a /v/key; touch /v/x 2>/dev/null || echo refused", "hidden\nhidden\n400\nrefused")
}

func emptyDir(s *scene) {
	const mounts = "volumeMounts: [{name: v, mountPath: /v}, {name: m, mountPath: /m}]"
	s.pod(`
volumes: [{name: v, emptyDir: {}}, {name: m, emptyDir: {medium: Memory, sizeLimit: 1Mi}}]
containers:
- ` + s.container("c", "echo shared >/v/f; echo memory >/m/f; "+forever, mounts) + `
- ` + s.container("d", "until [ -e /m/f ]; do sleep 0.1; done; "+forever, mounts))
	s.ready()
	s.eventually("the other container's files", func() error {
		got, err := s.command(nil, "exec", s.name, "-c", "d", "--", "cat", "/v/f", "/m/f")
		if err == nil && got != "shared\nmemory\n" {
			err = errors.New(got)
		}
		return err
	})
	// The one on disk is the host's, the other one the sandbox's.
	p, err := s.getPod(s.name)
	check(s.T, err)
	volumes := "k/pods/" + string(p.UID) + "/volumes/kubernetes.io~empty-dir/"
	s.same("file on the host", s.read(volumes+"v/f"), "shared")
	if found := names(s.c.path(volumes + "m")); len(found) > 0 {
		s.Errorf("the host has %q of what is in the sandbox's memory", found)
	}
	if out, err := s.command(nil, "exec", s.name, "-c", "d", "--", "sh", "-c", "head -c 3000000 /dev/zero >/m/big"); err == nil {
		s.Errorf("3 MB in 1 MiB of memory: %s", out)
	}
}

func hostPath(s *scene) {
	check(s.T, os.MkdirAll(s.c.path("host/sub"), 0o755))
	s.pod(`
volumes: [{name: v, hostPath: {path: ` + s.c.path("host") + `}}]
containers: [` + s.container("c", "echo inside >/v/f; "+forever, "volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /r, readOnly: true, recursiveReadOnly: IfPossible}, {name: v, mountPath: /s, subPath: sub}]") + `]`)
	s.ready()
	s.eventually("the file on the host", func() error { _, err := os.Stat(s.c.path("host/f")); return err })
	s.same("on the host", s.read("host/f"), "inside")
	s.says("touch /r/x 2>/dev/null || echo refused; echo x >/s/g; ls /v/sub", "refused\ng")
}

func projected(s *scene) {
	_, _ = s.command(nil, "create", "serviceaccount", "default") // no controller does
	s.kubectl("create", "configmap", "projected", "--from-literal=key=value")
	s.pod(`
serviceAccountName: default
volumes:
- name: v
  projected:
    sources:
    - configMap: {name: projected}
    - downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}, {path: cpu, resourceFieldRef: {containerName: c, resource: limits.cpu, divisor: 1m}}]}
    - serviceAccountToken: {path: token, audience: someone}
containers: [` + s.container("c", forever, "volumeMounts: [{name: v, mountPath: /v}]", "resources: {limits: {cpu: 250m}}",
		"env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]") + `]`)
	p := s.ready()
	s.says("cat /v/key; echo; cat /v/name; echo; cat /v/cpu; echo; echo $IP; tr -dc . </v/token", "value\n"+s.name+"\n250\n"+p.Status.PodIP+"\n..")
}

func imageVolume(s *scene) {
	s.pod(`
volumes: [{name: v, image: {reference: "` + s.c.signal + `", pullPolicy: IfNotPresent}}]
containers: [` + s.container("c", forever, "volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /e, subPath: etc}]") + `]`)
	s.ready()
	s.says("ls /v/bin/busybox; head -n 1 /e/passwd; touch /v/x 2>/dev/null || echo refused", "/v/bin/busybox\nroot:x:0:0:root:/root:/bin/sh\nrefused")
}

func fsGroup(s *scene) {
	s.pod(`
securityContext: {fsGroup: 3000, runAsUser: 1000}
volumes: [{name: v, emptyDir: {}}]
containers: [` + s.container("c", forever, "volumeMounts: [{name: v, mountPath: /v}]") + `]`)
	s.ready()
	s.says("touch /v/f && stat -c %g /v/f; id -G | tr ' ' '\\n' | grep 3000", "3000\n3000")
}

func pullSecret(s *scene) {
	host, _, _ := strings.Cut(s.c.private, "/")
	s.kubectl("create", "secret", "docker-registry", "pull", "--docker-server="+host, "--docker-username=user", "--docker-password=secret")
	s.pod("restartPolicy: Never\nimagePullSecrets: [{name: pull}]\ncontainers: [" + s.container("c", "echo pulled", "image: "+s.c.private, "imagePullPolicy: Always") + "]")
	s.ended(corev1.PodSucceeded)
}

// pullError is that an image that cannot be had is told, with the cause.
func (s *scene) pullError(fields, reason, cause string) {
	s.Helper()
	s.pod("containers: [" + s.container("c", forever, fields) + "]")
	s.waitPod(reason, func(p *corev1.Pod) bool {
		w := status(p, "c").State.Waiting
		return w != nil && w.Reason == reason
	})
	s.event("Failed", cause)
}

func pullDenied(s *scene) {
	s.pullError("image: "+s.c.private+", imagePullPolicy: Always", "ImagePullBackOff", "authorization failed")
}

func pullMissing(s *scene) {
	s.pullError("image: "+s.c.image+"23", "ImagePullBackOff", "not found")
}

func pullInvalid(s *scene) {
	s.pod("containers: [" + s.container("c", forever, "image: UPPER/Case:x") + "]")
	s.waitPod("InvalidImageName", func(p *corev1.Pod) bool {
		w := status(p, "c").State.Waiting
		return w != nil && w.Reason == "InvalidImageName"
	})
}

func pullNever(s *scene) {
	s.pod("containers: [" + s.container("c", forever, "image: "+s.c.image+"99", "imagePullPolicy: Never") + "]")
	s.waitPod("ErrImageNeverPull", func(p *corev1.Pod) bool {
		w := status(p, "c").State.Waiting
		return w != nil && w.Reason == "ErrImageNeverPull"
	})
}
