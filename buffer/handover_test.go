package buffer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// fill appends n batches of 10 records and 100 bytes.
func fill(t testing.TB, b *Buffer, w *writer, n int) {
	t.Helper()
	for range n {
		put(t, b, w.seal(10, text(100, byte(w.next))))
	}
}

// take hands the next batch over to each of outputs in turn.
func take(t testing.TB, b *Buffer, outputs ...string) {
	t.Helper()
	for _, o := range outputs {
		run := next(t, b, batch.Limits{Batches: 1})
		if err := b.Commit(run.Last(), o); err != nil {
			t.Fatal(err)
		}
	}
}

func TestInDoubt(t *testing.T) {
	b, _ := simulated(t, Options{})
	w := newWriter(b.Begin())
	fill(t, b, w, 6)
	next(t, b, batch.Limits{Batches: 4})
	for name, r := range map[string]Range{"nothing": {}, "backwards": {5, 4}, "not handed out": {31, 41}} {
		if err := b.InDoubt("hub", r); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
	if err := b.InDoubt("", Range{1, 2}); err == nil {
		t.Error("no output: was taken")
	}
	for _, s := range []struct {
		does string
		do   func() error
		want string // the doubts after it
	}{
		{"one", func() error { return b.InDoubt("hub", Range{11, 20}) }, "[{hub {11 20}}]"},
		{"another behind it", func() error { return b.InDoubt("hub", Range{31, 40}) }, "[{hub {11 20}} {hub {31 40}}]"},
		{"another output", func() error { return b.InDoubt("archive", Range{11, 20}) }, "[{hub {11 20}} {hub {31 40}} {archive {11 20}}]"},
		{"the same again", func() error { return b.InDoubt("hub", Range{11, 20}) }, "[{hub {11 20}} {hub {31 40}} {archive {11 20}}]"},
		{"what touches both", func() error { return b.InDoubt("hub", Range{21, 30}) }, "[{hub {11 20}} {hub {31 40}} {archive {11 20}} {hub {21 30}}]"},
		{"what overlaps all", func() error { return b.InDoubt("hub", Range{20, 31}) }, "[{archive {11 20}} {hub {11 40}}]"},
		{"an earlier ack of it", func() error { return b.Commit(10, "hub") }, "[{archive {11 20}} {hub {11 40}}]"},
		{"a part acked by it", func() error { return b.Commit(20, "hub") }, "[{archive {11 20}} {hub {21 40}}]"},
		{"all acked by another", func() error { return b.Commit(40, "archive") }, "[{hub {21 40}}]"},
		{"a later ack of it", func() error { next(t, b, due); return b.Commit(50, "hub") }, "[]"},
	} {
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.does, err)
		}
		if got := fmt.Sprint(b.Doubts()); got != s.want {
			t.Errorf("%s: %s, want %s", s.does, got, s.want)
		}
	}
}

