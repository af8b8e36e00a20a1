package buffer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// Tests that a seeded bug has asked for: see TestMutants.

// TestFooterPromisesWhatIsSynced: the footer of a full segment goes out with its last
// batches. Where these were cut off, that is a torn write, and nobody is told of damage.
func TestFooterPromisesWhatIsSynced(t *testing.T) {
	b, d := simulated(t, Options{SegmentBytes: 600})
	w := newWriter(b.Begin())
	fill(t, b, w, 1)
	d.fail = func(op string, _ int, _ string) error {
		if op == "sync" {
			d.dead = true
			return errCut
		}
		return nil
	}
	if err := b.Append(t.Context(), w.seal(10, text(500, 1))); err == nil {
		t.Fatal("stored without a sync")
	}
	d.fail, d.dead = nil, false
	d.SyncDir()
	name := d.segments()[0]
	n := d.names[name]
	n.disk, n.dirty = bytes.Clone(n.data), nil // all was written in the end,
	d.flip(name, 8*(len(n.data)-footerSize-7)) // but for a sector of the payload
	b = again(t, d, Options{})
	w = newWriter(b.Begin())
	fill(t, b, w, 1)
	drain(t, b, 2)
	if g := b.Gaps(); len(g) != 0 {
		t.Fatalf("what was never stored is told as lost: %+v", g)
	}
}

// TestGapRecordLostToo: a hole is told again when the record that tells it is dropped.
func TestGapRecordLostToo(t *testing.T) {
	b, _ := simulated(t, Options{SegmentBytes: 1})
	w := newWriter(b.Begin())
	drop := func() {
		t.Helper()
		b.w.Lock()
		defer b.w.Unlock()
		if n, err := b.dropOldest(ReasonFull, nil); n == 0 || err != nil {
			t.Fatalf("dropped %d bytes, %v", n, err)
		}
	}
	fill(t, b, w, 3)
	drop()
	if g := b.Gaps(); len(g) != 1 || g[0].First != 1 || g[0].Last != 10 {
		t.Fatalf("%+v", g)
	}
	fill(t, b, w, 1)
	b.GapsTold(1, 31)
	fill(t, b, w, 1)
	for range 3 {
		drop()
	}
	told := map[uint64]bool{}
	for _, g := range b.Gaps() {
		for n := g.First; n <= g.Last; n++ {
			told[n] = true
		}
	}
	if len(told) != 40 || !told[1] || !told[40] {
		t.Fatalf("40 records are lost and so is what told of the first ten: %+v", b.Gaps())
	}
}

// TestUnreadableNumbersAreLeftOut: of a segment that can't be read when the buffer is
// opened nothing is known, and it may be readable again.
func TestUnreadableNumbersAreLeftOut(t *testing.T) {
	b, d := simulated(t, Options{})
	fill(t, b, newWriter(b.Begin()), 30)
	d.fail = func(op string, _ int, name string) error {
		if op == "read" && strings.HasSuffix(name, extension) {
			return syscall.EIO
		}
		return nil
	}
	b = again(t, d, Options{})
	d.fail = nil
	if st := b.Begin(); st.Next <= 300 || st.Previous == nil {
		t.Fatalf("numbers were given up to 300, and go on at %d", st.Next)
	}
}

// TestClosedIsDurable: when Close has returned nil, a power cut changes nothing.
func TestClosedIsDurable(t *testing.T) {
	for _, sync := range []SyncPolicy{SyncGroup, SyncInterval, SyncNever} {
		for outcome := range uint64(30) {
			o := Options{Sync: sync}
			b, d := simulated(t, o)
			st := b.Begin()
			fill(t, b, newWriter(st), 3)
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			*d.rng = *rand.New(rand.NewPCG(2, outcome))
			d.reboot()
			b = again(t, d, o)
			if got := b.Begin(); got.Epoch != st.Epoch || got.Next != 31 || got.Unclean || got.Previous != nil {
				t.Fatalf("%v, outcome %d: %+v", sync, outcome, got)
			}
			drain(t, b, 3)
		}
	}
}

