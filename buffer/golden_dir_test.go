package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// goldens are directories as version 1 wrote them, in testdata. Beside each lies, as .txt,
// what must be read from it, for ever and on every architecture; test/arch runs these tests
// on others.
var goldens = []struct {
	name  string
	write func(t *testing.T, dir string)
}{
	// Segments of each codec, full ones with a footer and one that was cut off, a cursor with
	// something of everything, files in rejected/.
	{"v1", writeGolden},
	// Segments that came to the disk out of memory, between two that did not.
	{"v1-ring", writeGoldenRing},
}

// goldenBatches are the batches of testdata/v1, in order: what was compressed once is
// taken as it is, whatever compressors write now.
func goldenBatches(t *testing.T) (all []*batch.Batch) {
	t.Helper()
	if !*update {
		const dir = "testdata/v1"
		for _, name := range goldenSegments(t, dir) {
			data, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			for e := range Scan(bytes.NewReader(data), int64(len(data)), name) {
				if e.Kind == KindBatch {
					x := e.Batch
					x.Payload = bytes.Clone(x.Payload)
					all = append(all, &x)
				}
			}
		}
		return all
	}
	next := uint64(1)
	for i := range 9 {
		codec := []batch.Codec{batch.Zstd, batch.Gzip, batch.None}[i/3%3]
		enc, err := batch.NewEncoder(codec, 1)
		if err != nil {
			t.Fatal(err)
		}
		flags := batch.Flags(0)
		if codec == batch.None {
			flags = batch.RawLines
		}
		var o batch.Open
		o.Reset(next, flags)
		for range 5 + i {
			if codec == batch.None {
				o.Lines = fmt.Appendf(o.Lines, "<13>Nov 20 12:00:00 plant-7 app: line %d\n", next)
			} else {
				o.Lines = fmt.Appendf(o.Lines, "{\"message\":\"line %d\",\"host\":{\"name\":\"plant-7\"}}\n", next)
			}
			o.Added(1_800_000_000_000_000_000 + int64(next))
			next++
		}
		made, _, err := enc.Encode(nil, &o, nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, made...)
	}
	return all
}

// goldenSegments are the names of the segments in dir, oldest first; none if it is not there.
func goldenSegments(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, ok := parseName(e.Name()); ok {
			names = append(names, e.Name())
		}
	}
	return names
}

// writeGolden writes what is in testdata/v1 to dir.
func writeGolden(t *testing.T, dir string) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 9))
	o := Options{Agent: "gw-1", SegmentBytes: 700, MaxBytes: 1 << 20, MinFree: -1, SyncGap: -1, random: rng.Uint64, Now: func() time.Time { return time.Unix(1_800_000_100, 0) }}
	all := goldenBatches(t)
	var w batch.Sealer
	store := func(b *Buffer, x *batch.Batch) {
		t.Helper()
		w.Seal(x)
		put(t, b, x)
	}
	b := mustOpen(t, dir, o)
	st := b.Begin()
	w = batch.Sealer{Epoch: st.Epoch, Prev: st.Seal}
	for _, x := range all[:7] {
		store(b, x)
	}
	one := batch.Limits{Batches: 1}
	take(t, b, "hub")
	run := next(t, b, one)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(b.InDoubt("hub", Range{run.First(), run.Last()}))
	check(b.Commit(run.Last(), "archive"))
	run = next(t, b, one)
	check(b.Reject(&run, "nobody takes it"))
	store(b, all[7])
	b.Gaps()
	b.GapsTold(1, all[7].First)
	run = next(t, b, one)
	check(b.Reject(&run, "nor this"))
	run = next(t, b, one)
	check(b.SetPlan(Plan{Output: "archive", First: run.First(), Last: run.Last(), Key: "logs/main/dt=2027-01-15/site=plant/hr=08/gw-1/some.ndjson.gz"}))
	check(b.Close())

	b = mustOpen(t, dir, o)
	if st := b.Begin(); st.Epoch != w.Epoch || st.Seal != w.Prev {
		t.Fatalf("%+v", st)
	}
	store(b, all[8])
	end := all[8].Last()
	for _, x := range all[:2] { // once more, as other records
		x := *x
		x.First = end + 1
		end = x.Last()
		store(b, &x)
	}
	// A power cut in the middle of the last batch. The process goes without a word.
	b.fs.Close()
	b.w.Lock()
	b.activeFile.Close()
	b.w.Unlock()
	names := goldenSegments(t, dir)
	cut := filepath.Join(dir, names[len(names)-1])
	info, err := os.Stat(cut)
	check(err)
	check(os.Truncate(cut, info.Size()-20))
}

// uncreatable is a directory in which no file can be created while yes is set.
type uncreatable struct {
	FS
	yes bool
}

func (u *uncreatable) Create(name string) (File, error) {
	if u.yes {
		return nil, syscall.EIO
	}
	return u.FS.Create(name)
}

