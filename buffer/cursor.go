package buffer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"time"

	"spillway/buffer/batch"
)

const (
	cursorFile  = "cursor"
	scratchFile = "scratch"  // while the disk is tried; see cursor.open
	cursorMagic = 0x55435053 // "SPCU"
	slotSize    = 4096       // a torn write of one slot can't reach the other
	slotFixed   = 184
	maxNames    = 16
	maxName     = 32
	maxKey      = 1024
	maxDoubts   = 16
	maxHanded   = 64
	maxGaps     = 8
	maxTold     = 2
	gapSize     = 113
	nameNone    = 255
	slotClosed  = 1 // flags
	slotDurable = 2
)

// Range is the records First to Last, both included.
type Range struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

func (r Range) overlaps(o Range) bool { return r.First <= o.Last && o.First <= r.Last }

func (r Range) holds(o Range) bool { return r.First <= o.First && o.Last <= r.Last }

// Doubt is a range of records that Output may have or not: they were handed over
// to it and it never answered.
type Doubt struct {
	Output string `json:"output"`
	Range
}

// HandOver is a range of records that Output has acknowledged.
type HandOver struct {
	Output string `json:"output"`
	Range
}

// Plan is an object that is about to be handed over to Output: exactly the
// records First to Last under Key. The zero Plan is none.
type Plan struct {
	Output      string
	First, Last uint64
	Key         string
}

// Reasons of a Gap.
const (
	ReasonFull     = "full_oldest" // dropped to make room
	ReasonDamaged  = "damaged"     // bytes that were durable once are gone
	ReasonTorn     = "torn"        // a write that was cut off; nobody had been told that it is stored
	ReasonMissing  = "missing"     // whole segments are gone
	ReasonSkipped  = "skipped"     // numbers that the writer left out; the seals join
	ReasonEpoch    = "epoch"       // numbering could not be continued with certainty
	ReasonRejected = "rejected"    // no output takes it; kept aside by Reject
	ReasonTrimmed  = "trimmed"     // removed by Trim, which somebody asked for
	ReasonExpired  = "expired"     // older than MaxAge
)

// reasons in the order of their numbers in the cursor; append only.
var reasons = []string{"", ReasonFull, ReasonDamaged, ReasonTorn, ReasonMissing, ReasonSkipped, ReasonEpoch, ReasonRejected, ReasonTrimmed, ReasonExpired}

// Gap is a hole in the numbers of one epoch, or several that were merged.
type Gap struct {
	Reason string
	Epoch  batch.Epoch
	// First and Last enclose the hole; Count is how many records are missing in
	// it. Of ReasonEpoch, Last is the last number that was found in Epoch, Before
	// its seal, and First and Count are 0.
	First, Last, Count uint64
	// Since and Until are receive times, of the last record before and the first
	// record behind the hole as far as they are known, else zero.
	Since, Until time.Time
	// Before is the seal of the last batch before the hole, After that of the
	// first batch behind it; zero where there is none or it is not known.
	Before, After batch.Seal
	// Detail is why, in words: of ReasonRejected what Reject was told. It is kept in
	// memory only; after a restart it is empty.
	Detail string `json:",omitempty"`
}

// handed is one output and the last record that it acknowledged.
type handed struct {
	output string // as a hand-over: "" is nobody, or not known
	last   uint64
}

// position is all that the cursor file holds: how far the chain has delivered,
// and what must be remembered about it. It is a help: without it delivery
// starts at the acked floor of the newest segment, which can only repeat.
type position struct {
	generation uint64
	committed  uint64      // every record up to this one was acknowledged, or told as a Gap
	next       uint64      // the number that comes next
	epoch      batch.Epoch // of next
	seal       batch.Seal  // of the batch before next
	plan       Plan
	passed     Range // dropped behind a planned range: a hole that is told already
	closed     bool  // Close saved it: the life ended in order
	durable    bool  // everything of epoch before next was durable when it was saved
	drops      [8]uint64
	acks       []handed // by output, newest last
	doubts     []Doubt  // newest last; output "": any, an earlier life did not end with Close
	handed     []handed // newest last: output took what follows the entry before; what the first took is not known
	gaps       []Gap    // not yet told in-band
	told       []toldGap
}

// dropped names the counters of position.drops: records lost by reason. Append only.
var dropped = [8]string{ReasonFull, ReasonDamaged, ReasonTorn, ReasonMissing, ReasonSkipped, ReasonRejected, ReasonTrimmed, ReasonExpired}

// toldGap is a gap that a record tells, numbered by at most, that is not known to
// be delivered: if that record is lost too, the gap must be told again.
type toldGap struct {
	Gap
	by uint64
}

