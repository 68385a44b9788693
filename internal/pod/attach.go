package pod

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"

	"github.com/runscd/runscd/internal/stdio"
)

// deliverTimeout bounds how long a client may take for the last output of a
// container that has ended.
const deliverTimeout = 10 * time.Second

// Attach connects a client with the streams of a running container, from now on.
// It ends without an error when the container has, and the client has all of its
// output. There may be any number of clients; none holds up the container, its
// log or another client. The error is ErrResourceExhausted for one that does not
// keep up with the output, and ErrInvalidArgument or ErrFailedPrecondition if
// input is not possible. When ctx ends only the client is gone.
//
// The end of the client's input, or of the session, is the container's with
// stdin_once, and is nothing otherwise.
//
// Reads and Writes of s may still be under way when Attach returns, and a receive
// from s.Resize: they are the caller's to end.
func (r *Registry) Attach(ctx context.Context, id string, s stdio.Streams) error {
	c, err := r.Running(id)
	if err != nil {
		return err
	}
	if c.output == nil || c.Config().Tty && c.output.terminal == nil {
		return fmt.Errorf("container %s: its streams were lost when the daemon was restarted: %w", c.ID, errdefs.ErrUnavailable)
	}
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	// Before the input: what that brings about is output for this client.
	taps := c.tap(s, cut)
	defer func() {
		for _, t := range taps {
			t.Close()
		}
	}()
	if s.In != nil {
		input, err := c.takeInput()
		if err != nil {
			return err
		}
		defer input.Close()
		go func() {
			stdio.Feed(input, s.In)
			input.Close()
		}()
	}
	if s.Resize != nil && c.output.terminal != nil {
		go c.output.terminal.Follow(s.Resize)
	}
	if err := c.deliver(ctx, taps); err != nil {
		return fmt.Errorf("container %s: %w", c.ID, err)
	}
	return nil
}

// tap adds a client to the outputs that it wants.
func (c *Container) tap(s stdio.Streams, cut context.CancelCauseFunc) []*stdio.Tap {
	var taps []*stdio.Tap
	for i, w := range []io.Writer{s.Out, s.Err} {
		if w != nil && i < len(c.output.streams) {
			taps = append(taps, c.output.streams[i].Tap(w, cut))
		}
	}
	return taps
}

// deliver brings a client what it gets until the container has ended.
func (c *Container) deliver(ctx context.Context, taps []*stdio.Tap) error {
	ends, open := make(chan error, len(taps)), len(taps)
	for _, t := range taps {
		go func() { ends <- t.Run(ctx) }()
	}
	var late <-chan time.Time
	for ended := c.ended; open > 0 || ended != nil; {
		select {
		case err := <-ends:
			if err != nil {
				return err
			}
			open--
		case <-ended:
			ended, late = nil, time.After(deliverTimeout)
		case <-late:
			return fmt.Errorf("client does not take the last output: %w", errdefs.ErrResourceExhausted)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
