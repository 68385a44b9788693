package stdio

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Capture reads one output of a process into memory.
type Capture struct {
	r     *os.File
	limit int
	done  chan struct{}
	data  []byte // of the reader until done
}

// NewCapture starts to read r, a pipe, and takes it over. Past limit bytes the
// rest is read and dropped, so that the process is not held up.
func NewCapture(r *os.File, limit int) *Capture {
	c := &Capture{r: r, limit: limit, done: make(chan struct{})}
	go c.run()
	return c
}

func (c *Capture) run() {
	defer close(c.done)
	buf := make([]byte, 32<<10)
	for {
		n, err := c.r.Read(buf)
		c.keep(buf[:n])
		if err != nil { // the end, or Drain's deadline
			return
		}
	}
}

func (c *Capture) keep(b []byte) {
	c.data = append(c.data, b[:min(len(b), c.limit-len(c.data))]...)
}

// Drain is for a process that has exited: it returns what the process wrote,
// the part that is still in the pipe included. Processes that it left behind
// and that hold the pipe are not waited for.
func (c *Capture) Drain() []byte {
	_ = c.r.SetReadDeadline(time.Unix(1, 0))
	<-c.done
	defer c.r.Close()
	conn, err := c.r.SyscallConn()
	if err != nil {
		return c.data
	}
	_ = conn.Control(func(fd uintptr) {
		left, _ := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		buf := make([]byte, min(left, 32<<10))
		for left > 0 {
			n, err := unix.Read(int(fd), buf)
			if err != nil || n == 0 {
				return
			}
			c.keep(buf[:n])
			left -= n
		}
	})
	return c.data
}