// names collects the output names that p mentions, the newest of each kind first.
// Behind the first 16, a doubt is noted as of any output, a hand-over as of nobody.
func (p *position) names() []string {
	var out []string
	add := func(s string) {
		if s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	add(p.plan.Output)
	for _, d := range slices.Backward(p.doubts) {
		add(d.Output)
	}
	for _, h := range slices.Backward(p.acks) {
		add(h.output)
	}
	for _, h := range slices.Backward(p.handed) {
		add(h.output)
	}
	return out[:min(len(out), maxNames)]
}

// appendSlot appends p as one slot, little-endian:
//
//	  0  4  magic "SPCU"
//	  4  4  length of the slot, checksum included
//	  8  1  version, 1
//	  9  1  output names N (at most 16)
//	 10  1  acknowledgements A (16)
//	 11  1  in-doubt ranges D (16)
//	 12  1  hand-overs H (64)
//	 13  1  gaps not yet told G (8)
//	 14  2  length of the plan's key K (1,024)
//	 16  8  generation: the higher valid slot counts
//	 24  8  committed
//	 32  8  next sequence
//	 40  8  its epoch
//	 48 32  seal of the batch before it
//	 80 16  plan: first, last (0, 0: none)
//	 96 16  passed: first, last (0, 0: none)
//	112 64  records lost: full_oldest, damaged, torn, missing, skipped, rejected, trimmed, expired
//	176  1  plan: output (index of a name; 255: none)
//	177  1  flags: 1 saved by Close, 2 all of the epoch before next was durable
//	178  1  gaps told by records that are not delivered T (2)
//	179  5  zero
//	184     N × (length u8, name)
//	        K bytes: the plan's key
//	        A × (output u8, last u64)
//	        D × (output u8, 255: any; first u64, last u64)
//	        H × (output u8, 255: nobody; last u64)
//	        G × (reason u8, epoch u64, first u64, last u64, count u64, since i64 ns, until i64 ns, seal before, seal after)
//	        T × (a gap as above, record u64)
//	 -4  4  CRC32C of all bytes before it
//
// The longest slot is 3,878 bytes. The file has one slot at 0 and one at 4096;
// they are overwritten in turn.
func appendSlot(dst []byte, p *position) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, slotFixed)...)
	b := dst[start:]
	names := p.names()
	index := func(s string) byte {
		if i := slices.Index(names, s); i >= 0 {
			return byte(i)
		}
		return nameNone
	}
	known := func(h handed) bool { return index(h.output) != nameNone }
	acks := filter(p.acks, known)
	le.PutUint32(b[0:], cursorMagic)
	b[8] = version1
	b[9], b[10], b[11], b[12], b[13] = byte(len(names)), byte(len(acks)), byte(len(p.doubts)), byte(len(p.handed)), byte(len(p.gaps))
	le.PutUint16(b[14:], uint16(len(p.plan.Key)))
	le.PutUint64(b[16:], p.generation)
	le.PutUint64(b[24:], p.committed)
	le.PutUint64(b[32:], p.next)
	le.PutUint64(b[40:], uint64(p.epoch))
	copy(b[48:], p.seal[:])
	le.PutUint64(b[80:], p.plan.First)
	le.PutUint64(b[88:], p.plan.Last)
	le.PutUint64(b[96:], p.passed.First)
	le.PutUint64(b[104:], p.passed.Last)
	for i, n := range p.drops {
		le.PutUint64(b[112+8*i:], n)
	}
	b[176], b[178] = index(p.plan.Output), byte(len(p.told))
	if p.closed {
		b[177] |= slotClosed
	}
	if p.durable {
		b[177] |= slotDurable
	}
	for _, s := range names {
		dst = append(dst, byte(len(s)))
		dst = append(dst, s...)
	}
	dst = append(dst, p.plan.Key...)
	for _, h := range acks {
		dst = le.AppendUint64(append(dst, index(h.output)), h.last)
	}
	for _, d := range p.doubts {
		dst = le.AppendUint64(append(dst, index(d.Output)), d.First)
		dst = le.AppendUint64(dst, d.Last)
	}
	for _, h := range p.handed {
		dst = le.AppendUint64(append(dst, index(h.output)), h.last)
	}
	for i := range p.gaps {
		dst = appendGap(dst, &p.gaps[i])
	}
	for i := range p.told {
		dst = le.AppendUint64(appendGap(dst, &p.told[i].Gap), p.told[i].by)
	}
	le.PutUint32(dst[start+4:], uint32(len(dst)-start+4))
	return le.AppendUint32(dst, batch.CRC32C(dst[start:]))
}

func appendGap(dst []byte, g *Gap) []byte {
	dst = append(dst, reasonNumber(g.Reason))
	for _, v := range []uint64{uint64(g.Epoch), g.First, g.Last, g.Count, uint64(nanos(g.Since)), uint64(nanos(g.Until))} {
		dst = le.AppendUint64(dst, v)
	}
	dst = append(dst, g.Before[:]...)
	return append(dst, g.After[:]...)
}