// TestFailedCloseIsNotOrderly: what Close could not make durable is not taken for
// durable by the next life.
func TestFailedCloseIsNotOrderly(t *testing.T) {
	b, d := simulated(t, Options{Sync: SyncNever})
	st := b.Begin()
	fill(t, b, newWriter(st), 3)
	d.fail = func(op string, _ int, name string) error {
		if op == "sync" && name != cursorFile {
			return syscall.EIO
		}
		return nil
	}
	if err := b.Close(); err == nil {
		t.Fatal("closed in order")
	}
	d.fail = nil
	b = again(t, d, Options{Sync: SyncNever})
	if got := b.Begin(); !got.Unclean || got.Epoch == st.Epoch {
		t.Fatalf("%+v", got)
	}
}

// TestCursorAfterAFailedSave: a save that failed and a power cut in the next one leave
// the position that was saved before both.
func TestCursorAfterAFailedSave(t *testing.T) {
	for outcome := range uint64(200) {
		d := newSimDisk(rand.New(rand.NewPCG(1, outcome)))
		var c cursor
		save := func(n uint64, fail string, with error) error {
			d.fail = func(op string, _ int, _ string) error {
				if op != fail {
					return nil
				}
				d.dead = with == errCut
				return with
			}
			p := somePosition()
			p.committed = n
			return c.save(d, &p)
		}
		for n := range uint64(2) {
			if err := save(1+n, "", nil); err != nil {
				t.Fatal(err)
			}
		}
		if save(3, "sync", syscall.EIO) == nil || save(4, []string{"write", "sync"}[outcome%2], errCut) == nil {
			t.Fatal("saved without a sync")
		}
		d.fail = nil
		d.reboot()
		c = cursor{}
		if p, ok, _ := c.read(d); !ok || p.committed < 2 {
			t.Fatalf("outcome %d: position 2 was saved, and %d is found (%v)", outcome, p.committed, ok)
		}
	}
}

// TestSlotsShareNoPage: what becomes of the pages that a save writes, the position
// that was saved before stays.
func TestSlotsShareNoPage(t *testing.T) {
	const page = 4096
	d := newSimDisk(rand.New(rand.NewPCG(1, 1)))
	var c cursor
	short, long := position{}, somePosition()
	long.plan.Key = strings.Repeat("k", maxKey)
	for range maxHanded {
		long.handed = append(long.handed[:min(len(long.handed), maxHanded-1)], handed{"hub", 7})
	}
	for len(long.gaps) < maxGaps {
		long.gaps = append(long.gaps, Gap{Reason: ReasonTorn})
	}
	var before []byte
	for n := range uint64(8) {
		p := short
		if n%3 > 0 {
			p = long
		}
		p.committed = n
		if err := c.save(d, &p); err != nil {
			t.Fatal(err)
		}
		f := d.names[cursorFile]
		after := bytes.Clone(f.data)
		if n > 0 {
			torn := make([]byte, max(len(before), len(after)))
			copy(torn, before)
			for i := range after {
				if i >= len(before) || after[i] != before[i] {
					at := i / page * page
					for j := at; j < min(at+page, len(torn)); j++ {
						torn[j] = 0xa5
					}
				}
			}
			f.data = torn
			var r cursor
			if p, ok, _ := r.read(d); !ok || p.committed != n-1 {
				t.Fatalf("the pages of save %d are destroyed, and the position is %d (%v)", n, p.committed, ok)
			}
			f.data = bytes.Clone(after)
		}
		before = after
	}
}

// TestFloorIsNotWhatWasHandedOut: without a cursor, what was handed out and not
// acknowledged is handed out again.
func TestFloorIsNotWhatWasHandedOut(t *testing.T) {
	o := Options{SegmentBytes: 1}
	b, d := simulated(t, o)
	w := newWriter(b.Begin())
	fill(t, b, w, 3)
	take(t, b, "hub")
	next(t, b, batch.Limits{Batches: 2})
	fill(t, b, w, 1)
	if err := d.Remove(cursorFile); err != nil {
		t.Fatal(err)
	}
	b = again(t, d, o)
	b.Begin()
	if run := next(t, b, due); run.First() != 11 {
		t.Fatalf("delivery begins again with %d", run.First())
	}
}

