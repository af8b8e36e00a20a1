package buffer

import (
	"syscall"
	"testing"

	"spillway/buffer/batch"
)

// Segments that somebody copied behind the newest one cost nothing, whether what they are
// copies of is still there or not.
func TestCopiesOfSegments(t *testing.T) {
	for name, gone := range map[string]bool{"beside the original": false, "instead of it": true} {
		t.Run(name, func(t *testing.T) {
			b, d := simulated(t, Options{SegmentBytes: 1, KeepAcked: -1})
			w := newWriter(b.Begin())
			for i := range 4 {
				put(t, b, w.seal(10, text(100, byte(i))))
			}
			names := d.segments()
			s, _ := parseName(names[1])
			d.set(segmentName(1<<40, s.epoch, s.first, s.salt, s.agent), d.names[names[1]])
			want := 5
			if gone {
				d.set(names[1], nil)
				want = 4
			}
			b = again(t, d, Options{SegmentBytes: 1, KeepAcked: -1})
			st := b.Begin()
			if st.Next != 41 {
				t.Fatalf("%+v", st)
			}
			put(t, b, newWriter(st).seal(10, text(100, 9)))
			got := drain(t, b, want)
			if gone {
				if got[0].First != 1 || got[1].First != 21 || got[3].First != 41 || len(b.Gaps()) != 1 || b.Gaps()[0].First != 11 {
					t.Fatalf("%v, %+v", got[1].First, b.Gaps())
				}
			} else if got[1].First != 11 || len(b.Gaps()) != 0 {
				t.Fatalf("%v, %+v", got[1].First, b.Gaps())
			}
			if s := b.Stats(); s.PendingRecords != 0 {
				t.Fatalf("%+v", s)
			}
			b.Close()
		})
	}
}

// A gap that a record tells is told again if that record is lost with the power.
func TestGapIsToldAgain(t *testing.T) {
	o := Options{Sync: SyncNever}
	b, d := simulated(t, o)
	w := newWriter(b.Begin())
	put(t, b, w.seal(1, text(100, 1)))
	w.next += 5
	put(t, b, w.seal(1, text(100, 2)))
	drain(t, b, 2)
	if g := b.Gaps(); len(g) != 1 || g[0].Count != 5 {
		t.Fatalf("%+v", g)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = again(t, d, o)
	w = newWriter(b.Begin())
	put(t, b, w.seal(1, text(100, 3)))
	b.GapsTold(1, 8)
	b.w.Lock()
	b.saveCursor()
	b.w.Unlock()
	if len(b.Gaps()) != 0 {
		t.Fatal("it is told")
	}
	name := d.segments()[1]
	d.kill()
	d.SyncDir()
	d.names[name].data = d.names[name].data[:segmentHeaderSize+5]
	d.names[name].disk = d.names[name].data
	b = again(t, d, o)
	b.Begin()
	if g := b.Gaps(); len(g) != 2 || g[0].Count != 5 || g[1].Reason != ReasonTorn || g[1].First != 8 || g[1].Last != 8 {
		t.Fatalf("%+v", g)
	}
	b.Close()
}

// Close makes durable what SyncNever had left to the kernel, in every segment.
func TestCloseSyncsAll(t *testing.T) {
	o := Options{Sync: SyncNever, SegmentBytes: 500}
	b, d := simulated(t, o)
	w := newWriter(b.Begin())
	for i := range 7 {
		put(t, b, w.seal(1, text(300, byte(i))))
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	d.reboot()
	b = again(t, d, o)
	if st := b.Begin(); st.Unclean || st.Next != 8 {
		t.Fatalf("%+v", st)
	}
	if got := drain(t, b, 7); got[6].Last() != 7 || len(b.Gaps()) != 0 {
		t.Fatalf("%+v", b.Gaps())
	}
	b.Close()
}

// A disk that fills in a directory's first life takes the cursor all the same.
func TestCursorHasItsBlocks(t *testing.T) {
	b, d := simulated(t, Options{})
	b.Begin()
	if n := len(d.names[cursorFile].data); n != 2*slotSize {
		t.Fatalf("%d bytes", n)
	}
	var c cursor
	if p, ok, certain := c.read(d); !ok || !certain || p.closed || p.seal != (batch.Seal{}) {
		t.Fatalf("%+v, %v, %v", p, ok, certain)
	}
}

// A life that could not make durable what it found has not ended in order, whatever Close
// could write: after a sync that failed, another one says nothing.
func TestCloseBehindALooseTail(t *testing.T) {
	for name, fail := range map[string]bool{"synced": false, "not synced": true} {
		t.Run(name, func(t *testing.T) {
			b, d := simulated(t, Options{})
			put(t, b, newWriter(b.Begin()).seal(1, text(100, 1)))
			b = again(t, d, Options{})
			w := newWriter(b.Begin())
			old := d.segments()[0]
			d.fail = func(op string, _ int, name string) error {
				if fail && op == "sync" && name == old {
					return syscall.EIO
				}
				return nil
			}
			next(t, b, batch.Limits{})
			d.fail = nil
			put(t, b, w.seal(1, text(100, 2)))
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			b = again(t, d, Options{})
			if st := b.Begin(); st.Unclean != fail || st.Next != 3 {
				t.Fatalf("%+v", st)
			}
			b.Close()
		})
	}
}
