package outputs

import (
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// ChainOptions are the chain's delays. A zero field is the default.
type ChainOptions struct {
	RetryMin time.Duration // first pause after a failure, 250ms
	RetryMax time.Duration // longest pause, 30s
	Remind   time.Duration // how often a lasting failure is told again, 1m
	Log      *slog.Logger
}

// Chain is the outputs in their order, and what is known of their health. All
// lanes share one chain. Safe for concurrent use.
//
// It holds: while the output in use fails, it is tried again with growing,
// jittered pauses, and the lane's buffer takes what comes meanwhile.
type Chain struct {
	o  ChainOptions
	mu sync.Mutex
	// guarded by mu
	members []*member
}

// member is one output of the chain, guarded by Chain.mu. Its health is that of
// each lane: what fails for one (a batch that is unfit) may work for the others.
type member struct {
	out   Output
	lanes map[string]*health // that fail now
}

type health struct {
	failures int       // in a row
	since    time.Time // of the first of them
	told     time.Time // when the failure was last logged
	last     error
	pause    time.Duration
}

// State is an output's health, for people and metrics.
type State struct {
	Name     string
	Active   bool      // the lanes use it now
	Up       bool      // the last call of each lane succeeded, or there was none yet
	Failures int       // in a row, of the lane that has failed for longest
	Since    time.Time // of the first of them
	Err      error     // the last of them, nil when up
}

// NewChain returns a chain over outs, in failover order. There is at least one.
func NewChain(o ChainOptions, outs ...Output) *Chain {
	o.RetryMin = orDefault(o.RetryMin, 250*time.Millisecond)
	o.RetryMax = orDefault(o.RetryMax, 30*time.Second)
	o.Remind = orDefault(o.Remind, time.Minute)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Chain{o: o}
	for _, out := range outs {
		c.members = append(c.members, &member{out: out, lanes: map[string]*health{}})
	}
	return c
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Current returns the output that lane's next run goes to, and the run's reason:
// "" while that is the first of the chain.
func (c *Chain) Current(lane string) (o Output, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members[0].out, ""
}

// Report tells the chain how a Publish of lane to o ended and returns how long the
// lane must pause before its next one: 0 after a success.
func (c *Chain) Report(lane string, o Output, err error) (pause time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.member(o)
	h, now := m.lanes[lane], time.Now()
	if err == nil {
		if h != nil {
			c.o.Log.Info("output works again", "output", o.Name(), "lane", lane, "failed_for", now.Sub(h.since).Round(time.Millisecond), "attempts", h.failures)
			delete(m.lanes, lane)
		}
		return 0
	}
	if h == nil {
		h = &health{since: now, pause: c.o.RetryMin}
		m.lanes[lane] = h
	}
	_, action := Classify(err)
	h.failures++
	h.last = err
	// Full jitter above a floor: a fleet must not come back in step.
	pause = h.pause/2 + rand.N(h.pause/2+1)
	h.pause = min(2*h.pause, c.o.RetryMax)
	if action == Misconfigured {
		pause = max(pause, min(c.o.RetryMax, time.Minute)/2) // waiting will not help, a person must act
	}
	if h.failures == 1 || now.Sub(h.told) >= c.o.Remind {
		h.told = now
		c.o.Log.Warn("output fails; records stay in the buffer and the run is tried again", "output", o.Name(), "lane", lane, "error", err, "class", action.String(),
			"failing_for", now.Sub(h.since).Round(time.Millisecond), "attempts", h.failures, "next_try_in", pause.Round(time.Millisecond))
	}
	return pause
}

// States returns every output's health, in chain order.
func (c *Chain) States() []State {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := make([]State, len(c.members))
	for i, m := range c.members {
		s[i] = State{Name: m.out.Name(), Active: i == 0, Up: len(m.lanes) == 0}
		for _, h := range m.lanes {
			if s[i].Since.IsZero() || h.since.Before(s[i].Since) {
				s[i].Failures, s[i].Since, s[i].Err = h.failures, h.since, h.last
			}
		}
	}
	return s
}

// Failing reports whether the last call of o for lane failed.
func (c *Chain) Failing(lane string, o Output) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.member(o).lanes[lane] != nil
}

// member returns that of o, which came from Current. mu is held.
func (c *Chain) member(o Output) *member {
	return c.members[slices.IndexFunc(c.members, func(m *member) bool { return m.out == o })]
}
