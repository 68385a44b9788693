package pod

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/stdio"
)

// user is somebody at the other end of a session.
type user struct {
	n      *node
	in     *io.PipeWriter
	sizes  chan stdio.Size
	out    page
	errs   page
	hangUp context.CancelFunc
	ended  chan error
	status int
}

// page is what a user sees.
type page struct {
	mu sync.Mutex
	// +checklocks:mu
	text strings.Builder
}

func (p *page) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

func (p *page) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// await waits until the page has a text.
func (u *user) await(p *page, text string) {
	u.n.t.Helper()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(p.String(), text); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			u.n.t.Fatalf("there is %q, not %q", p.String(), text)
		}
	}
}

func (u *user) write(text string) {
	u.n.t.Helper()
	_, err := io.WriteString(u.in, text)
	u.n.must(err)
}

// connect begins a session with all streams.
func (n *node) connect(run func(ctx context.Context, s stdio.Streams) (int, error)) *user {
	n.t.Helper()
	u := &user{n: n, sizes: make(chan stdio.Size), ended: make(chan error, 1)}
	in, w := io.Pipe()
	u.in = w
	ctx, cancel := context.WithCancel(n.t.Context())
	u.hangUp = cancel
	n.t.Cleanup(func() {
		cancel()
		w.Close()
		close(u.sizes)
	})
	go func() {
		var err error
		u.status, err = run(ctx, stdio.Streams{In: in, Out: &u.out, Err: &u.errs, Resize: u.sizes})
		in.Close() // as the streaming server closes the connection
		u.ended <- err
	}()
	return u
}

func (n *node) attach(c *Container) *user {
	n.t.Helper()
	return n.connect(func(ctx context.Context, s stdio.Streams) (int, error) {
		if c.Config().Tty {
			s.Err = nil
		}
		return 0, n.Attach(ctx, c.ID, s)
	})
}

// startWith creates and starts a container with another configuration.
func (n *node) startWith(pod, name string, change func(*runtime.ContainerConfig), command ...string) *Container {
	n.t.Helper()
	req := n.containerRequest(pod, name, command...)
	change(req.Config)
	id, err := n.CreateContainer(n.t.Context(), req)
	n.must(err)
	n.must(n.StartContainer(n.t.Context(), id))
	c, err := n.Container(id)
	n.must(err)
	return c
}

func withStdin(c *runtime.ContainerConfig)     { c.Stdin = true }
func withStdinOnce(c *runtime.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }
func withTTY(c *runtime.ContainerConfig)       { c.Stdin, c.Tty = true, true }

func TestAttach(t *testing.T) {
	n := newNode(t)
	c := n.startWith(n.runPod("p"), "c", withStdin, "cat")
	first := n.attach(c)
	first.write("one\n")
	first.await(&first.out, "one\n")
	second := n.attach(c)
	second.write("two\n")
	first.await(&first.out, "two\n")
	second.await(&second.out, "two\n")
	// Neither the end of a client's input nor that of its session is the container's.
	first.in.Close()
	second.hangUp()
	n.is(<-second.ended, func(err error) bool { return errors.Is(err, context.Canceled) }, c.ID)
	third := n.attach(c)
	third.write("three\n")
	first.await(&first.out, "three\n")
	n.must(n.StopContainer(t.Context(), c.ID, 0))
	n.must(<-first.ended)
	n.must(<-third.ended)
	if got := first.out.String(); got != "one\ntwo\nthree\n" {
		t.Errorf("the first client got %q", got)
	}
	if got := n.log("c"); got != "stdout F one\nstdout F two\nstdout F three\n" {
		t.Errorf("log %q", got)
	}
	n.is(n.Attach(t.Context(), c.ID, stdio.Streams{}), errdefs.IsFailedPrecondition, "stopped, not running")
	n.is(n.Attach(t.Context(), "zz", stdio.Streams{}), errdefs.IsNotFound, `"zz"`)
}

func TestAttachToStderr(t *testing.T) {
	n := newNode(t)
	c := n.startWith(n.runPod("p"), "c", withStdin, "sleep")
	u := n.attach(c)
	u.write("nothing is taken before the client is attached\n")
	w, err := stdio.Create(n.containerDir(c.ID) + "/stderr")
	n.must(err)
	_, err = w.WriteString("oh\n")
	n.must(err)
	u.await(&u.errs, "oh\n")
	w.Close()
	u.hangUp()
	<-u.ended
}

func TestAttachWithoutStdin(t *testing.T) {
	n := newNode(t)
	c := n.start(n.runPod("p"), "c", "sleep")
	n.is(<-n.attach(c).ended, errdefs.IsInvalidArgument, "stdin: it has none")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n.is(n.Attach(ctx, c.ID, stdio.Streams{Out: io.Discard}), func(err error) bool { return errors.Is(err, context.Canceled) }, "")
}

