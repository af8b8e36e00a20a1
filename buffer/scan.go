package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"

	"spillway/buffer/batch"
)

// Kind says what an Extent is.
type Kind uint8

// Kinds of extents.
const (
	KindHeader Kind = 1 // the segment header
	KindBatch  Kind = 2 // a valid batch
	KindFooter Kind = 3 // the footer
	KindDamage Kind = 4 // bytes that are nothing of these, or of a newer version: then Err is ErrVersion
)

// Extent is one piece of a segment; extents follow one another without a gap.
type Extent struct {
	Kind     Kind
	Off, End int64 // [Off, End) in the segment

	// Batch is the batch of a KindBatch. Of a KindDamage it is the header of a
	// batch whose header is intact and whose payload is not, so that what is lost
	// is known exactly; else its Count is 0.
	// The payload is valid until the next extent.
	Batch  batch.Batch
	Footer Footer

	Err error // why a KindDamage is one

	header segmentHeader
}

const (
	window = 64 << 10 // of the search for the next header
	block  = 4 << 10  // what an unreadable place costs
)

// scanner is the one parser of segments: opening, reading, verifying and the
// tools all use it. It steps from batch to batch; where there is none, it
// searches for the next header that carries the segment's salt and is intact.
//
// It takes time linear in the segment, whatever is in it: a candidate is
// compared with the salt inside the window before anything else is looked at, and
// the payload of an intact header is looked at once and then stepped over, even
// if it is bad. (A header of this salt lies where it was written: segments are
// only ever appended to, and nobody outside knows the salt.) Memory is bounded
// by one window and, with payloads, by one payload that fits into the file.
type scanner struct {
	r        io.ReaderAt
	off, end int64
	salt     uint64
	anySalt  bool // no name to take the salt from: the header's
	payloads bool // read and check payloads too
	halt     bool // a read error ends it, off stays where it is: somebody judges first

	head [batch.HeaderSize]byte
	long []byte // a header of a newer version
	win  []byte
	buf  []byte
	ioe  error // the last read error since next was called
	bad  bool  // there was a read error since reset
}

func (s *scanner) reset(r io.ReaderAt, off, end int64, salt uint64) {
	s.r, s.off, s.end, s.salt, s.ioe, s.bad = r, off, end, salt, nil, false
}

// next returns the next extent, or false at the end.
func (s *scanner) next() (e Extent, ok bool) {
	if s.off >= s.end {
		return Extent{}, false
	}
	s.ioe = nil
	b := s.read(s.head[:], s.off)
	if s.halt && s.bad {
		return Extent{}, false
	}
	if s.off == 0 {
		whole := b
		if len(b) >= 4 && le.Uint32(b) == magicSegment {
			whole = s.whole(b, 0)
		}
		h, err := parseSegmentHeader(whole)
		if err == nil && s.anySalt {
			s.salt = h.Salt
		}
		if err == nil && h.Salt == s.salt {
			s.off = segmentHeaderSize
			return Extent{Kind: KindHeader, End: segmentHeaderSize, header: h}, true
		}
		if errors.Is(err, ErrVersion) {
			return s.damage(int64(batch.HeaderLen(whole)), err), true
		}
	}
	if e, ok := s.parse(b, s.off); ok {
		s.off = e.End
		return e, true
	}
	err := s.ioe
	if err == nil {
		err = s.newer(b, s.off)
	}
	if err == nil {
		err = errors.New("no intact header")
	}
	end := s.search(s.off + 1)
	if s.halt && s.bad {
		return Extent{}, false
	}
	return s.damage(end, err), true
}

// damage makes [s.off, end) a damaged extent and steps over it.
func (s *scanner) damage(end int64, err error) Extent {
	e := Extent{Kind: KindDamage, Off: s.off, End: min(end, s.end), Err: err}
	s.off = e.End
	return e
}

// parse reads the batch or footer whose first bytes are b and which lies at off.
func (s *scanner) parse(b []byte, off int64) (Extent, bool) {
	if f, ok := parseFooter(b, off); ok && f.Salt == s.salt {
		return Extent{Kind: KindFooter, Off: off, End: off + footerSize, Footer: f}, true
	}
	h, err := batch.ParseHeader(b)
	if err != nil || h.Salt != s.salt || int64(h.Length) > s.end-off-batch.HeaderSize {
		return Extent{}, false
	}
	e := Extent{Kind: KindBatch, Off: off, End: off + batch.HeaderSize + int64(h.Length), Batch: batch.Batch{Header: h}}
	if s.payloads {
		if int64(cap(s.buf)) < int64(h.Length) {
			s.buf = make([]byte, h.Length)
		}
		e.Batch.Payload = s.read(s.buf[:h.Length], off+batch.HeaderSize)
		if len(e.Batch.Payload) != int(h.Length) || batch.CRC32C(e.Batch.Payload) != h.CRC {
			e.Kind, e.Err = KindDamage, batch.ErrChecksum
			if s.ioe != nil {
				e.Err = s.ioe
			}
			e.Batch.Payload = nil
		}
	}
	return e, true
}

