package cri

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/pod"
)

// GetContainerEvents streams what happens to containers and sandboxes from now
// on, with the statuses of the pod at the time of sending. A client that lags
// 1000 events behind is cut off with ResourceExhausted.
func (s *RuntimeServer) GetContainerEvents(_ *runtime.GetEventsRequest, stream grpc.ServerStreamingServer[runtime.ContainerEventResponse]) error {
	events, cancel := s.pods.Subscribe()
	defer cancel()
	// Headers tell the client that nothing is missed from here on.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return status.Error(codes.ResourceExhausted, "events: the client lags too far behind")
			}
			if err := stream.Send(s.event(e)); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (s *RuntimeServer) event(e pod.Event) *runtime.ContainerEventResponse {
	resp := &runtime.ContainerEventResponse{
		ContainerId: e.Pod.ID, ContainerEventType: e.Type, CreatedAt: nanos(e.At), PodSandboxStatus: sandboxStatus(e.Pod),
	}
	if e.Container != nil {
		resp.ContainerId = e.Container.ID
	}
	for _, c := range s.pods.ContainersOf(e.Pod) {
		resp.ContainersStatuses = append(resp.ContainersStatuses, containerStatus(c))
	}
	return resp
}
