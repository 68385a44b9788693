package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// The streams of a container, as the log names them.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// partialAfter is how long the begin of a line waits for its end before it is
// logged on its own, so that a prompt is seen.
const partialAfter = time.Second

// gather is how long a stream lets output collect in the pipe that arrives fast
// and in small pieces, so that it costs one read and one write and not one of
// each a piece.
const gather = 2 * time.Millisecond

// Stream copies one output of a container to its log.
type Stream struct {
	log    *Log
	name   string
	key    string // among the streams of all containers
	r      *os.File
	conn   syscall.RawConn
	cancel context.CancelFunc
	exited atomic.Bool
	done   chan struct{}
	taps   taps

	left bool // the stream ended with ctx, for the next daemon to go on; read after done

	// Of the stream's goroutine only.
	buf  *buffer // nil while nothing is held
	n    int     // what take has read
	err  error   // and why not
	head []byte  // of log lines
}

// linesSize is the room for log lines that are written at a time, in bytes.
const linesSize = 96 << 10

// Copy starts to copy from r, which is Stdout or Stderr, to the log. It takes r
// over, which must not block: a FIFO of Open or the master of a terminal. It begins
// with what an earlier daemon has read of the stream and not logged. When ctx ends,
// so does the stream; what it has not read stays in r, and what it has not logged
// is kept for the next daemon.
func (l *Log) Copy(ctx context.Context, name string, r *os.File) (*Stream, error) {
	conn, err := r.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &Stream{log: l, name: name, key: l.id + " " + name, r: r, conn: conn, cancel: cancel, done: make(chan struct{})}
	if s.buf = l.logs.claim(s.key); s.buf != nil {
		s.buf.settle(l.written)
	}
	go s.run(ctx)
	return s, nil
}

// Done is closed when the stream has ended: the last process that had the output
// closed it, the container was drained, the context ended or the log was closed.
func (s *Stream) Done() <-chan struct{} { return s.done }

// Drain is for a container that has exited: it logs what is in the pipe at this
// time, which is all that the container wrote, and ends the stream. It does not
// wait for processes which the container left behind and that may write for
// ever. If ctx ends first, so does the stream, and the rest is lost. If the stream's
// own context ends, the error is ErrUnavailable: the rest is the next daemon's.
func (s *Stream) Drain(ctx context.Context) error {
	s.exited.Store(true)
	s.wake()
	select {
	case <-s.done:
		if s.left {
			return fmt.Errorf("rest of %s is left to the next daemon: %w", s.name, errdefs.ErrUnavailable)
		}
		return nil
	case <-ctx.Done():
		s.cancel()
		<-s.done
		s.release()
		return fmt.Errorf("rest of %s: %w", s.name, ctx.Err())
	}
}

// settlePause is between two looks at what is left in a pipe.
const settlePause = time.Millisecond

// Settle returns when all that is in the pipe has been read. It is for a container
// that does not run meanwhile.
func (s *Stream) Settle(ctx context.Context) error {
	for {
		select {
		case <-s.done:
			return nil
		default:
		}
		if left, err := written(s.conn); err != nil || left == 0 {
			return err
		}
		if err := sleep(ctx, settlePause); err != nil {
			return fmt.Errorf("output that is not read yet: %s: %w", s.name, err)
		}
	}
}

// wake ends the wait for output.
func (s *Stream) wake() { _ = s.r.SetReadDeadline(time.Unix(1, 0)) }

func (s *Stream) run(ctx context.Context) {
	defer close(s.done)
	defer s.cancel()
	defer s.r.Close()
	defer s.taps.end()
	defer context.AfterFunc(ctx, s.wake)()

	err := s.resume(ctx)
	if err == nil {
		err = s.follow(ctx)
	}
	switch {
	case err == nil && s.exited.Load():
		// There is little, so it may take a while when ctx has ended.
		late, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		defer context.AfterFunc(ctx, func() { time.AfterFunc(retryAfter, cancel) })()
		if err = s.drain(late); err == nil {
			err = s.flush(late)
		}
		s.left = err != nil && ctx.Err() != nil
	case ctx.Err() != nil:
		s.left = true
	case err == nil: // the end
		err = s.flush(ctx)
	}
	if s.left {
		return
	}
	s.release()
	if err != nil {
		logrus.WithError(err).WithFields(logrus.Fields{"path": s.log.path, "stream": s.name}).Warn("output is not logged any more")
	}
}

// resume logs the lines that an earlier daemon has read, with the time at which it
// did. A line that it has only begun is held as any other.
func (s *Stream) resume(ctx context.Context) error {
	if s.buf == nil {
		return nil
	}
	return s.lines(ctx, time.Unix(0, s.buf.time))
}

