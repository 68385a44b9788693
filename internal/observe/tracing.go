package observe

import (
	"context"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"github.com/runscd/runscd/internal/cri"
)

const tracerName = "github.com/runscd/runscd"

// ServerOptions are those of a gRPC server whose RPCs are observed. Spans continue
// the traces of callers.
func (o *Observer) ServerOptions() []grpc.ServerOption {
	options := []grpc.ServerOption{grpc.StatsHandler(cri.StatsHandler(o.rpc))}
	if o.provider != nil {
		options = append(options, grpc.StatsHandler(otelgrpc.NewServerHandler(
			otelgrpc.WithTracerProvider(o.provider), otelgrpc.WithPropagators(propagation.TraceContext{}))))
	}
	return options
}

// span makes the span of something that has just ended. What belongs to no RPC,
// as the undoing of strays, has none.
func (o *Observer) span(ctx context.Context, name string, since time.Time, err error) {
	if o.provider == nil || !trace.SpanContextFromContext(ctx).IsValid() {
		return
	}
	_, span := o.provider.Tracer(tracerName).Start(ctx, name, trace.WithTimestamp(since))
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}
