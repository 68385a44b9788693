package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	bolt "go.etcd.io/bbolt"
)

// Labels of an image record. They spare reading the manifest in every lookup.
const (
	labelID   = "runscd/image-id"
	labelSize = "runscd/image-size"
)

// Image is a complete image in the store.
type Image struct {
	// ID is the digest of the image's configuration, such as "sha256:…".
	ID string
	// RepoTags and RepoDigests are the names that the image was pulled by,
	// complete and sorted.
	RepoTags, RepoDigests []string
	// Size is what a registry would send, in bytes: the manifest, the
	// configuration and the compressed layers.
	Size uint64
	// UID is the user to run as if the image gives a number; else Username is
	// what it gives, which may be "".
	UID      *int64
	Username string
	// Pinned says that one of the names is among Options.Pinned.
	Pinned bool
	// Spec is the image's configuration.
	Spec ocispec.Image
}

// chainID is the name of the snapshot with all layers of the image.
func chainID(spec *ocispec.Image) string {
	return identity.ChainID(spec.RootFS.DiffIDs).String()
}

// Get finds an image by ID (with or without "sha256:"), by reference, or by the
// beginning of its ID if no other begins so. The error is of kind ErrNotFound,
// or ErrInvalidArgument if ref can be none of these.
func (s *Store) Get(ctx context.Context, ref string) (*Image, error) {
	ctx = inNamespace(ctx)
	id, err := s.resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	records, err := s.records(ctx, id)
	if err != nil {
		return nil, err
	}
	if len(records) == 0 {
		return nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	return s.assemble(ctx, id, records)
}

// List returns all images, sorted by ID.
func (s *Store) List(ctx context.Context) ([]*Image, error) {
	ctx = inNamespace(ctx)
	records, err := s.images.List(ctx)
	if err != nil {
		return nil, err
	}
	byID := make(map[string][]images.Image)
	for _, r := range records {
		byID[r.Labels[labelID]] = append(byID[r.Labels[labelID]], r)
	}
	list := make([]*Image, 0, len(byID))
	for id, records := range byID {
		img, err := s.assemble(ctx, id, records)
		if err != nil {
			// One damaged image must not hide all others from the kubelet.
			logrus.WithError(err).WithField("image", id).Warn("image left out of the list")
			continue
		}
		list = append(list, img)
	}
	slices.SortFunc(list, func(a, b *Image) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// Remove takes all names from the image that ref finds. Its space is freed
// later: the blobs at the next collection, the layers when no container uses
// them any more. An image that is not there is removed already. The error is of
// kind ErrInvalidArgument if ref is malformed.
func (s *Store) Remove(ctx context.Context, ref string) error {
	ctx = inNamespace(ctx)
	id, err := s.resolve(ctx, ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	err = s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		records, err := s.records(ctx, id)
		if err != nil {
			return err
		}
		for _, r := range records {
			if err := s.images.Delete(ctx, r.Name); err != nil {
				return err
			}
		}
		return nil
	})
	s.collect() // after a failure too: one to sync may leave them removed
	if err != nil {
		return fmt.Errorf("image %s: remove: %w", id, err)
	}
	return nil
}

// resolve finds the ID that ref stands for. The ID of an image that is given in
// full is not looked up.
func (s *Store) resolve(ctx context.Context, ref string) (string, error) {
	if id, ok := parseID(ref); ok {
		return id, nil
	}
	name, err := parseName(ref)
	if err != nil {
		return "", err
	}
	record, err := s.images.Get(ctx, name.String())
	if err == nil {
		return record.Labels[labelID], nil
	}
	if !errdefs.IsNotFound(err) {
		return "", err
	}
	return s.resolveShort(ctx, ref)
}

func (s *Store) resolveShort(ctx context.Context, ref string) (string, error) {
	notFound := fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	m := shortID.FindStringSubmatch(ref)
	if m == nil {
		return "", notFound
	}
	records, err := s.images.List(ctx)
	if err != nil {
		return "", err
	}
	found := ""
	for _, r := range records {
		id := r.Labels[labelID]
		if !strings.HasPrefix(digest.Digest(id).Encoded(), m[1]) || id == found {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("image %q: beginning of more than one ID: %w", ref, errdefs.ErrInvalidArgument)
		}
		found = id
	}
	if found == "" {
		return "", notFound
	}
	return found, nil
}

// records are the records of all names of an image.
func (s *Store) records(ctx context.Context, id string) ([]images.Image, error) {
	return s.images.List(ctx, fmt.Sprintf("labels.%q==%q", labelID, id))
}

// assemble makes an image of its records, of which there is at least one.
func (s *Store) assemble(ctx context.Context, id string, records []images.Image) (*Image, error) {
	spec, err := s.spec(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", id, err)
	}
	img := &Image{ID: id, Spec: *spec}
	for _, r := range records {
		if strings.Contains(r.Name, "@") {
			img.RepoDigests = append(img.RepoDigests, r.Name)
		} else {
			img.RepoTags = append(img.RepoTags, r.Name)
		}
		img.Pinned = img.Pinned || s.pinned[r.Name]
		// The names may have been pulled with differently compressed layers.
		size, err := strconv.ParseUint(r.Labels[labelSize], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("image %s: size: %w", id, err)
		}
		img.Size = max(img.Size, size)
	}
	slices.Sort(img.RepoTags)
	slices.Sort(img.RepoDigests)

	user, _, _ := strings.Cut(spec.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		img.UID = &uid
	} else {
		img.Username = user
	}
	return img, nil
}

// spec reads the configuration of an image.
func (s *Store) spec(ctx context.Context, id string) (*ocispec.Image, error) {
	d, err := digest.Parse(id)
	if err != nil {
		return nil, fmt.Errorf("image ID %q: %w: %w", id, err, errdefs.ErrInvalidArgument)
	}
	return readJSON[ocispec.Image](ctx, s.content, ocispec.Descriptor{Digest: d})
}

// record gives the pulled image its names: what it was pulled by, and its
// repository with the digest of what the registry had under that name.
func (s *Store) record(ctx context.Context, name reference.Named, f *fetched) error {
	at, err := withDigest(name, f.target.Digest)
	if err != nil {
		return err
	}
	record := images.Image{
		Target: f.target,
		Labels: map[string]string{
			labelID:   f.id.String(),
			labelSize: strconv.FormatInt(f.size, 10),
		},
	}
	return s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		for _, n := range slices.Compact([]string{name.String(), at}) {
			record.Name = n
			_, err := s.images.Update(ctx, record)
			if errdefs.IsNotFound(err) {
				_, err = s.images.Create(ctx, record)
			}
			if err != nil {
				return fmt.Errorf("record of %s: %w", n, err)
			}
		}
		return nil
	})
}

func readJSON[T any](ctx context.Context, from content.Provider, desc ocispec.Descriptor) (*T, error) {
	data, err := content.ReadBlob(ctx, from, desc)
	if err != nil {
		return nil, err
	}
	v := new(T)
	if err := json.Unmarshal(data, v); err != nil {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, errors.Join(err, errdefs.ErrDataLoss))
	}
	return v, nil
}