func TestStdinOnce(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("p")
	for name, leave := range map[string]func(u *user){
		"end":  func(u *user) { u.in.Close() },
		"gone": func(u *user) { u.hangUp() },
	} {
		c := n.startWith(pod, name, withStdinOnce, "cat")
		u := n.attach(c)
		u.write("one\n")
		u.await(&u.out, "one\n")
		n.is(<-n.attach(c).ended, errdefs.IsFailedPrecondition, "stdin_once")
		leave(u)
		n.ended(c, 0, "Completed")
		if err := <-u.ended; name == "end" {
			n.must(err)
		}
	}
	// Nobody comes.
	c := n.startWith(pod, "c", withStdinOnce, "cat")
	n.must(n.StopContainer(t.Context(), c.ID, 0))
	if len(c.output.stdin) > 0 {
		t.Error("the input is still there")
	}
}

// A container that does not read holds up the one client.
func TestUnreadInputLeavesNothing(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("p")
	for name, config := range map[string]func(*runtime.ContainerConfig){"fifo": withStdin, "pipe": withStdinOnce, "terminal": withTTY} {
		c := n.startWith(pod, name, config, "sleep")
		open := len(entries("/proc/self/fd"))
		u := n.attach(c)
		fed := make(chan error)
		go func() {
			_, err := io.Copy(u.in, endless{}) // what is on its way at the end is dropped, however much
			fed <- err
		}()
		time.Sleep(10 * time.Millisecond) // it fills up, or not yet: both must end
		u.hangUp()
		<-u.ended
		if err := <-fed; !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%s: the client writes on: %v", name, err)
		}
		n.must(n.StopContainer(t.Context(), c.ID, 0))
		n.filesLeft(open)
	}
}

// endless is input of empty lines.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '\n'
	}
	return len(b), nil
}

// filesLeft waits until no more files are open than so many.
func (n *node) filesLeft(open int) {
	n.t.Helper()
	for end := time.Now().Add(10 * time.Second); len(entries("/proc/self/fd")) > open; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("%d open files, %d before", len(entries("/proc/self/fd")), open)
		}
	}
}

// stuck is a client that does not read.
type stuck struct{ gone chan struct{} }

func (s stuck) Write([]byte) (int, error) {
	<-s.gone
	return 0, io.ErrClosedPipe
}

func TestClientThatDoesNotKeepUp(t *testing.T) {
	n := newNode(t)
	c := n.startWith(n.runPod("p"), "c", withStdin, "cat")
	slow := stuck{make(chan struct{})}
	defer close(slow.gone)
	cut := make(chan error)
	go func() { cut <- n.Attach(t.Context(), c.ID, stdio.Streams{Out: slow}) }()
	other := n.attach(c)
	other.write("begin\n")
	other.await(&other.out, "begin\n")
	const piece, pieces = 64 << 10, 140
	for i := range pieces { // as fast as the other client takes it
		other.write(strings.Repeat("x", piece-1) + "\n")
		for len(other.out.String()) < len("begin\n")+(i+1)*piece {
			time.Sleep(time.Millisecond)
		}
	}
	n.is(<-cut, errdefs.IsResourceExhausted, "does not keep up with stdout")
	n.must(n.StopContainer(t.Context(), c.ID, 0))
	n.must(<-other.ended)
	want := "begin\n" + strings.Repeat(strings.Repeat("x", piece-1)+"\n", pieces)
	if other.out.String() != want {
		t.Errorf("another client got %d bytes, want %d", len(other.out.String()), len(want))
	}
	if got := strings.Count(n.log("c"), "x"); got != (piece-1)*pieces {
		t.Errorf("%d bytes in the log, want %d", got, (piece-1)*pieces)
	}
}

func TestAttachToATerminal(t *testing.T) {
	n := newNode(t)
	c := n.startWith(n.runPod("p"), "c", withTTY, "trap")
	u, other := n.attach(c), n.attach(c)
	other.sizes <- stdio.Size{} // the one that it has: it is attached
	u.sizes <- stdio.Size{Width: 100, Height: 50}
	u.await(&u.out, "signal 28\r\n")
	other.await(&other.out, "signal 28\r\n")
	n.ended(c, 0, "Completed")
	n.must(<-u.ended)
	n.must(<-other.ended)
	if got := n.log("c"); got != "stdout F signal 28\r\n" {
		t.Errorf("log %q", got)
	}
	c = n.startWith(c.Pod.ID, "d", withTTY, "cat")
	u = n.attach(c)
	u.write("typed\n")
	u.await(&u.out, "typed\r\ntyped\r\n")
	u.write("\x03")
	n.ended(c, 130, "Error")
	n.must(<-u.ended)
	if u.out.String() != "typed\r\ntyped\r\n^C" {
		t.Errorf("screen %q", u.out.String())
	}
}

