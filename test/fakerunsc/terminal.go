package fakerunsc

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// sendTerminal makes a terminal, sends its master to a socket and returns the
// slave.
func sendTerminal(socket string) (slave *os.File, err error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
	if errno != 0 {
		return nil, errno
	}
	slave = os.NewFile(fd, "slave")
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_, _, err = conn.WriteMsgUnix([]byte("pty-master"), unix.UnixRights(int(master.Fd())), nil)
	return slave, err
}
