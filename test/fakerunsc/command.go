package fakerunsc

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// failure is the exit code of a failed command.
const failure = 128

// cli is one command.
type cli struct {
	dir      string // of the fake
	root     string
	log      string
	panicLog string
	op       string
	args     []string // behind the subcommand
}

func command(args []string) int {
	c := &cli{dir: filepath.Dir(os.Args[0])}
	if err := called(c.dir, strings.Join(args, " ")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return failure
	}
	if err := c.run(args); err != nil {
		c.report(err.Error())
		return failure
	}
	return 0
}

func (c *cli) run(args []string) error {
	flags := flag.NewFlagSet(nameCLI, flag.ContinueOnError)
	flags.StringVar(&c.root, "root", "", "")
	flags.StringVar(&c.log, "log", "", "")
	flags.StringVar(&c.panicLog, "panic-log", "", "")
	version := flags.Bool("version", false, "")
	for _, name := range []string{"log-format", "network", "platform", "overlay2", "in-sandbox-cgroup", "control-rpc-stop-timeout", "shared-root", "restore-spec-validation"} {
		flags.String(name, "", "")
	}
	for _, name := range []string{"allow-suid", "net-raw", "oci-seccomp"} {
		flags.Bool(name, false, "")
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	c.op = "version"
	if !*version {
		if flags.NArg() == 0 {
			return errors.New("no subcommand")
		}
		c.op, c.args = flags.Arg(0), flags.Args()[1:]
	}
	if err := c.fault(); err != nil {
		return err
	}
	switch c.op {
	case "version":
		fmt.Printf("runsc version fake\nspec: 1.2.1\n")
		return nil
	case "create", "run":
		return c.create()
	case "start":
		return c.start()
	case "restore":
		return c.restoreCommand()
	case "delete":
		return c.delete()
	case "state":
		return c.state()
	case "wait":
		return c.wait()
	case "kill":
		return c.kill()
	}
	return fmt.Errorf("subcommand %q", c.op)
}

// fault does what the subcommand shall do wrong at its begin.
func (c *cli) fault() error {
	switch kind, text := fault(c.dir, c.op); kind {
	case "fail":
		return errors.New(text)
	case "panic":
		if err := os.WriteFile(c.panicLog, []byte("panic: "+text+"\n\ngoroutine 1 [running]:\n"), 0o600); err != nil {
			return err
		}
		return errors.New("creating container: cannot read client sync file: EOF")
	case Hang:
		hang(c.dir, c.op)
	case HoldOutput:
		child := exec.Command("/bin/sleep", "60")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if err := child.Start(); err != nil {
			return err
		}
		path := filepath.Join(c.dir, holderFile)
		if err := os.WriteFile(path+".new", []byte(strconv.Itoa(child.Process.Pid)), 0o600); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
		hang(c.dir, c.op)
	case Die:
		die()
	}
	return nil
}

// dieAt ends the command if this is where it shall die.
func (c *cli) dieAt(point string) {
	if kind, _ := fault(c.dir, c.op); kind == point {
		die()
	}
}

func die() {
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// report writes an error where runsc writes it. Each line is an error.
func (c *cli) report(text string) {
	fmt.Fprintln(os.Stderr, text)
	log, err := os.OpenFile(c.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	defer log.Close()
	for line := range strings.Lines(text) {
		data, _ := json.Marshal(map[string]any{"msg": strings.TrimSpace(line), "level": "error", "time": time.Now()})
		_, _ = log.Write(data) // without a newline, as runsc does
	}
}

// createArgs are the flags of create and run.
type createArgs struct {
	bundle, pidFile, console, image, id string
	detach                              bool
}

func (c *cli) createArgs() (createArgs, error) {
	var a createArgs
	flags := flag.NewFlagSet(c.op, flag.ContinueOnError)
	flags.StringVar(&a.bundle, "bundle", "", "")
	flags.StringVar(&a.pidFile, "pid-file", "", "")
	flags.StringVar(&a.console, "console-socket", "", "")
	flags.StringVar(&a.image, "image-path", "", "")
	flags.BoolVar(&a.detach, "detach", false, "")
	if err := flags.Parse(c.args); err != nil {
		return a, err
	}
	a.id = flags.Arg(0)
	if a.id == "" {
		return a, errors.New("a container id is required")
	}
	if c.op == "run" && !a.detach {
		return a, errors.New("run without --detach")
	}
	return a, nil
}

func readSpec(bundle string) (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("reading spec: %w", err)
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("reading spec: %w", err)
	}
	return &s, nil
}

func (c *cli) create() error {
	a, err := c.createArgs()
	if err != nil {
		return err
	}
	s, err := readSpec(a.bundle)
	if err != nil {
		return err
	}
	state := &state{ID: a.id, BundleDir: a.bundle, Status: "created"}
	state.Sandbox.ID = a.id
	sub := s.Annotations["io.kubernetes.cri.container-type"] == "container"
	if sub {
		state.Sandbox.ID = s.Annotations["io.kubernetes.cri.sandbox-id"]
	}
	if sub != (c.op == "run") {
		return fmt.Errorf("%s of a container of type %q", c.op, s.Annotations["io.kubernetes.cri.container-type"])
	}
	if _, err := c.load(a.id); err == nil {
		return fmt.Errorf("creating container: container with id %q already exists", a.id)
	}
	if sub {
		return c.runSub(state, s, a.console)
	}
	pid, err := c.startSandbox(a.id)
	if err != nil {
		return fmt.Errorf("creating container: %w", err)
	}
	c.dieAt(DieBeforeState)
	state.Sandbox.PID = pid
	if err := c.save(state); err != nil {
		return err
	}
	c.dieAt(DieBeforePID)
	if a.pidFile == "" {
		return nil
	}
	return os.WriteFile(a.pidFile, []byte(strconv.Itoa(pid)), 0o644)
}

// startSandbox starts the sandbox's process, which nobody waits for.
func (c *cli) startSandbox(id string) (int, error) {
	l, err := listen(c.root, id)
	if err != nil {
		return 0, err
	}
	cmd := exec.Command("/proc/self/exe")
	// As the real one, by which its orphans are found.
	cmd.Args = []string{nameSandbox, c.dir, "--root=" + c.root, id}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{l}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	return cmd.Process.Pid, nil
}

// runSub creates and starts a container in a sandbox that runs. The master of its
// terminal, if it has one, goes to the console socket.
func (c *cli) runSub(s *state, spec *specs.Spec, console string) error {
	root, err := c.load(s.Sandbox.ID)
	if err != nil {
		return fmt.Errorf("running container: creating container: cannot load sandbox: %w", err)
	}
	s.Sandbox = root.Sandbox
	sandbox := client{c.root, s.Sandbox.ID}
	if err := sandbox.call("CreateSubcontainer", s.ID, nil, nil); err != nil {
		return fmt.Errorf("running container: creating container: %w", err)
	}
	c.dieAt(DieBeforeState)
	if err := c.save(s); err != nil {
		return err
	}
	c.dieAt(DieBeforePID)
	args := startArgs{CID: s.ID, Args: spec.Process.Args, Terminal: spec.Process.Terminal}
	stdio := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	if spec.Process.Terminal {
		slave, err := sendTerminal(console)
		if err != nil {
			return fmt.Errorf("running container: creating container: setting up console with socket %q: %w", console, err)
		}
		defer slave.Close()
		stdio = []*os.File{slave, slave, slave}
	}
	if err := sandbox.call("StartSubcontainer", args, stdio, nil); err != nil {
		err = fmt.Errorf("running container: starting container: starting sub-container %v: creating process: %w", spec.Process.Args, err)
		return errors.Join(err, sandbox.call("DestroySubcontainer", s.ID, nil, nil), c.remove(s))
	}
	s.Status = "running"
	return c.save(s)
}

func (c *cli) start() error {
	s, err := c.loadArg()
	if err != nil {
		return err
	}
	if err := (client{c.root, s.Sandbox.ID}).call("StartRoot", s.ID, nil, nil); err != nil {
		return fmt.Errorf("starting container: %w", err)
	}
	s.Status = "running"
	return c.save(s)
}

func (c *cli) delete() error {
	flags := flag.NewFlagSet(c.op, flag.ContinueOnError)
	force := flags.Bool("force", false, "")
	if err := flags.Parse(c.args); err != nil {
		return err
	}
	c.args = flags.Args()
	s, err := c.loadArg()
	if errors.Is(err, os.ErrNotExist) && *force {
		return nil
	}
	if err != nil {
		return err
	}
	if s.ID != s.Sandbox.ID {
		if alive(s.Sandbox.PID) {
			if err := (client{c.root, s.Sandbox.ID}).call("DestroySubcontainer", s.ID, nil, nil); err != nil {
				return fmt.Errorf("destroying container: stopping container: %w", err)
			}
		}
		return c.remove(s)
	}
	_ = unix.Kill(s.Sandbox.PID, unix.SIGKILL)
	for end := time.Now().Add(10 * time.Second); alive(s.Sandbox.PID); time.Sleep(time.Millisecond) {
		if time.Now().After(end) { // a zombie is alive to runsc
			return errors.New("destroying container: stopping container: container is still running")
		}
	}
	if err := os.Remove(filepath.Join(c.root, socketName(s.ID))); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return c.remove(s)
}

// alive is how runsc tells whether a sandbox runs.
func alive(pid int) bool { return unix.Kill(pid, 0) == nil }

func (c *cli) state() error {
	s, err := c.loadArg()
	if err != nil {
		return err
	}
	var sentrys int
	if err := (client{c.root, s.Sandbox.ID}).call("ContainerRuntimeState", s.ID, nil, &sentrys); err != nil || sentrys == stateStopped {
		s.Status = "stopped"
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"ociVersion": specs.Version, "id": s.ID, "status": s.Status, "pid": s.Sandbox.PID, "bundle": s.BundleDir,
	})
}

func (c *cli) wait() error {
	s, err := c.loadArg()
	if err != nil {
		return err
	}
	var ws uint32
	if err := (client{c.root, s.Sandbox.ID}).call("Wait", s.ID, nil, &ws); err != nil {
		return fmt.Errorf("waiting on container %q: %w", s.ID, err)
	}
	status := unix.WaitStatus(ws).ExitStatus()
	if w := unix.WaitStatus(ws); w.Signaled() {
		status = 128 + int(w.Signal())
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"id": s.ID, "exitStatus": status})
}

func (c *cli) kill() error {
	flags := flag.NewFlagSet(c.op, flag.ContinueOnError)
	all := flags.Bool("all", false, "")
	if err := flags.Parse(c.args); err != nil {
		return err
	}
	c.args = flags.Args()
	s, err := c.loadArg()
	if err != nil {
		return err
	}
	sig, err := strconv.Atoi(flags.Arg(1))
	if err != nil || sig < 1 || sig > 31 {
		return fmt.Errorf("unknown signal %q", flags.Arg(1))
	}
	args := signalArgs{CID: s.ID, Signo: sig}
	if *all {
		args.Mode = toAll
	}
	return (client{c.root, s.Sandbox.ID}).call("Signal", args, nil, nil)
}

// loadArg loads the container that the first argument names.
func (c *cli) loadArg() (*state, error) {
	if len(c.args) == 0 {
		return nil, errors.New("a container id is required")
	}
	s, err := c.load(c.args[0])
	if err != nil {
		return nil, fmt.Errorf("loading container: %w", err)
	}
	return s, nil
}
