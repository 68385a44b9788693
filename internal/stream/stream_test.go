package stream

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/runscd/runscd/internal/stdio"
)

// fakePods do with a session what a test says.
type fakePods struct {
	exec    func(ctx context.Context, s stdio.Streams) (int, error)
	attach  func(ctx context.Context, s stdio.Streams) error
	forward func(ctx context.Context, port uint16, conn io.ReadWriteCloser) error
}

func (f fakePods) Exec(ctx context.Context, id string, command []string, tty bool, s stdio.Streams) (int, error) {
	if id != "c1" || fmt.Sprint(command) != "[do it]" || tty != (s.Resize != nil) {
		return 0, fmt.Errorf("exec of %q in %q with tty %t", command, id, tty)
	}
	return f.exec(ctx, s)
}

func (f fakePods) Attach(ctx context.Context, _ string, s stdio.Streams) error {
	return f.attach(ctx, s)
}

func (f fakePods) PortForward(ctx context.Context, _ string, port uint16, conn io.ReadWriteCloser) error {
	return f.forward(ctx, port, conn)
}

// newServer starts a server that ends with the test.
func newServer(t *testing.T, pods fakePods, o Options) *Server {
	t.Helper()
	logrus.SetOutput(io.Discard)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	if o.IdleTimeout == 0 {
		o.IdleTimeout = time.Minute
	}
	s, err := NewServer(pods, l.(*net.TCPListener), o)
	check(t, err)
	served := make(chan error)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		s.Close()
		check(t, <-served)
	})
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run is a client's exec session: what it writes and how it ended.
func run(t *testing.T, s *Server, o remotecommand.StreamOptions) error {
	t.Helper()
	return runAt(t, execURL(t, s, o), t.Context(), o)
}

func execURL(t *testing.T, s *Server, o remotecommand.StreamOptions) string {
	t.Helper()
	u, err := s.Exec(&runtime.ExecRequest{
		ContainerId: "c1", Cmd: []string{"do", "it"}, Tty: o.Tty,
		Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	})
	check(t, err)
	return u
}

func runAt(t *testing.T, at string, ctx context.Context, o remotecommand.StreamOptions) error {
	t.Helper()
	u, err := url.Parse(at)
	check(t, err)
	client, err := remotecommand.NewSPDYExecutor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, "POST", u)
	check(t, err)
	return client.StreamWithContext(ctx, o)
}

// echo copies input to the output, and says bye on the other.
func echo(_ context.Context, s stdio.Streams) (int, error) {
	if _, err := io.Copy(s.Out, s.In); err != nil {
		return 0, err
	}
	_, err := io.WriteString(s.Err, "bye")
	return 0, err
}

func TestExec(t *testing.T) {
	s := newServer(t, fakePods{exec: echo}, Options{})
	var out, errs bytes.Buffer
	check(t, run(t, s, remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errs}))
	if out.String() != "hello" || errs.String() != "bye" {
		t.Errorf("output %q, errors %q", &out, &errs)
	}
}

func TestExecOverWebSocket(t *testing.T) {
	s := newServer(t, fakePods{exec: func(_ context.Context, s stdio.Streams) (int, error) {
		if s.In != nil || s.Err != nil {
			return 0, errors.New("streams that were not asked for")
		}
		_, err := io.WriteString(s.Out, "hello")
		return 4, err
	}}, Options{})
	var out bytes.Buffer
	o := remotecommand.StreamOptions{Stdout: &out}
	client, err := remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, "GET", execURL(t, s, o), "v4.channel.k8s.io")
	check(t, err)
	err = client.StreamWithContext(t.Context(), o)
	if exited, ok := err.(exec.CodeExitError); !ok || exited.Code != 4 || out.String() != "hello" {
		t.Errorf("output %q, %v; want hello and status 4", &out, err)
	}
}

