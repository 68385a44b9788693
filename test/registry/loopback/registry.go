package loopback

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// chunk is how many bytes of a blob are sent between two calls of OnChunk.
const chunk = 8 << 10

// Options say who may pull from a registry and how it misbehaves.
type Options struct {
	// TLS serves https, with the certificate Registry.CA.
	TLS bool
	// Username and Password, if given, are asked for: by basic
	// authentication, or if Bearer is set at a token server, which also takes
	// IdentityToken.
	Username, Password string
	Bearer             bool
	IdentityToken      string
	// RegistryToken is a bearer token that the registry takes itself.
	RegistryToken string
	// OnChunk is called before each few bytes of a blob are sent, with their
	// offset. It may wait, but not beyond ctx, which ends with the connection.
	// An error ends the connection.
	OnChunk func(ctx context.Context, blob v1.Hash, offset int64) error
}

// Request is what somebody asked of a registry.
type Request struct {
	Method, Path, Range, Authorization string
}

// Registry serves images on a loopback address.
type Registry struct {
	// Host is its address, the domain of its references.
	Host string
	// URL is Host with its scheme.
	URL string
	// CA is the certificate of a registry with TLS, in PEM.
	CA []byte

	options Options
	server  *httptest.Server

	mu sync.Mutex
	// +checklocks:mu
	blobs map[string][]byte // by digest
	// +checklocks:mu
	manifests map[string]manifest // by repository:tag and repository@digest
	// +checklocks:mu
	corrupt map[string]bool // digests of blobs to send wrong
	// +checklocks:mu
	requests []Request
}

type manifest struct {
	content   []byte
	mediaType types.MediaType
	digest    string
}

// Content is a v1.Image or a v1.ImageIndex.
type Content interface {
	RawManifest() ([]byte, error)
	MediaType() (types.MediaType, error)
	Digest() (v1.Hash, error)
}

// New starts a registry.
func New(o Options) *Registry {
	r := &Registry{
		options:   o,
		blobs:     make(map[string][]byte),
		manifests: make(map[string]manifest),
		corrupt:   make(map[string]bool),
	}
	r.server = httptest.NewUnstartedServer(http.HandlerFunc(r.serve))
	r.server.Config.ErrorLog = log.New(io.Discard, "", 0) // clients that do not trust the certificate
	if o.TLS {
		r.server.StartTLS()
		r.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.server.Certificate().Raw})
	} else {
		r.server.Start()
	}
	r.URL = r.server.URL
	r.Host = r.server.Listener.Addr().String()
	return r
}

// Start starts a registry that ends with the test.
func Start(t testing.TB, o Options) *Registry {
	r := New(o)
	t.Cleanup(r.Close)
	return r
}

// Close ends the registry and all its connections.
func (r *Registry) Close() {
	r.server.CloseClientConnections()
	r.server.Close()
}

// Put offers content as name, "repository:tag", and returns the whole reference.
func (r *Registry) Put(name string, c Content) (string, error) {
	repository, _, ok := strings.Cut(name, ":")
	if !ok {
		return "", fmt.Errorf("name %q without a tag", name)
	}
	m, err := r.put(repository, c)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	r.mu.Lock()
	r.manifests[name] = m
	r.mu.Unlock()
	return r.Host + "/" + name, nil
}

func (r *Registry) put(repository string, c Content) (manifest, error) {
	raw, err := c.RawManifest()
	if err != nil {
		return manifest{}, err
	}
	mediaType, err := c.MediaType()
	if err != nil {
		return manifest{}, err
	}
	digest, err := c.Digest()
	if err != nil {
		return manifest{}, err
	}
	switch c := c.(type) {
	case v1.ImageIndex:
		err = r.putIndex(repository, c)
	case v1.Image:
		err = r.putBlobs(c)
	}
	if err != nil {
		return manifest{}, err
	}
	m := manifest{content: raw, mediaType: mediaType, digest: digest.String()}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.manifests[repository+"@"+m.digest] = m
	return m, nil
}

func (r *Registry) putIndex(repository string, index v1.ImageIndex) error {
	list, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, d := range list.Manifests {
		img, err := index.Image(d.Digest)
		if err != nil {
			return err
		}
		if _, err := r.put(repository, img); err != nil {
			return err
		}
	}
	return nil
}

func (r *Registry) putBlobs(img v1.Image) error {
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	name, err := img.ConfigName()
	if err != nil {
		return err
	}
	blobs := map[string][]byte{name.String(): config}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		rc, err := l.Compressed()
		if err != nil {
			return err
		}
		content, err := io.ReadAll(rc)
		_ = rc.Close()
		if err != nil {
			return err
		}
		blobs[digest.String()] = content
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for d, b := range blobs {
		r.blobs[d] = b
	}
	return nil
}

