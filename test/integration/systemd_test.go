package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// service is the daemon's unit as systemd has it: it takes messages and, with a
// store, files, which it gives to the next daemon.
type service struct {
	conn     *net.UnixConn
	states   chan string
	watchdog time.Duration

	mu     sync.Mutex
	stores bool       // +checklocks:mu
	store  []*os.File // +checklocks:mu
}

func newService(t *testing.T, path string) *service {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	check(t, err)
	s := &service{conn: conn, states: make(chan string, 1024)}
	go s.receive()
	return s
}

// receive takes messages until the end.
func (s *service) receive() {
	message, oob := make([]byte, 4096), make([]byte, 4096)
	for {
		n, m, _, _, err := s.conn.ReadMsgUnix(message, oob)
		if err != nil {
			return
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(message[:n])) {
			key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			fields[key] = value
		}
		var fds []int
		if control, err := unix.ParseSocketControlMessage(oob[:m]); err == nil && len(control) == 1 {
			fds, _ = unix.ParseUnixRights(&control[0])
		}
		switch {
		case fields["FDSTORE"] == "1":
			s.keep(fields["FDNAME"], fields["FDPOLL"], fds)
		case fields["FDSTOREREMOVE"] == "1":
			s.remove(fields["FDNAME"])
		default:
			s.states <- string(message[:n])
		}
	}
}

func (s *service) keep(name, poll string, fds []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), name)
		if s.stores && poll == "0" { // otherwise it would end with the first hangup
			s.store = append(s.store, f)
		} else {
			f.Close()
		}
	}
}

func (s *service) remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store = slices.DeleteFunc(s.store, func(f *os.File) bool {
		if f.Name() != name {
			return false
		}
		f.Close()
		return true
	})
}

// kept are the names of the files in the store.
func (s *service) kept() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := []string{}
	for _, f := range s.store {
		names = append(names, f.Name())
	}
	slices.Sort(names)
	return names
}

// close ends the service and drops what it has.
func (s *service) close() {
	s.conn.Close()
	for _, name := range s.kept() {
		s.remove(name)
	}
}

// start starts a daemon, which gets what is in the store.
func (s *service) start(log *os.File, args ...string) (*exec.Cmd, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Who is started has to have the number that LISTEN_PID says.
	cmd := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = slices.Clone(s.store)
	names := []string{}
	for _, f := range s.store {
		names = append(names, f.Name())
	}
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+s.conn.LocalAddr().String(),
		fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"),
		noSleep)
	if s.watchdog > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("WATCHDOG_USEC=%d", s.watchdog.Microseconds()))
	}
	return cmd, cmd.Start()
}

// waitFor waits for a message.
func (s *service) waitFor(t *testing.T, state string, exited <-chan struct{}) {
	t.Helper()
	late := time.After(patience)
	for {
		select {
		case got := <-s.states:
			if got == state {
				return
			}
		case <-exited:
			t.Fatalf("the daemon has ended, and did not say %s", state)
		case <-late:
			t.Fatalf("no %s from the daemon", state)
		}
	}
}

// withStore starts the daemon anew, with a store.
func (d *daemon) withStore(t *testing.T) {
	t.Helper()
	d.service.mu.Lock()
	d.service.stores = true
	d.service.mu.Unlock()
	d.stop(t, unix.SIGTERM)
	d.start(t)
}

// wait waits for the end of a container while there is no daemon.
func (c *container) wait(t *testing.T) {
	t.Helper()
	check(t, exec.Command(os.Getenv("RUNSCD_RUNSC"), "--root", c.path("s/runsc/runsc"), "wait", c.id).Run())
}

// numbers is a script that writes n numbers when it is told to, and ends.
func numbers(n int) string {
	return fmt.Sprintf("until [ -e /shared/go ]; do sleep 0.1; done; seq %d; exit 7", n)
}

// seqOutput is what seq n writes.
func seqOutput(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, i+1)
	}
	return b.String()
}

