package buffer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"spillway/buffer/batch"
)

// reckon finds the head of the line among the segments and what is live. A segment in which
// something is lost is not done before that is told: until then nothing else shows it.
// mu is held.
func (b *Buffer) reckon() {
	next, ended := b.tail.next, b.tail.ended
	if len(b.index) > 0 {
		next, ended = b.index[0].expect, b.index[0].ended
	}
	if len(ended) > 0 {
		next = ended[0].First
	}
	if p := b.pos.passed; p.holds(Range{next, next}) {
		next = p.Last + 1 // told
	}
	reached := b.reached()
	b.head = reached
	for b.head > 0 && b.head < len(b.segs) && b.segs[b.head].first > next {
		b.head--
	}
	now := b.o.Now().UnixNano()
	for _, s := range b.segs[:b.head] {
		if s.doneAt == 0 {
			s.doneAt = now
			b.wake()
		}
	}
	b.live, b.ring.live = 0, 0
	for _, s := range b.segs[reached:] {
		if s.mem == nil {
			b.live += s.size
		} else {
			b.ring.live += s.size
		}
	}
}

// reached is the index of the segment at the head of the line, also where what is lost
// before it is not told yet. mu is held.
func (b *Buffer) reached() int {
	switch {
	case len(b.index) > 0:
		return b.find(b.index[0].seg.ordinal)
	case b.tail.seg != nil:
		return b.find(b.tail.seg.ordinal)
	}
	return 0
}

// pending reports whether anything is stored that is not committed. mu is held.
func (b *Buffer) pending() bool {
	if b.next > b.start.Next {
		return b.next-1 > b.pos.committed
	}
	for _, s := range b.segs[b.head:] {
		if s.last > b.pos.committed {
			return true
		}
	}
	return false
}

// Commit notes that output has acknowledged every record up to last, which Next
// has handed out. It is monotonic and idempotent: a lower number changes nothing.
// It clears a plan that ends at last or before. It does not wait for the disk:
// Maintain saves the position within 5 s and frees delivered segments after
// KeepAcked; a crash before that repeats batches with the same identity.
func (b *Buffer) Commit(last uint64, output string) error {
	if err := checkName(output); err != nil {
		return fmt.Errorf("commit %d: %w", last, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return ErrClosed
	}
	if last > b.handed && last > b.pos.committed {
		return fmt.Errorf("commit %d: only records up to %d were handed out: %w", last, b.handed, ErrOrder)
	}
	if last <= b.pos.committed {
		return nil
	}
	for i := range b.index {
		h := &b.index[i].h
		if h.Last() > last {
			break
		}
		b.stats.deliveredRecords += uint64(h.Count)
		b.stats.deliveredBytes += batch.HeaderSize + uint64(h.Length)
	}
	b.pos.took(output, last)
	b.waiting = b.o.Now()
	b.move(last)
	return nil
}

// move sets the position to last, which lies in or behind what was handed out. mu is held.
func (b *Buffer) move(last uint64) {
	b.pos.committed = last
	if b.pos.plan.Last <= last {
		b.pos.plan = Plan{}
	}
	if b.pos.passed.Last <= last {
		b.pos.passed = Range{}
	}
	b.pos.told = slices.DeleteFunc(b.pos.told, func(t toldGap) bool { return t.by <= last })
	n := 0
	for n < len(b.index) && b.index[n].h.Last() <= last {
		n++
	}
	if n > 0 {
		b.index = slices.Delete(b.index, 0, n)
		b.popped++
	}
	if b.tail.seg != nil && len(b.index) == 0 {
		b.advance()
	}
	b.reckon()
	b.settleDoubts()
	b.soil()
	b.broadcast()
}

func checkName(output string) error {
	if output == "" || len(output) > maxName {
		return fmt.Errorf("output name %q: want 1 to %d bytes", output, maxName)
	}
	return nil
}

// Plan returns the stored plan, if there is one.
func (b *Buffer) Plan() (Plan, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pos.plan, b.pos.plan != Plan{}
}

// SetPlan makes p durable before it returns, so that a restart hands over the
// same object: Next repeats it, DropOldest spares it. The zero Plan clears.
func (b *Buffer) SetPlan(p Plan) error {
	if p != (Plan{}) {
		if err := checkName(p.Output); err != nil {
			return fmt.Errorf("set plan: %w", err)
		}
		if p.Key == "" || len(p.Key) > maxKey || p.First == 0 || p.Last < p.First {
			return fmt.Errorf("set plan: records %d to %d under a key of %d bytes, at most %d", p.First, p.Last, len(p.Key), maxKey)
		}
	}
	b.w.Lock()
	defer b.w.Unlock()
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return ErrClosed
	}
	if p != (Plan{}) && (p.Last > b.handed || p.First != b.pos.committed+1) {
		committed, out := b.pos.committed, b.handed
		b.mu.Unlock()
		return fmt.Errorf("set plan: records %d to %d, but %d are committed and %d handed out: %w", p.First, p.Last, committed, out, ErrOrder)
	}
	same := b.pos.plan == p
	before := b.pos.plan
	b.pos.plan = p
	b.mu.Unlock()
	if same && b.saved && !b.isDirty() {
		return nil
	}
	if err := b.keep(); err != nil {
		b.mu.Lock()
		b.pos.plan = before // it is not known which of them a restart would find
		b.mu.Unlock()
		return fmt.Errorf("set plan: %w", err)
	}
	return nil
}

