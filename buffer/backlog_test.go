package buffer

import (
	"runtime"
	"testing"

	"spillway/buffer/batch"
)

// TestBacklogMemory: 32 GiB that are not delivered, in as many segments as there may
// be, cost no more than 16 MiB of heap to open, deliver from and append to.
func TestBacklogMemory(t *testing.T) {
	dir := t.TempDir()
	makeBacklog(t, dir, 4<<20)
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, most := m.HeapAlloc, uint64(0)
	look := func() {
		runtime.ReadMemStats(&m)
		most = max(most, m.HeapAlloc)
	}
	b := mustOpen(t, dir, Options{MaxBytes: 40 << 30, MinFree: -1, SyncGap: -1})
	if n := len(b.segs); n != maxSegments {
		t.Fatalf("%d segments", n)
	}
	w := newWriter(b.Begin())
	look()
	for range 3 { // one segment and a half
		run, err := b.Next(t.Context(), batch.Limits{Batches: 8})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(run.Last(), "out"); err != nil {
			t.Fatal(err)
		}
		look()
	}
	payload := text(512<<10, 1)
	for range 6 {
		if err := b.Append(t.Context(), w.seal(100, payload)); err != nil {
			t.Fatal(err)
		}
		look()
	}
	if grown := most - before; grown > 16<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	} else {
		t.Logf("the heap grew by %.1f MiB", float64(grown)/(1<<20))
	}
	if len(b.segs) != maxSegments {
		t.Errorf("%d segments: a new one takes the place of one that is delivered", len(b.segs))
	}
}
