package buffer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"spillway/buffer/batch"
)

// The memory ring is for a disk that takes no writes although it is not full: one
// that gives errors, or that was made read-only. The buffer is degraded then. Segments
// live in memory, with the bytes, the names and the place in the line that they would
// have on the disk; and when the disk works again they are written there as they are,
// but for the synced offset in the footer:
//
//	whole ──two writes in a row fail──> degraded ──all is on the disk──> whole
//	                                    │    ^
//	                                    └────┘ a try after 1, 2, 4 … 60 s
//
// A batch in memory may be handed out before it is durable, and its number may be
// forgotten in a crash. That is why only a life that ended in order is continued by
// the next one; see newEpoch.

// ErrMemory says that Append has taken the batches and keeps them in memory only: they
// must not come again, and nobody may be told that they are durable.
var ErrMemory = errors.New("kept in memory only")

// ring is the state of the memory ring. Buffer.w guards it, and for writes mu too.
type ring struct {
	degraded bool
	trouble  error // why
	bytes    int64 // of the segments in memory
	live     int64 // of those with undelivered records
	pause    time.Duration
	try      time.Time // when the disk is tried next
	left     string    // the file, or a part of it, of a segment that was let go of after it was tried; "": none
}

// memory is a segment's bytes in memory. It is appended to by one goroutine, and read by
// several beside it.
type memory struct {
	mu   sync.RWMutex
	data []byte
	// tried says that a part of it may lie on the disk, unsynced, under its name. With
	// ring.left there is one such file at most, and it is the newest: the next life makes the newest
	// durable before anything is handed out. Guarded by Buffer.w.
	tried bool
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	n := copy(p, m.data[min(off, int64(len(m.data))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt appends; off is the end.
func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data = append(m.data[:off], p...)
	return len(p), nil
}

func (m *memory) Size() (int64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return int64(len(m.data)), nil
}

func (m *memory) Sync() error  { return nil }
func (m *memory) Evict()       {}
func (m *memory) Close() error { return nil }

// openSegment opens a segment for reading, wherever it lives.
func (b *Buffer) openSegment(s *segment) (File, error) {
	b.mu.Lock()
	m := s.mem
	b.mu.Unlock()
	if m != nil {
		return m, nil
	}
	return b.fs.Open(s.name(), false)
}

// degrade begins to keep batches in memory, after err, if the buffer may. w is held.
func (b *Buffer) degrade(err error) bool {
	if b.o.Memory <= 0 || isFull(err) || errors.Is(err, ErrFull) {
		return false
	}
	if !b.ring.degraded {
		b.giveUp()
		now := b.o.Now()
		b.mu.Lock()
		b.ring.degraded, b.ring.pause, b.ring.try = true, time.Second, now.Add(time.Second)
		b.mu.Unlock()
	}
	b.mu.Lock()
	b.ring.trouble, b.lastErr = err, err
	b.mu.Unlock()
	b.wake()
	return true
}

// Degraded reports whether the disk takes no writes and batches are kept in memory; see
// ErrMemory.
func (b *Buffer) Degraded() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ring.degraded
}

// roomInRing reports whether the ring takes n more bytes once what may go has gone, as
// makeMemory lets it go. mu is held.
func (b *Buffer) roomInRing(n int64) bool {
	n += b.frames(n)
	newest := len(b.segs) - 1
	for i := newest; i >= b.head && b.segs[i].mem != nil; i-- {
		s := b.segs[i]
		if i == newest && b.delivered() || i != newest && b.o.Full == DropOldest && !b.spared(s) {
			continue
		}
		n += s.size
	}
	return n <= b.o.Memory
}

// ringSegment is the size from which on the next segment in memory begins.
func (b *Buffer) ringSegment() int64 { return max(b.o.Memory/8, 1) }

// frames is what headers and footers of the segments that take n more bytes add at most.
func (b *Buffer) frames(n int64) int64 {
	return (n/b.ringSegment()*2 + 1) * (segmentHeaderSize + footerSize)
}

// storeMemory appends batches to the ring, behind what is stranded. The error is ErrMemory
// if it has room, else that of the disk. w is held.
func (b *Buffer) storeMemory(batches []*batch.Batch) error {
	before := b.seal
	if b.stranded {
		batches, before = append(b.unsynced[:len(b.unsynced):len(b.unsynced)], batches...), b.unsyncedBefore
	}
	if !b.makeMemory(size(batches)) {
		return b.ring.trouble
	}
	for _, x := range batches {
		n := batch.HeaderSize + int64(len(x.Payload))
		if b.active != nil && b.off+n+footerSize > b.ringSegment() {
			b.endMemory()
		}
		if b.active == nil {
			b.createMemory(x, before, n)
		}
		b.writeBatches([]*batch.Batch{x}) // memory never fails
		b.mu.Lock()
		b.grow(b.active)
		b.show()
		b.stats.memoryRecords += uint64(x.Count)
		b.mu.Unlock()
		before = x.Seal
	}
	b.unsynced, b.stranded = nil, false
	b.unsyncedBytes.Store(0)
	return fmt.Errorf("%w: %w", ErrMemory, b.ring.trouble)
}

// createMemory makes the next segment, one in memory, active.
func (b *Buffer) createMemory(first *batch.Batch, before batch.Seal, n int64) {
	m := &memory{data: make([]byte, 0, segmentHeaderSize+n+footerSize)} // grows by a quarter: room that is not used would not be counted
	b.active, b.activeFile = b.newSegment(first, before), m
	b.active.mem = m
}

// endMemory writes the footer of the active segment, which lives in memory.
func (b *Buffer) endMemory() {
	b.foot.SyncedOff = 0 // until it is a file
	b.writeAt(appendFooter(b.scratch[:0], &b.foot))
	b.mu.Lock()
	b.grow(b.active)
	b.mu.Unlock()
	b.active, b.activeFile = nil, nil
}

// makeMemory makes room for n bytes in the ring: what is delivered is forgotten, then,
// under DropOldest, the oldest is dropped.
func (b *Buffer) makeMemory(n int64) bool {
	n += b.frames(n)
	if n > b.o.Memory {
		return false
	}
	b.forgetDelivered(false)
	for b.ring.bytes+n > b.o.Memory {
		if b.forgetDelivered(true) || b.o.Full == DropOldest && b.dropMemory() {
			continue
		}
		return false
	}
	return true
}

// forgetDelivered lets go of delivered segments in memory; of the newest one, which is
// what the disk is tried with, only if all is set. w is held.
func (b *Buffer) forgetDelivered(all bool) (some bool) {
	for {
		b.mu.Lock()
		i := slices.IndexFunc(b.segs[:b.head], func(s *segment) bool { return s.mem != nil })
		if i < 0 && all && b.delivered() {
			i = len(b.segs) - 1
		}
		if i < 0 || i == len(b.segs)-1 && !all {
			b.mu.Unlock()
			return some
		}
		s := b.segs[i]
		b.mu.Unlock()
		if s == b.active {
			b.active, b.activeFile = nil, nil
		}
		b.remove(s, false)
		some = true
	}
}

// sweep removes what the last try left on the disk of a segment that is not in the ring
// any more. A disk that is read-only does not even say whether that is anything; memory must
// not wait for it, but nothing new is tried before it is gone. w is held.
func (b *Buffer) sweep() error {
	if b.ring.left == "" {
		return nil
	}
	if err := b.fs.Remove(b.ring.left); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove segment: %w", err)
	}
	b.ring.left = ""
	return nil
}

// delivered reports whether the newest segment lives in memory and holds nothing that is
// not delivered. mu is held.
func (b *Buffer) delivered() bool {
	n := len(b.segs)
	return n > 0 && b.segs[n-1].mem != nil && b.segs[n-1].last <= b.pos.committed
}

// dropMemory drops the oldest segment of the ring that is not delivered. What was dropped
// and is not at the head of the line must stay one range. w is held.
func (b *Buffer) dropMemory() bool {
	b.mu.Lock()
	i := b.head
	for i < len(b.segs) && (b.segs[i].mem == nil || b.spared(b.segs[i])) {
		i++
	}
	if p := b.pos.passed; i > b.head && p != (Range{}) {
		for i+1 < len(b.segs) && b.segs[i+1].first < p.First {
			i++
		}
		if b.segs[i-1].last > p.Last {
			i = len(b.segs)
		}
	}
	b.mu.Unlock()
	size, _ := b.drop(i, ReasonFull)
	return size > 0
}

// probe tries the disk if it is time, or always: what is in memory is written there,
// the oldest first, and the position. After that the buffer is whole again. w is held.
func (b *Buffer) probe(now time.Time, always bool) {
	r := &b.ring
	if wait := r.try.Sub(now); !always && wait > 0 && wait <= r.pause {
		return
	}
	b.saveDirty() // if only a part gets there, what was delivered from memory is not missing
	err := b.writeMemory()
	if err == nil && b.stranded {
		if err = b.write(nil); err != nil {
			b.giveUp()
		}
	}
	if err == nil {
		err = b.saveCursor()
		if isFull(err) {
			err = nil
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastErr = err
	if err == nil {
		b.ring = ring{}
		b.broadcast()
		return
	}
	r.trouble = err
	r.pause = min(2*r.pause, time.Minute)
	r.try = now.Add(r.pause)
}

// writeMemory writes the segments in memory as files. What is not delivered comes first
// to last, so that one that is on the disk vouches for those before it.
func (b *Buffer) writeMemory() error {
	b.forgetDelivered(false)
	if err := b.sweep(); err != nil {
		return err
	}
	for {
		b.mu.Lock()
		i := slices.IndexFunc(b.segs, func(s *segment) bool { return s.mem != nil })
		if i < 0 {
			b.mu.Unlock()
			return nil
		}
		s := b.segs[i]
		b.mu.Unlock()
		if s == b.active {
			b.endMemory()
		}
		err := b.makeRoom(s.size)
		instead := errors.Is(err, ErrFull) && b.makesRoom(s)
		if err != nil && !instead {
			return err
		}
		err = b.writeFile(s)
		if isFull(err) && b.reclaim(s.size) == nil {
			err = b.writeFile(s)
		}
		if err == nil && instead {
			_, err = b.freeOldest(false)
		}
		if err != nil {
			return err
		}
	}
}

// makesRoom reports whether the last segment on the disk is in the way of s, the first one in
// memory, because others lack what s takes: it may go, but not before s is a file.
func (b *Buffer) makesRoom(s *segment) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i, lacks := b.find(s.ordinal)-1, b.lacks(s.size)
	if i < 0 || lacks == 0 || b.segs[i].size < min(s.size, lacks) {
		return false
	}
	return i < b.head || b.o.Full == DropOldest && i == b.oldest() && !b.segs[i].newer
}

// writeFile makes s, which lives in memory, a file. A reader that has its memory open
// reads the same batches there.
func (b *Buffer) writeFile(s *segment) error {
	if s.mem.tried {
		b.fs.Remove(s.name())
	}
	s.mem.tried = true
	f, err := b.fs.Create(s.name())
	if err != nil {
		return fmt.Errorf("create segment: %w", err)
	}
	err = writeEnded(f, s.mem.data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", s.name(), err)
	}
	if err := b.fs.SyncDir(); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.mem = nil
	b.ring.bytes -= s.size
	b.total += s.size
	b.free -= s.size
	b.reckon()
	return nil
}

// writeEnded makes data, a segment that ends with its footer, durable in f, an empty file.
// The footer comes after a sync of what is before it, and says so: headers in memory could
// promise nothing, and without any promise damage would pass for a write that was cut off.
func writeEnded(f File, data []byte) error {
	end := int64(len(data) - footerSize)
	foot, _ := parseFooter(data[end:], end)
	foot.SyncedOff = uint32(end)
	if _, err := writeAt(f, data[:end], 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if _, err := writeAt(f, appendFooter(nil, &foot), end); err != nil {
		return err
	}
	return f.Sync()
}

// closeMemory gives up what is in memory only. w is held.
func (b *Buffer) closeMemory() error {
	if !b.ring.degraded {
		return nil
	}
	if b.active != nil {
		b.active, b.activeFile = nil, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.inMemory()
	if b.stranded {
		for _, x := range b.unsynced {
			n += uint64(x.Count)
		}
	}
	return fmt.Errorf("%d records were %w and are lost: %w", n, ErrMemory, b.ring.trouble)
}

// keep makes the position durable, because the caller promises what it has noted there.
// While degraded, memory has to do. w is held.
func (b *Buffer) keep() error {
	if b.ring.degraded {
		b.mu.Lock()
		b.soil()
		b.mu.Unlock()
		return nil
	}
	err := b.saveCursor()
	if err != nil && b.o.Memory > 0 && !isFull(err) {
		if err = b.saveCursor(); err != nil && b.degrade(err) {
			return nil
		}
	}
	return err
}

// inMemory is how many records that are not delivered are in memory only. mu is held.
func (b *Buffer) inMemory() (n uint64) {
	for _, s := range b.segs[b.head:] {
		if s.mem != nil && s.last > b.pos.committed {
			n += s.last - max(s.first-1, b.pos.committed)
		}
	}
	return n
}
