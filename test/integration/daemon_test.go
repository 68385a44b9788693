package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	cri "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"

	"github.com/runscd/runscd/test/isolate"
)

// patience is how long a test waits for what should happen soon, and is only
// used up when it does not.
const patience = 30 * time.Second

// noSleep is for the environment of programs that report data races: otherwise such
// a process is there for a second after its end.
const noSleep = "GORACE=atexit_sleep_ms=0"

// daemon is one runscd with its own directories.
type daemon struct {
	dir    string // short: the paths of sockets are limited
	cgroup string // parent of the cgroups of its pods
	subnet int    // of its CNI network: 10.86.<subnet>.0/24
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended

	service *service // what systemd is to it

	conn   *grpc.ClientConn
	raw    runtime.RuntimeServiceClient
	pods   internalapi.RuntimeService // the kubelet's client, as the next
	images internalapi.ImageManagerService

	image string   // the id of busybox
	held  []string // what the daemon had open when it was idle
	layer int      // how many snapshots the images have
	disk  string   // a mount of the test's own among the daemon's; see onDisk
}

var subnets atomic.Int32

// noNetwork are settings for tests that are not about the network.
const noNetwork = "network = {mode = 'none'}\n"

// newDaemon starts a daemon with the given settings beyond the directories, and
// pulls busybox. When the test ends it removes all pods and checks that nothing
// is left.
func newDaemon(t *testing.T, settings string) *daemon {
	t.Helper()
	t.Parallel()
	dir, err := os.MkdirTemp("/tmp", "r")
	check(t, err)
	d := &daemon{dir: dir, cgroup: "/runscd-test" + filepath.Base(dir), subnet: int(subnets.Add(1))}
	check(t, makeCgroup(d.cgroup))
	check(t, os.MkdirAll(d.path("conf.toml.d"), 0o755))
	d.write(t, "conf.toml", fmt.Sprintf(`
root = %q
state = %q
[log]
level = "debug"
[cgroup]
driver = "cgroupfs"
[runtime]
path = %q
[network]
conf_dir = %q
bin_dirs = ["/usr/lib/cni"]
[image]
certs_dir = ""
`, d.path("l"), d.path("s"), os.Getenv("RUNSCD_RUNSC"), d.path("cni")))
	d.write(t, "conf.toml.d/10.toml", settings)
	d.service = newService(t, d.path("notify"))
	t.Cleanup(func() { d.end(t) })
	d.start(t)
	d.image, err = d.images.PullImage(ctx(t), &runtime.ImageSpec{Image: busybox}, nil, nil)
	check(t, err)
	// filepath-securejoin keeps a procfs of its own, once it has been used.
	d.held = append(d.open(t), "/")
	d.layer = len(d.snapshots())
	return d
}

func (d *daemon) path(name string) string { return filepath.Join(d.dir, name) }

func (d *daemon) write(t *testing.T, name, content string) {
	t.Helper()
	check(t, os.WriteFile(d.path(name), []byte(content), 0o644))
}

// start starts the daemon and waits until it says that it is ready.
func (d *daemon) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(d.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	check(t, err)
	defer log.Close()
	cmd, err := d.service.start(log, runscd, "serve", "--config", d.path("conf.toml"))
	check(t, err)
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	d.cmd, d.exited = cmd, exited
	d.service.waitFor(t, "READY=1", exited)
	d.connect(t)
}

func (d *daemon) connect(t *testing.T) {
	t.Helper()
	endpoint := "unix://" + d.path("s/runscd.sock")
	var err error
	d.conn, err = grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20))) // as the kubelet
	check(t, err)
	d.raw = runtime.NewRuntimeServiceClient(d.conn)
	_, err = d.raw.Version(ctx(t), &runtime.VersionRequest{}) // connects
	check(t, err)
	d.pods, err = cri.NewRemoteRuntimeServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(2 * time.Minute).Build(ctx(t))
	check(t, err)
	d.images, err = cri.NewRemoteImageServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(2 * time.Minute).Build(ctx(t))
	check(t, err)
}

// stop ends the daemon by a signal.
func (d *daemon) stop(t *testing.T, sig syscall.Signal) {
	t.Helper()
	check(t, d.cmd.Process.Signal(sig))
	select {
	case <-d.exited:
	case <-time.After(patience):
		t.Errorf("daemon survives %v", sig)
		_ = d.cmd.Process.Kill()
		<-d.exited
	}
	d.disconnect(t)
}

func (d *daemon) disconnect(t *testing.T) {
	t.Helper()
	check(t, errors.Join(d.conn.Close(), d.pods.Close(ctx(t)), d.images.Close(ctx(t))))
}

// end removes all pods and the daemon, and looks for what they left.
func (d *daemon) end(t *testing.T) {
	defer d.clear(t)
	defer d.service.close()
	if d.cmd == nil {
		return
	}
	if t.Failed() {
		_ = d.cmd.Process.Kill()
		<-d.exited
		return
	}
	pods, err := d.pods.ListPodSandbox(ctx(t), nil)
	check(t, err)
	for _, p := range pods {
		check(t, d.pods.RemovePodSandbox(ctx(t), p.Id))
	}
	eventually(t, "nothing is left behind", func() error { return d.leftovers(t) })
	t.Log("leaks found: 0")
	d.stop(t, unix.SIGQUIT) // prints all goroutines
	d.checkLog(t)
}

// clear removes all that is there of the daemon, whatever has happened, and shows
// its log if the test has failed.
func (d *daemon) clear(t *testing.T) {
	if t.Failed() {
		log, _ := os.ReadFile(d.path("log"))
		t.Logf("log of the daemon:\n%s", log)
	}
	eventually(t, "all processes end", func() error {
		left := d.processes()
		for _, line := range left {
			pid := 0
			_, _ = fmt.Sscan(line, &pid)
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if len(left) > 0 {
			return fmt.Errorf("%q", left)
		}
		return nil
	})
	check(t, isolate.UnmountBelow(d.dir))
	check(t, os.RemoveAll(d.dir))
	removeCgroup(d.cgroup)
}

// checkLog looks for crashes, data races, and goroutines that work for a pod
// when there is none.
func (d *daemon) checkLog(t *testing.T) {
	text, err := os.ReadFile(d.path("log"))
	check(t, err)
	log, dump, ok := strings.Cut(string(text), "SIGQUIT: quit")
	if !ok {
		t.Error("the daemon did not print its goroutines")
	}
	for _, bad := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
		if strings.Contains(log, bad) {
			t.Errorf("log of the daemon has %q", bad)
		}
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, "level=warn") || strings.Contains(line, "level=error") {
			t.Log(line) // with -v
		}
	}
	for g := range strings.SplitSeq(dump, "\n\n") {
		for _, pkg := range []string{"pod", "proc", "runsc", "stdio", "network"} {
			if strings.Contains(g, "/internal/"+pkg+".") {
				t.Errorf("a goroutine is left:\n%s", g)
				break
			}
		}
	}
}

// ctx is for calls of the kubelet's client: it keeps that from logging.
func ctx(t *testing.T) context.Context {
	return klog.NewContext(context.WithoutCancel(t.Context()), logr.Discard())
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until try succeeds.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}
