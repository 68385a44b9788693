package stdio

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// readSize is how much is read at a time, in bytes.
	readSize = 64 << 10
	// inSize has room for a begun line besides.
	inSize = readSize + maxLine
	// headerSize is a page.
	headerSize = 4096
	// maxKey is the longest key of a stream, in bytes.
	maxKey = 256
	// magic stands at the start of a buffer's file, with the version of its format.
	magic = 0x1<<56 | 0x667562736e7572 // "runsbuf"
	// unread marks memory that a read has not filled. Text does not have it.
	unread = 0xff
)

// buffer holds what a stream has read and not yet logged. It is a file in memory
// that outlives the daemon: each step on the way from the container to the log is
// noted there before and after, by one store, so that the next daemon knows how
// far it was.
type buffer struct {
	*header
	in   []byte
	file string // "" if it is the daemon's own memory, for want of a file
	mem  []byte // header and in, of a file
}

// header is the first page of a buffer's file.
type header struct {
	magic uint64
	// at is a position. All else that is noted counts by what it says.
	at   atomic.Uint64
	log  logPlace // where the log ended before the write that is under way
	time int64    // of the last read, nanoseconds since 1970
	size uint32   // of key
	key  [maxKey]byte
}

// logPlace is a place in a log file, whatever its name.
type logPlace struct {
	dev, ino uint64
	size     int64
}

// position is how far a stream is. What waits for the log is in[start:end].
type position struct {
	start, end int
	asked      int  // bytes that are being read behind end; 0 for no read
	writing    bool // the log gets what is behind start
}

func (p position) pack() uint64 {
	v := uint64(p.start) | uint64(p.end)<<20 | uint64(p.asked)<<40
	if p.writing {
		v |= 1 << 63
	}
	return v
}

func unpack(v uint64) position {
	const mask = 1<<20 - 1
	return position{int(v & mask), int(v >> 20 & mask), int(v >> 40 & mask), v>>63 == 1}
}

func (p position) valid() bool {
	return p.start <= p.end && p.end+p.asked <= inSize
}

func (b *buffer) position() position { return unpack(b.at.Load()) }
func (b *buffer) move(p position)    { b.at.Store(p.pack()) }

// newBuffer makes a buffer in a new file of dir.
func newBuffer(dir string) (*buffer, error) {
	f, err := os.CreateTemp(dir, "")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Memory that the file system has promised: a store to it cannot fail.
	_, err = f.Write(make([]byte, headerSize+inSize))
	var b *buffer
	if err == nil {
		b, err = mapBuffer(f)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	b.header.magic = magic
	return b, nil
}

// openBuffer opens the file of a buffer that an earlier daemon has left. The error
// is ErrInvalidArgument if it is none.
func openBuffer(path string) (*buffer, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != headerSize+inSize {
		return nil, errors.Join(fmt.Errorf("%s is no buffer: %w", path, errdefs.ErrInvalidArgument), err)
	}
	b, err := mapBuffer(f)
	if err != nil {
		return nil, err
	}
	if b.header.magic != magic || !b.position().valid() || b.size > maxKey {
		return nil, errors.Join(fmt.Errorf("%s is no buffer: %w", path, errdefs.ErrInvalidArgument), unix.Munmap(b.mem))
	}
	return b, nil
}

func mapBuffer(f *os.File) (*buffer, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, headerSize+inSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mmap %s: %w", f.Name(), err)
	}
	return &buffer{
		header: (*header)(unsafe.Pointer(&mem[0])), // a page is more than that
		in:     mem[headerSize:], file: f.Name(), mem: mem,
	}, nil
}

// remove frees the buffer with what is in it.
func (b *buffer) remove() error {
	if b.file == "" {
		return nil
	}
	err := errors.Join(os.Remove(b.file), unix.Munmap(b.mem))
	*b = buffer{}
	return err
}

// hold makes an empty buffer that of a stream.
func (b *buffer) hold(key string) {
	b.size = uint32(copy(b.key[:], key))
	b.time = time.Now().UnixNano()
}

// stream is the key of the stream that holds the buffer.
func (b *buffer) stream() string { return string(b.key[:b.size]) }

// waiting is what has been read and not yet logged.
func (b *buffer) waiting() []byte {
	at := b.position()
	return b.in[at.start:at.end]
}

// read reads what there is, at most readSize. It asks for no more than there must
// be, so that a read under which the daemon is killed has read that or nothing:
// the end of the memory tells which.
func (b *buffer) read(fd int) (int, error) {
	at := b.position()
	there, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return 0, err
	}
	at.asked = min(max(there, 1), readSize, inSize-at.end) // one to see the end
	into := b.in[at.end : at.end+at.asked]
	for i := range mark(into) {
		mark(into)[i] = unread
	}
	b.move(at)
	n, err := readNow(fd, into)
	at.end += n
	at.asked = 0
	b.move(at)
	return n, err
}

// mark is the part of the memory for a read that tells whether it came to its end.
func mark(into []byte) []byte { return into[max(0, len(into)-8):] }

// writes notes that the log, which ends at place, gets what waits.
func (b *buffer) writes(place logPlace) {
	b.log = place
	at := b.position()
	at.writing = true
	b.move(at)
}

// wrote notes that n bytes of what waits are logged.
func (b *buffer) wrote(n int) {
	at := b.position()
	at.start += n
	at.writing = false
	b.move(at)
}

// compact makes room for a read.
func (b *buffer) compact() {
	at := b.position()
	if left := at.end - at.start; left <= at.start { // or the copy would spoil what it copies
		copy(b.in, b.in[at.start:at.end])
		b.move(position{end: left})
	}
}

// settle finds out how far the daemon was that has left the buffer. written tells
// how much was written to the log behind a place.
func (b *buffer) settle(written func(logPlace) int64) {
	at := b.position()
	if at.asked > 0 {
		if m := mark(b.in[at.end : at.end+at.asked]); bytes.Count(m, []byte{unread}) < len(m) {
			at.end += at.asked
		}
	}
	if at.writing {
		at.start += consumed(b.in[at.start:at.end], written(b.log))
	}
	at.asked, at.writing = 0, false
	b.move(at)
}
