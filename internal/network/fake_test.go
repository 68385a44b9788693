package network

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeConf is the configuration of the fake plugin, which is this test binary
// under another name: it notes each call in Log and then does as told.
type fakeConf struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`

	Log   string   `json:"log"`
	Fail  []string `json:"fail,omitempty"`  // commands that fail
	Hang  string   `json:"hang,omitempty"`  // the command that hangs, with a child
	Alive string   `json:"alive,omitempty"` // a FIFO held open for writing by who hangs
	IPs   []string `json:"ips,omitempty"`
	Tag   string   `json:"tag,omitempty"` // tells configurations apart
}

// call is one call of the fake plugin.
type call struct {
	Command, ID, NetNS, IfName, Args, Tag string

	RuntimeConfig map[string]any
	Attachments   []map[string]string
}

func TestMain(m *testing.M) {
	if strings.HasPrefix(filepath.Base(os.Args[0]), "fake") {
		if err := fakePlugin(); err != nil {
			fmt.Printf(`{"cniVersion":"1.1.0","code":999,"msg":%q}`, err.Error())
			fmt.Fprintln(os.Stderr, "last words")
			os.Exit(1)
		}
		os.Exit(0)
	}
	// The race detector keeps each process for a second longer otherwise.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func fakePlugin() error {
	var conf struct {
		fakeConf
		RuntimeConfig map[string]any      `json:"runtimeConfig"`
		Attachments   []map[string]string `json:"cni.dev/valid-attachments"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&conf); err != nil {
		return err
	}
	command := os.Getenv("CNI_COMMAND")
	line, err := json.Marshal(call{
		command, os.Getenv("CNI_CONTAINERID"), os.Getenv("CNI_NETNS"), os.Getenv("CNI_IFNAME"), os.Getenv("CNI_ARGS"), conf.Tag,
		conf.RuntimeConfig, conf.Attachments,
	})
	if err != nil {
		return err
	}
	log, err := os.OpenFile(conf.Log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if _, err := log.Write(append(line, '\n')); err != nil {
		return err
	}
	if conf.Hang == command {
		alive, err := os.OpenFile(conf.Alive, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		child := exec.Command("sh", "-c", "echo child; exec sleep 1000")
		child.Stdout = alive
		child.Stderr = os.Stdout // holds the plugin's output open as well
		return child.Run()
	}
	if slices.Contains(conf.Fail, command) {
		return fmt.Errorf("%s refused", command)
	}
	if command == "ADD" {
		result := map[string]any{"cniVersion": "1.0.0"}
		var ips []map[string]string
		for _, ip := range conf.IPs {
			ips = append(ips, map[string]string{"address": ip})
		}
		result["ips"] = ips
		return json.NewEncoder(os.Stdout).Encode(result)
	}
	return nil
}

// fake is a network of fake plugins.
type fake struct {
	*CNI
	t   *testing.T
	log string
}

func newFake(t *testing.T) *fake {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, log: filepath.Join(dir, "log")}
	f.CNI = NewCNI(Options{ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{bin}, CacheDir: filepath.Join(dir, "cache")})
	f.install("fake")
	return f
}

func (f *fake) install(name string) {
	f.t.Helper()
	self, err := os.Executable()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(f.options.BinDirs[0], name)); err != nil {
		f.t.Fatal(err)
	}
}

// configure writes a network of the given name and version.
func (f *fake) configure(file, name, version string, plugins ...fakeConf) {
	f.t.Helper()
	for i := range plugins {
		plugins[i].Log = f.log
		if plugins[i].Type == "" {
			plugins[i].Type = "fake"
		}
	}
	data, err := json.Marshal(map[string]any{"cniVersion": version, "name": name, "plugins": plugins})
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(file, string(data))
}

func (f *fake) write(file, content string) {
	f.t.Helper()
	if err := os.MkdirAll(f.options.ConfDir, 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.options.ConfDir, file), []byte(content), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) unconfigure() {
	f.t.Helper()
	if err := os.RemoveAll(f.options.ConfDir); err != nil {
		f.t.Fatal(err)
	}
}

// calls returns the calls since the last time.
func (f *fake) calls() []call {
	f.t.Helper()
	log, err := os.OpenFile(f.log, os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		f.t.Fatal(err)
	}
	defer log.Close()
	var calls []call
	for d := json.NewDecoder(log); ; {
		var c call
		if err := d.Decode(&c); err == io.EOF {
			break
		} else if err != nil {
			f.t.Fatal(err)
		}
		calls = append(calls, c)
	}
	if err := os.Remove(f.log); err != nil {
		f.t.Fatal(err)
	}
	return calls
}

// expect compares the calls since the last time, each as "COMMAND tag id".
func (f *fake) expect(want ...string) []call {
	f.t.Helper()
	calls := f.calls()
	var got []string
	for _, c := range calls {
		got = append(got, strings.TrimSpace(c.Command+" "+c.Tag+" "+c.ID))
	}
	if !slices.Equal(got, want) {
		f.t.Errorf("calls %q, want %q", got, want)
	}
	return calls
}

// attachments tells how many attachments are remembered.
func (f *fake) attachments() int {
	f.t.Helper()
	all, err := f.lib.GetCachedAttachments("")
	if err != nil {
		f.t.Fatal(err)
	}
	return len(all)
}
