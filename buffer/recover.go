package buffer

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sort"

	"spillway/buffer/batch"
)

// tail is how far the segments have been scanned for batches to hand out.
type tail struct {
	seg  *segment // nil: before the first
	off  int64
	next uint64     // the number that must come next
	seal batch.Seal // of the batch that ends with sealOf
	// before is the seal before the first batch of seg, if its header is intact (known).
	before batch.Seal
	known  bool
	sealOf uint64
	// join is the seal of the batch that ends with joinOf: the last batch header
	// that was seen, whatever became of its payload.
	join   batch.Seal
	joinOf uint64
	since  int64  // receive time of that batch's last record, unix ns
	damage damage // since that batch
	lost   uint64 // the highest number known to be lost in damage; 0: not known
	ended  []Gap  // what was lost at the end of epochs before
}

// damage that lies between two batches.
type damage uint8

const (
	intact  damage = 0
	torn    damage = 1 // a write that was cut off
	corrupt damage = 2 // bytes that were durable once
)

// ending is what a segment's bytes say about its end.
type ending struct {
	seg    *segment
	last   uint64     // highest number of a valid batch; 0: there is none
	seal   batch.Seal // of that batch
	time   int64      // of its last record
	seen   uint64     // highest number in any intact header or footer, of a lost payload too
	hurt   bool       // there is damage in it, or nothing at all
	failed bool       // it could not be read, which says nothing about what is in it
	newer  error      // ErrVersion: what is in it can't be known
}

// lookBack is how many segments before the newest are searched for the last valid
// batch, if the newest holds none. Of the cursor's epoch more are, until one has anything.
const lookBack = 3

// unreadable is how many numbers are left out for a segment or a cursor that gave
// a read error when the buffer was opened.
const unreadable = 1 << 32

