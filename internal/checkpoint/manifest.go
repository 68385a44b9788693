// Package checkpoint is the format of a pod's checkpoint: a directory with the files
// that runsc writes and a manifest of what they are and what they need.
//
// What it keeps true: a directory with a manifest is complete, for that comes last
// and by rename; who reads it learns whether each file is as it was written; and all
// files are their owner's alone, for they are memory, with the secrets in it.
package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
)

// Version is that of the manifest's format; docs/checkpoint.md describes it.
const Version = 1

// ManifestFile is the name of the manifest in the directory.
const ManifestFile = "manifest.json"

const temporary = ManifestFile + ".tmp"

// Manifest says what a checkpoint is of. Configurations are the CRI's, as protobuf
// JSON with the names of api.proto.
type Manifest struct {
	Version   int       `json:"version"`
	CreatedAt time.Time `json:"created_at"`
	// Paused is how long the pod stood still, in nanoseconds.
	Paused  time.Duration `json:"paused_ns"`
	Machine Machine       `json:"machine"`
	Handler string        `json:"handler"`
	Pod     Object        `json:"pod"`
	// Containers are those that ran, by their names. Order is that in which they are
	// to be restored.
	Containers map[string]Container `json:"containers"`
	Order      []string             `json:"order"`
	Files      map[string]File      `json:"files"`
}

// Object is a pod, or what a pod and a container have both.
type Object struct {
	Config json.RawMessage `json:"config"`
	Spec   *specs.Spec     `json:"spec"`
}

// Container is a container that ran.
type Container struct {
	Object
	ID string `json:"id"`
	// Cgroup is what the sandbox calls the container's cgroup.
	Cgroup   string `json:"sandbox_cgroup"`
	ImageID  string `json:"image_id"`
	ImageRef string `json:"image_ref"` // by digest, if the image has a name
	// VolumeIDs are the images that were mounted as volumes, by the mount's place
	// in the configuration.
	VolumeIDs map[int]string `json:"volume_image_ids,omitempty"`
}

// File is a file of the checkpoint.
type File struct {
	Size int64 `json:"size"`
	// CRC32C are the checksums of its blocks, each of BlockSize and the last of what
	// is left.
	CRC32C []uint32 `json:"crc32c"`
}

// BlockSize is how many bytes of a file have a checksum. There are several so that
// several processors can read.
const BlockSize = 32 << 20

// Write completes the checkpoint in dir: it adds what is to be known of the files of
// the given names, as far as they are there, and writes the manifest.
func (m *Manifest) Write(dir string, names []string) error {
	m.Version, m.Files = Version, map[string]File{}
	for _, name := range names {
		f, err := sum(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		m.Files[name] = f
	}
	data, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, temporary)
	if err := os.WriteFile(path, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path, filepath.Join(dir, ManifestFile))
}

// Read reads the manifest in dir. The error is ErrFailedPrecondition if there is none
// that can be used.
func Read(dir string) (*Manifest, error) {
	data, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: no checkpoint of runscd, or not a complete one: %w: %w", dir, err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, err
	}
	var version struct{ Version int }
	m := new(Manifest)
	err = json.Unmarshal(data, &version)
	if err == nil && version.Version != Version {
		return nil, fmt.Errorf("%s: version %d of the format, not %d: %w", dir, version.Version, Version, errdefs.ErrFailedPrecondition)
	}
	if err == nil {
		err = json.Unmarshal(data, m)
	}
	if err == nil && (len(m.Files) == 0 || len(m.Containers) == 0) {
		err = errors.New("no files or no containers")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: damaged manifest: %w: %w", dir, err, errdefs.ErrFailedPrecondition)
	}
	return m, nil
}

// Verify reads all files of the checkpoint in dir. The error is ErrFailedPrecondition
// and names the file that is not as it was written.
func (m *Manifest) Verify(dir string) error {
	for name, was := range m.Files {
		if filepath.Base(name) != name {
			return fmt.Errorf("%s: file %q: not in the directory: %w", dir, name, errdefs.ErrFailedPrecondition)
		}
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
		}
		if info.Size() != was.Size {
			return fmt.Errorf("%s: %d bytes, not %d: %w", path, info.Size(), was.Size, errdefs.ErrFailedPrecondition)
		}
		is, err := sum(path)
		if err != nil {
			return err
		}
		if len(is.CRC32C) != len(was.CRC32C) {
			return fmt.Errorf("%s: %d checksums, not %d: %w", path, len(is.CRC32C), len(was.CRC32C), errdefs.ErrFailedPrecondition)
		}
		for i := range is.CRC32C {
			if is.CRC32C[i] != was.CRC32C[i] {
				return fmt.Errorf("%s: checksum of block %d is %08x, not %08x: %w", path, i, is.CRC32C[i], was.CRC32C[i], errdefs.ErrFailedPrecondition)
			}
		}
	}
	return nil
}

// Discard removes the checkpoint in dir unless it is complete: the manifest and the
// files of the given names. The directory is not ours.
func Discard(dir string, names []string) error {
	if _, err := os.Lstat(filepath.Join(dir, ManifestFile)); err == nil {
		return nil
	}
	return Remove(dir, names)
}

// Remove removes the checkpoint in dir, complete or not.
func Remove(dir string, names []string) error {
	var errs []error
	for _, name := range append([]string{ManifestFile, temporary}, names...) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sum reads a file. CRC-32C is what processors have an instruction for: it costs less
// than reading, and finds what storage damages. It proves nothing against malice.
func sum(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	file := File{Size: info.Size(), CRC32C: make([]uint32, (info.Size()+BlockSize-1)/BlockSize)}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range file.CRC32C {
		g.Go(func() error {
			h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
			block := io.NewSectionReader(f, int64(i)*BlockSize, BlockSize)
			_, err := io.CopyBuffer(h, struct{ io.Reader }{block}, make([]byte, 128<<10))
			file.CRC32C[i] = h.Sum32()
			return err
		})
	}
	return file, g.Wait()
}
