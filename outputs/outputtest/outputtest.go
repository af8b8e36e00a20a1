// Package outputtest is the conformance suite that every output must pass, run
// against a real far side: a directory, a server process.
//
// It holds an output to the words of outputs.Output: what was accepted is stored,
// byte for byte and once; what was not is said to be in doubt or not stored, and
// a repeat with the same identity settles it; nothing is left behind.
package outputtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"spillway/buffer/batch"
	"spillway/outputs"
)

// Harness makes far sides.
type Harness struct {
	// New returns a far side that holds nothing, for one case. What it needs to be
	// taken down again it leaves to t.Cleanup.
	New func(t *testing.T) *FarSide
}

// FarSide is where an output delivers to, and how the suite looks at it. Hooks
// that are nil can't be done with this far side; their cases are left out.
type FarSide struct {
	// Output returns one more output for this far side, as an agent would have it
	// after a restart. The suite closes it. Its agent and site are those below.
	Output func(t *testing.T) outputs.Output
	Source outputs.Source

	Agent, Site string

	// Bare says that the source knows only what an object's name says: no seals,
	// no sizes.
	Bare bool

	Stop, Start   func(t *testing.T) // the far side goes down and comes back with what it stored
	Pause, Resume func(t *testing.T) // it keeps its connections and is silent

	// Refuse makes the far side, while it holds nothing, refuse every delivery
	// until undo is called: no stream, no bucket, no directory.
	Refuse func(t *testing.T) (undo func())

	// LoseAnswers, with true, lets the far side store what it is sent while its
	// answers are lost; with false it answers again.
	LoseAnswers func(t *testing.T, lose bool)
}

// patience is how long the suite waits for a far side that was taken down to be
// usable again, and for an output with deadlines of its own to give up.
const patience = time.Minute

// Run runs the suite. Every case gets its own far side.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, s *side)
	}{
		{"one batch", oneBatch},
		{"many batches", manyBatches},
		{"every codec", everyCodec},
		{"order", order},
		{"repeated run", repeatedRun},
		{"lost answer", lostAnswer},
		{"limits", limits},
		{"unfit batch", unfitBatch},
		{"moved", moved},
		{"cancelled", cancelled},
		{"far side down", farSideDown},
		{"far side silent", farSideSilent},
		{"cancelled while down", func(t *testing.T, s *side) { cancelledWithout(t, s, s.Stop, s.Start) }},
		{"cancelled in silence", func(t *testing.T, s *side) { cancelledWithout(t, s, s.Pause, s.Resume) }},
		{"never wrong", neverWrong},
		{"far side refuses", farSideRefuses},
		{"probe", probe},
		{"inspect", inspect},
		{"lanes at once", lanesAtOnce},
		{"close", closeTwice},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, &side{FarSide: h.New(t)}) })
	}
}

func oneBatch(t *testing.T, s *side) {
	o := s.output(t)
	if o.Name() == "" {
		t.Error("the output has no name")
	}
	run := s.lane(t, "main", batch.Zstd).run(1, 100)
	s.mustPublish(t, o, run)
	s.holds(t, o, run)
}

func manyBatches(t *testing.T, s *side) {
	o := s.output(t)
	run := s.lane(t, "main", batch.Zstd).run(40, 25)
	s.mustPublish(t, o, run)
	s.holds(t, o, run)
}

func everyCodec(t *testing.T, s *side) {
	o := s.output(t)
	var runs []*batch.Run
	for _, c := range []batch.Codec{batch.None, batch.Gzip, batch.Zstd} {
		run := s.lane(t, "c"+c.String(), c).run(3, 10)
		s.mustPublish(t, o, run)
		runs = append(runs, run)
	}
	s.holds(t, o, runs...)
}

