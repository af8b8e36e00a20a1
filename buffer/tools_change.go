package buffer

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"spillway/buffer/batch"
)

// Rewind and Trim work on a buffer that nobody has open: they are a short life of
// it, with the lock, that appends nothing. So numbers, epoch and seals are found as
// an agent finds them, and what is changed is saved as an agent saves it.

// ErrNothing says that there is nothing that a tool could do what it is asked to.
var ErrNothing = errors.New("nothing to do")

// openIdle opens dir, which must exist and have segments, for a tool. It is not
// settled: nothing is handed out. ErrLocked says that an agent runs.
func openIdle(dir string) (*Buffer, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: errors.New("not a directory")}
	}
	d, err := openOS(dir, true) // the agent has been asked about network file systems
	if err != nil {
		return nil, err
	}
	b, err := openIdleFS(d)
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("open buffer %s: %w", dir, err)
	}
	return b, nil
}

func openIdleFS(d FS) (*Buffer, error) {
	files, err := d.List("")
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	segs := parseNames(files)
	if len(segs) == 0 {
		return nil, fmt.Errorf("%w: there are no segments", ErrNothing)
	}
	b, err := open(d, Options{Agent: segs[len(segs)-1].agent, MinFree: -1})
	if err == nil && b.cur.failed {
		// What it says may count again one day, over what would be saved now.
		return nil, errors.New("the cursor is there and can't be read: mend the disk, or remove the cursor")
	}
	return b, err
}

// Back says where Rewind goes. Exactly one field is set.
type Back struct {
	To    uint64    // so that this record is the next to be delivered
	Since time.Time // so that every record received then or later is
}

// Rewound is what Rewind did.
type Rewound struct {
	// First and Last are what is sent again: First begins a batch, Last was the last that
	// was delivered, or told as lost.
	First   uint64 `json:"first"`
	Last    uint64 `json:"last"`
	Batches uint64 `json:"batches"`
	Records uint64 `json:"records"`
	Bytes   uint64 `json:"bytes"` // of their payload
	// Hole says that there are records that were asked for before First, and a hole behind them.
	Hole bool `json:"hole"`
	Times
}

// Rewind moves the position of a buffer that nobody has open back to a record that
// is still kept, so that it and everything behind it is delivered again, with the
// same identities and marked as sent before. It is for a far side that lost what it
// had acknowledged. The position goes to the beginning of the batch that the record
// is in. It never goes over a hole: that was told when delivery came to it, or was
// delivered before it was removed, and must not be told as lost again. What Reject put
// aside is handed out again. Outputs count as never having acknowledged what comes
// again. A plan is given up: what it holds is in doubt at its output.
//
// The position is all that changes, in one durable step. If the cursor is lost after
// that, what was acknowledged before does not come again. Every payload that is kept is
// read and checked.
//
// ErrLocked says that an agent runs; ErrNothing that the record is not kept any
// more, lies before a hole, or is not delivered yet.
func Rewind(dir string, to Back) (Rewound, error) {
	b, err := openIdle(dir)
	if err != nil {
		return Rewound{}, err
	}
	r, err := b.rewind(to)
	return r, cmp.Or(err, b.Close())
}

