package network

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"
)

var one = []string{"10.1.2.3/24"}

func (f *fake) mustAdd(pod Pod) []string {
	f.t.Helper()
	ips, err := f.Add(f.t.Context(), pod)
	if err != nil {
		f.t.Fatal(err)
	}
	return ips
}

func (f *fake) mustDel(pod Pod) {
	f.t.Helper()
	if err := f.Del(f.t.Context(), pod); err != nil {
		f.t.Fatal(err)
	}
}

func TestPluginsAreTold(t *testing.T) {
	f := newFake(t)
	netns := newNS(t)
	f.configure("10.conflist", "net", "1.0.0", fakeConf{
		IPs:          []string{"10.1.2.3/24", "fd00::3/64"},
		Capabilities: map[string]bool{"portMappings": true, "cgroupPath": true},
	})
	pod := Pod{
		ID: "p1", NetNS: netns, Namespace: "default", Name: "web", UID: "u-1", CgroupPath: "/kubepods/p1",
		Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp", HostIP: "127.0.0.1"}, {ContainerPort: 81, Protocol: "udp"}},
	}
	if got := f.mustAdd(pod); !slices.Equal(got, []string{"10.1.2.3", "fd00::3"}) {
		t.Errorf("addresses = %v", got)
	}
	f.mustDel(pod)
	for _, c := range f.expect("ADD  p1", "DEL  p1") {
		if c.NetNS != netns || c.IfName != "eth0" {
			t.Errorf("%s: netns %q, interface %q", c.Command, c.NetNS, c.IfName)
		}
		if want := "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=p1;K8S_POD_UID=u-1"; c.Args != want {
			t.Errorf("%s: args %q", c.Command, c.Args)
		}
		want := map[string]any{
			"cgroupPath":   "/kubepods/p1",
			"portMappings": []any{map[string]any{"hostPort": 8080., "containerPort": 80., "protocol": "tcp", "hostIP": "127.0.0.1"}},
		}
		if !reflect.DeepEqual(c.RuntimeConfig, want) {
			t.Errorf("%s: runtimeConfig %v", c.Command, c.RuntimeConfig)
		}
	}
}

func TestArgumentsCannotBeSmuggled(t *testing.T) {
	f := newFake(t)
	f.configure("10.conflist", "net", "1.0.0", fakeConf{IPs: one})
	pod := Pod{ID: "p1", Name: "web;K8S_POD_NAMESPACE=kube-system"}
	if _, err := f.Add(t.Context(), pod); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Add = %v", err)
	}
	f.mustDel(pod)
	f.expect()
}

func TestFailedAddIsUndone(t *testing.T) {
	for name, c := range map[string]struct {
		second fakeConf
		want   string
		calls  []string
	}{
		"plugin fails": {fakeConf{Tag: "b", Fail: []string{"ADD"}}, "ADD refused; stderr: last words", []string{"ADD a p1", "ADD b p1", "DEL b p1", "DEL a p1"}},
		"and DEL too":  {fakeConf{Tag: "b", Fail: []string{"ADD", "DEL"}}, "DEL refused", []string{"ADD a p1", "ADD b p1", "DEL b p1"}},
		"no binary":    {fakeConf{Tag: "b", Type: "absent"}, `plugin "absent"`, []string{"ADD a p1", "DEL a p1"}},
		"no address":   {fakeConf{Tag: "b"}, "no address", []string{"ADD a p1", "ADD b p1", "DEL b p1", "DEL a p1"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.configure("10.conflist", "net", "1.0.0", fakeConf{Tag: "a", IPs: one}, c.second)
			_, err := f.Add(t.Context(), Pod{ID: "p1"})
			if err == nil || !strings.Contains(err.Error(), "network net: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Add = %v; want %q", err, c.want)
			}
			f.expect(c.calls...)
			if n := f.attachments(); n != 0 {
				t.Errorf("%d attachments", n)
			}
		})
	}
}

