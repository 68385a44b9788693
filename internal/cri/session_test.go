package cri

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeSessions gives out the id of what a session is with as its URL.
type fakeSessions struct{}

func (fakeSessions) Exec(r *runtime.ExecRequest) (string, error)     { return r.ContainerId, nil }
func (fakeSessions) Attach(r *runtime.AttachRequest) (string, error) { return r.ContainerId, nil }
func (fakeSessions) PortForward(r *runtime.PortForwardRequest) (string, error) {
	return r.PodSandboxId, nil
}

func TestSessions(t *testing.T) {
	s, ctx := newServer(t), t.Context()
	p := s.pod("p", nil)
	idle, c := s.container(p, "idle", "sleep"), s.container(p, "c", "sleep")
	_, err := s.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c})
	s.must(err)

	exec, err := s.Exec(ctx, &runtime.ExecRequest{ContainerId: c[:12], Cmd: []string{"sh"}, Stdout: true})
	s.must(err)
	attach, err := s.Attach(ctx, &runtime.AttachRequest{ContainerId: c, Stderr: true})
	s.must(err)
	forward, err := s.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: p, Port: []int32{1, 65535}})
	s.must(err)
	if exec.Url != c || attach.Url != c || forward.Url != p {
		t.Errorf("URLs %s, %s, %s", exec.Url, attach.Url, forward.Url)
	}

	sh := []string{"sh"}
	for want, e := range map[string]struct {
		code codes.Code
		err  error
	}{
		"container_id: required":    {codes.InvalidArgument, second(s.Exec(ctx, &runtime.ExecRequest{Cmd: sh, Stdout: true}))},
		"cmd: required":             {codes.InvalidArgument, second(s.Exec(ctx, &runtime.ExecRequest{ContainerId: c, Stdout: true}))},
		"stderr: a terminal":        {codes.InvalidArgument, second(s.Exec(ctx, &runtime.ExecRequest{ContainerId: c, Cmd: sh, Tty: true, Stderr: true}))},
		"at least one is required":  {codes.InvalidArgument, second(s.Exec(ctx, &runtime.ExecRequest{ContainerId: c, Cmd: sh}))},
		`container "zz": not found`: {codes.NotFound, second(s.Exec(ctx, &runtime.ExecRequest{ContainerId: "zz", Cmd: sh, Stdout: true}))},
		idle + ": created":          {codes.FailedPrecondition, second(s.Exec(ctx, &runtime.ExecRequest{ContainerId: idle, Cmd: sh, Stdout: true}))},
		"tty: true, the container":  {codes.InvalidArgument, second(s.Attach(ctx, &runtime.AttachRequest{ContainerId: c, Tty: true, Stdout: true}))},
		"stdin: the container":      {codes.InvalidArgument, second(s.Attach(ctx, &runtime.AttachRequest{ContainerId: c, Stdin: true}))},
		"pod_sandbox_id: required":  {codes.InvalidArgument, second(s.PortForward(ctx, &runtime.PortForwardRequest{}))},
		"port[1]: 0, not between":   {codes.InvalidArgument, second(s.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: p, Port: []int32{80, 0}}))},
		"port[0]: 65536, not":       {codes.InvalidArgument, second(s.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: p, Port: []int32{65536}}))},
		`pod sandbox "zz"`:          {codes.NotFound, second(s.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: "zz"}))},
	} {
		if grpcstatus.Code(e.err) != e.code || !strings.Contains(e.err.Error(), want) {
			t.Errorf("error %v, want %s with %q", e.err, e.code, want)
		}
	}
	_, err = s.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p})
	s.must(err)
	_, err = s.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: p})
	if grpcstatus.Code(err) != codes.FailedPrecondition {
		t.Errorf("port of a pod that has stopped: %v", err)
	}
}
