package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCheckpointConnections has connections to the outside, which a restored pod has
// lost, and within the pod, which it has kept.
func TestCheckpointConnections(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	p := d.runPod(t)
	server := p.run(t, "sleep 5000 | nc -l -p 9000")
	listener := p.run(t, "nc -ll -p 9001 -e cat")
	l, err := net.Listen("tcp", fmt.Sprintf("10.86.%d.1:0", d.subnet))
	check(t, err)
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	tick := "(while :; do echo tick; sleep 0.05; done) | nc "
	outside := p.run(t, tick+fmt.Sprintf("10.86.%d.1 %s; echo lost; sleep 1000", d.subnet, port))
	inside := p.run(t, tick+"127.0.0.1 9000")
	conn, err := l.Accept()
	check(t, err)
	lines := bufio.NewScanner(conn)
	server.waitFor(t, "tick\n")
	execs, cancel := context.WithCancel(ctx(t))
	running := make(chan error, 1)
	go func() {
		_, err := d.raw.ExecSync(execs, &runtime.ExecSyncRequest{ContainerId: server.id, Cmd: []string{"sleep", "1000"}})
		running <- err
	}()
	eventually(t, "the command runs", func() error {
		if out, _ := server.exec(t, "ps"); len(out) == 0 {
			return errors.New(out)
		}
		return nil
	})
	dir := p.save(t, nil, server, listener, outside, inside)
	for range 100 { // more than was on its way
		if !lines.Scan() {
			t.Fatalf("the connection is lost: %v", lines.Err())
		}
	}
	q, again := d.restore(t, restoreRequest(dir, server, listener, outside, inside))
	for _, c := range again {
		check(t, d.pods.StartContainer(ctx(t), c.id))
	}
	again[2].waitFor(t, "lost\n")
	echo, err := net.Dial("tcp", q.status(t).Network.GetIp()+":9001")
	check(t, err)
	defer echo.Close()
	_, err = echo.Write([]byte("hello\n"))
	check(t, err)
	if line, err := bufio.NewReader(echo).ReadString('\n'); line != "hello\n" {
		t.Errorf("the restored pod does not listen: %q, %v", line, err)
	}
	again[0].waitFor(t, "tick\n")
	if out, _ := again[0].exec(t, "ps | grep -c '[s]leep 1000'"); out != "0\n" {
		t.Errorf("the command of an exec is restored: %q", out)
	}
	select {
	case err := <-running:
		t.Errorf("the command of the exec has ended: %v", err)
	case <-time.After(0):
	}
	cancel()
	denied(t, <-running, codes.Canceled, "")
	check(t, d.pods.RemovePodSandbox(ctx(t), q.id))
}

// TestCheckpointHostNetwork has a pod with the host's network, whose sockets are lost.
func TestCheckpointHostNetwork(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	})
	// With a socket of the host's.
	c := p.run(t, "(sleep 5000 | nc -l -p 9321; echo lost; sleep 1000) & "+counting)
	c.waitFor(t, "3\n")
	eventually(t, "it listens", func() error {
		if out, code := c.exec(t, "pidof nc"); code != 0 {
			return errors.New(out)
		}
		return nil
	})
	dir := p.save(t, nil, c)
	_, again := d.restore(t, restoreRequest(dir, c))
	check(t, d.pods.StartContainer(ctx(t), again[0].id))
	again[0].waitFor(t, "5\n")
	again[0].waitFor(t, "connection abort") // what nc says of its socket
}

// TestCheckpointEmptyDir has volumes as the kubelet makes them: those in memory come back
// with what is in them, those on disk are what the new pod has.
func TestCheckpointEmptyDir(t *testing.T) {
	d := newDaemon(t, noNetwork)
	d.write(t, "conf.toml.d/20.toml", fmt.Sprintf("kubelet = {root = %q}\n", d.path("kubelet")))
	d.stop(t, unix.SIGTERM)
	d.start(t)
	config := d.podConfig()
	mounts := func(uid string, size int) []*runtime.Mount {
		return []*runtime.Mount{at("/memory", d.emptyDir(t, uid, "memory", size)), at("/disk", d.emptyDir(t, uid, "disk", 0))}
	}
	saved := mounts(config.Metadata.Uid, 8*mib)
	p := d.runPod(t, func(c *runtime.PodSandboxConfig) { c.Metadata.Uid = config.Metadata.Uid })
	c := p.run(t, "echo memory > /memory/f; echo disk > /disk/f; "+counting, func(c *runtime.ContainerConfig) { c.Mounts = saved })
	c.waitFor(t, "3\n")
	dir := p.save(t, nil, c)
	req := restoreRequest(dir, c)
	_, err := d.raw.RestorePod(soon(t), req)
	denied(t, err, codes.InvalidArgument, "memory0") // the new pod has no such volume
	other := restoreRequest(dir, c)
	other.ContainerConfigs[0].Mounts = mounts(other.Config.Metadata.Uid, 4*mib)
	_, err = d.raw.RestorePod(soon(t), other)
	denied(t, err, codes.InvalidArgument, "size=4194304")
	req.ContainerConfigs[0].Mounts = mounts(req.Config.Metadata.Uid, 8*mib)
	check(t, os.WriteFile(filepath.Join(req.ContainerConfigs[0].Mounts[1].HostPath, "f"), []byte("other\n"), 0o644))
	_, again := d.restore(t, req)
	check(t, d.pods.StartContainer(ctx(t), again[0].id))
	again[0].says(t, "cat /memory/f /disk/f", "memory\nother\n")
}

