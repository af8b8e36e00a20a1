package buffer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// change rewinds or trims the directory between two lives, and may be cut off or meet
// errors.
func (w *world) change() {
	faulty := false
	switch at := w.disk.calls + 1 + w.rng.IntN(40); w.rng.IntN(4) {
	case 0, 1:
		w.disk.cutAt = at
	case 2:
		n := 1 + w.rng.IntN(4)
		w.disk.fail = func(op string, call int, name string) error {
			if call < at || call >= at+n {
				return nil
			}
			w.did("fault in %s %s", op, name)
			faulty = true
			return syscall.EIO
		}
	}
	defer func() {
		w.disk.fail = nil
		if !w.disk.dead {
			w.disk.kill()
			w.disk.cutAt = 0
			return
		}
		w.disk.reboot()
		w.stats.cuts++
		w.maybe = w.maybe || w.o.Sync == SyncNever
		for _, s := range w.all {
			s.stored = s.stored && (s.promised || s.delivered)
			s.refused = s.refused && w.o.Sync != SyncNever
		}
	}()
	b, err := openIdleFS(w.disk)
	if err != nil {
		if !w.disk.dead && !faulty && !errors.Is(err, ErrNothing) {
			w.fail("I7: %v", err)
		}
		return
	}
	committed, oldest, newest := b.pos.committed, b.segs[0].first, b.segs[len(b.segs)-1].name()
	before := w.scan("")
	if w.rng.IntN(2) == 0 {
		to := oldest + w.rng.Uint64N(max(1, committed-min(committed, oldest)+1))
		r, err := b.rewind(Back{To: to})
		err = errors.Join(err, b.Close())
		w.did("rewind to %d: %+v, %v", to, r, err)
		if w.plan != (Plan{}) {
			w.maybe = true
		}
		if errors.Is(err, ErrNothing) || w.disk.dead || faulty && err != nil {
			return
		}
		w.disk.cutAt, w.disk.fail = 0, nil
		if err != nil {
			w.fail("rewind: %v", err)
		}
		var c cursor
		if p, ok, _ := c.read(w.disk); !ok || p.committed != r.First-1 || r.First < oldest || r.Last != committed || p.plan != (Plan{}) {
			w.fail("I5: rewound to %d, and the position is %d", r.First, p.committed)
		}
		return
	}
	var what Cut
	switch w.rng.IntN(3) {
	case 0:
		what.Delivered = true
	case 1:
		what.To = oldest + w.rng.Uint64N(300)
	case 2:
		what.Before = instant(int64(oldest+w.rng.Uint64N(300)) * 1e9)
	}
	what.Undelivered = w.rng.IntN(3) > 0 && !what.Delivered
	t, err := b.trimSegments(what)
	cerr := b.Close()
	w.did("trim %+v: %+v, %v, %v", what, t, err, cerr)
	if w.disk.dead || faulty && (err != nil || cerr != nil) {
		return
	}
	w.disk.cutAt, w.disk.fail = 0, nil
	if cerr != nil || err != nil && !errors.Is(err, ErrNothing) && !errors.Is(err, ErrUndelivered) {
		w.fail("trim: %v, %v", err, cerr)
	}
	after := w.scan("")
	var c cursor
	p, _, _ := c.read(w.disk)
	for _, s := range w.all {
		if !before[s.id] || after[s.id] {
			continue
		}
		told := s.last <= committed || slices.ContainsFunc(p.gaps, s.in) || slices.ContainsFunc(p.told, func(g toldGap) bool { return s.in(g.Gap) })
		if err != nil || !told || !what.Undelivered && s.last > committed || what.To > 0 && s.first > what.To {
			w.fail("I1: %+v, %v removed %s; told %+v, position %d", what, err, s.id, p.gaps, p.committed)
		}
	}
	if w.disk.names[newest] == nil {
		w.fail("the newest segment was removed")
	}
}

