package integration

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/test/isolate"
)

// addNetwork writes the CNI configuration of the example, with a bridge, a
// subnet and leases of this daemon's own.
func (d *daemon) addNetwork(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile("../../deploy/10-runscd.conflist")
	check(t, err)
	conf := strings.NewReplacer(
		`"host-local",`, fmt.Sprintf(`"host-local", "dataDir": %q,`, d.path("leases")),
		`"runscd0"`, fmt.Sprintf(`"runscd%d"`, d.subnet),
		`10.86.0.0/16`, fmt.Sprintf(`10.86.%d.0/24`, d.subnet),
		`fd86:1c5e:4a27::/64`, fmt.Sprintf(`fd86:1c5e:4a27:%d::/64`, d.subnet),
	).Replace(string(data))
	check(t, os.MkdirAll(d.path("cni"), 0o755))
	d.write(t, "cni/tmp", conf)
	check(t, os.Rename(d.path("cni/tmp"), d.path("cni/10.conflist")))
}

// hello is a script that answers each connection to a port.
func hello(port int, answer string) string {
	return fmt.Sprintf("while :; do echo %s | nc -l -p %d; done", answer, port)
}

// ask returns what a server answers, once it is up.
func ask(t *testing.T, address string) string {
	t.Helper()
	var answer []byte
	eventually(t, "answer of "+address, func() error {
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		answer, err = io.ReadAll(conn)
		return err
	})
	return strings.TrimSpace(string(answer))
}

func TestNetwork(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	p := d.runPod(t, func(c *runtime.PodSandboxConfig) {
		c.PortMappings = []*runtime.PortMapping{
			{ContainerPort: 7000, HostPort: int32(20000 + d.subnet)},
			{ContainerPort: 7001}, // host port 0 is none
		}
	})
	p.run(t, hello(7000, "first"))
	network := p.status(t).Network
	four, six := network.Ip, network.AdditionalIps[0].Ip
	if !strings.HasPrefix(four, fmt.Sprintf("10.86.%d.", d.subnet)) || !strings.HasPrefix(six, "fd86:") {
		t.Errorf("addresses: %v", network)
	}
	// The host port is that of the node's own addresses, of which loopback is
	// left out: packets from there are not routed to a bridge.
	gateway := fmt.Sprintf("10.86.%d.1", d.subnet)
	for _, address := range []string{
		net.JoinHostPort(four, "7000"), net.JoinHostPort(six, "7000"), fmt.Sprintf("%s:%d", gateway, 20000+d.subnet),
	} {
		if got := ask(t, address); got != "first" {
			t.Errorf("%s answers %q", address, got)
		}
	}
	other := d.runPod(t).run(t, forever)
	for _, ip := range []string{four, six} {
		if out, code := other.exec(t, "nc "+ip+" 7000 </dev/null"); code != 0 || out != "first\n" {
			t.Errorf("from another pod %s answers %q, code %d", ip, out, code)
		}
	}
	if out, _ := other.exec(t, "hostname; ip -o addr show lo"); !strings.HasPrefix(out, other.pod.config.Hostname+"\n") || !strings.Contains(out, "127.0.0.1/8") {
		t.Errorf("host name and loopback: %q", out)
	}
}

// TestHostNetwork has a pod use the network of the daemon.
func TestHostNetwork(t *testing.T) {
	d := newDaemon(t, "") // without CNI, which such a pod does not need
	p := d.runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	})
	s := p.status(t)
	if s.Network.GetIp() != "" || s.Linux.Namespaces.Options.Network != runtime.NamespaceMode_NODE {
		t.Errorf("status: %v", s)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, "node")
			conn.Close()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	check(t, err)
	if out, code := p.run(t, forever).exec(t, "nc 127.0.0.1 "+port+" </dev/null"); code != 0 || out != "node\n" {
		t.Errorf("output %q, code %d", out, code)
	}
}

func TestNoNetwork(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	c := p.run(t, hello(7000, "self"))
	eventually(t, "loopback works", func() error {
		if out, _ := c.exec(t, "nc 127.0.0.1 7000 </dev/null"); out != "self\n" {
			return fmt.Errorf("output %q", out)
		}
		return nil
	})
	if out, _ := c.exec(t, "ip -o link"); strings.Count(out, "\n") != 1 || !strings.Contains(out, "lo") {
		t.Errorf("interfaces: %q", out)
	}
}

// TestNetworkConfig has pods refused until there is a CNI configuration.
func TestNetworkConfig(t *testing.T) {
	d := newDaemon(t, "")
	ready := func() *runtime.RuntimeCondition {
		resp, err := d.pods.Status(ctx(t), false)
		check(t, err)
		return resp.Status.Conditions[1]
	}
	c := ready()
	if c.Type != runtime.NetworkReady || c.Status || c.Reason == "" || !strings.Contains(c.Message, d.path("cni")) {
		t.Errorf("condition without a configuration: %v", c)
	}
	_, err := d.pods.RunPodSandbox(ctx(t), d.podConfig(), "")
	refused(t, err, codes.FailedPrecondition, "network", d.path("cni"))
	check(t, d.leftovers(t))
	check(t, os.MkdirAll(d.path("cni"), 0o755))
	d.write(t, "cni/00-broken.conflist", "{")
	if c := ready(); c.Status || !strings.Contains(c.Message, "00-broken.conflist") {
		t.Errorf("condition with a broken configuration: %v", c)
	}
	check(t, os.Remove(d.path("cni/00-broken.conflist")))
	d.addNetwork(t)
	if c := ready(); !c.Status {
		t.Errorf("condition with a configuration: %v", c)
	}
	d.runPod(t)
}

// TestNetworkArguments has a pod whose name could be taken for more arguments of
// the plugins.
func TestNetworkArguments(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	config := d.podConfig()
	config.Metadata.Name = "a;K8S_POD_NAMESPACE=kube-system"
	_, err := d.pods.RunPodSandbox(ctx(t), config, "")
	refused(t, err, codes.InvalidArgument, config.Metadata.Name)
}

// TestNetworkGone removes a pod whose network and configuration are gone.
func TestNetworkGone(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	p := d.runPod(t)
	check(t, isolate.UnmountBelow(d.path("s/netns")))
	check(t, os.Remove(d.path("s/netns/"+p.id)))
	check(t, os.Remove(d.path("cni/10.conflist")))
	check(t, d.pods.StopPodSandbox(ctx(t), p.id))
}
