package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/runscd/runscd/internal/image"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeImages has one image, and pulls as pull says.
type fakeImages struct {
	image *image.Image
	pull  func(ref string, auth image.Auth) error
}

func (f *fakeImages) Pull(_ context.Context, ref string, auth image.Auth) (*image.Image, error) {
	return f.image, f.pull(ref, auth)
}

func (f *fakeImages) Get(_ context.Context, ref string) (*image.Image, error) {
	if ref == "bad ref" {
		return nil, errdefs.ErrInvalidArgument
	}
	if ref != f.image.ID && ref != f.image.RepoTags[0] {
		return nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
	}
	return f.image, nil
}

func (f *fakeImages) List(context.Context) ([]*image.Image, error) {
	return []*image.Image{f.image, {ID: "sha256:other", Size: 1}}, nil
}

func (f *fakeImages) Remove(_ context.Context, ref string) error {
	_, err := f.Get(context.Background(), ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (f *fakeImages) Usage(context.Context) (images, containers image.Usage, err error) {
	return image.Usage{Bytes: 1, Inodes: 2}, image.Usage{Bytes: 3, Inodes: 4}, nil
}

func (f *fakeImages) Root() string { return "/images" }

func newImageServer() (*ImageServer, *fakeImages) {
	uid := int64(1000)
	f := &fakeImages{
		image: &image.Image{ID: "sha256:id", RepoTags: []string{"r.example/app:1"}, RepoDigests: []string{"r.example/app@sha256:d"}, Size: 5, UID: &uid, Pinned: true},
		pull:  func(string, image.Auth) error { return nil },
	}
	f.image.Spec.Config.StopSignal = "SIGUSR1"
	return NewImageServer(f, func(handler string) error {
		if handler != "" && handler != "runsc" {
			return fmt.Errorf("handler %q: %w", handler, errdefs.ErrInvalidArgument)
		}
		return nil
	}), f
}

func TestPullImage(t *testing.T) {
	s, f := newImageServer()
	var got image.Auth
	f.pull = func(_ string, auth image.Auth) error {
		got = auth
		return nil
	}
	resp, err := s.PullImage(t.Context(), &runtime.PullImageRequest{
		Image: &runtime.ImageSpec{Image: "r.example/app:1", RuntimeHandler: "runsc"},
		Auth: &runtime.AuthConfig{
			Username: "u", Password: "p", Auth: "a", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r",
		},
	})
	if err != nil || resp.ImageRef != f.image.ID {
		t.Errorf("response %v, %v", resp, err)
	}
	want := image.Auth{Username: "u", Password: "p", Auth: "a", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r"}
	if got != want {
		t.Errorf("auth %+v", got)
	}

	f.pull = func(string, image.Auth) error { return fmt.Errorf("dial: %w", errdefs.ErrUnavailable) }
	_, err = s.PullImage(t.Context(), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: "app"}})
	if err == nil || !strings.HasPrefix(err.Error(), "RegistryUnavailable: dial") || errdefs.IsUnavailable(err) {
		t.Errorf("unreachable registry: %v", err)
	}
	f.pull = func(string, image.Auth) error { return errdefs.ErrNotFound }
	_, err = s.PullImage(t.Context(), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: "app"}})
	if !errdefs.IsNotFound(err) {
		t.Errorf("unknown image: %v", err)
	}
}

func TestImageRequestsAreChecked(t *testing.T) {
	s, _ := newImageServer()
	for _, c := range []struct {
		spec *runtime.ImageSpec
		word string
	}{
		{nil, "image.image"},
		{&runtime.ImageSpec{}, "image.image"},
		{&runtime.ImageSpec{Image: "app", RuntimeHandler: "runc"}, "image.runtime_handler"},
	} {
		_, pull := s.PullImage(t.Context(), &runtime.PullImageRequest{Image: c.spec})
		_, status := s.ImageStatus(t.Context(), &runtime.ImageStatusRequest{Image: c.spec})
		_, remove := s.RemoveImage(t.Context(), &runtime.RemoveImageRequest{Image: c.spec})
		for _, err := range []error{pull, status, remove} {
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.word) {
				t.Errorf("%v: %v", c.spec, err)
			}
		}
	}
}

func TestImageStatus(t *testing.T) {
	s, f := newImageServer()
	resp, err := s.ImageStatus(t.Context(), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: "r.example/app:1"}, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	img := resp.Image
	if img.Id != f.image.ID || img.Size != 5 || img.Uid.GetValue() != 1000 || img.Username != "" || !img.Pinned || img.Spec == nil ||
		len(img.RepoTags) != 1 || len(img.RepoDigests) != 1 {
		t.Errorf("image %v", img)
	}
	if !strings.Contains(resp.Info["info"], `"imageSpec"`) || !strings.Contains(resp.Info["info"], "SIGUSR1") {
		t.Errorf("info %v", resp.Info)
	}
	resp, err = s.ImageStatus(t.Context(), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: "none"}})
	if err != nil || resp.Image != nil || len(resp.Info) != 0 {
		t.Errorf("absent image: %v, %v", resp, err)
	}
}

func TestListImages(t *testing.T) {
	s, f := newImageServer()
	for ref, want := range map[string]int{"": 2, f.image.ID: 1, "none": 0} {
		filter := &runtime.ImageFilter{Image: &runtime.ImageSpec{Image: ref}}
		resp, err := s.ListImages(t.Context(), &runtime.ListImagesRequest{Filter: filter})
		if err != nil || len(resp.Images) != want {
			t.Errorf("list %q: %v, %v", ref, resp, err)
		}
		stream := &imageStream{ctx: t.Context()}
		if err := s.StreamImages(&runtime.StreamImagesRequest{Filter: filter}, stream); err != nil || len(stream.sent) != want {
			t.Errorf("stream %q: %v, %v", ref, stream.sent, err)
		}
	}
	if _, err := s.ListImages(t.Context(), nil); err != nil {
		t.Errorf("no filter: %v", err)
	}
	stream := &imageStream{ctx: t.Context(), err: errors.New("gone")}
	if err := s.StreamImages(nil, stream); !errors.Is(err, stream.err) {
		t.Errorf("client gone: %v", err)
	}
}

type imageStream struct {
	grpc.ServerStream
	ctx  context.Context
	err  error
	sent []*runtime.StreamImagesResponse
}

func (s *imageStream) Context() context.Context { return s.ctx }

func (s *imageStream) Send(r *runtime.StreamImagesResponse) error {
	s.sent = append(s.sent, r)
	return s.err
}

func TestRemoveImageTwice(t *testing.T) {
	s, f := newImageServer()
	for _, ref := range []string{f.image.ID, "none"} {
		if _, err := s.RemoveImage(t.Context(), &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: ref}}); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestImageFsInfo(t *testing.T) {
	s, _ := newImageServer()
	resp, err := s.ImageFsInfo(t.Context(), &runtime.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	images, containers := resp.ImageFilesystems[0], resp.ContainerFilesystems[0]
	if images.Timestamp == 0 || images.FsId.Mountpoint != "/images" || images.UsedBytes.Value != 1 || images.InodesUsed.Value != 2 ||
		containers.FsId.Mountpoint != "/images" || containers.UsedBytes.Value != 3 || containers.InodesUsed.Value != 4 {
		t.Errorf("response %v", resp)
	}
}
