package buffer

import (
	"fmt"
	"slices"

	"spillway/buffer/batch"
)

// InDoubt notes that output may have the records of r, which were handed out: they
// went to it and were not acknowledged. The note is durable before InDoubt returns,
// and with it a stored plan of that output that overlaps r is given up. So it
// comes before r goes to another output. After an error the plan stands, and
// a restart may find the doubt or not.
//
// A doubt ends when its output acknowledges its last number or a higher one, or
// when its records are not kept any more. At most 16 are kept: ranges of one output
// that overlap become one, then the oldest goes.
func (b *Buffer) InDoubt(output string, r Range) error {
	if err := checkName(output); err != nil {
		return fmt.Errorf("note doubt: %w", err)
	}
	if r.First == 0 || r.Last < r.First {
		return fmt.Errorf("note doubt: records %d to %d are none", r.First, r.Last)
	}
	b.w.Lock()
	defer b.w.Unlock()
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return ErrClosed
	}
	p := &b.pos
	if out := max(b.handed, p.committed, p.plan.Last); r.Last > out {
		b.mu.Unlock()
		return fmt.Errorf("note doubt: records %d to %d, but only %d were handed out: %w", r.First, r.Last, out, ErrOrder)
	}
	plan := p.plan
	givenUp := plan.Output == output && r.overlaps(Range{plan.First, plan.Last})
	if givenUp {
		p.plan = Plan{}
	}
	known := slices.ContainsFunc(p.doubts, func(d Doubt) bool { return d.Output == output && d.holds(r) })
	if !known {
		p.doubt(output, r)
	}
	b.mu.Unlock()
	if known && !givenUp && b.saved && !b.isDirty() {
		return nil
	}
	if err := b.keep(); err != nil {
		b.mu.Lock()
		if givenUp && p.plan == (Plan{}) && p.committed < plan.First {
			p.plan = plan
		}
		b.mu.Unlock()
		return fmt.Errorf("note doubt: %w", err)
	}
	return nil
}

// doubt adds a doubt to p. Ranges that only touch stay two: they may be objects,
// which are repeated as they were.
func (p *position) doubt(output string, r Range) {
	keep := p.doubts[:0]
	for _, d := range p.doubts {
		if d.Output == output && d.overlaps(r) {
			r = Range{min(r.First, d.First), max(r.Last, d.Last)}
		} else {
			keep = append(keep, d)
		}
	}
	keep = append(keep, Doubt{output, r})
	p.doubts = keep[max(0, len(keep)-maxDoubts):]
}

// doubted reports whether a part of r may have been sent.
func (p *position) doubted(r Range) bool {
	return slices.ContainsFunc(p.doubts, func(d Doubt) bool { return d.overlaps(r) })
}

// Doubts returns what InDoubt noted and nothing has ended yet, oldest first.
func (b *Buffer) Doubts() []Doubt {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Doubt
	for _, d := range b.pos.doubts {
		if d.Output != "" {
			out = append(out, d)
		}
	}
	return out
}

// settleDoubts ends doubts of records that are not kept any more, and of delivered
// ones that any output may have. mu is held.
func (b *Buffer) settleDoubts() {
	kept := b.next
	if len(b.segs) > 0 {
		kept = b.segs[0].first
	}
	keep := b.pos.doubts[:0]
	for _, d := range b.pos.doubts {
		if d.Output == "" {
			d.First = max(d.First, b.pos.committed+1)
		}
		if d.First <= d.Last && d.Last >= kept {
			keep = append(keep, d)
		}
	}
	b.pos.doubts = keep
}

// Acked returns the highest number that output has acknowledged, 0 if none is
// known. After a crash it may be up to 5 s old.
func (b *Buffer) Acked(output string) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pos.acked(output)
}

func (p *position) acked(output string) uint64 {
	for _, h := range p.acks {
		if h.output == output {
			return h.last
		}
	}
	return 0
}

// took notes that output acknowledged everything from behind the position up to
// last, before the position moves there. It ends the output's doubts up to last.
//
// A hand-over begins where the one before it ends. So what nobody took, holes and
// rejected records, is one too, and the first of the list only says where the
// second begins: where it began itself has been forgotten, or never was known.
func (p *position) took(output string, last uint64) {
	p.acks = slices.DeleteFunc(p.acks, func(h handed) bool { return h.output == output })
	p.acks = append(p.acks, handed{output, last})
	p.acks = p.acks[max(0, len(p.acks)-maxNames):]
	doubts := p.doubts[:0]
	for _, d := range p.doubts {
		if d.Output == output {
			d.First = max(d.First, last+1)
		}
		if d.First <= d.Last {
			doubts = append(doubts, d)
		}
	}
	p.doubts = doubts
	n := len(p.handed)
	if n == 0 || p.handed[n-1].last != p.committed {
		p.handed = append(p.handed, handed{"", p.committed})
		n++
	}
	if n > 1 && p.handed[n-1].output == output {
		p.handed[n-1].last = last
	} else {
		p.handed = append(p.handed, handed{output, last})
	}
	p.handed = p.handed[max(0, len(p.handed)-maxHanded):]
}

// Taken returns which of the records that are still kept output has acknowledged,
// ascending. It claims less when hand-overs went to and fro more often than the
// cursor can hold, or a crash cost the newest, and never more: holes and rejected
// records are left out.
func (b *Buffer) Taken(output string) []Range {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.segs) == 0 || output == "" {
		return nil
	}
	var out []Range
	kept := b.segs[0].first
	for _, h := range b.pos.handOvers() {
		r := Range{max(kept, h.First), h.Last}
		if h.Output != output || r.First > r.Last {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Last+1 == r.First {
			out[n-1].Last = r.Last
		} else {
			out = append(out, r)
		}
	}
	return out
}

// TakenSince returns the lowest number from which on it is known who took what:
// below it, hand-overs are forgotten or their segments are gone.
func (b *Buffer) TakenSince() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	since := b.pos.committed + 1
	if len(b.pos.handed) > 0 {
		since = b.pos.handed[0].last + 1
	}
	if len(b.segs) > 0 {
		since = max(since, b.segs[0].first)
	}
	return since
}

// handOvers returns what is known of who took what, oldest first.
func (p *position) handOvers() (out []HandOver) {
	for i := 1; i < len(p.handed); i++ {
		if h := p.handed[i]; h.output != "" {
			out = append(out, HandOver{h.output, Range{p.handed[i-1].last + 1, h.last}})
		}
	}
	return out
}

// Knows reports whether e is the present epoch or that of a segment that is still
// kept.
func (b *Buffer) Knows(e batch.Epoch) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return e == b.start.Epoch || b.known(e)
}
