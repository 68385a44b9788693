package pod

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/image"
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
	// saving is a token for whoever saves the pod.
	saving  chan struct{}
	limiter *limiter
	// stopping says that the end of the sandbox is wanted.
	stopping atomic.Bool
	// ended is closed when the facts tell the end of the sandbox. It is nil for
	// one that never ran, or not since the daemon was started.
	ended chan struct{}
	kills killsRead
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

// userNS are the options of the user namespace of a pod, nil for the host's.
func userNS(c *runtime.PodSandboxConfig) *runtime.UserNamespace {
	o := c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if o.GetMode() != runtime.NamespaceMode_POD {
		return nil
	}
	return o
}

// owner is a user and group of the host.
type owner struct{ uid, gid int }

// rootOf returns who root in a pod is on the host.
func rootOf(c *runtime.PodSandboxConfig) owner {
	o := userNS(c)
	if o == nil {
		return owner{os.Getuid(), os.Getgid()}
	}
	return owner{int(o.Uids[0].HostId), int(o.Gids[0].HostId)}
}

// idMap is the user namespace of the pod as images know it, nil for the host's.
func (p *Pod) idMap() *image.IDMap {
	o := userNS(p.Config())
	if o == nil {
		return nil
	}
	form := func(m *runtime.IDMapping) string { return fmt.Sprintf("%d:%d:%d", m.ContainerId, m.HostId, m.Length) }
	return &image.IDMap{UIDs: form(o.Uids[0]), GIDs: form(o.Gids[0])}
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
