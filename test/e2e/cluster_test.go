package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/runscd/runscd/test/isolate"
	"github.com/runscd/runscd/test/registry/loopback"
)

const (
	nodeName = "127.0.0.1" // the kubelet then needs no other address
	server   = "https://127.0.0.1:6443"
	kubelet  = "https://127.0.0.1:10250" // which the API's proxy refuses to reach
	token    = "e2e"
	gates    = "ContainerStopSignals=true"
)

// patience is how long a behaviour is waited for, and is only used up when it
// does not show.
const patience = 90 * time.Second

// cluster is a node with its API.
type cluster struct {
	dir    string // short: the paths of sockets are limited
	logs   string // stays
	cgroup string // parent of the cgroups of all pods
	http   *http.Client

	runscd, kubelet *process

	image   string // busybox
	signal  string // an image that is stopped by SIGUSR1
	private string // an image of a registry that asks for user and password
	health  string // a server of gRPC's health protocol
}

// process is a part of the cluster.
type process struct {
	*exec.Cmd
	exited chan struct{}
}

func startCluster(t *testing.T) *cluster {
	dir, err := os.MkdirTemp("/tmp", "e2e")
	check(t, err)
	c := &cluster{
		dir: dir, logs: filepath.Join(os.Getenv(kubernetes), "../e2e"), cgroup: "/runscd-" + filepath.Base(dir),
		http: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}},
	}
	t.Cleanup(func() { c.clear(t) })
	check(t, os.Chmod(dir, 0o755)) // for the users of a user namespace
	check(t, os.MkdirAll(c.logs, 0o755))
	check(t, c.hideHost())
	check(t, makeCgroup(c.cgroup))
	c.serveImages(t)
	check(t, c.configure())
	c.start(t, "etcd", c.kube("etcd"), "--data-dir", c.path("etcd"), "--unsafe-no-fsync", "--log-level=warn")
	c.start(t, "kube-apiserver", c.kube("kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
		"--cert-dir", c.path("certs"), "--token-auth-file", c.path("tokens"), "--authorization-mode=AlwaysAllow",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file", c.path("key"),
		"--service-account-signing-key-file", c.path("key"), "--disable-admission-plugins=ServiceAccount",
		"--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.96.0.0/24", "--allow-privileged",
		"--kubelet-preferred-address-types=Hostname,InternalIP", "--feature-gates="+gates)
	c.startRunscd(t)
	eventually(t, "the API is ready", func() error { _, err := c.get("/readyz"); return err })
	c.startKubelet(t)
	eventually(t, "the node is ready", func() error { return c.nodeReady() })
	return c
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) kube(name string) string { return filepath.Join(os.Getenv(kubernetes), name) }

// hideHost puts files and directories of our own where the kubelet would change
// those of the host.
func (c *cluster) hideHost() error {
	if err := os.Mkdir(c.path("varlog"), 0o755); err != nil {
		return err
	}
	if err := unix.Mount(c.path("varlog"), "/var/log", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for name, value := range map[string]string{ // what the kubelet wants, and otherwise sets
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		file := c.path(filepath.Base(name))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, "/proc/sys/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("/proc/sys/%s: %w", name, err)
		}
	}
	return nil
}

// serveImages makes the images of the pods.
func (c *cluster) serveImages(t *testing.T) {
	put := func(r *loopback.Registry, name string, config v1.Config, more ...v1.Layer) string {
		img, err := loopback.Busybox(config, more...)
		check(t, err)
		ref, err := r.Put(name, img)
		check(t, err)
		return ref
	}
	open := loopback.Start(t, loopback.Options{})
	c.image = put(open, "busybox:1", loopback.Config())
	config := loopback.Config()
	config.StopSignal = "SIGUSR1"
	c.signal = put(open, "signal:1", config)
	c.health = put(open, "health:1", v1.Config{Entrypoint: []string{"/health"}}, c.healthServer(t))
	config = loopback.Config()
	config.Labels = map[string]string{"private": "yes"} // an image that the node does not have
	c.private = put(loopback.Start(t, loopback.Options{Username: "user", Password: "secret"}), "private:1", config)
}

// healthServer is a layer with the program of the directory health.
func (c *cluster) healthServer(t *testing.T) v1.Layer {
	build := exec.Command("go", "build", "-o", c.path("health"), "./health")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := os.ReadFile(c.path("health"))
	check(t, err)
	layer, err := loopback.Layer(false, loopback.File("health", 0o755, program))
	check(t, err)
	return layer
}

// configure writes the files that the parts are started with.
func (c *cluster) configure() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	files := map[string]string{
		"key":    string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		"tokens": token + ",e2e,e2e,system:masters\n",
		"kubeconfig": fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: e2e, cluster: {server: "%s", insecure-skip-tls-verify: true}}]
