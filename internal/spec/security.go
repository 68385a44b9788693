package spec

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkSandboxProfiles refuses profiles of a pod that do not hold. No process of
// the pod's runs in the root container, so that its seccomp profile has nothing
// to filter; each container has its own.
func checkSandboxProfiles(s *runtime.LinuxSandboxSecurityContext) error {
	if _, err := seccompProfile(s.GetSeccomp(), &specs.LinuxCapabilities{}); err != nil {
		return err
	}
	//lint:ignore SA1019 what it says must not be dropped
	if err := checkSeccompPath(s.GetSeccompProfilePath()); err != nil {
		return err
	}
	return checkApparmor(s.GetApparmor())
}

// checkProfiles refuses profiles of a container that would not be enforced.
func checkProfiles(s *runtime.LinuxContainerSecurityContext) error {
	//lint:ignore SA1019 what it says must not be dropped
	if err := checkSeccompPath(s.GetSeccompProfilePath()); err != nil {
		return err
	}
	//lint:ignore SA1019 what it says must not be dropped
	switch p := s.GetApparmorProfile(); p {
	case "", "unconfined", "runtime/default":
	default:
		return fmt.Errorf("apparmor_profile %q: not enforced in a sandbox: %w", p, errdefs.ErrInvalidArgument)
	}
	return checkApparmor(s.GetApparmor())
}

// checkSeccompPath refuses the field that the CRI has replaced, where it asks for
// a profile.
func checkSeccompPath(path string) error {
	if path != "" && path != "unconfined" {
		return fmt.Errorf("seccomp_profile_path %q: replaced by seccomp: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// checkApparmor refuses a profile of the host: AppArmor sees the sandbox, and
// nothing of what the processes in it do.
func checkApparmor(p *runtime.SecurityProfile) error {
	if p.GetProfileType() == runtime.SecurityProfile_Localhost {
		return fmt.Errorf("apparmor profile %q of the host: not enforced in a sandbox: %w", p.GetLocalhostRef(), errdefs.ErrInvalidArgument)
	}
	return nil
}