func (b *Buffer) isDirty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dirty
}

// addGap notes a hole that is to be told in-band. mu is held.
func (b *Buffer) addGap(g Gap) {
	if i := slices.Index(dropped[:], g.Reason); i >= 0 {
		b.pos.drops[i] += g.Count
	}
	b.soil()
	// The records that told of earlier holes are not delivered yet and may lie in
	// this one. Told twice is no harm: the ranges say so.
	all := append(b.pos.told, toldGap{Gap: g})
	b.pos.told = nil
	for _, t := range coalesce(all) {
		b.queueGap(t.Gap)
	}
}

func (b *Buffer) queueGap(g Gap) {
	if n := len(b.pos.gaps); n > b.shown {
		if before := &b.pos.gaps[n-1]; adjoins(*before, g) || n-b.shown >= maxGaps {
			*before = mergeGaps(*before, g)
			return
		}
	}
	b.pos.gaps = append(b.pos.gaps, g)
}

// mergeGaps is one gap that stands for a and for g, which was found later. It may
// lie before a: behind a plan that is spared, drops come first.
func mergeGaps(a, g Gap) Gap {
	if g.First < a.First {
		a.First, a.Since, a.Before = g.First, g.Since, g.Before
	}
	if g.Last > a.Last {
		a.Last, a.Until, a.After = g.Last, g.Until, g.After
	}
	a.Count += g.Count
	return a
}

// Gaps returns the holes that are not yet told in-band, oldest first. They
// survive a restart. When very many come at once, neighbours are merged.
func (b *Buffer) Gaps() []Gap {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.pos.gaps) == 0 {
		return nil
	}
	b.shown = len(b.pos.gaps)
	return slices.Clone(b.pos.gaps)
}

// GapsTold says that the first n of Gaps are in batches from record first on, which
// Append has stored. Where one of these is lost or rejected already, they stay untold.
func (b *Buffer) GapsTold(n int, first uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n = min(n, len(b.pos.gaps))
	if n <= 0 {
		return
	}
	done := slices.Clone(b.pos.gaps[:n])
	b.pos.gaps = slices.Clone(b.pos.gaps[n:])
	b.shown = max(0, b.shown-n)
	if slices.ContainsFunc(b.pos.gaps, func(g Gap) bool { return g.Epoch == b.start.Epoch && g.Last >= first }) {
		for _, g := range done {
			b.queueGap(g)
		}
	} else {
		told := slices.Clone(b.pos.told)
		for _, g := range done {
			told = append(told, toldGap{g, b.next - 1})
		}
		b.pos.told = coalesce(told)
	}
	b.soil()
}

// coalesce makes one gap of those that touch or overlap, and forgets the oldest of
// very many: they have been told once.
func coalesce(told []toldGap) []toldGap {
	slices.SortFunc(told, func(a, c toldGap) int {
		return cmp.Or(cmp.Compare(a.First, c.First), cmp.Compare(a.Last, c.Last))
	})
	out := told[:0]
	for _, t := range told {
		if n := len(out); n > 0 && joins(&out[n-1].Gap, t.Gap) {
			out[n-1].by = max(out[n-1].by, t.by)
		} else {
			out = append(out, t)
		}
	}
	return slices.Clone(out[max(0, len(out)-maxHanded):])
}

// joins makes a of a and g, which begins with a or later, if both tell of the
// same hole or of holes that touch.
func joins(a *Gap, g Gap) bool {
	if a.Reason != g.Reason || a.Epoch != g.Epoch || g.First > a.Last+1 || a.Reason == ReasonEpoch {
		return false
	}
	// One that stands for several counts fewer than lie in it: whether g is one of them, or
	// was found between them since, is not known. Told twice is no harm.
	if g.First <= a.Last && !(a.whole() && g.whole()) && !(a.First == g.First && a.Last == g.Last && a.Count == g.Count) {
		return false
	}
	if g.Last > a.Last {
		a.Count += g.Count - min(g.Count, a.Last+1-g.First) // what both tell counts once
		a.Last, a.Until, a.After = g.Last, g.Until, g.After
	}
	return true
}

