package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeCRI is a daemon that tells what it is made with. The n-th call for
// statistics gets the n-th of them, or the last.
type fakeCRI struct {
	runtime.UnimplementedRuntimeServiceServer
	pods       []*runtime.PodSandbox
	containers []*runtime.Container
	stats      [][]*runtime.PodSandboxStats
	asked      chan struct{} // if not nil, gets one value a call for statistics
}

// serve serves on a socket, whose path it returns, until the test ends.
func (f *fakeCRI) serve(t *testing.T) string { return serveFake(t, f) }

func serveFake(t *testing.T, f runtime.RuntimeServiceServer) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(unknown(f)))
	runtime.RegisterRuntimeServiceServer(server, f)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return socket
}

// unknown has a fake note the calls for a pod that are not the CRI's.
func unknown(f runtime.RuntimeServiceServer) grpc.StreamHandler {
	return func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		req := new(runtime.PodSandboxStatusRequest)
		if err := stream.RecvMsg(req); err != nil {
			return err
		}
		f.(interface{ note(call string) }).note(method + " " + req.PodSandboxId)
		return stream.SendMsg(new(emptypb.Empty))
	}
}

func (f *fakeCRI) ListPodSandbox(context.Context, *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	return &runtime.ListPodSandboxResponse{Items: f.pods}, nil
}

func (f *fakeCRI) ListContainers(context.Context, *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error) {
	return &runtime.ListContainersResponse{Containers: f.containers}, nil
}

func (f *fakeCRI) ListPodSandboxStats(context.Context, *runtime.ListPodSandboxStatsRequest) (*runtime.ListPodSandboxStatsResponse, error) {
	now := f.stats[0]
	if len(f.stats) > 1 {
		f.stats = f.stats[1:]
	}
	if f.asked != nil {
		f.asked <- struct{}{}
	}
	if now == nil {
		return nil, errors.New("away")
	}
	return &runtime.ListPodSandboxStatsResponse{Stats: now}, nil
}