// TestRewindAndTrimUnderPowerCuts changes directories between their lives, with power
// cuts and read and write errors at random calls of that too. The invariants are those of all other tests.
func TestRewindAndTrimUnderPowerCuts(t *testing.T) {
	seed := seedOf(t)
	cuts, want := 0, budget(t, 1500)
	start := time.Now()
	for n := seed; cuts < want; n++ {
		w := newWorld(n, policies()[n%6])
		w.try(t, fmt.Sprintf("SPILLWAY_CRASH_SEED=%d (%s, %s)", n, w.o.Sync, w.o.Full), func() {
			for range 6 {
				if w.rng.IntN(4) > 0 {
					w.disk.cutAt = w.disk.calls + 1 + w.rng.IntN(1+w.rng.IntN(250))
				}
				w.life(1 + w.rng.IntN(30))
				for range w.rng.IntN(3) {
					w.change()
				}
			}
			w.finish()
		})
		cuts += w.stats.cuts
	}
	t.Logf("%d power cuts from seed %d in %v", cuts, seed, time.Since(start).Round(time.Millisecond))
}

// TestRewind: what is sent again, and what is refused.
func TestRewind(t *testing.T) {
	for _, tt := range []struct {
		name        string
		to          Back
		first, last uint64
		want        string // of the error
	}{
		{name: "to the first of a batch", to: Back{To: 4}, first: 4, last: 27},
		{name: "to the middle of one", to: Back{To: 6}, first: 4, last: 27},
		{name: "to the oldest", to: Back{To: 1}, first: 1, last: 27},
		{name: "to the last", to: Back{To: 27}, first: 25, last: 27},
		{name: "since a time", to: Back{Since: instant(10e9)}, first: 10, last: 27},
		{name: "since before all", to: Back{Since: instant(1)}, first: 1, last: 27},
		{name: "to what is not delivered", to: Back{To: 28}, want: "record 28 is not delivered yet: delivery goes on behind record 27"},
		{name: "since what is not delivered", to: Back{Since: instant(28e9)}, want: "the last record of it, 27, was received at 1970-01-01T00:00:25Z"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, _ := oddBuffer(t)
			b := mustOpen(t, dir, Options{SyncGap: -1})
			drain(t, b, 6)
			b.Close()
			r, err := Rewind(dir, tt.to)
			if tt.want != "" {
				if !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("%v, want %s", err, tt.want)
				}
				return
			}
			if err != nil || r.First != tt.first || r.Last != tt.last || r.Records != tt.last-tt.first+1 || r.Batches != r.Records/3 || r.Bytes != 200*r.Batches || r.Hole {
				t.Fatalf("%+v, %v", r, err)
			}
			b = mustOpen(t, dir, Options{SyncGap: -1})
			if taken := b.Taken("out"); tt.first == 1 && len(taken) > 0 || tt.first > 1 && (len(taken) != 1 || taken[0].Last != tt.first-1) {
				t.Errorf("said to be taken: %v", taken)
			}
			if n := b.Acked("out"); n != tt.first-1 {
				t.Errorf("said to be acknowledged: %d", n)
			}
			run := next(t, b, batch.Limits{})
			if run.First() != tt.first || run.Last() != 36 || run.Attempt != 2 {
				t.Errorf("records %d to %d, attempt %d", run.First(), run.Last(), run.Attempt)
			}
			if err := b.Commit(run.Last(), "out"); err != nil {
				t.Fatal(err)
			}
			if g := b.Gaps(); len(g) > 0 {
				t.Errorf("%+v", g)
			}
		})
	}
	t.Run("what is removed", func(t *testing.T) {
		dir, _ := oddBuffer(t)
		b := mustOpen(t, dir, Options{SyncGap: -1})
		drain(t, b, 6)
		b.Close()
		if _, err := Trim(dir, Cut{Delivered: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := Rewind(dir, Back{To: 5}); !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), "record 5 is not kept any more: the oldest that is kept is 25, received at 1970-01-01T00:00:25Z") {
			t.Error(err)
		}
	})
	t.Run("over a hole", func(t *testing.T) {
		dir, segs := oddBuffer(t)
		data, err := os.ReadFile(filepath.Join(dir, segs[0]))
		if err != nil {
			t.Fatal(err)
		}
		data[segmentHeaderSize+2*batch.HeaderSize+200] ^= 1 // in the payload of 4 to 6
		if err := os.WriteFile(filepath.Join(dir, segs[0]), data, 0o600); err != nil {
			t.Fatal(err)
		}
		b := mustOpen(t, dir, Options{SyncGap: -1})
		drain(t, b, 6)
		b.Close()
		if _, err := Rewind(dir, Back{To: 3}); !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), "record 3 is not kept without a hole behind it: the oldest that is kept is 7, ") {
			t.Error(err)
		}
		if r, err := Rewind(dir, Back{Since: instant(1)}); err != nil || r.First != 7 || r.Last != 27 || r.Batches != 7 || !r.Hole {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("what was rejected and not told", func(t *testing.T) {
		dir, _ := oddBuffer(t)
		b := mustOpen(t, dir, Options{SyncGap: -1})
		run := next(t, b, batch.Limits{Batches: 2}) // 10 to 15
		if err := b.Reject(&run, "too large"); err != nil {
			t.Fatal(err)
		}
		b.Close()
		if _, err := Rewind(dir, Back{To: 13}); err != nil {
			t.Fatal(err)
		}
		b = mustOpen(t, dir, Options{SyncGap: -1})
		if g := b.Gaps(); len(g) != 1 || g[0].First != 10 || g[0].Last != 12 || g[0].Count != 3 || b.Stats().Lost[ReasonRejected] != 3 {
			t.Errorf("%+v, %v", g, b.Stats().Lost)
		}
		b.Close()
		if _, err := Rewind(dir, Back{To: 10}); err != nil {
			t.Fatal(err)
		}
		b = mustOpen(t, dir, Options{SyncGap: -1})
		if g := b.Gaps(); len(g) != 0 || b.Stats().Lost[ReasonRejected] != 0 {
			t.Errorf("%+v, %v", g, b.Stats().Lost)
		}
	})
	t.Run("a planned object", func(t *testing.T) {
		dir, _ := oddBuffer(t)
		b := mustOpen(t, dir, Options{SyncGap: -1})
		run := next(t, b, batch.Limits{Batches: 2})
		plan := Plan{Output: "s3", First: run.First(), Last: run.Last(), Key: "k"}
		if err := b.SetPlan(plan); err != nil {
			t.Fatal(err)
		}
		b.Close()
		if _, err := Rewind(dir, Back{To: 4}); err != nil {
			t.Fatal(err)
		}
		b = mustOpen(t, dir, Options{SyncGap: -1})
		if p, ok := b.Plan(); ok {
			t.Errorf("still planned: %+v", p)
		}
		if d := b.Doubts(); len(d) != 1 || d[0] != (Doubt{"s3", Range{plan.First, plan.Last}}) {
			t.Errorf("in doubt: %+v", d)
		}
	})
}

