package pod

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
)

// Names in the archive of a container's checkpoint, by which tools for such archives
// find their way.
const (
	configDump    = "config.dump"
	specDump      = "spec.dump"
	checkpointDir = "checkpoint"
)

// containerDump is what config.dump tells of a container.
type containerDump struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Image     string    `json:"rootfsImage"`
	ImageRef  string    `json:"rootfsImageRef"`
	ImageName string    `json:"rootfsImageName"`
	Runtime   string    `json:"runtime"`
	Created   time.Time `json:"createdTime"`
	Saved     time.Time `json:"checkpointedTime"`
	Restored  bool      `json:"restored"`
}

// CheckpointContainer saves a container that runs alone in its pod, with the pod, to a
// new tar archive. The directory checkpoint in it is what Checkpoint writes. After an
// error there is no archive.
func CheckpointContainer(ctx context.Context, r *Registry, id, location string) error {
	c, err := r.Running(id)
	if err != nil {
		return err
	}
	p := c.Pod
	for _, other := range r.ContainersOf(p) {
		if other != c && other.State() == proc.Running {
			return fmt.Errorf("container %s: %s runs in the same pod, which can only be saved as a whole, by CheckpointPod: %w", c.ID, other.ID, errdefs.ErrFailedPrecondition)
		}
	}
	containers, err := chosen(p, []string{c.ID})
	if err != nil {
		return err
	}
	unlock, err := lock(ctx, p.saving)
	if err != nil {
		return fmt.Errorf("checkpoint of container %s: %w", c.ID, err)
	}
	defer unlock()
	if err := archive(ctx, c, location, containers); err != nil {
		return fmt.Errorf("checkpoint of container %s: %w", c.ID, err)
	}
	return nil
}

// archive saves to a directory beside the archive first.
func archive(ctx context.Context, c *Container, location string, containers []*Container) (err error) {
	if _, err := os.Lstat(location); err == nil {
		return fmt.Errorf("location %q: %w", location, errdefs.ErrAlreadyExists)
	}
	scratch := saving{Path: location + ".partial", Scratch: true}
	if err := c.Pod.update(func(f *podRecord) { f.Saving = scratch }); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, os.RemoveAll(scratch.Path), c.Pod.update(func(f *podRecord) { f.Saving = saving{} }))
	}()
	dir := filepath.Join(scratch.Path, checkpointDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := write(ctx, c.Pod, dir, containers, runsc.CheckpointOptions{}); err != nil {
		return err
	}
	f := c.Facts()
	dump := containerDump{
		ID: c.ID, Name: f.Config.M.Metadata.Name, Image: f.ImageID, ImageRef: f.ImageRef, Runtime: "runsc",
		ImageName: f.Config.M.GetImage().GetUserSpecifiedImage(), Created: f.CreatedAt, Saved: time.Now(), Restored: c.init.Restored,
	}
	s, err := readBundle(c.init.Bundle)
	if err != nil {
		return err
	}
	for name, v := range map[string]any{configDump: dump, specDump: s} {
		data, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(scratch.Path, name), data, 0o600); err != nil {
			return err
		}
	}
	temp := filepath.Join(scratch.Path, "archive")
	if err := writeTar(ctx, temp, scratch.Path, configDump, specDump, checkpointDir); err != nil {
		return err
	}
	return os.Rename(temp, location)
}

// writeTar makes an archive of files and directories of a directory.
func writeTar(ctx context.Context, path, root string, names ...string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	for _, name := range names {
		err := filepath.WalkDir(filepath.Join(root, name), func(path string, e os.DirEntry, err error) error {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return err
			}
			return addTo(w, root, path)
		})
		if err != nil {
			return err
		}
	}
	return w.Close()
}

func addTo(w *tar.Writer, root, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	h, err := tar.FileInfoHeader(info, "")
	if err != nil {
		return err
	}
	if h.Name, err = filepath.Rel(root, path); err != nil {
		return err
	}
	if info.IsDir() {
		h.Name += "/"
	}
	if err := w.WriteHeader(h); err != nil || info.IsDir() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
