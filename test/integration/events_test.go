package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	cri "k8s.io/cri-client/pkg"
)

type eventStream = grpc.ServerStreamingClient[runtime.ContainerEventResponse]

// events are all events from now on.
func (d *daemon) events(t *testing.T) eventStream {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx(t))
	t.Cleanup(cancel) // before the daemon's end, which was registered earlier
	stream, err := d.raw.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	check(t, err)
	_, err = stream.Header()
	check(t, err)
	return stream
}

func TestEvents(t *testing.T) {
	d := newDaemon(t, noNetwork)
	first, second := d.events(t), d.events(t)
	p := d.runPod(t)
	c := p.run(t, "exit 7")
	c.ended(t)
	check(t, d.pods.RemoveContainer(ctx(t), c.id))
	check(t, d.pods.StopPodSandbox(ctx(t), p.id))
	check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
	const (
		created = runtime.ContainerEventType_CONTAINER_CREATED_EVENT
		started = runtime.ContainerEventType_CONTAINER_STARTED_EVENT
		stopped = runtime.ContainerEventType_CONTAINER_STOPPED_EVENT
		deleted = runtime.ContainerEventType_CONTAINER_DELETED_EVENT
	)
	for _, stream := range []eventStream{first, second} {
		at := int64(0)
		for i, want := range []struct {
			id   string
			kind runtime.ContainerEventType
		}{
			{p.id, created}, {p.id, started},
			{c.id, created}, {c.id, started}, {c.id, stopped}, {c.id, deleted},
			{p.id, stopped}, {p.id, deleted},
		} {
			e, err := stream.Recv()
			check(t, err)
			if e.ContainerId != want.id || e.ContainerEventType != want.kind {
				t.Fatalf("event %d: %v of %s, want %v of %s", i, e.ContainerEventType, e.ContainerId, want.kind, want.id)
			}
			if e.CreatedAt < at || e.PodSandboxStatus.GetId() != p.id || e.PodSandboxStatus.GetMetadata().GetUid() != p.config.Metadata.Uid {
				t.Errorf("event %d: %v", i, e)
			}
			at = e.CreatedAt
		}
	}
}

// TestEventStatuses has an event tell the statuses of the whole pod.
func TestEventStatuses(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	other := p.run(t, forever)
	stream := d.events(t)
	c := p.run(t, "exit 7")
	for {
		e, err := stream.Recv()
		check(t, err)
		if e.ContainerEventType != runtime.ContainerEventType_CONTAINER_STOPPED_EVENT {
			continue
		}
		if e.ContainerId != c.id || len(e.ContainersStatuses) != 2 {
			t.Fatalf("event: %v", e)
		}
		for _, s := range e.ContainersStatuses {
			if s.Id == c.id && s.ExitCode != 7 || s.Id == other.id && s.State != runtime.ContainerState_CONTAINER_RUNNING {
				t.Errorf("status: %v", s)
			}
		}
		return
	}
}

// TestSandboxDies has the sandbox end without being asked.
func TestSandboxDies(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	c := p.run(t, forever)
	stream := d.events(t)
	p.killSandbox(t)
	ends := map[string]bool{p.id: true, c.id: true}
	for len(ends) > 0 {
		e, err := stream.Recv()
		check(t, err)
		if e.ContainerEventType != runtime.ContainerEventType_CONTAINER_STOPPED_EVENT || !ends[e.ContainerId] {
			t.Errorf("event: %v", e)
		}
		delete(ends, e.ContainerId)
	}
	if s := p.status(t); s.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("status of the sandbox: %v", s)
	}
	if s := c.status(t); s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 || s.Reason != "Error" {
		t.Errorf("status of its container: %v", s)
	}
}