users: [{name: e2e, user: {token: %s}}]
contexts: [{name: e2e, context: {cluster: e2e, user: e2e}}]
current-context: e2e
`, server, token),
		"resolv.conf": "nameserver 127.0.0.1\n",
		"runscd.toml": fmt.Sprintf(`
root = %q
state = %q
[log]
level = "debug"
[cgroup]
driver = "cgroupfs"
[kubelet]
root = %q
[runtime]
path = %q
[network]
conf_dir = %q
`, c.path("l"), c.path("s"), c.path("k"), bin("runsc"), c.path("cni")),
		"cni/e2e.conflist": fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "e2e", "plugins": [
{"type": "bridge", "bridge": "e2e0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
 "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.86.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
{"type": "portmap", "capabilities": {"portMappings": true}}]}`, c.path("leases")),
		"kubelet.yaml": fmt.Sprintf(kubeletConfig, c.dir, c.cgroup),
	}
	for _, dir := range []string{"cni", "manifests", "podlogs", "plugins"} {
		if err := os.Mkdir(c.path(dir), 0o755); err != nil {
			return err
		}
	}
	for name, content := range files {
		if err := os.WriteFile(c.path(name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// kubeletConfig has the cluster's directory and cgroup left out.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://%[1]s/s/runscd.sock
staticPodPath: %[1]s/manifests
podLogsDir: %[1]s/podlogs
volumePluginDir: %[1]s/plugins
resolvConf: %[1]s/resolv.conf
clusterDNS: [192.0.2.53]
cgroupRoot: %[2]s
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
serializeImagePulls: false
featureGates: {ContainerStopSignals: true, PodAndContainerStatsFromCRI: true}
# As little as possible of the host's fill level, and shorter waits than usual.
evictionHard: {memory.available: 10Mi, nodefs.available: 1%%, imagefs.available: 1%%, nodefs.inodesFree: 0%%, imagefs.inodesFree: 0%%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
syncFrequency: 5s
fileCheckFrequency: 2s
nodeStatusUpdateFrequency: 5s
crashLoopBackOff: {maxContainerRestartPeriod: 2s}
containerLogMaxSize: 16Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 3s
eventRecordQPS: 0
`

// start starts a part. Its output is appended to a log of its name.
func (c *cluster) start(t *testing.T, name, path string, args ...string) *process {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(c.logs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	check(t, err)
	defer log.Close()
	p := &process{exec.Command(path, args...), make(chan struct{})}
	p.Stdout, p.Stderr, p.Dir = log, log, c.dir
	check(t, p.Start())
	go func() {
		_ = p.Wait()
		close(p.exited)
	}()
	return p
}

func (c *cluster) startRunscd(t *testing.T) {
	t.Helper()
	c.runscd = c.start(t, "runscd", bin("runscd"), "serve", "--config", c.path("runscd.toml"))
}

func (c *cluster) startKubelet(t *testing.T) {
	t.Helper()
	c.kubelet = c.start(t, "kubelet", c.kube("kubelet"), "--config", c.path("kubelet.yaml"), "--kubeconfig", c.path("kubeconfig"),
		"--root-dir", c.path("k"), "--cert-dir", c.path("pki"), "--hostname-override", nodeName)
}

// end ends a process by a signal.
func (p *process) end(sig os.Signal) {
	_ = p.Process.Signal(sig)
	select {
	case <-p.exited:
	case <-time.After(30 * time.Second):
		_ = p.Process.Kill()
		<-p.exited
	}
}

// get asks the API.
func (c *cluster) get(path string) ([]byte, error) { return c.ask(http.MethodGet, server+path) }

func (c *cluster) ask(method, url string) ([]byte, error) {
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	return body, err
}

func (c *cluster) nodeReady() error {
	body, err := c.get("/api/v1/nodes/" + nodeName)
	if err != nil {
		return err
	}
	var n corev1.Node
	if err := json.Unmarshal(body, &n); err != nil {
		return err
	}
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("conditions %v", n.Status.Conditions)
}

// clear ends what runs and removes what is there, whatever has happened.
func (c *cluster) clear(t *testing.T) {
	for _, p := range []*process{c.kubelet, c.runscd} {
		if p != nil {
			p.end(unix.SIGTERM)
		}
	}
	eventually(t, "the pods' processes end", func() error { return killAll(c.cgroup) })
	check(t, isolate.UnmountBelow(c.dir))
	check(t, os.RemoveAll(c.dir))
	eventually(t, "the cgroups go", func() error { return removeCgroup(c.cgroup) })
}
