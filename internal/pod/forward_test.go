package pod

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/test/fakerunsc"
)

// stream is what the streaming server gives to PortForward.
type stream struct{ *net.UnixConn }

func (s stream) Close() error { return s.CloseWrite() }

// forwarded is a client of a port.
type forwarded struct {
	*net.UnixConn // the client's
	server        *net.UnixConn
	hangUp        context.CancelFunc
	err           chan error // of PortForward
}

// forward forwards a port of a pod. What it opens is closed with the test.
func (n *node) forward(pod string, port int) *forwarded {
	n.t.Helper()
	client, f, err := socketPair()
	n.must(err)
	server, err := net.FileConn(f)
	n.must(errors.Join(err, f.Close()))
	ctx, cancel := context.WithCancel(n.t.Context())
	c := &forwarded{client, server.(*net.UnixConn), cancel, make(chan error, 1)}
	n.t.Cleanup(func() {
		cancel()
		client.Close()
		server.Close()
	})
	go func() {
		err := n.PortForward(ctx, pod, uint16(port), stream{c.server})
		_ = server.Close() // as the streaming server does
		c.err <- err
	}()
	return c
}

// hostPod runs a pod in the host's network.
func (n *node) hostPod(name string) string {
	n.t.Helper()
	req := n.podRequest(name)
	req.Config.Linux.SecurityContext = &runtime.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE},
	}
	id, err := n.RunPod(n.t.Context(), req)
	n.must(err)
	return id
}

// both runs a test for a pod with a network of its own, which the fake does not
// have either, and for one in the host's.
func both(t *testing.T, test func(n *node, pod string)) {
	t.Run("pod network", func(t *testing.T) {
		n := newNode(t)
		test(n, n.runPod("p"))
	})
	t.Run("host network", func(t *testing.T) {
		n := newNode(t)
		test(n, n.hostPod("p"))
	})
}

// listen listens on loopback, and returns the port.
func (n *node) listen(address string) (*net.TCPListener, int) {
	n.t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	n.must(err)
	n.t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener), l.Addr().(*net.TCPAddr).Port
}

// connected forwards a port to a new listener, and returns both ends when they are
// connected.
func (n *node) connected(pod string) (*forwarded, *net.TCPConn) {
	n.t.Helper()
	l, port := n.listen("127.0.0.1")
	c := n.forward(pod, port)
	target, err := l.AcceptTCP()
	n.must(err)
	n.t.Cleanup(func() { target.Close() })
	_, err = c.Write([]byte{0})
	n.must(err)
	_, err = target.Read(make([]byte, 1))
	n.must(err)
	return c, target
}

// echo answers with what is sent. It does without io.Copy's own way between
// sockets, which keeps pipes open.
func echo(target *net.TCPConn) {
	_, _ = io.Copy(struct{ io.Writer }{target}, target)
	target.Close()
}

// unused returns a port at which nobody listens.
func (n *node) unused() int {
	l, port := n.listen("127.0.0.1")
	n.must(l.Close())
	return port
}

func TestPortForward(t *testing.T) {
	both(t, func(n *node, pod string) {
		for _, address := range []string{"127.0.0.1", "::1"} {
			l, port := n.listen(address)
			go func() {
				target, err := l.AcceptTCP()
				if err == nil {
					echo(target)
				}
			}()
			c := n.forward(pod, port)
			data := make([]byte, 3<<20)
			rand.Read(data)
			go func() {
				_, _ = c.Write(data)
				_ = c.CloseWrite()
			}()
			echo, err := io.ReadAll(c)
			if !bytes.Equal(echo, data) || err != nil {
				n.t.Errorf("%d bytes of %d came back, %v", len(echo), len(data), err)
			}
			n.must(<-c.err)
		}
	})
}

func TestPortForwardHalfClosedByTheTarget(t *testing.T) {
	both(t, func(n *node, pod string) {
		c, target := n.connected(pod)
		n.must(target.CloseWrite())
		if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
			n.t.Errorf("%q, %v", b, err)
		}
		_, err := c.Write([]byte("bye"))
		n.must(err)
		n.must(c.CloseWrite())
		if b, err := io.ReadAll(target); string(b) != "bye" || err != nil {
			n.t.Errorf("%q, %v", b, err)
		}
		n.must(<-c.err)
	})
}

func TestPortForwardRefused(t *testing.T) {
	both(t, func(n *node, pod string) {
		port := n.unused()
		err := <-n.forward(pod, port).err
		n.is(err, errdefs.IsUnavailable, "connection refused")
		n.is(err, errdefs.IsUnavailable, "port "+strconv.Itoa(port)+" of pod sandbox "+pod)
	})
}

func TestPortForwardReset(t *testing.T) {
	both(t, func(n *node, pod string) {
		c, target := n.connected(pod)
		n.must(target.SetLinger(0))
		n.must(target.Close())
		n.must(<-c.err)
	})
}

