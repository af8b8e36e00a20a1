package vault

import (
	"hash/maphash"
	"math/bits"
	"time"
)

// A write of Vault's that meets its deadline leaves the beginning of an entry on
// one connection, and the whole entry follows as the first one on the next. The two
// are known by their bytes, but either may be read first. So of torn entries the
// hash is kept until one of a later connection begins with the same bytes, and of the
// first entry of each connection the hashes of its beginnings, of every length that
// is a power of two.

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
	sums  [32]uint64
	since time.Time // of its connection
	at    time.Duration
}

// Torn takes note of an entry whose end is missing because its connection ended, and
// reports whether the whole of it had come already (then it counts as Resent).
//
// One that never comes is not told as missing: its record is there, and its other
// half, without an answer, tells its id.
func (p *Pairs) Torn(data []byte, from Sender, now time.Time) (resent bool) {
	if len(data) == 0 {
		return false
	}
	at := now.Sub(p.base)
	k := bits.Len(uint(len(data))) - 1 // 1<<k is the longest beginning that is known of others
	sum := maphash.Bytes(p.seed, data[:1<<k])
	for i := range p.firsts {
		f := &p.firsts[i]
		if f.size >= len(data) && f.since.After(from.Since) && at-f.at < p.o.Timeout && f.sums[k] == sum {
			f.size = 0
			p.Resent++
			return true
		}
	}
	p.torn[p.turn[0]] = tornTail{len(data), maphash.Bytes(p.seed, data), from.Since, at}
	p.turn[0] = (p.turn[0] + 1) % len(p.torn)
	return false
}

// whole finds out which torn entries data is the whole of, and remembers the first of
// a connection.
func (p *Pairs) whole(data []byte, since time.Time, first bool, at time.Duration) {
	explained := false
	for i := range p.torn {
		t := &p.torn[i]
		if t.size > 0 && t.size <= len(data) && since.After(t.since) && maphash.Bytes(p.seed, data[:t.size]) == t.sum {
			t.size = 0
			p.Resent++
			explained = true
		}
	}
	if !first || explained {
		return
	}
	f := &p.firsts[p.turn[1]]
	p.turn[1] = (p.turn[1] + 1) % len(p.firsts)
	f.size, f.since, f.at = len(data), since, at
	for k := 0; k < len(f.sums) && 1<<k <= len(data); k++ {
		f.sums[k] = maphash.Bytes(p.seed, data[:1<<k])
	}
}
