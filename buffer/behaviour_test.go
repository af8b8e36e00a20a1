package buffer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer/batch"
)

// simulated opens a buffer on a simulated disk.
func simulated(t testing.TB, o Options) (*Buffer, *simDisk) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	d := newSimDisk(rng)
	o.FS, o.random = d, rng.Uint64
	if o.Agent == "" {
		o.Agent = "gw-1"
	}
	if o.SyncGap == 0 {
		o.SyncGap = -1
	}
	b, err := Open("sim", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.life == 0 { // else that process is dead
			b.Close()
		}
	})
	return b, d
}

// again ends the process without a word and opens the directory anew.
func again(t testing.TB, d *simDisk, o Options) *Buffer {
	t.Helper()
	d.kill()
	o.FS, o.Agent, o.SyncGap, o.random = d, "gw-1", -1, d.rng.Uint64
	b, err := Open("sim", o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t testing.TB, b *Buffer, batches ...*batch.Batch) {
	t.Helper()
	if err := b.Append(t.Context(), batches...); err != nil {
		t.Fatal(err)
	}
}

func next(t testing.TB, b *Buffer, l batch.Limits) batch.Run {
	t.Helper()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	run, err := b.Next(ended, l)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func TestAppendOrder(t *testing.T) {
	b, _ := simulated(t, Options{})
	w := newWriter(b.Begin())
	first, second, third := w.seal(2, text(10, 1)), w.seal(2, text(10, 2)), w.seal(2, text(10, 3))
	put(t, b, first)
	bad := *second
	bad.Payload = text(10, 9)
	for name, batches := range map[string][]*batch.Batch{
		"again":            {first},
		"a number back":    {{Header: batch.Header{First: 2, Count: 1}}},
		"seal left out":    {third},
		"in wrong order":   {third, second},
		"no records":       {{Header: batch.Header{First: 3}}},
		"the wrong epoch":  {(&writer{Sealer: batch.Sealer{Epoch: 1, Prev: first.Seal}, next: 3}).seal(1, text(5, 1))},
		"other than sum":   {&bad},
		"numbers overflow": {{Header: batch.Header{First: 1<<64 - 1, Count: 2}}},
	} {
		if err := b.Append(t.Context(), batches...); err == nil {
			t.Errorf("%s was accepted", name)
		} else if !errors.Is(err, ErrOrder) && !errors.Is(err, batch.ErrChecksum) {
			t.Errorf("%s: %v", name, err)
		}
	}
	put(t, b, second, third)
	if got := drain(t, b, 3); got[2].Last() != 6 {
		t.Fatalf("%+v", got)
	}
}

// TestSameNumberSameContent: what an Append failed for may be on the disk, so
// that its number must not get other content.
func TestSameNumberSameContent(t *testing.T) {
	b, d := simulated(t, Options{})
	w := newWriter(b.Begin())
	put(t, b, w.seal(1, text(10, 1)))
	d.fail = func(string, int, string) error { return syscall.EIO }
	w2 := *w
	x := w.seal(1, text(10, 2))
	if err := b.Append(t.Context(), x); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	d.fail = nil
	if err := b.Append(t.Context(), w2.seal(1, text(10, 3))); !errors.Is(err, ErrOrder) {
		t.Fatalf("other content: %v", err)
	}
	put(t, b, x)
}

// TestSkippedNumbers: numbers that the writer left out are a hole that is told.
func TestSkippedNumbers(t *testing.T) {
	b, _ := simulated(t, Options{})
	w := newWriter(b.Begin())
	put(t, b, w.seal(5, text(10, 1)))
	w.next += 7
	put(t, b, w.seal(5, text(10, 2)))
	if run := next(t, b, batch.Limits{}); run.Last() != 5 || len(run.Batches) != 1 {
		t.Fatalf("a run crosses the hole: %d to %d", run.First(), run.Last())
	}
	drain(t, b, 2)
	g := b.Gaps()
	if len(g) != 1 || g[0].Reason != ReasonSkipped || g[0].First != 6 || g[0].Last != 12 || g[0].Count != 7 {
		t.Fatalf("%+v", g)
	}
	b.GapsTold(1, b.Stats().Next-1)
	if g := b.Gaps(); len(g) != 0 {
		t.Fatalf("%+v", g)
	}
}

func TestRunLimits(t *testing.T) {
	hour := int64(time.Hour)
	for _, tt := range []struct {
		name string
		l    batch.Limits
		edit func(i int, h *batch.Header)
		want string // lengths of the runs
	}{
		{"no limits", batch.Limits{}, nil, "[10]"},
		{"batches", batch.Limits{Batches: 4}, nil, "[4 4 2]"},
		{"bytes", batch.Limits{Bytes: 350}, nil, "[3 3 3 1]"},
		{"bytes of less than one", batch.Limits{Bytes: 10}, nil, "[1 1 1 1 1 1 1 1 1 1]"},
		{"bytes that just fit", batch.Limits{Bytes: 500}, nil, "[5 5]"},
		{"not beyond a record", batch.Limits{Last: 12}, nil, "[4 1 1 1 1 1 1]"},
		{"not into a batch that goes beyond it", batch.Limits{Last: 14}, nil, "[4 1 1 1 1 1 1]"},
		{"a large batch is alone", batch.Limits{BatchBytes: 150}, func(i int, h *batch.Header) {
			if i == 3 {
				h.Length = 200
			}
		}, "[3 1 6]"},
		{"codec", batch.Limits{}, func(i int, h *batch.Header) {
			if i >= 6 {
				h.Codec = batch.Gzip
			}
		}, "[6 4]"},
		{"encoding", batch.Limits{}, func(i int, h *batch.Header) {
			if i < 2 {
				h.Flags = batch.RawLines
			}
		}, "[2 8]"},
		{"other flags don't matter", batch.Limits{}, func(i int, h *batch.Header) { h.Flags = batch.Flags(i) & batch.HasGap }, "[10]"},
		{"hour", batch.Limits{Hour: true}, func(i int, h *batch.Header) { h.FirstTime = hour*5 + int64(i)*hour/4 }, "[4 4 2]"},
		{"hour, not asked for", batch.Limits{}, func(i int, h *batch.Header) { h.FirstTime = hour*5 + int64(i)*hour/4 }, "[10]"},
		{"hour before 1970", batch.Limits{Hour: true}, func(i int, h *batch.Header) { h.FirstTime = int64(i-5) * hour / 5 }, "[5 5]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := simulated(t, Options{})
			w := newWriter(b.Begin())
			for i := range 10 {
				h := batch.Header{Length: 100}
				if tt.edit != nil {
					tt.edit(i, &h)
				}
				x := w.make(h.Codec, 3, text(int(h.Length), byte(i)))
				x.Flags = h.Flags
				if h.FirstTime != 0 || strings.HasPrefix(tt.name, "hour") {
					x.FirstTime = h.FirstTime
				}
				w.Seal(x)
				put(t, b, x)
			}
			var got []int
			for last, before := uint64(0), (batch.Seal{}); last < 30; {
				run := next(t, b, tt.l)
				if run.First() != last+1 || run.Before != before || run.Agent != "gw-1" || run.Epoch != b.Begin().Epoch {
					t.Fatalf("run %d to %d behind %d", run.First(), run.Last(), last)
				}
				if twice := next(t, b, tt.l); twice.First() != run.First() || twice.Last() != run.Last() {
					t.Fatalf("the same call gave %d to %d, then %d to %d", run.First(), run.Last(), twice.First(), twice.Last())
				}
				got = append(got, len(run.Batches))
				last, before = run.Last(), run.Seal()
				if err := b.Commit(last, "out"); err != nil {
					t.Fatal(err)
				}
			}
			if fmt.Sprint(got) != tt.want {
				t.Fatalf("runs of %v batches, want %s", got, tt.want)
			}
		})
	}
}

// TestRunAge: a run that may grow waits for Limits.Age, one of an earlier life not.
func TestRunAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, d := simulated(t, Options{})
		w := newWriter(b.Begin())
		begin := time.Now()
		var took time.Duration
		done := make(chan batch.Run)
		go func() {
			run, err := b.Next(context.Background(), batch.Limits{Age: time.Minute, Batches: 5})
			if err != nil {
				t.Error(err)
			}
			took = time.Since(begin)
			done <- run
		}()
		time.Sleep(10 * time.Second)
		put(t, b, w.seal(1, text(10, 1)))
		time.Sleep(30 * time.Second)
		put(t, b, w.seal(1, text(10, 2)))
		run := <-done
		if took != 70*time.Second || len(run.Batches) != 2 {
			t.Fatalf("%d batches after %v", len(run.Batches), took)
		}
		if err := b.Commit(run.Last(), "out"); err != nil {
			t.Fatal(err)
		}
		go func() { // full before its age
			run, _ := b.Next(context.Background(), batch.Limits{Age: time.Hour, Batches: 3})
			took = time.Since(begin)
			done <- run
		}()
		for range 3 {
			time.Sleep(time.Second)
			put(t, b, w.seal(1, text(10, 3)))
		}
		if run = <-done; took != 73*time.Second || len(run.Batches) != 3 {
			t.Fatalf("%d batches after %v", len(run.Batches), took)
		}
		// Without a word to the old process: what it left is due at once.
		b2 := again(t, d, Options{})
		if run := next(t, b2, batch.Limits{Age: time.Hour}); run.First() != 1 && run.First() != 3 {
			t.Fatalf("%d", run.First())
		}
		b2.Close()
		b.closed = true // its files are gone
	})
}

func TestNextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := simulated(t, Options{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Next(ctx, batch.Limits{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		errs := make(chan error)
		go func() {
			_, err := b.Next(context.Background(), batch.Limits{})
			errs <- err
		}()
		go func() { errs <- b.Room(context.Background(), 0, 1<<50, 0) }()
		synctest.Wait()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := <-errs; err != nil && !errors.Is(err, ErrClosed) {
				t.Fatal(err)
			}
		}
	})
}

// TestGroupCommit: appends of many share few syncs, and each of them is durable
// when it returns.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := simulated(t, Options{SyncGap: 100 * time.Millisecond})
		w := newWriter(b.Begin())
		var wg sync.WaitGroup
		begin := time.Now()
		for range 50 {
			x := w.seal(1, text(100, 1))
			wg.Go(func() {
				if err := b.Append(context.Background(), x); err != nil {
					t.Error(err)
				}
				if s := b.Stats(); s.Next <= x.Last() {
					t.Errorf("%d is not stored", x.Last())
				}
			})
			synctest.Wait()
		}
		wg.Wait()
		if s := b.Stats(); s.Syncs != 2 || time.Since(begin) != 100*time.Millisecond {
			t.Fatalf("%d syncs in %v", s.Syncs, time.Since(begin))
		}
		// A megabyte that waits cuts the gap short.
		begin = time.Now()
		var big []*batch.Batch
		for range 3 {
			big = append(big, w.seal(1, text(400<<10, 2)))
		}
		put(t, b, big...)
		if d := time.Since(begin); d != 0 {
			t.Fatalf("a large append waited %v", d)
		}
		begin = time.Now()
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.Append(ended, w.seal(1, text(10, 1))); err != nil || time.Since(begin) != 0 {
			t.Fatalf("%v after %v", err, time.Since(begin))
		}
	})
}

