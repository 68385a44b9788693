package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/image"
	"github.com/runscd/runscd/internal/monitor"
	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/pod"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/stats"
	"github.com/runscd/runscd/test/fakerunsc"
)

// reaper is the one of this process; see fakerunsc.Main.
var reaper *monitor.Monitor

func TestMain(m *testing.M) {
	reaper = fakerunsc.Main()
	logrus.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// busybox is the one image, without files.
type busybox struct{}

func (busybox) Get(context.Context, string) (*image.Image, error) {
	return &image.Image{
		ID: "sha256:1234", RepoDigests: []string{"example.com/busybox@sha256:5678"},
		Spec: ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"sleep"}}},
	}, nil
}
func (busybox) Mount(context.Context, string, string, string, *image.IDMap) error { return nil }
func (busybox) CheckIDMap(*os.File) error                                         { return nil }
func (busybox) MountVolume(context.Context, string, string, string, *image.IDMap) error {
	return nil
}
func (busybox) Unmount(context.Context, string, string) error { return nil }
func (busybox) Snapshots(context.Context) ([]string, error)   { return nil, nil }
func (busybox) WritableUsage(context.Context, string) (image.Usage, error) {
	return image.Usage{Bytes: 4096, Inodes: 2}, nil
}
func (busybox) Root() string { return "/" }

// down is a network that is not there yet.
type down struct{ network.None }

func (down) Status(context.Context) error { return errors.New("no CNI configuration") }

// server is a RuntimeService behind its socket.
type server struct {
	runtime.RuntimeServiceClient
	pods *pod.Registry
	t    *testing.T
	logs string
}

