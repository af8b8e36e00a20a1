package ledger_test

import (
	"bytes"
	"math"
	"testing"

	"spillway/buffer/batch"
	"spillway/edge/ledger"
	"spillway/outputs"
)

// FuzzObject holds that no body and no numbers do harm, and that what is called
// complete has as many lines as it says. The CRC always fits: whoever writes an
// object can make it fit.
func FuzzObject(f *testing.F) {
	for _, codec := range []batch.Codec{batch.None, batch.Gzip, batch.Zstd} {
		l := newLane(f, codec, 7, 1)
		run := l.run(2, 3)
		f.Add(payloads(run), uint8(codec), uint64(1), uint64(6), run.Sizes())
		f.Add(payloads(run), uint8(codec), uint64(1), uint64(6), "")
		l = newLane(f, codec, 7, math.MaxUint64-2)
		run = l.run(1, 3)
		f.Add(payloads(run), uint8(codec), run.First(), run.Last(), "")
	}
	f.Fuzz(func(t *testing.T, payload []byte, codec uint8, first, last uint64, sizes string) {
		o := &outputs.Object{Name: "x", Lane: "main", Agent: "gw1", Epoch: 7, First: first, Last: last, CRC: batch.CRC32C(payload), Codec: batch.Codec(codec % 3)}
		if sizes != "" {
			var err error
			if o.Sizes, err = batch.ParseSizes(sizes); err != nil {
				return
			}
		}
		l := ledger.New(ledger.Options{})
		for range 2 {
			l.Source("x", true).Object(body(o, payload))
		}
		r := l.Report()
		if !r.Complete {
			return
		}
		lines, err := batch.Decode(nil, payload, o.Codec, 64<<20)
		if n := uint64(bytes.Count(lines, []byte{'\n'})); err != nil || n != last-first+1 || r.Records != n {
			t.Fatalf("complete: %d records from %d to %d, but it has %d lines: %v", r.Records, first, last, n, err)
		}
	})
}
