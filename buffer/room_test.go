package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// behead destroys the headers of the oldest n segments.
func behead(d *simDisk, n int) {
	for _, s := range d.segments()[:n] {
		data := bytes.Clone(d.names[s].data)
		clear(data[:segmentHeaderSize])
		d.put(s, data)
	}
}

// TestRoomEmptySegment: a segment that a crash left empty gives no room, and that is no
// reason to drop anything while delivered ones are kept.
func TestRoomEmptySegment(t *testing.T) {
	d := newSimDisk(rand.New(rand.NewPCG(1, 1)))
	d.put(segmentName(0, 7, 1, 9, "gw-1"), []byte{})
	o := Options{Agent: "gw-1", FS: d, SegmentBytes: 1500, KeepAcked: time.Hour, SyncGap: -1, MinFree: -1, Full: DropOldest, MaxBytes: 12 * 1800}
	b, err := Open("sim", o)
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(b.Begin())
	for i := range 24 {
		put(t, b, w.seal(10, text(400, byte(i))))
	}
	drain(t, b, 15)
	for i := range 24 {
		put(t, b, w.seal(10, text(400, byte(i))))
		if g := b.Gaps(); len(g) > 0 {
			t.Fatalf("after %d more: %+v, while %d delivered segments are kept", i+1, g[0], b.head)
		}
		drain(t, b, 1)
	}
}

// TestRoomForcedEmptySegment: nor is it one to refuse a batch on a disk that is full, or to
// leave for later what is to go now.
func TestRoomForcedEmptySegment(t *testing.T) {
	open := func(t *testing.T) (*Buffer, *simDisk, *writer) {
		d := newSimDisk(rand.New(rand.NewPCG(1, 1)))
		d.put(segmentName(0, 7, 1, 9, "gw-1"), []byte{})
		b, err := Open("sim", Options{Agent: "gw-1", FS: d, SegmentBytes: 1500, KeepAcked: -1, SyncGap: -1, MinFree: -1})
		if err != nil {
			t.Fatal(err)
		}
		w := newWriter(b.Begin())
		for i := range 12 {
			put(t, b, w.seal(10, text(400, byte(i))))
		}
		drain(t, b, 12)
		return b, d, w
	}
	t.Run("disk full", func(t *testing.T) {
		b, d, w := open(t)
		d.room = 0
		put(t, b, w.seal(10, text(400, 'x')))
	})
	t.Run("maintain", func(t *testing.T) {
		b, d, _ := open(t)
		b.Maintain(b.o.Now())
		if n := len(d.segments()); n != 1 {
			t.Errorf("%d segments are left", n)
		}
	})
}

// TestRoomNotInQuarantine: on a full disk what is moved to quarantine/ makes no room, so it is
// removed; and where it is moved, it does not count as free.
func TestRoomNotInQuarantine(t *testing.T) {
	o := Options{SegmentBytes: 1500, KeepAcked: time.Hour, MinFree: 1}
	b, d := simulated(t, o)
	w := newWriter(b.Begin())
	for i := range 12 {
		put(t, b, w.seal(10, text(400, byte(i))))
	}
	b.Close()
	behead(d, 3)
	b = again(t, d, o)
	w = newWriter(b.Begin())
	drain(t, b, 12)
	before := b.Stats().Free
	b.w.Lock()
	n, err := b.freeDone(false)
	b.w.Unlock()
	if s := b.Stats(); err != nil || n == 0 || s.Quarantined != 1 || s.Free != before {
		t.Fatalf("%d bytes, %v; %d in quarantine, and %d bytes more are free", n, err, s.Quarantined, s.Free-before)
	}
	b.o.MinFree, d.room = -1, 0
	put(t, b, w.seal(10, text(400, 'x')))
	if n := b.Stats().Quarantined; n != 1 {
		t.Errorf("%d segments were moved to quarantine/ on a full disk", n-1)
	}
}