// order: runs of a lane, handed over one behind the other, come back so, also
// across the turn of an hour and of an epoch's numbers to a new length.
func order(t *testing.T, s *side) {
	o := s.output(t)
	l := s.lane(t, "main", batch.Zstd)
	l.next = 0xfff0
	var runs []*batch.Run
	for i := range 6 {
		run := l.run(i+1, 7)
		s.mustPublish(t, o, run)
		runs = append(runs, run)
		l.now = l.now.Add(20 * time.Minute)
	}
	s.holds(t, o, runs...)
}

func repeatedRun(t *testing.T, s *side) {
	o := s.output(t)
	run := s.lane(t, "main", batch.Zstd).run(5, 20)
	s.mustPublish(t, o, run)
	run.Attempt = 2
	s.mustPublish(t, o, run)
	// The same plan by the agent's next life, which knows nothing of the answer.
	run.Attempt = 3
	s.mustPublish(t, s.output(t), run)
	s.holds(t, o, run)
}

func lostAnswer(t *testing.T, s *side) {
	if s.LoseAnswers == nil {
		t.Log("left out: answers of this far side can't be lost")
		return
	}
	o := s.output(t)
	l := s.lane(t, "main", batch.Zstd)
	before, run := l.run(2, 20), l.run(5, 20)
	s.mustPublish(t, o, before)
	s.LoseAnswers(t, true)
	accepted, err := s.publish(t, t.Context(), o, run)
	if err == nil {
		t.Fatal("a run whose answer was lost is accepted")
	}
	if stored, action := outputs.Classify(err); accepted != 0 || stored != outputs.StoredMaybe || action != outputs.Retry {
		t.Errorf("a lost answer is told as accepted %d, stored %v, %v: %v", accepted, stored, action, err)
	}
	s.LoseAnswers(t, false)
	run.Attempt = 2
	s.eventually(t, o, run)
	s.holds(t, o, before, run)
}

func limits(t *testing.T, s *side) {
	o := s.output(t)
	lim := o.Limits()
	if lim.Bytes < 0 || lim.Batches < 0 || lim.Age < 0 || lim.BatchBytes < 0 {
		t.Fatalf("negative limits: %+v", lim)
	}
	l := s.lane(t, "main", batch.Zstd)
	// As many batches as a run may have, all small.
	most := l.run(min(orAll(int64(lim.Batches)), 1000), 1)
	s.mustPublish(t, o, most)
	// As many bytes as a run may have, in batches of the usual size.
	const usual = 300 << 10
	size := min(usual, orAll(lim.BatchBytes))
	full := &batch.Run{Lane: most.Lane, Agent: most.Agent, Epoch: most.Epoch, Before: l.sealer.Prev, Attempt: 1}
	for n := int64(size); n <= int64(min(orAll(lim.Bytes), 8<<20)) && len(full.Batches) < orAll(int64(lim.Batches)); n += int64(size) {
		full.Batches = append(full.Batches, l.noise(size))
	}
	s.mustPublish(t, o, full)
	// The largest batch that is fit, alone in its run.
	large := &batch.Run{Lane: most.Lane, Agent: most.Agent, Epoch: most.Epoch, Before: l.sealer.Prev, Attempt: 1}
	large.Batches = append(large.Batches, l.noise(min(orAll(lim.BatchBytes), batch.MaxPayload)))
	s.mustPublish(t, o, large)
	s.holds(t, o, most, full, large)
}

// orAll is n, or a very large number when n is 0 for "no limit".
func orAll(n int64) int {
	if n == 0 {
		return 1 << 30
	}
	return int(n)
}

