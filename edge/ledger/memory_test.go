package ledger_test

import (
	"bytes"
	"io"
	"runtime"
	"testing"

	"spillway/buffer/batch"
	"spillway/edge/ledger"
)

// TestMemory holds that what a ledger keeps of a million records is what it keeps
// of their batches, with seals that travel and without.
func TestMemory(t *testing.T) {
	const batches, records, limit = 1000, 1000, 200 << 10
	l := newLane(t, batch.Zstd, 7, 1)
	var kept [2]int64
	var ledgers [2]*ledger.Ledger
	var sources [2]*ledger.Source
	for i := range ledgers {
		ledgers[i] = ledger.New(ledger.Options{})
		sources[i] = ledgers[i].Source("x", i == 0)
	}
	for range batches {
		run := l.run(1, records)
		sources[0].Object(message(run, 0))
		sources[1].Object(bare(object(run)))
	}
	for i := range ledgers {
		with := heap()
		r := ledgers[i].Report()
		if !r.Complete || r.Records != batches*records {
			t.Fatalf("%d records: %s", r.Records, show(r))
		}
		r, ledgers[i], sources[i] = nil, nil, nil
		if kept[i] = with - heap(); kept[i] > limit || kept[i] < batches*8 {
			t.Errorf("%d bytes are kept of %d records in %d batches, want at most %d", kept[i], batches*records, batches, limit)
		}
	}
	t.Logf("bytes kept: %d with seals, %d without", kept[0], kept[1])
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestLongLine holds that a line is not gathered to find its end.
func TestLongLine(t *testing.T) {
	l := newLane(t, batch.None, 7, 1)
	l.salt = string(bytes.Repeat([]byte("x"), 32<<20))
	run := l.run(1, 1)
	o := object(run)
	payload := payloads(run)
	led := ledger.New(ledger.Options{})
	s := led.Source("dir", false)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	o.Body = io.NopCloser(bytes.NewReader(payload))
	s.Object(o)
	runtime.ReadMemStats(&after)
	if r := led.Report(); !r.Complete || r.Records != 1 {
		t.Fatal(show(r))
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes allocated for one line of %d", n, len(payload))
	}
}

func BenchmarkObject(b *testing.B) {
	for _, codec := range []batch.Codec{batch.Zstd, batch.Gzip, batch.None} {
		b.Run(codec.String(), func(b *testing.B) {
			l := newLane(b, codec, 7, 1)
			run := l.run(4, 5000)
			o, payload := object(run), payloads(run)
			raw := int64(0)
			for i := range run.Batches {
				raw += int64(run.Batches[i].Raw)
			}
			b.SetBytes(raw)
			b.ReportAllocs()
			s := ledger.New(ledger.Options{}).Source("bucket", false)
			for b.Loop() {
				o.Body = io.NopCloser(bytes.NewReader(payload))
				s.Object(o)
			}
			b.ReportMetric(float64(run.Count())*float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
