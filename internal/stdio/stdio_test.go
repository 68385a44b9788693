package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// container is what a test writes as a container would, and its log.
type container struct {
	t      *testing.T
	fifo   string
	w      *os.File
	path   string
	log    *Log
	stream *Stream
}

func newContainer(t *testing.T, ctx context.Context) *container {
	t.Helper()
	dir := t.TempDir()
	c := &container{t: t, fifo: filepath.Join(dir, "stdout"), path: filepath.Join(dir, "0.log")}
	var err error
	if c.w, err = Create(c.fifo); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.w.Close() })
	c.restart(ctx)
	return c
}

// restart has a new daemon follow the container, whose last one has ended.
func (c *container) restart(ctx context.Context) {
	c.t.Helper()
	logs, err := OpenLogs(filepath.Join(filepath.Dir(c.fifo), "buffers"))
	if err != nil {
		c.t.Fatal(err)
	}
	if c.log, err = logs.Open("c", c.path); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { c.log.Close() })
	c.follow(ctx)
}

func testLogs(t testing.TB) *Logs {
	t.Helper()
	logs, err := OpenLogs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return logs
}

func (c *container) follow(ctx context.Context) {
	c.t.Helper()
	r, err := Open(c.fifo)
	if err != nil {
		c.t.Fatal(err)
	}
	if c.stream, err = c.log.Copy(ctx, Stdout, r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *container) write(s string) {
	c.t.Helper()
	if _, err := c.w.WriteString(s); err != nil {
		c.t.Fatal(err)
	}
}

func (c *container) drain() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.stream.Drain(ctx); err != nil {
		c.t.Fatal(err)
	}
}