// TestDamagedIsDrainedFirst: a damaged segment is put aside when what is intact in it
// has been delivered, not before.
func TestDamagedIsDrainedFirst(t *testing.T) {
	o := Options{SegmentBytes: 600, KeepAcked: -1}
	b, d := simulated(t, o)
	fill(t, b, newWriter(b.Begin()), 9)
	d.SyncDir()
	d.flip(d.segments()[0], 8*(segmentHeaderSize+batch.HeaderSize+5)) // the first payload
	b = again(t, d, o)
	b.Begin()
	for first := uint64(11); first < 90; first += 10 {
		b.Maintain(time.Now().Add(time.Hour))
		run := next(t, b, batch.Limits{Batches: 1})
		if run.First() != first {
			t.Fatalf("record %d comes, want %d", run.First(), first)
		}
		b.Maintain(time.Now().Add(time.Hour))
		if err := b.Commit(run.Last(), "hub"); err != nil {
			t.Fatal(err)
		}
	}
	b.Maintain(time.Now().Add(time.Hour))
	if n := b.Stats().Quarantined; n != 1 {
		t.Fatalf("%d segments are put aside", n)
	}
}

// TestBeginThatCantSave: the directory was closed in order, but it can't be noted that
// this life has begun.
func TestBeginThatCantSave(t *testing.T) {
	b, d := simulated(t, Options{})
	st := b.Begin()
	fill(t, b, newWriter(st), 3)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = again(t, d, Options{})
	d.fail = func(op string, _ int, _ string) error {
		if op == "write" || op == "create" {
			return syscall.EROFS
		}
		return nil
	}
	got := b.Begin()
	d.fail = nil
	if got.Epoch == st.Epoch || got.Next != 31 || got.Previous == nil || got.Previous.Epoch != st.Epoch || got.Previous.Last != 30 {
		t.Fatalf("%+v", got)
	}
	fill(t, b, newWriter(got), 1)
	drain(t, b, 4)
}

// TestBadSlotBesideAClosedOne: a slot that can't be read may have said that the last life did
// not end in order, and its numbers may have been given out from memory.
func TestBadSlotBesideAClosedOne(t *testing.T) {
	o := Options{Memory: 64 << 10}
	b, d := simulated(t, o)
	fill(t, b, newWriter(b.Begin()), 1)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = again(t, d, o)
	st := b.Begin()
	if st.Previous != nil {
		t.Fatalf("what ended in order does not go on: %+v", st)
	}
	at := b.cur.slot * slotSize
	d.flip(cursorFile, 8*(at+40))
	b = again(t, d, o)
	if got := b.Begin(); got.Epoch == st.Epoch {
		t.Fatalf("epoch %v goes on at %d, and its last life did not end in order", got.Epoch, got.Next)
	}
}

// TestHandedOutOfMemory: what was handed out of memory and not acknowledged when the disk
// came back is handed out again after a kill.
func TestHandedOutOfMemory(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	o := Options{Memory: 64 << 10, Now: func() time.Time { return now }}
	b, d := simulated(t, o)
	w := newWriter(b.Begin())
	fill(t, b, w, 1)
	d.fail = func(op string, _ int, _ string) error {
		if op == "write" || op == "create" || op == "sync" {
			return syscall.EIO
		}
		return nil
	}
	if err := b.Append(t.Context(), w.seal(3, text(100, 2))); !errors.Is(err, ErrMemory) {
		t.Fatal(err)
	}
	next(t, b, due)
	d.fail = nil
	now = now.Add(time.Minute)
	b.Maintain(now)
	if b.Stats().Degraded {
		t.Fatal("the disk is not tried again")
	}
	b = again(t, d, o)
	b.Begin()
	if n := b.Stats().Committed; n != 0 {
		t.Fatalf("position %d, and nothing was acknowledged", n)
	}
	drain(t, b, 2)
}

// newerBatch makes the first batch header of a segment one of a newer version, longer than this
// version's.
func newerBatch(d *simDisk, name string) {
	data := d.names[name].data
	d.put(name, slices.Concat(data[:segmentHeaderSize], newerHeader(data[segmentHeaderSize:], batch.HeaderSize, 8)))
}

// TestBeforeNewer: a run ends before what a newer version wrote.
func TestBeforeNewer(t *testing.T) {
	d := fourSegments(t, Options{})
	newerBatch(d, d.segments()[1])
	b := again(t, d, Options{})
	b.Begin()
	if run := next(t, b, batch.Limits{}); run.First() != 11 || run.Last() != 30 {
		t.Fatalf("records %d to %d", run.First(), run.Last())
	}
}

