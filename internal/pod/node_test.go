package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/image"
	"github.com/runscd/runscd/internal/monitor"
	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/test/fakerunsc"
)

// reaper is the one of this process; see fakerunsc.Main.
var reaper *monitor.Monitor

func TestMain(m *testing.M) {
	reaper = fakerunsc.Main()
	logrus.SetLevel(logrus.FatalLevel) // faults are what is tested here
	os.Exit(m.Run())
}

// node is a Registry over a fake runsc, images and network.
type node struct {
	*Registry
	*fakerunsc.Fake
	t       *testing.T
	images  *fakeImages
	network *fakeNetwork
	root    string
	state   string
	logs    string
	cgroups string // the host's; see cgroup
	opened  []*Registry
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{
		Fake: fakerunsc.Install(t), t: t, root: t.TempDir(), state: t.TempDir(), logs: t.TempDir(), cgroups: t.TempDir(),
		images:  &fakeImages{mounted: map[string]string{}},
		network: &fakeNetwork{attached: map[string]bool{}},
	}
	n.open()
	t.Cleanup(n.end)
	return n
}

// open opens the registry of what is on disk.
func (n *node) open() {
	n.t.Helper()
	var err error
	n.Registry, err = Open(n.t.Context(), Options{
		Root: n.root, State: n.state, Default: "runsc", Images: n.images, Network: n.network, Monitor: reaper, CgroupRoot: n.cgroups,
		Handlers: map[string]*Handler{"runsc": {
			Runtime: runsc.New(runsc.Options{Path: n.Path, Root: RunscRoot(n.state, "runsc")}),
		}},
	})
	n.must(err)
	n.statsTimeout = time.Minute // a sandbox that does not hang answers, on however busy a machine
	n.opened = append(n.opened, n.Registry)
}

// crash leaves the registry as if the daemon had been killed: what the old one
// does from now on does not reach the records, and it reads no output.
func (n *node) crash() {
	n.t.Helper()
	root := n.t.TempDir()
	n.must(os.CopyFS(root, os.DirFS(n.root)))
	n.root = root
	for _, c := range n.Containers() {
		if c.output != nil {
			_ = c.output.close()
		}
	}
}

// end ends the sandboxes that are left, waits for all that watch them, and
// unmounts what the test has left.
func (n *node) end() {
	for _, r := range n.opened {
		for _, p := range r.Pods() {
			if p.ended == nil {
				continue
			}
			if err := p.init.Kill(context.Background(), unix.SIGKILL, true); err != nil {
				n.t.Error(err)
				continue
			}
			<-p.ended
			for _, c := range r.ContainersOf(p) {
				if c.State() >= proc.Running { // or stopped, which is perhaps still being saved
					<-c.ended
				}
			}
		}
	}
	for _, name := range entries(filepath.Join(n.state, "netns")) {
		_ = network.RemoveNS(n.netNS(name))
	}
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// is checks an error's kind and, if there is one, a part of its text.
func (n *node) is(err error, kind func(error) bool, text string) {
	n.t.Helper()
	if !kind(err) || !strings.Contains(fmt.Sprint(err), text) {
		n.t.Errorf("error %v, want one of another kind or with %q", err, text)
	}
}

func (n *node) podRequest(name string) *runtime.RunPodSandboxRequest {
	return &runtime.RunPodSandboxRequest{Config: &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname: name, LogDirectory: n.logs,
		Linux: &runtime.LinuxPodSandboxConfig{},
	}}
}

func (n *node) containerRequest(pod, name string, command ...string) *runtime.CreateContainerRequest {
	return &runtime.CreateContainerRequest{
		PodSandboxId: pod,
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: name}, Image: &runtime.ImageSpec{Image: "busybox"},
			Command: command, LogPath: name + ".log",
		},
	}
}

// runPod runs a pod.
func (n *node) runPod(name string) string {
	n.t.Helper()
	id, err := n.RunPod(n.t.Context(), n.podRequest(name))
	n.must(err)
	return id
}

// create creates a container.
func (n *node) create(pod, name string, command ...string) *Container {
	n.t.Helper()
	id, err := n.CreateContainer(n.t.Context(), n.containerRequest(pod, name, command...))
	n.must(err)
	c, err := n.Container(id)
	n.must(err)
	return c
}

// start creates and starts a container.
func (n *node) start(pod, name string, command ...string) *Container {
	n.t.Helper()
	c := n.create(pod, name, command...)
	n.must(n.StartContainer(n.t.Context(), c.ID))
	return c
}

// ended waits for a container's end and checks its exit.
func (n *node) ended(c *Container, code int, reason string) {
	n.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(20 * time.Second):
		n.t.Fatalf("container %s has not ended", c.Config().Metadata.Name)
	}
	f := c.Facts()
	if f.ExitCode != code || f.Reason != reason || f.FinishedAt.IsZero() || c.State() != proc.Stopped {
		n.t.Errorf("container ended with %d %q %q at %v in state %s, want %d %q", f.ExitCode, f.Reason, f.Message, f.FinishedAt, c.State(), code, reason)
	}
}

