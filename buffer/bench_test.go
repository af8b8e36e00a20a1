package buffer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"spillway/buffer/batch"
)

// BenchmarkAppend is group commit: how many appends share an fsync, by how many
// callers there are. No gap between syncs, so that the disk sets the pace.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 512 << 10} {
		for _, callers := range []int{1, 16} {
			b.Run(fmt.Sprintf("bytes=%d/callers=%d", size, callers), func(b *testing.B) {
				buf := mustOpen(b, b.TempDir(), Options{SyncGap: -1, MaxBytes: 64 << 20, Full: DropOldest, KeepAcked: -1})
				w := newWriter(buf.Start())
				payload := text(size, 1)
				var mu sync.Mutex
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for c := range callers {
					wg.Go(func() {
						for i := c; i < b.N; i += callers {
							mu.Lock() // batches must come in order; the wait is outside
							x := w.seal(100, payload)
							req, err := buf.enqueue([]*batch.Batch{x})
							mu.Unlock()
							if err == nil {
								err = buf.wait(context.Background(), req)
							}
							if err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(float64(b.N)/float64(buf.Stats().Syncs), "appends/sync")
			})
		}
	}
}

// BenchmarkNext drains a backlog: scan, read, check, commit.
func BenchmarkNext(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 512 << 10} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			const backlog = 64 << 20
			dir := b.TempDir()
			buf := mustOpen(b, dir, Options{SyncGap: -1, Sync: SyncNever, MaxBytes: 1 << 30, MinFree: -1})
			w := newWriter(buf.Start())
			n := backlog / size
			for range n {
				if err := buf.Append(b.Context(), w.seal(100, text(size, 1))); err != nil {
					b.Fatal(err)
				}
			}
			if err := buf.Close(); err != nil {
				b.Fatal(err)
			}
			os.Remove(filepath.Join(dir, cursorFile))
			b.SetBytes(backlog)
			b.ReportAllocs()
			for b.Loop() {
				buf := mustOpen(b, dir, Options{Sync: SyncNever, MaxBytes: 1 << 30, MinFree: -1})
				for got := 0; got < n; {
					run, err := buf.Next(b.Context(), batch.Limits{Bytes: 4 << 20})
					if err != nil {
						b.Fatal(err)
					}
					got += len(run.Batches)
					if err := buf.Commit(run.Last(), "out"); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				buf.Close()
				os.Remove(filepath.Join(dir, cursorFile))
				b.StartTimer()
			}
		})
	}
}

// BenchmarkOpen opens a directory with as many segments as there may be after a
// crash: sparse files of 32 MiB, a backlog of 256 GiB. The newest is 8 MiB of
// batches and has to be read.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	const each = 32 << 20
	first := uint64(1)
	for i := range maxSegments - 1 {
		salt := uint64(i) + 99
		f, err := os.OpenFile(filepath.Join(dir, segmentName(uint64(i), 7, first, salt, "gw-1")), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			b.Fatal(err)
		}
		f.WriteAt(appendSegmentHeader(nil, &segmentHeader{Ordinal: uint64(i), Epoch: 7, First: first, Salt: salt}), 0)
		first += 1000
		if _, err := f.WriteAt(appendFooter(nil, &Footer{Last: first - 1, End: each, Salt: salt, SyncedOff: each}), each); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
	salt := uint64(5)
	newest := appendSegmentHeader(nil, &segmentHeader{Ordinal: maxSegments, Epoch: 7, First: first, Salt: salt})
	for len(newest) < 8<<20 {
		x := newWriter(Start{Epoch: 7, Next: first}).seal(100, text(512<<10, 1))
		first += 100
		x.Salt = salt
		newest = append(batch.AppendHeader(newest, &x.Header), x.Payload...)
	}
	if err := os.WriteFile(filepath.Join(dir, segmentName(maxSegments, 7, first, salt, "gw-1")), newest, 0o600); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		buf, err := Open(dir, Options{Agent: "gw-1", MinFree: -1})
		if err != nil {
			b.Fatal(err)
		}
		if !buf.Start().Unclean || buf.Start().Previous != nil {
			b.Fatalf("%+v", buf.Start())
		}
		buf.Close()
	}
}
