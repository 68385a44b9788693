package pod

import (
	"testing"
	"time"
)

func TestSentryFigures(t *testing.T) {
	n := newNode(t)
	p, err := n.Pod(n.runPod("p"))
	n.must(err)
	stopped := n.runPod("stopped")
	n.must(n.StopPod(t.Context(), stopped))
	got := n.SentryFigures(t.Context())
	if len(got) != 1 || got[p]["fs_opens"] != 42 {
		t.Errorf("%v", got)
	}
	n.statsTimeout = 10 * time.Millisecond
	n.Fault("rpc.Metrics.Export", "hang")
	if got := n.SentryFigures(t.Context()); len(got) != 0 {
		t.Errorf("of a sandbox that hangs: %v", got)
	}
}
