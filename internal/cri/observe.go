package cri

import (
	"context"
	"path"
	"time"

	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// StatsHandler tells observe of each RPC that has ended: its method, the name of
// its code, and how long it took.
func StatsHandler(observe func(method, code string, took time.Duration)) stats.Handler {
	return statsHandler(observe)
}

type statsHandler func(method, code string, took time.Duration)

// methodKey is the context's key of an RPC's method.
type methodKey struct{}

func (statsHandler) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, methodKey{}, path.Base(info.FullMethodName))
}

func (observe statsHandler) HandleRPC(ctx context.Context, s stats.RPCStats) {
	end, ok := s.(*stats.End)
	if !ok {
		return
	}
	method, _ := ctx.Value(methodKey{}).(string)
	observe(method, status.Code(end.Error).String(), end.EndTime.Sub(end.BeginTime))
}

func (statsHandler) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (statsHandler) HandleConn(context.Context, stats.ConnStats) {}