// whole reports whether nothing that lies in g is anything but missing.
func (g *Gap) whole() bool { return g.Count == g.Last-g.First+1 }

// adjoins reports whether a and the later g are one hole.
func adjoins(a, g Gap) bool {
	return a.Reason == g.Reason && a.Epoch == g.Epoch && a.Last+1 == g.First
}

// refreshFree looks at the free space if what is known is older than age.
func (b *Buffer) refreshFree(age time.Duration) {
	if b.o.MinFree < 0 {
		return
	}
	now := b.o.Now()
	b.mu.Lock()
	d := now.Sub(b.freeAt)
	stale := !b.closed && (d >= age || d < 0)
	if stale {
		b.freeAt = now
	}
	b.mu.Unlock()
	if !stale {
		return
	}
	if free, _, err := b.fs.Free(); err == nil {
		b.mu.Lock()
		b.free = free
		b.mu.Unlock()
	}
}

// lacks is how many of n more bytes would eat into MinFree. mu is held.
func (b *Buffer) lacks(n int64) int64 {
	if b.o.MinFree < 0 {
		return 0
	}
	return max(0, b.o.MinFree+n-b.free)
}

// refuse says that n more bytes can't be stored, even if everything that may go
// goes. mu is held.
func (b *Buffer) refuse(n int64) error {
	n += b.queued
	idle := b.queued == 0 && !b.pending()
	if b.o.Full == Hold && !idle && b.live+n > b.o.MaxBytes+b.o.slack() {
		return fmt.Errorf("%w: %d bytes are not delivered yet, of %d", ErrFull, b.live, b.o.MaxBytes)
	}
	return b.refuseDisk(n)
}

// refuseDisk is refuse as far as the disk is concerned. mu is held.
func (b *Buffer) refuseDisk(n int64) error {
	if lacks := b.lacks(n); lacks > 0 {
		can, mine := int64(0), b.credit
		done := b.reached() // freeDone tells what is not told
		for i, s := range b.segs[:max(0, len(b.segs)-1)] {
			if i < done {
				can += s.size
			} else if s.newer {
				break // see stuck
			} else if b.o.Full == DropOldest && !b.spared(s) {
				mine += s.size
			}
		}
		if lacks > can && mine < n {
			return fmt.Errorf("%w: the disk has %d bytes left, and %d are for others", ErrFull, b.free, b.o.MinFree)
		}
	}
	return nil
}

// Fits reports whether n more payload bytes should be admitted behind held ones,
// which were admitted before and will come to Append, so that reserve bytes stay
// free for others; of the memory ring at most half. Under Hold that is so while MaxBytes
// is not reached by what is not delivered, or while nothing is pending or held at all,
// so that one large batch can't be stuck for ever. Under DropOldest it is always so,
// unless the disk is full and nothing can be dropped, or the ring is; and where a segment
// of a newer version must stay it is as under Hold.
func (b *Buffer) Fits(held, n, reserve int64) bool {
	b.refreshFree(freeEvery)
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fits(held, n, reserve)
}

func (b *Buffer) fits(held, n, reserve int64) bool {
	held = max(held, b.queued)
	idle := held == 0 && !b.pending()
	if (b.o.Full == Hold || b.stuck() != nil) && !idle && (b.live+b.ring.live+held+n+reserve > b.o.MaxBytes || len(b.segs)-b.head >= maxSegments) {
		return false
	}
	if b.ring.degraded {
		if idle {
			reserve = 0
		}
		return b.roomInRing(held + n + min(reserve, b.o.Memory/2))
	}
	return b.refuseDisk(held+n+reserve) == nil
}

// Room waits until Fits(held, n, reserve), the end of ctx or Close.
func (b *Buffer) Room(ctx context.Context, held, n, reserve int64) error {
	for {
		b.refreshFree(freeEvery)
		b.mu.Lock()
		ok, closed, changed := b.fits(held, n, reserve), b.closed, b.changed
		b.mu.Unlock()
		if closed {
			return ErrClosed
		}
		if ok {
			return nil
		}
		// Others may free the disk without telling us.
		if err := await(ctx, changed, freeEvery); err != nil {
			return err
		}
	}
}