// recover looks at what is there and decides where numbering and delivery go on.
// It writes nothing.
//
//  1. List the directory. The names of the segments give their order, the epoch
//     and the first number of each. Other names are left alone.
//  2. Read the two slots of the cursor; the newest valid one counts, if it belongs to
//     these segments. If it, the newest header that can be read, or anything else that is
//     read here is of a newer version, the buffer is not opened: this one does not know
//     what it would change.
//  3. Read the end of the newest segment: its footer, else all of it. Older ones
//     end before its first number; one is read only if there is no valid batch in
//     the newest, to say what was the last.
//     A read error (not damage) makes numbering jump by 2^32: nothing is known.
//  4. Go on with the numbers of the newest segment's epoch if the cursor says that the
//     last life ended in order, and the segment's footer says the same; else begin a
//     new epoch above every number found anywhere.
//  5. Begin delivery behind the cursor; without one, behind the acked floor of the
//     newest readable segment header; without that, with the oldest segment.
func (b *Buffer) recover() error {
	if err := b.list(); err != nil {
		return err
	}
	p, cursor, certain := b.cur.read(b.fs)
	if b.cur.newer != nil {
		return fmt.Errorf("%s: %w", cursorFile, b.cur.newer)
	}
	// A cursor with a seal was saved by a life that stored something: if no segment is of
	// its epoch, it is that of another buffer. Its numbers are avoided all the same.
	ours := cursor && (len(b.segs) == 0 || p.seal == (batch.Seal{}) || b.known(p.epoch))
	certain = certain && ours
	if ours {
		b.pos = p
	}
	found := max(p.committed, max(p.next, 1)-1)
	for _, s := range b.segs {
		found = max(found, s.first-1)
		b.ordinal = max(b.ordinal, s.ordinal+1)
	}
	b.opens = 1
	failed := b.cur.failed
	var newest, best ending
	same := false     // the newest segment's footer says what the cursor says
	from := uint64(1) // no intact header has this number, or one above it
	if n := len(b.segs); n > 0 {
		h, err := b.newestHeader()
		if err != nil {
			return err
		}
		b.opens = h.Opens + 1
		if newest, same = b.newestEnding(p); newest.newer != nil {
			return newest.newer
		}
		best = newest
		found = max(found, newest.seen)
		failed = newest.failed
		from = max(newest.seg.first, newest.seen+1)
		known := newest.seen > 0
		for i := n - 2; i >= 0; i-- {
			if !(best.last == 0 && i >= n-1-lookBack) && (known || b.segs[i].epoch != p.epoch) {
				break
			}
			e := b.ending(b.segs[i])
			if e.newer != nil {
				return e.newer
			}
			if e.last > 0 && best.last == 0 {
				best = e
				best.last = min(e.last, newest.seg.first-1)
			}
			if known = known || e.failed; !known {
				from = min(max(b.segs[i].first, e.seen+1), newest.seg.first)
				known = e.seen > 0
			}
		}
		b.acked = h.Floor
		if !ours {
			b.pos.committed = b.acked
			found = max(found, b.pos.committed)
		}
	}
	if failed {
		// What could not be read just now may be readable again one day, and its
		// numbers must not be those of another epoch.
		found += unreadable
	}
	for i, s := range b.segs[:max(0, len(b.segs)-1)] {
		if b.segs[i+1].first < s.first { // by hand: numbers only go up
			e := b.ending(s)
			if e.newer != nil {
				return e.newer
			}
			s.last = max(s.last, e.seen)
			found = max(found, e.seen)
		}
	}
	if s := newest.seg; newest.failed {
		s.last = max(s.last, found) // what is in it then comes out
		if cursor && p.epoch == s.epoch && p.next > best.last+1 {
			best = ending{seg: s, last: p.next - 1, seal: p.seal}
		}
	}
	orderly := certain && p.closed && p.next == found+1 || len(b.segs) == 0 && !cursor && !failed
	b.pos.closed = orderly
	if cursor && orderly && len(b.segs) == 0 && p.next == 1 {
		cursor = false // nothing was ever stored: it is a new directory still
	}
	b.anew = b.newEpoch(best, found, p, cursor)
	b.anew.Unclean = !orderly
	b.start = b.anew
	if s := newest.seg; orderly && same && s.agent == b.o.Agent && p.seal != (batch.Seal{}) {
		b.start = Start{Epoch: s.epoch, Next: p.next, Seal: p.seal}
	}
	b.next, b.seal = b.start.Next, b.start.Seal
	b.tailNext, b.tailSeal = b.next, b.seal
	b.settled = len(b.segs) == 0 || orderly
	if !orderly && !newest.failed {
		// The record that told of a gap may have been lost with the power: then it is not told.
		var again []Gap
		b.pos.told = slices.DeleteFunc(b.pos.told, func(t toldGap) bool {
			if t.by > best.last {
				again = append(again, t.Gap)
			}
			return t.by > best.last
		})
		b.pos.gaps = append(again, b.pos.gaps...)
	}
	if p.seal != (batch.Seal{}) && !newest.failed && (newest.seg == nil || newest.seg.epoch == p.epoch) {
		b.missing(p, best, newest.hurt, from)
	}
	if !orderly && b.next-1 > b.pos.committed {
		b.pos.doubt("", Range{b.pos.committed + 1, b.next - 1}) // what had been handed out is not known
	}
	b.settleDoubts()
	b.aim(certain)
	return nil
}

// missing notes what the cursor p says was stored from number from on, which no header
// shows: nothing behind it will. best is the last batch there. Dropped numbers, and
// delivered ones that were in memory only, are not missing. hurt says that the newest
// segment is damaged.
func (b *Buffer) missing(p position, best ending, hurt bool, from uint64) {
	reason := ReasonMissing
	switch {
	case !p.durable: // the cursor says what was written
		reason = ReasonTorn
	case hurt:
		reason = ReasonDamaged
	}
	if p.durable {
		b.durable = stored{p.epoch, p.next}
	}
	last := p.next - 1
	from = max(from, p.committed+1)
	for _, s := range b.segs {
		if s.epoch == p.epoch {
			from = max(from, s.first)
			break
		}
	}
	tell := func(first, last uint64) {
		if first > last {
			return
		}
		g := Gap{Reason: reason, Epoch: p.epoch, First: first, Last: last, Count: last - first + 1}
		if best.last > 0 && best.last+1 == first {
			g.Before, g.Since = best.seal, instant(best.time)
		}
		b.addGap(g)
	}
	if p.passed.overlaps(Range{from, last}) {
		tell(from, p.passed.First-1)
		from = p.passed.Last + 1
	}
	tell(from, last)
}