func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := simulated(t, Options{MaxBytes: 1 << 20, SegmentBytes: 100 << 10, KeepAcked: time.Hour})
		w := newWriter(b.Begin())
		for b.Fits(0, 50<<10, 0) {
			put(t, b, w.seal(1, text(50<<10, 1)))
		}
		if s := b.Stats(); s.Bytes > 1<<20 || s.Bytes < 1<<20-60<<10 {
			t.Fatalf("full at %d bytes", s.Bytes)
		}
		before := *w
		for i := 0; ; i++ { // the slack
			x := w.seal(1, text(50<<10, 1))
			err := b.Append(t.Context(), x)
			if errors.Is(err, ErrFull) {
				*w = before
				break
			}
			if err != nil || i > 30 {
				t.Fatal(i, err)
			}
			before = *w
		}
		room := make(chan error)
		begin := time.Now()
		go func() { room <- b.Room(t.Context(), 0, 50<<10, 0) }()
		time.Sleep(time.Minute)
		n := int(b.Stats().PendingRecords)
		drain(t, b, n-10)
		if err := <-room; err != nil || time.Since(begin) != time.Minute {
			t.Fatalf("%v after %v", err, time.Since(begin))
		}
		// What is delivered and kept makes room for what comes.
		put(t, b, w.seal(1, text(50<<10, 1)))
		if s := b.Stats(); s.Bytes > 1<<20 || s.SegmentsRemoved == 0 {
			t.Fatalf("%+v", s)
		}
		// One batch larger than everything is let in when nothing is pending.
		drain(t, b, 11)
		if !b.Fits(0, 10<<20, 0) {
			t.Fatal("a large batch is stuck")
		}
		x := w.make(batch.None, 1, text(10<<20, 1))
		x.Flags |= batch.Single
		w.Seal(x)
		put(t, b, x)
		if b.Fits(0, 1, 0) {
			t.Fatal("and more behind it")
		}
		drain(t, b, 1)
		if !b.Fits(0, 1, 0) {
			t.Fatal("full for ever")
		}
	})
}

func TestDropOldest(t *testing.T) {
	b, d := simulated(t, Options{MaxBytes: 64 << 10, SegmentBytes: 8 << 10, Full: DropOldest, KeepAcked: -1})
	w := newWriter(b.Begin())
	var seals []batch.Seal
	for i := range 60 {
		x := w.seal(10, text(2000, byte(i)))
		seals = append(seals, x.Seal)
		if !b.Fits(0, 2000, 0) {
			t.Fatal("drop_oldest refuses")
		}
		put(t, b, x)
		if s := b.Stats(); s.Bytes > 64<<10 {
			t.Fatalf("%d bytes", s.Bytes)
		}
	}
	run := next(t, b, batch.Limits{Batches: 1})
	g := b.Gaps()
	if len(g) != 1 || g[0].Reason != ReasonFull || g[0].First != 1 || g[0].Last != run.First()-1 || g[0].Count != g[0].Last {
		t.Fatalf("next %d, gaps %+v", run.First(), g)
	}
	lost := int(g[0].Count / 10)
	if g[0].After != seals[lost] || g[0].Before != (batch.Seal{}) || run.Before != seals[lost-1] {
		t.Fatalf("%d batches lost: %+v, before %v", lost, g[0], run.Before)
	}
	b2 := again(t, d, Options{MaxBytes: 64 << 10, SegmentBytes: 8 << 10, Full: DropOldest})
	if got := b2.Gaps(); len(got) != 1 || got[0].First != 1 || got[0].Count != g[0].Count || got[0].After != g[0].After {
		t.Fatalf("after a crash: %+v, was %+v", got, g)
	}
	if s := b2.Stats(); s.Lost[ReasonFull] != g[0].Count || s.PendingRecords != 600-g[0].Count {
		t.Fatalf("%+v", s)
	}
	b.closed = true
	b2.Close()
}