// TestDeadlineKillsPluginAndChildren reads from a FIFO until nobody is left who
// could write.
func TestDeadlineKillsPluginAndChildren(t *testing.T) {
	f := newFake(t)
	alive := filepath.Join(t.TempDir(), "alive")
	if err := unix.Mkfifo(alive, 0o600); err != nil {
		t.Fatal(err)
	}
	f.configure("10.conflist", "net", "1.0.0", fakeConf{Hang: "ADD", Alive: alive})
	tooLate := errors.New("too late")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := f.Add(ctx, Pod{ID: "p1"})
		done <- err
	}()
	fifo, err := os.Open(alive)
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	if _, err := io.ReadFull(fifo, make([]byte, len("child\n"))); err != nil {
		t.Fatal(err)
	}
	cancel(tooLate)
	if err := <-done; !errors.Is(err, tooLate) || !strings.Contains(err.Error(), "fake: killed") {
		t.Errorf("Add = %v", err)
	}
	if _, err := io.ReadAll(fifo); err != nil {
		t.Error(err)
	}
	f.expect("ADD  p1", "DEL  p1")
}

// A plugin that hangs is named, with the call, and does not hold up its pod for ever.
func TestAPluginThatHangsIsKilled(t *testing.T) {
	for _, command := range []string{"ADD", "DEL", "STATUS"} {
		t.Run(command, func(t *testing.T) {
			f := newFake(t)
			f.lib = libcni.NewCNIConfigWithCacheDir(f.options.BinDirs, f.options.CacheDir, &plugins{timeout: time.Second})
			alive := filepath.Join(t.TempDir(), "alive")
			if err := unix.Mkfifo(alive, 0o600); err != nil {
				t.Fatal(err)
			}
			reader, err := os.OpenFile(alive, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			f.configure("10.conflist", "net", "1.1.0", fakeConf{Hang: command, Alive: alive, IPs: one})
			pod := Pod{ID: "p1"}
			switch command {
			case "ADD":
				_, err = f.Add(t.Context(), pod)
			case "DEL":
				if _, err := f.Add(t.Context(), pod); err != nil {
					t.Fatal(err)
				}
				err = f.Del(t.Context(), pod)
			case "STATUS":
				err = f.Status(t.Context())
			}
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "network net") || !strings.Contains(err.Error(), "fake: killed: "+command+" took longer") {
				t.Errorf("%s: %v", command, err)
			}
		})
	}
}

func TestDelIsRepeatable(t *testing.T) {
	f := newFake(t)
	pod := Pod{ID: "p1"}
	f.mustDel(pod) // no configuration, never added
	f.configure("10.conflist", "net", "1.0.0", fakeConf{IPs: one})
	f.mustAdd(pod)
	f.mustDel(pod)
	f.mustDel(pod)
	f.expect("ADD  p1", "DEL  p1", "DEL  p1")
}

func TestFailedDelCanBeRepeated(t *testing.T) {
	f := newFake(t)
	f.configure("10.conflist", "net", "1.0.0", fakeConf{IPs: one, Type: "fake2"})
	f.install("fake2")
	pod := Pod{ID: "p1"}
	f.mustAdd(pod)
	if err := os.Remove(filepath.Join(f.options.BinDirs[0], "fake2")); err != nil {
		t.Fatal(err)
	}
	if err := f.Del(t.Context(), pod); err == nil || !strings.Contains(err.Error(), "fake2") {
		t.Errorf("Del without the plugin = %v", err)
	}
	f.install("fake2")
	f.mustDel(pod)
	if n := f.attachments(); n != 0 {
		t.Errorf("%d attachments", n)
	}
}

func TestDelWithoutNamespace(t *testing.T) {
	f := newFake(t)
	f.configure("10.conflist", "net", "1.0.0", fakeConf{IPs: one})
	pod := Pod{ID: "p1", NetNS: newNS(t)}
	f.mustAdd(pod)
	if err := RemoveNS(pod.NetNS); err != nil {
		t.Fatal(err)
	}
	f.mustDel(pod)
	if calls := f.expect("ADD  p1", "DEL  p1"); calls[1].NetNS != "" {
		t.Errorf("DEL has netns %q", calls[1].NetNS)
	}
}

// TestDelUsesTheConfigurationOfAdd attaches to two networks in turn, and
// releases both when neither is configured any more.
func TestDelUsesTheConfigurationOfAdd(t *testing.T) {
	f := newFake(t)
	pod := Pod{ID: "p1"}
	f.configure("10.conflist", "net1", "1.0.0", fakeConf{IPs: one, Tag: "first", Fail: []string{"DEL"}})
	f.mustAdd(pod)
	f.configure("10.conflist", "net2", "1.0.0", fakeConf{IPs: one, Tag: "second"})
	f.mustAdd(pod)
	f.unconfigure()
	if err := f.Del(t.Context(), pod); err == nil || !strings.Contains(err.Error(), "network net1 of p1: ") {
		t.Errorf("Del = %v", err)
	}
	f.expect("ADD first p1", "ADD second p1", "DEL first p1", "DEL second p1")
	if n := f.attachments(); n != 1 {
		t.Errorf("%d attachments", n)
	}
}

