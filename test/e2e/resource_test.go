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
		var found []string
		for _, hierarchy := range []string{"", "/*"} {
			for _, class := range []string{"", "/burstable"} {
				more, _ := filepath.Glob("/sys/fs/cgroup" + hierarchy + s.c.cgroup + "/kubepods" + class + "/pod" + string(p.UID) + "/" + file)
				found = append(found, more...)
			}
		}
		for _, path := range found {
			if text, err := os.ReadFile(path); err == nil {
				return strings.TrimSpace(string(text))
			}
		}
	}
	s.Fatalf("no %q of pod %s", files, p.UID)
	return ""
}

// holds waits until the host holds both the pod and the sandbox in it to limits, of
// memory in MiB and of CPU in thousandths.
func (s *scene) holds(p *corev1.Pod, memory, cpu int64) {
	s.Helper()
	for _, cgroup := range []string{"", "*/"} {
		s.eventually("limits of the cgroup "+cgroup, func() error {
			got := s.limit(p, cgroup+"memory.limit_in_bytes", cgroup+"memory.max") + " " +
				strings.Fields(s.limit(p, cgroup+"cpu.cfs_quota_us", cgroup+"cpu.max"))[0]
			if want := fmt.Sprint(memory<<20, " ", cpu*100); got != want {
				return fmt.Errorf("%s, want %s", got, want)
			}
			return nil
		})
	}
}

// sees waits until the container is shown its limits.
func (s *scene) sees(memory, cpu int64) {
	s.Helper()
	s.eventually("limits in the container", func() error {
		got := s.sh("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max")
		if want := fmt.Sprintf("%d\n%d 100000\n", memory<<20, cpu*100); got != want {
			return fmt.Errorf("%q, want %q", got, want)
		}
		return nil
	})
}

const guaranteed = "{limits: {cpu: 200m, memory: 128Mi}, requests: {cpu: 200m, memory: 128Mi}}"

func resources(s *scene) {
	s.run(forever, "resources: "+guaranteed)
	p := s.ready()
	s.holds(p, 128, 200)
	s.sees(128, 200)
	s.says("grep -o 'MemTotal:.*' /proc/meminfo | tr -s ' '", "MemTotal: 131072 kB")
	r := status(p, "c").Resources
	if r == nil || r.Limits.Cpu().MilliValue() != 200 || r.Limits.Memory().Value() != 128<<20 {
		s.Errorf("status says %+v", r)
	}
}

// podResources are limits of the pod, whose container has none.
func podResources(s *scene) {
	s.pod("resources: {limits: {cpu: 300m, memory: 96Mi}, requests: {cpu: 100m, memory: 48Mi}}\ncontainers: [" + s.container("c", forever) + "]")
	s.holds(s.ready(), 96, 300)
}

// layerLimit is that the kubelet sees how much a container has written. An empty /tmp
// of the image would not do: runsc puts memory there.
func layerLimit(s *scene) {
	s.once("head -c 20000000 /dev/zero >/big; "+forever, "resources: {limits: {ephemeral-storage: 4Mi}}")
	s.event("Evicted", "ephemeral local storage")
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
		s.holds(p, to.memory, to.cpu)
		s.sees(to.memory, to.cpu)
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
