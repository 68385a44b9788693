package stdio

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Terminal is a terminal of the host as its user has it: what is written to it
// is typed. The sentry does not know of the terminal's state and delivers none of
// its signals; so the terminal's control characters and changes of its size are
// made into signals here.
type Terminal struct {
	master *os.File
	// signal delivers a signal to the foreground group.
	signal func(unix.Signal)
	// quoted says that the next character is taken literally, as after ^V.
	quoted bool
}

// OpenTerminal makes a terminal, of the first of sizes if that is there already.
// The master does not block; the slave is for a process.
func OpenTerminal(sizes <-chan Size) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("terminal: %w", err)
	}
	master = os.NewFile(uintptr(fd), "terminal")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("terminal: %w", err), master.Close())
	}
	peer, err := openSlave(fd)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("terminal: %w", err), master.Close())
	}
	slave = os.NewFile(uintptr(peer), "terminal")
	select {
	case s, ok := <-sizes:
		if ok {
			err = NewTerminal(master, func(unix.Signal) {}).Resize(s)
		}
	default:
	}
	if err != nil {
		return nil, nil, errors.Join(err, slave.Close(), master.Close())
	}
	return master, slave, nil
}

// openSlave opens the slave of a master. By its path it might be that of another
// instance of devpts.
func openSlave(master int) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// NewTerminal returns the terminal of a master, which stays its owner's. signal
// delivers a signal to the terminal's foreground group.
func NewTerminal(master *os.File, signal func(unix.Signal)) *Terminal {
	return &Terminal{master: master, signal: signal}
}

// Dup returns the terminal for another user: its Close ends this one's writes and
// nothing else.
func (t *Terminal) Dup() (*Terminal, error) {
	var dup int
	err := t.control(func(fd int) (err error) {
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return NewTerminal(os.NewFile(uintptr(dup), "terminal"), t.signal), nil
}

// Close closes the master.
func (t *Terminal) Close() error { return t.master.Close() }

// Write types b. It is for one goroutine.
func (t *Terminal) Write(b []byte) (n int, err error) {
	for n < len(b) {
		end, sig := t.scan(b[n:])
		m, err := t.master.Write(b[n : n+end])
		n += m
		if err != nil {
			return n, err
		}
		if sig != 0 {
			t.settle()
			t.signal(sig)
		}
	}
	return n, nil
}

// settle waits until the kernel has taken in what was typed. It does so behind the
// write, echoes a character that makes a signal, and drops what is on its way in
// both directions: output that the signal brings about must not be among it.
func (t *Terminal) settle() {
	_ = t.control(func(fd int) error {
		slave, err := openSlave(fd)
		if err != nil {
			return err
		}
		defer unix.Close(slave)
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(slave), Events: unix.POLLIN}}, 0)
		return err
	})
}

// scan returns the length of b up to its first character that makes a signal, and
// the signal.
func (t *Terminal) scan(b []byte) (int, unix.Signal) {
	mode, err := t.mode()
	if err != nil || mode.Lflag&unix.ISIG == 0 {
		t.quoted = false
		return len(b), 0
	}
	quotes := mode.Lflag&unix.ICANON != 0 && mode.Lflag&unix.IEXTEN != 0
	for i, c := range b {
		if t.quoted || c == 0 { // 0 in the mode means no character
			t.quoted = false
			continue
		}
		switch c {
		case mode.Cc[unix.VINTR]:
			return i + 1, unix.SIGINT
		case mode.Cc[unix.VQUIT]:
			return i + 1, unix.SIGQUIT
		case mode.Cc[unix.VSUSP]:
			return i + 1, unix.SIGTSTP
		case mode.Cc[unix.VLNEXT]:
			t.quoted = quotes
		}
	}
	return len(b), 0
}

// mode returns the terminal's settings, which its processes change.
func (t *Terminal) mode() (mode *unix.Termios, err error) {
	err = t.control(func(fd int) (err error) {
		mode, err = unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	})
	return mode, err
}

// Resize sets the terminal's size, and tells its processes.
func (t *Terminal) Resize(s Size) error {
	size := unix.Winsize{Row: s.Height, Col: s.Width}
	changed := false
	err := t.control(func(fd int) error {
		before, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		changed = err == nil && (before.Row != size.Row || before.Col != size.Col)
		return errors.Join(err, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &size))
	})
	if err == nil && changed {
		t.signal(unix.SIGWINCH)
	}
	return err
}

// Follow resizes the terminal until there are no more sizes. It takes each at
// once and, while a resize goes on, keeps the newest only.
func (t *Terminal) Follow(sizes <-chan Size) {
	newest := make(chan Size, 1)
	go func() {
		for s := range newest {
			_ = t.Resize(s) // fails only when the terminal is closed
		}
	}()
	for s := range sizes {
		select {
		case <-newest:
		default:
		}
		newest <- s
	}
	close(newest)
}

// control calls f with the master's descriptor.
func (t *Terminal) control(f func(fd int) error) error {
	conn, err := t.master.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) { failed = f(int(fd)) })
	return errors.Join(err, failed)
}
