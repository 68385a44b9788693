package runsc

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// terminalBundle makes the bundle of a container with a terminal, at a path that
// no socket address holds.
func (n *node) terminalBundle(container string, args ...string) string {
	n.t.Helper()
	data, err := json.Marshal(&specs.Spec{
		Process:     &specs.Process{Args: args, Terminal: true},
		Annotations: map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": id("a")},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	dir := filepath.Join(n.t.TempDir(), strings.Repeat("d", 120))
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644)); err != nil {
		n.t.Fatal(err)
	}
	return dir
}

func TestRunTerminal(t *testing.T) {
	n := newNode(t)
	n.sandbox(id("a"))
	bundle := n.terminalBundle(id("b"), "cat")
	if err := os.WriteFile(filepath.Join(bundle, "console"), nil, 0o600); err != nil { // that a crash left
		t.Fatal(err)
	}
	master, err := n.RunTerminal(t.Context(), id("b"), bundle)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if _, err := master.WriteString("typed\n"); err != nil {
		t.Error(err)
	}
	const want = "typed\r\ntyped\r\n"
	var got []byte
	for b := make([]byte, 100); len(got) < len(want); {
		k, err := master.Read(b)
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		got = append(got, b[:k]...)
	}
	if string(got) != want {
		t.Errorf("screen %q", got)
	}
	processes, err := n.Control(id("a")).Processes(t.Context(), id("b"))
	if err != nil || len(processes) != 1 || !processes[0].Terminal || processes[0].Group != processes[0].PID {
		t.Errorf("processes %v, %v", processes, err)
	}
	if _, err := os.Stat(filepath.Join(bundle, "console")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket: %v", err)
	}
}

func TestAFailedRunTerminalLeavesNothing(t *testing.T) {
	n := newNode(t)
	n.sandbox(id("a"))
	bundle := n.terminalBundle(id("b"), "/nothing")
	if _, err := n.RunTerminal(t.Context(), id("b"), bundle); !errors.Is(err, ErrNoExecutable) {
		t.Errorf("error %v", err)
	}
	if got, err := n.List(); err != nil || len(got) != 1 {
		t.Errorf("list %v, %v", got, err)
	}
	files, err := os.ReadDir(bundle)
	if err != nil || slices.ContainsFunc(files, func(f os.DirEntry) bool { return f.Name() == "console" }) {
		t.Errorf("bundle %v, %v", files, err)
	}
}