// stored is what a cursor says that was durable when it was saved: every number of epoch
// below next.
type stored struct {
	epoch batch.Epoch
	next  uint64
}

// list fills b.segs.
func (b *Buffer) list() error {
	files, err := b.fs.List("")
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	// Of copies that somebody made of a segment, under other ordinals, the oldest counts.
	type identity struct{ epoch, first, salt uint64 }
	seen := map[identity]bool{}
	b.segs = slices.DeleteFunc(parseNames(files), func(s *segment) bool {
		id := identity{uint64(s.epoch), s.first, s.salt}
		b.ordinal = max(b.ordinal, s.ordinal+1)
		defer func() { seen[id] = true }()
		return seen[id]
	})
	closeEnds(b.segs)
	for _, s := range b.segs {
		b.total += s.size
		if s.agent == b.o.Agent {
			s.agent = b.o.Agent // one string for all
		}
	}
	return nil
}

// parseNames returns the segments among files, oldest first. Where one begins, the
// one before it ends: what lies there under a higher number is what could not be
// made durable and was written again to the next, with or without parts missing.
func parseNames(files []FileInfo) []*segment {
	var segs []*segment
	for _, f := range files {
		if s, ok := parseName(f.Name); ok {
			s.size, s.end, s.promise = f.Size, f.Size, -1
			segs = append(segs, &s)
		}
	}
	sort.Slice(segs, func(i, j int) bool {
		if segs[i].ordinal != segs[j].ordinal {
			return segs[i].ordinal < segs[j].ordinal
		}
		return segs[i].name() < segs[j].name()
	})
	closeEnds(segs)
	return segs
}

// closeEnds lets each segment end where the next one begins.
func closeEnds(segs []*segment) {
	for i, s := range segs {
		s.last = s.first - 1
		if i+1 < len(segs) {
			s.last = max(s.last, segs[i+1].first-1)
		}
	}
}

// header reads a segment's header. Only a newer version is an error.
func (b *Buffer) header(s *segment) (h segmentHeader, err error) {
	f, err := b.openSegment(s)
	if err != nil {
		return h, nil
	}
	defer f.Close()
	h, err = readSegmentHeader(f)
	if err == errNotHeader || err == nil && h.Salt != s.salt {
		return segmentHeader{}, nil
	}
	return h, err
}

// newestEnding is the ending of the newest segment. Where the footer and the cursor
// say the same they say all; else the segment is read.
func (b *Buffer) newestEnding(p position) (e ending, same bool) {
	s := b.segs[len(b.segs)-1]
	if f, ok := b.footer(s); ok && p.next == f.Last+1 && p.epoch == s.epoch {
		s.last = f.Last
		return ending{seg: s, last: f.Last, seal: p.seal, time: f.LastTime, seen: f.Last}, true
	}
	e = b.read(s)
	s.last = max(s.last, e.seen)
	return e, false
}

// ending is what an older segment ends with: its footer says it without reading
// it all. The seal is known only if it was read.
func (b *Buffer) ending(s *segment) ending {
	if f, ok := b.footer(s); ok {
		return ending{seg: s, last: f.Last, time: f.LastTime, seen: f.Last}
	}
	return b.read(s)
}

// footer reads the footer at the end of s.
func (b *Buffer) footer(s *segment) (f Footer, ok bool) {
	if s.size < footerSize {
		return f, false
	}
	file, err := b.openSegment(s)
	if err != nil {
		return f, false
	}
	defer file.Close()
	var buf [footerSize]byte
	n, _ := readAt(file, buf[:], s.size-footerSize)
	f, ok = parseFooter(buf[:n], s.size-footerSize)
	return f, ok && f.Salt == s.salt && f.Last > 0
}

