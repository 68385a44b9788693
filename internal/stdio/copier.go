package stdio

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// copyBuffer is how much is copied at a time, in bytes.
const copyBuffer = 32 << 10

// Copier copies one output of a process to a writer.
type Copier struct {
	r    *os.File
	w    io.Writer
	done chan struct{}

	// Of the copier's goroutine, and then of Drain.
	buf  []byte
	lost bool // the writer takes no more
}

// NewCopier starts to copy from r, which is a pipe or the master of a terminal,
// and takes it over. When a write fails the rest is read and dropped, so that the
// process is not held up.
func NewCopier(r *os.File, w io.Writer) *Copier {
	c := &Copier{r: r, w: w, done: make(chan struct{}), buf: make([]byte, copyBuffer)}
	go c.run()
	return c
}

func (c *Copier) run() {
	defer close(c.done)
	for {
		n, err := c.r.Read(c.buf)
		c.write(n)
		if err != nil { // the end, or Drain's deadline
			return
		}
	}
}

func (c *Copier) write(n int) {
	if n > 0 && !c.lost {
		_, err := c.w.Write(c.buf[:n])
		c.lost = err != nil
	}
}

// Drain is for a process that has exited: it copies what the process wrote and
// is not read yet, and closes r. It waits for the writer, but not for processes
// that were left behind and hold r's other end.
func (c *Copier) Drain() {
	_ = c.r.SetReadDeadline(time.Unix(1, 0))
	<-c.done
	defer c.r.Close()
	conn, err := c.r.SyscallConn()
	if err != nil {
		return
	}
	left, _ := written(conn)
	for n := 0; left > 0; left -= n {
		_ = conn.Control(func(fd uintptr) { n, _ = readNow(int(fd), c.buf) })
		if n == 0 {
			return
		}
		c.write(n)
	}
}

// terminalHolds is more than what a terminal holds that nobody reads, in bytes.
const terminalHolds = 64 << 10

// written returns how much there is to read, at most, of what was written to a
// pipe or terminal up to now.
func written(conn syscall.RawConn) (n int, err error) {
	failed := conn.Control(func(fd uintptr) {
		if _, notty := unix.IoctlGetTermios(int(fd), unix.TCGETS); notty == nil {
			// The kernel counts only a part; but it gives all, and then tells that
			// there is no more.
			n = terminalHolds
			return
		}
		n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	})
	return n, errors.Join(failed, err)
}

// readNow reads what is there. At the end n is 0 without an error.
func readNow(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR:
		case unix.EIO: // the end of a terminal
			return 0, nil
		default:
			return 0, err
		}
	}
}

// Feed copies what a client sends to the input of a process until the client's
// input ends. When the process takes no more the rest is read and dropped: unread
// it could hold up what else the client sends.
func Feed(w io.Writer, r io.Reader) {
	buf := make([]byte, copyBuffer)
	for lost := false; ; {
		n, err := r.Read(buf)
		if n > 0 && !lost {
			_, werr := w.Write(buf[:n])
			lost = werr != nil
		}
		if err != nil {
			return
		}
	}
}
