package runsc

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// execArgs are the arguments of ExecuteAsync (gVisor's control.ExecArgs). The
// names without tags are as the sentry spells them.
type execArgs struct {
	Argv             []string `json:"argv"`
	Envv             []string `json:"envv"`
	WorkingDirectory string   `json:"wd"`
	KUID, KGID       uint32
	ExtraKGIDs       []uint32
	NoNewPrivileges  bool
	Capabilities     *taskCapabilities
	StdioIsPty       bool
	GuestFDs         []int // the numbers that the files of the call get
	ContainerID      string
}

// taskCapabilities are sets of bits, one a capability.
type taskCapabilities struct {
	PermittedCaps, InheritableCaps, EffectiveCaps, BoundingCaps, AmbientCaps uint64
}

func newExecArgs(id string, p *specs.Process) (*execArgs, error) {
	caps, err := capabilities(p.Capabilities)
	if err != nil {
		return nil, err
	}
	return &execArgs{
		Argv:             p.Args,
		Envv:             p.Env,
		WorkingDirectory: p.Cwd,
		KUID:             p.User.UID,
		KGID:             p.User.GID,
		ExtraKGIDs:       p.User.AdditionalGids,
		NoNewPrivileges:  p.NoNewPrivileges,
		Capabilities:     caps,
		StdioIsPty:       p.Terminal,
		GuestFDs:         []int{0, 1, 2},
		ContainerID:      id,
	}, nil
}

func capabilities(c *specs.LinuxCapabilities) (*taskCapabilities, error) {
	if c == nil {
		return &taskCapabilities{}, nil
	}
	var t taskCapabilities
	for _, set := range []struct {
		names []string
		bits  *uint64
	}{
		{c.Permitted, &t.PermittedCaps},
		{c.Inheritable, &t.InheritableCaps},
		{c.Effective, &t.EffectiveCaps},
		{c.Bounding, &t.BoundingCaps},
		{c.Ambient, &t.AmbientCaps},
	} {
		for _, name := range set.names {
			bit, ok := capabilityBits[name]
			if !ok {
				return nil, fmt.Errorf("capability %q: %w", name, errdefs.ErrInvalidArgument)
			}
			*set.bits |= 1 << bit
		}
	}
	return &t, nil
}

// capabilityBits are the bits of the capabilities by name.
var capabilityBits = func() map[string]uint {
	bits := map[string]uint{}
	for _, c := range capability.ListKnown() {
		bits["CAP_"+strings.ToUpper(c.String())] = uint(c)
	}
	return bits
}()
