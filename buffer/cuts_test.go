package buffer

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// tally adds up what the worlds of a test have seen.
type tally struct {
	sync.Mutex
	start  time.Time
	worlds int
	sum    worldStats
}

func newTally() *tally { return &tally{start: time.Now()} }

func (a *tally) add(w *world) {
	a.Lock()
	defer a.Unlock()
	a.worlds++
	w.stats.calls = w.disk.calls
	a.sum.add(&w.stats)
}

// row logs the row that docs/reliability.md has.
func (a *tally) row(t *testing.T, what string, n int) {
	row(t, what, n, time.Since(a.start))
	t.Logf("%d worlds: %+v", a.worlds, a.sum)
}

// row logs a row of the table in docs/reliability.md.
func row(t *testing.T, what string, n int, took time.Duration) {
	t.Helper()
	t.Logf("| %s | %d | 0 | %d | %v |", what, n, seedOf(t), took.Round(time.Second/10))
}

// TestPowerCuts runs many directories through several lives each, with a power
// cut at a random call of most of them, also while opening.
func TestPowerCuts(t *testing.T) {
	sum := newTally()
	cuts := each(t, seedOf(t), rounds(t, 5000, 1_000_000), func(n uint64) (int, string) {
		o := anyPolicy(n)
		w := newWorld(n, o)
		failure := w.run(fmt.Sprintf("SPILLWAY_CRASH_SEED=%d (%s, %s)", n, o.Sync, o.Full), func() {
			for range 8 {
				w.cutSoon()
				w.life(1 + w.rng.IntN(30))
			}
			w.finish()
		})
		sum.add(w)
		return w.stats.cuts, failure
	})
	sum.row(t, "random power cuts, several in the lives of one directory, also while opening", cuts)
}

func anyPolicy(n uint64) Options {
	all := policies()
	return all[n%uint64(len(all))]
}

// cutSoon lets the power fail at some call of most lives.
func (w *world) cutSoon() {
	if w.rng.IntN(4) > 0 {
		w.disk.cutAt = w.disk.calls + 1 + w.rng.IntN(1+w.rng.IntN(250))
	}
}

// TestPowerCutsSpoil is TestPowerCuts on a disk without power-safe overwrite: a sector
// that was being written may lose what was durable in it. Only batches that lie in
// such a sector are lost, and they are told, but for those that end an epoch: of
// these, what follows says in its first record which was the last.
func TestPowerCutsSpoil(t *testing.T) {
	sum := newTally()
	cuts := each(t, seedOf(t), rounds(t, 1000, 100_000), func(n uint64) (int, string) {
		o := policies()[n%3] // SyncGroup: of others little is promised
		w := newWorld(n, o)
		w.disk.spoils = true
		failure := w.run(fmt.Sprintf("SPILLWAY_CRASH_SEED=%d (%s)", n, o.Full), func() {
			for range 8 {
				w.cutSoon()
				w.life(1 + w.rng.IntN(30))
			}
			w.finish()
		})
		sum.add(w)
		return w.stats.cuts, failure
	})
	sum.row(t, "the same without power-safe overwrite", cuts)
}

// outage is calls of the disk that fail.
type outage struct {
	at, n int // the first call, and how many
	err   error
}

// faulty are the errors that calls fail with.
var faulty = []error{syscall.EIO, syscall.ENOSPC, errShort, syscall.EDQUOT, syscall.EROFS}

// failing makes the calls in windows fail.
func (w *world) failing(windows ...outage) {
	w.disk.fail = func(op string, call int, name string) error {
		for _, x := range windows {
			changes := op == "write" || op == "create" || op == "remove" || op == "quarantine"
			if call < x.at || call >= x.at+x.n || x.err == errShort && op != "write" || x.err == syscall.EROFS && !changes {
				continue
			}
			w.did("fault in %s %s: %v", op, name, x.err)
			w.short = w.short || isFull(x.err) && name == cursorFile
			w.unsynced = w.unsynced || op == "sync"
			if op == "open" || op == "read" {
				w.blind = true
				if name == cursorFile {
					w.wear()
				} else if op == "open" {
					w.shut = append(w.shut, name)
				}
			}
			return x.err
		}
		return nil
	}
}

