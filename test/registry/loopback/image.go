// Package loopback makes small container images and serves them from a registry
// on a loopback address, for tests and for trying runscd without internet. The
// registry can be told to misbehave.
package loopback

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// busybox is where Debian's busybox-static has its program.
const busybox = "/bin/busybox"

// Entry is a file, directory, link or device of a layer.
type Entry struct {
	tar.Header
	Content []byte
}

// Dir is a directory of root's.
func Dir(name string, mode int64) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}}
}

// File is a regular file of root's.
func File(name string, mode int64, content []byte) Entry {
	return Entry{
		Header:  tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))},
		Content: content,
	}
}

// Link is a symbolic link.
func Link(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

// Layer packs entries, compressed with gzip or with zstd.
func Layer(zstd bool, entries ...Entry) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", e.Name, err)
		}
		if _, err := w.Write(e.Content); err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", e.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	options := []tarball.LayerOption{
		tarball.WithCompressionLevel(gzip.BestSpeed),
		tarball.WithMediaType(types.OCILayer),
		tarball.WithCompressedCaching,
	}
	if zstd {
		options = append(options, tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.Bytes())), nil
	}, options...)
}

// Noise is a layer with one file of size bytes that do not compress. The same
// seed gives the same layer.
func Noise(seed uint64, size int) (v1.Layer, error) {
	content := make([]byte, size)
	source := rand.New(rand.NewPCG(seed, 0))
	for i := range content {
		content[i] = byte(source.Uint32())
	}
	return Layer(false, File(fmt.Sprintf("noise-%d", seed), 0o644, content))
}

// Image stacks layers to an image for this machine.
func Image(config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	return ImageFor(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, config, layers...)
}

// ImageFor stacks layers to an image for a platform.
func ImageFor(p v1.Platform, config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Variant = p.OS, p.Architecture, p.Variant
	file.Config = config
	return mutate.ConfigFile(img, file)
}

// Index lists images by the platforms that their configurations state.
func Index(images ...v1.Image) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, img := range images {
		file, err := img.ConfigFile()
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        img,
			Descriptor: v1.Descriptor{Platform: file.Platform()},
		})
	}
	return index, nil
}

// Artifact is something that registries keep but that is no image.
func Artifact() (v1.Image, error) {
	layer, err := Layer(false, File("data", 0o644, []byte("data")))
	if err != nil {
		return nil, err
	}
	img, err := Image(v1.Config{}, layer)
	if err != nil {
		return nil, err
	}
	return mutate.ConfigMediaType(img, "application/vnd.example.config+json"), nil
}

// Config is what the busybox image says by default.
func Config() v1.Config {
	return v1.Config{
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Cmd: []string{"sh"},
	}
}

// Busybox makes an image of this machine's statically linked busybox, with a
// link for each of its commands, the users root, nobody (65534) and user (1000,
// also in group 2000 named extra), and the given configuration.
func Busybox(config v1.Config, more ...v1.Layer) (v1.Image, error) {
	base, err := BusyboxLayer(false)
	if err != nil {
		return nil, err
	}
	return Image(config, append([]v1.Layer{base}, more...)...)
}

// BusyboxLayer is the layer of Busybox.
func BusyboxLayer(zstd bool) (v1.Layer, error) {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, fmt.Errorf("busybox (Debian package busybox-static): %w", err)
	}
	list, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox --list: %w", err)
	}
	entries := []Entry{
		Dir("bin", 0o755), Dir("dev", 0o755), Dir("etc", 0o755), Dir("home", 0o755), Dir("proc", 0o555),
		Dir("root", 0o700), Dir("sys", 0o555), Dir("tmp", 0o1777), Dir("usr", 0o755), Dir("var", 0o755),
		Link("sbin", "bin"), Link("usr/bin", "../bin"), Link("usr/sbin", "../bin"),
		File("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"+
			"user:x:1000:1000:user:/home/user:/bin/sh\n"+
			"nobody:x:65534:65534:nobody:/:/bin/false\n")),
		File("etc/group", 0o644, []byte("root:x:0:\nuser:x:1000:\nextra:x:2000:user\nnogroup:x:65534:\n")),
		File("bin/busybox", 0o755, program),
	}
	home := Dir("home/user", 0o755)
	home.Uid, home.Gid = 1000, 1000
	entries = append(entries, home)
	for name := range strings.FieldsSeq(string(list)) {
		if name != "busybox" {
			entries = append(entries, Link("bin/"+name, "busybox"))
		}
	}
	return Layer(zstd, entries...)
}
