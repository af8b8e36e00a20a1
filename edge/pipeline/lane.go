// Package pipeline is what happens to messages between a socket and a far side:
//
//	Sink (in turn, see listen) parse, encode            ── block of lines ──┐
//	Lane.fill                  number, gather           ── open batch ──────┤ one goroutine per lane
//	Lane.encode                compress, hash           ── batches ─────────┤ a few per lane, results in order
//	Lane.store                 seal, Append (fsync)     ── durable ─────────┤ one per lane
//	Lane.ship                  Next, Publish, Commit                        ┘ one per lane
//
// Every hand-over is bounded, so that a full buffer is felt at the sockets and
// nowhere in between. Readers never wait for outputs.
package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/framing/ecs"
	"spillway/outputs"
)

// LaneOptions configure a lane.
type LaneOptions struct {
	Name    string
	Agent   string
	Host    string
	Buffer  *buffer.Buffer
	Chain   *outputs.Chain
	Codec   batch.Codec
	Level   int // of the codec; 0 is the fastest
	Batch   batch.BuilderOptions
	AgeHeld time.Duration // replaces Batch.Age while batches gain nothing by being small
	Raw     bool          // SPILLWAY_ENCODING=raw

	// BufferKeeps says that the buffer keeps payloads beyond Append (SyncInterval),
	// so that their memory can't be used again.
	BufferKeeps bool

	// Reserve is how many bytes of the buffer only inputs that refuse may use: what
	// they drain when there is no room for others. 0: none.
	Reserve int64

	Rate *Rate // shared by all lanes; nil: none

	// Synchronised reports whether somebody keeps the host's clock in step; nil: it is. Batches
	// whose times may be wrong carry batch.Unsynced. It is asked once a second at most.
	Synchronised func() bool

	Log *slog.Logger
}

// Lane is a buffer with all that belongs to it.
type Lane struct {
	o     LaneOptions
	start buffer.Start

	blocks chan *block // from sinks to fill
	spare  chan *block // blocks to use again
	free   chan *batch.Open
	mem    chan []byte // of payloads, to use again
	jobs   chan *job   // to the encoders
	order  chan *job   // the same jobs, to store, in the order of their numbers

	ordinary  *door         // of inputs that block or drop
	last      *door         // of inputs that refuse
	press     chan struct{} // tells fill to seal
	taking    sync.Mutex    // held while room is looked for and taken
	held      atomic.Int64  // bytes of lines that are admitted and not durable yet
	appending atomic.Int64  // bytes of lines of held that Append has, or has just had
	turn      atomic.Uint64 // counts what begins and ends of Append: between held and appending, at an end
	stalled   atomic.Int64  // since when inputs have waited for the disk to take what is held, since began; 0: none does
	gate      gate
	refuses   atomic.Bool  // the lane has an input that refuses
	ratio     atomic.Int64 // recent compression ratio × 1024
	began     time.Time
	moved     atomic.Int64                       // when fill or store last got on, since began
	sealed    atomic.Int32                       // batches that fill has sealed and store is not done with
	waiting   atomic.Int32                       // doors and store, while they wait for room
	urge      atomic.Pointer[context.CancelFunc] // ends ship's waiting for more batches
	admitted  atomic.Uint64
	durable   atomic.Uint64 // number of the last record that Append returned for
	cut       atomic.Uint64 // records that the stop kept from being stored
	resent    atomic.Uint64 // records sent again because a far side lost them
	paced     atomic.Int64  // when Rate last held ship back, since began; paceHeld: it does; 0: never

	// Of those who wait for their records, see durable.go.
	gathering atomic.Bool                   // somebody waits for the open batch
	failing   atomic.Int64                  // since when the disk has answered with errors, since began; 0: it does not
	freed     atomic.Pointer[chan struct{}] // closed when held has become less; nil: nobody waits for it

	before buffer.Stats // of the buffer, when the lane began
	meter  meter

	drops drops

	memory inMemory

	gapMu   sync.Mutex
	telling int // gaps of the buffer in batches that are not durable yet, guarded by gapMu
}

