package buffer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// readOnly is a disk that was mounted read-only, or is about to be.
type readOnly struct{ on bool }

func (r *readOnly) fail(op string, _ int, _ string) error {
	if r.on && slices.Contains([]string{"create", "write", "sync", "syncdir", "remove", "quarantine"}, op) {
		return syscall.EROFS
	}
	return nil
}

// ringed opens a buffer with a memory ring on a disk that can be made read-only, and a
// clock to be set.
func ringed(t *testing.T, o Options) (*Buffer, *writer, *simDisk, *readOnly, *time.Time) {
	t.Helper()
	now := time.Unix(1_800_000_000, 0)
	o.Now = func() time.Time { return now }
	if o.Memory == 0 {
		o.Memory = 64 << 10
	}
	b, d := simulated(t, o)
	ro := &readOnly{}
	d.fail = ro.fail
	return b, newWriter(b.Begin()), d, ro, &now
}

// keep appends batches that are to be kept in memory.
func keep(t *testing.T, b *Buffer, batches ...*batch.Batch) {
	t.Helper()
	if err := b.Append(t.Context(), batches...); !errors.Is(err, ErrMemory) || !errors.Is(err, syscall.EROFS) {
		t.Fatalf("append: %v", err)
	}
}

// later lets d pass.
func later(b *Buffer, now *time.Time, d time.Duration) time.Time {
	*now = now.Add(d)
	return b.Maintain(*now)
}

