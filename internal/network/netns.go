package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// CreateNS makes a network namespace whose only interface, loopback, is up,
// and mounts it at path. The parent directory is made if need be. A path that
// is there already is errdefs.ErrAlreadyExists.
//
// The mount has the propagation of the file system it is in, so CNI agents in
// mount namespaces of their own see it where the host's mounts are shared.
func CreateNS(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("network namespace %s: %w", path, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	_ = f.Close()
	done := make(chan error)
	go func() { done <- mountNewNS(path) }()
	if err := <-done; err != nil {
		return errors.Join(fmt.Errorf("network namespace %s: %w", path, err), RemoveNS(path))
	}
	return nil
}

// RemoveNS removes what CreateNS made, or nothing. The namespace itself ends
// with its last process. Copies of the mount in other mount namespaces cannot
// hold it: removing the file takes them away too.
func RemoveNS(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("network namespace %s: unmount: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("network namespace: %w", err)
	}
	return nil
}

// mountNewNS needs a goroutine of its own: a thread that cannot be brought
// back to its own namespace stays locked to it, and so ends with it.
func mountNewNS(path string) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	err = setUpNS(path)
	if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// setUpNS prepares and mounts the namespace of the current thread.
func setUpNS(path string) error {
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("loopback interface: %w", err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	return nil
}

// loopbackUp also gives the interface 127.0.0.1 and ::1: the kernel does.
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo)
}

// nsExists tells whether a network namespace is mounted at path.
func nsExists(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
