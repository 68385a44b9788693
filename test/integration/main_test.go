// Package integration runs the daemon with the real runsc, the real CNI plugins
// and a registry on loopback, and talks to it as the kubelet does, by the
// kubelet's own client.
//
// What it keeps true: the tests live in PID, mount and network namespaces of
// their own, so that no process, mount, bridge or packet filter rule of theirs
// outlives or disturbs anything; each test has a daemon of its own, on
// directories of its own, and fails if that leaves anything behind.
package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/runscd/runscd/test/isolate"
	"github.com/runscd/runscd/test/registry/loopback"
)

func TestMain(m *testing.M) {
	os.Exit(isolate.Run(func() (int, error) {
		if os.Getenv(traced) != "" {
			return trace()
		}
		return run(m)
	}))
}

// What all tests share.
var (
	runscd   string // the daemon's binary, which reports data races
	registry *loopback.Registry
	busybox  string // the reference of an image in the registry
)

func run(m *testing.M) (int, error) {
	if os.Getenv("RUNSCD_RUNSC") == "" {
		path, err := filepath.Abs("../../bin/runsc") // where make build puts it
		if err != nil {
			return 0, err
		}
		if err := os.Setenv("RUNSCD_RUNSC", path); err != nil {
			return 0, err
		}
	}
	if _, err := os.Stat(os.Getenv("RUNSCD_RUNSC")); err != nil {
		return 0, fmt.Errorf("runsc (make build makes it): %w", err)
	}
	dir, err := os.MkdirTemp("/tmp", "itest")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	runscd = filepath.Join(dir, "runscd")
	build := exec.Command("go", "build", "-race", "-o", runscd, "../../cmd/runscd")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		return 0, fmt.Errorf("build of the daemon: %w", err)
	}
	registry = loopback.New(loopback.Options{})
	defer registry.Close()
	img, err := loopback.Busybox(loopback.Config())
	if err != nil {
		return 0, err
	}
	if busybox, err = registry.Put("busybox:latest", img); err != nil {
		return 0, err
	}
	return m.Run(), nil
}
