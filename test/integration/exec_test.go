package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"k8s.io/client-go/tools/remotecommand"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// exitCodes are some of all, with those that mean something to anybody.
var exitCodes = []int{0, 1, 2, 3, 42, 125, 126, 127, 128, 129, 130, 137, 143, 200, 254, 255}

func TestExecSession(t *testing.T) {
	d := newDaemon(t, noNetwork)
	c := d.runPod(t).run(t, forever)
	s := c.session(t, "/bin/sh", "-c", "cat; echo out; echo err >&2; exit 7")
	s.write("typed\n")
	s.expect("typed\n")
	check(t, s.in.Close()) // and the output goes on
	if code := s.code(); code != 7 || s.stdout.String() != "typed\nout\n" || s.stderr.String() != "err\n" {
		t.Errorf("exit code %d, output %q, %q", code, s.stdout.String(), s.stderr.String())
	}
	for _, code := range exitCodes {
		if got := c.session(t, "/bin/sh", "-c", fmt.Sprint("exit ", code)).code(); got != code {
			t.Errorf("exit code %d, want %d", got, code)
		}
	}
	for signal, code := range map[string]int{"TERM": 143, "KILL": 137, "USR1": 138} {
		if got := c.session(t, "/bin/sh", "-c", "kill -"+signal+" $$; sleep 1000").code(); got != code {
			t.Errorf("%s: exit code %d, want %d", signal, got, code)
		}
	}
	// What a command leaves behind holds its output, and is not waited for.
	s = c.session(t, "/bin/sh", "-c", "sleep 1001 & echo done")
	if code := s.code(); code != 0 || s.stdout.String() != "done\n" {
		t.Errorf("exit code %d, output %q", code, s.stdout.String())
	}
}

func TestExecErrors(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	c := p.run(t, "mkdir /gone/dir; touch /plain; "+forever, func(c *runtime.ContainerConfig) { c.WorkingDir = "/gone" })
	run := func(command ...string) error {
		s := c.session(t, command...)
		return <-s.ended
	}
	texts := map[string]bool{}
	for command, word := range map[string]string{"/no/such": "no such file", "nosuch": "PATH", "/etc/passwd": "permission denied"} {
		err := run(command)
		if err == nil || !strings.Contains(err.Error(), word) || !strings.Contains(err.Error(), command) {
			t.Errorf("%s: %v", command, err)
		}
		texts[fmt.Sprint(err)] = true
	}
	c.exec(t, "rm -r /gone")
	err := run("/bin/true")
	if err == nil || !strings.Contains(err.Error(), "working directory") {
		t.Errorf("without its working directory: %v", err)
	}
	if texts[fmt.Sprint(err)] = true; len(texts) != 4 {
		t.Errorf("not all are different: %v", texts)
	}
}

// counted counts what a client gets.
type counted struct{ n, other atomic.Int64 }

func (c *counted) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	c.other.Add(int64(len(b) - bytes.Count(b, []byte{0})))
	return len(b), nil
}

// TestLargeOutput moves a gigabyte.
func TestLargeOutput(t *testing.T) {
	d := newDaemon(t, noNetwork)
	c := d.runPod(t).run(t, forever)
	const size = 1 << 30
	r, err := d.raw.Exec(ctx(t), &runtime.ExecRequest{ContainerId: c.id, Stdout: true, Cmd: []string{"/bin/sh", "-c", "dd if=/dev/zero bs=1M count=1024; sleep 1001 &"}})
	check(t, err)
	s, client := &session{t: t, ended: make(chan error, 1)}, new(counted)
	s.begin(r.Url, remotecommand.StreamOptions{Stdout: client})
	check(t, <-s.ended)
	if n, other := client.n.Load(), client.other.Load(); n != size || other != 0 {
		t.Errorf("%d bytes, %d of them wrong, want %d", n, other, size)
	}
}

// TestVanish leaves nothing of a session whose client has gone: neither in the
// sandbox, nor, as daemon.end finds out, in the daemon.
func TestVanish(t *testing.T) {
	d := newDaemon(t, noNetwork)
	c := d.runPod(t).run(t, forever)
	before := c.settled(t)
	gone := func(t *testing.T, s *session, more ...string) {
		t.Helper()
		s.hangUp()
		<-s.ended
		want := slices.Sorted(slices.Values(append(more, before...)))
		eventually(t, "the session's processes end", func() error {
			if now := c.commands(t); !slices.Equal(now, want) {
				return fmt.Errorf("processes %q, want %q", now, want)
			}
			return nil
		})
	}
	t.Run("no terminal", func(t *testing.T) {
		s := c.session(t, "/bin/sh", "-c", "trap '' HUP TERM; sleep 1001 & yes | cat")
		s.expect("y\ny\n")
		gone(t, s)
	})
	t.Run("terminal", func(t *testing.T) {
		s := c.terminal(t, "/bin/sh")
		s.write("sleep 1001 &\n")
		s.running(c, "sleep 1001")
		s.write("nohup sh -c \"trap '' HUP TERM; while :; do sleep 0.1; done\" > /dev/null &\n")
		s.write("sh\n")
		s.write("(sleep 1002; echo) & cat\n") // in the inner shell
		s.running(c, "sleep 1002")
		s.running(c, "cat")
		gone(t, s)
	})
	t.Run("mid-stream", func(t *testing.T) {
		for _, run := range []func(*testing.T, ...string) *session{c.session, c.terminal} {
			s := run(t, "yes")
			s.expect("y")
			gone(t, s)
		}
	})
	t.Run("daemon", func(t *testing.T) {
		s := c.terminal(t, "/bin/sh")
		s.write("setsid sleep 1003 &\n")
		s.running(c, "sleep 1003")
		gone(t, s, "sleep 1003")
	})
}

// TestManySessions are at work at the same time.
func TestManySessions(t *testing.T) {
	d := newDaemon(t, noNetwork)
	c := d.runPod(t).run(t, forever)
	before := c.settled(t)
	var wg sync.WaitGroup
	for i := range 300 {
		var s *session
		if i%2 == 0 {
			s = c.session(t, "cat")
		} else {
			s = c.terminal(t, "cat")
		}
		wg.Go(func() {
			line := fmt.Sprintf("session %d\n", i)
			if _, err := io.WriteString(s.in, line); err != nil {
				t.Error(err)
			}
			s.expect(strings.TrimSuffix(line, "\n"))
			if i%4 < 2 {
				s.hangUp()
			} else if i%2 == 0 {
				s.in.Close()
			} else {
				_, _ = io.WriteString(s.in, "\x04")
			}
			if err := <-s.ended; err != nil && i%4 >= 2 {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	eventually(t, "all processes end", func() error {
		if now := c.commands(t); !slices.Equal(now, before) {
			return errors.New(strings.Join(now, ", "))
		}
		return nil
	})
}
