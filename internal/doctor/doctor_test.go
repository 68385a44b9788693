package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/runscd/runscd/internal/config"
)

// newNode is a node on which all is well, of files below a directory.
func newNode(t *testing.T) *Node {
	t.Helper()
	n := &Node{
		Config: config.Default(), Root: t.TempDir(),
		Network: func(context.Context) error { return nil },
		Daemon:  func(context.Context) (string, error) { return "1.2.3", nil },
		Try: func(context.Context) ([]Handler, error) {
			return []Handler{{Name: "runsc", Version: "release-1", Path: "/r"}}, nil
		},
	}
	c := n.Config
	c.Socket, c.Cgroup.Driver = "/run/runscd/runscd.sock", "cgroupfs"
	c.Runtime.Path = filepath.Join(n.Root, "runsc")
	for name, text := range map[string]string{
		"runsc": "", "proc/sys/kernel/osrelease": "6.1.0-13-amd64\n", "proc/sys/net/ipv4/ip_forward": "1\n", "dev/kvm": "",
		"sys/fs/cgroup/cgroup.controllers":     "cpuset cpu io memory hugetlb pids\n",
		"sys/fs/cgroup/cgroup.subtree_control": "cpuset cpu io memory pids\n",
		"var/lib/kubelet/config.yaml":          "kind: KubeletConfiguration\ncgroupDriver: cgroupfs\ncontainerRuntimeEndpoint: unix:///run/runscd/runscd.sock\n",
	} {
		n.write(t, name, text)
	}
	return n
}

func (n *Node) write(t *testing.T, name, text string) {
	t.Helper()
	path := n.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func (n *Node) remove(t *testing.T, name string) {
	t.Helper()
	if err := os.RemoveAll(n.path(name)); err != nil {
		t.Fatal(err)
	}
}

// expect checks that a check finds what is wanted, "VERDICT check text" each, and
// that what is bad has a remedy.
func expect(t *testing.T, got []Finding, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d findings, want %q:", len(got), want)
	}
	for i, f := range got {
		line := fmt.Sprintf("%s %s %s", f.Verdict, f.Check, f.Found)
		if i >= len(want) || !strings.HasPrefix(line, strings.SplitAfterN(want[i], " ", 3)[0]) || !strings.Contains(line, strings.SplitN(want[i], " ", 3)[2]) {
			t.Errorf("found %q", line)
		}
		if (f.Verdict == OK) != (f.Remedy == "") {
			t.Errorf("%s: remedy %q", line, f.Remedy)
		}
	}
}

