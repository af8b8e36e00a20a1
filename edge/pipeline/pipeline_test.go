package pipeline

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/edge/listen"
	"spillway/framing"
	"spillway/framing/ecs"
	"spillway/outputs"
)

// memory is a far side in memory: it keeps what it acknowledged.
type memory struct {
	name    string // "memory" by default
	mu      sync.Mutex
	batches []batch.Batch // deep copies, guarded by mu
	runs    []batch.Run   // without payloads, guarded by mu
	before  []batch.Seal
	fail    error // when set, nothing is taken; guarded by mu
	limits  batch.Limits
}

func (m *memory) Name() string         { return cmp.Or(m.name, "memory") }
func (m *memory) Limits() batch.Limits { m.mu.Lock(); defer m.mu.Unlock(); return m.limits }
func (m *memory) Probe(context.Context, string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fail
}
func (m *memory) Counts() outputs.Counts { return outputs.Counts{} }
func (m *memory) Close() error           { return nil }

func (m *memory) Publish(_ context.Context, run *batch.Run) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := *run
	r.Batches = nil
	m.runs = append(m.runs, r)
	if m.fail != nil {
		return 0, m.fail
	}
	for i, b := range run.Batches {
		b.Payload = bytes.Clone(b.Payload)
		m.batches = append(m.batches, b)
		m.before = append(m.before, run.BeforeOf(i))
	}
	return len(run.Batches), nil
}

func (m *memory) setFail(err error) { m.mu.Lock(); m.fail = err; m.mu.Unlock() }

func (m *memory) attempts() int { m.mu.Lock(); defer m.mu.Unlock(); return len(m.runs) }

// planned is a memory that stores objects.
type planned struct{ memory }

func (p *planned) Key(run *batch.Run) string { return outputs.Key("", "site", run) }

type rec struct {
	Message  string
	Spillway struct {
		Epoch string
		Seq   uint64
		Gap   *struct {
			Reason, Input      string
			Count, First, Last uint64
		}
	}
}

// lines decodes everything the far side has, checking payloads and seals on the way.
func (m *memory) records(t *testing.T, epoch batch.Epoch) (rs []rec) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, b := range m.batches {
		if err := b.Check(); err != nil {
			t.Fatal(err)
		}
		if b.Chain(m.before[i], epoch) != b.Seal {
			t.Fatalf("batch %d to %d: seal does not follow", b.First, b.Last())
		}
		text, err := batch.Decode(nil, b.Payload, b.Codec, int(b.Raw))
		if err != nil {
			t.Fatal(err)
		}
		all := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		if len(all) != int(b.Count) {
			t.Fatalf("batch %d to %d holds %d lines", b.First, b.Last(), len(all))
		}
		for k, l := range all {
			var r rec
			if err := json.Unmarshal([]byte(l), &r); err != nil {
				t.Fatalf("%q: %v", l, err)
			}
			if r.Spillway.Seq != b.First+uint64(k) {
				t.Fatalf("line %d of the batch from %d has sequence %d", k, b.First, r.Spillway.Seq)
			}
			rs = append(rs, r)
		}
	}
	return rs
}

// bench is a lane with its buffer, running.
type bench struct {
	t      *testing.T
	buf    *buffer.Buffer
	lane   *Lane
	in     *Input
	cancel context.CancelFunc
	done   chan struct{}
	log    *safe
	sent   uint64 // by send
}