// TestDropSparesThePlan: what is about to be an object stays.
func TestDropSparesThePlan(t *testing.T) {
	b, _ := simulated(t, Options{MaxBytes: 64 << 10, SegmentBytes: 8 << 10, Full: DropOldest, KeepAcked: -1})
	w := newWriter(b.Begin())
	for i := range 10 {
		put(t, b, w.seal(10, text(2000, byte(i))))
	}
	run := next(t, b, batch.Limits{Batches: 6})
	plan := Plan{Output: "s3", First: run.First(), Last: run.Last(), Key: "k"}
	if err := b.SetPlan(plan); err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		put(t, b, w.seal(10, text(2000, byte(i))))
	}
	run = next(t, b, batch.Limits{Batches: 1, Bytes: 1})
	if run.Key != "k" || run.First() != 1 || run.Last() != 60 {
		t.Fatalf("the plan came back as %q, %d to %d", run.Key, run.First(), run.Last())
	}
	if err := b.Commit(60, "s3"); err != nil {
		t.Fatal(err)
	}
	if p, ok := b.Plan(); ok {
		t.Fatalf("%+v", p)
	}
	var got, told uint64 = 60, 0
	for b.Stats().PendingRecords > 0 {
		run := next(t, b, batch.Limits{})
		got += run.Count()
		if err := b.Commit(run.Last(), "s3"); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range b.Gaps() {
		if g.Reason != ReasonFull {
			t.Errorf("%+v", g)
		}
		told += g.Count
	}
	if got+told != 700 {
		t.Fatalf("%d delivered and %d told as lost, of 700", got, told)
	}
}

// TestDropTheHeadBehindAPlan drops what lies behind a plan, gives the plan up and drops its
// records too: what follows, of another epoch, is read already and tells nothing again.
func TestDropTheHeadBehindAPlan(t *testing.T) {
	o := Options{MaxBytes: 10 << 10, SegmentBytes: 1, Full: DropOldest, KeepAcked: -1}
	b, d := simulated(t, o)
	put(t, b, newWriter(b.Begin()).seal(10, text(2000, 'a')))
	b = again(t, d, o)
	w := newWriter(b.Begin())
	for range 2 {
		put(t, b, w.seal(10, text(2000, 'b')))
	}
	run := next(t, b, batch.Limits{})
	if err := b.SetPlan(Plan{Output: "s3", First: run.First(), Last: run.Last(), Key: "k"}); err != nil {
		t.Fatal(err)
	}
	put(t, b, w.seal(10, text(2000, 'c')), w.seal(10, text(2000, 'd'))) // instead of 11 to 20
	if run = next(t, b, batch.Limits{}); run.Key != "k" {
		t.Fatalf("records %d to %d under key %q", run.First(), run.Last(), run.Key)
	}
	if err := b.SetPlan(Plan{}); err != nil {
		t.Fatal(err)
	}
	next(t, b, batch.Limits{})
	put(t, b, w.seal(10, text(1500, 'e')))
	if run = next(t, b, batch.Limits{}); run.First() != 21 {
		t.Fatalf("record %d comes, not 21", run.First())
	}
	told := uint64(0)
	for _, g := range b.Gaps() {
		if told += g.Count; g.Reason != ReasonFull {
			t.Errorf("told as %s: %+v", g.Reason, g)
		}
	}
	if told != run.First()-1 {
		t.Errorf("%d records are told as lost before %d: %+v", told, run.First(), b.Gaps())
	}
}

