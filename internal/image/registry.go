package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"unicode"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"golang.org/x/sync/semaphore"
)

// maxWords bounds what a registry may say in an error, in bytes.
const maxWords = 300

// resolver speaks to the registry of the image and to its mirrors.
func (p *pull) resolver(ctx context.Context, watch *watch) remotes.Resolver {
	registry := reference.Domain(p.name)
	options := config.HostOptions{
		Credentials: p.auth.credentialsFor(registry),
		UpdateClient: func(c *http.Client) error {
			c.Transport = &watchedTransport{next: c.Transport, watch: watch, onReceive: p.options.OnReceive}
			return nil
		},
	}
	if p.options.CertsDir != "" {
		options.HostDir = config.HostDirFromRoot(p.options.CertsDir)
	}
	// Once for resolving and fetching, which so share connections and tokens.
	hosts := sync.OnceValues(func() ([]docker.RegistryHost, error) {
		hosts, err := config.ConfigureHosts(ctx, options)(registry)
		if err != nil {
			return nil, fmt.Errorf("configuration of registry %s: %w", registry, err)
		}
		if p.auth.RegistryToken != "" && p.auth.isFor(registry) {
			for i := range hosts {
				hosts[i].Authorizer = &tokenAuthorizer{registry: registry, token: p.auth.RegistryToken, next: hosts[i].Authorizer}
			}
		}
		return hosts, nil
	})
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: func(string) ([]docker.RegistryHost, error) { return hosts() },
	})
	if r, ok := resolver.(remotes.ResolverWithOptions); ok {
		r.SetOptions(transfer.WithDownloadLimiter(semaphore.NewWeighted(int64(p.options.Downloads))))
	}
	return resolver
}

// registryError gives an error of the resolver or fetcher its kind, and the
// registry's own words if it had any.
func registryError(err error) error {
	if status, ok := errors.AsType[remoteerrors.ErrUnexpectedStatus](err); ok {
		return statusError(status)
	}
	if errors.Is(err, docker.ErrInvalidAuthorization) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnauthenticated)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, ok := errors.AsType[*url.Error](err); ok || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	return err
}

func statusError(status remoteerrors.ErrUnexpectedStatus) error {
	var kind error
	switch code := status.StatusCode; {
	case code == http.StatusUnauthorized:
		kind = errdefs.ErrUnauthenticated
	case code == http.StatusForbidden:
		kind = errdefs.ErrPermissionDenied
	case code == http.StatusNotFound:
		kind = errdefs.ErrNotFound
	case code == http.StatusTooManyRequests || code >= 500:
		kind = errdefs.ErrUnavailable
	default:
		kind = errdefs.ErrUnknown
	}
	host := "registry"
	// The rest of the URL may carry a signature.
	if u, err := url.Parse(status.RequestURL); err == nil {
		host = u.Host
	}
	words := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, string(status.Body[:min(len(status.Body), maxWords)]))
	if words != "" {
		words = ": " + words
	}
	return fmt.Errorf("%s answered %s%s: %w", host, status.Status, words, kind)
}