// rewind does it, and leaves it to Close to save it. Nobody else knows b.
func (b *Buffer) rewind(to Back) (r Rewound, err error) {
	r.Last = b.pos.committed
	var oldest, newest batch.Header // without a hole between them
	var hole, broken bool
	var epoch batch.Epoch
	w := walker{}
	w.find = func(f Finding) {
		switch f.What {
		case "damaged", "lost", "gone", "version", "unreadable":
			broken = true
		}
	}
	w.each = func(x *batch.Batch, s *segment, _ batch.Seal) error {
		h := &x.Header
		if h.First > b.pos.committed {
			return nil
		}
		if broken || oldest.Count == 0 || s.epoch == epoch && h.First != newest.Last()+1 {
			hole = hole || oldest.Count > 0
			r, oldest, broken = Rewound{Last: b.pos.committed}, *h, false
		}
		newest, epoch = *h, s.epoch
		if r.First == 0 {
			if to.To > 0 && h.Last() < to.To || to.To == 0 && instant(h.LastTime).Before(to.Since) {
				return nil
			}
			r.First = h.First
		}
		r.Batches++
		r.Records += uint64(h.Count)
		r.Bytes += uint64(h.Length)
		r.Times.add(h)
		return nil
	}
	segs := make([]*segment, 0, len(b.segs))
	for _, s := range b.segs {
		if s.first <= b.pos.committed {
			c := *s // follow changes the last one
			segs = append(segs, &c)
		}
	}
	for i, s := range segs {
		w.follow(segs, i)
		if err := w.copies(b.fs, s, []string{s.name()}); err != nil {
			return r, err
		}
	}
	why := "not kept any more"
	if hole {
		why = "not kept without a hole behind it"
	}
	switch {
	case newest.Count == 0:
		return Rewound{}, fmt.Errorf("%w: nothing that was delivered is kept any more", ErrNothing)
	case newest.Last() < b.pos.committed:
		return Rewound{}, fmt.Errorf("%w: records %d to %d, the last before the position, are not there, and were told of", ErrNothing, newest.Last()+1, b.pos.committed)
	case to.To > b.pos.committed:
		return Rewound{}, fmt.Errorf("%w: record %d is not delivered yet: delivery goes on behind record %d", ErrNothing, to.To, b.pos.committed)
	case to.To > 0 && to.To < oldest.First:
		return Rewound{}, fmt.Errorf("%w: record %d is %s: the oldest that is kept is %d, received at %s", ErrNothing, to.To, why, oldest.First,
			instant(oldest.FirstTime).Format(time.RFC3339))
	case r.First == 0:
		return Rewound{}, fmt.Errorf("%w: what was delivered is older: the last record of it, %d, was received at %s", ErrNothing, newest.Last(),
			instant(newest.LastTime).Format(time.RFC3339))
	}
	r.Hole = hole && r.First == oldest.First && to.To < r.First
	b.pos.back(r.First - 1)
	b.dirty = true // Close saves it
	return r, nil
}

// back moves the position down to record n, behind which everything is there and may
// have been sent before.
func (p *position) back(n uint64) {
	if p.plan != (Plan{}) {
		p.doubt(p.plan.Output, Range{p.plan.First, p.plan.Last})
		p.plan = Plan{}
	}
	p.doubt("", Range{n + 1, p.committed})
	// What is there was not lost: rejected, or dropped by a life that ended before the
	// file was gone. If that is not told yet, it need not be.
	for i := range p.gaps {
		g := &p.gaps[i]
		less := g.shorten(n, p.committed)
		if i := slices.Index(dropped[:], g.Reason); i >= 0 {
			p.drops[i] -= min(p.drops[i], less)
		}
	}
	for i := range p.told {
		p.told[i].shorten(n, p.committed)
	}
	p.gaps = slices.DeleteFunc(p.gaps, func(g Gap) bool { return g.Count == 0 })
	p.told = slices.DeleteFunc(p.told, func(t toldGap) bool { return t.Count == 0 })
	p.committed = n
	acks := p.acks[:0]
	for _, h := range p.acks {
		if h.last = min(h.last, n); h.last > 0 {
			acks = append(acks, h)
		}
	}
	p.acks = acks
	for i, h := range p.handed {
		if h.last >= n {
			p.handed[i].last = n
			p.handed = p.handed[:i+1]
			break
		}
	}
}

// shorten lets g end at n if it reaches over n and not beyond last; if it lies behind n
// wholly, nothing is left and Count is 0. It returns how many records it tells of no more.
func (g *Gap) shorten(n, last uint64) (less uint64) {
	if g.First == 0 || g.Last <= n || g.Last > last {
		return 0
	}
	left := uint64(0)
	if g.First <= n {
		left = min(g.Count, n-g.First+1)
	}
	less = g.Count - left
	g.Last, g.Count, g.Until, g.After = n, left, time.Time{}, batch.Seal{}
	return less
}

