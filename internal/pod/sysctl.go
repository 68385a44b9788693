package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/runscd/runscd/internal/pause"
	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/spec"
)

// setSysctls sets the pod's sysctls in its sandbox, which has no container yet.
// The error is ErrInvalidArgument and names one that the sandbox does not have, or
// not with that value.
func setSysctls(ctx context.Context, p *Pod) error {
	wanted := p.Config().GetLinux().GetSysctls()
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		if spec.HasNoFile(name) {
			continue
		}
		if err := setSysctl(ctx, p, name, wanted[name]); err != nil {
			return fmt.Errorf("sysctl %q: %w", name, err)
		}
	}
	return nil
}

func setSysctl(ctx context.Context, p *Pod, name, value string) error {
	file := path.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	has, err := p.writeInside(ctx, []string{file, value})
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return fmt.Errorf("not to be set to %q in a sandbox: %w: %w", value, errno, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return err
	}
	if !slices.Equal(strings.Fields(has), strings.Fields(value)) {
		return fmt.Errorf("set to %q, is %q in a sandbox: %w", value, strings.TrimSpace(has), errdefs.ErrInvalidArgument)
	}
	return nil
}

// writeInside has the pause program write files of the root container: names and
// values by turns, where an empty value makes a directory. It returns what the files
// have then. The error is a syscall.Errno if one cannot be written.
func (p *Pod) writeInside(ctx context.Context, files []string) (has string, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return "", errors.Join(err, w.Close())
	}
	exec, err := p.init.Exec(ctx, proc.ExecConfig{
		Process: &specs.Process{
			Args: append([]string{pause.Command}, files...), Cwd: "/",
			Capabilities: spec.AllCapabilities(), NoNewPrivileges: true,
		},
		Stdio: runsc.Stdio{In: null, Out: w, Err: null},
	})
	if err := errors.Join(err, w.Close(), null.Close()); err != nil {
		return "", err
	}
	status, err := exec.Wait(ctx)
	if err == nil && status != 0 {
		err = syscall.Errno(status)
	}
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(r)
	return string(text), err
}
