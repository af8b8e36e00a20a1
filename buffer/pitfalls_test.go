package buffer

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"spillway/buffer/batch"
)

// The tests in this file are those of pitfalls in docs/pitfalls.md that no other
// test shows; the number stands before each.

// watched is a directory of which every call is noted. It takes no change while it is
// read-only.
type watched struct {
	FS
	readOnly bool
	changes  []string
	opened   map[string]int
	read     int64
}

func watch(t *testing.T, dir string) *watched {
	t.Helper()
	d, err := openOS(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	return &watched{FS: d, opened: map[string]int{}}
}

func (w *watched) change(what string) error {
	w.changes = append(w.changes, what)
	if w.readOnly {
		return syscall.EROFS
	}
	return nil
}

func (w *watched) Create(name string) (File, error) {
	if err := w.change("create " + name); err != nil {
		return nil, err
	}
	f, err := w.FS.Create(name)
	return watchedFile{f, w}, err
}

func (w *watched) Open(name string, write bool) (File, error) {
	if write {
		if err := w.change("open for writing " + name); err != nil {
			return nil, err
		}
	}
	w.opened[name]++
	f, err := w.FS.Open(name, write)
	if err != nil {
		return nil, err
	}
	return watchedFile{f, w}, nil
}

func (w *watched) Remove(name string) error {
	return errors.Join(w.change("remove "+name), w.FS.Remove(name))
}

func (w *watched) Quarantine(name string) error {
	return errors.Join(w.change("quarantine "+name), w.FS.Quarantine(name))
}

func (w *watched) SyncDir() error {
	if err := w.change("sync the directory"); err != nil {
		return err
	}
	return w.FS.SyncDir()
}

type watchedFile struct {
	File
	w *watched
}

func (f watchedFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.w.read += int64(n)
	return n, err
}

func (f watchedFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.w.change("write"); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f watchedFile) Sync() error {
	if err := f.w.change("sync"); err != nil {
		return err
	}
	return f.File.Sync()
}

// 6: Open writes nothing, whatever it finds, so that a full or a read-only disk can't
// keep the agent from starting.
func TestOpenWritesNothing(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, dir string, segs []string)
	}{
		{"as it was left", func(*testing.T, string, []string) {}},
		{"without a cursor", func(t *testing.T, dir string, _ []string) { os.Remove(filepath.Join(dir, cursorFile)) }},
		{"with a damaged cursor", func(t *testing.T, dir string, _ []string) { os.Truncate(filepath.Join(dir, cursorFile), 100) }},
		{"cut off", func(t *testing.T, dir string, segs []string) { os.Truncate(filepath.Join(dir, segs[2]), 300) }},
		{"without its newest segment", func(t *testing.T, dir string, segs []string) { os.Remove(filepath.Join(dir, segs[2])) }},
		{"with an empty segment", func(t *testing.T, dir string, segs []string) { os.Truncate(filepath.Join(dir, segs[1]), 0) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, segs := threeSegments(t)
			tt.spoil(t, dir, segs)
			d := watch(t, dir)
			d.readOnly = true
			b, err := Open("watched", Options{Agent: "gw-1", FS: d, MinFree: -1})
			if err != nil {
				t.Fatal(err)
			}
			if len(d.changes) > 0 {
				t.Errorf("%q", d.changes)
			}
			b.Close()
		})
	}
}

