package main

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/runscd/runscd/internal/config"
)

// TestDebugSocketOfADeadDaemon has the next daemon take its place.
func TestDebugSocketOfADeadDaemon(t *testing.T) {
	c := config.Default()
	c.Debug.Socket = filepath.Join(t.TempDir(), "debug")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.Debug.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	d, err := openDiagnostics(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	stacks, err := goroutines(t.Context(), c.Debug.Socket)
	if err != nil || !strings.Contains(stacks, "TestDebugSocketOfADeadDaemon") {
		t.Errorf("%v: %.200s", err, stacks)
	}
	d.close()
	if _, err := goroutines(t.Context(), c.Debug.Socket); err == nil {
		t.Error("served after close")
	}
}

// TestFilesAreNotTakenForSockets has an address that is a file of somebody else's.
func TestFilesAreNotTakenForSockets(t *testing.T) {
	path := write(t, "precious")
	d := &diagnostics{}
	if err := d.serve("unix", path, http.NotFoundHandler()); err == nil {
		t.Error("served")
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "precious" {
		t.Errorf("%q, %v", text, err)
	}
}