func newServer(t *testing.T) *server {
	t.Helper()
	state := t.TempDir()
	pods, err := pod.Open(t.Context(), pod.Options{
		Root: t.TempDir(), State: state, Default: "runsc", Images: busybox{}, Network: network.None{}, Monitor: reaper, CgroupRoot: cgroups(t),
		Handlers: map[string]*pod.Handler{"runsc": {
			Runtime: runsc.New(runsc.Options{Path: fakerunsc.Install(t).Path, Root: pod.RunscRoot(state, "runsc")}),
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{RuntimeServiceClient: client(t, NewRuntimeServer(pods, Options{Version: "1.2.3", Sessions: fakeSessions{}})), pods: pods, t: t, logs: t.TempDir()}
	t.Cleanup(func() {
		for _, p := range pods.Pods() {
			if err := pods.RemovePod(context.Background(), p.ID); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

// cgroups makes cgroups of the host, with the one that the sandboxes are in.
func cgroups(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	c, err := stats.CgroupOf(root, os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	path := c.Path()
	for name, text := range map[string]string{
		filepath.Join(c.Memory, "memory.current"): "1000", filepath.Join(c.Memory, "cpu.stat"): "usage_usec 50000\n", // version 2
		filepath.Join(c.Memory, "memory.usage_in_bytes"): "1000", filepath.Join(root, "cpuacct", path, "cpuacct.usage"): "50000000",
		filepath.Join(c.Memory, "memory.max"): "max", filepath.Join(c.Memory, "cpu.max"): "max 100000",
		filepath.Join(c.Memory, "memory.limit_in_bytes"):     "9223372036854771712",
		filepath.Join(root, "cpu", path, "cpu.cfs_quota_us"): "-1", filepath.Join(root, "cpu", path, "cpu.cfs_period_us"): "100000",
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// client serves at a socket and connects to it.
func client(t *testing.T, service runtime.RuntimeServiceServer) runtime.RuntimeServiceClient {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(ServerOptions()...)
	runtime.RegisterRuntimeServiceServer(g, service)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return runtime.NewRuntimeServiceClient(conn)
}

func podConfig(name string, labels map[string]string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname: name, Labels: labels,
	}
}

// pod runs a pod.
func (s *server) pod(name string, labels map[string]string) string {
	s.t.Helper()
	c := podConfig(name, labels)
	c.LogDirectory = s.logs
	resp, err := s.RunPodSandbox(s.t.Context(), &runtime.RunPodSandboxRequest{Config: c})
	s.must(err)
	return resp.PodSandboxId
}

// container creates a container.
func (s *server) container(pod, name string, command ...string) string {
	s.t.Helper()
	resp, err := s.CreateContainer(s.t.Context(), &runtime.CreateContainerRequest{PodSandboxId: pod, Config: &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name}, Command: command, LogPath: name + ".log",
		Image:  &runtime.ImageSpec{Image: "sha256:1234", UserSpecifiedImage: "busybox"},
		Labels: map[string]string{"name": name}, Annotations: map[string]string{"note": "x"},
		Mounts: []*runtime.Mount{{ContainerPath: "/dev/termination-log", HostPath: "/tmp/log"}},
	}})
	s.must(err)
	return resp.ContainerId
}

func (s *server) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// text is a message with its ids and times made equal for all runs.
func (s *server) text(m proto.Message, ids map[string]string) string {
	s.t.Helper()
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	s.must(err)
	var v any // for its form, which protojson varies
	s.must(json.Unmarshal(data, &v))
	data, err = json.MarshalIndent(v, "", " ")
	s.must(err)
	text := regexp.MustCompile(`"1\d{18}"`).ReplaceAllString(string(data), `"TIME"`)
	for id, name := range ids {
		text = strings.ReplaceAll(text, id, name)
	}
	return strings.ReplaceAll(text, s.logs, "LOGS")
}

func (s *server) golden(name string, m proto.Message, ids map[string]string) {
	s.t.Helper()
	got := s.text(m, ids) + "\n"
	path := filepath.Join("testdata", name+".json")
	if os.Getenv("UPDATE") != "" {
		s.must(os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	s.must(err)
	if got != string(want) {
		s.t.Errorf("%s is\n%s\nwant\n%s", path, got, want)
	}
}

func TestStatusOfAContainer(t *testing.T) {
	s, ctx := newServer(t), t.Context()
	p := s.pod("web", nil)
	status := func(id, name string) {
		t.Helper()
		resp, err := s.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
		s.must(err)
		s.golden(name, resp, map[string]string{p: "POD", id: "CONTAINER"})
	}
	c := s.container(p, "main", "ignore-term")
	status(c, "created")
	_, err := s.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c})
	s.must(err)
	status(c, "running")
	_, err = s.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c})
	s.must(err)
	status(c, "exited")

	failed := s.container(p, "failed", "/nothing")
	_, err = s.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: failed})
	if grpcstatus.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "/nothing") {
		t.Errorf("start of a command that is not there: %v", err)
	}
	status(failed, "start-error")
}

func TestStatusOfAPod(t *testing.T) {
	s, ctx := newServer(t), t.Context()
	p := s.pod("web", map[string]string{"app": "web"})
	c := s.container(p, "main", "sleep")
	_, err := s.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c})
	s.must(err)
	status := func(name string) {
		t.Helper()
		resp, err := s.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p})
		s.must(err)
		s.golden(name, resp, map[string]string{p: "POD", c: "CONTAINER"})
	}
	status("pod")
	verbose, err := s.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p, Verbose: true})
	s.must(err)
	var d pod.Description
	s.must(json.Unmarshal([]byte(verbose.Info["info"]), &d))
	if d.PID == 0 || d.State != "running" || d.Handler != "runsc" || d.Spec == nil || d.NetNS == "" {
		t.Errorf("verbose status %+v", d)
	}
	_, err = s.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p})
	s.must(err)
	status("pod-stopped")
}

func TestListsAndTheirFilters(t *testing.T) {
	s, ctx := newServer(t), t.Context()
	a, b := s.pod("a", map[string]string{"app": "web", "tier": "1"}), s.pod("b", map[string]string{"app": "web"})
	_, err := s.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: b})
	s.must(err)
	names := map[string]string{a: "a", b: "b"}
	for _, name := range []string{"c", "d"} {
		names[s.container(a, name, "sleep")] = name
	}
	id := func(name string) string {
		for id, n := range names {
			if n == name {
				return id
			}
		}
		return ""
	}
	_, err = s.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: id("c")})
	s.must(err)
	type podFilter = runtime.PodSandboxFilter
	for want, f := range map[string]*podFilter{
		"a b":  nil,
		"a  b": {},
		"a":    {Id: a},
		" a":   {Id: a[:12]},
		"a ":   {State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY}},
		"b":    {State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_NOTREADY}},
		"a b ": {LabelSelector: map[string]string{"app": "web"}},
		"a   ": {LabelSelector: map[string]string{"app": "web", "tier": "1"}},
		"":     {LabelSelector: map[string]string{"app": "other"}},
		" ":    {Id: a, State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_NOTREADY}},
	} {
		resp, err := s.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{Filter: f})
		s.must(err)
		var got []string
		for _, p := range resp.Items {
			got = append(got, names[p.Id])
		}
		slices.Sort(got)
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%v: %v, want %q", f, got, want)
		}
	}
	type containerFilter = runtime.ContainerFilter
	for want, f := range map[string]*containerFilter{
		"c d":  nil,
		"c":    {Id: id("c")},
		"c d ": {PodSandboxId: a},
		"":     {PodSandboxId: b},
		" c":   {State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING}},
		"d":    {State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_CREATED}},
		" d":   {LabelSelector: map[string]string{"name": "d"}},
		" ":    {LabelSelector: map[string]string{"name": ""}},
	} {
		resp, err := s.ListContainers(ctx, &runtime.ListContainersRequest{Filter: f})
		s.must(err)
		var got []string
		for _, c := range resp.Containers {
			got = append(got, names[c.Id])
		}
		slices.Sort(got)
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%v: %v, want %q", f, got, want)
		}
	}
}