// TestDropWhatWasGivenUp drops a segment at the end of an epoch, with a batch in it that was
// given up and never stored: its numbers are those of the next epoch, of which none is lost.
func TestDropWhatWasGivenUp(t *testing.T) {
	o := Options{MaxBytes: 10 << 10, SegmentBytes: 4096, Full: DropOldest, KeepAcked: -1}
	b, d := simulated(t, o)
	w := newWriter(b.Begin())
	put(t, b, w.seal(10, text(2000, 'a')))
	d.fail = func(op string, _ int, _ string) error {
		if op == "sync" {
			return syscall.EIO
		}
		return nil
	}
	if err := b.Append(t.Context(), w.seal(10, text(1000, 'b'))); err == nil {
		t.Fatal("stored")
	}
	d.fail = nil
	s, _ := parseName(d.segments()[0])
	s.ordinal, s.first, s.salt = s.ordinal+1, 11, s.salt+1
	d.put(s.name(), make([]byte, 2000)) // the second try, cut off
	b = again(t, d, o)
	st := b.Begin()
	if st.Next != 11 || st.Previous == nil {
		t.Fatalf("%+v", st)
	}
	w = newWriter(st)
	put(t, b, w.seal(10, text(2000, 'c')))
	run := next(t, b, batch.Limits{Batches: 1})
	if err := b.SetPlan(Plan{Output: "s3", First: run.First(), Last: run.Last(), Key: "k"}); err != nil {
		t.Fatal(err)
	}
	for b.Stats().SegmentsRemoved == 0 { // the second goes, which has nothing
		put(t, b, w.seal(1, text(1000, 'd')))
	}
	if err := b.SetPlan(Plan{}); err != nil {
		t.Fatal(err)
	}
	for b.Stats().SegmentsRemoved == 1 { // and the first
		put(t, b, w.seal(1, text(1000, 'd')))
	}
	if g := b.Gaps(); len(g) != 1 || g[0].First != 1 || g[0].Last != 10 || g[0].Epoch == st.Epoch {
		t.Errorf("told as lost: %+v", g)
	}
	if run := next(t, b, batch.Limits{}); run.First() != 11 || run.Epoch != st.Epoch {
		t.Errorf("record %d of epoch %v comes, want 11 of %v", run.First(), run.Epoch, st.Epoch)
	}
}

// Segments that went before what is planned are gone, not lost: verify knows.
func TestVerifyAfterDropBehindAPlan(t *testing.T) {
	dir := t.TempDir()
	b, err := Open(dir, Options{Agent: "gw1", MaxBytes: 64 << 10, SegmentBytes: 8 << 10, Full: DropOldest, MinFree: -1, SyncGap: -1})
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(b.Begin())
	put(t, b, w.seal(10, text(2000, 1)))
	next(t, b, batch.Limits{})
	if err := b.SetPlan(Plan{Output: "s3", First: 1, Last: 10, Key: "k"}); err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		put(t, b, w.seal(10, text(2000, byte(i))))
	}
	check := func() {
		t.Helper()
		gone := 0
		r, err := Verify(dir, func(f Finding) {
			if f.What == "gone" {
				gone++
			}
		})
		if err != nil || r.Bad != 0 || r.Lost != 0 || gone != 1 {
			t.Errorf("%+v, %d gone, %v", r, gone, err)
		}
	}
	check()
	if err := b.Commit(10, "s3"); err != nil {
		t.Fatal(err)
	}
	drain(t, b, 10)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	check()
}

func TestKeepAcked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := simulated(t, Options{SegmentBytes: 1000, KeepAcked: 10 * time.Minute})
		w := newWriter(b.Begin())
		for i := range 10 {
			put(t, b, w.seal(1, text(500, byte(i))))
		}
		drain(t, b, 10)
		<-b.Woken()
		if at := b.Maintain(time.Now()); at.IsZero() {
			t.Fatal("nothing to do, with segments to remove")
		}
		if s := b.Stats(); s.Segments != 5 {
			t.Fatalf("%d segments", s.Segments)
		}
		for i := 0; ; i++ {
			at := b.Maintain(time.Now())
			if at.IsZero() {
				break
			}
			if i > 5 {
				t.Fatalf("still busy at %v", at)
			}
			time.Sleep(time.Until(at))
		}
		if s := b.Stats(); s.Segments != 1 { // the newest stays
			t.Fatalf("%d segments", s.Segments)
		}
		if at := b.Maintain(time.Now().Add(time.Hour)); !at.IsZero() {
			t.Fatal("an idle buffer wants to be called")
		}
	})
}

// TestQuarantine: a damaged segment is put aside when it is drained, a torn one not.
func TestQuarantine(t *testing.T) {
	im := makeImage(t, 1, 24, true)
	im.disk.flip(im.all[20].name, int(8*(im.all[20].off+200)))
	o := im.o
	o.QuarantineBytes, o.KeepAcked = 10_000, -1
	im.o = o
	im.out(t, im.disk)
	files, err := im.disk.List(quarantine)
	if err != nil || len(files) != 1 || files[0].Name != im.all[20].name {
		t.Fatalf("%v, %v", files, err)
	}
	for _, name := range im.disk.segments() {
		if name == im.all[20].name {
			t.Fatal("it is still there")
		}
	}
}

func TestMinFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, d := simulated(t, Options{MaxBytes: 1 << 30, MinFree: 1 << 20, SegmentBytes: 10 << 10})
		w := newWriter(b.Begin())
		for i := range 20 {
			put(t, b, w.seal(1, text(5000, byte(i))))
		}
		d.room = 1<<20 + 3000
		time.Sleep(2 * time.Second)
		if !b.Fits(0, 1000, 0) || b.Fits(0, 5000, 0) {
			t.Fatal("it does not see the disk")
		}
		x := w.seal(1, text(5000, 1))
		if err := b.Append(t.Context(), x); !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		drain(t, b, 10) // what is delivered goes, KeepAcked or not
		if !b.Fits(0, 5000, 0) {
			t.Fatal("delivered segments are no room")
		}
		put(t, b, x)
		before := b.Stats().Segments
		d.room = 0 // others have eaten the disk: our segments stay
		time.Sleep(2 * time.Second)
		b.Maintain(time.Now())
		if s := b.Stats(); s.PendingRecords != 11 || s.Segments > before {
			t.Fatalf("%+v", s)
		}
	})
}

// TestMinFreeDropOldest: on a short disk the lane does not grow, and does not shrink either.
func TestMinFreeDropOldest(t *testing.T) {
	b, d := simulated(t, Options{MaxBytes: 1 << 30, MinFree: 1 << 20, SegmentBytes: 10 << 10, Full: DropOldest})
	w := newWriter(b.Begin())
	for i := range 20 {
		put(t, b, w.seal(1, text(5000, byte(i))))
	}
	d.room = 0
	b.refreshFree(0)
	size := b.Stats().Bytes
	for i := range 40 {
		if !b.Fits(0, 5000, 0) {
			t.Fatal("nothing can be dropped")
		}
		d.room = 20 << 10 // what others leave free for a moment
		put(t, b, w.seal(1, text(5000, byte(i))))
		d.room = 0
		b.refreshFree(0)
		if s := b.Stats(); s.Bytes < size-40<<10 || s.Bytes > size+15<<10 {
			t.Fatalf("%d bytes, it was %d", s.Bytes, size)
		}
	}
}

// TestDiskFull: ENOSPC is a state. When there is room again everything goes on.
func TestDiskFull(t *testing.T) {
	b, d := simulated(t, Options{MaxBytes: 1 << 30, MinFree: -1, SegmentBytes: 10 << 10})
	w := newWriter(b.Begin())
	put(t, b, w.seal(1, text(1000, 1)))
	d.room = 3000
	x := w.seal(1, text(5000, 1))
	for range 50 {
		if err := b.Append(t.Context(), x); !errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	if n := len(d.names); n > 3 {
		t.Fatalf("%d files are left behind by appends that failed", n)
	}
	d.room = 1 << 20
	put(t, b, x)
	if got := drain(t, b, 2); len(got) != 2 || len(b.Gaps()) != 0 {
		t.Fatal(len(got))
	}
}

// TestInterval: Append returns before the sync; readers wait for it; a failed
// sync is never repeated on the same file.
func TestInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, d := simulated(t, Options{Sync: SyncInterval, SyncInterval: 10 * time.Second, MaxUnsynced: 10_000})
		w := newWriter(b.Begin())
		put(t, b, w.seal(1, text(1000, 1)))
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := b.Next(ended, batch.Limits{}); !errors.Is(err, context.Canceled) {
			t.Fatalf("an unsynced batch was handed out: %v", err)
		}
		<-b.Woken()
		if at := b.Maintain(time.Now()); time.Until(at) != 10*time.Second {
			t.Fatalf("sync at %v", time.Until(at))
		}
		time.Sleep(10 * time.Second)
		var failed []string
		d.fail = func(op string, call int, name string) error {
			if op == "sync" && len(failed) == 0 {
				failed = append(failed, name)
				return syscall.EIO
			}
			if op == "sync" && name == failed[0] {
				t.Error("the file whose sync failed is synced again")
			}
			return nil
		}
		b.Maintain(time.Now())
		if s := b.Stats(); s.UnsyncedBytes != 0 || s.SegmentsGivenUp != 1 {
			t.Fatalf("%+v", s)
		}
		drain(t, b, 1)
		for range 20 { // MaxUnsynced syncs without Maintain
			put(t, b, w.seal(1, text(1000, 1)))
		}
		if s := b.Stats(); s.UnsyncedBytes > 10_000 {
			t.Fatalf("%d bytes unsynced", s.UnsyncedBytes)
		}
		drain(t, b, 16)
		d.fail = nil
	})
}

