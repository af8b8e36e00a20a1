package outputs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"spillway/buffer/batch"
)

// ChainOptions are the chain's delays and whom it tells. A zero field is the default.
type ChainOptions struct {
	After      time.Duration // continuous failure or silence after which an output is left, 30s
	RoundRobin bool          // stay with an output until it fails, then take the next one in turn; nothing is probed
	Interval   time.Duration // between probes of an output that was left, 60s
	Probes     int           // that must succeed in a row before it is used again, 3
	Dwell      time.Duration // how long it stays left at least, 60s
	RetryMin   time.Duration // first pause after a failure, 250ms
	RetryMax   time.Duration // longest pause, 30s
	Remind     time.Duration // how often a lasting failure is told again, 1m
	Log        *slog.Logger

	// Pending returns how many records of lane wait, for the log. It may be nil.
	Pending func(lane string) uint64
	// Switched is called when a lane has another output without having asked for
	// it: what it gathers for the old one is void. It may be nil and must not wait.
	Switched func(lane string)
}

// Chain is the outputs in their order, what is known of their health, and which
// of them each lane uses. All lanes share one chain. Safe for concurrent use.
//
// Health is that of an output for one lane: what fails for one (a subject that is
// not allowed) may work for the others. But a lane that has had no success with an
// output since another lane began to fail with it goes along when that one leaves
// it. The states, and what leads from one to another:
//
//	      a run fails           After, or at once if the error says so,
//	                            and another output is usable
//	up ────────────▶ failing ─────────────▶ down ◀─────────┐
//	 ▲ ◀──────────── │   ▲                   │ Probes in a row and Dwell,      │ the run fails
//	 │  a run arrives    │ no other          │ or one while all others fail    │
//	 │                   └ is usable: hold   ▼                                 │
//	 └──────────────────────────────────── trial ──────────────────────────────┘
//	            a run arrives
//
// An output that is down is probed; on trial, the next real run decides. While no
// other output is usable a lane holds: it stays, tries again with growing, jittered
// pauses, and its buffer takes what comes.
type Chain struct {
	o    ChainOptions
	wake chan struct{} // tells Run that there is something new to probe

	mu sync.Mutex
	// guarded by mu
	members  []*member
	routes   map[string]*route
	switches map[Switch]uint64
}

// member is one output of the chain, guarded by Chain.mu.
type member struct {
	i     int
	out   Output
	lanes map[string]*health
	work  Work
}

// Health is an output's state for one lane.
type Health uint8

// States of an output for a lane.
const (
	Up      Health = 0
	Failing Health = 1 // the last run failed, the clock runs
	Down    Health = 2 // left, and probed
	Trial   Health = 3 // probed with success: the next run decides
)

// String returns the state's name in metrics and logs.
func (h Health) String() string { return [...]string{"up", "failing", "down", "trial"}[h&3] }

type health struct {
	state    Health
	ok       time.Time     // last success
	since    time.Time     // when the failure began: nothing has got through since
	failures int           // in a row
	asking   bool          // all of them were of Last
	told     time.Time     // when the failure was last logged
	last     error         // of the failure
	pause    time.Duration // before the next attempt, or probe while all fail

	away    time.Time // down: since when, trials that failed included
	left    time.Time // down: since the last trial
	good    int       // down: probes that succeeded in a row
	next    time.Time // down: of the next probe
	probing bool      // one is under way
}

// route is the way of one lane.
type route struct {
	at   int // member in use
	from int // and before it, for the log

	alone bool         // a run was unfit: the next one is the head batch alone
	head  uint64       // number of the head batch that alone and unfit are about
	unfit map[int]bool // members that can't take it

	held  time.Time // since when every output fails; zero: they don't
	told  time.Time // when that was last logged
	turns int       // round robin: outputs that were left since the last success
	pause time.Duration
	acked time.Time // when an output last took something; zero: not yet
	call  *watch    // of Publish, under way; nil: none
}

