package outputs

import (
	"log/slog"
	"math/rand/v2"
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

// member is one output of the chain and its health, guarded by Chain.mu.
type member struct {
	out      Output
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
	Up       bool      // its last call succeeded, or it was not called yet
	Failures int       // in a row
	Since    time.Time // of the first failure in a row
	Err      error     // the last one, nil when up
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
		c.members = append(c.members, &member{out: out})
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

// Report tells the chain how a Publish to o ended and returns how long the lane
// must pause before its next one: 0 after a success.
func (c *Chain) Report(o Output, err error) (pause time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.members {
		if m.out == o {
			return c.report(m, err)
		}
	}
	return 0
}

func (c *Chain) report(m *member, err error) time.Duration {
	now := time.Now()
	log := c.o.Log.With("output", m.out.Name())
	if err == nil {
		if m.failures > 0 {
			log.Info("output works again", "failed_for", now.Sub(m.since).Round(time.Millisecond), "attempts", m.failures)
		}
		*m = member{out: m.out}
		return 0
	}
	_, action := Classify(err)
	if m.failures == 0 {
		m.since, m.pause = now, c.o.RetryMin
	}
	m.failures++
	m.last = err
	// Full jitter above a floor: a fleet must not come back in step.
	pause := m.pause/2 + rand.N(m.pause/2+1)
	m.pause = min(2*m.pause, c.o.RetryMax)
	if action == Misconfigured {
		pause = max(pause, min(c.o.RetryMax, time.Minute)/2) // waiting will not help, a person must act
	}
	if m.failures == 1 || now.Sub(m.told) >= c.o.Remind {
		m.told = now
		log.Warn("output fails; records stay in the buffer and the run is tried again", "error", err, "class", action.String(),
			"failing_for", now.Sub(m.since).Round(time.Millisecond), "attempts", m.failures, "next_try_in", pause.Round(time.Millisecond))
	}
	return pause
}

// States returns every output's health, in chain order.
func (c *Chain) States() []State {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := make([]State, len(c.members))
	for i, m := range c.members {
		s[i] = State{Name: m.out.Name(), Active: i == 0, Up: m.failures == 0, Failures: m.failures, Since: m.since, Err: m.last}
	}
	return s
}

// Close closes all outputs, last first, and returns the first error.
func (c *Chain) Close() error {
	var first error
	for i := len(c.members) - 1; i >= 0; i-- {
		if err := c.members[i].out.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Failing reports whether the last call of o failed.
func (c *Chain) Failing(o Output) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.members {
		if m.out == o {
			return m.failures > 0
		}
	}
	return false
}
