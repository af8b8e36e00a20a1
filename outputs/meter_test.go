package outputs

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer/batch"
)

// slow takes everything, after a while.
type slow struct {
	far
	takes time.Duration
}

func (s *slow) Publish(ctx context.Context, run *batch.Run) (int, error) {
	time.Sleep(s.takes)
	return s.far.Publish(ctx, run)
}

func runFor(lane string, attempt int, first uint64, sizes ...int) *batch.Run {
	run := &batch.Run{Lane: lane, Attempt: attempt}
	for i, n := range sizes {
		run.Batches = append(run.Batches, batch.Batch{Header: batch.Header{First: first + uint64(i), Count: 1}, Payload: make([]byte, n)})
	}
	return run
}

// While a call lasts its batches are in flight; then it counts in the bucket of how long it took.
func TestWorkInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := &slow{far: far{name: "hub"}, takes: 25 * time.Millisecond}
		c := NewChain(ChainOptions{}, hub)
		if !c.Moved("main").IsZero() {
			t.Error("moved before anything was sent")
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.Publish(t.Context(), "main", hub, runFor("main", 1, 1, 10, 20))
		}()
		go c.Publish(t.Context(), "audit", hub, runFor("audit", 2, 1, 5))
		synctest.Wait()
		w := c.Work()[0]
		if w.Output != "hub" || w.InFlight != 3 || w.InFlightBytes != 35 || w.Repeats != 1 || w.Took != 0 {
			t.Errorf("while calls last: %+v", w)
		}
		<-done
		synctest.Wait()
		w = c.Work()[0]
		if w.InFlight != 0 || w.InFlightBytes != 0 || w.Took != 50*time.Millisecond {
			t.Errorf("afterwards: %+v", w)
		}
		for i, n := range w.Latency {
			want := uint64(0)
			if i < len(LatencyBounds) && LatencyBounds[i] == hub.takes { // a bound is inclusive
				want = 2
			}
			if n != want {
				t.Errorf("bucket %d: %d calls, want %d", i, n, want)
			}
		}
		if !c.Moved("main").Equal(time.Now()) || !c.Moved("nobody").IsZero() {
			t.Errorf("acknowledged at %v, it is %v", c.Moved("main"), time.Now())
		}
		hub.takes = LatencyBounds[len(LatencyBounds)-1] + 1
		c.Publish(t.Context(), "main", hub, runFor("main", 1, 3, 1))
		if n := c.Work()[0].Latency[len(LatencyBounds)]; n != 1 {
			t.Errorf("%d calls above the last bound, want 1", n)
		}
	})
}

func TestWorkFailures(t *testing.T) {
	hub := &far{name: "hub"}
	for _, tt := range []struct {
		name   string
		answer error
		cancel bool
		want   [len(actions)]uint64
	}{
		{"retry", hub.fail(Retry, StoredMaybe, errors.New("reset")), false, [len(actions)]uint64{1, 0, 0, 0}},
		{"failover", hub.fail(Failover, StoredNo, errors.New("full")), false, [len(actions)]uint64{0, 1, 0, 0}},
		{"unfit", hub.fail(Unfit, StoredNo, errors.New("large")), false, [len(actions)]uint64{0, 0, 1, 0}},
		{"misconfigured", hub.fail(Misconfigured, StoredNo, errors.New("denied")), false, [len(actions)]uint64{0, 0, 0, 1}},
		{"unclassified", errors.New("odd"), false, [len(actions)]uint64{1, 0, 0, 0}},
		{"a class that does not exist", hub.fail(9, StoredNo, errors.New("odd")), false, [len(actions)]uint64{}},
		{"new connection", hub.fail(Retry, StoredNo, ErrUnchecked), false, [len(actions)]uint64{}},
		{"stopped", hub.fail(Retry, StoredMaybe, context.Canceled), true, [len(actions)]uint64{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := &far{name: "hub", answer: tt.answer}
				c := NewChain(ChainOptions{}, hub)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.cancel {
					cancel()
				}
				if _, _, err := c.Publish(ctx, "main", hub, runFor("main", 1, 1, 1)); err == nil {
					t.Fatal("no error")
				}
				w := c.Work()[0]
				if w.Failures != tt.want || w.InFlight != 0 || w.Took != 0 || !c.Moved("main").IsZero() {
					t.Errorf("%+v, want failures %v", w, tt.want)
				}
				for i, n := range w.Failures {
					if at := w.Failed[i]; at.IsZero() != (n == 0) || n > 0 && !at.Equal(time.Now()) {
						t.Errorf("%s: %d, the last at %v", actions[i], n, at)
					}
				}
			})
		})
	}
}

func TestWorkProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, archive := two()
		l := world(t, ChainOptions{}, hub, archive)
		hub.stop(Failover)
		l.until(t, time.Minute, "failover", l.uses("archive"))
		l.until(t, 10*time.Minute, "two probes", func() bool { return l.chain.Work()[0].Probes == 2 })
		hub.start()
		l.until(t, 10*time.Minute, "failback", l.uses("hub"))
		if w := l.chain.Work(); w[0].Probes != 5 || w[0].FailedProbes != 2 || w[1].Probes != 0 {
			t.Errorf("%+v", w)
		}
	})
}

// A long run that gets on is progress while it lasts; what a failing output takes is
// none until it acknowledges.
func TestMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := &far{name: "hub", moving: 5 * time.Minute} // a second for each step
		c := NewChain(ChainOptions{}, hub)
		publish := func() {
			done := make(chan struct{})
			go func() { defer close(done); c.Publish(t.Context(), "main", hub, runFor("main", 1, 1, 1)) }()
			t.Cleanup(func() { <-done })
		}
		begin := time.Now()
		publish()
		time.Sleep(200*time.Second + time.Millisecond)
		synctest.Wait()
		if got := c.Moved("main"); !got.Equal(begin.Add(200 * time.Second)) {
			t.Errorf("moved at %v, want %v", got.Sub(begin), 200*time.Second)
		}
		time.Sleep(100 * time.Second)
		synctest.Wait()
		acked := begin.Add(300 * time.Second)
		if got := c.Moved("main"); !got.Equal(acked) {
			t.Errorf("acknowledged at %v, want %v", got.Sub(begin), acked.Sub(begin))
		}
		hub.stop(Retry)
		for range 2 {
			publish()
			time.Sleep(301 * time.Second)
			synctest.Wait()
		}
		publish()
		time.Sleep(200 * time.Second)
		synctest.Wait()
		if got := c.Moved("main"); !got.Equal(acked) {
			t.Errorf("while it fails: moved at %v, want %v", got.Sub(begin), acked.Sub(begin))
		}
	})
}