// Switch is a lane's way from one output to another.
type Switch struct{ Lane, From, To string }

// Turn is what a lane does next.
type Turn struct {
	// Output takes the next run. It is nil when every output of the chain has called
	// the head batch unfit: nobody will ever take it.
	Output Output
	// Reason is Run.Reason of an object: "failover" while a Stream of higher rank was
	// left, "large" for what is unfit for one.
	Reason string
	// Alone says that the head batch, which begins with record Head, must be the whole
	// run. If another one is there now, Settled makes the chain forget the old one.
	Alone bool
	Head  uint64
}

// NewChain returns a chain over outs, in failover order. There is at least one.
func NewChain(o ChainOptions, outs ...Output) *Chain {
	o.After = orDefault(o.After, 30*time.Second)
	o.Interval = orDefault(o.Interval, time.Minute)
	o.Dwell = orDefault(o.Dwell, time.Minute)
	o.Probes = cmp.Or(o.Probes, 3)
	o.RetryMin = orDefault(o.RetryMin, 250*time.Millisecond)
	o.RetryMax = orDefault(o.RetryMax, 30*time.Second)
	o.Remind = orDefault(o.Remind, time.Minute)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Pending == nil {
		o.Pending = func(string) uint64 { return 0 }
	}
	if o.Switched == nil {
		o.Switched = func(string) {}
	}
	c := &Chain{o: o, wake: make(chan struct{}, 1), routes: map[string]*route{}, switches: map[Switch]uint64{}}
	for i, out := range outs {
		c.members = append(c.members, &member{i: i, out: out, lanes: map[string]*health{}})
	}
	return c
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Turn returns what lane does next.
func (c *Chain) Turn(lane string) Turn {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.route(lane)
	m := c.members[r.at]
	if r.unfit[m.i] {
		if m = c.fit(lane, r); m == nil {
			return Turn{Alone: true, Head: r.head}
		}
	}
	t := Turn{Output: m.out, Alone: r.alone, Head: r.head}
	if _, object := m.out.(Planner); object {
		for i, higher := range c.members[:m.i] {
			if _, stream := higher.out.(Stream); stream && r.unfit[i] {
				t.Reason = "large"
			} else if stream && t.Reason == "" {
				t.Reason = "failover"
			}
		}
	}
	return t
}

// fit returns the output for a head batch that is unfit for the lane's own: the
// first usable one, else one that is down and has not been asked. mu is held.
func (c *Chain) fit(lane string, r *route) (m *member) {
	for _, o := range c.members {
		if r.unfit[o.i] {
			continue
		}
		if o.state(lane) != Down {
			return o
		}
		if m == nil {
			m = o
		}
	}
	return m
}

// Usable returns the output called name if lane may hand something over to it now,
// nil if it is down, fails and is not the lane's own, or is not in the chain.
func (c *Chain) Usable(lane, name string) Output {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.route(lane)
	for _, m := range c.members {
		if s := m.state(lane); m.out.Name() == name && s != Down && (s != Failing || m.i == r.at) {
			return m.out
		}
	}
	return nil
}

// Failing reports whether lane's last run to o failed, or o was left.
func (c *Chain) Failing(lane string, o Output) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.member(o).state(lane)
	return s == Failing || s == Down
}

// Publish is o.Publish under the chain's eyes: it ends a call in which nothing gets
// through for After, if another output is usable, and takes note of how it went. It
// returns how long the lane must pause before its next attempt, 0 after a success
// or when another output is to be used at once.
func (c *Chain) Publish(ctx context.Context, lane string, o Output, run *batch.Run) (accepted int, pause time.Duration, err error) {
	w := c.watch(ctx, lane, o)
	c.begins(w, run)
	accepted, err = o.Publish(w.ctx, run)
	err = w.end(err)
	c.ends(w, run, accepted, err)
	if errors.Is(err, ErrUnchecked) || err != nil && ctx.Err() != nil {
		return accepted, 0, err // no failure of the output
	}
	return accepted, c.note(w, run, accepted, err), err
}

