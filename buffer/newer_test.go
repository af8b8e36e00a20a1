package buffer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// newerHeader makes the header of n bytes at the start of b one of version 2 that is longer
// by more bytes.
func newerHeader(b []byte, n, more int) []byte {
	out := slices.Concat(b[:n-4], make([]byte, more+4), b[n:])
	le.PutUint32(out[4:], uint32(n+more-8))
	out[8] = 2
	le.PutUint32(out[n+more-4:], batch.CRC32C(out[:n+more-4]))
	return out
}

// fourSegments is a buffer of four segments with three batches of ten records each, of which
// the first batch is delivered, closed.
func fourSegments(t *testing.T, o Options) *simDisk {
	t.Helper()
	o.SegmentBytes, o.KeepAcked = 1500, -1
	b, d := simulated(t, o)
	w := newWriter(b.Begin())
	for i := range 12 {
		put(t, b, w.seal(10, text(400, byte(i))))
	}
	drain(t, b, 1)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(d.segments()); n != 4 {
		t.Fatalf("%d segments", n)
	}
	return d
}

// contents is what d holds, by name.
func contents(d *simDisk) map[string]string {
	all := map[string]string{}
	for name, n := range d.names {
		all[name] = string(n.data)
	}
	return all
}

// TestNewerIsRefused: what a newer version wrote is not opened, and not changed.
func TestNewerIsRefused(t *testing.T) {
	const at = segmentHeaderSize
	headers := func(more int) func(b []byte) []byte {
		return func(b []byte) []byte { return newerHeader(b, segmentHeaderSize, more) }
	}
	batches := func(more int) func(b []byte) []byte {
		return func(b []byte) []byte { // without its footer, which with the cursor would say all that opening asks
			return slices.Concat(b[:at], newerHeader(b[at:len(b)-footerSize], batch.HeaderSize, more))
		}
	}
	codec := func(b []byte) []byte {
		b[at+10] = 3
		le.PutUint32(b[at+132:], batch.CRC32C(b[at:at+132]))
		return b[:len(b)-footerSize]
	}
	footer := func(b []byte) []byte {
		n := len(b) - footerSize
		return slices.Concat(b[:n], newerHeader(b[n:], footerSize, 8))
	}
	zero := func(b []byte) []byte { return make([]byte, len(b)) }
	all := []int{0, 1, 2, 3}
	for _, c := range []struct {
		name string
		does func(b []byte) []byte
		of   []int
		torn bool // then the newest is zero
	}{
		{"headers", headers(0), all, false},
		{"longer headers", headers(8), all, false},
		{"the longest headers", headers(batch.MaxHeader - segmentHeaderSize), all, false},
		{"the newest header", headers(8), []int{3}, false},
		{"headers, and the newest is torn", headers(0), all, true},
		{"longer headers, and the newest is torn", headers(8), all, true},
		{"batches of the newest", batches(0), []int{3}, false},
		{"longer batch headers of the newest", batches(24), []int{3}, false},
		{"batches before a newest that is torn", batches(24), []int{2}, true},
		{"a codec", codec, []int{3}, false},
		{"a footer", footer, []int{3}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := fourSegments(t, Options{})
			names := d.segments()
			for _, i := range c.of {
				d.put(names[i], c.does(bytes.Clone(d.names[names[i]].data)))
			}
			if c.torn {
				d.put(names[3], zero(d.names[names[3]].data))
			}
			before := contents(d)
			if _, err := Open("sim", Options{Agent: "gw-1", FS: d}); !errors.Is(err, ErrVersion) {
				t.Errorf("opened: %v", err)
			}
			if !maps.Equal(before, contents(d)) {
				t.Error("files have changed")
			}
			d.names[names[c.of[len(c.of)-1]]].read(t, d, names[c.of[len(c.of)-1]])
		})
	}
}

