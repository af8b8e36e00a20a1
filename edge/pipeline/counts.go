package pipeline

import (
	"math"
	"sync"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
)

// Counts is where the records of a lane are, at one moment. Nothing disappears:
//
//	Before + Admitted = InFlight + Pending + Delivered + Rejected + all of Lost
//
// After an unclean start Before is an upper bound until what an earlier life
// damaged has been read.
type Counts struct {
	Before    uint64 // stored and not delivered when the lane began
	Admitted  uint64 // given a number since then, gap records included
	InFlight  uint64 // of these, not stored yet
	Pending   uint64 // stored and not delivered
	Delivered uint64 // acknowledged by an output
	Rejected  uint64 // put aside because every output called them unfit

	// Lost by reason: those of the buffer's gaps since the lane began, and "stopped",
	// which a stop kept from being stored.
	Lost map[string]uint64
}

// Counts returns the present numbers.
func (l *Lane) Counts() Counts {
	cut := l.cut.Load() // before what it is part of
	s := l.o.Buffer.Stats()
	c := Counts{Before: l.before.PendingRecords, Admitted: l.admitted.Load(), Pending: s.PendingRecords, Delivered: s.DeliveredRecords,
		Lost: map[string]uint64{lostStopped.String(): cut}}
	for reason, n := range s.Lost {
		n -= l.before.Lost[reason]
		if reason == buffer.ReasonRejected {
			c.Rejected = n
		} else {
			c.Lost[reason] = n
		}
	}
	c.InFlight = l.start.Next + c.Admitted - s.Next - cut
	return c
}

// Admitted is how many records were given a number since the start.
func (l *Lane) Admitted() uint64 { return l.admitted.Load() }

// Delivered is how many records an output acknowledged since the start.
func (l *Lane) Delivered() uint64 { return l.o.Buffer.Stats().DeliveredRecords }

// Resent is how many records were sent again because a stream had lost them.
func (l *Lane) Resent() uint64 { return l.resent.Load() }

// OldestPending returns the receive time of the oldest record that is stored and
// not delivered, the zero time if there is none. After a start, and before it is
// read, it may be somewhat too early.
func (l *Lane) OldestPending() time.Time { return l.o.Buffer.Oldest() }

// smooth is the time over which rates are smoothed: what came in the last one
// makes up two thirds of them.
const smooth = time.Minute

// flow is what has gone through a lane, or goes through it in a second.
type flow struct{ inBytes, outBytes, in, out float64 }

// meter makes rates of counters. It has no clock: it is looked at when the buffer
// changes, and when somebody asks. Safe for concurrent use.
type meter struct {
	mu     sync.Mutex
	at     time.Time // of the last look
	seen   flow      // then
	sum    flow      // of rates, weighted
	weight float64   // of sum, 1 in the long run
}

// look takes note of what has gone through l and returns the rates. A second look
// within a second changes nothing.
func (m *meter) look(l *Lane) flow {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := time.Now(); now.Sub(m.at) >= time.Second {
		s := l.o.Buffer.Stats()
		m.add(now, flow{inBytes: float64(s.AppendedBytes + s.AppendedBatches*batch.HeaderSize), outBytes: float64(s.DeliveredBytes),
			in: float64(s.AppendedRecords), out: float64(s.DeliveredRecords)})
	}
	if m.weight == 0 {
		return flow{}
	}
	w := 1 / m.weight
	return flow{m.sum.inBytes * w, m.sum.outBytes * w, m.sum.in * w, m.sum.out * w}
}

func (m *meter) add(now time.Time, n flow) {
	d := now.Sub(m.at).Seconds()
	old := math.Exp(-d / smooth.Seconds())
	mix := func(sum *float64, n, seen float64) { *sum = *sum*old + (n-seen)/d*(1-old) }
	mix(&m.sum.inBytes, n.inBytes, m.seen.inBytes)
	mix(&m.sum.outBytes, n.outBytes, m.seen.outBytes)
	mix(&m.sum.in, n.in, m.seen.in)
	mix(&m.sum.out, n.out, m.seen.out)
	m.weight = m.weight*old + 1 - old
	m.at, m.seen = now, n
}

// Rates returns how many bytes on disk a second have come in and gone out lately,
// smoothed over a minute.
func (l *Lane) Rates() (inBytes, outBytes float64) {
	r := l.meter.look(l)
	return r.inBytes, r.outBytes
}

// TimeToFull returns when the buffer will be full, or begin to drop the oldest,
// if records go on to come and to be delivered as lately; 0 if there is no room now.
// While its output fails, none are delivered. ok is false if it does not fill.
func (l *Lane) TimeToFull() (d time.Duration, ok bool) {
	s := l.o.Buffer.Stats()
	room := s.Room - l.o.Reserve - l.onDisk(l.held.Load())
	if room <= 0 {
		return 0, true
	}
	r := l.limit(l.meter.look(l), &s)
	if o := l.o.Chain.Turn(l.o.Name).Output; o == nil || l.o.Chain.Failing(l.o.Name, o) {
		r.outBytes = 0
	}
	return until(float64(room), r.inBytes, r.outBytes)
}

// TimeToDrain returns when all that is pending will have been delivered, if records
// go on to come and to be delivered as lately. ok is false if it does not get less.
func (l *Lane) TimeToDrain() (d time.Duration, ok bool) {
	s := l.o.Buffer.Stats()
	if s.PendingRecords == 0 {
		return 0, true
	}
	r := l.limit(l.meter.look(l), &s)
	return until(float64(s.PendingRecords), r.out, r.in)
}

// until returns how long n lasts while more go than come. What is within a hundredth
// of one another is the same.
func until(n, goes, comes float64) (time.Duration, bool) {
	if goes <= comes*1.01 {
		return 0, false
	}
	s := n / (goes - comes)
	if s > math.MaxInt64/1e9 {
		return 0, false
	}
	return time.Duration(s * 1e9), true
}
