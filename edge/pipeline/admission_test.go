package pipeline

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/framing/ecs"
	"spillway/outputs"
)

// noise is text that no codec compresses by much.
func noise(n int) string {
	rng, b := rand.New(rand.NewPCG(1, 2)), make([]byte, n)
	for i := range b {
		b[i] = byte('0' + rng.IntN(64))
	}
	return string(b)
}

// patiently makes the chain ask an output that fails only now and then: simulated
// time is free, attempts are not.
func patiently(l *LaneOptions, out outputs.Output) {
	l.Chain = outputs.NewChain(outputs.ChainOptions{RetryMin: 10 * time.Second, RetryMax: 10 * time.Second}, out)
}

// another returns a further input of the lane.
func (b *bench) another(name string, full OnFull) *Input {
	return NewInput(InputOptions{Name: name, Lane: b.lane, OnFull: full, Records: ecs.Options{Dataset: "d", Agent: "gw1"}})
}

func isShut(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// check holds what every input and every lane that is at rest must say.
func (b *bench) check(ins ...*Input) {
	b.t.Helper()
	for _, in := range ins {
		d := in.Dropped()
		if got := in.Admitted.Load() + int64(d["buffer_full"]+d["stopped"]); got != in.Messages.Load() {
			b.t.Errorf("input %s: %d messages, but %d admitted and dropped: %v", in.o.Name, in.Messages.Load(), in.Admitted.Load(), d)
		}
	}
	if err := b.lane.Counts().law(); err != nil {
		b.t.Error(err)
	}
}

func (c Counts) law() error { return c.lawAfter(false) }

// lawAfter is law; Before is an upper bound if an earlier life had records in memory only.
func (c Counts) lawAfter(memory bool) error {
	sum := c.InFlight + c.Pending + c.Delivered + c.Rejected
	for _, n := range c.Lost {
		sum += n
	}
	if sum != c.Before+c.Admitted && !(memory && sum < c.Before+c.Admitted && sum >= c.Admitted) {
		return fmt.Errorf("%d records are accounted for, of %d: %+v", sum, c.Before+c.Admitted, c)
	}
	return nil
}

// An input that waits for room stops no other of its lane: those that drop drop
// after a second at most, those that refuse use the reserve at once, wait a second
// when that is used up, and drop then.
func TestABlockedInputStopsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		m.setFail(errDown)
		b := start(t, t.TempDir(), m, Block, func(o *buffer.Options, l *LaneOptions) {
			o.MaxBytes, l.Codec, l.Reserve = 2<<20, batch.None, 512<<10
			patiently(l, m)
		})
		drops, refuses := b.another("udp", Drop), b.another("vault", Refuse)
		gate := refuses.Gate()
		shut := gate.Shut()
		big := noise(32 << 10)
		sent := 0
		send := func(in *Input) time.Duration {
			s, began := in.Open(), time.Now()
			s.Message(msg(fmt.Sprint(sent, " ", big)), from, began)
			sent++
			if err := s.Flush(t.Context()); err != nil {
				t.Error(err)
			}
			s.Close()
			return time.Since(began)
		}
		blocked := make(chan struct{})
		go func() {
			defer close(blocked)
			for range 100 {
				send(b.in)
			}
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		n := b.in.Admitted.Load()
		if n == 0 || n == 100 || !b.lane.Full() || !isShut(shut) || !b.lane.Shut() {
			t.Fatalf("%d records admitted, full %v, shut %v", n, b.lane.Full(), isShut(shut))
		}
		if s := b.buf.Stats(); s.LiveBytes > 2<<20-512<<10 || s.LiveBytes < 2<<20-512<<10-64<<10 {
			t.Errorf("%d bytes are stored, with a reserve that leaves %d", s.LiveBytes, 2<<20-512<<10)
		}
		for range 5 {
			if took := send(drops); took > time.Second {
				t.Errorf("a record was dropped after %v", took)
			}
		}
		if d := drops.Dropped()["buffer_full"]; d != 5 {
			t.Errorf("%d records dropped", d)
		}
		kept := 0
		for ; ; kept++ {
			if took := send(refuses); took > 0 {
				if took != fullAfter || refuses.Dropped()["buffer_full"] != 1 {
					t.Errorf("the reserve is full: %v, %v", took, refuses.Dropped())
				}
				break
			}
		}
		if kept < 12 || kept > 16 {
			t.Errorf("%d records of 32 KiB went into a reserve of 512", kept)
		}
		if took := send(refuses); took != 0 || refuses.Dropped()["buffer_full"] != 2 {
			t.Errorf("where a second was not enough another one is none: %v", took)
		}
		opened := make(chan error)
		go func() { opened <- gate.Wait(t.Context()) }()
		m.setFail(nil)
		<-blocked
		if err := <-opened; err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Second)
		// It may have been shut once more while the blocked input made good for lost time.
		if err := gate.Wait(t.Context()); err != nil || isShut(gate.Shut()) || b.lane.Shut() {
			t.Errorf("open again: %v", err)
		}
		if b.lane.Full() {
			t.Error("full, with an empty buffer")
		}
		b.check(b.in, drops, refuses)
		b.stop()
		b.check(b.in, drops, refuses)
		got, told := 0, uint64(0)
		for _, r := range m.records(t, b.buf.Begin().Epoch) {
			if g := r.Spillway.Gap; g != nil {
				told += g.Count
			} else {
				got++
			}
		}
		if told != 7 || got != sent-7 {
			t.Errorf("%d of %d records arrived, %d are told as dropped", got, sent, told)
		}
	})
}

