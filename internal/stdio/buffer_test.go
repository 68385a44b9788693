package stdio

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const stamped = "2026-01-02T03:04:05.000000000Z "

// TestSettle leaves a buffer as a daemon does that is killed at some instruction,
// and looks at what the next one makes of it.
func TestSettle(t *testing.T) {
	const waiting = "one\ntwo\nthree\nbeg" // has been read
	const one, two = stamped + "stdout F one\n", stamped + "stdout F two\n"
	for name, test := range map[string]struct {
		log     string // before the write that was under way
		written string
		at      position
		renamed bool // the log was, just before
		unread  int  // bytes that a read has not filled
		want    []string
	}{
		"before a read": {
			at: position{end: 8, asked: 9}, unread: 9,
			want: []string{"stdout F one", "stdout F two"},
		},
		"behind a read": {
			at:   position{end: 8, asked: 9},
			want: []string{"stdout F one", "stdout F two", "stdout F three", "stdout P beg"},
		},
		"behind a read of one byte": {
			at:   position{end: 3, asked: 1},
			want: []string{"stdout F one"},
		},
		"before a write": {
			log: one, at: position{start: 4, end: 17, writing: true},
			want: []string{"stdout F one", "stdout F two", "stdout F three", "stdout P beg"},
		},
		"in a write": {
			log: one, written: two + stamped + "stdout F th", at: position{start: 4, end: 17, writing: true},
			want: []string{"stdout F one", "stdout F two", "stdout F three", "stdout P beg"},
		},
		"behind a write": {
			log: one, written: two + stamped + "stdout F three\n", at: position{start: 4, end: 17, writing: true},
			want: []string{"stdout F one", "stdout F two", "stdout F three", "stdout P beg"},
		},
		"behind a write that is noted": {
			log: one + two, at: position{start: 8, end: 17},
			want: []string{"stdout F one", "stdout F two", "stdout F three", "stdout P beg"},
		},
		"behind the write of a begun line": {
			log: one, written: stamped + "stdout P beg\n", at: position{start: 14, end: 17, writing: true},
			want: []string{"stdout F one", "stdout P beg"},
		},
		"in a write to a renamed log": {
			log: one, written: two + stamped, at: position{start: 4, end: 14, writing: true}, renamed: true,
			want: []string{"stdout F one", "stdout F two", "stdout F three"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := &container{t: t, fifo: filepath.Join(t.TempDir(), "stdout"), path: filepath.Join(t.TempDir(), "0.log")}
			var err error
			if c.w, err = Create(c.fifo); err != nil {
				t.Fatal(err)
			}
			defer c.w.Close()
			if err := os.WriteFile(c.path, []byte(test.log+test.written), 0o640); err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Stat(c.path, &st); err != nil {
				t.Fatal(err)
			}
			logs, err := OpenLogs(filepath.Join(filepath.Dir(c.fifo), "buffers"))
			if err != nil {
				t.Fatal(err)
			}
			b := logs.get("c " + Stdout)
			copy(b.in, waiting+"\n")
			for i := range test.unread {
				b.in[test.at.end+i] = unread
			}
			b.log = logPlace{st.Dev, st.Ino, int64(len(test.log))}
			b.move(test.at)

			var paths []string
			if test.renamed {
				paths = append(paths, c.path+".1")
				if err := os.Rename(c.path, paths[0]); err != nil {
					t.Fatal(err)
				}
			}
			c.restart(t.Context())
			c.drain()
			var got []string
			for _, path := range append(paths, c.path) {
				got = append(got, logged(t, path)...)
			}
			if strings.Join(got, "\n") != strings.Join(test.want, "\n") {
				t.Errorf("log %q, want %q", got, test.want)
			}
		})
	}
}

// A line that was read before the restart has the time at which it was.
func TestKeptLineHasItsTime(t *testing.T) {
	dir := t.TempDir()
	logs, err := OpenLogs(dir)
	if err != nil {
		t.Fatal(err)
	}
	b := logs.get("c " + Stdout)
	b.move(position{end: copy(b.in, "one\n")})
	read := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	b.time = read.UnixNano()
	if logs, err = OpenLogs(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "0.log")
	log, err := logs.Open("c", path)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	s, err := log.Copy(t.Context(), Stdout, r)
	if err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	if got, _ := os.ReadFile(path); string(got) != "2026-01-02T03:04:05.000000006Z stdout F one\n" {
		t.Errorf("log %q", got)
	}
}

// What cannot be read is told and removed, and what is nobody's is forgotten.
func TestBuffersThatAreLeft(t *testing.T) {
	dir := t.TempDir()
	logs, err := OpenLogs(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"gone stdout", "kept stdout", "bad stdout"} {
		b := logs.get(key)
		b.move(position{end: 1})
		if key == "bad stdout" {
			b.move(position{start: 2, end: 1})
		}
	}
	logs.put(logs.get("empty stdout"))
	for name, size := range map[string]int{"short": 10, "zero": headerSize + inSize} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	if logs, err = OpenLogs(dir); err != nil {
		t.Fatal(err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 2 {
		t.Errorf("%d files are left, want 2: %v", len(files), files)
	}
	logs.Forget(func(id string) bool { return id == "kept" })
	if logs.claim("gone stdout") != nil || logs.claim("kept stdout") == nil || logs.claim("bad stdout") != nil {
		t.Error("the wrong buffers are forgotten")
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("%d files are left, want 1: %v", len(files), files)
	}
}

// Without room for buffers output goes on, in the daemon's own memory.
func TestNoRoomForBuffers(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	c := newContainer(t, ctx)
	if err := os.RemoveAll(c.log.logs.dir); err != nil {
		t.Fatal(err)
	}
	c.write("one\n")
	c.drain()
	wantLog(t, c.path, "stdout F one")
}

// A hundred streams that were busy at once leave no more memory than some.
func TestFreeBuffersAreLimited(t *testing.T) {
	logs := testLogs(t)
	var held []*buffer
	for range 3 * maxFree {
		held = append(held, logs.get("c stdout"))
	}
	for _, b := range held {
		logs.put(b)
	}
	if files, _ := os.ReadDir(logs.dir); len(files) != maxFree {
		t.Errorf("%d files, want %d", len(files), maxFree)
	}
}
