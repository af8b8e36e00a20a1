package buffer

import (
	"context"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"spillway/buffer/batch"
)

// TestModel compares a buffer with a plain list: whatever the order of appends,
// reads, commits, rejections, restarts and kills on a disk that works, what comes
// out is what went in, once and in order; what is kept can be read again; which
// output has what, what is in doubt and the counts are right after every step.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "seed")))
		d := newSimDisk(rng)
		now := time.Unix(1_800_000_000, 0)
		o := Options{Agent: "gw-1", FS: d, random: rng.Uint64, SyncGap: -1, Now: func() time.Time { return now },
			SegmentBytes: int64(rapid.IntRange(500, 5000).Draw(t, "segment")), KeepAcked: time.Duration(rapid.IntRange(-1, 30).Draw(t, "keep")) * time.Second,
			Sync: SyncPolicy(rapid.IntRange(0, 2).Draw(t, "sync"))}
		var b *Buffer
		var w *writer
		var queue []batch.Header                                       // not committed, as the model has it
		flushed := 0                                                   // of queue, what readers may see
		var all []batch.Header                                         // ever, those of queue last
		took := map[uint64]string{}                                    // by first number, where it was committed; "": rejected
		doubts := map[string]map[uint64]bool{"hub": {}, "archive": {}} // records by output
		many := false                                                  // doubts: the oldest may have gone
		var sent uint64                                                // up to here Next may have handed out in lives that were killed
		stretches := 0                                                 // hand-overs, each of which the cursor has to remember
		open := func() {
			var err error
			if b, err = Open("sim", o); err != nil {
				t.Fatal(err)
			}
			w = newWriter(b.Begin())
			flushed = len(queue)
			b.GapsTold(len(b.Gaps()), b.Stats().Next) // again, those that the cursor had no room to call told
			if n := len(queue); n > 0 && b.Begin().Next <= queue[n-1].Last() {
				t.Fatalf("numbering goes on at %d, behind %d", b.Begin().Next, queue[n-1].Last())
			}
		}
		move := func(n int, output string) {
			for _, h := range queue[:n] {
				if i := len(took); i == 0 || took[all[i-1].First] != output {
					stretches++
				}
				took[h.First] = output
			}
			last := queue[n-1].Last()
			maps.DeleteFunc(doubts[output], func(n uint64, _ bool) bool { return n <= last })
			queue, flushed = queue[n:], flushed-n
		}
		open()
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				var batches []*batch.Batch
				for range rapid.IntRange(1, 3).Draw(t, "batches") {
					x := w.seal(uint32(rapid.IntRange(1, 9).Draw(t, "records")), text(rapid.IntRange(1, 1500).Draw(t, "bytes"), 1))
					batches = append(batches, x)
					queue, all = append(queue, x.Header), append(all, x.Header)
				}
				if err := b.Append(context.Background(), batches...); err != nil {
					t.Fatal(err)
				}
				if o.Sync != SyncInterval || b.Stats().UnsyncedBytes == 0 {
					flushed = len(queue)
				}
			},
			"maintain": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 20).Draw(t, "seconds")) * time.Second)
				b.Maintain(now)
				flushed = len(queue)
			},
			"take": func(t *rapid.T) {
				run, err := b.Next(ended, batch.Limits{Batches: rapid.IntRange(1, 5).Draw(t, "limit")})
				if err != nil {
					if flushed > 0 {
						t.Fatalf("%d batches are there: %v", flushed, err)
					}
					return
				}
				for i := range run.Batches {
					if i >= len(queue) || run.Batches[i].Seal != queue[i].Seal || run.Batches[i].Check() != nil {
						t.Fatalf("batch %d is not what went in", run.Batches[i].First)
					}
				}
				attempt := 1
				for n := run.First(); n <= run.Last(); n++ {
					if n <= sent || doubts["hub"][n] || doubts["archive"][n] {
						attempt = 2
					}
				}
				if run.Attempt != attempt && !many {
					t.Fatalf("%d to %d is attempt %d, want %d; in doubt is %v, and up to %d", run.First(), run.Last(), run.Attempt, attempt, doubts, sent)
				}
				n := rapid.IntRange(1, len(run.Batches)).Draw(t, "so many")
				output := rapid.SampledFrom([]string{"hub", "archive"}).Draw(t, "output")
				part := run
				part.Batches = part.Batches[:n]
				var err2 error
				switch rapid.IntRange(0, 5).Draw(t, "answer") {
				case 0: // none
				case 1:
					for n := part.First(); n <= part.Last(); n++ {
						doubts[output][n] = true
					}
					err2 = b.InDoubt(output, Range{part.First(), part.Last()})
					many = many || len(b.pos.doubts) == maxDoubts
				case 2:
					err2 = b.Reject(&part, "nobody takes it")
					b.GapsTold(len(b.Gaps()), b.Stats().Next)
					move(n, "")
				default:
					err2 = b.Commit(part.Last(), output)
					move(n, output)
				}
				if err2 != nil {
					t.Fatal(err2)
				}
			},
			"read": func(t *rapid.T) {
				kept := b.segs
				visible := len(all) - len(queue) + flushed
				if len(kept) == 0 || visible == 0 {
					return
				}
				var want []batch.Header
				r := Range{First: rapid.Uint64Range(1, all[visible-1].Last()).Draw(t, "first")}
				r.Last = r.First + uint64(rapid.IntRange(0, 200).Draw(t, "records"))
				for _, h := range all[:visible] {
					if h.First >= kept[0].first && h.Last() >= r.First && h.First <= r.Last {
						want = append(want, h)
					}
				}
				l := batch.Limits{Batches: rapid.IntRange(1, 5).Draw(t, "limit")}
				for from := r.First; ; {
					run, err := b.Read(context.Background(), Range{from, max(from, r.Last)}, l)
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
					for i := range run.Batches {
						if len(want) == 0 || run.Batches[i].Seal != want[0].Seal || run.Batches[i].Check() != nil || run.Batches[i].Chain(run.BeforeOf(i), run.Epoch) != want[0].Seal {
							t.Fatalf("batch %d is not what went in", run.Batches[i].First)
						}
						want = want[1:]
					}
					if from = run.Last() + 1; from > r.Last {
						break
					}
				}
				if len(want) > 0 {
					t.Fatalf("batch %d is kept, and not read", want[0].First)
				}
			},
			"restart": func(t *rapid.T) {
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				d.kill()
				open()
			},
			"kill": func(t *rapid.T) {
				b.w.Lock()
				err := b.saveCursor() // so that the model need not know what comes again
				b.w.Unlock()
				if err != nil {
					t.Fatal(err)
				}
				d.kill()
				sent = max(sent, w.next-1) // it can't be known better than that
				open()
			},
			"": func(t *rapid.T) {
				kept := b.Begin().Next
				if len(b.segs) > 0 {
					kept = b.segs[0].first
				}
				got := map[string]map[uint64]bool{"hub": {}, "archive": {}}
				for _, d := range b.Doubts() {
					for n := max(kept, d.First); n <= d.Last; n++ {
						got[d.Output][n] = true
					}
				}
				for output, want := range doubts {
					maps.DeleteFunc(want, func(n uint64, _ bool) bool { return n < kept })
					if !maps.Equal(got[output], want) && !many {
						t.Fatalf("in doubt at %s is %v, want %v", output, got[output], want)
					}
				}
				for _, output := range []string{"hub", "archive"} {
					var want []Range
					for _, h := range all[:len(all)-len(queue)] {
						n := len(want)
						switch {
						case took[h.First] != output || h.Last() < kept:
						case n > 0 && want[n-1].Last+1 == h.First:
							want[n-1].Last = h.Last()
						default:
							want = append(want, Range{h.First, h.Last()})
						}
					}
					if got := b.Taken(output); stretches < maxHanded && !slices.Equal(got, want) {
						t.Fatalf("%s took %v, want %v", output, got, want)
					}
				}
				var records uint64
				for _, h := range queue {
					records += uint64(h.Count)
				}
				s := b.Stats()
				var size int64
				for _, name := range d.segments() {
					size += int64(len(d.names[name].data))
				}
				if s.PendingRecords != records || s.Bytes != size || s.Segments != len(d.segments()) || s.GapsUntold != 0 {
					t.Fatalf("%+v, but %d records are pending in %d bytes", s, records, size)
				}
			},
		})
	})
}
