package spec

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// device makes a device file.
func device(t *testing.T, file string, mode uint32, major, minor uint32) string {
	t.Helper()
	if err := unix.Mknod(file, mode|0o666, int(unix.Mkdev(major, minor))); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestDevices(t *testing.T) {
	dir := t.TempDir()
	zero, mem, disk := device(t, dir+"/zero", unix.S_IFCHR, 1, 5), device(t, dir+"/mem", unix.S_IFCHR, 1, 1), device(t, dir+"/disk", unix.S_IFBLK, 7, 0)
	link := dir + "/link"
	if err := os.Symlink("zero", link); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		device  *runtime.Device
		proxied []string
		words   string // of the error
	}{
		{&runtime.Device{HostPath: "/dev/null"}, nil, ""},
		{&runtime.Device{HostPath: zero, ContainerPath: "/dev/mine", Permissions: "mrw"}, nil, ""},
		{&runtime.Device{HostPath: link, ContainerPath: "/dev/mine", Permissions: "rw"}, nil, ""},
		{&runtime.Device{HostPath: mem, ContainerPath: "/dev/nvidia0"}, []string{"/dev/nvidia*"}, ""},
		{&runtime.Device{HostPath: mem, ContainerPath: "/dev/mem"}, []string{"/dev/nvidia*"}, "/dev/mem (c 1:1): not one that a sandbox has"},
		{&runtime.Device{HostPath: disk, ContainerPath: "/dev/loop0"}, nil, "/dev/loop0 (b 7:0)"},
		{&runtime.Device{HostPath: zero, ContainerPath: "/dev/mine", Permissions: "r"}, nil, `permissions "r"`},
		{&runtime.Device{HostPath: zero, ContainerPath: "/dev/mine", Permissions: "rwx"}, nil, `permissions "rwx"`},
		{&runtime.Device{HostPath: zero, ContainerPath: "/dev/../etc/zero"}, nil, `container_path "/dev/../etc/zero"`},
		{&runtime.Device{HostPath: dir, ContainerPath: "/dev/dir"}, nil, "no device"},
		{&runtime.Device{HostPath: dir + "/none", ContainerPath: "/dev/none"}, nil, dir + "/none"},
	} {
		cfg, o := container(t, t.TempDir())
		cfg.Devices, o.ProxiedDevices = []*runtime.Device{test.device}, test.proxied
		s, err := Container(cfg, o)
		if test.words != "" {
			refused(t, err, errdefs.ErrInvalidArgument, test.words)
			continue
		}
		if err != nil || len(s.Linux.Devices) != 1 {
			t.Errorf("%v: %v", test.device, err)
		}
	}
}

func TestCDIDevices(t *testing.T) {
	files := t.TempDir()
	zero, mem := device(t, files+"/zero", unix.S_IFCHR, 1, 5), device(t, files+"/mem", unix.S_IFCHR, 1, 1)
	var many []string
	for i := range MaxMounts + 1 {
		many = append(many, fmt.Sprintf(`{"hostPath": "DIR", "containerPath": "/many/%d", "options": ["ro", "bind"]}`, i))
	}
	cdiFile := strings.NewReplacer("MANY", strings.Join(many, ","), "ZERO", zero, "MEM", mem).Replace(`{
		"cdiVersion": "0.6.0", "kind": "example.com/device",
		"containerEdits": {"env": ["ALL=1"]},
		"devices": [
			{"name": "a", "containerEdits": {
				"deviceNodes": [{"path": "/dev/a", "hostPath": "ZERO"}],
				"mounts": [{"hostPath": "DIR", "containerPath": "/lib", "options": ["ro", "bind"]}],
				"env": ["DEVICE=a"]
			}},
			{"name": "b", "containerEdits": {"deviceNodes": [{"path": "/dev/b", "hostPath": "MEM"}]}},
			{"name": "many", "containerEdits": {"mounts": [MANY]}}
		]
	}`)
	cdiFile = strings.ReplaceAll(cdiFile, "DIR", files)
	if err := os.WriteFile(filepath.Join(files, "example.json"), []byte(cdiFile), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cfg, o := container(t, dir)
	o.CDISpecDirs = []string{files}
	cfg.CDIDevices = []*runtime.CDIDevice{{Name: "example.com/device=a"}}
	s, err := Container(cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.Process.Env, "DEVICE=a") || !slices.Contains(s.Process.Env, "ALL=1") || len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Minor != 5 {
		t.Errorf("environment %q, devices %v", s.Process.Env, s.Linux.Devices)
	}
	depth := 0
	for _, m := range s.Mounts {
		if d := strings.Count(m.Destination, "/"); d < depth {
			t.Errorf("%s after a mount that may be below it", m.Destination)
		} else {
			depth = d
		}
	}
	for name, words := range map[string]string{
		"example.com/device=b":    "/dev/b (c 1:1): not one that a sandbox has",
		"example.com/device=none": "CDI_devices",
		"example.com/device=many": "mounts: 1",
		"nonsense":                "nonsense",
	} {
		cfg.CDIDevices = []*runtime.CDIDevice{{Name: name}}
		_, err := Container(cfg, o)
		refused(t, err, errdefs.ErrInvalidArgument, words)
	}
}

func TestHostDevice(t *testing.T) {
	null := specs.LinuxDevice{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}
	for want, devices := range map[string][]specs.LinuxDevice{
		"":             {null},
		"/dev/nvidia0": {null, {Path: "/dev/nvidia0", Type: "c", Major: 195}},
		"/dev/sda":     {{Path: "/dev/sda", Type: "b", Major: 1, Minor: 3}},
	} {
		if got := HostDevice(&specs.Spec{Linux: &specs.Linux{Devices: devices}}); got != want {
			t.Errorf("%v: %q", devices, got)
		}
	}
}
