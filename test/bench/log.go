package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What the container writes: a file of lines, again and again, so that making
// the lines does not count.
const (
	logLine   = 100
	logFile   = 100_000 * logLine
	logRepeat = 20
)

// writeLog is the container's program. It tells the sandbox's uptime before and
// after on stderr.
func writeLog() []string {
	line := fmt.Sprintf("%0*d", logLine-1, 7)
	return []string{"sh", "-c", fmt.Sprintf(
		"yes %s | head -c %d >/tmp/lines; read up rest </proc/uptime; echo up $up >&2; "+
			"i=0; while [ $i -lt %d ]; do cat /tmp/lines; i=$((i+1)); done; read up rest </proc/uptime; echo up $up >&2",
		line, logFile, logRepeat)}
}

// logRate is the rate between the two uptimes in what the program wrote to
// stderr, in MB/s.
func logRate(text string) (float64, error) {
	var ups []float64
	for line := range strings.Lines(text) {
		if _, up, ok := strings.Cut(line, "up "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(up), 64)
			if err != nil {
				return 0, err
			}
			ups = append(ups, v)
		}
	}
	if len(ups) != 2 {
		return 0, fmt.Errorf("uptimes %v of the log's writer", ups)
	}
	return logFile * logRepeat / 1e6 / (ups[1] - ups[0]), nil
}

// logs measures a container's log without attached clients and with some.
func (n *node) logs(ctx context.Context, r *Report) (err error) {
	if r.Log, err = n.log(ctx, 0); err != nil {
		return err
	}
	r.Attached = map[string]LogReport{}
	for _, clients := range []int{1, 8} {
		if r.Attached[fmt.Sprint(clients)], err = n.log(ctx, clients); err != nil {
			return err
		}
	}
	return nil
}

// log measures one container that writes lines as fast as it can.
func (n *node) log(ctx context.Context, clients int) (LogReport, error) {
	p := n.newPod(fmt.Sprintf("log%d", clients))
	if err := n.runPod(ctx, p); err != nil {
		return LogReport{}, err
	}
	if err := n.create(ctx, p, writeLog()...); err != nil {
		return LogReport{}, err
	}
	daemon := n.daemon.Process.Pid
	before := spent(daemon)
	if err := n.start(ctx, p); err != nil {
		return LogReport{}, err
	}
	attached, err := n.attach(ctx, p.containers[0], clients)
	if err != nil {
		return LogReport{}, err
	}
	for {
		s, err := n.pods.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: p.containers[0]})
		if err != nil {
			return LogReport{}, err
		}
		if s.Status.State == runtime.ContainerState_CONTAINER_EXITED {
			break
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return LogReport{}, err
		}
	}
	cpu := spent(daemon) - before
	told, err := exec.CommandContext(ctx, "grep", " stderr ", n.path("logs/"+p.config.Metadata.Name+"-c0.log")).Output()
	if err != nil {
		return LogReport{}, err
	}
	rate, err := logRate(string(told))
	if err != nil {
		return LogReport{}, err
	}
	r := LogReport{MBps: rate, DaemonCPU: cpu}
	if clients > 0 {
		got := attached.end()
		r.Attached = &got
	}
	return r, n.remove(ctx, p)
}

// log has bare runsc run the same program, its output going to a file.
func (b *bare) log(ctx context.Context) (rate float64, err error) {
	if err := b.run(ctx); err != nil {
		return 0, err
	}
	out, err := os.Create(filepath.Join(b.container, "out"))
	if err != nil {
		return 0, err
	}
	defer out.Close()
	var told strings.Builder
	cmd := exec.CommandContext(ctx, b.runsc, append(append(append([]string{}, b.flags...), "exec", b.containerID), writeLog()...)...)
	cmd.Stdout, cmd.Stderr = out, &told
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, told.String())
	}
	if rate, err = logRate(told.String()); err != nil {
		return 0, err
	}
	return rate, b.delete(ctx)
}
