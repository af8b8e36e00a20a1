package buffer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// fails makes calls of these kinds end with err.
func fails(err error, ops ...string) func(string, int, string) error {
	return func(op string, _ int, _ string) error {
		if slices.Contains(ops, op) {
			return err
		}
		return nil
	}
}

// now is Next with what is due.
func now(b *Buffer) (batch.Run, error) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	return b.Next(ended, batch.Limits{Batches: 2})
}

// TestOutage: of a device that gives errors for everything for a while nothing is lost,
// however often it is asked, and everything comes when it is back.
func TestOutage(t *testing.T) {
	all := []string{"open", "read", "create", "write", "sync", "syncdir", "remove", "quarantine", "list", "size", "free"}
	for name, ops := range map[string][]string{"everything": all, "all but opening": all[1:], "reading": {"read"}} {
		for _, memory := range []int64{-1, 64 << 10} {
			for _, at := range []string{"headers", "payloads"} {
				t.Run(fmt.Sprint(name, ", memory ", memory, ", at ", at), func(t *testing.T) {
					clock := time.Unix(1_800_000_000, 0)
					o := Options{SegmentBytes: 3000, KeepAcked: -1, Memory: memory, Now: func() time.Time { return clock }}
					b, d := simulated(t, o)
					w := newWriter(b.Begin())
					var seals []batch.Seal
					add := func() *batch.Batch {
						x := w.seal(2, text(900, byte(len(seals))))
						seals = append(seals, x.Seal)
						return x
					}
					for range 20 {
						put(t, b, add())
					}
					got := drain(t, b, 2)
					if at == "payloads" {
						next(t, b, batch.Limits{Batches: 9})
					}
					d.fail = fails(syscall.EIO, ops...)
					if memory > 0 && name != "reading" {
						if err := b.Append(t.Context(), add()); !errors.Is(err, ErrMemory) {
							t.Fatal(err)
						}
					}
					for i := range 40 {
						if run, err := now(b); !errors.Is(err, syscall.EIO) {
							t.Fatalf("try %d: %v, records %d to %d", i, err, run.First(), run.Last())
						}
						if run, err := b.Read(t.Context(), Range{1, 1000}, batch.Limits{}); !errors.Is(err, syscall.EIO) {
							t.Fatalf("try %d: %v, records %d to %d read", i, err, run.First(), run.Last())
						}
						clock = clock.Add(time.Second)
						b.Maintain(clock)
					}
					if s := b.Stats(); s.TornBytes+s.CorruptBytes > 0 || len(b.Gaps()) > 0 || s.Committed != 4 {
						t.Fatalf("%+v, %+v", s, b.Gaps())
					}
					d.fail = nil
					clock = clock.Add(time.Minute)
					b.Maintain(clock)
					put(t, b, add())
					got = append(got, drain(t, b, len(seals)-2)...)
					for i, x := range got {
						if x.Seal != seals[i] {
							t.Fatalf("batch %d is records %d to %d", i, x.First, x.Last())
						}
					}
					if s := b.Stats(); s.TornBytes+s.CorruptBytes > 0 || s.Quarantined > 0 || len(b.Gaps()) > 0 {
						t.Fatalf("%+v, %+v", s, b.Gaps())
					}
					if err := b.Close(); err != nil {
						t.Fatal(err)
					}
				})
			}
		}
	}
}

