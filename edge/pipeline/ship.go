package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/outputs"
)

// shipper is the state of Lane.ship: one goroutine's.
type shipper struct {
	l       *Lane
	attempt attempts
	// open is what the last output may have received without saying so. It is made
	// durable before these records go to another one.
	open   buffer.Doubt
	turn   outputs.Turn              // what the chain said last
	paid   int64                     // what the run at hand took of the rate
	resend map[string][]buffer.Range // by output: what its far side lost, until it is there again
	said   map[string]string         // by output: why its far side can't be compared
	// complaint is what was said last, until something is handed over.
	complaint string
}

// ship hands runs to the outputs that the chain names. While batches come, a run
// may wait for more; once coming has ended it ships what is left until all is
// delivered or ctx ends. What it does not get to stays in the buffer.
func (l *Lane) ship(ctx, coming context.Context) {
	s := &shipper{l: l, resend: map[string][]buffer.Range{}, said: map[string]string{}}
	defer func() {
		if p, ok := l.o.Buffer.Plan(); !ok || p.Output != s.open.Output { // a plan is remembered, to be repeated
			s.settle(nil)
		}
	}()
	for ctx.Err() == nil {
		next, last := coming, false
		if coming.Err() != nil {
			if l.o.Buffer.Stats().PendingRecords == 0 {
				return
			}
			next, last = ctx, true
		}
		pause, tried := s.step(ctx, next, last)
		if pause <= 0 {
			continue
		}
		if tried {
			// A pause between attempts ends with the stop, which tries once more, and
			// when the chain has another output.
			wait, cancel := l.urgent(next)
			sleep(wait, pause)
			cancel()
		} else {
			sleep(ctx, pause)
		}
	}
}

// urgent returns a context that hurry, and another output, end.
func (l *Lane) urgent(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	l.urge.Store(&cancel)
	return ctx, cancel
}

// Reroute makes the lane ask the chain for its output again. It does not wait.
func (l *Lane) Reroute() {
	if urge := l.urge.Load(); urge != nil {
		(*urge)()
	}
}

// idleLook is how often a lane without anything to send looks whether its stream
// was connected anew.
const idleLook = 2 * time.Second

// step hands over one run, or finds out that it can't. It returns how long to pause;
// tried says that an output was asked.
func (s *shipper) step(ctx, next context.Context, last bool) (pause time.Duration, tried bool) {
	l := s.l
	gather, cancel := l.urgent(next) // before the chain is asked: nothing it says later is missed
	defer cancel()
	turn := l.o.Chain.Turn(l.o.Name)
	s.turn = turn
	o, err := turn.Output, s.settle(turn.Output)
	if p, ok := l.o.Buffer.Plan(); ok && err == nil && (o == nil || p.Output != o.Name()) {
		// An object was planned for another output. It is finished there, so that its
		// records are not in two places; if that output is left, it is given up.
		if planned := l.o.Chain.Usable(l.o.Name, p.Output); planned != nil {
			o, turn.Alone = planned, false
		} else {
			s.doubt(p.Output, buffer.Range{First: p.First, Last: p.Last})
			err = s.settle(o)
		}
	}
	if err != nil {
		s.complain("what an output may have received can't be noted; trying again", "output", s.open.Output, "error", err)
		return time.Second, false
	}
	stream, isStream := o.(outputs.Stream)
	if isStream && len(s.resend[o.Name()]) > 0 {
		return s.again(ctx, stream), true
	}
	limits := batch.Limits{}
	if o != nil {
		limits = o.Limits()
	}
	if turn.Alone {
		limits.Batches = 1
	}
	var repeat buffer.Range
	if _, plans := o.(outputs.Planner); plans {
		repeat = s.doubtful(o.Name())
		limits.Last = repeat.Last
	}
	if isStream {
		// Also without anything new: what a far side lost is kept only for a while.
		if !last && !stream.Checked(l.o.Name) {
			return s.compare(ctx, stream), true
		}
		var stop context.CancelFunc
		gather, stop = context.WithTimeout(gather, idleLook)
		defer stop()
	}
	if last || l.waiting.Load() > 0 {
		limits.Age = 0
	}
	run, err := l.o.Buffer.Next(gather, limits)
	if err != nil {
		if errors.Is(err, buffer.ErrClosed) || gather.Err() != nil {
			return 0, false
		}
		s.complain("the buffer can't be read; trying again", "error", err)
		return time.Second, true
	}
	run.Lane = l.o.Name
	switch {
	case turn.Alone && run.First() != turn.Head:
		l.o.Chain.Settled(l.o.Name) // drop_oldest took the batch that was unfit
		return 0, false
	case o == nil:
		return s.reject(&run)
	case o != turn.Output && run.Key == "":
		return 0, false // the plan could not be repeated and is gone
	}
	if repeat.First > 0 && repeat.First < run.First() && run.Key == "" {
		// Another output has taken the beginning of that object since.
		if whole, err := l.o.Buffer.Read(ctx, repeat, batch.Limits{}); err == nil && whole.First() == repeat.First && whole.Last() == repeat.Last {
			whole.Lane, whole.Attempt = run.Lane, max(2, run.Attempt)
			run = whole
		}
	}
	if !s.pace(ctx, o, &run) {
		return 0, false
	}
	pause, err = s.publish(ctx, o, turn.Reason, &run)
	if isStream && errors.Is(err, outputs.ErrUnchecked) {
		pause = s.compare(ctx, stream)
	}
	return pause, true
}

