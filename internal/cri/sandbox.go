package cri

import (
	"context"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/pod"
	"github.com/runscd/runscd/internal/proc"
)

// RunPodSandbox makes and starts a sandbox. A client that timed out and asks
// for the same again gets the sandbox that was made for it.
func (s *RuntimeServer) RunPodSandbox(ctx context.Context, req *runtime.RunPodSandboxRequest) (*runtime.RunPodSandboxResponse, error) {
	if err := validatePod(req.Config); err != nil {
		return nil, err
	}
	id, err := s.pods.RunPod(ctx, req)
	if err != nil {
		return nil, err
	}
	return &runtime.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox ends all containers and the sandbox and releases its network.
func (s *RuntimeServer) StopPodSandbox(ctx context.Context, req *runtime.StopPodSandboxRequest) (*runtime.StopPodSandboxResponse, error) {
	if err := required("pod_sandbox_id", req.PodSandboxId); err != nil {
		return nil, err
	}
	return &runtime.StopPodSandboxResponse{}, s.pods.StopPod(ctx, req.PodSandboxId)
}

// RemovePodSandbox removes a sandbox with its containers, running or not.
func (s *RuntimeServer) RemovePodSandbox(ctx context.Context, req *runtime.RemovePodSandboxRequest) (*runtime.RemovePodSandboxResponse, error) {
	if err := required("pod_sandbox_id", req.PodSandboxId); err != nil {
		return nil, err
	}
	return &runtime.RemovePodSandboxResponse{}, s.pods.RemovePod(ctx, req.PodSandboxId)
}

// UpdatePodSandboxResources changes what is said of a pod as a whole: as a whole or
// not at all. Values that are not given stay.
func (s *RuntimeServer) UpdatePodSandboxResources(ctx context.Context, req *runtime.UpdatePodSandboxResourcesRequest) (*runtime.UpdatePodSandboxResourcesResponse, error) {
	if err := required("pod_sandbox_id", req.PodSandboxId); err != nil {
		return nil, err
	}
	if err := pod.UpdatePod(ctx, s.pods, req.PodSandboxId, req.Overhead, req.Resources); err != nil {
		return nil, err
	}
	return &runtime.UpdatePodSandboxResourcesResponse{}, nil
}

// PodSandboxStatus tells a sandbox's status and, for the kubelet's evented
// PLEG, that of its containers.
func (s *RuntimeServer) PodSandboxStatus(_ context.Context, req *runtime.PodSandboxStatusRequest) (*runtime.PodSandboxStatusResponse, error) {
	p, err := s.pods.Pod(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	resp := &runtime.PodSandboxStatusResponse{Status: sandboxStatus(p), Timestamp: now()}
	for _, c := range s.pods.ContainersOf(p) {
		resp.ContainersStatuses = append(resp.ContainersStatuses, containerStatus(c))
	}
	if req.Verbose {
		resp.Info, err = info(p.Describe())
	}
	return resp, err
}

// ListPodSandbox lists the sandboxes that pass the filter.
func (s *RuntimeServer) ListPodSandbox(_ context.Context, req *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	return &runtime.ListPodSandboxResponse{Items: s.listPods(req.Filter)}, nil
}

// StreamPodSandboxes is ListPodSandbox in parts that stay below the message
// limit.
func (s *RuntimeServer) StreamPodSandboxes(req *runtime.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxesResponse]) error {
	return inParts(s.listPods(req.Filter), func(part []*runtime.PodSandbox) error {
		return stream.Send(&runtime.StreamPodSandboxesResponse{PodSandboxes: part})
	})
}

func (s *RuntimeServer) listPods(f *runtime.PodSandboxFilter) []*runtime.PodSandbox {
	var items []*runtime.PodSandbox
	for _, p := range s.pods.Pods() {
		c, facts := p.Config(), p.Facts()
		state := podState(p)
		if !idMatches(f.GetId(), p.ID) || f.GetState() != nil && f.State.State != state || !labelsMatch(f.GetLabelSelector(), c.Labels) {
			continue
		}
		items = append(items, &runtime.PodSandbox{
			Id: p.ID, Metadata: c.Metadata, State: state, CreatedAt: facts.CreatedAt.UnixNano(),
			Labels: c.Labels, Annotations: c.Annotations, RuntimeHandler: facts.Requested,
		})
	}
	return items
}

func podState(p *pod.Pod) runtime.PodSandboxState {
	if p.State() == proc.Running {
		return runtime.PodSandboxState_SANDBOX_READY
	}
	return runtime.PodSandboxState_SANDBOX_NOTREADY
}

func sandboxStatus(p *pod.Pod) *runtime.PodSandboxStatus {
	c, facts := p.Config(), p.Facts()
	status := &runtime.PodSandboxStatus{
		Id: p.ID, Metadata: c.Metadata, State: podState(p), CreatedAt: facts.CreatedAt.UnixNano(),
		Labels: c.Labels, Annotations: c.Annotations, RuntimeHandler: facts.Requested,
		Network: &runtime.PodSandboxNetworkStatus{},
		Linux: &runtime.LinuxPodSandboxStatus{Namespaces: &runtime.Namespace{
			// The kubelet makes a pod anew whose modes are not those it asked for.
			Options: c.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
	}
	for i, ip := range facts.IPs {
		if i == 0 {
			status.Network.Ip = ip
			continue
		}
		status.Network.AdditionalIps = append(status.Network.AdditionalIps, &runtime.PodIP{Ip: ip})
	}
	return status
}
