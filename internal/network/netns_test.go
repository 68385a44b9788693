package network

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
)

// newNS makes a network namespace for one test.
func newNS(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	path := filepath.Join(t.TempDir(), "netns", "pod")
	if err := CreateNS(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := RemoveNS(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

// addrs returns the addresses of an interface in the namespace at path.
func addrs(t *testing.T, path, name string) []string {
	t.Helper()
	var all []string
	err := ns.WithNetNSPath(path, func(ns.NetNS) error {
		i, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		if i.Flags&net.FlagUp == 0 {
			t.Errorf("%s is down", name)
		}
		addrs, err := i.Addrs()
		for _, a := range addrs {
			all = append(all, a.String())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func mounted(t *testing.T, mountinfo, path string) bool {
	t.Helper()
	data, err := os.ReadFile(mountinfo)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(data), " "+path+" ")
}

func TestCreateNS(t *testing.T) {
	path := newNS(t)
	if got := addrs(t, path, "lo"); !slices.Contains(got, "127.0.0.1/8") || !slices.Contains(got, "::1/128") {
		t.Errorf("lo has %v", got)
	}
	err := ns.WithNetNSPath(path, func(ns.NetNS) error {
		all, err := net.Interfaces()
		for _, i := range all {
			if i.Flags&net.FlagUp != 0 && i.Name != "lo" {
				t.Errorf("interface %s is up", i.Name)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := CreateNS(path); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("made twice: %v", err)
	}
	if !nsExists(path) {
		t.Error("the second attempt removed the namespace of the first")
	}
	var made, used unix.Stat_t
	if err := unix.Stat(path, &made); err != nil {
		t.Fatal(err)
	}
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		if unix.Stat(thread, &used) == nil && used.Ino == made.Ino {
			t.Errorf("%s was left in the new namespace", thread)
		}
	}
}

func TestRemoveNS(t *testing.T) {
	path := newNS(t)
	for range 2 {
		if err := RemoveNS(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("file is still there: %v", err)
	}
	if mounted(t, "/proc/self/mountinfo", path) {
		t.Error("mount is still there")
	}
	// A daemon killed between making the file and mounting.
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if nsExists(path) {
		t.Error("a plain file counts as a namespace")
	}
	if err := RemoveNS(path); err != nil {
		t.Error(err)
	}
}

// TestRemoveNSReachesCopies has a process that copied the mount into a mount
// namespace that gets no news from ours.
func TestRemoveNSReachesCopies(t *testing.T) {
	path := newNS(t)
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS} // and makes all mounts private
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	mountinfo := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "mountinfo")
	if !mounted(t, mountinfo, path) {
		t.Fatal("the mount was not copied")
	}
	if err := RemoveNS(path); err != nil {
		t.Fatal(err)
	}
	if mounted(t, mountinfo, path) {
		t.Error("the copy is still there")
	}
}
