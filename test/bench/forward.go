package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ForwardReport is of port-forward by kubectl's client, which is a part of what is
// measured. The connections are made 8 at once.
type ForwardReport struct {
	Up      float64   `json:"up_mb_per_s"`
	Down    float64   `json:"down_mb_per_s"`
	Connect Quantiles `json:"connect_and_echo_a_byte"`
	Echoes  int       `json:"echoes_of_20_mb_equal_to_the_byte"`
	Echo    float64   `json:"echo_mb_per_s"`
	CPU     float64   `json:"cpu_ms_per_echo"`
}

const (
	forwardBytes = 1_000_000_000
	echoBytes    = 20_000_000
	echoes       = 100
	echoesAtOnce = 8
)

// The ports at which test/target listens.
const (
	echoPort = 7001 + iota
	countPort
	sourcePort
)

// forward measures connections to the servers of test/target in a pod.
func (n *node) forward(ctx context.Context) (r ForwardReport, err error) {
	p, err := n.target(ctx)
	if err != nil {
		return r, err
	}
	f, err := n.forwardPorts(ctx, p, echoPort, countPort, sourcePort)
	if err != nil {
		return r, err
	}
	if r.Up, err = f.up(); err != nil {
		return r, fmt.Errorf("up: %w", err)
	}
	if r.Down, err = f.down(); err != nil {
		return r, fmt.Errorf("down: %w", err)
	}
	if r.Connect, err = f.connects(); err != nil {
		return r, fmt.Errorf("connect: %w", err)
	}
	if err := f.echoes(&r); err != nil {
		return r, fmt.Errorf("echo: %w", err)
	}
	return r, errors.Join(f.end(), n.remove(ctx, p))
}

// target starts a pod of servers and waits until they listen.
func (n *node) target(ctx context.Context) (*pod, error) {
	path := n.path("target")
	build := exec.CommandContext(ctx, "go", "build", "-o", path, "./test/target")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build of the servers: %w: %s", err, out)
	}
	p := n.newPod("forward")
	if err := n.runPod(ctx, p); err != nil {
		return nil, err
	}
	created, err := n.pods.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: p.id, SandboxConfig: p.config, Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "c0"}, Image: &runtime.ImageSpec{Image: n.image}, LogPath: "forward.log",
			Mounts: []*runtime.Mount{{HostPath: path, ContainerPath: "/target", Readonly: true}},
			Command: []string{
				"/target", fmt.Sprint("echo@127.0.0.1:", echoPort), fmt.Sprint("count@127.0.0.1:", countPort), fmt.Sprint("source@127.0.0.1:", sourcePort),
			},
		},
	})
	if err != nil {
		return nil, err
	}
	p.containers = append(p.containers, created.ContainerId)
	if err := n.start(ctx, p); err != nil {
		return nil, err
	}
	for {
		if text, err := os.ReadFile(n.path("logs/forward.log")); err != nil || bytes.Contains(text, []byte(" ready\n")) {
			return p, err
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// forwarding are ports of this machine that lead to a pod's.
type forwarding struct {
	local map[int]string // addresses by the pod's port
	end   func() error
}

func (n *node) forwardPorts(ctx context.Context, p *pod, ports ...int) (*forwarding, error) {
	resp, err := n.pods.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: p.id})
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(resp.Url)
	if err != nil {
		return nil, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		return nil, err
	}
	var wanted []string
	for _, port := range ports {
		wanted = append(wanted, fmt.Sprint("0:", port))
	}
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	client, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, wanted, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		return nil, err
	}
	go func() { ended <- client.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		return nil, err
	}
	f := &forwarding{local: map[int]string{}, end: func() error {
		close(stop)
		return <-ended
	}}
	forwarded, err := client.GetPorts()
	for _, port := range forwarded {
		f.local[int(port.Remote)] = fmt.Sprint("127.0.0.1:", port.Local)
	}
	return f, err
}

func (f *forwarding) dial(port int) (*net.TCPConn, error) {
	c, err := net.Dial("tcp", f.local[port])
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// up sends, and returns the rate in MB/s.
func (f *forwarding) up() (float64, error) {
	c, err := f.dial(countPort)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	begin := time.Now()
	data := make([]byte, 1_000_000)
	for range forwardBytes / len(data) {
		if _, err := c.Write(data); err != nil {
			return 0, err
		}
	}
	if err := c.CloseWrite(); err != nil {
		return 0, err
	}
	count, err := io.ReadAll(c)
	if err == nil && string(count) != fmt.Sprint(forwardBytes) {
		err = fmt.Errorf("%s bytes of %d arrived", count, forwardBytes)
	}
	return forwardBytes / 1e6 / time.Since(begin).Seconds(), err
}

// down receives, and returns the rate in MB/s.
func (f *forwarding) down() (float64, error) {
	c, err := f.dial(sourcePort)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	begin := time.Now()
	_, err = io.CopyN(struct{ io.Writer }{io.Discard}, c, forwardBytes)
	return forwardBytes / 1e6 / time.Since(begin).Seconds(), err
}

// connects measures new connections, one after the other.
func (f *forwarding) connects() (Quantiles, error) {
	watch := newStopwatch()
	for range echoes {
		err := watch.time("connect", func() error {
			c, err := f.dial(echoPort)
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.Write([]byte{1}); err != nil {
				return err
			}
			_, err = io.ReadFull(c, make([]byte, 1))
			return err
		})
		if err != nil {
			return Quantiles{}, err
		}
	}
	return watch.calls()["connect"], nil
}

// echoes sends random data on many connections and compares what comes back.
func (f *forwarding) echoes(r *ForwardReport) error {
	data := make([]byte, echoBytes)
	rand.Read(data)
	begin, before := time.Now(), busy()
	var g errgroup.Group
	g.SetLimit(echoesAtOnce)
	for range echoes {
		g.Go(func() error {
			c, err := f.dial(echoPort)
			if err != nil {
				return err
			}
			defer c.Close()
			go func() {
				_, _ = c.Write(data)
				_ = c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err == nil && !bytes.Equal(got, data) {
				err = fmt.Errorf("%d bytes of %d came back, or others", len(got), len(data))
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	r.Echoes, r.Echo = echoes, echoes*echoBytes/1e6/time.Since(begin).Seconds()
	r.CPU = (busy() - before) / echoes
	return nil
}
