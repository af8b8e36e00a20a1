package pipeline

import (
	"context"
	"errors"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/outputs"
)

// ship hands runs to the output in use. While batches come, a run may wait for
// more; once coming has ended it ships what is left until all is delivered or ctx
// ends. What it does not get to stays in the buffer.
func (l *Lane) ship(ctx, coming context.Context) {
	attempt := attempts{}
	for ctx.Err() == nil {
		o, reason := l.o.Chain.Current(l.o.Name)
		limits := o.Limits()
		next := coming
		if coming.Err() != nil {
			if l.o.Buffer.Stats().PendingRecords == 0 {
				return
			}
			next, limits.Age = ctx, 0
		}
		if p, ok := l.o.Buffer.Plan(); ok && p.Output != o.Name() {
			// Another output was planned for these records, by another configuration: its
			// object is given up, and the records go where they go now.
			if err := l.o.Buffer.SetPlan(buffer.Plan{}); err != nil {
				l.complain("the plan of an object can't be given up; trying again", "output", p.Output, "key", p.Key, "error", err)
				sleep(ctx, time.Second)
				continue
			}
		}
		gather, cancel := context.WithCancel(next)
		l.urge.Store(&cancel)
		if l.waiting.Load() > 0 {
			limits.Age = 0
		}
		run, err := l.o.Buffer.Next(gather, limits)
		urged := gather.Err() != nil
		cancel()
		if err != nil {
			if errors.Is(err, buffer.ErrClosed) {
				return
			}
			if !urged {
				l.complain("the buffer can't be read; trying again", "error", err)
				sleep(next, time.Second)
			}
			continue
		}
		if pause := l.publish(ctx, o, reason, &run, &attempt); pause > 0 {
			sleep(next, pause) // the stop tries once more
		}
	}
}

// attempts remembers what may have been sent before, so that it is marked.
type attempts struct {
	last uint64 // highest number that was handed over
	n    int
}

func (a *attempts) of(run *batch.Run) int {
	if run.First() > a.last {
		a.n = 0
	}
	a.n++
	a.last = run.Last()
	return a.n
}

// publish hands one run over and commits what was acknowledged. It returns how
// long to pause.
func (l *Lane) publish(ctx context.Context, o outputs.Output, reason string, run *batch.Run, a *attempts) time.Duration {
	run.Lane = l.o.Name
	p, plans := o.(outputs.Planner)
	if plans && run.Key != "" {
		// The plan of an earlier life: it must still be what these records give.
		if planned, err := outputs.ParseKey(run.Key); err == nil {
			run.Reason = planned.Reason
		}
		if key := p.Key(run); key != run.Key {
			l.o.Log.Warn("the planned object can't be repeated under its key; its records go out under another one and may arrive twice, with the same identities",
				"lane", l.o.Name, "output", o.Name(), "planned", run.Key, "now", key, "hint", "SPILLWAY_SITE or the output's URL was changed")
			run.Key = ""
		}
	}
	if plans && run.Key == "" {
		// The plan is on disk before the object is handed over, so that a restart
		// repeats this object and no other with the same records in it.
		run.Reason = reason
		run.Key = p.Key(run)
		plan := buffer.Plan{Output: o.Name(), First: run.First(), Last: run.Last(), Key: run.Key}
		if err := l.o.Buffer.SetPlan(plan); err != nil {
			l.complain("the plan of an object can't be stored; trying again", "output", o.Name(), "key", run.Key, "error", err)
			return time.Second
		}
	}
	run.Attempt = a.of(run)
	l.complaint = ""
	n, err := o.Publish(ctx, run)
	if n > 0 {
		last := run.Batches[n-1].Last()
		for _, b := range run.Batches[:n] {
			l.delivered.Add(uint64(b.Count))
		}
		if cerr := l.o.Buffer.Commit(last, o.Name()); cerr != nil {
			l.o.Log.Error("a delivery can't be noted; it may be sent again", "lane", l.o.Name, "output", o.Name(), "last", last, "error", cerr)
			return time.Second
		}
		l.o.Log.Debug("delivered", "lane", l.o.Name, "output", o.Name(), "first", run.First(), "last", last, "batches", n)
	}
	if err != nil && ctx.Err() != nil {
		return 0 // the stop, not the output
	}
	return l.o.Chain.Report(l.o.Name, o, err)
}

// complain logs, once until a run is handed over, what ship tries each second.
func (l *Lane) complain(msg string, args ...any) {
	if l.complaint != msg {
		l.complaint = msg
		l.o.Log.Error(msg, append(args, "lane", l.o.Name, "hint", "see the disk that holds SPILLWAY_STATE_DIR: space, errors, read-only")...)
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