// trouble makes the disk bad for the next life: errors that come and go, blocks that
// can't be read, no room, a clock that jumps.
func (w *world) trouble() {
	d := w.disk
	d.spoils = w.rng.IntN(4) == 0
	var windows []outage
	for range w.rng.IntN(4) {
		x := outage{d.calls + 1 + w.rng.IntN(1+w.rng.IntN(250)), 1, faulty[w.rng.IntN(len(faulty))]}
		switch w.rng.IntN(4) {
		case 0:
			x.n = 4
		case 1:
			x.n = 1 + w.rng.IntN(60)
		case 2:
			if w.rng.IntN(4) == 0 {
				x.n = 1 << 30 // to the end of the life
			}
		}
		windows = append(windows, x)
	}
	if len(windows) > 0 {
		w.failing(windows...)
	}
	d.room = -1
	if w.rng.IntN(6) == 0 {
		d.room, w.short = int64(w.rng.IntN(20_000)), true
		d.full = []error{syscall.ENOSPC, syscall.EDQUOT}[w.rng.IntN(2)]
	}
	if w.rng.IntN(6) == 0 {
		w.jump()
	}
	if names := slices.Sorted(maps.Keys(d.names)); len(names) > 0 && w.rng.IntN(4) == 0 {
		w.spot(names[w.rng.IntN(len(names))])
	}
}

// jump sets the clock anywhere.
func (w *world) jump() {
	w.now = []time.Time{time.Unix(1, 0), w.now.Add(-2 * time.Hour), w.now.AddDate(10, 0, 0), time.Unix(1_800_000_000, 0)}[w.rng.IntN(4)]
	w.did("the clock says %v", w.now)
}

// spot makes a block of a file unreadable, a few times or for good. Twice is no loss,
// for reading is tried three times.
func (w *world) spot(name string) {
	n := w.disk.names[name]
	at := w.rng.IntN(len(n.data)/block + 1)
	times := []int{1, 2, 1 + w.rng.IntN(30), -1}[w.rng.IntN(4)]
	w.did("block %d of %s can't be read (%d)", at, name, times)
	if w.disk.bad == nil {
		w.disk.bad = map[badBlock]int{}
	}
	w.disk.bad[badBlock{n, at}] = times
	if times < 0 || times > 2 {
		w.blind = true
		w.hurt(name, n.data, at*block, (at+1)*block)
	}
}

// TestPowerCutsAndFaults is TestPowerCuts with everything else that disks do.
func TestPowerCutsAndFaults(t *testing.T) {
	sum := newTally()
	cuts := each(t, seedOf(t), rounds(t, 1000, 200_000), func(n uint64) (int, string) {
		o := anyPolicy(n)
		w := newWorld(n, o)
		failure := w.run(fmt.Sprintf("SPILLWAY_CRASH_SEED=%d (%s, %s)", n, o.Sync, o.Full), func() {
			for range 8 {
				if w.rng.IntN(4) == 0 {
					w.o.SegmentBytes, w.o.KeepAcked = 500+w.rng.Int64N(5000), time.Duration(w.rng.IntN(60)-1)*time.Second
					w.o.Full, w.o.MaxBytes = Policy(w.rng.IntN(2)), 8<<10+w.rng.Int64N(64<<10)
				}
				w.cutSoon()
				w.trouble()
				w.life(1 + w.rng.IntN(30))
			}
			w.finish()
		})
		sum.add(w)
		return w.stats.cuts, failure
	})
	sum.row(t, "power cuts and faults of every kind, several in one life, limits that change, clocks that jump", cuts)
}

// script is a life that comes to all places where the disk is changed. first, if it
// is set, is a life before it that ends in order or not.
type script struct {
	name  string
	o     Options
	first func(w *world)
	work  func(w *world)
	seen  func(w *world) bool // it has been where it should
}

// times calls f n times, as long as there is power.
func (w *world) times(n int, f func()) {
	for range n {
		if !w.disk.dead {
			f()
		}
	}
}

// both calls each of fs, as long as there is power.
func (w *world) both(fs ...func()) {
	for _, f := range fs {
		w.times(1, f)
	}
}

