package stdio

import (
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
)

// maxFree is how many buffers are kept for the next output, in number.
const maxFree = 32

// Logs are the logs of containers that share buffers. A stream has a buffer
// only while output arrives, so idle containers cost none.
type Logs struct {
	dir    string
	spaces sync.Pool // of *[linesSize]byte, for log lines on their way

	mu sync.Mutex
	// +checklocks:mu
	free []*buffer
	// left are those of an earlier daemon, by the stream's key.
	// +checklocks:mu
	left map[string]*buffer
	// full says that no new buffer could be made, and that this has been told.
	// +checklocks:mu
	full bool
}

// OpenLogs returns logs whose buffers are files in dir, which is made if it is not
// there and is theirs alone. What an earlier daemon had read of a stream and not
// logged is kept for that, until Forget.
func OpenLogs(dir string) (*Logs, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Logs{dir: dir, left: map[string]*buffer{}}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		b, err := openBuffer(path)
		switch {
		case err != nil:
			logrus.WithError(err).WithField("path", path).Error("damaged output buffer is removed")
			err = os.RemoveAll(path)
		case b.position() == position{}:
			err = b.remove()
		default:
			s.left[b.stream()] = b
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Forget drops what an earlier daemon has left of streams that were not copied
// since, but for those of the containers that keep tells to keep.
func (s *Logs) Forget(keep func(id string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, b := range s.left {
		if id, _, _ := strings.Cut(key, " "); !keep(id) {
			delete(s.left, key)
			s.drop(b)
		}
	}
}

// claim returns what an earlier daemon has left of a stream, nil if nothing.
func (s *Logs) claim(key string) *buffer {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.left[key]
	delete(s.left, key)
	return b
}

// get returns an empty buffer. Without room for one that outlives the daemon it is
// one that does not.
func (s *Logs) get(key string) *buffer {
	s.mu.Lock()
	var b *buffer
	if n := len(s.free); n > 0 {
		b, s.free = s.free[n-1], s.free[:n-1]
	}
	s.mu.Unlock()
	if b == nil {
		b = s.make()
	}
	b.hold(key)
	return b
}

func (s *Logs) make() *buffer {
	b, err := newBuffer(s.dir)
	s.mu.Lock()
	told := s.full
	s.full = err != nil
	s.mu.Unlock()
	if err == nil {
		return b
	}
	if !told {
		logrus.WithError(err).Warn("no room for output buffers: what has been read of output would be lost with the daemon")
	}
	return &buffer{header: new(header), in: make([]byte, inSize)}
}

// put takes a buffer back, and what is in it is gone.
func (s *Logs) put(b *buffer) {
	b.move(position{})
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.file != "" && len(s.free) < maxFree {
		s.free = append(s.free, b)
		return
	}
	s.drop(b)
}

func (s *Logs) drop(b *buffer) {
	if err := b.remove(); err != nil {
		logrus.WithError(err).Warn("output buffer")
	}
}