// writeGoldenRing writes what is in testdata/v1-ring to dir.
func writeGoldenRing(t *testing.T, dir string) {
	t.Helper()
	now := time.Unix(1_800_000_100, 0)
	o := Options{SegmentBytes: 700, Memory: 8 * 700, MinFree: -1, SyncGap: -1, random: rand.New(rand.NewPCG(1, 11)).Uint64, Now: func() time.Time { return now }}
	b := mustOpen(t, dir, o)
	disk := &uncreatable{FS: b.fs}
	b.fs = disk
	st := b.Begin()
	w := batch.Sealer{Epoch: st.Epoch, Prev: st.Seal}
	all := goldenBatches(t)
	for _, x := range all {
		w.Seal(x)
	}
	put(t, b, all[:3]...) // fills the segment
	disk.yes = true
	if err := b.Append(t.Context(), all[3:7]...); !errors.Is(err, ErrMemory) {
		t.Fatal(err)
	}
	take(t, b, "hub", "hub", "hub", "archive") // the last of them out of memory
	disk.yes = false
	now = now.Add(2 * time.Second)
	put(t, b, all[7])
	if s := b.Stats(); s.Degraded || s.MemoryRecords == 0 {
		t.Fatalf("%+v", s)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// plant writes files to dir with the modes that a buffer gives them.
func plant(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestGoldenDirectoryWritten: the same batches, salts and clock give the same bytes.
func TestGoldenDirectoryWritten(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			dir := t.TempDir()
			g.write(t, dir)
			got := tree(t, dir)
			path := filepath.Join("testdata", g.name)
			if *update {
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
				plant(t, mkdir(t, path), got)
			}
			for name, data := range tree(t, path) {
				if got[name] != data {
					t.Errorf("%s: the format has changed:\ngot  %x\nwant %x", name, got[name], data)
				}
				delete(got, name)
			}
			for name := range got {
				t.Errorf("%s was not there before", name)
			}
		})
	}
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestGoldenDirectoryRead: what is read from the directories that version 1 wrote.
func TestGoldenDirectoryRead(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			dir := t.TempDir()
			plant(t, dir, tree(t, filepath.Join("testdata", g.name)))
			golden(t, g.name+".txt", readGolden(t, dir))
		})
	}
}

// readGolden says what can be read from dir, and delivers all of it.
func readGolden(t *testing.T, dir string) []byte {
	t.Helper()
	var doc strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&doc, format+"\n", args...) }

	for _, sub := range []string{".", rejected} {
		for _, name := range goldenSegments(t, filepath.Join(dir, sub)) {
			data, err := os.ReadFile(filepath.Join(dir, sub, name))
			if err != nil {
				t.Fatal(err)
			}
			say("%s", filepath.Join(sub, name))
			for e := range Scan(bytes.NewReader(data), int64(len(data)), name) {
				x := &e.Batch
				switch e.Kind {
				case KindHeader:
					say("  %d-%d header %+v", e.Off, e.End, e.header)
				case KindBatch:
					say("  %d-%d batch %s codec %s flags %d raw %d times %d-%d synced %d sum %x seal %s", e.Off, e.End, x.Identity("gw-1", 0), x.Codec, x.Flags, x.Raw,
						x.FirstTime, x.LastTime, x.SyncedOff, x.Sum, x.Seal)
					if err := x.Check(); err != nil {
						t.Error(err)
					}
				case KindFooter:
					say("  %d-%d footer %+v", e.Off, e.End, e.Footer)
				case KindDamage:
					say("  %d-%d damage: %v", e.Off, e.End, e.Err)
				}
			}
		}
	}
	p, ok, err := ReadPosition(dir)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if p.Plan == nil {
		p.Plan = &Plan{}
	}
	say("cursor: committed %d next %d plan %+v acked %v hand-overs %v in doubt %v lost %v", p.Committed, p.Next, *p.Plan, p.Acked, p.HandOvers, p.Doubts, p.Lost)
	gap := func(g Gap) {
		say("gap %s epoch %s %d-%d (%d) since %d until %d before %s after %s", g.Reason, g.Epoch, g.First, g.Last, g.Count, nanos(g.Since), nanos(g.Until), g.Before, g.After)
	}
	for _, g := range p.Gaps {
		gap(g)
	}
	r, err := VerifyDeep(dir, func(f Finding) { say("verify: %s", f.String()) })
	if err != nil {
		t.Fatal(err)
	}
	say("verify: %+v", r)

	b := mustOpen(t, dir, Options{MinFree: -1, SyncGap: -1, random: rand.New(rand.NewPCG(1, 10)).Uint64})
	st := b.Begin()
	say("start: epoch %s next %d seal %s unclean %v", st.Epoch, st.Next, st.Seal, st.Unclean)
	if g := st.Previous; g != nil {
		say("previous: epoch %s last %d before %s since %d", g.Epoch, g.Last, g.Before, nanos(g.Since))
	}
	marker := newWriter(st).seal(1, []byte("marker\n"))
	put(t, b, marker)
	for last := uint64(0); last < marker.Last(); {
		run := next(t, b, batch.Limits{})
		last = run.Last()
		say("run %d-%d epoch %s attempt %d key %q before %s", run.First(), last, run.Epoch, run.Attempt, run.Key, run.Before)
		for _, x := range run.Batches {
			lines, err := batch.Decode(nil, x.Payload, x.Codec, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			say("%s", bytes.TrimSuffix(lines, []byte("\n")))
		}
		if err := b.Commit(last, "hub"); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range b.Gaps() {
		gap(g)
	}
	return []byte(doc.String())
}
