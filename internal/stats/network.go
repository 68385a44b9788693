package stats

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Interface is a network interface and what has gone over it.
type Interface struct {
	Name string
	Rx   Traffic
	Tx   Traffic
}

// Traffic is what an interface has received, or transmitted.
type Traffic struct{ Bytes, Packets, Errors, Dropped uint64 }

// Interfaces returns the network interfaces that a process of the host sees, but
// for the loopback interface. first is the name of the one to begin with.
func Interfaces(pid int, first string) ([]Interface, error) {
	text, err := new(reader).read(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return nil, fmt.Errorf("network interfaces of process %d: %w", pid, err)
	}
	return interfaces(string(text), first), nil
}

// interfaces reads /proc/<pid>/net/dev: after two lines of titles, a name and 16
// numbers a line.
func interfaces(text, first string) (list []Interface) {
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || name == "lo" || len(fields) < 12 {
			continue
		}
		i := Interface{Name: name, Rx: traffic(fields), Tx: traffic(fields[8:])}
		if name == first {
			list = slices.Insert(list, 0, i)
		} else {
			list = append(list, i)
		}
	}
	return list
}

func traffic(fields []string) Traffic {
	number := func(i int) uint64 { n, _ := strconv.ParseUint(fields[i], 10, 64); return n }
	return Traffic{Bytes: number(0), Packets: number(1), Errors: number(2), Dropped: number(3)}
}