// Corrupt lets the registry send a blob wrong, or right again.
func (r *Registry) Corrupt(blob v1.Hash, wrong bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.corrupt[blob.String()] = wrong
}

// Requests are the requests so far with a method and a path that contains part.
func (r *Registry) Requests(method, part string) []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []Request
	for _, q := range r.requests {
		if q.Method == method && strings.Contains(q.Path, part) {
			found = append(found, q)
		}
	}
	return found
}

var apiPath = regexp.MustCompile(`^/v2/(.+)/(manifests|blobs)/([^/]+)$`)

func (r *Registry) serve(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, Request{
		Method: q.Method, Path: q.URL.Path, Range: q.Header.Get("Range"), Authorization: q.Header.Get("Authorization"),
	})
	r.mu.Unlock()

	m := apiPath.FindStringSubmatch(q.URL.Path)
	switch {
	case q.URL.Path == "/token":
		r.serveToken(w, q)
	case !r.allowed(q):
		r.challenge(w)
	case m == nil:
		http.NotFound(w, q)
	case m[2] == "manifests":
		r.serveManifest(w, m[1], m[3])
	default:
		r.serveBlob(w, q, m[3])
	}
}

func (r *Registry) serveManifest(w http.ResponseWriter, repository, at string) {
	separator := ":"
	if strings.Contains(at, ":") {
		separator = "@"
	}
	r.mu.Lock()
	m, ok := r.manifests[repository+separator+at]
	r.mu.Unlock()
	if !ok {
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	w.Header().Set("Content-Type", string(m.mediaType))
	w.Header().Set("Content-Length", fmt.Sprint(len(m.content)))
	w.Header().Set("Docker-Content-Digest", m.digest)
	_, _ = w.Write(m.content)
}

func (r *Registry) serveBlob(w http.ResponseWriter, q *http.Request, digest string) {
	r.mu.Lock()
	content, ok := r.blobs[digest]
	wrong := r.corrupt[digest]
	r.mu.Unlock()
	hash, err := v1.NewHash(digest)
	if !ok || err != nil {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown")
		return
	}
	if wrong {
		content = bytes.Clone(content)
		content[len(content)-1] ^= 1
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, q, "", time.Time{}, &blobReader{
		Reader: bytes.NewReader(content),
		onChunk: func(offset int64) error {
			if r.options.OnChunk == nil {
				return nil
			}
			return r.options.OnChunk(q.Context(), hash, offset)
		},
	})
}

type blobReader struct {
	*bytes.Reader
	onChunk func(offset int64) error
}

func (b *blobReader) Read(p []byte) (int, error) {
	if err := b.onChunk(b.Size() - int64(b.Len())); err != nil {
		return 0, err
	}
	return b.Reader.Read(p[:min(len(p), chunk)])
}

// issuedToken is what the token server gives to those it knows.
const issuedToken = "issued-token"

func (r *Registry) allowed(q *http.Request) bool {
	o := r.options
	given := q.Header.Get("Authorization")
	switch {
	case o.Username == "" && o.RegistryToken == "":
		return true
	case o.RegistryToken != "" && given == "Bearer "+o.RegistryToken:
		return true
	case o.Bearer:
		return given == "Bearer "+issuedToken
	}
	return o.Username != "" && given == "Basic "+base64.StdEncoding.EncodeToString([]byte(o.Username+":"+o.Password))
}

func (r *Registry) challenge(w http.ResponseWriter) {
	if r.options.Bearer || r.options.RegistryToken != "" {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="loopback"`, r.URL))
	} else {
		w.Header().Set("WWW-Authenticate", `Basic realm="loopback"`)
	}
	refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
}

// serveToken gives a token for a password (in a header or a form) or an
// identity token (in a form).
func (r *Registry) serveToken(w http.ResponseWriter, q *http.Request) {
	o := r.options
	username, password, _ := q.BasicAuth()
	form := url.Values{}
	if q.Method == http.MethodPost {
		if err := q.ParseForm(); err != nil {
			refuse(w, http.StatusBadRequest, "UNSUPPORTED", err.Error())
			return
		}
		form = q.PostForm
	}
	if form.Get("grant_type") == "password" {
		username, password = form.Get("username"), form.Get("password")
	}
	known := username != "" && username == o.Username && password == o.Password
	known = known || o.IdentityToken != "" && form.Get("grant_type") == "refresh_token" && form.Get("refresh_token") == o.IdentityToken
	if !known {
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"token": issuedToken, "access_token": issuedToken})
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"errors": []map[string]string{{"code": code, "message": message}},
	})
}
