package buffer

import (
	"fmt"
	"testing"
	"time"
)

// TestAnyClock lets the clock say anything, also from one call to the next: nothing is
// lost, order is kept, nothing goes before it is delivered, and Maintain asks to be called again
// within a reasonable time of the clock that it was given.
func TestAnyClock(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	for name, clock := range map[string][]time.Time{ // one for each life, and one for its second half
		"no clock at boot":        {time.Unix(0, 0), start, time.Unix(0, 0), start},
		"from 1970 to now":        {time.Unix(1, 0), start, start.Add(time.Hour), start.Add(2 * time.Hour)},
		"back two hours":          {start, start.Add(-2 * time.Hour), start, start.Add(-2 * time.Hour)},
		"on ten years":            {start, start.AddDate(10, 0, 0), start.AddDate(10, 0, 0), start},
		"before 1970":             {time.Unix(-1<<31, 0), start, time.Unix(-1, 0), start},
		"lost at each reboot":     {time.Unix(0, 0), start, time.Unix(0, 0), start.Add(time.Minute)},
		"it stands still":         {start, start, start, start},
		"the end of 64 bit of ns": {start, time.Unix(0, 1<<63-1), start, time.Unix(0, 1<<63-1)},
	} {
		for _, o := range []Options{
			{SegmentBytes: 1500, MaxBytes: 1 << 30, KeepAcked: 10 * time.Minute},
			{SegmentBytes: 1500, MaxBytes: 1 << 30, KeepAcked: -1},
			{SegmentBytes: 1500, MaxBytes: 1 << 30, KeepAcked: time.Minute, Sync: SyncInterval},
		} {
			t.Run(fmt.Sprint(name, " ", o.KeepAcked, " ", o.Sync), func(t *testing.T) {
				w := newWorld(seedOf(t), o)
				w.try(t, name, func() {
					for i := 0; i < len(clock); i += 2 {
						w.now = clock[i]
						if !w.open() {
							w.fail("I7: open failed")
						}
						for half := range 2 {
							w.now = clock[i+half]
							for range 4 {
								w.append()
								w.take(handling{batches: 1})
								pending, segments := w.b.Stats().PendingRecords, w.b.segs[w.b.head:]
								next := w.b.Maintain(w.now)
								if s := w.b.Stats(); s.PendingRecords < pending || len(w.b.segs) < len(segments) {
									w.fail("%d of %d records are left, nobody took them", s.PendingRecords, pending)
								}
								if !next.IsZero() && next.Sub(w.now) > max(o.KeepAcked, saveEvery, time.Second) {
									w.fail("it is %v, and Maintain wants to be called at %v", w.now, next)
								}
							}
						}
						if i == 0 {
							w.disk.kill()
							w.now = w.now.Add(time.Second)
							for _, s := range w.all {
								s.sent, s.now = s.sent || s.now, false
							}
						}
					}
					if err := w.b.Close(); err != nil {
						w.fail("close: %v", err)
					}
					w.disk.kill()
					for _, s := range w.all {
						s.now = false
					}
					w.finish()
					for _, s := range w.all {
						if s.promised && !s.delivered {
							w.fail("%s was not delivered", s.id)
						}
					}
				})
			})
		}
	}
}
