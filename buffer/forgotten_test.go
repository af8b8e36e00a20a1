package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// Tests of directories of which a disk, or a person, forgot a part.

// TestAllSegmentsGone: what the cursor says was stored is told once, in its own epoch. The
// numbers of the epoch that begins then are not those of the one before.
func TestAllSegmentsGone(t *testing.T) {
	for _, closed := range []bool{true, false} {
		t.Run(fmt.Sprintf("closed %v", closed), func(t *testing.T) {
			o := Options{SegmentBytes: 1500, KeepAcked: -1}
			b, d := simulated(t, o)
			before := b.Begin()
			w := newWriter(before)
			for i := range 12 {
				put(t, b, w.seal(10, text(400, byte(i))))
			}
			drain(t, b, 1)
			end(t, b, closed)
			d.kill()
			for _, name := range d.segments() {
				d.set(name, nil)
			}
			b = again(t, d, o)
			put(t, b, newWriter(b.Begin()).seal(10, text(400, 'x')))
			if run := next(t, b, due); run.First() != 121 {
				t.Errorf("record %d comes", run.First())
			}
			gaps := b.Gaps()
			if len(gaps) != 1 || gaps[0].Epoch != before.Epoch || gaps[0].First != 11 || gaps[0].Count != 110 || gaps[0].Reason != ReasonMissing {
				t.Errorf("%+v", gaps)
			}
		})
	}
}

