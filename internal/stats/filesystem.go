package stats

import (
	"fmt"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// FileSystem is a mounted file system.
type FileSystem struct {
	Device            string // as it was mounted, such as /dev/sda1
	Bytes             uint64
	Inodes, InodeFree uint64
}

// FileSystemOf returns the file system that a directory is on.
func FileSystemOf(dir string) (*FileSystem, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, fmt.Errorf("file system of %s: %w", dir, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, fmt.Errorf("file system of %s: %w", dir, err)
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		found := m.Major == int(unix.Major(st.Dev)) && m.Minor == int(unix.Minor(st.Dev))
		return !found, found
	})
	if err != nil {
		return nil, err
	}
	f := &FileSystem{Bytes: fs.Blocks * uint64(fs.Bsize), Inodes: fs.Files, InodeFree: fs.Ffree}
	if len(mounts) > 0 {
		f.Device = mounts[0].Source
	}
	return f, nil
}
