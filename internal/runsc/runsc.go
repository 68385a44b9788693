// Package runsc drives the runsc binary and its sandboxes.
//
// It is the only place that knows runsc's flags, its messages and the protocol
// of its control socket. What it keeps true:
//
//   - Every command ends at the deadline of its context, also when a
//     grandchild holds its output open.
//   - A failed command's error carries the first fatal line that runsc or the
//     sentry logged for it, not the "EOF" that the failure of one looks like to
//     the other.
//   - Commands are started for create, start, run, restore and delete only. What
//     happens in a running sandbox goes over its control socket, one
//     connection a call: an idle connection would delay the sandbox's exit.
package runsc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	runc "github.com/containerd/go-runc"
)

// Options say which runsc is run, and how.
type Options struct {
	Path  string   // the binary
	Root  string   // its --root: the states and control sockets of its containers
	Flags []string // global flags of the handler, such as "--platform=kvm"
	// LayerSize is how much a container may write to its root file system, as 512m;
	// "": as much as there is room for.
	LayerSize string

	// OnCommand and OnCall are told of each command that was run (create, start,
	// run, restore, delete) and of each call on a control socket, by its method.
	// They may be nil.
	OnCommand, OnCall Observer
}

// Observer is told what has been done since a time, and how that went.
type Observer func(ctx context.Context, what string, since time.Time, err error)

// Runtime is one runsc binary with one set of flags.
type Runtime struct {
	path  string
	root  string
	flags []string
	// Of the runtime of one sandbox; see Of.
	origin    Origin
	successor string
	sandbox   atomic.Int64 // process id

	onCommand, onCall Observer
}

// New returns the runtime of o. It runs nothing.
func New(o Options) *Runtime {
	overlay := "--overlay2=root:self"
	if o.LayerSize != "" {
		overlay += ",size=" + o.LayerSize
	}
	flags := []string{
		// Sub containers' memory is accounted by the cgroups inside the
		// sandbox, which containers see as version 2.
		"--in-sandbox-cgroup=v2",
		// The writable layer is a file in the upper directory of the container's
		// root file system: fast, and its blocks are the layer's usage.
		overlay,
		// Otherwise a spec's seccomp filter is left out.
		"--oci-seccomp",
		// Otherwise a spec without noNewPrivileges has them all the same: programs that
		// are set-uid run as who starts them.
		"--allow-suid",
		// Otherwise an open control connection keeps a dead sandbox for 15 s.
		"--control-rpc-stop-timeout=0s",
	}
	r := &Runtime{path: o.Path, root: o.Root, flags: append(flags, o.Flags...), onCommand: o.OnCommand, onCall: o.OnCall}
	for _, f := range []*Observer{&r.onCommand, &r.onCall} {
		if *f == nil {
			*f = func(context.Context, string, time.Time, error) {}
		}
	}
	return r
}

// Path is the binary's path.
func (r *Runtime) Path() string { return r.path }

// Platform is how the sentry runs programs, as the flags say; "" is runsc's default.
func (r *Runtime) Platform() (name string) {
	for _, f := range r.flags {
		if value, ok := strings.CutPrefix(f, "--platform="); ok {
			name = value
		}
	}
	return name
}

// NetRaw tells whether a sandbox has CAP_NET_RAW for its containers.
func (r *Runtime) NetRaw() bool { return slices.Contains(r.flags, "--net-raw") }

