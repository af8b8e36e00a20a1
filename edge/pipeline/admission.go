package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"spillway/buffer"
	"spillway/edge/listen"
)

// OnFull says what an input does with records for which there is no room.
type OnFull uint8

// Policies of SPILLWAY_INPUT_<NAME>_ON_FULL.
const (
	Block  OnFull = 0 // wait; the sender feels it
	Drop   OnFull = 1 // drop after at most a second, counted and told in a gap record
	Refuse OnFull = 2 // stop accepting, drain and close; what is drained goes into the lane's reserve
)

const (
	heldMax   = 8 << 20     // bytes of lines that are admitted and not durable; from there on inputs wait
	fullAfter = time.Second // how long a datagram input waits before it drops, and an input that refuses while it drains
	shutFor   = time.Second // how long a gate stays shut at least: sockets are not closed and bound many times a second
	lookAgain = fullAfter / 10
	remind    = time.Minute // how often a lane that is full again and again says so
)

// lost says why an input dropped records.
type lost uint8

const (
	lostNone    lost = 0 // they were handed to the lane
	lostFull    lost = 1 // there was no room
	lostStopped lost = 2 // the agent stopped while there was no room
	lostKernel  lost = 3 // the socket's receive buffer was full
	lostReasons      = 4
)

// String is the reason in gap records and counters.
func (r lost) String() string {
	return [lostReasons]string{"", "buffer_full", "stopped", "kernel"}[r]
}

// door is where blocks get into a lane, one at a time and in the order in which
// they came. There is one for all inputs that block or drop, and one for those that
// refuse: neither waits for the other.
type door struct {
	reserve bool          // what goes through it may use the reserve
	line    chan struct{} // held by the one whose turn it is; guards told and toldAt
	freed   chan struct{} // signalled when held has become less
	since   atomic.Int64  // since when nothing has got through although something was to, since began; 0: it is open
	wants   atomic.Int64  // bytes that the one whose turn it is finds no room for; 0: it does not wait for room
	told    bool          // that the buffer is full
	toldAt  time.Time     // when, last
}

func newDoor(reserve bool) *door {
	return &door{reserve: reserve, line: make(chan struct{}, 1), freed: make(chan struct{}, 1)}
}

// admit hands b to fill once there is room for it. It waits for as long as policy
// says and ctx lasts; what it returns is why b is still the caller's.
func (l *Lane) admit(ctx context.Context, b *block, policy OnFull) lost {
	d, n := l.ordinary, int64(len(b.lines))
	if policy == Refuse {
		d = l.last
	}
	var until time.Time // zero: no end
	select {
	case d.line <- struct{}{}:
	default:
		if l.pass(d, b) {
			return lostNone
		}
		if policy != Block {
			if l.stuck(d) {
				return lostFull
			}
			until = time.Now().Add(fullAfter)
		}
		if passed, why := l.queue(ctx, until, d, b); passed || why != lostNone {
			return why
		}
	}
	defer func() { <-d.line }()
	if l.take(d, n) {
		select {
		case l.blocks <- b:
			l.open(d)
			return lostNone
		default:
			l.held.Add(-n)
		}
	}
	d.since.CompareAndSwap(0, l.now())
	if policy != Block {
		if l.stuck(d) {
			return lostFull
		}
		if until.IsZero() {
			until = time.Now().Add(fullAfter)
		}
	}
	return l.wait(ctx, until, d, b)
}

// take takes room for n bytes through d, if there is. What is taken and not handed
// over goes back by held.
func (l *Lane) take(d *door, n int64) bool {
	l.taking.Lock()
	defer l.taking.Unlock()
	if !l.room(d, n) {
		return false
	}
	l.held.Add(n)
	return true
}

// pass hands over b out of turn, if it fits where the larger one whose turn it is does
// not: that one waits as long as it must, and nobody waits for it.
func (l *Lane) pass(d *door, b *block) bool {
	n := int64(len(b.lines))
	if d.wants.Load() <= n || !l.take(d, n) {
		return false
	}
	select {
	case l.blocks <- b:
		return true
	default:
	}
	t := time.NewTimer(lookAgain) // fill is about to take the next one
	defer t.Stop()
	select {
	case l.blocks <- b:
		return true
	case <-t.C:
		l.held.Add(-n)
		return false
	}
}

// queue waits for d's line, or until b gets through without.
func (l *Lane) queue(ctx context.Context, until time.Time, d *door, b *block) (passed bool, why lost) {
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	for {
		select {
		case d.line <- struct{}{}:
			return false, lostNone
		case <-look.C:
			if l.pass(d, b) {
				return true, lostNone
			}
			if !until.IsZero() && !time.Now().Before(until) {
				return false, lostFull
			}
		case <-ctx.Done():
			return false, lostStopped
		}
	}
}