// TestRoomNoQuarantine: a damaged segment that is delivered and can't be moved to quarantine/
// is removed. Else nothing would ever be freed again.
func TestRoomNoQuarantine(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EACCES, syscall.ENOTDIR} {
		for _, full := range []Policy{Hold, DropOldest} {
			for _, memory := range []int64{0, 16 << 10} {
				t.Run(fmt.Sprintf("%v, %v, memory %d", errno, full, memory), func(t *testing.T) {
					o := Options{SegmentBytes: 1500, KeepAcked: -1, MinFree: -1, MaxBytes: 8 * 1800, Full: full, Memory: memory}
					b, d := simulated(t, o)
					w := newWriter(b.Begin())
					for i := range 12 {
						put(t, b, w.seal(10, text(400, byte(i))))
					}
					b.Close()
					behead(d, 1)
					b = again(t, d, o)
					w = newWriter(b.Begin())
					drain(t, b, 12)
					d.fail = func(op string, _ int, _ string) error {
						if op == "quarantine" {
							return errno
						}
						return nil
					}
					for i := range 30 {
						if err := b.Append(t.Context(), w.seal(10, text(400, byte(i)))); err != nil {
							t.Fatalf("append %d, all before it is delivered: %v", i, err)
						}
						drain(t, b, 1)
						b.Maintain(b.o.Now())
					}
					if s := b.Stats(); s.Segments != 1 || s.Quarantined != 0 || len(b.Gaps()) != 0 {
						t.Errorf("%+v", s)
					}
				})
			}
		}
	}
}

// TestRoomBesideFits makes room while others ask for it; -race looks.
func TestRoomBesideFits(t *testing.T) {
	b, _ := simulated(t, Options{MinFree: 1 << 50})
	b.Begin()
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 300 {
			b.refreshFree(0)
		}
	})
	for range 300 {
		b.w.Lock()
		err := b.makeRoom(10)
		b.w.Unlock()
		if !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
	}
	wg.Wait()
}

// TestQuarantineForeign: what is no segment was put into quarantine/ or rejected/ by somebody
// else. It stays, and what it takes is not the buffer's.
func TestQuarantineForeign(t *testing.T) {
	b, d := simulated(t, Options{SegmentBytes: 1, KeepAcked: -1, QuarantineBytes: 1500, RejectedBytes: 1500})
	for _, sub := range []string{quarantine, rejected} {
		d.put(sub+"/0-notes.txt", make([]byte, 2000))
		d.put(sub+"/z-notes.txt", make([]byte, 2000))
	}
	w := newWriter(b.Begin())
	for i := range 8 {
		put(t, b, w.seal(1, text(500, byte(i))))
	}
	for i, s := range d.segments() {
		if i%2 == 0 {
			d.flip(s, 8*(segmentHeaderSize+136+100))
		}
	}
	for range 4 {
		run := next(t, b, batch.Limits{Batches: 1})
		if err := b.Reject(&run, "nobody takes it"); err != nil {
			t.Fatal(err)
		}
	}
	b.Maintain(b.o.Now())
	for _, sub := range []string{quarantine, rejected} {
		var foreign, ours int
		files, err := d.List(sub)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if _, ok := parseName(f.Name); ok {
				ours++
			} else {
				foreign++
			}
		}
		if foreign != 2 || ours != 1 {
			t.Errorf("%s: %d segments, want the newest one that fits, and %d other files, want 2", sub, ours, foreign)
		}
	}
}

// TestRejectBarred: a directory that lets nobody write does not block the head of the line.
// What it is that is not kept, and why, is told. A full disk is another matter.
func TestRejectBarred(t *testing.T) {
	for _, tt := range []struct {
		errno syscall.Errno
		want  error
	}{
		{syscall.EACCES, nil},
		{syscall.EPERM, nil},
		{syscall.ENOTDIR, nil},
		{syscall.ENOSPC, ErrFull},
		{syscall.EDQUOT, ErrFull},
	} {
		for _, memory := range []int64{0, 16 << 10} {
			t.Run(fmt.Sprintf("%v, memory %d", tt.errno, memory), func(t *testing.T) {
				b, d := simulated(t, Options{Memory: memory})
				fill(t, b, newWriter(b.Begin()), 2)
				d.fail = func(op string, _ int, name string) error {
					if op == "create" && strings.HasPrefix(name, rejected+"/") {
						return tt.errno
					}
					return nil
				}
				run := next(t, b, batch.Limits{Batches: 1})
				err := b.Reject(&run, "nobody takes it")
				if !errors.Is(err, tt.want) || b.Stats().Degraded {
					t.Fatalf("%v; degraded: %v", err, b.Stats().Degraded)
				}
				if tt.want != nil {
					if n := b.Stats().Committed; n != 0 || len(b.Gaps()) != 0 {
						t.Fatalf("the position is %d, told: %+v", n, b.Gaps())
					}
					d.fail = nil
					if err := b.Reject(&run, "nobody takes it"); err != nil {
						t.Fatal(err)
					}
					if files, _ := d.List(rejected); len(files) != 1 {
						t.Errorf("%v", files)
					}
					return
				}
				g := b.Gaps()
				if len(g) != 1 || g[0].First != 1 || g[0].Last != 10 || !strings.HasPrefix(g[0].Detail, "not kept: ") ||
					!strings.Contains(g[0].Detail, tt.errno.Error()) || !strings.HasSuffix(g[0].Detail, ": nobody takes it") {
					t.Fatalf("%+v", g)
				}
				if run := next(t, b, batch.Limits{}); run.First() != 11 {
					t.Errorf("behind it comes %d", run.First())
				}
			})
		}
	}
}

