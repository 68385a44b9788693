package pod

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/stdio"
)

// output is how a container's standard output and error reach its log. It is
// nil where that could not be found again at start.
type output struct {
	log     *stdio.Log
	streams []*stdio.Stream
}

// outputs are the streams of a container; each has a FIFO of its name in the
// container's directory.
var outputs = []string{stdio.Stdout, stdio.Stderr}

// createFIFOs makes the container's FIFOs and opens them for it.
func createFIFOs(dir string) ([]*os.File, error) {
	var files []*os.File
	for _, name := range outputs {
		f, err := stdio.Create(filepath.Join(dir, name))
		if err != nil {
			return nil, errors.Join(err, closeAll(files))
		}
		files = append(files, f)
	}
	return files, nil
}

// openOutput starts to copy the container's FIFOs to a log, "" for none.
func (c *Container) openOutput(path string) (*output, error) {
	log, err := c.Pod.home.logs.Open(path)
	if err != nil {
		return nil, err
	}
	o := &output{log: log}
	for _, name := range outputs {
		f, err := stdio.Open(filepath.Join(c.Pod.home.containerDir(c.ID), name))
		if err != nil {
			return nil, errors.Join(err, o.close())
		}
		// The container's end ends the stream, not the call that started it.
		s, err := log.Copy(c.Pod.home.copying, name, f)
		if err != nil {
			return nil, errors.Join(err, f.Close(), o.close())
		}
		o.streams = append(o.streams, s)
	}
	return o, nil
}

// Close ends the copying of output to logs once all that has been read is there;
// what has not been read stays in the FIFOs for the next daemon. Containers do
// not notice.
func (r *Registry) Close() {
	r.stopCopying()
	for _, c := range r.Containers() {
		if c.State() != proc.Running || c.output == nil {
			continue
		}
		for _, s := range c.output.streams {
			<-s.Done()
		}
	}
}

// drain logs what a dead container has left and closes the log.
func (o *output) drain(ctx context.Context) error {
	if o == nil {
		return nil
	}
	var errs []error
	for _, s := range o.streams {
		errs = append(errs, s.Drain(ctx))
	}
	return errors.Join(append(errs, o.log.Close())...)
}

// close ends the copying at once.
func (o *output) close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = o.drain(ctx) // nothing is to be drained
	return nil
}

// openStdin opens what the container reads: nothing, or a FIFO that has no end.
func openStdin(dir string, wanted bool) (*os.File, error) {
	if !wanted {
		return os.OpenFile(os.DevNull, os.O_RDWR, 0)
	}
	return stdio.Create(filepath.Join(dir, "stdin"))
}

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