// doubt remembers that output may have r.
func (s *shipper) doubt(output string, r buffer.Range) {
	if s.open.Output == output && r.First <= s.open.Last+1 && s.open.First <= r.Last+1 {
		r.First, r.Last = min(r.First, s.open.First), max(r.Last, s.open.Last)
	}
	s.open = buffer.Doubt{Output: output, Range: r}
}

// doubtful returns which object, with the next record in it, output may have. It is
// repeated as it was, so that no two objects overlap.
func (s *shipper) doubtful(output string) (r buffer.Range) {
	doubts := s.l.o.Buffer.Doubts()
	if len(doubts) == 0 {
		return r
	}
	first := s.l.o.Buffer.Stats().Committed + 1
	for _, d := range doubts {
		if d.Output == output && d.First <= first && first <= d.Last {
			return d.Range
		}
	}
	return r
}

// settle makes durable what is in doubt, unless it is next's.
func (s *shipper) settle(next outputs.Output) error {
	if s.open.Output == "" || next != nil && s.open.Output == next.Name() {
		return nil
	}
	if err := s.l.o.Buffer.InDoubt(s.open.Output, s.open.Range); err != nil {
		return err
	}
	s.l.o.Log.Info("records in doubt: this output may have them; they go out again with the same identities", "lane", s.l.o.Name,
		"output", s.open.Output, "first", s.open.First, "last", s.open.Last)
	s.open = buffer.Doubt{}
	return nil
}

// attempts remembers what was handed over in this life, so that it is marked.
type attempts struct {
	last uint64 // highest number that was handed over
	n    int
}

// of returns how often run has been tried, this time included.
func (a *attempts) of(run *batch.Run) int {
	if run.First() > a.last {
		a.n = run.Attempt - 1 // more than 0 if an earlier life may have sent it
	}
	a.n++
	a.last = max(a.last, run.Last())
	return a.n
}

