package framing

import (
	"io"
	"sync"
)

// Sizes of a Splitter's buffer: minBuf, four times that and so on up to readSize, and
// above readSize whatever the message needs.
const (
	minBuf   = 4 << 10
	readSize = 64 << 10 // most bytes of one read: a batch of reads must stay in the cache, and more saves no time
)

// Buffers up to readSize, so that a connection can give its own back each time it has been
// read empty and yet costs the garbage collector nothing when it is busy.
var pools [3]sync.Pool // *[4<<10]byte, *[16<<10]byte, *[64<<10]byte

// Fill reads once from r, up to 64 KiB, and returns what r returned. Bytes may have come
// along with an error: call Next before looking at it. The messages handed out before
// are no longer valid. Call Next until it says no before the next Fill; if it is not
// called at all, Fill returns io.ErrShortBuffer in the end. When Broken, it returns Err.
func (s *Splitter) Fill(r io.Reader) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	s.fit()
	room := s.buf[len(s.buf):min(cap(s.buf), len(s.buf)+readSize)]
	if len(room) == 0 {
		return 0, io.ErrShortBuffer
	}
	n, err := r.Read(room)
	s.buf = s.buf[:len(s.buf)+n]
	s.full = n == len(room)
	s.burst += n
	if s.begun < len(jsonxTag) {
		s.look(room[:n])
	}
	return n, err
}

// fit makes room for a read: it moves the unfinished message to the front of the buffer,
// or to another buffer. A larger one is taken only after a read has filled this one,
// and a smaller one as soon as the peer had no more to send, since the read to come may
// be a long wait.
func (s *Splitter) fit() {
	held := len(s.buf) - s.start
	size := max(cap(s.buf), minBuf)
	switch {
	case s.buf == nil:
		// As much as came before the last wait: the peer of a busy connection sends
		// about that again.
		for size < readSize && size < s.last {
			size *= 4
		}
	case s.full && size < readSize:
		size *= 4
	case s.full && size-held < size/4:
		size = min(size+max(size/4, readSize), max(size, s.max+s.tail+readSize))
	case size > readSize && 4*held <= size:
		size = max(readSize, 2*held)
	}
	if !s.full && s.buf != nil {
		for size > minBuf && size <= readSize && 2*held <= size/4 {
			size /= 4
		}
	}
	if s.start == 0 && size == cap(s.buf) {
		return
	}
	old := s.buf
	if size != cap(s.buf) {
		s.buf = newBuffer(size)
	}
	s.buf = s.buf[:held]
	copy(s.buf, old[s.start:])
	if size != cap(old) {
		freeBuffer(old)
	}
	s.delim.shift(s.start)
	s.nul.shift(s.start)
	s.from = max(0, s.from-s.start)
	s.jsonx.at = max(0, s.jsonx.at-s.start)
	s.start = 0
}

// Settle makes the buffer as small as the unfinished message allows, gives it back if
// nothing is held, and returns how many bytes of memory the Splitter holds then: 0, or at
// most eight times what is held and at least 4 KiB. It is for an owner about to wait for a
// peer that has sent all it had; call it after Next said no. The messages handed out
// before are no longer valid.
func (s *Splitter) Settle() int {
	if held := len(s.buf) - s.start; held > 0 {
		if held < cap(s.buf) { // else the next Fill needs a larger one
			s.full = false
			s.fit()
		}
		return cap(s.buf)
	}
	s.full = false
	s.delim.shift(len(s.buf))
	s.nul.shift(len(s.buf))
	s.from = max(0, s.from-len(s.buf))
	freeBuffer(s.buf)
	s.buf, s.start = nil, 0
	s.last, s.burst = s.burst, 0
	return 0
}

func newBuffer(size int) []byte {
	switch size {
	case 4 << 10:
		if p, ok := pools[0].Get().(*[4 << 10]byte); ok {
			return p[:0]
		}
	case 16 << 10:
		if p, ok := pools[1].Get().(*[16 << 10]byte); ok {
			return p[:0]
		}
	case 64 << 10:
		if p, ok := pools[2].Get().(*[64 << 10]byte); ok {
			return p[:0]
		}
	}
	return make([]byte, 0, size)
}

func freeBuffer(b []byte) {
	switch cap(b) {
	case 4 << 10:
		pools[0].Put((*[4 << 10]byte)(b[:cap(b)]))
	case 16 << 10:
		pools[1].Put((*[16 << 10]byte)(b[:cap(b)]))
	case 64 << 10:
		pools[2].Put((*[64 << 10]byte)(b[:cap(b)]))
	}
}
