package integration

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestUnusableRecords starts the daemon with records that are damaged, newer or of an
// earlier boot. Their pods are told to have ended, and the others do not notice.
func TestUnusableRecords(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	well := d.runPod(t).run(t, forever)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	check(t, err)
	type harm struct {
		what   func(record []byte) []byte
		code   int32 // of a container in the pod
		reason string
		goesOn bool // the sandbox does
	}
	harms := map[string]harm{
		"empty":     {func([]byte) []byte { return nil }, 255, "RecordUnusable", false},
		"truncated": {func(r []byte) []byte { return r[:len(r)-10] }, 255, "RecordUnusable", false},
		"newer":     {replaced(`"version":1,`, `"version":2,`), 255, "RecordUnusable", true},
		"boot":      {replaced(strings.TrimSpace(string(boot)), "of-the-day-before"), 137, "Error", false},
	}
	pods, containers := map[string]*pod{}, map[string]*container{}
	for name := range harms {
		pods[name] = d.runPod(t)
		containers[name] = pods[name].run(t, forever)
	}
	d.stop(t, unix.SIGKILL)
	for name, h := range harms {
		path := d.path("l/pods/" + pods[name].id + ".json")
		record, err := os.ReadFile(path)
		check(t, err)
		harmed := h.what(record)
		if bytes.Equal(harmed, record) {
			t.Errorf("%s: the record is as before", name)
		}
		check(t, os.WriteFile(path, harmed, 0o600))
	}
	d.start(t)
	for name, h := range harms {
		p, c := pods[name], containers[name]
		resp, err := d.pods.PodSandboxStatus(ctx(t), p.id, true)
		check(t, err)
		if resp.Status.State != runtime.PodSandboxState_SANDBOX_NOTREADY || !strings.Contains(fmt.Sprint(resp.Info), `"message":"`) {
			t.Errorf("%s: %v", name, resp)
		}
		if s := c.status(t); s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != h.code || s.Reason != h.reason || s.Message == "" {
			t.Errorf("%s: %v", name, s)
		}
		if alive := len(p.sandboxPIDs()) > 0; alive != h.goesOn {
			t.Errorf("%s: the sandbox runs: %v", name, alive)
		}
		if _, err := os.Stat(d.path("s/netns/" + p.id)); (err == nil) != h.goesOn {
			t.Errorf("%s: network namespace: %v", name, err)
		}
	}
	if got := d.addresses(); len(got) != 2*2 { // of the one that is well and the one that goes on
		t.Errorf("leases: %q", got)
	}
	well.says(t, "echo fine", "fine\n")
	check(t, d.pods.StopPodSandbox(ctx(t), pods["newer"].id))
	check(t, d.pods.RemoveContainer(ctx(t), containers["empty"].id))
	for _, p := range pods {
		check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
	}
}

func replaced(old, new string) func([]byte) []byte {
	return func(r []byte) []byte { return bytes.Replace(r, []byte(old), []byte(new), 1) }
}
