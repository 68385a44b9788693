package runsc

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// Files that runsc writes in a bundle.
const (
	callLog  = "runsc.log" // errors of the last call and, after it, of the sentry that it started
	panicLog = "panic.log" // the sentry's own crash report
)

// Cause returns why the last runsc call for the bundle, or the sandbox that it
// started, failed: the sentry's panic, or else the first error in the log, for
// what is logged after them only tells that somebody else has failed. It is ""
// when nothing is logged.
func Cause(bundle string) string {
	if cause := firstPanic(filepath.Join(bundle, panicLog)); cause != "" {
		return cause
	}
	return firstError(filepath.Join(bundle, callLog))
}

func firstError(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	// Objects follow each other without a separator.
	for d := json.NewDecoder(f); ; {
		var line struct{ Msg, Level string }
		if err := d.Decode(&line); err != nil {
			return ""
		}
		if line.Level == "error" {
			return line.Msg
		}
	}
}

func firstPanic(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			return "sentry: " + line
		}
	}
	return ""
}

// kinds are the texts by which an error of runsc or the sentry is recognised.
var kinds = []struct {
	text string
	kind error
}{
	{"permission denied", errdefs.ErrPermissionDenied},
	{"error finding executable", ErrNoExecutable},
	{"failed to find initial working directory", errdefs.ErrInvalidArgument},
	{"failed to load ", ErrNoExecutable},
	{"not started", errdefs.ErrFailedPrecondition},
	{"has stopped", errdefs.ErrFailedPrecondition},
	{"no such process", errdefs.ErrNotFound},
	{"not found", errdefs.ErrNotFound},                    // container "…" not found
	{"does not belong to container", errdefs.ErrNotFound}, // process group
	{"unknown method", errdefs.ErrNotImplemented},
}

// ErrNoExecutable is the kind of a command that the container's file system
// does not have.
var ErrNoExecutable = fmt.Errorf("no such executable: %w", errdefs.ErrInvalidArgument)

// classified is runsc's text with our kind.
type classified struct {
	text string
	kind error
}

func (e *classified) Error() string { return e.text }
func (e *classified) Unwrap() error { return e.kind }

// classify gives the text of an error its kind.
func classify(text string) error {
	for _, k := range kinds {
		if strings.Contains(text, k.text) {
			return &classified{text, k.kind}
		}
	}
	return errors.New(text)
}