// read checks that the scanner says that n is of a newer version.
func (n *inode) read(t *testing.T, d *simDisk, name string) {
	t.Helper()
	f, err := d.Open(name, false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for e := range Scan(f, int64(len(n.data)), name) {
		if errors.Is(e.Err, ErrVersion) {
			return
		}
	}
	if n.data[0] != 0 {
		t.Error("the scanner does not say so")
	}
}

// TestNewerInTheMiddle: where the newest segments are of this version and one before is not,
// what is before it is delivered, and nothing behind it; the segment stays, also where
// the oldest make room.
func TestNewerInTheMiddle(t *testing.T) {
	for _, header := range []bool{true, false} {
		t.Run(fmt.Sprint("its header: ", header), func(t *testing.T) {
			d := fourSegments(t, Options{})
			name := d.segments()[1]
			data := bytes.Clone(d.names[name].data)
			if header {
				data = newerHeader(data, segmentHeaderSize, 8)
			} else {
				data = slices.Concat(data[:segmentHeaderSize], newerHeader(data[segmentHeaderSize:], batch.HeaderSize, 8))
			}
			d.put(name, data)
			o := Options{Agent: "gw-1", FS: d, SegmentBytes: 1500, KeepAcked: -1, SyncGap: -1, MinFree: -1, Full: DropOldest, MaxBytes: 4 * 1800}
			b, err := Open("sim", o)
			if err != nil {
				t.Fatal(err)
			}
			w := newWriter(b.Begin())
			drain(t, b, 2)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			for range 5 {
				if run, err := b.Next(ctx, batch.Limits{}); !errors.Is(err, ErrVersion) {
					t.Fatalf("records %d to %d: %v", run.First(), run.Last(), err)
				}
				if _, err := b.Read(t.Context(), Range{31, 120}, batch.Limits{}); !errors.Is(err, ErrVersion) {
					t.Fatalf("read: %v", err)
				}
			}
			for i := range 12 {
				if err := b.Append(t.Context(), w.seal(10, text(400, byte(i)))); err != nil {
					if !errors.Is(err, ErrFull) {
						t.Fatal(err)
					}
					break
				}
			}
			b.Maintain(b.o.Now())
			if n := d.names[name]; n == nil || !bytes.Equal(n.data, data) {
				t.Error("the segment is gone, or was changed")
			}
			if g := b.Gaps(); len(g) != 0 {
				t.Errorf("told as lost: %+v", g)
			}
		})
	}
}

// newerSecond is fourSegments whose second segment, records 31 to 60, is one of a newer
// version, opened again. back makes it one of this version, as that version would read it.
func newerSecond(t *testing.T, o Options) (b *Buffer, d *simDisk, name string, back func()) {
	t.Helper()
	d = fourSegments(t, Options{})
	name = d.segments()[1]
	before := bytes.Clone(d.names[name].data)
	d.put(name, newerHeader(bytes.Clone(before), segmentHeaderSize, 8))
	o.Agent, o.FS, o.SegmentBytes, o.KeepAcked, o.SyncGap, o.MinFree = "gw-1", d, 1500, -1, -1, -1
	b, err := Open("sim", o)
	if err != nil {
		t.Fatal(err)
	}
	return b, d, name, func() { d.put(name, before) }
}

// accounted checks that every record from first to last comes out of b or is told as lost, and
// none is both.
func accounted(t *testing.T, b *Buffer, first, last uint64) {
	t.Helper()
	is := map[uint64]int{}
	for {
		run, err := b.Next(ended(t), batch.Limits{})
		if err != nil {
			break
		}
		for n := run.First(); n <= run.Last(); n++ {
			is[n]++
		}
		if err := b.Commit(run.Last(), "out"); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range b.Gaps() {
		for n := g.First; n <= g.Last; n++ {
			is[n]++
		}
	}
	for n := first; n <= last; n++ {
		if is[n] != 1 {
			t.Fatalf("record %d came or was told %d times; told: %+v", n, is[n], b.Gaps())
		}
	}
}

// TestNewerIsNotDropped: where the oldest make room, a segment of a newer version stays, and
// what is behind it, whether the reader has come to it or not; then the buffer is full. When
// that version has come, all of it is delivered.
func TestNewerIsNotDropped(t *testing.T) {
	for _, c := range []struct {
		name         string
		take         int // batches, of the two before it
		met, planned bool
	}{
		{"the reader is elsewhere", 0, false, false},
		{"the reader is elsewhere, behind a plan", 1, false, true},
		{"the reader has met it", 2, true, false},
		{"the reader has met it, behind a plan", 2, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Options{Full: DropOldest, MaxBytes: 4 * 1800}
			b, d, name, back := newerSecond(t, o)
			w := newWriter(b.Begin())
			newer := bytes.Clone(d.names[name].data)
			if c.take > 0 {
				l := batch.Limits{Batches: c.take}
				if c.met {
					l.Batches++
				}
				run := next(t, b, l)
				if len(run.Batches) != c.take {
					t.Fatalf("%d batches", len(run.Batches))
				}
				if c.planned {
					if err := b.SetPlan(Plan{Output: "s3", First: run.First(), Last: run.Last(), Key: "k"}); err != nil {
						t.Fatal(err)
					}
				} else if err := b.Commit(run.Last(), "out"); err != nil {
					t.Fatal(err)
				}
			}
			first := b.Stats().Committed + 1
			var last uint64
			for i := 0; b.Fits(0, batch.HeaderSize+400, 0); i++ {
				x := w.seal(10, text(400, byte(i)))
				put(t, b, x)
				last = x.Last()
				if n := b.Stats().Bytes; n > o.MaxBytes+batch.HeaderSize+400+segmentHeaderSize+footerSize {
					t.Fatalf("a buffer of %d bytes holds %d", o.MaxBytes, n)
				}
				if i > 100 {
					t.Fatalf("room after %d batches; told: %+v", i, b.Gaps())
				}
			}
			// What was admitted before is taken, as under Hold.
			var full error
			for i := 0; full == nil; i++ {
				x := w.seal(10, text(100<<10, byte(i)))
				if full = b.Append(t.Context(), x); full == nil {
					last = x.Last()
				}
				if n := b.Stats().Bytes; i == 0 && full != nil || n > o.MaxBytes+b.o.slack()+int64(i+1)*(segmentHeaderSize+footerSize) {
					t.Fatalf("a buffer of %d bytes holds %d: %v", o.MaxBytes, n, full)
				}
			}
			if !errors.Is(full, ErrFull) || !strings.Contains(full.Error(), name) {
				t.Errorf("full, because %v", full)
			}
			if got := d.names[name]; got == nil || !bytes.Equal(got.data, newer) {
				t.Fatal("the segment is gone, or was changed")
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			back()
			b = again(t, d, Options{SegmentBytes: 1500, KeepAcked: -1})
			b.Begin()
			accounted(t, b, first, last)
		})
	}
}

// TestNewerDoesNotExpire: a segment of a newer version stays whatever its age, and Maintain
// does not try again and again.
func TestNewerDoesNotExpire(t *testing.T) {
	for _, read := range []bool{false, true} {
		t.Run(fmt.Sprint("read: ", read), func(t *testing.T) {
			now, up := time.Unix(1_800_000_000, 0), time.Duration(0)
			o := Options{MaxAge: time.Hour, Now: func() time.Time { return now }, Clock: func() (time.Duration, bool) { return up, true }}
			b, d, name, back := newerSecond(t, o)
			b.Begin()
			if read {
				drain(t, b, 2)
				if _, err := b.Next(ended(t), batch.Limits{}); !errors.Is(err, ErrVersion) {
					t.Fatal(err)
				}
			}
			first := b.Stats().Committed + 1
			calls := 0
			for end := now.Add(5 * time.Hour); now.Before(end); calls++ {
				next := b.Maintain(now)
				if next.IsZero() {
					next = end
				}
				if calls > 1000 {
					t.Fatalf("called %d times, %v before the end", calls, end.Sub(now))
				}
				up += max(0, next.Sub(now))
				now = now.Add(max(0, next.Sub(now)))
			}
			if d.names[name] == nil {
				t.Fatal("the segment is gone")
			}
			if g := b.Gaps(); read && len(g) != 0 || !read && (len(g) != 1 || g[0].Last != 30) {
				t.Errorf("told as lost: %+v", g)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			back()
			b = again(t, d, Options{SegmentBytes: 1500, KeepAcked: -1})
			b.Begin()
			accounted(t, b, first, 120)
		})
	}
}

// TestNewerCursor: the cursor of a newer version is not forgotten, whatever the other slot
// holds.
func TestNewerCursor(t *testing.T) {
	for slot := range 2 {
		t.Run(fmt.Sprint("slot ", slot), func(t *testing.T) {
			d := fourSegments(t, Options{})
			data := bytes.Clone(d.names[cursorFile].data)
			at := slot * slotSize
			n := int(le.Uint32(data[at+4:]))
			if n == 0 {
				t.Fatal("the slot is empty")
			}
			copy(data[at:], newerHeader(data[at:at+n+16], n, 16)[:n+16])
			le.PutUint32(data[at+4:], uint32(n+16))
			le.PutUint32(data[at+n+12:], batch.CRC32C(data[at:at+n+12]))
			d.put(cursorFile, data)
			before := contents(d)
			if _, err := Open("sim", Options{Agent: "gw-1", FS: d}); !errors.Is(err, ErrVersion) {
				t.Errorf("opened: %v", err)
			}
			if !maps.Equal(before, contents(d)) {
				t.Error("files have changed")
			}
			if _, _, err := readPosition(d); !errors.Is(err, ErrVersion) {
				t.Errorf("the tools read it: %v", err)
			}
		})
	}
}

// TestSlotOfALaterVersion1: reasons that are not known here keep their numbers, and what a
// slot has behind the known lists does not spoil it.
func TestSlotOfALaterVersion1(t *testing.T) {
	p := somePosition()
	p.gaps[0].Reason, p.told[0].Reason = "10", "255"
	b := appendSlot(nil, &p)
	more := append(b[:len(b)-4:len(b)-4], "something more"...)
	le.PutUint32(more[4:], uint32(len(more)+4))
	more = le.AppendUint32(more, batch.CRC32C(more))
	q, err := parseSlot(more)
	if err != nil {
		t.Fatal(err)
	}
	if q.gaps[0].Reason != "10" || q.told[0].Reason != "255" || !bytes.Equal(appendSlot(nil, &q), b) {
		t.Errorf("%+v", q)
	}
}