// trouble is a disk of which much can be said: see dirFS and hungFS, and it has
// free bytes of space and does not sync while badSync is set.
type trouble struct {
	*hungFS
	free    atomic.Int64
	badSync atomic.Bool
	looked  atomic.Pointer[func()] // called by Free
}

type troubleFile struct {
	buffer.File
	fs *trouble
}

func newTrouble(t *testing.T) *trouble {
	d := &trouble{hungFS: &hungFS{dirFS: newDirFS(t)}}
	d.free.Store(1 << 30)
	return d
}

func (d *trouble) Free() (free, total int64, err error) {
	if f := d.looked.Load(); f != nil {
		(*f)()
	}
	return d.free.Load(), 1 << 40, nil
}

func (d *trouble) Create(name string) (buffer.File, error) {
	f, err := d.hungFS.Create(name)
	return troubleFile{f, d}, err
}

func (f troubleFile) Sync() error {
	if f.fs.badSync.Load() {
		return errDisk
	}
	return f.File.Sync()
}

// The gate shuts for each kind of trouble, and opens when it is over.
func TestGate(t *testing.T) {
	const maxBytes, reserve, minFree = 8 << 20, 1 << 20, 4 << 20
	type world struct {
		*bench
		m    *memory
		disk *trouble
		in   *Input
	}
	send := func(w *world, n int) {
		s := w.in.Open()
		big := noise(64 << 10)
		for range n {
			s.Message(msg(big), from, time.Now())
			s.Flush(w.t.Context())
		}
		s.Close()
	}
	for _, c := range []struct {
		name       string
		full       buffer.Policy
		sync       buffer.SyncPolicy
		begin, end func(w *world)
		shut       bool
	}{
		{name: "full beside the reserve", shut: true,
			begin: func(w *world) { w.m.setFail(errDown); send(w, 130) },
			end:   func(w *world) { w.m.setFail(nil) }},
		{name: "almost full",
			begin: func(w *world) { w.m.setFail(errDown); send(w, 100) },
			end:   func(w *world) { w.m.setFail(nil) }},
		{name: "full, and the oldest make room", full: buffer.DropOldest,
			begin: func(w *world) { w.m.setFail(errDown); send(w, 300) },
			end:   func(w *world) { w.m.setFail(nil) }},
		{name: "the disk is full of others' files, and nobody sends", shut: true,
			begin: func(w *world) { w.disk.free.Store(minFree + reserve) },
			end:   func(w *world) { w.disk.free.Store(1 << 30) }},
		{name: "the disk has room for two blocks and the reserve",
			begin: func(w *world) { w.disk.free.Store(minFree + reserve + 2*blockSize) }},
		{name: "writes fail", shut: true,
			begin: func(w *world) { w.disk.bad.Store(true); send(w, 1) },
			end:   func(w *world) { w.disk.bad.Store(false) }},
		{name: "interval syncs fail", sync: buffer.SyncInterval, shut: true,
			begin: func(w *world) { w.disk.badSync.Store(true); send(w, 1) },
			end:   func(w *world) { w.disk.badSync.Store(false) }},
		{name: "writes hang", shut: true,
			begin: func(w *world) {
				c := make(chan struct{})
				w.disk.hang.Store(&c)
				send(w, 200)
			},
			end: func(w *world) { c := w.disk.hang.Swap(nil); close(*c) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{m: &memory{}, disk: newTrouble(t)}
				w.bench = start(t, "", w.m, Block, func(o *buffer.Options, l *LaneOptions) {
					o.FS, o.MaxBytes, o.MinFree, o.Full, o.Sync, l.BufferKeeps = w.disk, maxBytes, minFree, c.full, c.sync, c.sync == buffer.SyncInterval
					l.Codec, l.Reserve, l.Batch.Raw = batch.None, reserve, 1<<20
					patiently(l, w.m)
				})
				w.in = w.another("vault", Refuse)
				send(w, 1)
				time.Sleep(time.Minute)
				gate := w.in.Gate()
				if w.lane.Shut() || isShut(gate.Shut()) {
					t.Fatal("shut at the start")
				}
				c.begin(w)
				time.Sleep(time.Minute)
				if got := w.lane.Shut(); got != c.shut || isShut(gate.Shut()) != c.shut {
					t.Fatalf("shut %v, want %v; %+v", got, c.shut, w.lane.Counts())
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := gate.Wait(ctx); (err != nil) != c.shut {
					t.Errorf("waited for room: %v", err)
				}
				if c.end != nil {
					c.end(w)
				}
				time.Sleep(time.Minute)
				if err := gate.Wait(t.Context()); err != nil || w.lane.Shut() || isShut(gate.Shut()) {
					t.Errorf("the trouble is over: %v, shut %v", err, w.lane.Shut())
				}
				w.stop()
				w.check(w.in)
			})
		})
	}
}

