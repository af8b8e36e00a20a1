package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/edge/listen"
	"spillway/framing/ecs"
	"spillway/outputs"
)

// slowFS is a directory whose segments take a time to be synced, or wait for a gate.
type slowFS struct {
	*hungFS
	sync  time.Duration
	gate  chan struct{} // yields a value for each sync; nil: there is none
	syncs atomic.Int64  // begun
}

type slowFile struct {
	buffer.File
	name string
	fs   *slowFS
}

func newSlowFS(t *testing.T, sync time.Duration) *slowFS {
	return &slowFS{hungFS: &hungFS{dirFS: newDirFS(t)}, sync: sync}
}

func (d *slowFS) Create(name string) (buffer.File, error) {
	f, err := d.hungFS.Create(name)
	return slowFile{f, name, d}, err
}

func (f slowFile) Sync() error {
	if strings.HasSuffix(f.name, ".seg") {
		f.fs.syncs.Add(1)
		time.Sleep(f.fs.sync)
		if f.fs.gate != nil {
			<-f.fs.gate
		}
	}
	return f.File.Sync()
}

// patient makes a lane that seals and syncs nothing by itself for an hour.
func patient(disk buffer.FS) func(*buffer.Options, *LaneOptions) {
	return func(o *buffer.Options, l *LaneOptions) {
		o.FS, o.SyncGap, l.Codec = disk, time.Hour, batch.None
		l.Batch.Age, l.AgeHeld = time.Hour, time.Hour
	}
}

// store stores one message and waits.
func store(ctx context.Context, s listen.Storer, text string) error {
	s.Message(msg(text), from, time.Now())
	return stored(ctx, s)
}

func stored(ctx context.Context, s listen.Storer) error {
	durable, err := s.Store(ctx)
	if err != nil {
		return err
	}
	select {
	case err := <-durable:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// What one sender waits for is on the disk after one sync, however long the lane would
// gather, and also behind records for which nobody waits.
func TestStoreSealsAtOnce(t *testing.T) {
	disk := newSlowFS(t, 0)
	b := start(t, "", &memory{}, Block, patient(disk))
	s, other := b.in.OpenStorer(), b.in.Open()
	for i := range 10 {
		other.Message(msg("nobody waits"), from, time.Now())
		other.Flush(t.Context())
		before := disk.syncs.Load()
		if err := store(t.Context(), s, fmt.Sprint("entry ", i)); err != nil {
			t.Fatal(err)
		}
		if n, next := disk.syncs.Load()-before, b.buf.Stats().Next; n != 1 || next != uint64(2*i+3) {
			t.Errorf("entry %d: %d syncs, and the next number is %d", i, n, next)
		}
	}
	b.stop()
}

// An Append that gathers for nobody in particular is hurried by who waits behind it.
func TestStoreHurries(t *testing.T) {
	disk := newSlowFS(t, 0)
	b := start(t, "", &memory{}, Block, func(o *buffer.Options, l *LaneOptions) {
		patient(disk)(o, l)
		l.Batch.Records = 2
	})
	s, other := b.in.OpenStorer(), b.in.Open()
	gathered := 0
	for i := range 10 {
		if err := store(t.Context(), s, "a sync, after which the next would be in an hour"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			other.Message(msg("nobody waits"), from, time.Now())
		}
		other.Flush(t.Context())
		// It gathers, unless who waited before came a moment too late to hurry the Append of
		// then: that is for the next.
		waitFor(t, "the Append", func() bool { return b.lane.appending.Load() > 0 || b.buf.Stats().Next == uint64(3*i+4) })
		if b.buf.Stats().Next < uint64(3*i+4) {
			gathered++
		}
	}
	if gathered == 0 {
		t.Error("no Append gathered")
	}
	if err := store(t.Context(), s, "the last"); err != nil {
		t.Fatal(err)
	}
	b.stop()
}

// Records that can't be encoded are not durable, and whoever waits is told.
func TestStoreNotEncoded(t *testing.T) {
	b := start(t, t.TempDir(), &memory{}, Block, func(_ *buffer.Options, l *LaneOptions) { l.Codec = 9 })
	for range 3 {
		if err := store(t.Context(), b.in.OpenStorer(), "x"); err == nil {
			t.Error("durable")
		}
	}
	b.stop()
}

// A message that becomes no record is nothing to wait for.
func TestStoreFiltered(t *testing.T) {
	b := start(t, t.TempDir(), &memory{}, Block, nil)
	in := NewInput(InputOptions{Name: "filters", Lane: b.lane, Records: ecs.Options{Dataset: "d", Agent: "a"}, Filter: &Filter{SeverityAbove: -1, Drop: regexp.MustCompile("noise")}})
	s := in.OpenStorer()
	for _, text := range []string{"noise", "signal", "noise"} {
		if err := store(t.Context(), s, text); err != nil {
			t.Error(err)
		}
	}
	if m, a := in.Messages.Load(), in.Admitted.Load(); m != 3 || a != 1 {
		t.Errorf("%d messages, %d admitted", m, a)
	}
	b.stop()
}

// However many wait at a time, they share the batch that is sealed when the Append under
// way returns.
func TestStoreShares(t *testing.T) {
	disk := newSlowFS(t, 0)
	disk.gate = make(chan struct{})
	b := start(t, "", &memory{}, Block, patient(disk))
	var wg sync.WaitGroup
	one := func(i int) {
		wg.Go(func() {
			if err := store(t.Context(), b.in.OpenStorer(), fmt.Sprint("entry ", i)); err != nil {
				t.Error(err)
			}
		})
	}
	one(0)
	waitFor(t, "its Append", func() bool { return disk.syncs.Load() == 1 })
	for i := range 99 {
		one(1 + i)
	}
	waitFor(t, "the others", func() bool { return b.lane.Admitted() == 100 })
	close(disk.gate)
	wg.Wait()
	if s := b.buf.Stats(); disk.syncs.Load() != 2 || s.AppendedBatches != 2 || s.AppendedRecords != 100 {
		t.Errorf("%d syncs, %d batches of %d records", disk.syncs.Load(), s.AppendedBatches, s.AppendedRecords)
	}
	b.stop()
}

// A block whose lines go to several batches is durable when the last one is.
func TestStoreOfSeveralBatches(t *testing.T) {
	for _, n := range []int{1, 9, 10, 11, 95, 100} {
		disk := newSlowFS(t, time.Millisecond)
		b := start(t, "", &memory{}, Block, func(o *buffer.Options, l *LaneOptions) {
			patient(disk)(o, l)
			l.Batch.Records = 10
		})
		s := b.in.OpenStorer()
		for i := range n {
			s.Message(msg(fmt.Sprint("line ", i)), from, time.Now())
		}
		if err := stored(t.Context(), s); err != nil {
			t.Error(err)
		}
		if next := b.buf.Stats().Next; next != uint64(n+1) {
			t.Errorf("%d lines: told when the next number was %d", n, next)
		}
		b.stop()
	}
}

// Nothing to store is durable.
func TestStoreOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, "", &memory{}, Block, patient(newSlowFS(t, 0)))
		if err := stored(t.Context(), b.in.OpenStorer()); err != nil {
			t.Error(err)
		}
		b.stop()
	})
}

