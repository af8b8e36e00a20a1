package pipeline

import (
	"context"
	"sync"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/outputs"
)

// backlogAge is how old the newest record of a run is that waited for an output. What is
// younger goes out as it comes, and no rate holds it.
const backlogAge = 10 * time.Second

// Rate bounds how fast what has waited goes out, in bytes of payload a second, of all
// lanes that share it. It is a token bucket that may go into debt: a run passes whole
// once nothing is owed, and what it took beyond the bucket is owed then. So no run is
// too large to pass, and after a rest there is one second's worth, or one run, at once.
// nil bounds nothing. Safe for concurrent use.
type Rate struct {
	mu        sync.Mutex
	perSecond float64
	tokens    float64 // bytes that may pass; negative: owed, at most one run
	at        time.Time
}

// NewRate returns a rate of so many bytes a second; 0 is nil.
func NewRate(bytesPerSecond int64) *Rate {
	if bytesPerSecond <= 0 {
		return nil
	}
	return &Rate{perSecond: float64(bytesPerSecond), tokens: float64(bytesPerSecond), at: time.Now()}
}

// take lets n bytes pass, or returns how long to wait before asking again. With force
// they pass in any case: then what is owed becomes n at least, so that neither is more
// than one run owed nor anything that somebody else owes forgotten. paid is what give
// may take back.
func (r *Rate) take(n int64, force bool) (paid int64, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.tokens = min(r.perSecond, r.tokens+now.Sub(r.at).Seconds()*r.perSecond)
	r.at = now
	before := r.tokens
	switch {
	case r.tokens >= 0:
		r.tokens -= float64(n)
	case force:
		r.tokens = min(r.tokens, -float64(n))
	default:
		return 0, time.Duration(-r.tokens/r.perSecond*1e9) + 1
	}
	return int64(before - r.tokens), 0
}

// give takes back what take said was paid for a run that was not sent.
func (r *Rate) give(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens = min(r.perSecond, r.tokens+float64(n))
}

// paceHeld is Lane.paced while the rate holds the lane.
const paceHeld = -1

// pace waits until the rate lets run, which goes to o, pass; what is not old passes at
// once. It returns false if something else is to be done first: ctx has ended, the chain
// says something else by now, the run's records were dropped, or a stream is to be
// compared. Neither a full buffer nor a stop makes it faster: the next life goes on. But
// while o fails it is the chain that says when it is tried again.
func (s *shipper) pace(ctx context.Context, o outputs.Output, run *batch.Run) bool {
	l := s.l
	s.paid = 0
	newest := run.Batches[len(run.Batches)-1].LastTime
	if l.o.Rate == nil || time.Since(time.Unix(0, newest)) < backlogAge {
		return true
	}
	stream, _ := o.(outputs.Stream)
	checked := stream != nil && stream.Checked(l.o.Name)
	committed := l.o.Buffer.Stats().Committed
	for {
		paid, wait := l.o.Rate.take(run.Bytes(), l.o.Chain.Failing(l.o.Name, o))
		if wait <= 0 {
			s.paid = paid
			return true
		}
		l.paced.Store(paceHeld)
		urgent, cancel := l.urgent(ctx)
		if l.o.Chain.Turn(l.o.Name) == s.turn { // else it changed before urgent could tell
			sleep(urgent, min(wait, idleLook))
		}
		cancel()
		l.paced.Store(l.now())
		if ctx.Err() != nil || l.o.Chain.Turn(l.o.Name) != s.turn || checked && !stream.Checked(l.o.Name) || l.o.Buffer.Stats().Committed != committed {
			return false
		}
	}
}

// HeldBack returns when the rate last held back what the lane has to deliver, now if it
// does, the zero time if it never did. Until then nothing was expected of an output.
func (l *Lane) HeldBack() time.Time {
	switch at := l.paced.Load(); at {
	case 0:
		return time.Time{}
	case paceHeld:
		return time.Now()
	default:
		return l.began.Add(time.Duration(at))
	}
}

// limit lowers what goes out of a backlog to the rate.
func (l *Lane) limit(r flow, s *buffer.Stats) flow {
	if l.o.Rate == nil || s.PendingRecords == 0 || time.Since(l.OldestPending()) < backlogAge {
		return r
	}
	each := float64(s.LiveBytes) / float64(s.PendingRecords)
	if s.AppendedRecords > 0 {
		each = float64(s.AppendedBytes) / float64(s.AppendedRecords)
	}
	r.outBytes = min(r.outBytes, l.o.Rate.perSecond)
	r.out = min(r.out, l.o.Rate.perSecond/each)
	return r
}
