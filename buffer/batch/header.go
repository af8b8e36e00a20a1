package batch

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// HeaderSize is the length of a batch header of version 1 on disk in bytes, MaxHeader
// the most that any header of any version has, those of segments and footers too.
const (
	HeaderSize = 136
	MaxHeader  = 4096
)

// Numbers of the format; never change one.
const (
	magicBatch   = 0x184D2A5C // a zstd skippable frame: zstd tools step over it
	headerLength = HeaderSize - 8
	version1     = 1
	kindBatch    = 2
)

// Errors of ParseHeader.
var (
	ErrNotHeader = errors.New("not a batch header")          // magic, length, kind or checksum
	ErrVersion   = errors.New("written by a newer spillway") // intact, but of a version or with a codec unknown here
)

// Header is what must be known about a payload. See AppendHeader for its bytes.
type Header struct {
	Codec     Codec
	Flags     Flags
	Length    uint32 // payload bytes
	First     uint64 // number of the first record
	Count     uint32 // records, at least 1
	Raw       uint32 // bytes before compression
	FirstTime int64  // receive time of the first record, unix ns
	LastTime  int64  // receive time of the last record, unix ns

	Salt      uint64 // of the segment it lies in; a header with another salt is not a header there
	SyncedOff uint32 // every byte of the segment below this offset was fsynced when this was written

	CRC  uint32            // CRC32C of the payload
	Sum  [sha256.Size]byte // SHA-256 of the payload
	Seal Seal
}

// AppendHeader appends the header in its 136 bytes, little-endian:
//
//	  0  4  magic 0x184D2A5C, a zstd skippable frame
//	  4  4  length of what follows, 128
//	  8  1  version, 1
//	  9  1  kind, 2
//	 10  1  codec: 0 none, 1 gzip, 2 zstd
//	 11  1  flags
//	 12  4  payload length
//	 16  8  first record number
//	 24  4  record count
//	 28  4  raw length
//	 32  8  first time, unix ns
//	 40  8  last time, unix ns
//	 48  8  salt of the segment
//	 56  4  synced offset
//	 60  4  CRC32C of the payload
//	 64 32  SHA-256 of the payload
//	 96 32  seal
//	128  4  zero
//	132  4  CRC32C of bytes 0..131
//
// followed by the payload.
func AppendHeader(dst []byte, h *Header) []byte {
	n := len(dst)
	dst = append(dst, make([]byte, HeaderSize)...)
	b := dst[n:]
	le := binary.LittleEndian
	le.PutUint32(b[0:], magicBatch)
	le.PutUint32(b[4:], headerLength)
	b[8], b[9], b[10], b[11] = version1, kindBatch, byte(h.Codec), byte(h.Flags)
	le.PutUint32(b[12:], h.Length)
	le.PutUint64(b[16:], h.First)
	le.PutUint32(b[24:], h.Count)
	le.PutUint32(b[28:], h.Raw)
	le.PutUint64(b[32:], uint64(h.FirstTime))
	le.PutUint64(b[40:], uint64(h.LastTime))
	le.PutUint64(b[48:], h.Salt)
	le.PutUint32(b[56:], h.SyncedOff)
	le.PutUint32(b[60:], h.CRC)
	copy(b[64:], h.Sum[:])
	copy(b[96:], h.Seal[:])
	le.PutUint32(b[132:], CRC32C(b[:132]))
	return dst
}

// HeaderLen returns how many bytes the header has that begins with b, by its length field
// alone; 0 if that is out of bounds, or not there.
func HeaderLen(b []byte) int {
	if len(b) < 8 {
		return 0
	}
	n := int64(binary.LittleEndian.Uint32(b[4:])) + 8
	if n < 16 || n > MaxHeader {
		return 0
	}
	return int(n)
}

// Version returns the version of the header at the start of b, at least 1; ok is false
// if it is not an intact one of this magic number and kind. It looks only at what every
// version of every header has, batch, segment or footer, little-endian:
//
//	 0  4  magic
//	 4  4  length of what follows, at most 4,088
//	 8  1  version
//	 9  1  kind
//	-4  4  CRC32C of all bytes before it
func Version(b []byte, magic uint32, kind byte) (version byte, ok bool) {
	le := binary.LittleEndian
	n := HeaderLen(b)
	if n == 0 || n > len(b) || le.Uint32(b) != magic || b[8] == 0 || b[9] != kind || le.Uint32(b[n-4:]) != CRC32C(b[:n-4]) {
		return 0, false
	}
	return b[8], true
}

// ParseHeader reads a header from the start of b. It checks its checksum and its own
// bounds (count, payload length); nothing of a header is used before that. The salt is
// the caller's to compare. An intact header of a newer version, which may be longer than
// HeaderSize, and one with an unknown codec are ErrVersion.
func ParseHeader(b []byte) (Header, error) {
	le := binary.LittleEndian
	switch v, ok := Version(b, magicBatch, kindBatch); {
	case !ok:
		return Header{}, ErrNotHeader
	case v != version1:
		return Header{}, fmt.Errorf("%w: version %d", ErrVersion, v)
	case HeaderLen(b) != HeaderSize:
		return Header{}, ErrNotHeader
	}
	h := Header{
		Codec: Codec(b[10]), Flags: Flags(b[11]), Length: le.Uint32(b[12:]),
		First: le.Uint64(b[16:]), Count: le.Uint32(b[24:]), Raw: le.Uint32(b[28:]),
		FirstTime: int64(le.Uint64(b[32:])), LastTime: int64(le.Uint64(b[40:])),
		Salt: le.Uint64(b[48:]), SyncedOff: le.Uint32(b[56:]), CRC: le.Uint32(b[60:]),
		Sum: [sha256.Size]byte(b[64:96]), Seal: Seal(b[96:128]),
	}
	if err := h.validate(); err != nil {
		return Header{}, err
	}
	return h, nil
}

func (h *Header) validate() error {
	limit := uint32(MaxPayload)
	if h.Flags&Single != 0 {
		limit = MaxSingle
	}
	switch {
	case h.Codec > Zstd:
		return fmt.Errorf("%w: codec %d", ErrVersion, h.Codec)
	case h.Length == 0 || h.Length > limit:
		return fmt.Errorf("%w: payload length %d", ErrNotHeader, h.Length)
	case h.Count == 0 || h.First == 0 || h.First+uint64(h.Count)-1 < h.First:
		return fmt.Errorf("%w: records %d from %d", ErrNotHeader, h.Count, h.First)
	case h.Flags&Single != 0 && h.Count != 1:
		return fmt.Errorf("%w: single with %d records", ErrNotHeader, h.Count)
	}
	return nil
}
