package buffer

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"spillway/buffer/batch"
)

// Errors of this package.
var (
	ErrFull    = errors.New("buffer is full")
	ErrClosed  = errors.New("buffer is closed")
	ErrLocked  = errors.New("another process has this buffer open")
	ErrOrder   = errors.New("batch out of order")
	ErrVersion = batch.ErrVersion
)

// Policy is what a full buffer does.
type Policy uint8

// Policies. The zero value is the default.
const (
	Hold       Policy = 0 // no room until something is delivered
	DropOldest Policy = 1 // the oldest segments make room
)

// ParsePolicy reads the value of SPILLWAY_BUFFER_FULL.
func ParsePolicy(s string) (Policy, error) {
	switch s {
	case "hold":
		return Hold, nil
	case "drop_oldest":
		return DropOldest, nil
	}
	return 0, fmt.Errorf("%q: want hold or drop_oldest", s)
}

// String is the inverse of ParsePolicy.
func (p Policy) String() string {
	if p == DropOldest {
		return "drop_oldest"
	}
	return "hold"
}

// SyncPolicy is when batches become durable, and so what Append promises.
type SyncPolicy uint8

// Sync policies. The zero value is the default.
const (
	SyncGroup    SyncPolicy = 0 // Append returns after fsync; one fsync serves all that wait. Readers see durable batches only
	SyncInterval SyncPolicy = 1 // Append returns after write; fsync every SyncInterval. Readers see durable batches only
	SyncNever    SyncPolicy = 2 // Append returns after write; the kernel decides. Readers see all batches
)

// ParseSync reads the value of SPILLWAY_BUFFER_SYNC.
func ParseSync(s string) (SyncPolicy, error) {
	switch s {
	case "group":
		return SyncGroup, nil
	case "interval":
		return SyncInterval, nil
	case "never":
		return SyncNever, nil
	}
	return 0, fmt.Errorf("%q: want group, interval or never", s)
}

// String is the inverse of ParseSync.
func (p SyncPolicy) String() string {
	switch p {
	case SyncInterval:
		return "interval"
	case SyncNever:
		return "never"
	}
	return "group"
}

// Options of a buffer. A zero field is its default, except Agent, which is needed.
type Options struct {
	Agent           string        // part of file names and of every identity; see ValidAgent
	MaxBytes        int64         // of all segments together; default min(1 GiB, 10 % of the file system)
	MinFree         int64         // bytes of the file system that are left to others; default min(256 MiB, 5 %); < 0: off
	Full            Policy        //
	Sync            SyncPolicy    //
	SyncInterval    time.Duration // default 1 s
	SyncGap         time.Duration // SyncGroup syncs at most once per gap, unless 1 MiB waits or Hurry says so; default 100 ms; < 0: none
	KeepAcked       time.Duration // how long delivered segments are kept while there is room; default 10 min; < 0: not at all
	MaxUnsynced     int64         // bytes that SyncInterval keeps in memory before it syncs early; default 8 MiB
	SegmentBytes    int64         // size at which a segment is closed; default MaxBytes/64, at least 1 and at most 32 MiB
	QuarantineBytes int64         // of drained damaged segments kept aside; default 64 MiB; < 0: none
	RejectedBytes   int64         // of files that Reject keeps aside; default 64 MiB; < 0: none
	Memory          int64         // of segments in memory while the disk takes no writes; 0: none
	NetworkFS       bool          // allow network file systems
	MaxAge          time.Duration // undelivered segments whose newest record is older are removed, see Clock; 0: however old
	FS              FS            // nil: the operating system
	Now             func() time.Time

	// Clock says how long the host has been up, asleep too, and whether somebody keeps
	// Now in step. MaxAge needs it: by a wrong clock nothing expires.
	Clock func() (up time.Duration, synchronised bool)

	random func() uint64 // of tests; nil: crypto/rand
}

const (
	maxSegments = 8192      // per buffer, so that memory stays below 1 MiB for them
	maxSegment  = 1 << 30   // bytes; offsets in headers are 32 bits wide
	hurryBytes  = 1 << 20   // waiting bytes that cut SyncGap short
	chunk       = 256 << 10 // small batches are gathered into writes of this size
	saveEvery   = 5 * time.Second
	freeEvery   = time.Second // how old the known free space may be
)