func TestExitStatusAndError(t *testing.T) {
	for status := range 256 {
		s := newServer(t, fakePods{exec: func(context.Context, stdio.Streams) (int, error) { return status, nil }}, Options{})
		err := run(t, s, remotecommand.StreamOptions{Stdout: io.Discard})
		if exited, _ := err.(exec.CodeExitError); (err != nil) != (status != 0) || exited.Code != status {
			t.Errorf("status %d arrives as %v", status, err)
		}
		status += 50
	}
	s := newServer(t, fakePods{exec: func(context.Context, stdio.Streams) (int, error) {
		return 0, fmt.Errorf("command %q: %w", "do", errdefs.ErrNotFound)
	}}, Options{})
	err := run(t, s, remotecommand.StreamOptions{Stdout: io.Discard})
	if err == nil || !strings.Contains(err.Error(), `command "do": not found`) {
		t.Errorf("error arrives as %v", err)
	}
}

type sizeQueue chan remotecommand.TerminalSize

func (q sizeQueue) Next() *remotecommand.TerminalSize {
	if size, ok := <-q; ok {
		return &size
	}
	return nil
}

func TestTerminalSizes(t *testing.T) {
	s := newServer(t, fakePods{exec: func(_ context.Context, s stdio.Streams) (int, error) {
		for range 2 {
			fmt.Fprintln(s.Out, <-s.Resize)
		}
		return 0, nil
	}}, Options{})
	sizes := make(sizeQueue, 2)
	sizes <- remotecommand.TerminalSize{Width: 80, Height: 24}
	sizes <- remotecommand.TerminalSize{Width: 132, Height: 50}
	defer close(sizes)
	var out bytes.Buffer
	check(t, run(t, s, remotecommand.StreamOptions{Stdout: &out, Tty: true, TerminalSizeQueue: sizes}))
	if out.String() != "{80 24}\n{132 50}\n" {
		t.Errorf("sizes arrive as %q", &out)
	}
}

func TestAttach(t *testing.T) {
	s := newServer(t, fakePods{attach: func(ctx context.Context, s stdio.Streams) error {
		_, err := echo(ctx, s)
		return err
	}}, Options{})
	u, err := s.Attach(&runtime.AttachRequest{ContainerId: "c1", Stdin: true, Stdout: true, Stderr: true})
	check(t, err)
	var out, errs bytes.Buffer
	check(t, runAt(t, u, t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errs}))
	if out.String() != "hello" || errs.String() != "bye" {
		t.Errorf("output %q, errors %q", &out, &errs)
	}
}

func TestURLIsGoodOnce(t *testing.T) {
	s := newServer(t, fakePods{exec: echo}, Options{})
	o := remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard}
	at := execURL(t, s, o)
	check(t, runAt(t, at, t.Context(), o))
	if err := runAt(t, at, t.Context(), o); err == nil || !strings.Contains(err.Error(), "no such session") {
		t.Errorf("used URL: %v", err)
	}
}

func TestRequestsThatBeginNothing(t *testing.T) {
	s := newServer(t, fakePods{}, Options{})
	at := execURL(t, s, remotecommand.StreamOptions{Stdout: io.Discard})
	for _, c := range []struct {
		method, url string
		status      int
	}{
		{"DELETE", at, http.StatusMethodNotAllowed},
		{"GET", at + "x", http.StatusNotFound},
		{"GET", strings.Replace(at, "/exec/", "/attach/", 1), http.StatusNotFound},
		{"GET", s.base.String(), http.StatusNotFound},
		{"GET", at, http.StatusBadRequest}, // no upgrade
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, c.url, nil)
		check(t, err)
		resp, err := http.DefaultClient.Do(req)
		check(t, err)
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s %s: status %d, want %d", c.method, c.url, resp.StatusCode, c.status)
		}
	}
}

func TestTokensExpire(t *testing.T) {
	now := time.Now()
	tokens := newTokens()
	tokens.now = func() time.Time { return now }
	session := func(http.ResponseWriter, *http.Request) {}
	old, err := tokens.give("exec", session)
	check(t, err)
	now = now.Add(tokenLife + 1)
	if tokens.take(old) != nil {
		t.Error("an expired token is good")
	}
	for range maxTokens {
		_, err := tokens.give("exec", session)
		check(t, err)
	}
	if _, err := tokens.give("exec", session); !errdefs.IsResourceExhausted(err) {
		t.Errorf("more tokens than %d: %v", maxTokens, err)
	}
	now = now.Add(tokenLife + 1)
	young, err := tokens.give("exec", session)
	check(t, err)
	if tokens.take(young) == nil {
		t.Error("a new token is not good")
	}
}

