package runsc

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// The files of a checkpoint; runsc finds them by these names.
const (
	stateFile     = "checkpoint.img" // the sentry's objects; compressed, also the memory
	pagesMetaFile = "pages_meta.img" // what is where in the next
	pagesFile     = "pages.img"      // memory
	stateMagic    = "\x67\x56\x69\x73\x6f\x72\x53\x46"
	maxStateMeta  = 64 << 20 // bytes of metadata, the specs of all containers
)

// CheckpointFiles are the names of the files that a checkpoint may have.
func CheckpointFiles() []string { return []string{stateFile, pagesMetaFile, pagesFile} }

// CheckpointOptions say how a checkpoint is written.
type CheckpointOptions struct {
	Compress         bool // by flate at its best speed, into one file
	ExcludeZeroPages bool // leave out memory that has been used and is zero
	Direct           bool // write past the page cache of the host; not with Compress
}

// CheckpointImage is what a checkpoint says of itself.
type CheckpointImage struct {
	Version    string // of runsc
	Containers int    // with the root container
}

// Pause stops all tasks of the sandbox and returns when they have stopped. A
// second Pause needs a second Resume.
func (c *Control) Pause(ctx context.Context) error { return c.call(ctx, "Pause", nil, nil, nil) }

// Resume ends one Pause. The sandbox must be paused: the sentry crashes otherwise.
func (c *Control) Resume(ctx context.Context) error { return c.call(ctx, "Resume", nil, nil, nil) }

// Paused tells whether the sandbox is paused. The sentry has no call for it, so its
// goroutines are looked at: each task has one, and stands in doStop when stopped.
func (c *Control) Paused(ctx context.Context) (bool, error) {
	var stacks string
	if err := c.call(ctx, "debug.Stacks", nil, nil, &stacks); err != nil {
		return false, err
	}
	tasks := 0
	for goroutine := range strings.SplitSeq(stacks, "\n\n") {
		if !strings.Contains(goroutine, "kernel.(*Task).run(") {
			continue
		}
		if !strings.Contains(goroutine, "kernel.(*Task).doStop(") {
			return false, nil
		}
		tasks++
	}
	return tasks > 0, nil
}

// Checkpoint saves the sandbox with all containers to new files in dir, and lets it
// go on. It has no way to give up in between: when ctx ends, the sandbox goes on
// saving, and is paused so long.
func (c *Control) Checkpoint(ctx context.Context, dir string, o CheckpointOptions) (err error) {
	args := struct {
		Metadata         map[string]string `json:"metadata"`
		ExcludeZeroPages bool              `json:"app_mf_exclude_committed_zero_pages"`
		HavePagesFile    bool              `json:"have_pages_file"`
		Resume           bool
	}{map[string]string{"compression": "none"}, o.ExcludeZeroPages, !o.Compress, true}
	names := CheckpointFiles()
	if o.Compress {
		args.Metadata["compression"], names = "flate-best-speed", []string{stateFile}
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, name := range names {
		flags := os.O_RDWR | os.O_CREATE | os.O_EXCL
		if name == pagesFile && o.Direct {
			flags |= unix.O_DIRECT
		}
		f, err := os.OpenFile(filepath.Join(dir, name), flags, 0o600)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	return c.call(ctx, "Checkpoint", &args, files, nil)
}

// ReadCheckpoint reads what the checkpoint in dir says of itself. The error is
// ErrFailedPrecondition if that is no checkpoint.
func ReadCheckpoint(dir string) (CheckpointImage, error) {
	f, err := os.Open(filepath.Join(dir, stateFile))
	if err != nil {
		return CheckpointImage{}, err
	}
	defer f.Close()
	damaged := func(what any) (CheckpointImage, error) {
		return CheckpointImage{}, fmt.Errorf("%s: damaged: %v: %w", f.Name(), what, errdefs.ErrFailedPrecondition)
	}
	head := make([]byte, len(stateMagic)+8)
	if _, err := io.ReadFull(f, head); err != nil {
		return damaged(err)
	}
	length := binary.BigEndian.Uint64(head[len(stateMagic):])
	if string(head[:len(stateMagic)]) != stateMagic || length > maxStateMeta {
		return damaged("not a state file of runsc")
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(f, data); err != nil {
		return damaged(err)
	}
	var meta struct {
		Version    string `json:"runsc_version"`
		Containers string `json:"container_count"`
	}
	if err := json.Unmarshal(data, &meta); err != nil {
		return damaged(err)
	}
	n, err := strconv.Atoi(meta.Containers)
	if err != nil {
		return damaged(err)
	}
	return CheckpointImage{Version: meta.Version, Containers: n}, nil
}

// RestoreSandbox is Start for a sandbox that is to come back from the checkpoint in
// dir. It runs when each of its containers is restored; until then its control
// socket answers nothing about them. Memory is read ahead meanwhile, from files that
// are open: they may be deleted.
func (r *Runtime) RestoreSandbox(ctx context.Context, id, dir string, c CreateConfig) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	err = r.run(ctx, "restore", c.Bundle, func(cli *runc.Runc) error {
		cli.ExtraArgs = append(cli.ExtraArgs, c.flags()...)
		return restore(ctx, cli, id, c.Bundle, dir, Stdio{null, null, null})
	})
	if err != nil {
		return fmt.Errorf("restore of the sandbox: %w", err)
	}
	return nil
}

// Restore is Run for a container of a sandbox that is being restored. With the last
// one they all run from where they were.
func (r *Runtime) Restore(ctx context.Context, id, bundle string, stdio Stdio) error {
	return r.run(ctx, "restore", bundle, func(cli *runc.Runc) error {
		// The path is asked for and not used: the sandbox has the files.
		return restore(ctx, cli, id, bundle, bundle, stdio)
	})
}

func restore(ctx context.Context, cli *runc.Runc, id, bundle, dir string, stdio Stdio) error {
	_, err := cli.Restore(ctx, id, bundle, &runc.RestoreOpts{
		CheckpointOpts: runc.CheckpointOpts{ImagePath: dir}, Detach: true, IO: stdio,
	})
	return err
}
