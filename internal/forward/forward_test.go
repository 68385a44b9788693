package forward

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The bytes in the tree are those that build.sh makes of the source in the tree,
// given the compiler that made them.
func TestRebuild(t *testing.T) {
	for _, tool := range []string{"gcc", "objcopy"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is needed (Debian: gcc, binutils, libc6-dev): %v", tool, err)
		}
	}
	version, err := exec.Command("gcc", "-dumpversion").Output()
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "forward.elf")
	text, err := exec.Command("./build.sh", out).CombinedOutput()
	if err != nil {
		t.Fatalf("build.sh: %v\n%s", err, text)
	}
	if v := strings.TrimSpace(string(version)); v != "12" {
		t.Skipf("forward.elf is made by gcc 12; that of gcc %s differs", v)
	}
	if len(text) > 0 {
		t.Errorf("build.sh warns: %s", text)
	}
	built, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(built, program) {
		t.Errorf("forward.elf is not what build.sh makes: %d bytes in the tree, %d made", len(program), len(built))
	}
}

// running is the program, run on the host.
type running struct {
	*net.UnixConn // of its standard input and output
	t             *testing.T
	cmd           *exec.Cmd
	lifeline      *os.File
}

// run runs the program to forward a port.
func run(t *testing.T, port int) *running {
	t.Helper()
	program, err := Open()
	check(t, err)
	defer program.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	theirs, ours := os.NewFile(uintptr(fds[0]), "theirs"), os.NewFile(uintptr(fds[1]), "ours")
	defer theirs.Close()
	defer ours.Close()
	conn, err := net.FileConn(ours)
	check(t, err)
	hangup, lifeline, err := os.Pipe()
	check(t, err)
	defer hangup.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/fd/3", Args: []string{"port-forward", strconv.Itoa(port)},
		Stdin: theirs, Stdout: theirs, Stderr: hangup, ExtraFiles: []*os.File{program},
	}
	check(t, cmd.Start())
	t.Cleanup(func() {
		conn.Close()
		lifeline.Close()
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return &running{conn.(*net.UnixConn), t, cmd, lifeline}
}

// ended waits for the program's end and checks its status.
func (r *running) ended(status int) {
	r.t.Helper()
	_ = r.cmd.Wait()
	if got := r.cmd.ProcessState.ExitCode(); got != status {
		r.t.Errorf("status %d, want %d", got, status)
	}
}

// listen listens on loopback, and returns the port.
func listen(t *testing.T, address string) (*net.TCPListener, int) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	check(t, err)
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener), l.Addr().(*net.TCPAddr).Port
}

// accept runs a port forwarded to a listener, and returns the other end.
func accept(t *testing.T, address string) (*running, *net.TCPConn) {
	t.Helper()
	l, port := listen(t, address)
	r := run(t, port)
	target, err := l.AcceptTCP()
	check(t, err)
	t.Cleanup(func() { target.Close() })
	return r, target
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestBothWaysAtOnce(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1", "0.0.0.0"} {
		t.Run(address, func(t *testing.T) {
			r, target := accept(t, address)
			data := make([]byte, 8<<20+1)
			rand.Read(data)
			go func() {
				_, _ = io.Copy(struct{ io.Writer }{target}, struct{ io.Reader }{target})
				_ = target.CloseWrite()
			}()
			go func() {
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 1+len(rest)/7) // of all sizes
					if _, err := r.Write(rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
				_ = r.CloseWrite()
			}()
			echo, err := io.ReadAll(r)
			if !bytes.Equal(echo, data) || err != nil {
				t.Errorf("%d bytes of %d came back, %v", len(echo), len(data), err)
			}
			r.ended(0)
		})
	}
}

func TestHalfCloseByTheClient(t *testing.T) {
	r, target := accept(t, "127.0.0.1")
	_, _ = r.Write([]byte("question"))
	check(t, r.CloseWrite())
	question, err := io.ReadAll(target)
	check(t, err)
	_, err = target.Write([]byte("answer"))
	check(t, err)
	check(t, target.Close())
	answer, err := io.ReadAll(r)
	check(t, err)
	if string(question) != "question" || string(answer) != "answer" {
		t.Errorf("%q, %q", question, answer)
	}
	r.ended(0)
}

func TestHalfCloseByTheTarget(t *testing.T) {
	r, target := accept(t, "127.0.0.1")
	_, err := target.Write([]byte("hello"))
	check(t, err)
	check(t, target.CloseWrite())
	hello, err := io.ReadAll(r)
	check(t, err)
	_, err = r.Write([]byte("bye"))
	check(t, err)
	check(t, r.CloseWrite())
	bye, err := io.ReadAll(target)
	check(t, err)
	if string(hello) != "hello" || string(bye) != "bye" {
		t.Errorf("%q, %q", hello, bye)
	}
	r.ended(0)
}

func TestWhatTheTargetSaidBeforeItHungUpArrives(t *testing.T) {
	r, target := accept(t, "127.0.0.1")
	data := make([]byte, 4<<20)
	go func() {
		_, _ = target.Write(data)
		target.Close() // all is read, so this is no reset
	}()
	got, err := io.ReadAll(r)
	if len(got) != len(data) || err != nil {
		t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
	}
	// The client learns it by writing.
	for err == nil {
		_, err = r.Write(data)
	}
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	r.ended(0)
}

func TestReset(t *testing.T) {
	r, target := accept(t, "127.0.0.1")
	_, err := r.Write([]byte("x"))
	check(t, err)
	_, err = target.Read(make([]byte, 1))
	check(t, err)
	check(t, target.SetLinger(0))
	check(t, target.Close())
	r.ended(0) // though the client has neither written nor closed
}

func TestRefused(t *testing.T) {
	l, port := listen(t, "127.0.0.1")
	check(t, l.Close())
	r := run(t, port)
	_, _ = r.Write([]byte("what nobody reads"))
	r.ended(int(unix.ECONNREFUSED))
}

// When the daemon is killed, nothing that the target does or does not do keeps
// the program.
func TestItEndsWithItsDaemon(t *testing.T) {
	dies := func(r *running) {
		r.UnixConn.Close()
		r.lifeline.Close()
		r.ended(0)
	}
	t.Run("idle", func(t *testing.T) {
		r, _ := accept(t, "127.0.0.1")
		dies(r)
	})
	t.Run("the target does not read", func(t *testing.T) {
		r, target := accept(t, "127.0.0.1")
		check(t, target.CloseWrite()) // or the end of the socket would tell
		_, err := io.ReadAll(r)
		check(t, err)
		fill(t, r)
		dies(r)
	})
	t.Run("the client does not read", func(t *testing.T) {
		r, target := accept(t, "127.0.0.1")
		fill(t, target)
		dies(r)
	})
	t.Run("nobody accepts", func(t *testing.T) {
		dies(run(t, fullBacklog(t)))
	})
}

// fill writes until nothing more is taken for a moment.
func fill(t *testing.T, c net.Conn) {
	t.Helper()
	for data := make([]byte, 1<<20); ; {
		check(t, c.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
		if _, err := c.Write(data); errors.Is(err, os.ErrDeadlineExceeded) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// fullBacklog returns the port of a listener that answers to no connection any
// more.
func fullBacklog(t *testing.T) int {
	t.Helper()
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { unix.Close(s) })
	check(t, unix.Bind(s, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	check(t, unix.Listen(s, 0))
	address, err := unix.Getsockname(s)
	check(t, err)
	port := address.(*unix.SockaddrInet4).Port
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	check(t, err)
	t.Cleanup(func() { c.Close() })
	return port
}
