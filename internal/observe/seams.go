package observe

import (
	"context"
	"io"
	"time"

	"github.com/runscd/runscd/internal/cri"
	"github.com/runscd/runscd/internal/image"
	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/pod"
	"github.com/runscd/runscd/internal/stdio"
	"github.com/runscd/runscd/internal/stream"
)

// Network returns n with its phases observed.
func (o *Observer) Network(n pod.Network) pod.Network { return observedNetwork{n, o} }

type observedNetwork struct {
	pod.Network
	o *Observer
}

func (n observedNetwork) Add(ctx context.Context, p network.Pod) (ips []string, err error) {
	defer func(since time.Time) { n.o.phase(ctx, "network", since, err) }(time.Now())
	return n.Network.Add(ctx, p)
}

func (n observedNetwork) Del(ctx context.Context, p network.Pod) (err error) {
	defer func(since time.Time) { n.o.phase(ctx, "network_delete", since, err) }(time.Now())
	return n.Network.Del(ctx, p)
}

// Images returns i with the making of root file systems observed.
func (o *Observer) Images(i pod.Images) pod.Images { return observedImages{i, o} }

type observedImages struct {
	pod.Images
	o *Observer
}

func (i observedImages) Mount(ctx context.Context, key, imageID, target string, ids *image.IDMap) (err error) {
	defer func(since time.Time) { i.o.phase(ctx, "snapshot", since, err) }(time.Now())
	return i.Images.Mount(ctx, key, imageID, target, ids)
}

// Pulls returns s with its pulls observed.
func (o *Observer) Pulls(s cri.ImageStore) cri.ImageStore { return observedPulls{s, o} }

type observedPulls struct {
	cri.ImageStore
	o *Observer
}

func (p observedPulls) Pull(ctx context.Context, ref string, auth image.Auth) (img *image.Image, err error) {
	defer func(since time.Time) {
		p.o.pulls.WithLabelValues(result(err)).Observe(time.Since(since).Seconds())
	}(time.Now())
	return p.ImageStore.Pull(ctx, ref, auth)
}

// Sessions returns p with its sessions observed.
func (o *Observer) Sessions(p stream.Pods) stream.Pods { return observedSessions{p, o} }

type observedSessions struct {
	pods stream.Pods
	o    *Observer
}

// begin counts a session and returns the function that tells its end.
func (s observedSessions) begin(kind string) func() {
	s.o.sessions.WithLabelValues(kind).Inc()
	open := s.o.open.WithLabelValues(kind)
	open.Inc()
	return open.Dec
}

func (s observedSessions) Exec(ctx context.Context, container string, command []string, tty bool, streams stdio.Streams) (int, error) {
	defer s.begin("exec")()
	return s.pods.Exec(ctx, container, command, tty, streams)
}

func (s observedSessions) Attach(ctx context.Context, container string, streams stdio.Streams) error {
	defer s.begin("attach")()
	return s.pods.Attach(ctx, container, streams)
}

func (s observedSessions) PortForward(ctx context.Context, pod string, port uint16, conn io.ReadWriteCloser) error {
	defer s.begin("portforward")()
	return s.pods.PortForward(ctx, pod, port, conn)
}
