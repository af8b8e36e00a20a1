package pipeline

import (
	"context"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/outputs"
)

// TestRate: in any time no more passes than the rate says, a second's worth and one run,
// and as much as that if it is asked for.
func TestRate(t *testing.T) {
	if NewRate(0) != nil {
		t.Error("0 is a rate")
	}
	for _, run := range []int64{1, 900, 1000, 10_000, 100_000} {
		synctest.Test(t, func(t *testing.T) {
			const rate = 1000
			time.Sleep(time.Hour)
			r := NewRate(rate)
			time.Sleep(time.Hour) // what is saved up does not grow
			began, passed := time.Now(), int64(0)
			for time.Since(began) < 1000*time.Second {
				_, wait := r.take(run, false)
				if wait > 0 {
					time.Sleep(wait)
					continue
				}
				passed += run
				if most := int64(rate*(time.Since(began).Seconds()+1)) + run; passed > most {
					t.Fatalf("%d bytes in %v, in runs of %d", passed, time.Since(began), run)
				}
			}
			if passed < 1000*rate-run {
				t.Errorf("only %d bytes in runs of %d", passed, run)
			}
		})
	}
}

// TestRateForced: what passes in any case counts, but owes no more than itself; what was not
// sent is given back.
func TestRateForced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRate(1000)
		for range 10 {
			if _, wait := r.take(5000, true); wait != 0 {
				t.Errorf("it waits %v", wait)
			}
		}
		if _, wait := r.take(1, false); wait.Round(time.Millisecond) != 5*time.Second {
			t.Errorf("5000 bytes of the last one are owed, and the wait is %v", wait)
		}
		r.give(5000)
		if _, wait := r.take(1, false); wait != 0 {
			t.Errorf("nothing is owed, and the wait is %v", wait)
		}
		r.give(1 << 40)
		r.take(1000, false)
		r.take(1000, false)
		if _, wait := r.take(1, false); wait.Round(time.Millisecond) != time.Second {
			t.Errorf("more than a second's worth was saved up: %v", wait)
		}
	})
}

// TestRateForcedBesideAnother: one lane's output fails and is tried each second. What the
// other lane owes stays owed.
func TestRateForcedBesideAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, run = 1000, 60_000
		r := NewRate(rate)
		began, passed := time.Now(), int64(0)
		for i := range 6000 {
			if _, wait := r.take(run, false); wait <= 0 {
				passed += run
			}
			if i%10 == 9 {
				paid, wait := r.take(run, true)
				if wait > 0 {
					t.Fatalf("it waits %v", wait)
				}
				r.give(paid) // nothing was stored
			}
			time.Sleep(100 * time.Millisecond)
		}
		if most := int64(rate*(time.Since(began).Seconds()+1)) + run; passed > most || passed < most-3*run {
			t.Errorf("%d bytes passed in %v", passed, time.Since(began))
		}
	})
}

// rated is a lane whose batches are one record of 10 KiB, and whose runs are one batch.
func rated(t *testing.T, r *Rate, out outputs.Output, m *memory, edit func(*buffer.Options, *LaneOptions)) *bench {
	m.limits.Batches = 1
	return start(t, "", out, Block, func(o *buffer.Options, l *LaneOptions) {
		o.FS, l.Codec, l.Rate = &lazyFS{newDirFS(t)}, batch.None, r
		l.Batch.Records = 1
		patiently(l, out)
		if edit != nil {
			edit(o, l)
		}
	})
}

const ratedRecord = 10 << 10

func (b *bench) pour(n int) {
	s, text := b.in.Open(), noise(ratedRecord)
	for range n {
		s.Message(msg(text), from, time.Now())
		s.Flush(context.Background())
	}
	s.Close()
	b.sent += uint64(n)
}

func (m *memory) bytes() (n float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.batches {
		n += float64(len(b.Payload))
	}
	return n
}

