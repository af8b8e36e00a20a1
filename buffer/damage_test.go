package buffer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// image is a buffer on disk and what is in it.
type image struct {
	disk *simDisk
	o    Options
	all  []located
	done uint64 // committed
	next uint64 // as the cursor says
}

// located is a batch and where its bytes are.
type located struct {
	name     string
	off, end int64
	h        batch.Header
	payload  []byte
	joins    bool // the seal before it was known
}

// makeImage writes n batches into several segments, commits some of them and
// closes, or not.
func makeImage(t testing.TB, seed uint64, n int, closed bool) *image {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 7))
	im := &image{disk: newSimDisk(rng)}
	im.o = Options{Agent: "gw-1", SegmentBytes: 3000, MaxBytes: 1 << 30, SyncGap: -1, FS: im.disk, random: rng.Uint64, Now: func() time.Time { return time.Unix(1_800_000_000, 0) }}
	b, err := Open("sim", im.o)
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(b.Begin())
	payloads := map[uint64][]byte{}
	take := func() {
		for _, x := range drain(t, b, rng.IntN(n/2)) {
			im.done = x.Last()
		}
	}
	for i := range n {
		if !closed && i == n-3 { // a position that knows nothing of the last batches
			take()
			b.w.Lock()
			err := b.saveCursor()
			b.w.Unlock()
			if err != nil {
				t.Fatal(err)
			}
		}
		p := make([]byte, 1+rng.IntN(700))
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		x := w.seal(1+uint32(rng.IntN(9)), p)
		payloads[x.First] = p
		if err := b.Append(t.Context(), x); err != nil {
			t.Fatal(err)
		}
	}
	if closed {
		take()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	im.disk.kill()
	im.disk.SyncDir()
	var c cursor
	p, _, _ := c.read(im.disk)
	im.next = p.next
	for _, name := range im.disk.segments() {
		data := im.disk.names[name].data
		for e := range Scan(bytes.NewReader(data), int64(len(data)), name) {
			switch e.Kind {
			case KindBatch:
				im.all = append(im.all, located{name, e.Off, e.End, e.Batch.Header, payloads[e.Batch.First], true})
			case KindDamage:
				t.Fatalf("%s: damage in a fresh image at %d: %v", name, e.Off, e.Err)
			}
		}
	}
	if len(im.all) != n {
		t.Fatalf("%d batches of %d in the image", len(im.all), n)
	}
	return im
}

// outcome is what comes out of a directory.
type outcome struct {
	start Start
	got   []located
	reads []located // by Read, when all was taken out
	gaps  []Gap
	stats Stats
}

// out opens the directory, appends one batch behind what is there, takes
// everything out and reads it again.
func (im *image) out(t testing.TB, disk *simDisk) (o outcome) {
	t.Helper()
	opts := im.o
	if opts.Now == nil {
		opts.Now = time.Now
	}
	opts.FS = disk
	changes := disk.changes
	b, err := Open("sim", opts)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	if disk.changes != changes {
		t.Fatal("opening changed the disk")
	}
	o.start = b.Begin()
	marker := newWriter(o.start).seal(1, []byte("marker\n"))
	if err := b.Append(t.Context(), marker); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for last := uint64(0); ; {
		run, err := b.Next(ended, batch.Limits{Batches: 3})
		if err != nil {
			t.Fatalf("next behind %d: %v (%+v)", last, err, b.Stats())
		}
		if run.First() <= last {
			t.Fatalf("record %d comes after %d", run.First(), last)
		}
		last = run.Last()
		o.got = append(o.got, locate(t, &run)...)
		if err := b.Commit(last, "out"); err != nil {
			t.Fatal(err)
		}
		if last == marker.Last() {
			break
		}
	}
	for from := uint64(1); ; {
		run, err := b.Read(t.Context(), Range{from, 1<<64 - 1}, batch.Limits{Batches: 3})
		if err == io.EOF {
			break
		}
		if err != nil || run.First() < from {
			t.Fatalf("read from %d on: record %d, %v", from, run.First(), err)
		}
		o.reads = append(o.reads, locate(t, &run)...)
		from = run.Last() + 1
	}
	again := o.reads
	for _, x := range o.got {
		i := slices.IndexFunc(again, func(y located) bool { return y.h.First == x.h.First })
		if i < 0 || again[i].h != x.h || !bytes.Equal(again[i].payload, x.payload) {
			t.Fatalf("record %d was handed out, but not read again as it was", x.h.First)
		}
		again = again[i+1:]
	}
	o.gaps = b.Gaps()
	o.stats = b.Stats()
	if o.stats.PendingRecords != 0 {
		t.Fatalf("drained, but %d records are pending", o.stats.PendingRecords)
	}
	b.Maintain(opts.Now().Add(time.Hour))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	o.got, o.reads = o.got[:len(o.got)-1], o.reads[:len(o.reads)-1]
	return o
}

