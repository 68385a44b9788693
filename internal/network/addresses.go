package network

import (
	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// returnAddresses gives a pod's interface the addresses that the plugins had
// given it. runsc takes them away, for the sandbox's own network stack; but the
// plugins bridge and ptp read off the interface which masquerading rules are to
// be removed, and would leave them all behind. What cannot be returned, as when
// the interface is gone, must not keep the plugins from undoing the rest.
func (c *CNI) returnAddresses(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
	if rt.NetNS == "" {
		return
	}
	cached, err := c.lib.GetNetworkListCachedResult(list, rt)
	if err != nil || cached == nil {
		return
	}
	result, err := types100.GetResult(cached)
	if err != nil {
		return
	}
	ns, err := netns.GetFromPath(rt.NetNS)
	if err != nil {
		return
	}
	defer ns.Close()
	pod, err := netlink.NewHandleAt(ns)
	if err != nil {
		return
	}
	defer pod.Close()
	link, err := pod.LinkByName(rt.IfName)
	if err != nil {
		return
	}
	for _, ip := range podAddresses(result) {
		_ = pod.AddrAdd(link, &netlink.Addr{IPNet: &ip.Address}) // it may have it still
	}
}
