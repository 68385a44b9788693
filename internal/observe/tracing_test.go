package observe

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"testing"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/cri"
)

// tracedServer makes a pod of phases.
type tracedServer struct {
	runtime.UnimplementedRuntimeServiceServer
	o *Observer
}

func (s tracedServer) RunPodSandbox(ctx context.Context, _ *runtime.RunPodSandboxRequest) (*runtime.RunPodSandboxResponse, error) {
	observeAll(context.WithoutCancel(ctx), s.o, nil) // as creations go on without their client
	return &runtime.RunPodSandboxResponse{}, nil
}

func (s tracedServer) StopPodSandbox(ctx context.Context, _ *runtime.StopPodSandboxRequest) (*runtime.StopPodSandboxResponse, error) {
	observeAll(ctx, s.o, errors.New("some reason"))
	return nil, errors.New("some reason")
}

// dialTraced returns a client of an observed server, and the function that ends the
// server once all is observed.
func dialTraced(t *testing.T, o *Observer, client ...grpc.DialOption) (runtime.RuntimeServiceClient, func()) {
	t.Helper()
	server := grpc.NewServer(append(cri.ServerOptions(), o.ServerOptions()...)...)
	runtime.RegisterRuntimeServiceServer(server, tracedServer{o: o})
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("unix://"+socket, append(client, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return runtime.NewRuntimeServiceClient(conn), server.GracefulStop
}

// TestSpansOfPhases has a client that traces, as the kubelet does: all that is done
// for its call is of its trace.
func TestSpansOfPhases(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(spans))
	for method, status := range map[string]codes.Code{"RunPodSandbox": codes.Unset, "StopPodSandbox": codes.Error} {
		spans.Reset()
		client, stop := dialTraced(t, New("1.2.3", provider), grpc.WithStatsHandler(otelgrpc.NewClientHandler(
			otelgrpc.WithTracerProvider(provider), otelgrpc.WithPropagators(propagation.TraceContext{}))))
		if method == "RunPodSandbox" {
			if _, err := client.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{}); err != nil {
				t.Fatal(err)
			}
		} else if _, err := client.StopPodSandbox(t.Context(), &runtime.StopPodSandboxRequest{}); err == nil {
			t.Fatal("no error")
		}
		stop()
		var names []string
		all := spans.GetSpans()
		root := all[slices.IndexFunc(all, func(s tracetest.SpanStub) bool { return !s.Parent.IsValid() })]
		rpc := all[slices.IndexFunc(all, func(s tracetest.SpanStub) bool { return s.Parent.SpanID() == root.SpanContext.SpanID() })]
		for _, s := range all {
			if s.Parent.SpanID() != rpc.SpanContext.SpanID() {
				continue
			}
			names = append(names, s.Name)
			if s.SpanContext.TraceID() != root.SpanContext.TraceID() || s.Status.Code != status || s.EndTime.Before(s.StartTime) {
				t.Errorf("%s: %+v", method, s)
			}
		}
		want := []string{"network", "network_delete", "snapshot", "sandbox_create", "sandbox_start", "container_start", "delete"}
		if rpc.Name != "runtime.v1.RuntimeService/"+method || !slices.Equal(names, want) {
			t.Errorf("%s: beneath %q %q, want %q", method, rpc.Name, names, want)
		}
	}
}

// TestRPCsAreCounted has the codes that clients get.
func TestRPCsAreCounted(t *testing.T) {
	o := New("1.2.3", nil)
	client, stop := dialTraced(t, o)
	_, _ = client.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{})
	_, _ = client.StopPodSandbox(t.Context(), &runtime.StopPodSandboxRequest{})
	_, _ = client.Version(t.Context(), &runtime.VersionRequest{})
	stop()
	found := map[string]bool{}
	families, err := o.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "runscd_rpc_seconds" {
			for _, m := range f.Metric {
				found[m.Label[1].GetValue()+" "+m.Label[0].GetValue()] = true
			}
		}
	}
	for _, want := range []string{"RunPodSandbox OK", "StopPodSandbox Unknown", "Version Unimplemented"} {
		if !found[want] {
			t.Errorf("no %s in %v", want, found)
		}
	}
}
