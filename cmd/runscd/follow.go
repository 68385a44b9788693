package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"time"
)

// follower shows a CRI log while it grows.
type follower struct {
	path     string
	out, err io.Writer
	rest     []byte // of the file, the beginning of a line
}

func newFollower(path string, out, err io.Writer) *follower {
	return &follower{path: path, out: out, err: err}
}

// follow shows the log until ctx ends, and then the rest of it.
func (f *follower) follow(ctx context.Context) error {
	file, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer file.Close()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		last := ctx.Err() != nil
		if err := f.copy(file); err != nil || last {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// copy shows what the file has more than before.
func (f *follower) copy(file io.Reader) error {
	more, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	f.rest = append(f.rest, more...)
	for {
		line, rest, ok := bytes.Cut(f.rest, []byte{'\n'})
		if !ok {
			return nil
		}
		f.rest = rest
		if err := f.show(line); err != nil {
			return err
		}
	}
}

// show writes one log line, "time stream tag content", as the container wrote
// it.
func (f *follower) show(line []byte) error {
	fields := bytes.SplitN(line, []byte{' '}, 4)
	if len(fields) < 4 {
		return errors.New("log line without four fields")
	}
	content := fields[3]
	if string(fields[2]) == "F" {
		content = append(slices.Clip(content), '\n')
	}
	w := f.out
	if string(fields[1]) == "stderr" {
		w = f.err
	}
	_, err := w.Write(content)
	return err
}
