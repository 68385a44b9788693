package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
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

	// headSize is the length of what stands before a log line's tag: time, stream.
	headSize = len("2006-01-02T15:04:05.000000000Z stdout ")

	// maxEntry is the longest log line: time, stream, tag, content, newline.
	maxEntry = headSize + len("F ") + maxLine + len("\n")

	// retryAfter is the pause after a log could not be written.
	retryAfter = 250 * time.Millisecond
)

// Log is the log file of one container. Its streams write to it in turn, each
// whole lines at a time.
type Log struct {
	logs   *Logs
	id     string
	path   string
	opened logPlace     // its end when it was opened
	file   chan logFile // the open file; who has received it may write or replace it
}

// logFile is a log's file while that has the log's name.
type logFile struct {
	*os.File
	logPlace // its identity; of no size
}

// Open opens the log at path for appending, with mode 0640 if it is new, for the
// container id. Its directory must exist. An empty path discards what is written. A
// line that is cut short at the end, as a crash in the midst of a write leaves it,
// is removed.
func (s *Logs) Open(id, path string) (*Log, error) {
	if path == "" {
		path = os.DevNull
	}
	f, err := openLog(path)
	if err != nil {
		return nil, err
	}
	l := &Log{logs: s, id: id, path: path, file: make(chan logFile, 1)}
	if l.opened, err = f.end(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l.file <- f
	return l, nil
}

// written returns how much was in the log behind a place when it was opened. The
// place may be in a file that was renamed since.
func (l *Log) written(behind logPlace) int64 {
	same := func(p logPlace) bool { return p.dev == behind.dev && p.ino == behind.ino }
	if same(l.opened) {
		return l.opened.size - behind.size
	}
	dir := filepath.Dir(l.path)
	files, _ := os.ReadDir(dir)
	for _, entry := range files {
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() || !same(placeOf(info)) {
			continue
		}
		if f, err := openLog(filepath.Join(dir, entry.Name())); err == nil {
			defer f.Close()
			if end, err := f.end(); err == nil {
				return end.size - behind.size
			}
		}
	}
	return 0 // twice in the log is better than not at all
}

func placeOf(info os.FileInfo) logPlace {
	st, _ := info.Sys().(*syscall.Stat_t)
	return logPlace{dev: st.Dev, ino: st.Ino}
}

// end returns the place behind what is written.
func (f logFile) end() (p logPlace, err error) {
	p = f.logPlace
	p.size, err = f.Seek(0, io.SeekEnd)
	return p, err
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
func (l *Log) take(ctx context.Context) (logFile, error) {
	select {
	case f, ok := <-l.file:
		if !ok {
			return logFile{}, fmt.Errorf("log %s: %w", l.path, os.ErrClosed)
		}
		return f, nil
	case <-ctx.Done():
		return logFile{}, fmt.Errorf("log %s is in use: %w", l.path, ctx.Err())
	}
}

// write appends whole lines, those for the first n bytes that wait in b, and tries
// until it has or ctx ends. Between two tries the file ends with a whole line and
// others may have it.
func (l *Log) write(ctx context.Context, b *buffer, lines []byte, n int) error {
	for failed := false; ; failed = true {
		f, err := l.take(ctx)
		if err != nil {
			return err
		}
		lines, err = f.append(b, lines, &n)
		l.file <- f
		if err == nil {
			if failed {
				logrus.WithField("path", l.path).Info("log can be written again")
			}
			return nil
		}
		if !failed {
			logrus.WithError(err).WithField("path", l.path).Warn("log cannot be written, output waits")
		}
		if err := sleep(ctx, retryAfter); err != nil {
			return fmt.Errorf("log %s: %w", l.path, err)
		}
	}
}

// append writes lines, those for the first *n bytes that wait in b, and returns what
// is left of them, whole lines too.
func (f logFile) append(b *buffer, lines []byte, n *int) ([]byte, error) {
	place, err := f.end()
	if err != nil {
		return lines, err
	}
	b.writes(place)
	written, err := f.Write(lines)
	if err == nil {
		b.wrote(*n)
		return nil, nil
	}
	if written > 0 {
		_ = mend(f.File) // the next try tells what is wrong
	}
	whole := bytes.LastIndexByte(lines[:written], '\n') + 1
	done := consumed(b.waiting()[:*n], int64(whole))
	b.wrote(done)
	*n -= done
	return lines[whole:], err
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

func openLog(path string) (logFile, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return logFile{}, fmt.Errorf("log: %w", err)
	}
	info, err := file.Stat()
	if err == nil {
		err = mend(file)
	}
	if err != nil {
		return logFile{}, errors.Join(err, file.Close())
	}
	return logFile{file, placeOf(info)}, nil
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
