package crash

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
)

const (
	writerEnv = "SPILLWAY_CRASH_WRITER"
	agentName = "gw-1"
)

// life is what a writer is to do: a process that has a buffer, which it fills and
// drains as an agent does, and says each step on its standard output before or after
// it, one line each. So nothing that it says is true only after it was said.
//
//	open EPOCH NEXT [PREVIOUS LAST]   numbering goes on; a new epoch tells the one before
//	gap FIRST REASON FROM TO COUNT    the batch that begins with FIRST tells of this hole
//	batch FIRST COUNT SIZE            Append is called with this batch
//	durable LAST                      Append has returned nil under SyncGroup
//	written LAST                      … under another policy
//	memory LAST                       Append has kept them in memory only
//	next FIRST LAST EPOCH SHA256 KEY  Next has returned this batch
//	planning FIRST LAST KEY           SetPlan is called, and it has returned nil
//	planned FIRST LAST KEY
//	committing LAST                   Commit is called, and it has returned nil
//	committed LAST
//	error WHAT
//	closed                            Close has returned nil
type life struct {
	Dir      string
	Seed     uint64 // of this life: payloads and the steps
	Sync     buffer.SyncPolicy
	Full     buffer.Policy
	MaxBytes int64
	Segment  int64
	Memory   int64
	Drain    bool // append no more than is needed to tell every hole, deliver everything, close
}

func (l *life) options() buffer.Options {
	return buffer.Options{Agent: agentName, Sync: l.Sync, Full: l.Full, MaxBytes: l.MaxBytes, SegmentBytes: l.Segment, Memory: l.Memory, MinFree: -1,
		KeepAcked: 50 * time.Millisecond, SyncGap: 3 * time.Millisecond, SyncInterval: 20 * time.Millisecond, MaxUnsynced: 1 << 20}
}

// content is the payload of the batch that begins with first in the life of seed.
func content(seed, first uint64, size int) []byte {
	r := rand.New(rand.NewPCG(seed, first))
	p := make([]byte, (size+7)/8*8)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
	return p[:size]
}

// writer is the process.
type writer struct {
	life
	b *buffer.Buffer

	say   sync.Mutex
	begun atomic.Bool // something was appended
}

func (w *writer) tell(format string, args ...any) {
	w.say.Lock()
	defer w.say.Unlock()
	if _, err := fmt.Printf(format+"\n", args...); err != nil {
		os.Exit(1) // nobody hears us
	}
}

