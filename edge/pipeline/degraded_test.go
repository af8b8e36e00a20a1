package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/edge/listen"
	"spillway/framing/ecs"
	"spillway/outputs"
)

// A disk turns read-only under load, the ring fills, and the disk comes back: records go
// on to the output meanwhile, nobody is told that they are durable, inputs wait when
// the ring is full, and every record is accounted for.
func TestDegraded(t *testing.T) {
	for _, full := range []buffer.Policy{buffer.Hold, buffer.DropOldest} {
		t.Run(full.String(), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { degraded(t, full) }) })
	}
}

func degraded(t *testing.T, full buffer.Policy) {
	const ring = 1 << 20
	disk, m, text := &lazyFS{newDirFS(t)}, &memory{}, noise(1000)
	var log safe
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	buf, err := buffer.Open("", buffer.Options{Agent: "gw1", FS: disk, MaxBytes: 256 << 20, MinFree: -1, Full: full, Memory: ring})
	if err != nil {
		t.Fatal(err)
	}
	l := NewLane(LaneOptions{Name: "main", Agent: "gw1", Buffer: buf, Codec: batch.None, Batch: batch.BuilderOptions{Records: 20}, Log: logger,
		Chain: outputs.NewChain(outputs.ChainOptions{Log: logger}, m)})
	in := NewInput(InputOptions{Name: "in", Lane: l, Records: ecs.Options{Dataset: "d", Agent: "gw1"}})
	audit := NewInput(InputOptions{Name: "audit", Lane: l, OnFull: Refuse, Records: ecs.Options{Dataset: "d", Agent: "gw1"}})
	hook := NewInput(InputOptions{Name: "hook", Lane: l, Records: ecs.Options{Dataset: "d", Agent: "gw1"}})
	done := make(chan struct{})
	go func() { l.Run(context.Background()); close(done) }()

	ctx, enough := context.WithCancel(context.Background())
	sending := make(chan struct{})
	go func() {
		defer close(sending)
		s := in.Open()
		defer s.Close()
		for ctx.Err() == nil {
			s.Message(msg(text), from, time.Now())
			if s.Flush(ctx) != nil {
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	request := func() error {
		s := hook.OpenStorer()
		defer s.Close()
		s.Message(msg("entry"), from, time.Now())
		told, err := s.Store(context.Background())
		if err != nil {
			return err
		}
		return <-told
	}
	law := func() {
		t.Helper()
		synctest.Wait()
		if err := l.Counts().law(); err != nil {
			t.Fatal(err)
		}
	}
	durable := func() uint64 {
		synctest.Wait()
		return l.durable.Load()
	}

	time.Sleep(time.Second)
	if err := request(); err != nil {
		t.Fatal(err)
	}
	law()

	// The output works: what comes goes through memory.
	disk.bad.Store(true)
	err = request()
	if !errors.Is(err, listen.ErrFull) {
		t.Fatalf("a request on a disk that takes no writes: %v", err)
	}
	before, delivered := durable(), l.Delivered()
	time.Sleep(10 * time.Second)
	law()
	if !l.Degraded() || !l.Shut() || l.Full() {
		t.Fatalf("degraded %v, shut %v, full %v", l.Degraded(), l.Shut(), l.Full())
	}
	if durable() != before {
		t.Fatalf("record %d is called durable, %d was the last", l.durable.Load(), before)
	}
	if n := l.Delivered() - delivered; n < 3000 {
		t.Fatalf("%d records were delivered through memory in 10 s", n)
	}
	admitted := l.Admitted()
	if err := request(); !errors.Is(err, listen.ErrFull) || hook.Admitted.Load() > 2 {
		t.Fatalf("%v, %d admitted of requests", err, hook.Admitted.Load())
	}
	if audit.Gate() == nil || l.Admitted() < admitted {
		t.Fatal("no gate")
	}

	// It does not: the ring fills.
	m.setFail(errDown)
	time.Sleep(30 * time.Second)
	law()
	s := buf.Stats()
	if s.MemoryBytes > ring || s.MemoryBytes < ring/2 || l.Full() != (full == buffer.Hold) {
		t.Fatalf("%d bytes in memory, full %v", s.MemoryBytes, l.Full())
	}
	if n := s.Lost[buffer.ReasonFull]; (n > 0) != (full == buffer.DropOldest) {
		t.Fatalf("%d records were dropped", n)
	}
	if d, ok := l.TimeToFull(); full == buffer.Hold && (!ok || d != 0) {
		t.Fatalf("full in %v, %v", d, ok)
	}

	// The disk is back, then the output.
	disk.bad.Store(false)
	time.Sleep(2 * time.Minute)
	law()
	if l.Degraded() || l.Full() || buf.Stats().DiskError != nil || buf.Stats().MemoryBytes != 0 {
		t.Fatalf("%+v", buf.Stats())
	}
	if err := request(); err != nil {
		t.Fatal(err)
	}
	m.setFail(nil)
	time.Sleep(time.Minute)
	enough()
	<-sending
	time.Sleep(5 * time.Second)
	law()
	c := l.Counts()
	if c.Pending+c.InFlight > 0 || c.Delivered+c.Lost[buffer.ReasonFull] != c.Admitted || durable() != c.Admitted {
		t.Fatalf("%+v, durable up to %d", c, l.durable.Load())
	}
	for reason, n := range c.Lost {
		if reason != buffer.ReasonFull && n > 0 {
			t.Errorf("%d lost as %s", n, reason)
		}
	}
	l.Close()
	<-done
	if err := buf.Close(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"the disk takes no writes; records are kept in memory only", "the disk takes writes again"} {
		if n := strings.Count(log.String(), want); n != 1 {
			t.Errorf("%q was logged %d times", want, n)
		}
	}
	// What was delivered are the numbers that are not told as lost, each once.
	seen := map[uint64]bool{}
	for _, b := range m.batches {
		for n := b.First; n <= b.Last(); n++ {
			if seen[n] {
				t.Fatalf("record %d arrived twice", n)
			}
			seen[n] = true
		}
	}
	if uint64(len(seen)) != c.Delivered {
		t.Errorf("%d records arrived, %d count as delivered", len(seen), c.Delivered)
	}
}

// A stop while the disk takes no writes says what is lost.
func TestDegradedStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, m := &lazyFS{newDirFS(t)}, &memory{}
		m.setFail(errDown)
		buf, err := buffer.Open("", buffer.Options{Agent: "gw1", FS: disk, MaxBytes: 64 << 20, MinFree: -1, Memory: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		var log safe
		logger := slog.New(slog.NewTextHandler(&log, nil))
		l := NewLane(LaneOptions{Name: "main", Agent: "gw1", Buffer: buf, Codec: batch.Zstd, Log: logger, Chain: outputs.NewChain(outputs.ChainOptions{Log: logger}, m)})
		in := NewInput(InputOptions{Name: "in", Lane: l, Records: ecs.Options{Dataset: "d", Agent: "gw1"}})
		ctx, hard := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { l.Run(ctx); close(done) }()
		disk.bad.Store(true)
		disk.badCursor.Store(true)
		s := in.Open()
		for i := range 30 {
			s.Message(msg(fmt.Sprint("line ", i)), from, time.Now())
		}
		s.Flush(ctx)
		s.Close()
		time.Sleep(time.Minute)
		l.Close()
		hard()
		<-done
		if err := buf.Close(); !errors.Is(err, buffer.ErrMemory) || !strings.Contains(err.Error(), "30 records were kept in memory only and are lost") {
			t.Fatal(err)
		}
	})
}

// What is stored together may be more than memory takes at once: it is taken in parts, the
// rest when there is room again, and at a stop only that is lost.
func TestDegradedGroup(t *testing.T) {
	for _, full := range []buffer.Policy{buffer.Hold, buffer.DropOldest} {
		t.Run(full.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := &lazyFS{newDirFS(t)}
				disk.bad.Store(true)
				disk.badCursor.Store(true)
				buf, err := buffer.Open("", buffer.Options{Agent: "gw1", FS: disk, MaxBytes: 64 << 20, MinFree: -1, Full: full, Memory: 1 << 20})
				if err != nil {
					t.Fatal(err)
				}
				var log safe
				l := NewLane(LaneOptions{Name: "main", Agent: "gw1", Buffer: buf, Codec: batch.None, Log: slog.New(slog.NewTextHandler(&log, nil)),
					Chain: outputs.NewChain(outputs.ChainOptions{Log: slog.New(slog.NewTextHandler(&log, nil))}, &memory{})})
				enc, err := batch.NewEncoder(batch.None, 0)
				if err != nil {
					t.Fatal(err)
				}
				sealer := batch.Sealer{Epoch: l.start.Epoch, Prev: l.start.Seal}
				var group []*batch.Batch
				for i := range 8 {
					o := batch.Open{}
					o.Reset(l.start.Next+uint64(i), 0)
					o.Lines = append(o.Lines, noise(200<<10)+"\n"...)
					o.Added(time.Now().UnixNano())
					made, _, err := enc.Encode(nil, &o, nil)
					if err != nil || len(made) != 1 {
						t.Fatal(err)
					}
					sealer.Seal(made[0])
					group = append(group, made[0])
				}
				ctx, stop := context.WithTimeout(t.Context(), time.Hour)
				defer stop()
				began := time.Now()
				delivered := make(chan struct{})
				if full == buffer.Hold {
					go func() { // two of them
						defer close(delivered)
						time.Sleep(30*time.Minute + 100*time.Millisecond)
						for range 2 {
							run, err := buf.Next(ctx, batch.Limits{Batches: 1})
							if err == nil {
								err = buf.Commit(run.Last(), "out")
							}
							if err != nil {
								t.Error(err)
							}
						}
						if l.waiting.Load() != 1 {
							t.Error("ship is not told that room is needed")
						}
						time.Sleep(time.Second)
						if n := buf.Stats().Next - l.start.Next; n != 7 {
							t.Errorf("%d are taken a second after there was room", n)
						}
					}()
				} else {
					close(delivered)
				}
				left, err := l.append(ctx, group, false)
				<-delivered
				s := buf.Stats()
				switch {
				case full == buffer.DropOldest:
					if !errors.Is(err, buffer.ErrMemory) || len(left) > 0 || s.Next != l.start.Next+8 || time.Since(began) > time.Minute {
						t.Fatalf("%v, %d left, %+v", err, len(left), s)
					}
				case err == nil || errors.Is(err, buffer.ErrMemory) || len(left) != 1 || left[0] != group[7] || s.Next != group[7].First:
					t.Fatalf("%v, %d left, %+v", err, len(left), s)
				}
				if !l.Degraded() || l.durable.Load() != 0 {
					t.Fatal("nothing is durable")
				}
			})
		})
	}
}

// Where nothing is amiss, to look after memory costs nothing.
func TestWatchAllocs(t *testing.T) {
	b := start(t, t.TempDir(), &memory{}, Block, nil)
	if n := testing.AllocsPerRun(100, b.lane.watch); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
