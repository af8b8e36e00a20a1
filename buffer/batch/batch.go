// Package batch is the unit that Spillway seals once and never encodes again:
// consecutive records of one lane, compressed as one frame, with an identity
// and a seal. The bytes in the buffer are the bytes that every output delivers.
//
// It is pure (no files, no clock, no goroutines) and shared with the cloud side.
//
//	records ── Builder ──> raw lines ── Encoder ──> payload ── Sealer ──> Batch ── AppendHeader ──> disk
//	                                                                       └── Payload ──> outputs ── NewReader ──> lines
package batch

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"
)

// MaxPayload is the hard cap of a batch's compressed payload in bytes, so that it
// fits a NATS server's default max_payload (1 MiB) together with its headers.
// Only a batch of one record (Single) may exceed it, up to MaxSingle.
const MaxPayload = 900 << 10

// MaxSingle bounds the payload of a batch flagged Single, in bytes.
const MaxSingle = 80 << 20

// Epoch names one unbroken run of record numbers of a lane. It is random and is
// written as 16 hex digits wherever it leaves the process.
type Epoch uint64

// String returns the 16 lower-case hex digits of e.
func (e Epoch) String() string { return fmt.Sprintf("%016x", uint64(e)) }

// ParseEpoch is the inverse of String.
func ParseEpoch(s string) (Epoch, error) {
	n, err := parseHex16(s)
	if err != nil {
		return 0, fmt.Errorf("epoch %q: want 16 hex digits", s)
	}
	return Epoch(n), nil
}

