package runsc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Control talks to the control socket of one sandbox: a JSON object for the
// call, one for the answer, files beside the first byte. The methods and their
// arguments are gVisor's (runsc/boot/controller.go).
//
// Errors are ErrUnavailable when the sandbox does not answer because it is
// gone, and of the kinds in this package for what the sentry refuses.
type Control struct {
	runtime *Runtime
	sandbox string
}

// Control returns the control of the sandbox. It opens nothing.
func (r *Runtime) Control(sandboxID string) *Control {
	return &Control{runtime: r, sandbox: sandboxID}
}

func (r *Runtime) socket(sandboxID string) string {
	return filepath.Join(r.root, socketPrefix+sandboxID+socketSuffix)
}

// State is what the sentry says of a container.
type State int

// The sentry's numbers.
const (
	StateUnknown State = iota
	StateCreated
	StateRunning
	StateStopped
)

// Who in the container gets a signal; the sentry's numbers.
type Target int

const (
	ToProcess         Target = iota // the given process, or the container's first
	ToAll                           // every process of the container
	ToForegroundGroup               // the foreground group of the process's terminal
	ToGroup                         // the process group that the given process leads
)

// State returns the state of a container. It is StateUnknown for one that runsc
// keeps nothing of.
func (c *Control) State(ctx context.Context, id string) (State, error) {
	if !c.runtime.exists(id) {
		return StateUnknown, nil // the sentry would call it stopped
	}
	var s State
	err := c.call(ctx, "ContainerRuntimeState", &id, nil, &s)
	if errdefs.IsNotImplemented(err) {
		return c.runtime.cliState(ctx, id)
	}
	return s, err
}

// Wait returns the exit status of a container's first process once it has
// exited: 0 to 255, 128+n for signal n. It may be asked again, by anybody, as
// long as the sandbox lives.
func (c *Control) Wait(ctx context.Context, id string) (int, error) {
	var ws uint32
	err := c.call(ctx, "Wait", &id, nil, &ws)
	if errdefs.IsNotImplemented(err) {
		return c.runtime.cliWait(ctx, id)
	}
	return exitStatus(ws), err
}

// WaitExec returns the exit status of a process started by Exec. The first
// caller takes it, also one that gave up.
func (c *Control) WaitExec(ctx context.Context, id string, pid int) (int, error) {
	args := struct {
		PID int
		CID string
	}{pid, id}
	var ws uint32
	err := c.call(ctx, "WaitPID", &args, nil, &ws)
	return exitStatus(ws), err
}

// Signal sends a signal, real-time ones included. pid is a process as Exec
// returned it, 0 for the container's first.
func (c *Control) Signal(ctx context.Context, id string, pid int, sig unix.Signal, to Target) error {
	args := struct {
		CID        string
		Signo, PID int
		Mode       Target
	}{id, int(sig), pid, to}
	err := c.call(ctx, "Signal", &args, nil, nil)
	if errdefs.IsNotImplemented(err) && pid == 0 {
		return c.runtime.cliKill(ctx, id, sig, to == ToAll)
	}
	return err
}

// Exec starts a process in a running container with the given standard streams
// and returns its process id, as the sandbox numbers it. The program is the first
// of the arguments, or program unless that is nil: a static one, open for reading
// only, that need not be in the container's file system.
func (c *Control) Exec(ctx context.Context, id string, p *specs.Process, stdio Stdio, program *os.File) (int, error) {
	args, err := newExecArgs(id, p)
	if err != nil {
		return 0, err
	}
	files := []*os.File{stdio.In, stdio.Out, stdio.Err}
	if program != nil {
		files = append(files, program) // one more than there are GuestFDs
	}
	var pid int
	err = c.call(ctx, "ExecuteAsync", args, files, &pid)
	return pid, err
}

// maxAnswer bounds what a sandbox that was taken over can make the daemon hold.
// The longest answer that is right is the list of a pod's processes.
const maxAnswer = 16 << 20

// call makes one call on a connection of its own and decodes the answer into
// result unless that is nil. A method is the container manager's unless it names
// another object of the sentry's.
func (c *Control) call(ctx context.Context, method string, arg any, files []*os.File, result any) (err error) {
	defer func(method string, since time.Time) { c.runtime.onCall(ctx, method, since, err) }(method, time.Now())
	conn, err := dial(ctx, c.runtime.socket(c.sandbox))
	if err != nil && err == ctx.Err() {
		return fmt.Errorf("%s in sandbox %s: %w", method, c.sandbox, err)
	}
	if err != nil {
		return fmt.Errorf("control socket of sandbox %s: %w: %w", c.sandbox, err, errdefs.ErrUnavailable)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if !strings.Contains(method, ".") {
		method = "containerManager." + method
	}
	answer := struct {
		Success bool
		Err     string
		Result  any
	}{Result: result}
	err = send(conn, map[string]any{"method": method, "arg": arg}, files)
	if err == nil {
		from := &io.LimitedReader{R: conn, N: maxAnswer}
		err = json.NewDecoder(from).Decode(&answer)
		if err != nil && from.N == 0 {
			return fmt.Errorf("%s in sandbox %s: answer of more than %d bytes", method, c.sandbox, maxAnswer)
		}
	}
	switch {
	case err == nil && answer.Success:
		return nil
	case err == nil:
		return classify(answer.Err)
	case ctx.Err() != nil:
		return fmt.Errorf("%s in sandbox %s: %w", method, c.sandbox, ctx.Err())
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return fmt.Errorf("%s in sandbox %s: the sandbox is gone: %w", method, c.sandbox, errdefs.ErrUnavailable)
	default:
		return fmt.Errorf("%s in sandbox %s: %w", method, c.sandbox, err)
	}
}

func send(conn *net.UnixConn, call any, files []*os.File) error {
	data, err := json.Marshal(call)
	if err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	// Files go with the first byte; what of the data does not fit follows.
	n, _, err := conn.WriteMsgUnix(data, oob, nil)
	if err != nil || n == len(data) {
		return err // not even an empty write: who has answered may have hung up
	}
	_, err = conn.Write(data[n:])
	return err
}

// dialPause is between the tries of a dial when too many dial at once.
const dialPause = time.Millisecond

// dial connects to a unix socket at a path of any length. It returns ctx's error
// only if too many others dialled until ctx ended.
func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	const longest = 107 // bytes in sun_path, less the final zero
	if len(path) > longest {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		path = "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(path)
	}
	for {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if !errors.Is(err, unix.EAGAIN) {
			return conn, err
		}
		// The sentry keeps 16 waiting, and no event tells when there is room.
		select {
		case <-time.After(dialPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// exitStatus turns a wait status into the number that a shell would show.
func exitStatus(ws uint32) int {
	w := unix.WaitStatus(ws)
	if w.Signaled() {
		return 128 + int(w.Signal())
	}
	return w.ExitStatus()
}
