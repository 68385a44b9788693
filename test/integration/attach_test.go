package integration

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"k8s.io/client-go/tools/remotecommand"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func withStdin(c *runtime.ContainerConfig)     { c.Stdin = true }
func withStdinOnce(c *runtime.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }

// withTerminal runs a shell at the container's own terminal.
func withTerminal(c *runtime.ContainerConfig) {
	c.Stdin, c.Tty, c.Command = true, true, []string{"/bin/sh"}
}

func TestAttach(t *testing.T) {
	d := newDaemon(t, noNetwork)
	c := d.runPod(t).run(t, "echo before; while read l; do echo out $l; echo err $l >&2; [ $l = last ] && exit 7; done", withStdin)
	c.waitFor(t, "before")
	first, second := c.attach(t, true), c.attach(t, true)
	second.write("0\n")
	second.expect("out 0\n")
	first.write("1\n")
	first.expect("out 1\n")
	second.expect("out 1\n")
	// Input goes on when a client's has ended, or the client has gone.
	check(t, first.in.Close())
	second.write("2\n")
	first.expect("out 2\n")
	second.hangUp()
	<-second.ended
	third := c.attach(t, true)
	third.write("last\n")
	for _, s := range []*session{first, third} {
		check(t, <-s.ended)
		if !strings.HasSuffix(s.stdout.String(), "out last\n") || !strings.HasSuffix(s.stderr.String(), "err last\n") {
			t.Errorf("output %q, %q", s.stdout.String(), s.stderr.String())
		}
	}
	if s := c.ended(t); s.ExitCode != 7 {
		t.Errorf("status %v", s)
	}
	if out := c.output(t); strings.Count(out, "\n") != 9 {
		t.Errorf("log %q", out)
	}
	_, err := d.raw.Attach(ctx(t), &runtime.AttachRequest{ContainerId: c.id, Stdout: true})
	refused(t, err, codes.FailedPrecondition, c.id, "not running")
}

func TestStdinOnce(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	for name, leave := range map[string]func(s *session){
		"end":  func(s *session) { check(t, s.in.Close()) },
		"gone": func(s *session) { s.hangUp() },
	} {
		t.Run(name, func(t *testing.T) {
			c := p.run(t, "wc -l", withStdinOnce)
			s := c.attach(t, true)
			s.write("a\nb\n")
			late := c.attach(t, true)
			if err := <-late.ended; err == nil || !strings.Contains(err.Error(), "stdin_once") {
				t.Errorf("second client: %v", err)
			}
			leave(s)
			if got := c.ended(t); got.ExitCode != 0 || c.output(t) != "2\n" {
				t.Errorf("status %v, output %q", got, c.output(t))
			}
			<-s.ended
		})
	}
}

// TestInputThatNobodyReads leaves nothing when its client goes; daemon.end looks.
func TestInputThatNobodyReads(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	for _, config := range []func(*runtime.ContainerConfig){withStdin, withStdinOnce} {
		c := p.run(t, forever, config)
		s := c.attach(t, true)
		fed := make(chan error)
		go func() {
			_, err := io.Copy(s.in, strings.NewReader(strings.Repeat("line\n", 2<<20)))
			fed <- err
		}()
		s.hangUp()
		<-s.ended
		check(t, s.in.CloseWithError(errors.New("the client is gone")))
		<-fed
	}
}

// blocked is a client's terminal at ^S.
type blocked struct{ release chan struct{} }

func (b blocked) Write(p []byte) (int, error) {
	<-b.release
	return len(p), nil
}