// end closes b, or only saves its cursor.
func end(t *testing.T, b *Buffer, closed bool) {
	t.Helper()
	err := error(nil)
	if closed {
		err = b.Close()
	} else {
		b.w.Lock()
		err = b.saveCursor()
		b.w.Unlock()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestNewestSlotForgotten: where the disk forgot the newest slot of the cursor, the older one
// does not prove that what was delivered and removed since is missing.
func TestNewestSlotForgotten(t *testing.T) {
	for _, closed := range []bool{true, false} {
		t.Run(fmt.Sprintf("closed %v", closed), func(t *testing.T) {
			o := Options{SegmentBytes: 1500, KeepAcked: -1}
			b, d := simulated(t, o)
			w := newWriter(b.Begin())
			for i := range 12 {
				put(t, b, w.seal(10, text(400, byte(i))))
			}
			drain(t, b, 12)
			b.Maintain(b.o.Now().Add(time.Hour))
			if closed {
				end(t, b, true)
			}
			d.kill()
			data, at := bytes.Clone(d.names[cursorFile].data), 0
			if newest(data) == le.Uint64(data[slotSize+16:]) {
				at = slotSize
			}
			clear(data[at : at+slotSize])
			d.put(cursorFile, data)
			b = again(t, d, o)
			st := b.Begin()
			if st.Previous == nil || st.Next != 121 {
				t.Errorf("%+v", st)
			}
			for {
				run, err := b.Next(ended(t), batch.Limits{})
				if err != nil {
					break
				}
				if err := b.Commit(run.Last(), "hub"); err != nil {
					t.Fatal(err)
				}
			}
			if gaps := b.Gaps(); len(gaps) > 0 {
				t.Errorf("all was delivered, and told is %+v", gaps)
			}
		})
	}
}

// TestFirstSave: from the first save on both slots are valid, so that an empty one has been
// forgotten.
func TestFirstSave(t *testing.T) {
	b, d := simulated(t, Options{})
	b.Begin()
	d.kill()
	var c cursor
	if p, ok, certain := c.read(d); !ok || !certain || p.generation != 2 {
		t.Errorf("generation %d, %v, certain %v", p.generation, ok, certain)
	}
	for at := 0; at < 2*slotSize; at += slotSize {
		data := bytes.Clone(d.names[cursorFile].data)
		clear(data[at : at+slotSize])
		d.put(cursorFile, data)
		if _, ok, certain := c.read(d); ok != (at == 0) || certain {
			t.Errorf("the slot at %d is empty: %v, certain %v", at, ok, certain)
		}
	}
}

// TestManyZeroedSegments: however many segments at the end of an epoch a disk forgot, all of
// them are told.
func TestManyZeroedSegments(t *testing.T) {
	for n := 1; n <= 8; n++ {
		o := Options{SegmentBytes: 1500, KeepAcked: -1}
		b, d := simulated(t, o)
		w := newWriter(b.Begin())
		for i := range 24 {
			put(t, b, w.seal(10, text(400, byte(i))))
		}
		end(t, b, true)
		d.kill()
		segs := d.segments()
		if len(segs) != 8 {
			t.Fatalf("%d segments", len(segs))
		}
		for _, s := range segs[len(segs)-n:] {
			d.put(s, make([]byte, len(d.names[s].data)))
		}
		b = again(t, d, o)
		put(t, b, newWriter(b.Begin()).seal(10, text(400, 'x')))
		var come, told uint64
		for {
			run, err := b.Next(ended(t), batch.Limits{})
			if err != nil {
				break
			}
			come += run.Count()
			if err := b.Commit(run.Last(), "hub"); err != nil {
				t.Fatal(err)
			}
		}
		for _, g := range b.Gaps() {
			told += g.Count
		}
		if come+told != 250 {
			t.Errorf("%d zeroed: %d records came and %d were told, of 250: %+v", n, come, told, b.Gaps())
		}
	}
}

// TestPlanThatIsDamagedIsInDoubt: a plan that can't be repeated may have been carried out.
func TestPlanThatIsDamagedIsInDoubt(t *testing.T) {
	b, d := simulated(t, Options{SegmentBytes: 1500, KeepAcked: -1})
	w := newWriter(b.Begin())
	for i := range 12 {
		put(t, b, w.seal(10, text(400, byte(i))))
	}
	run := next(t, b, batch.Limits{Batches: 6})
	p := Plan{Output: "s3", First: run.First(), Last: run.Last(), Key: "k"}
	if err := b.SetPlan(p); err != nil {
		t.Fatal(err)
	}
	name := d.segments()[1]
	data := bytes.Clone(d.names[name].data)
	data[segmentHeaderSize+batch.HeaderSize+20] ^= 1
	d.put(name, data)
	run = next(t, b, batch.Limits{Batches: 6})
	if got := b.Doubts(); run.Key != "" || run.Attempt != 2 || len(got) != 1 || got[0] != (Doubt{"s3", Range{p.First, p.Last}}) {
		t.Errorf("key %q, attempt %d, doubts %+v", run.Key, run.Attempt, got)
	}
}

// TestNeverIsTorn: under SyncNever neither a footer nor the segment behind proves that anything was
// durable, unless the life ended in order.
func TestNeverIsTorn(t *testing.T) {
	for closed, want := range map[bool]string{false: ReasonTorn, true: ReasonDamaged} {
		t.Run(want, func(t *testing.T) {
			o := Options{SegmentBytes: 1500, KeepAcked: -1, Sync: SyncNever}
			b, d := simulated(t, o)
			w := newWriter(b.Begin())
			for i := range 12 {
				put(t, b, w.seal(10, text(400, byte(i))))
			}
			end(t, b, closed)
			d.kill()
			name := d.segments()[1]
			data := bytes.Clone(d.names[name].data)
			clear(data[segmentHeaderSize+batch.HeaderSize+100:][:100]) // its footer is intact
			d.put(name, data)
			b = again(t, d, o)
			b.Begin()
			drain(t, b, 11)
			if g := b.Gaps(); len(g) != 1 || g[0].Reason != want || g[0].Count != 10 {
				t.Errorf("%+v", g)
			}
		})
	}
}

// TestFilesRemovedBeside: somebody removes the segments of a running agent. What is stored later
// is delivered, what is gone is told, and the bytes are counted right.
func TestFilesRemovedBeside(t *testing.T) {
	for _, sync := range []SyncPolicy{SyncGroup, SyncInterval, SyncNever} {
		t.Run(sync.String(), func(t *testing.T) {
			o := Options{SegmentBytes: 1 << 20, KeepAcked: -1, Sync: sync, Now: time.Now}
			b, d := simulated(t, o)
			w := newWriter(b.Begin())
			for i := range 20 {
				put(t, b, w.seal(10, text(400, byte(i))))
				b.Maintain(time.Now().Add(time.Hour))
				for _, s := range d.segments() {
					d.set(s, nil)
				}
				if run, err := b.Next(ended(t), batch.Limits{}); err == nil {
					t.Fatalf("record %d comes out of nothing", run.First())
				}
				if oldest := b.Oldest(); !oldest.IsZero() {
					t.Fatal(oldest)
				}
			}
			put(t, b, w.seal(10, text(400, 'x')))
			b.Maintain(time.Now().Add(time.Hour))
			run := next(t, b, batch.Limits{})
			if run.First() != 201 {
				t.Errorf("record %d comes", run.First())
			}
			if g := b.Gaps(); len(g) != 1 || g[0].First != 1 || g[0].Count != 200 || g[0].Reason != ReasonMissing {
				t.Errorf("%+v", g)
			}
			if s := b.Stats(); s.Bytes < 400 || s.Bytes > 1000 || s.Segments != 1 || s.PendingRecords != 10 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestNoDescriptor: that the process can open no more files for a while says nothing of a segment.
func TestNoDescriptor(t *testing.T) {
	b, d := simulated(t, Options{SegmentBytes: 1500, KeepAcked: time.Hour})
	w := newWriter(b.Begin())
	for i := range 12 {
		put(t, b, w.seal(10, text(400, byte(i))))
	}
	seg := d.segments()[1]
	drain(t, b, 3)
	for _, errno := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		d.fail = func(op string, _ int, name string) error {
			if op == "open" && name == seg {
				return errno
			}
			return nil
		}
		for range 6 {
			if run, err := b.Next(ended(t), batch.Limits{Batches: 3}); !errors.Is(err, errno) {
				t.Fatalf("record %d, %v", run.First(), err)
			}
			if run, err := b.Read(t.Context(), Range{31, 60}, batch.Limits{}); !errors.Is(err, errno) {
				t.Fatalf("record %d is read again, %v", run.First(), err)
			}
		}
	}
	d.fail = nil
	if run := next(t, b, batch.Limits{Batches: 3}); run.First() != 31 || len(b.Gaps()) > 0 {
		t.Errorf("delivery goes on at %d; told: %+v", run.First(), b.Gaps())
	}
}

// TestForgottenAroundADrop: what was dropped behind a plan is not told again with what a disk
// forgot before and behind it.
func TestForgottenAroundADrop(t *testing.T) {
	o := Options{SegmentBytes: 1500, KeepAcked: -1, Full: DropOldest, MaxBytes: 8000}
	b, d := simulated(t, o)
	w := newWriter(b.Begin())
	put(t, b, w.seal(10, text(1400, 'a')))
	run := next(t, b, due)
	if err := b.SetPlan(Plan{Output: "s3", First: run.First(), Last: run.Last(), Key: "k"}); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		put(t, b, w.seal(10, text(1400, byte(i))))
	}
	dropped := b.Gaps()
	if len(dropped) != 1 || dropped[0].First != 11 || dropped[0].Last > 70 {
		t.Fatalf("%+v", dropped)
	}
	end(t, b, false)
	for _, name := range d.segments() {
		d.set(name, nil)
	}
	b = again(t, d, o)
	b.Begin()
	told := map[uint64]int{}
	for _, g := range b.Gaps() {
		if g.Reason == ReasonMissing && g.First != 1 && g.First != dropped[0].Last+1 {
			t.Errorf("%+v", g)
		}
		for n := g.First; n <= g.Last; n++ {
			told[n]++
		}
	}
	for n := uint64(1); n <= 90; n++ {
		if told[n] != 1 {
			t.Fatalf("record %d is told %d times: %+v", n, told[n], b.Gaps())
		}
	}
}

// TestUnsyncedOfARemovedFile: what SyncInterval had not synced when somebody removed the file is
// written to the next.
func TestUnsyncedOfARemovedFile(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	b, d := simulated(t, Options{Sync: SyncInterval, Now: func() time.Time { return now }})
	w := newWriter(b.Begin())
	put(t, b, w.seal(2, text(100, 1)))
	b.Maintain(now.Add(time.Hour))
	put(t, b, w.seal(2, text(100, 2)))
	for _, s := range d.segments() {
		d.set(s, nil)
	}
	if run, err := b.Next(ended(t), batch.Limits{}); err == nil {
		t.Fatalf("record %d comes", run.First())
	}
	now = now.Add(time.Hour)
	b.Maintain(now)
	if run := next(t, b, due); run.First() != 3 {
		t.Errorf("record %d comes: %+v", run.First(), b.Gaps())
	}
}

// TestJudgeIsLinear: where nothing says what was durable, that is found out once, not for each
// of the segments that are damaged.
func TestJudgeIsLinear(t *testing.T) {
	const n = 400
	b, d := simulated(t, Options{SegmentBytes: 1, KeepAcked: -1, Sync: SyncNever})
	w := newWriter(b.Begin())
	for i := range n {
		put(t, b, w.seal(1, text(100, byte(i))))
	}
	end(t, b, true)
	d.kill()
	for _, s := range d.segments() {
		d.put(s, make([]byte, len(d.names[s].data)))
	}
	b = again(t, d, Options{SegmentBytes: 1, KeepAcked: -1, Sync: SyncNever})
	b.Begin()
	before := d.done["open"]
	if run, err := b.Next(ended(t), batch.Limits{}); err == nil {
		t.Fatalf("record %d comes", run.First())
	}
	if opens := d.done["open"] - before; opens > 5*n {
		t.Errorf("%d files were opened for %d damaged segments", opens, n)
	}
}

// TestMemoryIsNotVouchedFor: while records are in memory only, the cursor does not say that all
// before its number is durable; what a cut takes is torn.
func TestMemoryIsNotVouchedFor(t *testing.T) {
	b, d := simulated(t, Options{Memory: 64 << 10, SegmentBytes: 8 << 10})
	w := newWriter(b.Begin())
	put(t, b, w.seal(2, text(1000, 1)))
	d.fail = func(op string, _ int, name string) error {
		if op == "sync" && name != cursorFile || op == "create" {
			return syscall.EIO
		}
		return nil
	}
	for i := range 3 {
		if err := b.Append(t.Context(), w.seal(2, text(1000, byte(2+i)))); !errors.Is(err, ErrMemory) {
			t.Fatal(err)
		}
	}
	end(t, b, false)
	d.kill()
	d.fail = nil
	name := d.segments()[0]
	d.put(name, bytes.Clone(d.names[name].data[:len(d.names[name].data)-50]))
	dir := t.TempDir()
	for name, n := range d.names {
		if err := os.WriteFile(filepath.Join(dir, name), n.data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	torn := 0
	if _, err := Verify(dir, func(f Finding) {
		switch f.What {
		case "torn":
			torn++
		case "damaged":
			t.Error(f.String())
		}
	}); err != nil || torn != 1 {
		t.Errorf("%d torn, %v", torn, err)
	}
}

// TestSubDirectoryThatIsALink: a symbolic link in the place of rejected/ is not followed, and
// does not keep what nobody takes at the head of the line.
func TestSubDirectoryThatIsALink(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(dir, rejected)); err != nil {
		t.Fatal(err)
	}
	b := mustOpen(t, dir, Options{SyncGap: -1, SegmentBytes: 1, KeepAcked: -1})
	fill(t, b, newWriter(b.Begin()), 2)
	run := next(t, b, batch.Limits{Batches: 1})
	if err := b.Reject(&run, "nobody takes it"); err != nil {
		t.Error(err)
	}
	if files, err := os.ReadDir(elsewhere); err != nil || len(files) > 0 {
		t.Error(files, err)
	}
}
