package fakerunsc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// manager begins the name of every method.
const manager = "containerManager."

// The sentry's numbers for states of a container and targets of a signal.
const (
	stateCreating = 1
	stateRunning  = 2
	stateStopped  = 3

	toProcess    = 0
	toAll        = 1
	toForeground = 2
	toGroup      = 3
)

// key names a process: the first of a container has pid 0.
type key struct {
	cid string
	pid int
}

// sandbox is a sandbox's process.
type sandbox struct {
	dir string // of the fake
	id  string

	mu      sync.Mutex
	lastPID int
	// started is nil for the first process of a container that is only created.
	started map[key]*process
	all     map[*process]bool // that run
	pauses  int
	// frozen are the containers that wait for the rest of missing to be restored.
	frozen  []*process
	missing int

	restored chan struct{} // closed when all run
}

func sandboxMain(args []string) int {
	s := &sandbox{dir: args[0], id: args[2], started: map[key]*process{}, all: map[*process]bool{}, restored: make(chan struct{})}
	s.started[key{s.id, 0}] = nil
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return failure
	}
	// The test may have ended already: then there is nobody to wait for.
	leash, err := os.OpenFile(filepath.Join(s.dir, leashFile), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return failure
	}
	go func() {
		_, _ = io.Copy(io.Discard, leash)
		os.Exit(failure)
	}()
	for {
		conn, err := l.Accept()
		if err != nil {
			return failure
		}
		go s.serve(conn.(*net.UnixConn))
	}
}

// serve answers the one call of a connection.
func (s *sandbox) serve(conn *net.UnixConn) {
	defer conn.Close()
	r, files, err := receive(conn)
	if err != nil {
		return
	}
	method := strings.TrimPrefix(r.Method, manager)
	_ = called(s.dir, "rpc."+method)
	kind, text := fault(s.dir, "rpc."+method)
	switch kind {
	case Hang:
		hang(s.dir, "rpc."+method)
	case Cut:
		fmt.Fprint(conn, `{"success":tr`)
		return
	case Garbage:
		fmt.Fprint(conn, "<html>")
		return
	case Flood:
		for err := error(nil); err == nil; {
			_, err = conn.Write(bytes.Repeat([]byte{32}, 64<<10))
		}
		return
	}
	var result any
	switch {
	case kind == Unknown:
		err = errors.New("unknown method")
	case kind == "fail":
		err = errors.New(text)
	default:
		result, err = s.do(method, r.Arg, files)
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
	}
	a := answer{Success: err == nil, Result: result}
	if err != nil {
		a.Err = err.Error()
	}
	if json.NewEncoder(conn).Encode(a) == nil {
		_, _ = io.Copy(io.Discard, conn) // until the caller hangs up
	}
}

// do makes one call.
func (s *sandbox) do(method string, arg json.RawMessage, files []*os.File) (any, error) {
	if result, known, err := s.doCheckpoint(method, arg, files); known {
		return result, err
	}
	switch method {
	case "Wait", "ContainerRuntimeState", "StartRoot", "CreateSubcontainer", "DestroySubcontainer", "Processes":
		var cid string
		if err := json.Unmarshal(arg, &cid); err != nil {
			return nil, err
		}
		return s.doContainer(method, cid)
	case "Cgroups.ReadControlFiles":
		return s.readControlFiles(arg)
	case "Metrics.Export":
		return sentryMetrics, nil
	case "debug.Stacks":
		return "goroutine 1 [running]:\n", nil
	case "StartSubcontainer":
		var a startArgs
		if err := json.Unmarshal(arg, &a); err != nil {
			return nil, err
		}
		return nil, s.startSub(a, files)
	case "ExecuteAsync":
		var a execArgs
		if err := json.Unmarshal(arg, &a); err != nil {
			return nil, err
		}
		return s.exec(a, files)
	case "WaitPID":
		var a struct {
			PID int
			CID string
		}
		if err := json.Unmarshal(arg, &a); err != nil {
			return nil, err
		}
		return s.waitPID(a.CID, a.PID)
	case "Signal":
		var a signalArgs
		if err := json.Unmarshal(arg, &a); err != nil {
			return nil, err
		}
		return nil, s.signal(a)
	}
	return nil, errors.New("unknown method")
}

// doContainer makes a call whose argument is a container.
func (s *sandbox) doContainer(method, cid string) (any, error) {
	switch method {
	case "Wait":
		s.mu.Lock()
		restoring := s.missing > 0
		s.mu.Unlock()
		if restoring {
			<-s.restored
		}
		p, err := s.first(cid)
		if err != nil {
			return nil, err
		}
		<-p.done
		return p.status, nil
	case "ContainerRuntimeState":
		return s.state(cid), nil
	case "StartRoot":
		s.root()
		return nil, nil
	case "CreateSubcontainer":
		s.mu.Lock()
		defer s.mu.Unlock()
		s.started[key{cid, 0}] = nil
		return nil, nil
	case "Processes":
		return s.processes(cid), nil
	}
	return nil, s.destroy(cid)
}

