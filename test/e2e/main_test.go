// Package e2e runs pods with kubectl on a node of a real etcd, kube-apiserver and
// kubelet, with runscd as its runtime.
//
// What it keeps true: all of it lives in PID, mount and network namespaces of its
// own and talks over their loopback; each behaviour that a user would notice is
// one line of output, PASS or FAIL. There is no scheduler and no controller
// manager: pods name their node.
package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/runscd/runscd/test/isolate"
)

// kubernetes is the environment variable of the directory of the binaries that
// `make e2e` builds.
const kubernetes = "RUNSCD_KUBERNETES"

func TestMain(m *testing.M) {
	if os.Getenv(kubernetes) == "" {
		fmt.Println("not run, make e2e does")
		return
	}
	os.Exit(isolate.Run(func() (int, error) { return m.Run(), nil }))
}

// behaviour is something that a user of the node relies on.
type behaviour struct {
	name string
	show func(*scene)
}

func TestNode(t *testing.T) {
	c := startCluster(t)
	t.Run("pods", func(t *testing.T) {
		for _, b := range pods {
			t.Run(b.name, func(t *testing.T) {
				t.Parallel()
				c.show(t, b)
			})
		}
	})
	for _, b := range node {
		t.Run(b.name, func(t *testing.T) { c.show(t, b) })
	}
}

func (c *cluster) show(t *testing.T, b behaviour) {
	s := &scene{T: t, c: c, name: strings.Trim(notInName.ReplaceAllString(strings.ToLower(b.name), "-"), "-")}
	s.name = strings.Trim(s.name[:min(len(s.name), 40)], "-")
	begin := time.Now()
	defer func() {
		result := "PASS"
		if t.Failed() {
			result = "FAIL"
			s.explain()
		}
		fmt.Printf("%s  %5.1f s  %s\n", result, time.Since(begin).Seconds(), b.name)
		s.remove()
	}()
	b.show(s)
}
