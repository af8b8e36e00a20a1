package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/outputs"
)

func soon(d time.Duration, ok func() bool) bool {
	for end := time.Now().Add(d); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// flaky reconnects once in the middle of a side pass.
type flaky struct {
	stream
	at    int // when it has so many batches, it reconnects once
	calls int
}

func (s *flaky) Publish(ctx context.Context, run *batch.Run) (int, error) {
	s.mu.Lock()
	s.calls++
	if s.at > 0 && len(s.batches) >= s.at {
		s.at, s.checked = 0, false
	}
	s.mu.Unlock()
	return s.stream.Publish(ctx, run)
}

func TestShipReconnectInSidePass(t *testing.T) { synctest.Test(t, testShipReconnectInSidePass) }

func testShipReconnectInSidePass(t *testing.T) {
	hub := &flaky{stream: stream{memory: memory{name: "hub", limits: batch.Limits{Batches: 1}}}}
	b := chained(t, t.TempDir(), hub)
	b.send(20)
	soon(20*time.Second, func() bool { return hub.count() == 20 })
	hub.mu.Lock()
	hub.at, hub.calls = 10, 0
	hub.mu.Unlock()
	hub.lose(5)
	b.send(1)
	if !soon(20*time.Second, func() bool { return hub.count() == 21 }) {
		hub.mu.Lock()
		t.Errorf("stuck: hub has %d of 21, Publish called %d times, Last asked %d", len(hub.batches), hub.calls, hub.asked)
		hub.mu.Unlock()
	}
	b.cancel()
	b.stop()
}

// picky takes nothing with a batch numbered in bad.
type picky struct {
	stream
	bad map[uint64]bool
}

func (s *picky) Publish(ctx context.Context, run *batch.Run) (int, error) {
	s.mu.Lock()
	bad := s.checked && s.bad[run.First()]
	s.mu.Unlock()
	if bad {
		return 0, down("hub", outputs.StoredNo, outputs.Unfit)
	}
	return s.stream.Publish(ctx, run)
}

func TestShipUnfitInSidePass(t *testing.T) { synctest.Test(t, testShipUnfitInSidePass) }

func testShipUnfitInSidePass(t *testing.T) {
	hub := &picky{stream: stream{memory: memory{name: "hub", limits: batch.Limits{Batches: 1}}}}
	b := chained(t, t.TempDir(), hub)
	b.send(10)
	soon(20*time.Second, func() bool { return hub.count() == 10 })
	hub.mu.Lock()
	hub.bad = map[uint64]bool{7: true} // its max_msg_size is smaller now
	hub.mu.Unlock()
	hub.lose(5)
	b.send(5) // these would fit
	soon(20*time.Second, func() bool { return b.drained() })
	time.Sleep(200 * time.Millisecond)
	b.cancel()
	b.stop()
	if got := fmt.Sprint(hub.ranges()); got != "[1-1 2-2 3-3 4-4 5-5 6-6 8-8 9-9 10-10 11-11 12-12 13-13 14-14 15-15]" || strings.Count(b.log.String(), "unfit for it now") != 1 {
		t.Errorf("hub has %s; log:\n%s", got, b.log)
	}
}

// chainedO is chained with options.
func chainedO(t *testing.T, edit func(*outputs.ChainOptions), editL func(*buffer.Options, *LaneOptions), outs ...outputs.Output) (*bench, *outputs.Chain) {
	var chain *outputs.Chain
	var b *bench
	ready := make(chan struct{})
	b = start(t, t.TempDir(), nil, Block, func(o *buffer.Options, l *LaneOptions) {
		o.KeepAcked = time.Hour
		l.Batch.Records = 1
		log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
		co := outputs.ChainOptions{After: 100 * time.Millisecond, Interval: 5 * time.Millisecond, Probes: 2, Dwell: 10 * time.Millisecond,
			RetryMin: time.Millisecond, RetryMax: 20 * time.Millisecond, Log: log, Switched: func(string) { <-ready; b.lane.Reroute() }}
		edit(&co)
		chain = outputs.NewChain(co, outs...)
		l.Chain = chain
		if editL != nil {
			editL(o, l)
		}
	})
	close(ready)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { chain.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return b, chain
}

// FAILBACK=false: nothing may be probed, and the lane stays where it is.
func TestShipRoundRobinPlan(t *testing.T) { synctest.Test(t, testShipRoundRobinPlan) }

func testShipRoundRobinPlan(t *testing.T) {
	hub, archive := hubAndArchive()
	probed := &probes{planned: archive}
	b, chain := chainedO(t, func(o *outputs.ChainOptions) { o.RoundRobin = true }, nil, probed, hub)
	archive.setFail(down("archive", outputs.StoredNo, outputs.Failover))
	b.send(1)
	soon(20*time.Second, func() bool { return hub.count() == 1 })
	archive.setFail(nil)
	time.Sleep(300 * time.Millisecond)
	for range 5 {
		b.send(1)
		time.Sleep(20 * time.Millisecond)
	}
	soon(20*time.Second, b.drained)
	if hub.count() != 6 || archive.count() != 0 || probed.n != 0 {
		t.Errorf("hub %v archive %v, probes of archive %d, states %+v, switches %v", hub.ranges(), archive.ranges(), probed.n, chain.States(), chain.Switches())
	}
	b.cancel()
	b.stop()
}

type probes struct {
	*planned
	n int
}

func (p *probes) Probe(ctx context.Context, l string) error { p.n++; return p.planned.Probe(ctx, l) }

// lossy stores objects whose answers are lost.
type lossy struct {
	planned
	lose int // so many answers
}

func (p *lossy) Publish(ctx context.Context, run *batch.Run) (int, error) {
	if _, err := p.planned.Publish(ctx, run); err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lose > 0 {
		p.lose--
		p.fail = down(p.name, outputs.StoredMaybe, outputs.Retry)
		return 0, p.fail
	}
	return len(run.Batches), nil
}

// moody answers probes whatever Publish says.
type moody struct{ stream }

func (*moody) Probe(context.Context, string) error { return nil }

func TestShipOverlap(t *testing.T) {
	for _, rr := range []bool{false, true} {
		t.Run(fmt.Sprint("roundrobin ", rr), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testShipOverlap(t, rr) })
		})
	}
}

