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
// 1 MiB costs 0.4 % of ratio against 4 MiB and a quarter of the memory.
const WindowSize = 1 << 20

// ErrTooLarge means that one record alone exceeds MaxSingle even compressed.
var ErrTooLarge = errors.New("one record exceeds the largest batch")

// Encoder compresses open batches. It reuses its state; one goroutine uses it.
type Encoder struct {
	codec Codec
	zstd  *zstd.Encoder
	gzip  *gzip.Writer
	buf   bytes.Buffer
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
			zstd.WithWindowSize(WindowSize), zstd.WithEncoderCRC(true), zstd.WithLowerEncoderMem(true))
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
// of its own, flagged Single. Each payload is fresh memory, owned by its batch,
// except that under codec None it is a copy all the same: o may be reused.
func (e *Encoder) Encode(dst []*Batch, o *Open) ([]*Batch, error) {
	return e.encode(dst, o.Lines, Header{Codec: e.codec, Flags: o.Flags, First: o.First, Count: o.Count, FirstTime: o.FirstTime, LastTime: o.LastTime})
}

func (e *Encoder) encode(dst []*Batch, lines []byte, h Header) ([]*Batch, error) {
	if h.Count == 0 {
		return dst, nil
	}
	payload, err := e.compress(lines)
	if err != nil {
		return dst, err
	}
	if len(payload) > MaxPayload && h.Count > 1 {
		return e.halves(dst, lines, h)
	}
	if len(payload) > MaxPayload {
		if len(payload) > MaxSingle {
			return dst, fmt.Errorf("record %d: %d bytes compressed: %w", h.First, len(payload), ErrTooLarge)
		}
		h.Flags |= Single
	}
	h.Length, h.Raw = uint32(len(payload)), uint32(len(lines))
	h.CRC, h.Sum = CRC32C(payload), sha256.Sum256(payload)
	return append(dst, &Batch{Header: h, Payload: payload}), nil
}

// halves cuts lines at the line end nearest below the middle of their number.
func (e *Encoder) halves(dst []*Batch, lines []byte, h Header) ([]*Batch, error) {
	n, cut := h.Count/2, 0
	for range n {
		cut += bytes.IndexByte(lines[cut:], '\n') + 1
	}
	a, b := h, h
	a.Count = n
	b.First, b.Count, b.FirstTime = h.First+uint64(n), h.Count-n, h.LastTime
	a.LastTime = b.FirstTime
	dst, err := e.encode(dst, lines[:cut], a)
	if err != nil {
		return dst, err
	}
	return e.encode(dst, lines[cut:], b)
}

func (e *Encoder) compress(lines []byte) ([]byte, error) {
	switch e.codec {
	case Zstd:
		return e.zstd.EncodeAll(lines, make([]byte, 0, len(lines)/6+512)), nil
	case Gzip:
		e.buf.Reset()
		e.gzip.Reset(&e.buf)
		if _, err := e.gzip.Write(lines); err != nil {
			return nil, err
		}
		if err := e.gzip.Close(); err != nil {
			return nil, err
		}
		return bytes.Clone(e.buf.Bytes()), nil
	}
	return bytes.Clone(lines), nil
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
