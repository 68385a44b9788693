package image

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/runscd/runscd/test/registry/loopback"
)

func TestPull(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	s := open(t, Options{Pinned: []string{r.Host + "/app:pinned"}})
	config := loopback.Config()
	config.User = "1000:2000"
	config.StopSignal = "SIGUSR1"
	config.Volumes = map[string]struct{}{"/data": {}}
	config.Entrypoint = []string{"/bin/echo"}
	src := must(loopback.Busybox(config))(t)
	tag := must(r.Put("app:1", src))(t)
	pinned := must(r.Put("app:pinned", src))(t)
	id := must(src.ConfigName())(t).String()
	digest := r.Host + "/app@" + must(src.Digest())(t).String()

	img := must(s.Pull(t.Context(), tag, Auth{}))(t)
	if img.ID != id {
		t.Errorf("ID %s, want %s", img.ID, id)
	}
	if !slices.Equal(img.RepoTags, []string{tag}) || !slices.Equal(img.RepoDigests, []string{digest}) {
		t.Errorf("names %v %v", img.RepoTags, img.RepoDigests)
	}
	if img.UID == nil || *img.UID != 1000 || img.Username != "" {
		t.Errorf("user %v %q", img.UID, img.Username)
	}
	if c := img.Spec.Config; c.StopSignal != "SIGUSR1" || len(c.Volumes) != 1 || c.Entrypoint[0] != "/bin/echo" {
		t.Errorf("configuration %+v", c)
	}
	manifest := must(src.Manifest())(t)
	size := must(src.Size())(t) + manifest.Config.Size
	for _, l := range manifest.Layers {
		size += l.Size
	}
	if img.Size != uint64(size) {
		t.Errorf("size %d, want %d", img.Size, size)
	}
	if img.Pinned {
		t.Error("pinned by another tag")
	}

	img = must(s.Pull(t.Context(), pinned, Auth{}))(t)
	if !img.Pinned || len(img.RepoTags) != 2 || len(img.RepoDigests) != 1 {
		t.Errorf("second tag: %+v", img)
	}
	hex := strings.TrimPrefix(id, "sha256:")
	for _, ref := range []string{tag, pinned, digest, tag + strings.TrimPrefix(digest, r.Host+"/app"), id, hex, hex[:12], id[:19]} {
		got, err := s.Get(t.Context(), ref)
		if err != nil || got.ID != id {
			t.Errorf("get %s: %v", ref, err)
		}
	}
	if list := must(s.List(t.Context()))(t); len(list) != 1 || len(list[0].RepoTags) != 2 {
		t.Errorf("list %+v", list)
	}
	for _, ref := range []string{"nothere", r.Host + "/app:2", "sha256:" + strings.Repeat("0", 64), "ffffffff0000"} {
		if _, err := s.Get(t.Context(), ref); !errdefs.IsNotFound(err) {
			t.Errorf("get %s: %v", ref, err)
		}
		check(t, s.Remove(t.Context(), ref))
	}
	check(t, s.Remove(t.Context(), tag))
	if list := must(s.List(t.Context()))(t); len(list) != 0 {
		t.Errorf("left after removal by one tag: %+v", list[0])
	}
	check(t, s.Remove(t.Context(), tag))
}

func TestPullByDigest(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	s := open(t, Options{})
	src := noise(t, 100, 1)
	must(r.Put("app:1", src))(t)
	ref := r.Host + "/app@" + must(src.Digest())(t).String()
	img := must(s.Pull(t.Context(), ref, Auth{}))(t)
	if len(img.RepoTags) != 0 || !slices.Equal(img.RepoDigests, []string{ref}) {
		t.Errorf("names %v %v", img.RepoTags, img.RepoDigests)
	}
}

// A tag that moves leaves the old image its digest, by which the kubelet finds
// and removes it.
func TestTagMoves(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	s := open(t, Options{})
	ref := must(r.Put("app:1", noise(t, 100, 1)))(t)
	old := must(s.Pull(t.Context(), ref, Auth{}))(t)
	must(r.Put("app:1", noise(t, 100, 2)))(t)
	if img := must(s.Pull(t.Context(), ref, Auth{}))(t); img.ID == old.ID {
		t.Error("tag did not move")
	}
	got := must(s.Get(t.Context(), old.ID))(t)
	if len(got.RepoTags) != 0 || !slices.Equal(got.RepoDigests, old.RepoDigests) {
		t.Errorf("old image: %v %v", got.RepoTags, got.RepoDigests)
	}
}

