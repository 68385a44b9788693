package image

import (
	"strings"
	"testing"

	containerdref "github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

const hex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseName(t *testing.T) {
	for in, want := range map[string]string{
		"busybox":                         "docker.io/library/busybox:latest",
		"busybox:1.36":                    "docker.io/library/busybox:1.36",
		"docker.io/busybox":               "docker.io/library/busybox:latest",
		"index.docker.io/library/busybox": "docker.io/library/busybox:latest",
		"me/app":                          "docker.io/me/app:latest",
		"localhost/app":                   "localhost/app:latest",
		"localhost:5000/a/b:c":            "localhost:5000/a/b:c",
		"reg.example/app@sha256:" + hex:   "reg.example/app@sha256:" + hex,
		"reg.example/app:1@sha256:" + hex: "reg.example/app@sha256:" + hex,
		"[::1]:5000/app:1":                "[::1]:5000/app:1",
	} {
		got, err := parseName(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
		} else if got.String() != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	for _, in := range []string{
		"", " ", ":", "/", "@", "a b", "UPPER", "reg.example/UPPER", "app:", "app@sha256:123", "http://reg.example/app",
		"reg.example/../app", "[0]:0/0", "app:-", "sha256:" + hex, hex, "-", "\x00", "app:" + strings.Repeat("x", 129),
	} {
		_, err := parseName(in)
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", in, err)
		} else if len(in) > 1 && !strings.Contains(err.Error(), strings.Trim(in, "\x00")) {
			t.Errorf("error does not name %q: %v", in, err)
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"", "busybox", "a/b:c", "reg:5000/a@sha256:" + hex, "[::1]:5000/a", "sha256:" + hex, "a:b@c", "../a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		name, err := parseName(in)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("%q: kind of %v", in, err)
			}
			return
		}
		again, err := parseName(name.String())
		if err != nil || again.String() != name.String() {
			t.Fatalf("%q: %s becomes %v, %v", in, name, again, err)
		}
		if strings.Contains(name.String(), "://") {
			t.Fatalf("%q: scheme in %s", in, name)
		}
		// What the resolver makes of it must be the same registry.
		spec, err := containerdref.Parse(name.String())
		if err != nil || spec.Hostname() != reference.Domain(name) {
			t.Fatalf("%q: resolved at %q: %v", in, spec.Hostname(), err)
		}
	})
}