func TestRing(t *testing.T) {
	for _, sync := range []SyncPolicy{SyncGroup, SyncInterval, SyncNever} {
		t.Run(sync.String(), func(t *testing.T) {
			o := Options{Sync: sync, SegmentBytes: 8 << 10}
			b, w, d, ro, now := ringed(t, o)
			var all []*batch.Batch
			add := func(n int) []*batch.Batch {
				var some []*batch.Batch
				for range n {
					some = append(some, w.seal(2, text(1000, byte(len(all)))))
					all = append(all, some[len(some)-1])
				}
				return some
			}
			put(t, b, add(3)...)
			ro.on = true
			for range 10 {
				keep(t, b, add(1)...)
			}
			keep(t, b, add(5)...)
			s := b.Stats()
			if !s.Degraded || s.MemoryBytes < 15*1000 || s.MemoryBytes > 64<<10 || s.DiskError == nil || s.PendingRecords != 36 || s.Next != 37 {
				t.Fatalf("%+v", s)
			}
			if sync != SyncInterval && s.MemoryRecords != 30 {
				t.Fatalf("%d records in memory", s.MemoryRecords)
			}
			// What is in memory comes out behind what is on the disk, and can be read again.
			got := drain(t, b, 9)
			if run, err := b.Read(t.Context(), Range{5, 20}, batch.Limits{}); err != nil || run.First() != 5 || run.Last() != 20 {
				t.Fatalf("%v, %d to %d", err, run.First(), run.Last())
			}
			if at := later(b, now, time.Second); !b.Stats().Degraded || at.Sub(*now) != 2*time.Second {
				t.Fatalf("next try in %v", at.Sub(*now))
			}
			files := len(d.segments())
			ro.on = false
			later(b, now, 1900*time.Millisecond)
			if !b.Stats().Degraded {
				t.Fatal("tried too early")
			}
			keep2 := b.Append(t.Context(), add(1)...)
			if keep2 == nil {
				t.Fatal("tried too early")
			}
			next(t, b, batch.Limits{}) // a reader has a segment in memory open
			later(b, now, time.Second)
			if s := b.Stats(); s.Degraded || s.MemoryBytes != 0 || s.DiskError != nil || len(d.segments()) <= files || s.Segments != len(d.segments()) {
				t.Fatalf("%+v, %d files", s, len(d.segments()))
			}
			put(t, b, add(2)...)
			if sync == SyncInterval {
				later(b, now, 2*time.Second)
			}
			got = append(got, drain(t, b, len(all)-len(got))...)
			for i, x := range got {
				if x.Seal != all[i].Seal || x.Check() != nil {
					t.Fatalf("batch %d is not what went in", i)
				}
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			b = again(t, d, o)
			if st := b.Begin(); st.Unclean || st.Previous != nil || st.Epoch != w.Epoch || st.Next != w.next || st.Seal != w.Prev {
				t.Fatalf("%+v", st)
			}
			if r := verified(t, d); r.Bad != 0 || r.Torn != 0 {
				t.Fatalf("%+v", r)
			}
			b.Close()
		})
	}
}

// verified is what Verify says of a simulated disk.
func verified(t *testing.T, d *simDisk) Report {
	t.Helper()
	w := walker{find: func(f Finding) { t.Log(f.String()) }}
	segs := d.segments()
	var infos []FileInfo
	for _, name := range segs {
		infos = append(infos, FileInfo{name, int64(len(d.names[name].data))})
	}
	var c cursor
	p, _, _ := c.read(d)
	w.committed, w.passed = p.committed, p.passed
	list := parseNames(infos)
	for i, s := range list {
		w.follow(list, i)
		if err := w.copies(d, s, []string{s.name()}); err != nil {
			t.Fatal(err)
		}
	}
	return w.report
}

func TestRingFull(t *testing.T) {
	t.Run("hold", func(t *testing.T) {
		b, w, _, ro, now := ringed(t, Options{Memory: 16 << 10})
		put(t, b, w.seal(1, text(1000, 0)))
		ro.on = true
		n := 0
		for b.Fits(0, 1000, 0) {
			keep(t, b, w.seal(1, text(1000, byte(n))))
			n++
		}
		if n < 8 || b.Stats().MemoryBytes > 16<<10 {
			t.Fatalf("%d batches, %+v", n, b.Stats())
		}
		before := *w
		var x *batch.Batch
		for range 10 {
			before = *w
			x = w.seal(1, text(1000, 9))
			err := b.Append(t.Context(), x)
			if errors.Is(err, ErrMemory) {
				n++
				continue
			}
			if !errors.Is(err, syscall.EROFS) {
				t.Fatal(err)
			}
			break
		}
		if s := b.Stats(); s.Next != before.next {
			t.Fatalf("what was not taken has a number: %+v", s)
		}
		ended, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := b.Room(ended, 0, 1000, 0); err != context.DeadlineExceeded {
			t.Fatal(err)
		}
		drain(t, b, 5)
		if !b.Fits(0, 1000, 0) {
			t.Fatalf("no room after delivery: %+v", b.Stats())
		}
		keep(t, b, x)
		drain(t, b, n+1-5+1)
		if s := b.Stats(); s.PendingRecords != 0 {
			t.Fatalf("%+v", s)
		}
		// A batch that fills the ring alone fits once all is delivered, and what is larger never does.
		keep(t, b, w.seal(1, text(12<<10, 1)))
		drain(t, b, 1)
		keep(t, b, w.seal(1, text(12<<10, 2)))
		drain(t, b, 1)
		large := w.seal(1, text(17<<10, 3))
		if err := b.Append(t.Context(), large); errors.Is(err, ErrMemory) || !errors.Is(err, syscall.EROFS) {
			t.Fatal(err)
		}
		ro.on = false
		later(b, now, 2*time.Second)
		put(t, b, large)
		drain(t, b, 1)
		if g := b.Gaps(); len(g) > 0 {
			t.Fatalf("%+v", g)
		}
	})
	t.Run("drop_oldest", func(t *testing.T) {
		b, w, d, ro, now := ringed(t, Options{Memory: 16 << 10, Full: DropOldest})
		for i := range 4 {
			put(t, b, w.seal(1, text(1000, byte(i))))
		}
		ro.on = true
		for i := range 60 {
			keep(t, b, w.seal(1, text(1000, byte(i))))
			if s := b.Stats(); s.MemoryBytes > 16<<10 {
				t.Fatalf("%+v", s)
			}
		}
		g := b.Gaps()
		if len(g) != 1 || g[0].Reason != ReasonFull || g[0].First != 5 || g[0].Count != g[0].Last-4 || g[0].Last < 40 || g[0].Last > 60 {
			t.Fatalf("%+v", g)
		}
		s := b.Stats()
		if s.PendingRecords != 64-g[0].Count || s.Lost[ReasonFull] != g[0].Count {
			t.Fatalf("%+v", s)
		}
		var numbers []uint64
		for _, x := range drain(t, b, 10) {
			numbers = append(numbers, x.First)
		}
		if fmt.Sprint(numbers[:5]) != fmt.Sprint([]uint64{1, 2, 3, 4, g[0].Last + 1}) {
			t.Fatalf("%v", numbers)
		}
		ro.on = false
		later(b, now, 2*time.Second)
		drain(t, b, int(64-g[0].Count)-10)
		if s := b.Stats(); s.Degraded || s.PendingRecords != 0 || s.Lost[ReasonFull] != g[0].Count || len(s.Lost) == 0 || s.Lost[ReasonMissing] != 0 {
			t.Fatalf("%+v", s)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if r := verified(t, d); r.Bad != 0 {
			t.Fatalf("%+v", r)
		}
	})
	t.Run("what is planned is spared, and what was dropped stays one range", func(t *testing.T) {
		b, w, _, ro, _ := ringed(t, Options{Memory: 16 << 10, Full: DropOldest})
		put(t, b, w.seal(1, text(1000, 0)))
		ro.on = true
		for i := range 4 {
			keep(t, b, w.seal(1, text(1000, byte(i))))
		}
		run := next(t, b, batch.Limits{Batches: 3})
		if err := b.SetPlan(Plan{Output: "s3", First: 1, Last: run.Last(), Key: "k"}); err != nil {
			t.Fatal(err)
		}
		for i := range 40 {
			keep(t, b, w.seal(1, text(1000, byte(i))))
		}
		if run := next(t, b, batch.Limits{}); run.Key != "k" || run.Last() != 3 {
			t.Fatalf("%q, %d", run.Key, run.Last())
		}
		if err := b.Commit(3, "s3"); err != nil {
			t.Fatal(err)
		}
		var n uint64
		for _, x := range drain(t, b, 5) {
			n = x.Last()
		}
		if s, g := b.Stats(), b.Gaps(); len(g) != 1 || g[0].Count != s.Lost[ReasonFull] || s.Lost[ReasonMissing] != 0 || n <= g[0].Last {
			t.Fatalf("%+v, %+v, %d", s, g, n)
		}
	})
}

// While the disk takes no writes, what must be remembered lives in memory, and it is on
// the disk when that works again.
func TestRingRemembers(t *testing.T) {
	b, w, d, ro, now := ringed(t, Options{})
	for i := range 6 {
		put(t, b, w.seal(1, text(100, byte(i))))
	}
	drain(t, b, 1)
	ro.on = true
	run := next(t, b, batch.Limits{Batches: 2})
	plan := Plan{Output: "s3", First: 2, Last: run.Last(), Key: "k"}
	if err := b.SetPlan(plan); err != nil || !b.Stats().Degraded {
		t.Fatalf("%v, %+v", err, b.Stats())
	}
	if err := b.InDoubt("s3", Range{2, 3}); err != nil {
		t.Fatal(err)
	}
	if _, ok := b.Plan(); ok {
		t.Fatal("the plan was given up")
	}
	run = next(t, b, batch.Limits{Batches: 1})
	if err := b.Reject(&run, "unfit"); err != nil {
		t.Fatal(err)
	}
	if g := b.Gaps(); len(g) != 1 || g[0].Reason != ReasonRejected {
		t.Fatalf("%+v", g)
	}
	if len(d.names) != 2 {
		t.Fatalf("%v", d.names)
	}
	ro.on = false
	later(b, now, time.Second)
	if b.Stats().Degraded {
		t.Fatal("still degraded")
	}
	b = again(t, d, Options{})
	b.Begin()
	if g := b.Gaps(); len(g) != 1 || g[0].Reason != ReasonRejected || b.Stats().Committed != 2 {
		t.Fatalf("%+v, %+v", g, b.Stats())
	}
	if doubts := b.Doubts(); len(doubts) != 1 || doubts[0].Output != "s3" {
		t.Fatalf("%+v", doubts)
	}
	b.Close()
}

func TestRingClose(t *testing.T) {
	t.Run("the disk is back", func(t *testing.T) {
		b, w, d, ro, _ := ringed(t, Options{})
		put(t, b, w.seal(3, text(100, 1)))
		ro.on = true
		keep(t, b, w.seal(4, text(100, 2)))
		ro.on = false
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		b = again(t, d, Options{})
		if st := b.Begin(); st.Unclean || st.Next != 8 || st.Epoch != w.Epoch || b.Stats().PendingRecords != 7 {
			t.Fatalf("%+v", st)
		}
		b.Close()
	})
	t.Run("it takes the cursor only", func(t *testing.T) {
		b, w, d, ro, _ := ringed(t, Options{})
		put(t, b, w.seal(3, text(100, 1)))
		ro.on = true
		keep(t, b, w.seal(4, text(100, 2)))
		d.fail = func(op string, call int, name string) error {
			if name == cursorFile {
				return nil
			}
			return ro.fail(op, call, name)
		}
		if err := b.Close(); !errors.Is(err, ErrMemory) {
			t.Fatal(err)
		}
		d.fail = nil
		b = again(t, d, Options{})
		if st := b.Begin(); !st.Unclean || st.Previous == nil || st.Previous.Epoch != w.Epoch || st.Previous.Last != 7 || st.Next != 8 {
			t.Fatalf("%+v", st)
		}
		b.Close()
	})
	t.Run("it is not", func(t *testing.T) {
		b, w, d, ro, _ := ringed(t, Options{})
		put(t, b, w.seal(3, text(100, 1)))
		ro.on = true
		keep(t, b, w.seal(4, text(100, 2)))
		keep(t, b, w.seal(5, text(100, 3)))
		drain(t, b, 2)
		err := b.Close()
		if !errors.Is(err, ErrMemory) || !strings.Contains(err.Error(), "5 records were kept in memory only and are lost") {
			t.Fatal(err)
		}
		ro.on = false
		b = again(t, d, Options{})
		if st := b.Begin(); !st.Unclean || st.Epoch == w.Epoch || st.Previous == nil || st.Previous.Last != 3 {
			t.Fatalf("%+v", st)
		}
		b.Close()
	})
}

// TestRingNewestOnDisk: of what is on the disk the newest segment stays, delivered or not, as
// long as what is behind it is in memory: if the cursor goes too, nothing else tells which numbers
// were given.
func TestRingNewestOnDisk(t *testing.T) {
	for _, delivered := range []bool{true, false} {
		t.Run(fmt.Sprintf("delivered %v", delivered), func(t *testing.T) {
			b, w, d, ro, now := ringed(t, Options{SegmentBytes: 1000, MaxBytes: 5000, KeepAcked: -1, Full: DropOldest})
			for i := range 3 {
				put(t, b, w.seal(2, text(1000, byte(i))))
			}
			segs := d.segments()
			if delivered {
				drain(t, b, 3)
			}
			ro.on = true
			for i := range 4 {
				keep(t, b, w.seal(2, text(1000, byte(3+i))))
			}
			d.fail = func(op string, _ int, name string) error { // what was there may go and be changed, and nothing is added
				if op == "create" {
					return syscall.EROFS
				}
				return nil
			}
			for range 10 {
				later(b, now, time.Minute)
			}
			if left := d.segments(); !b.Stats().Degraded || !slices.Equal(left, segs[2:]) {
				t.Fatalf("%v, were %v", left, segs)
			}
			d.fail = nil
			d.Remove(cursorFile)
			if st := again(t, d, Options{}).Begin(); st.Next != 7 || st.Previous == nil || st.Previous.Epoch != w.Epoch || st.Previous.Last != 6 {
				t.Fatalf("%+v", st)
			}
		})
	}
}

// TestRingShortDisk: on a disk of which others want a part, the last segment makes room for what
// is in memory, once that is there. One that is not delivered stays under Hold.
func TestRingShortDisk(t *testing.T) {
	for _, full := range []Policy{Hold, DropOldest} {
		for _, delivered := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v, delivered %v", full, delivered), func(t *testing.T) {
				b, w, d, ro, now := ringed(t, Options{SegmentBytes: 30 << 10, Full: full, MinFree: 10 << 10})
				for i := range 20 {
					put(t, b, w.seal(2, text(1000, byte(i))))
				}
				if delivered {
					drain(t, b, 20)
				}
				first := d.segments()[0]
				ro.on = true
				for i := range 3 {
					keep(t, b, w.seal(2, text(1000, byte(i))))
				}
				next(t, b, due)
				ro.on, d.room = false, 8<<10
				d.fail = func(op string, _ int, name string) error {
					if op == "remove" && name == first && len(d.segments()) == 1 {
						t.Error("the only segment is removed")
					}
					return nil
				}
				for range 3 {
					later(b, now, time.Minute)
				}
				if stays := full == Hold && !delivered; b.Degraded() != stays || slices.Contains(d.segments(), first) != stays || len(d.segments()) != 1 {
					t.Fatalf("%+v, %v", b.Stats(), d.segments())
				}
				if g := b.Gaps(); delivered && len(g) > 0 {
					t.Errorf("%+v", g)
				}
			})
		}
	}
}