// TestManyDoubts: the oldest of more than 16 goes; doubts survive a kill; they end
// when their segments go.
func TestManyDoubts(t *testing.T) {
	o := Options{SegmentBytes: 1, KeepAcked: -1}
	b, d := simulated(t, o)
	fill(t, b, newWriter(b.Begin()), 20)
	next(t, b, batch.Limits{})
	for i := range uint64(20) {
		if err := b.InDoubt(fmt.Sprint("out", i), Range{10*i + 1, 10*i + 10}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(from int) {
		t.Helper()
		got := b.Doubts()
		if len(got) != 20-from || len(got) > 0 && got[0] != (Doubt{fmt.Sprint("out", from), Range{uint64(10*from + 1), uint64(10*from + 10)}}) {
			t.Fatalf("%d doubts, from %d on: %v", len(got), from, got)
		}
	}
	check(4)
	b = again(t, d, o)
	check(5) // one more: any output may have anything
	take(t, b, slices.Repeat([]string{"other"}, 8)...)
	check(5)
	next(t, b, due)
	b.Maintain(time.Now().Add(time.Minute))
	check(8)
}

func TestInDoubtGivesThePlanUp(t *testing.T) {
	for _, tt := range []struct {
		name   string
		output string
		r      Range
		stays  bool
	}{
		{"the same", "s3", Range{1, 30}, false},
		{"a part", "s3", Range{21, 25}, false},
		{"more", "s3", Range{1, 40}, false},
		{"behind it", "s3", Range{31, 40}, true},
		{"another output", "hub", Range{1, 30}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, d := simulated(t, Options{})
			fill(t, b, newWriter(b.Begin()), 5)
			next(t, b, batch.Limits{Batches: 4})
			plan := Plan{"s3", 1, 30, "key"}
			if err := b.SetPlan(plan); err != nil {
				t.Fatal(err)
			}
			// While it can't be noted, the plan stands.
			d.fail = func(string, int, string) error { return syscall.EIO }
			if err := b.InDoubt(tt.output, tt.r); !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			d.fail = nil
			if p, _ := b.Plan(); p != plan {
				t.Fatalf("after an error the plan is %+v", p)
			}
			if err := b.InDoubt(tt.output, tt.r); err != nil {
				t.Fatal(err)
			}
			d.reboot() // it is durable
			b = again(t, d, Options{})
			if _, ok := b.Plan(); ok != tt.stays {
				t.Errorf("the plan is there: %v", ok)
			}
			if got := b.Doubts(); len(got) != 1 || got[0] != (Doubt{tt.output, tt.r}) {
				t.Errorf("doubts %v", got)
			}
		})
	}
}

func TestAttempt(t *testing.T) {
	b, d := simulated(t, Options{})
	fill(t, b, newWriter(b.Begin()), 4)
	attempts := func(n int) (got []int) {
		t.Helper()
		for range n {
			run := next(t, b, batch.Limits{Batches: 1})
			got = append(got, run.Attempt)
			if err := b.Commit(run.Last(), "out"); err != nil {
				t.Fatal(err)
			}
		}
		return got
	}
	next(t, b, batch.Limits{Batches: 4})
	if err := b.InDoubt("hub", Range{15, 16}); err != nil {
		t.Fatal(err)
	}
	if got := attempts(3); !slices.Equal(got, []int{1, 2, 1}) {
		t.Errorf("with a doubt: %v", got)
	}
	b = again(t, d, Options{}) // killed: what it had sent is not known
	w := newWriter(b.Begin())
	fill(t, b, w, 3)
	if got := attempts(2); !slices.Equal(got, []int{2, 2}) {
		t.Errorf("after a kill: %v", got)
	}
	if got := b.Doubts(); len(got) != 1 || got[0].Output != "hub" {
		t.Errorf("doubts %v", got)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = again(t, d, Options{})
	if got := attempts(5); !slices.Equal(got, []int{2, 2, 1, 1, 1}) {
		t.Errorf("after a kill and an orderly restart: %v", got)
	}
}

func TestTaken(t *testing.T) {
	o := Options{SegmentBytes: 1, KeepAcked: time.Minute}
	b, d := simulated(t, o)
	w := newWriter(b.Begin())
	check := func(output, want string, acked uint64) {
		t.Helper()
		if got := fmt.Sprint(b.Taken(output)); got != want {
			t.Errorf("%s took %s, want %s", output, got, want)
		}
		if got := b.Acked(output); got != acked {
			t.Errorf("%s acknowledged %d, want %d", output, got, acked)
		}
	}
	check("hub", "[]", 0)
	fill(t, b, w, 6)
	take(t, b, "hub", "hub", "archive", "hub", "archive")
	check("hub", "[{1 20} {31 40}]", 40)
	check("archive", "[{21 30} {41 50}]", 50)
	check("", "[]", 0)
	w.next += 100 // numbers that are left out
	fill(t, b, w, 2)
	take(t, b, "archive", "archive")
	check("archive", "[{21 30} {41 60} {161 170}]", 170)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = again(t, d, o)
	check("hub", "[{1 20} {31 40}]", 40)
	check("archive", "[{21 30} {41 60} {161 170}]", 170)
	if !b.Knows(b.Begin().Epoch) || b.Knows(b.Begin().Epoch+1) {
		t.Error("which epoch is known")
	}
	now := time.Now()
	for b.segs[0].first < 31 { // time goes by
		b.segs[0].doneAt = now.Add(-time.Hour).UnixNano()
		b.Maintain(now)
	}
	check("hub", "[{31 40}]", 40)

	// To and fro, more often than can be remembered: what is claimed is true.
	w = newWriter(b.Begin())
	fill(t, b, w, 100)
	want := map[uint64]string{}
	for i := range 101 {
		to := []string{"hub", "archive"}[i%2]
		run := next(t, b, batch.Limits{Batches: 1})
		want[run.First()] = to
		if err := b.Commit(run.Last(), to); err != nil {
			t.Fatal(err)
		}
	}
	sum := 0
	for _, output := range []string{"hub", "archive"} {
		for _, r := range b.Taken(output) {
			if want[r.First] != output || r.Last != r.First+9 {
				t.Errorf("%s is said to have %v", output, r)
			}
			sum++
		}
	}
	if h, a := b.Taken("hub"), b.Taken("archive"); b.TakenSince() != min(h[0].First, a[0].First) {
		t.Errorf("known from %d on, but the first are %v and %v", b.TakenSince(), h[0], a[0])
	}
	if sum != maxHanded-1 {
		t.Errorf("%d hand-overs are known, want %d", sum, maxHanded-1)
	}
}

// TestTakenWithoutCursor: what lies before the acked floor was taken by nobody
// knows whom.
func TestTakenWithoutCursor(t *testing.T) {
	o := Options{SegmentBytes: 1}
	b, d := simulated(t, o)
	w := newWriter(b.Begin())
	fill(t, b, w, 3)
	take(t, b, "hub", "hub")
	fill(t, b, w, 1) // its segment's header has the floor
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(cursorFile); err != nil {
		t.Fatal(err)
	}
	b = again(t, d, o)
	take(t, b, "archive")
	if h, a := b.Taken("hub"), b.Taken("archive"); len(h) != 0 || fmt.Sprint(a) != "[{21 30}]" {
		t.Fatalf("hub %v, archive %v", h, a)
	}
}

// readAll reads r in runs of l, and checks that they are runs.
func readAll(t testing.TB, b *Buffer, r Range, l batch.Limits) (all []batch.Batch) {
	t.Helper()
	for from := r.First; ; {
		run, err := b.Read(t.Context(), Range{from, r.Last}, l)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		before := run.Before
		for i := range run.Batches {
			x := run.Batches[i]
			if err := x.Check(); err != nil || x.Chain(before, run.Epoch) != x.Seal {
				t.Fatalf("batch %d: %v, or its seal does not join", x.First, err)
			}
			before = x.Seal
			all = append(all, x)
		}
		if from = run.Last() + 1; from > r.Last {
			return all
		}
	}
}

func TestRead(t *testing.T) {
	o := Options{SegmentBytes: 1000, KeepAcked: time.Hour}
	b, d := simulated(t, o)
	w := newWriter(b.Begin())
	fill(t, b, w, 20)
	take(t, b, slices.Repeat([]string{"hub"}, 12)...)
	held := next(t, b, batch.Limits{Batches: 2})
	keep := bytes.Clone(held.Batches[1].Payload)
	for _, tt := range []struct {
		name string
		r    Range
		l    batch.Limits
		want string // first numbers of the batches of the first run; then of all
	}{
		{"one", Range{31, 40}, batch.Limits{}, "31 | 31"},
		{"inside of one", Range{35, 36}, batch.Limits{}, "31 | 31"},
		{"over a border", Range{40, 41}, batch.Limits{}, "31 41 | 31 41"},
		{"delivered and not", Range{111, 140}, batch.Limits{}, "111 121 131 | 111 121 131"},
		{"bytes", Range{1, 60}, batch.Limits{Bytes: 250}, "1 11 | 1 11 21 31 41 51"},
		{"batches", Range{1, 60}, batch.Limits{Batches: 4}, "1 11 21 31 | 1 11 21 31 41 51"},
		{"alone", Range{1, 30}, batch.Limits{BatchBytes: 10}, "1 | 1 11 21"},
		{"to the end", Range{185, 1 << 62}, batch.Limits{}, "181 191 | 181 191"},
		{"behind the end", Range{201, 300}, batch.Limits{}, " | "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			run, err := b.Read(t.Context(), tt.r, tt.l)
			if err != nil && err != io.EOF {
				t.Fatal(err)
			}
			for i := range run.Batches {
				got = append(got, fmt.Sprint(run.Batches[i].First))
			}
			got = append(got, "|")
			for _, x := range readAll(t, b, tt.r, tt.l) {
				got = append(got, fmt.Sprint(x.First))
			}
			if got := strings.Join(got, " "); strings.TrimSpace(got) != strings.TrimSpace(tt.want) {
				t.Errorf("%s, want %s", got, tt.want)
			}
			if err == nil && (run.Agent != "gw-1" || run.Epoch != w.Epoch || run.Attempt != 2 && run.First() <= 120) {
				t.Errorf("%+v", run)
			}
		})
	}
	if !bytes.Equal(keep, held.Batches[1].Payload) {
		t.Error("Read changed what Next had handed out")
	}
	for name, r := range map[string]Range{"nothing": {}, "backwards": {5, 4}} {
		if _, err := b.Read(t.Context(), r, due); err == nil || err == io.EOF {
			t.Errorf("%s: %v", name, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Read(ended, Range{1, 10}, due); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}

	// Segments that go, and a damaged batch, are stepped over; another epoch ends a run.
	if err := b.Commit(held.Last(), "hub"); err != nil {
		t.Fatal(err)
	}
	first := d.segments()[0]
	if err := d.Remove(first); err != nil {
		t.Fatal(err)
	}
	x := readAll(t, b, Range{1, 60}, batch.Limits{})[0]
	if x.First != b.segs[1].first {
		t.Errorf("behind a segment that is gone: %d", x.First)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(t.Context(), Range{1, 10}, due); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	o.Agent = "gw-2"
	d.kill()
	o.FS, o.SyncGap, o.random = d, -1, d.rng.Uint64
	b, err := Open("sim", o)
	if err != nil {
		t.Fatal(err)
	}
	old := w.Epoch
	fill(t, b, newWriter(b.Begin()), 2)
	run, err := b.Read(t.Context(), Range{181, 220}, batch.Limits{})
	if err != nil || run.Last() != 200 || run.Epoch != old || !b.Knows(old) {
		t.Fatalf("over the end of an epoch: %v, %+v", err, run)
	}
	if run, err = b.Read(t.Context(), Range{201, 220}, batch.Limits{}); err != nil || run.First() != 201 || run.Agent != "gw-2" || run.Before != (batch.Seal{}) {
		t.Fatalf("the next epoch: %v, %+v", err, run)
	}
}

func TestReject(t *testing.T) {
	o := Options{RejectedBytes: 2000}
	b, d := simulated(t, o)
	w := newWriter(b.Begin())
	fill(t, b, w, 8)
	take(t, b, "hub")
	next(t, b, batch.Limits{}) // so that what lies behind the run is known
	run := next(t, b, batch.Limits{Batches: 2})
	bad := run
	bad.Batches = bad.Batches[1:]
	if err := b.Reject(&bad, "no"); !errors.Is(err, ErrOrder) {
		t.Fatalf("not at the head: %v", err)
	}
	d.fail = func(op string, _ int, name string) error {
		if op == "sync" && path.Dir(name) == rejected {
			return syscall.EIO
		}
		return nil
	}
	if err := b.Reject(&run, "no"); !errors.Is(err, syscall.EIO) || b.Stats().Committed != 10 || len(b.Gaps()) != 0 {
		t.Fatalf("%v, %+v", err, b.Stats())
	}
	d.fail = nil
	for range 2 {
		if err := b.Reject(&run, "nobody takes it"); err != nil {
			t.Fatal(err)
		}
	}
	g := b.Gaps()
	if len(g) != 1 || g[0].Reason != ReasonRejected || g[0].First != 11 || g[0].Last != 30 || g[0].Count != 20 || g[0].Detail != "nobody takes it" ||
		g[0].Before != run.Before || g[0].After == (batch.Seal{}) || g[0].Since.IsZero() || g[0].Until.IsZero() {
		t.Fatalf("%+v", g)
	}
	if s := b.Stats(); s.Committed != 30 || s.Lost[ReasonRejected] != 20 {
		t.Fatalf("%+v", s)
	}
	seal := run.Seal()
	if next := next(t, b, due); next.First() != 31 || next.Before != seal {
		t.Fatalf("behind it comes %d", next.First())
	}
	take(t, b, "hub")
	if got := fmt.Sprint(b.Taken("hub")); got != "[{1 10} {31 40}]" {
		t.Errorf("hub took %s", got)
	}
	kept := func() (n int) {
		files, err := d.List(rejected)
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	if kept() != 1 {
		t.Fatalf("%d files", kept())
	}
	for range 4 {
		run := next(t, b, batch.Limits{Batches: 1})
		if err := b.Reject(&run, "nor this"); err != nil {
			t.Fatal(err)
		}
	}
	files, _ := d.List(rejected)
	if s, ok := parseName(files[0].Name); len(files) != 4 || !ok || s.first != 41 {
		t.Fatalf("of five files that are too large together there remain %v", files)
	}
	if s := b.Stats(); s.PendingRecords != 0 {
		t.Fatalf("%+v", s)
	}
}

// TestRejectedOnDisk: the tools read rejected/ as they read a buffer, holes between
// its files are none, and what is damaged there is damage.
func TestRejectedOnDisk(t *testing.T) {
	dir := t.TempDir()
	b := mustOpen(t, dir, Options{SyncGap: -1})
	fill(t, b, newWriter(b.Begin()), 9)
	want := map[uint64][]byte{}
	for i := range 8 {
		run := next(t, b, batch.Limits{Batches: 1 + i%2})
		var err error
		if i%3 == 0 {
			err = b.Commit(run.Last(), "hub")
		} else {
			for _, x := range run.Batches {
				want[x.First] = bytes.Clone(x.Payload)
			}
			err = b.Reject(&run, "nobody takes it")
		}
		if err != nil {
			t.Fatal(err)
		}
		if run.Last() == 90 {
			break
		}
	}
	aside := filepath.Join(dir, rejected)
	if m := mode(t, aside); m != 0o700 {
		t.Errorf("%s has mode %v", aside, m)
	}
	files, err := os.ReadDir(aside)
	if err != nil || len(files) != 4 {
		t.Fatalf("%v, %v", files, err)
	}
	if m := mode(t, filepath.Join(aside, files[0].Name())); m != 0o600 {
		t.Errorf("%s has mode %v", files[0].Name(), m)
	}
	report, err := Verify(aside, func(f Finding) { t.Error(f.String()) })
	if err != nil || report.Bad != 0 || report.Lost != 0 || report.Batches != uint64(len(want)) {
		t.Errorf("%+v, %v", report, err)
	}
	err = Cat(aside, func(x *batch.Batch, agent string, epoch batch.Epoch, before batch.Seal) error {
		if agent != "gw-1" || epoch != b.Begin().Epoch || x.Chain(before, epoch) != x.Seal || !bytes.Equal(x.Payload, want[x.First]) {
			t.Errorf("batch %d is not as it was", x.First)
		}
		delete(want, x.First)
		return nil
	})
	if err != nil || len(want) > 0 {
		t.Errorf("%v, and %d batches are not there", err, len(want))
	}
	name := filepath.Join(aside, files[1].Name())
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-footerSize-10] ^= 1
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if report, err := Verify(aside, nil); err != nil || report.Bad == 0 || report.Damaged == 0 {
		t.Errorf("a damaged file: %+v, %v", report, err)
	}
	if l, err := Segments(dir); err != nil || len(l.Foreign) != 0 {
		t.Errorf("%+v, %v", l, err)
	}
}

// TestRejectTwice: a run that was kept aside and came again is there once.
func TestRejectTwice(t *testing.T) {
	b, d := simulated(t, Options{})
	fill(t, b, newWriter(b.Begin()), 1)
	for range 3 { // each life dies before it saves its position
		run := next(t, b, due)
		if err := b.Reject(&run, "nobody takes it"); err != nil {
			t.Fatal(err)
		}
		if files, _ := d.List(rejected); len(files) != 1 {
			t.Fatalf("%v", files)
		}
		b = again(t, d, Options{})
	}
}

// TestRejectLess: a shorter run does not take the place of a longer one that was rejected
// before, of which the line may have nothing any more.
func TestRejectLess(t *testing.T) {
	b, d := simulated(t, Options{})
	fill(t, b, newWriter(b.Begin()), 2)
	for _, n := range []int{2, 1, 2} {
		run := next(t, b, batch.Limits{Batches: n})
		if err := b.Reject(&run, "nobody takes it"); err != nil {
			t.Fatal(err)
		}
		most := int64(0)
		files, _ := d.List(rejected)
		for _, f := range files {
			most = max(most, f.Size)
		}
		if want := segmentHeaderSize + 2*batch.HeaderSize + footerSize; most <= int64(want) {
			t.Fatalf("after %d batches: %v", n, files)
		}
		b = again(t, d, Options{})
	}
	if files, _ := d.List(rejected); len(files) != 1 {
		t.Fatalf("%v", files)
	}
}

// TestRejectLimits: nothing is kept if the limit says so, and a full disk is made
// room on by what is delivered.
func TestRejectLimits(t *testing.T) {
	for _, tt := range []struct {
		name      string
		limit     int64
		room      int64 // of the disk
		delivered int   // segments
		err       error
		files     int
	}{
		{name: "default", room: -1, files: 1},
		{name: "none", limit: -1, room: -1},
		{name: "too small", limit: 400, room: -1},
		{name: "disk full", room: 200, err: ErrFull},
		{name: "disk full, a segment can go", room: 300, delivered: 2, files: 1},
		{name: "disk full, and none is wanted", room: 0, limit: -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, d := simulated(t, Options{RejectedBytes: tt.limit, SegmentBytes: 1, MinFree: -1})
			w := newWriter(b.Begin())
			fill(t, b, w, 4)
			take(t, b, slices.Repeat([]string{"hub"}, tt.delivered)...)
			if _, err := b.Next(t.Context(), due); err != nil {
				t.Fatal(err)
			}
			if err := b.InDoubt("hub", Range{1, 1}); err != nil { // so that the cursor has its place
				t.Fatal(err)
			}
			d.room = tt.room
			run := next(t, b, batch.Limits{Batches: 1})
			err := b.Reject(&run, "nobody takes it")
			files, _ := d.List(rejected)
			if !errors.Is(err, tt.err) || len(files) != tt.files {
				t.Fatalf("%v, and %d files are there", err, len(files))
			}
			if got := b.Stats().Committed; (got == run.Last()) != (tt.err == nil) {
				t.Fatalf("the position is %d", got)
			}
		})
	}
}

// TestReadBeside reads again while others append, the oldest is dropped and
// delivered segments go.
func TestReadBeside(t *testing.T) {
	b := mustOpen(t, t.TempDir(), Options{SyncGap: -1, Sync: SyncInterval, MaxUnsynced: 8 << 10, SegmentBytes: 4 << 10, MaxBytes: 64 << 10, KeepAcked: time.Millisecond, Full: DropOldest})
	const n = 3000
	appended := make(chan struct{})
	go func() {
		defer close(appended)
		w := newWriter(b.Begin())
		for i := range n {
			if err := b.Append(t.Context(), w.seal(10, text(50+i%700, byte(i)))); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	maintained := make(chan struct{})
	go func() {
		defer close(maintained)
		for {
			b.Maintain(time.Now().Add(time.Second))
			select {
			case <-appended:
				return
			default:
				runtime.Gosched()
			}
		}
	}()
	seen := map[uint64]batch.Batch{}
	reads, ended := 0, false
	for i := uint64(0); ; i++ {
		if !ended {
			select {
			case <-appended:
				<-maintained
				ended = true
				b.Maintain(time.Now().Add(time.Hour)) // the last become durable
			default:
			}
		}
		done, cancel := context.WithCancel(t.Context())
		cancel()
		run, err := b.Next(done, batch.Limits{Batches: 4})
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if err != nil && ended {
			break
		}
		for _, x := range run.Batches {
			x.Payload = bytes.Clone(x.Payload)
			seen[x.First] = x
		}
		for _, output := range []string{"hub", "archive"} {
			for _, r := range b.Taken(output) {
				for _, x := range readAll(t, b, Range{r.First + i%10, r.Last + 10}, batch.Limits{Bytes: 3000}) {
					if was, ok := seen[x.First]; ok && (was.Header != x.Header || !bytes.Equal(was.Payload, x.Payload)) {
						t.Fatalf("batch %d is read otherwise than it was handed out", x.First)
					}
					reads++
				}
			}
		}
		if err != nil {
			continue
		}
		for _, x := range run.Batches { // Read left them alone
			if !bytes.Equal(x.Payload, seen[x.First].Payload) {
				t.Fatalf("batch %d changed while it was being sent", x.First)
			}
		}
		switch {
		case i%7 == 3:
			err = b.Reject(&run, "nobody takes it")
		case i%7 == 5:
			err = b.InDoubt("hub", Range{run.First(), run.Last()})
		default:
			err = b.Commit(run.Last(), []string{"hub", "archive"}[i/5%2])
		}
		if err != nil && !errors.Is(err, ErrOrder) { // a part of the run may have been dropped meanwhile
			t.Fatal(err)
		}
	}
	if reads < 100 || len(seen) < 100 {
		t.Errorf("only %d batches were handed out, and %d read", len(seen), reads)
	}
}

// TestFloor: without a cursor, delivery begins again at the acked floor of the newest
// segment header, which a hole that is not told yet holds back.
func TestFloor(t *testing.T) {
	for _, told := range []bool{false, true} {
		t.Run(fmt.Sprintf("told %v", told), func(t *testing.T) {
			o := Options{SegmentBytes: 1}
			b, d := simulated(t, o)
			w := newWriter(b.Begin())
			fill(t, b, w, 3)
			take(t, b, "hub")
			run := next(t, b, batch.Limits{Batches: 1})
			if err := b.Reject(&run, "nobody takes it"); err != nil {
				t.Fatal(err)
			}
			take(t, b, "hub")
			if told {
				fill(t, b, w, 1)
				b.GapsTold(1, b.Stats().Next-1)
			}
			fill(t, b, w, 1)
			if err := d.Remove(cursorFile); err != nil {
				t.Fatal(err)
			}
			b = again(t, d, o)
			want := uint64(11)
			if told {
				want = 31
			}
			if run := next(t, b, due); run.First() != want {
				t.Fatalf("delivery begins again with %d, want %d", run.First(), want)
			}
		})
	}
}
