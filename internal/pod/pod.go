package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/proc"
)

// Pod is a pod sandbox.
type Pod struct {
	ID   string
	home *Registry
	facts[podRecord]
	init *proc.Init // the root container; stands for the sandbox
	// release is a token for whoever tears the pod down.
	release chan struct{}
	// stopping says that the end of the sandbox is wanted.
	stopping atomic.Bool
	// ended is closed when the facts tell the end of the sandbox. It is nil for
	// one that never ran, or not since the daemon was started.
	ended   chan struct{}
	oomSeen atomic.Uint64
}

// Config is the configuration that the pod was made with. It is not changed.
func (p *Pod) Config() *runtime.PodSandboxConfig { return p.Facts().Config.M }

// State is derived from the facts: creating, running or stopped.
func (p *Pod) State() proc.State {
	f := p.Facts()
	switch {
	case !f.StoppedAt.IsZero():
		return proc.Stopped
	case !f.CreatedAt.IsZero():
		return proc.Running
	}
	return proc.Creating
}

// hostNetwork tells whether the pod uses the host's network.
func hostNetwork(c *runtime.PodSandboxConfig) bool {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtime.NamespaceMode_NODE
}

// network is the pod as the network knows it.
func (p *Pod) network() network.Pod {
	c := p.Config()
	n := network.Pod{
		ID: p.ID, NetNS: p.home.netNS(p.ID),
		Namespace: c.Metadata.Namespace, Name: c.Metadata.Name, UID: c.Metadata.Uid,
	}
	for _, m := range c.PortMappings {
		n.Ports = append(n.Ports, network.PortMapping{
			HostPort: m.HostPort, ContainerPort: m.ContainerPort,
			Protocol: strings.ToLower(m.Protocol.String()), HostIP: m.HostIp,
		})
	}
	return n
}

// oomKilled tells whether the kernel has killed for memory in the pod's cgroup
// since an exit was put down to it before. alone says that the sandbox goes on:
// then the kill was of one container only, and is used up.
func (p *Pod) oomKilled(alone bool) bool {
	kills := oomKills(p.Facts().Cgroup)
	if alone {
		return kills > p.oomSeen.Swap(kills)
	}
	return kills > p.oomSeen.Load()
}

// memoryCgroup returns the directory of a process's memory controller.
func memoryCgroup(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	return memoryCgroupIn("/sys/fs/cgroup", string(text))
}

// memoryCgroupIn reads /proc/<pid>/cgroup: "n:controllers:path" a line, where
// version 2 has the one line "0::path".
func memoryCgroupIn(root, text string) (string, error) {
	unified := ""
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		for _, controller := range strings.Split(fields[1], ",") {
			if controller == "memory" {
				return filepath.Join(root, "memory", fields[2]), nil
			}
		}
		if fields[0] == "0" {
			unified = filepath.Join(root, fields[2])
		}
	}
	if unified == "" {
		return "", errors.New("no memory cgroup")
	}
	return unified, nil
}

// oomKills reads how often the kernel has killed for memory in a cgroup.
func oomKills(dir string) uint64 {
	for _, file := range []string{"memory.events", "memory.oom_control"} { // version 2, version 1
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
				kills, _ := strconv.ParseUint(n, 10, 64)
				return kills
			}
		}
	}
	return 0
}