func testShipOverlap(t *testing.T, rr bool) {
	hub := &moody{stream{memory: memory{name: "hub", limits: batch.Limits{Batches: 1}}}}
	archive := &lossy{planned: planned{memory{name: "archive", limits: batch.Limits{Batches: 100}}}, lose: 1}
	hub.setFail(down("hub", outputs.StoredNo, outputs.Failover)) // full: probes can't see it
	b, chain := chainedO(t, func(o *outputs.ChainOptions) { o.RoundRobin = rr }, nil, hub, archive)
	b.send(1)
	if !soon(20*time.Second, func() bool { return archive.count() == 1 }) {
		t.Fatal("no object")
	}
	b.send(3)
	time.Sleep(300 * time.Millisecond)
	archive.setFail(nil)
	soon(20*time.Second, b.drained)
	keys := map[uint64]string{} // by first number
	for _, r := range archive.runs {
		if n, err := outputs.ParseKey(r.Key); err != nil || keys[n.First] != "" && keys[n.First] != r.Key {
			t.Errorf("objects overlap: %s and %s; switches %v", keys[n.First], r.Key, chain.Switches())
		} else {
			keys[n.First] = r.Key
		}
	}
	if len(keys) < 2 {
		t.Errorf("archive has %v", keys)
	}
	b.cancel()
	b.stop()
}

// half is a stream that finds the first batch of a run unfit when the others are stored.
func TestShipDoubtBehindUnfit(t *testing.T) { synctest.Test(t, testShipDoubtBehindUnfit) }

func testShipDoubtBehindUnfit(t *testing.T) {
	hub := &halfFit{stream: stream{memory: memory{name: "hub", limits: batch.Limits{Batches: 10}}}}
	archive := &planned{memory{name: "archive", limits: batch.Limits{Batches: 1}}}
	first := down("hub", outputs.StoredNo, outputs.Failover)
	hub.setFail(first)
	archive.setFail(down("archive", outputs.StoredNo, outputs.Retry))
	b, _ := chainedO(t, func(o *outputs.ChainOptions) {}, nil, hub, archive)
	b.send(3)
	soon(20*time.Second, func() bool { return b.buf.Stats().PendingRecords == 3 })
	hub.setFail(nil)
	soon(20*time.Second, func() bool { hub.mu.Lock(); defer hub.mu.Unlock(); return hub.done })
	time.Sleep(20 * time.Millisecond)
	archive.setFail(nil)
	soon(20*time.Second, b.drained)
	if d := fmt.Sprint(b.buf.Doubts()); d != "[{hub {2 3}}]" {
		t.Errorf("hub stored %v behind the unfit one, archive %v, in doubt %s", hub.ranges(), archive.ranges(), d)
	}
	b.cancel()
	b.stop()
}

type halfFit struct {
	stream
	done bool
}

