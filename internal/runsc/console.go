package runsc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// RunTerminal creates and starts the sub container id of the bundle in its
// sandbox, with a terminal as its standard streams, and returns the terminal's
// master, which does not block. After an error there is no container id.
func (r *Runtime) RunTerminal(ctx context.Context, id, bundle string) (*os.File, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	s, err := listenConsole(bundle)
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	defer s.close()
	err = r.run(ctx, "run", bundle, func(cli *runc.Runc) error {
		_, err := cli.Run(ctx, id, bundle, &runc.CreateOpts{Detach: true, IO: Stdio{null, null, null}, ConsoleSocket: s})
		return err
	})
	if err != nil {
		return nil, err
	}
	master, err := s.receive()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("console socket: %w", err), r.Delete(context.WithoutCancel(ctx), id))
	}
	return master, nil
}

// console is a socket at which runsc hands over the master of a terminal.
type console struct {
	*net.UnixListener
	path string
	dir  *os.File
}

// listenConsole makes the socket in the bundle. Its path goes by way of our open
// files: that fits into an address whatever the bundle's own does.
func listenConsole(bundle string) (*console, error) {
	const name = "console"
	if err := os.Remove(filepath.Join(bundle, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	dir, err := os.Open(bundle)
	if err != nil {
		return nil, err
	}
	path := fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), dir.Fd(), name)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return &console{l, path, dir}, nil
}

// Path is the socket's path for runsc.
func (c *console) Path() string { return c.path }

// close removes the socket.
func (c *console) close() {
	c.Close()
	c.dir.Close()
}

// consoleTimeout bounds the wait for a connection that has been made already.
const consoleTimeout = time.Second

// receive returns the master that runsc has sent.
func (c *console) receive() (*os.File, error) {
	if err := c.SetDeadline(time.Now().Add(consoleTimeout)); err != nil {
		return nil, err
	}
	conn, err := c.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	text, oob := make([]byte, 64), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(text, oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, fmt.Errorf("%d files received: %w", len(messages), errdefs.ErrUnknown)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]))
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
