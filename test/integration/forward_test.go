package integration

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
)

// serve runs a container with servers; test/target has what they are.
func (p *pod) serve(t *testing.T, servers ...string) *container {
	t.Helper()
	path := p.path("target")
	build := exec.Command("go", "build", "-o", path, "../target")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build of the servers: %v\n%s", err, out)
	}
	c := p.run(t, "", func(c *runtime.ContainerConfig) {
		c.Command = append([]string{"/target"}, servers...)
		c.Mounts = []*runtime.Mount{{HostPath: path, ContainerPath: "/target", Readonly: true}}
	})
	c.waitFor(t, "ready")
	return c
}

// dialer returns what connects to the daemon for one session.
func (p *pod) dialer(t *testing.T) httpstream.Dialer {
	t.Helper()
	resp, err := p.pods.PortForward(ctx(t), &runtime.PortForwardRequest{PodSandboxId: p.id})
	check(t, err)
	u, err := url.Parse(resp.Url)
	check(t, err)
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	check(t, err)
	return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
}

// forward forwards ports as kubectl does, and returns what connects to one.
func (p *pod) forward(t *testing.T, ports ...int) (dial func(port int) *net.TCPConn) {
	t.Helper()
	var wanted []string
	for _, port := range ports {
		wanted = append(wanted, fmt.Sprint("0:", port))
	}
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	client, err := portforward.NewOnAddressesForStreaming(p.dialer(t), []string{"127.0.0.1"}, wanted, stop, ready, io.Discard, io.Discard)
	check(t, err)
	go func() { ended <- client.ForwardPorts() }()
	t.Cleanup(func() {
		close(stop)
		<-ended
	})
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	forwarded, err := client.GetPorts()
	check(t, err)
	return func(port int) *net.TCPConn {
		for _, f := range forwarded {
			if int(f.Remote) == port {
				c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", f.Local))
				check(t, err)
				t.Cleanup(func() { c.Close() })
				return c.(*net.TCPConn)
			}
		}
		t.Fatalf("port %d is not forwarded", port)
		return nil
	}
}

// connection is one connection of a session. kubectl cannot do all that the
// protocol can: it gives up what it sends when the pod has ended its half.
type connection struct {
	httpstream.Stream // the data
	errors            httpstream.Stream
}

