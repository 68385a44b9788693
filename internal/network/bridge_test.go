package network

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
)

// onNode makes the thread of the test, and so the plugins it starts, see a
// network namespace of its own as that of the node: bridge and iptables rules
// vanish with the thread, which stays locked and ends with the test.
func onNode(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	if err := loopbackUp(); err != nil {
		t.Fatal(err)
	}
}

// newBridge returns the network of the example in deploy, with leases in the
// directory it also returns.
func newBridge(t *testing.T) (c *CNI, leases string) {
	t.Helper()
	const plugins = "/usr/lib/cni" // where Debian's containernetworking-plugins are
	if _, err := os.Stat(filepath.Join(plugins, "bridge")); err != nil {
		t.Fatalf("the plugins of Debian's containernetworking-plugins are needed: %v", err)
	}
	onNode(t)
	data, err := os.ReadFile("../../deploy/10-runscd.conflist")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	leases = filepath.Join(dir, "leases")
	data = []byte(strings.Replace(string(data), `"host-local",`, `"host-local", "dataDir": "`+leases+`",`, 1))
	if !json.Valid(data) || !strings.Contains(string(data), leases) {
		t.Fatalf("example is not as this test expects it: %s", data)
	}
	if err := os.WriteFile(filepath.Join(dir, "10.conflist"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	return NewCNI(Options{ConfDir: dir, BinDirs: []string{plugins}, CacheDir: filepath.Join(dir, "cache")}), leases
}

// leased returns the addresses that host-local has given away.
func leased(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "runscd"))
	if err != nil {
		t.Fatal(err)
	}
	var ips []string
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err == nil {
			ips = append(ips, e.Name())
		}
	}
	return ips
}

func rules(t *testing.T) string {
	t.Helper()
	var all string
	for _, command := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.Command(command).Output()
		if err != nil {
			t.Fatal(err)
		}
		all += string(out)
	}
	return all
}

func TestBridge(t *testing.T) {
	c, leases := newBridge(t)
	if err := c.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	pod := Pod{ID: strings.Repeat("ab", 32), NetNS: newNS(t), Namespace: "default", Name: "web", UID: "u"}
	pod.Ports = []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}
	ips, err := c.Add(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if len(ips) != 2 || !strings.HasPrefix(ips[0], "10.86.") || !strings.HasPrefix(ips[1], "fd86:") {
		t.Errorf("addresses = %v", ips)
	}
	have := addrs(t, pod.NetNS, "eth0")
	for i, bits := range []string{"/16", "/64"} {
		if !slices.Contains(have, ips[i]+bits) {
			t.Errorf("eth0 has %v, not %s", have, ips[i])
		}
	}
	hello(t, pod.NetNS, ips[0])
	if got := leased(t, leases); !slices.Equal(got, ips) {
		t.Errorf("leases = %v", got)
	}
	if got := rules(t); !strings.Contains(got, "--to-destination "+ips[0]+":80") || !strings.Contains(got, "--to-destination ["+ips[1]+"]:80") {
		t.Errorf("no rules for the host port:\n%s", got)
	}
	takeAddresses(t, pod.NetNS)
	for range 2 {
		if err := c.Del(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	if got := leased(t, leases); len(got) != 0 {
		t.Errorf("leases after Del = %v", got)
	}
	if got := rules(t); strings.Contains(got, ips[0]) || strings.Contains(got, ips[1]) || strings.Contains(got, pod.ID) {
		t.Errorf("rules after Del:\n%s", got)
	}
	if i, err := net.InterfaceByName("runscd0"); err != nil || i.Flags&net.FlagUp == 0 {
		t.Errorf("the bridge: %v, %v", i, err)
	}
}

// takeAddresses does to eth0 what runsc does when it starts a sandbox.
func takeAddresses(t *testing.T, netns string) {
	t.Helper()
	out, err := exec.Command("nsenter", "--net="+netns, "ip", "address", "flush", "dev", "eth0").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// hello connects to port 80 of a pod, through port 8080 of the node.
func hello(t *testing.T, netns, ip string) {
	t.Helper()
	var l net.Listener
	err := ns.WithNetNSPath(netns, func(ns.NetNS) (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(ip, "80"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	gateway, err := net.InterfaceByName("runscd0")
	if err != nil {
		t.Fatal(err)
	}
	node, err := gateway.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	dialer := net.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.Dial("tcp", net.JoinHostPort(node[0].(*net.IPNet).IP.String(), "8080"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = accepted.Close()
}

// TestBridgeAfterReboot has leases and attachments, but no namespaces and, for
// one pod, no record either.
func TestBridgeAfterReboot(t *testing.T) {
	c, leases := newBridge(t)
	known := Pod{ID: strings.Repeat("a", 64), NetNS: newNS(t)}
	unknown := Pod{ID: strings.Repeat("b", 64), NetNS: newNS(t)}
	for _, pod := range []Pod{known, unknown} {
		if _, err := c.Add(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		if err := RemoveNS(pod.NetNS); err != nil {
			t.Fatal(err)
		}
	}
	if got := leased(t, leases); len(got) != 4 {
		t.Errorf("leases = %v", got)
	}
	if err := c.GC(t.Context(), []string{known.ID}); err != nil {
		t.Fatal(err)
	}
	if got := leased(t, leases); len(got) != 2 {
		t.Errorf("leases after GC = %v", got)
	}
	if err := c.Del(t.Context(), known); err != nil {
		t.Fatal(err)
	}
	if got := leased(t, leases); len(got) != 0 {
		t.Errorf("leases after Del = %v", got)
	}
}
