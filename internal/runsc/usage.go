package runsc

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// Usage is what a container uses, by the sentry's count.
type Usage struct {
	User, System uint64 // CPU time in microseconds, counted in ticks of 10 ms
	Memory       uint64 // bytes: anonymous memory, tmpfs and mapped files
	Processes    uint64
	Threads      uint64
}

// usageFiles are the files of a container's cgroup in the sandbox that Usage is
// read from.
var usageFiles = []string{"cpu.stat", "memory.current", "cgroup.procs", "pids.current"}

// Usage returns what containers use, by the names of their cgroups in the sandbox, which
// are their ids unless they are restored. One that has no cgroup in the sandbox, for
// it has just exited or never had one, is left out.
func (c *Control) Usage(ctx context.Context, ids []string) (map[string]Usage, error) {
	type file struct {
		Controller string `json:"controller"` // of version 1, where the hierarchy depends on it
		Path       string `json:"path"`
		Name       string `json:"name"`
	}
	type arg struct {
		File file `json:"file"`
	}
	var args struct {
		Args []arg `json:"args"`
	}
	for _, id := range ids {
		for _, name := range usageFiles {
			args.Args = append(args.Args, arg{file{Controller: "memory", Path: "/" + id, Name: name}})
		}
	}
	var answer struct {
		Results []struct {
			Value   string `json:"value"`
			IsError bool   `json:"is_error"`
		} `json:"results"`
	}
	if err := c.call(ctx, "Cgroups.ReadControlFiles", &args, nil, &answer); err != nil {
		return nil, err
	}
	if len(answer.Results) != len(args.Args) {
		return nil, fmt.Errorf("usage of containers: %d answers to %d questions", len(answer.Results), len(args.Args))
	}
	found := map[string]Usage{}
	for i, id := range ids {
		var texts []string
		for _, r := range answer.Results[i*len(usageFiles):][:len(usageFiles)] {
			if !r.IsError {
				texts = append(texts, r.Value)
			}
		}
		if len(texts) == len(usageFiles) {
			found[id] = newUsage(texts)
		}
	}
	return found, nil
}

// newUsage reads the contents of usageFiles.
func newUsage(texts []string) (u Usage) {
	for line := range strings.Lines(texts[0]) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch name {
		case "user_usec":
			u.User = number(value)
		case "system_usec":
			u.System = number(value)
		}
	}
	u.Memory = number(texts[1])
	u.Processes = uint64(len(strings.Fields(texts[2])))
	u.Threads = number(texts[3])
	return u
}

func number(text string) uint64 {
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}
