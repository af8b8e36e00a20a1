// Package ledger adds up what sources hold: which record numbers of which epoch
// are there, once, with the bytes that were sealed, in an unbroken chain of seals.
//
// It is told of every object of every source once, in any order, and keeps of it
// what a later one must be compared with: 24 bytes for each batch, the same again
// for each object of each source, and two seals for each unbroken stretch. Where no
// seal travels (a directory) and the one before is not known yet, 64 bytes for a
// batch until it is. Records cost nothing.
//
// It is pure: it opens nothing and starts nothing. A Ledger is one goroutine's.
package ledger

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"spillway/buffer/batch"
	"spillway/outputs"
)

// Kinds of faults. Each of them makes a report incomplete.
const (
	KindGap        = "gap"        // records are missing and no gap record tells of them
	KindEpoch      = "epoch"      // the beginning of an epoch, or the record that ties it to the one before, is missing
	KindContents   = "contents"   // the same numbers with other bytes
	KindOverlap    = "overlap"    // objects of one source share records and are not the same
	KindSeal       = "seal"       // a seal does not follow from the bytes and the seal before it
	KindNumbers    = "numbers"    // records do not have the numbers that they should
	KindBytes      = "bytes"      // an object's bytes are not those that its name promises
	KindPayload    = "payload"    // an object can't be decoded
	KindMetadata   = "metadata"   // what is told beside an object can't be true
	KindOrder      = "order"      // a stream's messages are out of order and nothing says why
	KindUnreadable = "unreadable" // a source or an object could not be read
)

// maxFaults is how many faults are kept in full; all are counted.
const maxFaults = 1000

// Options of a ledger.
type Options struct {
	// FromStart says that nothing may have been removed for its age: what is missing
	// below the first number is a gap too.
	FromStart bool
}

// Ledger adds up. The zero value is not usable; see New.
type Ledger struct {
	o       Options
	sources []*Source
	epochs  map[epochKey]*epoch
	faults  []Fault
	kinds   map[string]uint64

	in, lines *bufio.Reader // of the object that is being read: its bytes, its lines
}

// epochKey names an epoch. No two lanes share one.
type epochKey struct {
	agent string
	epoch batch.Epoch
}

// epoch is what is known of one.
type epoch struct {
	epochKey
	lane      string // "" while no source knows it
	site      string
	batches   track
	spans     []span
	loose     []loose
	gaps      []told    // of this epoch's numbers, each once
	previous  *told     // what the epoch's own record tells of the one before it
	opening   uint64    // number of that record where it is the epoch's first; 0: not seen
	began     time.Time // receive time of the first record; zero: not known
	sources   map[*Source]*part
	records   uint64
	count     uint64 // batches
	copies    uint64 // batches that are there again
	repeated  uint64 // records in those
	unchecked uint64 // records that came as lines that tell no batches apart
}

// part is what one source has of an epoch.
type part struct {
	objects  track
	count    uint64 // objects
	records  uint64
	high     uint64 // highest number so far, for the order of a stream
	returned uint64 // messages behind a higher number, sent again
}

// Source is one of a ledger's sources.
type Source struct {
	l       *Ledger
	name    string
	ordered bool

	objects, bytes, records, strangers uint64

	bare      uint64 // objects with which no seals travel
	firstBare string
}

// New returns an empty ledger.
func New(o Options) *Ledger {
	return &Ledger{o: o, epochs: map[epochKey]*epoch{}, kinds: map[string]uint64{},
		in: bufio.NewReaderSize(nil, 64<<10), lines: bufio.NewReaderSize(nil, 64<<10)}
}

// Source adds a source under the name that reports use. ordered says that its order
// is that of sending: a stream's.
func (l *Ledger) Source(name string, ordered bool) *Source {
	s := &Source{l: l, name: name, ordered: ordered}
	l.sources = append(l.sources, s)
	return s
}

// Stranger counts something in the source that is not Spillway's.
func (s *Source) Stranger() { s.strangers++ }

// Fault notes that object, or the source where object is "", could not be read or
// is not what it should be.
func (s *Source) Fault(kind, object string, err error) {
	s.l.fault(Fault{Kind: kind, Source: s.name, Object: object, Error: err.Error()})
}

func (l *Ledger) fault(f Fault) {
	l.kinds[f.Kind]++
	if len(l.faults) < maxFaults {
		f.Hint = hints[f.Kind]
		l.faults = append(l.faults, f)
	}
}

