package pod

import "github.com/sirupsen/logrus"

// memoryKills is what the kernel tells of its kills for memory in a pod's cgroup.
type memoryKills struct {
	count uint64
	why   string // the limit
}

// memoryKills reads what the kernel tells, or what it last has told if the cgroup
// has gone with the sandbox.
func (p *Pod) memoryKills() memoryKills {
	known := p.Facts().OOMKills
	if p.Facts().Cgroup == "" { // it never ran
		return memoryKills{}
	}
	count, err := p.cgroup().OOMKills()
	if err != nil {
		if last := p.kills.Load(); last != nil {
			return *last
		}
		return memoryKills{count: known}
	}
	k := memoryKills{count: count}
	if count > known {
		k.why = "killed by the kernel for memory: " + p.cgroup().Shortage()
	}
	p.kills.Store(&k)
	return k
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
