package e2e

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"
)

func users(s *scene) {
	s.pod("securityContext: {runAsUser: 1000, runAsGroup: 2000, supplementalGroups: [4000], supplementalGroupsPolicy: Strict}\ncontainers: [" +
		s.container("c", forever, "securityContext: {runAsNonRoot: true}") + "]")
	p := s.ready()
	s.says("id -u; id -g; id -G", "1000\n2000\n2000 4000")
	if u := status(p, "c").User; u == nil || u.Linux == nil || u.Linux.UID != 1000 {
		s.Errorf("status says user %+v", u)
	}
}

func notRoot(s *scene) {
	s.run(forever, "securityContext: {runAsNonRoot: true}")
	s.event("Failed", "runAsNonRoot")
}

func confined(s *scene) {
	s.run(forever, "securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, "+
		"capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}, seccompProfile: {type: RuntimeDefault}}")
	s.ready()
	s.says("touch /x 2>/dev/null || echo refused; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status; grep Seccomp: /proc/self/status",
		"refused\nCapEff:\t0000000000000400\nNoNewPrivs:\t1\nSeccomp:\t2")
}

func seccompFile(s *scene) {
	check(s.T, os.MkdirAll(s.c.path("k/seccomp"), 0o755))
	check(s.T, os.WriteFile(s.c.path("k/seccomp/modes.json"), []byte(`{"defaultAction": "SCMP_ACT_ALLOW",
		"syscalls": [{"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}]}`), 0o644))
	s.run(forever, "securityContext: {seccompProfile: {type: Localhost, localhostProfile: modes.json}}")
	s.ready()
	s.says("touch /tmp/f && chmod 700 /tmp/f 2>/dev/null || echo refused", "refused")
}

func privileged(s *scene) {
	s.run(forever, "securityContext: {privileged: true}")
	s.ready()
	s.says("mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo mounted; grep -q 'CapEff:.0000000000000000' /proc/self/status || echo capable", "mounted\ncapable")
}

func sysctls(s *scene) {
	s.pod("securityContext: {sysctls: [{name: net.ipv4.ip_local_port_range, value: 20000 20007}]}\ncontainers: [" + s.container("c", forever) + "]")
	s.ready()
	s.says("cat /proc/sys/net/ipv4/ip_local_port_range", "20000 20007")
}

func sharedPIDs(s *scene) {
	s.pod("shareProcessNamespace: true\ncontainers:\n- " + s.container("c", forever) + "\n- " + s.container("d", "sleep 1234 & "+forever))
	s.ready()
	s.eventually("the other's process", func() error {
		if out := s.sh("ps -o args"); !strings.Contains(out, "sleep 1234") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}

func ownPIDs(s *scene) {
	s.pod("containers:\n- " + s.container("c", forever) + "\n- " + s.container("d", "sleep 1234 & "+forever))
	s.ready()
	if out := s.sh("ps -o args"); strings.Contains(out, "sleep 1234") {
		s.Errorf("sees the other container's: %s", out)
	}
}

func userNamespace(s *scene) {
	s.pod(`
hostUsers: false
volumes: [{name: v, emptyDir: {}}]
containers: [` + s.container("c", "echo x >/v/f; "+forever, "volumeMounts: [{name: v, mountPath: /v}]") + `]`)
	p := s.ready()
	s.says("id -u; cat /v/f", "0\nx")
	// The kubelet has mapped the volume: on the host the file is root's.
	info, err := os.Stat(s.c.path("k/pods/" + string(p.UID) + "/volumes/kubernetes.io~empty-dir/v/f"))
	check(s.T, err)
	if owner := info.Sys().(*syscall.Stat_t).Uid; info.Size() != 2 || owner != 0 {
		s.Errorf("file of %d bytes and of user %d", info.Size(), owner)
	}
	// The sandbox is nobody there.
	seen := 0
	for _, dir := range cgroups(s.c.cgroup + "/kubepods/besteffort/pod" + string(p.UID)) {
		for _, pid := range strings.Fields(s.read(dir + "/cgroup.procs")) {
			info, err := os.Stat("/proc/" + pid)
			if err != nil {
				continue // has ended
			}
			seen++
			if user := info.Sys().(*syscall.Stat_t).Uid; user < 65536 {
				s.Errorf("process %s of user %d", pid, user)
			}
		}
	}
	if seen == 0 {
		s.Error("no process in the pod's cgroup")
	}
}

func runtimeClass(s *scene) {
	s.apply("apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: gvisor}\nhandler: runsc\n")
	s.pod("runtimeClassName: gvisor\nrestartPolicy: Never\ncontainers: [" + s.container("c", "dmesg | head -n 1") + "]")
	s.ended(corev1.PodSucceeded)
}

func unknownHandler(s *scene) {
	s.apply("apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: nowhere}\nhandler: nowhere\n")
	s.pod("runtimeClassName: nowhere\ncontainers: [" + s.container("c", forever) + "]")
	s.event("FailedCreatePodSandBox", "nowhere")
}

func network(s *scene) {
	s.pod(`
hostname: somebody
subdomain: sub
dnsPolicy: None
dnsConfig: {nameservers: [192.0.2.53], searches: [example.test], options: [{name: ndots, value: "3"}]}
hostAliases: [{ip: 192.0.2.1, hostnames: [alias]}]
containers: [` + s.container("c", "mkdir /tmp/w; echo hello >/tmp/w/index.html; httpd -p 8080 -h /tmp/w; "+forever) + `]`)
	p := s.ready()
	s.says("hostname; cat /etc/resolv.conf; grep -o alias /etc/hosts; grep -c '"+p.Status.PodIP+"' /etc/hosts",
		"somebody\nsearch example.test\nnameserver 192.0.2.53\noptions ndots:3\nalias\n1")
	other := s.name + "-2"
	s.podNamed(other, "restartPolicy: Never\ncontainers: ["+s.container("c",
		"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc "+p.Status.PodIP+" 8080")+"]")
	s.waitNamed(other, "the other pod ends", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	s.has("answer", s.kubectl("logs", other), "hello")
}

func hostNetwork(s *scene) {
	s.pod("hostNetwork: true\ncontainers: [" +
		s.container("c", "mkdir /tmp/w; echo host >/tmp/w/index.html; httpd -p 127.0.0.1:18080 -h /tmp/w; "+forever) + "]")
	if p := s.ready(); p.Status.PodIP != nodeName {
		s.Errorf("address %q", p.Status.PodIP)
	}
	s.has("answer", fetch(s, 18080), "host")
}

func hostPort(s *scene) {
	s.run("mkdir /tmp/w; echo mapped >/tmp/w/index.html; httpd -p 8080 -h /tmp/w; "+forever, "ports: [{containerPort: 8080, hostPort: 18081}]")
	s.ready()
	s.has("answer", fetch(s, 18081), "mapped")
}