// locate copies the batches of a run and checks them.
func locate(t testing.TB, run *batch.Run) (out []located) {
	t.Helper()
	for i := range run.Batches {
		x := &run.Batches[i]
		if err := x.Check(); err != nil {
			t.Fatalf("record %d: %v", x.First, err)
		}
		out = append(out, located{h: x.Header, payload: bytes.Clone(x.Payload), joins: x.Chain(run.BeforeOf(i), run.Epoch) == x.Seal})
	}
	return out
}

// blow is what was done to a copy of an image: which batches it hit, and which files it
// touched, elsewhere too.
type blow struct {
	what  []string
	hit   map[uint64]bool // by first number
	files map[string]bool
	moved bool // an intact batch may lie where it was not written
}

func newBlow() *blow { return &blow{hit: map[uint64]bool{}, files: map[string]bool{}} }

// note says that bytes lo to hi of a file were changed.
func (x *blow) note(im *image, name string, lo, hi int64, format string, args ...any) {
	x.what = append(x.what, fmt.Sprintf(format, args...))
	x.files[name] = true
	for _, y := range im.all {
		if y.name == name && lo < y.end && hi > y.off {
			x.hit[y.h.First] = true
		}
	}
}

// judge takes everything out of a damaged copy of im: what was hit is lost and counted to
// the record, everything else comes out, and nothing else does. It returns how many
// batches were lost.
func (im *image) judge(t testing.TB, disk *simDisk, x *blow) (lost int) {
	t.Helper()
	same := func(x, y located) bool { return x.h.Seal == y.h.Seal && bytes.Equal(x.payload, y.payload) }
	var o outcome
	fail := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("%v: %s; %d committed of the image, hit %v, %d come, start %+v", x.what, fmt.Sprintf(format, args...), im.done, slices.Sorted(maps.Keys(x.hit)), len(o.got), o.start)
	}
	o = im.out(t, disk)
	cursor := x.files[cursorFile]
	told := func(y located, reasons ...string) bool {
		return slices.ContainsFunc(o.gaps, func(g Gap) bool {
			return g.First <= y.h.First && y.h.Last() <= g.Last && (len(reasons) == 0 || slices.Contains(reasons, g.Reason))
		})
	}
	if x.moved {
		// What lies in the wrong place of its own segment can't be told from what was
		// written there: all that can be asked for is that nothing vanishes without a word.
		behind := false
		for _, y := range slices.Backward(im.all) {
			come := slices.ContainsFunc(o.got, func(z located) bool { return same(y, z) })
			behind = behind || come
			if !come && behind && y.h.Last() > im.done && !told(y) && !cursor {
				fail("records %d to %d are lost and not told: %+v", y.h.First, y.h.Last(), o.gaps)
			}
		}
		for _, z := range o.got {
			if !slices.ContainsFunc(im.all, func(y located) bool { return same(y, z) }) {
				fail("record %d was never stored so", z.h.First)
			}
		}
		return 0
	}
	var want []located
	var count uint64
	intact := slices.DeleteFunc(slices.Clone(im.all), func(y located) bool { return x.hit[y.h.First] })
	if !slices.EqualFunc(intact, o.reads, func(x, y located) bool { return x.h == y.h && bytes.Equal(x.payload, y.payload) }) {
		fail("%d batches are read again, want %d", len(o.reads), len(intact))
	}
	lastSeg := im.all[len(im.all)-1].name
	for i, y := range im.all {
		switch {
		case x.hit[y.h.First]:
			if y.h.Last() <= im.done {
				break
			}
			// What ends the epoch is only known by a footer, and by a cursor that was saved behind it.
			tail := x.files[lastSeg] && (cursor || y.h.Last() >= im.next)
			for _, z := range im.all[i+1:] {
				tail = tail && x.hit[z.h.First]
			}
			reasons := []string{ReasonDamaged}
			if x.files[y.name] {
				reasons = append(reasons, ReasonTorn)
			}
			known := told(y, reasons...)
			if !known && !tail {
				fail("records %d to %d are lost and not told: %+v", y.h.First, y.h.Last(), o.gaps)
			}
			if known {
				count += uint64(y.h.Count)
			}
			lost++
		case y.h.Last() > im.done:
			want = append(want, y)
		}
	}
	got := o.got
	if cursor {
		for len(got) > 0 && got[0].h.First <= im.done {
			got = got[1:] // an older position repeats
		}
	}
	for _, y := range o.got { // what Next knew, Read knows
		if !slices.ContainsFunc(o.reads, func(z located) bool { return z.h.First == y.h.First && (z.joins || !y.joins) }) {
			fail("the seal before %d is not known any more", y.h.First)
		}
	}
	if !slices.EqualFunc(got, want, same) {
		fail("%d batches came out, want %d; gaps %+v", len(got), len(want), o.gaps)
	}
	var sum uint64
	for _, g := range o.gaps {
		sum += g.Count
	}
	if sum != count && !cursor {
		fail("%d records told as lost, but it is %d: %+v", sum, count, o.gaps)
	}
	return lost
}