// What becomes durable while somebody looks for room is not counted twice.
func TestGateWhileAppendEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, disk := &memory{}, newTrouble(t)
		m.setFail(errDown)
		b := start(t, "", m, Refuse, func(o *buffer.Options, l *LaneOptions) {
			o.FS, o.MaxBytes, o.MinFree = disk, 8<<20, 1<<20
			l.Codec, l.Reserve, l.Batch.Raw, l.Batch.Age = batch.None, 1<<20, 1<<20, time.Second
			patiently(l, m)
		})
		s := b.in.Open()
		send := func(n int) {
			for range n {
				s.Message(msg(noise(64<<10)), from, time.Now())
				s.Flush(t.Context())
			}
		}
		gate := b.in.Gate()
		send(80)
		time.Sleep(time.Minute)
		hang := make(chan struct{})
		disk.hang.Store(&hang)
		send(15)
		time.Sleep(10 * time.Second)
		if held := b.lane.held.Load(); held < 15*64<<10 || isShut(gate.Shut()) {
			t.Fatalf("%d bytes wait for the disk, shut %v", held, isShut(gate.Shut()))
		}
		look := func() {
			disk.looked.Store(nil)
			disk.hang.Store(nil)
			close(hang)
			for b.lane.held.Load() > 0 {
				time.Sleep(time.Millisecond)
			}
		}
		disk.looked.Store(&look)
		for disk.looked.Load() != nil { // it is asked once a second, by us or by the lane itself
			b.lane.room(b.lane.ordinary, blockSize)
			time.Sleep(lookAgain / 3)
		}
		if isShut(gate.Shut()) {
			t.Errorf("shut with %d of %d bytes taken", b.buf.Stats().LiveBytes, 8<<20)
		}
		m.setFail(nil)
		s.Close()
		b.stop()
		b.check(b.in)
	})
}

// A gate does not open for the room of a single block, nor within a second.
func TestGateOpensForMoreThanOneBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newTrouble(t)
		b := start(t, "", &memory{}, Refuse, func(o *buffer.Options, l *LaneOptions) { o.FS, o.MinFree, l.Reserve = disk, 1<<20, 1<<20 })
		time.Sleep(time.Minute)
		disk.free.Store(2<<20 + 1)
		time.Sleep(3 * time.Second)
		gate := b.in.Gate()
		if !isShut(gate.Shut()) {
			t.Fatal("open without room for a block")
		}
		wait := func(d time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			return gate.Wait(ctx)
		}
		disk.free.Store(2<<20 + 3*blockSize/2)
		if wait(time.Minute) == nil {
			t.Error("open with room for a block and a half")
		}
		disk.free.Store(2<<20 + 2*blockSize)
		if err := wait(time.Minute); err != nil {
			t.Error(err)
		}
		disk.free.Store(2 << 20)
		<-gate.Shut()
		disk.free.Store(1 << 30)
		began := time.Now()
		if err := wait(time.Minute); err != nil || time.Since(began) < shutFor {
			t.Errorf("open after %v: %v", time.Since(began), err)
		}
		b.stop()
	})
}

// Only inputs that refuse have a gate.
func TestNoGate(t *testing.T) {
	l, _ := still(t)
	for _, p := range []OnFull{Block, Drop} {
		if g := NewInput(InputOptions{Lane: l, OnFull: p}).Gate(); g != nil {
			t.Errorf("%d: a gate", p)
		}
	}
}