// Object reads o's body to its end and closes it, checks it and enters it. What is
// wrong with it is in the report; such an object covers nothing.
func (s *Source) Object(o *outputs.Object) {
	s.objects++
	c, err := s.l.read(o)
	o.Body.Close()
	if err == nil {
		s.bytes += c.bytes
		err = seals(o, c)
	}
	if err != nil {
		f := Fault{Kind: KindUnreadable, Source: s.name, Object: o.Name, Error: err.Error(),
			Agent: o.Agent, Lane: o.Lane, Epoch: o.Epoch.String(), First: o.First, Last: o.Last}
		if known, ok := err.(*failure); ok {
			f.Kind = known.kind
		}
		s.l.fault(f)
		return
	}
	s.enter(o, c)
}

// stated reports whether seals travel with o.
func stated(o *outputs.Object) bool { return o.Seal != (batch.Seal{}) }

// seals computes the chain inside o from the seal that it states as the one before,
// and compares its end.
func seals(o *outputs.Object, c *content) error {
	if !stated(o) {
		return nil
	}
	seal := o.Before
	for i := range c.pieces {
		p := &c.pieces[i]
		seal = p.Chain(seal, o.Epoch)
		p.Seal = seal
	}
	if seal == o.Seal {
		return nil
	}
	if c.pieces[0].lump {
		return fail(KindMetadata, "it tells neither where its batches end (spillway-batches) nor has frames that do: its seal can't be checked")
	}
	return fail(KindSeal, "its bytes and the seal before it give seal %.16s…, not %.16s… as it says: bytes, numbers or seals were changed",
		seal.String(), o.Seal.String())
}

// enter adds an object that is sound in itself.
func (s *Source) enter(o *outputs.Object, c *content) {
	e := s.l.epoch(epochKey{o.Agent, o.Epoch})
	if e.lane == "" {
		e.lane = o.Lane
	}
	if e.site == "" {
		e.site = o.Site
	}
	if !stated(o) {
		if s.bare++; s.bare == 1 {
			s.firstBare = o.Name
		}
	}
	p := e.sources[s]
	if p == nil {
		p = &part{}
		e.sources[s] = p
	}
	f := Fault{Source: s.name, Object: o.Name, Agent: o.Agent, Lane: o.Lane, Epoch: o.Epoch.String(), First: o.First, Last: o.Last}

	if o.Lane != "" && o.Lane != e.lane {
		f := f
		f.Kind, f.Error = KindMetadata, fmt.Sprintf("it says that its epoch is lane %s's, and others say %s's", o.Lane, e.lane)
		s.l.fault(f)
	}

	// Objects of one source may be there twice, but not share records.
	again := false
	if from, to, ok := p.objects.overlap(o.First, o.Last); ok {
		x, last := p.objects.at(o.First)
		if again = x != nil && x.first == o.First && last == o.Last && x.digest == uint64(o.CRC); !again {
			f := f
			f.Kind, f.First, f.Last = KindOverlap, from, to
			f.Error = fmt.Sprintf("records %d to %d are in another object of this source too", from, to)
			s.l.fault(f)
		}
	}
	s.records += o.Last - o.First + 1

	before := o.Before
	for i := range c.pieces {
		b := &c.pieces[i]
		if s.batch(e, b, before, stated(o), f) {
			if lowest := e.batches.runs[0].first(); lowest == o.First && i == 0 {
				e.began = c.created
			}
		}
		before = b.Seal
	}
	if !again {
		s.cover(p, o)
	}
	p.count++
	for _, g := range c.gaps {
		s.gap(e, g, c)
	}
	if s.ordered {
		switch {
		case o.Last > p.high:
			p.high = o.Last
		case again:
		case o.Attempt > 1:
			p.returned++
		default:
			f.Kind = KindOrder
			f.Error = fmt.Sprintf("records %d to %d come behind record %d, and it does not say that it was sent again (Spillway-Attempt)", o.First, o.Last, p.high)
			s.l.fault(f)
		}
	}
}