// caught runs f on any goroutine and returns how it failed.
func caught(t *testing.T, name string, f func(t testing.TB)) string {
	return guard(name, func(**world) { f(catch{t}) })
}

// TestBitFlips inverts one to four bits anywhere in a directory. What they hit is
// lost and counted to the record, everything else comes out, and nothing else.
func TestBitFlips(t *testing.T) {
	seed, start := seedOf(t), time.Now()
	var lost, verified atomic.Int64
	const turn = 50 // rounds with one image
	n := each(t, 0, rounds(t, 3000, 100_000), func(n uint64) (int, string) {
		round := 0
		return turn, caught(t, "", func(t testing.TB) {
			im := makeImage(t, seed+n, 24, true)
			for ; round < turn; round++ {
				rng := rand.New(rand.NewPCG(seed, n*turn+uint64(round)))
				disk, x := im.disk.clone(rng), newBlow()
				x.what = append(x.what, fmt.Sprintf("SPILLWAY_CRASH_SEED=%d, round %d", seed+n, round))
				names := append(disk.segments(), cursorFile)
				for range 1 + rng.IntN(4) {
					name := names[rng.IntN(len(names))]
					bit := rng.IntN(8 * len(disk.names[name].data))
					if this := fmt.Sprintf("%s bit %d", name, bit); !slices.Contains(x.what, this) { // twice is not at all
						disk.flip(name, bit)
						x.note(im, name, int64(bit/8), int64(bit/8)+1, "%s", this)
					}
				}
				if round%10 == 0 {
					verified.Add(1)
					verifyImage(t, disk, im, x.hit, func(format string, args ...any) { t.Fatalf("%v: %s", x.what, fmt.Sprintf(format, args...)) })
				}
				lost.Add(int64(im.judge(t, disk, x)))
			}
		})
	})
	row(t, "directories with one to four bits inverted", n, time.Since(start))
	t.Logf("%d batches lost, each told exactly; %d images verified too", lost.Load(), verified.Load())
}