func (s *halfFit) Publish(ctx context.Context, run *batch.Run) (int, error) {
	s.mu.Lock()
	now := s.checked && s.fail == nil && !s.done && len(run.Batches) > 1
	if now {
		s.done = true
	}
	s.mu.Unlock()
	if now { // stores those behind the first, then goes down
		rest := *run
		rest.Batches = run.Batches[1:]
		s.stream.Publish(ctx, &rest)
		s.setFail(down("hub", outputs.StoredNo, outputs.Failover))
		return 0, down("hub", outputs.StoredNo, outputs.Unfit)
	}
	return s.stream.Publish(ctx, run)
}

// odd takes no batch with an odd number.
type odd struct{ stream }

func (s *odd) Publish(ctx context.Context, run *batch.Run) (int, error) {
	s.mu.Lock()
	bad := s.checked && run.First()%2 == 1
	s.mu.Unlock()
	if bad {
		return 0, down("hub", outputs.StoredNo, outputs.Unfit)
	}
	return s.stream.Publish(ctx, run)
}

func TestShipLostBehindHandOvers(t *testing.T) { synctest.Test(t, testShipLostBehindHandOvers) }

func testShipLostBehindHandOvers(t *testing.T) {
	hub := &odd{stream{memory: memory{name: "hub", limits: batch.Limits{Batches: 1}}}}
	archive := &planned{memory{name: "archive", limits: batch.Limits{Batches: 1}}}
	b, _ := chainedO(t, func(*outputs.ChainOptions) {}, nil, hub, archive)
	b.send(200)
	soon(20*time.Second, b.drained)
	had := hub.count()
	hub.lose(10)
	b.send(2)
	soon(20*time.Second, b.drained)
	if !soon(20*time.Second, func() bool { // also what archive took, where that is forgotten
		have := map[string]bool{}
		for _, r := range hub.ranges() {
			have[r] = true
		}
		for n := 2; n <= 200; n += 2 {
			if !have[fmt.Sprintf("%d-%d", n, n)] {
				return false
			}
		}
		return true
	}) {
		t.Errorf("hub had %d, lost all but 10, has %d now; %v\n%s", had, hub.count(), hub.ranges(), b.log)
	}
	b.cancel()
	b.stop()
}

// A large batch and an archive that fails: nothing in the log.
func TestShipSilentBlock(t *testing.T) { synctest.Test(t, testShipSilentBlock) }

func testShipSilentBlock(t *testing.T) {
	hub := &odd{stream{memory: memory{name: "hub", limits: batch.Limits{Batches: 1}}}}
	archive := &planned{memory{name: "archive", limits: batch.Limits{Batches: 1}}}
	archive.setFail(down("archive", outputs.StoredNo, outputs.Misconfigured))
	var said safe
	b, _ := chainedO(t, func(o *outputs.ChainOptions) { o.Log = slog.New(slog.NewTextHandler(&said, nil)) }, nil, hub, archive)
	b.send(10)
	soon(20*time.Second, func() bool { return strings.Contains(said.String(), "output fails") })
	if n := strings.Count(said.String(), "level=ERROR"); n != 1 {
		t.Errorf("told %d times: %s", n, said.String())
	}
	b.cancel()
	b.stop()
}

// The head that was unfit is dropped to make room; what follows fits the hub.
func TestShipStaleUnfit(t *testing.T) { synctest.Test(t, testShipStaleUnfit) }

func testShipStaleUnfit(t *testing.T) {
	hub := &firstBad{stream: stream{memory: memory{name: "hub", limits: batch.Limits{Batches: 1}}}}
	archive := &planned{memory{name: "archive", limits: batch.Limits{Batches: 1}}}
	archive.setFail(down("archive", outputs.StoredNo, outputs.Failover))
	b, _ := chainedO(t, func(*outputs.ChainOptions) {}, func(o *buffer.Options, l *LaneOptions) {
		o.MaxBytes, o.Full, l.Codec = 4<<20, buffer.DropOldest, batch.None
	}, hub, archive)
	s := b.in.Open()
	big := strings.Repeat("x", 60000)
	for range 200 { // three times what it holds
		s.Message(msg(big), from, time.Now())
		s.Flush(context.Background())
		time.Sleep(time.Millisecond)
	}
	s.Close()
	if !soon(20*time.Second, func() bool { return hub.count() > 0 }) {
		st := b.buf.Stats()
		t.Errorf("hub took nothing; only record 1 is unfit; stats: dropped %v pending %d", st.Lost, st.PendingRecords)
	}
	b.cancel()
	b.stop()
}

type firstBad struct{ stream }

func (s *firstBad) Publish(ctx context.Context, run *batch.Run) (int, error) {
	s.mu.Lock()
	bad := s.checked && run.First() == 1
	s.mu.Unlock()
	if bad {
		return 0, down("hub", outputs.StoredNo, outputs.Unfit)
	}
	return s.stream.Publish(ctx, run)
}

