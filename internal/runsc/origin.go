package runsc

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Origin tells by which binary and with which global flags a sandbox was made. It is
// driven by the same as long as it lives, whatever the settings have become.
type Origin struct {
	Path   string   `json:"path"` // without symlinks
	Device uint64   `json:"device"`
	Inode  uint64   `json:"inode"` // not used again while the binary runs
	Flags  []string `json:"flags"`
}

// Origin returns the runtime's own.
func (r *Runtime) Origin() (Origin, error) {
	path, err := filepath.EvalSymlinks(r.path)
	if err != nil {
		return Origin{}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return Origin{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	return Origin{Path: path, Device: st.Dev, Inode: st.Ino, Flags: r.flags}, nil
}

// Of returns a runtime for one sandbox of that origin, with the same root. The
// binary successor stands in for one that is nowhere any more.
func (r *Runtime) Of(o Origin, successor string) *Runtime {
	return &Runtime{
		path: o.Path, root: r.root, flags: o.Flags, origin: o, successor: successor,
		onCommand: r.onCommand, onCall: r.onCall,
	}
}

// Drive names the process of the sandbox, which holds the binary when that has been
// removed or replaced.
func (r *Runtime) Drive(pid int) { r.sandbox.Store(int64(pid)) }

// binary returns the path by which the runtime's binary is to be run, and what to
// call afterwards.
func (r *Runtime) binary() (path string, done func()) {
	info, err := os.Stat(r.path)
	if r.origin.is(info) || r.origin.Inode == 0 {
		return r.path, func() {}
	}
	// A sentry may be a program of its own beside runsc. Then this is not the
	// file that is looked for, as it is not when the pid is another process's.
	held, failed := os.OpenFile(fmt.Sprintf("/proc/%d/exe", r.sandbox.Load()), unix.O_PATH, 0)
	if failed == nil {
		if info, failed := held.Stat(); failed == nil && r.origin.is(info) {
			return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), held.Fd()), func() { held.Close() }
		}
		held.Close()
	}
	if err == nil {
		return r.path, func() {} // a newer version
	}
	return r.successor, func() {}
}

// is tells whether a file is the binary of the origin; info may be nil.
func (o *Origin) is(info os.FileInfo) bool {
	if info == nil {
		return false
	}
	st := info.Sys().(*syscall.Stat_t)
	return st.Dev == o.Device && st.Ino == o.Inode
}
