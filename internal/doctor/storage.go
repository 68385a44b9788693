package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"golang.org/x/sys/unix"
)

const (
	mib = 1 << 20
	gib = 1 << 30
	// Below these an image can hardly be pulled, or none.
	scarce, exhausted = 10 * gib, 1 * gib
	// State is small, but not nothing: bundles, sockets, a shm mount a pod.
	scarceState = 64 * mib
)

// directories looks at the two roots: what they are on, and the room there.
func (n *Node) directories(context.Context) []Finding {
	var list []Finding
	for _, d := range []struct {
		check, path string
		scarce      uint64
		exhausted   uint64
	}{{"root", n.Config.Root, scarce, exhausted}, {"state", n.Config.State, scarceState, mib}} {
		dir := Existing(n.path(d.path))
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil {
			list = append(list, found(Fail, d.check, fmt.Sprintf("%s: %v", dir, err), "make it a directory that root can write to"))
			continue
		}
		free := fs.Bavail * uint64(fs.Bsize)
		what := fmt.Sprintf("%s: %d MiB free of %d", d.path, free/mib, fs.Blocks*uint64(fs.Bsize)/mib)
		switch {
		case fs.Flags&unix.ST_RDONLY != 0:
			list = append(list, found(Fail, d.check, d.path+": its file system is read-only", "mount it writable"))
		case free < d.exhausted:
			list = append(list, found(Fail, d.check, what, "make room, or set "+d.check+" to a directory elsewhere"))
		case free < d.scarce:
			list = append(list, found(Warn, d.check, what, "make room: the kubelet removes images when there is little"))
		case fs.Files > 0 && fs.Ffree < fs.Files/20:
			list = append(list, found(Warn, d.check, fmt.Sprintf("%s: %d of %d inodes free", d.path, fs.Ffree, fs.Files), "make room, or make the file system anew with more inodes"))
		case d.check == "state" && fs.Type != unix.TMPFS_MAGIC:
			list = append(list, found(Warn, d.check, d.path+": not on a tmpfs", "set state to a directory on a tmpfs, as /run is: what is there must not outlive a reboot"))
		default:
			list = append(list, ok(d.check, "%s", what))
		}
	}
	return list
}

// overlay looks whether layers can be stacked where images will be.
func (n *Node) overlay(context.Context) []Finding {
	if os.Geteuid() != 0 {
		return nil // said already
	}
	dir, err := os.MkdirTemp(Existing(n.path(n.Config.Root)), ".runscd-doctor-")
	if err != nil {
		return []Finding{found(Fail, "overlayfs", err.Error(), "make root a directory that can be written to")}
	}
	defer os.RemoveAll(dir)
	if err := overlayutils.Supported(dir); err != nil {
		return []Finding{found(Fail, "overlayfs", err.Error(), "load the module overlay, and set root to a directory on ext4, or on xfs made with ftype=1; overlayfs itself will not do")}
	}
	// By these layers tell what has been removed.
	if err := unix.Setxattr(dir, "trusted.runscd", []byte("1"), 0); err != nil {
		return []Finding{found(Fail, "overlayfs", fmt.Sprintf("extended attributes: %v", err), "set root to a file system that has trusted.* attributes")}
	}
	return []Finding{ok("overlayfs", "layers can be stacked, with extended attributes")}
}

// Existing is the directory, or the nearest above it that there is.
func Existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}
