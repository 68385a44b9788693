package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxSocketPath is the longest path a unix socket can have: sun_path less its
// closing zero.
const maxSocketPath = 107

var (
	// handlerName is the form of a RuntimeClass's handler, a DNS label.
	handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	layerSize   = regexp.MustCompile(`^[1-9][0-9]{0,5}[kmg]$`)
	flagName    = regexp.MustCompile(`^[A-Za-z][-A-Za-z0-9]*$`)

	// ownFlags are runsc's flags that runscd sets, with the setting that
	// decides them if there is one.
	ownFlags = map[string]string{
		"control-rpc-stop-timeout": "",
		"in-sandbox-cgroup":        "",
		"log":                      "",
		"log-fd":                   "",
		"log-format":               "",
		"net-raw":                  "net_raw",
		"oci-seccomp":              "",
		"network":                  "",
		"overlay2":                 "layer_size",
		"panic-log":                "",
		"platform":                 "platform",
		"root":                     "",
		"shared-root":              "",
		"systemd-cgroup":           "cgroup.driver",
	}
)

// problems are the findings of one Validate.
type problems []error

// add reports that key has a value that it must not have.
func (p *problems) add(key string, value, reason string) {
	*p = append(*p, fmt.Errorf("%s = %q: %s", key, value, reason))
}

// Validate says everything that is wrong with c; every finding names the key
// and its value.
func (c *Config) Validate() error {
	var p problems
	p.absolute("root", c.Root)
	p.absolute("state", c.State)
	if filepath.Clean(c.Root) == filepath.Clean(c.State) {
		p.add("state", c.State, "is also root")
	}
	p.socket(c.Socket)
	p.oneOf("log.level", c.Log.Level, "trace", "debug", "info", "warn", "error")
	p.oneOf("log.format", c.Log.Format, "text", "json")
	p.oneOf("cgroup.driver", c.Cgroup.Driver, "auto", "cgroupfs", "systemd")
	if c.Kubelet.Root != "" {
		p.absolute("kubelet.root", c.Kubelet.Root)
	}
	p.runtime(c.Runtime)
	p.network(c.Network)
	p.image(c.Image)
	p.streaming(c.Streaming)
	p.diagnostics(c)
	return errors.Join(p...)
}

func (p *problems) socket(path string) {
	p.absolute("socket", path)
	if len(path) > maxSocketPath {
		p.add("socket", path, fmt.Sprintf("longer than %d bytes", maxSocketPath))
	}
	// The kubelet takes an endpoint of this name for CRI-O and then asks
	// cAdvisor for all statistics, which knows nothing of our pods.
	if strings.HasSuffix(path, "run/crio/crio.sock") {
		p.add("socket", path, "the kubelet would take it for CRI-O")
	}
}

func (p *problems) runtime(r Runtime) {
	if _, ok := r.Handlers[r.Default]; !ok {
		p.add("runtime.default", r.Default, "no such handler in runtime.handlers")
	}
	if r.Path != "" {
		p.absolute("runtime.path", r.Path)
	}
	for _, dir := range r.CDISpecDirs {
		p.absolute("runtime.cdi_spec_dirs", dir)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Handlers)) {
		key := "runtime.handlers." + name
		if !handlerName.MatchString(name) {
			p.add("runtime.handlers", name, "not a DNS label, so no RuntimeClass can name it")
		}
		h := r.Handlers[name]
		if h.Path != "" {
			p.absolute(key+".path", h.Path)
		}
		p.oneOf(key+".platform", h.Platform, "systrap", "kvm")
		if h.LayerSize != "" && !layerSize.MatchString(h.LayerSize) {
			p.add(key+".layer_size", h.LayerSize, "not a number with k, m or g")
		}
		for _, a := range h.Annotations {
			if prefix := strings.TrimSuffix(a, "*"); prefix == "" || strings.Contains(prefix, "*") {
				p.add(key+".annotations", a, "neither a name nor the beginning of one with a * behind it")
			}
		}
		for _, flag := range slices.Sorted(maps.Keys(h.Flags)) {
			p.flag(key+".flags."+flag, flag, h.Flags[flag])
		}
	}
}