// first returns the first process of a container.
func (s *sandbox) first(cid string) (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.started[key{cid, 0}]
	if !ok {
		return nil, fmt.Errorf("container %q not found", cid)
	}
	if p == nil {
		return nil, fmt.Errorf("container %q not started", cid)
	}
	return p, nil
}

// state takes a container that was never heard of for one that has stopped, as
// the sentry does.
func (s *sandbox) state(cid string) int {
	s.mu.Lock()
	p, ok := s.started[key{cid, 0}]
	s.mu.Unlock()
	switch {
	case !ok:
		return stateStopped
	case p == nil:
		return stateCreating
	}
	select {
	case <-p.done:
		return stateStopped
	default:
		return stateRunning
	}
}

// root starts the first process of the sandbox, whose end is the sandbox's.
func (s *sandbox) root() {
	p := &process{cid: s.id, args: []string{"sleep"}}
	s.start(p)
	s.mu.Lock()
	s.started[key{s.id, 0}] = p
	s.mu.Unlock()
	go func() {
		<-p.done
		os.Exit(exitCode(p.status))
	}()
}

type startArgs struct {
	CID      string
	Args     []string
	Terminal bool
}

func (s *sandbox) startSub(a startArgs, files []*os.File) error {
	if err := executable(a.Args); err != nil {
		return err
	}
	p := &process{cid: a.CID, args: a.Args, stdio: files, terminal: a.Terminal}
	s.start(p)
	s.mu.Lock()
	s.started[key{a.CID, 0}] = p
	s.mu.Unlock()
	return nil
}

type execArgs struct {
	Argv        []string `json:"argv"`
	GuestFDs    []int
	ContainerID string
	StdioIsPty  bool
}

func (s *sandbox) exec(a execArgs, files []*os.File) (int, error) {
	p, err := s.first(a.ContainerID)
	if err != nil {
		return 0, err
	}
	select {
	case <-p.done:
		return 0, fmt.Errorf("container %q has stopped", a.ContainerID)
	default:
	}
	stdio := files[:min(len(files), len(a.GuestFDs))]
	program := files[len(stdio):]
	if len(program) == 0 {
		if err := executable(a.Argv); err != nil {
			return 0, err
		}
	}
	p = &process{cid: a.ContainerID, args: a.Argv, stdio: stdio, terminal: a.StdioIsPty}
	if len(program) > 0 {
		if err := p.startProgram(program[0]); err != nil {
			return 0, err
		}
	}
	s.start(p)
	s.mu.Lock()
	s.started[key{a.ContainerID, p.pid}] = p
	s.mu.Unlock()
	return p.pid, nil
}

func (s *sandbox) waitPID(cid string, pid int) (uint32, error) {
	k := key{cid, pid}
	s.mu.Lock()
	p := s.started[k]
	s.mu.Unlock()
	if p == nil || pid == 0 {
		return 0, fmt.Errorf("waiting for PID %d: no such process", pid)
	}
	<-p.done
	s.mu.Lock()
	delete(s.started, k)
	s.mu.Unlock()
	return p.status, nil
}

type signalArgs struct {
	CID              string
	Signo, PID, Mode int
}

func (s *sandbox) signal(a signalArgs) error {
	first, err := s.first(a.CID)
	if err != nil {
		return fmt.Errorf("signaling process in container %q PID %d: %w", a.CID, a.PID, err)
	}
	pid := a.PID
	if pid == 0 {
		pid = first.pid
	}
	s.mu.Lock()
	var targets []*process
	for p := range s.all {
		switch {
		case p.cid != a.CID,
			(a.Mode == toProcess || a.Mode == toForeground) && p.pid != pid, // the leader is in the foreground
			a.Mode == toGroup && p.group != pid:
		default:
			targets = append(targets, p)
		}
	}
	s.mu.Unlock()
	if len(targets) == 0 && a.Mode == toGroup {
		return fmt.Errorf("signaling process group %d: no such process group with PGID %d", pid, pid)
	}
	if len(targets) == 0 && a.Mode == toProcess {
		return fmt.Errorf("signaling process in container %q PID %d: no such process", a.CID, a.PID)
	}
	for _, p := range targets {
		p.signal(a.Signo)
	}
	return nil
}

// processes lists a container's processes.
func (s *sandbox) processes(cid string) []any {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []any
	all := slices.SortedFunc(maps.Keys(s.all), func(a, b *process) int { return a.pid - b.pid })
	for _, p := range all {
		if p.cid != cid {
			continue
		}
		tty := "?"
		if p.terminal {
			tty = "pts/0"
		}
		list = append(list, map[string]any{"pid": p.pid, "ppid": p.parent, "pgid": p.group, "tty": tty})
	}
	return list
}

// destroy kills all of a container and forgets it.
func (s *sandbox) destroy(cid string) error {
	_ = s.signal(signalArgs{CID: cid, Signo: 9, Mode: toAll}) // it may have stopped
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.started {
		if k.cid == cid {
			delete(s.started, k)
		}
	}
	return nil
}
