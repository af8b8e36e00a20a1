package outputs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer/batch"
)

// far is an output whose answers a test chooses.
type far struct {
	name string

	mu      sync.Mutex
	answer  error // of Publish; nil: it takes everything
	probe   error
	silent  bool // Publish answers nothing until its context ends
	moving  time.Duration
	largest int // more bytes in a batch are unfit; 0: any

	runs   []string // first-last of what was taken
	tries  int
	probes []time.Time
}

func (f *far) Name() string         { return f.name }
func (f *far) Limits() batch.Limits { return batch.Limits{} }
func (f *far) Counts() Counts       { return Counts{} }
func (f *far) Close() error         { return nil }

func (f *far) set(change func()) { f.mu.Lock(); defer f.mu.Unlock(); change() }

func (f *far) Publish(ctx context.Context, run *batch.Run) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries++
	if f.moving > 0 { // slow, but something gets through each second
		f.mu.Unlock()
		for end := time.Now().Add(f.moving); time.Now().Before(end) && ctx.Err() == nil; {
			time.Sleep(time.Second)
			Moved(ctx)
		}
		f.mu.Lock()
	}
	if f.silent {
		f.mu.Unlock()
		<-ctx.Done()
		f.mu.Lock()
		return 0, f.fail(Retry, StoredMaybe, context.Cause(ctx))
	}
	if f.answer != nil {
		return 0, f.answer
	}
	for i := range run.Batches {
		if f.largest > 0 && len(run.Batches[i].Payload) > f.largest {
			return 0, f.fail(Unfit, StoredNo, errors.New("too large"))
		}
	}
	f.runs = append(f.runs, fmt.Sprintf("%s%d-%d", run.Reason, run.First(), run.Last()))
	return len(run.Batches), nil
}

func (f *far) Probe(context.Context, string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.probes = append(f.probes, time.Now())
	return f.probe
}

// probed is when it was probed.
func (f *far) probed() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.probes)
}

func (f *far) fail(a Action, s Stored, err error) *Error {
	return &Error{Output: f.name, Op: "publish", Stored: s, Action: a, Err: err, Hint: "see the server"}
}

// stop makes everything fail from now on, as with action; start ends it.
func (f *far) stop(a Action) {
	f.set(func() { f.answer = f.fail(a, StoredMaybe, errors.New("down")); f.probe = f.answer })
}

func (f *far) start() { f.set(func() { f.answer, f.probe, f.silent = nil, nil, false }) }

// farStream and farObject are what a chain takes for a stream and an object store.
type farStream struct{ far }

func (*farStream) Last(context.Context, string) (Mark, error) { return Mark{}, nil }
func (*farStream) Checked(string) bool                        { return true }

type farObject struct{ far }

func (*farObject) Key(*batch.Run) string { return "key" }

// line is a lane that always has a batch to ship.
type line struct {
	name  string
	chain *Chain
	log   bytes.Buffer
	next  uint64
	sizes map[uint64]int // of batches that are not 1 byte, by number
	urge  chan struct{}
}

// step ships one run of up to two batches, or finds out that it can't, and pauses
// as it is told. It returns the output's name.
func (l *line) step(ctx context.Context) string {
	t := l.chain.Turn(l.name)
	if t.Output == nil {
		l.next++
		l.chain.Settled(l.name)
		return "rejected"
	}
	run := &batch.Run{Lane: l.name, Reason: t.Reason}
	for n := l.next; n < l.next+2; n++ {
		run.Batches = append(run.Batches, batch.Batch{Header: batch.Header{First: n, Count: 1}, Payload: make([]byte, max(1, l.sizes[n]))})
		if t.Alone {
			break
		}
	}
	n, pause, err := l.chain.Publish(ctx, l.name, t.Output, run)
	l.next += uint64(n)
	if err == nil {
		time.Sleep(time.Second) // that is how often there is something
		return t.Output.Name()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.urge:
	}
	return t.Output.Name()
}