func unfitBatch(t *testing.T, s *side) {
	o := s.output(t)
	lim := o.Limits()
	if lim.BatchBytes == 0 || lim.BatchBytes >= batch.MaxSingle {
		t.Log("left out: every batch fits this output")
		return
	}
	l := s.lane(t, "main", batch.Zstd)
	fit := l.run(1, 10)
	unfit := &batch.Run{Lane: fit.Lane, Agent: fit.Agent, Epoch: fit.Epoch, Before: l.sealer.Prev, Attempt: 1}
	unfit.Batches = append(unfit.Batches, l.noise(int(lim.BatchBytes)+1))
	after := l.run(1, 10)
	s.mustPublish(t, o, fit)
	accepted, err := s.publish(t, t.Context(), o, unfit)
	if err == nil {
		t.Fatalf("a batch of %d bytes is accepted where the limit is %d", len(unfit.Batches[0].Payload), lim.BatchBytes)
	}
	if stored, action := outputs.Classify(err); accepted != 0 || stored != outputs.StoredNo || action != outputs.Unfit {
		t.Errorf("an unfit batch is told as accepted %d, stored %v, %v: %v", accepted, stored, action, err)
	}
	s.mustPublish(t, o, after) // the output is well
	if _, planner := o.(outputs.Planner); planner {
		s.holds(t, o, fit, after)
		return
	}
	// In the middle of a run, the limit having changed on the way: what is accepted
	// ends before it, and what is behind it may be sent again.
	one := l.run(1, 10)
	mixed := *one
	mixed.Batches = append(mixed.Batches, l.noise(int(lim.BatchBytes)+1))
	rest := l.run(1, 10)
	mixed.Batches = append(mixed.Batches, rest.Batches...)
	accepted, err = s.publish(t, t.Context(), o, &mixed)
	if _, action := outputs.Classify(err); err == nil || accepted != 1 || action != outputs.Unfit {
		t.Errorf("a run with an unfit batch behind a fit one is told as accepted %d, %v: %v", accepted, action, err)
	}
	s.mustPublish(t, o, rest)
	s.holds(t, o, fit, after, one, rest)
}

// moved: a call says while it lasts that something gets through.
func moved(t *testing.T, s *side) {
	o := s.output(t)
	lim := o.Limits()
	l := s.lane(t, "main", batch.Zstd)
	run := l.run(1, 10)
	size := min(300<<10, orAll(lim.BatchBytes))
	for run.Bytes()+int64(size) <= int64(min(orAll(lim.Bytes), 2<<20)) && len(run.Batches) < orAll(int64(lim.Batches)) {
		run.Batches = append(run.Batches, l.noise(size))
	}
	var calls atomic.Int64
	ctx, cancel := context.WithTimeout(outputs.WithMoved(t.Context(), func() { calls.Add(1) }), patience)
	defer cancel()
	if _, err := s.publish(t, ctx, o, run); err != nil {
		t.Fatal(err)
	}
	if calls.Load() == 0 {
		t.Errorf("nothing is told as moved of %d bytes in %d batches, all accepted", run.Bytes(), len(run.Batches))
	}
	s.holds(t, o, run)
}

// cancelled: the end of ctx, at any moment, ends a Publish soon and leaves no more
// than a doubt, which a repeat settles without a second copy.
func cancelled(t *testing.T, s *side) {
	o := s.output(t)
	l := s.lane(t, "main", batch.Zstd)
	var runs []*batch.Run
	for _, after := range []time.Duration{0, 20 * time.Microsecond, 100 * time.Microsecond, 300 * time.Microsecond, 700 * time.Microsecond,
		time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond, 5 * time.Millisecond, 8 * time.Millisecond} {
		run := l.run(20, 20)
		ctx, cancel := context.WithCancel(t.Context())
		if after == 0 {
			cancel()
		}
		timer := time.AfterFunc(after, cancel)
		begin := time.Now()
		accepted, err := s.publish(t, ctx, o, run)
		if took := time.Since(begin); took > after+5*time.Second {
			t.Errorf("cancelled after %v, Publish returned after %v", after, took)
		}
		timer.Stop()
		cancel()
		if err != nil {
			if stored, action := outputs.Classify(err); stored == outputs.StoredYes || action != outputs.Retry {
				t.Errorf("cancelled after %v: accepted %d, stored %v, %v: %v", after, accepted, stored, action, err)
			}
			run.Attempt = 2
			s.eventually(t, o, run)
		} else if after == 0 {
			t.Error("a run is published under a context that had ended")
		}
		runs = append(runs, run)
	}
	s.holds(t, o, runs...)
}

