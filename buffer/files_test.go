package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"spillway/buffer/batch"
)

// set puts a durable file with this content in the place of whatever is there; nil
// removes it.
func (d *simDisk) put(name string, data []byte) {
	if data == nil {
		delete(d.names, name)
		delete(d.disk, name)
		return
	}
	n := &inode{data: bytes.Clone(data), disk: bytes.Clone(data)}
	d.names[name], d.disk[name] = n, n
}

// TestFilesBetweenRuns deletes, renames, duplicates and swaps every file between two
// runs: the buffer comes up, what lies in untouched files comes out once and in order,
// and what is missing in the middle is told to the record.
func TestFilesBetweenRuns(t *testing.T) {
	for _, closed := range []bool{true, false} {
		im := makeImage(t, seedOf(t), 24, closed)
		names := slices.Sorted(maps.Keys(im.disk.names))
		segs := im.disk.segments()
		content := func(name string) []byte { return im.disk.names[name].data }
		type change struct {
			what  string
			do    func(d *simDisk)
			gone  []string // files whose batches can't be expected
			loose bool     // the order of segments is not what it was: only what comes out is checked
		}
		var all []change
		for i, name := range names {
			all = append(all, change{"delete " + name, func(d *simDisk) { d.put(name, nil) }, []string{name}, false})
			all = append(all, change{"empty " + name, func(d *simDisk) { d.put(name, []byte{}) }, []string{name}, false})
			all = append(all, change{"rename " + name, func(d *simDisk) { d.put(name+".bak", content(name)); d.put(name, nil) }, []string{name}, false})
			all = append(all, change{"duplicate under a foreign name " + name, func(d *simDisk) { d.put("copy of "+name, content(name)) }, nil, false})
			for _, other := range names[i+1:] {
				all = append(all, change{fmt.Sprintf("swap %s and %s", name, other), func(d *simDisk) {
					a, z := content(name), content(other)
					d.put(name, z)
					d.put(other, a)
				}, []string{name, other}, true})
			}
			if seg, ok := parseName(name); ok {
				copied := func(ordinal uint64) string { return segmentName(ordinal, seg.epoch, seg.first, seg.salt, seg.agent) }
				all = append(all, change{"duplicate as the newest " + name, func(d *simDisk) { d.put(copied(1<<40), content(name)) }, nil, true})
				all = append(all, change{"duplicate as a neighbour " + name, func(d *simDisk) { d.put(copied(seg.ordinal+1), content(name)) }, nil, true})
				all = append(all, change{"under another salt " + name, func(d *simDisk) {
					d.put(segmentName(seg.ordinal, seg.epoch, seg.first, seg.salt+1, seg.agent), content(name))
					d.put(name, nil)
				}, []string{name}, false})
			}
		}
		for _, c := range all {
			t.Run(fmt.Sprintf("closed %v/%s", closed, c.what), func(t *testing.T) {
				d := im.disk.clone(rand.New(rand.NewPCG(1, 1)))
				c.do(d)
				o := im.out(t, d)
				if highest := im.all[len(im.all)-1].h.Last(); !slices.Contains(c.gone, segs[len(segs)-1]) && o.start.Next <= highest {
					t.Fatalf("numbers go on at %d, and %d is there", o.start.Next, highest)
				}
				come := func(x located) bool {
					return slices.ContainsFunc(o.got, func(y located) bool { return y.h.Seal == x.h.Seal && bytes.Equal(y.payload, x.payload) })
				}
				for _, y := range o.got {
					if !slices.ContainsFunc(im.all, func(x located) bool { return x.h.Seal == y.h.Seal && bytes.Equal(x.payload, y.payload) }) {
						t.Fatalf("record %d was never stored so", y.h.First)
					}
				}
				var lost uint64
				behind := false // something behind what is lost was delivered; without, the cursor says what was stored
				for _, x := range slices.Backward(im.all) {
					switch {
					case come(x):
						behind = true
					case x.h.Last() <= im.done:
					case !slices.Contains(c.gone, x.name):
						t.Fatalf("record %d lies in a file that nobody touched, and does not come; gaps %+v", x.h.First, o.gaps)
					case behind || x.h.Last() < im.next:
						lost += uint64(x.h.Count)
					}
				}
				var told uint64
				for _, g := range o.gaps {
					told += g.Count
					if g.Reason != ReasonMissing && g.Reason != ReasonDamaged && g.Reason != ReasonTorn {
						t.Errorf("told as %s: %+v", g.Reason, g)
					}
				}
				if !c.loose && !slices.Contains(c.gone, cursorFile) && told != lost {
					t.Fatalf("%d records are lost and %d told: %+v", lost, told, o.gaps)
				}
			})
		}
	}
}