// world is a chain with its prober and one lane.
func world(t *testing.T, o ChainOptions, outs ...Output) *line {
	l := &line{name: "main", next: 1, urge: make(chan struct{}, 1), sizes: map[uint64]int{}}
	o.Log = slog.New(slog.NewTextHandler(&l.log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	o.Switched = func(string) {
		select {
		case l.urge <- struct{}{}:
		default:
		}
	}
	l.chain = NewChain(o, outs...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.chain.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return l
}

// until steps until f is so, at most for d, and returns how long that took.
func (l *line) until(t *testing.T, d time.Duration, what string, f func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for !f() {
		if time.Since(begin) > d {
			t.Fatalf("not within %v: %s\nstates %+v\n%s", d, what, l.chain.States(), l.log.String())
		}
		l.step(t.Context())
	}
	return time.Since(begin)
}

func (l *line) uses(name string) func() bool {
	return func() bool { return l.chain.Turn(l.name).Output.Name() == name }
}

func (l *line) state(output string) Health {
	for _, s := range l.chain.States() {
		if s.Output == output && s.Lane == l.name {
			return s.Health
		}
	}
	return Up
}

func (l *line) count(s string) int { return strings.Count(l.log.String(), s) }

func two() (*farStream, *farObject) {
	return &farStream{far{name: "hub"}}, &farObject{far{name: "archive"}}
}

// One output alone is told once, reminded of each minute, and its recovery is told
// with its length; pauses grow with jitter and stay below the limit.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := &far{name: "hub"}
		l := world(t, ChainOptions{}, hub)
		hub.stop(Retry)
		limit := 250 * time.Millisecond
		for begin := time.Now(); time.Since(begin) < 3*time.Minute; {
			before := time.Now()
			l.step(t.Context())
			if pause := time.Since(before); pause < limit/2 || pause > limit {
				t.Fatalf("pause %v, want %v to %v", pause, limit/2, limit)
			}
			limit = min(2*limit, 30*time.Second)
		}
		if n := l.count("output fails"); n < 3 || n > 4 {
			t.Errorf("told %d times in three minutes:\n%s", n, l.log.String())
		}
		if l.count("see the server") == 0 {
			t.Errorf("the hint is not in the log:\n%s", l.log.String())
		}
		hub.start()
		l.step(t.Context())
		if l.state("hub") != Up || l.count("works again") != 1 || l.count("failed_for=3m") != 1 {
			t.Errorf("the recovery is not told with its length:\n%s", l.log.String())
		}
		hub.stop(Retry)
		before := time.Now()
		l.step(t.Context())
		if pause := time.Since(before); pause > 250*time.Millisecond {
			t.Errorf("a new failure begins with a pause of %v", pause)
		}
	})
}

