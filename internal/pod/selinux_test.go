package pod

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestVolumesAreRelabelled has the volumes that ask for it get the label that the
// container's options make, with all that is in them, and no others.
func TestVolumesAreRelabelled(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("p")
	dir := t.TempDir()
	const attribute = "security.selinux"
	if err := unix.Setxattr(dir, attribute, []byte("old"), 0); errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
		t.Skipf("labels cannot be set here: %v", err)
	}
	outside := filepath.Join(dir, "outside")
	n.must(os.WriteFile(outside, nil, 0o600))
	for _, volume := range []string{"asks", "asks not"} {
		n.must(os.MkdirAll(filepath.Join(dir, volume, "sub"), 0o700))
		n.must(os.WriteFile(filepath.Join(dir, volume, "sub/file"), nil, 0o600))
		n.must(os.Symlink(outside, filepath.Join(dir, volume, "link")))
	}
	create := func(name, source string) error {
		req := n.containerRequest(pod, name, "sleep")
		req.Config.Mounts = []*runtime.Mount{
			{HostPath: source, ContainerPath: "/a", SelinuxRelabel: true, Readonly: true},
			{HostPath: filepath.Join(dir, "asks not"), ContainerPath: "/b"},
			{Image: &runtime.ImageSpec{Image: "busybox"}, ContainerPath: "/c", Readonly: true, SelinuxRelabel: true},
		}
		req.Config.Linux = &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
			SelinuxOptions: &runtime.SELinuxOption{Level: "s0:c1,c2"},
		}}
		_, err := n.CreateContainer(t.Context(), req)
		return err
	}
	labels := func(want map[string]string) {
		t.Helper()
		for name, label := range want {
			got := make([]byte, 100)
			size, err := unix.Lgetxattr(filepath.Join(dir, name), attribute, got)
			if errors.Is(err, unix.ENODATA) {
				size, err = 0, nil
			}
			if err != nil || string(got[:size]) != label {
				t.Errorf("%s: %q, %v, want %q", name, got[:max(size, 0)], err, label)
			}
		}
	}
	n.must(create("without", filepath.Join(dir, "asks"))) // as on this host
	labels(map[string]string{"asks": "", "asks/sub/file": ""})

	n.VolumeLabel = func(o *runtime.SELinuxOption) (string, error) { return "u:r:container_file_t:" + o.GetLevel(), nil }
	n.must(create("with", filepath.Join(dir, "asks")))
	const label = "u:r:container_file_t:s0:c1,c2"
	labels(map[string]string{
		"asks": label, "asks/sub": label, "asks/sub/file": label, "asks/link": label,
		"asks not": "", "asks not/sub/file": "", "outside": "",
	})

	before := n.leftovers()
	n.is(create("system", "/usr"), func(err error) bool { return err != nil }, `mounts[0] "/a": selinux_relabel`)
	n.VolumeLabel = func(*runtime.SELinuxOption) (string, error) { return "", errors.New("no such type") }
	n.is(create("bad", filepath.Join(dir, "asks")), func(err error) bool { return err != nil }, "selinux_options: no such type")
	n.nothing(before...)
}
