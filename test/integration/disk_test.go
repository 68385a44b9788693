package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// onDisk gives a directory of the daemon's a small disk of its own. It is called
// before anything is there.
func (d *daemon) onDisk(t *testing.T, dir string) {
	t.Helper()
	path := d.path(dir)
	check(t, os.MkdirAll(path, 0o755))
	d.stop(t, unix.SIGTERM)
	copied := path + ".copy"
	check(t, os.Rename(path, copied))
	check(t, os.Mkdir(path, 0o755))
	check(t, unix.Mount("tmpfs", path, "tmpfs", 0, "size=64m"))
	check(t, errors.Join(os.RemoveAll(filepath.Join(copied, "runscd.sock")), os.CopyFS(path, os.DirFS(copied))))
	check(t, os.RemoveAll(copied))
	d.disk = path
	d.start(t)
}

// fill takes all space of a disk but so many bytes, until the result is called.
func fill(t *testing.T, disk string, leave int64) (empty func()) {
	t.Helper()
	path := filepath.Join(disk, "ballast")
	f, err := os.Create(path)
	check(t, err)
	defer f.Close()
	block := make([]byte, 4096)
	for {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			break
		} else {
			check(t, err)
		}
	}
	fi, err := f.Stat()
	check(t, err)
	check(t, f.Truncate(fi.Size()-leave))
	return func() { check(t, os.Remove(path)) }
}

// readOnly makes a directory read-only until the result is called.
func readOnly(t *testing.T, dir string) (end func()) {
	t.Helper()
	check(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	check(t, unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	return func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) }
}

// TestDiskFaults has each of the daemon's disks be full, with more and more room,
// or read-only: what runs goes on, what cannot be done is told and leaves nothing,
// and afterwards everything works.
func TestDiskFaults(t *testing.T) {
	for _, dir := range []string{"l", "s"} {
		t.Run(dir, func(t *testing.T) {
			d := newDaemon(t, noNetwork)
			d.onDisk(t, dir)
			well := d.runPod(t).run(t, forever)
			ref, _ := put(t, registry, "disk"+dir+":1", func(c *v1.Config) { c.User = "disk" })
			failed := 0
			try := func(what, word string) {
				t.Helper()
				if err := d.tryAll(t, ref); err != nil {
					failed++
					if !strings.Contains(err.Error(), word) {
						t.Errorf("%s: %v", what, err)
					}
				}
				well.says(t, "echo fine", "fine\n")
			}
			for _, leave := range []int64{0, 4096, 8192, 16384, 1 << 18} {
				empty := fill(t, d.disk, leave)
				try(fmt.Sprint(leave, " bytes left"), "no space left on device")
				empty()
				check(t, d.tryAll(t, ref)) // without a restart
			}
			for _, part := range map[string][]string{
				"l": {"l/pods", "l/containers", "l/images/snapshots/snapshots", "l/images/content/ingest", "logs"},
				"s": {"s/pods", "s/containers", "s/netns", "s/runsc/runsc"},
			}[dir] {
				writable := readOnly(t, d.path(part))
				try(part+" is read-only", "read-only file system")
				writable()
				check(t, d.tryAll(t, ref))
			}
			t.Logf("%d calls failed for want of a disk", failed)
			// What could not be undone then is listed, for the kubelet to remove it.
			pods, err := d.pods.ListPodSandbox(ctx(t), nil)
			check(t, err)
			for _, p := range pods {
				if p.State == runtime.PodSandboxState_SANDBOX_NOTREADY {
					check(t, d.pods.RemovePodSandbox(ctx(t), p.Id))
				}
			}
			eventually(t, "nothing is left but what was there", func() error {
				for _, dir := range []string{"l/pods", "l/containers", "s/pods", "s/containers", "s/netns"} {
					if found := names(d.path(dir)); len(found) != 1 {
						return fmt.Errorf("%s: %q", dir, found)
					}
				}
				return nil
			})
		})
	}
}

// tryAll pulls an image, runs a pod with a container, and removes them all. The
// error is the first one; what could not be removed at once can be now.
func (d *daemon) tryAll(t *testing.T, ref string) error {
	t.Helper()
	if _, err := d.images.PullImage(ctx(t), &runtime.ImageSpec{Image: ref}, nil, nil); err != nil {
		return fmt.Errorf("PullImage: %w", err)
	}
	p := &pod{daemon: d, config: d.podConfig()}
	var err error
	if p.id, err = d.pods.RunPodSandbox(ctx(t), p.config, ""); err != nil {
		return fmt.Errorf("RunPodSandbox: %w", err)
	}
	config := p.containerConfig("echo there; " + forever)
	id, err := d.pods.CreateContainer(ctx(t), p.id, config, p.config)
	if err == nil {
		if err = d.pods.StartContainer(ctx(t), id); err != nil {
			err = fmt.Errorf("StartContainer: %w", err)
		}
	} else {
		err = fmt.Errorf("CreateContainer: %w", err)
	}
	return errors.Join(err, d.pods.StopPodSandbox(ctx(t), p.id), d.pods.RemovePodSandbox(ctx(t), p.id),
		d.images.RemoveImage(ctx(t), &runtime.ImageSpec{Image: ref}))
}
