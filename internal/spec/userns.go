package spec

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkUserNS refuses user namespaces that a sandbox cannot have. The image's
// files are shifted by one range, which is all that the kubelet asks for.
func checkUserNS(o *runtime.NamespaceOption) error {
	u := o.GetUsernsOptions()
	switch m := u.GetMode(); {
	case u == nil:
		return nil
	case m == runtime.NamespaceMode_NODE:
		if len(u.Uids)+len(u.Gids) > 0 {
			return fmt.Errorf("userns_options: id mappings in the host's user namespace: %w", errdefs.ErrInvalidArgument)
		}
		return nil
	case m != runtime.NamespaceMode_POD:
		return fmt.Errorf("userns_options: mode %s: %w", m, errdefs.ErrInvalidArgument)
	case o.GetNetwork() == runtime.NamespaceMode_NODE:
		return fmt.Errorf("userns_options: a user namespace with the host's network: %w", errdefs.ErrInvalidArgument)
	}
	for field, list := range map[string][]*runtime.IDMapping{"uids": u.Uids, "gids": u.Gids} {
		if len(list) != 1 || list[0].GetContainerId() != 0 || list[0].GetLength() == 0 ||
			uint64(list[0].GetHostId())+uint64(list[0].GetLength()) > 1<<32-1 {
			return fmt.Errorf("userns_options: %s %v: not one range from 0 on: %w", field, list, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// userNamespace returns the entry for a pod's user namespace, none for the host's.
func userNamespace(u *runtime.UserNamespace) []specs.LinuxNamespace {
	if u == nil || u.GetMode() != runtime.NamespaceMode_POD {
		return nil
	}
	return []specs.LinuxNamespace{{Type: specs.UserNamespace}}
}

func idMappings(list []*runtime.IDMapping) []specs.LinuxIDMapping {
	var mappings []specs.LinuxIDMapping
	for _, m := range list {
		mappings = append(mappings, specs.LinuxIDMapping{ContainerID: m.ContainerId, HostID: m.HostId, Size: m.Length})
	}
	return mappings
}

// checkSameUserNS refuses a container's user namespace that is not its pod's.
func checkSameUserNS(container, pod *runtime.NamespaceOption) error {
	own, pods := container.GetUsernsOptions(), pod.GetUsernsOptions()
	same := own == nil || proto.Equal(own, pods) || userNamespace(own) == nil && userNamespace(pods) == nil
	if !same {
		return fmt.Errorf("userns_options: not the pod's: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}