// Last is o.Last under the same eyes.
func (c *Chain) Last(ctx context.Context, lane string, o Stream) (mark Mark, pause time.Duration, err error) {
	w := c.watch(ctx, lane, o)
	mark, err = o.Last(w.ctx, lane)
	err = w.end(err)
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		// That it can be asked does not prove that it stores, but a failure to be asked is over.
		if h := w.m.health(lane); h.state == Failing && h.asking {
			c.works(lane, c.route(lane), w.m)
		}
		return mark, 0, nil
	}
	if ctx.Err() != nil {
		return mark, 0, err
	}
	return mark, c.note(w, nil, 0, err), err
}

// watch is one call of an output for a lane.
type watch struct {
	c    *Chain
	lane string
	m    *member
	ctx  context.Context // ends with silence

	cancel context.CancelCauseFunc
	timer  *time.Timer
	moved  atomic.Int64 // when something got through last, since began; 0: nothing yet
	began  time.Time
	since  time.Time // when the silence began, as of the start of the call
	cut    atomic.Bool
}

var errSilence = errors.New("nothing got through")

func (c *Chain) watch(ctx context.Context, lane string, o Output) *watch {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &watch{c: c, lane: lane, m: c.member(o), began: time.Now()}
	w.since = w.began
	if h := w.m.lanes[lane]; h != nil && h.state == Failing {
		w.since = h.since
	}
	ctx, w.cancel = context.WithCancelCause(ctx)
	w.ctx = WithMoved(ctx, func() { w.moved.Store(max(1, int64(time.Since(w.began)))) })
	if len(c.members) > 1 {
		w.timer = time.AfterFunc(time.Until(w.deadline()), w.look)
	}
	return w
}

// silent is since when nothing has got through.
func (w *watch) silent() time.Time {
	if d := w.moved.Load(); d > 0 {
		return w.began.Add(time.Duration(d))
	}
	return w.since
}

// deadline is when the call has been silent for too long. Each call has a while of
// its own, also the last one before the failover.
func (w *watch) deadline() time.Time {
	after := w.c.o.After
	end, least := w.silent().Add(after), w.began.Add(min(after/10, time.Second))
	if end.Before(least) {
		return least
	}
	return end
}

// look ends the call if it is time.
func (w *watch) look() {
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.ctx.Err() != nil {
		return
	}
	left := time.Until(w.deadline())
	switch {
	case left > 0:
		w.timer.Reset(left)
	case c.alternative(w.lane, c.route(w.lane), w.m) != nil:
		w.cut.Store(true)
		w.cancel(errSilence)
	default: // hold; look again when that may have changed
		w.timer.Reset(c.o.RetryMin)
	}
}

// end ends the watch and returns how the call ended, in words of its own if it was
// cut short.
func (w *watch) end(err error) error {
	if w.timer != nil {
		w.timer.Stop()
	}
	w.cancel(nil)
	var e *Error
	if w.cut.Load() && errors.As(err, &e) {
		told := *e
		told.Err = fmt.Errorf("%w for %v: %w", errSilence, time.Since(w.silent()).Round(time.Millisecond), e.Err)
		return &told
	}
	return err
}

// note takes down how a call ended: of run's batches, accepted arrived. run is nil
// when the far side was only asked.
func (c *Chain) note(w *watch, run *batch.Run, accepted int, err error) (pause time.Duration) {
	c.mu.Lock()
	r := c.route(w.lane)
	if accepted > 0 {
		r.alone, r.unfit = false, nil
	}
	var also []string
	_, action := Classify(err)
	if err != nil {
		w.m.work.failed(action)
	}
	if err == nil || accepted > 0 || action == Unfit { // it answers
		c.works(w.lane, r, w.m)
	}
	switch {
	case err == nil:
	case action == Unfit:
		if run == nil {
			break
		}
		head := run.Batches[accepted].First
		if r.head != head {
			r.head, r.unfit = head, nil
		}
		if len(run.Batches) == 1 {
			if r.unfit == nil {
				r.unfit = map[int]bool{}
			}
			r.unfit[w.m.i] = true
			c.o.Log.Debug("batch is unfit", "output", w.m.out.Name(), "lane", w.lane, "error", err)
		}
		r.alone = true
	default:
		pause, also = c.fails(w, r, action, run == nil, err)
	}
	c.mu.Unlock()
	for _, lane := range also {
		c.o.Switched(lane)
	}
	return pause
}