// Without room the sender is told at once, and its records count nowhere.
func TestStoreFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		m.setFail(errDown)
		b := start(t, "", m, Block, func(o *buffer.Options, l *LaneOptions) {
			patient(newSlowFS(t, 0))(o, l)
			o.MaxBytes, o.SyncGap = 1<<20, time.Second // what is delivered makes room once that is synced
		})
		s, big := b.in.OpenStorer(), strings.Repeat("x", 32<<10)
		took, full := int64(0), error(nil)
		for full == nil {
			if full = store(t.Context(), s, big); full == nil {
				took++
			}
		}
		if !errors.Is(full, listen.ErrFull) || took < 10 {
			t.Errorf("after %d: %v", took, full)
		}
		// Also while others wait at the door.
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			s := b.in.Open()
			s.Message(msg(big), from, time.Now())
			if s.Flush(ctx) == nil {
				t.Error("there was room for it")
			}
		}()
		for range 100 {
			began := time.Now()
			if err := store(t.Context(), s, big); !errors.Is(err, listen.ErrFull) || time.Since(began) > 0 {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
		<-gone
		if m, a, d := b.in.Messages.Load(), b.in.Admitted.Load(), b.in.Dropped(); m != took+1 || a != took || d["buffer_full"] != 0 || d["stopped"] != 1 {
			t.Errorf("%d messages, %d admitted, dropped %v, want %d admitted and one stopped", m, a, d, took)
		}
		m.setFail(nil)
		waitFor(t, "room", func() bool { time.Sleep(time.Second); return store(t.Context(), s, big) == nil })
		if m, a := b.in.Messages.Load(), b.in.Admitted.Load(); m != a+1 {
			t.Errorf("%d messages, %d admitted and one stopped", m, a)
		}
		b.stop()
	})
}

