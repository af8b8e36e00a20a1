package buffer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sort"
	"syscall"
	"time"

	"spillway/buffer/batch"
)

// entry is a batch that was scanned and is not committed.
type entry struct {
	seg    *segment
	off    int64 // of the payload
	h      batch.Header
	expect uint64     // the number that should have come here; lower than h.First behind a hole
	before batch.Seal // of the last batch before the hole
	prev   batch.Seal // the seal before this batch, as far as it is known; differs from before behind a hole
	damage damage     // in the hole
	since  int64      // receive time of the last record before it, unix ns
	ended  []Gap      // told before the hole
}

const (
	maxRunBytes   = 64 << 20 // of a run without Limits.Bytes
	maxRunBatches = 64 << 10
	keepSlab      = 1 << 20 // payload memory that is kept for good
	slabPatience  = 16      // runs before memory that is not needed any more is let go
)

// Next returns the next run: the batches behind the last committed one that fit
// l, at least one. It does not consume: until Commit, the next call returns the
// same batches again, cut as its l says.
//
// A run is due when it can't grow (l is reached, or what follows does not belong
// to it: a hole in the numbers, another codec, encoding, epoch or, with l.Hour,
// hour; a batch above l.BatchBytes is alone), when l.Age has passed since Next
// first saw its first batch, or at once if that is of an earlier life. Without
// l.Bytes a run has at most 64 MiB. Until one is due, Next blocks; it ends with
// ctx.Err() or ErrClosed. A run that is due is returned even if ctx has ended.
//
// A stored plan is repeated exactly, whatever l says, with Key filled in. If that
// is not possible (damage, a position inside it) the plan is dropped and the run
// has no Key. Attempt is 2 if a part of the run may have been sent before: it is in
// doubt (see InDoubt), or was stored before a life ended without Close; else 1.
//
// Payloads are checked and are the buffer's memory: valid until the next call of
// Next. Run.Before is the seal before the run, also behind a hole, as long as a
// header says it; else it is the last seal that is known. Lane and Reason are the
// caller's to fill in.
//
// A place that can't be read is an error, a pause between the calls is the
// caller's to make; from the third time on it counts as damaged if the disk can be read
// elsewhere at that moment. Of one that can't be read at all nothing is lost yet. Of what a
// newer version wrote neither: ErrVersion comes again until that one is there.
//
// Holes are told by Gaps when they come to the head of the line.
func (b *Buffer) Next(ctx context.Context, l batch.Limits) (batch.Run, error) {
	b.r.Lock()
	defer b.r.Unlock()
	defer b.release()
	if err := b.readable(&b.ready); err != nil {
		return batch.Run{}, err
	}
	l = bound(l)
	var p pick
	for {
		b.mu.Lock()
		if b.closed {
			b.mu.Unlock()
			return batch.Run{}, ErrClosed
		}
		changed := b.changed
		b.grab(&p, &l)
		b.mu.Unlock()

		if !p.complete {
			more, err := b.extend()
			if errors.Is(err, ErrVersion) && p.n > 0 && !p.plan {
				p.complete = true // what is before it is known
				continue
			}
			if err != nil {
				return batch.Run{}, err
			}
			if more {
				continue
			}
			if p.plan { // it reaches beyond the end
				b.mu.Lock()
				b.dropPlan()
				b.mu.Unlock()
				p = pick{}
				continue
			}
		}
		wait := time.Duration(-1)
		if p.n > 0 {
			wait = l.Age - b.o.Now().Sub(p.since)
			if p.complete || !p.ours || wait <= 0 {
				run, ok, err := b.fetch(&p)
				if err != nil {
					return batch.Run{}, err
				}
				if ok {
					return run, nil
				}
				p = pick{}
				continue
			}
		} else if cap(b.slab) > keepSlab {
			b.slab = nil
		}
		b.release()
		if err := await(ctx, changed, wait); err != nil {
			return batch.Run{}, err
		}
	}
}