// publish hands one run over and commits what was acknowledged. It returns how
// long to pause.
func (s *shipper) publish(ctx context.Context, o outputs.Output, reason string, run *batch.Run) (time.Duration, error) {
	l := s.l
	whole := buffer.Range{First: run.First(), Last: run.Last()}
	p, plans := o.(outputs.Planner)
	if plans && run.Key != "" {
		// The plan of an earlier turn or life: it must still be what these records give.
		run.Attempt = max(run.Attempt, 2)
		if planned, err := outputs.ParseKey(run.Key); err == nil {
			run.Reason = planned.Reason
		}
		if key := p.Key(run); key != run.Key {
			l.o.Log.Warn("the planned object can't be repeated under its key; its records go out under another one and may arrive twice, with the same identities",
				"lane", l.o.Name, "output", o.Name(), "planned", run.Key, "now", key, "hint", "SPILLWAY_SITE or the output's URL was changed")
			if err := l.o.Buffer.InDoubt(o.Name(), whole); err != nil {
				s.complain("what an output may have received can't be noted; trying again", "output", o.Name(), "error", err)
				return time.Second, err
			}
			run.Key = ""
		}
	}
	head := l.o.Buffer.Stats().Committed + 1
	if plans && run.Key == "" && run.First() < head {
		run.Reason = reason // in doubt there, which is as good as a plan
		run.Key = p.Key(run)
	} else if plans && run.Key == "" {
		// The plan is on disk before the object is handed over, so that a restart
		// repeats this object and no other with the same records in it.
		run.Reason = reason
		run.Key = p.Key(run)
		plan := buffer.Plan{Output: o.Name(), First: run.First(), Last: run.Last(), Key: run.Key}
		if err := l.o.Buffer.SetPlan(plan); err != nil {
			s.complain("the plan of an object can't be stored; trying again", "output", o.Name(), "key", run.Key, "error", err)
			return time.Second, err
		}
	}
	run.Attempt = s.attempt.of(run)
	s.complaint = ""
	n, pause, err := l.o.Chain.Publish(ctx, l.o.Name, o, run)
	if n > 0 {
		last := run.Batches[n-1].Last()
		if s.open.Output == o.Name() {
			s.open.First = last + 1
			if s.open.First > s.open.Last {
				s.open = buffer.Doubt{}
			}
		}
		if cerr := l.o.Buffer.Commit(last, o.Name()); cerr != nil {
			l.o.Log.Error("a delivery can't be noted; it may be sent again", "lane", l.o.Name, "output", o.Name(), "last", last, "error", cerr)
			return time.Second, err
		}
		l.o.Log.Debug("delivered", "lane", l.o.Name, "output", o.Name(), "first", run.First(), "last", last, "batches", n)
	}
	if err != nil {
		stored, action := outputs.Classify(err)
		if stored == outputs.StoredNo && n == 0 && s.paid > 0 {
			l.o.Rate.give(s.paid)
		}
		rest := run.Batches[n:]
		if action == outputs.Unfit {
			rest, stored = rest[1:], outputs.StoredMaybe // those behind it may have been on their way
		}
		if stored != outputs.StoredNo && len(rest) > 0 && !(plans && action == outputs.Unfit) {
			s.doubt(o.Name(), buffer.Range{First: rest[0].First, Last: run.Last()})
		}
		if plans && action == outputs.Unfit {
			// This object will never be.
			if perr := l.o.Buffer.SetPlan(buffer.Plan{}); perr != nil {
				s.complain("the plan of an object can't be given up; trying again", "output", o.Name(), "key", run.Key, "error", perr)
				return time.Second, perr
			}
		} else if plans && l.o.Chain.Usable(l.o.Name, o.Name()) == nil {
			// Asked although it is down, since no other output takes this batch: the plan
			// must not keep it from drop_oldest.
			s.doubt(o.Name(), whole)
			if derr := s.settle(nil); derr != nil {
				s.complain("what an output may have received can't be noted; trying again", "output", o.Name(), "error", derr)
				return time.Second, derr
			}
		}
	}
	return pause, err
}

// reject puts the head batch aside, which no output takes.
func (s *shipper) reject(run *batch.Run) (time.Duration, bool) {
	l := s.l
	if err := l.o.Buffer.Reject(run, "unfit for every output"); err != nil {
		s.complain("a batch that no output takes can't be put aside; trying again", "first", run.First(), "last", run.Last(), "error", err)
		return time.Second, false
	}
	l.o.Chain.Settled(l.o.Name)
	l.o.Log.Error("a batch is unfit for every output and was put aside; a gap record tells", "lane", l.o.Name,
		"first", run.First(), "last", run.Last(), "bytes", run.Bytes(), "hint", "see rejected/ in the lane's buffer directory: spillway buffer cat reads it")
	return 0, false
}

