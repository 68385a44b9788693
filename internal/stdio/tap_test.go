package stdio

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestTaps(t *testing.T) {
	c := newContainer(t, t.Context())
	var first, second bytes.Buffer
	run := func(w io.Writer) (*Tap, chan error) {
		tap, ended := c.stream.Tap(w, func(err error) { t.Error(err) }), make(chan error)
		go func() { ended <- tap.Run(t.Context()) }()
		return tap, ended
	}
	tap, ended := run(&first)
	c.write("one\n")
	for len(logged(t, c.path)) == 0 {
		time.Sleep(time.Millisecond)
	}
	_, ended2 := run(&second)
	c.write("two\nthr")
	c.drain()
	if err := errors.Join(<-ended, <-ended2); err != nil {
		t.Error(err)
	}
	if first.String() != "one\ntwo\nthr" || second.String() != "two\nthr" {
		t.Errorf("clients got %q and %q", first.String(), second.String())
	}
	tap.Close()
	tap.Close()
	// There is no more for a client that comes now.
	var late bytes.Buffer
	if _, ended := run(&late); <-ended != nil || late.Len() > 0 {
		t.Errorf("late client got %q", late.String())
	}
}

func TestTapEndsWithItsClient(t *testing.T) {
	c := newContainer(t, t.Context())
	tap := c.stream.Tap(io.Discard, func(err error) { t.Error(err) })
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	cancel(reason)
	if err := tap.Run(ctx); !errors.Is(err, reason) {
		t.Errorf("run: %v", err)
	}
	tap.Close()
	tap = c.stream.Tap(new(broken), func(err error) { t.Error(err) })
	c.write("one\n")
	if err := tap.Run(t.Context()); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("run: %v", err)
	}
	tap.Close()
	if c.stream.taps.list.Load() != nil {
		t.Error("a stream without clients has a list of them")
	}
}

func TestTapOfASlowClient(t *testing.T) {
	c := newContainer(t, t.Context())
	cut := make(chan error, 1000)
	tap := c.stream.Tap(nil, func(err error) { cut <- err }) // never runs
	defer tap.Close()
	for range tapLimit/pipeSize + 1 {
		c.write(strings.Repeat("x", pipeSize))
	}
	c.write("\n")
	c.drain()
	if err := <-cut; !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "stdout") {
		t.Errorf("cut off with %v", err)
	}
}
