package cri

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/pod"
)

// CheckpointPod saves a running pod to an empty directory; the pod runs on.
func (s *RuntimeServer) CheckpointPod(ctx context.Context, req *runtime.CheckpointPodRequest) (*runtime.CheckpointPodResponse, error) {
	if err := required("pod_sandbox_id", req.PodSandboxId); err != nil {
		return nil, err
	}
	if err := deadline(ctx); err != nil {
		return nil, err
	}
	if err := absolute("output_path", req.OutputPath); err != nil {
		return nil, err
	}
	if len(req.ContainerIds) == 0 {
		return nil, invalid("container_ids", "required")
	}
	seen := map[string]bool{}
	for i, id := range req.ContainerIds {
		field := fmt.Sprintf("container_ids[%d]", i)
		if err := required(field, id); err != nil {
			return nil, err
		}
		if seen[id] {
			return nil, invalid(field, "%q: a second time", id)
		}
		seen[id] = true
	}
	if err := pod.Checkpoint(ctx, s.pods, req); err != nil {
		return nil, err
	}
	return &runtime.CheckpointPodResponse{}, nil
}

// RestorePod makes a pod of a checkpoint. Its containers are created, and run when all
// of them are started.
func (s *RuntimeServer) RestorePod(ctx context.Context, req *runtime.RestorePodRequest) (*runtime.RestorePodResponse, error) {
	if err := deadline(ctx); err != nil {
		return nil, err
	}
	if err := absolute("checkpoint_path", req.CheckpointPath); err != nil {
		return nil, err
	}
	if err := validatePod(req.Config); err != nil {
		return nil, err
	}
	for key := range req.Options {
		return nil, invalid("options", "%q: restoring has no options", key)
	}
	if len(req.ContainerConfigs) == 0 {
		return nil, invalid("container_configs", "required")
	}
	names := map[string]bool{}
	for i, c := range req.ContainerConfigs {
		field := fmt.Sprintf("container_configs[%d]", i)
		if err := validateContainerConfig(field, c); err != nil {
			return nil, err
		}
		if name := c.Metadata.Name; names[name] {
			return nil, invalid(field+".metadata.name", "%q: a second time", name)
		}
		names[c.Metadata.Name] = true
	}
	id, containers, err := pod.Restore(ctx, s.pods, req)
	if err != nil {
		return nil, err
	}
	resp := &runtime.RestorePodResponse{PodSandboxId: id}
	for _, c := range req.ContainerConfigs {
		resp.RestoredContainers = append(resp.RestoredContainers, &runtime.RestoredContainer{
			Name: c.Metadata.Name, ContainerId: containers[c.Metadata.Name],
		})
	}
	return resp, nil
}

// CheckpointContainer saves a container that is alone in its pod to a tar archive.
func (s *RuntimeServer) CheckpointContainer(ctx context.Context, req *runtime.CheckpointContainerRequest) (*runtime.CheckpointContainerResponse, error) {
	if err := required("container_id", req.ContainerId); err != nil {
		return nil, err
	}
	if err := absolute("location", req.Location); err != nil {
		return nil, err
	}
	if req.Timeout < 0 {
		return nil, invalid("timeout", "%d seconds", req.Timeout)
	}
	if req.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(req.Timeout)*time.Second)
		defer cancel()
	}
	if err := pod.CheckpointContainer(ctx, s.pods, req.ContainerId, req.Location); err != nil {
		return nil, err
	}
	return &runtime.CheckpointContainerResponse{}, nil
}

// deadline refuses a call without one.
func deadline(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		return invalid("deadline", "the call must have one")
	}
	return nil
}

// absolute refuses what is no absolute path in its plain form.
func absolute(field, path string) error {
	if err := required(field, path); err != nil {
		return err
	}
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return invalid(field, "%q: not an absolute path without \"..\"", path)
	}
	return nil
}