// makeRoom frees what n more bytes need: delivered segments first, then, under
// DropOldest, the oldest. On a disk that others have filled, own old segments make
// room for own new ones byte for byte, no more: others never shrink the buffer.
// w is held.
func (b *Buffer) makeRoom(n int64) error {
	b.refreshFree(freeEvery)
	for {
		b.mu.Lock()
		over := b.total+n > b.o.MaxBytes || b.active == nil && len(b.segs) >= maxSegments
		short := b.lacks(n) > 0
		switch {
		case !short:
			b.credit = 0
		case b.credit >= n && !over:
			b.credit -= n
			short = false
		}
		credit, free, segments := b.credit, b.free, len(b.segs)
		b.mu.Unlock()
		if !over && !short {
			return nil
		}
		size, err := b.freeDone(false)
		if isFull(err) {
			b.giveUp() // so that the next batch begins a segment
			size, err = b.freeDone(true)
		}
		if err != nil {
			return err
		}
		if size > 0 {
			continue
		}
		if b.o.Full == DropOldest {
			size, err = b.dropOldest(ReasonFull, nil)
			if err != nil {
				return err
			}
			if size > 0 {
				b.mu.Lock()
				b.credit += size
				b.mu.Unlock()
				continue
			}
		}
		b.mu.Lock()
		stuck := b.stuck()
		b.mu.Unlock()
		if b.o.Full == DropOldest && over && stuck != nil && b.total+n > b.o.MaxBytes+b.o.slack() {
			return fmt.Errorf("%w: the oldest segment, %s, was written by a newer spillway and is not dropped: use that one, or a newer one", ErrFull, stuck.name())
		}
		if short && credit < n {
			return fmt.Errorf("%w: the disk has %d bytes left, and %d are for others", ErrFull, free, b.o.MinFree)
		}
		if b.active == nil && segments >= maxSegments {
			return fmt.Errorf("%w: %d segments", ErrFull, segments)
		}
		return nil // refuse allowed it: within the slack, or alone
	}
}

// reclaim frees n bytes after the disk said that it is full. w is held.
func (b *Buffer) reclaim(n int64) error {
	for n > 0 {
		size, err := b.freeOldest(true)
		if err != nil {
			return err
		}
		if size == 0 {
			return ErrFull
		}
		n -= size
	}
	return nil
}

// freeOldest is freeDone, then, under DropOldest, dropOldest. w is held.
func (b *Buffer) freeOldest(force bool) (int64, error) {
	size, err := b.freeDone(force)
	if err == nil && size == 0 && b.o.Full == DropOldest {
		size, err = b.dropOldest(ReasonFull, nil)
	}
	return size, err
}

// stuck is the segment that would be dropped next if it were not of a newer version: nil if
// the next is another one, or there is none. Nothing behind it goes either, for what is
// dropped behind one that stays is one range only, and where it ends may be another one that
// stays. mu is held.
func (b *Buffer) stuck() *segment {
	if i := b.oldest(); i < len(b.segs) && b.segs[i].newer {
		return b.segs[i]
	}
	return nil
}

// spared reports whether s holds records of the plan. mu is held.
func (b *Buffer) spared(s *segment) bool {
	p := b.pos.plan
	return p != Plan{} && s.first <= p.Last && s.last >= p.First
}

// isLastOnDisk reports whether segment i is the newest of all, or of those on the disk: what is
// behind it in memory may never come there. mu is held.
func (b *Buffer) isLastOnDisk(i int) bool {
	return i >= len(b.segs)-1 || b.segs[i].mem == nil && b.segs[i+1].mem != nil
}

// freeDone removes the oldest delivered segment, never the newest of all: that
// one tells the next start where numbering goes on. It returns the bytes freed, or 1
// if the segment was empty, and 0 if there is none. w is held.
//
// A position must not point before a segment that was removed. But where a full
// disk takes no overwrite either (btrfs, f2fs), removing is the only way out: with
// force it goes on, and the segment that is created next carries the position as
// its acked floor. Nor is anything put aside then: that makes no room.
func (b *Buffer) freeDone(force bool) (int64, error) {
	b.mu.Lock()
	if b.head == 0 && b.reached() > 0 { // what is lost there would keep the oldest for ever
		b.mu.Unlock()
		b.tellHead()
		b.mu.Lock()
	}
	if b.head == 0 || b.isLastOnDisk(0) || b.segs[0].mem != nil { // what is in memory takes nothing on the disk
		b.mu.Unlock()
		return 0, nil
	}
	s := b.segs[0]
	b.mu.Unlock()
	if err := b.saveDirty(); err != nil && !(force && isFull(err)) {
		return 0, err
	}
	return max(1, s.size), b.remove(s, !force && (s.damaged || b.headless(s)))
}

// headless reports whether s has bytes and not its own header, so that nothing says what
// the bytes are. What can't be read may have one. w is held.
func (b *Buffer) headless(s *segment) bool {
	e, ok := b.begins(s)
	return ok && e.Kind != KindHeader && !errors.Is(e.Err, ErrVersion)
}

