package pod

import (
	"path/filepath"
	"strings"
)

// layout is the state directory. What the host holds for an object has its name
// in it from the id alone.
type layout string

func (l layout) podDir(id string) string       { return filepath.Join(string(l), "pods", id) }
func (l layout) containerDir(id string) string { return filepath.Join(string(l), "containers", id) }
func (l layout) rootfs(id string) string       { return filepath.Join(l.containerDir(id), "rootfs") }
func (l layout) netNS(id string) string        { return filepath.Join(string(l), "netns", id) }

// volume is where the volume of a key, <container id>-<n>, is mounted.
func (l layout) volume(key string) string {
	id, n, _ := strings.Cut(key, "-")
	return filepath.Join(l.containerDir(id), "volumes", n)
}

// pauseImage is where the root containers' image is in a state directory.
func pauseImage(state string) string { return filepath.Join(state, "pause.erofs") }

// RunscRoot is runsc's root directory for a handler. The name of a control
// socket in it must fit into a socket address.
func RunscRoot(state, handler string) string { return filepath.Join(state, "runsc", handler) }
