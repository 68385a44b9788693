package integration

import (
	"os"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestVersionStatusConfig(t *testing.T) {
	d := newDaemon(t, noNetwork+"[runtime.handlers.debug]\nnet_raw = true\n")
	v, err := d.pods.Version(ctx(t), "v1")
	check(t, err)
	if v.RuntimeName != "runscd" || v.Version != "0.1.0" || v.RuntimeApiVersion != "v1" || v.RuntimeVersion == "" {
		t.Errorf("version: %v", v)
	}
	resp, err := d.pods.Status(ctx(t), true)
	check(t, err)
	for _, c := range resp.Status.Conditions {
		if !c.Status {
			t.Errorf("condition: %v", c)
		}
	}
	var handlers []string
	for _, h := range resp.RuntimeHandlers {
		handlers = append(handlers, h.Name)
	}
	slices.Sort(handlers)
	if !slices.Equal(handlers, []string{"", "debug", "runsc"}) {
		t.Errorf("handlers: %q", handlers)
	}
	isJSON(t, resp.Info)
	config, err := d.pods.RuntimeConfig(ctx(t))
	check(t, err)
	if config.Linux.GetCgroupDriver() != runtime.CgroupDriver_CGROUPFS {
		t.Errorf("runtime config: %v", config)
	}
	check(t, d.pods.UpdateRuntimeConfig(ctx(t), &runtime.RuntimeConfig{NetworkConfig: &runtime.NetworkConfig{PodCidr: "10.0.0.0/24"}}))
}

func TestHandler(t *testing.T) {
	d := newDaemon(t, noNetwork+"[runtime.handlers.debug]\nnet_raw = true\n")
	id, err := d.pods.RunPodSandbox(ctx(t), d.podConfig(), "debug")
	check(t, err)
	resp, err := d.pods.PodSandboxStatus(ctx(t), id, false)
	check(t, err)
	if resp.Status.RuntimeHandler != "debug" {
		t.Errorf("handler: %q", resp.Status.RuntimeHandler)
	}
	if id, err = d.pods.RunPodSandbox(ctx(t), d.podConfig(), ""); err != nil {
		t.Fatal(err)
	}
	if resp, err = d.pods.PodSandboxStatus(ctx(t), id, false); err != nil || resp.Status.RuntimeHandler != "" {
		t.Errorf("handler: %q, %v", resp.GetStatus().GetRuntimeHandler(), err)
	}
	_, err = d.pods.RunPodSandbox(ctx(t), d.podConfig(), "nosuch")
	if err == nil || !strings.Contains(err.Error(), `"nosuch"`) {
		t.Errorf("pod of an unknown handler: %v", err)
	}
}

// TestNotRunsc has a daemon with a binary that is no runsc: it says so, and
// images still work.
func TestNotRunsc(t *testing.T) {
	d := newDaemon(t, noNetwork+"[runtime]\npath = '/bin/true'\n")
	resp, err := d.pods.Status(ctx(t), false)
	check(t, err)
	if c := resp.Status.Conditions[0]; c.Type != runtime.RuntimeReady || c.Status || c.Reason == "" || !strings.Contains(c.Message, "/bin/true") {
		t.Errorf("condition: %v", c)
	}
	_, err = d.pods.RunPodSandbox(ctx(t), d.podConfig(), "")
	if err == nil || !strings.Contains(err.Error(), "/bin/true") {
		t.Errorf("pod: %v", err)
	}
	images, err := d.images.ListImages(ctx(t), nil)
	check(t, err)
	if len(images) != 1 {
		t.Errorf("images: %v", images)
	}
	check(t, d.images.RemoveImage(ctx(t), &runtime.ImageSpec{Image: busybox}))
	_, err = d.images.PullImage(ctx(t), &runtime.ImageSpec{Image: busybox}, nil, nil)
	check(t, err)
}

// TestSandboxCause has a sandbox fail, for a reason that only the sentry knows.
func TestSandboxCause(t *testing.T) {
	d := newDaemon(t, noNetwork)
	d.write(t, "s/broken", "not an image")
	check(t, os.Rename(d.path("s/broken"), d.path("s/pause.erofs")))
	_, err := d.pods.RunPodSandbox(ctx(t), d.podConfig(), "")
	if err == nil || !strings.Contains(err.Error(), "image size is too small") {
		t.Errorf("pod: %v", err)
	}
	check(t, d.leftovers(t))
}

// TestBadFlag has a handler with a flag that runsc does not know.
func TestBadFlag(t *testing.T) {
	d := newDaemon(t, noNetwork+"[runtime.handlers.bad]\nflags = {nonsense = 'true'}\n")
	_, err := d.pods.RunPodSandbox(ctx(t), d.podConfig(), "bad")
	if err == nil || !strings.Contains(err.Error(), `"bad"`) || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("pod: %v", err)
	}
	d.runPod(t)
}
