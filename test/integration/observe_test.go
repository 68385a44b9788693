package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// collected are the names of the spans that the daemon has sent.
type collected struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []string
}

func (c *collected) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.ResourceSpans {
		for _, s := range r.ScopeSpans {
			for _, span := range s.Spans {
				c.spans = append(c.spans, span.Name)
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// get reads a page of a server on a unix socket.
func get(t *testing.T, socket, page string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }}}
	resp, err := client.Get("http://localhost" + page)
	check(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	check(t, err)
	if resp.StatusCode != 200 {
		t.Fatalf("%s: %s: %s", page, resp.Status, text)
	}
	return string(text)
}

// TestDiagnostics has all that is off by default switched on.
func TestDiagnostics(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	traces, server := &collected{}, grpc.NewServer()
	collector.RegisterTraceServiceServer(server, traces)
	go server.Serve(l)
	t.Cleanup(server.Stop) // after the daemon's end

	dir, err := os.MkdirTemp("/tmp", "o")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	metrics, debug := dir+"/m", dir+"/d"
	d := newDaemon(t, noNetwork+fmt.Sprintf("metrics.address = %q\ntracing.endpoint = 'http://%s'\ndebug.socket = %q\n", metrics, l.Addr(), debug))
	for _, socket := range []string{metrics, debug} {
		info, err := os.Stat(socket)
		check(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v", socket, info.Mode())
		}
	}
	p := d.runPod(t)
	p.run(t, forever)
	want := []string{
		`runscd_rpc_seconds_count{code="OK",method="StartContainer"} 1`,
		`runscd_phase_seconds_count{phase="network",result="ok"} 1`,
		`runscd_phase_seconds_count{phase="snapshot",result="ok"} 1`,
		`runscd_phase_seconds_count{phase="container_start",result="ok"} 1`,
		`runscd_pods{state="running"} 1`,
		`runscd_containers{state="running"} 1`,
		`runscd_image_pull_seconds_count{result="ok"} 1`,
		fmt.Sprintf(`runsc_unimplemented_syscalls_total{namespace="default",pod=%q,sandbox=%q} `, p.config.Metadata.Name, p.id),
		fmt.Sprintf(`runsc_fs_opens_total{namespace="default",pod=%q,sandbox=%q} `, p.config.Metadata.Name, p.id),
	}
	// An RPC is counted when the client may already have the answer, and a sandbox
	// that is slow to answer has no series of its own.
	eventually(t, "all is told", func() error {
		text := get(t, metrics, "/metrics")
		for _, line := range want {
			if !strings.Contains(text, "\n"+line) {
				return fmt.Errorf("no %s in\n%s", line, text)
			}
		}
		return nil
	})
	if stacks := get(t, debug, "/debug/pprof/goroutine?debug=2"); !strings.Contains(stacks, "pod.(*Pod).watch") {
		t.Errorf("stacks:\n%s", stacks)
	}
	d.stop(t, unix.SIGTERM) // sends the last spans
	traces.mu.Lock()
	spans := slices.Clone(traces.spans)
	traces.mu.Unlock()
	for _, want := range []string{"runtime.v1.RuntimeService/RunPodSandbox", "network", "sandbox_create", "sandbox_start", "snapshot", "container_start"} {
		if !slices.Contains(spans, want) {
			t.Errorf("no span %s in %q", want, spans)
		}
	}
	d.start(t)
}
