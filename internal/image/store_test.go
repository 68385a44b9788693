package image

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/runscd/runscd/test/registry/loopback"
	"github.com/sirupsen/logrus"
)

// envKilled makes the test binary a process that pulls until it is killed:
// see TestPullResumesAfterKill.
const (
	envKilledRoot = "IMAGE_TEST_KILLED_ROOT"
	envKilledRef  = "IMAGE_TEST_KILLED_REF"
)

func TestMain(m *testing.M) {
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	DemoteLibraryLogs(quiet)
	// A temporary mount of the libraries would outlive a kill: there are none.
	nowhere, err := os.MkdirTemp("", "image-test")
	if err == nil {
		err = errors.Join(mount.SetTempMountLocation(nowhere), os.Remove(nowhere))
	}
	if err != nil {
		panic(err)
	}
	if root := os.Getenv(envKilledRoot); root != "" {
		s, err := Open(context.Background(), Options{Root: root})
		if err == nil {
			_, err = s.Pull(context.Background(), os.Getenv(envKilledRef), Auth{})
		}
		panic(err) // the parent kills it before
	}
	os.Exit(m.Run())
}

// open opens a store that closes with the test.
func open(t testing.TB, o Options) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("overlay mounts need root")
	}
	if o.Root == "" {
		o.Root = filepath.Join(t.TempDir(), "images")
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// must returns v, or ends the test.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// noise makes an image of layers that do not compress, each of size bytes.
func noise(t testing.TB, size int, seeds ...uint64) v1.Image {
	t.Helper()
	var layers []v1.Layer
	for _, seed := range seeds {
		layers = append(layers, must(loopback.Noise(seed, size))(t))
	}
	return must(loopback.Image(loopback.Config(), layers...))(t)
}

// layer is the digest of the i-th layer's blob.
func layer(t testing.TB, img v1.Image, i int) v1.Hash {
	t.Helper()
	return must(must(img.Layers())(t)[i].Digest())(t)
}

// eventually waits for something that happens on its own.
func eventually(t testing.TB, what string, happened func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if happened() {
			return
		}
	}
	t.Fatal(what)
}

// entries are the names in a directory, which need not exist.
func entries(t testing.TB, elem ...string) []string {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(elem...))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestOpen(t *testing.T) {
	if _, err := Open(t.Context(), Options{Root: "relative"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("relative root: %v", err)
	}
	if _, err := Open(t.Context(), Options{Root: t.TempDir(), Pinned: []string{"UPPER"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("malformed pinned image: %v", err)
	}
	s := open(t, Options{})
	images := must(s.List(t.Context()))(t)
	if len(images) != 0 {
		t.Errorf("images in an empty store: %v", images)
	}
}

func TestCloseEndsPulls(t *testing.T) {
	started := make(chan struct{}, 100)
	r := loopback.Start(t, loopback.Options{OnChunk: func(ctx context.Context, _ v1.Hash, _ int64) error {
		started <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}})
	ref := must(r.Put("app:1", noise(t, 1<<10, 1)))(t)
	s := open(t, Options{})
	failed := make(chan error, 1)
	go func() {
		_, err := s.Pull(context.Background(), ref, Auth{})
		failed <- err
	}()
	<-started
	check(t, s.Close())
	if err := <-failed; err == nil {
		t.Error("pull outlived its store")
	}
	if _, err := s.Pull(t.Context(), ref, Auth{}); !errdefs.IsUnavailable(err) {
		t.Errorf("pull into a closed store: %v", err)
	}
}
