package image

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
)

// dockerHub is the registry of references without a domain. Its server and its
// entry in Docker's configuration file go by other names.
const dockerHub = "docker.io"

// Auth are the credentials of one pull, of one of the kinds that the CRI has.
// The zero Auth pulls anonymously.
type Auth struct {
	Username, Password string
	// Auth is base64 of "username:password".
	Auth string
	// IdentityToken is exchanged for an access token at the registry's token
	// server.
	IdentityToken string
	// RegistryToken is a bearer token for the registry itself.
	RegistryToken string
	// ServerAddress, if given, is the registry that the rest is for: a host or
	// a URL. A pull from another one is anonymous.
	ServerAddress string
}

// validate finds fault with the form of the credentials, without repeating
// them.
func (a *Auth) validate() error {
	_, _, err := a.secret()
	return err
}

// secret is what containerd's authorizer takes: user name and password, or no
// name and an identity token.
func (a *Auth) secret() (username, secret string, err error) {
	switch {
	case a.Username != "":
		return a.Username, a.Password, nil
	case a.IdentityToken != "":
		return "", a.IdentityToken, nil
	case a.Auth != "":
		pair, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return "", "", fmt.Errorf("credentials: auth is not base64: %w", errdefs.ErrInvalidArgument)
		}
		username, password, ok := strings.Cut(string(pair), ":")
		if !ok {
			return "", "", fmt.Errorf("credentials: auth is not \"username:password\": %w", errdefs.ErrInvalidArgument)
		}
		// Some clients pad the password with zero bytes.
		return username, strings.Trim(password, "\x00"), nil
	}
	return "", "", nil
}

// isFor says whether the credentials may be used for a registry.
func (a *Auth) isFor(registry string) bool {
	return a.ServerAddress == "" || sameRegistry(a.ServerAddress, registry)
}

// credentialsFor is asked with the host of each request that is answered with
// 401. A mirror, a redirect's target and any host other than the registry itself
// get nothing.
func (a *Auth) credentialsFor(registry string) func(host string) (username, secret string, err error) {
	return func(host string) (string, string, error) {
		if !a.isFor(registry) || !sameRegistry(host, registry) {
			return "", "", nil
		}
		return a.secret()
	}
}

// sameRegistry compares two registries, each a host or a URL.
func sameRegistry(a, b string) bool {
	return registryHost(a) == registryHost(b)
}

func registryHost(address string) string {
	host := address
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		host = u.Host
	}
	host, _, _ = strings.Cut(host, "/")
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return dockerHub
	}
	return strings.ToLower(host)
}

// tokenAuthorizer sends a token to one registry, and leaves requests to other
// hosts to the next authorizer. containerd's own does not know such tokens.
type tokenAuthorizer struct {
	registry, token string
	next            docker.Authorizer
}

func (a *tokenAuthorizer) Authorize(ctx context.Context, req *http.Request) error {
	if !sameRegistry(req.URL.Host, a.registry) {
		return a.next.Authorize(ctx, req)
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	return nil
}

func (a *tokenAuthorizer) AddResponses(ctx context.Context, responses []*http.Response) error {
	if !sameRegistry(responses[len(responses)-1].Request.URL.Host, a.registry) {
		return a.next.AddResponses(ctx, responses)
	}
	return fmt.Errorf("registry token: %w", errdefs.ErrNotImplemented) // refused: no use in asking again
}
