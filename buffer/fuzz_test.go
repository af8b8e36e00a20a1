package buffer

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"

	"spillway/buffer/batch"
)

// FuzzDirectory makes a whole directory of anything: names, contents, sub-directories.
// The buffer comes up, or says that something newer wrote there; what comes out has right
// checksums; a new batch comes out behind it; memory follows what is there, not what it says.
//
// An image is a list of files: length of the name u8, name, length of the content u16,
// content.
func FuzzDirectory(f *testing.F) {
	im := makeImage(f, 1, 6, true)
	f.Add(packImage(im.disk))
	open := makeImage(f, 2, 6, false)
	f.Add(packImage(open.disk))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		disk := newSimDisk(rand.New(rand.NewPCG(1, 1)))
		size := 0
		for rest := data; len(rest) > 3; {
			n := min(int(rest[0]), len(rest)-3)
			name := string(rest[1 : 1+n])
			rest = rest[1+n:]
			m := min(int(le.Uint16(rest)), len(rest)-2)
			disk.put(name, rest[2:2+m])
			rest = rest[2+m:]
			size += m
		}
		newer := ofNewer(disk)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		o := im.o
		o.FS = disk
		b, err := Open("sim", o)
		if err != nil {
			if !errors.Is(err, ErrVersion) {
				t.Fatal(err)
			}
			return
		}
		if newer {
			return // it comes to light when something is read there
		}
		start := b.Begin()
		if start.Next == 0 || start.Next > 1<<63 {
			return // the numbers are at their end: nothing fits behind them
		}
		marker := newWriter(start).seal(1, []byte("marker\n"))
		put(t, b, marker)
		for last := uint64(0); last != marker.Last(); {
			run := next(t, b, batch.Limits{Batches: 3})
			if run.First() <= last {
				t.Fatalf("record %d comes after %d", run.First(), last)
			}
			last = run.Last()
			locate(t, &run)
			if err := b.Commit(last, "out"); err != nil {
				t.Fatal(err)
			}
		}
		for from := uint64(1); ; {
			run, err := b.Read(t.Context(), Range{from, 1<<64 - 1}, batch.Limits{Batches: 3})
			if err == io.EOF {
				break
			}
			if err != nil || run.First() < from {
				t.Fatalf("read from %d on: %v", from, err)
			}
			locate(t, &run)
			if from = run.Last() + 1; from == 0 {
				break
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if got, most := after.TotalAlloc-before.TotalAlloc, uint64(4<<20+64*(len(data)+size)); got > most {
			t.Fatalf("%d bytes allocated for a directory of %d", got, size)
		}
	})
}

// packImage is the inverse of what FuzzDirectory reads.
func packImage(d *simDisk) (out []byte) {
	add := func(name string) {
		out = append(append(out, byte(len(name))), name...)
		out = append(le.AppendUint16(out, uint16(len(d.names[name].data))), d.names[name].data...)
	}
	for _, name := range d.segments() {
		add(name)
	}
	add(cursorFile)
	return out
}

// FuzzRoundTrip appends what it is given, cut into batches of any size, over any number of
// lives, and takes it out again.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("one line\nand another\n"), []byte{3, 10, 0, 200, 255, 7}, uint16(700), byte(0))
	f.Add(bytes.Repeat([]byte("x"), 5000), []byte{255, 255, 255, 1}, uint16(1), byte(2))
	f.Add(append(bytes.Clone(needle), 0x5c, 0x2a, 0x4d, 0x18), []byte{1, 1}, uint16(300), byte(1))
	f.Fuzz(func(t *testing.T, data, script []byte, segment uint16, sync byte) {
		rng := rand.New(rand.NewPCG(1, 1))
		o := Options{Agent: "gw-1", FS: newSimDisk(rng), random: rng.Uint64, SyncGap: -1, MaxBytes: 1 << 30, SegmentBytes: int64(segment) + 1, KeepAcked: -1, Sync: SyncPolicy(sync % 3)}
		var b *Buffer
		var w *writer
		open := func() {
			var err error
			if b, err = Open("sim", o); err != nil {
				t.Fatal(err)
			}
			w = newWriter(b.Begin())
		}
		open()
		var want, got [][]byte
		drainAll := func() {
			for b.Stats().PendingRecords > 0 {
				run := next(t, b, batch.Limits{Batches: 2})
				for i := range run.Batches {
					if err := run.Batches[i].Check(); err != nil {
						t.Fatal(err)
					}
					got = append(got, bytes.Clone(run.Batches[i].Payload))
				}
				if err := b.Commit(run.Last(), "out"); err != nil {
					t.Fatal(err)
				}
			}
		}
		for i, op := range script[:min(len(script), 64)] {
			switch {
			case op == 0:
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				open()
			case op == 255:
				b.Maintain(b.o.Now().Add(saveEvery * 2))
				drainAll()
			default:
				n := min(len(data), int(op)*(i+1))
				if n == 0 {
					continue
				}
				put(t, b, w.seal(1+uint32(op), data[:n]))
				want = append(want, data[:n])
				data = append(data[n:len(data):len(data)], data[:n]...)
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		open()
		drainAll()
		if len(got) != len(want) {
			t.Fatalf("%d batches went in, %d came out", len(want), len(got))
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("batch %d has other bytes", i)
			}
		}
		if gaps := b.Gaps(); len(gaps) > 0 {
			t.Fatalf("%+v", gaps)
		}
	})
}
