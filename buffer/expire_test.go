package buffer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/buffer/batch"
)

var epochOfHosts = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

// host is a computer with a clock that may be wrong.
type host struct {
	truth  time.Duration // that has passed since epochOfHosts
	boot   time.Duration // when it was started
	off    time.Duration // how far its clock is off
	synced bool          // what its kernel says of the clock
}

func (h *host) wall() time.Time { return epochOfHosts.Add(h.truth + h.off) }

func (h *host) clock() (time.Duration, bool) { return h.truth - h.boot, h.synced }

// set sets the clock, by so much off.
func (h *host) set(off time.Duration, synced bool) { h.off, h.synced = off, synced }

func (h *host) to1970() time.Duration {
	return time.Unix(3600, 0).Sub(epochOfHosts) - h.truth
}

// shelf is a buffer on a host, with one batch a segment.
type shelf struct {
	*host
	t *testing.T
	o Options
	b *Buffer
	d *simDisk
	w *writer
}

func newShelf(t *testing.T, o Options) *shelf {
	s := &shelf{host: &host{synced: true}, t: t, o: o}
	if s.o.SegmentBytes == 0 {
		s.o.SegmentBytes = 1
	}
	s.o.Now, s.o.Clock = s.wall, s.clock
	s.b, s.d = simulated(t, s.o)
	s.w = newWriter(s.b.Begin())
	return s
}

// add stores a batch of 10 records, received now.
func (s *shelf) add() {
	s.t.Helper()
	x := s.w.seal(10, text(500, byte(s.w.next)))
	x.FirstTime, x.LastTime = s.wall().UnixNano(), s.wall().UnixNano()
	if !s.synced {
		x.Flags |= batch.Unsynced
	}
	put(s.t, s.b, x)
}

// pass lets time pass until then, with Maintain called when it wants to be.
func (s *shelf) pass(then time.Duration) {
	s.t.Helper()
	for n := 0; s.truth < then; n++ {
		if n > 100_000 {
			s.t.Fatalf("Maintain is called all the time: %v of %v", s.truth, then)
		}
		step := then - s.truth
		if at := s.b.Maintain(s.wall()); !at.IsZero() {
			step = min(step, max(at.Sub(s.wall()), 10*time.Millisecond))
		}
		s.truth += step
	}
	for range 2 * s.b.Stats().Segments {
		s.b.Maintain(s.wall())
	}
}

// restart opens the directory again, after a kill or in order.
func (s *shelf) restart(kill bool) {
	s.t.Helper()
	if !kill {
		if err := s.b.Close(); err != nil {
			s.t.Fatal(err)
		}
	}
	s.b = again(s.t, s.d, s.o)
	s.w = newWriter(s.b.Begin())
}

// TestMaxAge: whole segments go when their newest record is older, the oldest first;
// what they held is told and counted, and the rest is delivered.
func TestMaxAge(t *testing.T) {
	s := newShelf(t, Options{MaxAge: 24 * time.Hour, KeepAcked: time.Hour})
	s.add()
	drain(t, s.b, 1)
	for range 4 { // at 0, 1, 2 and 3 hours
		s.add()
		next(t, s.b, batch.Limits{})
		s.pass(s.truth + time.Hour)
	}
	if n := s.b.Stats().Segments; n != 4 {
		t.Fatalf("%d segments: the one that was delivered is kept for KeepAcked, MaxAge or not", n)
	}
	s.pass(24 * time.Hour)
	if n := s.b.Stats().Segments; n != 4 {
		t.Fatalf("%d segments after a day", n)
	}
	s.pass(24*time.Hour + time.Second)
	if n := s.b.Stats().Segments; n != 3 {
		t.Fatalf("%d segments after a day and a second", n)
	}
	gaps := s.b.Gaps()
	if len(gaps) != 1 || gaps[0].Reason != ReasonExpired || gaps[0].First != 11 || gaps[0].Last != 20 || gaps[0].Count != 10 || gaps[0].Until.Sub(epochOfHosts) != time.Hour || gaps[0].After == (batch.Seal{}) {
		t.Fatalf("gaps %+v", gaps)
	}
	s.pass(100 * time.Hour)
	st := s.b.Stats()
	if st.Segments != 1 || st.Lost[ReasonExpired] != 30 || st.PendingRecords != 10 || st.Committed != 40 || st.DeliveredRecords+st.Lost[ReasonExpired]+st.PendingRecords != st.AppendedRecords {
		t.Fatalf("%+v", st)
	}
	if at := s.b.Maintain(s.wall()); !at.IsZero() && !s.b.isDirty() {
		t.Errorf("with the newest alone it wants to be called at %v", at)
	}
	if got := drain(t, s.b, 1); got[0].First != 41 {
		t.Errorf("%d is delivered", got[0].First)
	}
}