// TestTrim: what goes, and what is refused.
func TestTrim(t *testing.T) {
	for _, tt := range []struct {
		name     string
		what     Cut
		segments int
		lost     uint64
		want     error
		gap      Range
	}{
		{name: "delivered", what: Cut{Delivered: true}, segments: 1},
		{name: "to the end of one", what: Cut{To: 12}, segments: 1},
		{name: "to the middle of one", what: Cut{To: 23}, segments: 1},
		{name: "to the first", what: Cut{To: 1}, want: ErrNothing},
		{name: "to what is not delivered", what: Cut{To: 24}, want: ErrUndelivered},
		{name: "to what is not delivered, all the same", what: Cut{To: 24, Undelivered: true}, segments: 2, lost: 9, gap: Range{16, 24}},
		{name: "all", what: Cut{To: 1000, Undelivered: true}, segments: 2, lost: 9, gap: Range{16, 24}},
		{name: "before a time", what: Cut{Before: instant(20e9)}, segments: 1},
		{name: "before all", what: Cut{Before: instant(5e9)}, want: ErrNothing},
		{name: "before what is not delivered", what: Cut{Before: instant(30e9)}, want: ErrUndelivered},
		{name: "before what is not delivered, all the same", what: Cut{Before: instant(30e9), Undelivered: true}, segments: 2, lost: 9, gap: Range{16, 24}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, segs := oddBuffer(t)
			b := mustOpen(t, dir, Options{SyncGap: -1})
			drain(t, b, 2) // 15 of 36
			b.Close()
			was := tree(t, dir)
			got, err := Trim(dir, tt.what)
			if tt.want != nil {
				if !errors.Is(err, tt.want) || fmt.Sprint(tree(t, dir)) != fmt.Sprint(was) {
					t.Fatalf("%+v, %v", got, err)
				}
				return
			}
			if err != nil || got.Segments != tt.segments || got.Lost != tt.lost || got.Bytes != int64(tt.segments)*int64(len(was[segs[0]])) {
				t.Fatalf("%+v, %v", got, err)
			}
			left, err := Segments(dir)
			if err != nil || len(left.Segments) != 3-tt.segments || left.Segments[0].Name != segs[tt.segments] {
				t.Fatalf("left: %+v, %v", left, err)
			}
			if r, err := Verify(dir, nil); err != nil || r.Bad > 0 {
				t.Errorf("verify: %+v, %v", r, err)
			}
			b = mustOpen(t, dir, Options{SyncGap: -1})
			gaps := b.Gaps()
			if tt.lost == 0 && len(gaps) > 0 || tt.lost > 0 && (len(gaps) != 1 || gaps[0].First != tt.gap.First || gaps[0].Last != tt.gap.Last || gaps[0].Count != tt.lost || gaps[0].Reason != ReasonTrimmed) {
				t.Errorf("told: %+v", gaps)
			}
			if run := next(t, b, batch.Limits{}); run.First() != max(15, tt.gap.Last)+1 || run.Attempt != 1 {
				t.Errorf("next is %d, attempt %d", run.First(), run.Attempt)
			}
		})
	}
	t.Run("planned", func(t *testing.T) {
		dir, segs := oddBuffer(t)
		b := mustOpen(t, dir, Options{SyncGap: -1})
		run := next(t, b, batch.Limits{Batches: 1})
		if err := b.SetPlan(Plan{Output: "s3", First: run.First(), Last: run.Last(), Key: "k"}); err != nil {
			t.Fatal(err)
		}
		b.Close()
		got, err := Trim(dir, Cut{To: 24, Undelivered: true})
		if err != nil || got.Segments != 1 || got.Lost != 12 {
			t.Fatalf("%+v, %v", got, err)
		}
		if _, err := os.Stat(filepath.Join(dir, segs[0])); err != nil {
			t.Error(err)
		}
		if _, err := Trim(dir, Cut{To: 24, Undelivered: true}); !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), "records 10 to 12 are planned for output s3") {
			t.Error(err)
		}
	})
}

