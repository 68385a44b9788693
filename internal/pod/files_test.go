package pod

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestLogPath(t *testing.T) {
	for _, tt := range []struct{ dir, path, want string }{
		{"/var/log/pods/p", "c/0.log", "/var/log/pods/p/c/0.log"},
		{"/var/log/pods/p/", "0.log", "/var/log/pods/p/0.log"},
		{"", "0.log", ""},
		{"/var/log/pods/p", "", ""},
		{"/var/log/pods/p", "a/../0.log", "/var/log/pods/p/0.log"},
		{"/var/log/pods/p", "../0.log", "error"},
		{"/var/log/pods/p", "a/../../0.log", "error"},
		{"/var/log/pods/p", "/0.log", "error"},
	} {
		got, err := logPath(tt.dir, tt.path)
		if tt.want == "error" {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q in %q: %q, %v", tt.path, tt.dir, got, err)
			}
			continue
		}
		if got != tt.want || err != nil {
			t.Errorf("%q in %q: %q, %v; want %q", tt.path, tt.dir, got, err, tt.want)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for _, tt := range []struct {
		own   runtime.Signal
		image string
		want  int
	}{
		{0, "", 15},
		{0, "SIGQUIT", 3},
		{0, "QUIT", 3},
		{0, "9", 9},
		{0, "SIGRTMIN+3", 37},
		{0, "RTMAX-1", 63},
		{runtime.Signal_SIGNAL_SIGINT, "SIGQUIT", 2},
		{runtime.Signal_SIGNAL_SIGRTMINPLUS3, "", 37},
		{runtime.Signal_SIGNAL_SIGRTMAXMINUS2, "", 62},
		{0, "SIGNONE", -1},
		{0, "0", -1},
		{0, "-1", -1},
		{0, "65", -1},
	} {
		got, err := stopSignal(tt.own, tt.image)
		if tt.want < 0 {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s, %q: %d, %v", tt.own, tt.image, got, err)
			}
			continue
		}
		if got != tt.want || err != nil {
			t.Errorf("%s, %q: %d, %v; want %d", tt.own, tt.image, got, err, tt.want)
		}
	}
	for number, name := range runtime.Signal_name {
		if _, err := stopSignal(runtime.Signal(number), ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPodFiles(t *testing.T) {
	dir := t.TempDir()
	err := writePodFiles(dir, &runtime.PodSandboxConfig{Hostname: "web", DnsConfig: &runtime.DNSConfig{
		Servers: []string{"10.0.0.10", "fd00::10"}, Searches: []string{"default.svc", "svc"}, Options: []string{"ndots:5", "edns0"},
	}}, rootOf(nil))
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"hostname":    "web\n",
		"resolv.conf": "search default.svc svc\nnameserver 10.0.0.10\nnameserver fd00::10\noptions ndots:5 edns0\n",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, file)); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v", file, got, err)
		}
	}
	own, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if got, err := resolvConf(nil); got != string(own) || err != nil {
		t.Errorf("without a configuration: %q, %v", got, err)
	}
	for _, file := range []string{"hosts", "shm"} {
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
			t.Error(err)
		}
	}
}

func TestIDsCanBeShortened(t *testing.T) {
	objects := map[string]int{"abc1": 1, "abd2": 2}
	for id, want := range map[string]int{"abc1": 1, "abc": 1, "abd": 2, "ab": 0, "": 0, "x": 0} {
		got, err := find(objects, id)
		if got != want || (err == nil) != (want > 0) || err != nil && !errdefs.IsNotFound(err) {
			t.Errorf("%q: %d, %v", id, got, err)
		}
	}
	if a, b := newID(), newID(); len(a) != idLength || a == b {
		t.Errorf("ids %s and %s", a, b)
	}
}