// read scans all of s for its ending.
func (b *Buffer) read(s *segment) ending {
	e := ending{seg: s, hurt: s.size == 0}
	f, err := b.openSegment(s)
	if err != nil {
		e.failed = !errors.Is(err, fs.ErrNotExist)
		return e
	}
	defer f.Close()
	scan := scanner{r: f, end: s.size, salt: s.salt, payloads: true}
	for {
		x, ok := scan.next()
		if !ok {
			e.failed = scan.bad
			return e
		}
		e.hurt = e.hurt || x.Kind == KindDamage
		switch x.Kind {
		case KindBatch:
			if x.Batch.Last() >= e.last {
				e.last, e.seal, e.time = x.Batch.Last(), x.Batch.Seal, x.Batch.LastTime
			}
		case KindFooter:
			e.seen = max(e.seen, x.Footer.Last)
		}
		if errors.Is(x.Err, ErrVersion) && e.newer == nil {
			e.newer = fmt.Errorf("%s: %w", s.name(), x.Err)
		}
		if x.Batch.Count > 0 {
			e.seen = max(e.seen, x.Batch.Last())
		}
	}
}

// newestHeader is the newest header that can be read: where the file that was written
// last is torn, the one before still tells the version. Only a newer one is an error.
func (b *Buffer) newestHeader() (h segmentHeader, err error) {
	for _, s := range slices.Backward(b.segs) {
		if h, err = b.header(s); err != nil || h.First > 0 {
			return h, err
		}
	}
	return segmentHeader{}, nil
}

// newEpoch is a start in a new epoch, above every number found.
//
// An epoch is continued only after a life that ended in order: of any other it is not
// known which numbers it gave out last. What Append returned for may be gone in a
// power cut (SyncInterval), or never have been on the disk (Options.Memory).
func (b *Buffer) newEpoch(best ending, found uint64, p position, cursor bool) Start {
	st := Start{Next: found + 1}
	for st.Epoch == 0 || b.known(st.Epoch) {
		st.Epoch = batch.Epoch(b.o.random())
	}
	switch {
	case best.last > 0 && cursor && p.epoch == best.seg.epoch && p.next > best.last+1: // in memory only, or dropped since
		st.Previous = &Gap{Reason: ReasonEpoch, Epoch: p.epoch, Last: p.next - 1, Before: p.seal}
	case best.last > 0:
		st.Previous = &Gap{Reason: ReasonEpoch, Epoch: best.seg.epoch, Last: best.last, Before: best.seal, Since: instant(best.time)}
	case len(b.segs) > 0:
		st.Previous = &Gap{Reason: ReasonEpoch, Epoch: b.segs[len(b.segs)-1].epoch, Last: found}
	case cursor:
		st.Previous = &Gap{Reason: ReasonEpoch, Epoch: p.epoch, Last: p.next - 1, Before: p.seal}
	}
	return st
}

// known reports whether a segment has this epoch.
func (b *Buffer) known(e batch.Epoch) bool {
	for _, s := range b.segs {
		if s.epoch == e {
			return true
		}
	}
	return false
}

// aim sets the tail to where the first undelivered batch must lie.
func (b *Buffer) aim(certain bool) {
	next := b.pos.committed + 1
	b.tail = tail{next: next}
	defer b.reckon()
	if len(b.segs) == 0 {
		b.tail.next = b.start.Next // what was before is told, and its numbers are not of this epoch
		return
	}
	i := 0
	for j, s := range b.segs {
		if s.first > next {
			break
		}
		i = j
	}
	s := b.segs[i]
	b.tail.seg = s
	if s.first <= next {
		return
	}
	if s.first > b.pos.passed.Last {
		b.tail.next = max(b.tail.next, b.pos.passed.Last+1)
	}
	// The oldest segment begins behind the position. If it does not begin an epoch,
	// the position is certain, and no segment was begun when what is not there had
	// been delivered, segments are missing; the reader will tell.
	if h, _ := b.header(s); !certain || h.Before == (batch.Seal{}) || b.acked >= s.first-1 {
		b.tail.next = s.first
	}
}