// whole returns the header that begins with b and lies at off, all of it if there is as
// much as its length says.
func (s *scanner) whole(b []byte, off int64) []byte {
	n := batch.HeaderLen(b)
	if n <= len(b) {
		return b
	}
	if s.long == nil {
		s.long = make([]byte, batch.MaxHeader)
	}
	return s.read(s.long[:n], off)
}

// newer returns ErrVersion if what begins with b and lies at off is an intact header of
// this segment that this version can't read: its payload may be anything, and is no damage.
func (s *scanner) newer(b []byte, off int64) error {
	if !s.candidate(b) {
		return nil
	}
	b = s.whole(b, off)
	if v, ok := batch.Version(b, magicFooter, kindFooter); ok && v != version1 {
		return fmt.Errorf("%w: version %d", ErrVersion, v)
	}
	if _, err := batch.ParseHeader(b); errors.Is(err, ErrVersion) {
		return err
	}
	return nil
}

// needle is the common part of the magic numbers, behind their first byte.
var needle = []byte{0x2A, 0x4D, 0x18}

// search returns the offset of the first intact header at from or behind it, or
// the end of the segment.
func (s *scanner) search(from int64) int64 {
	if s.win == nil {
		s.win = make([]byte, window)
	}
	for from < s.end {
		win := s.read(s.win, from)
		for i := 0; ; i++ {
			n := bytes.Index(win[i:], needle)
			if n < 0 {
				break
			}
			i += n
			if i == 0 || !s.candidate(win[i-1:]) {
				continue
			}
			off := from + int64(i) - 1
			b := win[i-1:]
			if len(b) < batch.HeaderSize {
				b = s.read(s.head[:], off)
			}
			payloads := s.payloads
			s.payloads = false
			_, ok := s.parse(b, off)
			s.payloads = payloads
			if ok || s.newer(b, off) != nil {
				return off
			}
		}
		if from+int64(len(win)) >= s.end || len(win) < window {
			break
		}
		from += int64(len(win)) - 64 // a candidate is judged by its first 64 bytes
	}
	return s.end
}

// candidate compares the magic number, the kind and the salt at the start of b, which
// have the same place in every version.
func (s *scanner) candidate(b []byte) bool {
	if len(b) < 64 || batch.HeaderLen(b) < 64 {
		return false
	}
	switch le.Uint32(b) {
	case magicBatch:
		return b[9] == kindBatch && le.Uint64(b[48:]) == s.salt
	case magicFooter:
		return b[9] == kindFooter && le.Uint64(b[56:]) == s.salt
	}
	return false
}

// read fills p from off, as far as the segment goes. A read error is tried three
// times; then what can be read is read block by block and the rest is zero,
// which no checksum accepts.
func (s *scanner) read(p []byte, off int64) []byte {
	p = p[:min(int64(len(p)), max(0, s.end-off))]
	n, err := readAt(s.r, p, off)
	if err == nil || err == io.EOF {
		return p[:n]
	}
	s.ioe, s.bad = err, true
	if s.halt {
		return nil
	}
	clear(p)
	for i := 0; i < len(p); {
		next := min(len(p), i+block-int((off+int64(i))%block))
		if n, err := readAt(s.r, p[i:next], off+int64(i)); err != nil {
			if err == io.EOF {
				return p[:i+n]
			}
			clear(p[i:next])
		}
		i = next
	}
	return p
}

// readAt is r.ReadAt with three tries. The error is io.EOF where r ends early.
func readAt(r io.ReaderAt, p []byte, off int64) (n int, err error) {
	for range 3 {
		n, err = r.ReadAt(p, off)
		if n == len(p) {
			return n, nil
		}
		if err == io.EOF {
			return n, err
		}
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return n, err
}

// promise returns the offset below which every byte of the segment was durable
// once, as far as what follows off tells: damage below it is corruption, damage
// above it a write that was cut off.
func (s *scanner) promise() (below int64) {
	s.payloads = false
	for e, ok := s.next(); ok; e, ok = s.next() {
		below = max(below, int64(e.Batch.SyncedOff), int64(e.Footer.SyncedOff))
	}
	return below
}

// Scan returns the extents of a segment of size bytes in their order, payloads
// checked against their CRC32C. The salt is taken from name, or from the segment
// header if name is not a segment's. It reads only, allocates one window and the
// largest payload, and takes time linear in size, whatever r holds.
func Scan(r io.ReaderAt, size int64, name string) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		seg, ok := parseName(name)
		s := scanner{r: r, end: size, salt: seg.salt, anySalt: !ok, payloads: true}
		for {
			e, ok := s.next()
			if !ok || !yield(e) {
				return
			}
		}
	}
}

// CorruptError is damage at a place.
type CorruptError struct {
	File   string
	Offset int64
	Err    error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s: damaged at byte %d: %v", e.File, e.Offset, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }
