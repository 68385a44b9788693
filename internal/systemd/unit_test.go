package systemd

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// given is set in a process of this test that systemd would have started.
const given = "SYSTEMD_TEST_GIVEN"

func TestMain(m *testing.M) {
	logrus.SetOutput(io.Discard)
	if os.Getenv(given) != "" {
		if err := takeGiven(); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// takeGiven takes what TestTake gives.
func takeGiven() error {
	u, err := Take()
	if err != nil {
		return err
	}
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "LISTEN_") || strings.HasPrefix(e, "NOTIFY_") || strings.HasPrefix(e, "WATCHDOG_") {
			return errors.New(e + " is left")
		}
	}
	f := u.Claim("a-stdout")
	if f == nil || u.Claim("a-stdout") != nil || u.Claim("nothing") != nil {
		return errors.New("a file is not there, or twice")
	}
	text, err := io.ReadAll(f)
	if err != nil || string(text) != "kept" {
		return errors.Join(errors.New("it has "+string(text)), err)
	}
	u.Drop("a-stdout")
	u.Forget(func(id string) bool { return id == "newer" })
	u.Ready()
	return nil
}

// listen returns what is sent to systemd.
func listen(t *testing.T) (path string, next func() (string, []int)) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return path, func() (string, []int) {
		t.Helper()
		message, oob := make([]byte, 4096), make([]byte, 4096)
		if err := l.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, m, _, _, err := l.ReadMsgUnix(message, oob)
		if err != nil {
			t.Fatal(err)
		}
		var fds []int
		if control, err := unix.ParseSocketControlMessage(oob[:m]); err == nil && len(control) == 1 {
			fds, _ = unix.ParseUnixRights(&control[0])
		}
		return string(message[:n]), fds
	}
}

func TestTake(t *testing.T) {
	path, next := listen(t)
	var files []*os.File
	for range 4 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteString("kept"); err != nil {
			t.Fatal(err)
		}
		w.Close()
		files = append(files, r)
	}
	cmd := exec.Command("sh", "-c", "LISTEN_PID=$$ exec /proc/$PPID/exe")
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), given+"=1", "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=1000000",
		"LISTEN_FDS=4", "LISTEN_FDNAMES=a-stdout:a-stdout:b-stdout:newer-stdout")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"FDSTOREREMOVE=1\nFDNAME=a-stdout", "FDSTOREREMOVE=1\nFDNAME=b-stdout", "READY=1"} {
		if got, _ := next(); got != want {
			t.Errorf("message %q, want %q", got, want)
		}
	}
}

func TestKeep(t *testing.T) {
	path, next := listen(t)
	u := &Unit{notify: path, kept: map[string]bool{}}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	const store = "FDSTORE=1\nFDPOLL=0\nFDNAME=a-stdout"
	u.Keep("a-stdout", r)
	got, fds := next()
	if got != store || len(fds) != 1 {
		t.Fatalf("message %q with files %v", got, fds)
	}
	kept := os.NewFile(uintptr(fds[0]), "kept")
	defer kept.Close()
	r.Close()
	if _, err := w.WriteString("a"); err != nil {
		t.Errorf("the pipe is not kept: %v", err)
	}
	// Another file takes the place of the first.
	u.Keep("a-stdout", w)
	u.Drop("a-stdout")
	u.Drop("a-stdout")
	u.Stopping()
	for _, want := range []string{"FDSTOREREMOVE=1\nFDNAME=a-stdout", store, "FDSTOREREMOVE=1\nFDNAME=a-stdout", "STOPPING=1"} {
		got, fds := next()
		if got != want {
			t.Errorf("message %q, want %q", got, want)
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}

// Without systemd, or when it is gone, nothing fails.
func TestNobodyListens(t *testing.T) {
	for _, u := range []*Unit{{}, {notify: filepath.Join(t.TempDir(), "gone"), kept: map[string]bool{}}} {
		u.Keep("a-stdout", os.Stdin)
		u.Drop("a-stdout")
		u.Forget(nil)
		u.Ready()
		if u.Claim("a-stdout") != nil {
			t.Error("a file from nowhere")
		}
		u.Watch(t.Context(), func(context.Context) error { t.Error("asked"); return nil })
	}
}

// TestWatch has a daemon that does not answer until it is asked for the third time.
func TestWatch(t *testing.T) {
	path, next := listen(t)
	u := &Unit{notify: path, watchdog: 10 * time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		u.Watch(ctx, func(ctx context.Context) error {
			if asked++; asked < 3 {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
	}()
	got, _ := next()
	cancel()
	<-done
	if got != "WATCHDOG=1" || asked < 3 {
		t.Errorf("message %q after %d questions", got, asked)
	}
}