// TestExpiredIsToldFirst: after a power cut at any call of an expiry the gap is told, or
// the segment is still there.
func TestExpiredIsToldFirst(t *testing.T) {
	for cut := 1; ; cut++ {
		s := newShelf(t, Options{MaxAge: time.Hour})
		for range 3 {
			s.add()
		}
		s.pass(59 * time.Minute)
		s.truth = 2 * time.Hour
		s.d.cutAt = s.d.calls + cut
		for range 6 {
			s.b.Maintain(s.wall())
		}
		done := !s.d.dead
		s.d.reboot()
		s.b = again(t, s.d, s.o)
		told := uint64(0)
		for _, g := range s.b.Gaps() {
			told = max(told, g.Last)
		}
		run := next(t, s.b, batch.Limits{})
		for _, g := range s.b.Gaps() { // of missing segments these come here
			if g.Reason != ReasonExpired {
				t.Fatalf("cut %d: %+v", cut, g)
			}
		}
		if run.First() != told+1 {
			t.Fatalf("cut %d: told up to %d, and delivery begins with %d", cut, told, run.First())
		}
		if done {
			if told != 20 {
				t.Fatalf("without a cut %d are told", told)
			}
			return
		}
	}
}

// TestMaxAgeSpares: the planned object, and what was delivered.
func TestMaxAgeSpares(t *testing.T) {
	s := newShelf(t, Options{MaxAge: time.Hour, KeepAcked: 100 * time.Hour})
	for range 6 {
		s.add()
	}
	drain(t, s.b, 1)
	run := next(t, s.b, batch.Limits{Batches: 2})
	plan := Plan{Output: "s3", First: run.First(), Last: run.Last(), Key: "k"}
	if err := s.b.SetPlan(plan); err != nil {
		t.Fatal(err)
	}
	s.pass(3 * time.Hour)
	if st := s.b.Stats(); st.Segments != 4 || st.Lost[ReasonExpired] != 20 || st.PendingRecords != 30 {
		t.Fatalf("%+v", st)
	}
	run = next(t, s.b, batch.Limits{})
	if run.Key != "k" || run.First() != plan.First || run.Last() != plan.Last {
		t.Fatalf("the plan comes as %d to %d, %q", run.First(), run.Last(), run.Key)
	}
	if err := s.b.Commit(run.Last(), "s3"); err != nil {
		t.Fatal(err)
	}
	if run = next(t, s.b, batch.Limits{}); run.First() != 51 {
		t.Errorf("%d comes next", run.First())
	}
}

// TestMaxAgeOfLiveSegment: a segment that fills slowly is closed, so that it can expire.
func TestMaxAgeOfLiveSegment(t *testing.T) {
	s := newShelf(t, Options{MaxAge: 8 * time.Hour, SegmentBytes: 1 << 20})
	for range 48 {
		s.add()
		s.pass(s.truth + 10*time.Minute)
	}
	if n := s.b.Stats().Segments; n < 7 || n > 9 {
		t.Errorf("%d segments of one hour after 8 hours", n)
	}
	for range 48 {
		s.add()
		s.pass(s.truth + 10*time.Minute)
		if s.b.Stats().PendingRecords > (8+2)*60 {
			t.Fatalf("%d records are pending", s.b.Stats().PendingRecords)
		}
	}
}

// TestMaxAgeOneAtATime: what one call reads and removes is bounded, however much is old.
func TestMaxAgeOneAtATime(t *testing.T) {
	s := newShelf(t, Options{MaxAge: time.Hour})
	for range 200 {
		s.add()
	}
	s.pass(30 * time.Minute)
	s.truth = 5 * time.Hour
	for n := 200; n > 1; {
		calls := s.d.calls
		at := s.b.Maintain(s.wall())
		if d := s.d.calls - calls; d > 40 {
			t.Fatalf("%d calls of the file system", d)
		}
		left := s.b.Stats().Segments
		if left < n-1 || left > 1 && at != s.wall() {
			t.Fatalf("%d segments after %d, next at %v", left, n, at.Sub(s.wall()))
		}
		n = left
		s.truth += 10 * time.Millisecond
	}
}