// Settled makes the chain forget what it knows of an unfit batch: it is out of the way.
func (c *Chain) Settled(lane string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.route(lane)
	r.alone, r.unfit = false, nil
}

// works notes a success of m for lane. mu is held.
func (c *Chain) works(lane string, r *route, m *member) {
	now := time.Now()
	h := m.health(lane)
	was, since, away, attempts := h.state, h.since, h.away, h.failures
	if was == Down { // a late answer: as good as a probe
		h.ok = now
		h.good++
		return
	}
	*h = health{ok: now}
	held := r.held
	r.held, r.turns, r.pause = time.Time{}, 0, 0
	switch {
	case was == Trial && m.i < r.from:
		c.switched(lane, r)
		c.o.Log.Info("failback", "from", c.members[r.from].out.Name(), "to", m.out.Name(), "lane", lane,
			"away_for", now.Sub(away).Round(time.Millisecond), "pending", c.o.Pending(lane))
	case was == Trial:
		c.switched(lane, r)
		c.o.Log.Warn("failover", "from", c.members[r.from].out.Name(), "to", m.out.Name(), "lane", lane,
			"pending", c.o.Pending(lane), "next", c.outlook())
	case was == Failing:
		c.o.Log.Info("output works again", "output", m.out.Name(), "lane", lane, "failed_for", now.Sub(since).Round(time.Millisecond), "attempts", attempts)
	}
	if !held.IsZero() {
		c.o.Log.Info("records flow again", "lane", lane, "output", m.out.Name(), "held_for", now.Sub(held).Round(time.Millisecond), "pending", c.o.Pending(lane))
	}
}

// outlook says what follows a failover.
func (c *Chain) outlook() string {
	if c.o.RoundRobin {
		return "it stays so until this output fails too"
	}
	return "the outputs before it are probed every " + c.o.Interval.String()
}

// switched counts the switch that r has made. mu is held.
func (c *Chain) switched(lane string, r *route) {
	c.switches[Switch{lane, c.members[r.from].out.Name(), c.members[r.at].out.Name()}]++
}

// fails notes a failure. It returns how long the lane pauses, and other lanes that
// have another output now. mu is held.
func (c *Chain) fails(w *watch, r *route, action Action, asking bool, err error) (pause time.Duration, also []string) {
	m, lane, now := w.m, w.lane, time.Now()
	h := m.health(lane)
	trial := h.state == Trial
	if h.state == Up {
		h.since, h.failures, h.told, h.pause, h.asking = w.silent(), 0, time.Time{}, c.o.RetryMin, true
	}
	h.failures++
	h.last = err
	h.asking = h.asking && asking
	limit := c.o.After
	var e *Error
	if errors.As(err, &e) && e.Patience > 0 {
		limit = min(limit, e.Patience)
	}
	alt := c.alternative(lane, r, m)
	if m.i != r.at && h.state == Down && !r.unfit[r.at] {
		return 0, nil // another lane found out meanwhile
	}
	due := trial || w.cut.Load() || action == Failover || action == Misconfigured || now.Sub(h.since) >= limit
	if m.i != r.at {
		// A batch that is unfit for the lane's own output, or an object that was planned
		// for this one: the lane's own does not change.
		pause = c.jitter(&h.pause)
		switch {
		case h.state == Down:
		case due && !c.o.RoundRobin:
			c.down(h, now)
		default:
			h.state = Failing
		}
		c.tell(lane, m, h, action, pause, nil, 0)
		if !r.unfit[r.at] {
			pause = 0
		}
		return pause, nil
	}
	h.state = Failing
	if due && alt != nil {
		return c.leave(lane, r, m, alt, action, trial)
	}
	// Full jitter above a floor: a fleet must not come back in step.
	pause = c.jitter(&h.pause)
	if action == Misconfigured {
		pause = max(pause, min(c.o.RetryMax, time.Minute)/2) // waiting will not help, a person must act
	}
	if due && len(c.members) > 1 {
		c.hold(lane, r, pause, now)
		return pause, nil
	}
	if alt != nil {
		pause = min(pause, max(0, h.since.Add(limit).Sub(now)))
	}
	c.tell(lane, m, h, action, pause, alt, limit)
	return pause, nil
}

