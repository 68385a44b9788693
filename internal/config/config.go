// Package config has runscd's settings: one TOML file and its drop-ins.
//
// What it keeps true: a Config that Load returned is valid and complete, no
// key of a file is ignored, and Print writes a file that loads as the same
// Config. What depends on the machine and not on the files (where runsc is,
// the cgroup driver) is answered by methods and never stored.
//
// The fields' comment tags are the documentation of the options; Print and
// deploy/runscd.toml show them.
package config

import (
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// Config is what runscd can be told.
type Config struct {
	Root        string `toml:"root" comment:"Directory of what outlives a reboot: records, images, network leases."`
	State       string `toml:"state" comment:"Directory of what ends with the boot: bundles, network namespaces, runsc's own files.\nOn a tmpfs."`
	Socket      string `toml:"socket" comment:"Unix socket of the CRI. Empty: runscd.sock in the state directory."`
	SocketGroup string `toml:"socket_group" comment:"Group, by name or number, that may use the socket. Empty: that of the daemon."`

	Log       Log       `toml:"log"`
	Cgroup    Cgroup    `toml:"cgroup"`
	Kubelet   Kubelet   `toml:"kubelet"`
	Runtime   Runtime   `toml:"runtime"`
	Network   Network   `toml:"network"`
	Image     Image     `toml:"image"`
	Streaming Streaming `toml:"streaming"`
	Metrics   Metrics   `toml:"metrics"`
	Tracing   Tracing   `toml:"tracing"`
	Debug     Debug     `toml:"debug"`
}

// Log says what is logged, to stderr.
type Log struct {
	Level  string `toml:"level" comment:"trace, debug, info, warn or error."`
	Format string `toml:"format" comment:"text or json."`
}

// Cgroup says who makes cgroups.
type Cgroup struct {
	Driver string `toml:"driver" comment:"cgroupfs, systemd or auto; the kubelet is told and does the same.\nauto: systemd if it runs the machine and cgroup v2 is in use, otherwise cgroupfs."`
}

// Kubelet says where the kubelet keeps what runscd looks at.
type Kubelet struct {
	Root string `toml:"root" comment:"The kubelet's --root-dir. emptyDir volumes in memory that are found there become file systems of the\npod's sandbox, which is faster. Empty: they stay the host's."`
}

// Runtime says which runsc runs a pod, and how.
type Runtime struct {
	Default     string             `toml:"default" comment:"Handler of pods whose RuntimeClass names none."`
	Path        string             `toml:"path" comment:"The runsc binary. Empty: runsc beside runscd, otherwise the one in PATH."`
	CDISpecDirs []string           `toml:"cdi_spec_dirs" comment:"Directories of the files that describe devices by the Container Device Interface."`
	Handlers    map[string]Handler `toml:"handlers" comment:"The handlers that a RuntimeClass can name, a table each. The one called runsc always exists."`
}

// Handler is one way of running a sandbox.
type Handler struct {
	Path        string            `toml:"path" comment:"This handler's runsc binary. Empty: that of [runtime]."`
	Platform    string            `toml:"platform" comment:"systrap or kvm."`
	NetRaw      bool              `toml:"net_raw" comment:"Let containers that have CAP_NET_RAW use raw sockets, as ping does."`
	LayerSize   string            `toml:"layer_size" comment:"How much each container may write to its root file system, such as 512m or 10g. Empty: no limit."`
	Annotations []string          `toml:"annotations" comment:"Annotations of pods and containers that runsc is given, by name; a * at the end stands for any rest.\nAmong those that runsc knows are some that open files and sockets of the host to the pod."`
	Flags       map[string]string `toml:"flags,inline" comment:"More of runsc's flags, without dashes: {debug = 'true'}."`
}

// Network says how pods get their network.
type Network struct {
	Mode    string   `toml:"mode" comment:"cni, or none: pods have a loopback interface only."`
	ConfDir string   `toml:"conf_dir" comment:"Directory of CNI configurations. The first by name is used; changes take effect at once."`
	BinDirs []string `toml:"bin_dirs" comment:"Directories of CNI plugins, searched in this order."`
}

// Image says how images are pulled and kept.
type Image struct {
	CertsDir          string   `toml:"certs_dir" comment:"Directory of registry mirrors and certificates, <host>/hosts.toml each. Read at each pull.\nEmpty: none."`
	Pinned            []string `toml:"pinned" comment:"References of images that the kubelet is told not to remove."`
	ProgressTimeout   Duration `toml:"progress_timeout" comment:"A pull that has received nothing for so long fails; 0s: never."`
	ParallelDownloads int      `toml:"parallel_downloads" comment:"Layers of one image that are downloaded at the same time."`
}

// Streaming says how the kubelet reaches the sessions of exec, attach and
// port-forward.
type Streaming struct {
	Address     string   `toml:"address" comment:"Host and port of the HTTP server; port 0 is any that is free. Beyond loopback only with TLS."`
	BaseURL     string   `toml:"base_url" comment:"What the URLs of sessions begin with, where clients reach the server by another name. Empty: the address."`
	TLSCert     string   `toml:"tls_cert" comment:"PEM file of the certificate chain, read at each connection. Empty: no TLS."`
	TLSKey      string   `toml:"tls_key" comment:"PEM file of the certificate's key."`
	IdleTimeout Duration `toml:"idle_timeout" comment:"A connection on which nothing was sent or received for so long is ended, and its session."`
}

// Metrics says where the daemon's own series are.
type Metrics struct {
	Address string `toml:"address" comment:"Where Prometheus reads the daemon's own series, at /metrics: host and port on loopback, or the path of a unix socket.\nEmpty: nowhere."`
}

// Tracing says where traces go.
type Tracing struct {
	Endpoint string `toml:"endpoint" comment:"URL of an OpenTelemetry collector that takes OTLP by gRPC, http://127.0.0.1:4317 for one; https for TLS.\nEmpty: no traces. Which of the RPCs are traced is the caller's choice; OTEL_TRACES_SAMPLER says what of the others."`
}

// Debug says how the daemon can be looked into.
type Debug struct {
	Socket string `toml:"socket" comment:"Unix socket, for root only, of an HTTP server with Go's profiles and stacks at /debug/pprof/. Empty: none."`
}

// Duration is a time span, in TOML a string like "1m30s".
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default returns what holds where no file says otherwise. It is not complete:
// see Load.
func Default() *Config {
	return &Config{
		Root:    "/var/lib/runscd",
		State:   "/run/runscd",
		Log:     Log{Level: "info", Format: "text"},
		Cgroup:  Cgroup{Driver: "auto"},
		Kubelet: Kubelet{Root: "/var/lib/kubelet"},
		Runtime: Runtime{
			Default:     "runsc",
			CDISpecDirs: []string{"/etc/cdi", "/var/run/cdi"},
			Handlers:    map[string]Handler{"runsc": {Platform: "systrap", Annotations: []string{}, Flags: map[string]string{}}},
		},
		Network: Network{
			Mode:    "cni",
			ConfDir: "/etc/cni/net.d",
			BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"},
		},
		Image: Image{
			// Where node tooling puts this layout, whichever runtime reads it.
			CertsDir:          "/etc/containerd/certs.d",
			Pinned:            []string{},
			ProgressTimeout:   Duration(5 * time.Minute),
			ParallelDownloads: 3,
		},
		Streaming: Streaming{
			Address:     "127.0.0.1:0",
			IdleTimeout: Duration(4 * time.Hour), // the kubelet's
		},
	}
}

// Print writes c as a commented TOML file.
func (c *Config) Print(w io.Writer) error {
	const intro = `# Settings of runscd. Files beside this one in <its name>.d/*.toml are read
# after it, in the order of their names; a later one wins, key by key.

`
	if _, err := io.WriteString(w, intro); err != nil {
		return err
	}
	return toml.NewEncoder(w).Encode(c)
}

// SocketGID returns the number of the socket's group, -1 for the daemon's own;
// errdefs.ErrNotFound if there is no such group.
func (c *Config) SocketGID() (int, error) {
	if c.SocketGroup == "" {
		return -1, nil
	}
	if gid, err := strconv.ParseUint(c.SocketGroup, 10, 31); err == nil {
		return int(gid), nil
	}
	group, err := user.LookupGroup(c.SocketGroup)
	if err != nil {
		return 0, fmt.Errorf("socket_group %q: %w: %w", c.SocketGroup, errdefs.ErrNotFound, err)
	}
	return strconv.Atoi(group.Gid)
}

// DriverInUse returns "cgroupfs" or "systemd".
func (c Cgroup) DriverInUse() string { return c.driverInUse("/") }

func (c Cgroup) driverInUse(root string) string {
	if c.Driver != "auto" {
		return c.Driver
	}
	// The first is how sd_booted(3) asks; the second only the root of a
	// cgroup v2 hierarchy has.
	for _, path := range []string{"run/systemd/system", "sys/fs/cgroup/cgroup.controllers"} {
		if _, err := os.Stat(filepath.Join(root, path)); err != nil {
			return "cgroupfs"
		}
	}
	return "systemd"
}

// Runsc returns the path of h's runsc binary; errdefs.ErrNotFound if no path
// is set and none is found.
func (r Runtime) Runsc(h Handler) (string, error) {
	if h.Path != "" {
		return h.Path, nil
	}
	if r.Path != "" {
		return r.Path, nil
	}
	if self, err := os.Executable(); err == nil {
		if path, err := exec.LookPath(filepath.Join(filepath.Dir(self), "runsc")); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath("runsc")
	if err != nil {
		return "", fmt.Errorf("runsc binary, neither beside runscd nor in PATH; runtime.path can name it: %w", errdefs.ErrNotFound)
	}
	return path, nil
}

// proxies are the flags by which runsc lets a sandbox have devices of the host,
// and which.
var proxies = map[string][]string{
	"nvproxy":   {"/dev/nvidia*", "/dev/nvidia-caps/*", "/dev/nvidia-caps-imex-channels/*"},
	"tpuproxy":  {"/dev/accel*", "/dev/vfio/*"},
	"rdmaproxy": {"/dev/infiniband/uverbs*"},
}

// Devices returns patterns of the host's devices that h's sandboxes can have.
func (h Handler) Devices() []string {
	var patterns []string
	for flag, devices := range proxies {
		if on, _ := strconv.ParseBool(h.Flags[flag]); on {
			patterns = append(patterns, devices...)
		}
	}
	return patterns
}

// Args returns h.Flags as arguments, in a fixed order.
func (h Handler) Args() []string {
	var args []string
	for _, name := range slices.Sorted(maps.Keys(h.Flags)) {
		args = append(args, "--"+name+"="+h.Flags[name])
	}
	return args
}