// session connects to the daemon without kubectl's part. The session ends with
// the test.
func (p *pod) session(t *testing.T) httpstream.Connection {
	t.Helper()
	s, _, err := p.dialer(t).Dial(portforward.PortForwardProtocolV1Name)
	check(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// forwarded makes a connection to a port.
func forwarded(t *testing.T, s httpstream.Connection, port int) *connection {
	t.Helper()
	create := func(kind, id string) httpstream.Stream {
		stream, err := s.CreateStream(http.Header{
			v1.StreamType: {kind}, v1.PortHeader: {strconv.Itoa(port)}, v1.PortForwardRequestIDHeader: {id},
		})
		check(t, err)
		return stream
	}
	id := fmt.Sprint(serial.Add(1))
	c := &connection{errors: create(v1.StreamTypeError, id)}
	check(t, c.errors.Close()) // it is for reading
	c.Stream = create(v1.StreamTypeData, id)
	return c
}

// reads checks what the connection has to say to its end.
func (c *connection) reads(t *testing.T, want string) {
	t.Helper()
	if got, err := io.ReadAll(c); string(got) != want || err != nil {
		t.Errorf("read %q, %v; want %q", got, err, want)
	}
}

// fails checks the connection's error, "" being none.
func (c *connection) fails(t *testing.T, want ...string) {
	t.Helper()
	text, err := io.ReadAll(c.errors)
	check(t, err)
	for _, w := range want {
		if !strings.Contains(string(text), w) {
			t.Errorf("the error %q has no %q", text, w)
		}
	}
	if len(want) == 0 && len(text) > 0 {
		t.Errorf("error %q", text)
	}
}

// feed sends so many bytes, and reads all that it can.
func (c *connection) feed(size int64) {
	go func() { _, _ = io.Copy(io.Discard, c.Stream) }()
	_, _ = io.CopyN(c, zeros{}, size)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// awaitForwarders waits until so many processes forward ports in the sandbox.
func (p *pod) awaitForwarders(t *testing.T, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d processes forward", want), func() error {
		out, err := exec.Command(os.Getenv("RUNSCD_RUNSC"), "--root", p.path("s/runsc/runsc"), "ps", "--format=json", p.id).Output()
		check(t, err)
		var pids []int
		check(t, json.Unmarshal(out, &pids))
		if n := len(pids) - 1; n != want { // one is the root container's own
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
}

// echoes checks that random data comes back as it was sent.
func echoes(c *net.TCPConn, size int) error {
	data := make([]byte, size)
	rand.Read(data)
	go func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		return fmt.Errorf("%d of %d bytes came back, equal as far as they go: %t; %w",
			len(got), size, bytes.HasPrefix(data, got), err)
	}
	return nil
}

func TestPortForward(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	c := p.serve(t, "echo@127.0.0.1:7001", "echo@[::1]:7002", "echo@0.0.0.0:7003",
		"count@127.0.0.1:7004", "hello@[::1]:7005", "source@127.0.0.1:7006", "mute@127.0.0.1:7007", "deaf@127.0.0.1:7008")
	t.Run("echo", func(t *testing.T) {
		dial := p.forward(t, 7001, 7002, 7003)
		var all sync.WaitGroup
		for port := 7001; port <= 7003; port++ {
			c := dial(port)
			all.Go(func() {
				if err := echoes(c, 20_000_000); err != nil {
					t.Errorf("port %d: %v", port, err)
				}
			})
		}
		all.Wait()
	})
	t.Run("50 at once", func(t *testing.T) {
		dial := p.forward(t, 7001)
		var all sync.WaitGroup
		for i := range 50 {
			c := dial(7001)
			all.Go(func() {
				if err := echoes(c, 10_000+i); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
	t.Run("the client ends its half first", func(t *testing.T) {
		c := forwarded(t, p.session(t), 7004)
		_, err := c.Write(make([]byte, 1_000_000))
		check(t, err)
		check(t, c.Close())
		c.reads(t, "1000000")
		c.fails(t)
	})
	t.Run("the target ends its half first", func(t *testing.T) {
		bye := forwarded(t, p.session(t), 7005)
		bye.reads(t, "hello")
		_, err := bye.Write([]byte("bye"))
		check(t, err)
		check(t, bye.Close())
		bye.fails(t)
		c.waitFor(t, `hello got "bye" <nil>`)
	})
	t.Run("nobody listens", func(t *testing.T) {
		c := forwarded(t, p.session(t), 7000)
		_, _ = c.Write([]byte("to nobody"))
		c.fails(t, "port 7000", "connection refused")
	})
	for _, tt := range []struct {
		of   string
		port int
		size int64
	}{
		{"of an echo", 7001, 1 << 40},
		{"of endless output", 7006, 0},
		// More than what is under way would hold up the news of the client's end.
		{"of a target that does not read", 7007, 100_000},
		{"of a target that does not accept", 7008, 100_000},
	} {
		t.Run("the client vanishes in the middle "+tt.of, func(t *testing.T) {
			s := p.session(t)
			for range 3 {
				// What is not read at once holds up the answer to the next.
				go forwarded(t, s, tt.port).feed(tt.size)
			}
			p.awaitForwarders(t, 3)
			check(t, s.Close())
			p.awaitForwarders(t, 0)
		})
	}
	t.Run("kubectl goes on when a connection is dropped", func(t *testing.T) {
		dial := p.forward(t, 7001, 7006)
		for range 5 {
			dropped := dial(7006)
			_, err := io.ReadFull(dropped, make([]byte, 1_000_000))
			check(t, errors.Join(err, dropped.Close()))
			if err := echoes(dial(7001), 1000); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("the client drops one of two", func(t *testing.T) {
		s := p.session(t)
		kept, dropped := forwarded(t, s, 7001), forwarded(t, s, 7006) // which nobody reads yet
		_, err := io.ReadFull(dropped, make([]byte, 1_000_000))
		check(t, err)
		check(t, dropped.Reset())
		dropped.fails(t)
		p.awaitForwarders(t, 1)
		_, err = kept.Write([]byte("hello"))
		check(t, errors.Join(err, kept.Close()))
		kept.reads(t, "hello")
		p.awaitForwarders(t, 0)
	})
}

func TestPortForwardToTheHostNetwork(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	})
	var ports []int
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		check(t, err)
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(c, c)
					c.Close()
				}()
			}
		}()
	}
	dial := p.forward(t, ports...)
	for _, port := range ports {
		if err := echoes(dial(port), 1_000_000); err != nil {
			t.Error(err)
		}
	}
	forwarded(t, p.session(t), 1).fails(t, "port 1", "connection refused")
}

func TestPortForwardToAPodThatStops(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	p.serve(t, "source@127.0.0.1:7001", "mute@127.0.0.1:7002")
	s := p.session(t)
	source := forwarded(t, s, 7001)
	_, err := io.ReadFull(source, make([]byte, 1_000_000))
	check(t, err)
	go func() { _, _ = io.Copy(io.Discard, source) }() // unread it would hold up the others of its session
	mute := forwarded(t, s, 7002)
	p.awaitForwarders(t, 2)
	check(t, d.pods.StopPodSandbox(ctx(t), p.id))
	source.fails(t, "the sandbox has ended")
	mute.fails(t, "the sandbox has ended")
	mute.reads(t, "")
	_, err = d.pods.PortForward(ctx(t), &runtime.PortForwardRequest{PodSandboxId: p.id})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("port-forward to a stopped pod: %v", err)
	}
}

// What the daemon has started in a sandbox to forward ports ends with the daemon.
func TestPortForwardOfADaemonThatIsKilled(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	p.serve(t, "echo@127.0.0.1:7001", "mute@127.0.0.1:7002", "deaf@127.0.0.1:7003")
	for port := 7001; port <= 7003; port++ {
		go forwarded(t, p.session(t), port).feed(1 << 40)
	}
	p.awaitForwarders(t, 3)
	d.stop(t, unix.SIGKILL)
	p.awaitForwarders(t, 0)
	d.start(t)
	if err := echoes(p.forward(t, 7001)(7001), 1000); err != nil {
		t.Error(err)
	}
}
