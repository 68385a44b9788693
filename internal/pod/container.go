package pod

import (
	"sync/atomic"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
)

// Container is a container of a pod.
type Container struct {
	ID  string
	Pod *Pod
	facts[containerRecord]
	init *proc.Init
	// output is set by the start, by a restore and by recovery, before the container
	// is seen to run.
	output *output
	// waiting are the ends of a restored container until it runs.
	waiting atomic.Pointer[runsc.Stdio]
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

// cgroupIn is what the sandbox calls the container's cgroup.
func cgroupIn(c *Container) string {
	if r := c.Facts().Restored; r != nil {
		return r.Cgroup
	}
	return c.ID
}

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
