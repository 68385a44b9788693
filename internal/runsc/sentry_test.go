package runsc

import (
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestSentryFigures(t *testing.T) {
	n := newNode(t)
	n.sandbox(id("a"))
	got, err := n.Control(id("a")).SentryFigures(t.Context())
	want := map[string]float64{"fs_opens": 42, "unimplemented_syscalls": 5, "netstack_tcp_current_open": 0, "of_a_later_runsc": 0.5}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

func TestStacks(t *testing.T) {
	n := newNode(t)
	n.sandbox(id("a"))
	if got, err := n.Control(id("a")).Stacks(t.Context()); err != nil || !strings.HasPrefix(got, "goroutine 1") {
		t.Errorf("%q, %v", got, err)
	}
}

// TestObservers has them told of commands and calls, with their errors.
func TestObservers(t *testing.T) {
	n := newNode(t)
	begin := time.Now()
	var commands, calls []string
	note := func(list *[]string) Observer {
		return func(_ context.Context, what string, since time.Time, err error) {
			if since.Before(begin) || since.After(time.Now()) {
				t.Errorf("%s began at %v", what, since)
			}
			if errdefs.IsUnavailable(err) {
				what += " unavailable"
			} else if err != nil {
				what += " " + err.Error()
			}
			*list = append(*list, what)
		}
	}
	n.onCommand, n.onCall = note(&commands), note(&calls)
	n.sandbox(id("a"))
	n.Fault("start", "fail no luck")
	_ = n.Start(t.Context(), id("a"), CreateConfig{Bundle: t.TempDir()})
	_, _ = n.Control(id("a")).State(t.Context(), id("a"))
	_, _ = n.Control(id("b")).Stacks(t.Context())
	if got := strings.Join(commands, ", "); !strings.HasPrefix(got, "create, start, start ") || !strings.Contains(got, "no luck") {
		t.Errorf("commands %s", got)
	}
	if got := strings.Join(calls, ", "); got != "ContainerRuntimeState, debug.Stacks unavailable" {
		t.Errorf("calls %s", got)
	}
}