// cover notes that s has o's records.
func (s *Source) cover(p *part, o *outputs.Object) {
	for first := o.First; first <= o.Last; {
		from, to, ok := p.objects.overlap(first, o.Last)
		if !ok {
			from, to = o.Last+1, o.Last
		}
		if first < from {
			p.objects.add(first, from-1, uint64(o.CRC))
			p.records += from - first
		}
		first = to + 1
		if first == 0 {
			return // the highest number there is
		}
	}
}

// digest is what batches with equal numbers are compared by. 64 bits of a SHA-256
// are enough to tell two contents from one; that neither was changed is what the
// seals say.
func digest(b *piece) uint64 { return max(1, binary.LittleEndian.Uint64(b.Sum[:])) }

func short(s batch.Seal) uint64 { return max(1, binary.LittleEndian.Uint64(s[:])) }

// batch enters one batch; it reports whether its records were not there before.
func (s *Source) batch(e *epoch, b *piece, before batch.Seal, stated bool, f Fault) (fresh bool) {
	l, first, last := s.l, b.First, b.Last()
	f.First, f.Last = first, last
	if from, to, ok := e.batches.overlap(first, last); ok {
		x, end := e.batches.at(first)
		switch {
		case x != nil && x.first == first && end == last && x.digest == digest(b):
			e.copies++
			e.repeated += uint64(b.Count)
			if stated && x.seal == 0 {
				e.tighten(l, first, last, before, b.Seal)
			} else if stated && x.seal != short(b.Seal) {
				f.Kind = KindSeal
				f.Error = fmt.Sprintf("records %d to %d have another seal here than in another place: two chains over the same records", first, last)
				l.fault(f)
			}
		case b.lump || e.lumped(from, to):
			e.unchecked += to - from + 1
			if b.lump {
				e.fill(first, last)
			}
		default:
			f.Kind = KindContents
			f.Error = fmt.Sprintf("records %d to %d have other bytes here than in another place", from, to)
			l.fault(f)
		}
		return false
	}
	e.batches.add(first, last, digest(b))
	e.count++
	e.records += uint64(b.Count)
	switch {
	case stated:
		e.chain(l, span{first: first, last: last, before: before, after: b.Seal})
	case b.lump:
		x, _ := e.batches.at(first)
		x.digest = 0
		e.unchecked += uint64(b.Count)
	default:
		e.link(l, loose{first: first, count: b.Count, codec: b.Codec, sum: b.Sum})
	}
	return true
}

// lumped reports whether from to to lie in lines that tell no batches apart.
func (e *epoch) lumped(from, to uint64) bool {
	x, last := e.batches.at(from)
	return x != nil && x.digest == 0 && last >= to
}

// fill covers what of first to last is not covered, with lines that tell no batches
// apart.
func (e *epoch) fill(first, last uint64) {
	for first <= last {
		from, to, ok := e.batches.overlap(first, last)
		if !ok {
			from, to = last+1, last
		}
		if first < from {
			e.batches.add(first, from-1, 0)
			e.records += from - first
			e.unchecked += from - first
		}
		first = to + 1
		if first == 0 {
			return // the highest number there is
		}
	}
}

// epoch returns that of key, which may be new.
func (l *Ledger) epoch(key epochKey) *epoch {
	e := l.epochs[key]
	if e == nil {
		e = &epoch{epochKey: key, sources: map[*Source]*part{}}
		l.epochs[key] = e
	}
	return e
}

// gap enters what a gap record of epoch e tells.
func (s *Source) gap(e *epoch, g told, c *content) {
	if g.Epoch != e.epoch && g.First == 0 {
		if e.previous == nil {
			e.previous = &g
		}
		// At the head of a batch it is the epoch's first record. Told again, because that
		// one was dropped, it stands behind the gap record that says so.
		if slices.ContainsFunc(c.pieces, func(p piece) bool { return p.First == g.seq }) {
			e.opening = g.seq
			e.opens(s.l, g.seq)
		}
		return
	}
	of := s.l.epoch(epochKey{e.agent, g.Epoch})
	if of.lane == "" {
		of.lane, of.site = e.lane, e.site
	}
	if g.Last < g.First || g.First == 0 {
		return
	}
	g.seq = 0 // told twice is told once
	i, ok := slices.BinarySearchFunc(of.gaps, g, compareTold)
	if !ok {
		of.gaps = slices.Insert(of.gaps, i, g)
	}
}

func compareTold(a, b told) int {
	return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last), cmp.Compare(a.Count, b.Count), strings.Compare(a.Reason, b.Reason))
}
