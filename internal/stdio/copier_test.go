package stdio

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return r, w
}

// A process that is left behind holds the other end: what was written before is
// copied all the same, and nobody waits.
func TestCopierDoesNotWaitForOthers(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) (r, w *os.File){"pipe": pipe, "terminal": rawTerminal} {
		t.Run(name, func(t *testing.T) {
			for size := range 10 {
				want := bytes.Repeat([]byte("x"), size*700)
				r, w := open(t)
				var got bytes.Buffer
				c := NewCopier(r, &got)
				if _, err := w.Write(want); err != nil {
					t.Fatal(err)
				}
				if c.Drain(); !bytes.Equal(got.Bytes(), want) {
					t.Errorf("%d bytes copied, want %d", got.Len(), len(want))
				}
			}
		})
	}
}

// rawTerminal is a terminal that changes nothing.
func rawTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, slave, err := OpenTerminal(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	setMode(t, master, func(mode *unix.Termios) { mode.Oflag, mode.Lflag = 0, 0 })
	return master, slave
}

func setMode(t *testing.T, f *os.File, change func(*unix.Termios)) {
	t.Helper()
	mode, err := NewTerminal(f, nil).mode()
	if err != nil {
		t.Fatal(err)
	}
	change(mode)
	if err := NewTerminal(f, nil).control(func(fd int) error { return unix.IoctlSetTermios(fd, unix.TCSETS, mode) }); err != nil {
		t.Fatal(err)
	}
}

func TestCopierToTheEnd(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) (r, w *os.File){"pipe": pipe, "terminal": rawTerminal} {
		t.Run(name, func(t *testing.T) {
			r, w := open(t)
			var got bytes.Buffer
			c := NewCopier(r, &got)
			w.WriteString("all")
			w.Close()
			<-c.done
			if c.Drain(); got.String() != "all" {
				t.Errorf("copied %q", got.String())
			}
		})
	}
}

// broken is a client that has gone.
type broken struct{ calls int }

func (b *broken) Write([]byte) (int, error) {
	b.calls++
	return 0, io.ErrClosedPipe
}

// The process would block if nobody read.
func TestCopierWithoutAClientHoldsNothingUp(t *testing.T) {
	r, w := pipe(t)
	client := new(broken)
	c := NewCopier(r, client)
	if _, err := w.Write(bytes.Repeat([]byte("y"), 1<<20)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if c.Drain(); client.calls != 1 {
		t.Errorf("%d writes to a client that has gone", client.calls)
	}
}

func TestFeed(t *testing.T) {
	client, in := pipe(t)
	r, w := pipe(t)
	fed := make(chan struct{})
	go func() {
		Feed(w, client)
		w.Close()
		close(fed)
	}()
	in.WriteString("all")
	in.Close()
	if got, err := io.ReadAll(r); string(got) != "all" || err != nil {
		t.Errorf("fed %q, %v", got, err)
	}
	<-fed
}

// What a process does not take must not stay with the client.
func TestFeedOfAProcessThatHasEnded(t *testing.T) {
	r, w := pipe(t)
	r.Close()
	in := bytes.NewReader(make([]byte, 1<<20))
	if Feed(w, in); in.Len() != 0 {
		t.Errorf("%d bytes are not read", in.Len())
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("write: %v", err)
	}
}
