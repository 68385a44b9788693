package spec

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	users = `root:x:0:0:root:/root:/bin/sh
web:x:101:102::/srv:/bin/sh
minus:x:-5:0::/:/bin/sh
huge:x:4294967296:0::/:/bin/sh
# comment
1234:x:77:78::/:/bin/sh
`
	groups = `root:x:0:
web:x:102:
audio:x:29:root,web
minus:x:-7:web
`
)

func TestUser(t *testing.T) {
	rootfs := t.TempDir()
	if err := os.MkdirAll(filepath.Join(rootfs, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"passwd": users, "group": groups} {
		if err := os.WriteFile(filepath.Join(rootfs, "etc", name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	value := func(v int64) *runtime.Int64Value { return &runtime.Int64Value{Value: v} }
	type context = runtime.LinuxContainerSecurityContext
	for name, test := range map[string]struct {
		image    string
		security *context
		want     specs.User
		refused  bool
	}{
		"nobody asks":        {"", nil, specs.User{AdditionalGids: []uint32{0, 29}}, false},
		"image name":         {"web", nil, specs.User{UID: 101, GID: 102, AdditionalGids: []uint32{29, 102}}, false},
		"image name, group":  {"web:audio", nil, specs.User{UID: 101, GID: 29, AdditionalGids: []uint32{29}}, false},
		"image number":       {"101", nil, specs.User{UID: 101, GID: 102, AdditionalGids: []uint32{29, 102}}, false},
		"image numbers":      {"5:6", nil, specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{6}}, false},
		"image group only":   {":6", nil, specs.User{GID: 6, AdditionalGids: []uint32{6, 29}}, false},
		"number not a name":  {"1234", nil, specs.User{UID: 1234, AdditionalGids: []uint32{0}}, false},
		"image no user":      {"nobody", nil, specs.User{}, true},
		"image no group":     {"web:nogroup", nil, specs.User{}, true},
		"image minus":        {"-5", nil, specs.User{}, true},
		"image huge":         {"4294967296", nil, specs.User{}, true},
		"minus by name":      {"minus", nil, specs.User{}, true},
		"huge by name":       {"huge", nil, specs.User{}, true},
		"user":               {"web", &context{RunAsUser: value(7)}, specs.User{UID: 7, AdditionalGids: []uint32{0}}, false},
		"user of the image":  {"", &context{RunAsUser: value(101)}, specs.User{UID: 101, GID: 102, AdditionalGids: []uint32{29, 102}}, false},
		"user, group":        {"web", &context{RunAsUser: value(101), RunAsGroup: value(9)}, specs.User{UID: 101, GID: 9, AdditionalGids: []uint32{9, 29}}, false},
		"username":           {"", &context{RunAsUsername: "web"}, specs.User{UID: 101, GID: 102, AdditionalGids: []uint32{29, 102}}, false},
		"username, group":    {"", &context{RunAsUsername: "web", RunAsGroup: value(9)}, specs.User{UID: 101, GID: 9, AdditionalGids: []uint32{9, 29}}, false},
		"no username":        {"", &context{RunAsUsername: "nobody"}, specs.User{}, true},
		"user and username":  {"", &context{RunAsUser: value(1), RunAsUsername: "web"}, specs.User{}, true},
		"group only":         {"web", &context{RunAsGroup: value(1)}, specs.User{}, true},
		"minus":              {"", &context{RunAsUser: value(-1)}, specs.User{}, true},
		"huge":               {"", &context{RunAsUser: value(math.MaxInt32 + 1)}, specs.User{}, true},
		"merged":             {"web", &context{SupplementalGroups: []int64{29, 5000}}, specs.User{UID: 101, GID: 102, AdditionalGids: []uint32{29, 102, 5000}}, false},
		"strict":             {"web", &context{SupplementalGroups: []int64{5000}, SupplementalGroupsPolicy: runtime.SupplementalGroupsPolicy_Strict}, specs.User{UID: 101, GID: 102, AdditionalGids: []uint32{102, 5000}}, false},
		"supplemental minus": {"", &context{SupplementalGroups: []int64{-1}}, specs.User{}, true},
	} {
		got, err := runAs(test.security, test.image, rootfs)
		if test.refused != errors.Is(err, errdefs.ErrInvalidArgument) || !test.refused && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got.UID != test.want.UID || got.GID != test.want.GID || !slices.Equal(got.AdditionalGids, test.want.AdditionalGids) {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

// What an image has at /etc/passwd is its author's choice.
func TestUserDatabaseIsHostile(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("web:x:1:1::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		put   func(passwd string) error
		found bool
		fails bool
	}{
		"nothing":      {func(string) error { return nil }, false, false},
		"directory":    {func(p string) error { return os.Mkdir(p, 0o755) }, false, true},
		"fifo":         {func(p string) error { return unix.Mkfifo(p, 0o644) }, false, true},
		"huge":         {func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o644), os.Truncate(p, 1<<30)) }, false, true},
		"link outside": {func(p string) error { return os.Symlink(outside, p) }, false, false},
		"link up":      {func(p string) error { return os.Symlink("../../../../../../../.."+outside, p) }, false, false},
		"loop":         {func(p string) error { return os.Symlink("passwd", p) }, false, true},
		"link inside": {func(p string) error {
			return errors.Join(os.WriteFile(p+"-", []byte("web:x:1:1::/:\n"), 0o644), os.Symlink("/etc/passwd-", p))
		}, true, false},
	} {
		rootfs := t.TempDir()
		if err := os.Mkdir(filepath.Join(rootfs, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := test.put(filepath.Join(rootfs, "etc/passwd")); err != nil {
			t.Fatal(err)
		}
		b, err := readInRoot(rootfs, "etc/passwd")
		if (err != nil) != test.fails || (len(b) > 0) != test.found {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

func FuzzLookUp(f *testing.F) {
	f.Add("web", "audio", []byte(users), []byte(groups))
	f.Add("0", "", []byte(users), []byte("a:::root,,\x00\n"))
	f.Add("minus", "minus", []byte(users), []byte(groups))
	f.Fuzz(func(t *testing.T, who, group string, users, groups []byte) {
		u, err := lookUp(who, group, users, groups)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("error without its kind: %v", err)
			}
			return
		}
		for _, id := range append(u.AdditionalGids, u.UID, u.GID) {
			if id > math.MaxInt32 {
				t.Errorf("id %d of %+v", id, u)
			}
		}
		if n, numeric := id(who); numeric && uint32(n) != u.UID {
			t.Errorf("user %s became %d", who, u.UID)
		}
	})
}
