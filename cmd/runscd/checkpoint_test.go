package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/checkpoint"
	"github.com/runscd/runscd/internal/cri"
)

// fakeSaver is a daemon that saves and restores.
type fakeSaver struct {
	fakeCRI
	hold    chan struct{} // if not nil, a save waits for it
	saveErr error
	logs    string // directory of the pod's
	badName string // of the pod whose container does not start

	mu sync.Mutex
	// +checklocks:mu
	saved *runtime.CheckpointPodRequest
	// +checklocks:mu
	restored []*runtime.RestorePodRequest
	// +checklocks:mu
	calls []string
}

func (f *fakeSaver) note(call string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
}

func (f *fakeSaver) CheckpointPod(ctx context.Context, req *runtime.CheckpointPodRequest) (*runtime.CheckpointPodResponse, error) {
	if _, ok := ctx.Deadline(); !ok {
		return nil, errors.New("no deadline")
	}
	f.mu.Lock()
	f.saved = req
	f.mu.Unlock()
	if f.saveErr != nil {
		return nil, f.saveErr
	}
	if err := os.WriteFile(filepath.Join(req.OutputPath, "pages.img"), make([]byte, 2048), 0o600); err != nil {
		return nil, err
	}
	if f.hold != nil {
		<-f.hold
	}
	m := checkpoint.Manifest{
		Handler: "gvisor", Paused: 35 * time.Millisecond, Order: []string{"b", "a"},
		Pod: checkpoint.Object{Config: json.RawMessage(`{"metadata":{"name":"web","namespace":"shop","uid":"u1","attempt":2},"hostname":"web",
			"log_directory":"` + f.logs + `","port_mappings":[{"host_port":80}],"linux":{"cgroup_parent":"/kubepods/podu1"},
			"labels":{"app":"web","io.kubernetes.pod.name":"web","io.kubernetes.pod.uid":"u1"}}`)},
		Containers: map[string]checkpoint.Container{
			"a": {Object: checkpoint.Object{Config: json.RawMessage(`{"metadata":{"name":"a"},"log_path":"a/2.log"}`)}},
			"b": {Object: checkpoint.Object{Config: json.RawMessage(`{"metadata":{"name":"b"}}`)}},
		},
	}
	return &runtime.CheckpointPodResponse{}, m.Write(req.OutputPath, []string{"pages.img"})
}

func (f *fakeSaver) RestorePod(ctx context.Context, req *runtime.RestorePodRequest) (*runtime.RestorePodResponse, error) {
	if _, ok := ctx.Deadline(); !ok {
		return nil, errors.New("no deadline")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restored = append(f.restored, req)
	resp := &runtime.RestorePodResponse{PodSandboxId: "id-of-" + req.Config.Metadata.Name}
	for _, c := range req.ContainerConfigs {
		resp.RestoredContainers = append(resp.RestoredContainers, &runtime.RestoredContainer{
			Name: c.Metadata.Name, ContainerId: req.Config.Metadata.Name + "/" + c.Metadata.Name,
		})
	}
	return resp, nil
}

func (f *fakeSaver) StartContainer(_ context.Context, req *runtime.StartContainerRequest) (*runtime.StartContainerResponse, error) {
	f.note("start " + req.ContainerId)
	if f.badName != "" && strings.HasPrefix(req.ContainerId, f.badName) {
		return nil, errors.New("no such luck")
	}
	return &runtime.StartContainerResponse{}, nil
}

func (f *fakeSaver) RemovePodSandbox(_ context.Context, req *runtime.RemovePodSandboxRequest) (*runtime.RemovePodSandboxResponse, error) {
	f.note("remove " + req.PodSandboxId)
	return &runtime.RemovePodSandboxResponse{}, nil
}

// shop is a node with a pod of two running containers, and others.
func shop(t *testing.T) *fakeSaver {
	pod := func(id, name string, state runtime.PodSandboxState) *runtime.PodSandbox {
		return &runtime.PodSandbox{Id: id, Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "shop"}, State: state}
	}
	container := func(id string, state runtime.ContainerState) *runtime.Container {
		return &runtime.Container{Id: id, PodSandboxId: "1234", Metadata: &runtime.ContainerMetadata{Name: id}, State: state}
	}
	ready := runtime.PodSandboxState_SANDBOX_READY
	return &fakeSaver{logs: filepath.Join(t.TempDir(), "shop_web_u1"), fakeCRI: fakeCRI{
		pods: []*runtime.PodSandbox{
			pod("1234", "web", ready), pod("1299", "web", runtime.PodSandboxState_SANDBOX_NOTREADY), pod("5678", "twin", ready), pod("5679", "twin", ready),
		},
		containers: []*runtime.Container{
			container("a", runtime.ContainerState_CONTAINER_RUNNING), container("b", runtime.ContainerState_CONTAINER_RUNNING),
			container("init", runtime.ContainerState_CONTAINER_EXITED),
		},
	}}
}