// TestDrainRate: what has waited goes out at the rate, from two lanes together; what is
// new is not held; time to drain knows, and the lane is not called stalled.
func TestDrainRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 50 << 10
		r := NewRate(rate)
		m1, m2, m3 := &memory{}, &memory{}, &memory{}
		old1, old2, fresh := rated(t, r, m1, m1, nil), rated(t, r, m2, m2, nil), rated(t, r, m3, m3, nil)
		m1.setFail(errDown)
		m2.setFail(errDown)
		old1.pour(300)
		old2.pour(300)
		time.Sleep(5 * time.Minute)
		if !old1.lane.HeldBack().IsZero() && time.Since(old1.lane.HeldBack()) < time.Minute && m1.attempts() == 0 {
			t.Error("held back before anything was sent")
		}
		began, paused := time.Now(), m1.bytes()+m2.bytes()
		m1.setFail(nil)
		m2.setFail(nil)
		old1.lane.Reroute()
		old2.lane.Reroute()
		for time.Since(began) < time.Minute {
			time.Sleep(time.Second)
			n, d := m1.bytes()+m2.bytes()-paused, time.Since(began).Seconds()
			if most := rate*(d+1) + 2*12<<10; n > most {
				t.Errorf("%.0f bytes of backlog in %.0f s at %d a second", n, d, rate)
			}
			before := m3.count()
			fresh.pour(20)
			time.Sleep(200 * time.Millisecond)
			if got := m3.count() - before; got != 20 {
				t.Errorf("of 20 new records %d went out", got)
			}
		}
		d := time.Since(began).Seconds()
		if n := m1.bytes() + m2.bytes(); n < rate*(d-32) { // they were tried each half a minute at the latest
			t.Errorf("only %.0f bytes in %.0f s", n, d)
		}
		if m1.bytes() < rate*d/8 || m2.bytes() < rate*d/8 {
			t.Errorf("one lane got little: %.0f and %.0f bytes", m1.bytes(), m2.bytes())
		}
		if at := old1.lane.HeldBack(); time.Since(at) > time.Second {
			t.Errorf("held back at %v, and now is %v", at, time.Now())
		}
		if at := fresh.lane.HeldBack(); !at.IsZero() {
			t.Errorf("the lane without a backlog was held back at %v", at)
		}
		time.Sleep(10 * time.Minute)
		for _, b := range []*bench{old1, old2, fresh} {
			if b.buf.Stats().PendingRecords > 0 {
				t.Errorf("%d records are left", b.buf.Stats().PendingRecords)
			}
			b.stop()
			b.check(b.in)
		}
	})
}

// TestTimeToDrainKnowsTheRate: also right after an outage, when what went out before it was more.
func TestTimeToDrainKnowsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 20 << 10
		m := &memory{}
		b := rated(t, NewRate(rate), m, m, nil)
		for range 120 {
			b.pour(30) // 300 KiB a second
			time.Sleep(time.Second)
		}
		m.setFail(errDown)
		b.pour(2000)
		time.Sleep(20 * time.Second)
		m.setFail(nil)
		b.lane.Reroute()
		time.Sleep(5 * time.Second)
		each := m.bytes() / float64(m.count())
		left := float64(b.buf.Stats().PendingRecords) * each
		st := b.buf.Stats()
		was := b.lane.meter.look(b.lane)
		if r := b.lane.limit(was, &st); was.out*each < 2*rate || math.Abs(r.out*each/rate-1) > 0.05 || r.outBytes != rate {
			t.Errorf("%.0f bytes a second went out before, and at most %.0f will, at a rate of %d", was.out*each, r.out*each, rate)
		}
		d, ok := b.lane.TimeToDrain()
		if ok && d.Seconds() < left/rate*0.9 {
			t.Errorf("%v for %.0f bytes at %d a second", d, left, rate)
		}
		time.Sleep(8 * time.Minute)
		left = float64(b.buf.Stats().PendingRecords) * each
		if d, ok = b.lane.TimeToDrain(); !ok || math.Abs(d.Seconds()/(left/rate)-1) > 0.1 {
			t.Errorf("%v, %v for %.0f bytes at %d a second", d, ok, left, rate)
		}
		b.lane.Close()
		b.cancel()
		<-b.done
		b.buf.Close()
	})
}