// TestKeptFiles kills the daemon while systemd keeps its files: terminals, inputs
// and the last output of containers are there for the next one, and the socket for
// clients.
func TestKeptFiles(t *testing.T) {
	d := newDaemon(t, noNetwork)
	d.withStore(t)
	p := d.runPod(t)
	shell, once := p.run(t, "", withTerminal), p.run(t, "wc -l", withStdinOnce)
	used := p.run(t, "cat; echo end", withStdinOnce)
	shared := t.TempDir()
	exiting := p.run(t, numbers(20000), share(shared))
	leaving := p.run(t, numbers(300), share(shared), func(c *runtime.ContainerConfig) { c.Tty = true })
	s := shell.attach(t, true)
	s.press("x=kept\n", "# ")
	user := used.attach(t, true)
	user.write("typed\n")
	used.waitFor(t, "typed")

	d.stop(t, unix.SIGKILL)
	<-s.ended
	used.wait(t) // its client is gone with the daemon
	check(t, os.WriteFile(filepath.Join(shared, "go"), nil, 0o644))
	exiting.wait(t)
	leaving.wait(t)
	conn, err := grpc.NewClient("unix://"+d.path("s/runscd.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	defer conn.Close()
	answered := make(chan error, 1)
	go func() { // fails at once if it is refused
		answered <- errOf(runtime.NewRuntimeServiceClient(conn).Version(ctx(t), &runtime.VersionRequest{}))
	}()
	d.start(t)
	if err := <-answered; err != nil {
		t.Errorf("client of the time without a daemon: %v", err)
	}

	if got := exiting.ended(t); got.ExitCode != 7 || exiting.output(t) != seqOutput(20000) {
		t.Errorf("container that ended meanwhile: %v, %d bytes", got, len(exiting.output(t)))
	}
	if got := leaving.ended(t); got.ExitCode != 7 || leaving.output(t) != strings.ReplaceAll(seqOutput(300), "\n", "\r\n") {
		t.Errorf("container with a terminal that ended meanwhile: %v, %q", got, leaving.output(t))
	}
	if used.ended(t); used.output(t) != "typed\nend\n" {
		t.Errorf("output %q", used.output(t))
	}
	s = shell.attach(t, true)
	s.press("echo $x\n", "kept\r\n")
	s.write("exit 3\n")
	check(t, <-s.ended)
	if got := shell.ended(t); got.ExitCode != 3 {
		t.Errorf("shell: %v", got)
	}
	s = once.attach(t, true)
	s.write("a\nb\n")
	check(t, s.in.Close())
	if once.ended(t); once.output(t) != "2\n" {
		t.Errorf("output %q", once.output(t))
	}
	eventually(t, "nothing is kept for what has ended", func() error {
		if kept := d.service.kept(); !slices.Equal(kept, []string{"socket"}) {
			return fmt.Errorf("%q", kept)
		}
		return nil
	})
}

// TestLostFiles tells what a daemon that is killed takes with it where nobody keeps
// its files: what a container left in its FIFO that ended meanwhile.
func TestLostFiles(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	shared := t.TempDir()
	c := p.run(t, "echo first; "+numbers(20000), share(shared))
	c.waitFor(t, "first")
	d.stop(t, unix.SIGKILL)
	check(t, os.WriteFile(filepath.Join(shared, "go"), nil, 0o644))
	c.wait(t)
	d.start(t)
	if got := c.ended(t); got.ExitCode != 7 {
		t.Errorf("status %v", got)
	}
	t.Logf("%d of %d bytes are kept", len(c.output(t)), len("first\n"+seqOutput(20000)))
	if !strings.HasPrefix("first\n"+seqOutput(20000), c.output(t)) {
		t.Errorf("output %q", c.output(t))
	}
}

// TestWatchdog has systemd hear of the daemon as long as that serves.
func TestWatchdog(t *testing.T) {
	d := newDaemon(t, noNetwork)
	d.service.watchdog = 200 * time.Millisecond
	d.stop(t, unix.SIGTERM)
	d.service.waitFor(t, "STOPPING=1", nil)
	d.start(t)
	for range 3 {
		d.service.waitFor(t, "WATCHDOG=1", d.exited)
	}
	d.held = append(d.held, "unix socket", "unix socket") // the daemon's own connection
}
