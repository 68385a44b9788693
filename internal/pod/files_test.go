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

func TestMemoryCgroup(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"version 1", "9:memory:/a/b\n8:cpu,cpuacct:/c\n1:name=systemd:/d\n", "/cg/memory/a/b"},
		{"beside another", "9:hugetlb,memory:/a\n", "/cg/memory/a"},
		{"hybrid", "0::/unified\n9:memory:/a\n", "/cg/memory/a"},
		{"hybrid in another order", "9:memory:/a\n0::/unified\n", "/cg/memory/a"},
		{"version 2", "0::/kubepods.slice/x:y.scope\n", "/cg/kubepods.slice/x:y.scope"},
		{"version 1 without it", "8:cpu:/c\n", ""},
		{"nothing", "", ""},
		{"nonsense", "memory\n:\n", ""},
	} {
		got, err := memoryCgroupIn("/cg", tt.text)
		if got != tt.want || (err == nil) == (tt.want == "") {
			t.Errorf("%s: %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}
	if _, err := memoryCgroup(os.Getpid()); err != nil {
		t.Errorf("of this process: %v", err)
	}
}

func TestOOMKills(t *testing.T) {
	for _, tt := range []struct {
		file, text string
		want       uint64
	}{
		{"memory.events", "low 0\nhigh 0\nmax 12\noom 5\noom_kill 3\noom_group_kill 1\n", 3},
		{"memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 2},
		{"memory.events", "oom 5\n", 0},
		{"other", "oom_kill 7\n", 0},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, tt.file), []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := oomKills(dir); got != tt.want {
			t.Errorf("%s %q: %d, want %d", tt.file, tt.text, got, tt.want)
		}
	}
}

func TestPodFiles(t *testing.T) {
	dir := t.TempDir()
	err := writePodFiles(dir, &runtime.PodSandboxConfig{Hostname: "web", DnsConfig: &runtime.DNSConfig{
		Servers: []string{"10.0.0.10", "fd00::10"}, Searches: []string{"default.svc", "svc"}, Options: []string{"ndots:5", "edns0"},
	}})
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