// readable settles what an earlier life has left; once per reader, which must not
// wait for every fsync.
func (b *Buffer) readable(ready *bool) error {
	if *ready {
		return nil
	}
	b.w.Lock()
	defer b.w.Unlock()
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	if closed {
		return ErrClosed
	}
	b.settle()
	*ready = true
	return nil
}

// await waits for a change, the end of ctx, or d if it is not negative.
func await(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	var after <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		after = t.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
	case <-after:
	}
	return nil
}

// pick is a run that is being put together: the first n entries of the index.
type pick struct {
	n        int
	bytes    int64
	complete bool // it can't grow
	plan     bool // it repeats the stored plan
	ours     bool // its first batch was written in this life
	since    time.Time
	popped   uint64 // of the index it was picked from
}

// grab takes what the index has into p. mu is held.
func (b *Buffer) grab(p *pick, l *batch.Limits) {
	if p.popped != b.popped {
		*p = pick{popped: b.popped}
	}
	if len(b.index) == 0 {
		return
	}
	first := &b.index[0]
	if p.n == 0 {
		b.tell(first)
		if b.headNum != first.h.First {
			b.headNum, b.headAt = first.h.First, b.o.Now()
		}
		p.since, p.ours = b.headAt, first.seg.ours
		p.plan = b.pos.plan != Plan{}
		if p.plan && b.pos.plan.First != first.h.First {
			b.dropPlan()
			p.plan = false
		}
	}
	for !p.complete && p.n < len(b.index) {
		e := &b.index[p.n]
		if p.n > 0 && !follows(&b.index[p.n-1], e) {
			p.complete = true
			break
		}
		if !p.plan && p.n > 0 && !fits(l, p.bytes, &first.h, &e.h) {
			p.complete = true
			break
		}
		p.n++
		p.bytes += int64(e.h.Length)
		if p.plan {
			p.complete = e.h.Last() >= b.pos.plan.Last
		} else {
			p.complete = full(l, p.bytes, p.n, &e.h)
		}
	}
	if p.plan && p.complete && b.index[p.n-1].h.Last() != b.pos.plan.Last {
		b.dropPlan()
		*p = pick{popped: b.popped}
		b.grab(p, l)
	}
}

// follows reports whether e may be in one run with the entry before it.
func follows(before, e *entry) bool {
	return e.h.First == before.h.Last()+1 && e.seg.epoch == before.seg.epoch && e.seg.agent == before.seg.agent &&
		e.h.Codec == before.h.Codec && (e.h.Flags^before.h.Flags)&batch.RawLines == 0
}

// fits reports whether l lets h into a run of so many bytes that begins with first.
func fits(l *batch.Limits, bytes int64, first, h *batch.Header) bool {
	return bytes+int64(h.Length) <= l.Bytes && (l.BatchBytes <= 0 || int64(h.Length) <= l.BatchBytes) &&
		(l.Last == 0 || h.Last() <= l.Last) && (!l.Hour || hour(first.FirstTime) == hour(h.FirstTime))
}

// full reports whether l lets nothing more into a run of n batches that ends with h.
func full(l *batch.Limits, bytes int64, n int, h *batch.Header) bool {
	return bytes >= l.Bytes || n >= l.Batches || l.Last > 0 && h.Last() >= l.Last || l.BatchBytes > 0 && int64(h.Length) > l.BatchBytes
}

// bound fills in the limits that hold without any.
func bound(l batch.Limits) batch.Limits {
	if l.Bytes <= 0 {
		l.Bytes = maxRunBytes
	}
	if l.Batches <= 0 {
		l.Batches = maxRunBatches
	}
	return l
}

// hour is the hour since 1970 of a time in unix ns.
func hour(ns int64) int64 {
	const h = int64(time.Hour)
	if ns < 0 {
		return (ns+1)/h - 1
	}
	return ns / h
}