// TestMaxAgeNewest: of the segments with a batch in them the newest stays, also when
// something else lies behind it.
func TestMaxAgeNewest(t *testing.T) {
	s := newShelf(t, Options{MaxAge: time.Hour})
	for range 3 {
		s.add()
	}
	names := s.d.segments()
	last, _ := parseName(names[2])
	torn := segmentName(last.ordinal+1, last.epoch, 31, 7, last.agent)
	if f, err := s.d.Create(torn); err != nil {
		t.Fatal(err)
	} else if _, err := f.WriteAt([]byte("torn"), 0); err != nil {
		t.Fatal(err)
	}
	s.restart(true)
	s.pass(10 * time.Hour)
	if got := s.d.segments(); !slices.Equal(got, []string{names[2], torn}) {
		t.Errorf("left: %v", got)
	}
}

// TestMaxAgeDamage: a segment goes when its time has come, also without a footer, and one of
// which nothing can be read goes a whole MaxAge after the start.
func TestMaxAgeDamage(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(n *inode)
		due    time.Duration // of the first segment, after the restart at 5 h
	}{
		{"no footer", func(n *inode) { n.data = n.data[:len(n.data)-footerSize]; n.disk = slices.Clone(n.data) }, 19 * time.Hour},
		{"payload", func(n *inode) { n.data[segmentHeaderSize+batch.HeaderSize+10] ^= 1; n.disk = slices.Clone(n.data) }, 19 * time.Hour},
		{"nothing", func(n *inode) { clear(n.data); clear(n.disk) }, 24 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newShelf(t, Options{MaxAge: 24 * time.Hour})
			for range 3 {
				s.add()
			}
			s.pass(5 * time.Hour)
			tt.damage(s.d.names[s.d.segments()[0]])
			s.restart(true)
			s.add()
			s.pass(5*time.Hour + tt.due)
			if n := len(s.d.segments()); n < 4 && tt.due < 24*time.Hour || n != 4 && !strings.HasPrefix(tt.name, "nothing") {
				t.Fatalf("%d segments too early", n)
			}
			first := s.d.segments()[0]
			s.pass(5*time.Hour + tt.due + 2*time.Minute)
			if slices.Contains(s.d.segments(), first) {
				t.Errorf("it is still there")
			}
		})
	}
}

// TestMaxAgeClocks: no clock, however wrong, makes anything expire that is not old.
func TestMaxAgeClocks(t *testing.T) {
	const h, m, y = time.Hour, time.Minute, 365 * 24 * time.Hour
	type look struct {
		at   time.Duration
		left int // segments
	}
	// Each begins with three batches at 0, the newest of which stays.
	for _, tt := range []struct {
		name  string
		first func(s *shelf) // before these
		steps []func(s *shelf)
		looks []look // after each step
	}{
		{"synchronised", nil, nil, []look{{24 * h, 3}, {24*h + m, 1}}},
		{"never synchronised", func(s *shelf) { s.set(0, false) }, nil, []look{{24 * h, 3}, {1000 * h, 3}}},
		{"synchronised late", func(s *shelf) { s.set(0, false) }, []func(*shelf){
			func(s *shelf) { s.pass(30 * h) }, func(s *shelf) { s.set(0, true) }, nil},
			[]look{{30 * h, 3}, {54 * h, 3}, {54*h + 2*m, 1}}},
		{"starts in 1970", func(s *shelf) { s.set(s.to1970(), false) }, []func(*shelf){
			func(s *shelf) { s.pass(h) }, func(s *shelf) { s.set(0, true) }, nil},
			[]look{{h, 3}, {25 * h, 3}, {25*h + 2*m, 1}}},
		{"ten years ahead for nine minutes", nil, []func(*shelf){
			func(s *shelf) { s.pass(h); s.set(10*y, true) }, func(s *shelf) { s.set(0, true) }, nil},
			[]look{{h + 9*m, 3}, {24 * h, 3}, {25*h + 11*m, 1}}},
		{"ten years ahead for good", nil, []func(*shelf){func(s *shelf) { s.pass(h); s.set(10*y, true) }, nil},
			[]look{{25 * h, 3}, {25*h + 2*m, 1}}},
		{"ten years ahead and not synchronised", nil, []func(*shelf){func(s *shelf) { s.pass(h); s.set(10*y, false) }, nil},
			[]look{{25 * h, 3}, {500 * h, 3}}},
		{"two hours back", nil, []func(*shelf){func(s *shelf) { s.pass(h); s.set(-2*h, true) }, nil},
			[]look{{24 * h, 3}, {26*h + 2*m, 1}}},
		{"two hours back and forth again", func(s *shelf) { s.pass(h); s.set(-2*h, true); s.pass(2 * h) }, []func(*shelf){
			func(s *shelf) { s.set(0, true) }, nil}, []look{{25 * h, 3}, {26*h + 2*m, 1}}},
		{"synchronised again when it is old", nil, []func(*shelf){
			func(s *shelf) { s.pass(20 * h); s.set(0, false); s.pass(30 * h) }, func(s *shelf) { s.set(0, true) }, nil},
			[]look{{30 * h, 3}, {30*h + 10*m - 1, 3}, {30*h + 12*m, 1}}},
		{"received under a wrong clock after it was right once", func(s *shelf) { s.pass(40 * h); s.set(s.to1970(), false); s.pass(41 * h) }, []func(*shelf){
			func(s *shelf) { s.pass(42 * h); s.set(0, true) }, nil, nil},
			[]look{{53 * h, 3}, {66 * h, 3}, {66*h + 2*m, 1}}},
		{"restarted when it is old", nil, []func(*shelf){
			func(s *shelf) { s.truth = 30 * h; s.restart(true) }, nil, nil},
			[]look{{30*h + 10*m - time.Second, 3}, {30*h + 10*m, 1}, {31 * h, 1}}},
		{"clock lost at reboot", nil, []func(*shelf){
			func(s *shelf) { s.pass(10 * h); s.boot = s.truth; s.set(s.to1970(), false); s.restart(false) },
			func(s *shelf) { s.set(0, true) }, nil},
			[]look{{12 * h, 3}, {24 * h, 3}, {24*h + 2*m, 1}}},
		{"clock ahead at reboot", nil, []func(*shelf){
			func(s *shelf) { s.pass(10 * h); s.boot = s.truth; s.set(10*y, false); s.restart(false) },
			func(s *shelf) { s.set(0, true) }, nil},
			[]look{{12 * h, 3}, {24 * h, 3}, {24*h + 2*m, 1}}},
		{"asleep", nil, []func(*shelf){func(s *shelf) { s.pass(h); s.truth = 30 * h }, nil}, []look{{30*h + time.Second, 1}, {31 * h, 1}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newShelf(t, Options{MaxAge: 24 * h})
			if tt.first != nil {
				s.b.Maintain(s.wall())
				tt.first(s)
			}
			for range 3 {
				s.add()
			}
			s.b.Maintain(s.wall())
			for i, l := range tt.looks {
				if i < len(tt.steps) && tt.steps[i] != nil {
					tt.steps[i](s)
				}
				s.pass(l.at)
				if st := s.b.Stats(); st.Segments != l.left {
					t.Fatalf("after %v there are %d segments, want %d", l.at, st.Segments, l.left)
				}
			}
		})
	}
}