// A disk that is full, or gives one error, is no reason for memory.
func TestRingNotNeeded(t *testing.T) {
	for name, errs := range map[string][]error{"full": {syscall.ENOSPC, syscall.ENOSPC, syscall.ENOSPC, syscall.ENOSPC}, "quota": {syscall.EDQUOT, syscall.EDQUOT}, "one error": {syscall.EIO}} {
		t.Run(name, func(t *testing.T) {
			b, w, d, _, _ := ringed(t, Options{})
			put(t, b, w.seal(1, text(100, 1)))
			d.fail = func(op string, _ int, _ string) error {
				if op != "write" || len(errs) == 0 {
					return nil
				}
				err := errs[0]
				errs = errs[1:]
				return err
			}
			if err := b.Append(t.Context(), w.seal(1, text(100, 1))); errors.Is(err, ErrMemory) || b.Stats().Degraded {
				t.Fatalf("%v, %+v", err, b.Stats())
			}
		})
	}
	t.Run("no ring", func(t *testing.T) {
		b, w, _, ro, _ := ringed(t, Options{Memory: -1})
		ro.on = true
		if err := b.Append(t.Context(), w.seal(1, text(100, 1))); !errors.Is(err, syscall.EROFS) || errors.Is(err, ErrMemory) || b.Stats().Degraded {
			t.Fatal(err)
		}
	})
	t.Run("a disk that fails the try", func(t *testing.T) {
		b, w, d, ro, now := ringed(t, Options{})
		put(t, b, w.seal(1, text(100, 1)))
		ro.on = true
		keep(t, b, w.seal(1, text(100, 2)))
		var tries []time.Duration
		start := *now
		for range 9 {
			at := b.Maintain(*now)
			*now = at
			tries = append(tries, at.Sub(start).Round(time.Second))
		}
		if fmt.Sprint(tries) != "[1s 3s 7s 15s 31s 1m3s 2m3s 3m3s 4m3s]" {
			t.Fatal(tries)
		}
		// Only the last step of the try fails, and the file of it is in the way of the next.
		d.fail = func(op string, _ int, _ string) error {
			if op == "syncdir" {
				return syscall.EIO
			}
			return nil
		}
		later(b, now, time.Minute)
		if !b.Stats().Degraded {
			t.Fatal("whole, although the name is not durable")
		}
		d.fail = nil
		later(b, now, time.Minute)
		if s := b.Stats(); s.Degraded || s.Segments != len(d.segments()) {
			t.Fatalf("%+v, %v", s, d.segments())
		}
		if got := drain(t, b, 2); got[1].First != 2 {
			t.Fatal(got)
		}
	})
}

