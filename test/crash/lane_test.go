package crash

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
)

// lane fills and drains a buffer in the test's own process, and knows what was
// promised. Its batches have ten records.
type lane struct {
	t      *testing.T
	dir    string
	o      buffer.Options
	b      *buffer.Buffer
	sealer batch.Sealer
	next   uint64
	try    *batch.Batch // Append failed for it: it comes again

	promised  []uint64          // first numbers of what Append returned for
	content   map[uint64][]byte // by first number
	delivered map[uint64]bool
	holes     []hole // told by batches that Append returned for
}

func newLane(t *testing.T, dir string, o buffer.Options) *lane {
	t.Helper()
	o.Agent, o.SyncGap = agentName, -1
	l := &lane{t: t, dir: dir, o: o, content: map[uint64][]byte{}, delivered: map[uint64]bool{}}
	l.open()
	return l
}

// open begins a life.
func (l *lane) open() {
	l.t.Helper()
	var err error
	if l.b, err = buffer.Open(l.dir, l.o); err != nil {
		l.t.Fatal(err)
	}
	st := l.b.Begin()
	if n := len(l.promised); n > 0 && st.Next < l.promised[n-1]+10 {
		l.t.Fatalf("numbering goes on at %d, and %d was promised", st.Next, l.promised[n-1]+9)
	}
	l.sealer, l.next, l.try = batch.Sealer{Epoch: st.Epoch, Prev: st.Seal}, st.Next, nil
	l.t.Cleanup(func() { l.b.Close() }) // it may be closed
}

// append stores a batch of size bytes. After an error the same one comes again, but
// for ErrMemory, which says that it is taken and nothing is promised.
func (l *lane) append(size int) error {
	l.t.Helper()
	if l.try == nil {
		p := content(uint64(l.sealer.Epoch), l.next, size)
		now := time.Now().UnixNano()
		l.try = &batch.Batch{Payload: p, Header: batch.Header{First: l.next, Count: 10, Length: uint32(size), Raw: uint32(size), FirstTime: now, LastTime: now,
			CRC: batch.CRC32C(p), Sum: sha256.Sum256(p)}}
		l.sealer.Seal(l.try)
	}
	gaps := l.b.Gaps()
	err := l.b.Append(l.t.Context(), l.try)
	if err != nil && !errors.Is(err, buffer.ErrMemory) {
		return err
	}
	for _, g := range gaps {
		l.holes = append(l.holes, hole{g.Reason, g.First, g.Last, g.Count})
	}
	l.b.GapsTold(len(gaps), l.try.First)
	if err == nil {
		l.promised = append(l.promised, l.try.First)
	}
	l.content[l.try.First] = l.try.Payload
	l.next, l.try = l.try.Last()+1, nil
	return err
}

// fill appends batches until there is an error, which it returns, or n are stored.
func (l *lane) fill(size, n int) (stored int, err error) {
	l.t.Helper()
	for stored < n {
		if err := l.append(size); err != nil {
			return stored, err
		}
		stored++
	}
	return stored, nil
}

// deliver takes batches, n of them at most, and commits them.
func (l *lane) deliver(n int) (took int) {
	l.t.Helper()
	for took < n && l.b.Stats().PendingRecords > 0 {
		ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
		run, err := l.b.Next(ctx, batch.Limits{Batches: min(8, n-took)})
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return took
		}
		if err != nil {
			l.t.Fatal(err)
		}
		for i := range run.Batches {
			x := &run.Batches[i]
			if want, ok := l.content[x.First]; !ok || !slices.Equal(want, x.Payload) {
				l.t.Fatalf("batch %d has %d bytes that nobody appended", x.First, len(x.Payload))
			}
			l.delivered[x.First] = true
		}
		if err := l.b.Commit(run.Last(), "s3"); err != nil {
			l.t.Fatal(err)
		}
		took += len(run.Batches)
	}
	return took
}

// finish delivers everything in a healthy world and judges.
func (l *lane) finish() {
	l.t.Helper()
	for l.b.Stats().PendingRecords > 0 || len(l.b.Gaps()) > 0 {
		if len(l.b.Gaps()) > 0 {
			if err := l.append(1000); err != nil {
				l.t.Fatal(err)
			}
		}
		l.b.Maintain(time.Now().Add(time.Minute)) // what is not synced yet is, now
		if n := l.b.Stats().PendingRecords; l.deliver(1<<30) == 0 && n > 0 {
			l.t.Fatalf("%d records are pending and never come", n)
		}
	}
	dropped, told := 0, uint64(0)
	for _, h := range l.holes {
		if h.reason == buffer.ReasonFull {
			told += h.count
		}
	}
	for _, first := range l.promised {
		if l.delivered[first] {
			continue
		}
		dropped++
		if !slices.ContainsFunc(l.holes, func(h hole) bool { return h.reason == buffer.ReasonFull && h.first <= first && first+9 <= h.last }) {
			l.t.Errorf("batch %d was stored and is lost", first)
		}
	}
	if l.o.Full == buffer.Hold && dropped > 0 {
		l.t.Errorf("%d batches were dropped by a buffer that holds", dropped)
	}
	if told < uint64(10*dropped) {
		l.t.Errorf("%d records were dropped, and %d are told of", 10*dropped, told)
	}
	if err := l.b.Close(); err != nil {
		l.t.Error(err)
	}
	if _, err := buffer.Verify(l.dir, func(f buffer.Finding) {
		if f.Bad() {
			l.t.Errorf("verify: %v", &f)
		}
	}); err != nil {
		l.t.Error(err)
	}
	l.t.Logf("%d batches stored, %d delivered, %d dropped and told", len(l.promised), len(l.delivered), dropped)
}