// compare asks a stream what it has last, after each connect and before anything
// new goes out, and sends again what it had acknowledged and has no more. The
// position does not move: these records were delivered once.
func (s *shipper) compare(ctx context.Context, o outputs.Stream) (pause time.Duration) {
	l, name := s.l, o.Name()
	mark, pause, err := l.o.Chain.Last(ctx, l.o.Name, o)
	if err != nil {
		return pause
	}
	acked := l.o.Buffer.Acked(name)
	why := ""
	delete(s.resend, name)
	switch {
	case mark.Unknown != "":
		why = mark.Unknown
	case acked == 0:
	case !mark.Found:
		why = "it has nothing of this lane, although it acknowledged records: it was emptied, or is another one"
	case !l.o.Buffer.Knows(mark.Epoch):
		why = fmt.Sprintf("its last message of this lane is of epoch %v, which is none of this buffer", mark.Epoch)
	case mark.Last < acked:
		lost := above(l.o.Buffer.Taken(name), mark.Last)
		if since := l.o.Buffer.TakenSince(); since > mark.Last+1 {
			// Who took these is forgotten: what is kept of them goes out again.
			lost = append([]buffer.Range{{First: mark.Last + 1, Last: min(since-1, acked)}}, lost...)
		}
		if len(lost) > 0 {
			s.resend[name] = lost
			l.o.Log.Warn("the stream lost what it had acknowledged; it is sent again before anything new", "lane", l.o.Name, "output", name,
				"stream_has", mark.Last, "acknowledged", acked, "ranges", fmt.Sprint(lost))
		} else {
			why = fmt.Sprintf("it lost records up to %d, which are not kept any more (SPILLWAY_BUFFER_KEEP_ACKED)", acked)
		}
	}
	if s.said[name] != why {
		if s.said[name] = why; why != "" {
			l.o.Log.Warn("what the stream has can't be made whole; going on behind it", "lane", l.o.Name, "output", name, "stream_has", mark.Last,
				"acknowledged", acked, "why", why)
		}
	}
	return s.again(ctx, o)
}

// above returns what of ranges lies above n.
func above(ranges []buffer.Range, n uint64) (out []buffer.Range) {
	for _, r := range ranges {
		if r.Last > n {
			out = append(out, buffer.Range{First: max(r.First, n+1), Last: r.Last})
		}
	}
	return out
}

// again sends what o's far side lost, one batch at a time: cut off in the middle,
// the far side's last message then says where to go on, also to another life.
func (s *shipper) again(ctx context.Context, o outputs.Stream) (pause time.Duration) {
	l, name := s.l, o.Name()
	var records uint64
	begin := time.Now()
	for len(s.resend[name]) > 0 {
		r := s.resend[name][0]
		run, err := l.o.Buffer.Read(ctx, r, batch.Limits{Batches: 1})
		switch {
		case errors.Is(err, io.EOF):
			l.o.Log.Error("records that the stream lost are not kept any more", "lane", l.o.Name, "output", name, "first", r.First, "last", r.Last,
				"hint", "raise SPILLWAY_BUFFER_KEEP_ACKED above what the stream may lose")
			s.resend[name] = s.resend[name][1:]
			continue
		case err != nil:
			s.complain("the buffer can't be read; trying again", "error", err)
			return time.Second
		}
		if run.First() > r.First {
			l.o.Log.Error("records that the stream lost are not kept any more", "lane", l.o.Name, "output", name, "first", r.First, "last", run.First()-1,
				"hint", "raise SPILLWAY_BUFFER_KEEP_ACKED above what the stream may lose")
		}
		run.Lane, run.Attempt = l.o.Name, 2
		if !s.pace(ctx, o, &run) {
			if !o.Checked(l.o.Name) {
				delete(s.resend, name) // a new connection is compared again
			}
			return 0
		}
		_, pause, err = l.o.Chain.Publish(ctx, l.o.Name, o, &run)
		_, action := outputs.Classify(err)
		switch {
		case err == nil:
			records += run.Count()
			l.resent.Add(run.Count())
		case errors.Is(err, outputs.ErrUnchecked):
			delete(s.resend, name) // a new connection is compared again
			return 0
		case action == outputs.Unfit:
			l.o.Chain.Settled(l.o.Name) // it is not the head batch
			l.o.Log.Error("records that the stream lost are unfit for it now", "lane", l.o.Name, "output", name,
				"first", run.First(), "last", run.Last(), "error", err)
		default:
			return pause
		}
		if r.First = run.Last() + 1; r.First > r.Last {
			s.resend[name] = s.resend[name][1:]
		} else {
			s.resend[name][0] = r
		}
	}
	delete(s.resend, name)
	if records > 0 {
		l.o.Log.Info("the stream has again what it had lost", "lane", l.o.Name, "output", name, "records", records, "took", time.Since(begin).Round(time.Millisecond))
	}
	return 0
}

// complain logs, once until a run is handed over, what ship tries each second.
func (s *shipper) complain(msg string, args ...any) {
	if s.complaint != msg {
		s.complaint = msg
		s.l.o.Log.Error(msg, append(args, "lane", s.l.o.Name, "hint", "see the disk that holds SPILLWAY_STATE_DIR: space, errors, read-only")...)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
