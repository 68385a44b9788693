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
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/test/fakerunsc"
)

func TestStatesOfAContainer(t *testing.T) {
	n := newNode(t)
	dir := n.bundle(id("a"), id("a"))
	if _, err := n.Create(t.Context(), id("a"), CreateConfig{Bundle: dir}); err != nil {
		t.Fatal(err)
	}
	c := n.Control(id("a"))
	check := func(container string, want State) {
		t.Helper()
		if got, err := c.State(t.Context(), container); got != want || err != nil {
			t.Errorf("state %d, %v; want %d", got, err, want)
		}
	}
	check(id("a"), StateCreated)
	if err := n.Start(t.Context(), id("a"), CreateConfig{Bundle: dir}); err != nil {
		t.Fatal(err)
	}
	n.container(id("b"), id("a"), "sleep")
	check(id("b"), StateRunning)
	if err := c.Signal(t.Context(), id("b"), 0, unix.SIGKILL, ToAll); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if status, err := c.Wait(t.Context(), id("b")); status != 137 || err != nil {
			t.Errorf("wait: %d, %v", status, err)
		}
	}
	check(id("b"), StateStopped)
	check(id("c"), StateUnknown)
}

func TestSignalsReachTheContainer(t *testing.T) {
	n := newNode(t)
	n.sandbox(id("a"))
	c := n.Control(id("a"))
	for i, sig := range []unix.Signal{unix.SIGTERM, unix.SIGUSR1, 37, 64} {
		container := id(fmt.Sprint("b", i))
		out := n.container(container, id("a"), "trap")
		if err := c.Signal(t.Context(), container, 0, sig, ToProcess); err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(out)
		if want := fmt.Sprintf("signal %d\n", sig); string(text) != want || err != nil {
			t.Errorf("output %q, %v; want %q", text, err, want)
		}
		if err := c.Signal(t.Context(), container, 0, sig, ToProcess); !errdefs.IsNotFound(err) {
			t.Errorf("signal after the end: %v", err)
		}
	}
	if err := c.Signal(t.Context(), id("f"), 0, unix.SIGTERM, ToAll); !errdefs.IsNotFound(err) {
		t.Errorf("signal to nobody: %v", err)
	}
}

func TestExec(t *testing.T) {
	n := newNode(t)
	n.sandbox(id("a"))
	n.container(id("b"), id("a"), "sleep")
	c := n.Control(id("a"))
	exec := func(args ...string) (int, *os.File, error) {
		out, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { out.Close() })
		defer w.Close()
		pid, err := c.Exec(t.Context(), id("b"), &specs.Process{Args: args}, Stdio{devNull(t), w, w}, nil)
		return pid, out, err
	}
	pid, out, err := exec("print", "hello")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(out); string(text) != "hello\n" || err != nil {
		t.Errorf("output %q, %v", text, err)
	}
	if status, err := c.WaitExec(t.Context(), id("b"), pid); status != 0 || err != nil {
		t.Errorf("wait: %d, %v", status, err)
	}
	if _, err := c.WaitExec(t.Context(), id("b"), pid); !errdefs.IsNotFound(err) {
		t.Errorf("second wait: %v", err)
	}
	if _, _, err := exec("/nothing"); !errors.Is(err, ErrNoExecutable) {
		t.Errorf("no such command: %v", err)
	}
	if _, _, err := exec("/secret"); !errdefs.IsPermissionDenied(err) {
		t.Errorf("no permission: %v", err)
	}
	// The group has a process more than the one that was started.
	pid, out, err = exec("leave")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitExec(t.Context(), id("b"), pid); err != nil {
		t.Error(err)
	}
	if err := c.Signal(t.Context(), id("b"), pid, unix.SIGKILL, ToGroup); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(out); err != nil {
		t.Error(err)
	}
	_, err = c.Exec(t.Context(), id("b"), &specs.Process{Capabilities: &specs.LinuxCapabilities{Ambient: []string{"CAP_X"}}}, Stdio{}, nil)
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown capability: %v", err)
	}
}