// begins is what an earlier life's s begins with, as far as a header may reach. ok is false
// if it is empty or can't be read. w is held.
func (b *Buffer) begins(s *segment) (e Extent, ok bool) {
	if s.ours {
		return e, false
	}
	f, err := b.openSegment(s)
	if err != nil {
		return e, false
	}
	defer f.Close()
	scan := scanner{r: f, end: min(s.size, batch.MaxHeader), salt: s.salt, halt: true}
	return scan.next()
}

// saveDirty makes the position durable if it is not, or if that is not known: what
// was read at the start may be what an earlier life wrote and did not get to sync.
// w is held.
func (b *Buffer) saveDirty() error {
	if b.saved && !b.isDirty() {
		return nil
	}
	return b.saveCursor()
}

// remove unlinks a segment or puts it aside. What can't be put aside, because quarantine/ can't
// be made or written, is removed: nothing in it is wanted any more, and all behind it
// waits. w is held.
func (b *Buffer) remove(s *segment, aside bool) error {
	aside = aside && s.mem == nil && b.setAside(s)
	switch {
	case aside:
	case s.mem == nil:
		if err := b.fs.Remove(s.name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove segment: %w", err)
		}
	case s.mem.tried:
		b.ring.left = s.name()
		b.sweep() // else before the next try
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := b.find(s.ordinal); i < len(b.segs) && b.segs[i] == s {
		b.segs = slices.Delete(b.segs, i, i+1)
		if s.mem != nil {
			b.ring.bytes -= s.size
		} else {
			b.total -= s.size
			if !aside {
				b.free += s.size
			}
			b.stats.removed++
		}
	}
	s.mem = nil // whoever still knows s must not hold its memory
	b.reckon()
	b.settleDoubts()
	b.broadcast()
	return nil
}

// setAside moves a segment to quarantine/, if it may have so much and it can be done.
func (b *Buffer) setAside(s *segment) bool {
	if s.size > b.o.QuarantineBytes || b.fs.Quarantine(s.name()) != nil {
		return false
	}
	b.mu.Lock()
	b.stats.quarantined++
	b.mu.Unlock()
	b.trimDir(quarantine, b.o.QuarantineBytes, s.name())
	return true
}

// trimDir removes the oldest segments of sub, but not keep, until they have limit bytes at most.
// Other files are somebody's: they stay, and do not count. What fails is done next time.
func (b *Buffer) trimDir(sub string, limit int64, keep string) {
	files, err := b.fs.List(sub)
	if err != nil {
		return
	}
	var sum int64
	files = slices.DeleteFunc(files, func(f FileInfo) bool {
		_, ours := parseName(f.Name)
		if ours {
			sum += f.Size
		}
		return !ours
	})
	slices.SortFunc(files, func(a, c FileInfo) int { return strings.Compare(a.Name, c.Name) })
	for _, f := range files {
		if sum > limit && f.Name != keep && b.fs.Remove(sub+"/"+f.Name) == nil {
			sum -= f.Size
		}
	}
}

// dropOldest removes the oldest segment that holds undelivered records, except
// the newest of all, those of the plan and what is stuck, and notes the hole with reason.
// The note is durable before the segment goes. With only, no other one goes. It returns
// the bytes freed, or 1 if the segment was empty, and 0 if there is nothing to drop. w is held.
func (b *Buffer) dropOldest(reason string, only *segment) (int64, error) {
	b.mu.Lock()
	i := b.oldest()
	if i < len(b.segs) && (b.segs[i].mem != nil || only != nil && b.segs[i] != only) {
		i = len(b.segs) // it takes nothing on the disk, or is another one
	}
	b.mu.Unlock()
	return b.drop(i, reason)
}

// drop is dropOldest for segment i. w is held.
func (b *Buffer) drop(i int, reason string) (int64, error) {
	b.mu.Lock()
	if b.isLastOnDisk(i) {
		b.mu.Unlock()
		return 0, nil
	}
	s, next, atHead := b.segs[i], b.segs[i+1], i == b.head
	b.mu.Unlock()
	if b.isNewer(s) {
		return 0, nil
	}

	last := next.first - 1
	if next.first < s.first {
		last = s.last
	}
	if next.epoch != s.epoch {
		if e := b.ending(s); !e.failed { // else too many are told, rather than none
			last = min(e.last, s.last) // numbers need not join here, and what is above s.last was given up
		}
	}
	behind, ok := b.batchBehind(next, 0, 0)

	if atHead {
		b.tellHead()
	}
	b.mu.Lock()
	g := Gap{Reason: reason, Epoch: s.epoch, First: max(s.first, b.pos.committed+1), Last: last}
	g.Before, g.Since = b.sealBefore(s)
	if ok {
		g.Until = instant(behind.FirstTime)
		if next.epoch == s.epoch {
			g.After = behind.Seal
		}
	}
	for j := len(b.index) - 1; j >= 0; j-- {
		if b.index[j].seg == s {
			b.cut(j, intact)
		}
	}
	// What cut took to be damage at the end of an epoch is this drop.
	for j := range b.index {
		b.index[j].ended = outside(b.index[j].ended, g)
	}
	b.tail.ended = outside(b.tail.ended, g)
	passed := &b.pos.passed
	if passed.First > g.First {
		g.Last = min(g.Last, passed.First-1)
	} else {
		g.First = max(g.First, passed.Last+1) // s may lie before it, or be there only because the power went
	}
	if g.First <= g.Last {
		g.Count = g.Last - g.First + 1
		b.addGap(g)
		if atHead {
			b.skip(s, next, g) // passed stays: what it tells begins behind g, and is passed with it or later
		} else {
			if *passed == (Range{}) {
				*passed = Range{g.First, g.Last}
			}
			*passed = Range{min(passed.First, g.First), max(passed.Last, g.Last)}
		}
	}
	if b.tail.seg == s {
		b.tail.off = max(b.tail.off, s.end)
		b.tail.damage, b.tail.lost = intact, 0
	}
	b.mu.Unlock()
	if s.mem == nil {
		if err := b.saveDirty(); err != nil {
			return 0, err // the note comes first; what is in memory is true all the same
		}
	}
	return max(1, s.size), b.remove(s, false)
}

// isNewer reports whether s is of a newer version, also where Next has not come to it.
// w is held.
func (b *Buffer) isNewer(s *segment) bool {
	e, _ := b.begins(s)
	b.mu.Lock()
	defer b.mu.Unlock()
	s.newer = s.newer || errors.Is(e.Err, ErrVersion)
	return s.newer
}

// oldest is the index of the segment to drop next. What is dropped behind a plan
// must stay one range without anything left in it: segments right before that
// range go before the ones behind it. mu is held.
func (b *Buffer) oldest() int {
	i := b.head
	for i < len(b.segs) && b.spared(b.segs[i]) {
		i++
	}
	if i > b.head && b.pos.passed != (Range{}) {
		for i+1 < len(b.segs) && b.segs[i+1].first < b.pos.passed.First {
			i++
		}
	}
	return i
}

// tellHead tells the hole at the head of the line, if one is known: what is missing there,
// or destroyed, is not dropped with what lies around it. w is held.
func (b *Buffer) tellHead() {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := &b.tail
	isHole := func() bool {
		return len(b.index) == 0 && t.seg != nil && (t.next < t.seg.first || len(t.ended) > 0)
	}
	if isHole() { // before a segment of which nothing is read, or nothing can be
		s := t.seg
		b.mu.Unlock()
		h, _ := b.batchBehind(s, 0, 0)
		b.mu.Lock()
		if t.seg == s && isHole() {
			first := max(s.first, t.next)
			if h.First != first {
				h = batch.Header{First: first}
			}
			b.tell(&entry{seg: s, h: h, expect: t.next, before: t.seal, damage: t.damage, since: t.since, ended: t.ended})
			t.next, t.ended = first, nil
			if t.off == 0 { // else the damage may be that of s
				t.damage, t.lost = intact, 0
			}
			b.reckon()
		}
	}
	if len(b.index) > 0 {
		b.tell(&b.index[0])
	}
}

// skip moves the head of the line behind the hole g, in place of which s was,
// before next. mu is held.
func (b *Buffer) skip(s, next *segment, g Gap) {
	last := g.Last
	if next.first > b.pos.passed.Last {
		last = max(last, b.pos.passed.Last) // dropped before, and nothing is left between
	}
	b.pass(last)
	if len(b.index) > 0 {
		e := &b.index[0]
		e.expect = max(e.expect, min(last+1, e.h.First))
		return
	}
	t := &b.tail
	if t.next <= last {
		t.next, t.seal, t.sealOf = last+1, batch.Seal{}, last
	}
}

// outside returns the gaps that g does not cover.
func outside(gaps []Gap, g Gap) []Gap {
	return slices.DeleteFunc(gaps, func(o Gap) bool { return o.Epoch == g.Epoch && o.First >= g.First && o.Last <= g.Last })
}

// sealBefore is the seal before the first undelivered batch of s, and the time of
// the record before it, as far as they are known. mu is held.
func (b *Buffer) sealBefore(s *segment) (batch.Seal, time.Time) {
	for i := range b.index {
		if e := &b.index[i]; e.seg == s {
			if e.prev != (batch.Seal{}) {
				return e.prev, instant(e.since) // also right behind a hole that was told before
			}
			return e.before, instant(e.since)
		}
	}
	if b.tail.seg == s {
		return b.tail.seal, instant(b.tail.since)
	}
	return batch.Seal{}, time.Time{}
}

// Maintain does what is due at now: interval sync, saving the cursor, removing
// delivered segments after KeepAcked or when the disk is short, and undelivered ones
// after MaxAge. It returns when
// it wants to be called again at the latest; the zero time means not before
// something is appended or committed, which Woken tells. The buffer has no
// clock and no goroutine of its own: without Maintain nothing is freed until room
// is needed, and SyncInterval syncs only by MaxUnsynced.
func (b *Buffer) Maintain(now time.Time) (next time.Time) {
	b.w.Lock()
	defer b.w.Unlock()
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	if closed {
		return time.Time{}
	}
	at := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	if b.ring.degraded {
		b.probe(now, false)
	}
	if b.ring.degraded {
		if b.forgetDelivered(false); b.stranded {
			b.storeMemory(nil) // what was delivered may have made room
		}
		at(b.ring.try)
	} else if len(b.unsynced) > 0 {
		due := b.unsyncedSince.Add(b.o.SyncInterval)
		if due.After(now.Add(b.o.SyncInterval)) {
			due = now // the clock went back
		}
		if due.After(now) {
			at(due)
		} else {
			err := b.flush()
			b.mu.Lock()
			b.lastErr = err
			b.mu.Unlock()
			if err != nil && !b.degrade(err) {
				b.unsyncedSince = now
				at(now.Add(b.o.SyncInterval))
			}
		}
	}
	if !b.ring.degraded { // else the next try does it
		if due := b.expire(now); !due.IsZero() {
			at(due)
		}
		if due := b.outdate(now); !due.IsZero() {
			at(due)
		}
	}
	if b.isDirty() && !b.ring.degraded {
		due := b.lastSave.Add(saveEvery)
		if due.After(now.Add(saveEvery)) {
			due = now
		}
		if due.After(now) {
			at(due)
		} else if b.saveCursor() != nil {
			at(now.Add(saveEvery))
		}
	}
	return next
}

// expire removes delivered segments whose time has come. w is held.
func (b *Buffer) expire(now time.Time) (next time.Time) {
	keep := max(0, b.o.KeepAcked)
	for {
		b.mu.Lock()
		n := min(b.head, len(b.segs)-1)
		var due time.Time
		if n > 0 {
			due = time.Unix(0, b.segs[0].doneAt).Add(keep)
			if due.After(now.Add(keep)) {
				b.segs[0].doneAt, due = now.UnixNano(), now.Add(keep) // the clock went back
			}
		}
		b.mu.Unlock()
		if n <= 0 {
			return time.Time{}
		}
		if due.After(now) {
			b.refreshFree(freeEvery)
			b.mu.Lock()
			short := b.lacks(0) > 0
			b.mu.Unlock()
			if !short {
				return due
			}
		}
		if size, err := b.freeDone(false); err != nil || size == 0 {
			return now.Add(saveEvery)
		}
	}
}

// Stats is what can be said about a buffer at one moment.
type Stats struct {
	Segments        int
	Bytes           int64     // of all segments
	MaxBytes        int64     // that they may have together
	LiveBytes       int64     // of segments with undelivered records
	Room            int64     // bytes that still fit, MinFree heeded, without anything undelivered being dropped
	Committed       uint64    // the last record that was delivered, or told as lost
	Next            uint64    // the number of the next record
	PendingRecords  uint64    // stored and not delivered; an upper bound where an earlier life's damage is not read yet
	PendingSince    time.Time // since when something has waited and none of it was delivered, in this life; zero: nothing waits
	UnsyncedBytes   int64
	GapsUntold      int
	Free            int64  // bytes of the file system, as last seen; at most freeEvery old while appending
	DiskError       error  // of the last write; nil: it succeeded
	Degraded        bool   // the disk takes no writes, and batches are kept in memory: see ErrMemory
	MemoryBytes     int64  // of segments in memory
	MemoryRecords   uint64 // that were kept in memory first, in this life
	AppendedBatches uint64 // this and all below: in this life
	AppendedRecords uint64
	AppendedBytes   uint64 // of payload

	// Records that Commit was the first to account for, and their bytes with headers. What
	// had been dropped when it was acknowledged is not among them.
	DeliveredRecords uint64
	DeliveredBytes   uint64

	Syncs           uint64
	SegmentsGivenUp uint64 // after a write or sync error
	SegmentsRemoved uint64
	Quarantined     uint64 // segments
	CursorErrors    uint64
	TornBytes       uint64            // passed over: writes that were cut off
	CorruptBytes    uint64            // passed over: bytes that were durable once
	Lost            map[string]uint64 // records by reason of their gap, over all lives
}

// Stats returns the present numbers. They are counted from what is on disk and
// in memory; nothing is decided by them.
func (b *Buffer) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Stats{
		Degraded: b.ring.degraded, MemoryBytes: b.ring.bytes, MemoryRecords: b.stats.memoryRecords,
		Segments: len(b.segs), Bytes: b.total, MaxBytes: b.o.MaxBytes, LiveBytes: b.live, Committed: b.pos.committed, Next: b.next,
		UnsyncedBytes: b.unsyncedBytes.Load(), GapsUntold: len(b.pos.gaps), Free: b.free, DiskError: b.lastErr,
		AppendedBatches: b.stats.appendedBatches, AppendedRecords: b.stats.appendedRecords, AppendedBytes: b.stats.appendedBytes,
		DeliveredRecords: b.stats.deliveredRecords, DeliveredBytes: b.stats.deliveredBytes,
		Syncs: b.stats.syncs, SegmentsGivenUp: b.stats.poisoned, SegmentsRemoved: b.stats.removed, Quarantined: b.stats.quarantined,
		CursorErrors: b.stats.cursorErrors, TornBytes: b.stats.torn, CorruptBytes: b.stats.corrupt,
		Lost: map[string]uint64{},
	}
	for i, reason := range dropped {
		if reason != "" {
			s.Lost[reason] = b.pos.drops[i]
		}
	}
	if b.pending() {
		s.PendingSince = b.waiting
	}
	pending := func(first, last uint64) {
		first = max(first, b.pos.committed+1)
		if first > last {
			return
		}
		s.PendingRecords += last - first + 1
		// What was dropped behind a plan is lost already, and not passed yet.
		if first, last = max(first, b.pos.passed.First), min(last, b.pos.passed.Last); first <= last {
			s.PendingRecords -= last - first + 1
		}
	}
	for _, seg := range b.segs[b.head:] {
		if seg.ours {
			break
		}
		pending(seg.first, seg.last)
	}
	pending(b.start.Next, b.next-1)
	s.Room = b.o.MaxBytes - b.live - b.ring.live
	if b.ring.degraded {
		s.Room = min(s.Room, b.o.Memory-b.ring.live)
	}
	if b.o.MinFree >= 0 {
		s.Room = min(s.Room, b.free+b.total-b.live-b.o.MinFree)
	}
	s.Room = max(0, s.Room)
	return s
}