func scripts() []script {
	changed := func(op string) func(w *world) bool { return func(w *world) bool { return w.disk.done[op] > 0 } }
	took := func(w *world, h handling) func() { return func() { w.take(h) } }
	stop := func(w *world, closed bool) {
		if closed {
			if err := w.b.Close(); err != nil {
				w.fail("close: %v", err)
			}
		}
		w.disk.kill()
		for _, s := range w.all {
			s.sent = s.sent || s.now && !closed
			s.now = false
		}
	}
	return []script{
		{"rotation", Options{SegmentBytes: 1500, MaxBytes: 1 << 30, KeepAcked: -1}, nil, func(w *world) {
			w.times(4, w.append)
			w.times(3, took(w, handling{batches: 2}))
			w.times(1, func() { w.tick(6 * time.Second) })
			w.times(2, w.append)
			w.times(1, func() { w.tick(6 * time.Second) })
		}, changed("remove")},
		{"plans", Options{SegmentBytes: 3000, MaxBytes: 1 << 30, KeepAcked: -1}, nil, func(w *world) {
			w.times(3, w.append)
			w.both(took(w, handling{2, true, silent}), took(w, handling{2, true, takes}), took(w, handling{3, true, doubts}),
				took(w, handling{1, true, takes}), w.append, took(w, handling{2, true, rejects}))
		}, func(w *world) bool { return w.stats.plans > 1 }},
		{"doubts", Options{SegmentBytes: 2000, MaxBytes: 1 << 30, KeepAcked: time.Minute}, nil, func(w *world) {
			w.times(3, w.append)
			w.both(took(w, handling{2, false, doubts}), took(w, handling{2, true, doubts}), took(w, handling{2, false, takes}), took(w, handling{1, false, doubts}),
				w.append, func() { w.tick(2 * time.Minute) }, took(w, handling{3, false, takes}), w.read)
		}, func(w *world) bool { return w.stats.doubts > 2 }},
		{"rejected", Options{SegmentBytes: 2000, MaxBytes: 1 << 30, KeepAcked: -1, RejectedBytes: 2500}, nil, func(w *world) {
			w.times(3, w.append)
			w.times(3, took(w, handling{1, false, rejects}))
			w.both(w.append, took(w, handling{2, true, rejects}), func() { w.tick(6 * time.Second) })
		}, func(w *world) bool { return w.stats.rejects > 2 }},
		{"rejected, kept", Options{SegmentBytes: 2000, MaxBytes: 1 << 30, KeepAcked: -1}, nil, func(w *world) {
			w.times(2, w.append)
			w.times(2, took(w, handling{1, false, rejects}))
			w.both(w.append, took(w, handling{2, false, takes}))
		}, func(w *world) bool { return w.stats.rejects > 1 }},
		{"quarantine", Options{SegmentBytes: 1500, MaxBytes: 1 << 30, KeepAcked: -1}, func(w *world) {
			w.times(5, w.append)
			stop(w, true)
			name := w.disk.segments()[0]
			w.hurt(name, w.disk.names[name].data, 300, 301)
			w.disk.flip(name, 8*300)
		}, func(w *world) {
			w.times(3, took(w, handling{batches: 2}))
			w.both(w.append, func() { w.tick(time.Minute) }, took(w, handling{batches: 3}), func() { w.tick(time.Minute) })
		}, changed("quarantine")},
		{"drop oldest", Options{SegmentBytes: 1500, MaxBytes: 6 << 10, KeepAcked: time.Minute, Full: DropOldest}, nil, func(w *world) {
			w.times(6, w.append)
			w.both(took(w, handling{1, false, takes}), w.append, w.append, took(w, handling{2, false, takes}))
		}, changed("remove")},
		{"drop behind a plan", Options{SegmentBytes: 1500, MaxBytes: 6 << 10, KeepAcked: -1, Full: DropOldest}, nil, func(w *world) {
			w.times(2, w.append)
			w.times(1, took(w, handling{1, true, silent}))
			w.times(6, w.append)
			w.both(took(w, handling{2, false, takes}), w.append, took(w, handling{2, true, takes}))
		}, changed("remove")},
		{"many gaps", Options{SegmentBytes: 700, MaxBytes: 4 << 10, KeepAcked: -1, Full: DropOldest, RejectedBytes: 1}, nil, func(w *world) {
			for range 6 {
				w.both(w.append, w.append, took(w, handling{1, false, takes}), took(w, handling{1, false, rejects}))
			}
		}, func(w *world) bool { return w.stats.gaps > 20 }},
		{"kept and removed", Options{SegmentBytes: 1500, MaxBytes: 1 << 30, KeepAcked: 10 * time.Second}, nil, func(w *world) {
			w.times(3, w.append)
			for range 4 {
				w.both(took(w, handling{2, false, takes}), func() { w.tick(6 * time.Second) }, w.append)
			}
			w.times(1, w.read)
		}, changed("remove")},
		{"after a kill", Options{SegmentBytes: 1500, MaxBytes: 1 << 30, KeepAcked: time.Minute}, func(w *world) {
			w.times(4, w.append)
			w.times(2, took(w, handling{2, true, silent}))
			stop(w, false)
		}, func(w *world) {
			w.both(took(w, handling{3, false, takes}), w.append, took(w, handling{3, false, takes}), w.read, func() { w.tick(2 * time.Minute) })
		}, func(w *world) bool { return w.stats.newEpochs > 0 }},
		{"after a clean stop", Options{SegmentBytes: 1500, MaxBytes: 1 << 30, KeepAcked: time.Minute}, func(w *world) {
			w.times(3, w.append)
			w.take(handling{2, true, silent})
			stop(w, true)
		}, func(w *world) {
			w.both(w.append, took(w, handling{3, false, takes}), func() { w.tick(2 * time.Minute) }, took(w, handling{3, true, takes}))
			w.times(1, func() { w.b.Close(); w.ended = true }) // if it fails, the cursor may say that it did not
		}, func(w *world) bool { return w.stats.newEpochs == 0 }},
		{"interval", Options{SegmentBytes: 2000, MaxBytes: 1 << 30, KeepAcked: -1, Sync: SyncInterval, MaxUnsynced: 4000}, nil, func(w *world) {
			w.times(4, w.append)
			w.both(took(w, handling{2, false, takes}), func() { w.tick(2 * time.Second) }, took(w, handling{2, true, takes}), w.append, func() { w.tick(6 * time.Second) })
		}, changed("write")},
		{"never", Options{SegmentBytes: 2000, MaxBytes: 1 << 30, KeepAcked: -1, Sync: SyncNever}, nil, func(w *world) {
			w.times(4, w.append)
			w.both(took(w, handling{2, false, takes}), func() { w.tick(6 * time.Second) }, took(w, handling{2, true, takes}), w.append)
		}, changed("write")},
	}
}

