package pod

import (
	"errors"
	"fmt"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/spec"
)

// relabel gives the volumes of a container that ask for it the SELinux label of its
// files. No process of a sandbox is held to that; it is for who shares the volume
// with the pod.
func relabel(r *Registry, c *runtime.ContainerConfig) error {
	for i, m := range c.GetMounts() {
		if !m.GetSelinuxRelabel() || m.GetImage().GetImage() != "" {
			continue
		}
		name, err := r.VolumeLabel(c.GetLinux().GetSecurityContext().GetSelinuxOptions())
		if err != nil {
			return fmt.Errorf("selinux_options: %w", err)
		}
		if name == "" {
			return nil
		}
		source, err := spec.HostPath(m)
		if err == nil {
			err = selinux.Chcon(source, name, true)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) { // of a file system that has no labels
			return fmt.Errorf("mounts[%d] %q: selinux_relabel: %w", i, m.GetContainerPath(), err)
		}
	}
	return nil
}

// volumeLabel returns the label of volumes by the host's policy and a container's
// options; "" where the host has no SELinux. Without a level they are for all pods:
// categories of its own would keep the volume from others, and the pod from nothing.
func volumeLabel(o *runtime.SELinuxOption) (string, error) {
	level := "s0"
	if o.GetLevel() != "" {
		level = o.GetLevel()
	}
	options := []string{"level:" + level}
	if o.GetUser() != "" {
		options = append(options, "user:"+o.GetUser())
	}
	_, files, err := label.InitLabels(options)
	return files, err
}