// sectorFault changes a block of a file in a way that a disk may.
type sectorFault struct {
	what string
	do   func(to, from []byte) // from: another block of the same length
}

var sectorFaults = []sectorFault{
	{"zeros", func(to, _ []byte) { clear(to) }},
	{"ones", func(to, _ []byte) { fill8(to, 0xff) }},
	{"overwritten by", func(to, from []byte) { copy(to, from) }},
	{"swapped with", func(to, from []byte) {
		a := bytes.Clone(to)
		copy(to, from)
		copy(from, a)
	}},
}

func fill8(p []byte, c byte) {
	for i := range p {
		p[i] = c
	}
}

// strike changes the block of size at to of a file, and perhaps the one at from of
// another.
func (x *blow) strike(disk *simDisk, f sectorFault, size int, toName string, to int, fromName string, from int) {
	cut := func(name string, at int) []byte {
		b := disk.names[name].data
		return b[min(at, len(b)):min(at+size, len(b))]
	}
	a, z := cut(toName, to), bytes.Clone(cut(fromName, from))
	n := min(len(a), len(z))
	f.do(a[:n], z[:n])
	if f.what == "swapped with" {
		copy(cut(fromName, from), z[:n])
	}
	x.what = append(x.what, fmt.Sprintf("%d bytes at %d of %s %s %d of %s", n, to, toName, f.what, from, fromName))
}

// compare notes which bytes of disk are not those of im.
func (x *blow) compare(im *image, disk *simDisk) {
	for _, name := range append(im.disk.segments(), cursorFile) {
		was, is := im.disk.names[name].data, disk.names[name].data
		if bytes.Equal(was, is) {
			continue
		}
		copy(disk.names[name].disk, is)
		x.files[name] = true
		for _, y := range im.all {
			if y.name == name && !bytes.Equal(was[y.off:y.end], is[y.off:y.end]) {
				x.hit[y.h.First] = true
			}
		}
		// A header that was moved as a whole, within its own segment, perhaps to where another one was.
		for e := range Scan(bytes.NewReader(is), int64(len(is)), name) {
			x.moved = x.moved || e.Batch.Count > 0 && !slices.ContainsFunc(im.all, func(y located) bool { return y.name == name && y.off == e.Off && y.h.First == e.Batch.First })
		}
	}
}

// TestSectorFaults zeroes, fills, overwrites and swaps every block of 512 and of 4096
// bytes of an image of sixteen batches with every other one, also of other files
// (a write that went astray).
func TestSectorFaults(t *testing.T) {
	seed, start := seedOf(t), time.Now()
	type block struct {
		name     string
		at, size int
	}
	im := makeImage(t, seed, 16, true)
	var blocks []block
	for _, size := range []int{512, 4096} {
		for _, name := range append(im.disk.segments(), cursorFile) {
			for at := 0; at < len(im.disk.names[name].data); at += size {
				blocks = append(blocks, block{name, at, size})
			}
		}
	}
	var moved, lost, total atomic.Int64
	each(t, 0, len(blocks), func(n uint64) (int, string) {
		if n >= uint64(len(blocks)) {
			return 0, ""
		}
		to := blocks[n]
		return 1, caught(t, fmt.Sprintf("SPILLWAY_CRASH_SEED=%d", seed), func(t testing.TB) {
			for i, from := range blocks {
				if from.size != to.size || from == to {
					continue
				}
				for _, f := range sectorFaults {
					if f.what == "zeros" || f.what == "ones" {
						if i > 1 {
							continue // they need no other block
						}
					}
					disk, x := im.disk.clone(rand.New(rand.NewPCG(1, 1))), newBlow()
					x.strike(disk, f, to.size, to.name, to.at, from.name, from.at)
					x.compare(im, disk)
					lost.Add(int64(im.judge(t, disk, x)))
					total.Add(1)
					if x.moved {
						moved.Add(1)
					}
				}
			}
		})
	})
	row(t, "blocks of 512 and 4096 bytes zeroed, filled, overwritten, swapped, in one file or two", int(total.Load()), time.Since(start))
	t.Logf("%d batches lost, each told exactly; in %d images a batch lay at another place of its segment", lost.Load(), moved.Load())
}