func TestCheckpointCommand(t *testing.T) {
	f := shop(t)
	socket := serveFake(t, f)
	dir := filepath.Join(t.TempDir(), "new")
	out, err := execute(t, "checkpoint", "--socket", socket, "-o", "compression=none", "shop/web", dir)
	if err != nil || !strings.Contains(out, dir+": ") || !strings.Contains(out, "paused for 35ms") {
		t.Errorf("%q, %v", out, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.saved.PodSandboxId != "1234" || !slices.Equal(f.saved.ContainerIds, []string{"a", "b"}) ||
		f.saved.OutputPath != dir || f.saved.Options["compression"] != "none" {
		t.Errorf("asked for %v", f.saved)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestCheckpointCommandThatFails(t *testing.T) {
	f := shop(t)
	f.saveErr = errors.New("no such luck")
	socket := serveFake(t, f)
	made, there := filepath.Join(t.TempDir(), "new"), t.TempDir()
	for pod, test := range map[string]struct{ dir, text string }{
		"web":      {made, "no such luck"},
		"shop/web": {there, "no such luck"},
		"none":     {made, "none that runs"},
		"1299":     {made, "none that runs"},
		"twin":     {made, "5678, 5679"},
	} {
		if out, err := execute(t, "checkpoint", "--socket", socket, pod, test.dir); err == nil || !strings.Contains(err.Error(), test.text) || out != "" {
			t.Errorf("%s: %q, %v", pod, out, err)
		}
	}
	if _, err := os.Stat(made); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
	if _, err := os.Stat(there); err != nil {
		t.Errorf("a directory that was there is not: %v", err)
	}
}

func TestCheckpointCommandShowsProgress(t *testing.T) {
	f := shop(t)
	f.hold = make(chan struct{})
	socket := serveFake(t, f)
	s := newSaver(new(string))
	s.socket, s.timeout, s.every = socket, time.Minute, time.Millisecond
	lines := make(written)
	ended := make(chan error, 1)
	cmd := checkpointCommand(new(string))
	cmd.SetContext(t.Context())
	cmd.SetOut(new(bytes.Buffer))
	cmd.SetErr(lines)
	dir := t.TempDir()
	go func() {
		ended <- s.connected(cmd, func(ctx context.Context) error {
			_, err := s.checkpoint(ctx, "web", dir)
			return err
		})
	}()
	for line := range lines {
		if !strings.HasPrefix(line, "saving shop/web: ") {
			t.Errorf("shown: %q", line)
		}
		if strings.Contains(line, "2.0 KiB written") {
			break
		}
	}
	close(f.hold)
	for {
		select {
		case <-lines:
			continue
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			return
		}
	}
}

func TestRestoreCommand(t *testing.T) {
	f := shop(t)
	socket := serveFake(t, f)
	dir := t.TempDir()
	if _, err := execute(t, "checkpoint", "--socket", socket, "web", dir); err != nil {
		t.Fatal(err)
	}
	out, err := execute(t, "restore", "--socket", socket, "--name", "again", dir)
	if err != nil || out != "shop/again id-of-again\n" {
		t.Errorf("%q, %v", out, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.calls, []string{"start again/b", "start again/a"}) || len(f.restored) != 1 {
		t.Fatalf("calls %q, restored %v", f.calls, f.restored)
	}
	req := f.restored[0]
	pod := req.Config
	if req.CheckpointPath != dir || req.RuntimeHandler != "gvisor" || req.ContainerConfigs[1].LogPath != "a/2.log" {
		t.Errorf("asked for %v", req)
	}
	if pod.Metadata.Uid == "u1" || pod.Metadata.Attempt != 0 || pod.Hostname != "again" || len(pod.PortMappings) > 0 || pod.Linux.CgroupParent != "" ||
		pod.LogDirectory != filepath.Dir(f.logs)+"/shop_again_again" {
		t.Errorf("pod %v", pod)
	}
	if _, err := os.Stat(filepath.Join(pod.LogDirectory, "a")); err != nil {
		t.Error(err)
	}
	if pod.Labels["app"] != "web" || pod.Labels[labelName] != "again" || pod.Labels[labelUID] != pod.Metadata.Uid {
		t.Errorf("labels %v", pod.Labels)
	}
}

func TestRestoreCommandThatFails(t *testing.T) {
	f := shop(t)
	socket := serveFake(t, f)
	if _, err := execute(t, "restore", "--socket", socket, t.TempDir()); err == nil || !strings.Contains(err.Error(), "no checkpoint") {
		t.Errorf("empty directory: %v", err)
	}
	dir := t.TempDir()
	if _, err := execute(t, "checkpoint", "--socket", socket, "web", dir); err != nil {
		t.Fatal(err)
	}
	f.badName = "bad"
	if out, err := execute(t, "restore", "--socket", socket, "--name", "bad", dir); err == nil || !strings.Contains(err.Error(), "no such luck") || out != "" {
		t.Errorf("%q, %v", out, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.calls, []string{"start bad/b", "remove id-of-bad"}) {
		t.Errorf("calls %q", f.calls)
	}
}

func TestCloneCommand(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	f := shop(t)
	socket := serveFake(t, f)
	out, err := execute(t, "clone", "--socket", socket, "-n", "12", "web")
	if err != nil || strings.Count(out, "\n") != 12 || strings.Count(out, "shop/web-") != 12 {
		t.Errorf("%q, %v", out, err)
	}
	if left, err := os.ReadDir(temp); len(left) > 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	names := map[string]bool{}
	for _, r := range f.restored {
		names[r.Config.Metadata.Name] = true
	}
	if len(names) != 12 || len(f.calls) != 24 {
		t.Errorf("pods %v, calls %v", names, f.calls)
	}
}

// TestCloneCommandIsAllOrNone has the copies not start.
func TestCloneCommandIsAllOrNone(t *testing.T) {
	f := shop(t)
	f.badName = "web-"
	socket := serveFake(t, f)
	if out, err := execute(t, "clone", "--socket", socket, "-n", "3", "web"); err == nil || out != "" {
		t.Errorf("%q, %v", out, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.restored {
		if !slices.Contains(f.calls, "remove id-of-"+r.Config.Metadata.Name) {
			t.Errorf("%s is left: %q", r.Config.Metadata.Name, f.calls)
		}
	}
}

func TestPauseCommand(t *testing.T) {
	f := shop(t)
	socket := serveFake(t, f)
	for _, args := range [][]string{{"pause", "shop/web"}, {"resume", "123"}} {
		if out, err := execute(t, append(args, "--socket", socket)...); err != nil || out != "" {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
	if _, err := execute(t, "pause", "--socket", socket, "1299"); err == nil || !strings.Contains(err.Error(), "none that runs") {
		t.Errorf("a pod that is stopped: %v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.calls, []string{cri.PauseMethod + " 1234", cri.ResumeMethod + " 1234"}) {
		t.Errorf("calls %q", f.calls)
	}
}
