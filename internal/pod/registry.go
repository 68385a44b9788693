package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/image"
	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/stdio"
	"github.com/runscd/runscd/internal/store"
	"github.com/runscd/runscd/internal/systemd"
)

// Images gives containers their root file systems; internal/image is it.
type Images interface {
	Get(ctx context.Context, ref string) (*image.Image, error)
	Mount(ctx context.Context, key, imageID, target string, ids *image.IDMap) error
	MountVolume(ctx context.Context, key, imageID, target string, ids *image.IDMap) error
	CheckIDMap(userns *os.File) error
	Unmount(ctx context.Context, key, target string) error
	Snapshots(ctx context.Context) ([]string, error)
	WritableUsage(ctx context.Context, id string) (image.Usage, error)
	Root() string
}

// Network connects pods' network namespaces; internal/network has two.
type Network interface {
	Status(ctx context.Context) error
	Add(ctx context.Context, p network.Pod) ([]string, error)
	Del(ctx context.Context, p network.Pod) error
	GC(ctx context.Context, ids []string) error
}

// Handler is one way to run sandboxes, by which a pod's RuntimeClass chooses.
type Handler struct {
	Runtime *runsc.Runtime
	Version string // of the binary; set by Check
	// Annotations are the names of those that runsc is given; see spec.SandboxOptions.
	Annotations []string
	Devices     []string // see spec.ContainerOptions.ProxiedDevices

	unusable error // set by Check
	noUserNS error // why not; set by Check
}

// UserNamespaces tells whether pods of the handler can have user namespaces. It
// is known after Check.
func (h *Handler) UserNamespaces() bool { return h.unusable == nil && h.noUserNS == nil }

// Options are what a Registry works with.
type Options struct {
	Root          string // directory of the records
	State         string // directory of all that is gone after a reboot
	Handlers      map[string]*Handler
	Default       string // the handler for "", a key of Handlers
	SystemdCgroup bool   // cgroup parents are systemd slices
	CgroupRoot    string // where the host's cgroups are mounted; "" for /sys/fs/cgroup
	// MinOOMScoreAdj is the lowest oom_score_adj that may be given; a lower one
	// that is asked for becomes this.
	MinOOMScoreAdj int
	CDISpecDirs    []string
	KubeletRoot    string // the kubelet's directory; "": no volume is looked for there
	Images         Images
	Network        Network
	Monitor        proc.ProcessMonitor
	// VolumeLabel is the SELinux label of a container's volumes, "" for none; nil for
	// what the host's policy says.
	VolumeLabel func(*runtime.SELinuxOption) (string, error)
	Unit        *systemd.Unit // keeps what containers have of the daemon; nil for nobody
}

// Registry holds the pods and containers of the node. Its methods are what the
// CRI asks of them, and may be called concurrently.
type Registry struct {
	Options
	index
	layout
	podRecords       *store.Records[podRecord]
	containerRecords *store.Records[containerRecord]
	processes        *proc.Registry
	podNames         *names
	containerNames   *names
	events           *events
	logs             *stdio.Logs
	copying          context.Context // of the output to the logs; ends with Close
	stopCopying      context.CancelFunc
	boot             string
	signalTimeout    time.Duration
	killTimeout      time.Duration
	statsTimeout     time.Duration
}

// Handler returns the handler of a name, "" being the default. It may be one
// that is not usable here. The error is ErrNotFound.
func (o *Options) Handler(name string) (*Handler, error) {
	if name == "" {
		name = o.Default
	}
	h, ok := o.Handlers[name]
	if !ok {
		return nil, fmt.Errorf("runtime_handler %q: not configured: %w", name, errdefs.ErrNotFound)
	}
	return h, nil
}

// Subscribe returns all events from now on. The channel is closed when its
// reader lags too far behind; cancel ends the subscription.
func (r *Registry) Subscribe() (ch <-chan Event, cancel func()) {
	return r.events.subscribe()
}

// idLength is the length of every id. It is fixed because runsc takes the
// beginning of an id for the whole.
const idLength = 64

func newID() string {
	b := make([]byte, idLength/2)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func podName(m *runtime.PodSandboxMetadata) string {
	return fmt.Sprintf("%s/%s/%s/%d", m.Namespace, m.Name, m.Uid, m.Attempt)
}

func containerName(pod string, m *runtime.ContainerMetadata) string {
	return fmt.Sprintf("%s/%s/%d", pod, m.Name, m.Attempt)
}
