package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

var errStalled = errors.New("no progress")

// watch ends a pull whose open requests bring no byte for a time. While no
// request is open, as when layers are unpacked or another pull fetches them, it
// does not count.
type watch struct {
	timeout time.Duration // 0: never

	mu sync.Mutex
	// +checklocks:mu
	open int
	// +checklocks:mu
	timer *time.Timer // runs while open > 0
}

func newWatch(timeout time.Duration, cancel context.CancelCauseFunc) *watch {
	w := &watch{timeout: timeout}
	w.timer = time.AfterFunc(time.Hour, func() {
		cancel(fmt.Errorf("not a byte in %s: %w: %w", timeout, errStalled, errdefs.ErrUnavailable))
	})
	w.timer.Stop()
	return w
}

// add counts opened (1), progressing (0) and finished (-1) requests.
func (w *watch) add(n int) {
	if w.timeout == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open += n
	if w.open > 0 {
		w.timer.Reset(w.timeout)
	} else {
		w.timer.Stop()
	}
}

func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
}

// watchedTransport reports requests and the bytes of their answers.
type watchedTransport struct {
	next      http.RoundTripper
	watch     *watch
	onReceive func(n int)
}

func (t *watchedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.watch.add(1)
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		t.watch.add(-1)
		return nil, err
	}
	resp.Body = &watchedBody{ReadCloser: resp.Body, watch: t.watch, onReceive: t.onReceive}
	return resp, nil
}

type watchedBody struct {
	io.ReadCloser
	watch     *watch
	onReceive func(n int)
	once      sync.Once
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.onReceive(n)
		b.watch.add(0)
	}
	if err != nil {
		b.finish()
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.finish()
	return b.ReadCloser.Close()
}

func (b *watchedBody) finish() { b.once.Do(func() { b.watch.add(-1) }) }
