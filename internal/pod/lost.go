package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/spec"
	"github.com/runscd/runscd/internal/store"
)

// A record may be damaged, or be a newer runscd's. What it was for is listed as
// ended, with what can be read of the record and the reason, and can be removed, for
// which its id is enough. Until then the record stays as it is. What a damaged one
// was for is also ended at once. What belongs to a newer one is left alone until
// somebody stops it, for that runscd may come back; so is what belongs to a file that
// could not be read now.

// unknown stands where the kubelet refuses a status that says nothing.
const unknown = "unknown"

// loaded are records of one kind by id.
type loaded[T any] map[string]store.Loaded[T]

// mayBeGood tells whether a record that cannot be used may be, another time.
func mayBeGood(err error) bool { return !errdefs.IsDataLoss(err) }

var errNoMetadata = fmt.Errorf("record without config.metadata: %w", errdefs.ErrDataLoss)

// loadRecords loads all records. That of a container is with those of its pod.
func loadRecords(r *Registry) (pods loaded[podRecord], containers map[string]loaded[containerRecord], err error) {
	pods, err = r.podRecords.Load()
	if err != nil {
		return nil, nil, err
	}
	all, err := r.containerRecords.Load()
	if err != nil {
		return nil, nil, err
	}
	for id, p := range pods {
		if p.Err == nil && p.Record.Config.M.GetMetadata() == nil {
			p.Err = errNoMetadata
			pods[id] = p
		}
	}
	containers = map[string]loaded[containerRecord]{}
	for id, c := range all {
		if c.Err == nil && c.Record.Config.M.GetMetadata() == nil {
			c.Err = errNoMetadata
		}
		pod := c.Record.Pod
		if pod == "" {
			pod = r.podOf(id)
		}
		if containers[pod] == nil {
			containers[pod] = loaded[containerRecord]{}
		}
		containers[pod][id] = c
	}
	return pods, containers, nil
}

// losePod lists a pod whose record cannot be used, and its containers.
func losePod(ctx context.Context, r *Registry, id string, l store.Loaded[podRecord], containers loaded[containerRecord]) {
	log := logrus.WithField("pod", id)
	log.WithError(l.Err).Error("record cannot be used; the pod is taken for stopped")
	rec, now := *l.Record, time.Now()
	if rec.Config.M == nil {
		rec.Config.M = &runtime.PodSandboxConfig{}
	}
	if rec.Config.M.Metadata == nil {
		rec.Config.M.Metadata = &runtime.PodSandboxMetadata{}
	}
	m := rec.Config.M.Metadata
	m.Name, m.Namespace, m.Uid = cmp.Or(m.Name, id), cmp.Or(m.Namespace, unknown), cmp.Or(m.Uid, id)
	if rec.CreatedAt.IsZero() {
		rec.CreatedAt = now
	}
	if rec.StoppedAt.IsZero() {
		rec.StoppedAt = now
	}
	rec.Handler, rec.Message = cmp.Or(rec.Handler, r.handlerOf(id)), l.Err.Error()
	p := r.newPod(id, rec)
	p.foreign = true
	if rec.Boot != r.boot || p.init.Recover(ctx, rec.Host) != nil {
		p.init.Gone()
	}
	r.addPod(p)
	r.podNames.keep(podName(p.Config().Metadata), id, nil)
	for id, c := range containers {
		p.loseContainer(id, *c.Record, cmp.Or(c.Err, l.Err))
	}
	if mayBeGood(l.Err) {
		return
	}
	asking, cancel := context.WithTimeout(ctx, r.signalTimeout)
	defer cancel()
	p.undo(asking, log)
}

// handlerOf finds the handler of a sandbox by what runsc keeps of it, "" if it
// keeps nothing.
func (o *Options) handlerOf(id string) string {
	for _, name := range entries(filepath.Join(o.State, "runsc")) {
		if ids, err := o.runtime(name).List(); err == nil && ids[id] != "" {
			return name
		}
	}
	return ""
}

// podOf finds the pod of a container by its bundle, "" if there is none.
func (l layout) podOf(container string) string {
	s, err := readBundle(l.containerDir(container))
	if err != nil {
		return ""
	}
	return spec.SandboxOf(s)
}

// loseContainer lists a container whose record, or whose pod's, cannot be used.
func (p *Pod) loseContainer(id string, rec containerRecord, cause error) *Container {
	logrus.WithFields(logrus.Fields{"container": id, "pod": p.ID}).WithError(cause).Error("record cannot be used; the container is taken for ended")
	if rec.Config.M == nil {
		rec.Config.M = &runtime.ContainerConfig{}
		rec.VolumeIDs = nil // tell of mounts in the configuration
	}
	if rec.Config.M.Metadata.GetName() == "" {
		rec.Config.M.Metadata = &runtime.ContainerMetadata{Name: id}
	}
	if rec.Config.M.Image.GetImage() == "" {
		rec.Config.M.Image = &runtime.ImageSpec{Image: unknown}
	}
	rec.ImageRef = cmp.Or(rec.ImageRef, unknown)
	now := time.Now()
	if rec.CreatedAt.IsZero() {
		rec.CreatedAt = now
	}
	if rec.FinishedAt.IsZero() {
		rec.FinishedAt, rec.ExitCode, rec.Reason, rec.Message = now, lostCode, reasonLost, cause.Error()
	}
	r := p.home
	c := r.newContainer(id, p, rec)
	c.foreign = true
	close(c.ended)
	r.addContainer(c)
	r.containerNames.keep(containerName(p.ID, c.Config().Metadata), id, nil)
	return c
}

// unmountLost unmounts what the configuration of a container does not tell of.
func unmountLost(ctx context.Context, c *Container) error {
	r := c.Pod.home
	keys, err := r.Images.Snapshots(ctx)
	errs := []error{err, unmountStray(ctx, r, c.ID)}
	for _, key := range keys {
		if strings.HasPrefix(key, c.ID+"-") {
			errs = append(errs, unmountStray(ctx, r, key))
		}
	}
	return errors.Join(errs...)
}