func (o Options) withDefaults(total int64) (Options, error) {
	if o.MaxAge > 0 && o.Clock == nil {
		return o, errNoClock
	}
	if !ValidAgent(o.Agent) {
		return o, fmt.Errorf("agent name %q: want 1 to %d of A-Z a-z 0-9 _ -", o.Agent, MaxAgent)
	}
	def := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	dur := func(p *time.Duration, v time.Duration) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.MaxBytes, max(4<<20, min(1<<30, total/10)))
	def(&o.MinFree, min(256<<20, total/20))
	def(&o.MaxUnsynced, 8<<20)
	def(&o.SegmentBytes, min(max(o.MaxBytes/64, 1<<20), 32<<20))
	def(&o.QuarantineBytes, 64<<20)
	def(&o.RejectedBytes, 64<<20)
	dur(&o.SyncInterval, time.Second)
	dur(&o.SyncGap, 100*time.Millisecond)
	dur(&o.KeepAcked, 10*time.Minute)
	o.SegmentBytes = min(o.SegmentBytes, maxSegment)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.random == nil {
		o.random = random
	}
	return o, nil
}

func random() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// slack is how far Append may go over MaxBytes under Hold: what the pipeline had
// admitted before it heard that there is no room.
func (o *Options) slack() int64 { return min(8<<20, max(1<<20, o.MaxBytes/8)) }

// segment is one file. The zero doneAt means that not all of it is delivered.
type segment struct {
	ordinal uint64
	epoch   batch.Epoch
	first   uint64
	salt    uint64
	agent   string
	size    int64   // of the file
	end     int64   // readers stop here
	last    uint64  // no number in it is higher; first-1: none
	doneAt  int64   // when everything in it was delivered, unix ns
	promise int64   // bytes below this were durable once; -1: not looked at
	durable uint64  // numbers below this were durable once; known with promise
	ours    bool    // written in this life
	damaged bool    // corrupt, not merely torn
	gone    bool    // somebody removed it: nothing is appended to it any more
	newer   bool    // not all of it can be read by this version: it stays
	lazy    bool    // not all of it was synced (SyncNever)
	mem     *memory // its bytes, while it is no file yet; written with w and mu held
}

func (s *segment) name() string {
	return segmentName(s.ordinal, s.epoch, s.first, s.salt, s.agent)
}

// Start says where numbering goes on.
type Start struct {
	Epoch   batch.Epoch
	Next    uint64     // number of the next record
	Seal    batch.Seal // the seal before the next batch
	Unclean bool       // the last life did not end with Close
	// Previous is set in a new epoch of an existing directory: what the epoch's
	// first record must tell.
	Previous *Gap
}

// request is one Append that waits for the one that writes for all.
type request struct {
	batches []*batch.Batch
	bytes   int64
	done    chan struct{} // closed when err is set
	err     error
}

// Buffer is an open buffer. All methods are safe for concurrent use; Next is
// meant for one caller at a time, a second one waits.
type Buffer struct {
	o     Options
	fs    FS
	start Start
	anew  Start // start, if it can't be noted that this life has begun

	lead  chan struct{} // held by the Append that writes and syncs for all
	hurry chan struct{} // tells it that enough is waiting
	stop  chan struct{} // closed by Close
	woken chan struct{}

	// w guards the files: creating, writing, syncing and removing. It is taken
	// before mu, which is never held during a file operation.
	w          sync.Mutex
	active     *segment // being appended to; nil: the next append creates one
	activeFile File
	off        int64 // where the next byte of active goes
	synced     int64 // bytes of active that are durable
	foot       Footer
	cur        cursor
	settled    bool   // what an earlier life may have left unsynced is durable
	loose      bool   // … could not be made durable, which a second sync would not tell
	begun      bool   // Begin was called
	saved      bool   // this life has saved the cursor
	opens      uint32 // including this one
	acked      uint64 // the acked floor that was found
	scratch    []byte
	// unsynced are batches that Append returned for and that are not durable
	// yet (SyncInterval). stranded: the segment they were written to has been
	// given up; the next one begins with them.
	unsynced       []*batch.Batch
	unsyncedBytes  atomic.Int64 // written with w held
	unsyncedSince  time.Time
	unsyncedBefore batch.Seal
	stranded       bool
	ring           ring
	lastSave       time.Time
	activeSince    time.Time // when active was begun
	age            ageing

	r      sync.Mutex // held by Next; guards what follows, and is taken before w
	ready  bool       // settled
	scan   scanner
	rfile  File
	rseg   *segment // of rfile
	slab   []byte   // payloads of the last run
	spare  int      // runs in a row that needed much less than slab
	run    []batch.Batch
	load   []entry
	faults faults

	again reread // guarded by its own mutex, which is taken before w

	mu       sync.Mutex // guards what follows
	closed   bool       // Close has begun
	segs     []*segment // by ordinal
	head     int        // of segs: what is before it is delivered
	total    int64      // bytes of segs
	live     int64      // bytes of segs that hold something to deliver, or to tell
	ordinal  uint64     // the next segment's
	queue    []*request
	queued   int64                 // bytes of queue and of what is being written
	tailNext uint64                // number that the next Append must begin with
	tailSeal batch.Seal            // the seal before it
	next     uint64                // number behind the last batch that is stored
	seal     batch.Seal            // of that batch
	tried    map[uint64]batch.Seal // batches of failed Appends, which may lie on the disk
	pos      position              // committed and all that the cursor holds
	shown    int                   // how many of pos.gaps Gaps has returned: these don't change any more
	dirty    bool                  // pos is newer than the cursor
	lastSync time.Time
	changed  chan struct{} // closed and replaced when readers or waiters should look again

	durable stored  // what the cursor that was found vouches for
	voucher voucher // of the epoch in which damage was met last

	tail    tail
	index   []entry // scanned and not committed, from the head of the line
	popped  uint64  // grows whenever index loses or changes entries
	handed  uint64  // the last number that Next has handed out
	headNum uint64  // for how long the head has been waiting: its first number
	headAt  time.Time
	waiting time.Time // see Stats.PendingSince; of the last time that nothing waited, or some of it was delivered

	credit  int64 // bytes dropped for a disk that is short, and not written yet
	free    int64 // as last seen
	freeAt  time.Time
	stats   counters
	lastErr error // of the disk; nil: the last write succeeded
}

