package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	// stdoutDelay is how long a dead plugin's output may be held open by a
	// child that has left its process group. What was not read by then is lost:
	// with a second, plugins' results were, when 100 pods were made at once.
	stdoutDelay = 10 * time.Second
	// pluginTimeout is how long one call of a plugin may take. The client that
	// waits for a pod's creation or stop waits longer, so it is told which
	// plugin hangs.
	pluginTimeout = time.Minute
	// maxStderr is how much of a failed plugin's last words an error has.
	maxStderr = 1 << 10
)

// plugins runs CNI plugins for libcni. Unlike libcni's own it kills a plugin
// together with its process group (IPAM plugins, iptables), and always keeps
// what a failed one wrote to stderr.
type plugins struct {
	version.PluginDecoder
	timeout time.Duration // of one call
}

var _ invoke.Exec = (*plugins)(nil)

// FindInPath returns the path of a plugin's binary.
func (*plugins) FindInPath(plugin string, dirs []string) (string, error) {
	return invoke.FindInPath(plugin, dirs)
}

// ExecPlugin runs a plugin and returns its output. The error wraps ctx's if
// that ended the plugin, and the plugin's own *types.Error if it gave one.
func (p *plugins) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	call := "" // ADD, DEL …
	for _, v := range env {
		if name, value, _ := strings.Cut(v, "="); name == "CNI_COMMAND" {
			call = value
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout,
		fmt.Errorf("%s took longer than %v: %w", call, p.timeout, context.DeadlineExceeded))
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = env
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stdout = &stdout
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = stdoutDelay
	err := cmd.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return stdout.Bytes(), nil
	}
	var said types.Error
	if ctx.Err() != nil {
		err = fmt.Errorf("killed: %w", context.Cause(ctx))
	} else if json.Unmarshal(stdout.Bytes(), &said) == nil && said.Msg != "" {
		err = &said
	}
	if words := strings.TrimSpace(lastBytes(stderr.Bytes(), maxStderr)); words != "" {
		err = fmt.Errorf("%w; stderr: %s", err, words)
	}
	return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
}

func lastBytes(b []byte, n int) string { return string(b[max(0, len(b)-n):]) }