func TestStreamedLists(t *testing.T) {
	s, ctx := newServer(t), t.Context()
	p := s.pod("p", nil)
	want := map[string]bool{}
	for i := range partSize + 2 {
		want[s.container(p, fmt.Sprint("c", i), "sleep")] = true
	}
	stream, err := s.StreamContainers(ctx, &runtime.StreamContainersRequest{})
	s.must(err)
	var parts []int
	for {
		part, err := stream.Recv()
		if err == io.EOF {
			break
		}
		s.must(err)
		parts = append(parts, len(part.Containers))
		for _, c := range part.Containers {
			if !want[c.Id] {
				t.Errorf("%s is not there, or there twice", c.Id)
			}
			delete(want, c.Id)
		}
	}
	if !slices.Equal(parts, []int{partSize, 2}) || len(want) > 0 {
		t.Errorf("parts of %v, missing %v", parts, want)
	}
	pods, err := s.StreamPodSandboxes(ctx, &runtime.StreamPodSandboxesRequest{Filter: &runtime.PodSandboxFilter{Id: "none"}})
	s.must(err)
	if part, err := pods.Recv(); err != io.EOF {
		t.Errorf("an empty list has the part %v, %v", part, err)
	}
}

func TestBadRequests(t *testing.T) {
	s, ctx := newServer(t), t.Context()
	p := s.pod("p", nil)
	big := map[string]string{"k": strings.Repeat("x", maxMetadata)}
	run := func(change func(*runtime.RunPodSandboxRequest)) error {
		r := &runtime.RunPodSandboxRequest{Config: podConfig("new", nil)}
		change(r)
		_, err := s.RunPodSandbox(ctx, r)
		return err
	}
	create := func(change func(*runtime.CreateContainerRequest)) error {
		r := &runtime.CreateContainerRequest{PodSandboxId: p, Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "c"}, Image: &runtime.ImageSpec{Image: "busybox"}, LogPath: "c.log",
		}}
		change(r)
		_, err := s.CreateContainer(ctx, r)
		return err
	}
	for want, err := range map[string]error{
		"config: required":                                run(func(r *runtime.RunPodSandboxRequest) { r.Config = nil }),
		"config.metadata: required":                       run(func(r *runtime.RunPodSandboxRequest) { r.Config.Metadata = nil }),
		"config.metadata.name: required":                  run(func(r *runtime.RunPodSandboxRequest) { r.Config.Metadata.Name = "" }),
		"config.metadata.namespace: required":             run(func(r *runtime.RunPodSandboxRequest) { r.Config.Metadata.Namespace = "" }),
		"config.metadata.uid: required":                   run(func(r *runtime.RunPodSandboxRequest) { r.Config.Metadata.Uid = "" }),
		"config.labels: 1048577 bytes, more than 1048576": run(func(r *runtime.RunPodSandboxRequest) { r.Config.Labels = big }),
		"config.annotations: 1048577 bytes":               run(func(r *runtime.RunPodSandboxRequest) { r.Config.Annotations = big }),
		"config.linux.security_context.run_as_group: 7 without run_as_user": run(func(r *runtime.RunPodSandboxRequest) {
			r.Config.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{RunAsGroup: &runtime.Int64Value{Value: 7}}}
		}),
		"pod_sandbox_id: required":        create(func(r *runtime.CreateContainerRequest) { r.PodSandboxId = "" }),
		" config: required":               create(func(r *runtime.CreateContainerRequest) { r.Config = nil }),
		" config.metadata: required":      create(func(r *runtime.CreateContainerRequest) { r.Config.Metadata = nil }),
		" config.metadata.name: required": create(func(r *runtime.CreateContainerRequest) { r.Config.Metadata.Name = "" }),
		"config.image.image: required":    create(func(r *runtime.CreateContainerRequest) { r.Config.Image = nil }),
		" config.labels: 1048577 bytes":   create(func(r *runtime.CreateContainerRequest) { r.Config.Labels = big }),
		" pod_sandbox_id: required":       second(s.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{})),
		"  pod_sandbox_id: required":      second(s.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{})),
		"container_id: required":          second(s.StartContainer(ctx, &runtime.StartContainerRequest{})),
		" container_id: required":         second(s.StopContainer(ctx, &runtime.StopContainerRequest{})),
		"  container_id: required":        second(s.RemoveContainer(ctx, &runtime.RemoveContainerRequest{})),
		"   container_id: required":       second(s.ExecSync(ctx, &runtime.ExecSyncRequest{Cmd: []string{"x"}})),
		"    container_id: required":      second(s.ReopenContainerLog(ctx, &runtime.ReopenContainerLogRequest{})),
		"cmd: required":                   second(s.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: "c"})),
		"timeout: -1 seconds":             second(s.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: "c", Timeout: -1})),
		" timeout: -2 seconds":            second(s.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: "c", Cmd: []string{"x"}, Timeout: -2})),
	} {
		if grpcstatus.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("error %v, want InvalidArgument with %q", err, want)
		}
	}
	for want, err := range map[string]error{
		`runtime_handler "kata"`: run(func(r *runtime.RunPodSandboxRequest) { r.RuntimeHandler = "kata" }),
		`pod sandbox "zz"`:       create(func(r *runtime.CreateContainerRequest) { r.PodSandboxId = "zz" }),
		`container "zz"`:         second(s.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: "zz"})),
		` container "zz"`:        second(s.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: "zz"})),
		` pod sandbox "zz"`:      second(s.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: "zz"})),
		`container ""`:           second(s.ContainerStatus(ctx, &runtime.ContainerStatusRequest{})),
	} {
		if grpcstatus.Code(err) != codes.NotFound || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("error %v, want NotFound with %q", err, want)
		}
	}
	for name, err := range map[string]error{
		"StopPodSandbox":   second(s.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: "zz"})),
		"RemovePodSandbox": second(s.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: "zz"})),
		"StopContainer":    second(s.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: "zz"})),
		"RemoveContainer":  second(s.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: "zz"})),
	} {
		if err != nil {
			t.Errorf("%s of what is not there: %v", name, err)
		}
	}
	if pods := s.pods.Pods(); len(pods) != 1 || len(s.pods.Containers()) != 0 {
		t.Errorf("pods %v, containers %v", pods, s.pods.Containers())
	}
}