func TestPortForwardToNothing(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	n.is(n.PortForward(t.Context(), "nothing", 80, nil), errdefs.IsNotFound, `"nothing"`)
	n.is(n.PortForward(t.Context(), id, 0, nil), errdefs.IsInvalidArgument, "port 0")
	n.must(n.StopPod(t.Context(), id))
	n.is(n.PortForward(t.Context(), id, 80, nil), errdefs.IsFailedPrecondition, "stopped, not running")
}

// A client can go in three ways: its connection ends, or only the stream does,
// for what it sends or for what it gets. All end the connection to the target.
func TestPortForwardWhoseClientVanishes(t *testing.T) {
	both(t, func(n *node, pod string) {
		for _, vanish := range []func(c *forwarded, target *net.TCPConn){
			func(c *forwarded, _ *net.TCPConn) { c.hangUp() },
			func(c *forwarded, _ *net.TCPConn) { _ = c.server.SetReadDeadline(time.Unix(1, 0)) },
			func(c *forwarded, target *net.TCPConn) {
				_ = c.server.CloseWrite()
				_, _ = target.Write([]byte("to nobody"))
			},
		} {
			c, target := n.connected(pod)
			vanish(c, target)
			n.must(<-c.err)
			if _, err := io.ReadAll(target); err != nil && !errors.Is(err, unix.ECONNRESET) {
				n.t.Error(err)
			}
		}
		n.waited()
	})
}

// waited checks that the status of each process that was started has been taken.
func (n *node) waited() {
	n.t.Helper()
	count := func(method string) (k int) {
		for _, call := range n.Calls() {
			if call == method {
				k++
			}
		}
		return k
	}
	if started, waited := count("rpc.ExecuteAsync"), count("rpc.WaitPID"); waited < started {
		n.t.Errorf("%d processes were started and %d waited for", started, waited)
	}
}

func TestPortForwardThatNobodyAccepts(t *testing.T) {
	both(t, func(n *node, pod string) {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		n.must(err)
		defer unix.Close(s)
		n.must(errors.Join(unix.Bind(s, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(s, 0)))
		address, err := unix.Getsockname(s)
		n.must(err)
		port := address.(*unix.SockaddrInet4).Port
		first, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		n.must(err)
		defer first.Close()
		c := n.forward(pod, port)
		if pod := n.Pods()[0]; !hostNetwork(pod.Config()) {
			n.Await("rpc.ExecuteAsync")
		}
		c.hangUp()
		n.must(<-c.err)
		n.waited()
	})
}

func TestPortForwardIntoASandboxThatDies(t *testing.T) {
	both(t, func(n *node, pod string) {
		c, target := n.connected(pod)
		n.must(n.StopPod(n.t.Context(), pod))
		if err := <-c.err; hostNetwork(n.Pods()[0].Config()) {
			n.must(err)
		} else {
			n.is(err, errdefs.IsUnavailable, "the sandbox has ended")
		}
		if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
			n.t.Errorf("the client reads %q, %v", b, err)
		}
		if _, err := io.ReadAll(target); err != nil && !errors.Is(err, unix.ECONNRESET) {
			n.t.Error(err)
		}
	})
}

func TestPortForwardIntoASandboxThatHangs(t *testing.T) {
	n := newNode(t)
	n.signalTimeout = 10 * time.Millisecond
	c, _ := n.connected(n.runPod("p"))
	n.Fault("rpc.Signal", fakerunsc.Hang)
	defer n.Clear("rpc.Signal")
	c.hangUp()
	n.is(<-c.err, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }, "Signal in sandbox")
}

func TestPortForwardThatCannotBeStarted(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	open := len(entries("/proc/self/fd"))
	n.Fail("rpc.ExecuteAsync", "no room")
	for range 20 {
		n.is(n.PortForward(t.Context(), id, 80, nil), func(err error) bool { return err != nil }, "no room")
	}
	if now := len(entries("/proc/self/fd")); now > open+10 {
		t.Errorf("%d open files, %d before", now, open)
	}
}

func TestPortForwardLeavesNothing(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	l, port := n.listen("127.0.0.1")
	go func() {
		for {
			target, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go echo(target)
		}
	}()
	open := len(entries("/proc/self/fd"))
	for range 3 {
		var clients []*forwarded
		for range 20 {
			clients = append(clients, n.forward(id, port))
		}
		for i, c := range clients {
			_, err := c.Write([]byte{byte(i)})
			n.must(err)
		}
		for i, c := range clients {
			if i%2 == 0 {
				c.hangUp()
				n.must(<-c.err)
			} else {
				n.must(c.CloseWrite())
				if b, err := io.ReadAll(c); !slices.Equal(b, []byte{byte(i)}) || err != nil {
					t.Errorf("%v came back, %v", b, err)
				}
				n.must(<-c.err)
			}
			c.UnixConn.Close()
		}
	}
	n.waited()
	if now := len(entries("/proc/self/fd")); now > open+10 { // the targets' own may still be open
		t.Errorf("%d open files, %d before", now, open)
	}
}
