package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bin is a program that make build has made.
func bin(name string) string {
	path, err := filepath.Abs("../../bin/" + name)
	if err != nil {
		panic(err)
	}
	return path
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until try succeeds.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// hierarchies are the roots of the cgroup hierarchies, one with version 2.
func hierarchies() []string {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err == nil {
		return []string{root}
	}
	found, _ := filepath.Glob(root + "/*")
	return found
}

// makeCgroup makes the kubelet's root of cgroups, which it wants to find.
func makeCgroup(name string) error {
	for _, root := range hierarchies() {
		if err := os.Mkdir(root+name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		// A cpuset of version 1 holds no process until it is filled.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			text, err := os.ReadFile(filepath.Join(root, file))
			if err != nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(root+name, file), text, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// cgroups are the directories of a cgroup and of those in it, in all
// hierarchies, the outermost first.
func cgroups(name string) []string {
	var found []string
	for _, root := range hierarchies() {
		_ = filepath.WalkDir(root+name, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				found = append(found, path)
			}
			return nil
		})
	}
	return found
}

// killAll kills the processes in a cgroup; it is an error that there were any.
func killAll(cgroup string) error {
	var errs []error
	for _, dir := range cgroups(cgroup) {
		text, _ := os.ReadFile(dir + "/cgroup.procs")
		for field := range strings.FieldsSeq(string(text)) {
			var pid int
			if _, err := fmt.Sscan(field, &pid); err == nil && pid > 0 {
				_ = unix.Kill(pid, unix.SIGKILL)
				errs = append(errs, fmt.Errorf("process %d lived", pid))
			}
		}
	}
	return errors.Join(errs...)
}

func removeCgroup(name string) error {
	var errs []error
	for _, dir := range slices.Backward(cgroups(name)) {
		errs = append(errs, os.Remove(dir))
	}
	return errors.Join(errs...)
}