// dropPlan forgets a plan that can't be repeated: its output may have carried it out. mu is held.
func (b *Buffer) dropPlan() {
	b.pos.doubt(b.pos.plan.Output, Range{b.pos.plan.First, b.pos.plan.Last})
	b.pos.plan = Plan{}
	b.soil()
}

// tell notes the hole before e, which has come to the head of the line, and moves
// the position over it. mu is held.
func (b *Buffer) tell(e *entry) {
	if len(e.ended) == 0 && e.expect == e.h.First {
		b.pass(e.h.First - 1)
		return
	}
	for _, g := range e.ended {
		b.addGap(g)
		b.pass(g.Last)
	}
	e.ended = nil
	first, last := e.expect, e.h.First-1
	if p := b.pos.passed; p.First <= last && p.Last >= first { // told when it was dropped
		b.tellHole(e, first, p.First-1)
		first = max(first, p.Last+1)
	}
	b.tellHole(e, first, last)
	e.expect = e.h.First
	b.pass(e.h.First - 1)
	b.reckon()
}

// tellHole notes that first to last are missing before e, if that is anything. mu is held.
func (b *Buffer) tellHole(e *entry, first, last uint64) {
	if first > last {
		return
	}
	g := Gap{Epoch: e.seg.epoch, First: first, Last: last, Count: last - first + 1,
		Since: instant(e.since), Until: instant(e.h.FirstTime), Before: e.before, After: e.h.Seal}
	switch {
	case e.damage == corrupt:
		g.Reason = ReasonDamaged
	case e.damage == torn:
		g.Reason = ReasonTorn
	case e.h.Chain(e.before, e.seg.epoch) == e.h.Seal:
		g.Reason = ReasonSkipped
	default:
		g.Reason = ReasonMissing
	}
	b.addGap(g)
}

// pass moves the position over numbers that will never be delivered. mu is held.
func (b *Buffer) pass(last uint64) {
	if last <= b.pos.committed {
		return
	}
	b.pos.committed = last
	if b.pos.passed.Last <= last {
		b.pos.passed = Range{}
	}
	b.soil()
}

// extend scans one more extent behind the tail. It returns false if there is none.
func (b *Buffer) extend() (bool, error) {
	b.mu.Lock()
	t := &b.tail
	if t.seg == nil && len(b.segs) > 0 {
		t.seg = b.segs[0]
	}
	if t.seg == nil || !b.advance() {
		b.mu.Unlock()
		return false, nil
	}
	seg, off, end := t.seg, t.off, t.seg.end
	b.mu.Unlock()

	f, err := b.open(seg)
	if errors.Is(err, fs.ErrNotExist) {
		b.mu.Lock()
		b.forget(seg) // somebody removed it; the numbers will tell what is missing
		b.mu.Unlock()
		return true, nil
	}
	if err != nil && b.shut(seg, err) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if t.seg == seg && t.off == off {
			b.apply(&Extent{Kind: KindDamage, Off: off, End: end, Err: err})
			if seg.ours {
				t.lost = max(t.lost, seg.last)
			}
		}
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read buffer: %w", err)
	}
	b.scan.reset(f, off, end, seg.salt)
	b.scan.halt = true
	e, ok := b.scan.next()
	if b.scan.bad {
		if b.faults.retry(seg, off) || !b.works(seg, off) {
			return false, fmt.Errorf("read buffer: %w", &CorruptError{seg.name(), off, b.scan.ioe})
		}
		b.scan.reset(f, off, end, seg.salt)
		b.scan.halt = false // what can't be read even now is damaged
		e, ok = b.scan.next()
	}
	b.faults.over(seg, off)
	if ok && errors.Is(e.Err, ErrVersion) {
		b.mu.Lock()
		seg.newer = true
		b.mu.Unlock()
		return false, fmt.Errorf("read buffer: %s: byte %d: %w", seg.name(), e.Off, e.Err)
	}
	if ok && e.Kind == KindDamage {
		b.judge(seg, f, e.End)
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	if ok && t.seg == seg && t.off == off { // else it was dropped meanwhile
		b.apply(&e)
	}
	return true, nil
}

