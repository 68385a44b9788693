package cri

import (
	"context"
	"fmt"
	"math"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/proc"
)

// Sessions gives out the URLs of sessions for requests that have been checked;
// internal/stream's Server is it.
type Sessions interface {
	Exec(*runtime.ExecRequest) (url string, err error)
	Attach(*runtime.AttachRequest) (url string, err error)
	PortForward(*runtime.PortForwardRequest) (url string, err error)
}

// Exec returns a URL at which a command can be run in a container, once.
func (s *RuntimeServer) Exec(_ context.Context, req *runtime.ExecRequest) (*runtime.ExecResponse, error) {
	if len(req.Cmd) == 0 {
		return nil, invalid("cmd", "required")
	}
	if err := validateStreams(req); err != nil {
		return nil, err
	}
	c, err := s.pods.Running(req.ContainerId)
	if err != nil {
		return nil, err
	}
	req.ContainerId = c.ID
	url, err := s.options.Sessions.Exec(req)
	return &runtime.ExecResponse{Url: url}, err
}

// Attach returns a URL at which a container's own streams can be had, once.
func (s *RuntimeServer) Attach(_ context.Context, req *runtime.AttachRequest) (*runtime.AttachResponse, error) {
	if err := validateStreams(req); err != nil {
		return nil, err
	}
	c, err := s.pods.Running(req.ContainerId)
	if err != nil {
		return nil, err
	}
	switch config := c.Config(); {
	case req.Tty != config.Tty:
		return nil, invalid("tty", "%t, the container's is %t", req.Tty, config.Tty)
	case req.Stdin && !config.Stdin:
		return nil, invalid("stdin", "the container has none")
	}
	req.ContainerId = c.ID
	url, err := s.options.Sessions.Attach(req)
	return &runtime.AttachResponse{Url: url}, err
}

// PortForward returns a URL at which connections to ports of a pod can be made.
func (s *RuntimeServer) PortForward(_ context.Context, req *runtime.PortForwardRequest) (*runtime.PortForwardResponse, error) {
	if err := required("pod_sandbox_id", req.PodSandboxId); err != nil {
		return nil, err
	}
	for i, port := range req.Port {
		if port < 1 || port > math.MaxUint16 {
			return nil, invalid(fmt.Sprintf("port[%d]", i), "%d, not between 1 and 65535", port)
		}
	}
	p, err := s.pods.Pod(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	if state := p.State(); state != proc.Running {
		return nil, fmt.Errorf("pod sandbox %s: %s, not running: %w", p.ID, state, errdefs.ErrFailedPrecondition)
	}
	req.PodSandboxId = p.ID
	url, err := s.options.Sessions.PortForward(req)
	return &runtime.PortForwardResponse{Url: url}, err
}

// streams is what Exec and Attach ask for.
type streams interface {
	GetContainerId() string
	GetTty() bool
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
}

func validateStreams(req streams) error {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return err
	}
	switch {
	case req.GetTty() && req.GetStderr():
		return invalid("stderr", "a terminal (tty) has one output only")
	case !req.GetStdin() && !req.GetStdout() && !req.GetStderr():
		return invalid("stdin, stdout, stderr", "at least one is required")
	}
	return nil
}
