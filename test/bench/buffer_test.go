package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/buffer"
	"spillway/buffer/batch"
)

// buffers measures the buffer by itself: a long backlog, and appending and draining
// beside what the kernel does with the same bytes on the same disk, in turn.
func buffers(t *testing.T, b *bench) {
	b.backlogs(t)
	for _, size := range []int{1 << 10, 16 << 10, 64 << 10, 512 << 10} {
		for _, group := range []int{1, 8} {
			b.appends(t, size, group)
		}
	}
	for _, size := range []int{16 << 10, 64 << 10, 512 << 10} {
		b.drains(t, size)
	}
}

// backlogs opens as many segments as there may be, 32 GiB, after a crash.
func (b *bench) backlogs(t *testing.T) {
	n := max(16, min(maxSegments, maxSegments**messages/full))
	dir := filepath.Join(t.TempDir(), "backlog")
	if err := backlog(dir, n); err != nil {
		t.Fatal(err)
	}
	// Of the last two alone: the scans of their ends, which need not be short.
	tail := filepath.Join(t.TempDir(), "tail")
	if err := os.Mkdir(tail, 0o700); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil || len(names) != n {
		t.Fatal(len(names), err)
	}
	for _, name := range names[n-2:] {
		if err := os.Link(name, filepath.Join(tail, filepath.Base(name))); err != nil {
			t.Fatal(err)
		}
	}
	open := func(dir string) float64 {
		begin := time.Now()
		buf, err := buffer.Open(dir, holding)
		took := time.Since(begin)
		if err != nil {
			t.Fatal(err)
		}
		if s := buf.Begin(); !s.Unclean || s.Next != uint64(n*perSegment*perBatch)+1 && dir != tail {
			t.Fatalf("%+v", s)
		}
		if err := buf.Close(); err != nil {
			t.Fatal(err)
		}
		os.Remove(filepath.Join(dir, "cursor"))
		return took.Seconds() * 1e3
	}
	for _, caches := range []string{"warm", "cold"} {
		var all, scans []float64
		for range max(3, *rounds) {
			if caches == "cold" && !forget(t) {
				break
			}
			all = append(all, open(dir))
			if caches == "cold" {
				forget(t)
			}
			scans = append(scans, open(tail))
		}
		if len(all) == 0 {
			continue // only root can have the kernel forget
		}
		whole, scan := middle(all), middle(scans)
		b.goal(t, goal{what: fmt.Sprintf("open %d segments, %s caches", n, caches), bar: "≤ 100 ms + tail scans", measured: fmt.Sprintf("%.1f ms, tail scans %.1f ms of them", whole, scan),
			met: whole <= 100+scan})
	}
	g := growth(t, dir)
	b.goal(t, goal{what: fmt.Sprintf("memory for %d GiB not delivered", n*segmentSize>>30), bar: "≤ 16 MiB", met: g.RSS <= 16<<20 && g.Heap <= 16<<20,
		measured: fmt.Sprintf("RSS +%.1f MiB, heap +%.1f MiB", float64(g.RSS)/(1<<20), float64(g.Heap)/(1<<20))})
}

// growth runs drainBacklog.
func growth(t *testing.T, dir string) (g grown) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "backlog", dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err = cmp.Or(err, json.Unmarshal(out, &g)); err != nil {
		t.Fatal("drain a backlog: ", err)
	}
	return g
}

// forget lets the kernel drop what it has of all disks, and reports whether it may:
// that takes root, and is of no use in a run that times nothing.
func forget(t *testing.T) bool {
	if *messages < full/10 {
		return false
	}
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0) == nil
}

