package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func topCommand(file *string) *cobra.Command {
	c := client{file: file}
	t := &top{}
	once := false
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show what pods and containers use, live",
		Long: `Show what the pods and containers that run use, until interrupted. A pod's row is
what the host counts for its sandbox with all that it costs; the containers' rows
are what the sandbox counts for each; (overhead) is what the containers leave of the
pod: the sandbox itself. CPU is in cores, over the last interval. A figure that is
older than the interval, for the sandbox does not answer, has a ? behind it.`,
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

	last map[string]*runtime.CpuUsage // of pods and containers, by id
}

// once shows one table.
func (t *top) once(ctx context.Context) error {
	if err := t.table(ctx, io.Discard); err != nil {
		return err
	}
	select {
	case <-time.After(t.interval):
	case <-ctx.Done():
		return ctx.Err()
	}
	return t.table(ctx, t.out)
}

// live shows the table again and again until ctx ends.
func (t *top) live(ctx context.Context) error {
	tick := time.NewTicker(t.interval)
	defer tick.Stop()
	for {
		var screen bytes.Buffer
		screen.WriteString("\x1b[H\x1b[2J") // top left, clear
		err := t.table(ctx, &screen)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := t.out.Write(screen.Bytes()); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// table reads all figures and writes them.
func (t *top) table(ctx context.Context, out io.Writer) error {
	rows, err := listPods(ctx, t.pods, false)
	if err != nil {
		return err
	}
	stats, err := t.pods.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{})
	if err != nil {
		return err
	}
	byPod := map[string]*runtime.LinuxPodSandboxStats{}
	for _, s := range stats.Stats {
		byPod[s.GetAttributes().GetId()] = s.Linux
	}
	last := t.last
	t.last = map[string]*runtime.CpuUsage{}
	now := time.Now()
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "POD\tCONTAINER\tSTATE\tATTEMPT\tAGE\tCPU\tMEMORY\tPIDS")
	for _, p := range rows {
		s := byPod[p.Id]
		pids := "-"
		if n := s.GetProcess().GetProcessCount(); n != nil {
			pids = fmt.Sprint(n.Value)
		}
		pod := t.figures(p.Id, last, s.GetCpu(), s.GetMemory())
		fmt.Fprintf(w, "%s\t\t%s\t%d\t%s\t%s\t%s\n",
			p.name(), podState(p.State), p.Metadata.Attempt, age(now, p.CreatedAt), pod, pids)
		rest := pod
		byContainer := map[string]*runtime.ContainerStats{}
		for _, cs := range s.GetContainers() {
			byContainer[cs.GetAttributes().GetId()] = cs
		}
		for _, c := range p.containers {
			cs := byContainer[c.Id]
			f := t.figures(c.Id, last, cs.GetCpu(), cs.GetMemory())
			fmt.Fprintf(w, "\t%s\t%s\t%d\t%s\t%s\t\n",
				c.Metadata.Name, containerState(c.State), c.Metadata.Attempt, age(now, c.CreatedAt), f)
			rest = rest.less(f)
		}
		fmt.Fprintf(w, "\t(overhead)\t\t\t\t%s\t\n", rest)
	}
	return errors.Join(w.Flush(), ctx.Err())
}

// figures are what one object uses; nil where nobody knows.
type figures struct {
	cores  *float64
	memory *float64 // bytes
	stale  bool     // not read anew since the last time
}

// figures computes an object's use of CPU since the last reading.
func (t *top) figures(id string, last map[string]*runtime.CpuUsage, cpu *runtime.CpuUsage, memory *runtime.MemoryUsage) figures {
	var f figures
	if m := memory.GetWorkingSetBytes(); m != nil {
		bytes := float64(m.Value)
		f.memory = &bytes
	}
	if cpu.GetUsageCoreNanoSeconds() == nil {
		return f
	}
	t.last[id] = cpu
	before := last[id]
	if before == nil {
		return f
	}
	if cpu.Timestamp <= before.Timestamp {
		f.stale = true
		return f
	}
	cores := (float64(cpu.UsageCoreNanoSeconds.Value) - float64(before.UsageCoreNanoSeconds.Value)) / float64(cpu.Timestamp-before.Timestamp)
	f.cores = &cores
	return f
}

// less is what other leaves of f. Both are read at slightly different times, so it
// is no less than nothing.
func (f figures) less(other figures) figures {
	minus := func(a, b *float64) *float64 {
		if a == nil || b == nil {
			return nil
		}
		rest := max(0, *a-*b)
		return &rest
	}
	return figures{cores: minus(f.cores, other.cores), memory: minus(f.memory, other.memory), stale: f.stale || other.stale}
}

// String is the two columns.
func (f figures) String() string {
	mark := ""
	if f.stale {
		mark = "?"
	}
	cores, memory := "-", "-"
	if f.cores != nil {
		cores = fmt.Sprintf("%.2f", *f.cores)
	}
	if f.memory != nil {
		memory = size(*f.memory) + mark
	}
	return cores + "\t" + memory
}

// size writes a number of bytes for a person.
func size(bytes float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for ; bytes >= 1024 && i < len(units)-1; i++ {
		bytes /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%.0f B", bytes)
	}
	return fmt.Sprintf("%.1f %s", bytes, units[i])
}