// TestDirectoriesInTheWay: with files where quarantine/ and rejected/ should be all goes on.
func TestDirectoriesInTheWay(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{quarantine, rejected} {
		if err := os.WriteFile(filepath.Join(dir, sub), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := mustOpen(t, dir, Options{SyncGap: -1, SegmentBytes: 1, KeepAcked: -1})
	w := newWriter(b.Begin())
	fill(t, b, w, 4)
	names, err := filepath.Glob(filepath.Join(dir, "*"+extension))
	if err != nil || len(names) != 4 {
		t.Fatalf("%v, %v", names, err)
	}
	data, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-footerSize-10] ^= 1
	if err := os.WriteFile(names[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	run := next(t, b, batch.Limits{Batches: 1})
	if err := b.Reject(&run, "nobody takes it"); err != nil {
		t.Fatal(err)
	}
	b.Maintain(b.o.Now())
	fill(t, b, w, 1)
	drain(t, b, 3)
	b.Maintain(b.o.Now())
	if s := b.Stats(); s.Segments != 1 || s.CursorErrors != 0 || s.DiskError != nil || s.SegmentsGivenUp != 0 {
		t.Errorf("%+v", s)
	}
}

// TestRoomBeforeAHole: a hole that is not told yet, because nothing readable is behind it, does
// not keep what was delivered before it on a disk that is full, or of which others want a part.
// It is told, and durably, before that goes.
func TestRoomBeforeAHole(t *testing.T) {
	for _, minFree := range []int64{-1, 10 << 10} {
		for _, hole := range []string{"missing", "destroyed", "end of an epoch"} {
			t.Run(fmt.Sprintf("min free %d, %s", minFree, hole), func(t *testing.T) {
				o := Options{SegmentBytes: 1000, KeepAcked: -1, MinFree: minFree, QuarantineBytes: -1} // what is kept aside makes no room
				if hole == "end of an epoch" {
					o.SegmentBytes = 2000
				}
				b, d := simulated(t, o)
				w := newWriter(b.Begin())
				put(t, b, w.seal(2, text(1000, 1)))
				put(t, b, w.seal(2, text(1000, 2)))
				end(t, b, true)
				segs := d.segments()
				switch hole {
				case "missing":
					d.set(segs[1], nil)
				case "destroyed":
					d.put(segs[1], make([]byte, 1000))
				default:
					d.flip(segs[0], 8*(segmentHeaderSize+2*batch.HeaderSize+1500))
					o.Agent = "gw-2"
				}
				b = again(t, d, o)
				w = newWriter(b.Begin())
				put(t, b, w.seal(2, text(2000, 3)))
				d.kill()
				segs = d.segments()
				d.put(segs[len(segs)-1], make([]byte, 50))
				b = again(t, d, o)
				w = newWriter(b.Begin())
				drain(t, b, 1)
				if _, err := b.Next(ended(t), batch.Limits{}); err == nil {
					t.Fatal("more comes")
				}
				if d.room = 0; minFree > 0 {
					d.room = minFree - 100
					b.mu.Lock()
					b.free = d.room
					b.mu.Unlock()
				}
				if !b.Fits(0, batch.HeaderSize+500, 0) {
					t.Error("nothing is pending, and there is no room")
				}
				put(t, b, w.seal(2, text(500, 4)))
				if left := d.segments(); slices.Contains(left, segs[0]) {
					t.Fatalf("%v, and before %v", left, segs)
				}
				b = again(t, d, o)
				b.Begin()
				next(t, b, due)
				if g := b.Gaps(); len(g) == 0 || g[0].First != 3 || g[0].Last < 4 {
					t.Errorf("%+v", g)
				}
			})
		}
	}
}

// TestRoomBesideNewer: where a segment of a newer version must stay, what Fits let in is taken
// also if that goes over MaxBytes a little.
func TestRoomBesideNewer(t *testing.T) {
	b, _, _, _ := newerSecond(t, Options{Full: DropOldest, MaxBytes: 6000})
	w := newWriter(b.Begin())
	drain(t, b, 2)
	n := 0
	for ; b.Fits(0, 500, 0) && n < 40; n++ {
		put(t, b, w.seal(2, text(500, byte(n))))
	}
	if n == 0 || n == 40 {
		t.Errorf("%d batches", n)
	}
}
