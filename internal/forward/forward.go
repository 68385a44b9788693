// Package forward holds the program that copies between the daemon and a TCP port
// of a sandbox: a static ELF of under 2 KiB for x86-64, like the pods' root
// container. It is run in that container and needs nothing of its file system.
//
// What the program keeps true:
//
//   - It has one argument, the port, and connects to 127.0.0.1 or else to ::1.
//   - Its standard input and output are one stream socket. Each direction ends
//     by itself, and its end is passed on.
//   - It ends when both directions have ended or the connection is reset, with
//     status 0; with the error number of the connection to 127.0.0.1 if there
//     was none to be had; and at once when standard error, which it only polls,
//     is readable or hung up: nobody waits for it then.
//
// forward.elf is made by build.sh from forward.c; TestRebuild shows that it is.
package forward

import (
	_ "embed"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

//go:embed forward.elf
var program []byte

// Open returns the program as a file in memory that is open for reading only: a
// sandbox takes no other, and /run may be mounted noexec.
func Open() (*os.File, error) {
	fd, err := unix.MemfdCreate("forward", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "forward")
	_, err = f.Write(program)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	reading, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	return reading, errors.Join(err, f.Close())
}