// tell logs a failure once, and again each Remind. mu is held.
func (c *Chain) tell(lane string, m *member, h *health, action Action, pause time.Duration, alt *member, limit time.Duration) {
	now := time.Now()
	if !h.told.IsZero() && now.Sub(h.told) < c.o.Remind {
		return
	}
	h.told = now
	args := []any{"output", m.out.Name(), "lane", lane, "error", h.last, "class", action.String(),
		"failing_for", now.Sub(h.since).Round(time.Millisecond), "attempts", h.failures, "next_try_in", pause.Round(time.Millisecond)}
	if alt != nil {
		args = append(args, "failover_in", max(0, h.since.Add(limit).Sub(now)).Round(time.Millisecond), "to", alt.out.Name())
	}
	level := slog.LevelWarn
	if action == Misconfigured {
		level = slog.LevelError // a person must act
	}
	c.o.Log.Log(context.Background(), level, "output fails; records stay in the buffer and the run is tried again", args...)
}

// jitter returns a pause of half of *d to all of it, and doubles *d.
func (c *Chain) jitter(d *time.Duration) time.Duration {
	pause := *d/2 + rand.N(*d/2+1)
	*d = min(2**d, c.o.RetryMax)
	return pause
}

// hold says that every output fails lane, and makes the others be probed sooner. mu is held.
func (c *Chain) hold(lane string, r *route, pause time.Duration, now time.Time) {
	if r.held.IsZero() {
		r.held, r.told = now, time.Time{}
		for _, m := range c.members {
			if o := m.lanes[lane]; o != nil && o.state == Down {
				o.next = now.Add(c.jitter(&o.pause))
			}
		}
		c.again()
	}
	if r.told.IsZero() || now.Sub(r.told) >= c.o.Remind {
		r.told = now
		args := []any{"lane", lane, "pending", c.o.Pending(lane), "held_for", now.Sub(r.held).Round(time.Millisecond), "next_try_in", pause.Round(time.Millisecond)}
		for _, m := range c.members {
			if o := m.lanes[lane]; o != nil && o.last != nil {
				args = append(args, m.out.Name(), o.last)
			}
		}
		c.o.Log.Error("all outputs fail; records stay in the buffer", args...)
	}
}

// alternative returns the output to use instead of m, nil if there is none. mu is held.
func (c *Chain) alternative(lane string, r *route, m *member) *member {
	if c.o.RoundRobin {
		for i := 1; i < len(c.members); i++ {
			if o := c.members[(m.i+i)%len(c.members)]; !r.unfit[o.i] {
				return o
			}
		}
		return nil
	}
	for _, o := range c.members {
		if o != m && !r.unfit[o.i] && o.state(lane) != Down {
			return o
		}
	}
	return nil
}

