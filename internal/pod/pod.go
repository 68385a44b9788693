package pod

import (
	"strings"
	"sync/atomic"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/stats"
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
	ended chan struct{}
	// kills is the last that was read of the cgroup.
	kills atomic.Pointer[memoryKills]
	meter meter
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

// allowedAnnotations are the names of the annotations that the pod's runsc is
// given. A handler that is not configured any more has none.
func (p *Pod) allowedAnnotations() []string {
	if h := p.home.Handlers[p.Facts().Handler]; h != nil {
		return h.Annotations
	}
	return nil
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

// cgroup is the sandbox's on the host.
func (p *Pod) cgroup() stats.Cgroup {
	return stats.Cgroup{Root: p.home.CgroupRoot, Memory: p.Facts().Cgroup}
}