// Under SyncInterval, what Append had returned for goes to memory when the disk does not
// take it, and out of there like everything else.
func TestRingTakesWhatIsUnsynced(t *testing.T) {
	b, w, _, ro, now := ringed(t, Options{Sync: SyncInterval})
	for i := range 5 {
		put(t, b, w.seal(1, text(1000, byte(i))))
	}
	ro.on = true
	later(b, now, 2*time.Second)
	later(b, now, time.Millisecond)
	if s := b.Stats(); !s.Degraded || s.UnsyncedBytes != 0 || s.MemoryRecords != 5 {
		t.Fatalf("%+v", s)
	}
	drain(t, b, 5)
	ro.on = false
	later(b, now, 5*time.Second)
	put(t, b, w.seal(1, text(1000, 1)))
	later(b, now, 2*time.Second)
	if got := drain(t, b, 1); got[0].First != 6 {
		t.Fatal(got[0].First)
	}
}

// TestRingPowerCuts is TestPowerCuts with disks that take no writes now and then, for a
// while or for one call in a few, and buffers that keep batches in memory meanwhile.
func TestRingPowerCuts(t *testing.T) {
	seed := seedOf(t)
	rings := []Options{
		{SegmentBytes: 4096, MaxBytes: 1 << 30, KeepAcked: -1, Memory: 16 << 10},
		{SegmentBytes: 1500, MaxBytes: 1 << 30, KeepAcked: 10 * time.Second, Memory: 4 << 10},
		{SegmentBytes: 4096, MaxBytes: 16 << 10, KeepAcked: time.Minute, Full: DropOldest, Memory: 8 << 10},
		{SegmentBytes: 3000, MaxBytes: 1 << 30, KeepAcked: -1, Sync: SyncInterval, MaxUnsynced: 6000, Memory: 12 << 10},
		{SegmentBytes: 4096, MaxBytes: 1 << 30, KeepAcked: -1, Sync: SyncNever, Memory: 16 << 10},
	}
	cuts, kept, want := 0, 0, budget(t, 2000)
	var last string
	for n := seed; cuts < want; n++ {
		w := newWorld(n, rings[n%uint64(len(rings))])
		w.try(t, fmt.Sprintf("SPILLWAY_CRASH_SEED=%d (%s, %s)", n, w.o.Sync, w.o.Full), func() {
			for range 6 {
				from := w.disk.calls + 1 + w.rng.IntN(60)
				to := from + w.rng.IntN(1+w.rng.IntN(400))
				one, errno := 1+w.rng.IntN(3), []error{syscall.EIO, syscall.EROFS}[w.rng.IntN(2)]
				changes := &readOnly{on: true}
				w.disk.fail = func(op string, call int, name string) error {
					if call < from || call >= to || call%one > 0 || changes.fail(op, call, name) == nil {
						return nil
					}
					return errno
				}
				if w.rng.IntN(3) > 0 {
					w.disk.cutAt = w.disk.calls + 1 + w.rng.IntN(1+w.rng.IntN(300))
				}
				w.life(1 + w.rng.IntN(40))
			}
			w.finish()
		})
		cuts += w.stats.cuts
		kept += w.stats.memory
		last = w.total()
	}
	if kept < cuts {
		t.Errorf("%d power cuts, and memory was needed only %d times", cuts, kept)
	}
	t.Logf("%d power cuts from seed %d, %d appends in memory only; the last: %q", cuts, seed, kept, last)
}

