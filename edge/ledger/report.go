package ledger

import (
	"cmp"
	"maps"
	"slices"

	"spillway/buffer/batch"
)

// hints say what to do about a fault of a kind.
var hints = map[string]string{
	KindGap:        "give every place that has records of this agent, also its buffer directory and rejected/; what none has is lost",
	KindEpoch:      "give every place that has records of this agent; --from-start is for sources from which nothing was removed",
	KindContents:   "compare both copies: one of them was changed, or two agents run with one state",
	KindOverlap:    "see which of these objects the agent wrote last; each batch has one identity, so readers can deduplicate",
	KindSeal:       "compare with another copy of these records, or with the agent's buffer; seals do not break by themselves",
	KindNumbers:    "the object was renamed or its records were changed: fetch it again from where it was copied from",
	KindBytes:      "fetch it again, or from another copy; an upload or disk that changes bytes must be found",
	KindPayload:    "fetch it again, or from another copy",
	KindMetadata:   "copy objects with their metadata; without any the seals are recomputed from the bytes",
	KindOrder:      "see who else publishes on this subject; readers that need the order can sort by number",
	KindUnreadable: "see the error; what this source holds beyond it is not in the report",
}

// Report is what a ledger found. Its JSON names are part of the command's contract.
type Report struct {
	Complete   bool              `json:"complete"`
	Records    uint64            `json:"records"`    // different ones
	Batches    uint64            `json:"batches"`    // different ones; lines that tell no batches apart count as one
	Missing    uint64            `json:"missing"`    // records that no gap record explains
	Explained  uint64            `json:"explained"`  // records that gap records tell of as missing
	Duplicates uint64            `json:"duplicates"` // batches that are there again, with equal bytes
	Epochs     []Epoch           `json:"epochs"`
	Sources    []SourceReport    `json:"sources"`
	Faults     []Fault           `json:"faults"` // at most 1,000; Counts has all
	Counts     map[string]uint64 `json:"fault_counts"`
}

// Epoch is what is there of one epoch of a lane of an agent.
type Epoch struct {
	Agent      string     `json:"agent"`
	Lane       string     `json:"lane"`
	Site       string     `json:"site,omitempty"`
	Epoch      string     `json:"epoch"`
	First      uint64     `json:"first"`
	Last       uint64     `json:"last"`
	Records    uint64     `json:"records"`
	Batches    uint64     `json:"batches"`
	Ranges     []Range    `json:"ranges"` // by source, ascending
	Holes      []Hole     `json:"holes"`
	Duplicates Duplicates `json:"duplicates"`
	SentAgain  uint64     `json:"sent_again"` // messages behind a higher number that say so (Spillway-Attempt)
	Seals      Seals      `json:"seals"`
	// Begins is how the first record here is tied to what was before: "first" (number 1 of a
	// new directory), "follows" (its gap record names Previous), or "middle" (what was before it is
	// not here).
	Begins   string    `json:"begins"`
	Previous *Previous `json:"previous,omitempty"`
}

// Range is records of one source without a hole.
type Range struct {
	Source string `json:"source"`
	First  uint64 `json:"first"`
	Last   uint64 `json:"last"`
}

// Hole is numbers that are nowhere.
type Hole struct {
	First     uint64   `json:"first"`
	Last      uint64   `json:"last"`
	Explained uint64   `json:"explained"` // records
	Missing   uint64   `json:"missing"`   // records that nothing explains
	Reasons   []string `json:"reasons"`   // of the gap records, each once; "left_out": the seals before and behind it join
}

// Duplicates are batches that are there again.
type Duplicates struct {
	Batches uint64 `json:"batches"`
	Records uint64 `json:"records"`
}

// Seals is what was recomputed.
type Seals struct {
	Chains    uint64 `json:"chains"`    // stretches of batches in each of which every seal follows from the bytes and the seal before
	Unchecked uint64 `json:"unchecked"` // records that are in none: no seal before them is known
}

// Previous is what an epoch's own gap record tells of the one before it.
type Previous struct {
	Epoch string `json:"epoch"`
	Last  uint64 `json:"last"`
	Here  bool   `json:"here"` // whether the sources have records of it
}

