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

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// The streams of a container, as the log names them.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// partialAfter is how long the begin of a line waits for its end before it is
// logged on its own. It bounds what a crash of the daemon can lose, and lets a
// prompt be seen.
const partialAfter = time.Second

// gather is how long a stream lets output collect in the pipe that arrives fast
// and in small pieces, so that it costs one read and one write and not one of
// each a piece.
const gather = 2 * time.Millisecond

// buffer is the memory of a stream while output arrives.
type buffer struct {
	in    [64 << 10]byte
	begun int // length of the begun line at the start of in
	out   [96 << 10]byte
}

// Stream copies one output of a container to its log.
type Stream struct {
	log    *Log
	name   string
	r      *os.File
	conn   syscall.RawConn
	cancel context.CancelFunc
	exited atomic.Bool
	done   chan struct{}
	taps   taps

	// Of the stream's goroutine only.
	buf  *buffer // nil while nothing is held
	n    int     // what take has read
	err  error   // and why not
	head []byte  // of log lines
}

// Copy starts to copy from r, which is Stdout or Stderr, to the log. It takes r
// over, which must not block: a FIFO of Open or the master of a terminal. When
// ctx ends, so does the stream, and what it has not yet read stays in r.
func (l *Log) Copy(ctx context.Context, name string, r *os.File) (*Stream, error) {
	conn, err := r.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &Stream{log: l, name: name, r: r, conn: conn, cancel: cancel, done: make(chan struct{})}
	go s.run(ctx)
	return s, nil
}

// Done is closed when the stream has ended: the last process that had the output
// closed it, the container was drained, the context ended or the log was closed.
func (s *Stream) Done() <-chan struct{} { return s.done }

// Drain is for a container that has exited: it logs what is in the pipe at this
// time, which is all that the container wrote, and ends the stream. It does not
// wait for processes which the container left behind and that may write for
// ever. If ctx ends first, so does the stream, and the rest is lost.
func (s *Stream) Drain(ctx context.Context) error {
	s.exited.Store(true)
	s.wake()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		s.cancel()
		<-s.done
		return fmt.Errorf("rest of %s: %w", s.name, ctx.Err())
	}
}

// wake ends the wait for output.
func (s *Stream) wake() { _ = s.r.SetReadDeadline(time.Unix(1, 0)) }

func (s *Stream) run(ctx context.Context) {
	defer close(s.done)
	defer s.cancel()
	defer s.r.Close()
	defer s.taps.end()
	defer s.release()
	defer context.AfterFunc(ctx, s.wake)()

	// What has been read is not in the pipe any more for the next daemon, so
	// writing it goes on for a while when ctx has ended.
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(retryAfter, cancel) })()

	err := s.follow(ctx, late)
	if err == nil && s.exited.Load() {
		err = s.drain(late)
	}
	if err == nil {
		err = s.flush(late)
	}
	if err != nil && ctx.Err() == nil {
		logrus.WithError(err).WithFields(logrus.Fields{"path": s.log.path, "stream": s.name}).Warn("output is not logged any more")
	}
}

// follow logs output as it arrives, until its end or until it is told to stop. late
// is for what has been read by then.
func (s *Stream) follow(ctx, late context.Context) error {
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
			err = s.flush(late)
		case err == nil && s.n == 0:
			return nil
		case err == nil:
			full := s.buf.begun+s.n == len(s.buf.in)
			err = s.write(late)
			if now := time.Now(); !full && now.Sub(last) < gather {
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
		s.buf, _ = s.log.logs.buffers.Get().(*buffer)
		if s.buf == nil {
			s.buf = new(buffer)
		}
	}
	s.n, s.err = readNow(int(fd), s.buf.in[s.buf.begun:])
	if s.err == nil && s.n > 0 {
		return true
	}
	if s.buf.begun == 0 {
		s.release()
	}
	return s.err != unix.EAGAIN
}

// write logs what take has read, but for the line that it begins and does not
// end. All output passes here.
func (s *Stream) write(ctx context.Context) error {
	b := s.buf
	in := b.in[:b.begun+s.n]
	s.taps.put(in[b.begun:]) // before a log that cannot be written holds it up
	s.stamp()
	for {
		var out []byte
		out, in = entries(b.out[:0], in, s.head)
		if len(out) == 0 {
			break
		}
		if err := s.log.write(ctx, out); err != nil {
			return err
		}
	}
	b.begun = copy(b.in[:], in)
	if b.begun == 0 {
		s.release()
	}
	return nil
}

// flush logs the begun line as a part.
func (s *Stream) flush(ctx context.Context) error {
	if s.buf == nil {
		return nil
	}
	defer s.release()
	s.stamp()
	return s.log.write(ctx, entry(s.buf.out[:0], s.head, 'P', s.buf.in[:s.buf.begun]))
}

// stamp sets the time of the next log lines. One for all lines of a read is as
// true as one for each: they came together.
func (s *Stream) stamp() {
	s.head = time.Now().UTC().AppendFormat(s.head[:0], timestamp)
	s.head = append(s.head, ' ')
	s.head = append(s.head, s.name...)
	s.head = append(s.head, ' ')
}

func (s *Stream) release() {
	if s.buf != nil {
		s.buf.begun = 0
		s.log.logs.buffers.Put(s.buf)
		s.buf = nil
	}
}

// entries appends to out the log lines for the lines of in, as many as out has
// room for, and returns what is left of in. Nothing is appended when all that
// is left is the begin of a line. A longer line than maxLine is split into
// parts of that length.
func entries(out, in, head []byte) (_, rest []byte) {
	for len(in) > 0 && cap(out)-len(out) >= maxEntry {
		end := bytes.IndexByte(in[:min(len(in), maxLine+1)], '\n')
		switch {
		case end >= 0:
			out = entry(out, head, 'F', in[:end])
			in = in[end+1:]
		case len(in) > maxLine:
			out = entry(out, head, 'P', in[:maxLine])
			in = in[maxLine:]
		default:
			return out, in
		}
	}
	return out, in
}

func entry(out, head []byte, tag byte, content []byte) []byte {
	out = append(out, head...)
	out = append(out, tag, ' ')
	out = append(out, content...)
	return append(out, '\n')
}