// Segments of what was lost are gone: is that told?
func TestShipNotKept(t *testing.T) { synctest.Test(t, testShipNotKept) }

func testShipNotKept(t *testing.T) {
	hub := &stream{memory: memory{name: "hub", limits: batch.Limits{Batches: 1}}}
	b, _ := chainedO(t, func(*outputs.ChainOptions) {}, func(o *buffer.Options, l *LaneOptions) {
		o.KeepAcked, o.SegmentBytes = -1, 4<<10
	}, hub)
	b.send(100)
	soon(20*time.Second, b.drained)
	soon(20*time.Second, func() bool { return b.buf.Stats().SegmentsRemoved > 2 })
	had := hub.count()
	hub.lose(10)
	b.send(1)
	soon(20*time.Second, b.drained)
	if !soon(20*time.Second, func() bool { return strings.Contains(b.log.String(), "not kept any more") }) || !strings.Contains(b.log.String(), "first=11") {
		t.Errorf("hub had %d, lost all but 10, has %d now, removed segments %d; %v\n%s", had, hub.count(), b.buf.Stats().SegmentsRemoved, hub.ranges()[9:12], b.log)
	}
	b.cancel()
	b.stop()
}

// slowly answers each Publish after 5 ms, and refuses Last once.
type slowly struct {
	stream
	refuse bool
}

func (s *slowly) Last(ctx context.Context, l string) (outputs.Mark, error) {
	s.mu.Lock()
	r := s.refuse
	s.refuse = false
	s.mu.Unlock()
	if r {
		return outputs.Mark{}, down("hub", outputs.StoredNo, outputs.Retry)
	}
	return s.stream.Last(ctx, l)
}

func (s *slowly) Publish(ctx context.Context, run *batch.Run) (int, error) {
	select {
	case <-time.After(5 * time.Millisecond):
	case <-ctx.Done():
		return 0, down("hub", outputs.StoredMaybe, outputs.Retry)
	}
	return s.stream.Publish(ctx, run)
}

func TestShipIdleThenCut(t *testing.T) { synctest.Test(t, testShipIdleThenCut) }

func testShipIdleThenCut(t *testing.T) {
	hub := &slowly{stream: stream{memory: memory{name: "hub", limits: batch.Limits{Batches: 1}}}}
	archive := &planned{memory{name: "archive", limits: batch.Limits{Batches: 1}}}
	b, _ := chainedO(t, func(o *outputs.ChainOptions) { o.After = time.Second }, nil, hub, archive)
	b.send(1)
	soon(20*time.Second, func() bool { return hub.count() == 1 })
	hub.mu.Lock()
	hub.refuse, hub.checked = true, false // it reconnects, and is not ready for one question
	hub.mu.Unlock()
	soon(20*time.Second, func() bool { return hub.Checked("") })
	time.Sleep(50 * time.Millisecond)
	time.Sleep(1500 * time.Millisecond) // idle
	b.send(1)
	soon(20*time.Second, b.drained)
	if hub.count() != 2 || archive.count() != 0 || len(b.buf.Doubts()) != 0 {
		t.Errorf("hub %v archive %v doubts %v", hub.ranges(), archive.ranges(), b.buf.Doubts())
	}
	b.cancel()
	b.stop()
}

// The hub recovers 100 ms after it failed, with FAILOVER_AFTER at 500 ms.
func TestShipLastAttempt(t *testing.T) { synctest.Test(t, testShipLastAttempt) }

func testShipLastAttempt(t *testing.T) {
	hub := &slowly{stream: stream{memory: memory{name: "hub", limits: batch.Limits{Batches: 1}}}}
	archive := &planned{memory{name: "archive", limits: batch.Limits{Batches: 1}}}
	b, _ := chainedO(t, func(o *outputs.ChainOptions) {
		o.After, o.RetryMin, o.RetryMax = 500*time.Millisecond, 2*time.Second, 2*time.Second
	}, nil, hub, archive)
	b.send(1)
	soon(20*time.Second, func() bool { return hub.count() == 1 })
	hub.setFail(down("hub", outputs.StoredNo, outputs.Retry))
	b.send(1)
	time.Sleep(100 * time.Millisecond)
	hub.setFail(nil)
	soon(20*time.Second, b.drained)
	if hub.count() != 2 || archive.count() != 0 || len(b.buf.Doubts()) != 0 {
		t.Errorf("hub %v archive %v doubts %v", hub.ranges(), archive.ranges(), b.buf.Doubts())
	}
	b.cancel()
	b.stop()
}
