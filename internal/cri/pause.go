package cri

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/pod"
)

// What the CRI has no calls for is a service of our own, on the same socket and with
// the CRI's messages. A request names a pod sandbox, an answer is a
// google.protobuf.Empty.
const (
	PauseMethod  = "/runscd.v1.Pods/Pause"  // see pod.Pause
	ResumeMethod = "/runscd.v1.Pods/Resume" // see pod.Resume
)

// RegisterPods adds that service to a server.
func RegisterPods(server grpc.ServiceRegistrar, s *RuntimeServer) {
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "runscd.v1.Pods",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			{MethodName: "Pause", Handler: podMethod(PauseMethod, pod.Pause)},
			{MethodName: "Resume", Handler: podMethod(ResumeMethod, pod.Resume)},
		},
	}, s)
}

// podMethod is the handler of a method that does something to a pod.
func podMethod(name string, do func(context.Context, *pod.Registry, string) error) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		req := new(runtime.PodSandboxStatusRequest)
		if err := decode(req); err != nil {
			return nil, err
		}
		s := srv.(*RuntimeServer)
		handle := func(ctx context.Context, _ any) (any, error) {
			if err := required("pod_sandbox_id", req.PodSandboxId); err != nil {
				return nil, err
			}
			return new(emptypb.Empty), do(ctx, s.pods, req.PodSandboxId)
		}
		return intercept(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: name}, handle)
	}
}
