package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"spillway/edge/listen"
	"spillway/framing/vault"
)

// A block whose sender waits is marked with a channel, which goes with its records:
//
//	block.stored ── fill ──> filler.waiters ── seal ──> job.waiters ── store ──> the channel
//
// fill seals the open batch at once if no batch is on its way to the disk. If one is,
// those that wait gather in the open batch, and store has it sealed as soon as its
// Append returns. So one sender waits for one fsync, and a hundred at a time for two.

// hungFor is how long a call to the disk may last before nobody is let in to wait
// behind it.
const hungFor = 2 * time.Second

// errCut is what who waits is told at a stop.
var errCut = errors.New("stopped before the records were stored")

// errMemory is what who waits is told of records that are in memory only. They go on from
// there, and come again from a sender that heeds this.
var errMemory = fmt.Errorf("%w: the disk takes no writes", listen.ErrFull)

// inMemory is what a lane knows of the time in which its buffer keeps records in memory.
type inMemory struct {
	is    atomic.Bool
	mu    sync.Mutex
	since time.Time // guarded by mu, like what follows
	said  uint64    // records that were in memory before that
}

// watch says when the buffer begins to keep records in memory only, and when that ends:
// then everything that it has is durable.
func (l *Lane) watch() {
	m := &l.memory
	if l.o.Buffer.Degraded() == m.is.Load() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := l.o.Buffer.Stats()
	switch {
	case s.Degraded && !m.is.Load():
		m.is.Store(true)
		m.since = time.Now()
		l.o.Log.Error("the disk takes no writes; records are kept in memory only and go on to the output; they are lost if the agent ends before the disk works again",
			"lane", l.o.Name, "error", s.DiskError, "hint", "see the disk that holds SPILLWAY_STATE_DIR: errors, read-only; a directory that was removed needs a restart; SPILLWAY_BUFFER_MEMORY is how much memory may hold")
	case !s.Degraded && m.is.Load():
		m.is.Store(false)
		l.o.Log.Warn("the disk takes writes again; nothing is in memory only any more", "lane", l.o.Name,
			"degraded_for", time.Since(m.since).Round(time.Millisecond), "records", s.MemoryRecords-m.said)
		m.said = s.MemoryRecords
		l.isDurable(s.Next - 1)
	}
}

// Degraded reports whether records are kept in memory only, because the disk takes no writes.
func (l *Lane) Degraded() bool { return l.memory.is.Load() }

// storing is a block whose sender waits.
type storing struct {
	told  chan error // with room for one
	in    *vaultInput
	marks []vault.Mark // of in, which keeps them once all lines are durable
}

// waiter is who waits for records in a batch.
type waiter struct {
	stored *storing
	last   bool // the last of its records is in this batch
}

// tell says to those who wait that their batches are durable, or why they are not.
func tell(waiters []waiter, err error) {
	for _, w := range waiters {
		if err == nil && !w.last {
			continue
		}
		w.stored.settle(err == nil) // before its sender sends the same again
		select {
		case w.stored.told <- err:
		default: // an earlier batch of the same block was lost
		}
	}
}

// settle keeps the marks of a block, or undoes them. What comes after the first time
// changes nothing.
func (s *storing) settle(durable bool) {
	switch {
	case len(s.marks) == 0:
	case durable:
		s.in.keep(s.marks)
	default:
		s.in.undo(s.marks)
	}
	s.marks = nil
}

// wait notes that stored waits for a record of the open batch.
func (f *filler) wait(stored *storing, last bool) {
	if n := len(f.waiters); n > 0 && f.waiters[n-1].stored == stored {
		f.waiters[n-1].last = last
		return
	}
	f.waiters = append(f.waiters, waiter{stored, last})
}

// urge makes the open batch, for which somebody waits, durable as soon as it can be.
func (f *filler) urge() {
	l := f.l
	if len(f.waiters) == 0 {
		return // sealed already, being full
	}
	l.gathering.Store(true) // before the look: who ends what is on its way looks after that
	if l.sealed.Load() == 0 {
		f.seal()
	} else {
		l.o.Buffer.Hurry()
	}
}

// gathered has the open batch sealed if somebody waits for it: an Append has returned.
func (l *Lane) gathered() {
	if l.gathering.Load() {
		l.sealNow()
	}
}

// Store implements listen.Storer.
func (s *sink) Store(ctx context.Context) (<-chan error, error) {
	b, told := s.block, make(chan error, 1)
	if b == nil {
		told <- nil // nothing came of what Message took
		return told, nil
	}
	n := int64(len(b.ends))
	short := s.short
	s.block, s.short, b.stored = nil, false, &storing{told: told}
	if s.vault != nil {
		b.stored.in, b.stored.marks = s.vault.in, slices.Clone(s.vault.marks)
	}
	err := listen.ErrTooLarge
	if !short {
		err = s.in.o.Lane.enter(ctx, b)
	}
	if err != nil {
		s.n = counts{} // whose sender is told counts nowhere
		s.undo()
		s.in.o.Lane.release(b)
		return nil, err
	}
	s.count()
	if s.vault != nil {
		s.vault.marks = s.vault.marks[:0]
	}
	s.in.Admitted.Add(n)
	return told, nil
}

// enter hands b to fill. It waits while the disk is behind with what it was given, and
// never for room in the buffer. The reserve is for those who can't be told.
func (l *Lane) enter(ctx context.Context, b *block) error {
	n := int64(len(b.lines))
	for !l.passed(l.failing.Load()) && !l.Stuck(hungFor) && !l.Degraded() {
		freed := l.whenFreed()
		if l.take(l.ordinary, n) {
			select {
			case l.blocks <- b:
				return nil
			case <-ctx.Done():
				l.held.Add(-n)
				return fmt.Errorf("%w: the disk is behind", listen.ErrFull)
			}
		}
		behind := l.held.Load() >= l.most(l.ordinary) || l.appending.Load() > 0
		if !behind || l.full(n) {
			break
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return fmt.Errorf("%w: the disk is behind", listen.ErrFull)
		}
	}
	return listen.ErrFull
}

// whenFreed returns a channel that is closed when held becomes less.
func (l *Lane) whenFreed() <-chan struct{} {
	for {
		if c := l.freed.Load(); c != nil {
			return *c
		}
		c := make(chan struct{})
		if l.freed.CompareAndSwap(nil, &c) {
			return c
		}
	}
}

// OpenStorer is Open for servers whose senders wait until their records are durable.
// Where there is no room they are told, whatever ON_FULL says: such records count nowhere.
func (in *Input) OpenStorer() listen.Storer { return in.Open().(*sink) }
