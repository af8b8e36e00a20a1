package buffer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// ended is a context that has ended.
func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// TestZeroedSegments: whole segments of a disk that forgot them are told as damaged, to the
// record, also where nothing follows in their epoch, and are put aside.
func TestZeroedSegments(t *testing.T) {
	for _, sync := range []SyncPolicy{SyncGroup, SyncInterval, SyncNever} {
		for _, closed := range []bool{true, false} {
			for _, at := range [][]int{{2}, {5}, {4, 5}, {2, 5}, {3, 4, 5}} {
				t.Run(fmt.Sprintf("%v, closed %v, %v", sync, closed, at), func(t *testing.T) {
					d := newSimDisk(rand.New(rand.NewPCG(1, 1)))
					o := Options{SegmentBytes: 1200, KeepAcked: -1, SyncGap: -1, MinFree: -1, FS: d, Agent: "gw-1", Sync: sync, Memory: 64 << 10}
					b, err := Open("sim", o)
					if err != nil {
						t.Fatal(err)
					}
					w := newWriter(b.Begin())
					for i := range 12 {
						put(t, b, w.seal(1, text(500, byte(i))))
					}
					end(t, b, closed)
					d.kill()
					segs := d.segments()
					if len(segs) != 6 {
						t.Fatalf("%d segments", len(segs))
					}
					for _, i := range at {
						d.put(segs[i], make([]byte, len(d.names[segs[i]].data)))
					}
					if b, err = Open("sim", o); err != nil {
						t.Fatal(err)
					}
					b.Begin()
					d.kill() // before it is told
					if b, err = Open("sim", o); err != nil {
						t.Fatal(err)
					}
					w = newWriter(b.Begin())
					put(t, b, w.seal(1, text(500, 'x')))
					b.Maintain(b.o.Now().Add(10 * time.Second)) // SyncInterval
					var come uint64
					for {
						run, err := b.Next(ended(t), batch.Limits{})
						if err != nil {
							break
						}
						for _, x := range run.Batches {
							come += uint64(x.Count)
						}
						if err := b.Commit(run.Last(), "hub"); err != nil {
							t.Fatal(err)
						}
					}
					b.Maintain(b.o.Now())
					b.Maintain(b.o.Now())
					lost := uint64(2 * len(at))
					if come != 13-lost {
						t.Errorf("%d records came, want %d", come, 13-lost)
					}
					var told uint64
					for _, g := range b.Gaps() {
						told += g.Count
						if g.Reason != ReasonDamaged && (sync == SyncGroup || g.Reason != ReasonTorn) {
							t.Errorf("told as %s: %+v", g.Reason, g)
						}
					}
					if told != lost {
						t.Errorf("%d records told, want %d: %+v", told, lost, b.Gaps())
					}
					if q, _ := d.List(quarantine); len(q) != len(at) || b.Stats().Quarantined != uint64(len(at)) {
						t.Errorf("%d segments put aside, want %d", len(q), len(at))
					}
				})
			}
		}
	}
}

// TestNotReadIsNotZeroed: a delivered segment whose header can't be read for a moment has
// one, as far as anybody knows: it is removed like others, not put aside.
func TestNotReadIsNotZeroed(t *testing.T) {
	for _, fails := range []string{"open", "read"} {
		t.Run(fails, func(t *testing.T) {
			d := fourSegments(t, Options{})
			segs := d.segments()
			b := again(t, d, Options{SegmentBytes: 1500, KeepAcked: -1, MinFree: -1})
			b.Begin()
			drain(t, b, 11)
			met := 0
			d.fail = func(op string, _ int, name string) error {
				if op == fails && slices.Contains(segs, name) {
					met++
					return syscall.EIO
				}
				return nil
			}
			b.Maintain(b.o.Now().Add(time.Hour))
			d.fail = nil
			if n := b.Stats().Quarantined; n > 0 || met == 0 {
				t.Errorf("%d segments put aside after %d errors", n, met)
			}
			if n := len(d.segments()); n != 1 {
				t.Errorf("%d segments left", n)
			}
		})
	}
}

// TestVerifyMissingSegment: a whole segment that is missing was not left out by the writer.
func TestVerifyMissingSegment(t *testing.T) {
	dir, segs := threeSegments(t)
	if err := os.Remove(filepath.Join(dir, cursorFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, segs[1])); err != nil {
		t.Fatal(err)
	}
	lost := 0
	if _, err := Verify(dir, func(f Finding) {
		if f.What == "lost" {
			lost++
		}
		if f.Err != nil {
			t.Error(f.String())
		}
	}); err != nil || lost != 1 {
		t.Errorf("%d holes found, %v", lost, err)
	}
}
