package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func topCommand(file *string) *cobra.Command {
	c := client{file: file}
	t := &top{}
	once := false
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show what pods and containers use, live",
		Long: `Show what the pods and containers that run use, until interrupted, the pod that uses
most CPU first. A pod's row is what the host counts for its sandbox with all that it
costs; the containers' rows are what the sandbox counts for each; (overhead) is what
the containers leave of the pod: the sandbox itself. CPU is in cores and the network's
traffic in bytes a second, both over the last interval. DISK is what containers have
written to their root file systems. Memory that is told of an earlier interval, for
the sandbox does not answer, has a ? behind it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if t.interval <= 0 {
				return fmt.Errorf("--interval %v: not positive", t.interval)
			}
			conn, err := c.dial()
			if err != nil {
				return err
			}
			defer conn.Close()
			t.pods, t.out = runtime.NewRuntimeServiceClient(conn), cmd.OutOrStdout()
			if once {
				return t.once(cmd.Context())
			}
			return t.live(cmd.Context())
		},
	}
	c.register(cmd)
	cmd.Flags().DurationVar(&t.interval, "interval", 2*time.Second, "time between two readings")
	cmd.Flags().BoolVar(&once, "once", false, "read twice, show one table and end")
	return cmd
}

// top is one `runscd top`.
type top struct {
	pods     runtime.RuntimeServiceClient
	out      io.Writer
	interval time.Duration

	last map[string]reading // of pods and containers, by id
}

// reading is what rates are computed from.
type reading struct {
	cpu     *runtime.CpuUsage
	network *runtime.NetworkUsage
}

// once shows one table.
func (t *top) once(ctx context.Context) error {
	if _, err := t.read(ctx); err != nil {
		return err
	}
	select {
	case <-time.After(t.interval):
	case <-ctx.Done():
		return ctx.Err()
	}
	rows, err := t.read(ctx)
	if err != nil {
		return err
	}
	return table(t.out, rows)
}

// live shows the table again and again until ctx ends. When the daemon is away for
// a while it says so and goes on.
func (t *top) live(ctx context.Context) error {
	tick := time.NewTicker(t.interval)
	defer tick.Stop()
	for first := true; ; first = false {
		var screen bytes.Buffer
		rows, err := t.read(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case err != nil:
			fmt.Fprintln(&screen, err)
		default:
			if err := table(&screen, rows); err != nil {
				return err
			}
		}
		// Top left, clear.
		if _, err := fmt.Fprint(t.out, "\x1b[H\x1b[2J", cut(screen.String(), height(t.out))); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// height is how many lines the terminal has that is written to; 0 if it is none.
func height(out io.Writer) int {
	f, ok := out.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Row)
}

// cut leaves so many lines of a text, the last of which tells what is missing. The
// cursor is to stay in the last line.
func cut(text string, lines int) string {
	all := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if lines < 2 || len(all) <= lines {
		return strings.Join(all, "\n")
	}
	return strings.Join(all[:lines-1], "\n") + fmt.Sprintf("\n… %d more", len(all)-lines+1)
}

// topRow is a row of the table: a pod's, or one of those of its containers and its
// overhead, which follow.
type topRow struct {
	pod, container string
	usage
	below []topRow
}

// read reads all figures.
func (t *top) read(ctx context.Context) ([]topRow, error) {
	pods, err := listPods(ctx, t.pods, false)
	if err != nil {
		return nil, err
	}
	stats, err := t.pods.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{})
	if err != nil {
		return nil, err
	}
	byID := map[string]*runtime.LinuxPodSandboxStats{}
	for _, s := range stats.Stats {
		byID[s.GetAttributes().GetId()] = s.Linux
	}
	last := t.last
	t.last = map[string]reading{}
	var rows []topRow
	for _, p := range pods {
		rows = append(rows, t.row(p, byID[p.Id], last))
	}
	slices.SortStableFunc(rows, func(a, b topRow) int { return cmp.Compare(b.rank(), a.rank()) })
	return rows, nil
}

// row is the row of a pod.
func (t *top) row(p *podRow, s *runtime.LinuxPodSandboxStats, last map[string]reading) topRow {
	row := topRow{pod: p.name(), usage: t.usage(p.Id, last, s.GetCpu(), s.GetMemory(), s.GetNetwork())}
	row.pids = number(s.GetProcess().GetProcessCount())
	byID := map[string]*runtime.ContainerStats{}
	for _, cs := range s.GetContainers() {
		byID[cs.GetAttributes().GetId()] = cs
	}
	overhead := topRow{container: "(overhead)", usage: usage{cores: row.cores, memory: row.memory}}
	for _, c := range p.containers {
		cs := byID[c.Id]
		u := t.usage(c.Id, last, cs.GetCpu(), cs.GetMemory(), nil)
		u.disk = number(cs.GetWritableLayer().GetUsedBytes())
		row.disk = sum(row.disk, u.disk)
		overhead.cores, overhead.memory = minus(overhead.cores, u.cores), minus(overhead.memory, u.memory)
		overhead.stale = overhead.stale || u.stale
		row.below = append(row.below, topRow{container: c.Metadata.Name, usage: u})
	}
	row.below = append(row.below, overhead)
	return row
}

// table writes rows.
func table(out io.Writer, rows []topRow) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "POD\tCONTAINER\tCPU\tMEMORY\tDISK\tPIDS\tRX/s\tTX/s\t")
	for _, r := range rows {
		pids := "-"
		if r.pids != nil {
			pids = fmt.Sprint(*r.pids)
		}
		fmt.Fprintf(w, "%s\t\t%s\t%s\t%s\t%s\t%s\t\n", r.pod, r.usage, size(r.disk), pids, size(r.received), size(r.sent))
		for _, c := range r.below {
			disk := size(c.disk)
			if c.container == "(overhead)" {
				disk = ""
			}
			fmt.Fprintf(w, "\t%s\t%s\t%s\t\t\t\t\n", c.container, c.usage, disk)
		}
	}
	return w.Flush()
}

// usage is what one object uses; nil where nobody knows.
type usage struct {
	cores          *float64
	memory, disk   *float64 // bytes
	received, sent *float64 // bytes a second
	pids           *float64
	stale          bool // not read anew since the last time
}

// usage computes what an object has used since the last reading.
func (t *top) usage(id string, last map[string]reading, cpu *runtime.CpuUsage, memory *runtime.MemoryUsage, network *runtime.NetworkUsage) usage {
	u := usage{memory: number(memory.GetWorkingSetBytes())}
	if cpu.GetUsageCoreNanoSeconds() == nil {
		return u
	}
	t.last[id] = reading{cpu, network}
	before, ok := last[id]
	if !ok {
		return u
	}
	u.stale = cpu.Timestamp <= before.cpu.Timestamp
	u.cores = rate(before.cpu.Timestamp, cpu.Timestamp, before.cpu.UsageCoreNanoSeconds.Value, cpu.UsageCoreNanoSeconds.Value, 1)
	if network != nil && before.network != nil {
		rx0, tx0 := traffic(before.network)
		rx, tx := traffic(network)
		u.received = rate(before.network.Timestamp, network.Timestamp, rx0, rx, 1e9)
		u.sent = rate(before.network.Timestamp, network.Timestamp, tx0, tx, 1e9)
	}
	return u
}

// rate is how much a counter has grown in so many nanoseconds; nil if no time has
// passed.
func rate(from, to int64, before, after uint64, scale float64) *float64 {
	if to <= from {
		return nil
	}
	r := (float64(after) - float64(before)) * scale / float64(to-from)
	return &r
}

// traffic is what has gone over all interfaces.
func traffic(n *runtime.NetworkUsage) (received, sent uint64) {
	for _, i := range append([]*runtime.NetworkInterfaceUsage{n.DefaultInterface}, n.Interfaces...) {
		received += i.GetRxBytes().GetValue()
		sent += i.GetTxBytes().GetValue()
	}
	return received, sent
}

func number(v *runtime.UInt64Value) *float64 {
	if v == nil {
		return nil
	}
	n := float64(v.Value)
	return &n
}

// sum adds what is known.
func sum(a, b *float64) *float64 {
	if a == nil || b == nil {
		return cmp.Or(a, b)
	}
	s := *a + *b
	return &s
}

// minus is what b leaves of a. Both are read at slightly different times, so it is
// no less than nothing.
func minus(a, b *float64) *float64 {
	if a == nil || b == nil {
		return nil
	}
	rest := max(0, *a-*b)
	return &rest
}

// rank orders rows by CPU. Those that look the same stay in their places.
func (u usage) rank() float64 {
	if u.cores == nil {
		return -1
	}
	return math.Round(*u.cores * 100)
}

// String is the two columns that all rows have.
func (u usage) String() string {
	mark := ""
	if u.stale && u.memory != nil {
		mark = "?"
	}
	cores := "-"
	if u.cores != nil {
		cores = fmt.Sprintf("%.2f", *u.cores)
	}
	return cores + "\t" + size(u.memory) + mark
}

// size writes a number of bytes for a person.
func size(v *float64) string {
	if v == nil {
		return "-"
	}
	bytes, units, i := *v, []string{"B", "KiB", "MiB", "GiB", "TiB"}, 0
	for ; bytes >= 1024 && i < len(units)-1; i++ {
		bytes /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%.0f B", bytes)
	}
	return fmt.Sprintf("%.1f %s", bytes, units[i])
}