// appends measures batches of size bytes, group of them in each Append, and
// write(2) and fdatasync(2) of as many bytes at once. Each file is begun before.
func (b *bench) appends(t *testing.T, size, group int) {
	n := max(2, min(200, 64<<20/(size*group))**messages/full)
	bytes := float64(n * group * size)
	var floor, ours []float64 // seconds
	for range max(5, *rounds) {
		f, err := os.Create(filepath.Join(t.TempDir(), "raw"))
		if err != nil {
			t.Fatal(err)
		}
		all := noise(group * (size + batch.HeaderSize))
		store := func() {
			if _, err := f.Write(all); err != nil {
				t.Fatal(err)
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				t.Fatal(err)
			}
		}
		store()
		floor = append(floor, seconds(n, store))
		f.Close()

		buf, err := buffer.Open(t.TempDir(), buffer.Options{Agent: gateway, MaxBytes: 1 << 30, MinFree: -1, SyncGap: -1})
		if err != nil {
			t.Fatal(err)
		}
		lane := newLane(buf.Begin(), size)
		batches := make([][]*batch.Batch, n+1)
		for i := range batches {
			for range group {
				batches[i] = append(batches[i], lane.batch())
			}
		}
		i := 0
		store = func() {
			if err := buf.Append(context.Background(), batches[i]...); err != nil {
				t.Fatal(err)
			}
			i++
		}
		store()
		ours = append(ours, seconds(n, store))
		if err := buf.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b.goal(t, goal{what: fmt.Sprintf("append %d of %d KiB at once", group, size>>10), bar: "≥ 0.8 times raw", ratio: rates(floor, ours), met: rates(floor, ours) >= 0.8,
		measured: fmt.Sprintf("%.1f MB/s, %.2f ms; write+fdatasync %.1f MB/s, %.2f ms", bytes/middle(ours)/1e6, middle(ours)/float64(n)*1e3, bytes/middle(floor)/1e6, middle(floor)/float64(n)*1e3)})
}

// drains measures Next and Commit until nothing is left, and read(2) of the same files.
func (b *bench) drains(t *testing.T, size int) {
	dir := t.TempDir()
	n := max(16, 256<<20/size**messages/full)
	o := buffer.Options{Agent: gateway, MaxBytes: 1 << 30, MinFree: -1, Sync: buffer.SyncNever}
	buf, err := buffer.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	lane := newLane(buf.Begin(), size)
	for range n {
		if err := buf.Append(context.Background(), lane.batch()); err != nil {
			t.Fatal(err)
		}
	}
	if err := buf.Close(); err != nil {
		t.Fatal(err)
	}
	unix.Sync()
	names, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, caches := range []string{"warm", "cold"} {
		var floor, ours []float64
		for range max(3, *rounds) {
			if caches == "cold" {
				drop(t, names)
			}
			p := make([]byte, 1<<20)
			floor = append(floor, seconds(1, func() {
				for _, name := range names {
					f, err := os.Open(name)
					if err != nil {
						t.Fatal(err)
					}
					for err == nil {
						_, err = f.Read(p)
					}
					f.Close()
					if err != io.EOF {
						t.Fatal(err)
					}
				}
			}))
			if caches == "cold" {
				drop(t, names)
			}
			os.Remove(filepath.Join(dir, "cursor"))
			if buf, err = buffer.Open(dir, o); err != nil {
				t.Fatal(err)
			}
			ours = append(ours, seconds(1, func() {
				for got := 0; got < n; {
					run, err := buf.Next(context.Background(), batch.Limits{Bytes: 1 << 20})
					if err != nil {
						t.Fatal(err)
					}
					got += len(run.Batches)
					if err := buf.Commit(run.Last(), "out"); err != nil {
						t.Fatal(err)
					}
				}
			}))
			if err := buf.Close(); err != nil {
				t.Fatal(err)
			}
		}
		mb := float64(n*size) / 1e6
		b.goal(t, goal{what: fmt.Sprintf("drain batches of %d KiB, %s cache", size>>10, caches), bar: "≥ 0.5 times raw", ratio: rates(floor, ours), met: rates(floor, ours) >= 0.5,
			measured: fmt.Sprintf("%.0f MB/s; read %.0f MB/s", mb/middle(ours), mb/middle(floor))})
	}
}

// drop lets the kernel forget what it has of these files.
func drop(t *testing.T, names []string) {
	for _, name := range names {
		f, err := os.Open(name)
		if err == nil {
			err = errors.Join(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func seconds(n int, do func()) float64 {
	begin := time.Now()
	for range n {
		do()
	}
	return time.Since(begin).Seconds()
}

// rates is the median of how many times as fast ours were as the floor beside each.
func rates(floor, ours []float64) float64 {
	v := make([]float64, len(ours))
	for i := range ours {
		v[i] = floor[i] / ours[i]
	}
	return middle(v)
}

// A backlog is what docs/format.md says: the buffer reads all that is in it.
func TestBacklog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backlog")
	if err := backlog(dir, 5); err != nil { // without holes
		t.Fatal(err)
	}
	r, err := buffer.Verify(dir, func(f buffer.Finding) { t.Error(f.String()) })
	if err != nil || r.Segments != 5 || r.Records != 5*perSegment*perBatch {
		t.Fatalf("%+v, %v", r, err)
	}
	list, err := buffer.Segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, s := range list.Segments {
		states = append(states, s.State)
	}
	if got := strings.Join(states, " "); got != "sealed sealed sealed sealed open" {
		t.Fatal(got)
	}
}

// A process with 32 GiB that are not delivered grows by no more than 16 MiB.
func TestBacklogMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backlog")
	if err := backlog(dir, maxSegments); err != nil {
		t.Fatal(err)
	}
	if g := growth(t, dir); g.RSS > 16<<20 || g.Heap > 16<<20 {
		t.Fatalf("%+v", g)
	}
}
