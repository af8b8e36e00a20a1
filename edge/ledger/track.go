package ledger

import (
	"cmp"
	"slices"
)

// entry is one batch (or one object) of a run. It ends where the next one begins.
type entry struct {
	first  uint64
	digest uint64 // of the content; see digest
	seal   uint64 // the first 8 bytes of the seal behind it; 0: not known
}

// run is entries without a hole between them.
type run struct {
	last    uint64
	entries []entry // at least one
}

func (r *run) first() uint64 { return r.entries[0].first }

// track is a set of numbers, in runs that are ascending and do not touch, and what
// covers them. Adding in the order of numbers costs nothing but the entry; adding
// out of order costs as much as there are runs.
type track struct{ runs []run }

// search returns the index of the first run that ends at n or later.
func (t *track) search(n uint64) int {
	if k := len(t.runs); k == 0 || t.runs[k-1].last < n {
		return k
	}
	i, _ := slices.BinarySearchFunc(t.runs, n, func(r run, n uint64) int { return cmp.Compare(r.last, n) })
	return i
}

// overlap returns the lowest part of first to last that is in t.
func (t *track) overlap(first, last uint64) (from, to uint64, ok bool) {
	i := t.search(first)
	if i == len(t.runs) || t.runs[i].first() > last {
		return 0, 0, false
	}
	return max(first, t.runs[i].first()), min(last, t.runs[i].last), true
}

// at returns the entry that covers n and where that ends, or nil.
func (t *track) at(n uint64) (e *entry, last uint64) {
	i := t.search(n)
	if i == len(t.runs) || t.runs[i].first() > n {
		return nil, 0
	}
	r := &t.runs[i]
	j, ok := slices.BinarySearchFunc(r.entries, n, func(e entry, n uint64) int { return cmp.Compare(e.first, n) })
	if !ok {
		j--
	}
	last = r.last
	if j+1 < len(r.entries) {
		last = r.entries[j+1].first - 1
	}
	return &r.entries[j], last
}

// add puts in an entry that overlaps nothing.
func (t *track) add(first, last, digest uint64) {
	e := entry{first: first, digest: digest}
	i := t.search(first)
	if i > 0 && t.runs[i-1].last+1 == first {
		r := &t.runs[i-1]
		r.entries, r.last = append(r.entries, e), last
		if i < len(t.runs) && t.runs[i].first() == last+1 {
			r.entries, r.last = append(r.entries, t.runs[i].entries...), t.runs[i].last
			t.runs = slices.Delete(t.runs, i, i+1)
		}
		return
	}
	if i < len(t.runs) && t.runs[i].first() == last+1 {
		t.runs[i].entries = slices.Insert(t.runs[i].entries, 0, e)
		return
	}
	t.runs = slices.Insert(t.runs, i, run{last: last, entries: []entry{e}})
}
