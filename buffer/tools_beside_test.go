package buffer

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// besideFS is the directory of an agent that writes and frees segments while it is listed, as
// getdents does: each name is found, or not, and its size asked for, at a moment of its own. An
// unrelated name is never left out.
type besideFS struct {
	FS
	rng   *rand.Rand
	sizes []int64 // of segments 1, 2, …: what is written
	gone  int     // of them, the first, that are removed
}

// fullSize is the size of a segment that another one follows.
const fullSize = 3

func (d *besideFS) List(string) (out []FileInfo, err error) {
	order := d.rng.Perm(len(d.sizes) + 10) // as names are hashed; some don't exist yet
	for _, i := range order {
		for range d.rng.IntN(3) {
			d.write()
		}
		if i < len(d.sizes) && i >= d.gone {
			out = append(out, FileInfo{d.name(i), d.sizes[i]})
		}
	}
	return out, nil
}

func (d *besideFS) name(i int) string {
	return segmentName(uint64(i)+1, 1, uint64(10*i)+1, uint64(i)+1, "gw-1")
}

// write is one step of the agent.
func (d *besideFS) write() {
	switch n := len(d.sizes); {
	case n > d.gone+1 && d.rng.IntN(8) == 0:
		d.gone++
	case n == 0 || d.sizes[n-1] == fullSize:
		d.sizes = append(d.sizes, 0)
	default:
		d.sizes[n-1]++
	}
}

// TestListBeside: of segments that are listed while an agent writes, none is left out before
// one that is listed, and each is complete that another one follows.
func TestListBeside(t *testing.T) {
	for seed := range uint64(500) {
		d := &besideFS{rng: rand.New(rand.NewPCG(seed, 11))}
		for range d.rng.IntN(60) {
			d.write()
		}
		stored, gone := len(d.sizes), d.gone
		files, err := listed(d)
		if err != nil {
			t.Fatal(err)
		}
		segs := parseNames(files)
		if n := len(segs); d.gone < stored && (n == 0 || segs[n-1].ordinal < uint64(stored)) {
			t.Fatalf("seed %d: segment %d was there all the time, and is not listed", seed, stored)
		}
		at := slices.IndexFunc(segs, func(s *segment) bool { return s.ordinal > uint64(d.gone) })
		for i, s := range segs {
			if s.ordinal <= uint64(gone) {
				t.Fatalf("seed %d: segment %d was removed before", seed, s.ordinal)
			}
			if at >= 0 && i > at && s.ordinal != segs[i-1].ordinal+1 {
				t.Fatalf("seed %d: segment %d is listed behind %d", seed, s.ordinal, segs[i-1].ordinal)
			}
			if i+1 < len(segs) && s.size != fullSize {
				t.Fatalf("seed %d: segment %d has %d of %d bytes, and another one follows", seed, s.ordinal, s.size, fullSize)
			}
		}
	}
}

// TestVerifyBeside: the tools that take no lock find nothing wrong in the directory of an
// agent that is writing, and delivering.
func TestVerifyBeside(t *testing.T) {
	dir := t.TempDir()
	b := mustOpen(t, dir, Options{SegmentBytes: 1400, KeepAcked: -1, SyncGap: -1, MinFree: -1, Sync: SyncNever})
	w := newWriter(b.Begin())
	ctx, cancel := context.WithCancel(t.Context())
	var agent sync.WaitGroup
	defer agent.Wait()
	defer cancel()
	for range 1000 {
		put(t, b, w.seal(10, text(400, 'x')))
	}
	agent.Go(func() {
		for i := 0; ctx.Err() == nil && i < 6000; i++ {
			if err := b.Append(t.Context(), w.seal(10, text(400, 'x'))); err != nil {
				t.Error(err)
				return
			}
			if i%2 > 0 {
				continue
			}
			run, err := b.Next(t.Context(), batch.Limits{Batches: 1})
			if err == nil {
				err = b.Commit(run.Last(), "out")
			}
			if i%512 == 0 {
				b.Maintain(time.Now()) // which frees what is delivered
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 15 {
		report, err := Verify(dir, func(f Finding) {
			if f.Bad() {
				t.Error("verify: ", f.String())
			}
		})
		if err != nil || report.Batches == 0 {
			t.Errorf("verify: %+v, %v", report, err)
		}
		if u, err := Measure(dir, time.Now()); err != nil || u.Missing > 0 || len(u.Failed) > 0 {
			t.Errorf("stats: %+v, %v", u, err)
		}
		l, err := Segments(dir)
		if err != nil {
			t.Error(err)
		}
		for i, s := range l.Segments {
			if i+1 < len(l.Segments) && s.State != StateSealed {
				t.Errorf("ls: %s is %s, and another one follows", s.Name, s.State)
			}
		}
	}
}
