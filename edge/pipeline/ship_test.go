package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/outputs"
)

// stream is a memory that can be asked what it has, and that may lose it.
type stream struct {
	memory
	checked bool // Last was asked since the connection was made; guarded by mu
	asked   int
	unknown string
}

func (s *stream) Publish(ctx context.Context, run *batch.Run) (int, error) {
	s.mu.Lock()
	checked, down := s.checked, s.fail
	s.mu.Unlock()
	if !checked && down == nil {
		return 0, &outputs.Error{Output: s.name, Op: "publish", Stored: outputs.StoredNo, Action: outputs.Retry, Err: outputs.ErrUnchecked}
	}
	return s.memory.Publish(ctx, run)
}

func (s *stream) Last(context.Context, string) (outputs.Mark, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.fail != nil {
		return outputs.Mark{}, s.fail
	}
	s.checked = true
	if s.unknown != "" || len(s.batches) == 0 {
		return outputs.Mark{Unknown: s.unknown}, nil
	}
	return outputs.Mark{Found: true, Epoch: s.runs[len(s.runs)-1].Epoch, Last: s.batches[len(s.batches)-1].Last()}, nil
}

func (s *stream) Checked(string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checked || s.fail != nil
}

// lose makes it forget all but the first n batches, and reconnect.
func (s *stream) lose(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batches, s.before, s.checked = s.batches[:n], s.before[:n], false
}

func (m *memory) count() int { m.mu.Lock(); defer m.mu.Unlock(); return len(m.batches) }

// ranges are first-last of what it has, in the order in which it came.
func (m *memory) ranges() (all []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.batches {
		all = append(all, fmt.Sprintf("%d-%d", b.First, b.Last()))
	}
	return all
}

func (m *memory) lastRun() batch.Run { m.mu.Lock(); defer m.mu.Unlock(); return m.runs[len(m.runs)-1] }

func down(name string, stored outputs.Stored, action outputs.Action) error {
	return &outputs.Error{Output: name, Op: "publish", Stored: stored, Action: action, Err: errors.New("down")}
}

// chained is a lane over hub and archive, every batch one record and every run one
// batch, with the chain's prober.
func chained(t *testing.T, dir string, outs ...outputs.Output) *bench {
	var chain *outputs.Chain
	var b *bench
	ready := make(chan struct{})
	b = start(t, dir, nil, Block, func(o *buffer.Options, l *LaneOptions) {
		o.KeepAcked = time.Hour
		l.Batch.Records = 1
		log := slog.New(slog.DiscardHandler)
		if testing.Verbose() {
			log = slog.New(slog.NewTextHandler(t.Output(), nil))
		}
		chain = outputs.NewChain(outputs.ChainOptions{After: 100 * time.Millisecond, Interval: 5 * time.Millisecond, Probes: 2, Dwell: 10 * time.Millisecond,
			RetryMin: time.Millisecond, RetryMax: 20 * time.Millisecond, Log: log, Switched: func(string) { <-ready; b.lane.Reroute() }}, outs...)
		l.Chain = chain
	})
	close(ready)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { chain.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return b
}

// send sends n messages, each flushed.
func (b *bench) send(n int) {
	s := b.in.Open()
	for range n {
		s.Message(msg("x"), from, time.Now())
		s.Flush(context.Background())
	}
	s.Close()
	b.sent += uint64(n)
}

func (b *bench) drained() bool {
	s := b.buf.Stats() // before what it is compared with
	n := b.lane.Admitted()
	return n >= b.sent && n == s.AppendedRecords && s.PendingRecords == 0
}

func hubAndArchive() (*stream, *planned) {
	one := batch.Limits{Batches: 1}
	return &stream{memory: memory{name: "hub", limits: one}}, &planned{memory{name: "archive", limits: one}}
}

// What one output leaves in doubt goes to the next one, noted and marked; after
// the failback nothing is missing and nothing else is there twice.
func TestFailover(t *testing.T) { synctest.Test(t, testFailover) }

func testFailover(t *testing.T) {
	hub, archive := hubAndArchive()
	b := chained(t, t.TempDir(), hub, archive)
	b.send(3)
	waitFor(t, "delivery by hub", func() bool { return hub.count() == 3 })
	hub.setFail(down("hub", outputs.StoredMaybe, outputs.Failover))
	b.send(3)
	waitFor(t, "delivery by archive", func() bool { return archive.count() == 3 })
	if d := b.buf.Doubts(); len(d) != 1 || d[0] != (buffer.Doubt{Output: "hub", Range: buffer.Range{First: 4, Last: 4}}) {
		t.Errorf("in doubt: %v", d)
	}
	if r := archive.runs[0]; r.Attempt != 2 || r.Reason != "failover" || !strings.HasPrefix(r.Key, "failover/") {
		t.Errorf("the first run that went elsewhere: %+v", r)
	}
	if r := archive.lastRun(); r.Attempt != 1 {
		t.Errorf("a run that was sent to nobody before: %+v", r)
	}
	hub.setFail(nil)
	waitFor(t, "failback", func() bool { b.send(1); return hub.count() > 3 })
	waitFor(t, "an empty buffer", b.drained)
	b.stop()
	seen := map[string]int{}
	for _, r := range append(hub.ranges(), archive.ranges()...) {
		seen[r]++
	}
	if n := int(b.lane.Admitted()); len(seen) != n || hub.count()+archive.count() != n {
		t.Errorf("%d records: hub has %v, archive %v", n, hub.ranges(), archive.ranges())
	}
}

// An object whose answer did not come is repeated where it was planned, also by a
// later life whose first output is another one; if that output fails it is given
// up: in doubt there, and delivered by the next.
func TestPlanOfAnotherOutput(t *testing.T) {
	for _, up := range []bool{true, false} {
		t.Run(fmt.Sprintf("archive up %v", up), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testPlanOfAnotherOutput(t, up) })
		})
	}
}

