package ledger

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"regexp"
	"strconv"
	"time"

	"spillway/buffer/batch"
	"spillway/outputs"
)

// content is what the body of one object holds.
type content struct {
	bytes   uint64
	pieces  []piece
	gaps    []told
	created time.Time // receive time of the first record; zero: not known
}

// piece is one batch of an object.
type piece struct {
	batch.Header      // Codec, Length, First, Count, CRC, Sum; Seal once it is known
	lump         bool // of more than one batch perhaps: plain lines tell no batches apart
}

// told is one gap record about numbers.
type told struct {
	seq           uint64 // its own number
	Reason        string
	Epoch         batch.Epoch
	First, Last   uint64
	Count         uint64
	Before, After batch.Seal
}

// failure is why an object does not count.
type failure struct {
	kind string
	err  error
}

func (f *failure) Error() string { return f.err.Error() }

func fail(kind, format string, args ...any) error {
	return &failure{kind, fmt.Errorf(format, args...)}
}

// body remembers the far side's own error and sums what is read.
type body struct {
	r   io.Reader
	n   uint64
	crc uint32
	err error
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += uint64(n)
	b.crc = batch.UpdateCRC32C(b.crc, p[:n])
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// read reads o's body to its end and checks what an object can tell alone: its
// CRC, that it decodes, and the numbers inside. Memory is one decoder's and a few
// numbers for each batch of the object.
func (l *Ledger) read(o *outputs.Object) (*content, error) {
	b := &body{r: o.Body}
	l.in.Reset(b)
	r := reader{o: o, in: l.in, next: o.First, lines: l.lines, c: new(content)}
	err := r.pieces()
	l.lines.Reset(nil) // it would keep the object in memory
	defer l.in.Reset(nil)
	if b.err == nil {
		// Whatever else is wrong, changed bytes are why.
		if _, cerr := io.Copy(io.Discard, r.in); cerr == nil && b.crc != o.CRC {
			return nil, fail(KindBytes, "its %d bytes have CRC32C %08x, not %08x as when it was sent: it was changed or cut", b.n, b.crc, o.CRC)
		}
	}
	switch {
	case b.err != nil:
		return nil, &failure{KindUnreadable, b.err}
	case err != nil:
		return nil, err
	}
	r.c.bytes = b.n
	return r.c, nil
}

// reader goes through one body.
type reader struct {
	o     *outputs.Object
	in    *bufio.Reader
	next  uint64 // number of the next record
	lines *bufio.Reader
	tail  []byte // of the next record
	c     *content
}

// pieces reads all batches. Their ends are those of Sizes, else of the frames; of
// plain lines without Sizes nothing tells, and the whole is one piece.
func (r *reader) pieces() error {
	o := r.o
	if o.First == 0 || o.Last < o.First {
		return fail(KindNumbers, "records %d to %d: no such range", o.First, o.Last)
	}
	if o.Sizes != nil {
		want := o.Last - o.First + 1
		for _, s := range o.Sizes {
			if s.Count == 0 || s.Count > want {
				return fail(KindMetadata, "its batch sizes do not add up to records %d to %d", o.First, o.Last)
			}
			want -= s.Count
		}
		if want > 0 {
			return fail(KindMetadata, "its batch sizes do not add up to records %d to %d", o.First, o.Last)
		}
		for _, s := range o.Sizes {
			first := r.next
			if err := r.piece(&limited{r.in, s.Bytes}, false); err != nil {
				return err
			}
			if n := r.next - first; n != s.Count {
				return fail(KindNumbers, "a batch of it has %d records, not %d as its sizes say", n, s.Count)
			}
		}
		if _, err := r.in.Peek(1); err == nil {
			return fail(KindMetadata, "its body is longer than its batch sizes say")
		}
	} else {
		for {
			if _, err := r.in.Peek(1); err == io.EOF && len(r.c.pieces) > 0 {
				break
			}
			var in io.Reader = r.in // of gzip, piece stops at the member's end
			if o.Codec == batch.Zstd {
				in = &frame{in: r.in}
			}
			if err := r.piece(in, true); err != nil {
				return err
			}
		}
	}
	if r.next-1 != o.Last {
		return fail(KindNumbers, "it has records %d to %d, not to %d as it says", o.First, r.next-1, o.Last)
	}
	return nil
}

// limited is an io.LimitedReader that knows a body which ends too early.
type limited struct {
	r io.Reader
	n uint64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.n == 0 {
		return 0, io.EOF
	}
	n, err := l.r.Read(p[:min(uint64(len(p)), l.n)])
	l.n -= uint64(n)
	if err == io.EOF && l.n > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// summed hashes what is read. It has ReadByte, so that a decoder takes nothing that
// is not its own.
type summed struct {
	in  io.Reader
	buf *bufio.Reader // in, or nil
	sum hash.Hash
	crc uint32
	n   uint64
	b   [1]byte
}

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.in.Read(p)
	s.add(p[:n])
	return n, err
}

// ReadByte implements io.ByteReader; buf is set.
func (s *summed) ReadByte() (b byte, err error) {
	if b, err = s.buf.ReadByte(); err == nil {
		s.b[0] = b
		s.add(s.b[:])
	}
	return b, err
}

func (s *summed) add(p []byte) {
	s.sum.Write(p)
	s.crc = batch.UpdateCRC32C(s.crc, p)
	s.n += uint64(len(p))
}

// piece reads one batch. open says that only the frames tell where it ends.
func (r *reader) piece(in io.Reader, open bool) error {
	codec := r.o.Codec
	s := &summed{in: in, sum: sha256.New()}
	lines, err := s.lines(codec)
	first := r.next
	if err == nil {
		err = r.records(lines)
		lines.Close()
	}
	if err == nil && !(open && codec == batch.Gzip) {
		_, err = io.Copy(io.Discard, s)
	}
	var f *failure
	switch {
	case errors.As(err, &f):
		return err
	case err != nil:
		return fail(KindPayload, "its %v payload can't be decoded after record %d: %w", codec, r.next-1, err)
	case r.next == first:
		return fail(KindPayload, "it has a payload without records after record %d", first-1)
	}
	p := piece{Header: batch.Header{Codec: codec, First: first, Count: uint32(r.next - first), Length: uint32(s.n), CRC: s.crc},
		lump: open && codec == batch.None}
	s.sum.Sum(p.Sum[:0])
	r.c.pieces = append(r.c.pieces, p)
	return nil
}

// lines returns the decoder of one frame.
func (s *summed) lines(codec batch.Codec) (io.ReadCloser, error) {
	switch codec {
	case batch.None:
		return io.NopCloser(s), nil
	case batch.Gzip:
		var ok bool
		if s.buf, ok = s.in.(*bufio.Reader); !ok {
			s.buf = bufio.NewReader(s.in)
			s.in = s.buf
		}
		z, err := gzip.NewReader(s)
		if err != nil {
			return nil, err
		}
		z.Multistream(false)
		return z, nil
	}
	in := bufio.NewReader(s)
	if m, _ := in.Peek(4); len(m) < 4 || binary.LittleEndian.Uint32(m) != zstdMagic {
		return nil, errors.New("no zstd frame")
	}
	return batch.NewReader(in)
}

// longest is the longest tail of a record: `"epoch":"<16>","seq":<20>}}\n`.
const longest = 9 + 16 + 8 + 20 + 3

// records reads lines and compares the numbers in them.
func (r *reader) records(in io.Reader) error {
	r.lines.Reset(in)
	var kept []byte // the end of a line's part that is gone from memory
	for {
		line, err := r.lines.ReadSlice('\n')
		whole := kept == nil
		if err == bufio.ErrBufferFull {
			kept = append(kept[:0], line[len(line)-2*longest:]...)
			continue
		}
		if err == io.EOF && len(line) == 0 && whole {
			return nil
		}
		if err == io.EOF {
			return fail(KindPayload, "record %d ends without a line feed", r.next)
		}
		if err != nil {
			return err
		}
		if !whole {
			line = append(kept, line...)
			kept = nil
		}
		if err := r.record(line, whole); err != nil {
			return err
		}
		r.next++
	}
}

// record looks at one line. whole is false when it holds only the line's end.
func (r *reader) record(line []byte, whole bool) error {
	if r.next > r.o.Last {
		return fail(KindNumbers, "it has more records than %d to %d", r.o.First, r.o.Last)
	}
	r.tail = appendTail(r.tail[:0], r.o.Epoch, r.next)
	before, ok := bytes.CutSuffix(line, r.tail)
	if !ok && r.o.Raw {
		return nil
	}
	if !ok {
		epoch, seq, ok := parseTail(line)
		if !ok {
			return fail(KindNumbers, "record %d has no number of its own (no \"spillway\" at its end)", r.next)
		}
		return fail(KindNumbers, "record %d says that it is %d of epoch %v", r.next, seq, epoch)
	}
	if r.next == r.o.First && whole && !r.o.Raw {
		r.c.created = created(line)
	}
	if !whole || !bytes.HasSuffix(before, []byte(`},`)) {
		return nil
	}
	g, err := parseGap(line)
	if err != nil {
		return fail(KindPayload, "record %d is a gap record that can't be read: %w", r.next, err)
	}
	if g.seq = r.next; g.Epoch != 0 {
		r.c.gaps = append(r.c.gaps, g)
	}
	return nil
}

// appendTail appends how the record of that number ends:
//
//	…"epoch":"<16 hex digits>","seq":<decimal>}}\n
//
// No text of a sender can stand there: inside a string its quotes are escaped, and
// behind an embedded object there would be one more brace.
func appendTail(dst []byte, e batch.Epoch, seq uint64) []byte {
	dst = append(dst, `"epoch":"`...)
	var id [8]byte
	binary.BigEndian.PutUint64(id[:], uint64(e))
	dst = hex.AppendEncode(dst, id[:])
	dst = append(dst, `","seq":`...)
	dst = strconv.AppendUint(dst, seq, 10)
	return append(dst, "}}\n"...)
}

// tailRule is any such end.
var tailRule = regexp.MustCompile(`"epoch":"([0-9a-f]{16})","seq":(\d{1,20})\}\}\n$`)

// parseTail reads the number at the end of a record.
func parseTail(line []byte) (e batch.Epoch, seq uint64, ok bool) {
	m := tailRule.FindSubmatch(line[max(0, len(line)-longest):])
	if m == nil {
		return 0, 0, false
	}
	e, err1 := batch.ParseEpoch(string(m[1]))
	seq, err2 := strconv.ParseUint(string(m[2]), 10, 64)
	return e, seq, err1 == nil && err2 == nil
}

// parseGap reads a gap record, as ecs.AppendGap writes it.
func parseGap(line []byte) (g told, err error) {
	var r struct {
		Spillway struct {
			Gap struct {
				Reason string `json:"reason"`
				Epoch  string `json:"epoch"`
				First  uint64 `json:"first"`
				Last   uint64 `json:"last"`
				Count  uint64 `json:"count"`
				Before string `json:"seal_before"`
				After  string `json:"seal_after"`
			} `json:"gap"`
		} `json:"spillway"`
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return told{}, err
	}
	in := &r.Spillway.Gap
	g = told{Reason: in.Reason, First: in.First, Last: in.Last, Count: in.Count}
	if in.Epoch != "" {
		if g.Epoch, err = batch.ParseEpoch(in.Epoch); err != nil {
			return told{}, err
		}
	}
	if in.Before != "" {
		if g.Before, err = batch.ParseSeal(in.Before); err != nil {
			return told{}, err
		}
	}
	if in.After != "" {
		g.After, err = batch.ParseSeal(in.After)
	}
	return g, err
}

// created is the receive time in a record; zero if it has none.
func created(line []byte) time.Time {
	_, rest, _ := bytes.Cut(line, []byte(`"event":{"created":"`))
	text, _, _ := bytes.Cut(rest, []byte(`"`))
	t, _ := time.Parse(time.RFC3339Nano, string(text))
	return t
}
