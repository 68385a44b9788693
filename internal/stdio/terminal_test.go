package stdio

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// user is somebody at a terminal who keeps what signals come of it.
type user struct {
	*Terminal
	slave *os.File

	mu sync.Mutex
	// +checklocks:mu
	signals []unix.Signal
}

func newUser(t *testing.T, change func(*unix.Termios)) *user {
	t.Helper()
	u := new(user)
	master, slave, err := OpenTerminal(nil)
	if err != nil {
		t.Fatal(err)
	}
	u.slave = slave
	t.Cleanup(func() { _, _ = master.Close(), slave.Close() })
	setMode(t, master, change)
	u.Terminal = NewTerminal(master, func(sig unix.Signal) {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.signals = append(u.signals, sig)
	})
	return u
}

func (u *user) got() []unix.Signal {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.signals)
}

func TestControlCharacters(t *testing.T) {
	const intr, quit, susp, lnext = "\x03", "\x1c", "\x1a", "\x16"
	cooked := func(*unix.Termios) {}
	for name, test := range map[string]struct {
		mode    func(*unix.Termios)
		typed   []string
		signals []unix.Signal
		read    string // by the process, which has all behind the last newline later
	}{
		"none":     {cooked, []string{"ab\n"}, nil, "ab\n"},
		"all":      {cooked, []string{intr, quit + susp, "a\n"}, []unix.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP}, "a\n"},
		"among":    {cooked, []string{"a\nbc" + intr + "d\n"}, []unix.Signal{unix.SIGINT}, "d\n"},
		"repeated": {cooked, []string{intr + intr}, []unix.Signal{unix.SIGINT, unix.SIGINT}, ""},
		"quoted":   {cooked, []string{"a" + lnext, intr + "\n"}, nil, "a\x03\n"},
		"raw":      {func(m *unix.Termios) { m.Lflag &^= unix.ISIG | unix.ICANON }, []string{intr + quit + susp}, nil, intr + quit + susp},
		"as in a line editor": {func(m *unix.Termios) { m.Lflag &^= unix.ICANON }, []string{"a" + lnext + intr + "b"},
			[]unix.Signal{unix.SIGINT}, "b"},
		"others": {func(m *unix.Termios) { m.Cc[unix.VINTR], m.Cc[unix.VQUIT] = 'x', 0 }, []string{"a" + quit + "\nx" + "b\n"},
			[]unix.Signal{unix.SIGINT}, "b\n"},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUser(t, test.mode)
			for _, s := range test.typed {
				if n, err := u.Write([]byte(s)); n != len(s) || err != nil {
					t.Fatalf("%d, %v", n, err)
				}
			}
			if !slices.Equal(u.got(), test.signals) {
				t.Errorf("signals %v, want %v", u.got(), test.signals)
			}
			b := make([]byte, 100)
			if test.read == "" {
				return
			}
			n, err := io.ReadFull(u.slave, b[:len(test.read)])
			if got := string(b[:n]); got != test.read || err != nil {
				t.Errorf("the process reads %q, %v, want %q", got, err, test.read)
			}
		})
	}
}

// The kernel drops what is written while it takes in a ^C that was typed before.
func TestSignalComesBehindTheEcho(t *testing.T) {
	u := newUser(t, func(*unix.Termios) {})
	const answer = "interrupted"
	u.signal = func(unix.Signal) { _, _ = u.slave.WriteString(answer) }
	for range 2000 {
		if _, err := u.Write([]byte("\x03")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, len("^C"+answer))
		if err := u.master.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := io.ReadFull(u.master, b); string(b) != "^C"+answer {
			t.Fatalf("the user sees %q, %v", b[:n], err)
		}
	}
}

func TestResize(t *testing.T) {
	u := newUser(t, func(*unix.Termios) {})
	sizes := []Size{{80, 24}, {80, 24}, {100, 50}}
	for _, s := range sizes {
		if err := u.Resize(s); err != nil {
			t.Fatal(err)
		}
	}
	size, err := unix.IoctlGetWinsize(int(u.slave.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col != 100 || size.Row != 50 {
		t.Errorf("size %v, %v", size, err)
	}
	if got := u.got(); !slices.Equal(got, []unix.Signal{unix.SIGWINCH, unix.SIGWINCH}) {
		t.Errorf("signals %v", got)
	}
	u.Close()
	if err := u.Resize(Size{1, 1}); err == nil {
		t.Error("a closed terminal is resized")
	}
}

// A sandbox that does not answer must not hold up who sends the sizes.
func TestResizesDoNotWait(t *testing.T) {
	master, slave, err := OpenTerminal(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	hang, last := make(chan struct{}), make(chan struct{})
	calls := 0
	terminal := NewTerminal(master, func(unix.Signal) {
		<-hang
		calls++
		if size, err := unix.IoctlGetWinsize(int(slave.Fd()), unix.TIOCGWINSZ); err != nil || size.Col == 1000 {
			close(last)
		}
	})
	defer terminal.Close()
	sizes := make(chan Size)
	go terminal.Follow(sizes)
	for i := range 1000 {
		sizes <- Size{uint16(i + 1), 1}
	}
	close(sizes)
	close(hang)
	if <-last; calls > 3 {
		t.Errorf("%d signals", calls)
	}
}

func TestFirstSize(t *testing.T) {
	sizes := make(chan Size, 1)
	sizes <- Size{132, 43}
	for _, want := range []uint16{132, 0, 0} {
		master, slave, err := OpenTerminal(sizes)
		if err != nil {
			t.Fatal(err)
		}
		size, err := unix.IoctlGetWinsize(int(slave.Fd()), unix.TIOCGWINSZ)
		if err != nil || size.Col != want {
			t.Errorf("size %v, %v", size, err)
		}
		master.Close()
		slave.Close()
		if want == 0 {
			sizes = make(chan Size)
			close(sizes)
		}
	}
}

// One client's end ends its own write to a terminal that nobody reads.
func TestClientsOfATerminal(t *testing.T) {
	u := newUser(t, func(m *unix.Termios) { m.Lflag &^= unix.ICANON })
	other, err := u.Dup()
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error)
	go func() {
		_, err := io.Copy(other, strings.NewReader(strings.Repeat("x", 1<<20)))
		written <- err
	}()
	b := make([]byte, 1)
	if _, err := u.slave.Read(b); err != nil {
		t.Fatal(err)
	}
	other.Close()
	if err := <-written; !errors.Is(err, os.ErrClosed) {
		t.Errorf("write: %v", err)
	}
	if err := u.Resize(Size{1, 1}); err != nil {
		t.Error(err)
	}
	u.Close()
	if _, err := u.Dup(); err == nil {
		t.Error("a closed terminal has a client")
	}
}