// reasonOf is the reason with number n: one that is not known here is kept, as its number.
func reasonOf(n byte) string {
	if int(n) < len(reasons) {
		return reasons[n]
	}
	return strconv.Itoa(int(n))
}

// reasonNumber is the inverse of reasonOf.
func reasonNumber(reason string) byte {
	if i := slices.Index(reasons, reason); i >= 0 {
		return byte(i)
	}
	n, _ := strconv.ParseUint(reason, 10, 8)
	return byte(n)
}

func filter(in []handed, keep func(handed) bool) (out []handed) {
	for _, h := range in {
		if keep(h) {
			out = append(out, h)
		}
	}
	return out
}

// nanos is t in unix ns; the zero time is 0.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// instant is the inverse of nanos.
func instant(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

var errSlot = errors.New("not a cursor slot")

// parseSlot reads one slot from the start of b, the inverse of appendSlot. Every version has
// magic, length, version and checksum in these places, and at most 4,096 bytes; an intact
// slot of a newer one is ErrVersion. Version 1 may have more behind the known lists, which
// is ignored.
func parseSlot(b []byte) (p position, err error) {
	if len(b) < 16 || le.Uint32(b) != cursorMagic {
		return p, errSlot
	}
	n := int(le.Uint32(b[4:]))
	if n < 16 || n > slotSize || n > len(b) || le.Uint32(b[n-4:]) != batch.CRC32C(b[:n-4]) {
		return p, errSlot
	}
	if b[8] > version1 {
		return p, fmt.Errorf("%w: version %d", ErrVersion, b[8])
	}
	if b[8] != version1 || n < slotFixed+4 {
		return p, errSlot
	}
	p = position{
		generation: le.Uint64(b[16:]), committed: le.Uint64(b[24:]), next: le.Uint64(b[32:]), epoch: batch.Epoch(le.Uint64(b[40:])),
		seal: batch.Seal(b[48:80]), plan: Plan{First: le.Uint64(b[80:]), Last: le.Uint64(b[88:])},
		passed: Range{le.Uint64(b[96:]), le.Uint64(b[104:])}, closed: b[177]&slotClosed != 0, durable: b[177]&slotDurable != 0,
	}
	for i := range p.drops {
		p.drops[i] = le.Uint64(b[112+8*i:])
	}
	nNames, nAcks, nDoubts, nHanded, nGaps, nKey, planOutput, nTold := int(b[9]), int(b[10]), int(b[11]), int(b[12]), int(b[13]), int(le.Uint16(b[14:])), b[176], int(b[178])
	if nNames > maxNames || nAcks > maxNames || nDoubts > maxDoubts || nHanded > maxHanded || nGaps > maxGaps || nKey > maxKey || nTold > maxTold {
		return position{}, errSlot
	}
	r := slotReader{b: b[slotFixed : n-4]}
	for range nNames {
		r.names = append(r.names, string(r.take(int(r.u8()))))
	}
	p.plan.Key = string(r.take(nKey))
	p.plan.Output = r.nameOrNone(planOutput)
	for range nAcks {
		p.acks = append(p.acks, handed{r.name(r.u8()), r.u64()})
	}
	for range nDoubts {
		p.doubts = append(p.doubts, Doubt{r.nameOrNone(r.u8()), Range{r.u64(), r.u64()}})
	}
	for range nHanded {
		p.handed = append(p.handed, handed{r.nameOrNone(r.u8()), r.u64()})
	}
	for range nGaps {
		p.gaps = append(p.gaps, r.gap())
	}
	for range nTold {
		p.told = append(p.told, toldGap{r.gap(), r.u64()})
	}
	if r.bad {
		return position{}, errSlot
	}
	return p, nil
}

// slotReader takes the variable part of a slot apart.
type slotReader struct {
	b     []byte
	names []string
	bad   bool
}

func (r *slotReader) take(n int) []byte {
	if n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *slotReader) u8() byte {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *slotReader) u64() uint64 {
	if v := r.take(8); v != nil {
		return le.Uint64(v)
	}
	return 0
}

func (r *slotReader) gap() Gap {
	return Gap{Reason: reasonOf(r.u8()), Epoch: batch.Epoch(r.u64()), First: r.u64(), Last: r.u64(), Count: r.u64(),
		Since: instant(int64(r.u64())), Until: instant(int64(r.u64())), Before: r.seal(), After: r.seal()}
}

func (r *slotReader) seal() (s batch.Seal) {
	copy(s[:], r.take(len(s)))
	return s
}

func (r *slotReader) nameOrNone(i byte) string {
	if i == nameNone {
		return ""
	}
	return r.name(i)
}

func (r *slotReader) name(i byte) string {
	if int(i) >= len(r.names) {
		r.bad = true
		return ""
	}
	return r.names[i]
}

// cursor is the cursor file. Buffer.w guards it.
type cursor struct {
	f          File
	named      bool   // the file's name is durable, as far as this life knows
	fresh      bool   // this life created the file, and one of the slots is empty
	slot       int    // which slot holds the newest durable position
	generation uint64 // of that slot
	failures   int    // saves that failed in a row, not for want of room
	failed     bool   // read met a read error, which says nothing about what is there; until the next save
	newer      error  // ErrVersion: read met a slot of a newer version
}

// read returns the newest valid slot. certain is false if there is none, or if
// the other slot is not valid, or empty: then a newer position may have been there.
// Nothing of that is an error, a cursor is a help; but what a newer version saved must
// not be forgotten: then newer is set, and nothing is to be written.
func (c *cursor) read(dir FS) (p position, ok, certain bool) {
	f, err := dir.Open(cursorFile, false)
	if err != nil {
		c.failed = !errors.Is(err, fs.ErrNotExist)
		return p, false, false
	}
	defer f.Close()
	return c.look(f)
}

// look is read of the open file.
func (c *cursor) look(f File) (p position, ok, certain bool) {
	var buf [slotSize]byte
	c.failed, certain = false, true
	for i := range 2 {
		n, err := readAt(f, buf[:], int64(i)*slotSize)
		c.failed = c.failed || err != nil && err != io.EOF
		q, err := parseSlot(buf[:n])
		switch {
		case errors.Is(err, ErrVersion):
			c.newer, certain = err, false
		case err == nil && (!ok || q.generation > p.generation):
			p, ok = q, true
			c.slot, c.generation = i, q.generation
		case err != nil:
			certain = false
		}
	}
	return p, ok, ok && certain && !c.failed
}

// save writes p to the slot that does not hold the newest durable position and
// makes it durable. After an error nothing is known about that slot; the next
// save writes the same one again, so that the good one is never touched.
func (c *cursor) save(dir FS, p *position) error {
	if err := c.open(dir); err != nil {
		if !isFull(err) {
			c.failures++
		}
		return err
	}
	if c.failed {
		// The good slot must not be overwritten, and which one that is was not read.
		if c.look(c.f); c.newer != nil {
			return fmt.Errorf("save cursor: %w", c.newer)
		}
	}
	err := c.write(p)
	if err == nil && (c.failed || c.fresh) {
		// A slot that could not be read may hold a higher generation; and an empty one is
		// always one that the disk has forgotten.
		err = c.write(p)
	}
	if err == nil && !c.named {
		err = dir.SyncDir() // an earlier life may have created it and gone before this
	}
	if err != nil {
		c.f.Close()
		c.f = nil
		if !isFull(err) {
			c.failures++
		}
		return fmt.Errorf("save cursor: %w", err)
	}
	c.failures = 0
	c.named, c.fresh, c.failed = true, false, false
	return nil
}

// write writes p to the slot that does not hold the newest durable position.
func (c *cursor) write(p *position) error {
	p.generation = c.generation + 1
	buf := appendSlot(make([]byte, 0, slotSize), p)
	if _, err := writeAt(c.f, buf, int64(1-c.slot)*slotSize); err != nil {
		return err
	}
	if err := c.f.Sync(); err != nil {
		return err
	}
	c.slot, c.generation = 1-c.slot, p.generation
	return nil
}

// open opens the file if it is not, and creates it if it does not exist. One that
// could not be saved three times is replaced, if another file can be written: a bad
// block in it must not keep delivered segments on the disk for ever, and a disk that
// takes nothing is no reason to forget what it says.
func (c *cursor) open(dir FS) error {
	if c.f != nil {
		return nil
	}
	if c.failures >= 3 && canWrite(dir) {
		dir.Remove(cursorFile)
		c.failures = 0
	}
	f, err := dir.Open(cursorFile, true)
	if errors.Is(err, fs.ErrNotExist) {
		c.named, c.fresh = false, true
		f, err = dir.Create(cursorFile)
		if err == nil {
			// Both slots have their blocks from now on: also a disk that is full by then takes the
			// note that a segment goes.
			if _, err = writeAt(f, make([]byte, 2*slotSize), 0); err != nil {
				f.Close()
				dir.Remove(cursorFile)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("open cursor: %w", err)
	}
	c.f = f
	return nil
}

// canWrite reports whether the disk takes a new file as large as the cursor. If a crash leaves
// it, it is in nobody's way.
func canWrite(dir FS) bool {
	dir.Remove(scratchFile)
	f, err := dir.Create(scratchFile)
	if err != nil {
		return false
	}
	if _, err = writeAt(f, make([]byte, 2*slotSize), 0); err == nil {
		err = f.Sync()
	}
	f.Close()
	dir.Remove(scratchFile)
	return err == nil
}