// counters of this life.
type counters struct {
	appendedBatches, appendedRecords, appendedBytes uint64
	deliveredRecords, deliveredBytes                uint64
	syncs, poisoned, cursorErrors                   uint64
	torn, corrupt                                   uint64 // bytes passed over
	quarantined, removed                            uint64 // segments
	memoryRecords                                   uint64
}

// Open opens the buffer in dir for one process. Creating dir (0700) if it is
// absent is the only thing it writes. Damage is never an error; what is lost is
// told by Gaps when Next comes to it. The errors are: not usable as a directory,
// another owner or writable by others, a network file system, locked (ErrLocked),
// written by a newer version (ErrVersion).
func Open(dir string, o Options) (*Buffer, error) {
	dirFS := o.FS
	if dirFS == nil {
		d, err := openOS(dir, o.NetworkFS)
		if err != nil {
			return nil, err
		}
		dirFS = d
	}
	b, err := open(dirFS, o)
	if err != nil {
		dirFS.Close()
		return nil, fmt.Errorf("open buffer %s: %w", dir, err)
	}
	return b, nil
}

func open(dir FS, o Options) (*Buffer, error) {
	free, total, err := dir.Free()
	if err != nil {
		free, total = math.MaxInt64, 0
	}
	if o, err = o.withDefaults(total); err != nil {
		return nil, err
	}
	b := &Buffer{
		o: o, fs: dir,
		lead: make(chan struct{}, 1), hurry: make(chan struct{}, 1), stop: make(chan struct{}), woken: make(chan struct{}, 1),
		changed: make(chan struct{}), tried: map[uint64]batch.Seal{}, free: free, freeAt: o.Now(), waiting: o.Now(),
	}
	if err := b.recover(); err != nil {
		return nil, err
	}
	return b, nil
}

// Begin begins a life that gives numbers, and says where numbering goes on. It comes
// before Append and Next; later calls return the same. The cursor then says that this life did
// not end in order, until Close. If that can't be written, numbering goes on in a
// new epoch, whatever Open found: what is numbered now, and perhaps handed out, may
// not come to the disk, and the next life could give the same numbers again.
func (b *Buffer) Begin() Start {
	b.w.Lock()
	defer b.w.Unlock()
	if b.begun {
		return b.start
	}
	b.mu.Lock()
	b.begun, b.pos.closed = true, false
	b.mu.Unlock()
	if b.saveCursor() != nil {
		b.mu.Lock()
		b.start = b.anew
		b.seal, b.tailSeal = batch.Seal{}, batch.Seal{}
		b.mu.Unlock()
	}
	return b.start
}

// Woken is signalled when Maintain has something to do earlier than it said.
func (b *Buffer) Woken() <-chan struct{} { return b.woken }

func (b *Buffer) wake() {
	select {
	case b.woken <- struct{}{}:
	default:
	}
}

