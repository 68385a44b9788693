package pod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/image"
	"github.com/runscd/runscd/internal/spec"
)

// writePodFiles makes what all containers of a pod see: resolv.conf, hostname,
// hosts and the directory of /dev/shm. The files belong to the pod's root.
func writePodFiles(dir string, c *runtime.PodSandboxConfig, owner owner) error {
	if err := os.MkdirAll(filepath.Join(dir, "shm"), 0o755); err != nil {
		return err
	}
	resolv, err := resolvConf(c.DnsConfig)
	if err != nil {
		return err
	}
	name, err := hostname(c)
	if err != nil {
		return err
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return err
	}
	for file, content := range map[string]string{
		"resolv.conf": resolv, "hostname": name + "\n", "hosts": string(hosts),
	} {
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
		if err := os.Chown(path, owner.uid, owner.gid); err != nil {
			return err
		}
	}
	return nil
}

// hostname is the pod's, or the host's where the pod has none of its own.
func hostname(c *runtime.PodSandboxConfig) (string, error) {
	if c.Hostname != "" {
		return c.Hostname, nil
	}
	return os.Hostname()
}

// resolvConf is the pod's DNS configuration as resolv.conf(5), or the host's.
func resolvConf(c *runtime.DNSConfig) (string, error) {
	if c == nil || len(c.Servers)+len(c.Searches)+len(c.Options) == 0 {
		text, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !os.IsNotExist(err) {
			return "", err
		}
		return string(text), nil
	}
	var b strings.Builder
	if len(c.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.Searches, " "))
	}
	for _, s := range c.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(c.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.Options, " "))
	}
	return b.String(), nil
}

// logPath is where a container's log goes, "" for nowhere. It lies in the
// pod's log directory.
func logPath(dir, path string) (string, error) {
	if path == "" || dir == "" {
		return "", nil
	}
	if !filepath.IsLocal(path) {
		return "", fmt.Errorf("log_path %q: outside the log directory: %w", path, errdefs.ErrInvalidArgument)
	}
	return filepath.Join(dir, path), nil
}

// stopSignal is the number of the container's own signal, else of the image's,
// else SIGTERM.
func stopSignal(own runtime.Signal, images string) (int, error) {
	name := images
	if own != runtime.Signal_SIGNAL_RUNTIME_DEFAULT {
		// SIGNAL_SIGRTMINPLUS3 is the enum's word for SIGRTMIN+3. What the enum
		// has no word for must not be taken for the signal's number.
		name = strings.TrimPrefix(own.String(), "SIGNAL_")
		if _, known := runtime.Signal_name[int32(own)]; !known {
			return 0, fmt.Errorf("stop_signal %d: unknown: %w", own, errdefs.ErrInvalidArgument)
		}
		name = strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)
	}
	if name == "" {
		return int(unix.SIGTERM), nil
	}
	s, err := signal.ParseSignal(name)
	if err != nil {
		return 0, fmt.Errorf("stop signal %q: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	if s < 1 || s > 64 { // the image may say any number
		return 0, fmt.Errorf("stop signal %q: not from 1 to 64: %w", name, errdefs.ErrInvalidArgument)
	}
	return int(s), nil
}

// imageRef is the image's name by digest, as the kubelet shows it.
func imageRef(i *image.Image) string {
	if len(i.RepoDigests) > 0 {
		return i.RepoDigests[0]
	}
	return i.ID
}

// prepareContainer mounts the container's root file system and writes its
// bundle.
func (r *Registry) prepareContainer(ctx context.Context, c *Container, img *image.Image, pidOwner string) (*User, error) {
	rootfs := r.rootfs(c.ID)
	if err := os.MkdirAll(rootfs, 0o711); err != nil {
		return nil, err
	}
	if err := r.Images.Mount(ctx, c.ID, img.ID, rootfs, c.Pod.idMap()); err != nil {
		return nil, err
	}
	if err := relabel(r, c.Config()); err != nil {
		return nil, err
	}
	volumes, err := mountVolumes(ctx, c)
	if err != nil {
		return nil, err
	}
	netNS := ""
	if !hostNetwork(c.Pod.Config()) {
		netNS = r.netNS(c.Pod.ID)
	}
	dir := r.podDir(c.Pod.ID)
	s, err := spec.Container(c.Config(), spec.ContainerOptions{
		ID: c.ID, SandboxID: c.Pod.ID, Pod: c.Pod.Config(), Image: img.Spec.Config, Rootfs: rootfs, NetNS: netNS,
		PIDOwner: pidOwner,
		Shm:      filepath.Join(dir, "shm"), Hostname: filepath.Join(dir, "hostname"),
		Hosts: filepath.Join(dir, "hosts"), ResolvConf: filepath.Join(dir, "resolv.conf"), MinOOMScoreAdj: r.MinOOMScoreAdj,
		Volumes: volumes, MemoryVolumes: c.Pod.Facts().MemoryVolumes, Allowed: c.Pod.Facts().Annotations,
		CDISpecDirs: r.CDISpecDirs, ProxiedDevices: c.Pod.Facts().Devices,
		NetRaw: c.Pod.init.Runtime.NetRaw(),
	})
	if err != nil {
		return nil, err
	}
	user := &User{UID: int64(s.Process.User.UID), GID: int64(s.Process.User.GID)}
	for _, g := range s.Process.User.AdditionalGids {
		user.Groups = append(user.Groups, int64(g))
	}
	return user, writeBundle(r.containerDir(c.ID), s)
}
