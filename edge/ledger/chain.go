package ledger

import (
	"cmp"
	"fmt"
	"slices"

	"spillway/buffer/batch"
)

// span is batches without a hole whose seals were computed from their bytes: from
// the seal before the first to the one behind the last.
type span struct {
	first, last   uint64
	before, after batch.Seal
	headless      bool // before is not known: after was told by a gap record
}

// loose is a batch whose seal is not known, for nothing told the one before it.
type loose struct {
	first uint64
	count uint32
	codec batch.Codec
	sum   [32]byte
}

func (b *loose) header() *batch.Header {
	return &batch.Header{Codec: b.codec, First: b.first, Count: b.count, Sum: b.sum}
}

// spanAt returns the index of the first span that ends at n or later.
func (e *epoch) spanAt(n uint64) int {
	if k := len(e.spans); k == 0 || e.spans[k-1].last < n {
		return k
	}
	i, _ := slices.BinarySearchFunc(e.spans, n, func(s span, n uint64) int { return cmp.Compare(s.last, n) })
	return i
}

// chain enters batches with their seals and joins them with their neighbours.
func (e *epoch) chain(l *Ledger, s span) {
	e.mark(s.last, s.after)
	i := e.spanAt(s.first)
	e.spans = slices.Insert(e.spans, i, s)
	e.join(l, i)
	i = e.spanAt(s.first)
	e.join(l, i-1)
	e.take(l, s.last)
}

// mark notes the seal behind the batch that ends at last.
func (e *epoch) mark(last uint64, seal batch.Seal) {
	if x, end := e.batches.at(last); x != nil && end == last {
		x.seal = short(seal)
	}
}

// join makes one of spans i and i+1 if they touch and their seals do.
func (e *epoch) join(l *Ledger, i int) {
	if i < 0 || i+1 >= len(e.spans) || e.spans[i].last+1 != e.spans[i+1].first {
		return
	}
	a, b := &e.spans[i], &e.spans[i+1]
	switch {
	case b.headless:
	case a.after != b.before:
		l.fault(e.fault(KindSeal, b.first, b.last, "the seal before record %d is stated as %.16s…, but the records before it end with %.16s…: the seals do not join",
			b.first, b.before.String(), a.after.String()))
		return
	}
	a.last, a.after = b.last, b.after
	e.spans = slices.Delete(e.spans, i+1, i+2)
}

// take computes the seals of loose batches behind record last, where a span ends.
func (e *epoch) take(l *Ledger, last uint64) {
	i, ok := slices.BinarySearchFunc(e.loose, last+1, func(b loose, n uint64) int { return cmp.Compare(b.first, n) })
	if !ok {
		return
	}
	k := e.spanAt(last)
	if k == len(e.spans) || e.spans[k].last != last {
		return // it was joined with what follows
	}
	s, from := &e.spans[k], i
	for ; i < len(e.loose) && e.loose[i].first == s.last+1; i++ {
		h := e.loose[i].header()
		s.after = h.Chain(s.after, e.epoch)
		s.last = h.Last()
		e.mark(s.last, s.after)
	}
	e.loose = slices.Delete(e.loose, from, i)
	e.join(l, k)
}

// link enters a batch that came without a seal.
func (e *epoch) link(l *Ledger, b loose) {
	h := b.header()
	if b.first == 1 {
		e.chain(l, span{first: 1, last: h.Last(), after: h.Chain(batch.Seal{}, e.epoch)})
		return
	}
	if k := e.spanAt(b.first - 1); k < len(e.spans) && e.spans[k].last == b.first-1 {
		s := &e.spans[k]
		s.after, s.last = h.Chain(s.after, e.epoch), h.Last()
		e.mark(s.last, s.after)
		e.join(l, k)
		e.take(l, h.Last())
		return
	}
	i, _ := slices.BinarySearchFunc(e.loose, b.first, func(b loose, n uint64) int { return cmp.Compare(b.first, n) })
	e.loose = slices.Insert(e.loose, i, b)
}

// unlink removes the loose batch that begins at first.
func (e *epoch) unlink(first uint64) (b loose, ok bool) {
	i, ok := slices.BinarySearchFunc(e.loose, first, func(b loose, n uint64) int { return cmp.Compare(b.first, n) })
	if ok {
		b = e.loose[i]
		e.loose = slices.Delete(e.loose, i, i+1)
	}
	return b, ok
}

// tighten gives a loose batch the seals that a copy of it states.
func (e *epoch) tighten(l *Ledger, first, last uint64, before, after batch.Seal) {
	if _, ok := e.unlink(first); ok {
		e.chain(l, span{first: first, last: last, before: before, after: after})
	}
}

// opens says that the batch that begins at first is the first of its epoch.
func (e *epoch) opens(l *Ledger, first uint64) {
	if b, ok := e.unlink(first); ok {
		h := b.header()
		e.chain(l, span{first: first, last: h.Last(), after: h.Chain(batch.Seal{}, e.epoch)})
	}
}

// anchor compares the seals on both sides of a hole with those that its gap record
// tells, and gives loose batches behind it theirs.
func (e *epoch) anchor(l *Ledger) {
	for _, g := range e.gaps {
		if x, last := e.batches.at(g.First - 1); x != nil && last == g.First-1 && x.seal != 0 && g.Before != (batch.Seal{}) && x.seal != short(g.Before) {
			l.fault(e.fault(KindSeal, x.first, last, "the gap record of records %d to %d tells another seal of the batch before them", g.First, g.Last))
		}
		if g.After == (batch.Seal{}) {
			continue
		}
		x, last := e.batches.at(g.Last + 1)
		if x == nil || x.first != g.Last+1 {
			continue
		}
		if b, ok := e.unlink(x.first); ok {
			e.chain(l, span{first: b.first, last: last, after: g.After, headless: true})
		} else if x.seal != 0 && x.seal != short(g.After) {
			l.fault(e.fault(KindSeal, x.first, last, "the gap record of records %d to %d tells another seal of the batch behind them", g.First, g.Last))
		}
	}
}

func (e *epoch) fault(kind string, first, last uint64, format string, args ...any) Fault {
	return Fault{Kind: kind, Agent: e.agent, Lane: e.lane, Epoch: e.epoch.String(), First: first, Last: last, Error: fmt.Sprintf(format, args...)}
}