// The transitions of the table in docs/design.md.
func TestTransitions(t *testing.T) {
	const after = 30 * time.Second
	for _, c := range []struct {
		name string
		do   func(t *testing.T, l *line, hub *farStream, archive *farObject)
	}{
		{"up → failing → up: a run fails, a later one arrives", func(t *testing.T, l *line, hub *farStream, archive *farObject) {
			hub.stop(Retry)
			l.until(t, time.Second, "failing", func() bool { return l.state("hub") == Failing })
			hub.start()
			l.until(t, time.Minute, "up", func() bool { return l.state("hub") == Up })
			if len(archive.runs) != 0 || l.count("works again") != 1 {
				t.Errorf("archive got %v\n%s", archive.runs, l.log.String())
			}
		}},
		{"failing → down: After", func(t *testing.T, l *line, hub *farStream, archive *farObject) {
			hub.stop(Retry)
			if took := l.until(t, time.Minute, "failover", l.uses("archive")); took < after || took > after+time.Second {
				t.Errorf("failover after %v", took)
			}
			l.step(t.Context())
			if l.state("hub") != Down || l.count("msg=failover") != 1 || len(archive.runs) != 1 || !strings.HasPrefix(archive.runs[0], "failover") {
				t.Errorf("state %v, runs %v\n%s", l.state("hub"), archive.runs, l.log.String())
			}
		}},
		{"up → down: Failover and Misconfigured don't wait", func(t *testing.T, l *line, hub *farStream, archive *farObject) {
			for _, a := range []Action{Failover, Misconfigured} {
				hub.stop(a)
				if took := l.until(t, time.Second, "failover", l.uses("archive")); took > 0 {
					t.Errorf("%v: failover after %v", a, took)
				}
				hub.start()
				l.until(t, time.Hour, "failback", func() bool { return l.uses("hub")() && l.state("hub") == Up })
			}
			if l.count("level=ERROR") != 1 {
				t.Errorf("what a person must mend is not told as an error once:\n%s", l.log.String())
			}
		}},
		{"up → down: silence", func(t *testing.T, l *line, hub *farStream, archive *farObject) {
			hub.set(func() { hub.silent = true; hub.probe = errors.New("silent") })
			if took := l.until(t, time.Minute, "failover", l.uses("archive")); took != after {
				t.Errorf("failover after %v", took)
			}
		}},
		{"up: slow is not silent", func(t *testing.T, l *line, hub *farStream, archive *farObject) {
			hub.set(func() { hub.moving = 5 * time.Minute })
			l.step(t.Context())
			if l.state("hub") != Up || len(hub.runs) != 1 {
				t.Errorf("a run of five minutes that moves all the time: %v\n%s", l.state("hub"), l.log.String())
			}
		}},
		{"failing → down: an answer's own patience", func(t *testing.T, l *line, hub *farStream, archive *farObject) {
			e := hub.fail(Retry, StoredNo, errors.New("no stream"))
			e.Patience = 10 * time.Second
			hub.set(func() { hub.answer, hub.probe = e, e })
			if took := l.until(t, time.Minute, "failover", l.uses("archive")); took < 10*time.Second || took > 11*time.Second {
				t.Errorf("failover after %v", took)
			}
		}},
		{"down → trial → up: probes in a row, Dwell, and a run", func(t *testing.T, l *line, hub *farStream, archive *farObject) {
			hub.stop(Failover)
			l.until(t, time.Second, "failover", l.uses("archive"))
			// ok, ok, fail, ok, ok, ok: it is used after the sixth.
			left := time.Now()
			n := 0
			for ; !l.uses("hub")(); n = len(hub.probed()) {
				hub.set(func() {
					if hub.probe = nil; len(hub.probes) == 2 {
						hub.probe = errors.New("once more")
					}
				})
				if l.step(t.Context()); time.Since(left) > 10*time.Minute {
					t.Fatalf("no failback: %s", l.log.String())
				}
			}
			if n != 6 || l.state("hub") != Trial {
				t.Errorf("after %d probes the state is %v", n, l.state("hub"))
			}
			for i := 1; i < n; i++ {
				if d := hub.probed()[i].Sub(hub.probed()[i-1]); d != time.Minute {
					t.Errorf("probe %d came %v after the one before", i, d)
				}
			}
			hub.start()
			l.step(t.Context())
			if l.state("hub") != Up || l.count("msg=failback") != 1 || l.count("msg=failover") != 1 {
				t.Errorf("state %v\n%s", l.state("hub"), l.log.String())
			}
		}},
		{"down: Dwell also after enough probes", func(t *testing.T, l *line, hub *farStream, archive *farObject) {
			l.chain.o.Interval, l.chain.o.Dwell = time.Second, 90*time.Second
			hub.stop(Failover)
			l.until(t, time.Second, "failover", l.uses("archive"))
			hub.start()
			if took := l.until(t, time.Hour, "failback", l.uses("hub")); took < 89*time.Second || took > 93*time.Second {
				t.Errorf("failback after %v", took)
			}
		}},
		{"trial → down: the run fails", func(t *testing.T, l *line, hub *farStream, archive *farObject) {
			hub.stop(Retry)
			l.until(t, time.Minute, "failover", l.uses("archive"))
			hub.set(func() { hub.probe = nil }) // as a stream that is full: probes don't see it
			begin := time.Now()
			for range 4 {
				l.until(t, time.Hour, "trial", func() bool { return l.state("hub") == Trial })
				l.step(t.Context())
				if l.state("hub") != Down || !l.uses("archive")() {
					t.Fatalf("after the trial: %v", l.state("hub"))
				}
			}
			if took := time.Since(begin); took < 4*l.chain.o.Dwell {
				t.Errorf("four trials within %v", took)
			}
			if l.count("msg=failover") != 1 || l.count("msg=failback") != 0 || hub.tries > 4+60 {
				t.Errorf("%d tries\n%s", hub.tries, l.log.String())
			}
			hub.start()
			l.until(t, time.Hour, "failback", func() bool { return l.state("hub") == Up })
			if l.count("msg=failback") != 1 {
				t.Errorf("log\n%s", l.log.String())
			}
		}},
		{"failing: hold while nothing else is usable", func(t *testing.T, l *line, hub *farStream, archive *farObject) {
			hub.stop(Failover)
			l.until(t, time.Second, "failover", l.uses("archive"))
			archive.stop(Retry)
			l.until(t, 2*time.Minute, "holding", func() bool { return l.count("all outputs fail") == 1 })
			if l.state("archive") != Failing || l.state("hub") != Down {
				t.Errorf("states %v %v", l.state("hub"), l.state("archive"))
			}
			n := l.next
			for range 20 {
				l.step(t.Context())
			}
			if l.next != n || archive.tries > 100 || len(hub.probed()) > 100 {
				t.Errorf("%d tries, %d probes", archive.tries, len(hub.probed()))
			}
			// The one in use works again.
			archive.start()
			l.until(t, time.Minute, "flow", func() bool { return l.state("archive") == Up })
			if l.count("records flow again") != 1 {
				t.Errorf("log\n%s", l.log.String())
			}
		}},
		{"down → trial: one probe is enough while all fail", func(t *testing.T, l *line, hub *farStream, archive *farObject) {
			hub.stop(Failover)
			l.until(t, time.Second, "failover", l.uses("archive"))
			archive.stop(Failover)
			l.until(t, time.Second, "holding", func() bool { return l.count("all outputs fail") == 1 })
			hub.start()
			if took := l.until(t, time.Minute, "hub", func() bool { return l.state("hub") == Up }); took > 31*time.Second {
				t.Errorf("hub is used again after %v", took)
			}
			if l.state("archive") != Down || l.count("msg=failback") != 1 || l.count("records flow again") != 1 {
				t.Errorf("archive %v\n%s", l.state("archive"), l.log.String())
			}
			archive.start()
			l.until(t, time.Hour, "archive", func() bool { return l.state("archive") == Up })
			if !l.uses("hub")() {
				t.Error("an output of lower rank that works again is not used")
			}
		}},
		{"all fail by turns: probes say yes, runs no", func(t *testing.T, l *line, hub *farStream, archive *farObject) {
			hub.stop(Failover)
			archive.stop(Failover)
			hub.set(func() { hub.probe = nil })
			archive.set(func() { archive.probe = nil })
			for begin := time.Now(); time.Since(begin) < time.Hour; {
				l.step(t.Context())
			}
			if n := hub.tries + archive.tries; n > 60*8 {
				t.Errorf("%d tries in an hour", n)
			}
			if n := l.count("\n"); n > 60*3 {
				t.Errorf("%d lines in an hour", n)
			}
			hub.start()
			l.until(t, 2*time.Minute, "hub", func() bool { return l.state("hub") == Up })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub, archive := two()
				c.do(t, world(t, ChainOptions{After: after}, hub, archive), hub, archive)
			})
		})
	}
}