func farSideDown(t *testing.T, s *side) {
	if s.Stop == nil {
		t.Log("left out: this far side can't be taken down")
		return
	}
	o := s.output(t)
	l := s.lane(t, "main", batch.Zstd)
	before, run := l.run(2, 20), l.run(3, 20)
	s.mustPublish(t, o, before)
	s.Stop(t)
	s.inDoubt(t, o, run)
	s.mustNotProbe(t, o)
	s.Start(t)
	run.Attempt = 2
	s.eventually(t, o, run)
	s.holds(t, o, before, run)
}

func farSideSilent(t *testing.T, s *side) {
	if s.Pause == nil {
		t.Log("left out: this far side can't be silenced")
		return
	}
	o := s.output(t)
	l := s.lane(t, "main", batch.Zstd)
	before, run := l.run(2, 20), l.run(3, 20)
	s.mustPublish(t, o, before)
	s.Pause(t)
	s.inDoubt(t, o, run)
	s.mustNotProbe(t, o)
	s.Resume(t)
	run.Attempt = 2
	s.eventually(t, o, run)
	s.holds(t, o, before, run)
}

// cancelledWithout: without a far side that answers, the end of ctx ends Publish
// and Probe soon, and nothing of them goes on.
func cancelledWithout(t *testing.T, s *side, away, back func(t *testing.T)) {
	if away == nil {
		t.Log("left out: this can't be done to this far side")
		return
	}
	l := s.lane(t, "main", batch.Zstd)
	before, run := l.run(2, 20), l.run(20, 200)
	begin := goroutines()
	o := s.Output(t)
	s.mustPublish(t, o, before)
	away(t)
	var early int
	for i := range 8 {
		for name, call := range map[string]func(ctx context.Context) error{
			"Publish": func(ctx context.Context) error {
				accepted, err := s.publish(t, ctx, o, run)
				if stored, action := outputs.Classify(err); err != nil && (accepted != 0 || stored == outputs.StoredYes || action != outputs.Retry) {
					t.Errorf("cancelled: accepted %d, stored %v, %v: %v", accepted, stored, action, err)
				}
				return err
			},
			"Probe": func(ctx context.Context) error { return o.Probe(ctx, "main") },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			began := time.Now()
			err := call(ctx)
			if took := time.Since(began); err == nil || took > 5*time.Second {
				t.Errorf("%s: %v after %v", name, err, took)
			}
			cancel()
			checkError(t, o, err)
		}
		switch i {
		case 1:
			early = len(goroutines())
		case 7:
			// A connection may have been made anew meanwhile, with what serves it.
			if late := len(goroutines()); late > early+5 {
				t.Errorf("%d goroutines after two calls of each kind, %d after eight", early, late)
			}
		}
	}
	if err := o.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	noneLeft(t, begin)
	back(t)
	o = s.output(t)
	run.Attempt = 2
	s.eventually(t, o, run)
	s.holds(t, o, before, run)
}