// TestStrayWrites puts blocks of any length, from anywhere, anywhere.
func TestStrayWrites(t *testing.T) {
	seed, start := seedOf(t), time.Now()
	const turn = 50
	n := each(t, 0, rounds(t, 500, 50_000), func(n uint64) (int, string) {
		return turn, caught(t, fmt.Sprintf("SPILLWAY_CRASH_SEED=%d, image %d", seed, n), func(t testing.TB) {
			im := makeImage(t, seed+n, 16, n%2 == 0)
			for round := range turn {
				rng := rand.New(rand.NewPCG(seed+n, uint64(round)))
				disk, x := im.disk.clone(rng), newBlow()
				names := append(disk.segments(), cursorFile)
				some := func() (string, int) {
					name := names[rng.IntN(len(names))]
					return name, rng.IntN(len(disk.names[name].data))
				}
				for range 1 + rng.IntN(2) {
					to, at := some()
					from, off := some()
					size := 1 + rng.IntN(1500)
					if rng.IntN(2) == 0 { // whole sectors
						at, off, size = at&^511, off&^511, (size+511)&^511
					}
					x.strike(disk, sectorFaults[rng.IntN(4)], size, to, at, from, off)
				}
				x.compare(im, disk)
				im.judge(t, disk, x)
			}
		})
	})
	row(t, "blocks written to another place of the same or another file", n, time.Since(start))
}

