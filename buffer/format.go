package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"spillway/buffer/batch"
)

// Numbers of the format; never change one. All of them are magic numbers of zstd
// skippable frames, so that a segment of zstd batches is a legal .zst file.
const (
	magicSegment = 0x184D2A5B
	magicBatch   = 0x184D2A5C // written by package batch
	magicFooter  = 0x184D2A5D

	version1    = 1 // of segment and cursor: any change of what lies in a directory is another one
	kindSegment = 1
	kindBatch   = 2
	kindFooter  = 3
	flagAside   = 1 // of a segment header
	flagDurable = 2

	segmentHeaderSize = 112
	footerSize        = 80
)

var le = binary.LittleEndian

// MaxAgent is the length of the longest agent name in bytes.
const MaxAgent = 64

// ValidAgent reports whether s may name an agent: 1 to 64 of [A-Za-z0-9_-].
func ValidAgent(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= MaxAgent
}

const extension = ".seg"

// segmentName returns a segment's file name. From the names alone the order, the
// first number and the epoch of every segment are known, and the salt even if
// the block that holds the segment header is destroyed.
//
//	<ordinal>-<epoch>-<first>-<salt>-<agent>.seg     16 hex digits each, the agent as it is
func segmentName(ordinal uint64, epoch batch.Epoch, first, salt uint64, agent string) string {
	return fmt.Sprintf("%016x-%016x-%016x-%016x-%s%s", ordinal, uint64(epoch), first, salt, agent, extension)
}

// parseName is the inverse of segmentName.
func parseName(name string) (s segment, ok bool) {
	rest, ok := strings.CutSuffix(name, extension)
	if !ok || len(rest) < 4*17+1 {
		return s, false
	}
	var v [4]uint64
	for i := range v {
		n, err := strconv.ParseUint(rest[:16], 16, 64)
		if err != nil || rest[16] != '-' {
			return s, false
		}
		v[i], rest = n, rest[17:]
	}
	s = segment{ordinal: v[0], epoch: batch.Epoch(v[1]), first: v[2], salt: v[3], agent: rest}
	// The last comparison refuses other spellings of the same numbers.
	return s, ValidAgent(rest) && s.first > 0 && s.name() == name
}

// segmentHeader is what a segment says of itself. It is a help, not a need: the
// scanner works without it, with the salt of the name.
type segmentHeader struct {
	Opens   uint32 // how often this directory had been opened; a diagnostic
	Epoch   batch.Epoch
	Ordinal uint64
	First   uint64     // number of the first record
	Created int64      // unix ns, information only
	Salt    uint64     // of every header in this segment
	Floor   uint64     // every record up to this one was delivered or told as lost when the segment was created
	Before  batch.Seal // the seal before the segment's first batch; zero at the start of an epoch
	Aside   bool       // written by Reject: what comes before and behind it lies elsewhere
	Durable bool       // every batch of its epoch before it was durable when it was begun
}

// appendSegmentHeader appends the header in its 112 bytes, little-endian:
//
//	  0  4  magic 0x184D2A5B, a zstd skippable frame
//	  4  4  length of what follows, 104
//	  8  1  version, 1
//	  9  1  kind, 1
//	 10  2  flags: 1 kept aside by Reject, 2 all of its epoch before it was durable when it was begun
//	 12  4  opens
//	 16  8  epoch
//	 24  8  zero
//	 32  8  ordinal
//	 40  8  first record number
//	 48  8  created, unix ns
//	 56  8  salt
//	 64  8  acked floor, a record number
//	 72 32  seal before the first batch
//	104  4  zero
//	108  4  CRC32C(bytes 0..107)
func appendSegmentHeader(dst []byte, h *segmentHeader) []byte {
	n := len(dst)
	dst = append(dst, make([]byte, segmentHeaderSize)...)
	b := dst[n:]
	le.PutUint32(b[0:], magicSegment)
	le.PutUint32(b[4:], segmentHeaderSize-8)
	b[8], b[9] = version1, kindSegment
	if h.Aside {
		b[10] |= flagAside
	}
	if h.Durable {
		b[10] |= flagDurable
	}
	le.PutUint32(b[12:], h.Opens)
	le.PutUint64(b[16:], uint64(h.Epoch))
	le.PutUint64(b[32:], h.Ordinal)
	le.PutUint64(b[40:], h.First)
	le.PutUint64(b[48:], uint64(h.Created))
	le.PutUint64(b[56:], h.Salt)
	le.PutUint64(b[64:], h.Floor)
	copy(b[72:], h.Before[:])
	le.PutUint32(b[108:], batch.CRC32C(b[:108]))
	return dst
}