// Version returns what the binary calls its version.
func (r *Runtime) Version(ctx context.Context) (string, error) {
	cmd, done := r.command(ctx, "--version")
	defer done()
	out, err := cmd.Output()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		said, _, _ := strings.Cut(string(exit.Stderr), "\n") // a flag that it does not know, perhaps
		return "", fmt.Errorf("version of %s: %w: %s", r.path, err, said)
	}
	if err != nil {
		return "", fmt.Errorf("version of %s: %w", r.path, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	version, ok := strings.CutPrefix(first, "runsc version ")
	if !ok {
		return "", fmt.Errorf("version of %s: it printed %q: %w", r.path, first, errdefs.ErrFailedPrecondition)
	}
	return version, nil
}

// CreateConfig is what Create needs besides the OCI bundle.
type CreateConfig struct {
	Bundle      string // directory with config.json; runsc's logs and pid file are put there
	HostNetwork bool   // the sandbox uses the host's network stack
	// Restored says that the sandbox is to come back from a checkpoint; see
	// RestoreSandbox.
	Restored bool
}

// flags are the global flags of a sandbox. Create and Start must have the same:
// a start without --network=host would take the host's addresses away from it.
func (c CreateConfig) flags() []string {
	if c.HostNetwork {
		return []string{"--network=host"}
	}
	return nil
}

// Create makes the sandbox id with its root container, not started, and returns
// the process id of the sandbox on the host.
func (r *Runtime) Create(ctx context.Context, id string, c CreateConfig) (int, error) {
	args := append(c.flags(), "--panic-log="+filepath.Join(c.Bundle, panicLog))
	if c.Restored {
		// Who restores compares what must be the same. runsc does so when the last
		// container is restored, and would refuse another oom_score_adj.
		args = append(args, "--restore-spec-validation=ignore")
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	pidFile := filepath.Join(c.Bundle, "pid")
	err = r.run(ctx, "create", c.Bundle, func(cli *runc.Runc) error {
		cli.ExtraArgs = append(cli.ExtraArgs, args...)
		return cli.Create(ctx, id, c.Bundle, &runc.CreateOpts{PidFile: pidFile, IO: Stdio{null, null, null}})
	})
	if err != nil {
		return 0, fmt.Errorf("sandbox creation: %w", err)
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// Start starts the root container of the sandbox id, with the configuration that
// it was created with. The addresses of its network namespace are read now.
func (r *Runtime) Start(ctx context.Context, id string, c CreateConfig) error {
	err := r.run(ctx, "start", c.Bundle, func(cli *runc.Runc) error {
		cli.ExtraArgs = append(cli.ExtraArgs, c.flags()...)
		return cli.Start(ctx, id)
	})
	if err != nil {
		return fmt.Errorf("sandbox start: %w", err)
	}
	return nil
}

// Run creates and starts the sub container id of the bundle in its sandbox,
// with the given standard streams. After an error there is no container id.
func (r *Runtime) Run(ctx context.Context, id, bundle string, stdio Stdio) error {
	return r.run(ctx, "run", bundle, func(cli *runc.Runc) error {
		_, err := cli.Run(ctx, id, bundle, &runc.CreateOpts{Detach: true, IO: stdio})
		return err
	})
}

// Delete kills the container id if it runs and removes what runsc keeps of it.
// A container that is not there is no error.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	if r.exists(id) {
		err := r.run(ctx, "delete", "", func(cli *runc.Runc) error {
			return cli.Delete(ctx, id, &runc.DeleteOpts{Force: true})
		})
		if err != nil && r.exists(id) {
			return fmt.Errorf("deletion of container %s: %w", id, err)
		}
	}
	// A container that could not be made leaves its lock.
	return removeFiles(filepath.Join(r.root, id+stateInfix+"*"))
}

// Forget removes what runsc keeps of the containers of a sandbox whose
// processes are dead, and of the sandbox's control socket.
func (r *Runtime) Forget(sandboxID string) error {
	return errors.Join(
		removeFiles(filepath.Join(r.root, "*"+stateInfix+sandboxID+".*")),
		removeFiles(r.socket(sandboxID)),
	)
}

// removeFiles removes the files of a pattern that are there.
func removeFiles(pattern string) error {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// stateInfix stands between the container's and the sandbox's id in the name
// of a state file.
const stateInfix = "_sandbox:"

// The name of a control socket has the sandbox's id in between.
const (
	socketPrefix = "runsc-"
	socketSuffix = ".sock"
)

// List returns the containers that runsc knows, with the sandbox of each.
func (r *Runtime) List() (map[string]string, error) {
	entries, err := os.ReadDir(r.root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	sandboxes := map[string]string{}
	for _, e := range entries {
		if id, ok := strings.CutPrefix(e.Name(), socketPrefix); ok { // of a sandbox that has perhaps no state
			id = strings.TrimSuffix(id, socketSuffix)
			sandboxes[id] = id
		}
		if name, ok := strings.CutSuffix(e.Name(), ".state"); ok {
			if id, sandbox, ok := strings.Cut(name, stateInfix); ok {
				sandboxes[id] = sandbox
			}
		}
	}
	return sandboxes, nil
}

// exists tells whether runsc keeps a state for the container.
func (r *Runtime) exists(id string) bool {
	found, err := filepath.Glob(filepath.Join(r.root, id+stateInfix+"*.state"))
	return err != nil || len(found) > 0
}

// run calls f with a CLI that logs to a file of the bundle ("" for none), and
// puts the cause that the log names in place of f's error. command is what f runs.
func (r *Runtime) run(ctx context.Context, command, bundle string, f func(*runc.Runc) error) (err error) {
	defer func(since time.Time) { r.onCommand(ctx, command, since, err) }(time.Now())
	path, done := r.binary()
	defer done()
	cli := &runc.Runc{Command: path, Root: r.root, ExtraArgs: append([]string(nil), r.flags...)}
	if bundle != "" {
		cli.Log = filepath.Join(bundle, callLog)
		cli.LogFormat = runc.JSON
		// The sandbox keeps the file of its creation open and may append to
		// it; so a new file for each call, not a truncated one.
		if err := os.Remove(cli.Log); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err = f(cli); err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("runsc: %w", context.Cause(ctx))
	}
	if bundle != "" {
		if cause := Cause(bundle); cause != "" {
			cause, _, _ = strings.Cut(cause, ":\ngoroutine ") // of a state that cannot be loaded
			return classify(cause)
		}
		if full := room(bundle); full != nil {
			return fmt.Errorf("%w; it could not log why: %w", err, full)
		}
	}
	return classify(err.Error())
}

// room returns why a directory does not take what runsc writes there, nil if it does.
func room(dir string) error {
	f, err := os.CreateTemp(dir, "room")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(make([]byte, 1<<16))
	return errors.Join(err, f.Close())
}

// command is a call of the binary whose output is wanted, and what to call
// afterwards.
func (r *Runtime) command(ctx context.Context, args ...string) (cmd *exec.Cmd, done func()) {
	path, done := r.binary()
	cmd = exec.CommandContext(ctx, path, append(append([]string{"--root=" + r.root}, r.flags...), args...)...)
	// A grandchild may hold the output open past the deadline.
	cmd.WaitDelay = time.Second
	return cmd, done
}

// Stdio are the standard streams of a container. It is a runc.IO of plain
// files, which it does not own.
type Stdio struct{ In, Out, Err *os.File }

var _ runc.IO = Stdio{}

// Set gives the streams to the command.
func (s Stdio) Set(cmd *exec.Cmd) {
	// Typed nils must not become non-nil interfaces.
	if s.In != nil {
		cmd.Stdin = s.In
	}
	if s.Out != nil {
		cmd.Stdout = s.Out
	}
	if s.Err != nil {
		cmd.Stderr = s.Err
	}
}

// Close does nothing: the files belong to the caller.
func (Stdio) Close() error { return nil }

// Stdin, Stdout and Stderr are nil: nobody talks to a container through the
// command that creates it.
func (Stdio) Stdin() io.WriteCloser { return nil }
func (Stdio) Stdout() io.ReadCloser { return nil }
func (Stdio) Stderr() io.ReadCloser { return nil }