// log returns what a container's log has, without the times.
func (n *node) log(name string) string {
	n.t.Helper()
	data, err := os.ReadFile(filepath.Join(n.logs, name+".log"))
	n.must(err)
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		stamp, rest, _ := strings.Cut(line, " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
			n.t.Errorf("log line %q: %v", line, err)
		}
		b.WriteString(rest)
	}
	return b.String()
}

// leftovers is all that the host and the registry hold for anything.
func (n *node) leftovers() []string {
	n.t.Helper()
	var left []string
	add := func(kind string, names ...string) {
		for _, name := range names {
			left = append(left, kind+" "+name)
		}
	}
	add("pod record", entries(filepath.Join(n.root, "pods"))...)
	add("container record", entries(filepath.Join(n.root, "containers"))...)
	for _, dir := range []string{"pods", "containers", "netns"} {
		add(dir, entries(filepath.Join(n.state, dir))...)
	}
	add("runsc", entries(RunscRoot(n.state, "runsc"))...)
	add("process", n.Sandboxes()...)
	add("mount", n.images.keys()...)
	add("attached", n.network.ids()...)
	add("pod name", taken(n.podNames)...)
	add("container name", taken(n.containerNames)...)
	for _, p := range n.Pods() {
		add("pod", p.ID)
	}
	for _, c := range n.Containers() {
		add("container", c.ID)
	}
	slices.Sort(left)
	return left
}

// nothing checks that there is nothing left but what was there before.
func (n *node) nothing(before ...string) {
	n.t.Helper()
	for _, l := range n.leftovers() {
		if !slices.Contains(before, l) {
			n.t.Errorf("left: %s", l)
		}
	}
}

// fakeImages has the image busybox.
type fakeImages struct {
	mu                   sync.Mutex
	mounted              map[string]string
	stopSignal           string
	mountErr, unmountErr error
	onMount              func()
	getErr, idMapErr     error
}

func (i *fakeImages) Get(_ context.Context, ref string) (*image.Image, error) {
	if i.getErr != nil {
		return nil, i.getErr
	}
	if ref != "busybox" {
		return nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	return &image.Image{
		ID: "sha256:1234", RepoDigests: []string{"example.com/busybox@sha256:5678"},
		Spec: ocispec.Image{Config: ocispec.ImageConfig{StopSignal: i.stopSignal, Cmd: []string{"sleep"}}},
	}, nil
}

func (i *fakeImages) CheckIDMap(*os.File) error { return i.idMapErr }

func (i *fakeImages) MountVolume(ctx context.Context, key, id, target string, ids *image.IDMap) error {
	return i.Mount(ctx, key, id, target, ids)
}

func (i *fakeImages) Mount(_ context.Context, id, _, target string, _ *image.IDMap) error {
	if i.onMount != nil {
		i.onMount()
	}
	if i.mountErr != nil {
		return i.mountErr
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.mounted[id] = target
	return nil
}

func (i *fakeImages) Unmount(_ context.Context, id, _ string) error {
	if i.unmountErr != nil {
		return i.unmountErr
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.mounted, id)
	return nil
}

func (i *fakeImages) Snapshots(context.Context) ([]string, error) { return i.keys(), nil }

func (i *fakeImages) WritableUsage(_ context.Context, id string) (image.Usage, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.mounted[id] == "" {
		return image.Usage{}, fmt.Errorf("root file system %s: %w", id, errdefs.ErrNotFound)
	}
	return image.Usage{Bytes: 4096, Inodes: 2}, nil
}

func (i *fakeImages) Root() string { return "/images" }

func (i *fakeImages) keys() (keys []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for key := range i.mounted {
		keys = append(keys, key)
	}
	return keys
}

// fakeNetwork gives every pod the same two addresses.
type fakeNetwork struct {
	mu                        sync.Mutex
	attached                  map[string]bool
	statusErr, addErr, delErr error
	onAdd                     func()
}

func (f *fakeNetwork) Status(context.Context) error { return f.statusErr }

func (f *fakeNetwork) Add(_ context.Context, p network.Pod) ([]string, error) {
	if f.onAdd != nil {
		f.onAdd()
	}
	if f.addErr != nil {
		return nil, f.addErr
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attached[p.ID] = true
	return []string{"10.88.0.2", "fd00::2"}, nil
}

func (f *fakeNetwork) Del(_ context.Context, p network.Pod) error {
	if f.delErr != nil {
		return f.delErr
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.attached, p.ID)
	return nil
}

func (f *fakeNetwork) GC(_ context.Context, ids []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.attached {
		if !slices.Contains(ids, id) {
			delete(f.attached, id)
		}
	}
	return nil
}

func (f *fakeNetwork) ids() (ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.attached {
		ids = append(ids, id)
	}
	return ids
}

var errFault = errors.New("no such luck")

// taken are the names that are reserved.
func taken(n *names) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Keys(n.taken))
}
