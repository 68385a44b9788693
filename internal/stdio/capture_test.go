package stdio

import (
	"bytes"
	"os"
	"testing"
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

// A process that is left behind holds the pipe: what was written before is
// returned all the same, and nobody waits.
func TestCaptureDoesNotWaitForOthers(t *testing.T) {
	for size := range 3 {
		want := bytes.Repeat([]byte("x"), size*30<<10)
		r, w := pipe(t)
		c := NewCapture(r, 1<<20)
		if _, err := w.Write(want); err != nil {
			t.Fatal(err)
		}
		if got := c.Drain(); !bytes.Equal(got, want) {
			t.Errorf("%d bytes captured, want %d", len(got), len(want))
		}
	}
}

func TestCaptureLimit(t *testing.T) {
	r, w := pipe(t)
	c := NewCapture(r, 1000)
	// More than the pipe holds: the writer would block if nobody read.
	if _, err := w.Write(bytes.Repeat([]byte("y"), 1<<20)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if got := c.Drain(); len(got) != 1000 {
		t.Errorf("%d bytes captured, want 1000", len(got))
	}
}

func TestCaptureToTheEnd(t *testing.T) {
	r, w := pipe(t)
	c := NewCapture(r, 1<<20)
	w.WriteString("all")
	w.Close()
	<-c.done
	if got := c.Drain(); string(got) != "all" {
		t.Errorf("captured %q", got)
	}
}
