package pod

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/proc"
)

// damages make a record one that cannot be read.
var damages = map[string]func(record []byte) []byte{
	"empty":       func([]byte) []byte { return nil },
	"zeros":       func(r []byte) []byte { return make([]byte, len(r)) },
	"garbage":     func([]byte) []byte { return []byte("hello") },
	"cut in half": func(r []byte) []byte { return r[:len(r)/2] },
	"cut at end":  func(r []byte) []byte { return r[:len(r)-3] },
	"no config":   func([]byte) []byte { return []byte(`{"version":1}`) },
	"null":        func(r []byte) []byte { return bytes.Replace(r, []byte(`"metadata":`), []byte(`"meta":`), 1) },
}

// damage changes the records of an object.
func (n *node) damage(kind, id string, how func([]byte) []byte) {
	n.t.Helper()
	path := filepath.Join(n.root, kind, id+".json")
	data, err := os.ReadFile(path)
	n.must(err)
	n.must(os.WriteFile(path, how(data), 0o600))
}

// withVolume is a container with an image volume.
func (n *node) withVolume(pod, name string) *Container {
	n.t.Helper()
	req := n.containerRequest(pod, name, "sleep")
	req.Config.Mounts = []*runtime.Mount{{ContainerPath: "/image", Readonly: true, Image: &runtime.ImageSpec{Image: "busybox"}}}
	id, err := n.CreateContainer(n.t.Context(), req)
	n.must(err)
	n.must(n.StartContainer(n.t.Context(), id))
	c, err := n.Container(id)
	n.must(err)
	return c
}

func TestADamagedPodRecordHarmsItsPodOnly(t *testing.T) {
	for name, how := range damages {
		t.Run(name, func(t *testing.T) {
			n, ctx := newNode(t), t.Context()
			good, bad := n.runPod("good"), n.runPod("bad")
			well, ill := n.start(good, "well", "sleep"), n.withVolume(bad, "ill")
			n.crash()
			n.damage("pods", bad, how)
			for range 2 { // it is found again and again
				n.open()
				if s := n.found(well).State(); s != proc.Running {
					t.Errorf("state %s", s)
				}
				p, err := n.Pod(bad)
				n.must(err)
				if p.State() != proc.Stopped || !strings.Contains(p.Facts().Message, "record") || p.Facts().CreatedAt.IsZero() {
					t.Errorf("facts %+v", p.Facts())
				}
				n.ended(n.found(ill), 255, "RecordUnusable")
				if got := n.Sandboxes(); len(got) != 1 || !slices.Equal(n.network.ids(), []string{good}) || len(entries(filepath.Join(n.state, "netns"))) != 1 {
					t.Errorf("sandboxes %q, attached %q", got, n.network.ids())
				}
				n.crash()
			}
			n.open()
			n.must(n.StopPod(ctx, bad))
			n.must(n.RemovePod(ctx, bad))
			n.must(n.RemovePod(ctx, good))
			n.nothing()
		})
	}
}

func TestADamagedContainerRecordHarmsItsContainerOnly(t *testing.T) {
	for name, how := range damages {
		t.Run(name, func(t *testing.T) {
			n, ctx := newNode(t), t.Context()
			id := n.runPod("p")
			well := n.start(id, "well", "sleep")
			before := n.leftovers()
			ill := n.withVolume(id, "ill")
			n.crash()
			n.damage("containers", ill.ID, how)
			n.open()
			if s := n.found(well).State(); s != proc.Running {
				t.Errorf("state %s", s)
			}
			n.ended(n.found(ill), 255, "RecordUnusable")
			if got := n.found(ill).Pod.ID; got != id {
				t.Errorf("pod %s", got)
			}
			if _, ok := n.runscIDs()[ill.ID]; ok {
				t.Error("it is still in the sandbox")
			}
			n.is(n.StartContainer(ctx, ill.ID), errdefs.IsFailedPrecondition, "stopped")
			n.must(n.StopContainer(ctx, ill.ID, 0))
			n.must(n.RemoveContainer(ctx, ill.ID))
			n.nothing(before...)
		})
	}
}

// What can be read is told: the kubelet finds its pods by their labels.
func TestWhatCanBeReadOfADamagedRecord(t *testing.T) {
	n := newNode(t)
	req := n.podRequest("p")
	req.Config.Labels = map[string]string{"io.kubernetes.pod.uid": "uid-p"}
	id, err := n.RunPod(t.Context(), req)
	n.must(err)
	n.crash()
	n.damage("pods", id, damages["cut at end"])
	n.open()
	p, err := n.Pod(id)
	n.must(err)
	if c := p.Config(); c.Metadata.Name != "p" || c.Labels["io.kubernetes.pod.uid"] != "uid-p" {
		t.Errorf("config %v", c)
	}
	_, err = n.RunPod(t.Context(), req)
	n.is(err, errdefs.IsAlreadyExists, id)
	req.Config.Metadata.Attempt++ // the kubelet's replacement
	_, err = n.RunPod(t.Context(), req)
	n.must(err)
}

// A newer runscd finds what it has left as it was.
func TestRecordsOfANewerVersion(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	id := n.runPod("p")
	c := n.start(id, "c", "sleep")
	newer := func(version int) {
		n.crash()
		n.edit("pods", id, "version", version)
		n.edit("containers", c.ID, "version", version)
		n.open()
	}
	newer(99)
	p, err := n.Pod(id)
	n.must(err)
	if p.State() != proc.Stopped || !strings.Contains(p.Facts().Message, "version 99, this runscd has version 1") || p.Config().Metadata.Name != "p" {
		t.Errorf("facts %+v", p.Facts())
	}
	n.ended(n.found(c), 255, "RecordUnusable")
	newer(recordVersion)
	if s := n.found(c).State(); s != proc.Running {
		t.Errorf("state %s", s)
	}
	newer(99)
	n.must(n.StopPod(ctx, id))
	if len(n.Sandboxes()) > 0 || len(n.network.ids()) > 0 {
		t.Errorf("sandboxes %q, attached %q", n.Sandboxes(), n.network.ids())
	}
	n.must(n.RemovePod(ctx, id))
	n.nothing()
}

func TestARecordThatCannotBeReadNow(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	n.crash()
	path := filepath.Join(n.root, "pods", id+".json")
	n.must(os.Rename(path, path+".away"))
	n.must(os.Mkdir(path, 0o700)) // reading it is an error
	n.open()
	p, err := n.Pod(id)
	n.must(err)
	if p.State() != proc.Stopped || len(n.Sandboxes()) != 1 {
		t.Errorf("state %s, sandboxes %q", p.State(), n.Sandboxes())
	}
	n.crash()
	path = filepath.Join(n.root, "pods", id+".json")
	n.must(os.Remove(path))
	n.must(os.Rename(path+".away", path))
	n.open()
	if p, err := n.Pod(id); err != nil || p.State() != proc.Running {
		t.Errorf("%v, %v", p, err)
	}
}

func TestAContainerOfANewerVersionCanBeRemoved(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	before := n.leftovers()
	c := n.withVolume(id, "c")
	n.crash()
	n.edit("containers", c.ID, "version", 99)
	n.open()
	if _, ok := n.runscIDs()[c.ID]; !ok {
		t.Error("it was not left alone")
	}
	n.must(n.RemoveContainer(t.Context(), c.ID))
	n.nothing(before...)
}
