package buffer

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"spillway/buffer/batch"
)

// TestModel compares a buffer with a plain list: whatever the order of appends,
// reads, commits, restarts and kills on a disk that works, what comes out is what
// went in, once and in order, and the counts are right after every step.
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
		var queue []batch.Header // not committed, as the model has it
		flushed := 0             // of queue, what readers may see
		open := func() {
			var err error
			if b, err = Open("sim", o); err != nil {
				t.Fatal(err)
			}
			w = newWriter(b.Start())
			flushed = len(queue)
			if n := len(queue); n > 0 && b.Start().Next <= queue[n-1].Last() {
				t.Fatalf("numbering goes on at %d, behind %d", b.Start().Next, queue[n-1].Last())
			}
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
					queue = append(queue, x.Header)
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
				n := rapid.IntRange(0, len(run.Batches)).Draw(t, "commit")
				if n == 0 {
					return
				}
				if err := b.Commit(run.Batches[n-1].Last(), "out"); err != nil {
					t.Fatal(err)
				}
				queue, flushed = queue[n:], flushed-n
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
				open()
			},
			"": func(t *rapid.T) {
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
