package runsc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// deleteTimeout is how long runsc may take to delete a sandbox that is dead. It
// needs some 30 ms.
const deleteTimeout = 10 * time.Second

// cgroupPause is between the tries to remove a cgroup.
const cgroupPause = 10 * time.Millisecond

// Purge removes all that runsc keeps of the sandbox id and of its containers. It
// asks runsc to, and does it by itself where runsc fails or hangs: a binary that
// is sick or gone, or whoever has the sandbox's socket, must not keep a pod for
// ever. orphan says that there may be processes that nobody watches.
func (r *Runtime) Purge(ctx context.Context, id, bundle string, orphan bool) error {
	short, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	err := r.Delete(short, id)
	if err != nil {
		logrus.WithField("pod", id).WithError(err).Warn("sandbox is removed without runsc")
	}
	if err != nil || orphan {
		if err := r.Reclaim(ctx, id, bundle); err != nil {
			return err
		}
	}
	return r.Forget(id)
}

// Reclaim ends and removes what a Create that was cut off has left: its own
// process, if it still runs, the sandbox without a state file, and their
// cgroups. It is for a sandbox that has no other process.
func (r *Runtime) Reclaim(ctx context.Context, id, bundle string) error {
	// Twice in a row there must be none: a sandbox that was started after the
	// list of processes was made is not on it, and the create that started it
	// may have ended before its name was read.
	for empty := 0; empty < 2; empty++ {
		found, err := r.processesOf(id)
		if err != nil {
			return err
		}
		for _, pid := range found {
			if err := endProcess(ctx, pid); err != nil {
				return fmt.Errorf("process %d of sandbox %s: %w", pid, id, err)
			}
			empty = -1
		}
	}
	return removeCgroups(ctx, bundle)
}

// processesOf finds the processes of runsc that were started for a container
// below our root directory: its id is their last argument.
func (r *Runtime) processesOf(id string) ([]int, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []int
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		ours := slices.Contains(args, r.root) || slices.Contains(args, "--root="+r.root)
		if ours && args[len(args)-1] == id {
			found = append(found, pid)
		}
	}
	return found, nil
}

// endProcess kills a process and returns when it is dead.
func endProcess(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for ctx.Err() == nil {
		// In slices, for a poll knows no context.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(100*time.Millisecond/time.Millisecond))
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return ctx.Err()
}

// removeCgroups removes the cgroups of a bundle, in each hierarchy of version 1
// or in that of version 2. A scope of systemd's goes with its last process.
func removeCgroups(ctx context.Context, bundle string) error {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // nothing was started from it
	}
	if err != nil {
		return err
	}
	var s specs.Spec
	if json.Unmarshal(data, &s) != nil {
		return nil // as little: it is half written, by a full disk or the daemon's end
	}
	if s.Linux == nil || !filepath.IsAbs(s.Linux.CgroupsPath) {
		return nil
	}
	const mount = "/sys/fs/cgroup"
	var dirs []string
	for _, hierarchy := range []string{"*", ""} { // of version 1, and version 2
		found, err := filepath.Glob(filepath.Join(mount, hierarchy, s.Linux.CgroupsPath))
		if err != nil {
			return err
		}
		dirs = append(dirs, found...)
	}
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, removeCgroup(ctx, dir))
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup with the processes that are left in it, such as
// gofers that have not yet noticed the end of their sandbox.
func removeCgroup(ctx context.Context, dir string) error {
	for {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || ctx.Err() != nil {
			return err
		}
		pids, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, field := range strings.Fields(string(pids)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				if err := endProcess(ctx, pid); err != nil {
					return fmt.Errorf("process %d in cgroup %s: %w", pid, dir, err)
				}
			}
		}
		select { // the kernel may need a moment to count it out
		case <-time.After(cgroupPause):
		case <-ctx.Done():
		}
	}
}