// begin makes the world of s and comes to its last life.
func (s *script) begin(seed uint64) *world {
	w := newWorld(seed, s.o)
	if s.first != nil {
		if !w.open() {
			w.fail("I7: the first open failed")
		}
		s.first(w)
		w.disk.SyncDir()
	}
	return w
}

// calls is how many calls of the disk the last life of s makes, if nothing happens,
// and which is the first.
func (s *script) calls(t *testing.T, seed uint64) (first, n int) {
	t.Helper()
	if failure := guard(s.name, func(at **world) {
		w := s.begin(seed)
		*at = w
		first = w.disk.calls + 1
		if !w.open() {
			w.fail("I7: open failed")
		}
		s.work(w)
		n = w.disk.calls + 1 - first
		if !s.seen(w) {
			w.fail("it does not come to where it should: %+v, %v", w.stats, w.disk.done)
		}
	}); failure != "" {
		t.Fatal(failure)
	}
	return first, n
}

// place is a call of a script.
type place struct {
	*script
	at, last int // number of the call, and of the script's last one
}

// places are all calls of all scripts.
func places(t *testing.T, seed uint64) (out []place) {
	t.Helper()
	for _, s := range scripts() {
		first, n := s.calls(t, seed)
		for at := first; at < first+n; at++ {
			out = append(out, place{&s, at, first + n - 1})
		}
	}
	return out
}