// verifyImage runs Verify and Cat over the same image: one scanner, one opinion.
func verifyImage(t testing.TB, disk *simDisk, im *image, hit map[uint64]bool, fail func(string, ...any)) {
	dir := t.TempDir()
	for name, n := range disk.names {
		if err := os.WriteFile(filepath.Join(dir, name), n.data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var found []Finding
	r, err := Verify(dir, func(f Finding) { found = append(found, f) })
	if err != nil {
		fail("verify: %v", err)
	}
	var records, lost uint64
	last := im.all[len(im.all)-1].h.First
	for _, x := range im.all {
		if hit[x.h.First] {
			lost += uint64(x.h.Count)
		} else {
			records += uint64(x.h.Count)
			last = x.h.First
		}
	}
	behind := uint64(0) // shown by a footer or the cursor alone, if these are intact
	for _, x := range im.all {
		if hit[x.h.First] && x.h.First > last {
			behind += uint64(x.h.Count)
		}
	}
	if r.Records != records || r.Lost > lost || r.Lost < lost-behind {
		fail("verify says %d records, %d lost; want %d, %d and perhaps %d less: %v", r.Records, r.Lost, records, lost, behind, found)
	}
	if (r.Bad == 0) != (r.Damaged == 0 && r.Lost == 0) {
		fail("verify: %+v, %v", r, found)
	}
	var n uint64
	if err := Cat(dir, func(b *batch.Batch, agent string, epoch batch.Epoch, before batch.Seal) error {
		n += uint64(b.Count)
		return b.Check()
	}); err != nil || n != records {
		fail("cat gives %d records, %v", n, err)
	}
}

// TestEveryByte cuts a buffer that was not closed off at every byte of its last
// two batches.
func TestEveryByte(t *testing.T) {
	im := makeImage(t, seedOf(t), 12, false)
	n := len(im.all)
	a, z := im.all[n-2], im.all[n-1]
	if a.name != z.name {
		t.Fatal("the last two batches are not in one segment")
	}
	for size := a.off; size <= z.end; size++ {
		disk := im.disk.clone(rand.New(rand.NewPCG(1, uint64(size))))
		f := disk.names[z.name]
		f.data, f.disk = f.data[:size], f.disk[:size]
		o := im.out(t, disk)
		left := 0
		for _, x := range im.all {
			if x.name != z.name || x.end <= size {
				left++
			}
		}
		last := im.all[left-1].h.Last()
		if len(o.gaps) > 0 || !o.start.Unclean {
			t.Fatalf("cut at %d: gaps %v, start %+v", size, o.gaps, o.start)
		}
		if p := o.start.Previous; o.start.Next <= last || p == nil || p.Last != last || p.Before != im.all[left-1].h.Seal {
			t.Fatalf("cut at %d, behind record %d: %+v", size, last, o.start)
		}
		want := im.all[:left]
		for len(want) > 0 && want[0].h.Last() <= im.done {
			want = want[1:]
		}
		if len(o.got) != len(want) {
			t.Fatalf("cut at %d: %d batches came out, want %d", size, len(o.got), len(want))
		}
	}
}

// TestHostilePayload puts whole segments, with headers and checksums that are
// right, into payloads, and destroys the header before them: what is inside a
// payload is never taken for a batch, because it can't have the salt.
func TestHostilePayload(t *testing.T) {
	inner := makeImage(t, 3, 6, true)
	var evil []byte
	for _, name := range inner.disk.segments() {
		evil = append(evil, inner.disk.names[name].data...)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	disk := newSimDisk(rng)
	o := Options{Agent: "gw-1", SegmentBytes: 1 << 20, MaxBytes: 1 << 30, SyncGap: -1, FS: disk, random: rng.Uint64}
	b, err := Open("sim", o)
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(b.Begin())
	for range 3 {
		if err := b.Append(t.Context(), w.seal(5, evil)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	disk.SyncDir()
	name := disk.segments()[0]
	disk.flip(name, 8*(segmentHeaderSize+batch.HeaderSize+len(evil)+20)) // the second header
	im := &image{disk: disk, o: o}
	got := im.out(t, disk.clone(rng))
	if len(got.got) != 2 || got.got[0].h.First != 1 || got.got[1].h.First != 11 {
		t.Fatalf("%d batches: %+v", len(got.got), got.got)
	}
	if len(got.gaps) != 1 || got.gaps[0].First != 6 || got.gaps[0].Count != 5 || got.gaps[0].Reason != ReasonDamaged {
		t.Fatalf("%+v", got.gaps)
	}
}

// counting counts what is read.
type counting struct {
	io.ReaderAt
	bytes int64
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(p, off)
	c.bytes += int64(n)
	return n, err
}

// TestScanIsLinear gives the scanner the worst that someone who knows the salt
// could write: headers at every place that are intact and promise large payloads.
func TestScanIsLinear(t *testing.T) {
	const salt = 0x1122334455667788
	name := segmentName(1, 2, 3, salt, "gw-1")
	h := batch.Header{Salt: salt, First: 3, Count: 1, Length: batch.MaxPayload}
	intact := batch.AppendHeader(nil, &h)
	broken := bytes.Clone(intact)
	broken[130] ^= 1
	for _, tt := range []struct {
		name string
		unit []byte
	}{
		{"intact headers", intact},
		{"headers with a bad checksum", broken},
		{"magic numbers", broken[:64]},
		{"the searched bytes", needle},
		{"zeros", make([]byte, 512)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data := bytes.Repeat(tt.unit, 4<<20/len(tt.unit))
			r := &counting{ReaderAt: bytes.NewReader(data)}
			at := int64(0)
			for e := range Scan(r, int64(len(data)), name) {
				if e.Off != at || e.End <= e.Off {
					t.Fatalf("extent %d to %d after %d", e.Off, e.End, at)
				}
				at = e.End
				if e.Kind == KindBatch {
					t.Fatal("a batch out of nothing")
				}
			}
			if at != int64(len(data)) {
				t.Fatalf("ended at %d of %d", at, len(data))
			}
			if r.bytes > 8*int64(len(data)) {
				t.Fatalf("read %d bytes of a file of %d", r.bytes, len(data))
			}
		})
	}
}
