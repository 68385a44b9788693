package stream

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"time"

	"github.com/sirupsen/logrus"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/runscd/runscd/internal/stdio"
)

// Exec returns the URL of a session that runs a command in a container. The
// request has been checked.
func (s *Server) Exec(req *runtime.ExecRequest) (url string, err error) {
	o := &remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty}
	return s.offer("exec", func(w http.ResponseWriter, r *http.Request) {
		remotecommand.ServeExec(w, r, executor{s.pods, req}, "", "", "", nil, o,
			s.options.IdleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
	})
}

// Attach returns the URL of a session with a container's own streams.
func (s *Server) Attach(req *runtime.AttachRequest) (url string, err error) {
	o := &remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty}
	return s.offer("attach", func(w http.ResponseWriter, r *http.Request) {
		remotecommand.ServeAttach(w, r, attacher{s.pods, req}, "", "", "", o,
			s.options.IdleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
	})
}

// PortForward returns the URL of a session with ports of a pod. Over WebSocket
// these are the request's; a SPDY client names them itself.
func (s *Server) PortForward(req *runtime.PortForwardRequest) (url string, err error) {
	return s.offer("portforward", func(w http.ResponseWriter, r *http.Request) {
		portforward.ServePortForward(w, r, forwarder{r.Context(), s.pods}, req.PodSandboxId, "",
			&portforward.V4Options{Ports: req.Port},
			s.options.IdleTimeout, creationTimeout, portforward.SupportedProtocols)
	})
}

// executor is an Exec request as the library knows it.
type executor struct {
	pods Pods
	req  *runtime.ExecRequest
}

// ExecInContainer runs the request's command.
func (e executor) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, errs io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	streams := wanted(e.req, in, out, errs)
	if e.req.Tty {
		streams.Resize = sizes(ctx, resize)
	}
	return logged("exec", e.req.ContainerId, func() error {
		status, err := e.pods.Exec(ctx, e.req.ContainerId, e.req.Cmd, e.req.Tty, streams)
		if err == nil && status != 0 {
			return utilexec.CodeExitError{Err: fmt.Errorf("exit status %d", status), Code: status}
		}
		return err
	})
}

// attacher is an Attach request as the library knows it.
type attacher struct {
	pods Pods
	req  *runtime.AttachRequest
}

// AttachContainer connects the client with the request's container.
func (a attacher) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errs io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize) error {
	streams := wanted(a.req, in, out, errs)
	if a.req.Tty {
		streams.Resize = sizes(ctx, resize)
	}
	return logged("attach", a.req.ContainerId, func() error {
		return a.pods.Attach(ctx, a.req.ContainerId, streams)
	})
}

type request interface {
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
}

// wanted are the streams that a request asks for; over WebSocket the client has
// others too.
func wanted(req request, in io.Reader, out, errs io.Writer) stdio.Streams {
	var s stdio.Streams
	if req.GetStdin() {
		s.In = in
	}
	if req.GetStdout() {
		s.Out = out
	}
	if req.GetStderr() {
		s.Err = errs
	}
	return s
}

// sizes passes on the sizes of the client's terminal until there are no more or
// ctx ends.
func sizes(ctx context.Context, resize <-chan remotecommand.TerminalSize) <-chan stdio.Size {
	out := make(chan stdio.Size)
	go func() {
		defer close(out)
		for size := range resize {
			select {
			case out <- stdio.Size{Width: size.Width, Height: size.Height}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// forwarder is a PortForward request as the library knows it, which tells it of
// the client's connections one by one.
type forwarder struct {
	ctx  context.Context // of the request; the library's own never ends
	pods Pods
}

// PortForward connects one connection of the client with a port of the pod.
func (f forwarder) PortForward(_ context.Context, pod, _ string, port int32, stream io.ReadWriteCloser) error {
	if port < 1 || port > math.MaxUint16 {
		return fmt.Errorf("port %d: not between 1 and 65535", port)
	}
	c := connection{stream}
	defer c.discard()
	return logged("portforward", pod, func() error {
		return f.pods.PortForward(f.ctx, pod, uint16(port), c)
	})
}

// connection is one connection that a client forwards.
type connection struct{ io.ReadWriteCloser }

// Write sends to the client. SPDY itself would let a write to a client that has
// dropped the connection pass for one that was sent.
func (c connection) Write(b []byte) (int, error) {
	if s, ok := c.ReadWriteCloser.(interface{ IsFinished() bool }); ok && s.IsFinished() {
		return 0, io.ErrClosedPipe
	}
	return c.ReadWriteCloser.Write(b)
}

// discard drops what the client still sends. Unread it would hold up the
// client's other connections, which share the one of SPDY's.
func (c connection) discard() {
	c.Close()
	if s, ok := c.ReadWriteCloser.(interface{ Reset() error }); ok {
		_ = s.Reset() // after Close it sends nothing
	}
}

// logged runs a session and logs how it went. What the client is told of an
// error is the library's part.
func logged(kind, id string, session func() error) error {
	begin := time.Now()
	err := session()
	log := logrus.WithFields(logrus.Fields{"session": kind, "id": id, "duration": time.Since(begin)})
	if err != nil {
		log = log.WithError(err)
	}
	log.Info("session")
	return err
}
