// Package cri serves the Kubernetes Container Runtime Interface: RuntimeService
// and ImageService of k8s.io/cri-api v0.37.
//
// What it keeps true: a request is checked as a whole before anything is done
// for it; an error has the gRPC code of its kind, and no other package knows
// codes; an RPC writes one line to the log; a panic is the failure of one RPC.
package cri

import (
	"context"
	"encoding/json"

	"github.com/sirupsen/logrus"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/pod"
)

// Name is the runtime's name in the CRI.
const Name = "runscd"

// RuntimeServer is the RuntimeService. RPCs that a newer cri-api adds answer
// Unimplemented with their name.
type RuntimeServer struct {
	runtime.UnimplementedRuntimeServiceServer
	pods    *pod.Registry
	options Options
}

// Options are what a RuntimeServer tells of its surroundings.
type Options struct {
	Version  string            // runscd's own, semantic
	Sessions Sessions          // of exec, attach and port-forward
	Info     map[string]string // further JSON for the verbose Status, by key
}

// NewRuntimeServer returns the service of a node's pods.
func NewRuntimeServer(pods *pod.Registry, o Options) *RuntimeServer {
	return &RuntimeServer{pods: pods, options: o}
}

// Version tells the versions of the runtime and of the CRI.
func (s *RuntimeServer) Version(context.Context, *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	return &runtime.VersionResponse{
		Version:           "0.1.0", // of the kubelet's runtime API; the kubelet expects just this
		RuntimeName:       Name,
		RuntimeVersion:    s.options.Version,
		RuntimeApiVersion: "v1",
	}, nil
}

// Status tells whether pods can be run, and by which handlers.
func (s *RuntimeServer) Status(ctx context.Context, req *runtime.StatusRequest) (*runtime.StatusResponse, error) {
	resp := &runtime.StatusResponse{
		Status: &runtime.RuntimeStatus{Conditions: []*runtime.RuntimeCondition{
			condition(runtime.RuntimeReady, "RunscNotUsable", s.pods.Ready()),
			condition(runtime.NetworkReady, "NetworkPluginNotReady", s.pods.Network.Status(ctx)),
		}},
		RuntimeHandlers: []*runtime.RuntimeHandler{{Name: "", Features: features(s.pods.Handlers[s.pods.Default])}},
		Features:        &runtime.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	for name, h := range s.pods.Handlers {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &runtime.RuntimeHandler{Name: name, Features: features(h)})
	}
	if req.Verbose {
		resp.Info = s.options.Info
	}
	return resp, nil
}

// condition is true when there is no error and tells the error otherwise.
func condition(kind, reason string, err error) *runtime.RuntimeCondition {
	if err == nil {
		return &runtime.RuntimeCondition{Type: kind, Status: true}
	}
	return &runtime.RuntimeCondition{Type: kind, Reason: reason, Message: err.Error()}
}

// features are what a handler has beyond the ordinary.
func features(h *pod.Handler) *runtime.RuntimeHandlerFeatures {
	return &runtime.RuntimeHandlerFeatures{
		RecursiveReadOnlyMounts: pod.HasRecursiveReadOnly(), UserNamespaces: h.UserNamespaces(),
	}
}

// RuntimeConfig tells the kubelet which cgroup driver to use.
func (s *RuntimeServer) RuntimeConfig(context.Context, *runtime.RuntimeConfigRequest) (*runtime.RuntimeConfigResponse, error) {
	driver := runtime.CgroupDriver_CGROUPFS
	if s.pods.SystemdCgroup {
		driver = runtime.CgroupDriver_SYSTEMD
	}
	return &runtime.RuntimeConfigResponse{Linux: &runtime.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig accepts the node's pod CIDR. The CNI configuration has
// its own.
func (s *RuntimeServer) UpdateRuntimeConfig(_ context.Context, req *runtime.UpdateRuntimeConfigRequest) (*runtime.UpdateRuntimeConfigResponse, error) {
	logrus.WithField("pod_cidr", req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()).Info("runtime config")
	return &runtime.UpdateRuntimeConfigResponse{}, nil
}

// info is the verbose part of a status: one JSON object under the key "info".
func info(v any) (map[string]string, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(data)}, nil
}