// TestBadBlock: where only a place can't be read, it is passed at the third try and costs
// only itself, also while the disk takes no writes.
func TestBadBlock(t *testing.T) {
	type disk struct {
		segment  int64 // bytes
		fail     error // of every write
		memory   int64
		cursor   bool // can't be read either
		alone    bool // there is no other segment
		at, lost int  // the bad block of the third segment, and how many of its batches that costs
	}
	for name, c := range map[string]disk{
		"one block":                      {segment: 16000, at: 1, lost: 2},
		"the first block":                {segment: 16000, at: 0, lost: 2},
		"with the cursor":                {segment: 16000, at: 1, lost: 2, cursor: true},
		"a small segment":                {segment: 3000, at: 0, lost: 2},
		"a small segment, alone":         {segment: 3000, at: 0, lost: 2, alone: true},
		"read-only":                      {segment: 16000, at: 1, lost: 2, fail: syscall.EROFS},
		"read-only, with the cursor":     {segment: 16000, at: 1, lost: 2, fail: syscall.EROFS, cursor: true},
		"read-only, alone, the cursor":   {segment: 16000, at: 0, lost: 2, fail: syscall.EROFS, cursor: true, alone: true},
		"read-only, memory":              {segment: 16000, at: 1, lost: 2, fail: syscall.EROFS, memory: 64 << 10},
		"writes fail, memory":            {segment: 16000, at: 1, lost: 2, fail: syscall.EIO, memory: 64 << 10},
		"writes fail":                    {segment: 16000, at: 1, lost: 2, fail: syscall.EIO},
		"writes fail, a small segment":   {segment: 3000, at: 0, lost: 2, fail: syscall.EIO, memory: 64 << 10},
		"the disk is full":               {segment: 3000, at: 0, lost: 2, fail: syscall.ENOSPC},
		"writes fail, small, the cursor": {segment: 3000, at: 0, lost: 2, fail: syscall.EIO, cursor: true, memory: 64 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{SegmentBytes: c.segment, KeepAcked: time.Hour, Memory: c.memory}
			b, d := simulated(t, o)
			w := newWriter(b.Begin())
			n, which := 0, 0
			for segs := 4; len(d.segments()) < segs; n++ {
				if c.alone {
					segs = 1
				} else {
					which = 2
				}
				put(t, b, w.seal(1, text(1500, byte(n))))
			}
			for c.alone && b.active != nil {
				put(t, b, w.seal(1, text(1500, byte(n))))
				n++
			}
			d.bad = map[badBlock]int{{d.names[d.segments()[which]], c.at}: -1}
			if c.cursor {
				d.bad[badBlock{d.names[cursorFile], 0}], d.bad[badBlock{d.names[cursorFile], 1}] = -1, -1
			}
			if c.fail != nil {
				d.fail = fails(c.fail, "create", "write", "sync", "syncdir", "remove", "quarantine")
			}
			if c.memory > 0 {
				if err := b.Append(t.Context(), w.seal(1, text(1500, 0))); !errors.Is(err, ErrMemory) {
					t.Fatal(err)
				}
				n++
			}
			var numbers []uint64
			errs, behind := 0, false
			for range 100 {
				run, err := now(b)
				if errors.Is(err, context.Canceled) {
					if c.fail != nil || behind {
						break
					}
					behind = true // what is lost at the end shows when something follows
					put(t, b, w.seal(1, text(1500, 0)))
					n++
					continue
				}
				if err != nil {
					errs++
					continue
				}
				for _, x := range run.Batches {
					numbers = append(numbers, x.First)
				}
				if err := b.Commit(run.Last(), "out"); err != nil {
					t.Fatal(err)
				}
			}
			lost := uint64(0)
			for _, g := range b.Gaps() {
				if g.Reason != ReasonDamaged {
					t.Errorf("%+v", g)
				}
				lost += g.Count
			}
			if len(numbers)+int(lost) != n || lost < 1 || int(lost) > c.lost+1 || errs < 2 || errs > 6 {
				t.Errorf("of %d batches %v came, %d are told as lost, after %d errors", n, numbers, lost, errs)
			}
		})
	}
}

// TestBlockComesBack: a place that can be read at last is not damaged, for Next and for Read.
func TestBlockComesBack(t *testing.T) {
	for times := range 20 {
		b, d := simulated(t, Options{KeepAcked: time.Hour})
		w := newWriter(b.Begin())
		for i := range 4 {
			put(t, b, w.seal(1, text(1500, byte(i))))
		}
		bad := func() { d.bad = map[badBlock]int{{d.names[d.segments()[0]], 0}: times} }
		bad()
		for first, tries := uint64(1), 0; first <= 4; tries++ {
			run, err := now(b)
			if err != nil && tries < 10 {
				continue
			}
			if err != nil || run.First() != first {
				t.Fatalf("%d times: %v, %d", times, err, run.First())
			}
			first = run.Last() + 1
			b.Commit(run.Last(), "out")
		}
		bad()
		for tries, first := 0, uint64(1); first <= 4; tries++ {
			run, err := b.Read(t.Context(), Range{first, 4}, batch.Limits{})
			if err != nil && err != io.EOF && tries < 10 {
				continue
			}
			if err != nil || run.First() != first {
				t.Fatalf("%d times, read: %v, %d", times, err, run.First())
			}
			first = run.Last() + 1
		}
		b.Close()
	}
}

// TestSegmentThatCantBeOpened is TestBadBlock for a whole file.
func TestSegmentThatCantBeOpened(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		handed bool // Next has seen the headers before
		lost   uint64
	}{
		"the head":        {syscall.EIO, false, 2},
		"headers known":   {syscall.EUCLEAN, true, 2},
		"not allowed":     {syscall.EACCES, false, 0},
		"no files at all": {syscall.EMFILE, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b, d := simulated(t, Options{SegmentBytes: 3000, KeepAcked: time.Hour})
			w := newWriter(b.Begin())
			for i := range 8 {
				put(t, b, w.seal(1, text(1500, byte(i))))
			}
			if c.handed {
				b.Next(t.Context(), batch.Limits{})
			}
			bad := d.segments()[1]
			d.fail = func(op string, _ int, name string) error {
				if op == "open" && (name == bad || c.err == syscall.EMFILE) {
					return c.err
				}
				return nil
			}
			var numbers []uint64
			for tries := range 100 {
				if tries == 50 {
					d.fail = nil
				}
				run, err := now(b)
				if err != nil {
					continue
				}
				for _, x := range run.Batches {
					numbers = append(numbers, x.First)
				}
				b.Commit(run.Last(), "out")
			}
			var lost uint64
			for _, g := range b.Gaps() {
				if g.Reason != ReasonDamaged || g.First != 3 {
					t.Errorf("%+v", g)
				}
				lost += g.Count
			}
			if lost != c.lost || len(numbers)+int(lost) != 8 {
				t.Errorf("%v came, %d are told as lost", numbers, lost)
			}
		})
	}
}