// advance moves the tail to the next segment that has something to read. mu is held.
func (b *Buffer) advance() bool {
	t := &b.tail
	moved := false
	for t.off >= t.seg.end {
		if !t.seg.ours {
			t.seg.last = min(t.seg.last, max(t.next, t.seg.first)-1) // now it is known
		}
		i := b.find(t.seg.ordinal + 1)
		if i == len(b.segs) {
			if moved {
				b.reckon()
			}
			return false
		}
		b.enter(b.segs[i])
		moved = true
	}
	if moved {
		b.reckon()
	}
	return true
}

// enter moves the tail to the start of seg. mu is held.
func (b *Buffer) enter(seg *segment) {
	t := &b.tail
	if t.seg.epoch != seg.epoch {
		if t.damage == corrupt && t.lost >= t.next {
			t.ended = append(t.ended, Gap{Reason: ReasonDamaged, Epoch: t.seg.epoch, First: t.next, Last: t.lost, Count: t.lost - t.next + 1, Since: instant(t.since), Before: t.seal})
			t.next = t.lost + 1
		}
		t.next = max(t.next, seg.first)
		t.seal, t.sealOf, t.damage, t.lost = batch.Seal{}, t.next-1, intact, 0
		t.join, t.joinOf = batch.Seal{}, 0
	}
	t.seg, t.off, t.known = seg, 0, false
}

// find returns the index of the first segment with this ordinal or a higher one. mu is held.
func (b *Buffer) find(ordinal uint64) int {
	return sort.Search(len(b.segs), func(i int) bool { return b.segs[i].ordinal >= ordinal })
}

// apply takes note of an extent at the tail. mu is held.
func (b *Buffer) apply(e *Extent) {
	t := &b.tail
	t.off = e.End
	switch e.Kind {
	case KindHeader:
		t.before, t.known = e.header.Before, e.header.First == t.seg.first
		if t.known {
			t.join, t.joinOf = t.before, t.seg.first-1
		}
	case KindFooter:
		if t.damage != intact {
			t.lost = max(t.lost, min(e.Footer.Last, t.seg.last))
		}
	case KindDamage:
		b.hurt(t.seg, e.Off, e.End-e.Off, max(t.next, t.seg.first))
		if e.Batch.Count > 0 {
			t.lost = max(t.lost, e.Batch.Last())
			t.join, t.joinOf = e.Batch.Seal, e.Batch.Last()
		}
	case KindBatch:
		h := &e.Batch.Header
		if h.First > t.seg.last {
			return // given up, and written again to the next segment; see parseNames
		}
		if p := b.pos.passed; h.First >= p.First && h.Last() <= p.Last {
			return // told as dropped; the power went before it was
		}
		join, joinOf := t.join, t.joinOf
		t.join, t.joinOf = h.Seal, h.Last()
		if h.Last() < t.next { // delivered, or an earlier copy of it was seen
			if h.Last() >= t.sealOf {
				t.seal, t.sealOf, t.since = h.Seal, h.Last(), h.LastTime
				t.damage, t.lost = intact, 0
			}
			return
		}
		before := t.seal
		if t.known && h.First == t.seg.first && h.First == t.next { // else it is that of the last lost one
			before = t.before
		}
		prev := before
		if joinOf+1 == h.First {
			prev = join
		}
		b.index = append(b.index, entry{seg: t.seg, off: e.Off + batch.HeaderSize, h: *h, expect: t.next, before: before, prev: prev, damage: t.damage, since: t.since, ended: t.ended})
		t.next, t.seal, t.sealOf, t.since = h.Last()+1, h.Seal, h.Last(), h.LastTime
		t.damage, t.lost, t.ended = intact, 0, nil
	}
}

