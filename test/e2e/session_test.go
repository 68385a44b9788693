package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// read returns a file, by default of the cluster's directory.
func (s *scene) read(name string) string {
	s.Helper()
	if !filepath.IsAbs(name) {
		name = s.c.path(name)
	}
	text, err := os.ReadFile(name)
	check(s.T, err)
	return string(text)
}

// follow starts a command and returns what waits for its output and its end.
func (s *scene) follow(args ...string) func() string {
	s.Helper()
	cmd, cancel := s.start(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	check(s.T, cmd.Start())
	s.Cleanup(cancel)
	return func() string {
		s.Helper()
		if err := cmd.Wait(); err != nil {
			s.Fatalf("kubectl %q: %v\n%s", args, err, out.String())
		}
		return out.String()
	}
}

func logsFollow(s *scene) {
	s.once("for i in 1 2 3 4 5; do echo line $i; sleep 0.3; done; echo to stderr >&2")
	s.waitPod("a start", func(p *corev1.Pod) bool { return p.Status.Phase != corev1.PodPending })
	s.same("logs -f", s.follow("logs", "-f", s.name)(), "line 1\nline 2\nline 3\nline 4\nline 5\nto stderr")
	s.same("logs --tail", s.kubectl("logs", s.name, "--tail=2"), "line 5\nto stderr")
	s.has("logs --timestamps", s.kubectl("logs", s.name, "--timestamps"), fmt.Sprint(time.Now().UTC().Year(), "-"))
}

func logsPrevious(s *scene) {
	s.pod(`
volumes: [{name: v, emptyDir: {}}]
containers: [` + s.container("c", "[ -e /v/seen ] && { echo second; "+forever+"; exit; }; touch /v/seen; echo first; exit 1",
		"volumeMounts: [{name: v, mountPath: /v}]") + `]`)
	s.waitPod("a restart", func(p *corev1.Pod) bool {
		return status(p, "c").RestartCount == 1 && status(p, "c").State.Running != nil
	})
	s.same("logs --previous", s.kubectl("logs", s.name, "--previous"), "first")
	s.logHas("second")
}

func logRotation(s *scene) {
	s.run("i=0; while true; do i=$((i+1)); echo line $i " + strings.Repeat("x", 90) + "; [ $((i % 50)) = 0 ] && sleep 0.2; done")
	s.eventually("rotated logs", func() error {
		found, err := filepath.Glob(s.c.path("podlogs/default_" + s.name + "_*/c/0.log.*.gz"))
		if err == nil && len(found) == 0 {
			err = os.ErrNotExist
		}
		return err
	})
	// Nothing is lost at a rotation: the lines count up without a gap.
	follow, cancel := s.start("logs", "-f", s.name)
	defer cancel()
	out, err := follow.StdoutPipe()
	check(s.T, err)
	check(s.T, follow.Start())
	last, lines := 0, 0
	for scan := bufio.NewScanner(out); lines < 1500 && scan.Scan(); lines++ {
		var n int
		if _, err := fmt.Sscanf(scan.Text(), "line %d ", &n); err != nil || last != 0 && n != last+1 {
			s.Fatalf("after line %d: %.30q", last, scan.Text())
		}
		last = n
	}
	if lines < 1500 {
		s.Errorf("%d lines", lines)
	}
}

func execCommand(s *scene) {
	s.run(forever)
	s.ready()
	cmd, cancel := s.start("exec", "-i", s.name, "--", "sh", "-c", "cat; echo err >&2; exit 9")
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(strings.Repeat("x", 300_000)), &stdout, &stderr
	err := cmd.Run()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 9 {
		s.Errorf("exit status: %v", err)
	}
	if stdout.Len() != 300_000 {
		s.Errorf("%d bytes came back", stdout.Len())
	}
	s.has("stderr", stderr.String(), "err\n")
}

// terminal runs kubectl on a terminal, types, and returns all that was shown.
func (s *scene) terminal(typed string, args ...string) string {
	s.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	check(s.T, err)
	defer master.Close()
	check(s.T, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	check(s.T, err)
	check(s.T, unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 77}))
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	check(s.T, err)
	cmd, cancel := s.start(args...)
	defer cancel()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	check(s.T, cmd.Start())
	slave.Close()
	_, err = io.WriteString(master, typed)
	check(s.T, err)
	shown, _ := io.ReadAll(master) // ends with EIO
	if err := cmd.Wait(); err != nil {
		s.Fatalf("kubectl %q: %v\n%s", args, err, shown)
	}
	return string(shown)
}