// neverWrong: whatever strikes while a run is handed over, what is said of it is
// true: accepted batches are there, those that are said not to be are not.
func neverWrong(t *testing.T, s *side) {
	type fault struct {
		name       string
		begin, end func(t *testing.T)
	}
	var faults []fault
	if s.Stop != nil {
		faults = append(faults, fault{"down", s.Stop, s.Start})
	}
	if s.Pause != nil {
		faults = append(faults, fault{"silent", s.Pause, s.Resume})
	}
	if s.LoseAnswers != nil {
		faults = append(faults, fault{"answers lost", func(t *testing.T) { s.LoseAnswers(t, true) }, func(t *testing.T) { s.LoseAnswers(t, false) }})
	}
	if faults == nil {
		t.Log("left out: nothing can be done to this far side")
		return
	}
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	o := s.output(t)
	l := s.lane(t, "main", batch.Zstd)
	var runs []*batch.Run
	for round := range 4 * len(faults) {
		f := faults[round%len(faults)]
		run := l.run(10+rng.IntN(40), 20)
		runs = append(runs, run)
		ctx, cancel := context.WithCancel(t.Context())
		type outcome struct {
			accepted int
			err      error
		}
		done := make(chan outcome, 1)
		go func() {
			accepted, err := s.publish(t, ctx, o, run)
			done <- outcome{accepted, err}
		}()
		time.Sleep(time.Duration(rng.Int64N(int64(4 * time.Millisecond))))
		f.begin(t)
		time.AfterFunc(300*time.Millisecond, cancel)
		got := <-done
		cancel()
		f.end(t)
		stored, _ := outputs.Classify(got.err)
		there := map[uint64]bool{} // first numbers
		for _, object := range s.read(t) {
			for _, b := range run.Batches {
				if object.First <= b.First && b.Last() <= object.Last {
					there[b.First] = true
				}
			}
		}
		for i, b := range run.Batches {
			if yes := there[b.First]; !yes && (i < got.accepted || got.err != nil && stored == outputs.StoredYes) || yes && i >= got.accepted && stored == outputs.StoredNo {
				t.Errorf("seed %d, round %d, %s: batch %d of %d is there: %v; accepted %d, stored %v: %v",
					seed, round, f.name, i, len(run.Batches), yes, got.accepted, stored, got.err)
			}
		}
		if got.err != nil {
			run.Attempt = 2
			s.eventually(t, o, run)
		}
	}
	s.holds(t, o, runs...)
}

func farSideRefuses(t *testing.T, s *side) {
	if s.Refuse == nil {
		t.Log("left out: this far side can't be made to refuse")
		return
	}
	o := s.output(t)
	run := s.lane(t, "main", batch.Zstd).run(2, 20)
	undo := s.Refuse(t)
	accepted, err := s.publish(t, t.Context(), o, run)
	if err == nil {
		t.Fatal("a refused run is accepted")
	}
	if stored, action := outputs.Classify(err); accepted != 0 || stored == outputs.StoredYes || action == outputs.Unfit {
		t.Errorf("a refusal of everything is told as accepted %d, stored %v, %v: %v", accepted, stored, action, err)
	}
	s.mustNotProbe(t, o)
	undo()
	s.eventually(t, o, run)
	s.holds(t, o, run)
}

