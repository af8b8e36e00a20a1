package buffer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"spillway/buffer/batch"
)

// reread is what Read keeps from one call to the next.
type reread struct {
	sync.Mutex
	ready  bool // settled
	at     walk // behind the last run
	faults faults
}

// walk is a place between two extents of a segment.
type walk struct {
	seg *segment
	off int64
	// next is the number behind the highest that was seen in a batch header, whatever
	// became of the payload, and seal the seal of that batch; or as the segment's
	// header says.
	next uint64
	seal batch.Seal
}

// Read returns the run that begins with the first stored batch that has a record
// of r, delivered or not. Batches are whole; none begins behind r.Last. It ends
// where a run of Next would (l is reached, a hole, another codec, encoding, epoch
// or, with l.Hour, hour), so that r is read by calling again from behind the run's
// last record; l.Age does not count. io.EOF says that nothing of r is stored, or
// not durable yet.
//
// What is damaged, or removed meanwhile, is stepped over and told by nobody. A
// place that can't be read is an error first, as of Next, and what a newer version wrote
// is ErrVersion. Before is as Next fills
// it in; Attempt is 2 for what was delivered or is in doubt.
//
// Read has nothing in common with Next: it moves no position, and the run's memory
// is new and the caller's. Calls wait for one another.
func (b *Buffer) Read(ctx context.Context, r Range, l batch.Limits) (batch.Run, error) {
	if r.First == 0 || r.Last < r.First {
		return batch.Run{}, fmt.Errorf("read buffer: records %d to %d are none", r.First, r.Last)
	}
	a := &b.again
	a.Lock()
	defer a.Unlock()
	if err := b.readable(&a.ready); err != nil {
		return batch.Run{}, err
	}
	l = bound(l)
	w, ok, err := b.seek(r.First)
	if err != nil {
		return batch.Run{}, err
	}
	rd := reader{b: b, r: r, l: &l}
	defer rd.close()
	for ok {
		if err := ctx.Err(); err != nil {
			return batch.Run{}, err
		}
		done, err := rd.segment(&w)
		if err != nil {
			if len(rd.run.Batches) > 0 {
				break // the next call meets it again
			}
			return batch.Run{}, err
		}
		if done {
			break
		}
		if w, ok, err = b.walkOn(w); err != nil {
			return batch.Run{}, err
		}
	}
	if len(rd.run.Batches) == 0 {
		a.at = walk{}
		return batch.Run{}, io.EOF
	}
	a.at = rd.behind
	run := rd.run
	run.Attempt = 1
	b.mu.Lock()
	if run.First() <= b.pos.committed || b.pos.doubted(Range{run.First(), run.Last()}) {
		run.Attempt = 2
	}
	b.mu.Unlock()
	return run, nil
}

// seek returns where to look for record first: where the last call ended, if
// that is in the same segment, else the segment that holds it or, without
// one, the next. If nothing there says what was the seal before it, it is one of
// those before.
func (b *Buffer) seek(first uint64) (w walk, ok bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return w, false, ErrClosed
	}
	if len(b.segs) == 0 {
		return w, false, nil
	}
	i := 0
	for i+1 < len(b.segs) && b.segs[i+1].first <= first {
		i++
	}
	if at := b.again.at; at.seg == b.segs[i] && at.next <= first {
		return at, true, nil
	}
	from := b.segs[i]
	for {
		b.mu.Unlock()
		h, _ := b.header(from)
		b.mu.Lock()
		i = b.find(from.ordinal)
		if h.First == from.first || i == 0 || b.segs[i-1].epoch != from.epoch {
			return walk{seg: from}, true, nil
		}
		from = b.segs[i-1]
	}
}

// walkOn goes to the start of the next segment.
func (b *Buffer) walkOn(w walk) (walk, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return w, false, ErrClosed
	}
	i := b.find(w.seg.ordinal + 1)
	if i == len(b.segs) {
		return w, false, nil
	}
	if b.segs[i].epoch != w.seg.epoch {
		w.seal = batch.Seal{}
	}
	w.seg, w.off = b.segs[i], 0
	return w, true, nil
}