// TestDrainRateHolds: what a lane does while it is held back. Runs are of 10 KiB and the rate
// is a hundred bytes a second, so that each is a pause of almost two minutes.
func TestDrainRateHolds(t *testing.T) {
	type held struct {
		*bench
		m *memory
	}
	// hold makes a backlog and lets its first run pass.
	hold := func(t *testing.T, out outputs.Output, m *memory, edit func(*buffer.Options, *LaneOptions)) held {
		m.setFail(errDown)
		h := held{rated(t, NewRate(100), out, m, edit), m}
		h.pour(10)
		time.Sleep(time.Minute)
		m.setFail(nil)
		h.lane.Reroute()
		time.Sleep(time.Second)
		synctest.Wait()
		if h.m.count() != 1 || time.Since(h.lane.HeldBack()) > 0 {
			t.Errorf("%d runs went out, held back %v ago", h.m.count(), time.Since(h.lane.HeldBack()))
		}
		return h
	}
	holdMemory := func(t *testing.T) held {
		m := &memory{}
		return hold(t, m, m, nil)
	}
	end := func(h held) {
		h.lane.Close()
		h.cancel()
		<-h.done
		h.buf.Close()
	}

	t.Run("stop", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := holdMemory(t)
			began := time.Now()
			h.lane.Close()
			time.Sleep(10 * time.Second) // the grace
			h.cancel()
			<-h.done
			if d := time.Since(began); d > 10*time.Second {
				t.Errorf("it ended after %v", d)
			}
			if h.m.count() != 1 {
				t.Errorf("%d runs went out", h.m.count())
			}
			h.buf.Close()
		})
	})
	t.Run("hurried", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := holdMemory(t)
			for range 100 {
				h.lane.hurry()()
				time.Sleep(10 * time.Millisecond)
			}
			if h.m.count() != 1 {
				t.Errorf("%d runs went out", h.m.count())
			}
			time.Sleep(2 * time.Minute)
			if h.m.count() != 2 {
				t.Errorf("after the pause %d runs went out", h.m.count())
			}
			end(h)
		})
	})
	t.Run("another output", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			hub, archive := &memory{name: "hub"}, &memory{name: "archive"}
			archive.limits.Batches = 1
			h := hold(t, hub, hub, func(_ *buffer.Options, l *LaneOptions) {
				l.Chain = outputs.NewChain(outputs.ChainOptions{After: 5 * time.Minute, RetryMin: 10 * time.Second, RetryMax: 10 * time.Second}, hub, archive)
			})
			hub.setFail(down("hub", outputs.StoredNo, outputs.Failover))
			for n := hub.attempts(); hub.attempts() == n; {
				time.Sleep(time.Second)
			}
			time.Sleep(time.Second)
			if archive.count() != 1 {
				t.Error("what the first output did not take held the second one up")
			}
			time.Sleep(5 * time.Minute)
			if archive.count() == 0 || hub.count()+archive.count() > 4 {
				t.Errorf("hub has %d, archive %d", hub.count(), archive.count())
			}
			end(h)
		})
	})
	t.Run("stream", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &stream{}
			h := hold(t, s, &s.memory, func(o *buffer.Options, _ *LaneOptions) { o.KeepAcked = time.Hour })
			time.Sleep(2 * time.Minute)
			asked := s.asks()
			s.lose(1) // of two, and the connection
			time.Sleep(3 * time.Second)
			if s.asks() == asked {
				t.Error("it was not asked what it has")
			}
			time.Sleep(5 * time.Minute) // the pause, what was lost, the pause
			if got := s.ranges(); len(got) < 3 || got[0] != "1-1" || got[1] != "2-2" || got[2] != "3-3" || len(got) > 4 {
				t.Errorf("it has %v", got)
			}
			end(h)
		})
	})
	t.Run("back to the first output", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			hub, archive := &memory{name: "hub"}, &memory{name: "archive"}
			hub.limits.Batches = 1
			hub.setFail(down("hub", outputs.StoredNo, outputs.Failover))
			ctx, stop := context.WithCancel(t.Context())
			var h held
			h = hold(t, archive, archive, func(_ *buffer.Options, l *LaneOptions) {
				l.Chain = outputs.NewChain(outputs.ChainOptions{After: time.Hour, Interval: time.Second, Probes: 1, Dwell: time.Second, RetryMin: 10 * time.Second, RetryMax: 10 * time.Second,
					Switched: func(string) { h.lane.Reroute() }}, hub, archive)
				go l.Chain.Run(ctx)
			})
			hub.setFail(nil)
			time.Sleep(3 * time.Minute)
			if hub.count() == 0 || archive.count() != 1 {
				t.Errorf("hub has %d, archive %d", hub.count(), archive.count())
			}
			end(h)
			stop()
		})
	})
	t.Run("output that says nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := holdMemory(t)
			h.m.setFail(down("memory", outputs.StoredMaybe, outputs.Retry))
			time.Sleep(2 * time.Minute)
			n := h.m.attempts()
			time.Sleep(time.Minute)
			if n = h.m.attempts() - n; n < 5 {
				t.Errorf("%d attempts in a minute", n)
			}
			end(h)
		})
	})
	t.Run("output that did not take it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := holdMemory(t)
			h.m.setFail(down("memory", outputs.StoredNo, outputs.Retry))
			time.Sleep(3 * time.Minute) // it fails meanwhile
			h.m.setFail(nil)
			time.Sleep(20 * time.Second)
			if h.m.count() != 2 {
				t.Errorf("it has %d runs", h.m.count())
			}
			end(h)
		})
	})
	t.Run("sent again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &stream{}
			h := hold(t, s, &s.memory, func(o *buffer.Options, _ *LaneOptions) { o.KeepAcked = 24 * time.Hour })
			time.Sleep(30 * time.Minute)
			if s.count() != 10 {
				t.Errorf("%d runs after half an hour", s.count())
			}
			s.lose(1) // nine that go out again
			time.Sleep(3 * time.Minute)
			if n := s.count(); n < 2 || n > 3 {
				t.Errorf("%d runs three minutes later", n)
			}
			time.Sleep(30 * time.Minute)
			if n := s.count(); n != 10 {
				t.Errorf("%d runs in the end", n)
			}
			end(h)
		})
	})
	t.Run("dropped meanwhile", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			out := &planned{}
			h := hold(t, out, &out.memory, func(o *buffer.Options, _ *LaneOptions) {
				o.MaxBytes, o.SegmentBytes, o.Full = 200<<10, 20<<10, buffer.DropOldest
			})
			h.pour(30)
			time.Sleep(5 * time.Minute)
			if lost := h.buf.Stats().Lost[buffer.ReasonFull]; lost == 0 {
				t.Error("nothing was dropped")
			}
			if h.m.count() < 3 {
				t.Errorf("%d runs went out", h.m.count())
			}
			if s := h.log.String(); strings.Contains(s, "ERROR") {
				t.Errorf("log: %s", s)
			}
			end(h)
		})
	})
}

func (s *stream) asks() int { s.mu.Lock(); defer s.mu.Unlock(); return s.asked }