// With SPILLWAY_FAILBACK=false outputs take turns, the first again after the last.
func TestRoundRobin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := &far{name: "a"}, &far{name: "b"}, &far{name: "c"}
		l := world(t, ChainOptions{RoundRobin: true}, a, b, c)
		order := ""
		for _, now := range []*far{a, b, c, a} {
			l.until(t, time.Minute, now.name, l.uses(now.name))
			l.step(t.Context())
			order += fmt.Sprint(now.name, len(now.runs), " ")
			now.stop(Retry)
			l.until(t, time.Minute, "the next one", func() bool { return !l.uses(now.name)() })
			now.start()
			l.step(t.Context())
		}
		if order != "a1 b2 c2 a3 " || l.count("msg=failover") != 4 || len(a.probed()) > 0 {
			t.Errorf("order %s, %d probes\n%s", order, len(a.probed()), l.log.String())
		}
		// All of them fail: pauses grow, and it is told once a minute.
		for _, f := range []*far{a, b, c} {
			f.stop(Failover)
			f.set(func() { f.tries = 0 })
		}
		for begin := time.Now(); time.Since(begin) < 10*time.Minute; {
			l.step(t.Context())
		}
		if n := a.tries + b.tries + c.tries; n > 60 || l.count("all outputs fail") > 11 || l.count("msg=failover") > 7 {
			t.Errorf("%d tries\n%s", n, l.log.String())
		}
		c.start()
		n := len(c.runs)
		l.until(t, 2*time.Minute, "c", func() bool { return len(c.runs) > n })
		if l.count("records flow again") != 1 {
			t.Errorf("log\n%s", l.log.String())
		}
	})
}

// In turn, lanes don't hurry one another.
func TestRoundRobinLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &far{name: "a"}, &far{name: "b"}
		l := world(t, ChainOptions{RoundRobin: true}, a, b)
		other := &line{name: "other", chain: l.chain, next: 1, urge: l.urge}
		a.stop(Failover)
		b.stop(Failover)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for ctx.Err() == nil {
				other.step(ctx)
			}
		}()
		for begin := time.Now(); time.Since(begin) < 10*time.Minute; {
			l.step(t.Context())
		}
		cancel()
		<-done
		if n := a.tries + b.tries; n > 2*60 {
			t.Errorf("%d tries in ten minutes", n)
		}
	})
}

