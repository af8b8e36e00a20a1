package buffer

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"spillway/buffer/batch"
)

// tree is a directory as name and content.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		files[rel] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// readable is every batch that Cat gives, by identity, with seal and payload.
func readable(t testing.TB, dir string) (ids []string) {
	t.Helper()
	err := Cat(dir, func(b *batch.Batch, agent string, e batch.Epoch, _ batch.Seal) error {
		ids = append(ids, fmt.Sprintf("%s %s %x", b.Identity(agent, e), b.Seal, b.Payload))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// worn makes a real directory of several lives and epochs, with delivered, pending and
// given-up segments in it.
func worn(t testing.TB, rng *rand.Rand) string {
	t.Helper()
	w := newWorld(rng.Uint64(), policies()[rng.IntN(4)])
	w.o.KeepAcked = 0
	for len(w.disk.segments()) < 3 {
		if rng.IntN(3) == 0 {
			w.disk.cutAt = w.disk.calls + 1 + rng.IntN(200)
		}
		w.life(5 + rng.IntN(30))
	}
	dir := chmodDir2(t)
	for name, n := range w.disk.names {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, n.data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func chmodDir2(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// damageFiles destroys something in dir, whose files keep their names.
func damageFiles(t testing.TB, rng *rand.Rand, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	names = slices.DeleteFunc(names, func(n string) bool { info, err := os.Stat(n); return err != nil || info.IsDir() || info.Size() == 0 })
	for range 1 + rng.IntN(6) {
		name := names[rng.IntN(len(names))]
		data, err := os.ReadFile(name)
		if err != nil || len(data) == 0 {
			continue
		}
		at := rng.IntN(len(data))
		n := min(len(data)-at, 1+rng.IntN(600))
		switch rng.IntN(6) {
		case 0:
			data[at] ^= 1 << rng.IntN(8)
		case 1:
			clear(data[at : at+n])
		case 2:
			for i := at; i < at+n; i++ {
				data[i] = byte(rng.Uint32())
			}
		case 3:
			data = data[:at]
		case 4:
			clear(data[:min(len(data), segmentHeaderSize)])
		case 5:
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
			names = slices.DeleteFunc(names, func(s string) bool { return s == name })
			if len(names) == 0 {
				return
			}
			continue
		}
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSalvageSavesWhatVerifyReads damages directories at random. Salvage must save
// exactly the batches that Verify calls readable, leave the directory as it was, give
// the same again, and make a directory that every tool and Open take.
func TestSalvageSavesWhatVerifyReads(t *testing.T) {
	seed := seedOf(t)
	saved, lost, rounds := 0, uint64(0), budget(t, 40)
	for n := range uint64(rounds) {
		rng := rand.New(rand.NewPCG(seed+n, 6))
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("SPILLWAY_CRASH_SEED=%d: %s", seed+n, fmt.Sprintf(format, args...))
		}
		dir := worn(t, rng)
		if n+seed > 0 {
			damageFiles(t, rng, dir)
		}
		was, want := tree(t, dir), readable(t, dir)
		seals := 0 // that do not follow
		report, err := Verify(dir, func(f Finding) {
			if f.What == "seal" {
				seals--
			}
		})
		if err != nil {
			fail("verify: %v", err)
		}
		one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
		var found []Finding
		s, err := Salvage(dir, one, Salvaging{}, func(f Finding) { found = append(found, f) })
		if err != nil && report.Batches == 0 {
			continue // nothing is there
		}
		if err != nil {
			fail("salvage: %v", err)
		}
		if s.Batches != report.Batches || s.Records != report.Records || s.Lost < report.Lost {
			fail("saved %d batches with %d records, %d lost; verify reads %d with %d, %d lost: %v", s.Batches, s.Records, s.Lost, report.Batches, report.Records, report.Lost, found)
		}
		if got := readable(t, one); !slices.Equal(got, want) {
			fail("%d batches are there, want %d", len(got), len(want))
		}
		r, err := Verify(one, func(f Finding) {
			if found = append(found, f); f.What == "seal" {
				seals++
			}
		})
		if err != nil || seals > 0 || r.Damaged+r.Torn != 0 || r.Batches > 0 && r.Lost > report.Lost {
			fail("verify of what was saved: %+v, %v, of %+v\n%v", r, err, report, found)
		}
		if again, err := Salvage(dir, two, Salvaging{}, nil); err != nil || fmt.Sprint(again) != fmt.Sprint(s) {
			fail("again: %+v, %v", again, err)
		}
		if a, b := tree(t, one), tree(t, two); fmt.Sprint(a) != fmt.Sprint(b) {
			fail("two results differ")
		}
		if now := tree(t, dir); fmt.Sprint(now) != fmt.Sprint(was) {
			fail("the directory was changed")
		}
		saved, lost = saved+int(s.Batches), lost+s.Lost
		adopt(t, one, s, fail)
	}
	t.Logf("%d directories, %d batches saved, %d records lost; seed %d", rounds, saved, lost, seed)
}

// TestSalvageOfDisorder damages files, and renames, swaps, copies and joins them. What
// is saved must be what was there under the same identities, all of what no name and no
// damage touched, and a buffer that an agent goes on with.
func TestSalvageOfDisorder(t *testing.T) {
	seed := seedOf(t)
	saved, there, rounds := 0, 0, budget(t, 40)
	for n := range uint64(rounds) {
		rng := rand.New(rand.NewPCG(seed+n, 8))
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("SPILLWAY_CRASH_SEED=%d: %s", seed+n, fmt.Sprintf(format, args...))
		}
		dir := worn(t, rng)
		whole := map[string]bool{}
		for _, id := range readable(t, dir) {
			whole[id] = true
		}
		there += len(whole)
		path := func(name string) string { return filepath.Join(dir, name) }
		for i := range rng.IntN(5) {
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.IsDir() || e.Name() == cursorFile })
			if len(entries) < 2 {
				break
			}
			a, b := entries[rng.IntN(len(entries))].Name(), entries[rng.IntN(len(entries))].Name()
			one, err := os.ReadFile(path(a))
			switch rng.IntN(4) {
			case 0:
				err = cmp.Or(err, os.Rename(path(a), path(fmt.Sprint("file.", i))))
			case 1:
				err = cmp.Or(err, os.Rename(path(b), path(a)), os.WriteFile(path(b), one, 0o600))
			case 2:
				err = cmp.Or(err, os.WriteFile(path(fmt.Sprint("copy.", i)), one, 0o600))
			case 3: // as a tool does that puts fragments together
				other, rerr := os.ReadFile(path(b))
				err = cmp.Or(err, rerr, os.WriteFile(path(fmt.Sprint("joined.", i)), append(one[rng.IntN(len(one)+1):], other...), 0o600))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if rng.IntN(2) == 0 {
			damageFiles(t, rng, dir)
		}
		was := tree(t, dir)
		into := filepath.Join(t.TempDir(), "new")
		s, err := Salvage(dir, into, Salvaging{Agent: "gw-1"}, nil)
		if errors.Is(err, ErrNothing) {
			continue
		}
		if err != nil {
			fail("salvage: %v", err)
		}
		if now := tree(t, dir); fmt.Sprint(now) != fmt.Sprint(was) {
			fail("the directory was changed")
		}
		got := readable(t, into)
		for _, id := range got {
			// Copies of given-up segments, which Next steps over, may be all that is left.
			if !whole[id] && !strings.Contains(allBatches(t, dir), id) {
				fail("%.80s was not there", id)
			}
		}
		saved += len(got)
		adopt(t, into, s, fail)
	}
	t.Logf("%d directories, %d of %d batches saved; seed %d", rounds, saved, there, seed)
}

// allBatches lists every batch in any file of dir, also what readers step over.
func allBatches(t testing.TB, dir string) string {
	t.Helper()
	var all strings.Builder
	for name, data := range tree(t, dir) {
		seg, _ := parseName(filepath.Base(name))
		for e := range Scan(strings.NewReader(data), int64(len(data)), filepath.Base(name)) {
			if e.Kind == KindHeader {
				seg.epoch = e.header.Epoch
			}
			if e.Kind == KindBatch {
				fmt.Fprintf(&all, "%s %s %x\n", e.Batch.Identity("gw-1", seg.epoch), e.Batch.Seal, e.Batch.Payload)
			}
		}
	}
	return all.String()
}

// adopt lets an agent go on with what was saved.
func adopt(t testing.TB, dir string, s *Salvaged, fail func(string, ...any)) {
	t.Helper()
	pending := map[uint64]bool{}
	epochs := map[batch.Epoch]bool{}
	last := uint64(0)
	if err := Cat(dir, func(b *batch.Batch, _ string, e batch.Epoch, _ batch.Seal) error {
		epochs[e], last = true, b.Last()
		if b.Last() > s.Committed {
			pending[b.First] = true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	b, err := Open(dir, Options{Agent: "gw-1", SyncGap: -1, MinFree: -1, MaxBytes: 1 << 30})
	if err != nil {
		fail("open: %v", err)
	}
	defer b.Close()
	passed := b.pos.passed // told as dropped, and come back in a power cut
	for first := range pending {
		if passed.First <= first && first <= passed.Last {
			delete(pending, first)
		}
	}
	st := b.Begin()
	if epochs[st.Epoch] || st.Next <= last || st.Next != s.Next {
		fail("numbering goes on with %d of epoch %v; %d is saved, and said was %d", st.Next, st.Epoch, last, s.Next)
	}
	w := newWriter(st)
	put(t, b, w.seal(1, []byte("last\n")))
	for {
		run := next(t, b, batch.Limits{Batches: 3})
		if run.First() == st.Next {
			break
		}
		if run.Attempt != 2 {
			fail("records %d to %d are handed out as never sent", run.First(), run.Last())
		}
		for i := range run.Batches {
			if !pending[run.Batches[i].First] || run.Batches[i].Check() != nil {
				fail("batch %d is handed out", run.Batches[i].First)
			}
			delete(pending, run.Batches[i].First)
		}
		if err := b.Commit(run.Last(), "out"); err != nil {
			fail("commit: %v", err)
		}
	}
	if len(pending) > 0 {
		fail("%d batches were not handed out", len(pending))
	}
}

// TestSalvageOddities: files under wrong names, copies, two buffers, and what nothing
// tells.
func TestSalvageOddities(t *testing.T) {
	type state struct {
		dir  string
		segs []string // names
	}
	rename := func(t *testing.T, dir, from, to string) {
		t.Helper()
		if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	change := func(t *testing.T, path string, f func([]byte) []byte) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	noHeader := func(b []byte) []byte { clear(b[:segmentHeaderSize]); return b }
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, s state)
		o     Salvaging
		lost  int      // batches of 12
		bad   []string // findings
		pos   string   // "" taken over
	}{
		{name: "whole"},
		{name: "a cursor that was deleted", pos: PositionNone, spoil: func(t *testing.T, s state) {
			if err := os.Remove(filepath.Join(s.dir, cursorFile)); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "renamed", spoil: func(t *testing.T, s state) {
			rename(t, s.dir, s.segs[1], "recovered.001")
			rename(t, s.dir, s.segs[2], "recovered.000")
		}},
		{name: "swapped", spoil: func(t *testing.T, s state) {
			rename(t, s.dir, s.segs[0], "x")
			rename(t, s.dir, s.segs[2], s.segs[0])
			rename(t, s.dir, "x", s.segs[2])
		}},
		{name: "renamed, without header", bad: []string{"bytes 0 to 112: damaged"}, spoil: func(t *testing.T, s state) {
			rename(t, s.dir, s.segs[1], "recovered.001")
			change(t, filepath.Join(s.dir, "recovered.001"), noHeader)
		}},
		{name: "all renamed, all without header", o: Salvaging{Agent: "gw-1"}, bad: []string{"bytes 0 to 112: damaged", "bytes 0 to 112: damaged", "bytes 0 to 112: damaged"}, spoil: func(t *testing.T, s state) {
			for i, name := range s.segs {
				to := fmt.Sprint("lost+found.", 9-i)
				rename(t, s.dir, name, to)
				change(t, filepath.Join(s.dir, to), noHeader)
			}
		}},
		{name: "all renamed", lost: 12, bad: []string{"left: no name tells which agent wrote epoch", "left: no name", "left: no name"}, spoil: func(t *testing.T, s state) {
			for i, name := range s.segs {
				rename(t, s.dir, name, fmt.Sprint("lost+found.", i))
			}
		}},
		{name: "all renamed, with the agent's name", o: Salvaging{Agent: "gw-1"}, spoil: func(t *testing.T, s state) {
			for i, name := range s.segs {
				rename(t, s.dir, name, fmt.Sprint("lost+found.", i))
			}
		}},
		{name: "a copy under another name, both damaged", bad: []string{"damaged", "damaged"}, spoil: func(t *testing.T, s state) {
			path := filepath.Join(s.dir, s.segs[1])
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path+".bak", data, 0o600); err != nil {
				t.Fatal(err)
			}
			change(t, path, func(b []byte) []byte { b[segmentHeaderSize+batch.HeaderSize] ^= 1; return b })
			change(t, path+".bak", func(b []byte) []byte { b[len(b)-footerSize-1] ^= 1; return b })
		}},
		{name: "foreign files", spoil: func(t *testing.T, s state) {
			if err := os.WriteFile(filepath.Join(s.dir, "notes.txt"), bytes.Repeat([]byte("no batch \x5c\x2a\x4d\x18"), 20000), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(s.dir, "0000000000000009-0000000000000001-0000000000000009-0000000000000001-gw-1.seg"), 0o700); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "a name without its segment", spoil: func(t *testing.T, s state) {
			name := "0000000000000000-0000000000000007-0000000000000001-0000000000000001-gw-1.seg"
			if err := os.WriteFile(filepath.Join(s.dir, name), bytes.Repeat([]byte{'x'}, 5000), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "the last segment is gone", lost: 4, bad: []string{"lost: records 25 to 36"}, spoil: func(t *testing.T, s state) {
			if err := os.Remove(filepath.Join(s.dir, s.segs[2])); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "the cursor of another buffer", pos: PositionForeign, spoil: func(t *testing.T, s state) {
			other, _ := oddBuffer(t)
			rename(t, s.dir, cursorFile, "mine")
			data, err := os.ReadFile(filepath.Join(other, cursorFile))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(s.dir, cursorFile), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "segments of another buffer", bad: []string{"left", "left"}, spoil: func(t *testing.T, s state) {
			other, segs := oddBuffer(t)
			for _, name := range segs[:2] {
				data, err := os.ReadFile(filepath.Join(other, name))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, segs := oddBuffer(t)
			want := readable(t, dir)
			if tt.spoil != nil {
				tt.spoil(t, state{dir, segs})
			}
			was := tree(t, dir)
			into := filepath.Join(t.TempDir(), "new")
			var found []string
			s, err := Salvage(dir, into, tt.o, func(f Finding) {
				if f.Bad() {
					found = append(found, f.String())
				}
			})
			if tt.lost == len(want) {
				if !errors.Is(err, ErrNothing) || len(found) != len(tt.bad) {
					t.Errorf("%v, %q", err, found)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if now := tree(t, dir); fmt.Sprint(now) != fmt.Sprint(was) {
				t.Error("the directory was changed")
			}
			got := readable(t, into)
			if len(got) != len(want)-tt.lost || !slices.Equal(got, want[:len(got)]) {
				t.Errorf("%d batches saved, want %d", len(got), len(want)-tt.lost)
			}
			if len(found) != len(tt.bad) || uint64(len(found)) != s.Bad {
				t.Errorf("found %q, want %q", found, tt.bad)
			}
			for i, f := range found {
				if i < len(tt.bad) && !strings.Contains(f, tt.bad[i]) {
					t.Errorf("found %q, want %q", f, tt.bad[i])
				}
			}
			pos, committed := cmp.Or(tt.pos, PositionTaken), uint64(9)
			if pos != PositionTaken {
				committed = 0
			}
			if s.Position != pos || s.Committed != committed {
				t.Errorf("position %d, %s; want %d, %s", s.Committed, s.Position, committed, pos)
			}
			adopt(t, into, s, t.Fatalf)
		})
	}
}

// oddBuffer is a buffer of three segments with four batches of three records each,
// three of which are delivered.
func oddBuffer(t testing.TB) (dir string, segs []string) {
	t.Helper()
	dir = chmodDir2(t)
	b := mustOpen(t, dir, Options{SegmentBytes: 1400, SyncGap: -1})
	w := newWriter(b.Begin())
	for i := range 12 {
		put(t, b, w.seal(3, text(200, byte(i))))
	}
	drain(t, b, 3)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	all, err := Segments(dir)
	if err != nil || len(all.Segments) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, s := range all.Segments {
		segs = append(segs, s.Name)
	}
	return dir, segs
}

// TestSalvageRefuses: where it would write to what it reads, or over something.
func TestSalvageRefuses(t *testing.T) {
	dir, _ := oddBuffer(t)
	was := tree(t, dir)
	full := chmodDir2(t)
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for name, into := range map[string]string{
		"itself": dir, "inside": filepath.Join(dir, "new"), "inside, deeper": filepath.Join(dir, "a", "b"), "by a link": filepath.Join(link, "new"), "not empty": full,
	} {
		if s, err := Salvage(dir, into, Salvaging{}, nil); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if s, err := Salvage(chmodDir2(t), filepath.Join(t.TempDir(), "new"), Salvaging{}, nil); err == nil {
		t.Errorf("of nothing: %+v", s)
	}
	if now := tree(t, dir); fmt.Sprint(now) != fmt.Sprint(was) {
		t.Error("the directory was changed")
	}
}

// TestForeignCursor: a cursor of another buffer costs nothing but repeats, and its
// numbers are avoided.
func TestForeignCursor(t *testing.T) {
	dir, _ := oddBuffer(t)
	other, _ := oddBuffer(t)
	b := mustOpen(t, other, Options{SyncGap: -1})
	w := newWriter(b.Begin())
	put(t, b, w.seal(1000, text(10, 0)))
	drain(t, b, 10) // more than dir has
	b.Close()
	data, err := os.ReadFile(filepath.Join(other, cursorFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, cursorFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
	b = mustOpen(t, dir, Options{SyncGap: -1})
	if st := b.Begin(); st.Next != 1037 || st.Previous == nil || st.Previous.Last != 36 {
		t.Errorf("%+v", st)
	}
	if n := b.Stats().PendingRecords; n != 36 { // else draining would wait for them
		t.Fatalf("%d records are pending", n)
	}
	if got := drain(t, b, 12); got[0].First != 1 || got[11].Last() != 36 || len(b.Gaps()) > 0 {
		t.Errorf("from %d to %d, %+v", got[0].First, got[11].Last(), b.Gaps())
	}
}
