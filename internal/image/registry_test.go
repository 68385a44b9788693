package image

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/runscd/runscd/test/registry/loopback"
)

func TestAuth(t *testing.T) {
	basic := loopback.Options{Username: "joe", Password: "se:cret"}
	bearer := basic
	bearer.Bearer = true
	identity := bearer
	identity.IdentityToken = "identity"
	token := loopback.Options{RegistryToken: "registry"}
	pair := Auth{Username: "joe", Password: "se:cret"}
	encoded := Auth{Auth: base64.StdEncoding.EncodeToString([]byte("joe:se:cret\x00"))}
	unauthenticated := errdefs.IsUnauthorized

	for name, c := range map[string]struct {
		registry loopback.Options
		auth     Auth
		refused  func(error) bool
		words    string
	}{
		"basic":                {basic, pair, nil, ""},
		"basic, encoded":       {basic, encoded, nil, ""},
		"basic, anonymous":     {basic, Auth{}, unauthenticated, ""},
		"basic, wrong":         {basic, Auth{Username: "joe", Password: "no"}, unauthenticated, ""},
		"basic, malformed":     {basic, Auth{Auth: "%"}, errdefs.IsInvalidArgument, "base64"},
		"basic, no colon":      {basic, Auth{Auth: "am9l"}, errdefs.IsInvalidArgument, "username:password"},
		"bearer":               {bearer, pair, nil, ""},
		"bearer, encoded":      {bearer, encoded, nil, ""},
		"bearer, wrong":        {bearer, Auth{Username: "joe", Password: "no"}, unauthenticated, "incorrect username or password"},
		"identity token":       {identity, Auth{IdentityToken: "identity"}, nil, ""},
		"identity token wrong": {identity, Auth{IdentityToken: "no"}, unauthenticated, ""},
		"registry token":       {token, Auth{RegistryToken: "registry"}, nil, ""},
		"registry token wrong": {token, Auth{RegistryToken: "no"}, unauthenticated, "401 Unauthorized"},
		"not needed":           {loopback.Options{}, pair, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := loopback.Start(t, c.registry)
			ref := must(r.Put("app:1", noise(t, 100, 1)))(t)
			s := open(t, Options{})
			_, err := s.Pull(t.Context(), ref, c.auth)
			switch {
			case c.refused == nil:
				check(t, err)
				if n := len(r.Requests("POST", "/token")); n > 1 {
					t.Errorf("%d tokens fetched", n)
				}
			case err == nil || !c.refused(err) || !strings.Contains(err.Error(), c.words):
				t.Errorf("pull: %v", err)
			case strings.Contains(err.Error(), c.auth.Password) && c.auth.Password != "":
				t.Errorf("password in %v", err)
			}
		})
	}
}

func TestServerAddress(t *testing.T) {
	r := loopback.Start(t, loopback.Options{Username: "joe", Password: "secret"})
	ref := must(r.Put("app:1", noise(t, 100, 1)))(t)
	s := open(t, Options{})
	auth := Auth{Username: "joe", Password: "secret", ServerAddress: "https://other.example/v1/"}
	if _, err := s.Pull(t.Context(), ref, auth); !errdefs.IsUnauthorized(err) {
		t.Errorf("credentials of another registry: %v", err)
	}
	for _, q := range r.Requests("HEAD", "") {
		if q.Authorization != "" {
			t.Errorf("credentials sent: %+v", q)
		}
	}
	auth.ServerAddress = "http://" + r.Host
	must(s.Pull(t.Context(), ref, auth))(t)
}

func TestSameRegistry(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"docker.io", "registry-1.docker.io", true},
		{"https://index.docker.io/v1/", "docker.io", true},
		{"reg.example", "REG.example", true},
		{"https://reg.example/v2/", "reg.example", true},
		{"reg.example/path", "reg.example", true},
		{"reg.example:5000", "reg.example:5000", true},
		{"http://127.0.0.1:5000", "127.0.0.1:5000", true},
		{"reg.example:5000", "reg.example", false},
		{"reg.example", "evil.example", false},
		{"docker.io", "mirror.docker.io", false},
		{"reg.example.evil.example", "reg.example", false},
	} {
		if sameRegistry(c.a, c.b) != c.same {
			t.Errorf("%s, %s: %t", c.a, c.b, !c.same)
		}
	}
}

