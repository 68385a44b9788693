package runsc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/runscd/runscd/test/fakerunsc"
)

func TestMain(m *testing.M) {
	fakerunsc.Main()
	os.Exit(m.Run())
}

// node is a runtime with a fake runsc.
type node struct {
	*Runtime
	*fakerunsc.Fake
	t *testing.T
}

func newNode(t *testing.T) *node {
	fake := fakerunsc.Install(t)
	return &node{
		Runtime: New(Options{Path: fake.Path, Root: filepath.Join(t.TempDir(), "root"), Flags: []string{"--platform=systrap"}}),
		Fake:    fake, t: t,
	}
}

// id is a full id that begins with the name, in hex digits.
func id(name string) string { return name + strings.Repeat("0", 64-len(name)) }

// bundle makes the bundle of a container of the sandbox, or of the sandbox.
func (n *node) bundle(container, sandbox string, args ...string) string {
	n.t.Helper()
	kind := "container"
	if container == sandbox {
		kind = "sandbox"
	}
	data, err := json.Marshal(&specs.Spec{
		Process:     &specs.Process{Args: args},
		Annotations: map[string]string{"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": sandbox},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	dir := n.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		n.t.Fatal(err)
	}
	return dir
}

// sandbox makes and starts a sandbox and returns its process.
func (n *node) sandbox(sandbox string) int {
	n.t.Helper()
	dir := n.bundle(sandbox, sandbox, "/pause")
	pid, err := n.Create(n.t.Context(), sandbox, CreateConfig{Bundle: dir})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.Start(n.t.Context(), sandbox, CreateConfig{Bundle: dir}); err != nil {
		n.t.Fatal(err)
	}
	return pid
}

// container runs a container whose output is returned.
func (n *node) container(container, sandbox string, args ...string) *os.File {
	n.t.Helper()
	out, w, err := os.Pipe()
	if err != nil {
		n.t.Fatal(err)
	}
	defer w.Close()
	n.t.Cleanup(func() { out.Close() })
	null := devNull(n.t)
	if err := n.Run(n.t.Context(), container, n.bundle(container, sandbox, args...), Stdio{null, w, w}); err != nil {
		n.t.Fatal(err)
	}
	return out
}

func devNull(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestLifeOfASandbox(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	version, err := n.Version(ctx)
	if version != "fake" || err != nil {
		t.Errorf("version %q, %v", version, err)
	}
	pid := n.sandbox(id("a"))
	n.container(id("b"), id("a"), "sleep")
	want := map[string]string{id("a"): id("a"), id("b"): id("a")}
	if got, err := n.List(); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("list %v, %v; want %v", got, err, want)
	}
	for range 2 {
		if err := n.Delete(ctx, id("b")); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := n.Delete(ctx, id("a")); err != nil {
			t.Error(err)
		}
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("sandbox process: %v", err)
	}
	if left, err := os.ReadDir(n.root); err != nil || len(left) > 0 {
		t.Errorf("left in the root directory: %v, %v", left, err)
	}
}

func TestForgetLeavesNothingOfASandboxThatDied(t *testing.T) {
	n := newNode(t)
	pid := n.sandbox(id("a"))
	n.container(id("b"), id("a"), "sleep")
	n.sandbox(id("c"))
	kill(t, pid)
	for range 2 {
		if err := n.Forget(id("a")); err != nil {
			t.Fatal(err)
		}
	}
	got, err := n.List()
	if err != nil || len(got) != 1 || got[id("c")] == "" {
		t.Errorf("list %v, %v", got, err)
	}
	for _, e := range entries(t, n.root) {
		if strings.Contains(e, id("a")) {
			t.Errorf("left: %s", e)
		}
	}
}

func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// kill ends a process and waits until it is reaped.
func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for unix.Kill(pid, 0) == nil {
		time.Sleep(time.Millisecond)
	}
}

