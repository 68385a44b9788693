package cri

import (
	"context"
	"errors"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessage is the kubelet's limit for a message in bytes, by
// k8s.io/cri-client/pkg.
const maxMessage = 16 << 20

// ServerOptions are those of a gRPC server for the CRI: the interceptors and
// the limit for messages.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.UnaryInterceptor(unary), grpc.StreamInterceptor(stream),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
	}
}

// unary gives every RPC its one log line, its code and its panic guard.
func unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	defer func(begin time.Time) {
		if p := recover(); p != nil {
			err = panicked(p)
		}
		err = coded(err)
		logRPC(info.FullMethod, req, resp, time.Since(begin), err)
	}(time.Now())
	return handle(ctx, req)
}

func stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer func(begin time.Time) {
		if p := recover(); p != nil {
			err = panicked(p)
		}
		err = coded(err)
		logRPC(info.FullMethod, nil, nil, time.Since(begin), err)
	}(time.Now())
	return handle(srv, ss)
}

func panicked(p any) error {
	logrus.WithField("stack", string(debug.Stack())).Errorf("panic: %v", p)
	return status.Errorf(codes.Internal, "panic: %v", p)
}

// coded gives an error the gRPC code of its kind.
func coded(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	return errgrpc.ToGRPC(err)
}

// logRPC writes the line. What the kubelet asks all day is for debugging.
func logRPC(method string, req, resp any, took time.Duration, err error) {
	fields := logrus.Fields{"rpc": path.Base(method), "took": took.Round(10 * time.Microsecond).String()}
	identify(fields, req)
	identify(fields, resp)
	log := logrus.WithFields(fields)
	code := status.Code(err)
	switch {
	case err == nil && reads(method):
		log.Debug("rpc")
	case err == nil:
		log.Info("rpc")
	case code == codes.NotFound || code == codes.Canceled || code == codes.Unimplemented:
		log.WithError(err).Info("rpc")
	default:
		log.WithError(err).Error("rpc")
	}
}

// reads tells whether an RPC changes nothing.
func reads(method string) bool {
	name := path.Base(method)
	for _, suffix := range []string{"Status", "Version", "Info", "Stats", "Config", "Metrics", "Descriptors"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return strings.HasPrefix(name, "List") || strings.HasPrefix(name, "Stream") || name == "ExecSync" || name == "GetContainerEvents"
}

// identify adds what a message says of the object that the RPC is about.
func identify(fields logrus.Fields, msg any) {
	if m, ok := msg.(interface{ GetPodSandboxId() string }); ok && m.GetPodSandboxId() != "" {
		fields["pod"] = m.GetPodSandboxId()
	}
	if m, ok := msg.(interface{ GetContainerId() string }); ok && m.GetContainerId() != "" {
		fields["container"] = m.GetContainerId()
	}
	if m, ok := msg.(interface{ GetImageRef() string }); ok && m.GetImageRef() != "" {
		fields["image"] = m.GetImageRef()
	}
	if m, ok := msg.(interface{ GetImage() *runtime.ImageSpec }); ok && m.GetImage() != nil {
		fields["image"] = m.GetImage().Image
	}
}