// broadcast lets everyone who waits look again. mu is held.
func (b *Buffer) broadcast() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// Append stores batches, which must be sealed and follow the last one appended
// (numbers may skip, never repeat; seals must join), and returns when they are as
// durable as the sync policy says. Appends of several goroutines share one fsync;
// the first that waits does the work. Salt and SyncedOff of the batches are
// filled in here. Payloads are not kept after it returns, except under
// SyncInterval: there the batches belong to the buffer from then on, for at most
// MaxUnsynced bytes, until they are durable.
//
// It never waits for room; see Room. On ErrFull, as on any error but ErrMemory, nothing
// of the call counts as stored, and the same batches, unchanged, must come next: parts
// of them may lie on the disk already. ErrOrder says that they do not follow.
// ErrMemory says that they are taken and kept in memory (Options.Memory), because
// the disk takes no writes: they come out of Next, and are written to the disk when it
// works again. If it is full there too, the error is the disk's.
// Of ctx only the wait for SyncGap takes note.
func (b *Buffer) Append(ctx context.Context, batches ...*batch.Batch) error {
	if len(batches) == 0 {
		return nil
	}
	b.refreshFree(freeEvery)
	req, err := b.enqueue(batches)
	if err != nil {
		return err
	}
	return b.wait(ctx, req)
}

// wait returns when req is stored or has failed, and does the work for all that
// wait if nobody else does.
func (b *Buffer) wait(ctx context.Context, req *request) error {
	select {
	case b.lead <- struct{}{}:
	case <-req.done:
		return req.err
	}
	select {
	case <-req.done: // by the one before us
	default:
		b.pace(ctx)
		b.w.Lock()
		b.storeQueue()
		b.w.Unlock()
	}
	<-b.lead
	return req.err
}

// enqueue checks the batches and puts them into the queue.
func (b *Buffer) enqueue(batches []*batch.Batch) (*request, error) {
	req := &request{batches: batches, done: make(chan struct{})}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return nil, ErrClosed
	case !b.begun:
		return nil, fmt.Errorf("append before Begin: %w", ErrOrder)
	}
	next, seal := b.tailNext, b.tailSeal
	for _, x := range batches {
		if err := b.check(x, next, seal); err != nil {
			return nil, err
		}
		next, seal = x.Last()+1, x.Seal
		req.bytes += batch.HeaderSize + int64(len(x.Payload))
	}
	if !b.ring.degraded { // else the ring decides
		if err := b.refuse(req.bytes); err != nil {
			return nil, err
		}
	}
	b.tailNext, b.tailSeal = next, seal
	b.queue = append(b.queue, req)
	if b.queued += req.bytes; b.queued >= hurryBytes {
		b.Hurry()
	}
	return req, nil
}

// check refuses a batch that no reader could take back out.
func (b *Buffer) check(x *batch.Batch, next uint64, seal batch.Seal) error {
	limit := uint32(batch.MaxPayload)
	if x.Flags&batch.Single != 0 {
		limit = batch.MaxSingle
	}
	switch {
	case x.First < next || x.Count == 0 || x.Last() < x.First:
		return fmt.Errorf("append records %d to %d, expected %d: %w", x.First, x.Last(), next, ErrOrder)
	case x.Seal != x.Chain(seal, b.start.Epoch):
		return fmt.Errorf("append records %d to %d: the seal does not follow: %w", x.First, x.Last(), ErrOrder)
	case int(x.Length) != len(x.Payload) || x.Length == 0 || x.Length > limit || x.Codec > batch.Zstd:
		return fmt.Errorf("append records %d to %d: payload of %d bytes, header says %d, at most %d", x.First, x.Last(), len(x.Payload), x.Length, limit)
	case batch.CRC32C(x.Payload) != x.CRC:
		return fmt.Errorf("append records %d to %d: %w", x.First, x.Last(), batch.ErrChecksum)
	}
	// A batch that failed to be stored may still be found on the disk some day.
	// One number must not get two contents.
	if s, ok := b.tried[x.First]; ok && s != x.Seal {
		return fmt.Errorf("append records %d to %d: other content was tried under this number: %w", x.First, x.Last(), ErrOrder)
	}
	return nil
}

// Hurry ends the wait for SyncGap of the Append under way, or of the next one:
// somebody waits for what it makes durable.
func (b *Buffer) Hurry() {
	select {
	case b.hurry <- struct{}{}:
	default:
	}
}