func second[T any](_ T, err error) error { return err }

func TestExecSync(t *testing.T) {
	s, ctx := newServer(t), t.Context()
	c := s.container(s.pod("p", nil), "c", "sleep")
	_, err := s.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c})
	s.must(err)
	resp, err := s.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c, Cmd: []string{"print", "hello"}, Timeout: 3600})
	if err != nil || string(resp.Stdout) != "hello\n" || resp.ExitCode != 0 {
		t.Errorf("%v, %v", resp, err)
	}
	_, err = s.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c, Cmd: []string{"sleep"}, Timeout: 1})
	if grpcstatus.Code(err) != codes.DeadlineExceeded {
		t.Errorf("timeout: %v", err)
	}
}

func TestStatusOfTheRuntime(t *testing.T) {
	s, ctx := newServer(t), t.Context()
	version, err := s.Version(ctx, &runtime.VersionRequest{})
	s.must(err)
	s.golden("version", version, nil)
	st, err := s.Status(ctx, &runtime.StatusRequest{})
	s.must(err)
	s.golden("status", st, nil)
	s.pods.Network = down{}
	st, err = s.Status(ctx, &runtime.StatusRequest{})
	s.must(err)
	s.golden("status-no-network", st, nil)
	for systemd, want := range map[bool]runtime.CgroupDriver{false: runtime.CgroupDriver_CGROUPFS, true: runtime.CgroupDriver_SYSTEMD} {
		s.pods.SystemdCgroup = systemd
		config, err := s.RuntimeConfig(ctx, &runtime.RuntimeConfigRequest{})
		s.must(err)
		if d := config.Linux.CgroupDriver; d != want {
			t.Errorf("cgroup driver %s, systemd %t", d, systemd)
		}
	}
	_, err = s.UpdateRuntimeConfig(ctx, &runtime.UpdateRuntimeConfigRequest{})
	s.must(err)
}
