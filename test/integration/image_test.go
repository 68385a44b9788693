package integration

import (
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/test/registry/loopback"
)

// put offers an image of busybox with its own configuration.
func put(t *testing.T, r *loopback.Registry, name string, change func(*v1.Config)) (ref, digest string) {
	t.Helper()
	config := loopback.Config()
	change(&config)
	img, err := loopback.Busybox(config)
	check(t, err)
	ref, err = r.Put(name, img)
	check(t, err)
	hash, err := img.Digest()
	check(t, err)
	return ref, hash.String()
}

func TestImages(t *testing.T) {
	d := newDaemon(t, noNetwork)
	tag, digest := put(t, registry, "images:one", func(c *v1.Config) { c.User = "user" })
	byDigest := strings.TrimSuffix(tag, ":one") + "@" + digest
	id, err := d.images.PullImage(ctx(t), &runtime.ImageSpec{Image: byDigest}, nil, nil)
	check(t, err)
	same, err := d.images.PullImage(ctx(t), &runtime.ImageSpec{Image: tag}, nil, nil)
	check(t, err)
	if same != id {
		t.Errorf("ids %s and %s", id, same)
	}
	for _, ref := range []string{id, tag, byDigest} {
		resp, err := d.images.ImageStatus(ctx(t), &runtime.ImageSpec{Image: ref}, true)
		check(t, err)
		img := resp.Image
		if img.GetId() != id || img.Size == 0 || img.Username != "user" || img.Uid != nil ||
			!slices.Equal(img.RepoTags, []string{tag}) || !slices.Equal(img.RepoDigests, []string{byDigest}) {
			t.Errorf("%s: %v", ref, img)
		}
		isJSON(t, resp.Info)
	}
	list, err := d.images.ListImages(ctx(t), &runtime.ImageFilter{Image: &runtime.ImageSpec{Image: tag}})
	check(t, err)
	if len(list) != 1 || list[0].Id != id {
		t.Errorf("list of one: %v", list)
	}
	if list, err = d.images.ListImages(ctx(t), nil); err != nil || len(list) != 2 {
		t.Errorf("list: %v, %v", list, err)
	}
	info, err := d.images.ImageFsInfo(ctx(t))
	check(t, err)
	fs := info.ImageFilesystems[0]
	var st unix.Statfs_t
	if err := unix.Statfs(fs.GetFsId().GetMountpoint(), &st); err != nil || fs.UsedBytes.GetValue() == 0 || fs.InodesUsed.GetValue() == 0 || fs.Timestamp == 0 {
		t.Errorf("image file system: %v, %v", fs, err)
	}

	d.stop(t, unix.SIGTERM)
	d.start(t)
	if list, err = d.images.ListImages(ctx(t), nil); err != nil || len(list) != 2 {
		t.Errorf("list after a restart: %v, %v", list, err)
	}
	for range 2 {
		check(t, d.images.RemoveImage(ctx(t), &runtime.ImageSpec{Image: id}))
	}
	for _, ref := range []string{id, tag, byDigest} {
		resp, err := d.images.ImageStatus(ctx(t), &runtime.ImageSpec{Image: ref}, false)
		check(t, err)
		if resp.Image != nil {
			t.Errorf("%s is still there", ref)
		}
	}
}

// TestPrivateImage pulls with and without the password.
func TestPrivateImage(t *testing.T) {
	d := newDaemon(t, noNetwork)
	private := loopback.Start(t, loopback.Options{Username: "me", Password: "secret", Bearer: true})
	ref, _ := put(t, private, "private:1", func(c *v1.Config) { c.User = "1000:1000" })
	for _, auth := range []*runtime.AuthConfig{nil, {Username: "me", Password: "wrong"}} {
		if _, err := d.images.PullImage(ctx(t), &runtime.ImageSpec{Image: ref}, auth, nil); err == nil || !strings.Contains(err.Error(), "private:1") {
			t.Errorf("pull: %v", err)
		}
	}
	_, err := d.images.PullImage(ctx(t), &runtime.ImageSpec{Image: ref}, &runtime.AuthConfig{Username: "me", Password: "secret"}, nil)
	check(t, err)
	resp, err := d.images.ImageStatus(ctx(t), &runtime.ImageSpec{Image: ref}, false)
	check(t, err)
	if resp.Image.GetUid().GetValue() != 1000 {
		t.Errorf("image: %v", resp.Image)
	}
}

// TestRemoveUsedImage takes the image from under a container, which runs on.
func TestRemoveUsedImage(t *testing.T) {
	d := newDaemon(t, noNetwork)
	c := d.runPod(t).run(t, forever)
	check(t, d.images.RemoveImage(ctx(t), &runtime.ImageSpec{Image: d.image}))
	if out, code := c.exec(t, "cat /etc/passwd"); code != 0 || !strings.Contains(out, "nobody") {
		t.Errorf("output %q, code %d", out, code)
	}
	check(t, d.pods.RemoveContainer(ctx(t), c.id))
	d.layer = 0
}