// TestSlowClient stops to read, and holds up neither the container nor the log nor
// another client.
func TestSlowClient(t *testing.T) {
	d := newDaemon(t, noNetwork)
	// Piece by piece, so that a client that reads keeps up on any machine.
	c := d.runPod(t).run(t, "yes 0123456789abcdef | head -n 65536 > /piece; while read n; do cat /piece; echo piece $n; done", withStdin)
	release := make(chan struct{})
	slow := c.attachTo(t, blocked{release})
	other := c.attach(t, true)
	const pieces = 32
	for i := range pieces {
		other.write(fmt.Sprintln(i))
		other.expect(fmt.Sprintf("piece %d\n", i))
	}
	eventually(t, "the slow client is cut off", func() error {
		log, err := os.ReadFile(d.path("log"))
		if err == nil && !strings.Contains(string(log), "does not keep up with stdout") {
			return errors.New("it is not")
		}
		return err
	})
	close(release)
	if err := <-slow.ended; err == nil {
		t.Error("the slow client does not know")
	}
	other.hangUp()
	<-other.ended
	check(t, d.pods.StopContainer(ctx(t), c.id, 0))
	var want strings.Builder
	for i := range pieces {
		want.WriteString(strings.Repeat("0123456789abcdef\n", 65536))
		fmt.Fprintf(&want, "piece %d\n", i)
	}
	if other.stdout.String() != want.String() {
		t.Errorf("the other client has %d bytes, want %d", len(other.stdout.String()), want.Len())
	}
	if c.output(t) != want.String() {
		t.Errorf("the log has %d bytes, want %d", len(c.output(t)), want.Len())
	}
}

// TestTerminalContainer attaches to a container that is a shell at a terminal.
func TestTerminalContainer(t *testing.T) {
	d := newDaemon(t, noNetwork)
	c := d.runPod(t).run(t, "", withTerminal)
	s, watcher := c.attach(t, true), c.attach(t, false)
	s.press("stty size\n", "24 80\r\n")
	s.write("sleep 1001\n")
	s.running(c, "sleep 1001")
	s.write("\x03")
	s.expect("^C\r\n")
	s.write("sleep 1002\n")
	s.running(c, "sleep 1002")
	s.write("\x1a")
	s.expect("Stopped")
	s.write("fg\n")
	s.expect("fg\r\nsleep 1002\r\n")
	s.sizes <- remotecommand.TerminalSize{Width: 90, Height: 30}
	s.press("\x03", "# ")
	s.press("stty size\n", "30 90\r\n")
	// The shell does not end with its users.
	s.hangUp()
	<-s.ended
	s = c.attach(t, true)
	s.write("exit 3\n")
	check(t, <-s.ended)
	check(t, <-watcher.ended)
	if got := c.ended(t); got.ExitCode != 3 {
		t.Errorf("status %v", got)
	}
	for _, l := range readLog(t, c.logPath()) {
		if l.stream != "stdout" {
			t.Errorf("log line of %s", l.stream)
		}
	}
	screen := watcher.stdout.String()
	if out := c.output(t); !strings.Contains(screen, "30 90\r\n") || !strings.HasSuffix(out, screen) {
		t.Errorf("the watcher saw %q, the log has %q", screen, out)
	}
}

// TestTerminalOfADaemonThatIsKilled hangs up: what is at it ends.
func TestTerminalOfADaemonThatIsKilled(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	shell := p.run(t, "", withTerminal)
	busy := p.run(t, "while :; do echo tick; sleep 0.1; done", func(c *runtime.ContainerConfig) { c.Tty = true })
	stays := p.run(t, "trap '' HUP; while :; do sleep 0.1; done", func(c *runtime.ContainerConfig) { c.Tty = true })
	busy.waitFor(t, "tick")
	d.stop(t, unix.SIGKILL)
	d.start(t)
	shell.ended(t)
	busy.ended(t)
	r, err := d.raw.Attach(ctx(t), &runtime.AttachRequest{ContainerId: stays.id, Stdout: true, Tty: true})
	check(t, err)
	if err := <-connect(t, r.Url, true, false, false).ended; err == nil || !strings.Contains(err.Error(), "restarted") {
		t.Errorf("attach to a terminal that is lost: %v", err)
	}
	check(t, d.pods.ReopenContainerLog(ctx(t), stays.id))
	if _, code := stays.exec(t, "true"); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
