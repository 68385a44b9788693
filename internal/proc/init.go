package proc

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/internal/monitor"
	"github.com/runscd/runscd/internal/runsc"
)

// ProcessMonitor adopts processes; internal/monitor is it.
type ProcessMonitor interface {
	Adopt(pid int, start uint64) (*monitor.Process, error)
}

// CreateConfig is what an Init is made of.
type CreateConfig struct {
	ID          string
	Sandbox     *Init  // the root container of the sandbox; nil for the root itself
	Bundle      string // directory of the OCI bundle
	HostNetwork bool   // root only: the sandbox uses the host's network stack
	Restored    bool   // it comes back from a checkpoint, see Restore
	Runtime     *runsc.Runtime
}

// Exit is the end of a process.
type Exit struct {
	Status int       // 0–255; 128+n for signal n
	At     time.Time // when it was seen
	// Known is false when the status could not be learned, for the sandbox was
	// gone; Status is then that of a process killed with it.
	Known bool
}

// killed is the status of what ended with its sandbox.
const killed = 128 + int(unix.SIGKILL)

// HostProcess names a process of the host for as long as the host is up.
type HostProcess struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, as in /proc/<pid>/stat
}

// Init is the first process of a container. That of a sandbox's root container
// stands for the sandbox and is watched as a process of the host; that of a
// sub container is watched through the sandbox's control socket.
type Init struct {
	CreateConfig
	life    *Life
	control *runsc.Control
	monitor ProcessMonitor

	done chan struct{} // closed after exit is set
	once sync.Once
	exit Exit // read after done

	// alive ends a while after the sandbox has, by end; root only.
	alive context.Context
	end   context.CancelFunc

	mu sync.Mutex
	// +checklocks:mu
	process *monitor.Process // root only
	// +checklocks:mu
	host HostProcess
}

func newInit(c CreateConfig, m ProcessMonitor) *Init {
	sandbox := c.ID
	if c.Sandbox != nil {
		sandbox = c.Sandbox.ID
	}
	p := &Init{
		CreateConfig: c,
		life:         NewLife(Creating),
		control:      c.Runtime.Control(sandbox),
		monitor:      m,
		done:         make(chan struct{}),
	}
	if c.Sandbox == nil {
		p.alive, p.end = context.WithCancel(context.Background())
	}
	return p
}

// endGrace is how long a call to a sandbox may go on when that has ended. A call
// notices the end by itself, unless the runsc that makes it hangs, or somebody
// else has the control socket.
const endGrace = time.Second

// State returns the present state.
func (p *Init) State() State { return p.life.State() }

// Done is closed when the process has exited.
func (p *Init) Done() <-chan struct{} { return p.done }

// Exit tells how the process ended. It is for after Done.
func (p *Init) Exit() Exit {
	<-p.done
	return p.exit
}

// Host names the sandbox's process. It is zero until Create.
func (p *Init) Host() HostProcess {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.host
}

// Create makes the sandbox. For a sub container there is nothing to make yet:
// runsc creates and starts it in one command.
func (p *Init) Create(ctx context.Context) error {
	end, err := p.life.Begin(ctx, OpCreate)
	if err != nil {
		return err
	}
	defer end()
	if p.Sandbox == nil {
		pid, err := p.Runtime.Create(ctx, p.ID, p.config())
		if err != nil {
			return err
		}
		start, err := monitor.StartTime(pid)
		if err != nil {
			return fmt.Errorf("sandbox process: %w", err)
		}
		if err := p.adopt(HostProcess{PID: pid, Start: start}); err != nil {
			return err
		}
	}
	p.life.Advance(Created)
	return nil
}

// config is the sandbox's for runsc.
func (p *Init) config() runsc.CreateConfig {
	return runsc.CreateConfig{Bundle: p.Bundle, HostNetwork: p.HostNetwork, Restored: p.Restored}
}

// adopt watches the sandbox's process from now on.
func (p *Init) adopt(host HostProcess) error {
	process, err := p.monitor.Adopt(host.PID, host.Start)
	if err != nil {
		return fmt.Errorf("sandbox process %d: %w", host.PID, err)
	}
	p.mu.Lock()
	p.process, p.host = process, host
	p.mu.Unlock()
	p.Runtime.Drive(host.PID)
	go func() {
		<-process.Done()
		exit := process.Exit()
		if !exit.Known {
			exit.Status = killed
		}
		p.exited(Exit{Status: exit.Status, At: exit.At, Known: exit.Known})
	}()
	return nil
}

