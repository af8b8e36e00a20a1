package buffer

import (
	"errors"
	"slices"
	"time"

	"spillway/buffer/batch"
)

const (
	calm   = 10 * time.Minute // nothing expires for so long after the clock was set
	leap   = time.Hour        // by which a clock that is read differs from one that ran on: it was set
	glance = time.Minute      // how often the clock is looked at while something waits to expire
	aged   = 8                // the active segment is closed after this part of MaxAge, so that it can expire
)

// ageing is what expiry knows of the clock, and of the segment that goes next.
type ageing struct {
	looked bool
	wall   time.Time     // at the last look; without its monotonic part
	up     time.Duration // then
	synced bool          // then

	// since is the uptime from which on the clock has been synchronised and was not set.
	// odd says that it was set while it counted as synchronised: what it had said before is
	// worth nothing, so that nothing is older than since.
	since time.Duration
	odd   bool

	seg      *segment // that the fields below are of
	last     int64    // receive time of its newest record, unix ns
	unsynced bool     // last may be wrong
	exact    bool     // every header in it was read, not the footer alone

	newest *segment // of all, when stay was found
	stay   *segment
}

// look takes note of the clock.
func (a *ageing) look(now time.Time, up time.Duration, synced bool) {
	wall := now.Round(0)
	drift := wall.Sub(a.wall) - (up - a.up)
	set := a.looked && (drift > leap || drift < -leap)
	if set && a.synced && synced {
		a.odd = true
	}
	if set || !a.looked || synced && !a.synced {
		a.since = up
	}
	a.looked, a.wall, a.up, a.synced = true, wall, up, synced
}

// age is how old the newest record of seg is at least. What was received while the clock
// was not synchronised counts from when it became so: it came before that.
func (a *ageing) age() time.Duration {
	age := a.wall.Sub(time.Unix(0, a.last))
	if a.unsynced || a.odd {
		age = min(age, a.up-a.since)
	}
	return age
}

// outdate removes the oldest segment with undelivered records if its newest record is
// older than MaxAge, and notes the hole with ReasonExpired. Of all segments the newest
// with a batch in it stays, as do those of the plan, and one of a newer version with all
// behind it. One call reads and removes one segment at most, so that Append does not wait
// for long; it returns when it wants to be called again. w is held.
//
// A clock must not be able to make it lose what is not old (a host without a battery
// begins in 1970): nothing expires while the clock is not synchronised, nor for ten minutes
// after it became so, after the first call, or after it was set by more than an
// hour; see ageing.age for what was received under a clock that was wrong. Times in
// the future are not old.
func (b *Buffer) outdate(now time.Time) (next time.Time) {
	if b.o.MaxAge <= 0 {
		return time.Time{}
	}
	a := &b.age
	up, synced := b.o.Clock()
	a.look(now, up, synced)

	stay := b.mustStay()
	b.mu.Lock()
	var s *segment
	if i := b.oldest(); i < len(b.segs) && b.segs[i].ordinal < stay && !b.segs[i].newer {
		s = b.segs[i]
	}
	b.mu.Unlock()
	if s == nil {
		a.seg = nil
		return time.Time{} // until something is appended
	}
	if a.seg != s {
		if !b.date(s, false) {
			return now.Add(glance)
		}
	}
	quiet := calm - (a.up - a.since)
	switch wait := max(quiet, b.o.MaxAge-a.age()+1); {
	case !synced:
		return now.Add(glance)
	case wait > 0:
		return now.Add(min(glance, wait))
	}
	if !a.exact { // the footer does not tell whether the clock was synchronised
		if !b.date(s, true) {
			return now.Add(glance)
		}
		return now
	}
	if _, err := b.dropOldest(ReasonExpired, s); err != nil {
		return now.Add(saveEvery)
	}
	return now
}

// mustStay is the ordinal of the newest segment with a batch in it, which tells the
// next start what was the last one; 0 if there is none. w is held.
func (b *Buffer) mustStay() uint64 {
	a := &b.age
	var before []*segment
	b.mu.Lock()
	n := len(b.segs)
	if n > 0 && a.newest != b.segs[n-1] {
		if a.newest = b.segs[n-1]; !a.newest.ours { // one of this life has a batch
			before = slices.Clone(b.segs)
		}
		a.stay = a.newest
	}
	b.mu.Unlock()
	if n == 0 {
		return 0
	}
	for i := len(before) - 1; i > 0 && b.ending(before[i]).last == 0; i-- {
		a.stay = before[i-1]
	}
	return a.stay.ordinal
}

// date finds out when the newest record of s was received: from its footer, or, with
// all or without a footer, from every header in it. If not all can be read it
// counts as received under a clock that was not synchronised. It returns false if s can't
// be opened. w is held.
func (b *Buffer) date(s *segment, all bool) bool {
	a := &b.age
	if f, ok := b.footer(s); ok && !all {
		a.seg, a.last, a.unsynced, a.exact = s, f.LastTime, false, false
		return true
	}
	f, err := b.openSegment(s)
	if err != nil {
		return false
	}
	defer f.Close()
	last, unsynced, found := int64(0), false, false
	scan := scanner{r: f, end: s.size, salt: s.salt}
	for e, ok := scan.next(); ok; e, ok = scan.next() {
		if e.Kind == KindBatch {
			last = max(last, e.Batch.LastTime)
			unsynced = unsynced || e.Batch.Flags&batch.Unsynced != 0
			found = true
		}
	}
	a.seg, a.last, a.unsynced, a.exact = s, last, unsynced || !found || scan.bad, true
	return true
}

// isAged reports whether the active segment is to be closed for its age. w is held.
func (b *Buffer) isAged() bool {
	return b.o.MaxAge > 0 && b.o.Now().Sub(b.activeSince) >= b.o.MaxAge/aged
}

var errNoClock = errors.New("MaxAge needs a Clock")