// reader puts one run together.
type reader struct {
	b    *Buffer
	r    Range
	l    *batch.Limits
	file File
	run  batch.Run
	// bytes of run, its last batch, and the place behind it
	bytes  int64
	last   entry
	behind walk
}

func (d *reader) close() {
	if d.file != nil {
		d.file.Close()
		d.file = nil
	}
}

// segment reads on from w, to the end of its segment, or until the run is complete.
func (d *reader) segment(w *walk) (done bool, err error) {
	d.b.mu.Lock()
	end, last := w.seg.end, w.seg.last
	if i := d.b.find(w.seg.ordinal + 1); i < len(d.b.segs) && !w.seg.ours {
		last = d.b.segs[i].first - 1 // Next may have found it to end before that
	}
	d.b.mu.Unlock()
	if w.off >= end {
		return false, nil
	}
	d.close()
	f, err := d.b.openSegment(w.seg)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // removed meanwhile
	}
	if err != nil {
		if passing(err) || d.b.again.faults.retry(w.seg, -1) || !d.b.works(w.seg, 0) {
			return false, fmt.Errorf("read buffer: %w", err)
		}
		return false, nil
	}
	d.file = f
	d.b.again.faults.over(w.seg, -1)
	scan := scanner{r: f, off: w.off, end: end, salt: w.seg.salt}
	for {
		off := scan.off
		scan.bad, scan.halt = false, true
		e, ok := scan.next()
		if scan.bad {
			if d.b.again.faults.retry(w.seg, off) || !d.b.works(w.seg, off) {
				return false, fmt.Errorf("read buffer: %w", &CorruptError{w.seg.name(), off, scan.ioe})
			}
			scan.halt = false
			e, ok = scan.next()
		}
		d.b.again.faults.over(w.seg, off)
		if !ok {
			return false, nil
		}
		if errors.Is(e.Err, ErrVersion) {
			return false, fmt.Errorf("read buffer: %s: byte %d: %w", w.seg.name(), e.Off, e.Err)
		}
		w.off = e.End
		switch e.Kind {
		case KindHeader:
			if e.header.First == w.seg.first && w.next <= w.seg.first {
				w.seal = e.header.Before
			}
		case KindBatch:
			h := &e.Batch.Header
			if h.First > last {
				continue // given up, and written again to the next segment
			}
			if h.First > d.r.Last {
				return true, nil
			}
			if h.Last() >= d.r.First {
				if done, err := d.add(w, e.Off+batch.HeaderSize, h); done || err != nil {
					return done, err
				}
			}
			if h.Last() >= w.next { // else it is a copy
				w.next, w.seal = h.Last()+1, h.Seal
			}
			if n := len(d.run.Batches); n > 0 && d.run.Batches[n-1].Last() == h.Last() {
				d.behind = *w
				if full(d.l, d.bytes, n, h) {
					return true, nil
				}
			}
		}
	}
}

// add puts the batch whose payload lies at off into the run. done says that the
// run ends before it.
func (d *reader) add(w *walk, off int64, h *batch.Header) (done bool, err error) {
	e := entry{seg: w.seg, off: off, h: *h}
	n := len(d.run.Batches)
	if n > 0 && (!follows(&d.last, &e) || !fits(d.l, d.bytes, &d.run.Batches[0].Header, h)) {
		return true, nil
	}
	p := make([]byte, h.Length)
	got, err := readAt(d.file, p, off)
	if err != nil && err != io.EOF {
		if d.b.again.faults.retry(w.seg, off) || !d.b.works(w.seg, off) {
			return false, fmt.Errorf("read buffer: %w", &CorruptError{w.seg.name(), off, err})
		}
		got, _ = readAt(d.file, p, off)
	}
	d.b.again.faults.over(w.seg, off)
	if got < len(p) || batch.CRC32C(p) != h.CRC {
		return n > 0, nil
	}
	if n == 0 {
		d.run.Agent, d.run.Epoch, d.run.Before = w.seg.agent, w.seg.epoch, w.seal
	}
	d.run.Batches = append(d.run.Batches, batch.Batch{Header: *h, Payload: p})
	d.bytes += int64(h.Length)
	d.last = e
	return false, nil
}
