package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/runscd/runscd/internal/image"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ImageStore is what the ImageService needs of the images.
type ImageStore interface {
	Pull(ctx context.Context, ref string, auth image.Auth) (*image.Image, error)
	Get(ctx context.Context, ref string) (*image.Image, error)
	List(ctx context.Context) ([]*image.Image, error)
	Remove(ctx context.Context, ref string) error
	Usage(ctx context.Context) (images, containers image.Usage, err error)
	Root() string
}

// ImageServer is the CRI's ImageService. An image's size is that of its
// compressed layers, as a registry would send them.
type ImageServer struct {
	runtime.UnimplementedImageServiceServer
	store        ImageStore
	checkHandler func(handler string) error
}

// NewImageServer serves the images of store. checkHandler gives an error if
// there is no runtime handler of the given name.
func NewImageServer(store ImageStore, checkHandler func(handler string) error) *ImageServer {
	return &ImageServer{store: store, checkHandler: checkHandler}
}

// PullImage fetches an image and returns its ID.
func (s *ImageServer) PullImage(ctx context.Context, r *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	ref, err := s.reference(r.GetImage())
	if err != nil {
		return nil, err
	}
	a := r.GetAuth()
	img, err := s.store.Pull(ctx, ref, image.Auth{
		Username:      a.GetUsername(),
		Password:      a.GetPassword(),
		Auth:          a.GetAuth(),
		ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(),
		RegistryToken: a.GetRegistryToken(),
	})
	if errdefs.IsUnavailable(err) {
		// The kubelet knows this case by its first word, and only in an error
		// of no kind.
		return nil, fmt.Errorf("RegistryUnavailable: %v", err)
	}
	if err != nil {
		return nil, err
	}
	return &runtime.PullImageResponse{ImageRef: img.ID}, nil
}

// ImageStatus describes an image, or no image if it is not there.
func (s *ImageServer) ImageStatus(ctx context.Context, r *runtime.ImageStatusRequest) (*runtime.ImageStatusResponse, error) {
	ref, err := s.reference(r.GetImage())
	if err != nil {
		return nil, err
	}
	img, err := s.store.Get(ctx, ref)
	if errdefs.IsNotFound(err) {
		return &runtime.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtime.ImageStatusResponse{Image: imageToCRI(img)}
	if r.GetVerbose() {
		info, err := json.Marshal(map[string]any{"imageSpec": img.Spec})
		if err != nil {
			return nil, err
		}
		resp.Info = map[string]string{"info": string(info)}
	}
	return resp, nil
}

// ListImages describes all images, or the one of the filter.
func (s *ImageServer) ListImages(ctx context.Context, r *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	list, err := s.list(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtime.ListImagesResponse{Images: list}, nil
}

// StreamImages is ListImages with a message for each image.
func (s *ImageServer) StreamImages(r *runtime.StreamImagesRequest, stream grpc.ServerStreamingServer[runtime.StreamImagesResponse]) error {
	list, err := s.list(stream.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	for _, img := range list {
		if err := stream.Send(&runtime.StreamImagesResponse{Images: []*runtime.Image{img}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *ImageServer) list(ctx context.Context, filter *runtime.ImageFilter) ([]*runtime.Image, error) {
	var images []*image.Image
	if ref := filter.GetImage().GetImage(); ref != "" {
		img, err := s.store.Get(ctx, ref)
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		images = []*image.Image{img}
	} else {
		var err error
		if images, err = s.store.List(ctx); err != nil {
			return nil, err
		}
	}
	list := make([]*runtime.Image, len(images))
	for i, img := range images {
		list[i] = imageToCRI(img)
	}
	return list, nil
}

// RemoveImage removes an image with all its names.
func (s *ImageServer) RemoveImage(ctx context.Context, r *runtime.RemoveImageRequest) (*runtime.RemoveImageResponse, error) {
	ref, err := s.reference(r.GetImage())
	if err != nil {
		return nil, err
	}
	if err := s.store.Remove(ctx, ref); err != nil {
		return nil, err
	}
	return &runtime.RemoveImageResponse{}, nil
}

// ImageFsInfo says what images take, and what containers have written. Both are
// on one file system.
func (s *ImageServer) ImageFsInfo(ctx context.Context, _ *runtime.ImageFsInfoRequest) (*runtime.ImageFsInfoResponse, error) {
	images, containers, err := s.store.Usage(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now().UnixNano()
	usage := func(u image.Usage) []*runtime.FilesystemUsage {
		return []*runtime.FilesystemUsage{{
			Timestamp:  now,
			FsId:       &runtime.FilesystemIdentifier{Mountpoint: s.store.Root()},
			UsedBytes:  &runtime.UInt64Value{Value: u.Bytes},
			InodesUsed: &runtime.UInt64Value{Value: u.Inodes},
		}}
	}
	return &runtime.ImageFsInfoResponse{ImageFilesystems: usage(images), ContainerFilesystems: usage(containers)}, nil
}

// reference is what spec names, if it is complete.
func (s *ImageServer) reference(spec *runtime.ImageSpec) (string, error) {
	if spec.GetImage() == "" {
		return "", fmt.Errorf("image.image: empty: %w", errdefs.ErrInvalidArgument)
	}
	if err := s.checkHandler(spec.GetRuntimeHandler()); err != nil {
		return "", fmt.Errorf("image.runtime_handler: %w", err)
	}
	return spec.GetImage(), nil
}

func imageToCRI(img *image.Image) *runtime.Image {
	out := &runtime.Image{
		Id:          img.ID,
		RepoTags:    img.RepoTags,
		RepoDigests: img.RepoDigests,
		Size:        img.Size,
		Username:    img.Username,
		Spec:        &runtime.ImageSpec{Image: img.ID},
		Pinned:      img.Pinned,
	}
	if img.UID != nil {
		out.Uid = &runtime.Int64Value{Value: *img.UID}
	}
	return out
}