// Oldest returns the receive time of the oldest record that is stored and not
// delivered, the zero time if there is none. Where Next has not come to it yet, it is
// looked for behind what was read; behind many batches that an earlier life delivered
// it may be somewhat too early.
func (b *Buffer) Oldest() time.Time {
	b.mu.Lock()
	switch {
	case len(b.index) > 0:
		defer b.mu.Unlock()
		return instant(b.index[0].h.FirstTime)
	case len(b.segs) == 0 || !b.pending():
		b.mu.Unlock()
		return time.Time{}
	}
	at, off, delivered := b.segs[min(b.head, len(b.segs)-1)], int64(0), b.pos.committed
	if b.tail.seg != nil {
		at, off = b.tail.seg, b.tail.off
	}
	b.mu.Unlock()
	var oldest time.Time
	for {
		if h, ok := b.batchBehind(at, off, delivered); ok {
			oldest = instant(h.FirstTime)
			if h.Last() > delivered {
				return oldest
			}
		}
		b.mu.Lock()
		i := b.find(at.ordinal + 1)
		if i == len(b.segs) {
			b.mu.Unlock()
			return oldest
		}
		at, off = b.segs[i], 0
		b.mu.Unlock()
	}
}

// batchBehind returns the first batch of s from off on with a record above n, or
// the last one that it looked at.
func (b *Buffer) batchBehind(s *segment, off int64, n uint64) (h batch.Header, ok bool) {
	f, err := b.openSegment(s)
	if err != nil {
		return h, false
	}
	defer f.Close()
	b.mu.Lock()
	end := s.end
	b.mu.Unlock()
	scan := scanner{r: f, off: off, end: end, salt: s.salt}
	for range 1024 {
		e, more := scan.next()
		if !more {
			break
		}
		if e.Kind == KindBatch {
			if h, ok = e.Batch.Header, true; h.Last() > n {
				break
			}
		}
	}
	return h, ok
}
