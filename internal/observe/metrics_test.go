package observe

import (
	"context"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/runscd/runscd/internal/cri"
	"github.com/runscd/runscd/internal/image"
	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/pod"
	"github.com/runscd/runscd/internal/stdio"
	"github.com/runscd/runscd/internal/stream"
)

// What is observed; all of it ends with the error.
type (
	fakeNetwork struct {
		network.None
		err error
	}
	fakeImages struct {
		pod.Images
		err error
	}
	fakePulls struct {
		cri.ImageStore
		err error
	}
	fakeSessions struct {
		stream.Pods
		during func()
		err    error
	}
)

func (f fakeNetwork) Add(context.Context, network.Pod) ([]string, error) { return nil, f.err }

func (f fakeNetwork) Del(context.Context, network.Pod) error { return f.err }

func (f fakeImages) Mount(context.Context, string, string, string, *image.IDMap) error { return f.err }

func (f fakePulls) Pull(context.Context, string, image.Auth) (*image.Image, error) { return nil, f.err }

func (f fakeSessions) Exec(context.Context, string, []string, bool, stdio.Streams) (int, error) {
	f.during()
	return 0, f.err
}

// observeAll has everything observed once that ends with an error or with none.
func observeAll(ctx context.Context, o *Observer, err error) {
	n := o.Network(fakeNetwork{err: err})
	_, _ = n.Add(ctx, network.Pod{})
	_ = n.Del(ctx, network.Pod{})
	_ = o.Images(fakeImages{err: err}).Mount(ctx, "", "", "", nil)
	_, _ = o.Pulls(fakePulls{err: err}).Pull(ctx, "", image.Auth{})
	now := time.Now()
	for _, c := range []string{"create", "start", "run", "delete", "kill"} {
		o.Command(ctx, c, now, err)
	}
	o.Call(ctx, "Wait", now, err)
	o.Received(1000)
	o.rpc("RunPodSandbox", "OK", time.Second)
}

// scrape returns what Prometheus would read.
func scrape(t *testing.T, o *Observer) string {
	t.Helper()
	w := httptest.NewRecorder()
	o.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestWhatIsCounted(t *testing.T) {
	o := New("1.2.3", nil)
	o.Watch(Node{Pods: &pod.Registry{}, Reaped: func() uint64 { return 4 }})
	o.Recovered(1500 * time.Millisecond)
	observeAll(t.Context(), o, nil)
	observeAll(t.Context(), o, fmt.Errorf("no: %w", errdefs.ErrNotFound))
	o.Call(t.Context(), "Wait", time.Now(), fmt.Errorf("x: %w", errdefs.ErrUnavailable))
	o.Call(t.Context(), "Wait", time.Now(), fmt.Errorf("x: %w", context.DeadlineExceeded))
	o.Call(t.Context(), "Wait", time.Now(), fmt.Errorf("x: %w", context.Canceled))
	_, _ = o.Sessions(fakeSessions{during: func() {
		if text := scrape(t, o); !strings.Contains(text, `runscd_sessions{kind="exec"} 1`) {
			t.Error("an open session is not counted")
		}
	}}).Exec(t.Context(), "", nil, false, stdio.Streams{})
	text := scrape(t, o)
	var want []string
	for _, phase := range []string{"network", "network_delete", "snapshot", "sandbox_create", "sandbox_start", "container_start", "delete"} {
		for _, result := range []string{"ok", "error"} {
			want = append(want, fmt.Sprintf(`runscd_phase_seconds_count{phase=%q,result=%q} 1`, phase, result))
		}
	}
	for _, result := range []string{"ok", "refused", "gone", "timeout", "canceled"} {
		want = append(want, fmt.Sprintf(`runscd_control_calls_total{method="Wait",result=%q} 1`, result))
	}
	for _, line := range append(want,
		`runscd_rpc_seconds_count{code="OK",method="RunPodSandbox"} 2`,
		`runscd_rpc_seconds_sum{code="OK",method="RunPodSandbox"} 2`,
		`runscd_image_pull_seconds_count{result="ok"} 1`, `runscd_image_pull_seconds_count{result="error"} 1`,
		`runscd_image_pull_bytes_total 2000`,
		`runscd_sessions_total{kind="exec"} 1`, `runscd_sessions{kind="exec"} 0`,
		`runscd_reaped_processes_total 4`, `runscd_recovery_seconds 1.5`, `runscd_build_info{version="1.2.3"} 1`,
		`runscd_pods{state="running"} 0`, `runscd_containers{state="created"} 0`) {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no %s", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestSeriesAreDocumented compares docs/metrics.md with what Prometheus can read.
func TestSeriesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, own, _ := strings.Cut(string(text), "## The daemon's own series")
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(runscd?_\\w+)` \\|([^|]*)\\|").FindAllStringSubmatch(own, -1) {
		var labels []string
		for _, l := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(row[2], -1) {
			labels = append(labels, l[1])
		}
		slices.Sort(labels)
		documented[row[1]] = strings.Join(labels, " ")
	}
	o := New("1.2.3", nil)
	o.Watch(Node{Pods: &pod.Registry{}, Reaped: func() uint64 { return 0 }})
	observeAll(t.Context(), o, nil)
	_, _ = o.Sessions(fakeSessions{during: func() {}}).Exec(t.Context(), "", nil, false, stdio.Streams{})
	families, err := o.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "runscd_") {
			continue
		}
		var labels []string
		for _, l := range f.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		have[f.GetName()] = strings.Join(labels, " ")
	}
	for _, s := range sentrySeries {
		name := regexp.MustCompile(`fqName: "(\w+)"`).FindStringSubmatch(s.desc.String())[1]
		have[name] = "namespace pod sandbox"
	}
	if !maps.Equal(documented, have) {
		t.Errorf("docs/metrics.md has\n%v\nthere are\n%v", documented, have)
	}
	for _, phase := range append(slices.Collect(maps.Values(commandPhases)), "network", "network_delete", "snapshot") {
		if !strings.Contains(own, "`"+phase+"`") {
			t.Errorf("phase %s is not explained", phase)
		}
	}
}
