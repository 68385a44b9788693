package cri

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/stats"
)

// TestMetricsAreDocumented compares docs/metrics.md with the series.
func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	is, isNot, _ := strings.Cut(string(text), "## What there is not")
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(container_\\w+)` \\|([^|]*)\\|([^|]*)\\|").FindAllStringSubmatch(is, -1) {
		labels := regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(row[2], -1)
		line := row[1]
		for _, l := range labels {
			line += " " + l[1]
		}
		documented = append(documented, line+":"+strings.TrimRight(row[3], " "))
	}
	var have []string
	for _, m := range allSeries(nil) {
		of := ""
		if m.pod != nil {
			of = " pod"
		}
		if m.container != nil {
			of = strings.TrimPrefix(of+", container", ",")
		}
		have = append(have, strings.Join(append([]string{m.name}, m.labels...), " ")+":"+of)
		if m.help == "" || (m.kind == counter) != strings.HasSuffix(m.name, "_total") && m.name != "container_memory_failcnt" && m.name != "container_fs_inodes_total" {
			t.Errorf("%s: kind %s, help %q", m.name, m.kind, m.help)
		}
		if strings.Contains(isNot, "`"+m.name+"`") {
			t.Errorf("%s is said not to be there", m.name)
		}
	}
	for i := range max(len(have), len(documented)) {
		if i >= len(have) || i >= len(documented) || have[i] != documented[i] {
			t.Fatalf("row %d: documented is %q, and there is %q", i, slices.Concat(documented, []string{"nothing"})[min(i, len(documented))],
				slices.Concat(have, []string{"nothing"})[min(i, len(have))])
		}
	}
}

func TestMetricDescriptors(t *testing.T) {
	s := newServer(t)
	resp, err := s.ListMetricDescriptors(t.Context(), &runtime.ListMetricDescriptorsRequest{})
	s.must(err)
	seen := map[string]bool{}
	for _, d := range resp.Descriptors {
		if seen[d.Name] || d.Help == "" || !slices.Equal(d.LabelKeys[:len(baseLabels)], baseLabels) {
			t.Errorf("%v", d)
		}
		seen[d.Name] = true
	}
	if len(seen) != len(allSeries(nil)) {
		t.Errorf("%d descriptors", len(seen))
	}
}

// TestMetrics shows all values of a pod.
func TestMetrics(t *testing.T) {
	s := newServer(t)
	f := s.figures()
	f.Host["memory.events.max"] = 3
	keys := map[string][]string{}
	for _, m := range allSeries(nil) {
		keys[m.name] = slices.Concat(baseLabels, m.labels)
	}
	show := func() string {
		t.Helper()
		r := podMetrics(allSeries(&stats.FileSystem{Device: "/dev/vda", Bytes: 1 << 40, Inodes: 1000, InodeFree: 900}), f)
		var b strings.Builder
		for _, m := range slices.Concat(r.Metrics, r.ContainerMetrics[0].Metrics) {
			b.WriteString(m.Name)
			if len(m.LabelValues) != len(keys[m.Name]) {
				t.Fatalf("labels of %v", m)
			}
			for i, v := range m.LabelValues {
				fmt.Fprintf(&b, "%s%s=%q", map[bool]string{true: "{", false: ","}[i == 0], keys[m.Name][i], v)
			}
			at := ""
			if m.Timestamp != 0 {
				at = fmt.Sprint(" at ", m.Timestamp/int64(time.Second))
			}
			value := fmt.Sprint(m.Value.Value)
			if strings.HasSuffix(m.Name, "_time_seconds") {
				value = "TIME"
			}
			fmt.Fprintf(&b, "} %s %s%s\n", value, strings.ToLower(m.MetricType.String()), at)
		}
		return strings.NewReplacer(f.Pod.ID, "POD", f.Containers[0].ID, "CONTAINER", f.Pod.CgroupPath(), "/CGROUP").Replace(b.String())
	}
	path := "testdata/metrics.txt"
	got := show()
	if os.Getenv("UPDATE") != "" {
		s.must(os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	s.must(err)
	if got != string(want) {
		t.Errorf("metrics are\n%s\nwant\n%s", got, want)
	}
	// What the sandbox has told before it began to hang has its time.
	f.Stale, f.Containers[0].Stale = true, true
	for line := range strings.Lines(show()) {
		name, _, _ := strings.Cut(line, "{")
		old := strings.Contains(line, `container="main"`) &&
			(strings.HasPrefix(name, "container_cpu_") || strings.HasPrefix(name, "container_memory_") || name == "container_processes" || name == "container_threads")
		if strings.Contains(line, " at 1700000001") != old {
			t.Errorf("%s", line)
		}
	}
}