func probe(t *testing.T, s *side) {
	o := s.output(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, lane := range []string{"main", "main", "audit"} {
		if err := o.Probe(ctx, lane); err != nil {
			t.Fatalf("probe for %s: %v", lane, err)
		}
	}
	s.holds(t, o)
	run := s.lane(t, "main", batch.Zstd).run(2, 20)
	s.mustPublish(t, o, run)
	if err := o.Probe(ctx, "main"); err != nil {
		t.Fatalf("probe: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := o.Probe(ended, "main"); err == nil {
		t.Error("the probe succeeds under a context that had ended")
	} else {
		checkError(t, o, err)
	}
	s.holds(t, o, run)
}

// inspect: a far side that works has no Problem; one that refuses, is silent or away
// has one, soon. Nothing is left that a reader would take for records.
func inspect(t *testing.T, s *side) {
	look := func(ctx context.Context) (problems []outputs.Finding) {
		t.Helper()
		o, ok := s.output(t).(outputs.Inspector)
		if !ok {
			t.Fatal("the output is no outputs.Inspector")
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		began := time.Now()
		all := o.Inspect(ctx, outputs.Need{Lanes: []string{"main", "audit"}, Sealing: 64 << 10})
		if took := time.Since(began); took > patience+5*time.Second {
			t.Errorf("that took %v", took)
		}
		if len(all) == 0 {
			t.Error("it finds nothing")
		}
		for _, f := range all {
			if f.Level < outputs.Good || f.Level > outputs.Problem || f.What == "" || f.Text == "" || strings.Contains(f.What+f.Text+f.Hint, "\n") || f.Level == outputs.Problem && f.Hint == "" && ctx.Err() == nil {
				t.Errorf("%+v", f)
			}
			if f.Level == outputs.Problem {
				problems = append(problems, f)
			}
		}
		return problems
	}
	for _, c := range []struct {
		name string
		away func(t *testing.T) (back func())
	}{
		{"refuses", s.Refuse}, // first, as long as nothing is there
		{"works", func(*testing.T) func() { return func() {} }},
		{"is silent", pair(s.Pause, s.Resume)},
		{"is away", pair(s.Stop, s.Start)},
	} {
		if c.away == nil {
			t.Logf("left out: this far side can't be one that %s", c.name)
			continue
		}
		back := c.away(t)
		if p := look(t.Context()); (len(p) == 0) != (c.name == "works") {
			t.Errorf("of a far side that %s: %+v", c.name, p)
		}
		back()
	}
	s.holds(t, s.output(t))
	ended, end := context.WithCancel(t.Context())
	end()
	if p := look(ended); len(p) == 0 {
		t.Error("no problem under a context that had ended")
	}
}

// pair makes one hook of two.
func pair(away, back func(t *testing.T)) func(t *testing.T) func() {
	if away == nil {
		return nil
	}
	return func(t *testing.T) func() {
		away(t)
		return func() { back(t) }
	}
}

func lanesAtOnce(t *testing.T, s *side) {
	o := s.output(t)
	const lanes, runsEach = 4, 6
	var wg sync.WaitGroup
	all := make([][]*batch.Run, lanes)
	for i := range lanes {
		l := s.lane(t, fmt.Sprintf("lane%d", i), batch.Zstd)
		for range runsEach {
			all[i] = append(all[i], l.run(4, 15))
		}
		wg.Go(func() {
			for _, run := range all[i] {
				s.mustPublish(t, o, run)
			}
		})
	}
	wg.Go(func() {
		for range runsEach {
			if err := o.Probe(t.Context(), "main"); err != nil {
				t.Errorf("probe beside lanes: %v", err)
			}
		}
	})
	wg.Wait()
	var runs []*batch.Run
	for _, r := range all {
		runs = append(runs, r...)
	}
	s.holds(t, o, runs...)
}

func closeTwice(t *testing.T, s *side) {
	run := s.lane(t, "main", batch.Zstd).run(3, 20)
	before := goroutines()
	o := s.Output(t)
	s.mustPublish(t, o, run)
	if err := o.Probe(t.Context(), "main"); err != nil {
		t.Errorf("probe: %v", err)
	}
	for range 2 {
		if err := o.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	noneLeft(t, before)
}

// noneLeft fails if goroutines that were not among before go on.
func noneLeft(t *testing.T, before map[string]string) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		left = left[:0]
		for id, stack := range goroutines() {
			if _, old := before[id]; !old {
				left = append(left, stack)
			}
		}
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("%d goroutines are left after Close:\n\n%s", len(left), strings.Join(left, "\n\n"))
}

// goroutines returns the stack of every goroutine by its number.
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	all := map[string]string{}
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		id, _, _ := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
		all[id] = stack
	}
	return all
}

// side is a far side with the suite's own steps.
type side struct{ *FarSide }

func (s *side) output(t *testing.T) outputs.Output {
	t.Helper()
	o := s.Output(t)
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return o
}

// publish hands a copy of run over, checks what must hold of every answer, and
// spoils the copy: its payloads are the caller's again.
func (s *side) publish(t *testing.T, ctx context.Context, o outputs.Output, run *batch.Run) (int, error) {
	t.Helper()
	if p, ok := o.(outputs.Planner); ok {
		key := p.Key(run)
		if run.Key != "" && run.Key != key {
			t.Errorf("a run's key was %s and is %s now", run.Key, key)
		}
		run.Key = key
	}
	c := *run
	c.Batches = make([]batch.Batch, len(run.Batches))
	for i, b := range run.Batches {
		c.Batches[i] = batch.Batch{Header: b.Header, Payload: append([]byte(nil), b.Payload...)}
	}
	accepted, err := Publish(ctx, o, &c)
	for i := range c.Batches {
		clear(c.Batches[i].Payload)
	}
	if accepted < 0 || accepted > len(run.Batches) || (err == nil) != (accepted == len(run.Batches)) {
		t.Errorf("accepted %d of %d batches with error %v", accepted, len(run.Batches), err)
	}
	checkError(t, o, err)
	return accepted, err
}

// checkError holds an error of an output to its form.
func checkError(t *testing.T, o outputs.Output, err error) {
	t.Helper()
	if err == nil {
		return
	}
	var e *outputs.Error
	if !errors.As(err, &e) {
		t.Errorf("not an *outputs.Error: %T %v", err, err)
		return
	}
	if e.Output != o.Name() || e.Op == "" || e.Err == nil || e.Stored < outputs.StoredNo || e.Stored > outputs.StoredYes ||
		e.Action < outputs.Retry || e.Action > outputs.Misconfigured {
		t.Errorf("an incomplete error: %+v", e)
	}
}

// Publish is o.Publish as an agent calls it: a stream is asked what it has when the
// connection is new.
func Publish(ctx context.Context, o outputs.Output, run *batch.Run) (int, error) {
	for {
		n, err := o.Publish(ctx, run)
		stream, ok := o.(outputs.Stream)
		if !ok || n > 0 || !errors.Is(err, outputs.ErrUnchecked) {
			return n, err
		}
		if _, err := stream.Last(ctx, run.Lane); err != nil {
			return 0, err
		}
	}
}

func (s *side) mustPublish(t *testing.T, o outputs.Output, run *batch.Run) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if n, err := s.publish(t, ctx, o, run); err != nil {
		t.Errorf("%s %d-%d: accepted %d of %d: %v", run.Lane, run.First(), run.Last(), n, len(run.Batches), err)
	}
}