func start(t *testing.T, dir string, out outputs.Output, full OnFull, edit func(*buffer.Options, *LaneOptions)) *bench {
	t.Helper()
	bo := buffer.Options{Agent: "gw1", MaxBytes: 64 << 20, MinFree: -1, SyncGap: time.Millisecond}
	lo := LaneOptions{Name: "main", Agent: "gw1", Codec: batch.Zstd, Batch: batch.BuilderOptions{Age: 20 * time.Millisecond}, AgeHeld: 20 * time.Millisecond}
	if edit != nil {
		edit(&bo, &lo)
	}
	buf, err := buffer.Open(dir, bo)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, buf: buf, done: make(chan struct{}), log: &safe{}}
	lo.Buffer = buf
	lo.Log = slog.New(slog.NewTextHandler(b.log, nil))
	if lo.Chain == nil {
		lo.Chain = outputs.NewChain(outputs.ChainOptions{RetryMin: time.Millisecond, RetryMax: 20 * time.Millisecond, Log: lo.Log}, out)
	}
	b.lane = NewLane(lo)
	b.in = NewInput(InputOptions{Name: "tcp", Lane: b.lane, Parse: true, Zone: time.UTC, OnFull: full,
		Records: ecs.Options{Dataset: "tcp.generic", Agent: "gw1", Host: "h", InputType: "tcp"}})
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	go func() { b.lane.Run(ctx); close(b.done) }()
	return b
}

