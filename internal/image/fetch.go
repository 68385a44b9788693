package image

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// maxJSON is how large a manifest or a configuration may be, in bytes: they are
// read into memory.
const maxJSON = 8 << 20

// fetched is an image whose layers are unpacked, but which has no record yet.
type fetched struct {
	target ocispec.Descriptor // what the registry has under the name: a manifest or an index
	id     digest.Digest      // of the configuration
	size   int64              // of manifest, configuration and compressed layers, in bytes
}

// fetch downloads and unpacks what the registry has under the name. The lease of
// ctx holds the result.
func (p *pull) fetch(ctx context.Context) (*fetched, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := newWatch(p.options.ProgressTimeout, cancel)
	defer watch.stop()

	f, err := p.fetchWatched(ctx, p.resolver(ctx, watch))
	if err == nil {
		return f, nil
	}
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		return nil, cause
	}
	return nil, registryError(err)
}

func (p *pull) fetchWatched(ctx context.Context, resolver remotes.Resolver) (*fetched, error) {
	ref, target, err := resolver.Resolve(ctx, p.name.String())
	if err != nil {
		return nil, err
	}
	if !images.IsManifestType(target.MediaType) && !images.IsIndexType(target.MediaType) {
		return nil, fmt.Errorf("media type %q is not that of an image: %w", target.MediaType, errdefs.ErrInvalidArgument)
	}
	fetcher, err := resolver.Fetcher(ctx, ref)
	if err != nil {
		return nil, err
	}
	manifest, err := p.download(ctx, fetcher, target)
	if err != nil {
		return nil, err
	}
	f := &fetched{target: target, id: manifest.Config.Digest, size: target.Size + manifest.Config.Size}
	for _, l := range manifest.Layers {
		f.size += l.Size
	}
	spec, err := p.spec(ctx, f.id.String())
	if err != nil {
		return nil, err
	}
	if _, err := p.snapshots.Stat(ctx, chainID(spec)); err != nil {
		return nil, fmt.Errorf("layers: %w", err)
	}
	return f, nil
}

// download fetches the blobs that target leads to on this platform, unpacks the
// layers among them as they arrive, and returns the manifest that it chose.
func (p *pull) download(ctx context.Context, fetcher remotes.Fetcher, target ocispec.Descriptor) (*ocispec.Manifest, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	platform := platforms.Default()
	unpacker, err := unpack.NewUnpacker(ctx, p.content,
		unpack.WithUnpackPlatform(unpack.Platform{
			Platform:                platform,
			SnapshotterKey:          snapshotter,
			Snapshotter:             p.snapshots,
			SnapshotterCapabilities: []string{snapshots.RebaseCap},
			Applier:                 layerApplier{apply.NewFileSystemApplier(p.content)},
			// Without it a layer whose snapshot is recorded may be full of
			// empty files after a power loss (containerd#10457).
			ApplyOpts: []diff.ApplyOpt{diff.WithSyncFs(true)},
		}),
		unpack.WithDuplicationSuppressor(&p.locks),
		// Fetches also the blobs of layers that are unpacked already, and
		// above all leaves no fetch running behind when it fails.
		unpack.WithFetchAllContent(),
		// Of this pull alone: a layer waits for its download with the limit
		// taken, and a slow registry must not hold up other pulls.
		unpack.WithUnpackLimiter(semaphore.NewWeighted(int64(p.options.Unpacks))),
	)
	if err != nil {
		return nil, err
	}
	manifest := new(ocispec.Manifest)
	children := images.SetChildrenLabels(p.content, onePlatform(images.ChildrenHandler(p.content), platform))
	handler := unpacker.Unpack(images.Handlers(p.fetchBlob(fetcher), p.check(manifest), children))
	if err := images.Dispatch(ctx, handler, nil, target); err != nil {
		cancel()
		_, _ = unpacker.Wait() // ends because of the same error
		return nil, err
	}
	_, err = unpacker.Wait()
	return manifest, err
}

