package pod

import (
	"sync"

	"github.com/sirupsen/logrus"
)

// memoryKills is what the kernel tells of its kills for memory in a pod's cgroup.
type memoryKills struct {
	count uint64
	why   string // the limit
}

// killsRead is the last that was read of a pod's cgroup. The zero value is ready.
type killsRead struct {
	mu sync.Mutex // also over the reading: small files of the kernel's
	// +checklocks:mu
	last memoryKills
}

// memoryKills reads what the kernel tells, or what it last has told if the cgroup
// has gone with the sandbox. Whoever changes limits calls it before, so that the
// limit by which the kernel has killed is told as it was then.
func (p *Pod) memoryKills() memoryKills {
	known := p.Facts().OOMKills
	if p.Facts().Cgroup == "" { // it never ran
		return memoryKills{}
	}
	p.kills.mu.Lock()
	defer p.kills.mu.Unlock()
	p.kills.last.count = max(p.kills.last.count, known)
	count, err := p.cgroup().OOMKills()
	if err == nil && count > p.kills.last.count {
		p.kills.last = memoryKills{count, "killed by the kernel for memory: " + p.cgroup().Shortage()}
	}
	return p.kills.last
}

// outOfMemory tells by which limit the kernel has killed for memory in the pod
// since an exit was put down to that before; "" if it has not. alone says that the
// sandbox goes on: then the kill was of one container only, and is used up.
func (p *Pod) outOfMemory(alone bool) string {
	k := p.memoryKills()
	if k.count <= p.Facts().OOMKills {
		return ""
	}
	if alone {
		if err := p.update(func(f *podRecord) { f.OOMKills = k.count }); err != nil {
			logrus.WithField("pod", p.ID).WithError(err).Error("pod record")
		}
	}
	return k.why
}
