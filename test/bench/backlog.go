package bench

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"spillway/buffer"
	"spillway/buffer/batch"
)

// Sizes of a backlog: a directory as an agent leaves it after weeks without its
// output. Its first three and its last two segments hold batches; of the others only
// header and footer are there, as at both ends of a hole of real length. It is
// written by what docs/format.md says, not by the code that reads it.
const (
	maxSegments = 8192 // of a buffer
	segmentSize = 4 << 20
	batchSize   = 64 << 10 // of a payload
	perBatch    = 16       // records
	perSegment  = segmentSize / (batchSize + batch.HeaderSize)
	gateway     = "gw-1"
)

// backlog makes dir a buffer of n segments, the newest of which was cut off.
func backlog(dir string, n int) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	lane := newLane(buffer.Start{Epoch: 0x1122334455667788, Next: 1}, batchSize)
	for i := range n {
		salt, first, before := rand.Uint64(), lane.next, lane.Prev
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("%016x-%016x-%016x-%016x-%s.seg", i+1, uint64(lane.Epoch), first, salt, gateway)), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		off := int64(112)
		for range perSegment {
			b := lane.batch()
			if i < 3 || i >= n-2 {
				b.Salt, b.SyncedOff = salt, uint32(off)
				if _, err := f.WriteAt(append(batch.AppendHeader(nil, &b.Header), b.Payload...), off); err != nil {
					return errors.Join(err, f.Close())
				}
			}
			off += batch.HeaderSize + int64(len(b.Payload))
		}
		_, err = f.WriteAt(segmentHeader(uint64(i+1), uint64(lane.Epoch), first, salt, before), 0)
		if err == nil && i < n-1 {
			_, err = f.WriteAt(segmentFooter(off, lane.next-1, salt), off)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// lane gives out batches with one and the same payload.
type lane struct {
	batch.Sealer
	next  uint64
	model batch.Batch
}

func newLane(s buffer.Start, size int) *lane {
	p := noise(size)
	return &lane{batch.Sealer{Epoch: s.Epoch, Prev: s.Seal}, s.Next, batch.Batch{Payload: p,
		Header: batch.Header{Count: perBatch, Length: uint32(size), Raw: uint32(size), CRC: batch.CRC32C(p), Sum: sha256.Sum256(p)}}}
}

func (l *lane) batch() *batch.Batch {
	b := l.model
	b.First, b.FirstTime, b.LastTime = l.next, int64(l.next)*1e9, int64(l.next)*1e9
	l.Seal(&b)
	l.next += perBatch
	return &b
}

// noise is n bytes that do not compress and end a line.
func noise(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(p)
	p[n-1] = '\n'
	return p
}

var le = binary.LittleEndian

// frame begins a header of size bytes; summed ends it.
func frame(magic uint32, size int, kind byte) []byte {
	h := make([]byte, size)
	le.PutUint32(h, magic)
	le.PutUint32(h[4:], uint32(size-8))
	h[8], h[9] = 1, kind
	return h
}

func summed(h []byte) []byte {
	le.PutUint32(h[len(h)-4:], batch.CRC32C(h[:len(h)-4]))
	return h
}

func segmentHeader(ordinal, epoch, first, salt uint64, before batch.Seal) []byte {
	h := frame(0x184D2A5B, 112, 1)
	le.PutUint32(h[12:], 1)
	for i, v := range []uint64{epoch, 0, ordinal, first, first * 1e9, salt} {
		le.PutUint64(h[16+8*i:], v)
	}
	copy(h[72:], before[:])
	return summed(h)
}

func segmentFooter(off int64, last, salt uint64) []byte {
	h := frame(0x184D2A5D, 80, 3)
	le.PutUint32(h[12:], perSegment)
	for i, v := range []uint64{last, uint64(off), (last - 1) * 1e9, last * 1e9, perSegment * batchSize, salt} {
		le.PutUint64(h[16+8*i:], v)
	}
	le.PutUint32(h[64:], uint32(off))
	return summed(h)
}

// holding are the options of a buffer that holds a backlog, and has the disk to itself.
var holding = buffer.Options{Agent: gateway, MaxBytes: 40 << 30, SegmentBytes: segmentSize, MinFree: -1, SyncGap: -1}

// grown is by how much a process grew, in bytes, while it had a backlog open.
type grown struct{ Heap, RSS int64 }

// drainBacklog opens the backlog in dir, delivers two and a half of its segments,
// appends two, and prints how its memory grew. It is a process of its own: a heap
// that other things have used says little.
func drainBacklog(dir string) error {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	heap, rss, most := m.HeapAlloc, number("/proc/self/status", "VmRSS")<<10, uint64(0)
	look := func() {
		runtime.ReadMemStats(&m)
		most = max(most, m.HeapAlloc)
	}
	b, err := buffer.Open(dir, holding)
	if err != nil {
		return err
	}
	defer b.Close()
	lane := newLane(b.Begin(), batchSize)
	look()
	for range perSegment * 5 / 2 / 8 {
		run, err := b.Next(context.Background(), batch.Limits{Batches: 8})
		if err != nil {
			return err
		}
		if err := b.Commit(run.Last(), "out"); err != nil {
			return err
		}
		look()
	}
	for range 2 * perSegment {
		if err := b.Append(context.Background(), lane.batch()); err != nil {
			return err
		}
		look()
	}
	peak := number("/proc/self/status", "VmHWM") << 10
	return json.NewEncoder(os.Stdout).Encode(grown{Heap: int64(most - heap), RSS: peak - rss})
}