func (p *problems) flag(key, name, value string) {
	if !flagName.MatchString(name) {
		p.add(key, value, "not the name of a flag; write it without dashes in front")
	}
	setting, own := ownFlags[name]
	switch {
	case own && setting != "":
		p.add(key, value, "a flag that runscd sets itself, by "+setting)
	case own:
		p.add(key, value, "a flag that runscd sets itself")
	}
}

func (p *problems) network(n Network) {
	p.oneOf("network.mode", n.Mode, "cni", "none")
	p.absolute("network.conf_dir", n.ConfDir)
	if len(n.BinDirs) == 0 {
		p.add("network.bin_dirs", "", "no directory")
	}
	for _, dir := range n.BinDirs {
		p.absolute("network.bin_dirs", dir)
		if strings.ContainsRune(dir, filepath.ListSeparator) {
			p.add("network.bin_dirs", dir, "contains a colon, which separates directories in CNI_PATH")
		}
	}
}

func (p *problems) image(i Image) {
	if i.CertsDir != "" {
		p.absolute("image.certs_dir", i.CertsDir)
	}
	if slices.Contains(i.Pinned, "") {
		p.add("image.pinned", "", "not a reference")
	}
	if i.ProgressTimeout < 0 {
		p.add("image.progress_timeout", time.Duration(i.ProgressTimeout).String(), "negative")
	}
	if i.ParallelDownloads < 1 {
		p.add("image.parallel_downloads", strconv.Itoa(i.ParallelDownloads), "less than 1")
	}
}

func (p *problems) streaming(s Streaming) {
	host, port, err := net.SplitHostPort(s.Address)
	ip := net.ParseIP(host)
	if err != nil {
		p.add("streaming.address", s.Address, "not a host and a port")
	} else if ip == nil && host != "localhost" {
		p.add("streaming.address", s.Address, "its host is no IP address")
	} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		p.add("streaming.address", s.Address, "its port is not a number up to 65535")
	}
	// Who has seen the URL of a session may begin it.
	if ip != nil && !ip.IsLoopback() && s.TLSCert == "" {
		p.add("streaming.address", s.Address, "beyond loopback without tls_cert")
	}
	if u, err := url.Parse(s.BaseURL); s.BaseURL != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		p.add("streaming.base_url", s.BaseURL, "not an absolute URL of http or https")
	}
	for key, path := range map[string]string{"streaming.tls_cert": s.TLSCert, "streaming.tls_key": s.TLSKey} {
		if path != "" {
			p.absolute(key, path)
		}
	}
	if (s.TLSCert == "") != (s.TLSKey == "") {
		p.add("streaming.tls_key", s.TLSKey, "certificate and key go together")
	}
	if s.IdleTimeout <= 0 {
		p.add("streaming.idle_timeout", time.Duration(s.IdleTimeout).String(), "not positive")
	}
}

func (p *problems) diagnostics(c *Config) {
	if a := c.Metrics.Address; a != "" && !filepath.IsAbs(a) {
		if ip, err := netip.ParseAddrPort(a); err != nil {
			p.add("metrics.address", a, "neither an IP address and a port nor an absolute path")
		} else if !ip.Addr().IsLoopback() {
			p.add("metrics.address", a, "not on loopback")
		}
	}
	if u, err := url.Parse(c.Tracing.Endpoint); c.Tracing.Endpoint != "" &&
		(err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		p.add("tracing.endpoint", c.Tracing.Endpoint, "not an absolute URL of http or https")
	}
	if c.Debug.Socket != "" {
		p.absolute("debug.socket", c.Debug.Socket)
	}
	for key, path := range map[string]string{"metrics.address": c.Metrics.Address, "debug.socket": c.Debug.Socket} {
		if len(path) > maxSocketPath {
			p.add(key, path, fmt.Sprintf("longer than %d bytes", maxSocketPath))
		}
	}
}

func (p *problems) absolute(key, path string) {
	if !filepath.IsAbs(path) {
		p.add(key, path, "not an absolute path")
	}
}

func (p *problems) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		p.add(key, value, "not one of "+strings.Join(allowed, ", "))
	}
}
