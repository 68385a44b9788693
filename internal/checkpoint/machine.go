package checkpoint

import (
	"bufio"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Machine is what a checkpoint needs of the place where it is restored.
type Machine struct {
	Runsc    string `json:"runsc"`           // version
	Build    string `json:"build,omitempty"` // of the binary; empty if it does not tell
	Platform string `json:"platform"`
	Arch     string `json:"arch"`
	// Features are those of the processors that programs use.
	Features []string `json:"cpu_features"`
}

// ThisMachine describes this one, with the runsc at path.
func ThisMachine(path, version, platform string) (Machine, error) {
	build, err := buildID(path)
	if err != nil {
		return Machine{}, fmt.Errorf("build of %s: %w", path, err)
	}
	features, err := features("/proc/cpuinfo")
	if err != nil {
		return Machine{}, fmt.Errorf("features of the processors: %w", err)
	}
	return Machine{Runsc: version, Build: build, Platform: platform, Arch: runtime.GOARCH, Features: features}, nil
}

// Check returns why what was saved on m cannot be restored on here, nil if it can. The
// error is ErrFailedPrecondition. The state of the sentry is that of one build of it.
func (m *Machine) Check(here Machine) error {
	for _, f := range []struct{ what, was, is string }{
		{"runsc version", m.Runsc, here.Runsc},
		{"build of runsc", m.Build, here.Build},
		{"platform", m.Platform, here.Platform},
		{"architecture", m.Arch, here.Arch},
	} {
		if f.was != f.is {
			return fmt.Errorf("%s: the checkpoint is of %q, here it is %q: %w", f.what, f.was, f.is, errdefs.ErrFailedPrecondition)
		}
	}
	var missing []string
	for _, f := range m.Features {
		if !slices.Contains(here.Features, f) {
			missing = append(missing, f)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("processor: it lacks features of that of the checkpoint: %s: %w", strings.Join(missing, " "), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// programs are the families of flags in /proc/cpuinfo that programs use. The others
// are of kernels, and come and go with their versions.
var programs = regexp.MustCompile(`^(mmx|sse|ssse|avx|fma|aes|vaes|pclmul|vpclmul|gfni|sha|bmi|adx|amx|abm|popcnt|lzcnt|movbe|movdir|f16c|` +
	`rdrand|rdseed|rdpid|rdtscp|cx8|cx16|cmov|fxsr|xsave|lahf|lm$|fsgsbase|erms|fsrm|clflush|clwb|clzero|cldemote|prefetch|3dnow|` +
	`pku|ospke|rtm|hle|waitpkg|serialize|enqcmd|xop|tbm|misalignsse|tsc$|syscall)`)

// features reads those of the first processor in a file as /proc/cpuinfo.
func features(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), ":")
		switch strings.TrimSpace(name) {
		case "flags": // x86
			found := slices.DeleteFunc(strings.Fields(value), func(flag string) bool { return !programs.MatchString(flag) })
			slices.Sort(found)
			return slices.Compact(found), nil
		case "Features": // ARM: all are instructions
			return strings.Fields(value), nil
		}
	}
	return nil, fmt.Errorf("%s: no flags", path)
}

// buildID tells builds of a program apart, also of one version. It is made of the ids
// that linkers leave.
func buildID(path string) (string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h, found := sha256.New(), false
	for _, name := range []string{".note.go.buildid", ".note.gnu.build-id"} {
		section := f.Section(name)
		if section == nil {
			continue
		}
		data, err := section.Data()
		if err != nil {
			return "", err
		}
		h.Write(data)
		found = true
	}
	if !found {
		return "", nil
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
