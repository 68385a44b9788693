package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// limit reads a limit of a pod's cgroup, the first of the files that is there;
// the second is that of cgroup version 2.
func (s *scene) limit(p *corev1.Pod, files ...string) string {
	s.Helper()
	for _, file := range files {
		found, _ := filepath.Glob("/sys/fs/cgroup/*" + s.c.cgroup + "/kubepods/pod" + string(p.UID) + "/" + file)
		more, _ := filepath.Glob("/sys/fs/cgroup" + s.c.cgroup + "/kubepods/pod" + string(p.UID) + "/" + file)
		for _, path := range append(found, more...) {
			if text, err := os.ReadFile(path); err == nil {
				return strings.TrimSpace(string(text))
			}
		}
	}
	s.Fatalf("no %q of pod %s", files, p.UID)
	return ""
}

const guaranteed = "{limits: {cpu: 200m, memory: 128Mi}, requests: {cpu: 200m, memory: 128Mi}}"

func resources(s *scene) {
	s.run(forever, "resources: "+guaranteed)
	p := s.ready()
	s.same("memory of the pod's cgroup", s.limit(p, "memory.limit_in_bytes", "memory.max"), fmt.Sprint(128<<20))
	s.same("CPU of the pod's cgroup", strings.Fields(s.limit(p, "cpu.cfs_quota_us", "cpu.max"))[0], "20000")
	r := status(p, "c").Resources
	if r == nil || r.Limits.Cpu().MilliValue() != 200 || r.Limits.Memory().Value() != 128<<20 {
		s.Errorf("status says %+v", r)
	}
}

// resize changes the limits of the running container, without a restart.
func resize(s *scene) {
	s.run(forever, "resources: "+guaranteed, "resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}, {resourceName: memory, restartPolicy: NotRequired}]")
	s.ready()
	for _, to := range []struct {
		cpu, memory int64
	}{{400, 256}, {100, 192}} {
		s.kubectl("patch", "pod", s.name, "--subresource=resize", "-p", fmt.Sprintf(
			`{"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "%dm", "memory": "%dMi"}, "requests": {"cpu": "%[1]dm", "memory": "%[2]dMi"}}}]}}`,
			to.cpu, to.memory))
		p := s.waitPod("the new resources", func(p *corev1.Pod) bool {
			r := status(p, "c").Resources
			return r != nil && r.Limits.Cpu().MilliValue() == to.cpu && r.Limits.Memory().Value() == to.memory<<20
		})
		s.same("memory of the pod's cgroup", s.limit(p, "memory.limit_in_bytes", "memory.max"), fmt.Sprint(to.memory<<20))
		if n := status(p, "c").RestartCount; n != 0 {
			s.Errorf("%d restarts", n)
		}
	}
}

// podFigures is a part of the answer of the kubelet's summary API.
type podFigures struct {
	PodRef struct{ Name string }
	CPU    struct{ UsageCoreNanoSeconds uint64 }
	Memory struct{ WorkingSetBytes uint64 }

	Network *struct{ RxBytes uint64 }

	Containers []struct {
		Name   string
		Memory struct{ WorkingSetBytes uint64 }
	}
}

func summary(s *scene) {
	s.run("ping -c 1 127.0.0.1; "+forever, "readinessProbe: {tcpSocket: {port: 1}, periodSeconds: 1}")
	s.eventually("figures of the pod", func() error {
		out, err := s.c.ask(http.MethodGet, kubelet+"/stats/summary")
		if err != nil {
			return err
		}
		var all struct{ Pods []podFigures }
		if err := json.Unmarshal(out, &all); err != nil {
			return err
		}
		for _, p := range all.Pods {
			if p.PodRef.Name == s.name && p.CPU.UsageCoreNanoSeconds > 0 && p.Memory.WorkingSetBytes > 0 &&
				p.Network != nil && p.Network.RxBytes > 0 && len(p.Containers) == 1 && p.Containers[0].Memory.WorkingSetBytes > 0 {
				return nil
			}
		}
		return fmt.Errorf("%.2000s", out)
	})
}

func metrics(s *scene) {
	s.run(forever)
	s.ready()
	for path, series := range map[string]string{
		"/metrics/cadvisor": `container_memory_working_set_bytes{container="c"`,
		"/metrics/resource": `container_cpu_usage_seconds_total{container="c"`,
	} {
		s.eventually("series of the pod", func() error {
			out, err := s.c.ask(http.MethodGet, kubelet+path)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(out)) {
				if strings.HasPrefix(line, series) && strings.Contains(line, `pod="`+s.name+`"`) {
					return nil
				}
			}
			return fmt.Errorf("%d bytes of %s without %s", len(out), path, series)
		})
	}
}