// A cursor that was saved while all that this life stored was in memory only is this
// buffer's all the same.
func TestRingCursorIsOurs(t *testing.T) {
	b, w, d, _, now := ringed(t, Options{})
	for i := range 4 {
		put(t, b, w.seal(1, text(100, byte(i))))
	}
	b = again(t, d, Options{Memory: 64 << 10, Now: func() time.Time { return *now }})
	w = newWriter(b.Begin())
	d.fail = func(op string, _ int, name string) error {
		if op == "create" {
			return syscall.EROFS
		}
		return nil
	}
	keep(t, b, w.seal(1, text(100, 9)))
	drain(t, b, 3)
	if err := b.Close(); !errors.Is(err, ErrMemory) {
		t.Fatal(err)
	}
	d.fail = nil
	b = again(t, d, Options{})
	if b.Begin(); b.Stats().Committed != 3 {
		t.Fatalf("%+v", b.Stats())
	}
	b.Close()
}

// A disk that was tried, and is read-only since or was all the time, takes no file away. What
// is delivered makes room in the ring all the same, and the file goes when it can.
func TestRingGoesOnReadOnly(t *testing.T) {
	for _, full := range []Policy{Hold, DropOldest} {
		for first, fault := range map[string]func(op string, call int, name string) error{"read-only": (&readOnly{true}).fail, "no sync at first": fails(syscall.EIO, "sync")} {
			t.Run(fmt.Sprint(full, ", ", first), func(t *testing.T) {
				b, w, d, ro, now := ringed(t, Options{Full: full, SegmentBytes: 8 << 10, KeepAcked: -1})
				put(t, b, w.seal(2, text(1000, 1)))
				drain(t, b, 1)
				d.fail = fault
				var seals []batch.Seal
				for i := range 100 {
					x := w.seal(1, text(5000, byte(i)))
					if err := b.Append(t.Context(), x); !errors.Is(err, ErrMemory) || !b.Fits(0, 5000, 0) {
						t.Fatalf("append %d: %v, %+v", i, err, b.Stats())
					}
					seals = append(seals, x.Seal)
					if i == 0 {
						later(b, now, 1100*time.Millisecond) // the first try
						d.fail, ro.on = ro.fail, true
						continue
					}
					if got := drain(t, b, 1); got[0].Seal != seals[i-1] {
						t.Fatalf("batch %d is %d", i, got[0].First)
					}
					later(b, now, time.Second)
				}
				if s := b.Stats(); s.PendingRecords != 1 || len(b.Gaps()) > 0 || s.MemoryBytes > 64<<10 || !s.Degraded {
					t.Fatalf("%+v, %+v", s, b.Gaps())
				}
				ro.on = false
				later(b, now, time.Minute)
				put(t, b, w.seal(1, text(100, 0)))
				if s := b.Stats(); s.Degraded || s.Segments != len(d.segments()) || s.MemoryBytes != 0 {
					t.Fatalf("%+v, %v", s, d.segments())
				}
				drain(t, b, 2)
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				if r := verified(t, d); r.Bad != 0 || r.Torn != 0 {
					t.Fatalf("%+v", r)
				}
			})
		}
	}
}