var errNotHeader = errors.New("not a segment header")

// parseSegmentHeader reads a header from the start of b. An intact header of a newer
// version, which may be longer, is ErrVersion.
func parseSegmentHeader(b []byte) (h segmentHeader, err error) {
	switch v, ok := batch.Version(b, magicSegment, kindSegment); {
	case !ok:
		return h, errNotHeader
	case v != version1:
		return h, fmt.Errorf("%w: version %d", ErrVersion, v)
	case batch.HeaderLen(b) != segmentHeaderSize:
		return h, errNotHeader
	}
	return segmentHeader{
		Opens: le.Uint32(b[12:]), Epoch: batch.Epoch(le.Uint64(b[16:])), Ordinal: le.Uint64(b[32:]), First: le.Uint64(b[40:]),
		Created: int64(le.Uint64(b[48:])), Salt: le.Uint64(b[56:]), Floor: le.Uint64(b[64:]), Before: batch.Seal(b[72:104]), Aside: b[10]&flagAside != 0, Durable: b[10]&flagDurable != 0,
	}, nil
}

// readSegmentHeader reads the header at the start of r.
func readSegmentHeader(r io.ReaderAt) (segmentHeader, error) {
	buf := make([]byte, segmentHeaderSize)
	n, _ := readAt(r, buf, 0)
	if size := batch.HeaderLen(buf[:n]); size > n && le.Uint32(buf) == magicSegment {
		buf = make([]byte, size)
		n, _ = readAt(r, buf, 0)
	}
	return parseSegmentHeader(buf[:n])
}

// Footer closes a segment that was filled or closed in order. A segment without
// one was cut off: by a crash, or by an error after which it was given up.
type Footer struct {
	Batches   uint32
	Last      uint64 // number of the last record
	End       int64  // where the last batch ends and the footer begins
	FirstTime int64  // receive time of the first record, unix ns
	LastTime  int64  // receive time of the last record, unix ns
	Raw       uint64 // bytes before compression
	Salt      uint64
	SyncedOff uint32 // every byte below this offset was fsynced when this was written
}

// appendFooter appends the footer in its 80 bytes, little-endian:
//
//	 0  4  magic 0x184D2A5D, a zstd skippable frame
//	 4  4  length of what follows, 72
//	 8  1  version, 1
//	 9  1  kind, 3
//	10  2  zero
//	12  4  batches
//	16  8  last record number
//	24  8  data end: the offset of this footer
//	32  8  first time, unix ns
//	40  8  last time, unix ns
//	48  8  raw bytes
//	56  8  salt
//	64  4  synced offset: the footer of a full segment goes out with its last batches; that
//	       of one that was in memory first (Options.Memory) after a sync of all of them
//	68  8  zero
//	76  4  CRC32C(bytes 0..75)
func appendFooter(dst []byte, f *Footer) []byte {
	n := len(dst)
	dst = append(dst, make([]byte, footerSize)...)
	b := dst[n:]
	le.PutUint32(b[0:], magicFooter)
	le.PutUint32(b[4:], footerSize-8)
	b[8], b[9] = version1, kindFooter
	le.PutUint32(b[12:], f.Batches)
	le.PutUint64(b[16:], f.Last)
	le.PutUint64(b[24:], uint64(f.End))
	le.PutUint64(b[32:], uint64(f.FirstTime))
	le.PutUint64(b[40:], uint64(f.LastTime))
	le.PutUint64(b[48:], f.Raw)
	le.PutUint64(b[56:], f.Salt)
	le.PutUint32(b[64:], f.SyncedOff)
	le.PutUint32(b[76:], batch.CRC32C(b[:76]))
	return dst
}

// parseFooter reads a footer from the start of b. It must lie at offset off.
func parseFooter(b []byte, off int64) (f Footer, ok bool) {
	if v, ok := batch.Version(b, magicFooter, kindFooter); !ok || v != version1 || batch.HeaderLen(b) != footerSize {
		return f, false
	}
	f = Footer{
		Batches: le.Uint32(b[12:]), Last: le.Uint64(b[16:]), End: int64(le.Uint64(b[24:])), FirstTime: int64(le.Uint64(b[32:])),
		LastTime: int64(le.Uint64(b[40:])), Raw: le.Uint64(b[48:]), Salt: le.Uint64(b[56:]), SyncedOff: le.Uint32(b[64:]),
	}
	return f, f.End == off
}