func testPlanOfAnotherOutput(t *testing.T, up bool) {
	dir := t.TempDir()
	hub, archive := hubAndArchive()
	hub.setFail(down("hub", outputs.StoredNo, outputs.Failover))
	archive.setFail(down("archive", outputs.StoredMaybe, outputs.Retry))
	b := chained(t, dir, hub, archive)
	b.send(1)
	waitFor(t, "a planned object handed over", func() bool { _, ok := b.buf.Plan(); return ok && archive.attempts() > 0 })
	key := archive.lastRun().Key
	b.cancel()
	b.stop()

	hub, archive = hubAndArchive()
	if !up {
		archive.setFail(down("archive", outputs.StoredMaybe, outputs.Retry))
	}
	b = chained(t, dir, hub, archive)
	b.send(2)
	waitFor(t, "an empty buffer", b.drained)
	if up {
		if got := fmt.Sprint(archive.ranges(), hub.ranges()); got != "[1-1] [2-2 3-3]" || archive.lastRun().Key != key || archive.lastRun().Attempt < 2 {
			t.Errorf("archive and hub have %s, run %+v, want key %s", got, archive.lastRun(), key)
		}
	} else {
		if got := fmt.Sprint(archive.ranges(), hub.ranges()); got != "[] [1-1 2-2 3-3]" {
			t.Errorf("archive and hub have %s", got)
		}
		if d := b.buf.Doubts(); !slices.Contains(d, buffer.Doubt{Output: "archive", Range: buffer.Range{First: 1, Last: 1}}) {
			t.Errorf("in doubt: %v", d)
		}
		if _, ok := b.buf.Plan(); ok {
			t.Error("the plan is still there")
		}
	}
	b.stop()
}

// What no output takes is put aside and told, and does not hold up the rest.
func TestRejected(t *testing.T) { synctest.Test(t, testRejected) }

func testRejected(t *testing.T) {
	hub, archive := hubAndArchive()
	hub.setFail(down("hub", outputs.StoredNo, outputs.Unfit))
	archive.setFail(down("archive", outputs.StoredNo, outputs.Unfit))
	b := chained(t, t.TempDir(), hub, archive)
	b.send(1)
	waitFor(t, "the batch put aside", b.drained)
	hub.setFail(nil)
	b.send(2)
	waitFor(t, "an empty buffer", b.drained)
	b.stop()
	var gaps, lines int
	for _, r := range hub.records(t, b.buf.Begin().Epoch) {
		if g := r.Spillway.Gap; g != nil && g.Reason == buffer.ReasonRejected && g.First == 1 && g.Last == 1 && g.Count == 1 {
			gaps++
		} else if g == nil {
			lines++
		}
	}
	if gaps != 1 || lines != 2 {
		t.Errorf("%d gap records, %d records: %v", gaps, lines, hub.ranges())
	}
}

