package buffer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"testing"
	"time"

	"spillway/buffer/batch"
)

var update = flag.Bool("update", false, "rewrite golden files")

// writer seals batches as the pipeline does.
type writer struct {
	batch.Sealer
	next  uint64
	stamp func(*batch.Batch) // gives a batch its times; nil: by its number
}

func newWriter(s Start) *writer {
	return &writer{Sealer: batch.Sealer{Epoch: s.Epoch, Prev: s.Seal}, next: s.Next}
}

// seal makes the next batch, of count records and with this payload.
func (w *writer) seal(count uint32, payload []byte) *batch.Batch {
	b := w.make(batch.None, count, payload)
	w.Seal(b)
	return b
}

// make is seal without the seal.
func (w *writer) make(codec batch.Codec, count uint32, payload []byte) *batch.Batch {
	b := &batch.Batch{Payload: payload, Header: batch.Header{Codec: codec, First: w.next, Count: count, Length: uint32(len(payload)),
		Raw: uint32(len(payload)), FirstTime: int64(w.next) * 1e9, LastTime: int64(w.next)*1e9 + 5, CRC: batch.CRC32C(payload), Sum: sha256.Sum256(payload)}}
	w.next += uint64(count)
	if w.stamp != nil {
		w.stamp(b)
	}
	return b
}

func text(n int, seed byte) []byte {
	p := bytes.Repeat([]byte{'a' + seed%26}, n)
	p[n-1] = '\n'
	return p
}

func mustOpen(t testing.TB, dir string, o Options) *Buffer {
	t.Helper()
	if o.Agent == "" {
		o.Agent = "gw-1"
	}
	b, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// due is a limit under which Next returns at once what is there.
var due = batch.Limits{Batches: 8}

// drain takes n batches and commits them.
func drain(t testing.TB, b *Buffer, n int) []batch.Batch {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out []batch.Batch
	for len(out) < n {
		run, err := b.Next(ctx, batch.Limits{Batches: n - len(out)})
		if err != nil {
			t.Fatalf("after %d of %d batches: %v", len(out), n, err)
		}
		for _, x := range run.Batches {
			x.Payload = bytes.Clone(x.Payload)
			out = append(out, x)
		}
		if err := b.Commit(run.Last(), "out"); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestLife(t *testing.T) {
	for _, sync := range []SyncPolicy{SyncGroup, SyncInterval, SyncNever} {
		t.Run(sync.String(), func(t *testing.T) {
			dir := t.TempDir()
			o := Options{Agent: "gw-1", Sync: sync, SyncGap: -1, SegmentBytes: 4096, KeepAcked: -1}
			var sent, got []string
			var epoch batch.Epoch
			for life := range 5 {
				b := mustOpen(t, dir, o)
				st := b.Begin()
				if life == 0 {
					epoch = st.Epoch
				}
				if st.Epoch != epoch || st.Unclean || st.Previous != nil || st.Next != uint64(life*20*3)+1 {
					t.Fatalf("life %d: %+v", life, st)
				}
				w := newWriter(st)
				for i := range 20 {
					x := w.seal(3, text(100+i*20, byte(i)))
					if err := b.Append(t.Context(), x); err != nil {
						t.Fatal(err)
					}
					sent = append(sent, x.Identity("gw-1", w.Epoch).String())
				}
				b.Maintain(time.Now().Add(time.Hour))
				for _, x := range drain(t, b, 15+life) {
					if err := x.Check(); err != nil {
						t.Fatal(err)
					}
					got = append(got, x.Identity("gw-1", epoch).String())
				}
				b.Maintain(time.Now().Add(time.Hour))
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				if err := b.Append(t.Context(), w.seal(1, text(5, 0))); !errors.Is(err, ErrClosed) {
					t.Fatalf("append after close: %v", err)
				}
				if _, err := b.Next(t.Context(), due); !errors.Is(err, ErrClosed) {
					t.Fatalf("next after close: %v", err)
				}
			}
			b := mustOpen(t, dir, o)
			for _, x := range drain(t, b, len(sent)-len(got)) {
				got = append(got, x.Identity("gw-1", epoch).String())
			}
			if fmt.Sprint(sent) != fmt.Sprint(got) {
				t.Fatalf("sent\n%v\ngot\n%v", sent, got)
			}
			b.Maintain(time.Now().Add(time.Hour))
			if s := b.Stats(); s.PendingRecords != 0 || s.Segments > 2 || s.LiveBytes > 4096+600 || s.GapsUntold != 0 {
				t.Fatalf("%+v", s)
			}
		})
	}
}
