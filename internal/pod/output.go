package pod

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/stdio"
	"github.com/runscd/runscd/internal/systemd"
)

// output is what the daemon holds of a container's standard streams. It is nil
// where that could not be found again at start.
type output struct {
	log      *stdio.Log
	streams  []*stdio.Stream // in the order of outputs
	terminal *stdio.Terminal // nil if there is none, or it is lost
	// stdin holds the input of a container with stdin_once until a client takes
	// it. It is nil for others, and where the input is lost.
	stdin chan *os.File
}

// outputs are the streams of a container; each has a FIFO of its name in the
// container's directory. A terminal is the first.
var outputs = []string{stdio.Stdout, stdio.Stderr}

// What else systemd keeps of a container's streams, besides the daemon's ends of
// outputs.
const (
	keptTerminal = "terminal"
	keptStdin    = "stdin"
)

// kept is what systemd keeps of the streams of a container.
type kept struct {
	unit *systemd.Unit
	id   string
}

func (c *Container) kept() kept { return kept{c.Pod.home.Unit, c.ID} }

func (k kept) keep(what string, f *os.File) { k.unit.Keep(k.id+"-"+what, f) }
func (k kept) claim(what string) *os.File   { return k.unit.Claim(k.id + "-" + what) }
func (k kept) drop(what string)             { k.unit.Drop(k.id + "-" + what) }

// end drops all.
func (k kept) end() {
	for _, what := range append([]string{keptTerminal, keptStdin}, outputs...) {
		k.drop(what)
	}
}

// launch starts the container's process and what copies its output. After an
// error the process may run.
func (c *Container) launch(ctx context.Context) (*output, error) {
	if c.Config().Tty {
		return launchTerminal(ctx, c)
	}
	dir := c.Pod.home.containerDir(c.ID)
	stdin, input, err := openStdin(dir, c.Config())
	if err != nil {
		return nil, err
	}
	files, err := createFIFOs(dir)
	if err != nil {
		return nil, errors.Join(err, closeAll([]*os.File{stdin, input}))
	}
	var o *output
	err = c.init.Start(ctx, runsc.Stdio{In: stdin, Out: files[0], Err: files[1]})
	if err == nil {
		// Not opened before: what runsc itself says of a failure is not the
		// container's output.
		var log *stdio.Log
		if log, err = c.Pod.home.logs.Open(c.ID, c.Facts().LogPath); err == nil {
			o, err = c.openOutput(log)
		}
	}
	if err := errors.Join(err, closeAll(append(files, stdin))); err != nil {
		return nil, errors.Join(err, closeAll([]*os.File{input}), o.close())
	}
	if input != nil {
		c.kept().keep(keptStdin, input)
		o.offer(input)
	}
	return o, nil
}

// offer has the input of stdin_once wait for its client.
func (o *output) offer(input *os.File) {
	o.stdin = make(chan *os.File, 1)
	o.stdin <- input
}

func launchTerminal(ctx context.Context, c *Container) (*output, error) {
	master, err := c.init.StartTerminal(ctx)
	if err != nil {
		return nil, err
	}
	c.kept().keep(keptTerminal, master)
	log, err := c.Pod.home.logs.Open(c.ID, c.Facts().LogPath)
	if err != nil {
		return nil, errors.Join(err, master.Close())
	}
	o, err := c.copyOutput(log, master)
	if err != nil {
		return nil, err
	}
	o.terminal = stdio.NewTerminal(master, c.signalled(c.init.SignalForeground))
	return o, nil
}

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

// openOutput starts to copy the container's FIFOs to a log, which it takes over.
func (c *Container) openOutput(log *stdio.Log) (*output, error) {
	var files []*os.File
	for _, name := range outputs {
		f := c.kept().claim(name)
		if f == nil {
			var err error
			if f, err = stdio.Open(filepath.Join(c.Pod.home.containerDir(c.ID), name)); err != nil {
				return nil, errors.Join(err, closeAll(files), log.Close())
			}
			c.kept().keep(name, f)
		}
		files = append(files, f)
	}
	return c.copyOutput(log, files...)
}

// copyOutput starts to copy files, in the order of outputs, to a log. It takes all
// of them over.
func (c *Container) copyOutput(log *stdio.Log, files ...*os.File) (*output, error) {
	o := &output{log: log}
	for i, f := range files {
		// The container's end ends the stream, not the call that started it.
		s, err := log.Copy(c.Pod.home.copying, outputs[i], f)
		if err != nil {
			return nil, errors.Join(err, closeAll(files[i:]), o.close())
		}
		o.streams = append(o.streams, s)
	}
	return o, nil
}

// Close ends the copying of output to logs. What is not there yet is kept for the
// next daemon. Containers do not notice, but for those whose terminal nobody keeps:
// it hangs up.
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
	select {
	case input := <-o.stdin: // that no client has taken
		errs = append(errs, input.Close())
	default:
	}
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

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
