package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/test/registry/loopback"
)

// node is a daemon on directories of its own, with a network and an image.
type node struct {
	dir    string
	runsc  string
	daemon *exec.Cmd
	conn   *grpc.ClientConn
	pods   runtime.RuntimeServiceClient
	image  string // id
}

const networkConf = `{"cniVersion":"1.0.0","name":"bench","plugins":[
{"type":"bridge","bridge":"bench0","isGateway":true,"ipMasq":false,
 "ipam":{"type":"host-local","dataDir":"%s","ranges":[[{"subnet":"10.199.0.0/16"}]]}},
{"type":"portmap","capabilities":{"portMappings":true}}]}`

func startNode(ctx context.Context, bin string) (_ *node, err error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	n := &node{dir: dir, runsc: filepath.Join(bin, "runsc")}
	defer func() {
		if err != nil {
			n.stop()
		}
	}()
	settings := fmt.Sprintf("root = %q\nstate = %q\n[log]\nlevel = 'warn'\n[network]\nconf_dir = %q\n",
		n.path("root"), n.path("state"), n.path("net.d"))
	if err := errors.Join(
		os.Mkdir(n.path("net.d"), 0o755), os.Mkdir(n.path("logs"), 0o755),
		os.WriteFile(n.path("runscd.toml"), []byte(settings), 0o644),
		os.WriteFile(n.path("net.d/bench.conflist"), fmt.Appendf(nil, networkConf, n.path("ipam")), 0o644),
	); err != nil {
		return nil, err
	}
	if err := n.startDaemon(); err != nil {
		return nil, err
	}
	n.conn, err = grpc.NewClient("unix://"+n.path("state/runscd.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	n.pods = runtime.NewRuntimeServiceClient(n.conn)
	if _, err := n.pods.Version(ctx, &runtime.VersionRequest{}, grpc.WaitForReady(true)); err != nil {
		return nil, err
	}
	return n, n.pull(ctx)
}

// startDaemon starts the daemon and waits for nothing.
func (n *node) startDaemon() error {
	n.daemon = exec.Command(filepath.Join(filepath.Dir(n.runsc), "runscd"), "serve", "--config", n.path("runscd.toml"))
	n.daemon.Stderr = os.Stderr
	return n.daemon.Start()
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

// pull gets the image from a registry on loopback.
func (n *node) pull(ctx context.Context) error {
	img, err := loopback.Busybox(loopback.Config())
	if err != nil {
		return err
	}
	registry := loopback.New(loopback.Options{})
	defer registry.Close()
	ref, err := registry.Put("busybox:latest", img)
	if err != nil {
		return err
	}
	pulled, err := runtime.NewImageServiceClient(n.conn).PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		return err
	}
	n.image = pulled.ImageRef
	return nil
}

// stop removes all pods, ends the daemon and removes its directories.
func (n *node) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if n.conn != nil {
		list, err := n.pods.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
		for _, p := range list.GetItems() {
			_, rerr := n.pods.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.Id})
			err = errors.Join(err, rerr)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench: removing pods:", err)
		}
		n.conn.Close()
	}
	if n.daemon != nil && n.daemon.Process != nil {
		_ = n.daemon.Process.Signal(unix.SIGTERM)
		_ = n.daemon.Wait()
	}
	// runsc leaves this one for the next sandbox.
	_ = unix.Unmount(n.path("state/null-netns"), unix.MNT_DETACH)
	if err := os.RemoveAll(n.dir); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

// pod is a pod of some containers.
type pod struct {
	config     *runtime.PodSandboxConfig
	mounts     []*runtime.Mount // of each container
	id         string
	containers []string
	configs    []*runtime.ContainerConfig
}

func (n *node) newPod(name string) *pod {
	return &pod{config: &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		Hostname: strings.ReplaceAll(name, "_", "-"), LogDirectory: n.path("logs"),
	}}
}

func (n *node) runPod(ctx context.Context, p *pod) error {
	r, err := n.pods.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: p.config})
	p.id = r.GetPodSandboxId()
	return err
}

func (n *node) create(ctx context.Context, p *pod, command ...string) error {
	name := fmt.Sprint("c", len(p.containers))
	config := &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name}, Image: &runtime.ImageSpec{Image: n.image},
		Command: command, Mounts: p.mounts, LogPath: p.config.Metadata.Name + "-" + name + ".log",
	}
	r, err := n.pods.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: config})
	p.containers, p.configs = append(p.containers, r.GetContainerId()), append(p.configs, config)
	return err
}

func (n *node) start(ctx context.Context, p *pod) error {
	_, err := n.pods.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: p.containers[len(p.containers)-1]})
	return err
}

func (n *node) execTrue(ctx context.Context, p *pod) error { return n.execIn(ctx, p.containers[0]) }

func (n *node) execIn(ctx context.Context, container string) error {
	r, err := n.pods.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: container, Cmd: []string{"true"}})
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("exec: exit code %d", r.ExitCode)
	}
	return err
}

func (n *node) remove(ctx context.Context, p *pod) error {
	_, err := n.pods.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.id})
	if err == nil {
		_, err = n.pods.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id})
	}
	return err
}

// sleeper starts a pod of some containers that do nothing.
func (n *node) sleeper(ctx context.Context, name string, containers int) (*pod, error) {
	p := n.newPod(name)
	if err := n.runPod(ctx, p); err != nil {
		return nil, err
	}
	for range containers {
		if err := n.create(ctx, p, "sleep", "1000000"); err != nil {
			return nil, err
		}
		if err := n.start(ctx, p); err != nil {
			return nil, err
		}
	}
	return p, nil
}