// TestPlanAcrossNewer: a planned object is not written again with a part of its records, where the
// rest is of a newer version.
func TestPlanAcrossNewer(t *testing.T) {
	d := fourSegments(t, Options{})
	b := again(t, d, Options{})
	b.Begin()
	run := next(t, b, batch.Limits{Batches: 4})
	if err := b.SetPlan(Plan{Output: "archive", First: run.First(), Last: run.Last(), Key: "k"}); err != nil || run.Last() != 50 {
		t.Fatal(err, run.Last())
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	newerBatch(d, d.segments()[1])
	b = again(t, d, Options{})
	b.Begin()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if run, err := b.Next(ctx, batch.Limits{}); !errors.Is(err, ErrVersion) {
		t.Fatalf("records %d to %d under key %q: %v", run.First(), run.Last(), run.Key, err)
	}
	if p := b.pos.plan; p.Last != 50 {
		t.Fatalf("the plan is forgotten: %+v", p)
	}
}

// TestNewerBehindDamage: the search for what is intact behind damage ends at what a newer
// version wrote.
func TestNewerBehindDamage(t *testing.T) {
	d := fourSegments(t, Options{})
	name := d.segments()[1]
	data := bytes.Clone(d.names[name].data)
	second := segmentHeaderSize + batch.HeaderSize + 400
	data = slices.Concat(data[:second], newerHeader(data[second:], batch.HeaderSize, 8))
	clear(data[segmentHeaderSize : segmentHeaderSize+batch.HeaderSize])
	var newer []int64
	for e := range Scan(bytes.NewReader(data), int64(len(data)), name) {
		if errors.Is(e.Err, ErrVersion) {
			newer = append(newer, e.Off)
		}
	}
	if !slices.Equal(newer, []int64{int64(second)}) {
		t.Fatalf("a newer version begins at %d, told at %d", second, newer)
	}
	// Of a longer header of a segment no byte is taken for what is behind it.
	data = newerHeader(d.names[name].data, segmentHeaderSize, 8)
	for e := range Scan(bytes.NewReader(data), int64(len(data)), name) {
		if e.End != segmentHeaderSize+8 || !errors.Is(e.Err, ErrVersion) {
			t.Fatalf("bytes %d to %d: %v", e.Off, e.End, e.Err)
		}
		break
	}
}

// TestLongerHeaderAndFooter: footer and cursor say all that opening asks, and the longer header of
// a newer version is looked at all the same.
func TestLongerHeaderAndFooter(t *testing.T) {
	d := fourSegments(t, Options{})
	name := d.segments()[3]
	data := newerHeader(d.names[name].data, segmentHeaderSize, 8)
	end := int64(len(data) - footerSize)
	foot, ok := parseFooter(data[end:], end-8)
	if !ok {
		t.Fatal("no footer")
	}
	foot.End = end
	d.put(name, appendFooter(data[:end], &foot))
	if _, err := Open("sim", Options{Agent: "gw-1", FS: d}); !errors.Is(err, ErrVersion) {
		t.Fatalf("opened: %v", err)
	}
}

// TestNewerOutOfOrder: numbers that go down, which only a hand brings about, are looked for in
// what a newer version wrote, in vain.
func TestNewerOutOfOrder(t *testing.T) {
	d := fourSegments(t, Options{})
	names := d.segments()
	s, _ := parseName(names[2])
	s.ordinal = 0
	first, _ := parseName(names[0])
	first.ordinal = 2
	newerBatch(d, names[2])
	d.names[s.name()], d.names[first.name()] = d.names[names[2]], d.names[names[0]]
	delete(d.names, names[2])
	delete(d.names, names[0])
	if _, err := Open("sim", Options{Agent: "gw-1", FS: d}); !errors.Is(err, ErrVersion) {
		t.Fatalf("opened: %v", err)
	}
}

// TestForgottenEpochs: where nothing is left of the segments of two epochs, the cursor vouches
// for the numbers of its own.
func TestForgottenEpochs(t *testing.T) {
	o := Options{SegmentBytes: 1, KeepAcked: -1}
	b, d := simulated(t, o)
	fill(t, b, newWriter(b.Begin()), 2)
	b = again(t, d, o)
	st := b.Begin()
	fill(t, b, newWriter(st), 1)
	end(t, b, false)
	d.kill()
	for _, name := range d.segments() {
		d.put(name, make([]byte, len(d.names[name].data)))
	}
	b = again(t, d, o)
	var told []Gap
	for _, g := range b.pos.gaps {
		if g.Epoch == st.Epoch {
			told = append(told, g)
		}
	}
	if len(told) != 1 || told[0].First != st.Next || told[0].Count != 10 {
		t.Fatalf("record %d to %d are lost of epoch %s: %+v", st.Next, st.Next+9, st.Epoch, b.pos.gaps)
	}
}

// TestWhatWasDurable: what the cursor and the headers say that was durable.
func TestWhatWasDurable(t *testing.T) {
	for _, sync := range []SyncPolicy{SyncGroup, SyncInterval, SyncNever} {
		for _, closed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v, closed %v", sync, closed), func(t *testing.T) {
				b, d := simulated(t, Options{Sync: sync, SegmentBytes: 600})
				fill(t, b, newWriter(b.Begin()), 4)
				if len(b.segs) != 2 {
					t.Fatalf("%d segments", len(b.segs))
				}
				if h, err := b.header(b.segs[1]); err != nil || h.Durable != (sync != SyncNever) {
					t.Errorf("the second segment says %v of the first, %v", h.Durable, err)
				}
				end(t, b, closed)
				var c cursor
				if p, _, _ := c.read(d); p.durable != (closed || sync == SyncGroup) {
					t.Errorf("the cursor says %v", p.durable)
				}
			})
		}
	}
}

