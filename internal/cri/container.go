package cri

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/pod"
	"github.com/runscd/runscd/internal/proc"
)

// CreateContainer makes a container in a sandbox that is ready. Nothing of it
// runs yet. A client that timed out gets what was made for it, as with
// RunPodSandbox.
func (s *RuntimeServer) CreateContainer(ctx context.Context, req *runtime.CreateContainerRequest) (*runtime.CreateContainerResponse, error) {
	if err := validateContainer(req); err != nil {
		return nil, err
	}
	id, err := s.pods.CreateContainer(ctx, req)
	if err != nil {
		return nil, err
	}
	return &runtime.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer starts a created container. After an error about its command
// the container has exited, with reason StartError and code 128.
func (s *RuntimeServer) StartContainer(ctx context.Context, req *runtime.StartContainerRequest) (*runtime.StartContainerResponse, error) {
	if err := required("container_id", req.ContainerId); err != nil {
		return nil, err
	}
	if err := s.pods.StartContainer(ctx, req.ContainerId); err != nil {
		return nil, err
	}
	return &runtime.StartContainerResponse{}, nil
}

// StopContainer returns when the container is dead.
func (s *RuntimeServer) StopContainer(ctx context.Context, req *runtime.StopContainerRequest) (*runtime.StopContainerResponse, error) {
	if err := required("container_id", req.ContainerId); err != nil {
		return nil, err
	}
	if req.Timeout < 0 {
		return nil, invalid("timeout", "%d seconds", req.Timeout)
	}
	if err := s.pods.StopContainer(ctx, req.ContainerId, time.Duration(req.Timeout)*time.Second); err != nil {
		return nil, err
	}
	return &runtime.StopContainerResponse{}, nil
}

// RemoveContainer removes a container, running or not.
func (s *RuntimeServer) RemoveContainer(ctx context.Context, req *runtime.RemoveContainerRequest) (*runtime.RemoveContainerResponse, error) {
	if err := required("container_id", req.ContainerId); err != nil {
		return nil, err
	}
	if err := s.pods.RemoveContainer(ctx, req.ContainerId); err != nil {
		return nil, err
	}
	return &runtime.RemoveContainerResponse{}, nil
}

// ListContainers lists the containers that pass the filter.
func (s *RuntimeServer) ListContainers(_ context.Context, req *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error) {
	return &runtime.ListContainersResponse{Containers: s.listContainers(req.Filter)}, nil
}

// StreamContainers is ListContainers in parts that stay below the message limit.
func (s *RuntimeServer) StreamContainers(req *runtime.StreamContainersRequest, stream grpc.ServerStreamingServer[runtime.StreamContainersResponse]) error {
	return inParts(s.listContainers(req.Filter), func(part []*runtime.Container) error {
		return stream.Send(&runtime.StreamContainersResponse{Containers: part})
	})
}

func (s *RuntimeServer) listContainers(f *runtime.ContainerFilter) []*runtime.Container {
	var items []*runtime.Container
	for _, c := range s.pods.Containers() {
		facts := c.Facts()
		config, state := facts.Config.M, containerState(c)
		if !idMatches(f.GetId(), c.ID) || !idMatches(f.GetPodSandboxId(), c.Pod.ID) ||
			f.GetState() != nil && f.State.State != state || !labelsMatch(f.GetLabelSelector(), config.Labels) {
			continue
		}
		items = append(items, &runtime.Container{
			Id: c.ID, PodSandboxId: c.Pod.ID, Metadata: config.Metadata, Image: config.Image,
			ImageId: facts.ImageID, ImageRef: facts.ImageRef, State: state, CreatedAt: facts.CreatedAt.UnixNano(),
			Labels: config.Labels, Annotations: config.Annotations,
		})
	}
	return items
}

// ContainerStatus tells a container's status.
func (s *RuntimeServer) ContainerStatus(_ context.Context, req *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
	c, err := s.pods.Container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	resp := &runtime.ContainerStatusResponse{Status: containerStatus(c)}
	if req.Verbose {
		resp.Info, err = info(c.Describe())
	}
	return resp, err
}

func containerState(c *pod.Container) runtime.ContainerState {
	switch c.State() {
	case proc.Created:
		return runtime.ContainerState_CONTAINER_CREATED
	case proc.Running:
		return runtime.ContainerState_CONTAINER_RUNNING
	case proc.Stopped:
		return runtime.ContainerState_CONTAINER_EXITED
	}
	return runtime.ContainerState_CONTAINER_UNKNOWN
}

func containerStatus(c *pod.Container) *runtime.ContainerStatus {
	f := c.Facts()
	config := f.Config.M
	status := &runtime.ContainerStatus{
		Id: c.ID, Metadata: config.Metadata, State: containerState(c),
		CreatedAt: nanos(f.CreatedAt), StartedAt: nanos(f.StartedAt), FinishedAt: nanos(f.FinishedAt),
		ExitCode: int32(f.ExitCode), Reason: f.Reason, Message: f.Message,
		Image: statusImage(config.Image), ImageRef: f.ImageRef, ImageId: f.ImageID,
		Labels: config.Labels, Annotations: config.Annotations, Mounts: statusMounts(config.Mounts, f.VolumeIDs), LogPath: f.LogPath,
		StopSignal: config.StopSignal,
		Resources:  &runtime.ContainerResources{Linux: c.Resources()},
	}
	if u := f.User; u != nil {
		status.User = &runtime.ContainerUser{Linux: &runtime.LinuxContainerUser{Uid: u.UID, Gid: u.GID, SupplementalGroups: u.Groups}}
	}
	return status
}

// statusMounts are a container's mounts, with the ids of mounted images: the
// kubelet keeps those from being removed, and tells users which they are.
func statusMounts(mounts []*runtime.Mount, ids map[int]string) []*runtime.Mount {
	if len(ids) == 0 {
		return mounts
	}
	list := slices.Clone(mounts)
	for i, id := range ids {
		m := proto.CloneOf(mounts[i])
		m.Image.Image, m.Image.ImageRef = id, id
		list[i] = m
	}
	return list
}

// statusImage is the image as the user called it, where the client says how.
func statusImage(spec *runtime.ImageSpec) *runtime.ImageSpec {
	if spec.UserSpecifiedImage == "" {
		return spec
	}
	return &runtime.ImageSpec{Image: spec.UserSpecifiedImage, UserSpecifiedImage: spec.UserSpecifiedImage, Annotations: spec.Annotations, RuntimeHandler: spec.RuntimeHandler}
}

// nanos is a time for the CRI, 0 for none.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// UpdateContainerResources changes what a container may use: as a whole or not at
// all. Values that are not given stay.
func (s *RuntimeServer) UpdateContainerResources(ctx context.Context, req *runtime.UpdateContainerResourcesRequest) (*runtime.UpdateContainerResourcesResponse, error) {
	if err := required("container_id", req.ContainerId); err != nil {
		return nil, err
	}
	if req.Windows != nil {
		return nil, invalid("windows", "a sandbox is of Linux")
	}
	if err := pod.UpdateContainer(ctx, s.pods, req.ContainerId, req.Linux); err != nil {
		return nil, err
	}
	return &runtime.UpdateContainerResourcesResponse{}, nil
}

// ExecSync runs a command in a container and returns its output and exit code.
// Output that does not fit into a message is dropped, of stderr first.
func (s *RuntimeServer) ExecSync(ctx context.Context, req *runtime.ExecSyncRequest) (*runtime.ExecSyncResponse, error) {
	if err := required("container_id", req.ContainerId); err != nil {
		return nil, err
	}
	if len(req.Cmd) == 0 {
		return nil, invalid("cmd", "required")
	}
	if req.Timeout < 0 {
		return nil, invalid("timeout", "%d seconds", req.Timeout)
	}
	r, err := s.pods.ExecSync(ctx, req.ContainerId, req.Cmd, time.Duration(req.Timeout)*time.Second)
	if err != nil {
		return nil, err
	}
	// Both go in one message, and the rest of it is small.
	const room = maxMessage - 1<<10
	stdout := r.Stdout[:min(len(r.Stdout), room)]
	stderr := r.Stderr[:min(len(r.Stderr), room-len(stdout))]
	return &runtime.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(r.ExitCode)}, nil
}

// ReopenContainerLog goes on in a new log file after a rotation.
func (s *RuntimeServer) ReopenContainerLog(ctx context.Context, req *runtime.ReopenContainerLogRequest) (*runtime.ReopenContainerLogResponse, error) {
	if err := required("container_id", req.ContainerId); err != nil {
		return nil, err
	}
	return &runtime.ReopenContainerLogResponse{}, s.pods.ReopenLog(ctx, req.ContainerId)
}