// SourceReport is what one source had.
type SourceReport struct {
	Source    string `json:"source"`
	Objects   uint64 `json:"objects"` // or messages, or batches of a buffer
	Records   uint64 `json:"records"` // also those that are there twice
	Bytes     uint64 `json:"bytes"`
	Strangers uint64 `json:"strangers"` // not Spillway's: stepped over
	Bare      uint64 `json:"bare"`      // objects with which no seals travel, as in a directory
	FirstBare string `json:"first_bare,omitempty"`
}

// Fault is one thing that makes a report incomplete. Fields that do not apply are left out.
type Fault struct {
	Kind   string `json:"kind"`
	Source string `json:"source,omitempty"`
	Object string `json:"object,omitempty"`
	Agent  string `json:"agent,omitempty"`
	Lane   string `json:"lane,omitempty"`
	Epoch  string `json:"epoch,omitempty"`
	First  uint64 `json:"first,omitempty"`
	Last   uint64 `json:"last,omitempty"`
	Error  string `json:"error"`
	Hint   string `json:"hint"`
}

// Report closes the ledger and returns what it found. It is called once.
func (l *Ledger) Report() *Report {
	r := &Report{Epochs: []Epoch{}, Sources: []SourceReport{}}
	all := slices.SortedFunc(maps.Values(l.epochs), func(a, b *epoch) int {
		return cmp.Or(cmp.Compare(a.agent, b.agent), cmp.Compare(a.lane, b.lane), a.began.Compare(b.began),
			cmp.Compare(a.lowest(), b.lowest()), cmp.Compare(a.epoch, b.epoch))
	})
	// What the next epoch tells of one is needed first.
	ends := map[epochKey]*end{}
	for _, e := range all {
		if p := e.previous; p != nil {
			k := epochKey{e.agent, p.Epoch}
			if t := ends[k]; t == nil || t.Last < p.Last {
				ends[k] = &end{p, e}
			}
			if l.epochs[k] == nil {
				named := l.epoch(k)
				named.lane, named.site = e.lane, e.site
				all = append(all, named)
			}
		}
	}
	for _, e := range all {
		var rep Epoch
		switch end := ends[e.epochKey]; {
		case e.records > 0:
			rep = l.close(e, end, below(all, e) > 0)
		case end != nil:
			if rep = l.lost(e, end, below(all, end.by)); rep.Holes == nil {
				continue
			}
		default:
			continue // gap records know of it, the sources have nothing
		}
		r.Records += rep.Records
		r.Batches += rep.Batches
		r.Duplicates += rep.Duplicates.Batches
		for _, h := range rep.Holes {
			r.Missing += h.Missing
			r.Explained += h.Explained
		}
		r.Epochs = append(r.Epochs, rep)
	}
	for _, s := range l.sources {
		r.Sources = append(r.Sources, SourceReport{s.name, s.objects, s.records, s.bytes, s.strangers, s.bare, s.firstBare})
	}
	if len(r.Epochs) == 0 && len(l.kinds) == 0 {
		l.fault(Fault{Kind: KindUnreadable, Error: "there is no record of Spillway in any source"})
	}
	r.Faults, r.Counts = l.faults, l.kinds
	if r.Faults == nil {
		r.Faults = []Fault{}
	}
	r.Complete = len(l.kinds) == 0
	return r
}

// end is what the epoch by tells of the one before it.
type end struct {
	*told
	by *epoch
}

// below is the highest number of the epochs that came before e in its lane; 0: none
// is here. Numbers only go up from one epoch to the next; a new directory begins at 1
// again, later.
func below(all []*epoch, e *epoch) (last uint64) {
	for _, o := range all {
		if o == e || o.records == 0 || o.agent != e.agent || o.lane != e.lane || o.lowest() >= e.lowest() {
			continue
		}
		if later := !o.began.IsZero() && !e.began.IsZero() && o.began.After(e.began); !later {
			last = max(last, o.batches.runs[len(o.batches.runs)-1].last)
		}
	}
	return last
}

// lost is an epoch of which nothing is here, but older records of its lane are, the
// last of which is number last, and the next epoch names it.
func (l *Ledger) lost(e *epoch, end *end, last uint64) Epoch {
	r := Epoch{Agent: e.agent, Lane: e.lane, Site: e.site, Epoch: e.epoch.String(), Ranges: []Range{}, Begins: "middle"}
	from := e.told(end.Last + 1)
	if from > end.Last {
		from = last + 1 // nobody says where it began
	}
	if last == 0 || last >= end.Last {
		return r
	}
	r.Holes = []Hole{}
	l.holes(e, &r, from, end.Last)
	return r
}