func TestAllIsWell(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	n := newNode(t)
	r := n.Examine(t.Context())
	checks := map[string]bool{}
	for _, f := range r {
		checks[f.Check] = true
		// What this machine has is its own affair.
		if f.Verdict != OK && f.Check != "privileges" && f.Check != "root" && f.Check != "state" {
			t.Errorf("%+v", f)
		}
	}
	for _, want := range []string{"kernel", "privileges", "cgroup", "platform", "root", "state", "overlayfs", "network", "socket", "kubelet", "sandbox"} {
		if !checks[want] {
			t.Errorf("%s is not looked at", want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(n.Root, "*", ".runscd*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestKernel(t *testing.T) {
	for release, want := range map[string]string{
		"5.3.18-59-default": "FAIL kernel 5.3.18-59-default has no pidfds",
		"5.4.0-100-generic": "WARN kernel 5.4.0-100-generic cannot map",
		"5.19.0":            "OK kernel 5.19.0",
		"10.0":              "OK kernel 10.0",
		"nonsense":          "FAIL kernel version: ",
	} {
		n := newNode(t)
		n.write(t, "proc/sys/kernel/osrelease", release+"\n")
		expect(t, n.kernel(t.Context())[:1], want)
	}
	n := newNode(t)
	n.remove(t, "proc")
	expect(t, n.kernel(t.Context())[:1], "FAIL kernel version: ")
}

func TestCgroups(t *testing.T) {
	n := newNode(t)
	expect(t, n.cgroups(t.Context()), "OK cgroup version 2, driver cgroupfs")
	n.write(t, "sys/fs/cgroup/cgroup.subtree_control", "cpu io\n")
	expect(t, n.cgroups(t.Context()), "OK cgroup version 2", "WARN cgroup the root does not pass on cpuset, memory, pids")
	n.write(t, "sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n")
	expect(t, n.cgroups(t.Context()), "FAIL cgroup version 2 without memory", "WARN cgroup the root does not pass on cpuset, pids")
	n.remove(t, "sys/fs/cgroup/cgroup.controllers")
	expect(t, n.cgroups(t.Context()), "FAIL cgroup version 1 without cpu, cpuset, memory, pids")
	for _, c := range controllers {
		n.write(t, "sys/fs/cgroup/"+c+"/tasks", "")
	}
	expect(t, n.cgroups(t.Context()), "WARN cgroup version 1, driver cgroupfs")
	n.Config.Cgroup.Driver = "systemd"
	expect(t, n.cgroups(t.Context()), "WARN cgroup version 1, driver systemd", "FAIL cgroup driver systemd, but systemd does not run this machine")
	n.write(t, "run/systemd/system/x", "")
	expect(t, n.cgroups(t.Context()), "WARN cgroup version 1, driver systemd")
}

func TestPlatforms(t *testing.T) {
	n := newNode(t)
	n.Config.Runtime.Handlers["kvm"] = config.Handler{Platform: "kvm"}
	expect(t, n.platforms(t.Context()), "OK platform handler kvm: kvm", "OK platform handler runsc: systrap")
	n.remove(t, "dev/kvm")
	n.Config.Runtime.Handlers["other"] = config.Handler{Platform: "systrap", Path: "/nowhere/runsc"}
	expect(t, n.platforms(t.Context()), "FAIL platform handler kvm: kvm: ", "FAIL runsc handler other: /nowhere/runsc: no such file", "OK platform handler runsc")
}

func TestSandboxes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	n := newNode(t)
	n.Try = func(context.Context) ([]Handler, error) {
		return []Handler{
			{Name: "a", Version: "1"}, {Name: "b", Version: "2", NoUserNS: errors.New("no mapping")}, {Name: "c", Unusable: errors.New("handler c: no platform")},
		}, nil
	}
	expect(t, n.sandboxes(t.Context()), "OK sandbox handler a: 1, with", "WARN sandbox handler b: 2, without user namespaces: no mapping", "FAIL sandbox handler c: no platform")
	n.Try = func(context.Context) ([]Handler, error) { return nil, errors.New("some reason") }
	expect(t, n.sandboxes(t.Context()), "FAIL sandbox some reason")
}

func TestNetwork(t *testing.T) {
	n := newNode(t)
	expect(t, n.network(t.Context()), "OK network a CNI configuration in /etc/cni/net.d")
	n.write(t, "proc/sys/net/ipv4/ip_forward", "0\n")
	expect(t, n.network(t.Context()), "OK network ", "WARN network packets are not forwarded: net.ipv4.ip_forward")
	n.Network = func(context.Context) error { return errors.New("no plugin bridge") }
	expect(t, n.network(t.Context()), "FAIL network no plugin bridge")
	n.Config.Network.Mode = "none"
	expect(t, n.network(t.Context()), `WARN network mode "none"`)
}

func TestAddresses(t *testing.T) {
	n := newNode(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n.Config.Streaming.Address = l.Addr().String()
	expect(t, n.addresses(t.Context()), "OK socket /run/runscd/runscd.sock: runscd 1.2.3 serves") // it is this daemon's, then
	n.Daemon = func(context.Context) (string, error) { return "", errors.New("connection refused") }
	n.Config.Socket = n.path("socket")
	expect(t, n.addresses(t.Context()), "OK socket "+n.Config.Socket+": no daemon yet", "FAIL socket streaming.address: listen tcp")
	n.Config.Streaming.Address = "127.0.0.1:0"
	n.write(t, "socket", "")
	expect(t, n.addresses(t.Context()), "WARN socket "+n.Config.Socket+": nobody answers: connection refused")
	n.Config.SocketGroup = "no such group"
	expect(t, n.addresses(t.Context()), `FAIL socket socket_group "no such group"`)
}

func TestKubelet(t *testing.T) {
	for text, want := range map[string][]string{
		"cgroupDriver: cgroupfs\ncontainerRuntimeEndpoint: unix:///run/runscd/runscd.sock": {"OK kubelet fits"},
		"containerRuntimeEndpoint: /run/runscd/runscd.sock":                                {"OK kubelet fits"},
		`{"cgroupDriver": "systemd"}`:                                                      {"WARN kubelet no containerRuntimeEndpoint", `WARN kubelet cgroupDriver "systemd", runscd's is "cgroupfs"`},
		"containerRuntimeEndpoint: unix:///run/containerd/containerd.sock":                 {`FAIL kubelet containerRuntimeEndpoint "unix:///run/containerd`},
		"- no object": {"FAIL kubelet "},
	} {
		n := newNode(t)
		n.write(t, "var/lib/kubelet/config.yaml", text)
		expect(t, n.kubelet(t.Context()), want...)
	}
	n := newNode(t)
	n.remove(t, "sys/fs/cgroup/cgroup.controllers")
	expect(t, n.kubelet(t.Context()), "WARN kubelet failCgroupV1 is true")
	n.KubeletConfig = n.path("other.yaml")
	expect(t, n.kubelet(t.Context()), "FAIL kubelet other.yaml: no such file")
	n.KubeletConfig = ""
	n.remove(t, "var/lib/kubelet")
	expect(t, n.kubelet(t.Context()), "OK kubelet no configuration in the usual places")
}

func TestReport(t *testing.T) {
	r := Report{ok("kernel", "6.1"), found(Warn, "cgroup", "version 1", "boot with version 2")}
	var text, data bytes.Buffer
	if err := errors.Join(r.Text(&text), r.JSON(&data)); err != nil {
		t.Fatal(err)
	}
	want := `OK    kernel        6.1
WARN  cgroup        version 1
                    -> boot with version 2
1 OK, 1 WARN, 0 FAIL
`
	if text.String() != want {
		t.Errorf("printed\n%s", text.String())
	}
	var back Report
	if err := json.Unmarshal(data.Bytes(), &back); err != nil || len(back) != 2 || back[1] != r[1] {
		t.Errorf("%s: %v", data.String(), err)
	}
	if r.Failed() || !append(r, found(Fail, "x", "y", "z")).Failed() {
		t.Error("failed is not whether there is a FAIL")
	}
}