// endless is input without an end.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// A client that goes ends its session, whatever either of them does.
func TestClientGoes(t *testing.T) {
	// More pieces than the protocol keeps for a reader, so that it reads no more
	// from the connection.
	pieces := iotest.OneByteReader(strings.NewReader(strings.Repeat("x", 1000)))
	idle, end := io.Pipe()
	defer end.Close()
	for name, stdin := range map[string]io.Reader{
		"without input": nil, "in the midst of input that nobody reads": io.MultiReader(pieces, idle),
	} {
		t.Run(name, func(t *testing.T) {
			begun, ended := make(chan struct{}), make(chan struct{})
			s := newServer(t, fakePods{exec: func(ctx context.Context, _ stdio.Streams) (int, error) {
				close(begun)
				<-ctx.Done()
				close(ended)
				return 0, ctx.Err()
			}}, Options{})
			ctx, goAway := context.WithCancel(t.Context())
			o := remotecommand.StreamOptions{Stdin: stdin, Stdout: io.Discard}
			gone := make(chan error)
			go func() { gone <- runAt(t, execURL(t, s, o), ctx, o) }()
			<-begun
			goAway()
			<-gone
			<-ended
		})
	}
}

// A client that does not read is given up after the idle timeout.
func TestClientDoesNotRead(t *testing.T) {
	failed := make(chan error)
	s := newServer(t, fakePods{exec: func(_ context.Context, s stdio.Streams) (int, error) {
		_, err := io.Copy(s.Out, endless{})
		failed <- err
		return 0, err
	}}, Options{IdleTimeout: 100 * time.Millisecond})
	r, w := io.Pipe()
	defer r.Close()
	o := remotecommand.StreamOptions{Stdout: w}
	ctx, goAway := context.WithCancel(t.Context())
	defer goAway()
	go func() { _ = runAt(t, execURL(t, s, o), ctx, o) }()
	if err := <-failed; err == nil {
		t.Error("endless output came to an end")
	}
}

// What a session has written arrives though the client has sent more than the
// session wanted.
func TestUnreadInput(t *testing.T) {
	output := bytes.Repeat([]byte("x"), 1<<20)
	s := newServer(t, fakePods{exec: func(_ context.Context, s stdio.Streams) (int, error) {
		_, _ = s.In.Read(make([]byte, 1))
		_, err := s.Out.Write(output)
		return 7, err
	}}, Options{})
	var out bytes.Buffer
	err := run(t, s, remotecommand.StreamOptions{Stdin: io.LimitReader(endless{}, 16<<20), Stdout: &out})
	if exited, _ := err.(exec.CodeExitError); exited.Code != 7 || !bytes.Equal(out.Bytes(), output) {
		t.Errorf("%d bytes and %v; want %d and status 7", out.Len(), err, len(output))
	}
}

func TestCloseEndsSessions(t *testing.T) {
	begun := make(chan struct{})
	s := newServer(t, fakePods{exec: func(ctx context.Context, _ stdio.Streams) (int, error) {
		close(begun)
		<-ctx.Done()
		return 0, ctx.Err()
	}}, Options{})
	ended := make(chan error)
	go func() { ended <- run(t, s, remotecommand.StreamOptions{Stdout: io.Discard}) }()
	<-begun
	s.Close()
	if err := <-ended; err == nil {
		t.Error("the session came to a good end")
	}
}

// Also one whose client does not read.
func TestCloseCutsWrites(t *testing.T) {
	begun, failed := make(chan struct{}), make(chan error)
	s := newServer(t, fakePods{exec: func(_ context.Context, s stdio.Streams) (int, error) {
		close(begun)
		_, err := io.Copy(s.Out, endless{})
		failed <- err
		return 0, err
	}}, Options{})
	r, w := io.Pipe()
	defer r.Close()
	go func() { _ = run(t, s, remotecommand.StreamOptions{Stdout: w}) }()
	<-begun
	go s.Close()
	if err := <-failed; err == nil {
		t.Error("endless output came to an end")
	}
}