func TestPullForms(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	s := open(t, Options{})
	gz := must(loopback.Noise(1, 1000))(t)
	zstd := must(loopback.Layer(true, loopback.File("z", 0o644, []byte("zstd"))))(t)
	here := must(loopback.Image(loopback.Config(), zstd, gz))(t)
	other := must(loopback.ImageFor(v1.Platform{OS: "linux", Architecture: "s390x"}, loopback.Config(), gz))(t)
	layerless := must(loopback.Image(loopback.Config()))(t)

	for name, c := range map[string]loopback.Content{
		"app:zstd":  here,
		"app:index": must(loopback.Index(other, here))(t),
		// Images that do not say what they are for are the last choice.
		"app:unsaid": mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{Add: noise(t, 10, 9)},
			mutate.IndexAddendum{Add: here, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}}),
		"app:only": mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: here}),
	} {
		img := must(s.Pull(t.Context(), must(r.Put(name, c))(t), Auth{}))(t)
		if img.ID != must(here.ConfigName())(t).String() {
			t.Errorf("%s: ID %s", name, img.ID)
		}
	}
	for name, c := range map[string]struct {
		content loopback.Content
		kind    func(error) bool
		words   string
	}{
		"bad:index":    {must(loopback.Index(other))(t), errdefs.IsNotFound, "linux/s390x"},
		"bad:platform": {other, errdefs.IsNotFound, "linux/s390x"},
		"bad:artifact": {must(loopback.Artifact())(t), errdefs.IsInvalidArgument, "application/vnd.example"},
		"bad:empty":    {layerless, errdefs.IsInvalidArgument, "no layers"},
	} {
		_, err := s.Pull(t.Context(), must(r.Put(name, c.content))(t), Auth{})
		if err == nil || !c.kind(err) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Pull(t.Context(), r.Host+"/app:none", Auth{}); !errdefs.IsNotFound(err) {
		t.Errorf("unknown tag: %v", err)
	}
	if _, err := s.Pull(t.Context(), "App", Auth{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("malformed reference: %v", err)
	}
	r.Close()
	if _, err := s.Pull(t.Context(), r.Host+"/app:index", Auth{}); !errdefs.IsUnavailable(err) {
		t.Errorf("registry gone: %v", err)
	}
}

func TestConcurrentPullsShareBlobs(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	s := open(t, Options{})
	a, b := noise(t, 50<<10, 1, 2, 3), noise(t, 50<<10, 1, 2, 3, 4)
	refs := []string{must(r.Put("a:1", a))(t), must(r.Put("b:1", b))(t)}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), refs[i%2], Auth{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 4 {
		if n := len(r.Requests("GET", layer(t, b, i).String())); n != 1 {
			t.Errorf("layer %d fetched %d times", i, n)
		}
	}
	for _, ref := range refs {
		target := t.TempDir()
		check(t, s.Mount(t.Context(), "c", must(s.Get(t.Context(), ref))(t).ID, target, nil))
		if got := entries(t, target); len(got) < 3 {
			t.Errorf("%s: files %v", ref, got)
		}
		check(t, s.Unmount(t.Context(), "c", target))
	}
}

// wait waits for release or the end of ctx.
func wait(ctx context.Context, release <-chan struct{}) error {
	select {
	case <-release:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A caller who goes away leaves the pull to the others; the last one ends it.
func TestCallersLeave(t *testing.T) {
	release, started := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r := loopback.Start(t, loopback.Options{OnChunk: func(ctx context.Context, _ v1.Hash, _ int64) error {
		once.Do(func() { close(started) })
		return wait(ctx, release)
	}})
	s := open(t, Options{})
	ref := must(r.Put("app:1", noise(t, 100, 1)))(t)
	impatient, leave := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := s.Pull(impatient, ref, Auth{}); first <- err }()
	<-started
	go func() { _, err := s.Pull(t.Context(), ref, Auth{}); second <- err }()
	eventually(t, "second caller did not join", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, f := range s.flights {
			return f.callers == 2
		}
		return false
	})
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("caller who left: %v", err)
	}
	close(release)
	check(t, <-second)
	if n := len(r.Requests("HEAD", "/manifests/")); n != 1 {
		t.Errorf("%d pulls instead of one", n)
	}
}

func TestLastCallerEndsPull(t *testing.T) {
	started := make(chan struct{}, 100)
	r := loopback.Start(t, loopback.Options{OnChunk: func(ctx context.Context, _ v1.Hash, _ int64) error {
		started <- struct{}{}
		return wait(ctx, nil)
	}})
	s := open(t, Options{})
	ref := must(r.Put("app:1", noise(t, 100, 1)))(t)
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		<-started
		leave()
	}()
	if _, err := s.Pull(ctx, ref, Auth{}); !errors.Is(err, context.Canceled) {
		t.Errorf("pull: %v", err)
	}
	eventually(t, "pull goes on without callers", func() bool {
		s.locks.mu.Lock()
		defer s.locks.mu.Unlock()
		return len(s.locks.locks) == 0
	})
}

func resumed(requests []loopback.Request) bool {
	return slices.ContainsFunc(requests, func(q loopback.Request) bool {
		return q.Range != "" && q.Range != "bytes=0-"
	})
}