// TestChangesNeedTheLock: Rewind and Trim refuse while somebody has the buffer open,
// and leave no directory behind where there was none.
func TestChangesNeedTheLock(t *testing.T) {
	dir, _ := oddBuffer(t)
	mustOpen(t, dir, Options{})
	if _, err := Rewind(dir, Back{To: 1}); !errors.Is(err, ErrLocked) {
		t.Error(err)
	}
	if _, err := Trim(dir, Cut{Delivered: true}); !errors.Is(err, ErrLocked) {
		t.Error(err)
	}
	none := filepath.Join(t.TempDir(), "none")
	if _, err := Rewind(none, Back{To: 1}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Trim(none, Cut{Delivered: true}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := os.Stat(none); err == nil {
		t.Error("it was made")
	}
	if _, err := Trim(chmodDir2(t), Cut{Delivered: true}); !errors.Is(err, ErrNothing) {
		t.Error(err)
	}
}

// TestTrimWithoutFooters: when the last record was received is known of a segment whose writer
// was killed, and where a place in it can't be read; where nothing can, nothing is trimmed.
func TestTrimWithoutFooters(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(d *simDisk, name string)
		want  error
	}{
		{"killed", func(*simDisk, string) {}, nil},
		{"a bad place", func(d *simDisk, name string) {
			calls := 0
			d.fail = func(op string, _ int, at string) error {
				if op == "read" && at == name {
					if calls++; calls == 3 {
						d.done["fault"]++
						return syscall.EIO
					}
				}
				return nil
			}
		}, nil},
		{"not to be opened", func(d *simDisk, name string) {
			d.fail = func(op string, _ int, at string) error {
				if op == "open" && at == name {
					d.done["fault"]++
					return syscall.EIO
				}
				return nil
			}
		}, errSome},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := fourSegments(t, Options{})
			first := d.segments()[0]
			data := d.names[first].data
			d.put(first, data[:len(data)-footerSize])
			d.kill()
			b, err := openIdleFS(d)
			if err != nil {
				t.Fatal(err)
			}
			before := instant(b.ending(b.segs[0]).time).Add(1)
			tt.spoil(d, first)
			calls := d.done["fault"]
			got, err := b.trimSegments(Cut{Before: before, Undelivered: true})
			switch {
			case d.fail != nil && d.done["fault"] == calls:
				t.Error("the fault was not met")
			case tt.want == nil && (err != nil || got.Segments != 1):
				t.Errorf("%+v, %v", got, err)
			case tt.want != nil && (err == nil || got.Segments > 0 || !strings.Contains(err.Error(), first+" can't be read")):
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// errSome stands for any error.
var errSome = errors.New("some error")

// TestTrimNewer: a segment of a newer version is what keeps the ones behind it, and is named.
func TestTrimNewer(t *testing.T) {
	d := fourSegments(t, Options{})
	first := d.segments()[0]
	was := d.names[first].data
	d.put(first, newerHeader(slices.Clone(was), segmentHeaderSize, 8))
	d.kill()
	b, err := openIdleFS(d)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.trimSegments(Cut{To: 60, Undelivered: true})
	if got.Segments > 0 || !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), first+" was written by a newer spillway") {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestTrimTellsTheSame: a tool between two lives changes nothing of what the second tells of the
// end of the first: what was durable is damaged, what was not is torn, whatever the policy.
func TestTrimTellsTheSame(t *testing.T) {
	for _, tt := range []struct {
		name string
		sync SyncPolicy
		want string
	}{{"group", SyncGroup, ReasonDamaged}, {"interval", SyncInterval, ReasonTorn}, {"never", SyncNever, ReasonTorn}} {
		for _, tool := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, tool %v", tt.name, tool), func(t *testing.T) {
				o := Options{SegmentBytes: 3000, KeepAcked: -1, Sync: tt.sync}
				b, d := simulated(t, o)
				w := newWriter(b.Begin())
				for i := range 14 {
					put(t, b, w.seal(10, text(400, byte(i))))
				}
				b.w.Lock()
				err := b.saveCursor() // as every 5 s
				b.w.Unlock()
				if err != nil {
					t.Fatal(err)
				}
				d.kill()
				segs := d.segments()
				name := segs[len(segs)-1]
				d.put(name, d.names[name].data[:segmentHeaderSize+500]) // in the only batch of it
				if tool {
					idle, err := openIdleFS(d)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := idle.trimSegments(Cut{To: 1}); !errors.Is(err, ErrNothing) {
						t.Fatal(err)
					}
					if err := idle.Close(); err != nil {
						t.Fatal(err)
					}
				}
				b = again(t, d, o)
				b.Begin()
				gaps := b.Gaps()
				if len(gaps) != 1 || gaps[0].Reason != tt.want || gaps[0].First > 131 || gaps[0].Last != 140 || gaps[0].Count != b.Stats().Lost[tt.want] {
					t.Errorf("%+v, %v", gaps, b.Stats().Lost)
				}
			})
		}
	}
}