// block is lines of one input, encoded but without their tails (see
// ecs.AppendTail), received at one time. It is handed from a sink to the lane.
type block struct {
	lines []byte
	ends  []uint32 // where each line ends
	time  int64    // unix ns

	stored *storing // told when all lines are durable, or lost; nil: nobody waits
}

// job is one open batch on its way to the disk. From fill to the end of its
// encoding the encoder owns open, which is used again after that.
type job struct {
	open    *batch.Open
	gaps    int   // how many of the buffer's gaps it tells
	raw     int64 // bytes of its lines
	waiters []waiter
	batches []*batch.Batch
	mem     []byte // of the payloads
	err     error
	done    chan struct{} // closed when batches or err is set
}

// openBatches is how many open batches a lane has: one that is filled and one for
// each encoder.
func openBatches() int { return 1 + min(runtime.GOMAXPROCS(0), maxEncoders) }

const (
	maxEncoders = 3
	groupMax    = 8           // encoded batches that share an fsync, and as many may wait for the next
	tellAfter   = time.Second // how often a lane without new records looks for something to tell
	spareBlocks = 8           // kept for reuse
	maxBlock    = 1 << 20     // larger ones are not kept
	blockSize   = 256 << 10   // of lines that a new one has room for: those of one read
	maxTail     = 64          // no tail of a line is longer
	maxMem      = 2 * batch.MaxPayload
	maxOpen     = 2 * batch.DefaultRaw
)

// NewLane returns a lane over an open buffer. Run does the work.
func NewLane(o LaneOptions) *Lane {
	l := &Lane{
		o: o, start: o.Buffer.Begin(),
		blocks: make(chan *block, 2),
		spare:  make(chan *block, spareBlocks),
		mem:    make(chan []byte, groupMax),
		free:   make(chan *batch.Open, openBatches()),
		jobs:   make(chan *job, openBatches()),
		order:  make(chan *job, groupMax),
		press:  make(chan struct{}, 1),
		began:  time.Now(),
		before: o.Buffer.Stats(),
		meter:  meter{at: time.Now()},

		ordinary: newDoor(false),
		last:     newDoor(true),
		gate:     gate{closed: make(chan struct{})},
	}
	for range openBatches() {
		l.free <- l.newOpen()
	}
	l.ratio.Store(1 << 10) // until it is known: what is admitted must fit
	return l
}

// Run works until Close was called and everything admitted is durable and either
// shipped or ctx has ended, whichever comes first. It returns when all its
// goroutines have returned. The buffer stays open.
func (l *Lane) Run(ctx context.Context) {
	var ingest, ship, upkeep sync.WaitGroup
	coming, ended := context.WithCancel(ctx) // while batches still come
	defer ended()
	ingest.Go(l.fill)
	for range openBatches() - 1 {
		ingest.Go(l.encode)
	}
	ingest.Go(func() { l.store(ctx) })
	ship.Go(func() { l.ship(ctx, coming) })
	maintaining, enough := context.WithCancel(ctx)
	defer enough()
	upkeep.Go(func() { l.maintain(maintaining) })
	ingest.Wait()
	ended()
	ship.Wait()
	enough() // last: under SyncInterval nothing is shipped that it did not sync
	upkeep.Wait()
}

// Close says that no sink will flush any more. Run then finishes.
func (l *Lane) Close() { close(l.blocks) }

