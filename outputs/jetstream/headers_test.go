package jetstream

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"spillway/buffer/batch"
)

var update = flag.Bool("update", false, "rewrite golden files")

// lines returns h as it stands on the wire (ADR-4 of NATS), sorted: the order of
// headers there is by chance.
func lines(h nats.Header) string {
	var l []string
	for k, vs := range h {
		for _, v := range vs {
			l = append(l, k+": "+v+"\n")
		}
	}
	slices.Sort(l)
	return strings.Join(l, "")
}

func sealed(run *batch.Run, batches ...batch.Batch) *batch.Run {
	s := batch.Sealer{Epoch: run.Epoch, Prev: run.Before}
	for i := range batches {
		s.Seal(&batches[i])
	}
	run.Batches = batches
	return run
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%swant\n%s", path, got, want)
	}
}

func TestHeaderGolden(t *testing.T) {
	const noon = 1_763_640_300_123_456_789
	a := batch.Header{Codec: batch.Zstd, Length: 4, First: 1, Count: 100, Raw: 31874, FirstTime: noon, LastTime: noon + 1e9, CRC: 0x1a2b3c4d}
	b := batch.Header{Codec: batch.None, Length: 4, First: 101, Count: 1, Raw: 4, FirstTime: noon + 2e9, LastTime: noon + 2e9, CRC: 5, Flags: batch.RawLines}
	run := sealed(&batch.Run{Lane: "main", Agent: "gw1", Epoch: 0x8f3a0000000000ff, Attempt: 1}, batch.Batch{Header: a}, batch.Batch{Header: b})
	golden(t, "header.golden", lines(header("default", "LOGS", run, 0)))
	run.Attempt = 2
	golden(t, "header-again.golden", lines(header("default", "", run, 1)))
}

// headerRoom holds the longest headers that can be.
func TestHeaderRoom(t *testing.T) {
	long := strings.Repeat("x", 64)
	h := batch.Header{Codec: batch.Zstd, First: 1<<64 - 1<<33, Count: 1<<32 - 1, Raw: 1<<32 - 1, FirstTime: 123456789, LastTime: 123456789}
	run := sealed(&batch.Run{Lane: "lane567890123456", Agent: long, Epoch: 1<<64 - 1, Attempt: 1 << 30}, batch.Batch{Header: h})
	size := len("NATS/1.0\r\n\r\n")
	for k, v := range header(long, strings.Repeat("s", 255), run, 0) {
		size += len(k) + len(": ") + len(v[0]) + len("\r\n")
	}
	if size > headerRoom {
		t.Errorf("headers take %d bytes, more than %d", size, headerRoom)
	}
	t.Logf("longest headers: %d bytes", size)
}

func TestParseHeader(t *testing.T) {
	payload := []byte("a line\n")
	h := batch.Header{Codec: batch.Gzip, First: 7, Count: 3, Length: uint32(len(payload)), CRC: batch.CRC32C(payload)}
	run := sealed(&batch.Run{Lane: "audit", Agent: "gw1", Epoch: 9, Attempt: 3, Before: batch.Seal{1, 2}}, batch.Batch{Header: h, Payload: payload})
	good := header("plant", "LOGS", run, 0)
	o, err := parseHeader(good, len(payload))
	if err != nil {
		t.Fatal(err)
	}
	if o.Lane != "audit" || o.Site != "plant" || o.Agent != "gw1" || o.Epoch != 9 || o.First != 7 || o.Last != 9 || o.CRC != h.CRC ||
		o.Codec != batch.Gzip || o.Before != run.Before || o.Seal != run.Seal() || o.Attempt != 3 || len(o.Sizes) != 1 ||
		o.Sizes[0] != (batch.Size{Bytes: uint64(len(payload)), Count: 3}) || o.Duplicate != run.Batches[0].Identity("gw1", 9).String() || o.Reason != "" {
		t.Errorf("restored %+v", o)
	}
	for name, change := range map[string]func(h nats.Header){
		"none":     func(h nats.Header) { clear(h) },
		"id":       func(h nats.Header) { h.Set(hdrMsgID, "something else") },
		"epoch":    func(h nats.Header) { h.Set(hdrEpoch, "000000000000000a") },
		"encoding": func(h nats.Header) { h.Set(hdrEncoding, "br") },
		"seal":     func(h nats.Header) { h.Del(hdrSeal) },
		"before":   func(h nats.Header) { h.Set(hdrBefore, "zz") },
		"records":  func(h nats.Header) { h.Set(hdrRecords, "4") },
		"attempt":  func(h nats.Header) { h.Set(hdrAttempt, "x") },
	} {
		bad := nats.Header{}
		for k, v := range good {
			bad[k] = slices.Clone(v)
		}
		change(bad)
		if o, err := parseHeader(bad, len(payload)); err == nil {
			t.Errorf("bad %s: restored %+v", name, o)
		}
	}
}

func BenchmarkHeader(b *testing.B) {
	run := sealed(&batch.Run{Lane: "main", Agent: "gw1", Epoch: 9, Attempt: 1}, batch.Batch{Header: batch.Header{Codec: batch.Zstd, First: 7, Count: 3}})
	b.ReportAllocs()
	for b.Loop() {
		header("default", "LOGS", run, 0)
	}
}