// TestMaxAgeNeedsClock: without one nothing could be trusted.
func TestMaxAgeNeedsClock(t *testing.T) {
	if _, err := Open(t.TempDir(), Options{Agent: "gw-1", MaxAge: time.Hour}); !errors.Is(err, errNoClock) {
		t.Errorf("%v", err)
	}
}

// TestMaxAgeDiskFails: nothing goes whose gap can't be noted, and nothing is counted twice.
func TestMaxAgeDiskFails(t *testing.T) {
	s := newShelf(t, Options{MaxAge: time.Hour})
	for range 4 {
		s.add()
	}
	s.pass(30 * time.Minute)
	s.d.fail = func(op string, _ int, name string) error {
		if op == "write" || op == "sync" {
			return syscall.EIO
		}
		return nil
	}
	s.pass(5 * time.Hour)
	if n := len(s.d.segments()); n != 4 {
		t.Errorf("%d segments are left on a disk that takes no cursor", n)
	}
	s.d.fail = nil
	s.pass(6 * time.Hour)
	if st := s.b.Stats(); st.Segments != 1 || st.Lost[ReasonExpired] != 30 || st.PendingRecords != 10 {
		t.Errorf("%+v", st)
	}
}

// agedWorld is a world on a host with a clock that may be wrong.
type agedWorld struct {
	*world
	host
	born map[*sent]time.Duration // when it was received in truth; negative: the clock lied then

	lies    bool // the clock is off, and the kernel says that it is not
	expired int
}

func (a *agedWorld) wallIs() { a.now = a.wall() }

// pass lets time pass in truth, and Maintain run.
func (a *agedWorld) pass(d time.Duration) {
	a.truth += d
	a.wallIs()
	for range 8 {
		a.b.Maintain(a.now)
		if a.disk.dead {
			return
		}
		a.judge()
	}
	a.did("truth %v, wall %v, synchronised %v", a.truth, a.now.Format(time.DateTime), a.synced)
}