// TestRingFooter: what was in memory is on the disk as durable as anything: damage to it is not
// taken for a write that was cut off.
func TestRingFooter(t *testing.T) {
	o := Options{SegmentBytes: 32 << 10}
	b, w, d, ro, now := ringed(t, o)
	put(t, b, w.seal(1, text(1000, 1)))
	drain(t, b, 1)
	ro.on = true
	for i := range 4 {
		keep(t, b, w.seal(1, text(1500, byte(i))))
	}
	ro.on = false
	footers := []bool{}
	d.fail = func(op string, _ int, name string) error {
		if op == "sync" && name != cursorFile {
			data := d.names[name].data
			_, ok := parseFooter(data[len(data)-footerSize:], int64(len(data)-footerSize))
			footers = append(footers, ok)
		}
		return nil
	}
	later(b, now, 2*time.Second)
	if b.Stats().Degraded || fmt.Sprint(footers) != "[false true]" {
		t.Fatalf("%+v, synced with a footer: %v", b.Stats(), footers)
	}
	d.fail = nil
	segs := d.segments()
	d.flip(segs[len(segs)-1], 8*(segmentHeaderSize+batch.HeaderSize+1500+batch.HeaderSize+100)) // in the second batch's payload
	b = again(t, d, o)
	put(t, b, newWriter(b.Begin()).seal(1, text(10, 1)))
	drain(t, b, 4)
	g := b.Gaps()
	if s := b.Stats(); len(g) != 1 || g[0].Reason != ReasonDamaged || g[0].First != 3 || g[0].Count != 1 || s.TornBytes > 0 || s.CorruptBytes == 0 {
		t.Fatalf("%+v, %+v", g, s)
	}
	b.Close()
}

