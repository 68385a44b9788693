package integration

import (
	"os"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSysctls has sysctls hold in the pod, and nowhere else, before its first
// container runs.
func TestSysctls(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	sysctls := func(set map[string]string) func(*runtime.PodSandboxConfig) {
		return func(c *runtime.PodSandboxConfig) { c.Linux.Sysctls = set }
	}
	const file = "/proc/sys/net/ipv4/ip_local_port_range"
	host, err := os.ReadFile(file)
	check(t, err)
	p := d.runPod(t, sysctls(map[string]string{
		"net.ipv4.ip_local_port_range": "20000 20007",
		"net.ipv4.tcp_rmem":            "4096 65536 131072",
		"net.ipv4.ip_forward":          "1",
		"kernel.yama.ptrace_scope":     "0",
		"fs.nr_open":                   "4096",
	}))
	c := p.run(t, "cat "+file+"; "+forever)
	c.waitFor(t, "20000 20007\n")
	c.says(t, "cd /proc/sys; cat net/ipv4/tcp_rmem kernel/yama/ptrace_scope fs/nr_open", "4096\t65536\t131072\n0\n4096\n")
	if now, err := os.ReadFile(file); err != nil || string(now) != string(host) {
		t.Errorf("the host's: %q, %v, was %q", now, err, host)
	}
	d.runPod(t).run(t, forever).says(t, "cat "+file+" | grep -c 20007 || true", "0\n")

	with6 := d.runPod(t, sysctls(map[string]string{"net.ipv6.conf.all.disable_ipv6": "0"}))
	with6.run(t, forever).says(t, "grep -q eth0 /proc/net/if_inet6 && echo has", "has\n")
	without6 := d.runPod(t, sysctls(map[string]string{"net.ipv6.conf.all.disable_ipv6": "1"}))
	without6.run(t, forever).says(t, "grep -q eth0 /proc/net/if_inet6 || echo has not", "has not\n")

	low := d.runPod(t, sysctls(map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}))
	low.run(t, forever, security(func(s *runtime.LinuxContainerSecurityContext) {
		s.RunAsUser = &runtime.Int64Value{Value: 1000}
		s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}}
	})).says(t, "nc -l -p 80 -e true & while ! nc 127.0.0.1 80 </dev/null 2>/dev/null; do :; done; wait && echo served", "served\n")

	for name, value := range map[string]string{
		"kernel.shm_rmid_forced":              "1",    // not in a sandbox
		"net.ipv4.ip_unprivileged_port_start": "1024", // it is 0
		"net.core.somaxconn":                  "4096", // only to be read
		"net.ipv4.ip_local_port_range":        "9 1",
		"fs.nr_open":                          "-1",
		"kernel.hostname":                     "other",
	} {
		config := d.podConfig()
		sysctls(map[string]string{name: value})(config)
		_, err := d.pods.RunPodSandbox(ctx(t), config, "")
		refused(t, err, codes.InvalidArgument, `sysctl "`+name+`"`)
	}
}