func TestExecOfAProgramOfTheHost(t *testing.T) {
	n := newNode(t)
	n.sandbox(id("a"))
	program, err := os.Open("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	c, f := n.Control(id("a")), devNull(t)
	pid, err := c.Exec(t.Context(), id("a"), &specs.Process{Args: []string{"anything", "-c", "exit 7"}}, Stdio{f, f, f}, program)
	if err != nil {
		t.Fatal(err)
	}
	if status, err := c.WaitExec(t.Context(), id("a"), pid); status != 7 || err != nil {
		t.Errorf("wait: %d, %v", status, err)
	}
}

// The sentry keeps only so many connections waiting that it has not accepted.
func TestManyCallsAtOnce(t *testing.T) {
	r := New(Options{Path: "/nowhere", Root: t.TempDir()})
	if err := os.WriteFile(filepath.Join(r.root, "b_sandbox:a.state"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: r.socket("a")}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	first, err := net.Dial("unix", r.socket("a")) // there is no room for a second
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := r.Control("a").State(ctx, "b"); !errors.Is(err, context.DeadlineExceeded) || errdefs.IsUnavailable(err) {
		t.Errorf("nobody accepts: %v", err)
	}
	states := make(chan error, 20)
	for range cap(states) {
		go func() {
			_, err := r.Control("a").State(t.Context(), "b")
			states <- err
		}()
	}
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range cap(states) + 1 {
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, `{"success":true,"err":"","result":2}`)
		defer conn.Close()
	}
	for range cap(states) {
		if err := <-states; err != nil {
			t.Error(err)
		}
	}
}

func TestSocketPathOfAnyLength(t *testing.T) {
	for _, length := range []int{106, 107, 108, 109, 300} {
		fake := fakerunsc.Install(t)
		// The root has the rest of the length in one or two directories.
		dir := t.TempDir()
		room := length - len(dir) - len("//runsc-.sock") - 64
		for ; room > 200; room -= 101 {
			dir = filepath.Join(dir, strings.Repeat("d", 100))
		}
		if room < 1 {
			t.Logf("the directory of this test is too long for a path of %d bytes", length)
			continue
		}
		n := &node{Runtime: New(Options{Path: fake.Path, Root: filepath.Join(dir, strings.Repeat("r", room))}), Fake: fake, t: t}
		if got := len(n.socket(id("a"))); got != length {
			t.Fatalf("path of %d bytes, want %d", got, length)
		}
		n.sandbox(id("a"))
		if state, err := n.Control(id("a")).State(t.Context(), id("a")); state == StateUnknown || err != nil {
			t.Errorf("%d bytes: state %d, %v", length, state, err)
		}
	}
}

func TestASandboxThatIsGoneIsUnavailable(t *testing.T) {
	n := newNode(t)
	pid := n.sandbox(id("a"))
	n.container(id("b"), id("a"), "sleep")
	c := n.Control(id("a"))
	waited := make(chan error, 1)
	go func() {
		_, err := c.Wait(t.Context(), id("b"))
		waited <- err
	}()
	n.Await("rpc.Wait")
	kill(t, pid)
	if err := <-waited; !errdefs.IsUnavailable(err) {
		t.Errorf("wait during which the sandbox died: %v", err)
	}
	if _, err := c.State(t.Context(), id("b")); !errdefs.IsUnavailable(err) {
		t.Errorf("state of a dead sandbox: %v", err)
	}
	if _, err := n.Control(id("c")).Wait(t.Context(), id("c")); !errdefs.IsUnavailable(err) {
		t.Errorf("wait for a sandbox that never was: %v", err)
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	n := newNode(t)
	n.sandbox(id("a"))
	c := n.Control(id("a"))
	const op = "rpc.ContainerRuntimeState"
	n.Fault(op, fakerunsc.Cut)
	if _, err := c.State(t.Context(), id("a")); !errdefs.IsUnavailable(err) {
		t.Errorf("half an answer: %v", err)
	}
	n.Fault(op, fakerunsc.Garbage)
	if _, err := c.State(t.Context(), id("a")); err == nil || errdefs.IsUnavailable(err) {
		t.Errorf("garbage: %v", err)
	}
	n.Fault(op, fakerunsc.Flood)
	if _, err := c.State(t.Context(), id("a")); err == nil || !strings.Contains(err.Error(), "answer of more than") {
		t.Errorf("an answer without end: %v", err)
	}
	n.Fault(op, fakerunsc.Hang)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		n.Await(op)
		cancel()
	}()
	if _, err := c.State(ctx, id("a")); !errors.Is(err, context.Canceled) {
		t.Errorf("no answer: %v", err)
	}
	n.Clear(op)
	if state, err := c.State(t.Context(), id("a")); state == StateUnknown || err != nil {
		t.Errorf("after all that: state %d, %v", state, err)
	}
}

func TestCommandsStandInForMethodsThatThereAreNot(t *testing.T) {
	n := newNode(t)
	n.sandbox(id("a"))
	n.container(id("b"), id("a"), "exit", "7")
	n.container(id("c"), id("a"), "sleep")
	c := n.Control(id("a"))
	if _, err := c.Wait(t.Context(), id("b")); err != nil {
		t.Fatal(err)
	}
	// The commands of the real one would fail as well; that they are run is
	// what can be seen here.
	for _, op := range []string{"rpc.ContainerRuntimeState", "rpc.Signal", "rpc.Wait"} {
		n.Fault(op, fakerunsc.Unknown)
	}
	_, _ = c.State(t.Context(), id("c"))
	_ = c.Signal(t.Context(), id("c"), 0, unix.SIGTERM, ToAll)
	if _, err := c.Wait(t.Context(), id("b")); !errdefs.IsUnavailable(err) {
		t.Errorf("wait that fails: %v", err)
	}
	for _, want := range []string{" state " + id("c"), " kill --all " + id("c") + " 15", " wait " + id("b")} {
		if !slices.ContainsFunc(n.Calls(), func(call string) bool { return strings.HasSuffix(call, want) }) {
			t.Errorf("no command %q", want)
		}
	}
	if err := c.Signal(t.Context(), id("c"), 3, unix.SIGTERM, ToGroup); !errdefs.IsNotImplemented(err) {
		t.Errorf("signal to an exec, for which there is no command: %v", err)
	}
}

func TestCommandsThatStandIn(t *testing.T) {
	n := newNode(t)
	n.sandbox(id("a"))
	n.container(id("b"), id("a"), "exit", "7")
	n.container(id("c"), id("a"), "sleep")
	ctx := t.Context()
	for range 2 {
		if status, err := n.cliWait(ctx, id("b")); status != 7 || err != nil {
			t.Errorf("wait: %d, %v", status, err)
		}
	}
	for container, want := range map[string]State{id("b"): StateStopped, id("c"): StateRunning} {
		if state, err := n.cliState(ctx, container); state != want || err != nil {
			t.Errorf("state %d, %v; want %d", state, err, want)
		}
	}
	if err := n.cliKill(ctx, id("c"), 37, false); err == nil {
		t.Error("a real-time signal, which the command does not have")
	}
	if err := n.cliKill(ctx, id("c"), unix.SIGTERM, true); err != nil {
		t.Error(err)
	}
	if status, err := n.cliWait(ctx, id("c")); status != 143 || err != nil {
		t.Errorf("wait: %d, %v", status, err)
	}
}

// The names and numbers are the sentry's, see runsc/boot/controller.go.
func TestWhatGoesOverTheSocket(t *testing.T) {
	process := &specs.Process{
		Args: []string{"sh", "-c", "true"}, Env: []string{"A=b"}, Cwd: "/tmp", Terminal: true, NoNewPrivileges: true,
		User:         specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3}},
		Capabilities: &specs.LinuxCapabilities{Permitted: []string{"CAP_CHOWN"}},
	}
	for _, tt := range []struct {
		call func(context.Context, *Control) error
		want string
	}{
		{func(ctx context.Context, c *Control) error { _, err := c.State(ctx, "b"); return err },
			`{"arg":"b","method":"containerManager.ContainerRuntimeState"}`},
		{func(ctx context.Context, c *Control) error { _, err := c.Wait(ctx, "b"); return err },
			`{"arg":"b","method":"containerManager.Wait"}`},
		{func(ctx context.Context, c *Control) error { _, err := c.WaitExec(ctx, "b", 9); return err },
			`{"arg":{"CID":"b","PID":9},"method":"containerManager.WaitPID"}`},
		{func(ctx context.Context, c *Control) error { return c.Signal(ctx, "b", 9, 37, ToGroup) },
			`{"arg":{"CID":"b","Mode":3,"PID":9,"Signo":37},"method":"containerManager.Signal"}`},
		{func(ctx context.Context, c *Control) error {
			f := devNull(t)
			_, err := c.Exec(ctx, "b", process, Stdio{f, f, f}, nil)
			return err
		}, `{"arg":{"Capabilities":{"AmbientCaps":0,"BoundingCaps":0,"EffectiveCaps":0,"InheritableCaps":0,"PermittedCaps":1},` +
			`"ContainerID":"b","ExtraKGIDs":[3],"GuestFDs":[0,1,2],"KGID":2,"KUID":1,"NoNewPrivileges":true,"StdioIsPty":true,` +
			`"argv":["sh","-c","true"],"envv":["A=b"],"wd":"/tmp"},"method":"containerManager.ExecuteAsync"}`},
	} {
		r := New(Options{Path: "/nowhere", Root: t.TempDir()})
		if err := os.WriteFile(filepath.Join(r.root, "b_sandbox:a.state"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		got := make(chan string, 1)
		answerOnce(t, r.socket("a"), got)
		if err := tt.call(t.Context(), r.Control("a")); err != nil {
			t.Error(err)
		}
		if text := <-got; text != tt.want {
			t.Errorf("sent %s\nwant %s", text, tt.want)
		}
	}
}

// answerOnce takes one call at the socket and sends its JSON, with its keys in
// order, to got.
func answerOnce(t *testing.T, path string, got chan<- string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var call any
		if err := json.NewDecoder(conn).Decode(&call); err != nil {
			t.Error(err)
		}
		text, err := json.Marshal(call)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprint(conn, `{"success":true,"err":"","result":0}`)
		got <- string(text)
	}()
}

func TestExitStatus(t *testing.T) {
	for ws, want := range map[uint32]int{0: 0, 7 << 8: 7, 255 << 8: 255, 9: 137, 15: 143, 11 | 0x80: 139} {
		if got := exitStatus(ws); got != want {
			t.Errorf("wait status %#x: %d, want %d", ws, got, want)
		}
	}
}