// TestRingFits: Fits says of the ring what Append then does, and keeps the reserve.
func TestRingFits(t *testing.T) {
	large := func(w *writer) *batch.Batch { return w.seal(1, text(40<<10, 2)) }
	for _, full := range []Policy{Hold, DropOldest} {
		t.Run("large ones, "+full.String(), func(t *testing.T) {
			b, w, _, ro, now := ringed(t, Options{Full: full})
			put(t, b, w.seal(2, text(1000, 1)))
			ro.on = true
			keep(t, b, large(w))
			if b.Fits(0, 40<<10, 0) {
				t.Error("the newest stays, and there is room for one more")
			}
			before := *w
			if err := b.Append(t.Context(), large(w)); errors.Is(err, ErrMemory) || !errors.Is(err, syscall.EROFS) {
				t.Fatal(err)
			}
			*w = before
			drain(t, b, 2)
			later(b, now, time.Minute)
			if !b.Fits(0, 40<<10, 0) {
				t.Error("nothing is pending, and there is no room")
			}
			keep(t, b, large(w))
		})
		t.Run("reserve, "+full.String(), func(t *testing.T) {
			const reserve = 32 << 10
			b, w, _, ro, _ := ringed(t, Options{Full: full})
			put(t, b, w.seal(2, text(1000, 1)))
			ro.on = true
			n := 0
			for ; b.Fits(0, 4000, reserve) && n < 20; n++ {
				keep(t, b, w.seal(1, text(4000, 2)))
			}
			if full == Hold && (n < 4 || n > 8) || full == DropOldest && n < 20 {
				t.Errorf("%d batches", n)
			}
			if !b.Fits(0, 20_000, 0) || full == Hold && b.Fits(0, 4000, 1<<30) {
				t.Errorf("%+v", b.Stats())
			}
		})
	}
	t.Run("what is planned stays", func(t *testing.T) {
		b, w, _, ro, _ := ringed(t, Options{Full: DropOldest})
		put(t, b, w.seal(2, text(1000, 1)))
		ro.on = true
		for b.Stats().MemoryBytes < 50<<10 {
			keep(t, b, w.seal(1, text(4000, 2)))
		}
		run := next(t, b, batch.Limits{})
		if err := b.SetPlan(Plan{Output: "out", First: 1, Last: run.Last(), Key: "key"}); err != nil {
			t.Fatal(err)
		}
		if b.Fits(0, 20<<10, 0) {
			t.Error("a planned object leaves no room, and Fits says yes")
		}
	})
}