// The reserve is not for those who can be told.
func TestStoreLeavesTheReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		m.setFail(errDown)
		b := start(t, "", m, Refuse, func(o *buffer.Options, l *LaneOptions) {
			patient(newSlowFS(t, 0))(o, l)
			o.MaxBytes, l.Reserve = 1<<20, 256<<10
		})
		s, big := b.in.OpenStorer(), strings.Repeat("x", 32<<10)
		for store(t.Context(), s, big) == nil {
		}
		if room := b.buf.Stats().Room; room < 256<<10 {
			t.Errorf("%d bytes are left", room)
		}
		m.setFail(nil)
		b.stop()
	})
}

// A disk that is behind is waited for, one that fails or hangs is not for long.
func TestStoreDisk(t *testing.T) {
	big := strings.Repeat("x", 1<<20)
	t.Run("behind", func(t *testing.T) {
		disk := newSlowFS(t, 0)
		disk.gate = make(chan struct{})
		b := start(t, "", &memory{}, Block, patient(disk))
		var wg sync.WaitGroup
		var sinks []listen.Storer
		for range 30 { // of which 8 fit what may be on its way
			s := b.in.OpenStorer()
			s.Message(msg(big), from, time.Now()) // which takes time, and a call to the disk may not last for long
			sinks = append(sinks, s)
		}
		for _, s := range sinks {
			wg.Go(func() {
				if err := stored(t.Context(), s); err != nil {
					t.Error(err)
				}
			})
		}
		waitFor(t, "what may be on its way", func() bool { return b.lane.held.Load() >= b.lane.most(b.lane.ordinary) })
		close(disk.gate)
		wg.Wait()
		b.stop()
	})
	t.Run("fails", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			disk := newSlowFS(t, 0)
			b := start(t, "", &memory{}, Block, patient(disk))
			s := b.in.OpenStorer()
			if err := store(t.Context(), s, "before"); err != nil {
				t.Fatal(err)
			}
			// For a moment: whoever waits does not notice.
			disk.bad.Store(true)
			go func() { time.Sleep(500 * time.Millisecond); disk.bad.Store(false) }()
			if err := store(t.Context(), s, "patient"); err != nil {
				t.Error(err)
			}
			disk.bad.Store(true)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			if err := store(ctx, s, "impatient"); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
			began := time.Now()
			if err := store(t.Context(), s, "too late"); !errors.Is(err, listen.ErrFull) || time.Since(began) > 0 {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
			disk.bad.Store(false)
			time.Sleep(time.Minute)
			if err := store(t.Context(), s, "after"); err != nil {
				t.Error(err)
			}
			if n := b.buf.Stats().Next; n != 5 { // impatient too
				t.Errorf("next number %d", n)
			}
			b.stop()
		})
	})
	t.Run("hangs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			disk, hang := newSlowFS(t, 0), make(chan struct{})
			b := start(t, "", &memory{}, Block, patient(disk))
			s := b.in.OpenStorer()
			if err := store(t.Context(), s, "zero"); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Hour)
			disk.hang.Store(&hang)
			ctx, cancel := context.WithTimeout(t.Context(), hungFor)
			if err := store(ctx, s, "one"); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
			began := time.Now()
			if err := store(t.Context(), s, "two"); !errors.Is(err, listen.ErrFull) || time.Since(began) > 0 {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
			disk.hang.Store(nil)
			close(hang)
			time.Sleep(time.Minute)
			if err := store(t.Context(), s, "three"); err != nil {
				t.Error(err)
			}
			b.stop()
		})
	})
	t.Run("stop", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			disk := newSlowFS(t, 0)
			b := start(t, "", &memory{}, Block, patient(disk))
			disk.bad.Store(true)
			told := make(chan error)
			go func() { told <- store(t.Context(), b.in.OpenStorer(), "one") }()
			synctest.Wait()
			b.cancel()
			if err := <-told; !errors.Is(err, errCut) {
				t.Error(err)
			}
			disk.bad.Store(false)
			b.stop()
		})
	})
}

