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
	for _, size := range []int{1 << 10, 16 << 10, 64 << 10, 512 << 10} {
		for _, callers := range []int{1, 8} {
			b.Run(fmt.Sprintf("bytes=%d/callers=%d", size, callers), func(b *testing.B) {
				buf := mustOpen(b, b.TempDir(), Options{SyncGap: -1, MaxBytes: 64 << 20, Full: DropOldest, KeepAcked: -1})
				w := newWriter(buf.Begin())
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
			w := newWriter(buf.Begin())
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
	makeBacklog(b, dir, 32<<20)
	b.ReportAllocs()
	for b.Loop() {
		buf, err := Open(dir, Options{Agent: "gw-1", MinFree: -1})
		if err != nil {
			b.Fatal(err)
		}
		if s := buf.Begin(); !s.Unclean {
			b.Fatalf("%+v", s)
		}
		b.StopTimer()
		buf.Close()
		os.Remove(filepath.Join(dir, cursorFile))
		b.StartTimer()
	}
}

// makeBacklog makes dir what is left of a life that was killed, with as many segments
// as there may be: sparse ones of each bytes, but for the first two, of 1 MiB, and the
// newest, of 8 MiB. Batches are of 64 KiB.
func makeBacklog(t testing.TB, dir string, each int64) {
	t.Helper()
	w := newWriter(Start{Epoch: 7, Next: 1})
	model := w.seal(100, text(64<<10, 1))
	*w = *newWriter(Start{Epoch: 7, Next: 1})
	for i := range maxSegments {
		s := segment{ordinal: uint64(i) + 1, epoch: 7, first: w.next, salt: uint64(i) + 99, agent: "gw-1"}
		f, err := os.OpenFile(filepath.Join(dir, s.name()), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		out := appendSegmentHeader(nil, &segmentHeader{Ordinal: s.ordinal, Epoch: 7, First: s.first, Salt: s.salt, Before: w.Prev})
		size := 0
		switch i {
		case 0, 1:
			size = 1 << 20
		case maxSegments - 1:
			size = 8 << 20
		default:
			w.next += 1000
		}
		for len(out) < size {
			x := *model
			x.First = w.next
			w.Seal(&x)
			w.next += 100
			x.Salt, x.SyncedOff = s.salt, uint32(len(out))
			out = append(batch.AppendHeader(out, &x.Header), x.Payload...)
		}
		end := int64(len(out))
		if size == 0 {
			end = each - footerSize
		}
		if i < maxSegments-1 {
			if _, err := f.WriteAt(appendFooter(nil, &Footer{Last: w.next - 1, End: end, Salt: s.salt, SyncedOff: uint32(end)}), end); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := f.WriteAt(out, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
