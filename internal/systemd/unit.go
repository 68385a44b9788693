// Package systemd is what systemd and the daemon tell each other, and what systemd
// keeps for the next daemon.
//
// What it keeps true:
//
//   - Files that are kept stay open, with what is in them, however the daemon ends,
//     until systemd starts it again or is told to drop them.
//   - Without systemd, or where it keeps nothing, all is as if there were no next
//     daemon: nothing fails for it.
//   - No process that the daemon starts takes part in this.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Unit is the daemon as a service of systemd's. The zero value is one of nobody's.
type Unit struct {
	notify   string        // address of the socket that takes messages; "" for none
	watchdog time.Duration // how often systemd wants to hear that the daemon lives; 0 for never

	mu sync.Mutex
	// given are the files that nobody has claimed, by their names.
	// +checklocks:mu
	given map[string]*os.File
	// kept are the names of the files that systemd has.
	// +checklocks:mu
	kept map[string]bool
}

// Take returns what systemd has started this process with, and removes it from the
// environment. It is to be called once, before the process opens other files.
func Take() (*Unit, error) {
	u := &Unit{notify: os.Getenv("NOTIFY_SOCKET"), given: map[string]*os.File{}, kept: map[string]bool{}}
	var err error
	if u.watchdog, err = daemon.SdWatchdogEnabled(true); err != nil {
		return nil, fmt.Errorf("WATCHDOG_USEC: %w", err)
	}
	if err := os.Unsetenv("NOTIFY_SOCKET"); err != nil {
		return nil, err
	}
	for _, f := range activation.Files(true) {
		if u.given[f.Name()] != nil {
			f.Close() // the next daemon would get it again, but not confuse it
			continue
		}
		u.given[f.Name()] = f
		u.kept[f.Name()] = true
	}
	return u, nil
}

// Claim returns the file that was kept under a name, nil if there is none. It
// stays kept.
func (u *Unit) Claim(name string) *os.File {
	u.mu.Lock()
	defer u.mu.Unlock()
	f := u.given[name]
	delete(u.given, name)
	return f
}

// Keep has systemd keep a file under a name, in place of what it had under that. The
// name has at most 255 characters of ASCII and no colon. A failure is told in the
// log: the file then ends with the daemon.
func (u *Unit) Keep(name string, f syscall.Conn) {
	if u.notify == "" {
		return
	}
	u.Drop(name)
	conn, err := f.SyscallConn() // Fd would make it block
	if err == nil {
		// With FDPOLL systemd would drop a pipe when its other end is closed, and
		// what is in it.
		failed := conn.Control(func(fd uintptr) { err = u.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, int(fd)) })
		err = errors.Join(failed, err)
	}
	if err != nil {
		logrus.WithError(err).WithField("file", name).Warn("systemd does not keep a file")
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.kept[name] = true
}

// Drop ends what Keep has begun, if it has.
func (u *Unit) Drop(name string) {
	u.mu.Lock()
	kept := u.kept[name]
	delete(u.kept, name)
	u.mu.Unlock()
	if kept {
		u.tell("FDSTOREREMOVE=1\nFDNAME=" + name)
	}
}

// Forget closes the files that nobody has claimed, and drops them but for those
// whose name begins with an id that keep tells to keep, and a dash.
func (u *Unit) Forget(keep func(id string) bool) {
	u.mu.Lock()
	given := u.given
	u.given = nil
	u.mu.Unlock()
	for name, f := range given {
		f.Close()
		if id, _, _ := strings.Cut(name, "-"); !keep(id) {
			u.Drop(name)
		}
	}
}

// Ready tells that the daemon is started.
func (u *Unit) Ready() { u.tell(daemon.SdNotifyReady) }

// Stopping tells that the daemon is about to end.
func (u *Unit) Stopping() { u.tell(daemon.SdNotifyStopping) }

// Watch tells as often as systemd wants to hear it, until ctx ends, that the daemon
// is alive, if it is. When systemd has not heard it for too long it restarts the
// daemon.
func (u *Unit) Watch(ctx context.Context, alive func(context.Context) error) {
	if u.watchdog == 0 {
		return
	}
	tick := time.NewTicker(u.watchdog / 2)
	defer tick.Stop()
	for {
		asking, cancel := context.WithTimeout(ctx, u.watchdog/2)
		err := alive(asking)
		cancel()
		if err == nil {
			u.tell(daemon.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			logrus.WithError(err).Error("the daemon does not answer itself")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (u *Unit) tell(state string) {
	if u.notify == "" {
		return
	}
	if err := u.send(state); err != nil {
		logrus.WithError(err).Warn("systemd is not told")
	}
}

// sendTimeout bounds how long systemd may leave messages unread, in seconds.
const sendTimeout = 5

// send sends a message with files.
func (u *Unit) send(message string, fds ...int) error {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify socket: %w", err)
	}
	defer unix.Close(s)
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: sendTimeout}); err != nil {
		return fmt.Errorf("notify socket: %w", err)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(s, []byte(message), rights, &unix.SockaddrUnix{Name: u.notify}, 0); err != nil {
		return fmt.Errorf("notify socket %s: %w", u.notify, err)
	}
	return nil
}