// fill numbers lines as it copies them into the open batch. It alone gives numbers.
func (l *Lane) fill() {
	f := &filler{l: l, builder: batch.NewBuilder(l.o.Batch), clock: clock{synchronised: l.o.Synchronised}, next: l.start.Next, timer: time.NewTimer(0),
		gap: ecs.NewEncoder(ecs.Options{Dataset: "spillway.gap", Agent: l.o.Agent, Host: l.o.Host})}
	if l.start.Unclean {
		f.unclean = batch.Unclean
	}
	f.timer.Stop()
	defer close(l.jobs)
	defer close(l.order)
	defer f.timer.Stop()
	idle := time.NewTicker(tellAfter)
	defer idle.Stop()
	for {
		select {
		case b, ok := <-l.blocks:
			if !ok {
				f.finish()
				f.seal()
				return
			}
			l.move()
			f.add(b)
			if b.stored != nil {
				f.urge()
			}
			l.release(b)
		case <-f.timer.C:
			f.seal()
		case <-l.press:
			f.seal()
		case <-idle.C:
			l.look()
			// What is missing is told also when nothing comes any more.
			if f.open == nil && (l.drops.any() || l.mustTell()) {
				f.begin()
			}
		}
	}
}

// hurry makes ship wait for no more batches until done: room comes first.
func (l *Lane) hurry() (done func()) {
	l.waiting.Add(1)
	l.Reroute()
	return func() { l.waiting.Add(-1) }
}

// newOpen returns an open batch with memory for all its lines. Growing step by
// step would leave several times as much behind; pages that no line touches cost
// nothing.
func (l *Lane) newOpen() *batch.Open {
	raw := l.o.Batch.Raw
	if raw <= 0 {
		raw = batch.DefaultRaw
	}
	return &batch.Open{Lines: make([]byte, 0, raw+blockSize)}
}

// block returns an empty block; release gives it back.
func (l *Lane) block() *block {
	select {
	case b := <-l.spare:
		return b
	default:
		return &block{lines: make([]byte, 0, blockSize)}
	}
}

func (l *Lane) release(b *block) {
	if cap(b.lines) > maxBlock {
		return
	}
	b.lines, b.ends, b.stored = b.lines[:0], b.ends[:0], nil
	select {
	case l.spare <- b:
	default:
	}
}

// filler is the state of Lane.fill.
type filler struct {
	l       *Lane
	builder *batch.Builder
	clock   clock
	gap     *ecs.Encoder
	open    *batch.Open // nil: none
	next    uint64
	unclean batch.Flags // Unclean until the first batch carries it
	gaps    int         // of the buffer's, told in the open batch
	first   bool        // the record of a new epoch is written
	timer   *time.Timer

	held int64 // bytes of the open batch that its inputs' blocks had

	told []toldGap // of recordOwn, that are not delivered yet

	waiters []waiter // for the open batch
}

// toldGap is a gap record in a batch.
type toldGap struct {
	gap ecs.Gap
	seq uint64
}

func (f *filler) add(b *block) {
	f.l.admitted.Add(uint64(len(b.ends)))
	start := uint32(0)
	for _, end := range b.ends {
		line := b.lines[start:end]
		start = end
		if f.open != nil && f.builder.Due(f.open, len(line)+maxTail) {
			f.seal()
		}
		if f.open == nil {
			f.begin()
		}
		f.held += int64(len(line))
		f.line(line, b.time)
		if b.stored != nil {
			f.wait(b.stored, int(end) == len(b.lines))
		}
		if f.builder.Full(f.open) {
			f.seal()
		}
	}
}

// line copies one line and gives it its number.
func (f *filler) line(line []byte, t int64) {
	o := f.open
	o.Lines = append(slices.Grow(o.Lines, len(line)+maxTail), line...) // a large one is not copied once more for its tail
	if !f.l.o.Raw {
		o.Lines = ecs.AppendTail(o.Lines, uint64(f.l.start.Epoch), f.next)
	}
	o.Added(t)
	f.next++
}

