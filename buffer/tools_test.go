package buffer

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"spillway/buffer/batch"
)

// TestSegmentStates: what both ends of a file tell.
func TestSegmentStates(t *testing.T) {
	cut := func(name string, size int64) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, name), size); err != nil {
				t.Fatal(err)
			}
		}
	}
	spoil := func(name string, do func(b []byte)) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err == nil {
				do(b)
				err = os.WriteFile(filepath.Join(dir, name), b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	const s, o = StateSealed, StateOpen
	const whole = segmentHeaderSize + 4*(batch.HeaderSize+65) + footerSize // each of threeSegments
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, dir string, segs []string)
		want []string
	}{
		{"as it was left", func(t *testing.T, dir string, segs []string) {}, []string{s, s, s}},
		{"the newest cut off", func(t *testing.T, dir string, segs []string) { cut(segs[2], 700)(t, dir) }, []string{s, s, o}},
		{"an older one cut off", func(t *testing.T, dir string, segs []string) { cut(segs[1], 700)(t, dir) }, []string{s, StateTorn, s}},
		{"an older one without its footer", func(t *testing.T, dir string, segs []string) { cut(segs[1], whole-footerSize)(t, dir) }, []string{s, StateUnclosed, s}},
		{"an older one cut off in its footer", func(t *testing.T, dir string, segs []string) { cut(segs[1], whole-1)(t, dir) }, []string{s, StateTorn, s}},
		{"an older one cut off in a payload", func(t *testing.T, dir string, segs []string) { cut(segs[1], whole-footerSize-1)(t, dir) }, []string{s, StateTorn, s}},
		{"an older one whose last payload is not all there", func(t *testing.T, dir string, segs []string) {
			spoil(segs[1], func(b []byte) { clear(b[whole-footerSize-10 : whole-footerSize]) })(t, dir)
			cut(segs[1], whole-footerSize)(t, dir)
		}, []string{s, StateTorn, s}},
		{"an older one with zeros behind its last batch", func(t *testing.T, dir string, segs []string) {
			spoil(segs[1], func(b []byte) { clear(b[whole-footerSize:]) })(t, dir)
		}, []string{s, StateTorn, s}},
		{"an older one that has no batch", func(t *testing.T, dir string, segs []string) { cut(segs[1], segmentHeaderSize)(t, dir) }, []string{s, StateTorn, s}},
		{"the newest without its footer", func(t *testing.T, dir string, segs []string) { cut(segs[2], whole-footerSize)(t, dir) }, []string{s, s, o}},
		{"the newest cut off in its header", func(t *testing.T, dir string, segs []string) { cut(segs[2], 50)(t, dir) }, []string{s, s, StateTorn}},
		{"empty", func(t *testing.T, dir string, segs []string) { cut(segs[0], 0)(t, dir) }, []string{StateTorn, s, s}},
		{"zeros, as of a write that never came to the disk", func(t *testing.T, dir string, segs []string) { spoil(segs[2], func(b []byte) { clear(b) })(t, dir) }, []string{s, s, StateTorn}},
		{"its first block is gone", func(t *testing.T, dir string, segs []string) {
			spoil(segs[0], func(b []byte) { clear(b[:512]) })(t, dir)
		}, []string{StateDamaged, s, s}},
		{"a bit of its header", func(t *testing.T, dir string, segs []string) { spoil(segs[2], func(b []byte) { b[40] ^= 1 })(t, dir) }, []string{s, s, StateDamaged}},
		{"names swapped", func(t *testing.T, dir string, segs []string) {
			a, _ := os.ReadFile(filepath.Join(dir, segs[0]))
			b, _ := os.ReadFile(filepath.Join(dir, segs[1]))
			os.WriteFile(filepath.Join(dir, segs[0]), b, 0o600)
			os.WriteFile(filepath.Join(dir, segs[1]), a, 0o600)
		}, []string{StateDamaged, StateDamaged, s}},
		{"of a newer version", func(t *testing.T, dir string, segs []string) {
			spoil(segs[2], func(b []byte) {
				b[8] = 2
				le.PutUint32(b[segmentHeaderSize-4:], batch.CRC32C(b[:segmentHeaderSize-4]))
			})(t, dir)
		}, []string{s, s, StateNewer}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, segs := threeSegments(t)
			tt.do(t, dir, segs)
			l, err := Segments(dir)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, x := range l.Segments {
				got = append(got, x.State)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

// TestKilledLives: the newest segment of a life that was killed is unclosed, with the number
// of its last record, and what a power cut left of one is torn.
func TestKilledLives(t *testing.T) {
	from := t.TempDir()
	b := mustOpen(t, from, Options{SyncGap: -1})
	w := newWriter(b.Begin())
	put(t, b, w.seal(3, text(300, 'x')))
	put(t, b, w.seal(4, text(300, 'x')))
	for _, tt := range []struct {
		name  string
		grown int64 // by so much the file's size came to the disk, and the bytes did not
		state string
		last  uint64
	}{
		{"kill", 0, StateUnclosed, 7},
		{"power cut", 500, StateTorn, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			l, err := Segments(dir)
			if err != nil || len(l.Segments) != 1 || l.Segments[0].State != StateOpen {
				t.Fatalf("%+v, %v", l, err)
			}
			if err := os.Truncate(filepath.Join(dir, l.Segments[0].Name), l.Segments[0].Bytes+tt.grown); err != nil {
				t.Fatal(err)
			}
			b := mustOpen(t, dir, Options{SyncGap: -1})
			w := newWriter(b.Begin())
			put(t, b, w.seal(5, text(300, 'x')))
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			if l, err = Segments(dir); err != nil || len(l.Segments) != 2 {
				t.Fatalf("%+v, %v", l, err)
			}
			if s := l.Segments[0]; s.State != tt.state || s.Last != tt.last {
				t.Errorf("%s with last record %d, want %s with %d", s.State, s.Last, tt.state, tt.last)
			}
			if s := l.Segments[1]; s.State != StateSealed || s.Last != 12 {
				t.Errorf("the next one is %s with last record %d", s.State, s.Last)
			}
		})
	}
}

// threeSegments is a directory of three closed segments, half delivered.
func threeSegments(t *testing.T) (dir string, segs []string) {
	t.Helper()
	dir = t.TempDir()
	for i := range 3 {
		b := mustOpen(t, dir, Options{SyncGap: -1})
		w := newWriter(b.Begin())
		for range 4 {
			if err := b.Append(t.Context(), w.seal(5, bytes.Repeat([]byte("line of text\n"), 5))); err != nil {
				t.Fatal(err)
			}
		}
		if i == 2 {
			drain(t, b, 6)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l, err := Segments(dir)
	if err != nil || len(l.Segments) != 3 || !l.Cursor || l.Empty() {
		t.Fatalf("%+v, %v", l, err)
	}
	for _, s := range l.Segments {
		segs = append(segs, s.Name)
	}
	return dir, segs
}

// TestVerifyKnowsTheEnd: what was stored behind the last batch that is there is lost,
// if a footer or the cursor says that it was.
func TestVerifyKnowsTheEnd(t *testing.T) {
	all := []string{"cursor", "0", "1", "2"}
	for _, tt := range []struct {
		name  string
		keep  []string
		clear bool // the last batch of what is kept
		lost  uint64
	}{
		{"all", all, false, 0},
		{"without the newest segment", all[:3], false, 20},
		{"without a segment", all[:1], false, 30}, // 30 were delivered
		{"without a segment and the cursor", nil, false, 0},
		{"without the newest segment and the cursor", all[1:3], false, 0},
		{"the last batch, as the footer knows", all[1:], true, 5},
		{"the last batch, as both know", all, true, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, segs := threeSegments(t)
			for i, name := range append(slices.Clone(segs), cursorFile) {
				if key := append(slices.Clone(all[1:]), all[0])[i]; !slices.Contains(tt.keep, key) {
					os.Remove(filepath.Join(dir, name))
				}
			}
			if tt.clear {
				name := filepath.Join(dir, segs[2])
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				clear(b[len(b)-footerSize-70 : len(b)-footerSize])
				if err := os.WriteFile(name, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var found []string
			r, err := Verify(dir, func(f Finding) { found = append(found, f.String()) })
			if err != nil || r.Lost != tt.lost || (r.Bad > 0) != (tt.lost > 0) {
				t.Errorf("%+v, %v; want %d lost: %q", r, err, tt.lost, found)
			}
			u, err := Measure(dir, batchTime)
			if err != nil || !tt.clear && u.Missing != tt.lost {
				t.Errorf("%d missing, %v; want %d", u.Missing, err, tt.lost)
			}
		})
	}
}

var batchTime = instant(1e18)

// TestVerifyDeep: checksums hold, and what is in the payload is not what its header says.
func TestVerifyDeep(t *testing.T) {
	e, err := zstd.NewWriter(nil, zstd.WithWindowSize(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Repeat([]byte("0123456789\n"), 7)
	zip := e.EncodeAll(lines, nil)
	bomb := e.EncodeAll(make([]byte, 256<<20), nil)
	for _, tt := range []struct {
		name    string
		codec   batch.Codec
		payload []byte
		count   uint32
		raw     int
		want    string // of the finding
	}{
		{"as it should be", batch.Zstd, zip, 7, 77, ""},
		{"plain", batch.None, lines, 7, 77, ""},
		{"a line too few", batch.Zstd, zip, 8, 77, "it holds 77 bytes and 7 line ends, and its header says 77 bytes and 8 records"},
		{"bytes too few", batch.Zstd, zip, 7, 78, "it holds 77 bytes"},
		{"bytes too many", batch.Zstd, zip, 7, 76, "it holds more than the 76 bytes"},
		{"no line end", batch.None, lines[:76], 6, 76, "it holds 76 bytes and 6 line ends"},
		{"a bomb", batch.Zstd, bomb, 7, 77, "it holds more than the 77 bytes"},
		{"cut off", batch.Zstd, zip[:len(zip)-3], 7, 77, "decompress: "},
		{"not compressed", batch.Gzip, lines, 7, 77, "decompress: it is no gzip payload"},
		{"compressed otherwise", batch.None, zip, 7, 77, "it holds "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			b := mustOpen(t, dir, Options{SyncGap: -1})
			w := newWriter(b.Begin())
			x := w.make(tt.codec, tt.count, tt.payload)
			x.Raw = uint32(tt.raw)
			w.Seal(x)
			if err := b.Append(t.Context(), x); err != nil {
				t.Fatal(err)
			}
			b.Close()
			if r, err := Verify(dir, nil); err != nil || r.Bad != 0 {
				t.Fatalf("%+v, %v", r, err)
			}
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			before := m.TotalAlloc
			var found []string
			r, err := VerifyDeep(dir, func(f Finding) { found = append(found, f.What+" "+f.Err.Error()) })
			runtime.ReadMemStats(&m)
			if err != nil || (r.Bad == 0) != (tt.want == "") || tt.want != "" && (len(found) != 1 || !strings.HasPrefix(found[0], "lines "+tt.want)) {
				t.Errorf("%+v, %v: %q", r, err, found)
			}
			if grown := m.TotalAlloc - before; grown > 32<<20 {
				t.Errorf("%d bytes allocated", grown)
			}
		})
	}
}

// TestToolsOnOddFiles: what is no regular file where one should be is left alone, and
// nobody waits for it.
func TestToolsOnOddFiles(t *testing.T) {
	dir, segs := threeSegments(t)
	for _, name := range []string{segs[1], cursorFile} {
		path := filepath.Join(dir, name)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, segmentName(9, 9, 9, 9, "gw-1"))); err != nil {
		t.Fatal(err)
	}
	l, err := Segments(dir)
	if err != nil || len(l.Segments) != 2 || len(l.Foreign) != 3 || l.Cursor {
		t.Fatalf("%+v, %v", l, err)
	}
	r, err := Verify(dir, nil)
	if err != nil || r.Segments != 2 || r.Lost != 20 {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, ok, err := ReadPosition(dir); ok || err != nil {
		t.Fatal(ok, err)
	}
	if _, err := Salvage(dir, filepath.Join(t.TempDir(), "new"), Salvaging{}, nil); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(filepath.Join(dir, segs[1])); err != nil || info.Mode().Type() != fs.ModeNamedPipe {
		t.Fatal(info, err)
	}
}

// pastLife is a life that wrote segments of two batches each.
type pastLife struct {
	sync   SyncPolicy
	groups []int // batches stored at once
	flush  bool  // SyncInterval comes before each segment is full
}

// pastLives makes a directory of lives in one epoch, all but the last of which ended in
// order; that one did if end is set, else it was killed. segs are its segments.
func pastLives(t *testing.T, lives []pastLife, end bool) (dir string, segs []string) {
	t.Helper()
	from, now := t.TempDir(), batchTime
	for i, l := range lives {
		b := mustOpen(t, from, Options{Sync: l.sync, SyncGap: -1, SegmentBytes: 1200, MinFree: -1, KeepAcked: -1, Now: func() time.Time { return now }})
		w := newWriter(b.Begin())
		for _, n := range l.groups {
			var group []*batch.Batch
			for range n {
				group = append(group, w.seal(1, text(500, 'x')))
			}
			put(t, b, group...)
			if now = now.Add(2 * time.Second); l.flush {
				b.Maintain(now)
			}
		}
		if i+1 < len(lives) || end {
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir = t.TempDir()
	err := os.CopyFS(dir, os.DirFS(from))
	if err == nil {
		err = os.Chmod(dir, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	l, err := Segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range l.Segments {
		segs = append(segs, filepath.Join(dir, s.Name))
	}
	return dir, segs
}

// change writes what do makes of a file's bytes.
func change(t *testing.T, name string, do func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, do(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// foundIn is what Verify finds in dir, and Salvage too, but for lost numbers.
func foundIn(t *testing.T, dir string) (found []string) {
	t.Helper()
	if _, err := Verify(dir, func(f Finding) {
		if f.What != "lost" {
			found = append(found, f.What)
		}
	}); err != nil {
		t.Fatal(err)
	}
	var salvaged []string
	if _, err := Salvage(dir, filepath.Join(t.TempDir(), "new"), Salvaging{}, func(f Finding) {
		if f.What != "lost" {
			salvaged = append(salvaged, f.What)
		}
	}); err != nil || !slices.Equal(found, salvaged) {
		t.Fatalf("verify finds %q, salvage %q, %v", found, salvaged, err)
	}
	return found
}

// TestVerifyOlderSlot: where a disk forgot the newest slot of the cursor, the older one vouches
// for what is below its own next number, and for nothing that a later life wrote.
func TestVerifyOlderSlot(t *testing.T) {
	life := pastLife{SyncNever, []int{1, 1, 1, 1}, false}
	for _, tt := range []struct {
		name string
		at   []int // segments that are zeroed
		want []string
	}{
		{"of the later life", []int{2}, []string{"torn"}},
		{"of the earlier life", []int{1}, []string{"damaged"}},
		{"of both, so that no header vouches", []int{1, 2}, []string{"damaged", "torn"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, segs := pastLives(t, []pastLife{life, life}, false)
			change(t, filepath.Join(dir, cursorFile), func(b []byte) []byte {
				one, err := parseSlot(b[:slotSize])
				two, err2 := parseSlot(b[slotSize:])
				if err != nil || err2 != nil || one.closed == two.closed {
					t.Fatal(one, two, err, err2)
				}
				if one.closed {
					clear(b[slotSize:])
				} else {
					clear(b[:slotSize])
				}
				return b
			})
			for _, i := range tt.at {
				change(t, segs[i], func(b []byte) []byte { clear(b); return b })
			}
			if found := foundIn(t, dir); !slices.Equal(found, tt.want) {
				t.Errorf("%q, want %q", found, tt.want)
			}
		})
	}
}

// TestVerifyTornOrDamaged: what is not there of a segment that another one follows was durable
// if a later one says so in its header; of the newest,
// and of any, if the cursor does.
func TestVerifyTornOrDamaged(t *testing.T) {
	tail := func(b []byte) []byte { return append(b[:800], make([]byte, 100)...) } // in the second batch
	zeroed := func(b []byte) []byte { return make([]byte, len(b)) }
	headless := func(b []byte) []byte { clear(b[:512]); return b }
	middle := func(b []byte) []byte { clear(b[300:400]); return b }
	spoils := []struct {
		name string
		do   func([]byte) []byte
	}{{"lost tail", tail}, {"zeros", zeroed}, {"first block", headless}, {"middle", middle}}
	twos, ones := []int{2, 2, 2, 2}, []int{1, 1, 1, 1, 1, 1, 1, 1}
	const torn, damaged = "torn", "damaged"
	for _, tt := range []struct {
		name  string
		lives []pastLife // all but the last end in order, and so in one epoch
		close bool       // the last too
		at    int        // the segment that is spoilt
		want  string
	}{
		{"never", []pastLife{{SyncNever, ones, false}}, false, 1, torn},
		{"never, closed", []pastLife{{SyncNever, ones, false}}, true, 1, damaged},
		{"never, closed, and gone on", []pastLife{{SyncNever, ones, false}, {SyncNever, ones, false}}, false, 1, damaged},
		{"never, the last before it was closed", []pastLife{{SyncNever, ones, false}, {SyncNever, ones, false}}, false, 3, damaged},
		{"never, behind one that was closed", []pastLife{{SyncNever, ones, false}, {SyncNever, ones, false}}, false, 5, torn},
		{"never, the newest", []pastLife{{SyncNever, ones, false}}, false, 3, torn},
		{"never, closed, the newest", []pastLife{{SyncNever, ones, false}}, true, 3, damaged},
		{"never, behind group", []pastLife{{SyncGroup, ones, false}, {SyncNever, ones, false}}, false, 5, torn},
		{"group, before never", []pastLife{{SyncGroup, ones, false}, {SyncNever, ones, false}}, false, 1, damaged},
		{"group", []pastLife{{SyncGroup, ones, false}}, false, 1, damaged},
		{"group, the first", []pastLife{{SyncGroup, ones, false}}, false, 0, damaged},
		{"group, the last that another follows", []pastLife{{SyncGroup, ones, false}}, false, 2, damaged},
		{"group, behind never", []pastLife{{SyncNever, ones, false}, {SyncGroup, ones, false}}, false, 5, damaged},
		{"group, no other segment in pieces behind it", []pastLife{{SyncGroup, []int{1, 1, 2, 2, 2}, false}}, false, 1, damaged},
		{"group, no other segment in pieces before it", []pastLife{{SyncGroup, []int{2, 2, 2, 1, 1}, false}}, false, 1, damaged},
		{"group, no segment in pieces", []pastLife{{SyncGroup, twos, false}}, false, 1, damaged},
		{"group, no segment in pieces, closed", []pastLife{{SyncGroup, twos, false}}, true, 1, damaged},
		{"interval", []pastLife{{SyncInterval, ones, true}}, false, 1, damaged},
		{"interval, no sync before a segment is full", []pastLife{{SyncInterval, ones, false}}, false, 1, damaged},
	} {
		for _, spoil := range spoils {
			t.Run(tt.name+", "+spoil.name, func(t *testing.T) {
				dir, segs := pastLives(t, tt.lives, tt.close)
				change(t, segs[tt.at], spoil.do)
				if tt.lives[len(tt.lives)-1].sync == SyncNever && tt.at < len(segs)-1 {
					change(t, segs[len(segs)-1], func(b []byte) []byte { // it was in memory first
						end := len(b) - footerSize
						f, ok := parseFooter(b[end:], int64(end))
						if !ok {
							t.Fatal("the last segment has no footer")
						}
						f.SyncedOff = uint32(end)
						return appendFooter(b[:end], &f)
					})
				}
				if found := foundIn(t, dir); !slices.Equal(found, []string{tt.want}) {
					t.Errorf("%q, want %s", found, tt.want)
				}
			})
		}
	}
}