// runWriter is the whole process; it returns its exit code.
func runWriter(arg string) int {
	w := &writer{}
	if err := json.Unmarshal([]byte(arg), &w.life); err != nil {
		w.tell("error %v", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var err error
	if w.b, err = buffer.Open(w.Dir, w.options()); err != nil {
		w.tell("error %v", err)
		return 1
	}
	st := w.b.Begin()
	if p := st.Previous; p != nil {
		w.tell("open %v %d %v %d", st.Epoch, st.Next, p.Epoch, p.Last)
	} else {
		w.tell("open %v %d", st.Epoch, st.Next)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { w.append(ctx, st) })
	wg.Go(func() {
		w.deliver(ctx)
		if w.Drain {
			cancel()
		}
	})
	wg.Go(func() { w.maintain(ctx) })
	wg.Wait()
	cancel()
	if err := w.b.Close(); err != nil {
		w.tell("error %v", err)
		return 1
	}
	w.tell("closed")
	return 0
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// append seals and appends batches. Every hole is told in the next one.
func (w *writer) append(ctx context.Context, st buffer.Start) {
	r := rand.New(rand.NewPCG(w.Seed, 1))
	sealer, next := batch.Sealer{Epoch: st.Epoch, Prev: st.Seal}, st.Next
	for ctx.Err() == nil {
		gaps := w.b.Gaps()
		first := next
		for _, g := range gaps {
			w.tell("gap %d %s %d %d %d", first, g.Reason, g.First, g.Last, g.Count)
		}
		var batches []*batch.Batch
		var bytes int64
		for range 1 + r.IntN(4) {
			size := 200 + r.IntN(20<<10)
			if r.IntN(30) == 0 {
				size += r.IntN(500 << 10)
			}
			p := content(w.Seed, next, size)
			now := time.Now().UnixNano()
			x := &batch.Batch{Payload: p, Header: batch.Header{First: next, Count: 1 + uint32(r.IntN(50)), Length: uint32(size), Raw: uint32(size), FirstTime: now, LastTime: now,
				CRC: batch.CRC32C(p), Sum: sha256.Sum256(p)}}
			sealer.Seal(x)
			w.tell("batch %d %d %d", x.First, x.Count, size)
			batches, next, bytes = append(batches, x), x.Last()+1, bytes+int64(size)
		}
		kept := ""
		for kept == "" {
			err := w.b.Append(ctx, batches...)
			switch {
			case errors.Is(err, buffer.ErrMemory):
				kept = "memory"
			case err == nil && w.Sync == buffer.SyncGroup:
				kept = "durable"
			case err == nil:
				kept = "written"
			}
			if kept != "" {
				break
			}
			if !errors.Is(err, buffer.ErrFull) {
				w.tell("error %v", err)
			}
			if ctx.Err() != nil {
				return
			}
			pause(ctx, time.Millisecond)
		}
		w.b.GapsTold(len(gaps), first)
		w.tell("%s %d", kept, next-1)
		w.begun.Store(true)
		for w.Drain && len(w.b.Gaps()) == 0 && ctx.Err() == nil {
			pause(ctx, time.Millisecond)
		}
		if r.IntN(3) == 0 {
			pause(ctx, time.Duration(r.IntN(3000))*time.Microsecond)
		}
		if w.Full == buffer.Hold {
			_ = w.b.Room(ctx, 0, bytes, 0) // it ends with ctx
		}
	}
}

// deliver takes runs and commits them.
func (w *writer) deliver(ctx context.Context) {
	r := rand.New(rand.NewPCG(w.Seed, 2))
	for {
		l := batch.Limits{Batches: 1 + r.IntN(6)}
		if st := w.b.Stats(); w.Drain && w.begun.Load() && st.PendingRecords == 0 && st.GapsUntold == 0 {
			return
		}
		next, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		run, err := w.b.Next(next, l)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			if !errors.Is(err, context.DeadlineExceeded) {
				w.tell("error %v", err)
				pause(ctx, time.Millisecond)
			}
			continue
		}
		for i := range run.Batches {
			x := &run.Batches[i]
			w.tell("next %d %d %v %x %s", x.First, x.Last(), run.Epoch, sha256.Sum256(x.Payload), run.Key)
		}
		if run.Key == "" && r.IntN(5) == 0 {
			p := buffer.Plan{Output: "s3", First: run.First(), Last: run.Last(), Key: fmt.Sprintf("key-%d-%d", w.Seed, run.First())}
			w.tell("planning %d %d %s", p.First, p.Last, p.Key)
			if err := w.b.SetPlan(p); errors.Is(err, buffer.ErrOrder) {
				continue // the run was dropped meanwhile
			} else if err != nil {
				w.tell("error %v", err)
				continue
			}
			w.tell("planned %d %d %s", p.First, p.Last, p.Key)
		}
		switch r.IntN(8) {
		case 0:
			pause(ctx, time.Duration(r.IntN(20))*time.Millisecond)
		case 1:
			continue // as if the output had failed
		}
		w.tell("committing %d", run.Last())
		if err := w.b.Commit(run.Last(), "s3"); err != nil {
			w.tell("error %v", err)
			continue
		}
		w.tell("committed %d", run.Last())
	}
}

func (w *writer) maintain(ctx context.Context) {
	for ctx.Err() == nil {
		next := w.b.Maintain(time.Now())
		var due <-chan time.Time
		if !next.IsZero() {
			due = time.After(max(time.Millisecond, time.Until(next)))
		}
		select {
		case <-ctx.Done():
		case <-due:
		case <-w.b.Woken():
		}
	}
}

// sum is what the writer says of a payload.
func sum(p []byte) string { s := sha256.Sum256(p); return fmt.Sprintf("%x", s) }
