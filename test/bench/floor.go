package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/runscd/runscd/internal/network"
)

// floor takes bare runsc through what runscd is measured at, with the bundles
// and flags of a pod that the daemon has made.
func (n *node) floor(ctx context.Context, pods int, r *Report) (err error) {
	p, err := n.sleeper(ctx, "model", 1)
	if err != nil {
		return err
	}
	b, err := n.bareOf(ctx, p)
	if err != nil {
		return err
	}
	if err := n.remove(ctx, p); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.remove()) }()
	watch := newStopwatch()
	before := busy()
	for range pods {
		if err := watch.steps(ctx, []step{
			{"create", b.step("create", "--bundle", b.sandbox, b.sandboxID)},
			{"start", b.step("start", b.sandboxID)},
			{"run", b.step("run", "--detach", "--bundle", b.container, b.containerID)},
			{"exec", b.step("exec", b.containerID, "true")},
			{"delete both", b.delete},
		}); err != nil {
			return err
		}
	}
	r.Floor, r.FloorCPU = watch.calls(), (busy()-before)/float64(pods)
	if r.Exec.Floor, err = b.execs(ctx, 10*pods); err != nil {
		return err
	}
	r.Log.Floor, err = b.log(ctx)
	return err
}

// bare is a pod to be run by runsc alone.
type bare struct {
	runsc                  string
	flags                  []string
	netNS                  string
	sandbox, container     string // bundles
	mounted                string // the copy of the pod's directory
	sandboxID, containerID string
}

// bareOf copies a pod's bundles under other ids.
func (n *node) bareOf(ctx context.Context, p *pod) (*bare, error) {
	id, cid := p.id, p.containers[0]
	b := &bare{
		runsc: n.runsc, netNS: n.path("bare-netns"), sandbox: n.path("bare-sandbox"), container: n.path("bare-container"),
		mounted:   n.path("state/pods/" + strings.Repeat("b", len(id))),
		sandboxID: strings.Repeat("b", len(id)), containerID: strings.Repeat("c", len(cid)),
	}
	var err error
	if b.flags, err = n.flagsOf(id); err != nil {
		return nil, err
	}
	if err := network.CreateNS(b.netNS); err != nil {
		return nil, err
	}
	rootfs := filepath.Join(b.container, "rootfs")
	replace := strings.NewReplacer(
		n.path("state/netns/"+id), b.netNS, n.path("state/containers/"+cid+"/rootfs"), rootfs,
		`containers/`+cid, `containers/`+cid, id, b.sandboxID, cid, b.containerID)
	for _, dir := range []struct{ from, to string }{
		{n.path("state/pods/" + id), b.sandbox}, {n.path("state/containers/" + cid), b.container},
	} {
		text, err := os.ReadFile(filepath.Join(dir.from, "config.json"))
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir.to, 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir.to, "config.json"), []byte(replace.Replace(string(text))), 0o600); err != nil {
			return nil, err
		}
	}
	if err := command(ctx, "cp", "-a", n.path("state/containers/"+cid+"/rootfs"), rootfs); err != nil {
		return nil, err
	}
	// What the containers mount from the pod's directory.
	return b, command(ctx, "cp", "-a", n.path("state/pods/"+id), b.mounted)
}

// remove removes what bareOf has made.
func (b *bare) remove() error {
	return errors.Join(network.RemoveNS(b.netNS), os.RemoveAll(b.sandbox), os.RemoveAll(b.container), os.RemoveAll(b.mounted))
}

// flagsOf are the global flags that the daemon gave to runsc for a sandbox, as
// its process shows them, with another root directory.
func (n *node) flagsOf(id string) ([]string, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, f := range dirs {
		text, _ := os.ReadFile(f)
		args := strings.Split(string(bytes.TrimRight(text, "\x00")), "\x00")
		if args[0] != "runsc-sandbox" || args[len(args)-1] != id {
			continue
		}
		var flags []string
		for _, a := range args[1:] {
			if a == "boot" {
				break
			}
			if name, _, _ := strings.Cut(a, "="); strings.Contains(name, "log") || name == "--root" {
				continue
			}
			flags = append(flags, a)
		}
		return append(flags, "--root="+n.path("bare-root")), nil
	}
	return nil, fmt.Errorf("no process of sandbox %s", id)
}

// step is a call of runsc. Its output must not be a pipe: a sandbox would hold
// it open.
func (b *bare) step(args ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		return detached(ctx, b.runsc, append(append([]string{}, b.flags...), args...)...)
	}
}

// run makes the pod.
func (b *bare) run(ctx context.Context) error {
	return inTurn(ctx, b.step("create", "--bundle", b.sandbox, b.sandboxID), b.step("start", b.sandboxID),
		b.step("run", "--detach", "--bundle", b.container, b.containerID))
}

// delete ends the pod.
func (b *bare) delete(ctx context.Context) error {
	return inTurn(ctx, b.step("delete", "--force", b.containerID), b.step("delete", "--force", b.sandboxID))
}

func inTurn(ctx context.Context, calls ...func(context.Context) error) error {
	for _, call := range calls {
		if err := call(ctx); err != nil {
			return err
		}
	}
	return nil
}

// execs measures runsc exec.
func (b *bare) execs(ctx context.Context, count int) (map[string]Execs, error) {
	if err := b.run(ctx); err != nil {
		return nil, err
	}
	found, err := execsAtOnce(ctx, count, b.step("exec", b.containerID, "true"))
	if err != nil {
		return nil, err
	}
	return found, b.delete(ctx)
}

// plugins measures the CNI plugins alone.
func (n *node) plugins(ctx context.Context, pods int) (Calls, error) {
	cni := network.NewCNI(network.Options{ConfDir: n.path("net.d"), BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"}, CacheDir: n.path("bare-cni")})
	watch := newStopwatch()
	for i := range pods {
		p := network.Pod{ID: fmt.Sprintf("%064d", i), NetNS: n.path("cni-netns"), Namespace: "bench", Name: "cni", UID: "cni"}
		if err := network.CreateNS(p.NetNS); err != nil {
			return nil, err
		}
		err := watch.steps(ctx, []step{
			{"ADD", func(ctx context.Context) error { _, err := cni.Add(ctx, p); return err }},
			{"DEL", func(ctx context.Context) error { return cni.Del(ctx, p) }},
		})
		if err != nil {
			return nil, err
		}
		if err := network.RemoveNS(p.NetNS); err != nil {
			return nil, err
		}
	}
	return watch.calls(), nil
}