// judge takes the gaps, and checks that what expired is old.
func (a *agedWorld) judge() {
	gaps := a.b.Gaps()
	a.many = a.many || len(gaps) >= maxGaps // merged ones have the reason of the first
	for _, g := range gaps {
		if g.Reason != ReasonExpired || a.many {
			continue
		}
		for s, born := range a.born {
			if !s.in(g) || s.told || !s.stored || s.epoch != g.Epoch {
				continue
			}
			a.expired++
			if age := a.truth - born; born >= 0 && age < a.o.MaxAge {
				a.fail("%s expired when it was %v old", s.id, age)
			}
		}
	}
	a.collect()
}

// turn does one thing to the clock.
func (a *agedWorld) turn() {
	const y = 365 * 24 * time.Hour
	off := []time.Duration{a.to1970(), 10 * y, -2 * time.Hour, 2 * time.Hour, -30 * time.Minute}[a.rng.IntN(5)]
	switch {
	case a.synced && !a.lies:
		a.lies = a.rng.IntN(3) == 0
		a.set(off, a.lies)
	default:
		a.lies = false
		a.set(0, true)
	}
	a.wallIs()
	a.did("clock %v off, synchronised %v", a.off, a.synced)
	a.pass(0)
}

func (a *agedWorld) life(n int) {
	a.boot = a.truth
	if a.rng.IntN(2) == 0 { // the clock was lost
		a.set([]time.Duration{a.to1970(), -2 * time.Hour, 87600 * time.Hour}[a.rng.IntN(3)], false)
	} else {
		a.set(0, true)
	}
	a.lies = false
	a.wallIs()
	closed := false
	if a.open() {
		a.w.stamp = func(x *batch.Batch) {
			x.FirstTime, x.LastTime = a.wall().UnixNano(), a.wall().UnixNano()
			if !a.synced {
				x.Flags |= batch.Unsynced
			}
		}
		a.pass(0)
		for range n {
			if a.disk.dead || a.w == nil {
				break
			}
			known := len(a.all)
			switch a.rng.IntN(4) {
			case 0:
				a.pass(time.Duration(a.rng.IntN(40)) * time.Minute)
			case 1:
				if a.rng.IntN(2) == 0 {
					a.turn()
				}
			case 2:
				if a.rng.IntN(3) == 0 {
					a.deliver(false)
				}
			default:
				a.append()
			}
			a.truth += a.now.Sub(a.wall()) // an append may wait
			for _, s := range a.all[known:] {
				a.born[s] = a.truth
				if a.lies {
					a.born[s] = -1
				}
			}
		}
		if a.lies && !a.disk.dead { // a new life could not know
			a.lies = false
			a.set(0, true)
			a.wallIs()
			a.pass(0)
		}
		if !a.disk.dead && a.rng.IntN(3) == 0 {
			a.b.Close()
			closed = true // if it failed, the cursor may say so or not
		}
	}
	for _, s := range a.all {
		s.sent = s.sent || s.now && !closed
		s.now = false
	}
	if closed && !a.disk.dead || a.rng.IntN(3) == 0 {
		a.disk.kill()
		a.disk.dead, a.disk.cutAt = false, 0
	} else {
		a.disk.reboot()
		for _, s := range a.all {
			s.stored = s.stored && (s.promised || s.delivered)
		}
	}
}

// TestClocks runs directories through lives on hosts whose clocks jump, are lost and lie,
// with power cuts: all invariants hold, and nothing expires that is not old.
func TestClocks(t *testing.T) {
	seed := seedOf(t)
	expired, delivered, rounds := 0, 0, budget(t, 300)
	for n := seed; n < seed+uint64(rounds); n++ {
		o := Options{SegmentBytes: 2000, MaxBytes: 1 << 30, MinFree: -1, KeepAcked: time.Minute, MaxAge: 2 * time.Hour}
		if n%3 == 0 {
			o.MaxBytes, o.Full = 24<<10, DropOldest
		}
		a := &agedWorld{world: newWorld(n, o), host: host{synced: true}, born: map[*sent]time.Duration{}}
		a.o.Clock = a.clock
		a.wallIs()
		a.try(t, fmt.Sprintf("SPILLWAY_CRASH_SEED=%d", n), func() {
			for range 5 {
				if a.rng.IntN(2) == 0 {
					a.disk.cutAt = a.disk.calls + 1 + a.rng.IntN(400)
				}
				a.life(20 + a.rng.IntN(60))
			}
			a.set(0, true)
			a.wallIs()
			a.boot = a.truth
			a.finish()
		})
		expired += a.expired
		for _, s := range a.all {
			if s.delivered {
				delivered++
			}
		}
	}
	t.Logf("%d hosts from seed %d: %d batches expired, %d were delivered", rounds, seed, expired, delivered)
	if expired < rounds/2 || delivered < rounds/2 {
		t.Error("that shows nothing")
	}
}