// begin opens a batch. What must be told about missing records comes first.
func (f *filler) begin() {
	f.open = <-f.l.free
	f.builder.Learn(float64(f.l.ratio.Load()) / 1024)
	f.open.Reset(f.next, f.builder.Flags()|f.unclean|f.clock.flags())
	f.unclean = 0
	f.timer.Reset(f.l.age(f.builder.Age()))
	if !f.first {
		f.first = true
		if g := f.l.start.Previous; g != nil {
			f.recordOwn(gapRecord(*g))
		}
	}
	f.tell()
}

// tell writes what is missing and not told yet into the open batch: holes that
// the buffer knows of, records that inputs dropped, and what the lane told in a
// batch that drop_oldest dropped since. (Its own holes the buffer returns again.)
func (f *filler) tell() {
	l := f.l
	var delivered uint64
	if len(f.told) > 0 {
		delivered = l.o.Buffer.Stats().Committed // before untold: what is dropped by now, that returns
	}
	holes := l.untold()
	f.gaps += len(holes)
	var again []ecs.Gap
	f.told = slices.DeleteFunc(f.told, func(t toldGap) bool {
		lost := slices.ContainsFunc(holes, func(g buffer.Gap) bool {
			return g.Epoch == l.start.Epoch && g.First <= t.seq && t.seq <= g.Last
		})
		if lost {
			again = append(again, t.gap)
		}
		return lost || t.seq <= delivered
	})
	for _, g := range holes {
		f.record(gapRecord(g))
	}
	for _, g := range l.drops.take(again) {
		f.recordOwn(g)
	}
}

// recordOwn writes a gap record of what the buffer does not know of.
func (f *filler) recordOwn(g ecs.Gap) {
	f.told = append(f.told, toldGap{g, f.next})
	f.record(g)
}

// finish tells at the stop what no later batch will.
func (f *filler) finish() {
	switch {
	case f.open != nil:
		f.tell()
	case f.l.drops.any() || f.l.mustTell():
		f.begin()
	}
}

// record writes a gap record into the open batch.
func (f *filler) record(g ecs.Gap) {
	now := time.Now()
	o := f.open
	o.Lines = f.gap.AppendGap(o.Lines, g, now)
	o.Lines = ecs.AppendTail(o.Lines, uint64(f.l.start.Epoch), f.next)
	o.Flags |= batch.HasGap
	o.Added(now.UnixNano())
	f.next++
	f.l.admitted.Add(1)
}

// untold returns the buffer's gaps that no batch tells yet; the next one does.
func (l *Lane) untold() []buffer.Gap {
	l.gapMu.Lock()
	defer l.gapMu.Unlock()
	gaps := l.o.Buffer.Gaps()[l.telling:]
	l.telling += len(gaps)
	return gaps
}

// mustTell reports whether untold would return any.
func (l *Lane) mustTell() bool {
	l.gapMu.Lock()
	defer l.gapMu.Unlock()
	return len(l.o.Buffer.Gaps()) > l.telling
}

// told says that n gaps are durable in batches from record first on, oldest first.
func (l *Lane) told(n int, first uint64) {
	if n == 0 {
		return
	}
	l.gapMu.Lock()
	defer l.gapMu.Unlock()
	l.o.Buffer.GapsTold(n, first)
	l.telling -= n
}

func gapRecord(g buffer.Gap) ecs.Gap {
	return ecs.Gap{Reason: g.Reason, Count: g.Count, Since: g.Since, Until: g.Until, Epoch: uint64(g.Epoch), First: g.First, Last: g.Last,
		SealBefore: g.Before, SealAfter: g.After}
}

// seal hands the open batch to an encoder and to store, in this order of numbers.
func (f *filler) seal() {
	if f.open == nil || f.open.Count == 0 {
		return
	}
	f.timer.Stop()
	f.open.Flags |= f.clock.flags() // it may have become so since
	j := &job{open: f.open, gaps: f.gaps, raw: int64(len(f.open.Lines)), waiters: f.waiters, done: make(chan struct{})}
	f.l.move()
	f.l.held.Add(j.raw - f.held) // tails and gap records come to what was admitted
	f.open, f.gaps, f.held, f.waiters = nil, 0, 0, nil
	f.l.gathering.Store(false)
	f.l.sealed.Add(1)
	f.l.jobs <- j
	select {
	case f.l.order <- j:
	default:
		f.l.o.Buffer.Hurry() // as many as share an fsync wait for one
		f.l.order <- j
	}
}