// TestCheckpointOpenFile has a file of the host open that is not there any more when the
// pod is restored. That pod ends, and the other runs on.
func TestCheckpointOpenFile(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	shared, elsewhere := t.TempDir(), t.TempDir()
	c := p.run(t, "exec 5>/shared/open; "+counting, share(shared))
	c.waitFor(t, "3\n")
	dir := p.save(t, nil, c)
	req := restoreRequest(dir, c)
	req.ContainerConfigs[0].Mounts[0].HostPath = elsewhere
	q, again := d.restore(t, req)
	if err := d.pods.StartContainer(ctx(t), again[0].id); err == nil || !strings.Contains(err.Error(), `failed to walk "open"`) {
		t.Errorf("start: %v", err)
	}
	eventually(t, "the pod ends", func() error {
		if s := q.status(t); s.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
			return errors.New(s.String())
		}
		return nil
	})
	check(t, d.pods.RemovePodSandbox(ctx(t), q.id))
	_, again = d.restore(t, restoreRequest(dir, c))
	check(t, d.pods.StartContainer(ctx(t), again[0].id))
	again[0].waitFor(t, "5\n")
}

// TestCheckpointUser has a pod with a user namespace, shared PIDs, and input.
func TestCheckpointUser(t *testing.T) {
	d := newDaemon(t, noNetwork)
	d.held = append(d.held, "anon_inode", "anon_inode") // see TestUserNamespace
	check(t, os.Chmod(d.dir, 0o711))
	p := d.runPod(t, func(c *runtime.PodSandboxConfig) {
		o := c.Linux.SecurityContext.NamespaceOptions
		ids := []*runtime.IDMapping{{HostId: 1 << 16, Length: 1 << 16}}
		o.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids}
		o.Pid = runtime.NamespaceMode_POD
	})
	a := p.run(t, counting, func(c *runtime.ContainerConfig) { c.Stdin = true })
	b := p.run(t, "cat /count; "+forever, func(c *runtime.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
	a.waitFor(t, "3\n")
	dir := p.save(t, map[string]string{"exclude-committed-zero-pages": "true"}, a, b)
	_, again := d.restore(t, restoreRequest(dir, b, a))
	for _, c := range again {
		check(t, d.pods.StartContainer(ctx(t), c.id))
	}
	again[1].waitFor(t, "5\n")
	check(t, d.pods.StopContainer(ctx(t), again[1].id, 0))
	if out, code := again[0].exec(t, "ls -ld /tmp"); code != 0 {
		t.Errorf("exec: %q", out)
	}
}

// TestCheckpointContainer saves a container as the kubelet's checkpoint API does, and
// restores a pod of what is in the archive.
func TestCheckpointContainer(t *testing.T) {
	d := newDaemon(t, noNetwork)
	p := d.runPod(t)
	p.run(t, "exit").ended(t)
	c := p.run(t, counting)
	c.waitFor(t, "3\n")
	dir := t.TempDir()
	location := filepath.Join(dir, "checkpoint.tar")
	check(t, d.pods.CheckpointContainer(ctx(t), &runtime.CheckpointContainerRequest{ContainerId: c.id, Location: location, Timeout: 60}))
	if left := names(dir); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
	err := d.pods.CheckpointContainer(ctx(t), &runtime.CheckpointContainerRequest{ContainerId: c.id, Location: location})
	denied(t, err, codes.AlreadyExists, location)
	check(t, exec.Command("tar", "-C", dir, "-xf", location).Run())
	var config struct{ ID, Name, RootfsImageRef string }
	data, err := os.ReadFile(filepath.Join(dir, "config.dump"))
	check(t, errors.Join(err, json.Unmarshal(data, &config)))
	if config.ID != c.id || config.Name != c.config.Metadata.Name || config.RootfsImageRef == "" {
		t.Errorf("config.dump: %s", data)
	}
	if _, err := os.Stat(filepath.Join(dir, "spec.dump")); err != nil {
		t.Error(err)
	}
	_, again := d.restore(t, restoreRequest(filepath.Join(dir, "checkpoint"), c))
	check(t, d.pods.StartContainer(ctx(t), again[0].id))
	again[0].waitFor(t, "5\n")
	other := p.run(t, forever)
	err = d.pods.CheckpointContainer(ctx(t), &runtime.CheckpointContainerRequest{ContainerId: c.id, Location: location + "2"})
	denied(t, err, codes.FailedPrecondition, other.id)
}
