package buffer

import (
	"context"
	"flag"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"syscall"
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

// TestModelOfFaults draws lives of any shape and lets the oracle of the simulation judge
// them after every step: all calls, limits that change between lives, a disk that fills
// and is freed, errors for n calls, clocks that jump, bits that are inverted, files that vanish.
func TestModelOfFaults(t *testing.T) {
	start, n := time.Now(), rounds(t, 200, 20_000)
	for name, value := range map[string]string{"rapid.checks": strconv.Itoa(n), "rapid.seed": os.Getenv("SPILLWAY_CRASH_SEED")} {
		was := flag.Lookup(name).Value.String()
		if value == "" || name == "rapid.seed" && was != "0" || name == "rapid.checks" && was != "100" {
			continue // somebody wants another
		}
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
		defer flag.Set(name, was)
	}
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		w := newWorld(seed, anyPolicy(rapid.Uint64Range(0, uint64(len(policies())-1)).Draw(t, "policy")))
		func() {
			defer func() {
				switch v := recover().(type) {
				case nil:
				case violation:
					t.Fatalf("%s\n%s", v.text, tailOf(w.steps, 60))
				default: // of rapid
					panic(v)
				}
			}()
			open := false
			leave := func(closed bool) { // the end of a life
				for _, s := range w.all {
					inMemory := s.memory || w.o.Memory > 0 && w.o.Sync != SyncGroup
					s.sent = s.sent || s.now && !closed && !s.memory && w.b.saved
					s.now, s.stored, s.refused = false, s.stored && !s.memory, s.refused && !inMemory
				}
				w.disk.fail, open = nil, false
			}
			live := func(f func()) func(*rapid.T) {
				return func(*rapid.T) {
					if open && !w.disk.dead {
						f()
					}
				}
			}
			between := func(f func(t *rapid.T)) func(*rapid.T) {
				return func(t *rapid.T) {
					if !open {
						f(t)
					}
				}
			}
			// forget is for what only a damaged file may have known: which numbers were given
			// out, of batches that are not there any more.
			forget := func() {
				kept := w.scan("")
				for _, s := range w.all {
					s.hit = s.hit || !kept[s.id]
				}
			}
			file := func(t *rapid.T) (name string, n *inode) {
				names := slices.Sorted(maps.Keys(w.disk.names))
				if len(names) == 0 {
					return "", nil
				}
				name = rapid.SampledFrom(names).Draw(t, "file")
				return name, w.disk.names[name]
			}
			t.Repeat(map[string]func(*rapid.T){
				"open":       between(func(*rapid.T) { open = w.open() }),
				"append":     live(w.append),
				"deliver":    live(func() { w.deliver(false) }),
				"take":       live(func() { w.deliver(true) }),
				"read":       live(w.read),
				"maintain":   live(func() { w.tick(time.Second) }),
				"much later": live(func() { w.tick(w.o.KeepAcked + time.Minute) }),
				"clock":      func(*rapid.T) { w.jump() },
				"close": live(func() {
					err := w.b.Close()
					if err == nil {
						w.whole()
					} else if w.disk.fail == nil && w.disk.room < 0 {
						w.fail("close: %v", err)
					}
					w.disk.kill()
					leave(true) // if it failed, the cursor may say so or not
				}),
				"kill": func(*rapid.T) {
					if open {
						w.disk.kill()
						leave(false)
					}
				},
				"power cut": func(*rapid.T) {
					if open {
						leave(false)
					}
					w.cut()
				},
				"fill disk": func(t *rapid.T) {
					w.disk.room, w.short = rapid.Int64Range(0, 5000).Draw(t, "room"), true
					w.disk.full = rapid.SampledFrom([]error{syscall.ENOSPC, syscall.EDQUOT}).Draw(t, "error")
				},
				"free disk": func(*rapid.T) { w.disk.room = -1 },
				"errors": func(t *rapid.T) {
					at := w.disk.calls + rapid.IntRange(1, 20).Draw(t, "from")
					w.failing(outage{at, rapid.IntRange(1, 30).Draw(t, "calls"), rapid.SampledFrom(faulty).Draw(t, "error")})
				},
				"limits": between(func(t *rapid.T) {
					w.o.SegmentBytes = rapid.Int64Range(500, 5000).Draw(t, "segment")
					w.o.KeepAcked = time.Duration(rapid.IntRange(-1, 60).Draw(t, "keep")) * time.Second
					w.o.MaxBytes, w.o.Full = rapid.Int64Range(8<<10, 64<<10).Draw(t, "max"), Policy(rapid.IntRange(0, 1).Draw(t, "full"))
				}),
				"flip": between(func(t *rapid.T) {
					if name, n := file(t); n != nil && len(n.data) > 0 && len(n.data) == len(n.disk) {
						bit := rapid.IntRange(0, 8*len(n.data)-1).Draw(t, "bit")
						w.hurt(name, n.data, bit/8, bit/8+1)
						w.worn = true // what is told of several hits is asked for elsewhere
						w.disk.flip(name, bit)
						forget()
					}
				}),
				"delete": between(func(t *rapid.T) {
					if name, n := file(t); n != nil {
						w.hurt(name, n.data, 0, len(n.data))
						w.wear()
						w.disk.put(name, nil)
						w.disk.SyncDir()
						forget()
					}
				}),
				"": func(*rapid.T) {
					if s := w.b; open && !w.disk.dead && w.disk.fail == nil && w.o.Memory == 0 && s.pos.committed > max(s.Stats().Next, 1)-1 {
						w.fail("I5: position %d, but the next number is %d", s.pos.committed, s.Stats().Next)
					}
				},
			})
			if open {
				w.disk.kill()
				leave(false)
			}
			w.finish()
		}()
	})
	row(t, "drawn lives, judged after every step", n, time.Since(start))
}
