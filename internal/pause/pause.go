// Package pause holds the root file system of every pod's root container: one
// read-only EROFS image of 8 KiB with a static program of under 1 KiB.
//
// The sentry reads the image itself, so the root container has no gofer; and
// the program needs no image from a registry. pause.erofs is made by build.sh
// from pause.S; TestRebuild shows that it is.
package pause

import (
	"bytes"
	_ "embed"
	"errors"
	"os"
	"path/filepath"
)

//go:embed pause.erofs
var image []byte

// Command is the program's path in the image.
const Command = "/pause"

// Install puts the image at a path and leaves an equal one alone, for running
// sandboxes have it mapped.
func Install(path string) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, image) {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path))
	if err != nil {
		return err
	}
	_, err = tmp.Write(image)
	err = errors.Join(err, tmp.Chmod(0o444), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}
