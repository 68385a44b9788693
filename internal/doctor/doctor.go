// Package doctor examines a node: whether pods can run on it, and if not, what to
// do.
//
// What it keeps true: it changes nothing that it does not undo, so it may be run
// beside a working daemon and before the first one; every finding names what was
// looked at and what was found, and every bad one a remedy; what cannot be looked
// at is a finding too.
package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"

	"github.com/runscd/runscd/internal/config"
)

// Verdict is what a finding means for the node.
type Verdict string

// The verdicts: pods run; they run, but something is missing or will go wrong;
// they do not run.
const (
	OK   Verdict = "OK"
	Warn Verdict = "WARN"
	Fail Verdict = "FAIL"
)

// Finding is one line of the report.
type Finding struct {
	Verdict Verdict `json:"verdict"`
	Check   string  `json:"check"` // what was looked at
	Found   string  `json:"found"`
	Remedy  string  `json:"remedy,omitempty"` // of a verdict that is not OK
}

// Handler is how a trial of a runtime handler went.
type Handler struct {
	Name, Path, Version string
	Unusable            error // why it cannot run pods
	NoUserNS            error // why pods cannot have user namespaces
}

// Node is what is examined.
type Node struct {
	Config *config.Config
	// Root is where the host's files are, "/" but in tests.
	Root string
	// KubeletConfig is the kubelet's configuration file; "" for the usual places.
	KubeletConfig string
	// Network tells why pods cannot be connected, nil if they can.
	Network func(context.Context) error
	// Daemon returns the version of the daemon that listens on the socket.
	Daemon func(context.Context) (string, error)
	// Try runs a sandbox of each handler that is thrown away.
	Try func(context.Context) ([]Handler, error)
}

// Examine looks at everything, the cheap things first.
func (n *Node) Examine(ctx context.Context) Report {
	var r Report
	for _, check := range []func(context.Context) []Finding{
		n.kernel, n.cgroups, n.platforms, n.directories, n.overlay, n.network, n.addresses, n.kubelet, n.sandboxes,
	} {
		r = append(r, check(ctx)...)
	}
	return r
}

// path is a path of the host's.
func (n *Node) path(name string) string { return filepath.Join(n.Root, name) }

// Report is what was found.
type Report []Finding

// Failed tells whether pods cannot run.
func (r Report) Failed() bool {
	for _, f := range r {
		if f.Verdict == Fail {
			return true
		}
	}
	return false
}

// Text writes the report for a person.
func (r Report) Text(w io.Writer) error {
	count := map[Verdict]int{}
	for _, f := range r {
		count[f.Verdict]++
		if _, err := fmt.Fprintf(w, "%-4s  %-12s  %s\n", f.Verdict, f.Check, f.Found); err != nil {
			return err
		}
		if f.Remedy != "" {
			if _, err := fmt.Fprintf(w, "%20s-> %s\n", "", f.Remedy); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintf(w, "%d OK, %d WARN, %d FAIL\n", count[OK], count[Warn], count[Fail])
	return err
}

// JSON writes the report for a program: an array of findings.
func (r Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

func ok(check, format string, args ...any) Finding {
	return Finding{Verdict: OK, Check: check, Found: fmt.Sprintf(format, args...)}
}

// found is a finding with a remedy.
func found(v Verdict, check, what, remedy string) Finding {
	return Finding{Verdict: v, Check: check, Found: what, Remedy: remedy}
}
