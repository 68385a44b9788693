package pod

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/proc"
	"github.com/runscd/runscd/test/fakerunsc"
)

func isFault(err error) bool { return errors.Is(err, errFault) }

func isAny(err error) bool { return err != nil }

// hide moves a directory of records away and returns the function that brings
// it back: nothing can be saved in the meantime.
func (n *node) hide(kind string) (back func()) {
	n.t.Helper()
	dir := filepath.Join(n.root, kind)
	n.must(os.Rename(dir, dir+".hidden"))
	return func() { n.must(os.Rename(dir+".hidden", dir)) }
}

func TestAPodThatFailsLeavesNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(n *node, r *runtime.RunPodSandboxRequest) (repair func())
		kind    func(error) bool
		text    string
	}{
		"unknown handler": {func(_ *node, r *runtime.RunPodSandboxRequest) func() { r.RuntimeHandler = "kata"; return nil }, errdefs.IsNotFound, `runtime_handler "kata"`},
		"handler that is not usable": {func(n *node, _ *runtime.RunPodSandboxRequest) func() {
			n.Handlers["runsc"].unusable = errFault
			return nil
		}, isFault, ""},
		"no network":         {func(n *node, _ *runtime.RunPodSandboxRequest) func() { n.network.statusErr = errFault; return nil }, isFault, "network not ready: "},
		"network that fails": {func(n *node, _ *runtime.RunPodSandboxRequest) func() { n.network.addErr = errFault; return nil }, isFault, ""},
		"no record":          {func(n *node, _ *runtime.RunPodSandboxRequest) func() { return n.hide("pods") }, isAny, "no such file"},
		"no second record": {func(n *node, _ *runtime.RunPodSandboxRequest) func() {
			n.network.onAdd = func() { n.hide("pods") }
			return nil
		}, isAny, "no such file"},
		"creation that fails": {func(n *node, _ *runtime.RunPodSandboxRequest) func() {
			n.Fail("create", "no space left\nEOF")
			return nil
		}, isAny, "sandbox creation: no space left"},
		"creation that dies first": {func(n *node, _ *runtime.RunPodSandboxRequest) func() { n.Fault("create", fakerunsc.Die); return nil }, isAny, "137"},
		"creation that dies before it has kept a state": {func(n *node, _ *runtime.RunPodSandboxRequest) func() {
			n.Fault("create", fakerunsc.DieBeforeState)
			return nil
		}, isAny, "137"},
		"creation that dies last": {func(n *node, _ *runtime.RunPodSandboxRequest) func() {
			n.Fault("create", fakerunsc.DieBeforePID)
			return nil
		}, isAny, "137"},
		"start that fails": {func(n *node, _ *runtime.RunPodSandboxRequest) func() { n.Fail("start", "no such device"); return nil }, isAny, "sandbox start: no such device"},
		"start that dies":  {func(n *node, _ *runtime.RunPodSandboxRequest) func() { n.Fault("start", fakerunsc.Die); return nil }, isAny, "137"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			req := n.podRequest("p")
			repair := tt.prepare(n, req)
			_, err := n.RunPod(t.Context(), req)
			n.is(err, tt.kind, tt.text)
			if repair != nil {
				repair()
			}
			n.nothing()
		})
	}
}

func TestAContainerThatFailsLeavesNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(n *node, r *runtime.CreateContainerRequest) (repair func())
		kind    func(error) bool
		text    string
	}{
		"no pod": {func(_ *node, r *runtime.CreateContainerRequest) func() { r.PodSandboxId = "zz"; return nil }, errdefs.IsNotFound, `pod sandbox "zz"`},
		"stopped pod": {func(n *node, r *runtime.CreateContainerRequest) func() {
			n.must(n.StopPod(n.t.Context(), r.PodSandboxId))
			return nil
		}, errdefs.IsFailedPrecondition, "stopped, not running"},
		"no image":    {func(_ *node, r *runtime.CreateContainerRequest) func() { r.Config.Image.Image = "none"; return nil }, errdefs.IsNotFound, `image "none"`},
		"log path":    {func(_ *node, r *runtime.CreateContainerRequest) func() { r.Config.LogPath = "../c.log"; return nil }, errdefs.IsInvalidArgument, `log_path "../c.log"`},
		"stop signal": {func(n *node, _ *runtime.CreateContainerRequest) func() { n.images.stopSignal = "SIGNONE"; return nil }, errdefs.IsInvalidArgument, "SIGNONE"},
		"no record":   {func(n *node, _ *runtime.CreateContainerRequest) func() { return n.hide("containers") }, isAny, "no such file"},
		"no second record": {func(n *node, _ *runtime.CreateContainerRequest) func() {
			n.images.onMount = func() { n.hide("containers") }
			return nil
		}, isAny, "no such file"},
		"no root file system": {func(n *node, _ *runtime.CreateContainerRequest) func() { n.images.mountErr = errFault; return nil }, isFault, ""},
		"no image of a volume": {func(_ *node, r *runtime.CreateContainerRequest) func() {
			r.Config.Mounts = []*runtime.Mount{{ContainerPath: "/v", Readonly: true, Image: &runtime.ImageSpec{Image: "none"}}}
			return nil
		}, errdefs.IsNotFound, `ImageVolumeMountFailed: mounts[0] "/v": image "none"`},
		"no path in a volume": {func(_ *node, r *runtime.CreateContainerRequest) func() {
			r.Config.Mounts = []*runtime.Mount{
				{ContainerPath: "/v", Readonly: true, Image: &runtime.ImageSpec{Image: "busybox"}},
				{ContainerPath: "/w", Readonly: true, Image: &runtime.ImageSpec{Image: "busybox"}, ImageSubPath: "none"},
			}
			return nil
		}, errdefs.IsInvalidArgument, `ImageVolumeMountFailed: mounts[1] "/w": image "busybox": image_sub_path "none"`},
		"pod that stops meanwhile": {func(n *node, r *runtime.CreateContainerRequest) func() {
			n.images.onMount = func() { n.must(n.StopPod(n.t.Context(), r.PodSandboxId)) }
			return nil
		}, errdefs.IsFailedPrecondition, "stopped meanwhile"},
		"pod that is removed meanwhile": {func(n *node, r *runtime.CreateContainerRequest) func() {
			n.images.onMount = func() { n.must(n.RemovePod(n.t.Context(), r.PodSandboxId)) }
			return nil
		}, errdefs.IsFailedPrecondition, "stopped meanwhile"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			id := n.runPod("p")
			before := n.leftovers()
			req := n.containerRequest(id, "c", "sleep")
			repair := tt.prepare(n, req)
			_, err := n.CreateContainer(t.Context(), req)
			n.is(err, tt.kind, tt.text)
			if repair != nil {
				repair()
			}
			n.nothing(before...)
		})
	}
}

func TestAPodThatCannotBeUndoneCanBeRemoved(t *testing.T) {
	n := newNode(t)
	n.network.addErr, n.network.delErr = errFault, errFault
	_, err := n.RunPod(t.Context(), n.podRequest("p"))
	n.is(err, isFault, "undoing pod sandbox")
	pods := n.Pods()
	if len(pods) != 1 || pods[0].State() != proc.Stopped {
		t.Fatalf("pods %v", pods)
	}
	n.network.delErr = nil
	n.must(n.RemovePod(t.Context(), pods[0].ID))
	n.nothing()
}

func TestAContainerThatCannotBeUndoneCanBeRemoved(t *testing.T) {
	n := newNode(t)
	id := n.runPod("p")
	before := n.leftovers()
	n.images.mountErr, n.images.unmountErr = errFault, errFault
	_, err := n.CreateContainer(t.Context(), n.containerRequest(id, "c", "sleep"))
	n.is(err, isFault, "undoing container")
	containers := n.Containers()
	if len(containers) != 1 {
		t.Fatalf("containers %v", containers)
	}
	n.ended(containers[0], 128, "StartError")
	n.images.unmountErr = nil
	n.must(n.RemoveContainer(t.Context(), containers[0].ID))
	n.nothing(before...)
}

func TestAHostNetworkPodHasNoNetworkOfItsOwn(t *testing.T) {
	n := newNode(t)
	n.network.statusErr, n.network.addErr, n.network.delErr = errFault, errFault, errFault
	req := n.podRequest("p")
	req.Config.Linux.SecurityContext = &runtime.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE},
	}
	id, err := n.RunPod(t.Context(), req)
	n.must(err)
	if left := entries(filepath.Join(n.state, "netns")); len(left) > 0 {
		t.Errorf("network namespaces %v", left)
	}
	// Both have the flag: a start without it would take the host's addresses.
	hosts := 0
	for _, call := range n.Calls() {
		if strings.Contains(call, " --network=host ") && (strings.Contains(call, " create ") || strings.Contains(call, " start ")) {
			hosts++
		}
	}
	if hosts != 2 {
		t.Errorf("%d of create and start with the host's network among %q", hosts, n.Calls())
	}
	n.must(n.RemovePod(t.Context(), id))
	n.nothing()
}

func isGone(err error) bool { return errors.Is(err, context.Canceled) }