// told is from, or the lowest number from which on gap records tell that everything
// below from is missing.
func (e *epoch) told(from uint64) uint64 {
	for i := len(e.gaps) - 1; i >= 0; i-- {
		if g := &e.gaps[i]; g.First < from && g.Last+1 >= from && (g.Count == 0 || g.Count > g.Last-g.First) {
			from = g.First
			i = len(e.gaps)
		}
	}
	return from
}

// lowest is the first number that is there; 0: none.
func (e *epoch) lowest() uint64 {
	if len(e.batches.runs) == 0 {
		return 0
	}
	return e.batches.runs[0].first()
}

// close checks what only the whole can tell. end is what the next epoch tells of e,
// or nil; older says that an epoch before e is there.
func (l *Ledger) close(e *epoch, end *end, older bool) Epoch {
	e.anchor(l)
	runs := e.batches.runs
	first, last := e.lowest(), runs[len(runs)-1].last
	r := Epoch{Agent: e.agent, Lane: e.lane, Site: e.site, Epoch: e.epoch.String(), First: first, Last: last,
		Records: e.records, Batches: e.count, Duplicates: Duplicates{e.copies, e.repeated}, Holes: []Hole{}}
	for _, s := range l.sources {
		p := e.sources[s]
		if p == nil {
			continue
		}
		for _, o := range p.objects.runs {
			r.Ranges = append(r.Ranges, Range{s.name, o.first(), o.last})
		}
		r.SentAgain += p.returned
	}
	slices.SortStableFunc(r.Ranges, func(a, b Range) int { return cmp.Compare(a.First, b.First) })
	r.Seals.Chains = uint64(len(e.spans))
	r.Seals.Unchecked = e.unchecked
	for _, b := range e.loose {
		r.Seals.Unchecked += uint64(b.count)
	}
	from := l.beginning(e, &r, older)
	upTo := last
	if end != nil {
		l.ending(e, end)
		upTo = max(last, end.Last)
	}
	l.holes(e, &r, from, upTo)
	return r
}

// beginning checks how e is tied to what was before it, and returns the first
// number that must be there.
func (l *Ledger) beginning(e *epoch, r *Epoch, older bool) (from uint64) {
	first := r.First
	// What gap records tell right below the first record is missing, not removed.
	from = e.told(first)
	zero := len(e.spans) > 0 && e.spans[0].first == first && !e.spans[0].headless && e.spans[0].before == (batch.Seal{})
	if p := e.previous; p != nil {
		before := l.epochs[epochKey{e.agent, p.Epoch}]
		r.Previous = &Previous{p.Epoch.String(), p.Last, before != nil && before.records > 0}
		// With 0 for its last number, the one before it stored nothing, as far as the next life knows.
		if !r.Previous.Here && p.Last > 0 && l.o.FromStart {
			l.fault(e.fault(KindEpoch, first, first, "it follows epoch %v, of which nothing is here", p.Epoch))
		}
	}
	opens := e.opening != 0 && e.opening == first
	switch {
	case first == 1:
		r.Begins = "first"
	case e.previous != nil && (opens || zero || from < first):
		r.Begins = "follows"
	case from == 1:
		r.Begins = "first"
	default:
		r.Begins = "middle"
	}
	if (first == 1 || opens) && len(e.spans) > 0 && e.spans[0].first == first && !zero {
		l.fault(e.fault(KindSeal, first, first, "record %d is the first of its epoch, but a seal is stated as the one before it", first))
	}
	if r.Begins != "middle" {
		return from
	}
	switch {
	case zero:
		l.fault(e.fault(KindEpoch, first, first, "it begins with record %d, and no record of it names the epoch before", first))
	case older || e.previous != nil:
		l.fault(e.fault(KindEpoch, first, first, "its records before %d are missing, although older ones are here: also the one that names the epoch before", first))
	case l.o.FromStart:
		return 1
	}
	return from
}

