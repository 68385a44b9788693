package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestLog(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	// 40,000 bytes without a line break, a line, and the begin of one.
	c := p.run(t, "printf '%040000d' 0; echo; echo; echo end; printf begun")
	c.ended(t)
	var tags []string
	for _, l := range readLog(t, c.logPath()) {
		if l.stream != "stdout" || len(l.contents) > 16<<10 {
			t.Errorf("log line of %s with %d bytes", l.stream, len(l.contents))
		}
		tags = append(tags, l.tag)
	}
	if got := strings.Join(tags, ""); got != "PPFFFP" {
		t.Errorf("tags: %s", got)
	}
	if want := strings.Repeat("0", 40000) + "\n\nend\nbegun"; c.output(t) != want {
		t.Errorf("%d bytes, want %d", len(c.output(t)), len(want))
	}
	// A container without a log path writes to nowhere.
	c = p.run(t, "seq 100000", func(c *runtime.ContainerConfig) { c.LogPath = "" })
	if s := c.ended(t); s.ExitCode != 0 || s.LogPath != "" {
		t.Errorf("status: %v", s)
	}
}

// counter is a script that counts, a line each, until there is a file /stop.
const counter = "i=0; while ! [ -e /stop ]; do for _ in 1 2 3 4 5 6 7 8 9 10; do echo $i; i=$((i+1)); done; done; echo $i last"

// TestReopenLog rotates the log of a container that writes all the time.
func TestReopenLog(t *testing.T) {
	d := newDaemon(t, noNetwork)
	c := d.runPod(t).run(t, counter)
	var files []string
	for i := range 20 {
		eventually(t, "the container writes", func() error {
			if s, err := os.Stat(c.logPath()); err != nil || s.Size() < 4096 {
				return fmt.Errorf("%v, %w", s, err)
			}
			return nil
		})
		files = append(files, fmt.Sprintf("%s.%d", c.logPath(), i))
		check(t, os.Rename(c.logPath(), files[i]))
		check(t, d.pods.ReopenContainerLog(ctx(t), c.id))
	}
	c.exec(t, "touch /stop")
	c.ended(t)
	n := 0
	for _, file := range append(files, c.logPath()) {
		for _, l := range readLog(t, file) {
			if want := fmt.Sprint(n); l.contents != want && l.contents != want+" last" {
				t.Fatalf("%s: line %q, want %q", file, l.contents, want)
			}
			n++
		}
	}
	if !strings.HasSuffix(c.output(t), " last\n") {
		t.Errorf("the log ends in %q", c.output(t))
	}
}

// TestReopenLogFails leaves no file and loses nothing.
func TestReopenLogFails(t *testing.T) {
	d := newDaemon(t, noNetwork)
	c := d.runPod(t).run(t, "echo first; until [ -e /go ]; do sleep 0.1; done; echo second")
	c.waitFor(t, "first")
	old := d.path("logs.old")
	check(t, os.Rename(d.path("logs"), old))
	if err := d.pods.ReopenContainerLog(ctx(t), c.id); err == nil {
		t.Error("reopened in a directory that is not there")
	}
	check(t, os.Rename(old, d.path("logs")))
	c.exec(t, "touch /go")
	c.ended(t)
	if out := c.output(t); out != "first\nsecond\n" {
		t.Errorf("output %q", out)
	}
}

// TestFullDisk holds the container back, and nobody else; when there is space
// again every line is there.
func TestFullDisk(t *testing.T) {
	d := newDaemon(t, noNetwork)
	other := d.runPod(t)
	p := d.runPod(t, func(c *runtime.PodSandboxConfig) {
		c.LogDirectory = d.path("small")
		check(t, os.Mkdir(c.LogDirectory, 0o755))
		check(t, unix.Mount("tmpfs", c.LogDirectory, "tmpfs", 0, "size=1m"))
		t.Cleanup(func() { check(t, unix.Unmount(c.LogDirectory, unix.MNT_DETACH)) })
	})
	// More than the disk and the FIFO hold.
	const lines = 400_000
	c := p.run(t, fmt.Sprintf("seq %d", lines))
	eventually(t, "the disk is full", func() error {
		log, err := os.ReadFile(d.path("log"))
		if err == nil && !strings.Contains(string(log), "log cannot be written") {
			return errors.New("it is not")
		}
		return err
	})
	if s := c.status(t); s.State != runtime.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is not held back: %v", s)
	}
	free := other.run(t, "echo free")
	if free.ended(t); free.output(t) != "free\n" {
		t.Errorf("another container's log: %q", free.output(t))
	}
	check(t, d.pods.ReopenContainerLog(ctx(t), c.id))
	check(t, unix.Mount("tmpfs", p.config.LogDirectory, "tmpfs", unix.MS_REMOUNT, "size=64m"))
	c.ended(t)
	log := readLog(t, c.logPath())
	if len(log) != lines {
		t.Errorf("%d lines, want %d", len(log), lines)
	}
	for i, l := range log {
		if want := fmt.Sprint(i + 1); l.contents != want || l.tag != "F" {
			t.Fatalf("line %q %s, want %q", l.contents, l.tag, want)
		}
	}
}