// hosts writes a hosts.toml for domain and returns the directory of all.
func hosts(t *testing.T, domain, content string) string {
	t.Helper()
	certs := t.TempDir()
	host, port, ok := strings.Cut(domain, ":")
	if ok {
		domain = host + "_" + port + "_"
	}
	dir := filepath.Join(certs, domain)
	check(t, os.Mkdir(dir, 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(content), 0o644))
	return certs
}

func TestMirror(t *testing.T) {
	for name, auth := range map[string]Auth{
		"password":       {Username: "joe", Password: "secret"},
		"identity token": {IdentityToken: "identity"},
		"registry token": {RegistryToken: "registry"},
	} {
		t.Run(name, func(t *testing.T) {
			// Both mirrors ask for credentials; they must get none.
			asking := loopback.Start(t, loopback.Options{Username: "x", Password: "y", Bearer: true, IdentityToken: "z"})
			basic := loopback.Start(t, loopback.Options{Username: "x", Password: "y"})
			upstream := loopback.Start(t, loopback.Options{
				Username: "joe", Password: "secret", Bearer: true, IdentityToken: "identity", RegistryToken: "registry",
			})
			src := noise(t, 100, 1)
			for _, r := range []*loopback.Registry{asking, basic} {
				must(r.Put("app:1", src))(t)
			}
			ref := must(upstream.Put("app:1", src))(t)
			s := open(t, Options{CertsDir: hosts(t, upstream.Host, fmt.Sprintf("[host.%q]\n[host.%q]\n", asking.URL, basic.URL))})
			must(s.Pull(t.Context(), ref, auth))(t)
			for _, mirror := range []*loopback.Registry{asking, basic} {
				all := append(mirror.Requests("GET", ""), mirror.Requests("HEAD", "")...)
				if len(all) == 0 {
					t.Error("mirror not asked")
				}
				for _, q := range append(all, mirror.Requests("POST", "")...) {
					if q.Authorization != "" || q.Method == "POST" {
						t.Errorf("credentials sent to a mirror: %+v", q)
					}
				}
			}
		})
	}
}

func TestMirrorServes(t *testing.T) {
	mirror, dead := loopback.Start(t, loopback.Options{}), loopback.Start(t, loopback.Options{})
	must(mirror.Put("library/busybox:1", noise(t, 100, 1)))(t)
	dead.Close()
	s := open(t, Options{CertsDir: hosts(t, "docker.io", fmt.Sprintf("[host.%q]\n[host.%q]\n", dead.URL, mirror.URL))})
	img := must(s.Pull(t.Context(), "busybox:1", Auth{}))(t)
	if img.RepoTags[0] != "docker.io/library/busybox:1" {
		t.Errorf("tags %v", img.RepoTags)
	}
}

func TestCA(t *testing.T) {
	r := loopback.Start(t, loopback.Options{TLS: true})
	must(r.Put("app:1", noise(t, 100, 1)))(t)
	const ref = "registry.test/app:1"
	unknown := open(t, Options{CertsDir: hosts(t, "registry.test", fmt.Sprintf("server = %q\n", r.URL))})
	if _, err := unknown.Pull(t.Context(), ref, Auth{}); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown CA: %v", err)
	}
	certs := hosts(t, "registry.test", fmt.Sprintf("server = %q\nca = \"ca.pem\"\n", r.URL))
	check(t, os.WriteFile(filepath.Join(certs, "registry.test", "ca.pem"), r.CA, 0o644))
	must(open(t, Options{CertsDir: certs}).Pull(t.Context(), ref, Auth{}))(t)
}
