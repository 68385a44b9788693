package cri

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/spec"
)

// maxMetadata bounds the labels, and the annotations, of an object, in bytes.
// Kubernetes allows 256 KiB of annotations.
const maxMetadata = 1 << 20

func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// required refuses an empty value.
func required(field, value string) error {
	if value == "" {
		return invalid(field, "required")
	}
	return nil
}

func validatePod(c *runtime.PodSandboxConfig) error {
	if c == nil {
		return invalid("config", "required")
	}
	m := c.Metadata
	if m == nil {
		return invalid("config.metadata", "required")
	}
	for _, f := range []struct{ field, value string }{
		{"config.metadata.name", m.Name}, {"config.metadata.namespace", m.Namespace}, {"config.metadata.uid", m.Uid},
	} {
		if err := required(f.field, f.value); err != nil {
			return err
		}
	}
	if dir := c.LogDirectory; dir != "" && (!filepath.IsAbs(dir) || filepath.Clean(dir) != strings.TrimRight(dir, "/")) {
		return invalid("config.log_directory", "%q: not an absolute path without \"..\"", dir)
	}
	sc := c.GetLinux().GetSecurityContext()
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return invalid("config.linux.security_context.run_as_group", "%d without run_as_user", sc.RunAsGroup.Value)
	}
	return validateMetadata("config", c.Labels, c.Annotations)
}

func validateContainer(req *runtime.CreateContainerRequest) error {
	if err := required("pod_sandbox_id", req.PodSandboxId); err != nil {
		return err
	}
	return validateContainerConfig("config", req.Config)
}

func validateContainerConfig(field string, c *runtime.ContainerConfig) error {
	if c == nil {
		return invalid(field, "required")
	}
	if c.Metadata == nil {
		return invalid(field+".metadata", "required")
	}
	if err := required(field+".metadata.name", c.Metadata.Name); err != nil {
		return err
	}
	if err := required(field+".image.image", c.GetImage().GetImage()); err != nil {
		return err
	}
	if n := len(c.Mounts); n > spec.MaxMounts { // some are made before all are looked at
		return invalid(field+".mounts", "%d, more than %d", n, spec.MaxMounts)
	}
	return validateMetadata(field, c.Labels, c.Annotations)
}

func validateMetadata(config string, labels, annotations map[string]string) error {
	for field, m := range map[string]map[string]string{config + ".labels": labels, config + ".annotations": annotations} {
		size := 0
		for k, v := range m {
			size += len(k) + len(v)
		}
		if size > maxMetadata {
			return invalid(field, "%d bytes, more than %d", size, maxMetadata)
		}
	}
	return nil
}