// inDoubt publishes run to a far side that can't answer.
func (s *side) inDoubt(t *testing.T, o outputs.Output, run *batch.Run) {
	t.Helper()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	accepted, err := s.publish(t, ctx, o, run)
	if err == nil {
		t.Fatal("accepted by a far side that can't answer")
	}
	if ctx.Err() != nil {
		t.Errorf("no deadline of its own: gave up with the caller's after %v", time.Since(begin).Round(time.Second))
	}
	if stored, action := outputs.Classify(err); accepted != 0 || stored == outputs.StoredYes || action != outputs.Retry {
		t.Errorf("a far side that can't answer is told as accepted %d, stored %v, %v: %v", accepted, stored, action, err)
	}
}

func (s *side) mustNotProbe(t *testing.T, o outputs.Output) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := o.Probe(ctx, "main")
	if err == nil {
		t.Error("the probe succeeds where a Publish can't")
	}
	if ctx.Err() != nil {
		t.Errorf("no deadline of its own: the probe gave up with the caller's after %v", patience)
	}
	checkError(t, o, err)
}

// eventually publishes run until it is accepted, as an agent would: what was
// accepted is not sent again.
func (s *side) eventually(t *testing.T, o outputs.Output, run *batch.Run) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	rest := *run
	for {
		n, err := s.publish(t, ctx, o, &rest)
		if err == nil {
			return
		}
		if n > 0 {
			rest.Before = rest.BeforeOf(n)
			rest.Batches = rest.Batches[n:]
			rest.Key = ""
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s %d-%d is not accepted within %v: %v", run.Lane, run.First(), run.Last(), patience, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