// execSPDY is that a client of the protocol before WebSockets is served too.
func execSPDY(s *scene) {
	s.run(forever)
	s.ready()
	cmd, cancel := s.start("exec", "-i", s.name, "--", "wc", "-c")
	defer cancel()
	cmd.Env = append(cmd.Env, "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false")
	cmd.Stdin = strings.NewReader("12345")
	out, err := cmd.CombinedOutput()
	check(s.T, err)
	s.same("output", string(out), "5")
}

func execTerminal(s *scene) {
	s.run(forever)
	s.ready()
	out := s.terminal("[ -t 0 ] && echo is''a tty; stty size; echo do''ne; exit\n", "exec", "-it", s.name, "--", "sh")
	for _, part := range []string{"isa tty", "33 77", "done"} {
		s.has("terminal", out, part)
	}
}

func attach(s *scene) {
	s.pod("restartPolicy: Never\ncontainers: [" + s.container("c", "while read x; do echo got $x; done", "stdin: true", "stdinOnce: true") + "]")
	s.ready()
	out, err := s.command(strings.NewReader("one\ntwo\n"), "attach", "-i", s.name)
	if err != nil {
		s.Errorf("%v: %s", err, out)
	}
	s.ended(corev1.PodSucceeded)
	s.same("log", s.kubectl("logs", s.name), "got one\ngot two")
}

func attachTerminal(s *scene) {
	s.pod("restartPolicy: Never\ncontainers: [" + s.container("c", "read x; echo got $x", "stdin: true", "tty: true") + "]")
	s.ready()
	s.has("terminal", s.terminal("hello\n", "attach", "-it", s.name), "got hello")
}

func copyFiles(s *scene) {
	s.run(forever)
	s.ready()
	content := make([]byte, 3<<20)
	for i := range content {
		content[i] = byte(i * i >> 3)
	}
	check(s.T, os.WriteFile(s.c.path("sent"), content, 0o644))
	s.kubectl("cp", "sent", s.name+":/tmp/there")
	s.kubectl("cp", s.name+":/tmp/there", "back")
	if s.read("back") != string(content) {
		s.Error("another file came back")
	}
}

func portForward(s *scene) {
	s.run("mkdir /tmp/w; echo forwarded >/tmp/w/index.html; httpd -p 127.0.0.1:8080 -h /tmp/w; echo up; " + forever)
	s.logHas("up")
	cmd, cancel := s.start("port-forward", s.name, ":8080")
	defer cancel()
	out, err := cmd.StdoutPipe()
	check(s.T, err)
	check(s.T, cmd.Start())
	var port int
	line, err := bufio.NewReader(out).ReadString('\n')
	check(s.T, err)
	_, err = fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d", &port)
	check(s.T, err)
	for range 3 {
		s.has("answer", fetch(s, port), "forwarded")
	}
}

// fetch gets / of a server on this machine.
func fetch(s *scene, port int) string {
	s.Helper()
	var answer []byte
	s.eventually("an answer", func() error {
		conn, err := net.DialTimeout("tcp", fmt.Sprint("127.0.0.1:", port), time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		answer, err = io.ReadAll(conn)
		if err == nil && len(answer) == 0 {
			err = io.EOF
		}
		return err
	})
	return string(answer)
}

func debug(s *scene) {
	s.run("sleep 4321 & " + forever)
	s.ready()
	s.kubectl("debug", s.name, "--image="+s.c.image, "--target=c", "--container=d", "--", "sh", "-c", "ps -o args; echo done")
	s.eventually("the debugger's log", func() error {
		out, err := s.command(nil, "logs", s.name, "-c", "d")
		if err == nil && !strings.Contains(out, "done") {
			err = io.ErrUnexpectedEOF
		}
		return err
	})
	s.has("ps", s.kubectl("logs", s.name, "-c", "d"), "sleep 4321")
}