// age is how long a batch stays open: longer while small batches gain nothing,
// because nobody takes them soon; they compress badly and wear flash.
func (l *Lane) age(age time.Duration) time.Duration {
	if l.o.AgeHeld <= age {
		return age
	}
	o := l.o.Chain.Turn(l.o.Name).Output
	if o == nil || o.Limits().Age > l.o.AgeHeld || l.o.Chain.Failing(l.o.Name, o) {
		return l.o.AgeHeld
	}
	return age
}

// encode compresses open batches; several run beside one another.
func (l *Lane) encode() {
	e, err := batch.NewEncoder(l.o.Codec, l.o.Level)
	for j := range l.jobs {
		if j.err = err; err == nil {
			var mem []byte
			select {
			case mem = <-l.mem:
			default:
				mem = make([]byte, 0, batch.DefaultBytes+batch.DefaultBytes/8)
			}
			j.batches, j.mem, j.err = e.Encode(nil, j.open, mem[:0])
		}
		if j.err == nil {
			n := 0
			for _, b := range j.batches {
				n += len(b.Payload)
			}
			if j.raw > 4<<10 {
				l.ratio.Store(max(1024, j.raw*1024/int64(n)))
			}
		} else {
			// One record beyond every limit, which sinks don't let pass, or a codec that
			// can't be made: the numbers show the hole.
			l.o.Log.Error("records can't be encoded and are lost", "lane", l.o.Name, "first", j.open.First, "records", j.open.Count, "error", j.err)
		}
		if cap(j.open.Lines) > max(maxOpen, 2*l.o.Batch.Raw) {
			j.open = l.newOpen()
		}
		l.free <- j.open
		close(j.done)
	}
}

// store seals batches in the order of their numbers and makes them durable. What
// is encoded by then shares an fsync.
func (l *Lane) store(ctx context.Context) {
	sealer := batch.Sealer{Epoch: l.start.Epoch, Prev: l.start.Seal}
	var lost struct { // what the stop cut off, told once
		first, last uint64
		err         error
	}
	defer func() {
		if lost.err != nil {
			l.o.Log.Error("stopped before these records were stored; they are lost", "lane", l.o.Name, "first", lost.first, "last", lost.last, "error", lost.err)
		}
	}()
	var group []*batch.Batch
	var mems [][]byte
	var waiters []waiter
	for j := <-l.order; j != nil; {
		<-j.done
		group, mems, waiters = group[:0], mems[:0], waiters[:0]
		var raw int64
		gaps := 0
		for j != nil && len(mems) < groupMax && j.isDone() {
			for _, b := range j.batches {
				sealer.Seal(b)
				group = append(group, b)
			}
			raw += j.raw
			gaps += j.gaps
			if j.err == nil {
				waiters = append(waiters, j.waiters...)
			} else {
				tell(j.waiters, j.err)
			}
			mems = append(mems, j.mem)
			select {
			case j = <-l.order:
			default:
				j = nil
			}
		}
		l.appending.Store(raw)
		l.turn.Add(1)
		if len(group) > 0 {
			if left, err := l.append(ctx, group, len(waiters) > 0); err == nil {
				l.told(gaps, group[0].First)
				tell(waiters, nil)
			} else if errors.Is(err, buffer.ErrMemory) {
				l.told(gaps, group[0].First)
				tell(waiters, errMemory)
			} else {
				tell(waiters, errCut)
				if lost.err == nil {
					lost.first, lost.err = left[0].First, err
				}
				lost.last = left[len(left)-1].Last()
				for _, b := range left {
					l.cut.Add(uint64(b.Count))
				}
			}
		}
		l.reuse(mems)
		l.sealed.Add(-int32(len(mems)))
		l.unhold(raw)
		l.turn.Add(1)
		l.appending.Store(0)
		l.gathered()
		if j == nil {
			j = <-l.order // nil when it is closed
		}
	}
}