// Batches that come faster than the gap between two syncs lets them are stored as
// many as fit one sync at a time; those that come one by one share one.
func TestSmallBatchesDoNotWaitForTheGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const gap, records = time.Hour, 1000
		m := &memory{}
		b := start(t, t.TempDir(), m, Block, func(o *buffer.Options, l *LaneOptions) { o.SyncGap, l.Batch.Records = gap, 1 })
		s := b.in.Open()
		began := time.Now()
		for i := range records {
			s.Message(msg(fmt.Sprint("line ", i)), from, time.Now())
			s.Flush(t.Context())
		}
		if took := time.Since(began); took > 2*gap {
			t.Errorf("%d batches were taken in %v with a gap of %v between syncs", records, took, gap)
		}
		time.Sleep(10 * gap)
		n := b.buf.Stats()
		if n.AppendedBatches != records || n.Syncs > records/groupMax*2 {
			t.Errorf("%d batches with %d syncs", n.AppendedBatches, n.Syncs)
		}
		for range 5 {
			s.Message(msg("later"), from, time.Now())
			s.Flush(t.Context())
			time.Sleep(time.Minute)
		}
		time.Sleep(2 * gap)
		if later := b.buf.Stats(); later.AppendedBatches != records+5 || later.Syncs-n.Syncs > 3 {
			t.Errorf("%d batches that came one by one took %d syncs", later.AppendedBatches-records, later.Syncs-n.Syncs)
		}
		s.Close()
		b.stop()
		if rs := m.records(t, b.buf.Begin().Epoch); len(rs) != records+5 {
			t.Errorf("%d records", len(rs))
		}
	})
}

// What the kernel dropped is counted apart and told.
func TestKernelDrops(t *testing.T) {
	m := &memory{}
	b := start(t, t.TempDir(), m, Drop, nil)
	s := b.in.Open().(*sink)
	s.Dropped(7, time.Now())
	s.Message(msg("one"), from, time.Now())
	s.Flush(t.Context())
	s.Close()
	b.stop()
	b.check(b.in)
	told := uint64(0)
	for _, r := range m.records(t, b.buf.Begin().Epoch) {
		if g := r.Spillway.Gap; g != nil && g.Reason == "kernel" && g.Input == "tcp" {
			told += g.Count
		}
	}
	if d := b.in.Dropped(); told != 7 || d["kernel"] != 7 || b.in.Messages.Load() != 1 {
		t.Errorf("told %d, counted %v of %d messages", told, d, b.in.Messages.Load())
	}
}

// A record for which there is no room keeps no smaller one out that fits, whatever
// the policy of its input.
func TestSmallerOnesPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		m.setFail(errDown)
		b := start(t, t.TempDir(), m, Block, func(o *buffer.Options, l *LaneOptions) {
			o.MaxBytes, l.Codec = 4<<20, batch.None
			patiently(l, m)
		})
		drops, blocks := b.another("udp", Drop), b.another("tcp2", Block)
		send := func(in *Input, text string) {
			s := in.Open()
			s.Message(msg(text), from, time.Now())
			if err := s.Flush(t.Context()); err != nil {
				t.Error(err)
			}
			s.Close()
		}
		send(b.in, noise(2<<20))
		time.Sleep(10 * time.Second)
		large := make(chan struct{})
		go func() {
			defer close(large)
			send(b.in, noise(3<<20))
		}()
		time.Sleep(time.Minute)
		for range 5 {
			began := time.Now()
			send(drops, "small")
			send(blocks, "small")
			if took := time.Since(began); took > time.Second {
				t.Errorf("two small records took %v", took)
			}
		}
		if d := drops.Dropped()["buffer_full"]; d != 0 {
			t.Errorf("%d records dropped that would have fitted", d)
		}
		select {
		case <-large:
			t.Error("there was room for the large one")
		default:
		}
		m.setFail(nil)
		<-large
		time.Sleep(time.Minute)
		b.stop()
	})
}

// A lane that holds nothing waits for no disk, whatever was noted before.
func TestNothingHeldIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		b := start(t, t.TempDir(), m, Refuse, func(o *buffer.Options, l *LaneOptions) { o.MaxBytes, l.Reserve = 64<<20, 1<<20 })
		time.Sleep(5 * time.Second)
		b.lane.stall() // by one who saw what was held a moment before it was durable
		time.Sleep(time.Minute)
		if b.lane.Shut() {
			t.Error("the gate shut")
		}
		b.stop()
	})
}