func parseHex16(s string) (uint64, error) {
	if len(s) != 16 {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseUint(s, 16, 64)
}

// Codec says how a payload is compressed. The numbers are part of the format.
type Codec uint8

// Codecs of format v1.
const (
	None Codec = 0 // plain lines
	Gzip Codec = 1 // one gzip member
	Zstd Codec = 2 // one zstd frame, window at most WindowSize, without a content checksum
)

// String returns the name that SPILLWAY_COMPRESSION uses.
func (c Codec) String() string {
	switch c {
	case None:
		return "none"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return "codec " + strconv.Itoa(int(c))
}

// ParseCodec is the inverse of String.
func ParseCodec(s string) (Codec, error) {
	for _, c := range []Codec{None, Gzip, Zstd} {
		if s == c.String() {
			return c, nil
		}
	}
	return 0, fmt.Errorf("compression %q: want zstd, gzip or none", s)
}

// Ext returns the file name ending of c: ".zst", ".gz" or "". Athena decides by it.
func (c Codec) Ext() string {
	switch c {
	case Gzip:
		return ".gz"
	case Zstd:
		return ".zst"
	}
	return ""
}

// Flags of a batch. The numbers are part of the format.
type Flags uint8

// Flags of format v1.
const (
	Unsynced Flags = 1 << 0 // the host's clock was not synchronised
	Unclean  Flags = 1 << 1 // first batch after an unclean stop
	HasGap   Flags = 1 << 2 // holds a gap record
	RawLines Flags = 1 << 3 // message bytes only, not NDJSON
	Single   Flags = 1 << 4 // one record that alone exceeds MaxPayload
)

// Seal is the tamper-evident chain value of a batch; see Sum.
type Seal [sha256.Size]byte

// String returns the seal in hex.
func (s Seal) String() string { return hex.EncodeToString(s[:]) }

// ParseSeal is the inverse of String.
func ParseSeal(s string) (Seal, error) {
	var v Seal
	if len(s) != 2*len(v) {
		return v, fmt.Errorf("seal %q: want %d hex digits", s, 2*len(v))
	}
	if _, err := hex.Decode(v[:], []byte(s)); err != nil {
		return v, fmt.Errorf("seal %q: want %d hex digits", s, 2*len(v))
	}
	return v, nil
}

// Batch is one sealed batch. Payload is one frame of Codec that ends at a line
// end. Who may keep Payload, and for how long, is said by whoever hands it out.
type Batch struct {
	Header
	Payload []byte
}

// Last is the number of the batch's last record.
func (b *Header) Last() uint64 { return b.First + uint64(b.Count) - 1 }

// Chain returns the seal that follows prev:
//
//	SHA-256(prev ‖ epoch u64 ‖ first u64 ‖ last u64 ‖ codec u8 ‖ SHA-256(payload))
//
// numbers little-endian, as on disk. prev is 32 zero bytes for the first batch of
// an epoch. Facts about the disk (salt, offsets) are not in it: a batch written
// again to another segment keeps its seal.
func (b *Header) Chain(prev Seal, e Epoch) Seal {
	var buf [32 + 8 + 8 + 8 + 1 + 32]byte
	copy(buf[:], prev[:])
	binary.LittleEndian.PutUint64(buf[32:], uint64(e))
	binary.LittleEndian.PutUint64(buf[40:], b.First)
	binary.LittleEndian.PutUint64(buf[48:], b.Last())
	buf[56] = byte(b.Codec)
	copy(buf[57:], b.Sum[:])
	return sha256.Sum256(buf[:])
}

// castagnoli is the polynomial of every CRC in Spillway (CRC32C, RFC 3720 B.4).
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC32C is the checksum that headers, identities and object keys use.
func CRC32C(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// UpdateCRC32C continues a CRC32C over p.
func UpdateCRC32C(crc uint32, p []byte) uint32 { return crc32.Update(crc, castagnoli, p) }

// Identity is what consumers deduplicate on, fixed when the batch is sealed:
//
//	<agent>/<epoch>/<first>-<last>-<crc>     numbers in 16, the payload's CRC32C in 8 hex digits
//
// One identity is never given to two contents, one content never gets two.
type Identity struct {
	Agent       string
	Epoch       Epoch
	First, Last uint64
	CRC         uint32
}

// Identity returns the identity of b as sent by agent in epoch e.
func (b *Header) Identity(agent string, e Epoch) Identity {
	return Identity{Agent: agent, Epoch: e, First: b.First, Last: b.Last(), CRC: b.CRC}
}

// String returns the identity's one spelling; it is the Nats-Msg-Id.
func (id Identity) String() string {
	return fmt.Sprintf("%s/%016x/%016x-%016x-%08x", id.Agent, uint64(id.Epoch), id.First, id.Last, id.CRC)
}

// ParseIdentity is the inverse of String.
func ParseIdentity(s string) (Identity, error) {
	bad := fmt.Errorf("identity %q: want <agent>/<epoch>/<first>-<last>-<crc>", s)
	const tail = 1 + 16 + 1 + 16 + 1 + 16 + 1 + 8
	n := len(s) - tail
	if n < 1 || s[n] != '/' || s[n+17] != '/' || s[n+34] != '-' || s[n+51] != '-' {
		return Identity{}, bad
	}
	id := Identity{Agent: s[:n]}
	var err error
	if id.Epoch, err = ParseEpoch(s[n+1 : n+17]); err != nil {
		return Identity{}, bad
	}
	if id.First, err = parseHex16(s[n+18 : n+34]); err != nil {
		return Identity{}, bad
	}
	if id.Last, err = parseHex16(s[n+35 : n+51]); err != nil {
		return Identity{}, bad
	}
	crc, err := strconv.ParseUint(s[n+52:], 16, 32)
	if err != nil {
		return Identity{}, bad
	}
	id.CRC = uint32(crc)
	if id.First == 0 || id.Last < id.First || id.String() != s {
		return Identity{}, bad
	}
	return id, nil
}

// Limits is what an output can take in one run. The zero value of a field is "no limit".
type Limits struct {
	Bytes      int64         // payload bytes of a run; one batch may exceed it alone
	Batches    int           // batches of a run
	Age        time.Duration // how long the first batch of a run may wait for more; 0: a run is due at once
	BatchBytes int64         // payload bytes of one batch; a larger one is unfit for the output
	Last       uint64        // a run ends with this record at the latest; 0: no such bound
	Hour       bool          // a run ends where the hour (UTC) of its batches' first records changes
}

// Run is what an output gets in one call: consecutive batches of one lane with
// one codec and one encoding, of one epoch, without a hole in their numbers.
type Run struct {
	Lane  string
	Agent string
	Epoch Epoch

	Batches []Batch // at least one; see Output.Publish for who owns the payloads
	Before  Seal    // the seal before Batches[0]; zero at the start of an epoch

	Key     string // object outputs: the planned key; used unchanged
	Reason  string // "", "failover" or "large": why this output and not the first
	Attempt int    // 1, or more when parts of the run may have been sent before
}

// First is the number of the run's first record.
func (r *Run) First() uint64 { return r.Batches[0].First }

// Last is the number of the run's last record.
func (r *Run) Last() uint64 { return r.Batches[len(r.Batches)-1].Last() }

// Count is the number of records in the run.
func (r *Run) Count() (n uint64) {
	for i := range r.Batches {
		n += uint64(r.Batches[i].Count)
	}
	return n
}

// Bytes is the size of the run's payloads together.
func (r *Run) Bytes() (n int64) {
	for i := range r.Batches {
		n += int64(len(r.Batches[i].Payload))
	}
	return n
}

// Seal is the seal of the run's last batch.
func (r *Run) Seal() Seal { return r.Batches[len(r.Batches)-1].Seal }

// BeforeOf is the seal before Batches[i].
func (r *Run) BeforeOf(i int) Seal {
	if i == 0 {
		return r.Before
	}
	return r.Batches[i-1].Seal
}

// CRC is the CRC32C of the run's payloads, one behind the other: the body of the object.
func (r *Run) CRC() uint32 {
	var crc uint32
	for i := range r.Batches {
		crc = UpdateCRC32C(crc, r.Batches[i].Payload)
	}
	return crc
}

// Sizes encodes the byte length and record count of each batch of an object, so
// that every identity can be restored from it: unsigned varint pairs, base64.
func (r *Run) Sizes() string {
	buf := make([]byte, 0, 6*len(r.Batches))
	for i := range r.Batches {
		buf = binary.AppendUvarint(buf, uint64(len(r.Batches[i].Payload)))
		buf = binary.AppendUvarint(buf, uint64(r.Batches[i].Count))
	}
	return base64.RawURLEncoding.EncodeToString(buf)
}

// Size is one pair of Sizes.
type Size struct {
	Bytes uint64 // payload length
	Count uint64 // records
}

// ParseSizes is the inverse of Run.Sizes.
func ParseSizes(s string) ([]Size, error) {
	buf, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("batch sizes %q: %w", s, err)
	}
	var out []Size
	for len(buf) > 0 {
		var v Size
		for _, p := range []*uint64{&v.Bytes, &v.Count} {
			u, n := binary.Uvarint(buf)
			if n <= 0 {
				return nil, fmt.Errorf("batch sizes %q: cut short", s)
			}
			*p, buf = u, buf[n:]
		}
		out = append(out, v)
	}
	return out, nil
}
