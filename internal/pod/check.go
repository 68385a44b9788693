package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/runsc"
)

// checkTimeout bounds the check of a handler, which takes some 200 ms: what hangs
// must not keep the pods of others from being served.
const checkTimeout = 20 * time.Second

// Check tries each handler with a sandbox that is thrown away: does the binary
// run, does the platform work here, does the control socket speak what we
// speak? A handler that does not pass refuses pods with the reason.
//
// The sandbox is tried in a user namespace. If it runs only without one, pods that
// want one are refused.
func (r *Registry) Check(ctx context.Context) {
	for name, h := range r.Handlers {
		// Not cut off by SIGTERM: it is soon over, and half a sandbox is hard to undo.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
		h.noUserNS = nil
		version, err := r.checkHandler(ctx, h)
		if err != nil && ctx.Err() == nil {
			h.noUserNS = err
			version, err = r.checkHandler(ctx, h)
		}
		cancel()
		log := logrus.WithFields(logrus.Fields{"handler": name, "runsc": h.Runtime.Path(), "version": version})
		if err != nil {
			h.unusable = fmt.Errorf("runtime handler %q with %s: %w", name, h.Runtime.Path(), err)
			log.WithError(err).Error("runtime handler is not usable")
			continue
		}
		h.Version = version
		log.Info("runtime handler is usable")
		if h.noUserNS != nil {
			log.WithError(h.noUserNS).Warn("pods cannot have user namespaces")
		}
	}
}

func (r *Registry) checkHandler(ctx context.Context, h *Handler) (version string, err error) {
	if version, err = h.Runtime.Version(ctx); err != nil {
		return "", err
	}
	id := newID()
	dir := r.podDir(id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return version, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTimeout)
		defer cancel()
		err = errors.Join(err, h.Runtime.Purge(ctx, id, dir, true), os.RemoveAll(dir))
	}()
	namespaces := &runtime.NamespaceOption{}
	if h.noUserNS == nil {
		ids := []*runtime.IDMapping{{HostId: 1 << 16, Length: 1 << 16}}
		namespaces.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
	if err := r.writeSandbox(id, "", &runtime.PodSandboxConfig{
		Hostname: "check",
		Linux:    &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: namespaces}},
	}, nil, nil); err != nil {
		return version, err
	}
	config := runsc.CreateConfig{Bundle: dir}
	pid, err := h.Runtime.Create(ctx, id, config)
	if err != nil {
		return version, err
	}
	if h.noUserNS == nil {
		if err := checkIDMap(r.Images, pid); err != nil {
			return version, err
		}
	}
	if err := h.Runtime.Start(ctx, id, config); err != nil {
		return version, err
	}
	state, err := h.Runtime.Control(id).State(ctx, id)
	if err != nil {
		return version, fmt.Errorf("control protocol: %w", err)
	}
	if state != runsc.StateRunning {
		return version, fmt.Errorf("control protocol: state %d of a running container: %w", state, errdefs.ErrFailedPrecondition)
	}
	return version, nil
}

// Checked returns what Check has found: why the handler cannot run pods, and why
// pods of it cannot have user namespaces; nil where they can.
func (h *Handler) Checked() (unusable, noUserNS error) { return h.unusable, h.noUserNS }

// checkIDMap tries to mount images in the user namespace of a process.
func checkIDMap(images Images, pid int) error {
	userns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return err
	}
	defer userns.Close()
	return images.CheckIDMap(userns)
}

// Ready returns why the default handler cannot run pods, nil if it can.
func (o *Options) Ready() error {
	return o.Handlers[o.Default].unusable
}
