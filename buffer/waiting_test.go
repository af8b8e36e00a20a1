package buffer

import (
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer/batch"
)

// PendingSince is the last time that nothing waited or some of it was delivered,
// whether or not anybody has asked for it.
func TestPendingSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, d := simulated(t, Options{})
		w := newWriter(b.Begin())
		check := func(what string, b *Buffer, want time.Time) {
			t.Helper()
			if got := b.Stats().PendingSince; !got.Equal(want) {
				t.Errorf("%s: since %v, want %v", what, got, want)
			}
		}
		check("nothing stored", b, time.Time{})
		time.Sleep(time.Hour)
		first := time.Now()
		put(t, b, w.seal(1, text(10, 1)))
		time.Sleep(time.Minute)
		put(t, b, w.seal(1, text(10, 2)))
		check("two batches", b, first)
		next(t, b, batch.Limits{})
		time.Sleep(time.Minute)
		check("handed out", b, first)
		if err := b.Commit(1, "out"); err != nil {
			t.Fatal(err)
		}
		committed := time.Now()
		time.Sleep(time.Minute)
		check("one delivered", b, committed)
		if err := b.Commit(2, "out"); err != nil {
			t.Fatal(err)
		}
		check("all delivered", b, time.Time{})
		time.Sleep(time.Minute)
		third := time.Now()
		put(t, b, w.seal(1, text(10, 3)))
		check("another one", b, third)

		time.Sleep(time.Hour)
		b2 := again(t, d, Options{})
		check("in another life", b2, time.Now()) // it has as long as any other
		b2.Close()
		b.closed = true // its files are gone
	})
}

// Oldest is exact also where nobody has asked for what waits.
func TestOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, d := simulated(t, Options{SegmentBytes: 4 << 10})
		w := newWriter(b.Begin())
		check := func(what string, b *Buffer, want time.Time) {
			t.Helper()
			if got := b.Oldest(); !got.Equal(want) {
				t.Errorf("%s: received %v, want %v", what, got, want)
			}
		}
		times := map[uint64]time.Time{}
		store := func(batches int) {
			for range batches {
				time.Sleep(time.Minute)
				x := w.seal(2, text(1000, 1))
				times[x.First] = time.Unix(0, x.FirstTime)
				put(t, b, x)
			}
		}
		check("nothing stored", b, time.Time{})
		store(10) // several segments
		check("nothing read", b, times[1])
		run := next(t, b, batch.Limits{})
		check("all read", b, times[1])
		if err := b.Commit(run.Batches[2].Last(), "out"); err != nil {
			t.Fatal(err)
		}
		check("three delivered", b, times[7])
		if err := b.Commit(run.Last(), "out"); err != nil {
			t.Fatal(err)
		}
		for b.Stats().PendingRecords > 0 {
			run = next(t, b, batch.Limits{})
			if err := b.Commit(run.Last(), "out"); err != nil {
				t.Fatal(err)
			}
		}
		check("all delivered", b, time.Time{})
		for range 10 { // behind the batch that was read last: in its segment, and in the next one
			store(1)
			want := times[w.next-2]
			check("another one", b, want)
			store(1)
			check("and one behind it", b, want)
			for b.Stats().PendingRecords > 0 {
				run = next(t, b, batch.Limits{})
				if err := b.Commit(run.Last(), "out"); err != nil {
					t.Fatal(err)
				}
			}
		}
		store(3)
		want := times[w.next-6]
		b.Maintain(time.Now().Add(time.Minute)) // saves the cursor
		b2 := again(t, d, Options{SegmentBytes: 4 << 10})
		check("in another life", b2, want)
		b2.Close()
		b.closed = true // its files are gone
	})
}
