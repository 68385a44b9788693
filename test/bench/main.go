// Command bench measures runscd on this machine and prints JSON: the latency of
// the CRI calls that make up a pod's life, what a pod costs in memory,
// processes and CPU, the throughput of a log and of port-forward, and what it takes to
// save a pod and restore it; beside each, where there is one, the floor: bare runsc doing the same with the same flags in the same
// run.
//
// It needs root, and lives in a network namespace of its own.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// inside is set in the process that has the network namespace.
const inside = "RUNSCD_BENCH_INSIDE"

func main() {
	bin := flag.String("bin", "bin", "directory of runscd and runsc")
	n := flag.Int("n", 20, "pods of each series")
	flag.Parse()
	if err := run(*bin, *n); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(bin string, n int) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if os.Getenv(inside) == "" {
		return enter(ctx)
	}
	if err := command(ctx, "ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		return err
	}
	node, err := startNode(ctx, bin)
	if err != nil {
		return err
	}
	defer node.stop()
	report, err := measure(ctx, node, n)
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	return out.Encode(report)
}

// enter runs this program again in a network namespace of its own.
func enter(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	// The child cleans up when it is told to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = time.Minute
	return cmd.Run()
}

func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	return nil
}

// Report is what is printed. Times are milliseconds of the wall clock, CPU is
// milliseconds of one core that all of the machine spent, memory is KiB. So it
// is true on a machine that does nothing else.
type Report struct {
	Pods       int             `json:"pods_per_series"`
	Sequential Calls           `json:"runscd_sequential"`
	Floor      Calls           `json:"bare_runsc_sequential"`
	CNI        Calls           `json:"cni_plugins"`
	AtOnce     Calls           `json:"runscd_8_at_once"`
	CycleCPU   float64         `json:"runscd_cpu_ms_per_pod_cycle"`
	FloorCPU   float64         `json:"bare_runsc_cpu_ms_per_pod_cycle"`
	Exec       ExecReport      `json:"exec"`
	Memory     map[string]Kind `json:"per_pod_of_one_container"`
	PSS        float64         `json:"pss_kib_per_pod"`
	DaemonPSS  float64         `json:"daemon_pss_kib"`
	Daemon     float64         `json:"daemon_private_kib_per_pod_of_two_containers"`
	IdleCPU    float64         `json:"idle_cpu_percent_of_a_core"`
	Log        LogReport       `json:"log"`
	// Attached is Log with clients attached, by their number.
	Attached map[string]LogReport `json:"log_with_attached_clients"`
	Forward  ForwardReport        `json:"port_forward"`
	Stats    StatsReport          `json:"stats"`
	// Checkpoint is about pods that are saved and restored.
	Checkpoint CheckpointReport `json:"checkpoint"`
	// Recovery is of few pods and of many.
	Recovery [2]RecoveryReport `json:"recovery"`
}

func measure(ctx context.Context, node *node, n int) (*Report, error) {
	r := &Report{Pods: n}
	steps := []func(context.Context) error{
		func(ctx context.Context) error { return node.warmUp(ctx) },
		func(ctx context.Context) (err error) { r.Recovery[0], err = node.recovery(ctx, 0); return },
		func(ctx context.Context) (err error) { r.Sequential, r.CycleCPU, err = node.cycles(ctx, n, 1); return },
		func(ctx context.Context) (err error) { r.AtOnce, _, err = node.cycles(ctx, 2*n, 8); return },
		func(ctx context.Context) error { return node.execs(ctx, 10*n, &r.Exec) },
		func(ctx context.Context) (err error) { r.CNI, err = node.plugins(ctx, n); return },
		func(ctx context.Context) error { return node.logs(ctx, r) },
		func(ctx context.Context) (err error) { r.Forward, err = node.forward(ctx); return },
		func(ctx context.Context) error { return node.floor(ctx, n, r) },
		func(ctx context.Context) (err error) { r.Checkpoint, err = node.checkpoints(ctx); return },
		func(ctx context.Context) error { return node.footprint(ctx, n, r) },
		func(ctx context.Context) (err error) { r.Stats, err = node.stats(ctx); return },
		func(ctx context.Context) (err error) { r.Recovery[1], err = node.recovery(ctx, 100); return },
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// detached runs a command without output, unless it fails.
func detached(ctx context.Context, name string, args ...string) error {
	out, err := os.CreateTemp("", "bench-output")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(out.Name())
		return fmt.Errorf("%s: %w: %s", name, err, text)
	}
	return nil
}