func (j *job) isDone() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

// reuse gives the memory of stored payloads back to the encoders, unless the
// buffer keeps it.
func (l *Lane) reuse(mems [][]byte) {
	if l.o.BufferKeeps {
		return
	}
	for _, m := range mems {
		if cap(m) <= maxMem {
			select {
			case l.mem <- m:
			default:
			}
		}
	}
}

// append stores group and does not return before it is stored or ctx has ended:
// while there is no room or the disk fails, batches wait in memory and, through
// the bounded hand-overs, at the sockets. With waited nothing gathers. buffer.ErrMemory
// means that group is taken and not all of it durable, another error that the lane
// stops, and left, the end of group, is not stored.
func (l *Lane) append(ctx context.Context, group []*batch.Batch, waited bool) (left []*batch.Batch, err error) {
	pause, since, full := time.Duration(0), time.Time{}, false
	for n := len(group); len(group) > 0; {
		l.move()
		if waited {
			l.o.Buffer.Hurry()
		}
		n = min(n, len(group))
		err = l.o.Buffer.Append(ctx, group[:n]...)
		l.move()
		if err == nil || errors.Is(err, buffer.ErrMemory) {
			l.watch()
			if err == nil { // then what was in memory is durable too
				l.isDurable(group[n-1].Last())
			}
			group, pause = group[n:], 0
			continue
		}
		if ctx.Err() != nil || errors.Is(err, buffer.ErrClosed) {
			return group, err
		}
		degraded := l.o.Buffer.Degraded()
		if degraded && n > 1 {
			n = 1 // the memory that takes what the disk does not may be smaller than group
			continue
		}
		l.shutIfFailing()
		if since.IsZero() {
			since = time.Now()
			l.failing.Store(l.now())
			l.o.Log.Error("records can't be stored; they wait in memory and inputs are held back", "lane", l.o.Name, "error", err,
				"hint", "see the disk that holds SPILLWAY_STATE_DIR: space, errors, read-only")
		}
		most := 10 * time.Second
		if degraded || errors.Is(err, buffer.ErrFull) {
			most = time.Second // it is for ship to end this
			if !full {
				full = true
				defer l.hurry()()
			}
		}
		pause = min(max(2*pause, 100*time.Millisecond), most)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	if !since.IsZero() {
		l.failing.Store(0)
		if err == nil {
			l.o.Log.Info("records are stored again", "lane", l.o.Name, "failed_for", time.Since(since).Round(time.Millisecond))
		}
	}
	return nil, err
}

// isDurable says that Append has returned for all records up to last, without an error.
func (l *Lane) isDurable(last uint64) {
	l.durable.Store(last)
	l.o.Log.Debug("durable", "lane", l.o.Name, "last", last)
}

// maintain gives the buffer its time: it is the buffer's only clock.
func (l *Lane) maintain(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.o.Buffer.Woken():
		case <-timer.C:
		}
		next := l.o.Buffer.Maintain(time.Now())
		l.meter.look(l)
		l.watch()
		l.shutIfFailing()
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(time.Until(next), 10*time.Millisecond))
		}
	}
}

// move notes that fill or store got on.
func (l *Lane) move() { l.moved.Store(l.now()) }

// Stuck reports whether batches wait for the disk and nothing has moved for d: a
// call does not return. A disk that answers with errors, a full buffer and an idle
// lane are not stuck.
func (l *Lane) Stuck(d time.Duration) bool {
	return l.sealed.Load() > 0 && l.now()-l.moved.Load() >= int64(d)
}