// follow logs output as it arrives, until its end or until it is told to stop.
func (s *Stream) follow(ctx context.Context) error {
	take := s.take // one closure for all reads
	stopped := func() bool { return ctx.Err() != nil || s.exited.Load() }
	var last time.Time // something was read
	for {
		var deadline time.Time
		if s.buf != nil {
			deadline = time.Now().Add(partialAfter)
		}
		// Who stops us says so first and sets the deadline then: so it is asked
		// after the deadline is set, or the word could be missed.
		if err := s.r.SetReadDeadline(deadline); err != nil {
			return err
		}
		if stopped() {
			return nil
		}
		err := s.conn.Read(take)
		if err == nil {
			err = s.err
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if stopped() {
				return nil
			}
			err = s.flush(ctx)
		case err == nil && s.n == 0:
			return nil
		case err == nil:
			err = s.write(ctx)
			if now := time.Now(); s.n < readSize/2 && now.Sub(last) < gather {
				// An end of ctx is seen at once behind this.
				_ = sleep(ctx, gather)
			}
			last = time.Now()
		}
		if err != nil {
			return err
		}
	}
}

// drain logs what is in the pipe now.
func (s *Stream) drain(ctx context.Context) error {
	left, err := written(s.conn)
	if err != nil {
		return err
	}
	for left > 0 {
		if err := s.conn.Control(func(fd uintptr) { s.take(fd) }); err != nil {
			return err
		}
		if s.err == unix.EAGAIN {
			return nil
		}
		if s.err != nil || s.n == 0 {
			return s.err
		}
		left -= s.n
		if err := s.write(ctx); err != nil {
			return err
		}
	}
	return nil
}

// take reads what there is, and reports false if there is nothing yet. It gets
// the buffer only now that there may be something to put in it.
func (s *Stream) take(fd uintptr) bool {
	if s.buf == nil {
		s.buf = s.log.logs.get(s.key)
	}
	s.n, s.err = s.buf.read(int(fd))
	if s.err == nil && s.n > 0 {
		return true
	}
	if len(s.buf.waiting()) == 0 {
		s.release()
	}
	return s.err != unix.EAGAIN
}

// write logs what take has read, but for the line that it begins and does not
// end. All output passes here.
func (s *Stream) write(ctx context.Context) error {
	in := s.buf.waiting()
	s.taps.put(in[len(in)-s.n:]) // before a log that cannot be written holds it up
	// One time for all lines of a read is as true as one for each: they came
	// together.
	now := time.Now()
	s.buf.time = now.UnixNano()
	return s.lines(ctx, now)
}

// lines logs the whole lines that wait.
func (s *Stream) lines(ctx context.Context, at time.Time) error {
	s.stamp(at)
	space, _ := s.log.logs.spaces.Get().(*[linesSize]byte)
	if space == nil {
		space = new([linesSize]byte)
	}
	defer s.log.logs.spaces.Put(space)
	for {
		in := s.buf.waiting()
		out, rest := entries(space[:0], in, s.head)
		if len(out) == 0 {
			break
		}
		if err := s.log.write(ctx, s.buf, out, len(in)-len(rest)); err != nil {
			return err
		}
	}
	if len(s.buf.waiting()) == 0 {
		s.release()
	} else {
		s.buf.compact()
	}
	return nil
}

// flush logs the begun line as a part.
func (s *Stream) flush(ctx context.Context) error {
	if s.buf == nil {
		return nil
	}
	s.stamp(time.Now())
	begun := s.buf.waiting()
	err := s.log.write(ctx, s.buf, entry(nil, s.head, 'P', begun), len(begun))
	if err == nil {
		s.release()
	}
	return err
}

// stamp sets the time of the next log lines.
func (s *Stream) stamp(at time.Time) {
	s.head = at.UTC().AppendFormat(s.head[:0], timestamp)
	s.head = append(s.head, ' ')
	s.head = append(s.head, s.name...)
	s.head = append(s.head, ' ')
}

func (s *Stream) release() {
	if s.buf != nil {
		s.log.logs.put(s.buf)
		s.buf = nil
	}
}

// entries appends to out the log lines for the lines of in, as many as out has
// room for, and returns what is left of in. Nothing is appended when all that
// is left is the begin of a line. A longer line than maxLine is split into
// parts of that length.
func entries(out, in, head []byte) (_, rest []byte) {
	for len(in) > 0 && cap(out)-len(out) >= maxEntry {
		content, used, tag := next(in)
		if used == 0 {
			break
		}
		out = entry(out, head, tag, in[:content])
		in = in[used:]
	}
	return out, in
}

// next returns how long the content of the next log line for in is, how much of in
// it takes, and its tag. It takes nothing of the begin of a line.
func next(in []byte) (content, used int, tag byte) {
	end := bytes.IndexByte(in[:min(len(in), maxLine+1)], '\n')
	switch {
	case end >= 0:
		return end, end + 1, 'F'
	case len(in) > maxLine:
		return maxLine, maxLine, 'P'
	}
	return 0, 0, 0
}

// consumed returns how much of in is in its first n bytes of log lines, of which
// the last may be that of a begun line.
func consumed(in []byte, n int64) int {
	total := len(in)
	for len(in) > 0 {
		content, used, _ := next(in)
		if used == 0 {
			content, used = len(in), len(in)
		}
		if n -= int64(headSize + len("F ") + content + len("\n")); n < 0 {
			break
		}
		in = in[used:]
	}
	return total - len(in)
}

func entry(out, head []byte, tag byte, content []byte) []byte {
	out = append(out, head...)
	out = append(out, tag, ' ')
	out = append(out, content...)
	return append(out, '\n')
}