// The master of a terminal is the daemon's, and is lost with it.
func TestTerminalOfADaemonThatIsKilled(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("p")
	c := n.startWith(pod, "c", withTTY, "sleep")
	keeps := n.startWith(pod, "d", withTTY, "ignore-term")
	once := n.startWith(pod, "e", withStdinOnce, "sleep")
	n.crash()
	n.open()
	for _, old := range []*Container{c, keeps, once} {
		now, err := n.Container(old.ID)
		n.must(err)
		switch old {
		case c:
			n.ended(now, 129, "Error") // SIGHUP
		case keeps:
			n.is(<-n.attach(now).ended, errdefs.IsUnavailable, "restarted")
			n.must(n.ReopenLog(t.Context(), now.ID))
		case once:
			n.is(<-n.attach(now).ended, errdefs.IsFailedPrecondition, "stdin_once")
		}
	}
}

func TestTerminalThatCannotBeStarted(t *testing.T) {
	n := newNode(t)
	req := n.containerRequest(n.runPod("p"), "c", "/nothing")
	withTTY(req.Config)
	id, err := n.CreateContainer(t.Context(), req)
	n.must(err)
	open := len(entries("/proc/self/fd"))
	n.is(n.StartContainer(t.Context(), id), func(err error) bool { return err != nil }, "no such file")
	c, err := n.Container(id)
	n.must(err)
	n.ended(c, startErrorCode, "StartError")
	if now := len(entries("/proc/self/fd")); now > open {
		t.Errorf("%d open files, %d before", now, open)
	}
	if _, err := os.Stat(n.containerDir(id) + "/console"); !os.IsNotExist(err) {
		t.Errorf("console socket: %v", err)
	}
}

func TestExec(t *testing.T) {
	n := newNode(t)
	c := n.start(n.runPod("p"), "c", "sleep")
	exec := func(tty bool, command ...string) *user {
		return n.connect(func(ctx context.Context, s stdio.Streams) (int, error) {
			if tty {
				s.Err = nil
			}
			return n.Exec(ctx, c.ID, command, tty, s)
		})
	}
	u := exec(false, "cat")
	u.write("one\n")
	u.await(&u.out, "one\n")
	u.in.Close()
	n.must(<-u.ended)
	u = exec(false, "eprint", "oh")
	n.must(<-u.ended)
	if u.errs.String() != "oh\n" || u.out.String() != "" {
		t.Errorf("output %q, %q", u.out.String(), u.errs.String())
	}
	u = exec(true, "exit", "7")
	if err := <-u.ended; err != nil || u.status != 7 {
		t.Errorf("exit status %d, %v", u.status, err)
	}
	u = exec(true, "cat")
	u.write("typed\n")
	u.await(&u.out, "typed\r\ntyped\r\n")
	u.write("\x1c")
	if err := <-u.ended; err != nil || u.status != 131 {
		t.Errorf("exit status %d, %v", u.status, err)
	}
	for _, tty := range []bool{false, true} {
		n.is(<-exec(tty, "/nothing").ended, func(err error) bool { return err != nil }, `command ["/nothing"]`)
		n.is(<-exec(tty, "/secret").ended, errdefs.IsPermissionDenied, `command ["/secret"]`)
	}
}

// A client that vanishes takes what it has started with it.
func TestExecWhoseClientVanishes(t *testing.T) {
	n := newNode(t)
	c := n.start(n.runPod("p"), "c", "sleep")
	_, err := n.ExecSync(t.Context(), c.ID, []string{"print", "x"}, 0) // what waits for the container has its connection too
	n.must(err)
	open := len(entries("/proc/self/fd"))
	for _, tt := range []struct {
		tty  bool
		left int // processes
	}{{false, 3}, {true, 2}} {
		u := n.connect(func(ctx context.Context, s stdio.Streams) (int, error) {
			return n.Exec(ctx, c.ID, []string{"jobs"}, tt.tty, s)
		})
		u.await(&u.out, "started")
		u.hangUp()
		n.is(<-u.ended, func(err error) bool { return errors.Is(err, context.Canceled) }, "jobs")
		sandbox := c.init.Runtime.Control(c.Pod.ID)
		left, err := sandbox.Processes(t.Context(), c.ID)
		n.must(err)
		if len(left) != tt.left { // with the container's own and what has left the session
			t.Errorf("tty %t: processes %v", tt.tty, left)
		}
		for _, p := range left[1:] {
			n.must(sandbox.Signal(t.Context(), c.ID, p.PID, unix.SIGKILL, runsc.ToGroup))
		}
	}
	n.filesLeft(open)
	if c.State() != proc.Running {
		t.Errorf("container %s", c.State())
	}
}