// pace waits until SyncGap has passed since the last sync, enough is waiting,
// Hurry is called, ctx ends or the buffer closes.
func (b *Buffer) pace(ctx context.Context) {
	if b.o.Sync != SyncGroup || b.o.SyncGap <= 0 {
		return
	}
	b.mu.Lock()
	wait := b.o.SyncGap - b.o.Now().Sub(b.lastSync)
	if b.queued >= hurryBytes || b.lastSync.IsZero() {
		wait = 0
	}
	b.mu.Unlock()
	if wait <= 0 || wait > b.o.SyncGap { // more: the clock went back
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-b.hurry:
	case <-ctx.Done():
	case <-b.stop:
	}
}

// storeQueue writes everything that waits. w is held.
func (b *Buffer) storeQueue() {
	b.mu.Lock()
	reqs, idle := b.queue, !b.pending()
	b.queue = nil
	b.mu.Unlock()
	if len(reqs) == 0 {
		return
	}
	batches := reqs[0].batches
	if len(reqs) > 1 {
		batches = nil
		for _, r := range reqs {
			batches = append(batches, r.batches...)
		}
	}
	err := b.store(batches)

	b.mu.Lock()
	if err == nil || errors.Is(err, ErrMemory) {
		last := batches[len(batches)-1]
		if idle {
			b.waiting = b.o.Now()
		}
		b.next, b.seal = last.Last()+1, last.Seal
		clear(b.tried)
		b.stats.appendedBatches += uint64(len(batches))
		for _, x := range batches {
			b.stats.appendedRecords += uint64(x.Count)
			b.stats.appendedBytes += uint64(x.Length)
		}
	} else {
		for _, x := range batches {
			b.tried[x.First] = x.Seal
		}
		reqs = append(reqs, b.queue...) // their numbers follow
		b.queue = nil
		b.tailNext, b.tailSeal = b.next, b.seal
	}
	b.lastErr = err
	for _, r := range reqs {
		b.queued -= r.bytes
		r.err = err
	}
	b.broadcast()
	b.mu.Unlock()
	for _, r := range reqs {
		close(r.done)
	}
	b.wake()
}

// store stores batches on the disk, or in memory if it takes no writes. w is held.
func (b *Buffer) store(batches []*batch.Batch) error {
	b.settle()
	if b.ring.degraded {
		b.probe(b.o.Now(), false)
	}
	if !b.ring.degraded {
		if err := b.storeDisk(batches); err == nil || !b.degrade(err) {
			return err
		}
	}
	return b.storeMemory(batches)
}

// storeDisk makes room, writes batches and syncs as the policy says. After an error
// of the disk the segment is given up and everything that is not durable goes to
// a new one, once. w is held.
func (b *Buffer) storeDisk(batches []*batch.Batch) error {
	n := size(batches)
	if b.stranded {
		n += b.unsyncedBytes.Load()
	}
	err := b.makeRoom(n)
	if err != nil && b.o.Memory > 0 && !isFull(err) && !errors.Is(err, ErrFull) {
		err = b.makeRoom(n)
	}
	if err != nil {
		return err
	}
	if err = b.write(batches); err == nil {
		return nil
	}
	b.giveUp()
	if isFull(err) {
		if rerr := b.reclaim(n); rerr != nil {
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
	}
	if err2 := b.write(batches); err2 != nil {
		b.giveUp()
		if isFull(err2) {
			return fmt.Errorf("%w: %w", ErrFull, err2)
		}
		return err2
	}
	return nil
}

// isFull reports whether the disk is full, which is a state and not a fault.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// write appends batches to the active segment, or to a new one that begins with
// what is stranded, and syncs if the policy asks for it. w is held. After an
// error the active segment must be given up.
func (b *Buffer) write(batches []*batch.Batch) error {
	todo := batches
	if b.activeGone() {
		b.giveUp()
	}
	fresh := b.active == nil
	if fresh {
		if b.stranded {
			todo = append(b.unsynced[:len(b.unsynced):len(b.unsynced)], batches...)
		}
		if len(todo) == 0 {
			return nil
		}
		if err := b.create(todo[0]); err != nil {
			return err
		}
	}
	seg := b.active
	if err := b.writeBatches(todo); err != nil {
		return fmt.Errorf("append to %s: %w", seg.name(), err)
	}
	bytes := size(batches)
	full := b.off >= b.o.SegmentBytes || b.isAged()
	if full {
		b.foot.SyncedOff = uint32(b.synced)
		if err := b.writeAt(appendFooter(b.scratch[:0], &b.foot)); err != nil {
			return fmt.Errorf("append to %s: %w", seg.name(), err)
		}
	}
	sync := false
	switch b.o.Sync {
	case SyncGroup:
		sync = true
	case SyncInterval:
		sync = full || b.stranded || b.unsyncedBytes.Load()+bytes >= b.o.MaxUnsynced
	}
	if sync {
		if err := b.syncActive(); err != nil {
			return err
		}
	}
	if fresh {
		// With this the name is durable before anyone hears of a batch in it, under
		// every policy: the newest segment tells the next start what was the last.
		if err := b.fs.SyncDir(); err != nil {
			return fmt.Errorf("sync directory: %w", err)
		}
	}
	switch {
	case sync:
		b.unsynced, b.stranded = nil, false
		b.unsyncedBytes.Store(0)
	case b.o.Sync == SyncInterval:
		if len(b.unsynced) == 0 {
			b.unsyncedSince, b.unsyncedBefore = b.o.Now(), b.seal
		}
		b.unsynced = append(b.unsynced, batches...)
		b.unsyncedBytes.Add(bytes)
	default:
		seg.lazy = true
	}
	b.mu.Lock()
	b.grow(seg)
	if sync || b.o.Sync == SyncNever {
		b.show()
	}
	b.mu.Unlock()
	if full {
		b.activeFile.Close()
		b.active, b.activeFile = nil, nil
	}
	return nil
}

// activeGone reports whether somebody removed the active segment. w is held.
func (b *Buffer) activeGone() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.active != nil && b.active.gone
}

