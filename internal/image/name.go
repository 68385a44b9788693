package image

import (
	"fmt"
	"regexp"

	resolverref "github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

var (
	bareHex = regexp.MustCompile(`^[0-9a-f]{64}$`)
	// shortID is the beginning of an image ID, as a person types it.
	shortID = regexp.MustCompile(`^(?:sha256:)?([0-9a-f]{3,63})$`)
)

// parseName reads a reference as people write it ("busybox") and completes it
// ("docker.io/library/busybox:latest"). Of a reference with both tag and digest
// the tag is dropped. The error is of kind ErrInvalidArgument.
func parseName(ref string) (reference.Named, error) {
	if _, ok := parseID(ref); ok {
		return nil, fmt.Errorf("image reference %q: an image ID names no registry: %w", ref, errdefs.ErrInvalidArgument)
	}
	name, err := reference.ParseDockerRef(ref)
	if err == nil {
		// The resolver reads it again, and is stricter about hosts ("[0]:0").
		_, err = resolverref.Parse(name.String())
	}
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	return name, nil
}

// parseID reads a whole image ID, with or without its algorithm.
func parseID(ref string) (id string, ok bool) {
	if bareHex.MatchString(ref) {
		return digest.NewDigestFromEncoded(digest.SHA256, ref).String(), true
	}
	d, err := digest.Parse(ref)
	return d.String(), err == nil
}

// withDigest is the repository of name at a digest.
func withDigest(name reference.Named, d digest.Digest) (string, error) {
	at, err := reference.WithDigest(reference.TrimNamed(name), d)
	if err != nil {
		return "", err
	}
	return at.String(), nil
}
