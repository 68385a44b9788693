package cri

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestEvents(t *testing.T) {
	s, ctx := newServer(t), t.Context()
	stream, err := s.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	s.must(err)
	_, err = stream.Header()
	s.must(err)
	p := s.pod("p", nil)
	c := s.container(p, "c", "sleep")
	for _, want := range []struct {
		id   string
		kind runtime.ContainerEventType
	}{
		{p, runtime.ContainerEventType_CONTAINER_CREATED_EVENT},
		{p, runtime.ContainerEventType_CONTAINER_STARTED_EVENT},
		{c, runtime.ContainerEventType_CONTAINER_CREATED_EVENT},
	} {
		e, err := stream.Recv()
		s.must(err)
		if e.ContainerId != want.id || e.ContainerEventType != want.kind || e.PodSandboxStatus.GetId() != p || e.CreatedAt == 0 {
			t.Errorf("event %v, want %s of %s", e, want.kind, want.id)
		}
	}
}

// stuck is a stream whose client takes nothing.
type stuck struct {
	grpc.ServerStream
	ctx        context.Context
	subscribed chan struct{}
	taken      chan struct{}
}

func (s *stuck) Context() context.Context     { return s.ctx }
func (s *stuck) SendHeader(metadata.MD) error { close(s.subscribed); return nil }
func (s *stuck) Send(*runtime.ContainerEventResponse) error {
	<-s.taken
	return nil
}

func TestAClientOfEventsThatLagsIsCutOff(t *testing.T) {
	s := newServer(t)
	p := s.pod("p", nil)
	client := &stuck{ctx: t.Context(), subscribed: make(chan struct{}), taken: make(chan struct{})}
	ended := make(chan error, 1)
	go func() { ended <- NewRuntimeServer(s.pods, Options{}).GetContainerEvents(nil, client) }()
	<-client.subscribed
	for range 501 { // two events each; one is being sent and 1000 wait
		s.must(s.pods.RemoveContainer(t.Context(), s.container(p, "c", "sleep")))
	}
	close(client.taken)
	if err := <-ended; status.Code(err) != codes.ResourceExhausted {
		t.Errorf("error %v", err)
	}
}