// A failed pull is resumed, even if garbage was collected in between.
func TestPullResumesAfterFailure(t *testing.T) {
	var cutting atomic.Bool
	cutting.Store(true)
	r := loopback.Start(t, loopback.Options{OnChunk: func(_ context.Context, _ v1.Hash, offset int64) error {
		if cutting.Load() && offset >= 300<<10 {
			return errors.New("cut")
		}
		return nil
	}})
	s := open(t, Options{})
	src := noise(t, 1<<20, 1)
	ref := must(r.Put("app:1", src))(t)
	if _, err := s.Pull(t.Context(), ref, Auth{}); !errdefs.IsUnavailable(err) {
		t.Fatalf("cut pull: %v", err)
	}
	if _, err := s.db.GarbageCollect(s.ctx); err != nil {
		t.Fatal(err)
	}
	cutting.Store(false)
	before := len(r.Requests("GET", layer(t, src, 0).String()))
	must(s.Pull(t.Context(), ref, Auth{}))(t)
	if got := r.Requests("GET", layer(t, src, 0).String())[before:]; len(got) != 1 || !resumed(got) {
		t.Errorf("requests after the cut: %+v", got)
	}
	if left := must(s.leases.List(s.ctx))(t); len(left) != 0 {
		t.Errorf("leases left: %v", left)
	}
}

func TestPullResumesAfterKill(t *testing.T) {
	var reached atomic.Int64
	hold := make(chan struct{})
	r := loopback.Start(t, loopback.Options{OnChunk: func(ctx context.Context, _ v1.Hash, offset int64) error {
		if offset > 5<<19 { // the client writes a MiB at a time
			reached.Store(offset)
			return wait(ctx, hold)
		}
		return nil
	}})
	src := noise(t, 3<<20, 1)
	ref := must(r.Put("app:1", src))(t)
	root := filepath.Join(t.TempDir(), "images")
	open(t, Options{Root: root}).Close()

	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), envKilledRoot+"="+root, envKilledRef+"="+ref)
	check(t, child.Start())
	eventually(t, "child does not pull", func() bool { return reached.Load() > 0 })
	ingest := filepath.Join(root, "content", "ingest")
	eventually(t, "child does not write", func() bool {
		data, _ := filepath.Glob(filepath.Join(ingest, "*", "data"))
		return slices.ContainsFunc(data, func(path string) bool {
			fi, err := os.Stat(path)
			return err == nil && fi.Size() >= 1<<20
		})
	})
	check(t, child.Process.Kill())
	_ = child.Wait()
	close(hold)

	s := open(t, Options{Root: root})
	must(s.Pull(t.Context(), ref, Auth{}))(t)
	if got := r.Requests("GET", layer(t, src, 0).String()); !resumed(got) {
		t.Errorf("requests: %+v", got)
	}
	eventually(t, "half unpacked layer left", func() bool { return len(entries(t, root, "snapshots", "snapshots")) == 1 })
	if left := entries(t, ingest); len(left) != 0 {
		t.Errorf("downloads left: %v", left)
	}
}

// containerd#3974: a download with wrong bytes must not stay.
func TestCorruptDownload(t *testing.T) {
	r := loopback.Start(t, loopback.Options{})
	s := open(t, Options{})
	src := noise(t, 100<<10, 1, 2)
	ref := must(r.Put("app:1", src))(t)
	r.Corrupt(layer(t, src, 0), true)
	if _, err := s.Pull(t.Context(), ref, Auth{}); err == nil || !strings.Contains(err.Error(), "unexpected commit digest") {
		t.Fatalf("corrupt pull: %v", err)
	}
	r.Corrupt(layer(t, src, 0), false)
	must(s.Pull(t.Context(), ref, Auth{}))(t)
}

func TestProgressTimeout(t *testing.T) {
	var stalling atomic.Bool
	stalling.Store(true)
	r := loopback.Start(t, loopback.Options{OnChunk: func(ctx context.Context, _ v1.Hash, offset int64) error {
		if stalling.Load() && offset > 100<<10 {
			return wait(ctx, nil)
		}
		return nil
	}})
	s := open(t, Options{ProgressTimeout: 300 * time.Millisecond})
	ref := must(r.Put("app:1", noise(t, 300<<10, 1)))(t)
	_, err := s.Pull(t.Context(), ref, Auth{})
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "not a byte in 300ms") {
		t.Errorf("stalled pull: %v", err)
	}
	stalling.Store(false)
	s.options.ProgressTimeout = 0 // this test may be slow, the registry is not
	must(s.Pull(t.Context(), ref, Auth{}))(t)
}

// Only open requests count: unpacking may take as long as it takes.
func TestWatchWaitsOnlyForTheRegistry(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	w := newWatch(time.Millisecond, cancel)
	w.add(1)
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), errStalled) {
		t.Error(context.Cause(ctx))
	}
	w = newWatch(time.Millisecond, func(error) { t.Error("fired without an open request") })
	w.timeout = time.Hour
	w.add(1)
	w.add(-1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer.Stop() {
		t.Error("timer runs without an open request")
	}
}
