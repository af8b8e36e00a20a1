package vault

import (
	"hash/maphash"
	"time"
)

// A write of Vault's that meets its deadline leaves the beginning of an entry on
// one connection, and the whole entry follows as the first one on the next. The two
// are known by their bytes up to the end of the time or the id, whichever stands
// first, and, when the whole one is read last, by all that the torn one has. What ends
// before that begins as others do, so that nobody knows what it is of.

// tornTail is an entry whose end is missing.
type tornTail struct {
	size  int // bytes; 0: there is none
	sum   uint64
	since time.Time // of its connection
	at    time.Duration
}

// firstEntry is the first entry of a connection.
type firstEntry struct {
	size  int // bytes; 0: there is none
	own   int // of these, up to the end of its time or id
	sum   uint64
	since time.Time // of its connection
	at    time.Duration
}

// Torn takes note of an entry whose end is missing because its connection ended, and
// reports whether the whole of it had come already (then it counts as Resent).
//
// One that never comes is not told as missing: its record is there, and its other
// half, without an answer, tells its id.
func (p *Pairs) Torn(e *Entry, from Sender, now time.Time) (resent bool) {
	if e.own == 0 {
		return false
	}
	at := now.Sub(p.base)
	sum := maphash.Bytes(p.seed, e.Data[:e.own])
	for i := range p.firsts {
		f := &p.firsts[i]
		if f.size >= len(e.Data) && f.own == e.own && f.sum == sum && f.since.After(from.Since) && at-f.at < p.o.Timeout {
			f.size = 0
			p.Resent++
			return true
		}
	}
	p.torn[p.turn[0]] = tornTail{len(e.Data), maphash.Bytes(p.seed, e.Data), from.Since, at}
	p.turn[0] = (p.turn[0] + 1) % len(p.torn)
	return false
}

// whole finds out which torn entries e is the whole of, and remembers the first of
// a connection.
func (p *Pairs) whole(e *Entry, since time.Time, first bool, at time.Duration) {
	explained := false
	for i := range p.torn {
		t := &p.torn[i]
		if t.size > 0 && t.size <= len(e.Data) && since.After(t.since) && maphash.Bytes(p.seed, e.Data[:t.size]) == t.sum {
			t.size = 0
			p.Resent++
			explained = true
		}
	}
	if !first || explained || e.own == 0 {
		return
	}
	p.firsts[p.turn[1]] = firstEntry{len(e.Data), e.own, maphash.Bytes(p.seed, e.Data[:e.own]), since, at}
	p.turn[1] = (p.turn[1] + 1) % len(p.firsts)
}