// leave moves lane from m to alt, and with it the lanes that know no better. mu is held.
func (c *Chain) leave(lane string, r *route, m, alt *member, action Action, trial bool) (pause time.Duration, also []string) {
	mine := *m.lanes[lane]
	pause = c.move(lane, r, m, alt, action, trial)
	for name, other := range c.routes {
		if name == lane || other.at != m.i || c.o.RoundRobin { // in turn, each lane has its own way and pauses
			continue
		}
		h := m.health(name)
		if h.ok.After(mine.since) || h.state == Trial {
			continue // it knows better, or finds out next
		}
		if alt := c.alternative(name, other, m); alt != nil {
			h.since, h.last, h.failures = mine.since, mine.last, mine.failures
			c.move(name, other, m, alt, action, false)
			also = append(also, name)
		}
	}
	return pause, also
}

// move is leave for one lane. mu is held.
func (c *Chain) move(lane string, r *route, m, alt *member, action Action, trial bool) (pause time.Duration) {
	now := time.Now()
	h := m.health(lane)
	r.from, r.at = m.i, alt.i
	if c.o.RoundRobin {
		h.state = Failing
		if r.turns++; r.turns >= len(c.members) {
			r.pause = max(r.pause, c.o.RetryMin)
			pause = c.jitter(&r.pause)
			c.hold(lane, r, pause, now)
		}
		delete(alt.lanes, lane) // its clock begins anew, it is its turn
		if pause > 0 {
			return pause
		}
	} else {
		c.down(h, now)
	}
	args := []any{"from", m.out.Name(), "to", alt.out.Name(), "lane", lane, "error", h.last, "class", action.String(),
		"failing_for", now.Sub(h.since).Round(time.Millisecond), "attempts", h.failures, "pending", c.o.Pending(lane)}
	switch {
	case trial && now.Sub(h.told) < c.o.Remind:
	case trial:
		h.told = now
		c.o.Log.Info("output fails again as soon as it is used", args...)
	case action == Misconfigured:
		c.o.Log.Error("failover", append(args, "next", "a person must act; "+c.outlook())...)
	default:
		c.o.Log.Warn("failover", append(args, "next", c.outlook())...)
	}
	if !trial {
		c.switched(lane, r)
	}
	return pause
}

// down makes h that of an output that was left. mu is held.
func (c *Chain) down(h *health, now time.Time) {
	if h.state != Trial && h.state != Down || h.away.IsZero() {
		h.away = now
	}
	h.state, h.left, h.good = Down, now, 0
	h.pause = max(h.pause, c.o.RetryMin)
	h.next = now.Add(c.o.Interval/2 + rand.N(c.o.Interval/2+1)) // a fleet does not probe in step
	c.again()
}

// again makes Run look at what there is to probe. mu is held.
func (c *Chain) again() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run probes the outputs that were left, until ctx ends, and returns when no probe
// is under way. One of them at a time for each output and lane.
func (c *Chain) Run(ctx context.Context) {
	var probes sync.WaitGroup
	defer probes.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
		}
		due, next := c.due(time.Now())
		for _, p := range due {
			probes.Go(func() {
				start := time.Now()
				limit, cancel := context.WithTimeout(ctx, max(c.o.Interval, 5*time.Second))
				err := p.m.out.Probe(limit, p.lane)
				cancel()
				if ctx.Err() == nil {
					c.probed(p, start, err)
				}
			})
		}
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
	}
}

type probe struct {
	m    *member
	lane string
}

// due returns the probes that are due at now, and when the next one will be.
func (c *Chain) due(now time.Time) (due []probe, next time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.members {
		for lane, h := range m.lanes {
			switch {
			case h.state != Down || h.probing:
			case !h.next.After(now):
				h.probing = true
				due = append(due, probe{m, lane})
			case next.IsZero() || h.next.Before(next):
				next = h.next
			}
		}
	}
	return due, next
}

