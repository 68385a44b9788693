package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/config"
	"github.com/runscd/runscd/internal/systemd"
)

// keptSocket is the name under which systemd keeps the socket, or gives that of a
// socket unit.
const keptSocket = "socket"

// openSocket listens on the socket: with the listener that systemd has kept or made,
// or a new one. Who connects waits until it is served.
func openSocket(c *config.Config, unit *systemd.Unit) (net.Listener, error) {
	if f := unit.Claim(keptSocket); f != nil {
		l, err := listenerAt(f, c.Socket)
		if err == nil {
			return l, nil
		}
		logrus.WithError(err).Warn("socket of systemd is not used")
	}
	l, err := listenUnix(c.Socket, 0o660)
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // it may be kept
	gid, err := c.SocketGID()
	if err == nil {
		err = os.Chown(c.Socket, -1, gid)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	unit.Keep(keptSocket, l)
	return l, nil
}

// listenUnix listens on a socket of that mode, and is never open to more. One that is
// left is of a daemon that is gone, by the lock on the state directory; what is no
// socket is not ours to remove.
func listenUnix(path string, mode os.FileMode) (*net.UnixListener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// What the socket's mode is before it is bound, less the umask, is the file's.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), uint32(mode)) })
		return errors.Join(err, chmod)
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l.(*net.UnixListener), nil
}

// listenerAt makes a listener of a file that must be one on the socket at path.
func listenerAt(f *os.File, path string) (net.Listener, error) {
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	if err == nil && (l.Addr().String() != path || info.Mode().Type() != os.ModeSocket) {
		err = fmt.Errorf("it listens on %s, socket is %q", l.Addr(), path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// listen serves on l until ctx ends.
func listen(ctx context.Context, server *grpc.Server, l net.Listener, unit *systemd.Unit) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		unit.Stopping()
		stopServer(server)
	}()
	conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer conn.Close()
	go unit.Watch(ctx, func(ctx context.Context) error {
		_, err := runtime.NewRuntimeServiceClient(conn).Version(ctx, &runtime.VersionRequest{})
		return err
	})
	unit.Ready()
	logrus.WithFields(logrus.Fields{"socket": l.Addr(), "version": version}).Info("serving")
	if err := server.Serve(l); err != nil {
		return err
	}
	<-done
	logrus.Info("stopped; pods run on")
	return nil
}

// stopServer lets RPCs that change something come to their end, which is soon;
// streams have none of their own.
func stopServer(server *grpc.Server) {
	cut := time.AfterFunc(2*time.Second, server.Stop)
	defer cut.Stop()
	server.GracefulStop()
}
