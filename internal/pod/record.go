package pod

import (
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/store"
)

// recordVersion is the version of both formats; docs/records.md describes them.
const recordVersion = 1

// podRecord are the facts about a pod that outlive the daemon. States are
// derived from them.
type podRecord struct {
	Config  message[*runtime.PodSandboxConfig] `json:"config"`
	Handler string                             `json:"handler"`
	// Requested is the handler by the client's word for it, "" being the default.
	Requested string `json:"requested_handler"`
	// Runsc is what the sandbox was made by, and is driven by.
	Runsc runsc.Origin `json:"runsc,omitzero"`
	// Annotations and Devices are the handler's of then.
	Annotations []string `json:"annotations,omitempty"`
	Devices     []string `json:"devices,omitempty"`
	Boot        string   `json:"boot"` // the kernel's boot id
	// CreatedAt is when the sandbox ran; zero while it is being made.
	CreatedAt time.Time        `json:"created_at,omitzero"`
	Host      proc.HostProcess `json:"host_process,omitzero"`
	Cgroup    string           `json:"cgroup,omitempty"` // directory of the memory controller
	// OOMKills is the kernel's count of kills for memory that have been told.
	OOMKills uint64   `json:"oom_kills,omitempty"`
	IPs      []string `json:"ips,omitempty"`
	// Overhead and Resources are what is said of the pod in place of its
	// configuration, since they were changed.
	Overhead  message[*runtime.LinuxContainerResources] `json:"overhead,omitzero"`
	Resources message[*runtime.LinuxContainerResources] `json:"resources,omitzero"`
	// MemoryVolumes are the host's directories of volumes that the sandbox has in
	// its own memory.
	MemoryVolumes []string `json:"memory_volumes,omitempty"`
	// StoppedAt is when the sandbox was seen to be gone.
	StoppedAt time.Time `json:"stopped_at,omitzero"`
	// Released says that nothing on the host is held for the pod any more but
	// its containers' file systems and the record.
	Released bool   `json:"released,omitempty"`
	Message  string `json:"message,omitempty"` // why the sandbox died
	// Saving is where the pod is being saved.
	Saving saving `json:"saving,omitzero"`
	// Paused says that the pod is paused, or about to be.
	Paused bool `json:"paused,omitempty"`
	// Restored says that the pod was made of a checkpoint.
	Restored bool `json:"restored,omitempty"`
	// Shm is the container that the sandbox knows as the one of /dev/shm.
	Shm string `json:"shm_container,omitempty"`
}

// containerRecord are the facts about a container that outlive the daemon.
type containerRecord struct {
	Pod      string                            `json:"pod"`
	Config   message[*runtime.ContainerConfig] `json:"config"`
	ImageID  string                            `json:"image_id"`
	ImageRef string                            `json:"image_ref"`
	// VolumeIDs are the images that are mounted as volumes, by the mount's place
	// in the configuration.
	VolumeIDs map[int]string `json:"volume_image_ids,omitempty"`
	LogPath   string         `json:"log_path,omitempty"` // absolute
	User      *User          `json:"user,omitempty"`
	// Resources are in place of those of the configuration, since they were changed.
	Resources message[*runtime.LinuxContainerResources] `json:"resources,omitzero"`
	Signal    int                                       `json:"stop_signal"`
	// Restored is what a container has from the checkpoint that it was made of.
	Restored *restoredFrom `json:"restored,omitempty"`
	// CreatedAt is when the container could be started; zero while it is being made.
	CreatedAt  time.Time `json:"created_at,omitzero"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	ExitCode   int       `json:"exit_code,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	Message    string    `json:"message,omitempty"`
}

// saving is a directory for a checkpoint. A scratch directory is the daemon's own, and
// removed with all in it.
type saving struct {
	Path    string `json:"path"`
	Scratch bool   `json:"scratch,omitempty"`
}

// restoredFrom is what a restored container has of the one that was saved.
type restoredFrom struct {
	// Cgroup is what the sandbox calls the container's cgroup: the id of the container
	// that was saved first.
	Cgroup string `json:"sandbox_cgroup"`
	// Place is that in which the containers were started, and are restored.
	Place int `json:"place"`
}

// User is who a container's first process is.
type User struct {
	UID    int64   `json:"uid"`
	GID    int64   `json:"gid"`
	Groups []int64 `json:"groups,omitempty"`
}

// message is a protobuf message that is JSON in a record, by its own rules.
type message[M proto.Message] struct{ M M }

// MarshalJSON encodes the message.
func (m message[M]) MarshalJSON() ([]byte, error) { return protojson.Marshal(m.M) }

// UnmarshalJSON decodes the message. Fields of a newer cri-api are passed over.
func (m *message[M]) UnmarshalJSON(data []byte) error {
	m.M = m.M.ProtoReflect().Type().New().Interface().(M)
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, m.M)
}

// facts is a record in memory and on disk. The copy in memory follows that on disk.
type facts[T any] struct {
	id      string
	records *store.Records[T]
	foreign bool // the record cannot be used, and is not changed; see lost.go

	save sync.Mutex // orders the changes; held over the write, as nothing else is
	// +checklocks:save
	forgotten bool

	mu sync.Mutex
	// +checklocks:mu
	now T
}

// Facts returns the present facts.
func (f *facts[T]) Facts() T {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// update changes the facts and saves them. They are told as soon as they are on disk, so
// that a daemon that dies takes nothing back. After an error the change is in force and
// not on disk.
func (f *facts[T]) update(change func(*T)) error {
	f.save.Lock()
	defer f.save.Unlock()
	next := f.Facts()
	change(&next)
	var err error
	if !f.forgotten && !f.foreign {
		err = f.records.Save(f.id, &next)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = next
	return err
}

// erase deletes the record. Facts that change later are not saved any more.
func (f *facts[T]) erase() error {
	f.save.Lock()
	defer f.save.Unlock()
	f.forgotten = true
	return f.records.Delete(f.id)
}
