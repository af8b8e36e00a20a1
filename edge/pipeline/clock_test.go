package pipeline

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
)

// TestUnsyncedFlag: batches say whether the clock was synchronised from their first record to
// their last, and that is asked once a second at most.
func TestUnsyncedFlag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		var synced atomic.Bool
		var asked atomic.Int64
		synced.Store(true)
		b := start(t, "", m, Block, func(o *buffer.Options, l *LaneOptions) {
			o.FS, l.Codec, l.Batch.Age, l.AgeHeld = &lazyFS{newDirFS(t)}, batch.None, 3*time.Second, 3*time.Second
			l.Synchronised = func() bool { asked.Add(1); return synced.Load() }
		})
		one := func(during func()) batch.Flags {
			time.Sleep(5 * time.Second)
			b.send(1)
			time.Sleep(time.Second)
			during()
			b.send(1)
			time.Sleep(4 * time.Second)
			synctest.Wait()
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.batches[len(m.batches)-1].Flags & batch.Unsynced
		}
		set := func(to bool) func() { return func() { synced.Store(to) } }
		for _, tt := range []struct {
			name   string
			during func()
			want   batch.Flags
		}{
			{"synchronised", set(true), 0},
			{"lost", set(false), batch.Unsynced},
			{"not synchronised", set(false), batch.Unsynced},
			{"found", set(true), batch.Unsynced},
			{"synchronised again", set(true), 0},
		} {
			if got := one(tt.during); got != tt.want {
				t.Errorf("%s: %d", tt.name, got)
			}
		}
		before, began := asked.Load(), time.Now()
		for range 500 { // a batch in 10 ms
			b.send(1)
			b.lane.press <- struct{}{}
			time.Sleep(10 * time.Millisecond)
		}
		if n, d := asked.Load()-before, time.Since(began); n > int64(d/time.Second)+1 || n < 3 {
			t.Errorf("asked %d times in %v", n, d)
		}
		b.stop()
		b.check(b.in)
	})
}

// TestExpiredIsTold: while the output is away records expire, the law of Counts holds at
// every moment, and in the end what arrives and what is told is what was sent.
func TestExpiredIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		began := time.Now()
		b := start(t, "", m, Block, func(o *buffer.Options, l *LaneOptions) {
			o.FS, l.Codec, l.Batch.Records = &lazyFS{newDirFS(t)}, batch.None, 10
			o.MaxAge, o.SegmentBytes = time.Hour, 16<<10
			o.Clock = func() (time.Duration, bool) { return time.Since(began), true }
			patiently(l, m)
		})
		m.setFail(errDown)
		for range 36 { // three hours
			b.send(100)
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			if err := b.lane.Counts().law(); err != nil {
				t.Error(err)
			}
		}
		c := b.lane.Counts()
		if n := c.Lost[buffer.ReasonExpired]; n < 2000 || n > 2600 {
			t.Errorf("%d of 3600 records in three hours have expired", n)
		}
		if at := b.lane.OldestPending(); time.Since(at) > 75*time.Minute {
			t.Errorf("something is pending since %v", time.Since(at))
		}
		m.setFail(nil)
		time.Sleep(time.Minute)
		b.send(1)
		time.Sleep(time.Minute)
		b.stop()
		b.check(b.in)
		var told, arrived uint64
		for _, batch := range m.batches {
			for line := range strings.Lines(string(batch.Payload)) {
				if strings.Contains(line, `"reason":"expired"`) {
					told++
				} else {
					arrived++
				}
			}
		}
		c = b.lane.Counts()
		if told == 0 || arrived+told != c.Delivered || c.Delivered+c.Lost[buffer.ReasonExpired] != c.Admitted {
			t.Errorf("%d gap records and %d others arrived: %+v", told, arrived, c)
		}
	})
}