// safe is a log that can be read while it is written.
type safe struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *safe) Write(p []byte) (int, error) { s.mu.Lock(); defer s.mu.Unlock(); return s.b.Write(p) }
func (s *safe) String() string              { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

// stop closes the intake, waits for the lane, closes the buffer.
func (b *bench) stop() {
	b.t.Helper()
	b.lane.Close()
	<-b.done
	b.cancel()
	if err := b.buf.Close(); err != nil {
		b.t.Error(err)
	}
}

func msg(s string) framing.Message { return framing.Message{Data: []byte(s)} }

var from = listen.Sender{Addr: netip.MustParseAddrPort("192.0.2.7:44214")}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// Records of several connections arrive once, numbered without a hole, each
// connection's in its order, under seals that follow one another.
func TestLane(t *testing.T) {
	for _, out := range []interface {
		outputs.Output
		records(*testing.T, batch.Epoch) []rec
	}{&memory{}, &planned{}} {
		const conns, each = 4, 5000
		b := start(t, t.TempDir(), out, Block, func(_ *buffer.Options, o *LaneOptions) { o.Batch.Records = 333 })
		var wg sync.WaitGroup
		for k := range conns {
			wg.Go(func() {
				s := b.in.Open()
				for i := range each {
					s.Message(msg(fmt.Sprintf("<13>1 - - - - - - conn %d line %d", k, i)), from, time.Now())
					if i%17 == 0 {
						if err := s.Flush(context.Background()); err != nil {
							t.Error(err)
						}
					}
				}
				s.Flush(context.Background())
				s.Close()
			})
		}
		wg.Wait()
		b.stop()
		rs := out.records(t, b.buf.Begin().Epoch)
		if len(rs) != conns*each {
			t.Fatalf("%d records, want %d", len(rs), conns*each)
		}
		var next [conns]int
		for i, r := range rs {
			if r.Spillway.Seq != uint64(i+1) {
				t.Fatalf("record %d has sequence %d", i, r.Spillway.Seq)
			}
			var k, n int
			if _, err := fmt.Sscanf(r.Message, "conn %d line %d", &k, &n); err != nil || n != next[k] {
				t.Fatalf("record %d says %q, want line %d", i, r.Message, next[k])
			}
			next[k]++
		}
		if got := b.in.Messages.Load(); got != conns*each {
			t.Errorf("%d messages counted", got)
		}
	}
}

// An output that fails holds the records; after a restart they go out, with the
// numbers and the epoch they had, marked as tried before where they were.
func TestOutputDown(t *testing.T) {
	dir := t.TempDir()
	m := &memory{}
	m.setFail(&outputs.Error{Output: "memory", Op: "publish", Stored: outputs.StoredMaybe, Action: outputs.Retry, Err: errors.New("down")})
	b := start(t, dir, m, Block, nil)
	s := b.in.Open()
	for i := range 100 {
		s.Message(msg(fmt.Sprintf("line %d", i)), from, time.Now())
	}
	s.Flush(context.Background())
	waitFor(t, "several attempts", func() bool { return m.attempts() > 3 })
	epoch := b.buf.Begin().Epoch
	b.lane.Close()
	b.cancel() // the grace is over
	<-b.done
	if n := b.buf.Stats().PendingRecords; n != 100 {
		t.Errorf("%d records pending, want 100", n)
	}
	if err := b.buf.Close(); err != nil {
		t.Fatal(err)
	}
	if last := m.runs[len(m.runs)-1]; last.Attempt < 2 {
		t.Errorf("the last attempt was marked %d", last.Attempt)
	}
	m.setFail(nil)
	b = start(t, dir, m, Block, nil)
	waitFor(t, "delivery", func() bool { return b.buf.Stats().PendingRecords == 0 })
	b.stop()
	if rs := m.records(t, epoch); len(rs) != 100 || rs[99].Message != "line 99" {
		t.Errorf("%d records after the restart", len(rs))
	}
	if b.buf.Begin().Epoch != epoch || b.buf.Begin().Next != 101 {
		t.Errorf("a clean restart changed the numbers: %+v", b.buf.Begin())
	}
}

// A buffer without room holds block inputs back and makes drop inputs drop after
// a second, counted; once there is room a gap record tells, and nothing admitted is lost.
func TestFull(t *testing.T) {
	t.Parallel()
	m := &memory{}
	m.setFail(&outputs.Error{Output: "memory", Op: "publish", Stored: outputs.StoredNo, Action: outputs.Retry, Err: errors.New("down")})
	b := start(t, t.TempDir(), m, Drop, func(o *buffer.Options, l *LaneOptions) {
		o.MaxBytes, l.Codec = 1<<20, batch.None
	})
	waiting := NewInput(InputOptions{Name: "waits", Lane: b.lane, Records: ecs.Options{Dataset: "d", Agent: "a"}})
	w := waiting.Open()
	d := b.in.Open()
	big := strings.Repeat("x", 32<<10)
	sent := 0
	for b.in.dropped[lostFull].Load() < 20 {
		d.Message(msg(fmt.Sprintf("drop %d %s", sent, big)), from, time.Now())
		if err := d.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
		sent++
	}
	held := make(chan struct{})
	go func() {
		w.Message(msg("the patient one"+big), from, time.Now())
		w.Flush(context.Background())
		close(held)
	}()
	select {
	case <-held:
		t.Error("a block input did not wait for room")
	case <-time.After(200 * time.Millisecond):
	}
	m.setFail(nil)
	<-held
	waitFor(t, "delivery", func() bool { return b.buf.Stats().PendingRecords == 0 })
	b.stop()
	rs := m.records(t, b.buf.Begin().Epoch)
	got, told, patient := 0, uint64(0), 0
	for _, r := range rs {
		switch {
		case r.Spillway.Gap != nil && r.Spillway.Gap.Input == "tcp":
			told += r.Spillway.Gap.Count
		case strings.HasPrefix(r.Message, "drop "):
			got++
		case strings.HasPrefix(r.Message, "the patient one"):
			patient++
		}
	}
	dropped := int(b.in.dropped[lostFull].Load())
	if got+dropped != sent || int(told) != dropped || patient != 1 {
		t.Errorf("sent %d: %d delivered, %d dropped, %d told; patient %d", sent, got, dropped, told, patient)
	}
	if !strings.Contains(b.log.String(), "the buffer is full") || !strings.Contains(b.log.String(), "room again") {
		t.Errorf("log: %s", b.log)
	}
}

// drop_oldest makes room; the hole is told in-band with its exact size.
func TestDropOldestIsTold(t *testing.T) {
	m := &memory{}
	m.setFail(&outputs.Error{Output: "memory", Op: "publish", Stored: outputs.StoredNo, Action: outputs.Retry, Err: errors.New("down")})
	b := start(t, t.TempDir(), m, Block, func(o *buffer.Options, l *LaneOptions) {
		o.MaxBytes, o.Full, l.Codec = 4<<20, buffer.DropOldest, batch.None
	})
	s := b.in.Open()
	big := strings.Repeat("y", 8<<10)
	const sent = 2000
	for i := range sent {
		s.Message(msg(fmt.Sprintf("line %d %s", i, big)), from, time.Now())
		s.Flush(context.Background())
	}
	// Only when nothing is dropped any more: what is dropped while it is handed over
	// may be told as lost and arrive all the same.
	waitFor(t, "all stored", func() bool { n := b.lane.Admitted(); return n >= sent && b.lane.durable.Load() == n })
	tried := m.attempts()
	waitFor(t, "what was in hand then is tried", func() bool { return m.attempts() > tried })
	m.setFail(nil)
	waitFor(t, "delivery", func() bool { return b.buf.Stats().PendingRecords == 0 })
	s.Message(msg("after"), from, time.Now())
	s.Flush(context.Background())
	b.stop()
	have, told := map[uint64]bool{}, map[uint64]bool{}
	last := uint64(0)
	for _, r := range m.records(t, b.buf.Begin().Epoch) {
		have[r.Spillway.Seq] = true
		last = r.Spillway.Seq
		if g := r.Spillway.Gap; g != nil {
			for n := g.First; n <= g.Last; n++ {
				told[n] = true
			}
		}
	}
	missing := 0
	for n := uint64(1); n <= last; n++ {
		if !have[n] {
			missing++
		}
		if have[n] == told[n] {
			t.Fatalf("number %d of %d: delivered %v, told as lost %v", n, last, have[n], told[n])
		}
	}
	if missing == 0 || last < sent {
		t.Errorf("%d of %d numbers missing: the test shows nothing", missing, last)
	}
}

// still returns a lane that does not run: its buffer is open, and take stands for all
// that follows the sinks.
func still(t testing.TB) (l *Lane, take func() int) {
	buf, err := buffer.Open(t.TempDir(), buffer.Options{Agent: "gw1", MaxBytes: 1 << 30, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { buf.Close() })
	l = NewLane(LaneOptions{Buffer: buf, Chain: outputs.NewChain(outputs.ChainOptions{}, &memory{}), Log: slog.New(slog.DiscardHandler)})
	return l, func() int {
		b := <-l.blocks
		n := len(b.lines)
		l.unhold(int64(n))
		l.release(b)
		return n
	}
}

// The hot path allocates nothing per record.
func TestSinkAllocations(t *testing.T) {
	l, take := still(t)
	in := NewInput(InputOptions{Name: "tcp", Lane: l, Parse: true, Zone: time.UTC, Records: ecs.Options{Dataset: "tcp.generic", Agent: "a", InputType: "tcp"}})
	s := in.Open()
	m := msg(`<165>1 2026-11-20T12:00:00.123456Z host app 12 ID - message text`)
	now := time.Now()
	round := func() {
		for range 100 {
			s.Message(m, from, now)
		}
		s.Flush(context.Background())
		take()
	}
	round()
	if n := testing.AllocsPerRun(100, round); n > 1 {
		t.Errorf("%v allocations for 100 records", n)
	}
}

func BenchmarkSink(b *testing.B) {
	l, take := still(b)
	in := NewInput(InputOptions{Name: "tcp", Lane: l, Parse: true, Zone: time.UTC, Records: ecs.Options{Dataset: "tcp.generic", Agent: "a", InputType: "tcp"}})
	s := in.Open()
	m := msg(`<165>1 2026-11-20T12:00:00.123456Z gw-0117.plant4.example.net sshd 4711 - - Failed password for invalid user user17 from 192.0.2.77 port 50122 ssh2: connection reset by authenticating peer after 3 attempts, preauth`)
	now := time.Now()
	b.ReportAllocs()
	b.SetBytes(int64(len(m.Data)))
	for i := 0; b.Loop(); i++ {
		s.Message(m, from, now)
		if i%500 == 499 {
			s.Flush(context.Background())
			take()
		}
	}
}