func TestLists(t *testing.T) {
	d := newDaemon(t, noNetwork)
	ready, stopped := d.runPod(t), d.runPod(t)
	check(t, d.pods.StopPodSandbox(ctx(t), stopped.id))
	running, created := ready.run(t, forever), ready.create(t, forever)
	exited := ready.run(t, "exit 0")
	exited.ended(t)
	streaming, err := cri.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + d.path("s/runscd.sock")).
		WithConnectionTimeout(patience).WithUseStreaming(true).Build(ctx(t))
	check(t, err)
	defer streaming.Close(ctx(t))

	state := func(s runtime.PodSandboxState) *runtime.PodSandboxStateValue {
		return &runtime.PodSandboxStateValue{State: s}
	}
	for name, test := range map[string]struct {
		filter *runtime.PodSandboxFilter
		want   []string
	}{
		"all":           {nil, []string{ready.id, stopped.id}},
		"id":            {&runtime.PodSandboxFilter{Id: ready.id}, []string{ready.id}},
		"prefix":        {&runtime.PodSandboxFilter{Id: ready.id[:12]}, []string{ready.id}},
		"ready":         {&runtime.PodSandboxFilter{State: state(runtime.PodSandboxState_SANDBOX_READY)}, []string{ready.id}},
		"not ready":     {&runtime.PodSandboxFilter{State: state(runtime.PodSandboxState_SANDBOX_NOTREADY)}, []string{stopped.id}},
		"label":         {&runtime.PodSandboxFilter{LabelSelector: stopped.config.Labels}, []string{stopped.id}},
		"label and id":  {&runtime.PodSandboxFilter{Id: ready.id, LabelSelector: stopped.config.Labels}, nil},
		"unknown label": {&runtime.PodSandboxFilter{LabelSelector: map[string]string{"no": "such"}}, nil},
	} {
		list, err := d.pods.ListPodSandbox(ctx(t), test.filter)
		check(t, err)
		stream, err := streaming.ListPodSandbox(ctx(t), test.filter)
		check(t, err)
		id := func(p *runtime.PodSandbox) string { return p.Id }
		sameIDs(t, "pods, "+name, ids(list, id), ids(stream, id), test.want)
	}

	cstate := func(s runtime.ContainerState) *runtime.ContainerStateValue {
		return &runtime.ContainerStateValue{State: s}
	}
	all := []string{running.id, created.id, exited.id}
	for name, test := range map[string]struct {
		filter *runtime.ContainerFilter
		want   []string
	}{
		"all":       {nil, all},
		"id":        {&runtime.ContainerFilter{Id: created.id}, []string{created.id}},
		"pod":       {&runtime.ContainerFilter{PodSandboxId: ready.id}, all},
		"other pod": {&runtime.ContainerFilter{PodSandboxId: stopped.id}, nil},
		"running":   {&runtime.ContainerFilter{State: cstate(runtime.ContainerState_CONTAINER_RUNNING)}, []string{running.id}},
		"created":   {&runtime.ContainerFilter{State: cstate(runtime.ContainerState_CONTAINER_CREATED)}, []string{created.id}},
		"exited":    {&runtime.ContainerFilter{State: cstate(runtime.ContainerState_CONTAINER_EXITED)}, []string{exited.id}},
		"label":     {&runtime.ContainerFilter{LabelSelector: exited.config.Labels}, []string{exited.id}},
	} {
		list, err := d.pods.ListContainers(ctx(t), test.filter)
		check(t, err)
		stream, err := streaming.ListContainers(ctx(t), test.filter)
		check(t, err)
		id := func(c *runtime.Container) string { return c.Id }
		sameIDs(t, "containers, "+name, ids(list, id), ids(stream, id), test.want)
	}
}

func ids[T any](list []T, id func(T) string) []string {
	var found []string
	for _, item := range list {
		found = append(found, id(item))
	}
	return found
}

func sameIDs(t *testing.T, what string, list, stream, want []string) {
	t.Helper()
	for _, l := range [][]string{list, stream, want} {
		slices.Sort(l)
	}
	if !slices.Equal(list, want) || !slices.Equal(stream, want) {
		t.Errorf("%s: list %q, stream %q, want %q", what, list, stream, want)
	}
}

// killSandbox kills the sandbox's process.
func (p *pod) killSandbox(t *testing.T) {
	t.Helper()
	for _, pid := range p.sandboxPIDs() {
		check(t, kill(pid))
	}
}

// sandboxPIDs are the processes of the pod's sandbox but for its gofers.
func (p *pod) sandboxPIDs() []int {
	var found []int
	for _, line := range p.processes() {
		if strings.Contains(line, "runsc-sandbox") && strings.Contains(line, p.id) {
			pid := 0
			_, _ = fmt.Sscan(line, &pid)
			found = append(found, pid)
		}
	}
	return found
}
