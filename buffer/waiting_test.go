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
		w := newWriter(b.Start())
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
