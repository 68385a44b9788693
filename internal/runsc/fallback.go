package runsc

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// What follows is for a runsc whose control protocol lacks a method: the same
// by command.

func (r *Runtime) cliState(ctx context.Context, id string) (State, error) {
	var status string
	err := r.run(ctx, "state", "", func(cli *runc.Runc) error {
		c, err := cli.State(ctx, id)
		if err == nil {
			status = c.Status
		}
		return err
	})
	if err != nil {
		return StateUnknown, err
	}
	switch status {
	case "created":
		return StateCreated, nil
	case "running":
		return StateRunning, nil
	case "stopped":
		return StateStopped, nil
	}
	return StateUnknown, fmt.Errorf("state %q of container %s: %w", status, id, errdefs.ErrUnknown)
}

func (r *Runtime) cliWait(ctx context.Context, id string) (int, error) {
	cmd, done := r.command(ctx, "wait", id)
	defer done()
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("wait for container %s: %w: %w", id, err, errdefs.ErrUnavailable)
	}
	var answer struct{ ExitStatus uint32 }
	if err := json.Unmarshal(out, &answer); err != nil {
		return 0, fmt.Errorf("wait for container %s: %w", id, err)
	}
	return int(answer.ExitStatus), nil
}

func (r *Runtime) cliKill(ctx context.Context, id string, sig unix.Signal, all bool) error {
	return r.run(ctx, "kill", "", func(cli *runc.Runc) error {
		return cli.Kill(ctx, id, int(sig), &runc.KillOpts{All: all})
	})
}
