package runsc

import "context"

// Process is a process of a container, by the numbers of the sandbox.
type Process struct {
	PID, Parent, Group int
	// Terminal tells that it has a controlling terminal.
	Terminal bool
}

// Processes returns the processes of a container, zombies included.
func (c *Control) Processes(ctx context.Context, id string) ([]Process, error) {
	var list []struct {
		PID, PPID, PGID int
		TTY             string
	}
	if err := c.call(ctx, "Processes", &id, nil, &list); err != nil {
		return nil, err
	}
	processes := make([]Process, len(list))
	for i, p := range list {
		processes[i] = Process{PID: p.PID, Parent: p.PPID, Group: p.PGID, Terminal: p.TTY != "?"}
	}
	return processes, nil
}
