// Package stdio carries the output of containers to their CRI logs and to clients,
// and what clients type to containers.
//
// What it keeps true:
//
//   - A container never sees its output closed and never loses a byte while the
//     daemon is away: it writes to FIFOs that it holds open for reading itself.
//     They have names, so that a new daemon opens them again, and hold 1 MiB, at
//     which the container waits.
//   - What has been read and not yet logged outlives the daemon, also one that is
//     killed, and is in the log once.
//   - What a container wrote before its exit is in its log before Drain returns.
//   - A log file holds whole CRI lines only, of one stream each, whatever fails.
//   - A log that cannot be written, as on a full disk, stops its container's
//     output and nothing else.
//   - A client holds up its own session only. One that does not keep up with a
//     container's output is cut off.
package stdio

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// pipeSize is what a container may write while nobody reads, in bytes.
const pipeSize = 1 << 20

// Create makes the FIFO at path, if it is not there, and opens it for the
// container: for reading and writing, so that the container never writes to a
// pipe without a reader. Close it once the container has it. The error is
// ErrFailedPrecondition if there is something else at path.
func Create(path string) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("fifo %s: %w", path, err)
	}
	return open(path, unix.O_RDWR)
}

// Open opens the FIFO at path for the daemon, which reads only: it sees the end
// once the container and all that it left behind have closed it. Before the
// container has it, the end of Create must be open, or the end is seen at once.
// What is in the FIFO is lost when the last end is closed.
func Open(path string) (*os.File, error) {
	return open(path, unix.O_RDONLY|unix.O_NONBLOCK)
}

// OpenInput opens the FIFO at path for a client that writes to the container. The
// error is ErrFailedPrecondition if the container does not have it any more.
func OpenInput(path string) (*os.File, error) {
	f, err := open(path, unix.O_WRONLY|unix.O_NONBLOCK)
	if errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return f, err
}

func open(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("fifo %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("fifo %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	info, err := f.Stat()
	if err == nil && info.Mode().Type() != os.ModeNamedPipe {
		err = fmt.Errorf("%s is no fifo: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	// The default of 64 KiB does as well, only with more waiting.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize)
	return f, nil
}
