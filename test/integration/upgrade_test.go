package integration

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUpgradeOfRunsc takes the binary and the handler from under running pods: they
// are driven on by the binary that made them.
func TestUpgradeOfRunsc(t *testing.T) {
	d := newDaemon(t, noNetwork)
	runsc, conf := d.path("runsc-1"), "conf.toml.d/20.toml"
	copyFile(t, os.Getenv("RUNSCD_RUNSC"), runsc)
	d.write(t, conf, fmt.Sprintf("[runtime.handlers.other]\npath = %q\nnet_raw = true\n", runsc))
	d.stop(t, unix.SIGTERM)
	d.start(t)
	for name, change := range map[string]func(){
		"no handler":     func() { check(t, os.Remove(d.path(conf))) },
		"another binary": func() { d.write(t, conf, "[runtime.handlers.other]\nplatform = 'systrap'\n") },
		"a binary in its place": func() {
			copyFile(t, os.Getenv("RUNSCD_RUNSC"), runsc+".new") // as a package does
			check(t, os.Rename(runsc+".new", runsc))
		},
		"no binary": func() { check(t, os.Remove(runsc)) },
	} {
		before := inode(t, runsc)
		p := d.runOther(t)
		idle, created := p.run(t, forever), p.create(t, forever)
		change()
		idle.says(t, "echo alive", "alive\n") // the same daemon
		d.stop(t, unix.SIGKILL)
		d.start(t)
		idle.says(t, "echo alive", "alive\n")
		check(t, d.pods.StartContainer(ctx(t), created.id))
		created.says(t, "echo alive", "alive\n")
		for _, b := range p.programs(t) {
			if b != before {
				t.Errorf("%s: another binary runs for the pod", name)
			}
		}
		check(t, d.pods.StopContainer(ctx(t), idle.id, 30))
		if s := idle.status(t); s.ExitCode != 3 {
			t.Errorf("%s: %v", name, s)
		}
		check(t, d.pods.RemoveContainer(ctx(t), idle.id))
		check(t, d.pods.RemovePodSandbox(ctx(t), p.id))

		_ = os.Remove(runsc)
		copyFile(t, os.Getenv("RUNSCD_RUNSC"), runsc)
		d.write(t, conf, fmt.Sprintf("[runtime.handlers.other]\npath = %q\n", runsc))
		d.stop(t, unix.SIGTERM)
		d.start(t)
	}
}

// runOther runs a sandbox by the handler other.
func (d *daemon) runOther(t *testing.T) *pod {
	t.Helper()
	config := d.podConfig()
	check(t, os.MkdirAll(config.LogDirectory, 0o755))
	id, err := d.pods.RunPodSandbox(ctx(t), config, "other")
	check(t, err)
	return &pod{daemon: d, id: id, config: config}
}

// programs are the inodes of what the processes of runsc's for the pod run.
func (p *pod) programs(t *testing.T) []uint64 {
	t.Helper()
	var found []uint64
	for _, line := range p.processes() {
		if pid, _, _ := strings.Cut(line, " "); strings.Contains(line, " runsc-") {
			found = append(found, inode(t, "/proc/"+pid+"/exe"))
		}
	}
	if len(found) < 3 { // the sandbox, and the gofers of two containers
		t.Errorf("%d processes", len(found))
	}
	return found
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	check(t, unix.Stat(path, &st))
	return st.Ino
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	check(t, err)
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	check(t, err)
	_, err = io.Copy(out, in)
	check(t, err)
	check(t, out.Close())
}
