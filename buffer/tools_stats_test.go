package buffer

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// TestMeasure: what is counted of a directory with delivered, rejected, pending and
// quarantined batches, without reading a payload.
func TestMeasure(t *testing.T) {
	dir, segs := oddBuffer(t)
	b := mustOpen(t, dir, Options{SyncGap: -1})
	run := next(t, b, batch.Limits{Batches: 2})
	if err := b.Reject(&run, "too large"); err != nil {
		t.Fatal(err)
	}
	defer b.Close() // Measure takes no lock
	drain(t, b, 1)
	b.Maintain(time.Now().Add(time.Minute)) // saves the position: 18 of 36
	if err := os.Mkdir(filepath.Join(dir, quarantine), 0o700); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, segs[0]))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, quarantine, segs[0]), data, 0o600); err != nil {
		t.Fatal(err)
	}
	u, err := Measure(dir, instant(100e9))
	if err != nil {
		t.Fatal(err)
	}
	of := func(batches uint64) Totals { return Totals{batches, 3 * batches, 200 * batches, 200 * batches} }
	if u.Totals != of(12) || u.Delivered != of(6) || u.Pending != of(6) || u.Rejected.Totals != of(2) || u.Quarantine.Totals != of(4) {
		t.Errorf("%+v", u)
	}
	for i, state := range []string{StateDelivered, StatePartly, StatePending} {
		s := u.Segments[i]
		if s.Name != segs[i] || s.State != state || s.Totals != of(4) || s.From != instant(int64(12*i+1)*1e9) || s.Until != instant(int64(12*i+10)*1e9+5) {
			t.Errorf("%+v", s)
		}
	}
	if u.Bytes != 3*int64(len(data)) || u.Missing != 0 || u.Unread != 0 || !u.Cursor || u.Lost[ReasonRejected] != 6 || u.Rejected.Files != 1 || u.Quarantine.Bytes != int64(len(data)) {
		t.Errorf("%+v", u)
	}
	if u.Sizes.Below(0) != 256 || u.Sizes.Below(1) != 256 || u.Counts.Below(0.5) != 4 || u.Ages.Below(1) != 128 {
		t.Errorf("sizes %v, counts %v, ages %v", u.Sizes, u.Counts, u.Ages)
	}
}

func TestSpread(t *testing.T) {
	var s Spread
	if s.Below(0.5) != 0 {
		t.Error("of nothing")
	}
	for _, v := range []uint64{0, 1, 2, 3, 4, 1000, 1 << 40} {
		s.add(v)
	}
	for q, want := range map[float64]uint64{0: 2, 0.2: 2, 0.5: 4, 0.6: 8, 0.8: 1024, 1: 1 << 32} {
		if got := s.Below(q); got != want {
			t.Errorf("below %v: %d, want %d", q, got, want)
		}
	}
}
