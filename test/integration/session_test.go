package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// session is a client of kubectl's kind in an Exec or Attach session.
type session struct {
	t      *testing.T
	in     *io.PipeWriter // what the user types; nil without
	sizes  chan remotecommand.TerminalSize
	hangUp context.CancelFunc // ends the connection
	ended  chan error         // the end of the session

	stdout, stderr screen
}

// screen keeps what a client gets.
type screen struct {
	mu sync.Mutex
	// +checklocks:mu
	text bytes.Buffer
	// +checklocks:mu
	seen int // up to here it was waited for
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// Next is the next of the terminal's sizes.
func (s *session) Next() *remotecommand.TerminalSize {
	size, ok := <-s.sizes
	if !ok {
		return nil
	}
	return &size
}

// connect begins the session at a URL.
func connect(t *testing.T, address string, tty, stdin, stderr bool) *session {
	t.Helper()
	s := &session{t: t, ended: make(chan error, 1)}
	o := remotecommand.StreamOptions{Stdout: &s.stdout, Tty: tty}
	if stdin {
		o.Stdin, s.in = io.Pipe()
	}
	if stderr {
		o.Stderr = &s.stderr
	}
	if tty {
		s.sizes = make(chan remotecommand.TerminalSize, 1)
		s.sizes <- remotecommand.TerminalSize{Width: 80, Height: 24}
		o.TerminalSizeQueue = s
		t.Cleanup(func() { close(s.sizes) })
	}
	s.begin(address, o)
	return s
}

func (s *session) begin(address string, o remotecommand.StreamOptions) {
	s.t.Helper()
	u, err := url.Parse(address)
	check(s.t, err)
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: u.Host}, "POST", u)
	check(s.t, err)
	ctx, cancel := context.WithCancel(s.t.Context())
	s.hangUp = cancel
	s.t.Cleanup(s.hangUp)
	go func() { s.ended <- e.StreamWithContext(ctx, o) }()
}

// session runs a command without a terminal.
func (c *container) session(t *testing.T, command ...string) *session {
	t.Helper()
	r, err := c.raw.Exec(ctx(t), &runtime.ExecRequest{ContainerId: c.id, Cmd: command, Stdin: true, Stdout: true, Stderr: true})
	check(t, err)
	return connect(t, r.Url, false, true, true)
}

// terminal runs a command with one.
func (c *container) terminal(t *testing.T, command ...string) *session {
	t.Helper()
	r, err := c.raw.Exec(ctx(t), &runtime.ExecRequest{ContainerId: c.id, Cmd: command, Stdin: true, Stdout: true, Tty: true})
	check(t, err)
	return connect(t, r.Url, true, true, false)
}

// attach attaches to the container.
func (c *container) attach(t *testing.T, stdin bool) *session {
	t.Helper()
	tty := c.config.Tty
	r, err := c.raw.Attach(ctx(t), &runtime.AttachRequest{ContainerId: c.id, Stdin: stdin, Stdout: true, Stderr: !tty, Tty: tty})
	check(t, err)
	return connect(t, r.Url, tty, stdin, !tty)
}

// attachTo attaches a client to the container's standard output.
func (c *container) attachTo(t *testing.T, client io.Writer) *session {
	t.Helper()
	r, err := c.raw.Attach(ctx(t), &runtime.AttachRequest{ContainerId: c.id, Stdout: true})
	check(t, err)
	s := &session{t: t, ended: make(chan error, 1)}
	s.begin(r.Url, remotecommand.StreamOptions{Stdout: client})
	return s
}

// write types a text.
func (s *session) write(text string) {
	s.t.Helper()
	_, err := io.WriteString(s.in, text)
	check(s.t, err)
}

// press types a key, or a line, until the session has written text: what was asked
// for before, as a new size or a job in the foreground, comes a moment later.
func (s *session) press(key, text string) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("output %q", text), func() error {
		s.write(key)
		return s.find(text)
	})
}

// expect waits until the session has written text, behind what was expected
// before.
func (s *session) expect(text string) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("output %q", text), func() error { return s.find(text) })
}

func (s *session) find(text string) error {
	s.stdout.mu.Lock()
	defer s.stdout.mu.Unlock()
	rest := s.stdout.text.Bytes()[s.stdout.seen:]
	i := bytes.Index(rest, []byte(text))
	if i < 0 {
		return fmt.Errorf("it is %.1000q", rest)
	}
	s.stdout.seen += i + len(text)
	return nil
}

// code waits for the end of the session and returns the exit code.
func (s *session) code() int {
	s.t.Helper()
	err := <-s.ended
	var exit exec.CodeExitError
	if errors.As(err, &exit) {
		return exit.Code
	}
	if err != nil {
		s.t.Fatalf("session: %v; output %q %q", err, s.stdout.String(), s.stderr.String())
	}
	return 0
}

// running waits until a process with the given command line runs.
func (s *session) running(c *container, line string) {
	s.t.Helper()
	eventually(s.t, line, func() error {
		if all := c.commands(s.t); !slices.Contains(all, line) {
			return fmt.Errorf("commands %q", all)
		}
		return nil
	})
}

// commands are the command lines of the container's processes, but for those that
// list them. A dead one has none.
func (c *container) commands(t *testing.T) []string {
	t.Helper()
	const list = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2> /dev/null"
	out, code := c.exec(t, list)
	if code != 0 {
		t.Fatalf("listing of processes: %d, %q", code, out)
	}
	var found []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.Contains(line, "cmdline") && !strings.HasPrefix(line, "tr ") {
			found = append(found, line)
		}
	}
	slices.Sort(found)
	return found
}

// settled are the commands of a container that runs forever, once it has started
// them both.
func (c *container) settled(t *testing.T) (found []string) {
	t.Helper()
	eventually(t, "the container sleeps", func() error {
		if found = c.commands(t); len(found) != 2 {
			return errors.New(strings.Join(found, ", "))
		}
		return nil
	})
	return found
}
