package doctor

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// network looks whether pods can be connected.
func (n *Node) network(ctx context.Context) []Finding {
	c := n.Config.Network
	if c.Mode == "none" {
		return []Finding{found(Warn, "network", `mode "none": pods have a loopback interface only`, `for pods that reach each other set network.mode = "cni"`)}
	}
	if err := n.Network(ctx); err != nil {
		return []Finding{found(Fail, "network", err.Error(),
			fmt.Sprintf("put a CNI configuration into %s, and the plugins that it names into one of %s", c.ConfDir, strings.Join(c.BinDirs, ", ")))}
	}
	list := []Finding{ok("network", "a CNI configuration in %s, and its plugins", c.ConfDir)}
	data, err := os.ReadFile(n.path("proc/sys/net/ipv4/ip_forward"))
	if err == nil && strings.TrimSpace(string(data)) == "0" {
		list = append(list, found(Warn, "network", "packets are not forwarded: net.ipv4.ip_forward is 0",
			"sysctl -w net.ipv4.ip_forward=1; the bridge plugin does it when it makes the first pod"))
	}
	return list
}

// addresses looks at what the daemon listens on.
func (n *Node) addresses(ctx context.Context) []Finding {
	c := n.Config
	if _, err := c.SocketGID(); err != nil {
		return []Finding{found(Fail, "socket", err.Error(), "groupadd --system "+c.SocketGroup+", or set socket_group")}
	}
	version, err := n.Daemon(ctx)
	if err == nil {
		return []Finding{ok("socket", "%s: runscd %s serves", c.Socket, version)}
	}
	var list []Finding
	if _, serr := os.Stat(c.Socket); serr == nil {
		list = append(list, found(Warn, "socket", fmt.Sprintf("%s: nobody answers: %v", c.Socket, err), "start the daemon, or look into its log"))
	} else {
		list = append(list, ok("socket", "%s: no daemon yet", c.Socket))
	}
	for _, a := range [][2]string{{"streaming.address", c.Streaming.Address}, {"metrics.address", c.Metrics.Address}} {
		if a[1] == "" || filepath.IsAbs(a[1]) {
			continue
		}
		l, err := net.Listen("tcp", a[1])
		if err != nil {
			list = append(list, found(Fail, "socket", fmt.Sprintf("%s: %v", a[0], err), "end who listens there, or set another"))
			continue
		}
		l.Close()
	}
	return list
}

// kubeletConfigs are where distributions and cluster tools put the kubelet's
// configuration.
var kubeletConfigs = []string{
	"/var/lib/kubelet/config.yaml", "/etc/kubernetes/kubelet/config.json", "/etc/kubernetes/kubelet.yaml", "/etc/kubernetes/kubelet-config.yaml",
}

// kubelet looks whether the kubelet's configuration fits.
func (n *Node) kubelet(context.Context) []Finding {
	file := n.KubeletConfig
	for _, usual := range kubeletConfigs {
		if _, err := os.Stat(n.path(usual)); file == "" && err == nil {
			file = n.path(usual)
		}
	}
	if file == "" {
		return []Finding{ok("kubelet", "no configuration in the usual places; --kubelet-config names one")}
	}
	var k struct {
		CgroupDriver             string `json:"cgroupDriver"`
		ContainerRuntimeEndpoint string `json:"containerRuntimeEndpoint"`
		FailCgroupV1             *bool  `json:"failCgroupV1"`
	}
	data, err := os.ReadFile(file)
	if err == nil {
		err = yaml.Unmarshal(data, &k)
	}
	if err != nil {
		return []Finding{found(Fail, "kubelet", fmt.Sprintf("%s: %v", file, err), "mend the file")}
	}
	var list []Finding
	endpoint := "unix://" + n.Config.Socket
	switch k.ContainerRuntimeEndpoint {
	case endpoint, n.Config.Socket:
	case "":
		list = append(list, found(Warn, "kubelet", file+": no containerRuntimeEndpoint", "set it to "+endpoint+", unless the kubelet's flag does"))
	default:
		list = append(list, found(Fail, "kubelet", fmt.Sprintf("%s: containerRuntimeEndpoint %q is not this daemon's", file, k.ContainerRuntimeEndpoint), "set it to "+endpoint))
	}
	driver := n.Config.Cgroup.DriverInUse()
	if k.CgroupDriver != "" && k.CgroupDriver != driver {
		list = append(list, found(Warn, "kubelet", fmt.Sprintf("%s: cgroupDriver %q, runscd's is %q", file, k.CgroupDriver, driver),
			"set it to the same: a kubelet before 1.34 may not ask the runtime"))
	}
	_, err = os.Stat(n.path("sys/fs/cgroup/cgroup.controllers"))
	if err != nil && (k.FailCgroupV1 == nil || *k.FailCgroupV1) {
		list = append(list, found(Warn, "kubelet", file+": failCgroupV1 is true, and this machine has version 1",
			"set failCgroupV1: false, or boot with version 2; a kubelet from 1.35 on does not start otherwise"))
	}
	if len(list) == 0 {
		list = append(list, ok("kubelet", "%s fits", file))
	}
	return list
}
