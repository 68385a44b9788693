package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// addSickPlugin adds a plugin to the end of the network's list, which fails at the
// commands of which there is a file in the directory sick.
func (d *daemon) addSickPlugin(t *testing.T) {
	t.Helper()
	check(t, errors.Join(os.Mkdir(d.path("bin"), 0o755), os.Mkdir(d.path("sick"), 0o755)))
	d.installSickPlugin(t)
	conf, err := os.ReadFile(d.path("cni/10.conflist"))
	check(t, err)
	d.write(t, "cni/10.conflist", strings.Replace(string(conf), `"type": "portmap"`, `"type": "sick"`, 1))
	d.write(t, "conf.toml.d/20.toml", fmt.Sprintf("network = {bin_dirs = ['/usr/lib/cni', %q]}\n", d.path("bin")))
	d.stop(t, unix.SIGTERM)
	d.start(t)
}

func (d *daemon) installSickPlugin(t *testing.T) {
	t.Helper()
	d.write(t, "bin/sick", fmt.Sprintf(`#!/bin/sh
case $CNI_COMMAND in VERSION)
	echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}'
	exit ;;
esac
input=$(cat)
if [ -e %s/$CNI_COMMAND ]; then
	echo '{"cniVersion": "1.0.0", "code": 11, "msg": "no such luck"}'
	exit 1
fi
[ $CNI_COMMAND != ADD ] || echo "$input" | sed 's/.*"prevResult":\(.*\),"type":.*/\1/'
`, d.path("sick")))
	check(t, os.Chmod(d.path("bin/sick"), 0o755))
}

// TestNetworkFaults has a plugin fail at one call or the other, or vanish.
func TestNetworkFaults(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	d.addSickPlugin(t)
	run := func() error { return errOf(d.pods.RunPodSandbox(ctx(t), d.podConfig(), "")) }
	sick := func(command string) { d.write(t, "sick/"+command, "") }
	well := func(command string) { check(t, os.Remove(d.path("sick/"+command))) }

	sick("ADD")
	refused(t, run(), codes.Unknown, "network ", "sick", "no such luck")
	eventually(t, "nothing is left behind", func() error { return d.leftovers(t) })

	// Also what the plugins before it have done is undone once it can be.
	sick("DEL")
	refused(t, run(), codes.Unknown, "no such luck")
	pods, err := d.pods.ListPodSandbox(ctx(t), nil)
	check(t, err)
	if len(pods) != 1 || pods[0].State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("pods: %v", pods)
	}
	well("DEL")
	well("ADD")
	for _, p := range pods {
		check(t, d.pods.RemovePodSandbox(ctx(t), p.Id))
	}
	eventually(t, "nothing is left behind", func() error { return d.leftovers(t) })

	p := d.runPod(t)
	c := p.run(t, forever)
	sick("DEL")
	for range 2 {
		err := d.pods.StopPodSandbox(ctx(t), p.id)
		refused(t, err, codes.Unknown, p.id, "network ", "sick", "no such luck")
	}
	if s := c.status(t); s.State != runtime.ContainerState_CONTAINER_EXITED {
		t.Errorf("status: %v", s)
	}
	if len(d.addresses()) != 2 {
		t.Errorf("leases: %q", d.addresses())
	}
	well("DEL")
	check(t, d.pods.StopPodSandbox(ctx(t), p.id))
	if len(d.addresses()) != 0 {
		t.Errorf("leases: %q", d.addresses())
	}
	check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
	eventually(t, "nothing is left behind", func() error { return d.leftovers(t) })

	// It never comes back: the pod can be removed. Its address is given back when
	// the plugin has come back after all.
	p = d.runPod(t)
	check(t, os.Remove(d.path("bin/sick")))
	refused(t, d.pods.StopPodSandbox(ctx(t), p.id), codes.Unknown, p.id, `plugin "sick"`)
	refused(t, run(), codes.FailedPrecondition, `plugin "sick"`, filepath.Dir(d.path("bin/sick")))
	check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
	check(t, unfound(d.pods.PodSandboxStatus(ctx(t), p.id, false)))
	if len(d.addresses()) != 2 {
		t.Errorf("leases: %q", d.addresses())
	}
	d.installSickPlugin(t)
	d.stop(t, unix.SIGTERM)
	d.start(t)
	eventually(t, "nothing is left behind", func() error { return d.leftovers(t) })
}

// TestNetworkVanishes has what a pod's network was made of vanish, with and without a
// daemon: the pod can be stopped, and its addresses are given back.
func TestNetworkVanishes(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	configuration := func(*pod) { check(t, os.Remove(d.path("cni/10.conflist"))) }
	namespace := func(p *pod) {
		path := d.path("s/netns/" + p.id)
		check(t, errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path)))
	}
	for name, strike := range map[string]func(*pod){
		"configuration": configuration,
		"namespace":     namespace,
		"both":          func(p *pod) { configuration(p); namespace(p) },
	} {
		for _, restart := range []bool{false, true} {
			p := d.runPod(t)
			c := p.run(t, forever)
			if restart {
				d.stop(t, unix.SIGKILL)
			}
			strike(p)
			if restart {
				d.start(t)
			}
			c.says(t, "echo alive", "alive\n")
			check(t, d.pods.StopPodSandbox(ctx(t), p.id))
			if left := d.addresses(); len(left) > 0 {
				t.Errorf("%s: leases: %q", name, left)
			}
			check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
			d.addNetwork(t)
			eventually(t, "nothing is left behind", func() error { return d.leftovers(t) })
		}
	}
}
