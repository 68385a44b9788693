package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Kind is what the processes of one kind cost per pod.
type Kind struct {
	Processes float64 `json:"processes"`
	PSS       float64 `json:"pss_kib"`
	Private   float64 `json:"private_kib"`
}

// LogReport is about one container that writes 200 MB in lines of 100 bytes.
type LogReport struct {
	MBps      float64       `json:"mb_per_s"`
	Floor     float64       `json:"bare_runsc_to_a_file_mb_per_s,omitempty"`
	DaemonCPU float64       `json:"daemon_cpu_s"`
	Attached  *AttachReport `json:"attached,omitempty"`
}

// AttachReport is of what attached clients got of it.
type AttachReport struct {
	MBps   float64 `json:"mb_per_s_of_all"`
	CutOff int     `json:"cut_off"` // for not keeping up
}

const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go knows

// busy is the CPU time that all of the machine has spent, in milliseconds.
func busy() float64 {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		panic(err) // there is no Linux without it
	}
	line, _, _ := strings.Cut(string(text), "\n")
	var ticks float64
	for i, f := range strings.Fields(line)[1:] {
		if i == 3 || i == 4 || i > 7 { // idle, waiting for disks; guests are counted in user
			continue
		}
		v, _ := strconv.ParseFloat(f, 64)
		ticks += v
	}
	return ticks * float64(tick/time.Millisecond)
}

// spent is the CPU time of one process, in seconds.
func spent(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) * tick.Seconds()
}

// footprint measures what pods cost that do nothing.
func (n *node) footprint(ctx context.Context, pods int, r *Report) error {
	for i := range pods {
		if _, err := n.sleeper(ctx, fmt.Sprint("idle-", i), 1); err != nil {
			return err
		}
	}
	if err := sleep(ctx, 2*time.Second); err != nil { // what they do at first
		return err
	}
	processes, err := n.processes()
	if err != nil {
		return err
	}
	cpu := func() (sum float64) {
		for pid := range processes {
			sum += spent(pid)
		}
		return sum
	}
	before := cpu()
	const idle = 10 * time.Second
	if err := sleep(ctx, idle); err != nil {
		return err
	}
	r.IdleCPU = (cpu() - before) / idle.Seconds() * 100
	r.Memory = map[string]Kind{}
	for pid, kind := range processes {
		m := memoryOf(pid)
		if kind == "daemon" {
			r.DaemonPSS = m.PSS
			continue
		}
		k, share := r.Memory[kind], 1/float64(pods)
		r.Memory[kind] = Kind{k.Processes + share, k.PSS + m.PSS*share, k.Private + m.Private*share}
		r.PSS += m.PSS * share
	}
	small := memoryOf(n.daemon.Process.Pid)
	for i := range pods {
		if _, err := n.sleeper(ctx, fmt.Sprint("two-", i), 2); err != nil {
			return err
		}
	}
	r.Daemon = (memoryOf(n.daemon.Process.Pid).Private - small.Private) / float64(pods)
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// processes are the daemon's and the pods' by pid, with their kinds.
func (n *node) processes() (map[int]string, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	kinds := map[int]string{n.daemon.Process.Pid: "daemon"}
	for _, dir := range dirs {
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		if !strings.Contains(string(cmdline), n.dir) {
			continue
		}
		for _, kind := range []string{"sandbox", "gofer"} {
			if strings.HasPrefix(string(cmdline), "runsc-"+kind) {
				kinds[atoi(filepath.Base(dir))] = kind
			}
		}
	}
	// The stubs in which a sandbox runs its programs are its descendants.
	for found := true; found; {
		found = false
		for _, dir := range dirs {
			pid := atoi(filepath.Base(dir))
			above := kinds[atoi(field(dir+"/status", "PPid:"))]
			if kinds[pid] == "" && strings.HasPrefix(above, "sandbox") {
				kinds[pid], found = "sandbox stub", true
			}
		}
	}
	return kinds, nil
}

func atoi(s string) int { n, _ := strconv.Atoi(s); return n }

func memoryOf(pid int) Kind {
	path := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	kib := func(name string) float64 { v, _ := strconv.ParseFloat(field(path, name), 64); return v }
	return Kind{PSS: kib("Pss:"), Private: kib("Private_Clean:") + kib("Private_Dirty:")}
}

// field is the first word behind a name that begins a line.
func field(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if words := strings.Fields(s.Text()); len(words) > 1 && words[0] == name {
			return words[1]
		}
	}
	return ""
}