// layerApplier unpacks every layer straight into its directory. The applier
// beneath does so for an overlay; a lone layer, which is a bind mount, it would
// mount somewhere for the time being, and a kill would leave the mount there.
type layerApplier struct{ diff.Applier }

func (a layerApplier) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	if len(mounts) == 1 && mounts[0].Type == "bind" {
		mounts = []mount.Mount{{Type: "overlay", Options: []string{"upperdir=" + mounts[0].Source}}}
	}
	return a.Applier.Apply(ctx, desc, mounts, opts...)
}

// fetchBlob gets a blob into the content store.
func (p *pull) fetchBlob(fetcher remotes.Fetcher) images.HandlerFunc {
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if !images.IsLayerType(desc.MediaType) && desc.Size > maxJSON {
			return nil, fmt.Errorf("blob %s of type %q has %d bytes, more than %d: %w",
				desc.Digest, desc.MediaType, desc.Size, maxJSON, errdefs.ErrInvalidArgument)
		}
		// The manifest must not send this daemon to addresses of its choice.
		desc.URLs = nil
		err := remotes.Fetch(ctx, p.content, fetcher, desc)
		if errdefs.IsFailedPrecondition(err) {
			// The blob is not what its descriptor says. Left there, the bad
			// download would be resumed for ever (containerd#3974).
			return nil, errors.Join(err, p.content.Abort(context.WithoutCancel(ctx), remotes.MakeRefKey(ctx, desc)))
		}
		if errdefs.IsAlreadyExists(err) {
			err = nil
		}
		return nil, err
	}
}

// check refuses, before any layer is fetched, what cannot become a root file
// system on this machine. It stores the manifest, of which there is only one:
// see onePlatform.
func (p *pull) check(manifest *ocispec.Manifest) images.HandlerFunc {
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		switch {
		case images.IsManifestType(desc.MediaType):
			m, err := readJSON[ocispec.Manifest](ctx, p.content, desc)
			if err != nil {
				return nil, err
			}
			*manifest = *m
			return nil, checkManifest(m)
		case images.IsConfigType(desc.MediaType):
			spec, err := readJSON[ocispec.Image](ctx, p.content, desc)
			if err != nil {
				return nil, err
			}
			return nil, checkSpec(spec)
		}
		return nil, nil
	}
}

func checkManifest(m *ocispec.Manifest) error {
	if images.IsConfigType(m.Config.MediaType) {
		return nil
	}
	kind := m.ArtifactType
	if kind == "" {
		kind = m.Config.MediaType
	}
	return fmt.Errorf("an artifact of type %q, which has no root file system: %w", kind, errdefs.ErrInvalidArgument)
}

func checkSpec(spec *ocispec.Image) error {
	if spec.OS != "linux" || spec.Architecture != runtime.GOARCH {
		return notForPlatform(platforms.Format(spec.Platform))
	}
	if len(spec.RootFS.DiffIDs) == 0 {
		return fmt.Errorf("no layers, so no root file system: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// onePlatform narrows the children of an index to the manifest that suits
// platform best. One that does not say its platform is the last choice.
func onePlatform(h images.HandlerFunc, platform platforms.MatchComparer) images.HandlerFunc {
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := h(ctx, desc)
		if err != nil || !images.IsIndexType(desc.MediaType) {
			return children, err
		}
		var best *ocispec.Descriptor
		var offered []string
		for i, c := range children {
			if c.Platform != nil {
				offered = append(offered, platforms.Format(*c.Platform))
				if !platform.Match(*c.Platform) {
					continue
				}
			}
			if best == nil || c.Platform != nil && (best.Platform == nil || platform.Less(*c.Platform, *best.Platform)) {
				best = &children[i]
			}
		}
		if best == nil {
			return nil, notForPlatform(offered...)
		}
		return []ocispec.Descriptor{*best}, nil
	}
}

func notForPlatform(offered ...string) error {
	return fmt.Errorf("image for %s, not for linux/%s: %w", strings.Join(offered, ", "), runtime.GOARCH, errdefs.ErrNotFound)
}
