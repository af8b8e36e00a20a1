package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/edge/listen"
	"spillway/framing"
	"spillway/framing/ecs"
	"spillway/framing/syslog"
	"spillway/outputs"
)

var errDown = &outputs.Error{Output: "memory", Op: "publish", Stored: outputs.StoredNo, Action: outputs.Retry, Err: errors.New("down")}

// stopBound is for a slow and busy disk; what is tested here would otherwise not
// end, or after an hour.
const stopBound = time.Minute

// stopWithin is stop for tests of what might keep the lane from stopping.
func (b *bench) stopWithin(d time.Duration) {
	b.t.Helper()
	b.lane.Close()
	select {
	case <-b.done:
	case <-time.After(d):
		b.t.Errorf("the lane did not stop within %v", d)
		b.cancel()
		<-b.done
	}
	b.cancel()
	if err := b.buf.Close(); err != nil {
		b.t.Error(err)
	}
}

// Batches become durable while others still come: however fast they come, what
// waits for one fsync is bounded.
func TestStoreDoesNotGatherForEver(t *testing.T) {
	buf, err := buffer.Open(t.TempDir(), buffer.Options{Agent: "gw1", MaxBytes: 64 << 20, MinFree: -1, SyncGap: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Close()
	l := NewLane(LaneOptions{Buffer: buf, Chain: outputs.NewChain(outputs.ChainOptions{}, &memory{}), Log: slog.New(slog.DiscardHandler)})
	done := make(chan struct{})
	go func() { l.store(context.Background()); close(done) }()
	next := uint64(1)
	push := func() *job {
		var o batch.Open
		o.Reset(next, 0)
		o.Lines = append(o.Lines, "x\n"...)
		o.Added(1)
		next++
		e, _ := batch.NewEncoder(batch.None, 0)
		j := &job{raw: 2, done: make(chan struct{})}
		if j.batches, j.mem, j.err = e.Encode(nil, &o, nil); j.err != nil {
			t.Fatal(j.err)
		}
		l.order <- j
		return j
	}
	// The next job is always in line before the one before it is encoded.
	first := push()
	for range 100 {
		second := push()
		close(first.done)
		first = second
	}
	// The first hundred are encoded and one is not: they must not wait for it.
	waitFor(t, "the encoded batches to be durable", func() bool { return buf.Stats().Next == next-1 })
	close(first.done)
	close(l.order)
	<-done
}

// A stop with SYNC=interval makes durable what was written last, so that it is
// shipped, and does not wait for the grace to end.
func TestStopWithSyncInterval(t *testing.T) {
	t.Parallel()
	m := &memory{}
	b := start(t, t.TempDir(), m, Block, func(o *buffer.Options, l *LaneOptions) {
		o.Sync, o.SyncInterval, l.BufferKeeps = buffer.SyncInterval, 200*time.Millisecond, true
	})
	s := b.in.Open()
	s.Message(msg("the last one"), from, time.Now())
	s.Flush(context.Background())
	b.stopWithin(stopBound)
	if rs := m.records(t, b.buf.Begin().Epoch); len(rs) != 1 {
		t.Errorf("%d records delivered at the stop", len(rs))
	}
}

// The stop ends the pause of a lane whose output failed: it is tried once more.
func TestStopTriesAPausedOutput(t *testing.T) {
	m := &memory{}
	m.setFail(&outputs.Error{Output: "memory", Op: "publish", Stored: outputs.StoredNo, Action: outputs.Retry, Err: errors.New("down")})
	b := start(t, t.TempDir(), m, Block, func(_ *buffer.Options, l *LaneOptions) {
		l.Chain = outputs.NewChain(outputs.ChainOptions{RetryMin: time.Hour, RetryMax: time.Hour}, m)
	})
	s := b.in.Open()
	s.Message(msg("one"), from, time.Now())
	s.Flush(context.Background())
	waitFor(t, "the first attempt", func() bool { return m.attempts() == 1 })
	m.setFail(nil)
	b.stopWithin(stopBound)
	if rs := m.records(t, b.buf.Begin().Epoch); len(rs) != 1 {
		t.Errorf("%d records delivered at the stop", len(rs))
	}
}

// A full buffer does not wait for an object to come of age.
func TestFullShipsAtOnce(t *testing.T) {
	t.Parallel()
	m := &planned{memory{limits: batch.Limits{Bytes: 1 << 30, Age: time.Hour}}}
	b := start(t, t.TempDir(), m, Block, func(o *buffer.Options, l *LaneOptions) {
		o.MaxBytes, l.Codec = 1<<20, batch.None
	})
	s := b.in.Open()
	big := strings.Repeat("x", 64<<10)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i := range 100 {
		s.Message(msg(fmt.Sprint(i, big)), from, time.Now())
		if err := s.Flush(ctx); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	b.stopWithin(stopBound)
	if rs := m.records(t, b.buf.Begin().Epoch); len(rs) != 100 {
		t.Errorf("%d records", len(rs))
	}
}

// dirFS is a directory on whose segments nothing can be written while bad is set,
// nor on its cursor while badCursor is.
type dirFS struct {
	*os.Root
	bad, badCursor atomic.Bool
	slow           time.Duration // of each write
}

type dirFile struct {
	*os.File
	fs *dirFS
}

var errDisk = errors.New("input/output error")

func newDirFS(t *testing.T) *dirFS {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &dirFS{Root: root}
}

func (d *dirFS) List(sub string) (all []buffer.FileInfo, err error) {
	if sub != "" {
		return nil, nil
	}
	es, err := os.ReadDir(d.Name())
	for _, e := range es {
		if i, err := e.Info(); err == nil && i.Mode().IsRegular() {
			all = append(all, buffer.FileInfo{Name: e.Name(), Size: i.Size()})
		}
	}
	return all, err
}

func (d *dirFS) Create(name string) (buffer.File, error) {
	return d.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (d *dirFS) Open(name string, write bool) (buffer.File, error) { return d.open(name, os.O_RDWR) }

func (d *dirFS) open(name string, flag int) (buffer.File, error) {
	f, err := d.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return dirFile{f, d}, nil
}

func (d *dirFS) Quarantine(name string) error { return d.Remove(name) }

func (d *dirFS) SyncDir() error { return nil }

func (d *dirFS) Free() (free, total int64, err error) { return 1 << 40, 1 << 40, nil }

func (dirFile) Evict() {}

func (f dirFile) WriteAt(p []byte, off int64) (int, error) {
	time.Sleep(f.fs.slow)
	if f.fs.bad.Load() && strings.HasSuffix(f.Name(), ".seg") || f.fs.badCursor.Load() && strings.HasSuffix(f.Name(), "cursor") {
		return 0, errDisk
	}
	return f.File.WriteAt(p, off)
}

func (f dirFile) Size() (int64, error) {
	i, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return i.Size(), nil
}

// While waiting for room, what was admitted before is stored; after the end of all
// waiting nothing is told that is not so.
func TestHardStopWhileFull(t *testing.T) {
	t.Parallel()
	t.Run("none", func(t *testing.T) { hardStopWhileFull(t, batch.None, 0) })
	t.Run("slow disk", func(t *testing.T) { hardStopWhileFull(t, batch.None, 300*time.Millisecond) })
	t.Run("slow codec", func(t *testing.T) { hardStopWhileFull(t, batch.Gzip, 0) })
}

func hardStopWhileFull(t *testing.T, codec batch.Codec, slow time.Duration) {
	m, disk := &memory{}, newDirFS(t)
	disk.slow = slow
	m.setFail(errDown)
	b := start(t, "", m, Block, func(o *buffer.Options, l *LaneOptions) {
		o.FS = disk
		o.MaxBytes, l.Codec, l.Batch.Age, l.AgeHeld = 1<<20, codec, time.Hour, time.Hour
	})
	s := b.in.Open()
	rng := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 32<<10) // that no codec compresses by much
	for i := range noise {
		noise[i] = byte(' ' + rng.IntN(95))
	}
	big := string(noise)
	// The sender gives up only once the lane is full: how long that takes is the disk's affair.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	flushed := make(chan int)
	go func() {
		sent := 0
		for {
			s.Message(msg(fmt.Sprint(sent, big)), from, time.Now())
			if s.Flush(ctx) != nil {
				flushed <- sent
				return
			}
			sent++
		}
	}()
	waitFor(t, "a full lane with all that is admitted stored", func() bool {
		n := b.lane.Admitted()
		return n > 0 && b.lane.Full() && b.buf.Stats().PendingRecords == n && strings.Contains(b.log.String(), "the buffer is full")
	})
	cancel()
	sent := <-flushed
	b.cancel() // the second signal
	s.Close()
	b.stopWithin(stopBound)
	// All that Flush took, and the gap record of the one that it did not.
	if n := b.buf.Stats().PendingRecords; n != uint64(sent)+1 {
		t.Errorf("%d records stored, want %d and a gap record", n, sent)
	}
	if log := b.log.String(); strings.Contains(log, "room again") || strings.Count(log, "the buffer is full") != 1 {
		t.Errorf("log: %s", log)
	}
}

// A lane that has taken nothing for a second is full for inputs that drop, also
// if it is the disk that fails: they don't wait a second for each block.
func TestDropAtOnceWhileTheDiskFails(t *testing.T) { synctest.Test(t, testDropAtOnceWhileTheDiskFails) }

func testDropAtOnceWhileTheDiskFails(t *testing.T) {
	m, disk := &memory{}, newDirFS(t)
	b := start(t, "", m, Drop, func(o *buffer.Options, l *LaneOptions) {
		o.FS, l.Batch.Records = disk, 1
	})
	disk.bad.Store(true)
	s := b.in.Open()
	began := time.Now()
	for b.in.dropped[lostFull].Load() < 30 && time.Since(began) < 30*fullAfter {
		s.Message(msg("x"), from, time.Now())
		s.Flush(context.Background())
	}
	if took := time.Since(began); took < fullAfter || took > 15*fullAfter {
		t.Errorf("thirty records were dropped within %v, want a little more than %v", took, fullAfter)
	}
	if !b.lane.Full() {
		t.Error("the lane is not called full")
	}
	disk.bad.Store(false)
	waitFor(t, "room again", func() bool { return !b.lane.Full() })
	s.Close()
	b.stopWithin(stopBound)
	var told uint64
	for _, r := range m.records(t, b.buf.Begin().Epoch) {
		if g := r.Spillway.Gap; g != nil {
			told += g.Count
		}
	}
	if n := b.in.dropped[lostFull].Load(); told != uint64(n) {
		t.Errorf("%d dropped, %d told", n, told)
	}
}

// Lines that hardly compress make smaller batches, not batches that are compressed twice.
func TestEstimateFollowsBadRatio(t *testing.T) {
	m := &memory{}
	b := start(t, t.TempDir(), m, Block, func(_ *buffer.Options, l *LaneOptions) {
		l.Codec, l.Batch.Age, l.AgeHeld = batch.None, time.Hour, time.Hour
	})
	s := b.in.Open()
	line := strings.Repeat("x", 1000)
	for range 20_000 {
		s.Message(msg(line), from, time.Now())
		s.Flush(context.Background())
	}
	b.stop()
	over := 0
	for _, x := range m.batches[len(m.batches)/2:] {
		if x.Raw > batch.DefaultBytes {
			over++
		}
	}
	if over > 0 {
		t.Errorf("%d batches of the second half are larger than the %d bytes to aim at", over, batch.DefaultBytes)
	}
}

// A huge record leaves no huge memory behind.
func TestHugeRecordMemory(t *testing.T) {
	m := &memory{}
	b := start(t, t.TempDir(), m, Block, nil)
	s := b.in.Open()
	rng := rand.New(rand.NewPCG(1, 2))
	huge := make([]byte, 20<<20)
	for i := range huge {
		huge[i] = byte('a' + rng.IntN(26))
	}
	s.Message(msg(string(huge)), from, time.Now())
	s.Flush(context.Background())
	b.stop()
	for range openBatches() {
		if o := <-b.lane.free; cap(o.Lines) > 8<<20 {
			t.Errorf("%d bytes of an open batch are kept", cap(o.Lines))
		}
	}
	if n := len(m.batches); n != 1 {
		t.Errorf("%d batches", n)
	}
}

// A gap of the buffer whose record could not be stored before the stop is told
// after the next start.
func TestGapOfALostBatchStaysUntold(t *testing.T) {
	m, disk := &memory{}, newDirFS(t)
	m.setFail(errDown)
	b := start(t, "", m, Block, func(o *buffer.Options, l *LaneOptions) {
		o.FS, o.MaxBytes, o.Full = disk, 4<<20, buffer.DropOldest
		l.Codec, l.Batch.Records, l.Batch.Age, l.AgeHeld = batch.None, 10, time.Hour, time.Hour
	})
	s := b.in.Open()
	big := strings.Repeat("y", 48<<10)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	telling := func() int { b.lane.gapMu.Lock(); defer b.lane.gapMu.Unlock(); return b.lane.telling }
	for i := 0; telling() == 0; i++ {
		if i == 80 {
			waitFor(t, "what was sent to be stored", func() bool { return b.buf.Stats().Next == 81 })
			disk.bad.Store(true) // the next batches make room and can't be stored
		}
		switch {
		case i > 80 && i%10 == 0:
			// Not more than fits into memory before the oldest are dropped.
			waitFor(t, "the batch to be tried", func() bool { return b.buf.Stats().DiskError != nil })
		case i < 80 && i%10 == 0:
			// One by one: what shares a sync shares a segment, and the newest is not dropped.
			waitFor(t, "the batch to be stored", func() bool { return b.buf.Stats().Next == uint64(i+1) })
		}
		s.Message(msg(fmt.Sprint(i, big)), from, time.Now())
		if s.Flush(ctx) != nil {
			t.Fatalf("record %d: no gap is being told: %+v", i, b.buf.Stats())
		}
	}
	before := b.buf.Stats().GapsUntold
	b.cancel() // no more waiting
	s.Close()
	b.lane.Close()
	<-b.done
	if n := b.buf.Stats().GapsUntold; n < before || n == 0 {
		t.Errorf("%d gaps are untold, %d before the stop: what told them was not stored", n, before)
	}
	disk.bad.Store(false)
	if err := b.buf.Close(); err != nil {
		t.Error(err)
	}
}

// What an input dropped stays told although the batch with its gap record is
// dropped by drop_oldest.
func TestDropsAreToldAgain(t *testing.T) {
	m := &memory{}
	m.setFail(errDown)
	b := start(t, t.TempDir(), m, Block, func(o *buffer.Options, l *LaneOptions) {
		o.MaxBytes, o.Full, l.Codec = 4<<20, buffer.DropOldest, batch.None
	})
	b.lane.drops.add("udp", "buffer_full", 7, time.Now())
	s := b.in.Open()
	big := strings.Repeat("y", 8<<10)
	for i := range 2000 {
		if i == 1000 {
			b.lane.drops.add("udp", "buffer_full", 5, time.Now())
		}
		s.Message(msg(fmt.Sprint(i, big)), from, time.Now())
		s.Flush(context.Background())
	}
	waitFor(t, "all stored", func() bool { n := b.lane.Admitted(); return n >= 2000 && b.lane.durable.Load() == n })
	m.setFail(nil)
	waitFor(t, "delivery", func() bool { return b.buf.Stats().PendingRecords == 0 })
	s.Message(msg("after"), from, time.Now())
	s.Flush(context.Background())
	b.stopWithin(stopBound)
	told := uint64(0)
	for _, r := range m.records(t, b.buf.Begin().Epoch) {
		if g := r.Spillway.Gap; g != nil && g.Input == "udp" {
			told += g.Count
		}
	}
	if told != 12 {
		t.Errorf("%d dropped records told, want 12", told)
	}
}

// The longest line that a sink makes fits a batch of one, whatever the codec makes of it.
func TestLongestLineFits(t *testing.T) {
	line := make([]byte, maxLine+64)
	rand.NewChaCha8([32]byte{1}).Read(line)
	for _, codec := range []batch.Codec{batch.None, batch.Gzip, batch.Zstd} {
		e, err := batch.NewEncoder(codec, 0)
		if err != nil {
			t.Fatal(err)
		}
		o := &batch.Open{Lines: line, First: 1}
		o.Added(1)
		if bs, _, err := e.Encode(nil, o, nil); err != nil || len(bs) != 1 || bs[0].Flags&batch.Single == 0 {
			t.Errorf("%v: %d batches, %v", codec, len(bs), err)
		}
	}
}

// A message whose record would be much larger than itself, or larger than any batch, is
// cut and counted once, and costs no more than what fits.
func TestRecordTooLarge(t *testing.T) {
	tcp := InputOptions{Name: "tcp", Parse: true, Format: syslog.RFC5424, Zone: time.UTC, Records: ecs.Options{Dataset: "d", Agent: "a"}}
	entries := InputOptions{Name: "vault", Vault: &VaultOptions{PairTimeout: time.Minute}, Records: ecs.Options{Dataset: "d", Agent: "a"}}
	with := func(o InputOptions, original ecs.Original) InputOptions {
		o.Records.PreserveOriginal = original
		return o
	}
	for _, c := range []struct {
		name  string
		o     InputOptions
		data  string
		least int // bytes of the line
		most  int
		cut   bool
	}{
		{"control characters", tcp, strings.Repeat("\x01", 20<<20), 39 << 20, 40 << 20, true},
		{"control characters and their original", with(tcp, ecs.OriginalText), strings.Repeat("\x01", 8<<20), 31 << 20, 32 << 20, true},
		{"control characters in base64", with(tcp, ecs.OriginalBase64), strings.Repeat("\x01", 8<<20), 31 << 20, 32 << 20, true},
		{"invalid UTF-8", tcp, strings.Repeat("\xff", 8<<20), 15 << 20, 16 << 20, true},
		{"not much of it", tcp, strings.Repeat("\x01", 600<<10), 3600 << 10, 3700 << 10, false},
		{"quotes", tcp, "<13>1 - - - - - - " + strings.Repeat(`"`, 20<<20), 39 << 20, 41 << 20, false},
		{"other alphabets", tcp, "<13>1 - - - - - - " + strings.Repeat("語", 5<<20), 15 << 20, 16 << 20, false},
		{"a header", tcp, "<13>1 - " + strings.Repeat("h", 30<<20) + " - - - - x", 1, maxLine, false},
		{"many lines", InputOptions{Name: "none", Records: tcp.Records}, strings.Repeat("a\n", 8<<20), 23 << 20, 25 << 20, false},
		{"no entry", entries, strings.Repeat("\x01", 64<<20), 79 << 20, maxLine, true},
		{"an entry whose id does not fit twice more", entries, `{"request":{"id":"` + strings.Repeat("i", 30<<20) + `"},"type":"request"}`, 2 << 20, 3 << 20, true},
		{"one in jsonx", entries, `<json:object name="request"><json:string name="id">` + strings.Repeat("\x01", 10<<20) + `</json:string></json:object><json:string name="type">request</json:string>`, 4 << 20, 5 << 20, true},
		{"an entry whose id does", entries, `{"request":{"id":"` + strings.Repeat("i", 20<<20) + `"},"type":"request"}`, 60 << 20, 61 << 20, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, take := still(t)
			c.o.Lane = l
			in := NewInput(c.o)
			s, m := in.Open(), msg(c.data)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			s.Message(m, from, time.Now())
			runtime.ReadMemStats(&after)
			s.Flush(context.Background())
			n := take()
			if n < c.least || n > c.most+lineRoom {
				t.Errorf("a line of %d bytes", n)
			}
			// The race detector has each growth made twice.
			if took, most := int(after.TotalAlloc-before.TotalAlloc), 2*c.most+2*len(c.data)+1<<20; took > most {
				t.Errorf("%d bytes allocated, of a message of %d and for a line of %d", took, len(c.data), n)
			}
			cut := int64(0)
			if c.cut {
				cut = 1
			}
			if in.Messages.Load() != 1 || in.Truncated.Load() != cut {
				t.Errorf("counted %d messages, %d truncated", in.Messages.Load(), in.Truncated.Load())
			}
		})
	}
}

// Nothing is stored of what somebody waits for if a message of it had to be cut.
func TestStoreTooLarge(t *testing.T) {
	b := start(t, t.TempDir(), &memory{}, Block, nil)
	s := b.in.OpenStorer()
	s.Message(msg("beside it"), from, time.Now())
	if err := store(t.Context(), s, strings.Repeat("\x01", 2<<20)); !errors.Is(err, listen.ErrTooLarge) {
		t.Errorf("stored: %v", err)
	}
	if err := store(t.Context(), s, "the next"); err != nil {
		t.Error(err)
	}
	if m, a := b.in.Messages.Load(), b.in.Admitted.Load(); m != 1 || a != 1 || b.buf.Stats().Next != 2 {
		t.Errorf("%d messages, %d admitted, next %d", m, a, b.buf.Stats().Next)
	}
	b.stop()
}

// While the disk stands still, memory is bounded also if every record is huge.
func TestHugeRecordsWait(t *testing.T) { synctest.Test(t, testHugeRecordsWait) }

func testHugeRecordsWait(t *testing.T) {
	disk := newDirFS(t)
	b := start(t, "", &memory{}, Block, func(o *buffer.Options, l *LaneOptions) {
		o.FS, o.MaxBytes, l.Codec = disk, 1<<30, batch.None
	})
	disk.bad.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	const size = 8 << 20
	data := bytes.Repeat([]byte("x"), size)
	s := b.in.Open()
	taken := 0
	for s.Message(framing.Message{Data: data}, from, time.Now()); s.Flush(ctx) == nil; taken++ {
		s.Message(framing.Message{Data: data}, from, time.Now())
	}
	// Up to the bound, and the one that passed it.
	if n, most := int64(taken)*size, b.lane.most(b.lane.ordinary); n < most || n > most+2*size {
		t.Errorf("%d MiB were taken while nothing could be stored", n>>20)
	}
	disk.bad.Store(false)
	s.Close()
	b.stopWithin(stopBound)
}

// A plan that can't be stored is tried each second and told once.
func TestPlanFailureIsToldOnce(t *testing.T) { synctest.Test(t, testPlanFailureIsToldOnce) }

func testPlanFailureIsToldOnce(t *testing.T) {
	m, disk := &planned{}, newDirFS(t)
	disk.badCursor.Store(true)
	b := start(t, "", m, Block, func(o *buffer.Options, l *LaneOptions) { o.FS = disk })
	s := b.in.Open()
	s.Message(msg("one"), from, time.Now())
	s.Flush(context.Background())
	waitFor(t, "three attempts", func() bool { return b.buf.Stats().CursorErrors >= 3 })
	if n := m.attempts(); n != 0 {
		t.Errorf("%d objects were handed over without a plan", n)
	}
	disk.badCursor.Store(false)
	s.Close()
	b.stopWithin(stopBound)
	if n := strings.Count(b.log.String(), "can't be stored; trying again"); n != 1 {
		t.Errorf("told %d times:\n%s", n, b.log)
	}
	if rs := m.records(t, b.buf.Begin().Epoch); len(rs) != 1 {
		t.Errorf("%d records delivered", len(rs))
	}
}

// Also what was admitted while nothing was pending, and then finds the buffer
// full, does not wait for an object to come of age, nor does the stop.
func TestFullAtTheDiskShipsAtOnce(t *testing.T) {
	m := &planned{memory{limits: batch.Limits{Bytes: 1 << 30, Age: time.Hour}}}
	b := start(t, t.TempDir(), m, Block, func(o *buffer.Options, l *LaneOptions) {
		o.MaxBytes, o.SyncGap, l.Codec = 1<<20, 100*time.Millisecond, batch.None
	})
	// As fill does when it admits faster than store stores.
	l, e := b.lane, func() *batch.Encoder { e, _ := batch.NewEncoder(batch.None, 0); return e }()
	for i := range 4 {
		o := &batch.Open{Lines: append(bytes.Repeat([]byte(`"`), 800<<10), '\n'), First: uint64(i + 1)}
		o.Added(1)
		j := &job{raw: int64(len(o.Lines)), done: make(chan struct{})}
		if j.batches, j.mem, j.err = e.Encode(nil, o, nil); j.err != nil {
			t.Fatal(j.err)
		}
		l.held.Add(j.raw)
		close(j.done)
		l.order <- j
		waitFor(t, "store to take it", func() bool { return len(l.order) == 0 })
	}
	b.stopWithin(stopBound)
	if n := len(m.batches); n != 4 {
		t.Errorf("%d batches delivered, want 4", n)
	}
}
