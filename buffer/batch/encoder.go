package batch

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// WindowSize of the zstd encoder in bytes. Athena's decoder takes up to 8 MiB;
// 1 MiB costs 0.4 % of ratio against 4 MiB and a quarter of the memory. An encoder
// keeps twice as much: with less it would move the window down at every block of
// 128 KiB, a tenth of its time.
const WindowSize = 1 << 20

// ErrTooLarge means that one record alone exceeds MaxSingle even compressed.
var ErrTooLarge = errors.New("one record exceeds the largest batch")

// Encoder compresses open batches. It reuses its state; one goroutine uses it.
type Encoder struct {
	codec Codec
	zstd  *zstd.Encoder
	gzip  *gzip.Writer
}

// NewEncoder returns an encoder for codec. level 0 is the fastest; higher
// levels are those of the library: 1..4 for zstd, 1..9 for gzip.
func NewEncoder(codec Codec, level int) (*Encoder, error) {
	e := &Encoder{codec: codec}
	var err error
	switch codec {
	case Zstd:
		if level < 0 || level > int(zstd.SpeedBestCompression) {
			return nil, fmt.Errorf("zstd level %d: want 0 to %d", level, zstd.SpeedBestCompression)
		}
		e.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevel(max(level, 1))), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(WindowSize), zstd.WithEncoderCRC(false)) // the header has a CRC32C and a SHA-256 of the payload
	case Gzip:
		if level < 0 || level > gzip.BestCompression {
			return nil, fmt.Errorf("gzip level %d: want 0 to %d", level, gzip.BestCompression)
		}
		e.gzip, err = gzip.NewWriterLevel(nil, max(level, 1))
	case None:
	default:
		err = fmt.Errorf("unknown %v", codec)
	}
	return e, err
}

// Encode compresses o and appends the resulting batches, not yet sealed, to
// dst: as a rule one. Lines that compress worse than estimated and exceed
// MaxPayload are cut in halves at a line end; a single line that does is a batch
// of its own, flagged Single. Payloads are appended to mem and alias it; it is
// returned as it has grown, to be used again once the batches are done with. o
// may be reused at once.
func (e *Encoder) Encode(dst []*Batch, o *Open, mem []byte) ([]*Batch, []byte, error) {
	h := Header{Codec: e.codec, Flags: o.Flags, First: o.First, Count: o.Count, FirstTime: o.FirstTime, LastTime: o.LastTime}
	return e.encode(dst, o.Lines, h, mem)
}

func (e *Encoder) encode(dst []*Batch, lines []byte, h Header, mem []byte) ([]*Batch, []byte, error) {
	if h.Count == 0 {
		return dst, mem, nil
	}
	start := len(mem)
	mem, err := e.compress(mem, lines)
	if err != nil {
		return dst, mem, err
	}
	payload := mem[start:len(mem):len(mem)]
	if len(payload) > MaxPayload && h.Count > 1 {
		return e.halves(dst, lines, h, mem[:start])
	}
	if len(payload) > MaxPayload {
		if len(payload) > MaxSingle {
			return dst, mem, fmt.Errorf("record %d: %d bytes compressed: %w", h.First, len(payload), ErrTooLarge)
		}
		h.Flags |= Single
	}
	h.Length, h.Raw = uint32(len(payload)), uint32(len(lines))
	h.CRC, h.Sum = CRC32C(payload), sha256.Sum256(payload)
	return append(dst, &Batch{Header: h, Payload: payload}), mem, nil
}

// halves cuts lines at the line end behind half of their number.
func (e *Encoder) halves(dst []*Batch, lines []byte, h Header, mem []byte) ([]*Batch, []byte, error) {
	n, cut := h.Count/2, 0
	for range n {
		cut += bytes.IndexByte(lines[cut:], '\n') + 1
	}
	a, b := h, h
	a.Count = n
	b.First, b.Count, b.FirstTime = h.First+uint64(n), h.Count-n, h.LastTime
	a.LastTime = b.FirstTime
	dst, mem, err := e.encode(dst, lines[:cut], a, mem)
	if err != nil {
		return dst, mem, err
	}
	return e.encode(dst, lines[cut:], b, mem)
}

// compress appends the payload of lines to dst.
func (e *Encoder) compress(dst, lines []byte) ([]byte, error) {
	switch e.codec {
	case Zstd:
		return e.zstd.EncodeAll(lines, dst), nil
	case Gzip:
		buf := bytes.NewBuffer(dst)
		e.gzip.Reset(buf)
		if _, err := e.gzip.Write(lines); err != nil {
			return dst, err
		}
		err := e.gzip.Close()
		return buf.Bytes(), err
	}
	return append(dst, lines...), nil
}

// Sealer chains seals over the batches of one epoch, in their order. One
// goroutine uses it.
type Sealer struct {
	Epoch Epoch
	Prev  Seal // of the batch before; zero at the start of an epoch
}

// Seal gives b its seal. From then on its bytes and its identity are fixed.
func (s *Sealer) Seal(b *Batch) {
	b.Seal = b.Chain(s.Prev, s.Epoch)
	s.Prev = b.Seal
}