// wait is the part of admit that takes time. The caller holds d's line.
func (l *Lane) wait(stop context.Context, until time.Time, d *door, b *block) lost {
	ctx, n, hurried := stop, int64(len(b.lines)), false
	if !until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(stop, until)
		defer cancel()
	}
	defer d.wants.Store(0)
	for ctx.Err() == nil {
		switch {
		case l.take(d, n):
			l.stall()
			select {
			case l.blocks <- b:
				l.stalled.Store(0)
				l.open(d)
				return lostNone
			case <-ctx.Done():
				l.held.Add(-n)
			}
		case l.held.Load() >= l.most(d):
			l.o.Buffer.Hurry()
			select {
			case <-d.freed:
			case <-ctx.Done():
			}
		default:
			if !hurried {
				hurried = true
				defer l.hurry()()
			}
			d.wants.Store(n)
			l.sealNow() // what has been admitted does not wait in memory for the room of others
			// Not for longer: held gets less as Append takes what it is made of.
			wait, cancel := context.WithTimeout(ctx, lookAgain)
			err := l.o.Buffer.Room(wait, l.onDisk(l.held.Load()), l.onDisk(n), l.kept(d))
			cancel()
			if errors.Is(err, buffer.ErrClosed) {
				return lostStopped
			}
			if err != nil && stop.Err() == nil && l.stuck(d) {
				l.tellFull(d)
			}
		}
	}
	if stop.Err() != nil {
		return lostStopped
	}
	return lostFull
}

// room reports whether n bytes of lines get through d now. The first that finds no
// room beside the reserve shuts the gate.
func (l *Lane) room(d *door, n int64) bool {
	held := l.held.Load()
	if l.refuses.Load() && held > 0 && l.passed(l.stalled.Load()) {
		l.shut("the disk has taken nothing for a second")
	}
	if held >= l.most(l.ordinary) {
		l.stall()
	} else if l.o.Buffer.Fits(l.onDisk(held), l.onDisk(n), l.o.Reserve) {
		return true
	} else if l.refuses.Load() && l.full(n) {
		l.shut("the buffer is full but for the reserve")
	}
	return d.reserve && held < l.most(d) && l.o.Buffer.Fits(l.onDisk(held), l.onDisk(n), 0)
}

// full reports whether n bytes of lines find no room beside the reserve even if what
// Append has, which may be in held and in the buffer at the same time, counts once.
// It is false as well when Append began or ended meanwhile: the next look tells.
func (l *Lane) full(n int64) bool {
	turn := l.turn.Load()
	held := max(0, l.held.Load()-l.appending.Load())
	return !l.o.Buffer.Fits(l.onDisk(held), l.onDisk(n), l.o.Reserve) && l.turn.Load() == turn
}

// stall notes that what is admitted waits for the disk; unhold notes the end.
func (l *Lane) stall() { l.stalled.CompareAndSwap(0, l.now()) }

// most is how many bytes of lines may be on their way to the disk before what goes
// through d waits.
func (l *Lane) most(d *door) int64 {
	most := max(heldMax, 2*int64(l.o.Batch.Raw)) // an open batch alone does not reach it
	if d.reserve {
		most += l.o.Reserve
	}
	return most
}

// kept is how many bytes on disk what goes through d leaves free.
func (l *Lane) kept(d *door) int64 {
	if d.reserve {
		return 0
	}
	return l.o.Reserve
}

// onDisk is what n bytes of lines take on disk, as far as is known.
func (l *Lane) onDisk(n int64) int64 { return n * 1024 / l.ratio.Load() }

func (l *Lane) now() int64 { return int64(time.Since(l.began)) + 1 }

// passed reports whether at, of now, is fullAfter ago. 0 never is.
func (l *Lane) passed(at int64) bool { return at != 0 && l.now()-at >= int64(fullAfter) }

// stuck reports whether nothing has got through d for fullAfter.
func (l *Lane) stuck(d *door) bool { return l.passed(d.since.Load()) }

// open notes that something got through d. The caller holds its line.
func (l *Lane) open(d *door) {
	at := d.since.Load()
	if at == 0 {
		return
	}
	d.since.Store(0)
	if d.told {
		d.told = false
		l.o.Log.Info("the buffer has room again", "lane", l.o.Name, "full_for", time.Duration(l.now()-at).Round(time.Millisecond))
	}
}

// tellFull says once that there is no room. The caller holds d's line.
func (l *Lane) tellFull(d *door) {
	if now := time.Now(); !d.told && (d.toldAt.IsZero() || now.Sub(d.toldAt) >= remind) {
		d.told, d.toldAt = true, now
		l.o.Log.Warn("the buffer is full; inputs wait or drop, as ON_FULL says, until there is room", "lane", l.o.Name, "hint", l.RoomHint())
	}
}

// RoomHint says what to do when there is no room.
func (l *Lane) RoomHint() string {
	switch s := l.o.Buffer.Stats(); {
	case s.DiskError != nil:
		return "see to the disk: " + s.DiskError.Error()
	case l.held.Load() >= l.most(l.ordinary):
		return "see to the disk, which does not take what was admitted"
	case s.MaxBytes-s.LiveBytes > s.Room: // the disk has less than MAX_BYTES leaves
		return fmt.Sprintf("free the disk: %d bytes are left, and SPILLWAY_BUFFER_MIN_FREE are for others; or let the output take what is pending", s.Free)
	}
	return "see what the output says, or raise SPILLWAY_BUFFER_MAX_BYTES"
}

