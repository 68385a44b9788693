package fakerunsc

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A checkpoint of the fake has the commands of the containers. They begin anew when
// they are restored.

const stateMagic = "\x67\x56\x69\x73\x6f\x72\x53\x46"

// doCheckpoint makes a call about a whole sandbox. It tells whether that is one.
func (s *sandbox) doCheckpoint(method string, arg json.RawMessage, files []*os.File) (result any, known bool, err error) {
	switch method {
	case "Pause", "Resume":
		return nil, true, s.pause(method == "Pause")
	case "debug.Stacks":
		return s.stacks(), true, nil
	case "Checkpoint":
		return nil, true, s.save(files)
	case "Restore":
		var image string
		if err := json.Unmarshal(arg, &image); err != nil {
			return nil, true, err
		}
		return nil, true, s.restore(image)
	case "RestoreSubcontainer":
		var a startArgs
		if err := json.Unmarshal(arg, &a); err != nil {
			return nil, true, err
		}
		return nil, true, s.restoreSub(a, files)
	}
	return nil, false, nil
}

func (s *sandbox) pause(on bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if on {
		s.pauses++
		return nil
	}
	if s.pauses == 0 {
		os.Exit(2) // as the sentry, which panics
	}
	s.pauses--
	return nil
}

// stacks are two goroutines of the sentry: a task, which stands in doStop when the
// sandbox is paused, and another.
func (s *sandbox) stacks() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	stop := ""
	if s.pauses > 0 {
		stop = "gvisor.dev/gvisor/pkg/sentry/kernel.(*Task).doStop(0x1)\n"
	}
	return "goroutine 1 [chan receive]:\nmain.main()\n\ngoroutine 2 [select]:\n" + stop +
		"gvisor.dev/gvisor/pkg/sentry/kernel.(*Task).run(0x1, 0x1)\n"
}

// save writes a checkpoint to the files of a call. The state's goes first.
func (s *sandbox) save(files []*os.File) error {
	s.mu.Lock()
	n := 0
	for k := range s.started {
		if k.pid == 0 {
			n++
		}
	}
	s.mu.Unlock()
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	meta, err := json.Marshal(map[string]string{"runsc_version": "fake", "container_count": fmt.Sprint(n)})
	if err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint64([]byte(stateMagic), uint64(len(meta)))
	if _, err := files[0].Write(append(head, meta...)); err != nil {
		return err
	}
	for _, f := range files[1:] {
		if _, err := fmt.Fprintln(f, "memory"); err != nil {
			return err
		}
	}
	return nil
}

// restore reads how many containers there are to come.
func (s *sandbox) restore(image string) error {
	data, err := os.ReadFile(filepath.Join(image, "checkpoint.img"))
	if err != nil {
		return err
	}
	if len(data) < len(stateMagic)+8 {
		return io.ErrUnexpectedEOF
	}
	var meta struct {
		Count int `json:"container_count,string"`
	}
	if err := json.Unmarshal(data[len(stateMagic)+8:], &meta); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missing = meta.Count - 1
	return nil
}

// restoreSub takes a container back, and with the last one lets all of them run.
func (s *sandbox) restoreSub(a startArgs, files []*os.File) error {
	s.mu.Lock()
	s.frozen = append(s.frozen, &process{cid: a.CID, args: a.Args, stdio: files})
	frozen := slices.Clone(s.frozen)
	last := len(frozen) == s.missing
	s.mu.Unlock()
	if len(frozen) > s.missing {
		return errors.New("sandbox is not being restored, cannot restore subcontainer: state=restored")
	}
	if !last {
		return nil
	}
	s.root()
	for _, p := range frozen {
		s.start(p)
		s.mu.Lock()
		s.started[key{p.cid, 0}] = p
		s.mu.Unlock()
	}
	close(s.restored)
	return nil
}

// restoreCommand is runsc restore: of a sandbox that is created, or of a container that is
// made by it.
func (c *cli) restoreCommand() error {
	a, err := c.createArgs()
	if err != nil {
		return err
	}
	if s, err := c.load(a.id); err == nil {
		if err := (client{c.root, s.Sandbox.ID}).call("Restore", a.image, nil, nil); err != nil {
			return fmt.Errorf("starting container: restoring container %q: %w", a.id, err)
		}
		s.Status = "running"
		return c.save(s)
	}
	spec, err := readSpec(a.bundle)
	if err != nil {
		return err
	}
	s := &state{ID: a.id, BundleDir: a.bundle, Status: "created"}
	s.Sandbox.ID = spec.Annotations["io.kubernetes.cri.sandbox-id"]
	root, err := c.load(s.Sandbox.ID)
	if err != nil {
		return fmt.Errorf("creating container: cannot load sandbox: %w", err)
	}
	s.Sandbox = root.Sandbox
	sandbox := client{c.root, s.Sandbox.ID}
	if err := sandbox.call("CreateSubcontainer", s.ID, nil, nil); err != nil {
		return fmt.Errorf("creating container: %w", err)
	}
	if err := c.save(s); err != nil {
		return err
	}
	c.dieAt(DieBeforePID)
	args := startArgs{CID: s.ID, Args: spec.Process.Args}
	if err := sandbox.call("RestoreSubcontainer", args, []*os.File{os.Stdin, os.Stdout, os.Stderr}, nil); err != nil {
		err = fmt.Errorf("starting container: starting sub-container [%s]: %w", strings.Join(args.Args, " "), err)
		return errors.Join(err, sandbox.call("DestroySubcontainer", s.ID, nil, nil), c.remove(s))
	}
	s.Status = "running"
	return c.save(s)
}
