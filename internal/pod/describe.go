package pod

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/runscd/runscd/internal/proc"
)

// Description is what the verbose status of a pod or container tells besides
// the CRI's own fields. It is for people; programs get no promise.
type Description struct {
	PID     int         `json:"pid,omitempty"` // of the sandbox, on the host
	State   string      `json:"state"`
	Bundle  string      `json:"bundle"`
	Runsc   string      `json:"runsc"` // the binary
	Handler string      `json:"runtimeHandler"`
	NetNS   string      `json:"netns,omitempty"`
	Cgroup  string      `json:"memoryCgroup,omitempty"`
	Message string      `json:"message,omitempty"` // why the sandbox died
	Paused  bool        `json:"paused,omitempty"`
	Spec    *specs.Spec `json:"runtimeSpec,omitempty"`
}

// Describe describes a pod.
func (p *Pod) Describe() Description {
	d := describe(p, p.init)
	if !hostNetwork(p.Config()) {
		d.NetNS = p.home.netNS(p.ID)
	}
	return d
}

// Describe describes a container.
func (c *Container) Describe() Description {
	return describe(c.Pod, c.init)
}

func describe(p *Pod, init *proc.Init) Description {
	f := p.Facts()
	d := Description{
		State: init.State().String(), Bundle: init.Bundle, Runsc: init.Runtime.Path(),
		Handler: f.Handler, Cgroup: f.Cgroup, Message: f.Message, Paused: f.Paused,
	}
	if p.State() == proc.Running {
		d.PID = f.Host.PID
	}
	if s, err := readBundle(init.Bundle); err == nil {
		d.Spec = s // of what runs here; a stopped pod of an earlier boot has none
	}
	return d
}