func TestListOfNoRootIsEmpty(t *testing.T) {
	if got, err := newNode(t).List(); err != nil || len(got) > 0 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestCommandLines(t *testing.T) {
	n := newNode(t)
	dir := n.bundle(id("a"), id("a"))
	config := CreateConfig{Bundle: dir, HostNetwork: true}
	if _, err := n.Create(t.Context(), id("a"), config); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context(), id("a"), config); err != nil {
		t.Fatal(err)
	}
	n.container(id("b"), id("a"), "sleep")
	for _, c := range []string{id("b"), id("a")} {
		if err := n.Delete(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	const global = " --in-sandbox-cgroup=v2 --overlay2=root:self --oci-seccomp --allow-suid --control-rpc-stop-timeout=0s --platform=systrap"
	want := []string{
		"--root ROOT --log BUNDLE/runsc.log --log-format json" + global + " --network=host --panic-log=BUNDLE/panic.log create --bundle BUNDLE --pid-file BUNDLE/pid A",
		"--root ROOT --log BUNDLE/runsc.log --log-format json" + global + " --network=host start A",
		"--root ROOT --log OTHER/runsc.log --log-format json" + global + " run --bundle OTHER --detach B",
		"--root ROOT" + global + " delete --force B",
		"--root ROOT" + global + " delete --force A",
	}
	var got []string
	for _, call := range n.Calls() {
		if strings.HasPrefix(call, "rpc.") {
			continue
		}
		if _, other, ok := strings.Cut(call, "run --bundle "); ok {
			call = strings.ReplaceAll(call, strings.Fields(other)[0], "OTHER")
		}
		got = append(got, strings.NewReplacer(dir, "BUNDLE", n.root, "ROOT", id("a"), "A", id("b"), "B").Replace(call))
	}
	if !slices.Equal(got, want) {
		t.Errorf("command lines:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestErrorsHaveTheirCauseAndKind(t *testing.T) {
	for _, tt := range []struct {
		name, op, text, want string
		kind                 error
	}{
		{"the first error wins", "create", "no space left\ncannot read client sync file: EOF", "sandbox creation: no space left", nil},
		{"start", "start", "starting root container: failed to load /pause: no such file or directory", "sandbox start: starting root container: failed to load /pause: no such file or directory", ErrNoExecutable},
		{"run", "run", "error finding executable \"x\" in PATH []", "error finding executable \"x\" in PATH []", ErrNoExecutable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			if tt.op == "run" {
				n.sandbox(id("a"))
			}
			n.Fail(tt.op, tt.text)
			dir, sub := n.bundle(id("a"), id("a")), n.bundle(id("b"), id("a"))
			var err error
			if tt.op == "run" {
				null := devNull(t)
				err = n.Run(t.Context(), id("b"), sub, Stdio{null, null, null})
			} else if _, err = n.Create(t.Context(), id("a"), CreateConfig{Bundle: dir}); err == nil {
				err = n.Start(t.Context(), id("a"), CreateConfig{Bundle: dir})
			}
			if err == nil || err.Error() != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
			if tt.kind != nil && !errors.Is(err, tt.kind) {
				t.Errorf("error %v is not %v", err, tt.kind)
			}
		})
	}
}

func TestPanicOfTheSentryIsTheCause(t *testing.T) {
	n := newNode(t)
	n.Panic("runtime error: index out of range [3] with length 2")
	_, err := n.Create(t.Context(), id("a"), CreateConfig{Bundle: n.bundle(id("a"), id("a"))})
	const want = "sandbox creation: sentry: panic: runtime error: index out of range [3] with length 2"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestAnOldErrorIsNotTheCauseOfALaterOne(t *testing.T) {
	n := newNode(t)
	dir := n.bundle(id("a"), id("a"))
	n.Fail("create", "no space left")
	if _, err := n.Create(t.Context(), id("a"), CreateConfig{Bundle: dir}); err == nil {
		t.Fatal("no error")
	}
	n.Fault("create", fakerunsc.Die)
	_, err := n.Create(t.Context(), id("a"), CreateConfig{Bundle: dir})
	if err == nil || strings.Contains(err.Error(), "no space") || !strings.Contains(err.Error(), "137") {
		t.Errorf("error %v, want one about status 137", err)
	}
}

func TestCause(t *testing.T) {
	for _, tt := range []struct{ name, log, panicLog, want string }{
		{"nothing", "", "", ""},
		{"no error", `{"msg":"hello","level":"info"}`, "", ""},
		{"objects without a separator", `{"msg":"hello","level":"warning"}{"msg":"first","level":"error"}{"msg":"second","level":"error"}`, "", "first"},
		{"a panic before an error", `{"msg":"cannot read client sync file: EOF","level":"error"}`, "panic: x", "sentry: panic: x"},
		{"cut short", `{"msg":"first","lev`, "fatal error: all goroutines are asleep\n", "sentry: fatal error: all goroutines are asleep"},
		{"panic after other lines", "", "runsc version x\npanic: y\n\ngoroutine", "sentry: panic: y"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{callLog: tt.log, panicLog: tt.panicLog} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := Cause(dir); got != tt.want {
				t.Errorf("cause %q, want %q", got, tt.want)
			}
		})
	}
}

func TestKindsOfErrors(t *testing.T) {
	for text, kind := range map[string]error{
		"starting sub-container [/x]: failed to load /x: no such file or directory": ErrNoExecutable,
		"failed to load /x: permission denied":                                      errdefs.ErrPermissionDenied,
		`error finding executable "x" in PATH [/bin]: no such file or directory`:    ErrNoExecutable,
		"failed to find initial working directory \"/x\"":                           errdefs.ErrInvalidArgument,
		`container "x" not started`:                                                 errdefs.ErrFailedPrecondition,
		`container "x" has stopped`:                                                 errdefs.ErrFailedPrecondition,
		`container "x" not found`:                                                   errdefs.ErrNotFound,
		"no such process with PID 7":                                                errdefs.ErrNotFound,
		"no such process group with PGID 7":                                         errdefs.ErrNotFound,
		`process group 7 does not belong to container "x"`:                          errdefs.ErrNotFound,
		"unknown method":                                                            errdefs.ErrNotImplemented,
		"something that nobody has ever heard about":                                nil,
	} {
		err := classify(text)
		if err.Error() != text {
			t.Errorf("text %q became %q", text, err)
		}
		if kind != nil && !errors.Is(err, kind) {
			t.Errorf("%q is not %v", text, kind)
		}
		if kind == nil && errors.Unwrap(err) != nil {
			t.Errorf("%q has the kind %v", text, errors.Unwrap(err))
		}
	}
}

// Each command ends at its deadline, also if a grandchild has the output.
func TestDeadlines(t *testing.T) {
	for _, tt := range []struct {
		op   string
		call func(ctx context.Context, n *node) error
	}{
		{"version", func(ctx context.Context, n *node) error { _, err := n.Version(ctx); return err }},
		{"start", func(ctx context.Context, n *node) error {
			return n.Start(ctx, id("a"), CreateConfig{Bundle: n.bundle(id("a"), id("a"))})
		}},
		{"delete", func(ctx context.Context, n *node) error { return n.Delete(ctx, id("a")) }},
	} {
		t.Run(tt.op, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.sandbox(id("a"))
			n.Fault(tt.op, fakerunsc.HoldOutput)
			ctx, cancel := context.WithCancelCause(t.Context())
			errs := make(chan error, 1)
			go func() { errs <- tt.call(ctx, n) }()
			holder := n.Holder()
			defer unix.Kill(holder, unix.SIGKILL)
			cancel(context.DeadlineExceeded)
			err := <-errs
			if err == nil {
				t.Error("no error")
			}
			if tt.op == "start" && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v is no exceeded deadline", err)
			}
			if err := unix.Kill(holder, 0); err != nil {
				t.Errorf("the grandchild does not hold the output any more: %v", err)
			}
		})
	}
}

func TestStdioOfAContainer(t *testing.T) {
	n := newNode(t)
	n.sandbox(id("a"))
	files := map[string][2]*os.File{}
	for _, name := range []string{"in", "out", "err"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		files[name] = [2]*os.File{r, w}
	}
	run := func(c string, args ...string) {
		t.Helper()
		err := n.Run(t.Context(), c, n.bundle(c, id("a"), args...), Stdio{files["in"][0], files["out"][1], files["err"][1]})
		if err != nil {
			t.Fatal(err)
		}
	}
	run(id("b"), "cat")
	run(id("c"), "eprint", "oh")
	fmt.Fprintln(files["in"][1], "hello")
	for _, f := range []*os.File{files["in"][1], files["out"][1], files["err"][1]} {
		f.Close()
	}
	out := make([]byte, 20)
	got, err := files["out"][0].Read(out)
	if err != nil || string(out[:got]) != "hello\n" {
		t.Errorf("output %q, %v", out[:got], err)
	}
	got, err = files["err"][0].Read(out)
	if err != nil || string(out[:got]) != "oh\n" {
		t.Errorf("error output %q, %v", out[:got], err)
	}
}

func TestAFailedRunLeavesNoContainer(t *testing.T) {
	n := newNode(t)
	n.sandbox(id("a"))
	null := devNull(t)
	err := n.Run(t.Context(), id("b"), n.bundle(id("b"), id("a"), "/nothing"), Stdio{null, null, null})
	if !errors.Is(err, ErrNoExecutable) {
		t.Errorf("error %v", err)
	}
	if got, err := n.List(); err != nil || len(got) != 1 {
		t.Errorf("list %v, %v", got, err)
	}
}

func TestBinaryThatIsNotThere(t *testing.T) {
	r := New(Options{Path: "/nowhere/runsc", Root: t.TempDir()})
	if _, err := r.Version(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	r = New(Options{Path: "/bin/echo", Root: t.TempDir()})
	if _, err := r.Version(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
}

func TestCapabilityBits(t *testing.T) {
	got, err := capabilities(&specs.LinuxCapabilities{
		Permitted: []string{"CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"}, Bounding: []string{"CAP_NET_RAW"},
		Effective: []string{"CAP_CHOWN"}, Inheritable: []string{"CAP_MKNOD"}, Ambient: []string{"CAP_SYSLOG"},
	})
	want := taskCapabilities{PermittedCaps: 1 | 1<<40, BoundingCaps: 1 << 13, EffectiveCaps: 1, InheritableCaps: 1 << 27, AmbientCaps: 1 << 34}
	if err != nil || *got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if got, err := capabilities(nil); err != nil || *got != (taskCapabilities{}) {
		t.Errorf("none: %+v, %v", got, err)
	}
	_, err = capabilities(&specs.LinuxCapabilities{Permitted: []string{"CAP_NONSENSE"}})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "CAP_NONSENSE") {
		t.Errorf("unknown capability: %v", err)
	}
	for i := range 41 {
		if n := len(capabilityBits); n < 41 {
			t.Fatalf("%d capabilities known, want at least 41", n)
		}
		found := false
		for _, bit := range capabilityBits {
			found = found || bit == uint(i)
		}
		if !found {
			t.Errorf("no capability has bit %s", strconv.Itoa(i))
		}
	}
}
