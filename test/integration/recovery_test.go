package integration

import (
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCallsDuringRecovery has calls wait for the daemon while that finds its pods
// again: none is answered by one that does not know them yet.
func TestCallsDuringRecovery(t *testing.T) {
	d := newDaemon(t, noNetwork)
	var containers []*container
	for range 6 {
		containers = append(containers, d.runPod(t).run(t, forever))
	}
	d.stop(t, unix.SIGKILL)
	client := d.waiting(t)
	config := d.podConfig()
	var g errgroup.Group
	for i, c := range containers {
		g.Go(func() error {
			resp, err := client.ContainerStatus(ctx(t), &runtime.ContainerStatusRequest{ContainerId: c.id})
			if err == nil && resp.Status.State != runtime.ContainerState_CONTAINER_RUNNING {
				err = fmt.Errorf("status: %v", resp.Status)
			}
			return err
		})
		g.Go(func() error {
			list, err := client.ListPodSandbox(ctx(t), &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{Id: c.pod.id}})
			if err == nil && (len(list.Items) != 1 || list.Items[0].State != runtime.PodSandboxState_SANDBOX_READY) {
				err = fmt.Errorf("list: %v", list)
			}
			return err
		})
		if i > 0 {
			continue
		}
		for range 3 { // one makes it and the others get the same
			g.Go(func() error {
				return errOf(client.RunPodSandbox(ctx(t), &runtime.RunPodSandboxRequest{Config: config}))
			})
		}
	}
	d.start(t)
	check(t, g.Wait())
	pods, err := d.pods.ListPodSandbox(ctx(t), nil)
	check(t, err)
	if len(pods) != len(containers)+1 {
		t.Errorf("pods: %v", pods)
	}
	for _, c := range containers {
		g.Go(func() error { return d.pods.StopContainer(ctx(t), c.id, 30) })
		g.Go(func() error { return d.pods.RemovePodSandbox(ctx(t), c.pod.id) })
	}
	check(t, g.Wait())
}