// TestGivenUpIsTorn: the end of a segment that was given up lies once more in the next one. What
// became of it is not damage, also where that one was dropped behind a plan.
func TestGivenUpIsTorn(t *testing.T) {
	for _, dropped := range []bool{false, true} {
		t.Run(fmt.Sprint("dropped: ", dropped), func(t *testing.T) {
			o := Options{SegmentBytes: 600}
			b, d := simulated(t, o)
			w := newWriter(b.Begin())
			fill(t, b, w, 1)
			d.fail = func(op string, _ int, _ string) error {
				if op == "sync" {
					d.fail = nil
					return syscall.EIO
				}
				return nil
			}
			fill(t, b, w, 5)
			if dropped {
				next(t, b, batch.Limits{Batches: 1})
				if err := b.SetPlan(Plan{Output: "archive", First: 1, Last: 10, Key: "k"}); err != nil {
					t.Fatal(err)
				}
				b.w.Lock()
				n, err := b.dropOldest(ReasonFull, nil)
				b.w.Unlock()
				if n == 0 || err != nil {
					t.Fatal(n, err)
				}
			}
			name := d.segments()[0]
			d.flip(name, 8*(segmentHeaderSize+(len(d.names[name].data)-segmentHeaderSize)/2+20)) // the header of its second batch
			b = again(t, d, o)
			b.Begin()
			for {
				run, err := b.Next(ended(t), due)
				if err != nil {
					break
				}
				if err := b.Commit(run.Last(), "hub"); err != nil {
					t.Fatal(err)
				}
			}
			if s := b.Stats(); s.PendingRecords != 0 || s.CorruptBytes != 0 || s.TornBytes == 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestVerifyBelievesTheCursor: what a disk forgot is damage if the cursor says that it was
// durable, and else a write that was cut off.
func TestVerifyBelievesTheCursor(t *testing.T) {
	for _, sync := range []SyncPolicy{SyncGroup, SyncInterval, SyncNever} {
		t.Run(sync.String(), func(t *testing.T) {
			b, d := simulated(t, Options{Sync: sync})
			fill(t, b, newWriter(b.Begin()), 2)
			end(t, b, false)
			d.kill()
			clear(d.names[d.segments()[0]].data)
			dir := t.TempDir()
			plant(t, dir, contents(d))
			r, err := Verify(dir, func(f Finding) { t.Log(f.String()) })
			if err != nil || (r.Damaged > 0) != (sync == SyncGroup) || (r.Torn > 0) != (sync != SyncGroup) {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// TestHandedOutIsDurable: what a killed life left to the kernel, and the next one handed out, is
// there after a power cut.
func TestHandedOutIsDurable(t *testing.T) {
	for outcome := range uint64(30) {
		o := Options{Sync: SyncNever}
		b, d := simulated(t, o)
		fill(t, b, newWriter(b.Begin()), 3)
		b = again(t, d, o)
		b.Begin()
		want := next(t, b, due)
		*d.rng = *rand.New(rand.NewPCG(3, outcome))
		d.reboot()
		b = again(t, d, o)
		b.Begin()
		if got := next(t, b, due); got.First() != want.First() || got.Last() != want.Last() || got.Seal() != want.Seal() {
			t.Fatalf("outcome %d: records %d to %d were handed out, and %d to %d are there", outcome, want.First(), want.Last(), got.First(), got.Last())
		}
	}
}