// 5: a buffer that is drained, closed and opened again has nothing to send, and what
// comes next is sent once: there is no smallest number of entries, and no mark beside
// each.
func TestDrainedIsNormal(t *testing.T) {
	dir := t.TempDir()
	for life := range 200 {
		b := mustOpen(t, dir, Options{SyncGap: -1, KeepAcked: -1})
		w := newWriter(b.Begin())
		if s := b.Stats(); s.PendingRecords != 0 || w.next != uint64(life)*3+1 {
			t.Fatalf("life %d: %d pending, next %d", life, s.PendingRecords, w.next)
		}
		for range 3 {
			if err := b.Append(t.Context(), w.seal(1, text(50, byte(life)))); err != nil {
				t.Fatal(err)
			}
		}
		for i, x := range drain(t, b, 3) {
			if x.First != uint64(life*3+i)+1 || x.Payload[0] != 'a'+byte(life)%26 {
				t.Fatalf("life %d: record %d, %.5q", life, x.First, x.Payload)
			}
		}
		b.Maintain(batchTime)
		if gaps := b.Gaps(); len(gaps) > 0 {
			t.Fatalf("life %d: %+v", life, gaps)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// 8: a length counts only if the header's checksum is right, and never for more than
// there is in the file.
func TestLengthIsNotTrusted(t *testing.T) {
	const salt = 7
	name := segmentName(1, 2, 1, salt, "gw-1")
	for _, length := range []uint32{1 << 10, batch.MaxPayload, batch.MaxSingle, 1<<32 - 1} {
		h := batch.Header{Salt: salt, First: 1, Count: 1, Length: length}
		file := append(appendSegmentHeader(nil, &segmentHeader{Ordinal: 1, Epoch: 2, First: 1, Salt: salt}), batch.AppendHeader(nil, &h)...)
		file = append(file, "not so much"...)
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		before := m.TotalAlloc
		for e := range Scan(bytes.NewReader(file), int64(len(file)), name) {
			if e.Kind == KindBatch {
				t.Errorf("a batch of %d bytes in a file of %d", length, len(file))
			}
		}
		runtime.ReadMemStats(&m)
		if grown := m.TotalAlloc - before; grown > 1<<20 {
			t.Errorf("%d bytes allocated for a length of %d", grown, length)
		}
	}
}

// 34: every limit may be another one after each start, and what is there is delivered
// all the same.
func TestLimitsMayChange(t *testing.T) {
	dir := t.TempDir()
	var want, got []uint64
	for i, o := range []Options{
		{MaxBytes: 1 << 30, SegmentBytes: 32 << 20}, {MaxBytes: 4 << 20, SegmentBytes: 1 << 10}, {MaxBytes: 64 << 20}, {MaxBytes: 64 << 20, SegmentBytes: 1, Sync: SyncInterval}, {MaxBytes: 1 << 10, SegmentBytes: 700},
	} {
		o.SyncGap, o.MinFree = -1, -1
		b := mustOpen(t, dir, o)
		w := newWriter(b.Begin())
		for range 5 {
			x := w.seal(2, text(400, byte(i)))
			if err := b.Append(t.Context(), x); errors.Is(err, ErrFull) {
				continue // of the last, which holds less than what is there
			} else if err != nil {
				t.Fatal(err)
			}
			want = append(want, x.First)
		}
		if i > 0 {
			for _, x := range drain(t, b, 3) {
				got = append(got, x.First)
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b := mustOpen(t, dir, Options{MaxBytes: 1 << 30})
	for _, x := range drain(t, b, len(want)-len(got)) {
		got = append(got, x.First)
	}
	if !slices.Equal(got, want) || len(want) < 20 {
		t.Fatalf("got %d, want %d", got, want)
	}
}

// 37: Open does not read the backlog: names, the cursor, the newest segment, and a
// header or footer of a few others.
func TestOpenReadsLittle(t *testing.T) {
	dir := t.TempDir()
	makeBacklog(t, dir, 64<<10)
	d := watch(t, dir)
	b, err := Open("watched", Options{Agent: "gw-1", FS: d, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if n := len(b.segs); n != maxSegments {
		t.Fatalf("%d segments", n)
	}
	if newest := int64(9 << 20); len(d.opened) > 8 || d.read > newest {
		t.Errorf("%d files opened, %d bytes read of %d", len(d.opened), d.read, b.total)
	}
}

// 1, 17, 20, 25: nothing here maps a file, reserves space, cuts a file or removes a
// directory, and nothing is renamed but into quarantine/.
func TestCallsThatAreNotMade(t *testing.T) {
	never := []string{"Mmap", "MmapPtr", "Fallocate", "RemoveAll", "Truncate", "Ftruncate"}
	renames := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if s, ok := call.Fun.(*ast.SelectorExpr); ok {
					if slices.Contains(never, s.Sel.Name) {
						t.Errorf("%s calls %s", path, s.Sel.Name)
					}
					if s.Sel.Name == "Rename" {
						renames++
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if renames != 1 {
		t.Errorf("%d renames, want the one of Quarantine", renames)
	}
}
