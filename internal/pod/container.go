package pod

import (
	"cmp"
	"sync/atomic"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/proc"
)

// Container is a container of a pod.
type Container struct {
	ID  string
	Pod *Pod
	facts[containerRecord]
	init *proc.Init
	// output is set by the start and by recovery, before the container is
	// seen to run.
	output *output
	// ended is closed when the facts tell the end.
	ended chan struct{}
	// killed says that the container gets SIGKILL from here.
	killed atomic.Bool
	// release is a token for whoever starts the container or tears it down.
	release chan struct{}
}

// Config is the configuration that the container was made with. It is not
// changed.
func (c *Container) Config() *runtime.ContainerConfig { return c.Facts().Config.M }

// State is derived from the facts: creating, created, running or stopped.
func (c *Container) State() proc.State {
	f := c.Facts()
	switch {
	case !f.FinishedAt.IsZero():
		return proc.Stopped
	case !f.StartedAt.IsZero():
		return proc.Running
	case !f.CreatedAt.IsZero():
		return proc.Created
	}
	return proc.Creating
}

// cgroup is what the sandbox calls the container's cgroup.
func (c *Container) cgroup() string { return cmp.Or(c.Facts().Cgroup, c.ID) }

// Reasons of an exit that the kubelet and its users know.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	reasonLost       = "RecordUnusable" // runscd's own word
)

// startErrorCode is the exit code of a container whose command never ran.
const startErrorCode = 128

// lostCode is the exit code of a container that nothing is known of.
const lostCode = 255