// Start starts the process. A sub container gets the streams; a root container
// has none. An error of the kind runsc.ErrNoExecutable or ErrPermissionDenied
// is about the command itself. After an error Delete removes what the start has
// left, which is something only if it was cut off.
func (p *Init) Start(ctx context.Context, stdio runsc.Stdio) error {
	return p.start(ctx, func(ctx context.Context) error {
		if p.Sandbox == nil {
			return p.Runtime.Start(ctx, p.ID, p.config())
		}
		if p.Restored {
			return p.Runtime.Restore(ctx, p.ID, p.Bundle, stdio)
		}
		return p.Runtime.Run(ctx, p.ID, p.Bundle, stdio)
	})
}

// StartTerminal is Start for the process of a sub container that has a terminal.
// It returns the terminal's master, which is the caller's.
func (p *Init) StartTerminal(ctx context.Context) (master *os.File, err error) {
	err = p.start(ctx, func(ctx context.Context) (err error) {
		master, err = p.Runtime.RunTerminal(ctx, p.ID, p.Bundle)
		return err
	})
	return master, err
}

func (p *Init) start(ctx context.Context, run func(context.Context) error) error {
	end, err := p.life.Begin(ctx, OpStart)
	if err != nil {
		return err
	}
	defer end()
	ctx, cancel := p.inSandbox(ctx)
	defer cancel()
	if err := run(ctx); err != nil {
		return err
	}
	if p.Sandbox != nil {
		go p.watch()
	}
	p.life.Advance(Running)
	return nil
}

var errSandboxEnded = fmt.Errorf("the sandbox has ended: %w", errdefs.ErrUnavailable)

// inSandbox is for a runsc that does something in the sandbox of a sub container: it
// ends with that.
func (p *Init) inSandbox(ctx context.Context) (context.Context, context.CancelFunc) {
	if p.Sandbox == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(p.Sandbox.alive, func() { cancel(errSandboxEnded) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// watch waits for the end of a sub container's process. A call that fails for
// another reason than the sandbox's end is repeated.
func (p *Init) watch() {
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		status, err := p.control.Wait(p.Sandbox.alive, p.ID)
		if err == nil {
			exit := Exit{Status: status, At: time.Now(), Known: true}
			p.killRest()
			p.exited(exit)
			return
		}
		if errdefs.IsNotFound(err) { // the sentry has forgotten it: it was deleted
			p.exited(Exit{Status: killed, At: time.Now()})
			return
		}
		select {
		case <-p.done: // deleted
			return
		case <-p.Sandbox.done:
			p.exited(Exit{Status: killed, At: p.Sandbox.exit.At})
			return
		case <-time.After(pause):
			if !errdefs.IsUnavailable(err) {
				logrus.WithField("container", p.ID).WithError(err).Warn("waiting for the container")
			}
		}
	}
}

// killTimeout bounds the call that kills what a container leaves behind.
const killTimeout = 5 * time.Second

// killRest kills the processes that the first one has left behind. In a PID
// namespace of the container's own the sentry has done it; in one that the pod
// shares they would go on after the container's end.
func (p *Init) killRest() {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	err := p.control.Signal(ctx, p.ID, 0, unix.SIGKILL, runsc.ToAll)
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsUnavailable(err) {
		logrus.WithField("container", p.ID).WithError(err).Warn("rest of the container's processes")
	}
}

func (p *Init) exited(e Exit) {
	p.once.Do(func() {
		p.exit = e
		p.life.Advance(Stopped)
		close(p.done)
		if p.Sandbox == nil {
			time.AfterFunc(endGrace, p.end)
		}
	})
}

// Recover finds the process again after a restart of the daemon. For a root
// container host is what Host said. A process that has ended meanwhile is
// reported by Done like any other.
func (p *Init) Recover(ctx context.Context, host HostProcess) error {
	if p.Sandbox == nil {
		p.life.Advance(Running)
		err := p.adopt(host)
		if errdefs.IsNotFound(err) {
			p.exited(Exit{Status: killed, At: time.Now()})
			return nil
		}
		return err
	}
	select {
	case <-p.Sandbox.done:
		p.life.Advance(Running)
		p.exited(Exit{Status: killed, At: p.Sandbox.exit.At})
		return nil
	default:
	}
	// What runsc knows to be started needs no asking: a sandbox that hangs holds
	// up nobody. Where a start was cut off only the sandbox knows; without an
	// answer it was not started.
	state := p.Runtime.SavedState(p.ID)
	if state == runsc.StateCreated {
		if answer, err := p.control.State(ctx, p.ID); err == nil {
			state = answer
		}
	}
	if state == runsc.StateCreated && p.Restored {
		p.life.Advance(Created)
		return fmt.Errorf("restore that was cut off: %w", errdefs.ErrUnknown)
	}
	if state == runsc.StateUnknown || state == runsc.StateCreated {
		p.life.Advance(Created)
		// Half a start would be in the way of the next.
		return p.Runtime.Delete(ctx, p.ID)
	}
	p.life.Advance(Running)
	go p.watch()
	return nil
}

// Kill sends a signal to the process, or to all of the container. From stopped
// on it does nothing.
func (p *Init) Kill(ctx context.Context, sig syscall.Signal, all bool) error {
	end, err := p.life.Begin(ctx, OpKill)
	if err != nil {
		return err
	}
	defer end()
	if p.Sandbox == nil {
		return p.killSandbox(sig)
	}
	// What is being started cannot be signalled yet.
	if err := p.life.Settle(ctx); err != nil {
		return err
	}
	if p.State() != Running {
		return nil
	}
	to := runsc.ToProcess
	if all {
		to = runsc.ToAll
	}
	err = p.control.Signal(ctx, p.ID, 0, sig, to)
	if err != nil && p.State() >= Stopped || errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) {
		return nil // gone, perhaps with its sandbox
	}
	return err
}

// killSandbox signals the sandbox's process itself, whatever the sentry does.
func (p *Init) killSandbox(sig syscall.Signal) error {
	p.mu.Lock()
	process := p.process
	p.mu.Unlock()
	if process == nil {
		return nil
	}
	if err := process.Signal(sig); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("sandbox process: %w", err)
	}
	return nil
}

