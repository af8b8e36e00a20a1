package buffer

import (
	"fmt"
	"testing"
	"time"
)

// TestHoleIsToldFirst: a segment whose end, or all of which, is destroyed is not removed as
// delivered before that is told: the position would say that it comes again, and nothing would
// show that it was there. So says a life that ends there, and reads an older cursor's segments.
func TestHoleIsToldFirst(t *testing.T) {
	for _, sync := range []SyncPolicy{SyncGroup, SyncInterval} {
		for _, epochs := range []bool{false, true} { // the destroyed segment begins one
			t.Run(fmt.Sprintf("%v, epochs %v", sync, epochs), func(t *testing.T) {
				o := Options{SegmentBytes: 1000, KeepAcked: -1, Sync: sync}
				b, d := simulated(t, o)
				w := newWriter(b.Begin())
				put(t, b, w.seal(2, text(1000, 1)))
				if epochs {
					b = again(t, d, o)
					w = newWriter(b.Begin())
				}
				put(t, b, w.seal(2, text(1000, 2)))
				put(t, b, w.seal(2, text(1000, 3)))
				put(t, b, w.seal(2, text(1000, 4)))
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				name := d.segments()[1]
				d.put(name, make([]byte, len(d.names[name].data)))
				b = again(t, d, o)
				b.Begin()
				toHole(t, b)
				b.Maintain(time.Now().Add(time.Hour))
				b = again(t, d, o)
				b.Begin()
				next(t, b, due)
				if g := b.Gaps(); len(g) != 1 || g[0].Reason != ReasonDamaged || g[0].First != 3 || g[0].Last != 4 || g[0].Count != 2 {
					t.Errorf("%+v", g)
				}
			})
		}
	}
}

// toHole commits a run that ends before a hole, for which what is behind that was looked at.
func toHole(t *testing.T, b *Buffer) {
	t.Helper()
	run := next(t, b, due)
	if err := b.Commit(run.Last(), "s3"); err != nil {
		t.Fatal(err)
	}
}

// TestHoleIsToldBeforeADrop: what is missing or destroyed right before a segment that is
// dropped to make room is told as that.
func TestHoleIsToldBeforeADrop(t *testing.T) {
	for _, reason := range []string{ReasonMissing, ReasonDamaged} {
		for _, read := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, read %v", reason, read), func(t *testing.T) {
				o := Options{SegmentBytes: 1000, KeepAcked: -1, Full: DropOldest, MaxBytes: 1 << 20}
				b, d := simulated(t, o)
				w := newWriter(b.Begin())
				for i := range 5 {
					put(t, b, w.seal(2, text(1000, byte(i))))
				}
				if !read {
					drain(t, b, 1)
				}
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				segs := d.segments()
				if d.set(segs[1], nil); reason == ReasonDamaged {
					d.put(segs[1], make([]byte, 1000))
				}
				if !read {
					d.set(segs[0], nil)
				}
				o.MaxBytes = 4000
				b = again(t, d, o)
				w = newWriter(b.Begin())
				if read {
					toHole(t, b)
				}
				put(t, b, w.seal(2, text(1000, 5)), w.seal(2, text(1000, 6)))
				if run := next(t, b, due); run.First() < 7 {
					t.Fatalf("record %d comes, and nothing was dropped", run.First())
				}
				g := b.Gaps()
				if len(g) == 2 && g[0].Reason == reason && g[0].First == 3 && g[0].Last == 4 && g[1].Reason == ReasonFull && g[1].First == 5 {
					return
				}
				if len(g) == 1 && !read && reason == ReasonDamaged && g[0].Reason == ReasonFull && g[0].First == 3 {
					return // its segment was dropped before it was read
				}
				t.Errorf("%+v", g)
			})
		}
	}
}
