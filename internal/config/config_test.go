package config

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

var update = flag.Bool("update", false, "write deploy/runscd.toml and docs/config.md")

const deployed = "../../deploy/runscd.toml"

// write makes a configuration of files, by their paths under a new directory,
// and returns the path of runscd.toml there.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "runscd.toml")
}

func load(t *testing.T, path string) *Config {
	t.Helper()
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func printed(t *testing.T, c *Config) string {
	t.Helper()
	var b bytes.Buffer
	if err := c.Print(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestDeployedFile(t *testing.T) {
	want := printed(t, Default())
	if *update {
		if err := os.WriteFile(deployed, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(deployed)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what Print writes; run go test ./internal/config -update", deployed)
	}
}

func TestDefaults(t *testing.T) {
	c := load(t, write(t, map[string]string{"runscd.toml": ""}))
	if c.Socket != "/run/runscd/runscd.sock" {
		t.Errorf("socket = %q", c.Socket)
	}
	if got := load(t, deployed); !reflect.DeepEqual(got, c) {
		t.Errorf("the deployed file says\n%s\nnot\n%s", printed(t, got), printed(t, c))
	}
}

func TestPrintLoadsAsTheSame(t *testing.T) {
	c := load(t, write(t, map[string]string{"runscd.toml": `
state = "/tmp/it's"
socket_group = "docker"
[runtime]
default = "kvm"
[runtime.handlers.kvm]
path = '/opt/"runsc"'
platform = "kvm"
net_raw = true
flags = {nvproxy = "true", debug-log = "/tmp/%COMMAND%\t"}
[image]
pinned = ["a", "b"]
progress_timeout = "90s"
`}))
	if c.Socket != "/tmp/it's/runscd.sock" || c.Image.ProgressTimeout != Duration(90*time.Second) {
		t.Errorf("loaded %+v", c)
	}
	again := load(t, write(t, map[string]string{"runscd.toml": printed(t, c)}))
	if !reflect.DeepEqual(again, c) {
		t.Errorf("printed and loaded again:\n%s\nwant\n%s", printed(t, again), printed(t, c))
	}
}

// TestEveryOptionIsDocumented looks at all fields for a key and a comment.
func TestEveryOptionIsDocumented(t *testing.T) {
	var check func(typ reflect.Type)
	check = func(typ reflect.Type) {
		for f := range typ.Fields() {
			if f.Tag.Get("toml") == "" {
				t.Errorf("%v.%s has no key", typ, f.Name)
			}
			if f.Type.Kind() == reflect.Struct {
				check(f.Type)
			} else if f.Tag.Get("comment") == "" {
				t.Errorf("%v.%s has no comment", typ, f.Name)
			}
		}
	}
	check(reflect.TypeFor[Config]())
	check(reflect.TypeFor[Handler]())
}

func TestDropIns(t *testing.T) {
	c := load(t, write(t, map[string]string{
		"runscd.toml": `
[log]
level = "warn"
format = "json"
[network]
bin_dirs = ["/a", "/b", "/c"]
[runtime.handlers.debug]
platform = "kvm"
flags = {debug = "false", strace = "true"}
`,
		"runscd.toml.d/10-log.toml":     "[log]\nlevel = 'error'\n[network]\nbin_dirs = ['/d']",
		"runscd.toml.d/20-log.toml":     "[log]\nlevel = 'debug'",
		"runscd.toml.d/20-handler.toml": "[runtime.handlers.gpu]\nflags.nvproxy = 'true'",
		"runscd.toml.d/30-debug.toml":   "runtime.handlers.debug.flags.debug = 'true'",
		"runscd.toml.d/99-no.toml~":     "nonsense",
	}))
	if c.Log != (Log{Level: "debug", Format: "json"}) {
		t.Errorf("log = %+v", c.Log)
	}
	if !slices.Equal(c.Network.BinDirs, []string{"/d"}) {
		t.Errorf("bin_dirs = %q", c.Network.BinDirs)
	}
	none := []string{}
	want := map[string]Handler{
		"runsc": {Platform: "systrap", Annotations: none, Flags: map[string]string{}},
		"debug": {Platform: "kvm", Annotations: none, Flags: map[string]string{"debug": "true", "strace": "true"}},
		"gpu":   {Platform: "systrap", Annotations: none, Flags: map[string]string{"nvproxy": "true"}},
	}
	if !reflect.DeepEqual(c.Runtime.Handlers, want) {
		t.Errorf("handlers = %+v", c.Runtime.Handlers)
	}
	if got := c.Runtime.Handlers["debug"].Args(); !slices.Equal(got, []string{"--debug=true", "--strace=true"}) {
		t.Errorf("args = %q", got)
	}
	if d := Default(); !slices.Equal(d.Network.BinDirs, []string{"/opt/cni/bin", "/usr/lib/cni"}) || len(d.Runtime.Handlers) != 1 {
		t.Errorf("loading changed the defaults: %+v", d)
	}
}

func TestMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "absent.toml")
	if _, err := Load(path); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("Load = %v", err)
	}
}

func TestUnreadableFiles(t *testing.T) {
	for name, c := range map[string]struct {
		file, content string
		want          []string
	}{
		"unknown key":         {"runscd.toml", "root = '/x'\n[image]\nregistry = 'x'\n", []string{"runscd.toml:3: image.registry: unknown key"}},
		"unknown table":       {"runscd.toml", "\n[images]\n", []string{"runscd.toml:2: images: unknown key"}},
		"two unknown keys":    {"runscd.toml", "a = 1\nb = 2\n", []string{"runscd.toml:1: a: unknown key", "runscd.toml:2: b: unknown key"}},
		"unknown handler key": {"runscd.toml", "[runtime.handlers.x]\nbinary = '/x'\n", []string{"runscd.toml:2: runtime.handlers.x.binary: unknown key"}},
		"in a drop-in":        {"runscd.toml.d/1.toml", "log.colour = true", []string{"runscd.toml.d/1.toml:1: log.colour: unknown key"}},
		"syntax":              {"runscd.toml", "\nroot = \n", []string{"runscd.toml:2: "}},
		"wrong type":          {"runscd.toml", "[image]\nparallel_downloads = 'many'\n", []string{"runscd.toml:2: image.parallel_downloads: "}},
		"flag not a string":   {"runscd.toml", "[runtime.handlers.x.flags]\ndebug = true\n", []string{"runscd.toml:2: runtime.handlers.x.flags.debug: "}},
		"bad duration":        {"runscd.toml", "\n[image]\nprogress_timeout = '5 minutes'\n", []string{"runscd.toml:3: image.progress_timeout: ", "5 minutes"}},
		"handler twice":       {"runscd.toml", "[runtime.handlers.x]\n[runtime.handlers.x]\n", []string{"runscd.toml:2: "}},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"runscd.toml": ""}
			files[c.file] = c.content
			_, err := Load(write(t, files))
			if err == nil {
				t.Fatal("loaded")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
}

func TestValidate(t *testing.T) {
	long := "/" + strings.Repeat("x", 107)
	for content, want := range map[string]string{
		"root = 'var/lib'":                                       `root = "var/lib": not an absolute path`,
		"state = '../run'":                                       `state = "../run": not an absolute path`,
		"root = '/a/b'\nstate = '/a/./b/'":                       `state = "/a/./b/": is also root`,
		"socket = 'x.sock'":                                      `socket = "x.sock": not an absolute path`,
		"socket = '" + long + "'":                                `longer than 107 bytes`,
		"socket = '/var/run/crio/crio.sock'":                     `socket = "/var/run/crio/crio.sock": the kubelet would take it for CRI-O`,
		"log.level = 'loud'":                                     `log.level = "loud": not one of trace,`,
		"log.format = 'xml'":                                     `log.format = "xml": not one of text, json`,
		"cgroup.driver = 'v2'":                                   `cgroup.driver = "v2": not one of auto,`,
		"runtime.default = 'runc'":                               `runtime.default = "runc": no such handler`,
		"runtime.path = 'runsc'":                                 `runtime.path = "runsc": not an absolute path`,
		"runtime.handlers.A = {}":                                `runtime.handlers = "A": not a DNS label`,
		"runtime.handlers.x.path = 'runsc'":                      `runtime.handlers.x.path = "runsc": not an absolute path`,
		"runtime.handlers.x.platform = 'ptrace'":                 `runtime.handlers.x.platform = "ptrace": not one of systrap, kvm`,
		"runtime.handlers.x.flags = {root = '/x'}":               `runtime.handlers.x.flags.root = "/x": a flag that runscd sets itself`,
		"runtime.handlers.x.flags = {net-raw = 'true'}":          `runtime.handlers.x.flags.net-raw = "true": a flag that runscd sets itself, by net_raw`,
		"runtime.handlers.x.layer_size = '10GB'":                 `runtime.handlers.x.layer_size = "10GB": not a number`,
		"kubelet.root = 'kubelet'":                               `kubelet.root = "kubelet": not an absolute path`,
		"runtime.handlers.x.annotations = ['*']":                 `runtime.handlers.x.annotations = "*": neither a name`,
		"runtime.handlers.x.annotations = ['a*b']":               `runtime.handlers.x.annotations = "a*b": neither a name`,
		"runtime.handlers.x.flags = {overlay2 = 'none'}":         `runtime.handlers.x.flags.overlay2 = "none": a flag`,
		"runtime.handlers.x.flags = {--debug = 'true'}":          `runtime.handlers.x.flags.--debug = "true": not the name of a flag`,
		"network.mode = 'host'":                                  `network.mode = "host": not one of cni, none`,
		"network.conf_dir = 'net.d'":                             `network.conf_dir = "net.d": not an absolute path`,
		"network.bin_dirs = []":                                  `network.bin_dirs = "": no directory`,
		"network.bin_dirs = ['/a', 'b']":                         `network.bin_dirs = "b": not an absolute path`,
		"network.bin_dirs = ['/a:/b']":                           `network.bin_dirs = "/a:/b": contains a colon`,
		"image.certs_dir = 'certs.d'":                            `image.certs_dir = "certs.d": not an absolute path`,
		"image.pinned = ['']":                                    `image.pinned = "": not a reference`,
		"image.progress_timeout = '-1s'":                         `image.progress_timeout = "-1s": negative`,
		"image.parallel_downloads = 0":                           `image.parallel_downloads = "0": less than 1`,
		"streaming.address = 'localhost'":                        `streaming.address = "localhost": not a host and a port`,
		"streaming.address = 'node:1'":                           `streaming.address = "node:1": its host is no IP address`,
		"streaming.address = '127.0.0.1:65536'":                  `streaming.address = "127.0.0.1:65536": its port is not a number`,
		"streaming.address = '0.0.0.0:10010'":                    `streaming.address = "0.0.0.0:10010": beyond loopback without tls_cert`,
		"streaming.base_url = '/cri'":                            `streaming.base_url = "/cri": not an absolute URL`,
		"streaming.tls_cert = '/c'":                              `streaming.tls_key = "": certificate and key go together`,
		"streaming = {tls_cert = 'c', tls_key = '/k'}":           `streaming.tls_cert = "c": not an absolute path`,
		"streaming.idle_timeout = '0s'":                          `streaming.idle_timeout = "0s": not positive`,
		"metrics.address = 'localhost:9100'":                     `metrics.address = "localhost:9100": neither an IP address and a port nor`,
		"metrics.address = '0.0.0.0:9100'":                       `metrics.address = "0.0.0.0:9100": not on loopback`,
		"metrics.address = '" + long + "'":                       `longer than 107 bytes`,
		"tracing.endpoint = '127.0.0.1:4317'":                    `tracing.endpoint = "127.0.0.1:4317": not an absolute URL`,
		"debug.socket = 'debug.sock'":                            `debug.socket = "debug.sock": not an absolute path`,
		"log.level = ''\nnetwork.mode = ''\ncgroup.driver = 'x'": `network.mode = "": not one of`,
	} {
		t.Run(content, func(t *testing.T) {
			path := write(t, map[string]string{"runscd.toml": content})
			_, err := Load(path)
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
				t.Errorf("Load = %v; want %q", err, want)
			}
		})
	}
	if err := load(t, write(t, map[string]string{"runscd.toml": "socket = '" + long[:107] + "'"})).Validate(); err != nil {
		t.Error(err)
	}
}

func TestDriverInUse(t *testing.T) {
	const booted, unified = "run/systemd/system/x", "sys/fs/cgroup/cgroup.controllers"
	for _, c := range []struct {
		driver string
		files  []string
		want   string
	}{
		{"auto", nil, "cgroupfs"},
		{"auto", []string{booted}, "cgroupfs"},
		{"auto", []string{unified}, "cgroupfs"},
		{"auto", []string{booted, unified}, "systemd"},
		{"cgroupfs", []string{booted, unified}, "cgroupfs"},
		{"systemd", nil, "systemd"},
	} {
		files := map[string]string{}
		for _, f := range c.files {
			files[f] = ""
		}
		root := filepath.Dir(write(t, files))
		if got := (Cgroup{Driver: c.driver}).driverInUse(root); got != c.want {
			t.Errorf("driver %s with %v: %s, want %s", c.driver, c.files, got, c.want)
		}
	}
}

func TestRunsc(t *testing.T) {
	dir := t.TempDir()
	inPath := filepath.Join(dir, "runsc")
	if err := os.WriteFile(inPath, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, handler, env, want string }{
		{"", "", dir, inPath},
		{"/r", "", dir, "/r"},
		{"/r", "/h", dir, "/h"},
		{"", "/h", "", "/h"},
	} {
		t.Setenv("PATH", c.env)
		got, err := Runtime{Path: c.path}.Runsc(Handler{Path: c.handler})
		if err != nil || got != c.want {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
	t.Setenv("PATH", "")
	if _, err := (Runtime{}).Runsc(Handler{}); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("no runsc anywhere: %v", err)
	}
}

func TestSocketGID(t *testing.T) {
	for group, want := range map[string]int{"": -1, "0": 0, "1234": 1234, "root": 0} {
		if got, err := (&Config{SocketGroup: group}).SocketGID(); err != nil || got != want {
			t.Errorf("%q: %d, %v", group, got, err)
		}
	}
	if _, err := (&Config{SocketGroup: "no such group"}).SocketGID(); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("unknown group: %v", err)
	}
}

func TestProxiedDevices(t *testing.T) {
	for _, test := range []struct {
		flags map[string]string
		want  []string
	}{
		{nil, nil},
		{map[string]string{"nvproxy": "false", "debug": "true"}, nil},
		{map[string]string{"rdmaproxy": "true"}, []string{"/dev/infiniband/uverbs*"}},
	} {
		if got := (Handler{Flags: test.flags}).Devices(); !slices.Equal(got, test.want) {
			t.Errorf("%v: %q, want %q", test.flags, got, test.want)
		}
	}
}