// TestEveryCall cuts the power at every single call of scripts that come to all places
// where the disk is changed, with several outcomes, and then at every call of the life after,
// which recovers. With a large budget, of random scripts too.
func TestEveryCall(t *testing.T) {
	seed, sum := seedOf(t), newTally()
	all, want := places(t, seed), rounds(t, 2000, 400_000)
	outcomes, seconds := max(1, want/len(all)/2), 1
	if want > 150*len(all) {
		outcomes, seconds = 6, 1<<30 // all of them
	}
	states := each(t, 0, want, func(n uint64) (done int, failure string) {
		if n >= uint64(len(all)) {
			return everyCall(seed+n, sum)
		}
		p := all[n]
		for outcome := range outcomes {
			calls := 0 // of the life after
			for second := 0; second <= calls && failure == ""; second++ {
				name := fmt.Sprintf("SPILLWAY_CRASH_SEED=%d, %s, cut at call %d, outcome %d, and at call %d of the life after", seed, p.name, p.at, outcome, second)
				failure = guard(name, func(at **world) {
					w := p.begin(seed)
					*at = w
					w.disk.cutAt = p.at
					w.rng.Uint64N(uint64(n) + 1)
					w.lead(func() { p.work(w) })
					for range outcome {
						w.rng.Uint64() // another outcome of what comes
					}
					if before := w.disk.calls; second == 0 {
						w.life(3)
						calls = min(seconds, w.disk.calls-before)
					} else {
						if seconds == 1 {
							w.disk.cutAt = before + 1 + int(n*7%30)
						} else {
							w.disk.cutAt = before + second
						}
						w.life(3)
					}
					w.finish()
					sum.add(w)
				})
				done++
			}
		}
		return done, failure
	})
	sum.row(t, "cuts at every single call of scripts, and of the life after", states)
}

// everyCall is TestEveryCall of a random script.
func everyCall(seed uint64, sum *tally) (states int, failure string) {
	o := anyPolicy(seed)
	for at, done := 1, false; !done && failure == ""; at++ {
		for outcome := range 3 {
			w := newWorld(seed, o)
			failure = w.run(fmt.Sprintf("random script %d, cut at call %d, outcome %d", seed, at, outcome), func() {
				w.disk.cutAt = at
				w.life(6)
				done = w.disk.calls < at
				for range outcome {
					w.rng.Uint64() // another outcome of the next cut
				}
				w.life(4)
				w.finish()
				sum.add(w)
			})
			if states++; failure != "" {
				break
			}
		}
	}
	return states, failure
}

// TestEveryFault fails every single call of the same scripts with every kind of error,
// once, a few times and for the rest of the life, and cuts the power soon after; and, with a large
// budget, each two calls, and the calls of random scripts.
func TestEveryFault(t *testing.T) {
	seed, sum := seedOf(t), newTally()
	all, want := places(t, seed), rounds(t, 3000, 400_000)
	states := each(t, 0, want, func(n uint64) (done int, failure string) {
		if n >= uint64(len(all)) {
			return everyFault(seed+n, sum)
		}
		p := all[n]
		try := func(windows ...outage) {
			if failure != "" {
				return
			}
			failure = guard(fmt.Sprintf("SPILLWAY_CRASH_SEED=%d, %s, faults %v", seed, p.name, windows), func(at **world) {
				w := p.begin(seed)
				*at = w
				w.failing(windows...)
				w.lead(func() { p.work(w) })
				w.life(4)
				w.finish()
				sum.add(w)
			})
			done++
		}
		for i, err := range faulty {
			for j, length := range []int{1, 4, 1 << 30} {
				if want > 10*len(all) || (uint64(i)+n)%5 == uint64(j) { // else a part of them
					try(outage{p.at, length, err})
				}
			}
		}
		if want > 10*len(all) {
			for at := p.at + 1; at <= p.last; at++ {
				try(outage{p.at, 1, faulty[at%5]}, outage{at, 1, faulty[(at/5+p.at)%5]})
				try(outage{p.at, 4, syscall.EIO}, outage{at, 4, faulty[(at+p.at)%5]})
			}
		}
		return done, failure
	})
	sum.row(t, "an error of every kind at every single call, and at each two", states)
}

// everyFault is TestEveryFault of a random script.
func everyFault(seed uint64, sum *tally) (states int, failure string) {
	o := anyPolicy(seed)
	for at, done := 1, false; !done; at++ {
		for _, fault := range faulty {
			for length := 1; length <= 4; length += 3 { // one call, or a few in a row
				w := newWorld(seed, o)
				failure = w.run(fmt.Sprintf("random script %d, %v at call %d, %d in a row", seed, fault, at, length), func() {
					w.failing(outage{at, length, fault})
					w.life(10)
					done = w.disk.calls < at
					w.life(4)
					w.finish()
					sum.add(w)
				})
				if states++; failure != "" {
					return states, failure
				}
			}
		}
	}
	return states, ""
}