// probed takes down how a probe that began at start ended.
func (c *Chain) probed(p probe, start time.Time, err error) {
	c.mu.Lock()
	h, r, now := p.m.health(p.lane), c.route(p.lane), time.Now()
	h.probing = false
	p.m.work.Probes++
	if err != nil {
		p.m.work.FailedProbes++
	}
	defer c.again()
	held := !r.held.IsZero()
	h.next = start.Add(c.o.Interval)
	if held {
		h.next = now.Add(c.jitter(&h.pause))
	}
	if err != nil {
		h.good, h.last = 0, err
		c.mu.Unlock()
		c.o.Log.Debug("probe failed", "output", p.m.out.Name(), "lane", p.lane, "error", err)
		return
	}
	h.good++
	c.o.Log.Debug("probe ok", "output", p.m.out.Name(), "lane", p.lane, "in_a_row", h.good, "of", c.o.Probes)
	moved := false
	switch at := c.members[r.at]; {
	case h.state != Down:
	case held && at != p.m: // anything is better
		left := at.health(p.lane)
		c.down(left, now)
		left.next = now.Add(c.jitter(&left.pause))
		moved = true
	case p.m.i < r.at:
		moved = h.good >= c.o.Probes && now.Sub(h.left) >= c.o.Dwell
	case h.good >= c.o.Probes: // it waits behind the one in use
		c.o.Log.Info("output works again", "output", p.m.out.Name(), "lane", p.lane, "failed_for", now.Sub(h.since).Round(time.Millisecond))
		*h = health{ok: h.ok}
	}
	if moved {
		h.state = Trial
		r.from, r.at = r.at, p.m.i
	}
	c.mu.Unlock()
	if moved {
		c.o.Switched(p.lane)
	}
}

// route returns that of lane. A new lane begins with the first output, unless
// another lane has left it. mu is held.
func (c *Chain) route(lane string) *route {
	r := c.routes[lane]
	if r != nil {
		return r
	}
	r = &route{}
	c.routes[lane] = r
	for _, m := range c.members {
		var left *health
		for _, h := range m.lanes {
			if h.state == Down {
				left = h
			}
		}
		if left == nil {
			r.at = m.i
			return r
		}
		h := m.health(lane)
		*h = *left
		h.probing = false
	}
	c.members[0].lanes[lane].state = Failing // all are down: it holds
	return r
}

// member returns that of o, which came from Turn or Usable. mu is held.
func (c *Chain) member(o Output) *member {
	return c.members[slices.IndexFunc(c.members, func(m *member) bool { return m.out == o })]
}

func (m *member) health(lane string) *health {
	h := m.lanes[lane]
	if h == nil {
		h = &health{}
		m.lanes[lane] = h
	}
	return h
}

func (m *member) state(lane string) Health {
	if h := m.lanes[lane]; h != nil {
		return h.state
	}
	return Up
}

// State is an output's health for one lane, for people and metrics.
type State struct {
	Output, Lane string
	Health       Health
	Active       bool      // the lane uses it now
	Untried      bool      // up by presumption: nothing of the lane got through yet, or failed to
	Failures     int       // in a row
	Since        time.Time // of the first of them
	Err          error     // the last of them, nil when up
}

// States returns the health of every output for every lane that has shipped, in
// the order of the chain and of the lanes' names.
func (c *Chain) States() (all []State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lanes := make([]string, 0, len(c.routes))
	for lane := range c.routes {
		lanes = append(lanes, lane)
	}
	slices.Sort(lanes)
	for _, m := range c.members {
		for _, lane := range lanes {
			s := State{Output: m.out.Name(), Lane: lane, Active: c.routes[lane].at == m.i}
			if h := m.lanes[lane]; h != nil && h.state != Up {
				s.Health, s.Failures, s.Since, s.Err = h.state, h.failures, h.since, h.last
			}
			s.Untried = s.Health == Up && (m.lanes[lane] == nil || m.lanes[lane].ok.IsZero())
			all = append(all, s)
		}
	}
	return all
}

// Switches returns how often lanes went from one output to another.
func (c *Chain) Switches() map[Switch]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := make(map[Switch]uint64, len(c.switches))
	for s, v := range c.switches {
		n[s] = v
	}
	return n
}
