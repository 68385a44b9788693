package spec

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// verdict is what a filter does to a system call with its first argument, as
// runsc reads it: the first rule counts.
func verdict(f *specs.LinuxSeccomp, name string, arg uint64) specs.LinuxSeccompAction {
	for _, rule := range f.Syscalls {
		if !slices.Contains(rule.Names, name) {
			continue
		}
		holds := len(rule.Args) == 0
		for _, a := range rule.Args {
			switch a.Op {
			case specs.OpEqualTo:
				holds = holds || arg == a.Value
			case specs.OpLessThan:
				holds = holds || arg < a.Value
			case specs.OpGreaterThan:
				holds = holds || arg > a.Value
			case specs.OpMaskedEqual:
				holds = holds || arg&a.Value == a.ValueTwo
			}
		}
		if holds {
			return rule.Action
		}
	}
	return f.DefaultAction
}

func TestSeccompDefault(t *testing.T) {
	profile := &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
	plain, err := seccompProfile(profile, &specs.LinuxCapabilities{Bounding: defaultCapabilities})
	if err != nil {
		t.Fatal(err)
	}
	admin, err := seccompProfile(profile, &specs.LinuxCapabilities{Bounding: []string{"CAP_SYS_ADMIN"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name        string
		arg         uint64
		want, admin specs.LinuxSeccompAction
	}{
		{"read", 0, specs.ActAllow, specs.ActAllow},
		{"mount", 0, specs.ActErrno, specs.ActAllow},
		{"unshare", 0, specs.ActErrno, specs.ActAllow},
		{"chroot", 0, specs.ActAllow, specs.ActErrno}, // by CAP_SYS_CHROOT
		{"keyctl", 0, specs.ActErrno, specs.ActErrno},
		{"clone", 0, specs.ActAllow, specs.ActAllow},
		{"clone", unix.CLONE_NEWUSER, specs.ActErrno, specs.ActAllow},
		{"clone3", 0, specs.ActTrace, specs.ActAllow}, // ENOSYS makes a libc use clone
		{"socket", unix.AF_INET, specs.ActAllow, specs.ActAllow},
		{"socket", unix.AF_VSOCK, specs.ActErrno, specs.ActErrno},
	} {
		if got := verdict(plain, test.name, test.arg); got != test.want {
			t.Errorf("%s(%#x): %s, want %s", test.name, test.arg, got, test.want)
		}
		if got := verdict(admin, test.name, test.arg); got != test.admin {
			t.Errorf("%s(%#x) with CAP_SYS_ADMIN: %s, want %s", test.name, test.arg, got, test.admin)
		}
	}
}

func TestSeccompLocalhost(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) *runtime.SecurityProfile {
		t.Helper()
		file := filepath.Join(dir, "profile.json")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: file}
	}
	for name, test := range map[string]struct {
		profile, deny, allow string
		action               specs.LinuxSeccompAction
	}{
		"deny list":   {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}`, "mkdir", "read", specs.ActErrno},
		"allow list":  {`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`, "mkdir", "read", specs.ActErrno},
		"no rules":    {`{"defaultAction":"SCMP_ACT_KILL_THREAD"}`, "read", "none of the sentry's", specs.ActKill},
		"allow all":   {`{"defaultAction":"SCMP_ACT_ALLOW"}`, "", "read", specs.ActAllow},
		"ENOSYS":      {`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`, "mkdir", "read", specs.ActTrace},
		"first rule":  {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"},{"names":["read","mkdir"],"action":"SCMP_ACT_ERRNO"}]}`, "mkdir", "read", specs.ActErrno},
		"conditional": {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":9,"op":"SCMP_CMP_EQ"}]},{"names":["read"],"action":"SCMP_ACT_ALLOW"},{"names":["mkdir"],"action":"SCMP_ACT_TRAP"}]}`, "mkdir", "read", specs.ActTrap},
	} {
		f, err := seccompProfile(write(test.profile), &specs.LinuxCapabilities{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := verdict(f, test.deny, 0); got != test.action {
			t.Errorf("%s: %s of %s, want %s", name, got, test.deny, test.action)
		}
		if got := verdict(f, test.allow, 0); got != specs.ActAllow {
			t.Errorf("%s: %s of %s", name, got, test.allow)
		}
		if name == "conditional" && verdict(f, "read", 9) != specs.ActErrno {
			t.Errorf("%s: %v", name, f.Syscalls)
		}
	}
	for text, word := range map[string]string{
		`{"defaultAction":"SCMP_ACT_LOG"}`: "SCMP_ACT_LOG",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}`:                                                      "SCMP_ACT_NOTIFY",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL_PROCESS"}]}`:                                                "SCMP_ACT_KILL_PROCESS",
		`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":13}`:                                                                                            "errno 13",
		`{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"]}`:                                                                             "SECCOMP_FILTER_FLAG_LOG",
		`{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/s"}`:                                                                                             "listenerPath",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":9,"op":"SCMP_CMP_EQ"}]}]}`:     "argument 6",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":9,"op":"SCMP_CMP_ALMOST"}]}]}`: "SCMP_CMP_ALMOST",
		`not JSON`: "invalid character",
	} {
		if _, err := seccompProfile(write(text), &specs.LinuxCapabilities{}); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v, want an error with %q", text, err, word)
		}
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{fifo, dir, filepath.Join(dir, "none"), "relative"} {
		_, err := seccompProfile(&runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: file}, &specs.LinuxCapabilities{})
		refused(t, err, errdefs.ErrInvalidArgument, file)
	}
}

// TestSentrySyscalls holds the table against the source of the runsc that is
// built: what the table lacks no filter would stop.
func TestSentrySyscalls(t *testing.T) {
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "gvisor.dev/gvisor")
	cmd.Dir = "../../build/runsc"
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "pkg/sentry/syscalls/linux/linux64.go"))
	if err != nil {
		t.Fatal(err)
	}
	var has []string
	for _, m := range regexp.MustCompile(`syscalls\.(?:Partially)?Supported(?:Point)?\("(\w+)"`).FindAllSubmatch(text, -1) {
		has = append(has, string(m[1]))
	}
	if has = union(has); !slices.Equal(has, strings.Fields(sentrySyscalls)) {
		t.Errorf("the sentry has\n%s\nthe table\n%s", has, sentrySyscalls)
	}
}