// TestCursorSlots puts everything into the two slots that may lie there: nothing that is
// in the segments is lost, and no number is given twice.
func TestCursorSlots(t *testing.T) {
	im := makeImage(t, seedOf(t), 24, true)
	other := makeImage(t, seedOf(t)+1, 12, true)
	good := im.disk.names[cursorFile].data
	slot := func(p position) []byte {
		b := appendSlot(nil, &p)
		return append(b, make([]byte, slotSize-len(b))...)
	}
	at := func(data []byte, i int) []byte {
		b := make([]byte, slotSize)
		copy(b, data[min(len(data), i*slotSize):min(len(data), (i+1)*slotSize)])
		return b
	}
	var newest position
	for i := range 2 {
		if p, err := parseSlot(at(good, i)); err == nil && p.generation > newest.generation {
			newest = p
		}
	}
	highest := im.all[len(im.all)-1].h.Last()
	edit := func(f func(p *position)) []byte {
		p := newest
		f(&p)
		return slot(p)
	}
	flipped := at(good, 0)
	flipped[30] ^= 4
	slots := map[string][]byte{
		"first":       at(good, 0),
		"second":      at(good, 1),
		"zeros":       make([]byte, slotSize),
		"ones":        bytes.Repeat([]byte{0xff}, slotSize),
		"a bit wrong": flipped,
		"cut off":     append(at(good, 0)[:150:150], make([]byte, slotSize-150)...),
		"foreign":     at(other.disk.names[cursorFile].data, 0),
		"of a far future": edit(func(p *position) {
			p.generation, p.next, p.committed = 1<<63, 1<<50, highest
		}),
		"that has delivered the future": edit(func(p *position) { p.generation, p.next, p.committed = 1<<62, 1<<50, 1<<50-1 }),
		"of another epoch":              edit(func(p *position) { p.generation, p.epoch = 1<<62, p.epoch+1 }),
		"of a newer version": func() []byte {
			b := at(good, 0)
			b[8] = 9
			n := le.Uint32(b[4:])
			le.PutUint32(b[n-4:], batch.CRC32C(b[:n-4]))
			return b
		}(),
		"with the highest generation": edit(func(p *position) { p.generation = 1<<64 - 1 }),
	}
	kinds := slices.Sorted(maps.Keys(slots))
	for _, a := range kinds {
		for _, z := range append(kinds, "nothing") {
			t.Run(a+", "+z, func(t *testing.T) {
				d := im.disk.clone(rand.New(rand.NewPCG(1, 1)))
				d.put(cursorFile, append(bytes.Clone(slots[a]), slots[z]...))
				if newer := "of a newer version"; a == newer || z == newer {
					if _, err := Open("sim", Options{Agent: im.o.Agent, FS: d}); !errors.Is(err, ErrVersion) {
						t.Fatalf("opened: %v", err)
					}
					return
				}
				o := im.out(t, d)
				if o.start.Next <= highest {
					t.Fatalf("numbers go on at %d, and %d is there", o.start.Next, highest)
				}
				if future := "of a far future"; (a == future || z == future) && len(o.gaps) == 1 && o.gaps[0].First == highest+1 && o.gaps[0].Last == 1<<50-1 {
					o.gaps = nil // by the cursor it was stored
				}
				if len(o.gaps) > 0 && !(a == "that has delivered the future" || z == "that has delivered the future") {
					t.Fatalf("nothing is lost, and %+v is told", o.gaps)
				}
				committed := uint64(0) // by a slot that is valid
				for _, s := range []string{a, z} {
					if p, err := parseSlot(slots[s]); err == nil && p.epoch == newest.epoch {
						committed = max(committed, p.committed)
					}
				}
				var want []located
				for _, x := range im.all {
					if x.h.Last() > committed {
						want = append(want, x)
					}
				}
				got := o.got[max(0, len(o.got)-len(want)):] // an older position repeats
				if !slices.EqualFunc(got, want, func(x, y located) bool { return x.h.Seal == y.h.Seal && bytes.Equal(x.payload, y.payload) }) {
					t.Fatalf("%d batches came, want %d behind record %d", len(o.got), len(want), committed)
				}
				if len(o.reads) != len(im.all) {
					t.Fatalf("%d batches are read again, want %d", len(o.reads), len(im.all))
				}
			})
		}
	}
}