func TestEpochs(t *testing.T) {
	b, d := simulated(t, Options{})
	w := newWriter(b.Begin())
	put(t, b, w.seal(5, text(10, 1)))
	last := w.Prev
	d.kill()
	t.Run("another agent", func(t *testing.T) {
		b, err := Open("sim", Options{Agent: "gw-2", FS: d, random: d.rng.Uint64})
		if err != nil {
			t.Fatal(err)
		}
		st := b.Begin()
		if st.Epoch == w.Epoch || st.Next != 6 || st.Seal != (batch.Seal{}) || st.Previous == nil || st.Previous.Epoch != w.Epoch || st.Previous.Last != 5 || st.Previous.Before != last {
			t.Fatalf("%+v", st)
		}
		w := newWriter(st)
		put(t, b, w.seal(1, text(10, 2)))
		run := next(t, b, batch.Limits{})
		if run.Agent != "gw-1" || len(run.Batches) != 1 {
			t.Fatalf("%+v", run)
		}
		b.Commit(run.Last(), "out")
		if run := next(t, b, batch.Limits{}); run.Agent != "gw-2" || run.First() != 6 || run.Before != (batch.Seal{}) {
			t.Fatalf("%+v", run)
		}
		d.kill()
	})
	t.Run("interval, unclean", func(t *testing.T) {
		b, err := Open("sim", Options{Agent: "gw-2", FS: d, random: d.rng.Uint64, Sync: SyncInterval})
		if err != nil {
			t.Fatal(err)
		}
		if st := b.Begin(); st.Previous == nil || st.Next != 7 || !st.Unclean {
			t.Fatalf("%+v", st)
		}
		d.kill()
	})
	t.Run("segments removed by hand", func(t *testing.T) {
		b, err := Open("sim", Options{Agent: "gw-2", FS: d, random: d.rng.Uint64})
		if err != nil {
			t.Fatal(err)
		}
		b.w.Lock()
		b.saveCursor()
		b.w.Unlock()
		d.kill()
		for _, name := range d.segments() {
			d.Remove(name)
		}
		if b, err = Open("sim", Options{Agent: "gw-2", FS: d, random: d.rng.Uint64}); err != nil {
			t.Fatal(err)
		}
		if st := b.Begin(); st.Next != 7 || st.Previous == nil || st.Previous.Last != 6 {
			t.Fatalf("%+v", st)
		}
	})
	b.closed = true
}

