package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

const (
	// InterfaceName is that of a pod's interface.
	InterfaceName = "eth0"
	// statusTimeout bounds the question whether the network is ready: the kubelet
	// asks every few seconds, and again before each pod.
	statusTimeout = 10 * time.Second
	// undoTimeout bounds the DEL after a failed ADD.
	undoTimeout = 30 * time.Second
)

// Options say where CNI's parts are.
type Options struct {
	ConfDir string   // network configurations; it need not exist
	BinDirs []string // plugins
	// CacheDir is where the attachments are remembered. It must outlive a
	// reboot, because the address leases of plugins do.
	CacheDir string
}

// CNI attaches pods by CNI plugins. Its methods may be called concurrently,
// for different pods.
type CNI struct {
	options Options
	lib     *libcni.CNIConfig
}

// NewCNI returns the network that o describes.
func NewCNI(o Options) *CNI {
	return &CNI{
		options: o,
		lib:     libcni.NewCNIConfigWithCacheDir(o.BinDirs, o.CacheDir, &plugins{timeout: pluginTimeout}),
	}
}

// Status returns nil if pods can be attached, otherwise the reason why not: no
// or a broken configuration, an absent plugin, or what a plugin itself says
// (from CNI 1.1 on).
func (c *CNI) Status(ctx context.Context) error {
	list, err := readConf(c.options.ConfDir)
	if err != nil {
		return err
	}
	for _, p := range list.Plugins {
		if !c.present(p) {
			return fmt.Errorf("network %s: no plugin %q in %s", list.Name, p.Network.Type, strings.Join(c.options.BinDirs, ", "))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if err := c.lib.GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("network %s: %w", list.Name, err)
	}
	return nil
}

// Add attaches pod and returns its addresses, at least one, in the plugins'
// order. Without a usable configuration the error is
// errdefs.ErrFailedPrecondition. After an error nothing is attached, or Del
// will find what is.
func (c *CNI) Add(ctx context.Context, pod Pod) ([]string, error) {
	list, err := readConf(c.options.ConfDir)
	if err != nil {
		return nil, fmt.Errorf("network not ready: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	rt, err := runtimeConf(pod)
	if err != nil {
		return nil, err
	}
	result, err := c.lib.AddNetworkList(ctx, list, rt)
	var ips []string
	if err == nil {
		ips, err = podIPs(result)
	}
	if err == nil {
		return ips, nil
	}
	err = fmt.Errorf("network %s: %w", list.Name, err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if undo := c.lib.DelNetworkList(ctx, c.reduced(list), rt); undo != nil {
		err = fmt.Errorf("%w; undoing it: %w", err, undo)
	}
	return nil, err
}

// Del releases all attachments of pod, each by the configuration that made it.
// If none is remembered, as after a crash within Add, the configuration in use
// is tried. It may be repeated, and does not need pod's namespace.
func (c *CNI) Del(ctx context.Context, pod Pod) error {
	attachments, err := c.lib.GetCachedAttachments(pod.ID)
	if err != nil {
		return fmt.Errorf("network attachments: %w", err)
	}
	var errs []error
	for _, a := range attachments {
		errs = append(errs, c.release(ctx, a))
	}
	if len(attachments) > 0 {
		return errors.Join(errs...)
	}
	list, err := readConf(c.options.ConfDir)
	if err != nil {
		return nil // nothing known was done, and nobody is there to undo it
	}
	rt, err := runtimeConf(pod)
	if err != nil {
		return nil // as Add refused it
	}
	if err := c.lib.DelNetworkList(ctx, c.reduced(list), rt); err != nil {
		return fmt.Errorf("network %s: %w", list.Name, err)
	}
	return nil
}

// GC releases all attachments but those of the pods with the ids in valid, and
// has plugins do the same with what only they remember (from CNI 1.1 on, and
// unless the configuration sets disableGC). It is for the time when no pod is
// being added.
func (c *CNI) GC(ctx context.Context, valid []string) error {
	attachments, err := c.lib.GetCachedAttachments("")
	if err != nil {
		return fmt.Errorf("network attachments: %w", err)
	}
	list, confErr := readConf(c.options.ConfDir)
	keep := []types.GCAttachment{} // an empty list, not null, for plugins
	var errs []error
	for _, a := range attachments {
		switch {
		case !slices.Contains(valid, a.ContainerID):
			errs = append(errs, c.release(ctx, a))
		case confErr == nil && a.Network == list.Name:
			keep = append(keep, types.GCAttachment{ContainerID: a.ContainerID, IfName: a.IfName})
		}
	}
	if confErr == nil {
		if err := c.lib.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: keep}); err != nil {
			errs = append(errs, fmt.Errorf("network %s: %w", list.Name, err))
		}
	}
	return errors.Join(errs...)
}

// release undoes one attachment by what libcni remembers of it.
func (c *CNI) release(ctx context.Context, a *libcni.NetworkAttachment) error {
	list, err := libcni.NetworkConfFromBytes(a.Config)
	if err != nil {
		return fmt.Errorf("network %s of %s: %w", a.Network, a.ContainerID, err)
	}
	rt := &libcni.RuntimeConf{
		ContainerID:    a.ContainerID,
		NetNS:          existing(a.NetNS),
		IfName:         a.IfName,
		Args:           a.CniArgs,
		CapabilityArgs: a.CapabilityArgs,
	}
	c.returnAddresses(list, rt)
	if err := c.lib.DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("network %s of %s: %w", a.Network, a.ContainerID, err)
	}
	return nil
}

// reduced returns list without the plugins that are not there: they cannot
// have done anything, and must not keep the others from undoing their part.
func (c *CNI) reduced(list *libcni.NetworkConfigList) *libcni.NetworkConfigList {
	r := *list
	r.Plugins = slices.DeleteFunc(slices.Clone(list.Plugins), func(p *libcni.PluginConfig) bool { return !c.present(p) })
	return &r
}

func (c *CNI) present(p *libcni.PluginConfig) bool {
	_, err := invoke.FindInPath(p.Network.Type, c.options.BinDirs)
	return err == nil
}

func runtimeConf(pod Pod) (*libcni.RuntimeConf, error) {
	rt := &libcni.RuntimeConf{
		ContainerID: pod.ID,
		NetNS:       existing(pod.NetNS),
		IfName:      InterfaceName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", pod.Namespace},
			{"K8S_POD_NAME", pod.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", pod.ID},
			{"K8S_POD_UID", pod.UID},
		},
		CapabilityArgs: map[string]any{},
	}
	for _, arg := range rt.Args {
		if strings.ContainsRune(arg[1], ';') {
			return nil, fmt.Errorf("%s %q: a semicolon cannot be passed to CNI plugins: %w", arg[0], arg[1], errdefs.ErrInvalidArgument)
		}
	}
	ports := slices.DeleteFunc(slices.Clone(pod.Ports), func(p PortMapping) bool { return p.HostPort == 0 })
	if len(ports) > 0 {
		rt.CapabilityArgs["portMappings"] = ports
	}
	if pod.CgroupPath != "" {
		rt.CapabilityArgs["cgroupPath"] = pod.CgroupPath
	}
	return rt, nil
}

// existing returns the path of a namespace, empty if it is gone: so CNI wants
// it in a DEL.
func existing(netns string) string {
	if nsExists(netns) {
		return netns
	}
	return ""
}

// podIPs returns the addresses of the pod's own interfaces.
func podIPs(result types.Result) ([]string, error) {
	r, err := types100.GetResult(result)
	if err != nil {
		return nil, err
	}
	var ips []string
	for _, ip := range podAddresses(r) {
		ips = append(ips, ip.Address.IP.String())
	}
	if len(ips) == 0 {
		return nil, errors.New("no address for the pod in the plugins' result")
	}
	return ips, nil
}

// podAddresses returns the part of a result that is about the pod's own
// interfaces.
func podAddresses(r *types100.Result) []*types100.IPConfig {
	return slices.DeleteFunc(slices.Clone(r.IPs), func(ip *types100.IPConfig) bool {
		i := ip.Interface
		return i != nil && *i >= 0 && *i < len(r.Interfaces) && r.Interfaces[*i].Sandbox == "" // of the node
	})
}