// An output is presumed to be up until something was sent to it.
func TestUntried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, archive := two()
		l := world(t, ChainOptions{}, hub, archive)
		untried := func() (names []string) {
			for _, s := range l.chain.States() {
				if s.Untried {
					names = append(names, s.Output)
				}
			}
			return names
		}
		l.chain.Turn(l.name)
		if got := fmt.Sprint(untried()); got != "[hub archive]" {
			t.Errorf("before the first run: %s", got)
		}
		l.step(t.Context())
		if got := fmt.Sprint(untried()); got != "[archive]" {
			t.Errorf("after it: %s", got)
		}
		hub.stop(Failover)
		l.step(t.Context())
		l.step(t.Context())
		if got := fmt.Sprint(untried()); got != "[]" {
			t.Errorf("after a failover: %s", got)
		}
	})
}

// A batch that is unfit goes to who takes it, the others go on as they were; what
// nobody takes is rejected, and an output that is down is not taken for one.
func TestUnfit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, archive := two()
		hub.largest, archive.largest = 10, 100
		l := world(t, ChainOptions{}, hub, archive)
		l.sizes[4], l.sizes[6] = 50, 500
		for l.next < 10 {
			l.step(t.Context())
		}
		if got := fmt.Sprint(hub.runs, archive.runs); got != "[1-2 3-3 5-5 7-8 9-10] [large4-4]" {
			t.Errorf("got %s", got)
		}
		if l.state("hub") != Up || l.state("archive") != Up {
			t.Errorf("unfit is no failure: %+v", l.chain.States())
		}
		// archive is down when a large one comes: it waits, the lane's output does not change.
		archive.stop(Failover)
		l.sizes[12] = 50
		for range 200 {
			if l.step(t.Context()) == "rejected" {
				t.Fatal("rejected although an output that was not asked may take it")
			}
		}
		if turn := l.chain.Turn("main"); l.next != 12 || turn.Output != archive || turn.Reason != "large" || !turn.Alone {
			t.Errorf("at %d, turn %+v", l.next, turn)
		}
		if archive.tries > 300 {
			t.Errorf("%d tries", archive.tries)
		}
		archive.start()
		l.until(t, time.Minute, "the rest", func() bool { return l.next > 14 })
		if got := fmt.Sprint(archive.runs); got != "[large4-4 large12-12]" {
			t.Errorf("archive has %s", got)
		}
	})
}

// Lanes move on their own, but a lane that knows no better goes along.
func TestLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, archive := two()
		l := world(t, ChainOptions{}, hub, archive)
		busy := &line{name: "busy", chain: l.chain, next: 1}
		idle := &line{name: "idle", chain: l.chain, next: 1}
		idle.chain.Turn("idle")
		for range 3 {
			busy.step(t.Context())
		}
		// main is not allowed what busy is: a success of busy after that says so.
		denied := hub.fail(Retry, StoredNo, errors.New("main is not allowed"))
		hub.set(func() { hub.answer, hub.probe = denied, denied })
		l.step(t.Context())
		for i := 0; !l.uses("archive")(); i++ {
			hub.set(func() { hub.answer = denied })
			l.step(t.Context())
			hub.set(func() { hub.answer = nil })
			if i%3 == 0 {
				busy.step(t.Context())
			}
		}
		if !busy.uses("hub")() || busy.state("hub") != Up {
			t.Error("a lane whose runs arrive has left")
		}
		if !idle.uses("archive")() || idle.state("hub") != Down {
			t.Error("a lane that knows nothing stays with what another lane left")
		}
		if late := (&line{name: "late", chain: l.chain}); !late.uses("archive")() {
			t.Error("a new lane begins with what another lane left")
		}
		if n := l.chain.Switches()[Switch{"main", "hub", "archive"}]; n != 1 {
			t.Errorf("%d switches: %v", n, l.chain.Switches())
		}
		hub.start()
		l.until(t, time.Hour, "failback", func() bool { return l.state("hub") == Up })
		idle.until(t, time.Hour, "failback of idle", func() bool { return idle.state("hub") == Up })
	})
}

func TestClassify(t *testing.T) {
	inner := errors.New("x")
	e := &Error{Output: "hub", Op: "publish to a.b", Stored: StoredNo, Action: Unfit, Err: inner, Hint: "do this"}
	if s, a := Classify(errors.Join(e)); s != StoredNo || a != Unfit {
		t.Errorf("classified %v %v", s, a)
	}
	if s, a := Classify(inner); s != StoredMaybe || a != Retry {
		t.Errorf("an unknown error is %v %v: what is not known is in doubt", s, a)
	}
	if !errors.Is(e, inner) || e.Error() != "hub: publish to a.b: x (do this)" {
		t.Errorf("error reads %q", e)
	}
}