// hurt takes note of n damaged bytes at off of seg, in the place of record first. mu is held.
func (b *Buffer) hurt(seg *segment, off, n int64, first uint64) damage {
	d := torn
	if off < seg.promise || first < seg.durable {
		d = corrupt
		seg.damaged = true
		b.stats.corrupt += uint64(n)
	} else {
		b.stats.torn += uint64(n)
	}
	b.tail.damage = max(b.tail.damage, d)
	return d
}

// open returns the open file of seg; the last one stays open. r is held.
func (b *Buffer) open(seg *segment) (File, error) {
	if b.rseg == seg {
		return b.rfile, nil
	}
	f, err := b.openSegment(seg)
	if err != nil {
		return nil, err
	}
	b.faults.over(seg, -1)
	if b.rfile != nil {
		b.rfile.Close()
	}
	b.rfile, b.rseg = f, seg
	return f, nil
}

// fetch reads and checks the payloads of p. ok is false if its first batch turned
// out damaged or the index has changed: pick again.
func (b *Buffer) fetch(p *pick) (run batch.Run, ok bool, err error) {
	b.mu.Lock()
	if b.popped != p.popped {
		b.mu.Unlock()
		return run, false, nil
	}
	b.load = append(b.load[:0], b.index[:p.n]...)
	b.mu.Unlock()

	b.reserve(p.bytes)
	b.run = b.run[:0]
	at := int64(0)
	for i := range b.load {
		e := &b.load[i]
		payload := b.slab[at : at+int64(e.h.Length) : at+int64(e.h.Length)]
		good, err := b.payload(e, payload)
		if err != nil {
			return run, false, err
		}
		if !good {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.popped == p.popped {
				b.spoil(i)
			}
			return run, false, nil
		}
		at += int64(e.h.Length)
		b.run = append(b.run, batch.Batch{Header: e.h, Payload: payload})
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	if b.popped != p.popped {
		return run, false, nil
	}
	e := &b.load[0]
	run = batch.Run{Agent: e.seg.agent, Epoch: e.seg.epoch, Batches: b.run, Before: e.prev, Attempt: 1}
	if b.pos.doubted(Range{run.First(), run.Last()}) {
		run.Attempt = 2
	}
	if p.plan {
		run.Key = b.pos.plan.Key
	}
	b.handed = max(b.handed, run.Last())
	return run, true, nil
}

// payload reads the payload of e into p and checks it.
func (b *Buffer) payload(e *entry, p []byte) (good bool, err error) {
	f, err := b.open(e.seg)
	if errors.Is(err, fs.ErrNotExist) {
		b.mu.Lock()
		b.forget(e.seg)
		b.mu.Unlock()
		return false, nil
	}
	if err != nil && b.shut(e.seg, err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read buffer: %w", err)
	}
	n, err := readAt(f, p, e.off)
	if err != nil && err != io.EOF {
		if b.faults.retry(e.seg, e.off) || !b.works(e.seg, e.off) {
			return false, fmt.Errorf("read buffer: %w", &CorruptError{e.seg.name(), e.off, err})
		}
		n, _ = readAt(f, p, e.off)
	}
	b.faults.over(e.seg, e.off)
	if n == len(p) && batch.CRC32C(p) == e.h.CRC {
		return true, nil
	}
	b.judge(e.seg, f, e.off+int64(e.h.Length))
	return false, nil
}

// faults is where a read error was met, and how often in a row.
type faults struct {
	seg *segment
	off int64
	n   int
}

// retry says whether a read error is to be reported and tried again later in any case:
// before the third time that a place can't be read it is not damage.
func (f *faults) retry(seg *segment, off int64) bool {
	if f.seg != seg || f.off != off {
		*f = faults{seg: seg, off: off}
	}
	f.n++
	return f.n < 3
}

// over says that a place can be read, or is known to be damaged.
func (f *faults) over(seg *segment, off int64) {
	if f.seg == seg && f.off == off {
		*f = faults{}
	}
}

// passing reports whether err of an open says nothing of the file: the process lacks something,
// or a person took away the right to read it and may give it back.
func passing(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EINTR)
}