// look is for times when nothing comes: what has room again says so, and what has
// none any more says so, and refuses, before records depend on it.
func (l *Lane) look() {
	for _, d := range []*door{l.ordinary, l.last} {
		if d.since.Load() == 0 && d.reserve != l.refuses.Load() {
			continue
		}
		select {
		case d.line <- struct{}{}:
			switch {
			case l.room(d, blockSize):
				if len(l.blocks) < cap(l.blocks) {
					l.open(d)
				}
			case !d.reserve && !l.room(d, 1):
				d.since.CompareAndSwap(0, l.now())
				if l.stuck(d) {
					l.tellFull(d)
				}
			}
			<-d.line
		default: // somebody is looking
		}
	}
}

// unhold takes n bytes of lines off what is held: they are durable, or lost.
func (l *Lane) unhold(n int64) {
	l.held.Add(-n)
	l.stalled.Store(0)
	if c := l.freed.Swap(nil); c != nil {
		close(*c)
	}
	for _, d := range []*door{l.ordinary, l.last} {
		select {
		case d.freed <- struct{}{}:
		default:
		}
	}
}

// sealNow makes fill seal the open batch.
func (l *Lane) sealNow() {
	select {
	case l.press <- struct{}{}:
	default:
	}
}

// Full reports whether there has been no room for a second or longer, whether or not
// something came: the buffer is full, or its disk does not take what was admitted.
func (l *Lane) Full() bool { return l.stuck(l.ordinary) || l.stuck(l.last) }

// Shut reports whether inputs that refuse do so now.
func (l *Lane) Shut() bool { return l.gate.isShut() }

// Gate returns what tells the input's server when to refuse; nil, for never,
// unless ON_FULL is refuse. All such inputs of a lane share one.
func (in *Input) Gate() listen.Gate {
	if in.o.OnFull != Refuse {
		return nil
	}
	return (*laneGate)(in.o.Lane)
}

// gate is a lane's, for all its inputs that refuse.
//
// It shuts when an ordinary block does not fit beside the reserve any more, when
// the disk answers with an error, whatever it is, and when what is admitted has waited for
// a second while the disk took nothing. It opens when the disk works and there is
// room for two blocks beside the reserve, but not within a second: what made it
// shut was one block, so that room for a single one would shut it again with the
// next, and sockets would be closed and bound for each segment that is delivered.
type gate struct {
	mu     sync.Mutex
	closed chan struct{} // Shut's, guarded by mu
	since  time.Time     // when it was shut; zero: it is open; guarded by mu
}

func (g *gate) isShut() bool { g.mu.Lock(); defer g.mu.Unlock(); return !g.since.IsZero() }

// shut shuts the gate.
func (l *Lane) shut(why string) {
	g := &l.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.since.IsZero() {
		return
	}
	g.since = time.Now()
	close(g.closed)
	l.o.Log.Warn("inputs with ON_FULL=refuse stop accepting until there is room", "lane", l.o.Name, "why", why, "hint", l.RoomHint())
}

// shutIfFailing shuts the gate if the disk answered the last write with an error.
func (l *Lane) shutIfFailing() {
	if !l.refuses.Load() {
		return
	}
	if err := l.o.Buffer.Stats().DiskError; err != nil {
		l.shut("records can't be stored: " + err.Error())
	}
}

// reopen opens the gate if there is room.
func (l *Lane) reopen() bool {
	g := &l.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	switch held := l.held.Load(); {
	case g.since.IsZero():
		return true
	case l.o.Buffer.Stats().DiskError != nil, held > 0 && l.stalled.Load() != 0, !l.o.Buffer.Fits(l.onDisk(held), l.onDisk(2*blockSize), l.o.Reserve):
		return false
	}
	l.o.Log.Info("inputs with ON_FULL=refuse accept again", "lane", l.o.Name, "refused_for", time.Since(g.since).Round(time.Millisecond))
	g.since, g.closed = time.Time{}, make(chan struct{})
	return true
}

// laneGate is a lane as its inputs' servers see it.
type laneGate Lane

// Shut implements listen.Gate.
func (g *laneGate) Shut() <-chan struct{} {
	g.gate.mu.Lock()
	defer g.gate.mu.Unlock()
	return g.gate.closed
}

// Wait implements listen.Gate.
func (g *laneGate) Wait(ctx context.Context) error {
	l := (*Lane)(g)
	l.gate.mu.Lock()
	since := l.gate.since
	l.gate.mu.Unlock()
	if since.IsZero() {
		return nil
	}
	sleep(ctx, time.Until(since.Add(shutFor)))
	for ctx.Err() == nil {
		if l.reopen() {
			return nil
		}
		wait, cancel := context.WithTimeout(ctx, lookAgain)
		err := l.o.Buffer.Room(wait, l.onDisk(l.held.Load()), l.onDisk(2*blockSize), l.o.Reserve)
		if err == nil {
			<-wait.Done() // it is not room that is missing
		}
		cancel()
		if errors.Is(err, buffer.ErrClosed) {
			return err
		}
	}
	return ctx.Err()
}