// Every record whose sender was told that it is durable is there when the agent is
// killed at any moment after, whatever the disk did.
func TestStoredIsThere(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for round := range 6 {
		disk := newSlowFS(t, time.Duration(rnd.IntN(3))*time.Millisecond)
		b := start(t, "", &memory{}, Block, func(o *buffer.Options, l *LaneOptions) {
			o.FS, o.SegmentBytes, o.KeepAcked, o.SyncGap = disk, 256<<10, time.Hour, 5*time.Millisecond
			l.Batch.Records, l.Batch.Age, l.AgeHeld = 1+rnd.IntN(50), time.Hour, time.Hour
		})
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		told := map[string]bool{} // guarded by mu
		var wg sync.WaitGroup
		for k := range 8 {
			own := rand.New(rand.NewPCG(seed, uint64(round*8+k+1)))
			wg.Go(func() {
				s := b.in.OpenStorer()
				for i := 0; ctx.Err() == nil; i++ {
					wait, done := context.WithTimeout(ctx, time.Duration(1+own.IntN(1000))*time.Millisecond)
					var sent []string
					for n := range 1 + own.IntN(30) {
						sent = append(sent, fmt.Sprintf("%d-%d-%d", k, i, n))
						s.Message(msg(sent[n]), from, time.Now())
					}
					if k == 0 { // nobody waits for these
						s.Flush(ctx)
						time.Sleep(time.Millisecond)
					} else if stored(wait, s) == nil {
						mu.Lock()
						for _, m := range sent {
							told[m] = true
						}
						mu.Unlock()
					}
					done()
				}
			})
		}
		for range 3 {
			time.Sleep(time.Duration(rnd.IntN(40)) * time.Millisecond)
			disk.bad.Store(true)
			time.Sleep(time.Duration(rnd.IntN(10)) * time.Millisecond)
			disk.bad.Store(false)
		}
		waitFor(t, "records", func() bool { mu.Lock(); defer mu.Unlock(); return len(told) > 100 })
		// Killed here: what the directory holds is what the next start finds.
		mu.Lock()
		want := len(told)
		all := make([]string, 0, want)
		for m := range told {
			all = append(all, m)
		}
		mu.Unlock()
		there := contents(t, killed(t, disk.Name()))
		cancel()
		wg.Wait()
		b.stop()
		for _, r := range all {
			if there[r] == 0 {
				t.Fatalf("seed %d, round %d: %s of %d is not there", seed, round, r, want)
			}
		}
	}
}

// BenchmarkStore is senders that wait for each of their records, on a real disk with the
// default sync gap, alone and beside a flood for which nobody waits.
func BenchmarkStore(b *testing.B) {
	for _, c := range []struct {
		senders int
		flood   bool
	}{{1, false}, {10, false}, {100, false}, {1, true}} {
		b.Run(fmt.Sprintf("senders=%d/flood=%v", c.senders, c.flood), func(b *testing.B) {
			buf, err := buffer.Open(b.TempDir(), buffer.Options{Agent: "gw1", MaxBytes: 1 << 30, MinFree: -1, KeepAcked: -1})
			if err != nil {
				b.Fatal(err)
			}
			l := NewLane(LaneOptions{Name: "audit", Agent: "gw1", Buffer: buf, Codec: batch.Zstd, AgeHeld: 5 * time.Second,
				Chain: outputs.NewChain(outputs.ChainOptions{}, &nothing{}), Log: slog.New(slog.DiscardHandler)})
			in := NewInput(InputOptions{Name: "hook", Lane: l, Records: ecs.Options{Dataset: "d", Agent: "a"}})
			done := make(chan struct{})
			go func() { l.Run(context.Background()); close(done) }()
			text := strings.Repeat("an audit entry, ", 64)
			ctx, cancel := context.WithCancel(b.Context())
			var flood, senders sync.WaitGroup
			if c.flood {
				flood.Go(func() {
					s := in.Open()
					for i := 1; ctx.Err() == nil; i++ {
						if s.Message(msg(text), from, time.Now()); i%100 == 0 {
							s.Flush(ctx)
						}
					}
					s.Flush(context.Background())
				})
			}
			var next, longest atomic.Int64
			b.ResetTimer()
			for range c.senders {
				senders.Go(func() {
					s := in.OpenStorer()
					for next.Add(1) <= int64(b.N) {
						began := time.Now()
						if err := store(ctx, s, text); err != nil {
							b.Error(err)
						}
						if d := int64(time.Since(began)); d > longest.Load() {
							longest.Store(d)
						}
					}
				})
			}
			senders.Wait()
			b.StopTimer()
			b.ReportMetric(float64(buf.Stats().AppendedRecords)/float64(buf.Stats().Syncs), "records/sync")
			b.ReportMetric(float64(longest.Load())/1e6, "longest-ms")
			cancel()
			flood.Wait()
			l.Close()
			<-done
			if err := buf.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