var logLine = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([FP]) `)

// logged returns the lines of a log without their times, and fails if one of
// them is not a log line.
func logged(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) == 0 {
		return nil
	}
	if b[len(b)-1] != '\n' {
		t.Errorf("%s ends with %q", path, b[max(0, len(b)-80):])
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	for i, line := range lines {
		if !logLine.MatchString(line) {
			t.Fatalf("%s: no log line: %.80q", path, line)
		}
		_, lines[i], _ = strings.Cut(line, " ")
	}
	return lines
}

func wantLog(t *testing.T, path string, want ...string) {
	t.Helper()
	if got := logged(t, path); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("log %.400q, want %.400q", got, want)
	}
}

func TestLines(t *testing.T) {
	full := strings.Repeat("x", maxLine)
	for name, test := range map[string]struct {
		written string
		want    []string
	}{
		"nothing":         {"", nil},
		"lines":           {"a\n\nb c\n", []string{"stdout F a", "stdout F ", "stdout F b c"}},
		"carriage return": {"a\r\n", []string{"stdout F a\r"}},
		"no end":          {"a\nb", []string{"stdout F a", "stdout P b"}},
		"longest":         {full + "\n", []string{"stdout F " + full}},
		"longer":          {full + "y\n", []string{"stdout P " + full, "stdout F y"}},
		"longest no end":  {full, []string{"stdout P " + full}},
		"twice as long":   {full + full + "\n", []string{"stdout P " + full, "stdout F " + full}},
		"not text":        {"\x00\xff\n", []string{"stdout F \x00\xff"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newContainer(t, t.Context())
			c.write(test.written)
			c.w.Close()
			<-c.stream.Done()
			wantLog(t, c.path, test.want...)
		})
	}
}

// A process that the container left behind still has the pipe, and writes.
func TestDrainEndsWithoutEOF(t *testing.T) {
	c := newContainer(t, t.Context())
	var want []string
	for i := range 5000 {
		line := fmt.Sprintf("line %d", i)
		c.write(line + "\n")
		want = append(want, "stdout F "+line)
	}
	c.write("no end")
	c.drain()
	wantLog(t, c.path, append(want, "stdout P no end")...)
	c.write("later\n")
	c.drain()
}

// The daemon stops with a full pipe and a begun line; the next one goes on.
func TestNextDaemonGoesOn(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	c := newContainer(t, ctx)
	c.write("one\n")
	for len(logged(t, c.path)) == 0 {
		time.Sleep(time.Millisecond)
	}
	stop()
	<-c.stream.Done()
	c.write("two\nthr")
	c.restart(t.Context())
	c.write("ee\n")
	c.drain()
	wantLog(t, c.path, "stdout F one", "stdout F two", "stdout F three")
}

// A line is one also when it is begun under one daemon and ended under the next.
func TestStopKeepsTheBegunLine(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	c := newContainer(t, ctx)
	c.write("one\ntw")
	for len(logged(t, c.path)) == 0 {
		time.Sleep(time.Millisecond)
	}
	stop()
	<-c.stream.Done()
	if err := c.stream.Drain(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("drain of what is the next daemon's: %v", err)
	}
	c.restart(t.Context())
	c.write("o\n")
	c.drain()
	wantLog(t, c.path, "stdout F one", "stdout F two")
}

func TestPromptIsSeen(t *testing.T) {
	t.Parallel()
	c := newContainer(t, t.Context())
	c.write("password: ")
	for len(logged(t, c.path)) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	c.write("\n")
	c.drain()
	wantLog(t, c.path, "stdout P password: ", "stdout F ")
}

// Every line is in one of the logs, once and whole, however often they rotate.
func TestReopenLosesNothing(t *testing.T) {
	c := newContainer(t, t.Context())
	const lines, rotations = 20000, 20
	written := make(chan struct{})
	go func() {
		defer close(written)
		for i := range lines {
			fmt.Fprintf(c.w, "line %d\n", i)
		}
	}()
	paths := []string{}
	for i := range rotations {
		rotated := fmt.Sprintf("%s.%d", c.path, i)
		if err := os.Rename(c.path, rotated); err != nil {
			t.Fatal(err)
		}
		if err := c.log.Reopen(t.Context()); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, rotated)
	}
	<-written
	c.drain()
	var got []string
	for _, path := range append(paths, c.path) {
		got = append(got, logged(t, path)...)
	}
	if len(got) != lines {
		t.Fatalf("%d lines, want %d", len(got), lines)
	}
	for i, line := range got {
		if want := fmt.Sprintf("stdout F line %d", i); line != want {
			t.Fatalf("line %d is %q", i, line)
		}
	}
}

// Lines that are longer than a log line, or arrive in pieces, go on in the next
// log.
func TestReopenInTheMidstOfLines(t *testing.T) {
	c := newContainer(t, t.Context())
	var want strings.Builder
	written := make(chan struct{})
	go func() {
		defer close(written)
		for i := range 300 {
			line := strings.Repeat(fmt.Sprintf("%d ", i), 50*i) + "\n"
			want.WriteString(line)
			half := len(line) / 2
			for _, piece := range []string{line[:half], line[half:]} {
				_, _ = c.w.WriteString(piece)
			}
		}
	}()
	var paths []string
	for rotating := true; rotating; {
		select {
		case <-written:
			rotating = false
		default:
		}
		rotated := fmt.Sprintf("%s.%d", c.path, len(paths))
		if err := os.Rename(c.path, rotated); err != nil {
			t.Fatal(err)
		}
		if err := c.log.Reopen(t.Context()); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, rotated)
	}
	c.drain()
	var got strings.Builder
	for _, path := range append(paths, c.path) {
		for _, line := range logged(t, path) {
			got.WriteString(line[len("stdout F "):])
			if strings.HasPrefix(line, "stdout F ") {
				got.WriteByte('\n')
			}
		}
	}
	if got.String() != want.String() {
		t.Errorf("%d bytes in %d logs, want %d", got.Len(), len(paths)+1, want.Len())
	}
}

func TestFailedReopenKeepsTheLog(t *testing.T) {
	c := newContainer(t, t.Context())
	dir := filepath.Dir(c.path)
	moved := dir + ".moved"
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	if err := c.log.Reopen(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("reopen without a directory: %v", err)
	}
	if err := os.Rename(moved, dir); err != nil {
		t.Fatal(err)
	}
	c.write("a\n")
	c.drain()
	wantLog(t, c.path, "stdout F a")
}

// The disk has space for some of the lines: a write is short, the next ones fail.
func TestFullDiskHoldsTheOutputBack(t *testing.T) {
	c := newContainer(t, t.Context())
	dir := filepath.Dir(c.path)
	if os.Getuid() != 0 {
		t.Skip("a mount needs root")
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 40<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.log.Reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range 400 {
		line := fmt.Sprintf("%0100d", i)
		c.write(line + "\n")
		want = append(want, "stdout F "+line)
	}
	size := func() int64 {
		info, err := os.Stat(c.path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	for size() == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.log.Reopen(ctx); err != nil {
		t.Errorf("reopen on a full disk: %v", err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	c.drain()
	wantLog(t, c.path, want...)
}

func TestDrainOnAFullDiskIsBounded(t *testing.T) {
	dir := t.TempDir()
	c := &container{t: t, fifo: filepath.Join(dir, "stdout"), path: "/dev/full"}
	var err error
	if c.w, err = Create(c.fifo); err != nil {
		t.Fatal(err)
	}
	defer c.w.Close()
	if c.log, err = testLogs(t).Open("c", c.path); err != nil {
		t.Fatal(err)
	}
	c.follow(t.Context())
	c.write("a\n")
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := c.stream.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("drain: %v", err)
	}
}

func TestNoLogPathDiscards(t *testing.T) {
	c := newContainer(t, t.Context())
	log, err := testLogs(t).Open("c", "")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c.drain()
	c.log = log
	c.follow(t.Context())
	c.write(strings.Repeat("x", pipeSize/2))
	c.drain()
	wantLog(t, c.path)
}

func TestOpenRemovesATornLine(t *testing.T) {
	whole := "2026-01-02T03:04:05.000000000Z stdout F a\n"
	for name, test := range map[string]struct{ before, after string }{
		"empty":      {"", ""},
		"whole":      {whole, whole},
		"torn":       {whole + "2026-01-02T", whole},
		"torn first": {"2026-01-02T", ""},
		"torn long":  {whole + strings.Repeat("x", maxEntry-1), whole},
		"not ours":   {strings.Repeat("x", 2*maxEntry), strings.Repeat("x", 2*maxEntry)},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			if err := os.WriteFile(path, []byte(test.before), 0o640); err != nil {
				t.Fatal(err)
			}
			log, err := testLogs(t).Open("c", path)
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			if got, _ := os.ReadFile(path); string(got) != test.after {
				t.Errorf("%d bytes left, want %d", len(got), len(test.after))
			}
		})
	}
}

func TestFifo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if _, err := Open(path); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("open without a fifo: %v", err)
	}
	w, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	again, err := Create(path)
	if err != nil {
		t.Errorf("create again: %v", err)
	}
	again.Close()
	if size, _ := unix.FcntlInt(w.Fd(), unix.F_GETPIPE_SZ, 0); size != pipeSize && os.Getuid() == 0 {
		t.Errorf("fifo holds %d bytes", size)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeNamedPipe|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(file); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("create over a file: %v", err)
	}
}

// FuzzEntries feeds the same bytes whole and in pieces.
func FuzzEntries(f *testing.F) {
	f.Add([]byte("a\n\nbc"), uint16(1))
	f.Add(bytes.Repeat([]byte("x"), 2*maxLine+1), uint16(maxLine-1))
	f.Add(append(bytes.Repeat([]byte("x"), maxLine), '\n', 'y'), uint16(maxLine))
	f.Fuzz(func(t *testing.T, in []byte, piece uint16) {
		whole := format(in, len(in)+1)
		if pieces := format(in, int(piece)+1); pieces != whole {
			t.Errorf("in pieces of %d: %.200q, whole: %.200q", piece+1, pieces, whole)
		}
		if back := reassemble(t, whole); !bytes.Equal(back, in) {
			t.Errorf("%.200q became %.200q", in, back)
		}
	})
}

// format makes log lines of in, given n bytes at a time.
func format(in []byte, n int) string {
	var log strings.Builder
	var begun []byte
	space := make([]byte, 0, maxEntry+100)
	for len(in) > 0 {
		n := min(n, len(in))
		begun = append(begun, in[:n]...)
		in = in[n:]
		for {
			var out []byte
			out, begun = entries(space, begun, []byte("T stdout "))
			if len(out) == 0 {
				break
			}
			log.Write(out)
		}
	}
	if len(begun) > 0 {
		log.Write(entry(nil, []byte("T stdout "), 'P', begun))
	}
	return log.String()
}

// reassemble is what a reader of the log does.
func reassemble(t *testing.T, log string) []byte {
	var out []byte
	for line := range strings.Lines(log) {
		content, ok := strings.CutPrefix(line, "T stdout ")
		if !ok || len(content) > maxLine+3 {
			t.Fatalf("bad line %.80q", line)
		}
		if content[0] == 'P' {
			content = strings.TrimSuffix(content, "\n")
		}
		out = append(out, content[2:]...)
	}
	return out
}

// BenchmarkCopy has a container write lines of 100 bytes, 32 KiB at a time.
func BenchmarkCopy(b *testing.B) {
	dir := b.TempDir()
	w, err := Create(filepath.Join(dir, "stdout"))
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	r, err := Open(w.Name())
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(dir, "0.log")
	log, err := testLogs(b).Open("c", path)
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	stream, err := log.Copy(b.Context(), Stdout, r)
	if err != nil {
		b.Fatal(err)
	}
	chunk := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 320)
	b.SetBytes(int64(len(chunk)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := w.Write(chunk); err != nil {
			b.Fatal(err)
		}
		// The file is not what is measured: it must not fill the disk.
		if i%4096 == 0 {
			_ = os.Truncate(path, 0)
		}
	}
	if err := stream.Drain(b.Context()); err != nil {
		b.Fatal(err)
	}
}