// Cut says what Trim removes: whole segments, the oldest first, up to the first that
// is to stay. The newest segment with a batch in it stays always. Exactly one of Delivered,
// Before and To is set.
type Cut struct {
	Delivered bool      // everything that is delivered
	Before    time.Time // whose last record was received before
	To        uint64    // whose last record is this one, or an earlier one
	// Undelivered lets Before and To remove records that were not delivered. They are lost.
	Undelivered bool
}

// Trimmed is what Trim did.
type Trimmed struct {
	Segments int    `json:"segments"`
	Bytes    int64  `json:"bytes"`
	Lost     uint64 `json:"lost"` // records that were not delivered and are gone; a gap record will tell
}

// Trim removes segments of a buffer that nobody has open, in the way in which the
// buffer itself makes room: a position and a note of what is lost that are durable
// before a file goes. The agent tells of what is lost in its next record. What is
// planned for an output is spared. A segment with damage in it is removed like others.
//
// ErrLocked says that an agent runs; ErrNothing that no segment may go; ErrUndelivered
// that some of them are not delivered and Undelivered is not set: nothing is removed.
// After another error, what Trimmed counts is gone.
func Trim(dir string, what Cut) (Trimmed, error) {
	b, err := openIdle(dir)
	if err != nil {
		return Trimmed{}, err
	}
	t, err := b.trimSegments(what)
	return t, cmp.Or(err, b.Close())
}

// ErrUndelivered says that Trim would lose records.
var ErrUndelivered = errors.New("not delivered")

// trimSegments does it. Nobody else knows b.
func (b *Buffer) trimSegments(what Cut) (t Trimmed, err error) {
	goes := func(s *segment) (bool, error) {
		switch {
		case what.Delivered:
			return s.doneAt != 0, nil
		case what.To > 0:
			return s.last <= what.To, nil
		}
		e := b.ending(s)
		if e.failed && e.last == 0 {
			return false, fmt.Errorf("%s can't be read, so it is not known when its last record was received", s.name())
		}
		return instant(e.time).Before(what.Before), nil
	}
	// The newest with a batch in it tells the next start what was the last one.
	stays := len(b.segs) - 1
	for stays > 0 && b.ending(b.segs[stays]).last == 0 {
		stays--
	}
	n := 0 // of segs, that may go
	var pending uint64
	for n < stays {
		s := b.segs[n]
		ok, err := goes(s)
		if err != nil {
			return t, err
		}
		if !ok {
			break
		}
		if s.doneAt == 0 && s.last > b.pos.committed {
			pending += s.last - max(s.first-1, b.pos.committed)
		}
		n++
	}
	if n == 0 {
		return t, fmt.Errorf("%w: no whole segment but the newest is that old: the oldest one has records %d to %d, and delivery has come to record %d", ErrNothing,
			b.segs[0].first, b.segs[0].last, b.pos.committed)
	}
	if pending > 0 && !what.Undelivered {
		return t, fmt.Errorf("%d records of what would go are %w, and delivery has come to record %d", pending, ErrUndelivered, b.pos.committed)
	}
	limit := b.segs[n].ordinal // this one stays
	trimmed := slices.Index(dropped[:], ReasonTrimmed)
	for {
		before, lost := len(b.segs), b.pos.drops[trimmed]
		var size int64
		if b.head > 0 {
			if b.segs[0].ordinal < limit {
				size, err = b.freeDone(false)
			}
		} else if i := b.oldest(); i < len(b.segs)-1 && b.segs[i].ordinal < limit {
			size, err = b.dropOldest(ReasonTrimmed, nil)
		}
		if len(b.segs) < before {
			t.Segments++
			t.Bytes += size
		}
		t.Lost += b.pos.drops[trimmed] - lost
		if err != nil {
			return t, err
		}
		if len(b.segs) == before {
			break
		}
	}
	if s := b.stuck(); t.Segments == 0 && s != nil && s.ordinal < limit {
		return t, fmt.Errorf("%w: %s was written by a newer spillway", ErrNothing, s.name())
	}
	if t.Segments == 0 {
		return t, fmt.Errorf("%w: records %d to %d are planned for output %s, which may have them already", ErrNothing, b.pos.plan.First, b.pos.plan.Last, b.pos.plan.Output)
	}
	return t, b.fs.SyncDir()
}