// TestRingMemory: the ring takes little more memory than its batches, whatever their size, and
// what is let go of is not held.
func TestRingMemory(t *testing.T) {
	for _, size := range []int{100, 5000, 66 << 10, 100 << 10} {
		b, w, _, ro, _ := ringed(t, Options{Memory: 1 << 20})
		put(t, b, w.seal(1, text(1000, 1)))
		ro.on = true
		for b.Fits(0, int64(size)+1000, 0) {
			keep(t, b, w.seal(1, text(size, 2)), w.seal(1, text(100, 3)))
		}
		most := 0
		segs := slices.Clone(b.segs)
		for _, s := range segs {
			if s.mem != nil {
				most += cap(s.mem.data)
			}
		}
		if n := b.Stats().MemoryBytes; most > int(n)*4/3 {
			t.Errorf("batches of %d: %d bytes of memory for %d", size, most, n)
		}
		drain(t, b, int(b.Stats().Next)-1)
		keep(t, b, w.seal(1, text(900<<10, 1)))
		for _, s := range segs {
			if s.mem != nil && !slices.Contains(b.segs, s) {
				t.Errorf("batches of %d: what is forgotten is held", size)
			}
		}
	}
}

// TestRingPartlyWritten: where the disk takes a part of the ring before the agent is killed,
// what was delivered from memory is not told as missing.
func TestRingPartlyWritten(t *testing.T) {
	o := Options{SegmentBytes: 8 << 10}
	b, w, d, ro, now := ringed(t, o)
	put(t, b, w.seal(1, text(5000, 1)))
	ro.on = true
	for range 6 {
		keep(t, b, w.seal(1, text(5000, 2)))
	}
	drain(t, b, 5)
	segs := 0
	d.fail = func(op string, _ int, name string) error {
		if op == "create" && name != cursorFile {
			if segs++; segs > 1 {
				return syscall.EIO
			}
		}
		return nil
	}
	later(b, now, 2*time.Second)
	if s := b.Stats(); !s.Degraded || len(d.segments()) != 2 {
		t.Fatalf("%+v, %d files", s, len(d.segments()))
	}
	d.fail = nil
	b = again(t, d, o)
	w = newWriter(b.Begin())
	put(t, b, w.seal(1, text(10, 1)))
	for b.Stats().PendingRecords > 0 {
		drain(t, b, 1)
	}
	if g := b.Gaps(); len(g) != 0 {
		t.Errorf("%+v", g)
	}
	b.Close()
}

// TestRingFullWhileWritten: a disk that says that it is full while memory is written to it does
// not cost the segment in memory that is appended to its footer, in whose place others would be
// overwritten.
func TestRingFullWhileWritten(t *testing.T) {
	b, w, d, ro, now := ringed(t, Options{SegmentBytes: 1, MaxBytes: 10 << 10, KeepAcked: time.Hour, Memory: 16 << 10})
	for i := range 4 {
		put(t, b, w.seal(1, text(1500, byte(i))))
	}
	drain(t, b, 4)
	ro.on = true
	for i := range 3 {
		keep(t, b, w.seal(1, text(1500, byte(4+i))))
	}
	d.fail = func(op string, _ int, name string) error {
		if name == cursorFile && op == "write" {
			return syscall.ENOSPC
		}
		return nil
	}
	later(b, now, 2*time.Second)
	d.fail = nil
	later(b, now, time.Minute)
	if s := b.Stats(); s.Degraded {
		t.Fatalf("%+v", s)
	}
	put(t, b, w.seal(1, text(1500, 9)))
	if run := next(t, b, due); run.First() != 5 || run.Last() != 8 || len(b.Gaps()) > 0 {
		t.Errorf("records %d to %d come, %+v", run.First(), run.Last(), b.Gaps())
	}
}