// TestSlabShrinks: one large run does not keep its memory for ever, and large runs
// in a row do not allocate.
func TestSlabShrinks(t *testing.T) {
	b, _ := simulated(t, Options{})
	w := newWriter(b.Begin())
	var big []*batch.Batch
	for range 16 {
		big = append(big, w.seal(1, text(512<<10, 1)))
	}
	put(t, b, big...)
	limits := batch.Limits{Batches: 16}
	next(t, b, limits)
	if n := testing.AllocsPerRun(20, func() { next(t, b, limits) }); n > 40 {
		t.Errorf("%v allocations for a large run", n)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 10 {
		next(t, b, limits)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("ten large runs allocated %d bytes", n)
	}
	for range slabPatience + 2 {
		next(t, b, batch.Limits{Batches: 1})
	}
	if cap(b.slab) > 1<<20 {
		t.Errorf("%d bytes are kept for small runs", cap(b.slab))
	}
}

func TestPlanThatCantBeRepeated(t *testing.T) {
	b, d := simulated(t, Options{})
	w := newWriter(b.Begin())
	for i := range 4 {
		put(t, b, w.seal(1, text(100, byte(i))))
	}
	run := next(t, b, batch.Limits{Batches: 3})
	if err := b.SetPlan(Plan{Output: "s3", First: 1, Last: run.Last(), Key: "k"}); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]Plan{
		"not at the head": {"s3", 2, 3, "k"}, "not handed out": {"s3", 1, 4, "k"}, "no key": {"s3", 1, 3, ""},
		"a long key": {"s3", 1, 3, strings.Repeat("k", 1025)}, "no output": {"", 1, 3, "k"}, "backwards": {"s3", 1, 0, "k"},
	} {
		if err := b.SetPlan(p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	d.kill()
	name := d.segments()[0]
	d.SyncDir()
	data := d.names[name].data
	d.flip(name, 8*(bytes.Index(data, text(100, 1))+5))
	b2 := again(t, d, Options{})
	if p, ok := b2.Plan(); !ok || p.Last != 3 {
		t.Fatalf("%+v", p)
	}
	if run := next(t, b2, batch.Limits{}); run.Key != "" || run.Last() != 1 {
		t.Fatalf("%q, %d to %d", run.Key, run.First(), run.Last())
	}
	if p, ok := b2.Plan(); ok {
		t.Fatalf("%+v", p)
	}
	b2.Close()
	b.closed = true
}

func TestCommit(t *testing.T) {
	b, _ := simulated(t, Options{})
	w := newWriter(b.Begin())
	for i := range 4 {
		put(t, b, w.seal(5, text(100, byte(i))))
	}
	if err := b.Commit(5, "out"); !errors.Is(err, ErrOrder) {
		t.Fatalf("before it was handed out: %v", err)
	}
	next(t, b, batch.Limits{Batches: 3})
	if err := b.Commit(10, ""); err == nil {
		t.Fatal("no output name")
	}
	for _, last := range []uint64{10, 10, 5, 0} {
		if err := b.Commit(last, "out"); err != nil {
			t.Fatal(err)
		}
		if s := b.Stats(); s.Committed != 10 || s.PendingRecords != 10 {
			t.Fatalf("%+v", s)
		}
	}
	if err := b.Commit(20, "out"); !errors.Is(err, ErrOrder) {
		t.Fatal(err)
	}
}

// TestManyGaps: however many holes there are, what is kept of them is bounded and
// their sum is exact.
func TestManyGaps(t *testing.T) {
	b, d := simulated(t, Options{})
	w := newWriter(b.Begin())
	for i := range 30 {
		put(t, b, w.seal(1, text(100, byte(i))))
		w.next += 2
	}
	drain(t, b, 30)
	var n uint64
	for _, g := range b.Gaps() {
		n += g.Count
	}
	if got := len(b.Gaps()); n != 58 || got > maxGaps {
		t.Fatalf("%d records in %d gaps", n, got)
	}
	told := b.Gaps()[:2]
	b.GapsTold(2, b.Stats().Next-1)
	b.Close()
	d.kill()
	b2 := again(t, d, Options{})
	for _, g := range b2.Gaps() {
		n -= g.Count
	}
	if n != told[0].Count+told[1].Count {
		t.Fatalf("%d records were told and %d are missing from the cursor", told[0].Count+told[1].Count, n)
	}
	b2.Close()
}

// TestUnsyncedCursor: a position that an earlier life wrote and did not get to
// sync is read at the next start, and a power cut may still take it away. It must
// be saved again before a segment goes that only it says is delivered.
func TestUnsyncedCursor(t *testing.T) {
	o := Options{SegmentBytes: 1000, KeepAcked: -1}
	b, d := simulated(t, o)
	w := newWriter(b.Begin())
	for i := range 6 {
		put(t, b, w.seal(1, text(600, byte(i))))
	}
	drain(t, b, 5)
	d.fail = func(op string, _ int, name string) error {
		if op == "sync" && name == cursorFile {
			d.dead = true // killed between write and sync
			return errDead
		}
		return nil
	}
	b.Maintain(time.Now().Add(time.Hour))
	d.dead, d.fail = false, nil
	b.closed = true

	b2 := again(t, d, o)
	if s := b2.Stats(); s.Committed != 5 || s.Segments != 3 {
		t.Fatalf("%+v", s)
	}
	var calls []string
	d.fail = func(op string, _ int, name string) error {
		if op == "remove" || op == "sync" && name == cursorFile {
			calls = append(calls, op)
		}
		return nil
	}
	next(t, b2, batch.Limits{})
	b2.Maintain(time.Now().Add(time.Hour))
	if fmt.Sprint(calls) != "[sync remove remove]" {
		t.Fatalf("%v", calls)
	}
	d.fail = nil
	b2.Close()
}

// TestCursorNotRead: what can't be read at the start may hold a higher generation than
// the first save then. It must not count once it can be read again.
func TestCursorNotRead(t *testing.T) {
	d := newSimDisk(rand.New(rand.NewPCG(1, 1)))
	var before cursor
	for range 5 {
		if err := before.save(d, &position{committed: 2}); err != nil {
			t.Fatal(err)
		}
	}
	d.kill()
	d.fail = func(op string, _ int, _ string) error {
		if op == "read" {
			return syscall.EIO
		}
		return nil
	}
	var now cursor
	if _, ok, _ := now.read(d); ok {
		t.Fatal("read")
	}
	if err := now.save(d, &position{committed: 9}); err != nil {
		t.Fatal(err)
	}
	d.kill()
	d.fail = nil
	if p, ok, _ := new(cursor).read(d); !ok || p.committed != 9 {
		t.Errorf("%+v, %v", p.committed, ok)
	}
}

// A gap that stands for several, with records between them that were delivered or pending,
// does not tell of one that is found in it later.
func TestGapInAMergedOne(t *testing.T) {
	gap := func(first, last, count uint64) Gap {
		return Gap{Reason: ReasonFull, Epoch: 7, First: first, Last: last, Count: count}
	}
	for name, c := range map[string]struct {
		told, found Gap
		want        uint64
	}{
		"between":       {gap(79, 109, 14), gap(86, 100, 15), 29},
		"at its end":    {gap(79, 109, 14), gap(100, 115, 16), 30},
		"behind it":     {gap(79, 109, 14), gap(110, 120, 11), 25},
		"the same":      {gap(79, 109, 14), gap(79, 109, 14), 14},
		"in a whole":    {gap(79, 109, 31), gap(86, 100, 15), 31},
		"over its end":  {gap(79, 109, 31), gap(100, 120, 21), 42},
		"merged, found": {gap(79, 109, 31), gap(79, 120, 13), 44},
	} {
		t.Run(name, func(t *testing.T) {
			var n uint64
			for _, x := range coalesce([]toldGap{{Gap: c.told, by: 200}, {Gap: c.found}}) {
				n += x.Count
			}
			if n != c.want {
				t.Errorf("%d records are told, want %d", n, c.want)
			}
		})
	}
}
