package buffer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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

// TestBitFlips inverts one to four bits anywhere in a directory. What they hit is
// lost and counted to the record, everything else comes out, and nothing else.
func TestBitFlips(t *testing.T) {
	seed := seedOf(t)
	rounds := budget(t, 3000)
	var hits, lost, cursors, verified int
	im := makeImage(t, seed, 24, true)
	for round := range rounds {
		if round%50 == 49 {
			im = makeImage(t, seed+uint64(round), 24, true)
		}
		rng := rand.New(rand.NewPCG(seed, uint64(round)))
		disk := im.disk.clone(rng)
		names := append(disk.segments(), cursorFile)
		var what []string
		hit := map[uint64]bool{} // batches, by number
		cursor, foot := false, map[string]bool{}
		for range 1 + rng.IntN(4) {
			name := names[rng.IntN(len(names))]
			bit := rng.IntN(8 * len(disk.names[name].data))
			this := fmt.Sprintf("%s bit %d", name, bit)
			if slices.Contains(what, this) {
				continue // twice is not at all
			}
			disk.flip(name, bit)
			what = append(what, this)
			cursor = cursor || name == cursorFile
			foot[name] = true // or something else in it
			for _, x := range im.all {
				if at := int64(bit / 8); x.name == name && at >= x.off && at < x.end {
					hit[x.h.First] = true
					hits++
				}
			}
		}
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("SPILLWAY_CRASH_SEED=%d, round %d, %v: %s", seed, round, what, fmt.Sprintf(format, args...))
		}
		if round%10 == 0 {
			verified++
			verifyImage(t, disk, im, hit, fail)
		}
		o := im.out(t, disk)
		var want []located
		var count uint64
		intact := slices.DeleteFunc(slices.Clone(im.all), func(x located) bool { return hit[x.h.First] })
		if !slices.EqualFunc(intact, o.reads, func(x, y located) bool { return x.h == y.h && bytes.Equal(x.payload, y.payload) }) {
			fail("%d batches are read again, want %d", len(o.reads), len(intact))
		}
		lastSeg := im.all[len(im.all)-1].name
		for i, x := range im.all {
			switch {
			case hit[x.h.First]:
				if x.h.Last() <= im.done {
					break
				}
				// What ends the newest segment is only known by its footer.
				tail := x.name == lastSeg && foot[lastSeg]
				for _, y := range im.all[i+1:] {
					tail = tail && hit[y.h.First]
				}
				told := slices.ContainsFunc(o.gaps, func(g Gap) bool {
					return g.First <= x.h.First && x.h.Last() <= g.Last && (g.Reason == ReasonDamaged || g.Reason == ReasonTorn && foot[x.name])
				})
				if !told && !tail {
					fail("records %d to %d are lost and not told: %+v", x.h.First, x.h.Last(), o.gaps)
				}
				if told {
					count += uint64(x.h.Count)
				}
				lost++
			case x.h.Last() > im.done:
				want = append(want, x)
			}
		}
		got := o.got
		if cursor {
			cursors++
			for len(got) > 0 && got[0].h.First <= im.done {
				got = got[1:] // an older position repeats
			}
		}
		for _, x := range o.got { // what Next knew, Read knows
			if !slices.ContainsFunc(o.reads, func(y located) bool { return y.h.First == x.h.First && (y.joins || !x.joins) }) {
				fail("the seal before %d is not known any more", x.h.First)
			}
		}
		if len(got) != len(want) {
			fail("%d batches came out, want %d; gaps %+v", len(got), len(want), o.gaps)
		}
		for i := range got {
			if got[i].h.First != want[i].h.First || got[i].h.Seal != want[i].h.Seal || !bytes.Equal(got[i].payload, want[i].payload) {
				fail("batch %d is %d, want %d", i, got[i].h.First, want[i].h.First)
			}
		}
		var told uint64
		for _, g := range o.gaps {
			told += g.Count
		}
		if told != count && !cursor {
			fail("%d records told as lost, but it is %d: %+v", told, count, o.gaps)
		}
	}
	t.Logf("%d images with %d hits on batches, %d batches lost and told, %d cursors hit, %d verified; seed %d", rounds, hits, lost, cursors, verified, seed)
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