func TestTheResultIsKeptForAClientThatTimedOut(t *testing.T) {
	n := newNode(t)
	adding, add := make(chan struct{}), make(chan struct{})
	n.network.onAdd = func() { close(adding); <-add }
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := n.RunPod(ctx, n.podRequest("p"))
		first <- err
	}()
	<-adding
	other := n.podRequest("p")
	other.Config.Labels = map[string]string{"a": "b"}
	_, err := n.RunPod(t.Context(), other)
	n.is(err, errdefs.IsAlreadyExists, "by a creation that is not over")
	cancel()
	n.is(<-first, isGone, "default/p/uid-p/0")
	close(add)
	id := n.runPod("p")
	if pods := n.Pods(); len(pods) != 1 || pods[0].ID != id {
		t.Errorf("pods %v, want %s only", pods, id)
	}
	_, err = n.RunPod(t.Context(), n.podRequest("p"))
	n.is(err, errdefs.IsAlreadyExists, "for "+id)
	_, err = n.RunPod(t.Context(), other)
	n.is(err, errdefs.IsAlreadyExists, "for "+id)
	n.network.onAdd = nil
	again := n.podRequest("p")
	again.Config.Metadata.Attempt = 1
	_, err = n.RunPod(t.Context(), again)
	n.must(err)
}

func TestTheContainerIsKeptForAClientThatTimedOut(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("p")
	mounting, mount := make(chan struct{}), make(chan struct{})
	n.images.onMount = func() { close(mounting); <-mount }
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := n.CreateContainer(ctx, n.containerRequest(pod, "c", "sleep"))
		first <- err
	}()
	<-mounting
	cancel()
	n.is(<-first, isGone, pod+"/c/0")
	close(mount)
	c := n.create(pod, "c", "sleep")
	if got := n.Containers(); len(got) != 1 || got[0] != c {
		t.Errorf("containers %v", got)
	}
	_, err := n.CreateContainer(t.Context(), n.containerRequest(pod, "c", "sleep"))
	n.is(err, errdefs.IsAlreadyExists, "for "+c.ID)
}

func TestAResultThatIsReadyIsNotTakenByAClientThatHasGone(t *testing.T) {
	names := newNames()
	request := &runtime.RunPodSandboxRequest{RuntimeHandler: "a"}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	names.keep("name", "id", request)
	for range 20 {
		if _, err := names.create(gone, "name", request, nil); !isGone(err) {
			t.Fatalf("error %v", err)
		}
	}
	if id, err := names.create(t.Context(), "name", request, nil); id != "id" || err != nil {
		t.Errorf("id %q, %v", id, err)
	}
	names.release("name", "other")
	if _, err := names.create(t.Context(), "name", request, nil); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a taken result: %v", err)
	}
	names.release("name", "id")
	if _, err := names.create(t.Context(), "name", request, func(context.Context) (string, error) { return "", errFault }); !isFault(err) {
		t.Errorf("error %v", err)
	}
	id, err := names.create(t.Context(), "name", request, func(context.Context) (string, error) { return "new", nil })
	if id != "new" || err != nil {
		t.Errorf("after a failure: id %q, %v", id, err)
	}
}

func TestAHandlerWithoutUserNamespaces(t *testing.T) {
	n := newNode(t)
	n.Check(t.Context())
	if !n.Handlers["runsc"].UserNamespaces() {
		t.Error("no user namespaces where they work")
	}
	n.images.idMapErr = errFault
	n.Check(t.Context())
	if n.must(n.Ready()); n.Handlers["runsc"].UserNamespaces() {
		t.Error("user namespaces where ids cannot be shifted")
	}
	req := n.podRequest("p")
	ids := []*runtime.IDMapping{{HostId: 65536, Length: 65536}}
	req.Config.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{
		UsernsOptions: &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids},
	}}}
	_, err := n.RunPod(t.Context(), req)
	n.is(err, errdefs.IsNotImplemented, "userns_options")
	n.nothing()
}

func TestCheckOfAHandler(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(n *node)
		want    string
	}{
		"usable":            {func(*node) {}, ""},
		"version":           {func(n *node) { n.Fault("version", fakerunsc.Die) }, "version of "},
		"creation":          {func(n *node) { n.Fail("create", "no KVM here") }, "sandbox creation: no KVM here"},
		"start":             {func(n *node) { n.Fail("start", "no memory") }, "sandbox start: no memory"},
		"no control socket": {func(n *node) { n.Fault("rpc.ContainerRuntimeState", fakerunsc.Garbage) }, "control protocol: "},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			tt.prepare(n)
			n.Check(t.Context())
			err := n.Ready()
			switch {
			case tt.want == "" && (err != nil || n.Handlers["runsc"].Version != "fake"):
				t.Errorf("error %v, version %q", err, n.Handlers["runsc"].Version)
			case tt.want != "":
				n.is(err, isAny, tt.want)
				n.is(err, isAny, `runtime handler "runsc" with `+n.Path)
			}
			n.nothing()
		})
	}
}
