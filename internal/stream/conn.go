package stream

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// linger is how long the rest of what a client sends is awaited after the end of
// its session.
const linger = 5 * time.Second

// farewell is how long a client may take for the last that is written to it when
// the server ends its session.
const farewell = 2 * time.Second

// listener accepts connections as conns.
type listener struct {
	*net.TCPListener
	idle time.Duration
}

func (l listener) Accept() (net.Conn, error) {
	tcp, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return newConn(tcp, l.idle), nil
}

// conn is a connection that tells when its client is gone.
type conn struct {
	*net.TCPConn
	idle  time.Duration
	gone  chan struct{} // closed when the client has hung up, or by Close
	watch *os.File      // a second descriptor, to wait for the hangup
	once  sync.Once
	last  atomic.Pointer[time.Time] // when the session has ended: the end of all writes
}

func newConn(tcp *net.TCPConn, idle time.Duration) *conn {
	c := &conn{TCPConn: tcp, idle: idle, gone: make(chan struct{})}
	f, err := tcp.File()
	if err != nil {
		// Without a descriptor to spare there is no session.
		close(c.gone)
		return c
	}
	c.watch = f
	go c.awaitHangup()
	return c
}

// awaitHangup closes gone when the client has hung up. Reading tells that too,
// but only who reads: the protocols do not while a session does not want more.
func (c *conn) awaitHangup() {
	defer close(c.gone)
	raw, err := c.watch.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(poll, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

// Write gives up on a client that takes nothing.
func (c *conn) Write(b []byte) (int, error) {
	err := c.SetWriteDeadline(time.Now().Add(c.idle))
	if last := c.last.Load(); last != nil { // asked after the deadline is set, see endWrites
		err = c.SetWriteDeadline(*last)
	}
	if err != nil {
		return 0, err
	}
	return c.TCPConn.Write(b)
}

// endWrites leaves time to say how the session ended.
func (c *conn) endWrites() {
	last := time.Now().Add(farewell)
	c.last.Store(&last)
	_ = c.SetWriteDeadline(last)
}

// Close lets the client have what was written. If the client has sent something
// that nobody reads, the kernel would answer a plain close with a reset, which
// takes away what the client has not yet read: so that is read, and dropped.
func (c *conn) Close() error {
	c.once.Do(func() {
		if c.watch != nil {
			c.watch.Close()
		}
		go func() {
			defer c.TCPConn.Close()
			if c.CloseWrite() != nil || c.SetReadDeadline(time.Now().Add(linger)) != nil {
				return
			}
			_, _ = io.Copy(io.Discard, struct{ io.Reader }{c.TCPConn})
		}()
	})
	return nil
}

// withConn makes the context of a connection end with its client.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	ctx, cancel := context.WithCancel(ctx)
	own := c.(*conn)
	context.AfterFunc(ctx, own.endWrites)
	go func() {
		<-own.gone
		cancel()
	}()
	return ctx
}
