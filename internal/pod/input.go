package pod

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/stdio"
)

// stdinFIFO is the name of the FIFO in a container's directory that it reads.
const stdinFIFO = "stdin"

// openStdin opens what a container without a terminal reads: nothing, a FIFO that
// never ends, or with stdin_once a pipe that ends when input is closed. input is
// nil but for the last.
func openStdin(dir string, config *runtime.ContainerConfig) (stdin, input *os.File, err error) {
	switch {
	case !config.Stdin:
		stdin, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	case config.StdinOnce:
		return os.Pipe()
	default:
		stdin, err = stdio.Create(filepath.Join(dir, stdinFIFO))
	}
	return stdin, nil, err
}

// takeInput opens what a client of Attach writes to. Its Close ends a write that
// the container holds up and, if it is the container's one input, that.
func (c *Container) takeInput() (io.WriteCloser, error) {
	switch config := c.Config(); {
	case !config.Stdin:
		return nil, fmt.Errorf("container %s: stdin: it has none: %w", c.ID, errdefs.ErrInvalidArgument)
	case config.Tty:
		return c.output.terminal.Dup()
	case config.StdinOnce:
		select {
		case input := <-c.output.stdin:
			// From now on its end is the client's, and the daemon's.
			c.kept().drop(keptStdin)
			return input, nil
		default:
			return nil, fmt.Errorf("container %s: stdin: with stdin_once one client can have it, and none when it was lost in a restart of the daemon: %w", c.ID, errdefs.ErrFailedPrecondition)
		}
	}
	return stdio.OpenInput(filepath.Join(c.Pod.home.containerDir(c.ID), stdinFIFO))
}