// What a stream acknowledged and has no more is sent again after the reconnect,
// before anything new, in order; not what another output took.
func TestStreamLostSuffix(t *testing.T) { synctest.Test(t, testStreamLostSuffix) }

func testStreamLostSuffix(t *testing.T) {
	dir := t.TempDir()
	hub, archive := hubAndArchive()
	b := chained(t, dir, hub, archive)
	b.send(4)
	waitFor(t, "delivery by hub", func() bool { return hub.count() == 4 })
	hub.setFail(down("hub", outputs.StoredNo, outputs.Failover))
	b.send(2)
	waitFor(t, "delivery by archive", func() bool { return archive.count() == 2 })
	hub.setFail(nil)
	waitFor(t, "failback", func() bool { b.send(1); return hub.count() > 4 })
	waitFor(t, "an empty buffer", b.drained)
	before := hub.ranges()
	hub.lose(2) // 3, 4, and what came after the failback
	b.send(1)
	waitFor(t, "an empty buffer", b.drained)
	want := append(slices.Clone(before), fmt.Sprintf("%d-%d", b.lane.Admitted(), b.lane.Admitted()))
	if got := hub.ranges(); !slices.Equal(got, want) {
		t.Errorf("hub has %v, want %v", got, want)
	}
	if n := b.lane.Resent(); n != uint64(len(before)-2) {
		t.Errorf("%d records sent again", n)
	}
	// Also by a later life.
	b.stop()
	hub.lose(len(want) - 1)
	b = chained(t, dir, hub, archive)
	b.send(1)
	waitFor(t, "an empty buffer", b.drained)
	if got := hub.ranges(); len(got) != len(want)+1 || !slices.Equal(got[:len(want)], want) {
		t.Errorf("hub has %v, want %v and one more", got, want)
	}
	b.stop()
}

// A stream that can't be asked, is empty or belongs to others is told once and used.
func TestStreamUnknown(t *testing.T) { synctest.Test(t, testStreamUnknown) }

func testStreamUnknown(t *testing.T) {
	hub, _ := hubAndArchive()
	hub.unknown = "no permission"
	b := chained(t, t.TempDir(), hub)
	b.send(1)
	waitFor(t, "delivery", b.drained)
	hub.lose(1)
	b.send(1)
	waitFor(t, "delivery", b.drained)
	hub.unknown = ""
	hub.lose(0)
	b.send(1)
	waitFor(t, "delivery", b.drained)
	b.stop()
	if log := b.log.String(); strings.Count(log, "no permission") != 1 || hub.asked != 3 || b.lane.Resent() != 0 {
		t.Errorf("asked %d times\n%s", hub.asked, log)
	}
}

// A side pass that is cut off goes on where it was, whatever comes between.
func TestResendGoesOn(t *testing.T) { synctest.Test(t, testResendGoesOn) }

func testResendGoesOn(t *testing.T) {
	hub, archive := hubAndArchive()
	b := chained(t, t.TempDir(), hub, archive)
	b.send(50)
	waitFor(t, "delivery by hub", func() bool { return hub.count() == 50 })
	before := hub.ranges()
	hub.lose(10)
	// It fails again and again while it gets back what it lost.
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for hub.count() < 50 {
			hub.setFail(down("hub", outputs.StoredMaybe, outputs.Retry))
			time.Sleep(time.Millisecond)
			hub.setFail(nil)
			time.Sleep(time.Millisecond)
		}
	}()
	b.send(1)
	<-stop
	waitFor(t, "an empty buffer", b.drained)
	if got := hub.ranges(); !slices.Equal(got[:50], before) {
		t.Errorf("hub has %v", got)
	}
	b.stop()
}