// shut reports whether a segment whose open gave err is damaged as a whole: it is the
// third time, and the disk works.
func (b *Buffer) shut(seg *segment, err error) bool {
	if passing(err) || b.faults.retry(seg, -1) || !b.works(seg, 0) {
		return false
	}
	if _, err = b.open(seg); err == nil {
		return false // the next call finds it open
	}
	b.mu.Lock()
	seg.promise = seg.end
	b.mu.Unlock()
	return true
}

// works reports whether the disk as a whole can be read, so that a place at off of seg
// that can't be is damaged. A device that is away for a while gives errors for everything, and
// all of it is there again afterwards. What memory holds proves nothing: it is the cursor
// that is read back, newly written if possible, or another place of the segments around.
func (b *Buffer) works(seg *segment, off int64) bool {
	b.w.Lock()
	if !b.ring.degraded {
		b.saveCursor()
	}
	b.w.Unlock()
	if b.reads(cursorFile, 0) {
		return true
	}
	b.mu.Lock()
	i := b.find(seg.ordinal)
	around := slices.Clone(b.segs[max(0, i-2):min(i+3, len(b.segs))])
	around = slices.DeleteFunc(around, func(s *segment) bool { return s.mem != nil })
	end := seg.end
	b.mu.Unlock()
	for _, s := range around {
		if s != seg && b.reads(s.name(), 0) {
			return true
		}
	}
	at := int64(0)
	if off < block {
		at = end - 1
	}
	return (at >= block || off >= block) && b.reads(seg.name(), at/block*block)
}

// reads reports whether the disk gives anything of a file at off.
func (b *Buffer) reads(name string, off int64) bool {
	f, err := b.fs.Open(name, false)
	if err != nil {
		return false
	}
	defer f.Close()
	f.Evict()
	var p [block]byte
	n, err := readAt(f, p[:], off)
	return n > 0 && (err == nil || err == io.EOF)
}

// judge finds out what of a segment with damage before off was durable once: synced offsets
// behind the damage say it of bytes, a later segment of its epoch, or the cursor that was found,
// of numbers.
func (b *Buffer) judge(seg *segment, f File, off int64) {
	b.mu.Lock()
	promise, end := seg.promise, seg.end
	b.mu.Unlock()
	durable := uint64(0)
	if seg.ours {
		promise = end // in this life, readers see only what is safe
	} else {
		if promise < 0 {
			rest := scanner{r: f, off: off, end: end, salt: seg.salt}
			promise = rest.promise()
		}
		durable = b.durableIn(seg)
	}
	b.mu.Lock()
	seg.promise, seg.durable = promise, durable
	b.mu.Unlock()
}

// durableIn returns the number below which every record of seg was durable once, as far as
// anything but seg says it, else 0.
func (b *Buffer) durableIn(seg *segment) (next uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.durable.epoch == seg.epoch {
		next = b.durable.next
	}
	if i := b.find(seg.ordinal + 1); i < len(b.segs) && b.segs[i].epoch == seg.epoch {
		first := b.segs[i].first // from there on seg may be given up
		if next = min(next, first); b.vouched(seg.epoch) > seg.ordinal {
			next = first
		}
	}
	if p := b.pos.passed; p.holds(Range{next - 1, next - 1}) {
		next = p.First // the rest was dropped, from memory perhaps
	}
	return next
}