// size is what batches take on disk.
func size(batches []*batch.Batch) (n int64) {
	for _, x := range batches {
		n += batch.HeaderSize + int64(len(x.Payload))
	}
	return n
}

// grow takes note of the active segment's size, and of the segment itself with
// its first batch. w and mu are held.
func (b *Buffer) grow(seg *segment) {
	if seg.gone {
		return
	}
	if n := len(b.segs); n == 0 || b.segs[n-1] != seg {
		b.segs = append(b.segs, seg)
		b.reckon()
	}
	n := b.off - seg.size
	seg.size = b.off
	if seg.mem != nil {
		b.ring.bytes += n
		b.ring.live += n
		return
	}
	b.total += n
	b.live += n
	b.free -= n
}

// show lets readers see everything that is written to the active segment. w and
// mu are held.
func (b *Buffer) show() {
	if !b.active.gone {
		b.active.end, b.active.last = b.foot.End, b.foot.Last
	}
	b.broadcast()
}

// syncActive makes the active segment's bytes durable. w is held.
func (b *Buffer) syncActive() error {
	err := b.activeFile.Sync()
	now := b.o.Now()
	b.mu.Lock()
	b.lastSync = now
	b.stats.syncs++
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("sync %s: %w", b.active.name(), err)
	}
	b.synced = b.off
	return nil
}

// create makes the next segment active. Its header goes out with the first write.
func (b *Buffer) create(first *batch.Batch) error {
	before := b.seal
	if b.stranded {
		before = b.unsyncedBefore
	}
	seg := b.newSegment(first, before)
	f, err := b.fs.Create(seg.name())
	if err != nil {
		return fmt.Errorf("create segment: %w", err)
	}
	b.active, b.activeFile = seg, f
	return nil
}

// newSegment returns the next segment, with its header in scratch.
func (b *Buffer) newSegment(first *batch.Batch, before batch.Seal) *segment {
	salt := b.o.random()
	b.mu.Lock()
	defer b.mu.Unlock()
	seg := &segment{ordinal: b.ordinal, epoch: b.start.Epoch, first: first.First, last: first.First - 1, salt: salt, agent: b.o.Agent, ours: true}
	b.ordinal++ // never again, not even if this fails
	h := segmentHeader{Opens: b.opens, Epoch: seg.epoch, Ordinal: seg.ordinal, First: seg.first, Created: b.o.Now().UnixNano(),
		Salt: salt, Floor: max(b.floorNow(), b.acked), Before: before, Durable: !b.hasLazy()}
	b.synced, b.off = 0, 0
	b.activeSince = b.o.Now()
	b.foot = Footer{Salt: salt, FirstTime: first.FirstTime}
	b.scratch = appendSegmentHeader(b.scratch[:0], &h)
	return seg
}

