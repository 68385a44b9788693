package integration

import (
	"testing"

	"k8s.io/client-go/tools/remotecommand"
)

// TestShell uses a shell as somebody at a terminal does.
func TestShell(t *testing.T) {
	d := newDaemon(t, noNetwork)
	c := d.runPod(t).run(t, forever)
	s := c.terminal(t, "/bin/sh")
	s.expect("# ")
	s.press("stty size\n", "24 80\r\n")
	s.write("echo $TERM\n")
	s.expect("xterm\r\n")

	s.write("sleep 1001; echo interrupted $?\n")
	s.running(c, "sleep 1001")
	s.write("\x03")
	s.expect("^C")
	s.expect("# ")

	s.write("sh -c 'trap \"stty size\" WINCH; echo ready; while :; do sleep 0.1; done'\n")
	s.expect("ready\r\n")
	s.sizes <- remotecommand.TerminalSize{Width: 132, Height: 43}
	s.expect("43 132\r\n")
	s.write("\x03")
	s.expect("# ")

	s.write("sleep 1002\n")
	s.running(c, "sleep 1002")
	s.write("\x1a")
	s.expect("Stopped")
	s.write("jobs; fg\n")
	s.expect("Stopped")
	s.expect("sleep 1002\r\n")
	s.press("\x1c", "Quit")
	s.write("exit 42\n")
	if code := s.code(); code != 42 {
		t.Errorf("exit code %d", code)
	}
}