// vouched returns the ordinal of the newest segment of epoch that says that all before it was
// durable; 0: none does. mu is held, but not all the time.
func (b *Buffer) vouched(epoch batch.Epoch) uint64 {
	if n := len(b.segs) - 1; n >= 0 && b.segs[n].ours && b.segs[n].epoch == epoch {
		return b.segs[n].ordinal // only a life that ended in order is continued
	}
	if b.voucher.epoch != epoch {
		all := slices.DeleteFunc(slices.Clone(b.segs), func(s *segment) bool { return s.epoch != epoch })
		b.mu.Unlock()
		v := voucher{epoch: epoch}
		for _, s := range slices.Backward(all) {
			if h, _ := b.header(s); h.Durable {
				v.ordinal = s.ordinal
				break
			}
		}
		b.mu.Lock()
		b.voucher = v
	}
	return b.voucher.ordinal
}

// voucher is the newest segment of an epoch that says that all before it was durable.
type voucher struct {
	epoch   batch.Epoch
	ordinal uint64
}

// spoil takes entry i, whose payload is bad, out of the index. mu is held.
func (b *Buffer) spoil(i int) {
	e := b.index[i]
	was := b.tail.damage
	d := b.hurt(e.seg, e.off, int64(e.h.Length), e.h.First)
	b.tail.damage = was
	b.cut(i, max(d, e.damage))
}

// cut takes entry i out of the index. What follows it, batch or tail, then lies
// behind a hole with damage d in it. mu is held.
func (b *Buffer) cut(i int, d damage) {
	e := b.index[i]
	t := &b.tail
	last := i+1 == len(b.index)
	seg := t.seg
	if !last {
		seg = b.index[i+1].seg
	}
	switch {
	case seg.epoch != e.seg.epoch: // nothing behind it shows what it was
		ended := e.ended
		if d != torn {
			ended = append(ended, Gap{Reason: ReasonDamaged, Epoch: e.seg.epoch, First: e.expect, Last: e.h.Last(), Count: e.h.Last() - e.expect + 1, Since: instant(e.since), Before: e.before})
		}
		if last {
			t.ended = append(ended, t.ended...)
		} else {
			b.index[i+1].ended = append(ended, b.index[i+1].ended...)
		}
	case last:
		t.next, t.seal, t.sealOf, t.since, t.ended = e.expect, e.before, e.expect-1, e.since, e.ended
		t.damage, t.lost = max(t.damage, d), max(t.lost, e.h.Last())
	default:
		next := &b.index[i+1]
		next.expect, next.before, next.since, next.ended = e.expect, e.before, e.since, e.ended
		next.damage = max(next.damage, d)
	}
	b.index = slices.Delete(b.index, i, i+1)
	b.popped++
}

// forget takes a segment out that is not there any more. mu is held.
func (b *Buffer) forget(seg *segment) {
	seg.end, seg.gone = 0, true // the tail, if it is there, goes on to the next
	i := b.find(seg.ordinal)
	if i == len(b.segs) || b.segs[i] != seg {
		return
	}
	for j := len(b.index) - 1; j >= 0; j-- {
		if b.index[j].seg == seg {
			b.cut(j, intact)
		}
	}
	b.segs = slices.Delete(b.segs, i, i+1)
	b.total -= seg.size
	b.reckon()
	b.settleDoubts()
}

// release closes the file that was read last: between calls none is held open,
// so that a removed segment's space is free.
func (b *Buffer) release() {
	if b.rfile != nil {
		b.rfile.Close()
		b.rfile, b.rseg = nil, nil
	}
}

// reserve makes slab hold n bytes, and lets go of memory that a large run needed
// and no run has needed for a while.
func (b *Buffer) reserve(n int64) {
	if n*4 < int64(cap(b.slab)) && cap(b.slab) > keepSlab {
		if b.spare++; b.spare > slabPatience {
			b.slab = nil
		}
	} else {
		b.spare = 0
	}
	if int64(cap(b.slab)) < n {
		b.slab = make([]byte, n+n/8)
		b.spare = 0
	}
	b.slab = b.slab[:cap(b.slab)]
}