func TestTLSAndBaseURL(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	s := newServer(t, fakePods{exec: echo}, Options{
		TLS: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}},
	})
	var out bytes.Buffer
	o := remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: io.Discard}
	at := execURL(t, s, o)
	if !strings.HasPrefix(at, "https://127.0.0.1:") {
		t.Errorf("URL %s", at)
	}
	check(t, runAt(t, at, t.Context(), o))
	if out.String() != "hello" {
		t.Errorf("output %q", &out)
	}
	based := newServer(t, fakePods{exec: echo}, Options{BaseURL: "https://node.example:10010/cri/"})
	at = execURL(t, based, o)
	if !strings.HasPrefix(at, "https://node.example:10010/cri/exec/") {
		t.Errorf("URL %s", at)
	}
	o.Stdin = strings.NewReader("")
	check(t, runAt(t, strings.Replace(at, "https://node.example:10010", "http://"+based.listener.Addr().String(), 1), t.Context(), o))
}

// dialer opens a session.
func dialer(t *testing.T, s *Server) httpstream.Dialer {
	t.Helper()
	at, err := s.PortForward(&runtime.PortForwardRequest{PodSandboxId: "p1"})
	check(t, err)
	u, err := url.Parse(at)
	check(t, err)
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	check(t, err)
	return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, "POST", u)
}

// forward starts a real client that forwards a local port, and returns what
// connects to it.
func forward(t *testing.T, s *Server, port int) (dial func() *net.TCPConn) {
	t.Helper()
	stop, ready := make(chan struct{}), make(chan struct{})
	client, err := portforward.NewOnAddressesForStreaming(dialer(t, s), []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard)
	check(t, err)
	ended := make(chan error, 1)
	go func() { ended <- client.ForwardPorts() }()
	t.Cleanup(sync.OnceFunc(func() {
		close(stop)
		<-ended
	}))
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	ports, err := client.GetPorts()
	check(t, err)
	return func() *net.TCPConn {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
		check(t, err)
		t.Cleanup(func() { c.Close() })
		return c.(*net.TCPConn)
	}
}

// Each connection is echoed whole after its client has ended its half.
func TestPortForward(t *testing.T) {
	s := newServer(t, fakePods{forward: func(_ context.Context, port uint16, conn io.ReadWriteCloser) error {
		sent, err := io.ReadAll(conn)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(conn, "%d:%s", port, sent)
		return err
	}}, Options{})
	dial := forward(t, s, 8080)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			c := dial()
			want := fmt.Sprintf("connection %d", i)
			_, err := io.WriteString(c, want)
			if err := errors.Join(err, c.CloseWrite()); err != nil {
				t.Error(err)
			}
			if got, err := io.ReadAll(c); err != nil || string(got) != "8080:"+want {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	all.Wait()
}

// A connection that its client has dropped does not take what is written for
// delivered.
func TestPortForwardDropped(t *testing.T) {
	failed := make(chan error, 1)
	s := newServer(t, fakePods{forward: func(_ context.Context, _ uint16, conn io.ReadWriteCloser) error {
		_, err := io.Copy(conn, endless{})
		failed <- err
		return err
	}}, Options{})
	client, _, err := dialer(t, s).Dial(portforward.PortForwardProtocolV1Name)
	check(t, err)
	defer client.Close()
	header := http.Header{"Port": {"8080"}, "Requestid": {"0"}, "Streamtype": {"error"}}
	_, err = client.CreateStream(header)
	check(t, err)
	header.Set("StreamType", "data")
	data, err := client.CreateStream(header)
	check(t, err)
	_, err = data.Read(make([]byte, 1))
	check(t, err)
	check(t, data.Reset())
	if err := <-failed; err == nil {
		t.Error("endless output came to an end")
	}
}

func TestPortForwardEndsWithItsClient(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	s := newServer(t, fakePods{forward: func(ctx context.Context, _ uint16, conn io.ReadWriteCloser) error {
		close(begun)
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}}, Options{})
	t.Run("client", func(t *testing.T) {
		forward(t, s, 8080)()
		<-begun
	})
	<-ended
}
