package stdio

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

const (
	// maxLine is the longest content of a log line in bytes; a longer line of
	// the container becomes several, all but the last tagged P.
	maxLine = 16 << 10

	// timestamps have nine digits always, which RFC3339Nano reads.
	timestamp = "2006-01-02T15:04:05.000000000Z07:00"

	// maxEntry is the longest log line: time, stream, tag, content, newline.
	maxEntry = len(timestamp) + len(" stderr F ") + maxLine + len("\n")

	// retryAfter is the pause after a log could not be written.
	retryAfter = 250 * time.Millisecond
)

// Logs are the logs of containers that share buffers. A stream has a buffer
// only while output arrives, so idle containers cost none.
type Logs struct {
	buffers sync.Pool // of *buffer
}

// Log is the log file of one container. Its streams write to it in turn, each
// whole lines at a time.
type Log struct {
	logs *Logs
	path string
	file chan *os.File // the open file; who has received it may write or replace it
}

// Open opens the log at path for appending, with mode 0640 if it is new. Its
// directory must exist. An empty path discards what is written. A line that is
// cut short at the end, as a crash in the midst of a write leaves it, is
// removed.
func (s *Logs) Open(path string) (*Log, error) {
	if path == "" {
		path = os.DevNull
	}
	f, err := openLog(path)
	if err != nil {
		return nil, err
	}
	l := &Log{logs: s, path: path, file: make(chan *os.File, 1)}
	l.file <- f
	return l, nil
}

// Reopen goes on in a new file at the log's path, after the old one was renamed.
// If it fails, no file is created and the old one stays in use. It waits, until
// ctx ends, for a write that the disk holds up.
func (l *Log) Reopen(ctx context.Context) error {
	old, err := l.take(ctx)
	if err != nil {
		return err
	}
	f, err := openLog(l.path)
	if err != nil {
		l.file <- old
		return err
	}
	l.file <- f
	// Past the swap there is no going back, so this is not the caller's error.
	if err := old.Close(); err != nil {
		logrus.WithError(err).WithField("path", l.path).Warn("rotated log is not closed cleanly")
	}
	return nil
}

// Close closes the file, after a write that goes on. Streams that write later
// end.
func (l *Log) Close() error {
	f, ok := <-l.file
	if !ok {
		return nil
	}
	close(l.file)
	return f.Close()
}

// take receives the file, to be sent back. The error is os.ErrClosed after Close.
func (l *Log) take(ctx context.Context) (*os.File, error) {
	select {
	case f, ok := <-l.file:
		if !ok {
			return nil, fmt.Errorf("log %s: %w", l.path, os.ErrClosed)
		}
		return f, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("log %s is in use: %w", l.path, ctx.Err())
	}
}

// write appends whole lines, and tries until it has or ctx ends. Between two
// tries the file ends with a whole line and others may have it.
func (l *Log) write(ctx context.Context, lines []byte) error {
	for failed := false; ; failed = true {
		f, err := l.take(ctx)
		if err != nil {
			return err
		}
		n, err := f.Write(lines)
		if err == nil {
			l.file <- f
			if failed {
				logrus.WithField("path", l.path).Info("log can be written again")
			}
			return nil
		}
		lines = lines[bytes.LastIndexByte(lines[:n], '\n')+1:]
		if n > 0 {
			_ = mend(f) // the next try tells what is wrong
		}
		l.file <- f
		if !failed {
			logrus.WithError(err).WithField("path", l.path).Warn("log cannot be written, output waits")
		}
		if err := sleep(ctx, retryAfter); err != nil {
			return fmt.Errorf("log %s: %w", l.path, err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	if err := mend(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// mend cuts off a line without an end.
func mend(f *os.File) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return err
	}
	last := make([]byte, min(size, int64(maxEntry)))
	start := size - int64(len(last))
	if _, err := f.ReadAt(last, start); err != nil {
		return err
	}
	end := start + int64(bytes.LastIndexByte(last, '\n')) + 1
	if end == size || end == start && start > 0 {
		return nil // whole, or nothing that we wrote
	}
	return f.Truncate(end)
}