// Delete kills the process if it runs and removes what runsc keeps of it. It
// may be repeated.
func (p *Init) Delete(ctx context.Context) error {
	end, err := p.life.Begin(ctx, OpDelete)
	if err != nil {
		return err
	}
	defer end()
	if p.Sandbox == nil {
		err = p.deleteSandbox(ctx)
	} else {
		err = p.deleteContainer(ctx)
	}
	if err != nil {
		return err
	}
	// A process that was never started has no other end.
	p.exited(Exit{Status: killed, At: time.Now()})
	p.life.Advance(Deleted)
	return nil
}

func (p *Init) deleteSandbox(ctx context.Context) error {
	if err := p.killSandbox(unix.SIGKILL); err != nil {
		return err
	}
	p.mu.Lock()
	process := p.process
	p.mu.Unlock()
	if process != nil {
		// runsc takes a zombie for alive: it must be reaped before.
		select {
		case <-process.Done():
		case <-ctx.Done():
			return fmt.Errorf("sandbox process %d survives SIGKILL: %w", p.Host().PID, ctx.Err())
		}
	}
	return p.Runtime.Purge(ctx, p.ID, p.Bundle, process == nil)
}

func (p *Init) deleteContainer(ctx context.Context) error {
	select {
	case <-p.Sandbox.done:
		return nil // gone with its sandbox
	default:
	}
	// The call ends with the sandbox, the wait below with the caller only.
	call, cancel := p.inSandbox(ctx)
	defer cancel()
	// Also what was not started: a start that was cut off may have left something.
	err := p.Runtime.Delete(call, p.ID)
	if err == nil {
		return nil
	}
	select {
	case <-p.Sandbox.done: // it died meanwhile, and that is why
		return nil
	case <-time.After(endGrace):
	case <-ctx.Done():
	}
	return err
}

// Gone says that the process has ended and its status is on record.
func (p *Init) Gone() {
	p.exited(Exit{Status: killed, At: time.Now()})
}
