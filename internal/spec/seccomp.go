package spec

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxProfile is the size up to which a profile of the host is read, in bytes.
const maxProfile = 1 << 20

// seccompProfile returns the filter of a container with the given capabilities,
// nil for none. The error names what in the profile the sentry cannot enforce.
func seccompProfile(p *runtime.SecurityProfile, caps *specs.LinuxCapabilities) (*specs.LinuxSeccomp, error) {
	if p == nil {
		return nil, nil
	}
	// What a profile has depends on what the container may do.
	of := &specs.Spec{Process: &specs.Process{Capabilities: caps}}
	var filter *specs.LinuxSeccomp
	var err error
	switch p.GetProfileType() {
	case runtime.SecurityProfile_Unconfined:
		return nil, nil
	case runtime.SecurityProfile_RuntimeDefault:
		filter, err = seccomp.GetDefaultProfile(of)
	case runtime.SecurityProfile_Localhost:
		filter, err = readProfile(p.GetLocalhostRef(), of)
	default:
		return nil, fmt.Errorf("seccomp profile_type %d: %w", p.GetProfileType(), errdefs.ErrInvalidArgument)
	}
	if err == nil {
		filter, err = forSentry(filter)
	}
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %s %q: %w", p.GetProfileType(), p.GetLocalhostRef(), err)
	}
	return filter, nil
}

// readProfile reads a profile of the host.
func readProfile(file string, of *specs.Spec) (*specs.LinuxSeccomp, error) {
	if !filepath.IsAbs(file) {
		return nil, fmt.Errorf("localhost_ref is no absolute path: %w", errdefs.ErrInvalidArgument)
	}
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0) // not to wait for a FIFO's writer
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxProfile {
		return nil, fmt.Errorf("%s of %d bytes: %w", info.Mode(), info.Size(), errdefs.ErrInvalidArgument)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxProfile))
	if err != nil {
		return nil, err
	}
	// The library refuses a profile without rules.
	var p seccomp.Seccomp
	if err := json.Unmarshal(text, &p); err == nil && len(p.Syscalls) == 0 {
		return &p.LinuxSeccomp, nil
	}
	filter, err := seccomp.LoadProfile(string(text), of)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return filter, nil
}

// operators are those that the sentry compares arguments by.
var operators = []specs.LinuxSeccompOperator{
	specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
	specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
}

// forSentry returns a filter that does the same to the system calls that the
// sentry has, in the few words that it compiles fast: it does so for every
// process that is executed in the container. What is allowed unconditionally is
// left out and what the default action is for is listed.
func forSentry(p *specs.LinuxSeccomp) (*specs.LinuxSeccomp, error) {
	if p.ListenerPath != "" {
		return nil, fmt.Errorf("listenerPath: %w", errdefs.ErrNotImplemented)
	}
	for _, flag := range p.Flags {
		if flag != "SECCOMP_FILTER_FLAG_TSYNC" && flag != specs.LinuxSeccompFlagSpecAllow {
			return nil, fmt.Errorf("flag %s: %w", flag, errdefs.ErrNotImplemented)
		}
	}
	otherwise, err := sentryAction(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	filter := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	all := strings.Fields(sentrySyscalls)
	undecided, ruled := map[string]bool{}, map[string]bool{}
	for _, name := range all {
		undecided[name] = true
	}
	add := func(names []string, action specs.LinuxSeccompAction, args []specs.LinuxSeccompArg) {
		var rule []string
		for _, name := range names {
			if !undecided[name] {
				continue
			}
			undecided[name] = len(args) > 0
			if len(args) > 0 || action != filter.DefaultAction || ruled[name] {
				ruled[name] = true
				rule = append(rule, name)
			}
		}
		if len(rule) > 0 {
			filter.Syscalls = append(filter.Syscalls, specs.LinuxSyscall{Names: rule, Action: action, Args: args})
		}
	}
	for i, rule := range p.Syscalls {
		action, err := sentryAction(rule.Action, rule.ErrnoRet)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		for _, arg := range rule.Args {
			if arg.Index > 5 || !slices.Contains(operators, arg.Op) {
				return nil, fmt.Errorf("syscalls[%d]: argument %d %q: %w", i, arg.Index, arg.Op, errdefs.ErrInvalidArgument)
			}
		}
		add(rule.Names, action, rule.Args)
	}
	add(all, otherwise, nil)
	return filter, nil
}

// sentryAction returns the sentry's word for an action. Its errors are EPERM
// and, where nobody traces the process, ENOSYS.
func sentryAction(action specs.LinuxSeccompAction, errno *uint) (specs.LinuxSeccompAction, error) {
	switch action {
	case specs.ActAllow, specs.ActKill, specs.ActTrap, specs.ActTrace:
		return action, nil
	case specs.ActKillThread:
		return specs.ActKill, nil
	case specs.ActErrno:
		switch {
		case errno == nil || *errno == uint(unix.EPERM):
			return specs.ActErrno, nil
		case *errno == uint(unix.ENOSYS):
			return specs.ActTrace, nil
		}
		return "", fmt.Errorf("%s with errno %d: %w", action, *errno, errdefs.ErrNotImplemented)
	}
	return "", fmt.Errorf("action %q: %w", action, errdefs.ErrNotImplemented)
}
