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
	if err := c.deliver(ctx, s); err != nil {
		return fmt.Errorf("container %s: %w", c.ID, err)
	}
	return nil
}

// deliver brings a client the output of the container until that has ended.
func (c *Container) deliver(ctx context.Context, s stdio.Streams) error {
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	ends, open := make(chan error, len(outputs)), 0
	for i, w := range []io.Writer{s.Out, s.Err} {
		if w == nil || i >= len(c.output.streams) {
			continue
		}
		tap := c.output.streams[i].Tap(w, cut)
		defer tap.Close()
		open++
		go func() { ends <- tap.Run(ctx) }()
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
