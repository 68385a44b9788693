package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/internal/forward"
	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
)

// nobody is the user and the group of the processes that forward ports.
const nobody = 65534

// forwardBuffer is how many bytes are copied at a time.
const forwardBuffer = 32 << 10

// PortForward connects conn with a TCP port of a running pod, on 127.0.0.1 or
// else on ::1, until both directions have ended or ctx ends. conn's Close ends
// what is sent to the client and nothing else. A Read of conn may still be under
// way when PortForward returns; it is the caller's to end.
//
// The error is ErrUnavailable, and says why, if nobody answers at the port, or if
// the pod ends first. If the client drops the connection or the pod resets it, that
// is an end like any other: kubectl gives up all its connections at an error of one.
func (r *Registry) PortForward(ctx context.Context, podID string, port uint16, conn io.ReadWriteCloser) error {
	p, err := r.Pod(podID)
	if err != nil {
		return err
	}
	if port == 0 {
		return fmt.Errorf("port 0 of pod sandbox %s: %w", p.ID, errdefs.ErrInvalidArgument)
	}
	if s := p.State(); s != proc.Running {
		return fmt.Errorf("pod sandbox %s: %s, not running: %w", p.ID, s, errdefs.ErrFailedPrecondition)
	}
	if err := p.thawed(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client := client{conn, cancel}
	if hostNetwork(p.Config()) {
		err = p.forwardOnHost(ctx, port, client)
	} else {
		err = p.forwardInSandbox(ctx, port, client)
	}
	if err != nil {
		return fmt.Errorf("port %d of pod sandbox %s: %w", port, p.ID, err)
	}
	return nil
}

// forwardInSandbox has a process in the root container connect to the port. The
// sentry's own forwarding would lose data, and it locks the sandbox while it
// connects.
func (p *Pod) forwardInSandbox(ctx context.Context, port uint16, c client) error {
	f, err := startForwarder(ctx, p, port)
	if err != nil {
		return err
	}
	defer f.Close()
	// How it went is told by the exit of the process, not by the socket.
	_, _ = c.exchange(ctx, f)
	status, err := f.exec.Wait(ctx)
	if err != nil {
		killed := f.kill(ctx, p.home.signalTimeout)
		if ctx.Err() != nil {
			return killed
		}
		return errors.Join(err, killed)
	}
	switch {
	case status >= 128:
		return fmt.Errorf("the sandbox has ended or the connection was killed in it, status %d: %w", status, errdefs.ErrUnavailable)
	case status != 0:
		return fmt.Errorf("%w: %w", syscall.Errno(status), errdefs.ErrUnavailable)
	}
	return nil
}

// forwarder is a process that copies between a socket and a port of its sandbox.
type forwarder struct {
	*net.UnixConn
	exec *proc.Exec
	// lifeline is held open while the process is wanted. If the daemon is killed
	// it ends, and the process with it.
	lifeline *os.File
}

func (f *forwarder) Close() error { return errors.Join(f.UnixConn.Close(), f.lifeline.Close()) }

// startForwarder starts the program of internal/forward.
func startForwarder(ctx context.Context, p *Pod, port uint16) (*forwarder, error) {
	conn, socket, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	defer socket.Close()
	hangup, lifeline, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	defer hangup.Close()
	f := &forwarder{UnixConn: conn, lifeline: lifeline}
	program, err := forward.Open()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	defer program.Close()
	f.exec, err = p.init.Exec(ctx, proc.ExecConfig{
		Process: &specs.Process{
			Args: []string{"port-forward", strconv.Itoa(int(port))}, Cwd: "/",
			User: specs.User{UID: nobody, GID: nobody}, NoNewPrivileges: true,
		},
		Stdio:   runsc.Stdio{In: socket, Out: socket, Err: hangup},
		Program: program,
	})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// kill ends the process and waits for that, at most for timeout. ctx may have
// ended.
func (f *forwarder) kill(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	err := f.exec.Kill(ctx, unix.SIGKILL)
	if err == nil {
		_, err = f.exec.Wait(ctx)
	}
	return err
}

// socketPair returns two connected sockets.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	a, b := os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket")
	conn, err := net.FileConn(a) // of a copy
	if err := errors.Join(err, a.Close()); err != nil {
		return nil, nil, errors.Join(err, b.Close())
	}
	return conn.(*net.UnixConn), b, nil
}

// forwardOnHost connects to a port of the host, whose network the pod uses.
func (p *Pod) forwardOnHost(ctx context.Context, port uint16, c client) error {
	s, err := dialHost(ctx, port)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil
	case err != nil:
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	defer s.Close()
	go func() {
		select {
		case <-p.init.Done(): // and the port is another's, perhaps
			c.gone()
		case <-ctx.Done():
		}
	}()
	if sent, err := c.exchange(ctx, s); err == nil {
		select {
		case <-sent:
		case <-ctx.Done():
		}
	}
	return nil
}

// dialHost tries IPv4 and then IPv6. The error is that of IPv4.
func dialHost(ctx context.Context, port uint16) (*net.TCPConn, error) {
	var d net.Dialer
	dial := func(host string) (net.Conn, error) {
		return d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	}
	conn, err := dial("127.0.0.1")
	if err != nil {
		conn6, err6 := dial("::1")
		if err6 != nil {
			return nil, err
		}
		conn = conn6
	}
	return conn.(*net.TCPConn), nil
}

// client is who has a port forwarded.
type client struct {
	io.ReadWriteCloser
	gone context.CancelFunc // ends the forwarding
}

// socket leads to a port.
type socket interface {
	io.ReadWriter
	CloseWrite() error
	SetDeadline(time.Time) error
}

// exchange copies both ways until the client has all that comes from s; err is
// how that ended. Then sent is closed when s has all that comes from the client.
// When ctx ends nothing more is read from s.
func (c client) exchange(ctx context.Context, s socket) (sent <-chan struct{}, err error) {
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if read, _ := pump(s, c); read != nil {
			c.gone()
		}
		_ = s.CloseWrite() // fails if there is nobody any more to tell
	}()
	err, written := pump(c, s)
	if written != nil {
		c.gone()
	}
	_ = c.Close()
	return done, err
}

// pump copies from src to dst until src ends. read is what went wrong with src,
// written with dst.
func pump(dst io.Writer, src io.Reader) (read, written error) {
	buf := make([]byte, forwardBuffer)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return nil, err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
	}
}
