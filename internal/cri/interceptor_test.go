package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/runsc"
)

// logged gives what f logs, at every level.
func logged(t *testing.T, f func()) string {
	t.Helper()
	var b bytes.Buffer
	log := logrus.StandardLogger()
	out, level, formatter := log.Out, log.Level, log.Formatter
	defer func() {
		log.SetOutput(out)
		log.SetLevel(level)
		log.SetFormatter(formatter)
	}()
	log.SetOutput(&b)
	log.SetLevel(logrus.TraceLevel)
	log.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true})
	f()
	return b.String()
}

// call runs a handler behind the interceptor.
func call(method string, req any, handle grpc.UnaryHandler) (any, error) {
	return unary(context.Background(), req, &grpc.UnaryServerInfo{FullMethod: "/runtime.v1.RuntimeService/" + method}, handle)
}

func TestCodeOfAnError(t *testing.T) {
	wrapped := func(err error) error { return fmt.Errorf("start of container x: %w", fmt.Errorf("inner: %w", err)) }
	for _, tt := range []struct {
		err  error
		want codes.Code
	}{
		{wrapped(errdefs.ErrInvalidArgument), codes.InvalidArgument},
		{wrapped(errdefs.ErrNotFound), codes.NotFound},
		{wrapped(errdefs.ErrAlreadyExists), codes.AlreadyExists},
		{wrapped(errdefs.ErrPermissionDenied), codes.PermissionDenied},
		{wrapped(errdefs.ErrFailedPrecondition), codes.FailedPrecondition},
		{wrapped(errdefs.ErrUnavailable), codes.Unavailable},
		{wrapped(errdefs.ErrNotImplemented), codes.Unimplemented},
		{wrapped(errdefs.ErrDataLoss), codes.DataLoss},
		{wrapped(errdefs.ErrResourceExhausted), codes.ResourceExhausted},
		{wrapped(errdefs.ErrUnauthenticated), codes.Unauthenticated},
		{wrapped(errdefs.ErrInternal), codes.Internal},
		{wrapped(runsc.ErrNoExecutable), codes.InvalidArgument},
		{wrapped(context.DeadlineExceeded), codes.DeadlineExceeded},
		{wrapped(&os.PathError{Op: "write", Path: "/a", Err: unix.ENOSPC}), codes.ResourceExhausted},
		{wrapped(unix.EDQUOT), codes.ResourceExhausted},
		{wrapped(context.Canceled), codes.Canceled},
		{wrapped(errors.New("anything")), codes.Unknown},
		{status.Error(codes.ResourceExhausted, "slow"), codes.ResourceExhausted},
		// The cause and what its undoing met.
		{errors.Join(wrapped(errdefs.ErrInvalidArgument), errors.New("undoing")), codes.InvalidArgument},
		{errors.Join(errors.New("cause"), wrapped(errdefs.ErrUnavailable)), codes.Unavailable},
		// A deadline is the deadline's, whatever the sandbox said of it.
		{fmt.Errorf("%w: %w", errdefs.ErrUnavailable, context.DeadlineExceeded), codes.DeadlineExceeded},
	} {
		_, err := call("StartContainer", nil, func(context.Context, any) (any, error) { return nil, tt.err })
		if status.Code(err) != tt.want || status.Convert(err).Message() != status.Convert(tt.err).Message() {
			t.Errorf("%v: %v, want code %s", tt.err, err, tt.want)
		}
	}
	if _, err := call("StartContainer", nil, func(context.Context, any) (any, error) { return nil, nil }); err != nil {
		t.Errorf("no error became %v", err)
	}
}

func TestAPanicIsAnErrorOfOneRPC(t *testing.T) {
	text := logged(t, func() {
		resp, err := call("StartContainer", nil, func(context.Context, any) (any, error) { panic("oh") })
		if resp != nil || status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "oh") {
			t.Errorf("%v, %v", resp, err)
		}
		err = stream(nil, nil, &grpc.StreamServerInfo{FullMethod: "/x/GetContainerEvents"}, func(any, grpc.ServerStream) error { panic("oh") })
		if status.Code(err) != codes.Internal {
			t.Errorf("stream: %v", err)
		}
	})
	if strings.Count(text, "interceptor_test.go") < 2 {
		t.Errorf("no stack in the log:\n%s", text)
	}
}

func TestOneLineARPC(t *testing.T) {
	for _, tt := range []struct {
		method    string
		req, resp any
		err       error
		want      []string
	}{
		{"StartContainer", &runtime.StartContainerRequest{ContainerId: "c1"}, &runtime.StartContainerResponse{}, nil, []string{"level=info", "rpc=StartContainer", "container=c1", "took="}},
		{"RunPodSandbox", &runtime.RunPodSandboxRequest{}, &runtime.RunPodSandboxResponse{PodSandboxId: "p1"}, nil, []string{"level=info", "pod=p1"}},
		{"PullImage", &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: "busybox"}, Auth: &runtime.AuthConfig{Password: "secret"}}, &runtime.PullImageResponse{}, nil, []string{"image=busybox"}},
		{"ContainerStatus", &runtime.ContainerStatusRequest{ContainerId: "c1"}, &runtime.ContainerStatusResponse{}, nil, []string{"level=debug"}},
		{"ContainerStatus", &runtime.ContainerStatusRequest{ContainerId: "c1"}, (*runtime.ContainerStatusResponse)(nil), errdefs.ErrNotFound, []string{"level=info", "error="}},
		{"StopContainer", &runtime.StopContainerRequest{}, nil, errdefs.ErrUnavailable, []string{"level=error"}},
		{"ListContainers", nil, nil, nil, []string{"level=debug"}},
		{"ExecSync", nil, nil, nil, []string{"level=debug"}},
	} {
		text := logged(t, func() {
			_, _ = call(tt.method, tt.req, func(context.Context, any) (any, error) { return tt.resp, tt.err })
		})
		if strings.Count(text, "\n") != 1 || strings.Contains(text, "secret") {
			t.Errorf("%s: log\n%s", tt.method, text)
		}
		for _, want := range tt.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in %s", tt.method, want, text)
			}
		}
	}
}