// floorNow is the highest number of which it can be said without a cursor that it is
// delivered or told as lost, with everything before it. What is gone can't come
// again, told or not. mu is held.
func (b *Buffer) floorNow() uint64 {
	floor := b.pos.committed
	for _, g := range b.pos.gaps {
		floor = min(floor, max(g.First, 1)-1)
	}
	if len(b.segs) > 0 {
		floor = max(floor, b.segs[0].first-1)
	}
	return floor
}

// writeBatches writes batches behind what is in scratch already. Small ones are
// gathered; a large payload goes out from where it is. w is held.
func (b *Buffer) writeBatches(batches []*batch.Batch) error {
	buf := b.scratch
	b.scratch = b.scratch[:0]
	at := b.off + int64(len(buf)) // where the next byte of buf will lie
	for _, x := range batches {
		x.Salt, x.SyncedOff = b.foot.Salt, uint32(b.synced)
		buf = batch.AppendHeader(buf, &x.Header)
		if len(x.Payload) > chunk/4 || len(buf)+len(x.Payload) > chunk {
			if err := b.writeAt(buf); err != nil {
				return err
			}
			buf = buf[:0]
			if err := b.writeAt(x.Payload); err != nil {
				return err
			}
		} else {
			buf = append(buf, x.Payload...)
		}
		at += batch.HeaderSize + int64(len(x.Payload))
		b.foot.Batches++
		b.foot.Last, b.foot.End, b.foot.LastTime = x.Last(), at, x.LastTime
		b.foot.Raw += uint64(x.Raw)
	}
	b.scratch = buf[:0]
	return b.writeAt(buf)
}

// writeAt appends p to the active file. w is held.
func (b *Buffer) writeAt(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	n, err := writeAt(b.activeFile, p, b.off)
	b.off += int64(n)
	return err
}

// writeAt is f.WriteAt; a short count is an error.
func writeAt(f File, p []byte, off int64) (int, error) {
	n, err := f.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return n, err
}

// giveUp closes the active segment after an error. It is never written or synced
// again: after a failed fsync the kernel may call lost bytes clean, and a second
// fsync would say that all is well. What readers saw of it they keep. w is held.
func (b *Buffer) giveUp() {
	seg := b.active
	if seg == nil {
		return
	}
	if seg.mem != nil { // memory has no errors, and a segment that is not ended can't be written
		b.endMemory()
		return
	}
	n, err := b.activeFile.Size()
	b.activeFile.Close()
	b.active, b.activeFile = nil, nil
	b.stranded = len(b.unsynced) > 0
	b.mu.Lock()
	b.stats.poisoned++
	listed := len(b.segs) > 0 && b.segs[len(b.segs)-1] == seg
	if listed && err == nil {
		b.off = n
		b.grow(seg)
	}
	b.broadcast()
	b.mu.Unlock()
	if !listed {
		// Nobody has heard of a batch in it. The sync of the directory that comes
		// with the next segment makes this durable too, before one of that is heard of.
		b.fs.Remove(seg.name())
	}
}

// flush makes what SyncInterval has written durable. w is held.
func (b *Buffer) flush() error {
	if len(b.unsynced) == 0 {
		return nil
	}
	if b.activeGone() {
		b.giveUp()
	}
	if !b.stranded {
		if b.syncActive() == nil {
			b.unsynced = nil
			b.unsyncedBytes.Store(0)
			b.mu.Lock()
			b.show()
			b.mu.Unlock()
			return nil
		}
		b.giveUp()
	}
	err := b.write(nil)
	if err != nil {
		b.giveUp()
	}
	return err
}

// settle makes durable what an earlier life may have left unsynced, before
// anything of it is handed out: what a reader has seen must not vanish in a power
// cut. If that fails, and the cursor can't be saved either, we go on: a dying disk
// should be drained. w is held.
func (b *Buffer) settle() {
	if b.settled {
		return
	}
	b.settled = true
	b.loose = b.syncNewest() != nil
	if !b.saved {
		b.saveCursor()
	}
}

// hasLazy reports whether SyncNever has left anything to the kernel. w is held.
func (b *Buffer) hasLazy() bool {
	return slices.ContainsFunc(b.segs, func(s *segment) bool { return s.lazy })
}

// syncLazy makes durable what SyncNever has left to the kernel, but for the active
// segment. w is held.
func (b *Buffer) syncLazy() error {
	b.mu.Lock()
	lazy := slices.DeleteFunc(slices.Clone(b.segs), func(s *segment) bool { return !s.lazy || s == b.active })
	b.mu.Unlock()
	for _, s := range lazy {
		if err := b.syncFile(s); err != nil {
			return err
		}
		s.lazy = false
	}
	return nil
}

