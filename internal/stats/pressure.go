package stats

import (
	"path/filepath"
	"strconv"
	"strings"
)

// Pressure is how much the tasks of a cgroup have waited for a resource.
type Pressure struct{ Some, Full Stall }

// Stall is the time in which some, or all, tasks waited: the shares of the last
// 10, 60 and 300 seconds in percent, and the sum in microseconds.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

// Pressure reads the pressure on "cpu", "memory" or "io". It is nil where the
// kernel does not tell, as in version 1.
func (c Cgroup) Pressure(resource string) *Pressure {
	if c.Legacy() {
		return nil
	}
	text, err := new(reader).read(filepath.Join(c.Memory, resource+".pressure"))
	if err != nil { // also when the kernel was started with psi=0
		return nil
	}
	var p Pressure
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		switch fields[0] {
		case "some":
			p.Some = stall(fields[1:])
		case "full":
			p.Full = stall(fields[1:])
		}
	}
	return &p
}

func stall(fields []string) (s Stall) {
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		switch name {
		case "avg10":
			s.Avg10, _ = strconv.ParseFloat(value, 64)
		case "avg60":
			s.Avg60, _ = strconv.ParseFloat(value, 64)
		case "avg300":
			s.Avg300, _ = strconv.ParseFloat(value, 64)
		case "total":
			s.Total, _ = strconv.ParseUint(value, 10, 64)
		}
	}
	return s
}
