package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"spillway/buffer/batch"
)

// golden compares got with a file that is kept for ever.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: the format has changed:\ngot  %x\nwant %x", path, got, want)
	}
}

func seal(c byte) (s batch.Seal) {
	for i := range s {
		s[i] = c
	}
	return s
}

func TestGoldenSegmentHeader(t *testing.T) {
	h := segmentHeader{Opens: 7, Epoch: 0x1122334455667788, Ordinal: 3, First: 1001, Created: 1_800_000_000_000_000_000, Salt: 0xa1a2a3a4a5a6a7a8, Floor: 900, Before: seal(0xbb)}
	b := appendSegmentHeader(nil, &h)
	golden(t, "segment-header-v1.golden", b)
	got, err := parseSegmentHeader(b)
	if err != nil || got != h {
		t.Fatalf("%+v, %v", got, err)
	}
	for bit := range 8 * len(b) {
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := parseSegmentHeader(b); err == nil {
			t.Fatalf("a header with bit %d wrong was accepted", bit)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	h.Aside = true
	aside := appendSegmentHeader(nil, &h)
	if got, err := parseSegmentHeader(aside); err != nil || got != h || aside[10] != 1 {
		t.Fatalf("kept aside: %+v, %v", got, err)
	}
	aside[10] = 0
	if !bytes.Equal(aside[:108], b[:108]) {
		t.Fatal("the flag changes other bytes too")
	}
	b[8] = 2
	le.PutUint32(b[108:], batch.CRC32C(b[:108]))
	if _, err := parseSegmentHeader(b); !errors.Is(err, ErrVersion) {
		t.Fatalf("version 2: %v", err)
	}
}

func TestGoldenFooter(t *testing.T) {
	f := Footer{Batches: 12, Last: 2000, End: 54321, FirstTime: 1_800_000_000_000_000_000, LastTime: 1_800_000_001_000_000_000, Raw: 1 << 33, Salt: 0xa1a2a3a4a5a6a7a8, SyncedOff: 50000}
	b := appendFooter(nil, &f)
	golden(t, "footer-v1.golden", b)
	if got, ok := parseFooter(b, 54321); !ok || got != f {
		t.Fatalf("%+v, %v", got, ok)
	}
	if _, ok := parseFooter(b, 54320); ok {
		t.Fatal("a footer at another place was accepted")
	}
	for bit := range 8 * len(b) {
		b[bit/8] ^= 1 << (bit % 8)
		if _, ok := parseFooter(b, 54321); ok {
			t.Fatalf("a footer with bit %d wrong was accepted", bit)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
}

func somePosition() position {
	at := time.Unix(1_800_000_000, 5).UTC()
	return position{
		generation: 42, committed: 1000, next: 2001, epoch: 0x1122334455667788, seal: seal(0xcc),
		plan:   Plan{Output: "archive", First: 1001, Last: 1500, Key: "logs/main/dt=2027-01-15/site=a/hr=08/gw-1/x.ndjson.zst"},
		passed: Range{1501, 1600}, drops: [8]uint64{100, 2, 3, 4, 5},
		acks:   []handed{{"archive", 700}, {"hub", 1000}},
		doubts: []Doubt{{"hub", Range{901, 950}}},
		handed: []handed{{"hub", 600}, {"archive", 700}, {"hub", 1000}},
		gaps: []Gap{{Reason: ReasonFull, Epoch: 0x1122334455667788, First: 1501, Last: 1600, Count: 100, Since: at, Until: at.Add(time.Second), Before: seal(1), After: seal(2)},
			{Reason: ReasonDamaged, Epoch: 9, First: 3, Last: 3, Count: 1}},
		told: []toldGap{{Gap{Reason: ReasonTorn, Epoch: 9, First: 2, Last: 2, Count: 1}, 1990}},
	}
}

func TestGoldenCursor(t *testing.T) {
	p := somePosition()
	b := appendSlot(nil, &p)
	golden(t, "cursor-slot-v1.golden", b)
	got, err := parseSlot(b)
	if err != nil || !reflect.DeepEqual(got, p) {
		t.Fatalf("%v\ngot  %+v\nwant %+v", err, got, p)
	}
	for bit := range 8 * len(b) {
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := parseSlot(b); err == nil {
			t.Fatalf("a slot with bit %d wrong was accepted", bit)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
}

// TestSlotWithoutOutput: hand-overs to nobody and doubts at any output, and what is
// left of more outputs than a slot has names for.
func TestSlotWithoutOutput(t *testing.T) {
	p := position{handed: []handed{{"", 5}, {"hub", 7}, {"", 9}}, doubts: []Doubt{{"", Range{1, 2}}, {"hub", Range{3, 4}}}}
	got, err := parseSlot(appendSlot(nil, &p))
	if err != nil || !reflect.DeepEqual(got, p) {
		t.Fatalf("%v\ngot  %+v\nwant %+v", err, got, p)
	}
	p = position{}
	for i := range uint64(maxNames) {
		p.doubts = append(p.doubts, Doubt{fmt.Sprint("doubted", i), Range{i + 1, i + 1}})
		p.handed = append(p.handed, handed{fmt.Sprint("taker", i), i + 1})
	}
	if got, err = parseSlot(appendSlot(nil, &p)); err != nil || len(got.handed) != len(p.handed) || !slices.Equal(got.doubts, p.doubts) {
		t.Fatalf("%v: %+v", err, got)
	}
	for i, h := range got.handed {
		if h != (handed{"", uint64(i + 1)}) {
			t.Fatalf("an output without a name there took up to %d: %+v", i+1, got.handed)
		}
	}
}

func TestLongestSlotFits(t *testing.T) {
	p := somePosition()
	p.acks, p.doubts, p.handed, p.gaps, p.told = nil, nil, nil, nil, nil
	name := func(i int) string { return fmt.Sprintf("%0*d", maxName, i) }
	p.plan = Plan{Output: name(0), First: 1, Last: 2, Key: strings.Repeat("k", maxKey)}
	for i := range maxNames {
		p.acks = append(p.acks, handed{name(i), uint64(i)})
	}
	for i := range maxDoubts {
		p.doubts = append(p.doubts, Doubt{name(i), Range{1, 2}})
	}
	for i := range maxHanded {
		p.handed = append(p.handed, handed{name(i % maxNames), uint64(i)})
	}
	for range maxGaps {
		p.gaps = append(p.gaps, Gap{Reason: ReasonTorn})
	}
	for range maxTold {
		p.told = append(p.told, toldGap{Gap{Reason: ReasonFull}, 9})
	}
	b := appendSlot(nil, &p)
	if len(b) != 3878 || len(b) > slotSize {
		t.Fatalf("the longest slot has %d bytes", len(b))
	}
	if got, err := parseSlot(b); err != nil || !reflect.DeepEqual(got, p) {
		t.Fatalf("%v: %+v", err, got)
	}
	p.acks = append(p.acks, handed{"one more", 1})
	if got, err := parseSlot(appendSlot(nil, &p)); err != nil || len(got.acks) != maxNames {
		t.Fatalf("%v: %d acknowledgements", err, len(got.acks))
	}
}

func TestNames(t *testing.T) {
	const good = "000000000000000a-00000000000000ab-0000000000000001-fedcba9876543210-gw-1_x.seg"
	s, ok := parseName(good)
	if !ok || s.ordinal != 10 || s.epoch != 0xab || s.first != 1 || s.salt != 0xfedcba9876543210 || s.agent != "gw-1_x" || s.name() != good {
		t.Fatalf("%+v %v", s, ok)
	}
	for _, bad := range []string{"", "cursor", ".seg", strings.TrimSuffix(good, ".seg"), good + "~", strings.ToUpper(good), strings.Replace(good, "gw-1_x", "", 1),
		strings.Replace(good, "gw-1_x", "a/b", 1), strings.Replace(good, "gw-1_x", strings.Repeat("a", 65), 1), strings.Replace(good, "0000000000000001", "0000000000000000", 1),
		strings.Replace(good, "00ab", "0_ab", 1), strings.Replace(good, "000000000000000a-", "+00000000000000a-", 1)} {
		if _, ok := parseName(bad); ok {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// goldenSegment is a whole small segment: three zstd batches and a footer.
func goldenSegment(t *testing.T) (name string, data []byte, lines string) {
	rng := rand.New(rand.NewPCG(1, 2))
	disk := newSimDisk(rng)
	b, err := Open("sim", Options{Agent: "gw-1", SyncGap: -1, FS: disk, random: rng.Uint64, Now: func() time.Time { return time.Unix(1_800_000_000, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(true))
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(b.Begin())
	for i := range 3 {
		block := ""
		for n := range 5 + i {
			block += fmt.Sprintf("{\"message\":\"line %d\"}\n", w.next+uint64(n))
		}
		lines += block
		x := w.make(batch.Zstd, uint32(5+i), enc.EncodeAll([]byte(block), nil))
		x.Raw = uint32(len(block))
		w.Seal(x)
		if err := b.Append(t.Context(), x); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	name = disk.segments()[0]
	return name, disk.names[name].data, lines
}

// TestSegmentIsZstd: a segment of zstd batches is a legal .zst file, for our
// library and for the tool of any rescue system.
func TestSegmentIsZstd(t *testing.T) {
	name, data, lines := goldenSegment(t)
	d, err := zstd.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got, err := io.ReadAll(d); err != nil || string(got) != lines {
		t.Fatalf("klauspost: %v\n%s", err, got)
	}
	path := filepath.Join(t.TempDir(), name+".zst")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	tool, err := exec.LookPath("zstdcat")
	if err != nil {
		t.Log("zstdcat is not installed: not tested with it")
		return
	}
	if got, err := exec.Command(tool, path).Output(); err != nil || string(got) != lines {
		t.Fatalf("zstdcat: %v\n%s", err, got)
	}
}

// TestGoldenSegment keeps reading the bytes that version 1 wrote. What is compared
// is not the compressor's output but what the file on disk gives.
func TestGoldenSegment(t *testing.T) {
	const file = "00000000000000000-v1.seg"
	name, data, lines := goldenSegment(t)
	if *update {
		golden(t, file, data)
		golden(t, "segment-v1.name", []byte(name))
	}
	old, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	oldName, err := os.ReadFile(filepath.Join("testdata", "segment-v1.name"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, string(oldName)), old, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := Verify(dir, func(f Finding) { t.Error(f.String()) })
	if err != nil || r.Batches != 3 || r.Records != 18 {
		t.Fatalf("%+v, %v", r, err)
	}
	b := mustOpen(t, dir, Options{})
	if st := b.Begin(); st.Next != 19 || !st.Unclean || st.Previous == nil || st.Previous.Last != 18 { // there is no cursor
		t.Fatalf("%+v", st)
	}
	got := ""
	for _, x := range drain(t, b, 3) {
		p, err := batch.Decode(nil, x.Payload, x.Codec, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		got += string(p)
	}
	if got != lines {
		t.Fatalf("%s", got)
	}
}

func FuzzScan(f *testing.F) {
	im := makeImage(f, 1, 6, true)
	for _, name := range im.disk.segments() {
		f.Add(im.disk.names[name].data, im.all[0].h.Salt)
	}
	f.Fuzz(func(t *testing.T, data []byte, salt uint64) {
		for _, name := range []string{segmentName(1, 2, 3, salt, "a"), "other"} {
			r := &counting{ReaderAt: bytes.NewReader(data)}
			at := int64(0)
			for e := range Scan(r, int64(len(data)), name) {
				if e.Off != at || e.End <= e.Off || e.End > int64(len(data)) {
					t.Fatalf("extent %d to %d after %d of %d", e.Off, e.End, at, len(data))
				}
				at = e.End
				if e.Kind == KindBatch && (batch.CRC32C(e.Batch.Payload) != e.Batch.CRC || int64(len(e.Batch.Payload)) != e.End-e.Off-batch.HeaderSize) {
					t.Fatal("a batch whose payload does not match")
				}
			}
			if at != int64(len(data)) || r.bytes > 16*int64(len(data))+4096 {
				t.Fatalf("ended at %d of %d, read %d", at, len(data), r.bytes)
			}
		}
	})
}

func FuzzCursor(f *testing.F) {
	p := somePosition()
	f.Add(appendSlot(nil, &p))
	f.Add(appendSlot(nil, &position{}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 8 { // let the fuzzer get past the checksum
			if n := int(le.Uint32(data[4:])); n >= 8 && n <= len(data) {
				le.PutUint32(data[n-4:], batch.CRC32C(data[:n-4]))
			}
		}
		p, err := parseSlot(data)
		if err != nil {
			return
		}
		if len(p.names()) > maxNames {
			t.Fatalf("%d names", len(p.names()))
		}
		b := appendSlot(nil, &p)
		if len(b) > slotSize {
			t.Fatalf("read a slot of %d bytes and would write %d", len(data), len(b))
		}
		if q, err := parseSlot(b); err != nil || q.committed != p.committed || q.plan != p.plan || len(q.gaps) != len(p.gaps) {
			t.Fatalf("%v: %+v, was %+v", err, q, p)
		}
	})
}

// ofNewer reports whether a newer version wrote anything in d, which is an error.
func ofNewer(d *simDisk) bool {
	_, _, err := readPosition(d)
	newer := errors.Is(err, ErrVersion)
	for _, name := range d.segments() {
		data := d.names[name].data
		for e := range Scan(bytes.NewReader(data), int64(len(data)), name) {
			newer = newer || errors.Is(e.Err, ErrVersion)
		}
	}
	return newer
}

// FuzzOpenDir opens a directory of two segments and a cursor with any content: it
// comes up, takes a batch, gives it back and closes.
func FuzzOpenDir(f *testing.F) {
	im := makeImage(f, 1, 12, true)
	names := im.disk.segments()
	f.Add(im.disk.names[names[0]].data, im.disk.names[names[1]].data, im.disk.names[cursorFile].data)
	f.Add([]byte{}, []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, a, z, cur []byte) {
		disk := newSimDisk(rand.New(rand.NewPCG(1, 1)))
		for name, data := range map[string][]byte{names[0]: a, names[1]: z, cursorFile: cur} {
			disk.names[name] = &inode{data: bytes.Clone(data), disk: bytes.Clone(data)}
		}
		if !ofNewer(disk) {
			im.out(t, disk)
		}
	})
}