// syncNewest makes the newest segment and its name durable; it is not the active
// one. w is held.
func (b *Buffer) syncNewest() error {
	b.mu.Lock()
	newest := b.segs[len(b.segs)-1]
	b.mu.Unlock()
	if err := b.syncFile(newest); err != nil {
		return err
	}
	return b.fs.SyncDir()
}

// syncFile makes the bytes of a segment durable that is not open for writing.
func (b *Buffer) syncFile(s *segment) error {
	f, err := b.openSegment(s)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// saveCursor makes the position durable. w is held.
func (b *Buffer) saveCursor() error {
	b.mu.Lock()
	p := b.pos
	p.next, p.seal, p.epoch = b.next, b.seal, b.start.Epoch
	p.durable = len(b.unsynced) == 0 && !b.hasLazy()
	if b.ring.degraded && (b.stranded || b.inMemory() > 0) || !slices.ContainsFunc(b.segs, func(s *segment) bool { return s.epoch == p.epoch && s.mem == nil }) {
		// What this life stored last is in memory only: with a seal the cursor would vouch for it, and
		// without a segment of its epoch be another buffer's.
		p.seal, p.durable = batch.Seal{}, false
	}
	p.acks, p.doubts, p.handed, p.gaps = slices.Clone(p.acks), slices.Clone(p.doubts), slices.Clone(p.handed), slices.Clone(p.gaps)
	// Of more told gaps than there is room for, the oldest are told again after a
	// restart, which is no harm, rather than not remembered.
	p.told = slices.Clone(p.told)
	for len(p.told) > maxTold {
		if len(p.gaps) < maxGaps {
			p.gaps = slices.Insert(p.gaps, 0, p.told[0].Gap)
		}
		p.told = p.told[1:]
	}
	for n := len(p.gaps); n > maxGaps; n = len(p.gaps) {
		p.gaps[n-2] = mergeGaps(p.gaps[n-2], p.gaps[n-1])
		p.gaps = p.gaps[:n-1]
	}
	b.dirty = false
	b.mu.Unlock()
	err := b.cur.save(b.fs, &p)
	b.saved = b.saved || err == nil
	b.lastSave = b.o.Now()
	if err != nil {
		b.mu.Lock()
		b.dirty = true
		b.stats.cursorErrors++
		b.mu.Unlock()
	}
	return err
}

// soil notes that the cursor is behind. mu is held.
func (b *Buffer) soil() {
	if !b.dirty {
		b.dirty = true
		b.wake()
	}
}

// Close makes everything that was appended durable, closes the active segment
// with a footer, saves the cursor and gives the directory back. A blocked Next
// or Room returns ErrClosed. Further calls do nothing. What is in memory only is lost
// if the disk still takes no writes; the error is ErrMemory then.
func (b *Buffer) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	close(b.stop)
	b.broadcast()
	b.mu.Unlock()

	b.lead <- struct{}{} // what was let in is stored, and nothing comes any more
	defer func() { <-b.lead }()
	b.r.Lock()
	defer b.r.Unlock()
	b.again.Lock()
	defer b.again.Unlock()
	b.w.Lock()
	defer b.w.Unlock()
	b.storeQueue()
	if b.ring.degraded {
		b.probe(b.o.Now(), true)
	}
	err := b.closeMemory()
	if err == nil {
		err = b.flush()
	}
	durable := b.settled && !b.loose
	err = errors.Join(err, b.syncLazy())
	if b.active != nil {
		b.foot.SyncedOff = uint32(b.synced)
		b.scratch = appendFooter(b.scratch[:0], &b.foot)
		ferr := b.writeAt(b.scratch)
		if ferr == nil {
			ferr = b.activeFile.Sync()
		}
		b.active.lazy = b.active.lazy && ferr != nil
		err = errors.Join(err, ferr, b.activeFile.Close())
		b.active = nil
	}
	b.mu.Lock()
	save := b.begun || b.dirty
	if b.begun { // a tool leaves this as it found it
		b.pos.closed = err == nil && durable
	}
	b.mu.Unlock()
	if save {
		err = errors.Join(err, b.saveCursor())
	}
	if b.cur.f != nil {
		b.cur.f.Close()
	}
	if b.rfile != nil {
		b.rfile.Close()
	}
	err = errors.Join(err, b.fs.Close())
	if err != nil {
		return fmt.Errorf("close buffer: %w", err)
	}
	return nil
}