// ending compares e with what the next epoch tells of it.
func (l *Ledger) ending(e *epoch, end *end) {
	x, last := e.batches.at(end.Last)
	if x == nil || last != end.Last || x.seal == 0 || end.Before == (batch.Seal{}) || x.seal == short(end.Before) {
		return
	}
	l.fault(e.fault(KindSeal, x.first, last, "the epoch after it tells another seal of its record %d", end.Last))
}

// stretch is numbers that are missing.
type stretch struct {
	first, last uint64
	hole        int // which hole of the report
}

func (s stretch) len() uint64 { return s.last - s.first + 1 }

// holes finds what is missing between from and upTo, and explains it.
//
// A gap record of which Count is all of First to Last explains these numbers. One
// with a smaller Count stands for several holes that the agent merged: it says how
// many are missing, not which. It explains up to Count of those in its range that
// the first kind leaves. Several such records share the work so that as much as
// possible is explained: going up, each number is charged to the record that ends
// first among those that enclose it and have something left. Nothing explains more.
func (l *Ledger) holes(e *epoch, r *Epoch, from, upTo uint64) {
	var open []stretch
	next := from
	hole := func(first, last uint64) {
		open = append(open, stretch{first, last, len(r.Holes)})
		r.Holes = append(r.Holes, Hole{First: first, Last: last, Reasons: []string{}})
	}
	for _, run := range e.batches.runs {
		if run.first() > next {
			hole(next, run.first()-1)
		}
		next = run.last + 1
	}
	if upTo >= next && next != 0 {
		hole(next, upTo)
	}
	explain := func(i int, n uint64, reason string) {
		h := &r.Holes[i]
		h.Explained += n
		if !slices.Contains(h.Reasons, reason) {
			h.Reasons = append(h.Reasons, reason)
		}
	}

	// Seals that join say that there was nothing between them.
	for i := 1; i < len(e.spans); i++ {
		a, b := &e.spans[i-1], &e.spans[i]
		if a.last+1 < b.first && !b.headless && a.after == b.before {
			open = slices.DeleteFunc(open, func(s stretch) bool {
				if s.first != a.last+1 || s.last != b.first-1 {
					return false
				}
				explain(s.hole, s.len(), "left_out")
				return true
			})
		}
	}
	var merged []told
	for _, g := range e.gaps {
		if g.Count != 0 && g.Count <= g.Last-g.First {
			merged = append(merged, g)
			continue
		}
		var rest []stretch
		for _, s := range open {
			a, b := max(s.first, g.First), min(s.last, g.Last)
			if a > b {
				rest = append(rest, s)
				continue
			}
			explain(s.hole, b-a+1, g.Reason)
			if s.first < a {
				rest = append(rest, stretch{s.first, a - 1, s.hole})
			}
			if b < s.last {
				rest = append(rest, stretch{b + 1, s.last, s.hole})
			}
		}
		open = rest
	}
	for _, s := range cut(open, merged) {
		left := s.len()
		for left > 0 {
			var best *told
			for i := range merged {
				g := &merged[i]
				if g.First <= s.first && s.last <= g.Last && g.Count > 0 && (best == nil || g.Last < best.Last) {
					best = g
				}
			}
			if best == nil {
				break
			}
			n := min(left, best.Count)
			best.Count -= n
			left -= n
			explain(s.hole, n, best.Reason)
		}
	}
	for i := range r.Holes {
		h := &r.Holes[i]
		if h.Missing = h.Last - h.First + 1 - h.Explained; h.Missing == 0 {
			continue
		}
		why := "no gap record tells of them"
		if h.Explained > 0 {
			why = "gap records tell of fewer than that"
		}
		l.fault(e.fault(KindGap, h.First, h.Last, "records %d to %d are missing, %d of them unexplained: %s", h.First, h.Last, h.Missing, why))
	}
}

// cut splits stretches where a gap begins or ends, so that each piece is in the
// range of a gap as a whole or not at all.
func cut(open []stretch, gaps []told) (out []stretch) {
	var at []uint64 // where a new piece begins
	for _, g := range gaps {
		at = append(at, g.First, g.Last+1)
	}
	slices.Sort(at)
	for _, s := range open {
		for _, n := range at {
			if s.first < n && n <= s.last {
				out = append(out, stretch{s.first, n - 1, s.hole})
				s.first = n
			}
		}
		out = append(out, s)
	}
	return out
}