func TestGC(t *testing.T) {
	f := newFake(t)
	f.configure("10.conflist", "old", "1.0.0", fakeConf{IPs: one, Tag: "old"})
	f.mustAdd(Pod{ID: "p1"})
	f.mustAdd(Pod{ID: "p2"})
	f.configure("10.conflist", "new", "1.1.0", fakeConf{IPs: one, Tag: "new"})
	f.mustAdd(Pod{ID: "p3"})
	f.mustAdd(Pod{ID: "p4"})
	f.calls()
	if err := f.GC(t.Context(), []string{"p1", "p3"}); err != nil {
		t.Fatal(err)
	}
	calls := f.expect("DEL new p4", "DEL old p2", "GC new")
	if want := []map[string]string{{"containerID": "p3", "ifname": "eth0"}}; len(calls) == 3 && !reflect.DeepEqual(calls[2].Attachments, want) {
		t.Errorf("valid attachments = %v", calls[2].Attachments)
	}
	f.unconfigure()
	if err := f.GC(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	f.expect("DEL new p3", "DEL old p1")
}

func TestStatus(t *testing.T) {
	f := newFake(t)
	expect := func(want string) {
		t.Helper()
		if err := f.Status(t.Context()); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("Status = %v, want %q", err, want)
		}
	}
	dir := f.options.ConfDir
	expect("no network configuration in " + dir)
	f.write("README", "not one")
	if err := os.Mkdir(filepath.Join(dir, "05-dir.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	expect("no network configuration in " + dir)
	f.write("10-a.conflist", "{")
	expect("network configuration " + dir + "/10-a.conflist: unexpected end")
	f.write("10-a.conflist", `{"name":"a/b","plugins":[{"type":"fake"}]}`)
	expect("10-a.conflist: invalid characters found in network name")
	f.write("10-a.conflist", `{"name":"a"}`)
	expect("10-a.conflist: failed to parse plugin config 0: error parsing configuration: missing 'type'")
	f.configure("10-a.conflist", "a", "1.0.0", fakeConf{}, fakeConf{Type: "absent"})
	expect(`network a: no plugin "absent" in ` + f.options.BinDirs[0])
	f.configure("10-a.conflist", "a", "1.0.0", fakeConf{Fail: []string{"STATUS"}})
	expect("") // STATUS came with 1.1
	f.configure("10-a.conflist", "a", "1.1.0", fakeConf{Fail: []string{"STATUS"}})
	expect("network a: fake: STATUS refused")
	f.configure("05-b.conflist", "b", "1.1.0", fakeConf{})
	expect("")
}

// TestConfigurationIsReadWhenUsed changes, adds and removes configurations
// between two calls.
func TestConfigurationIsReadWhenUsed(t *testing.T) {
	f := newFake(t)
	if _, err := f.Add(t.Context(), Pod{ID: "p0"}); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "network not ready: no network configuration in "+f.options.ConfDir) {
		t.Errorf("Add = %v", err)
	}
	f.configure("20.json", "net", "1.0.0", fakeConf{IPs: one, Tag: "list"})
	f.mustAdd(Pod{ID: "p1"})
	f.write("15.conf", `{"cniVersion":"1.0.0","name":"net","type":"fake","log":"`+f.log+`","tag":"single","ips":["10.1.2.3/24"]}`)
	f.mustAdd(Pod{ID: "p2"})
	f.configure("10.conflist", "net", "1.0.0", fakeConf{IPs: one, Tag: "first"})
	f.mustAdd(Pod{ID: "p3"})
	f.unconfigure()
	f.configure("10.conflist", "net", "1.0.0", fakeConf{IPs: one, Tag: "again"})
	f.mustAdd(Pod{ID: "p4"})
	f.mustDel(Pod{ID: "p2"})
	f.expect("ADD list p1", "ADD single p2", "ADD first p3", "ADD again p4", "DEL single p2")
}
