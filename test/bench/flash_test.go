package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/buffer"
	"spillway/buffer/batch"
)

// wear measures what a disk is given to write for each batch that is made durable, and
// for each cursor: the journal of the file system included, as the block layer counts
// (/sys/block/<device>/stat). The file systems are made for it, on loop devices.
func wear(t *testing.T, b *bench) {
	n := max(4, 300**messages/full)
	for _, c := range []struct {
		name string
		mkfs []string
	}{
		{"ext4", []string{"mkfs.ext4", "-q"}},
		{"ext4, fast_commit", []string{"mkfs.ext4", "-q", "-O", "fast_commit"}},
		{"xfs", []string{"mkfs.xfs", "-q"}},
	} {
		dir, written := loop(t, c.mkfs...)
		var measured []string
		var atRest float64
		for _, size := range []int{256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10} {
			each, cursor := b.wears(t, filepath.Join(dir, strconv.Itoa(size)), size, n, written)
			measured = append(measured, fmt.Sprintf("%.1f", each/1024))
			atRest = cursor
		}
		b.goal(t, goal{what: "written for a durable batch, " + c.name, measured: strings.Join(measured, ", ") + fmt.Sprintf(" KiB for 1/4, 1, 4, 16, 64, 256; cursor %.1f", atRest/1024)})
	}
}

// wears appends n batches of size bytes, with an fsync each, then delivers them with
// the position saved after each, and returns what both have cost.
func (b *bench) wears(t *testing.T, dir string, size, n int, written func() int64) (each, cursor float64) {
	buf, err := buffer.Open(dir, buffer.Options{Agent: gateway, MaxBytes: 1 << 30, MinFree: -1, SyncGap: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Close()
	lane := newLane(buf.Begin(), size)
	if err := buf.Append(context.Background(), lane.batch()); err != nil { // begins the segment
		t.Fatal(err)
	}
	before := written()
	for range n {
		if err := buf.Append(context.Background(), lane.batch()); err != nil {
			t.Fatal(err)
		}
	}
	between := written()
	for range n {
		run, err := buf.Next(context.Background(), batch.Limits{Batches: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := buf.Commit(run.Last(), "out"); err != nil {
			t.Fatal(err)
		}
		if err := buf.SetPlan(buffer.Plan{}); err != nil { // saves the position
			t.Fatal(err)
		}
	}
	return float64(between-before) / float64(n), float64(written()-between) / float64(n)
}

// loop mounts a file system of its own that mkfs makes. written is how many bytes its
// device has been given, once nothing waits any more.
func loop(t *testing.T, mkfs ...string) (dir string, written func() int64) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	dir = t.TempDir()
	must := func(what string, args ...string) string {
		t.Helper()
		out, err := exec.Command(what, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v: %s: this needs root, loop devices, e2fsprogs and xfsprogs", what, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	must("truncate", "-s", "1G", image)
	must(mkfs[0], append(mkfs[1:], image)...)
	device := must("losetup", "-f", "--show", image)
	t.Cleanup(func() { must("losetup", "-d", device) })
	must("mount", "-o", "noatime", device, dir)
	t.Cleanup(func() { must("umount", dir) })
	stat := filepath.Join("/sys/block", filepath.Base(device), "stat")
	return dir, func() int64 {
		t.Helper()
		fd, err := unix.Open(dir, unix.O_RDONLY, 0)
		if err == nil {
			err = unix.Syncfs(fd)
			unix.Close(fd)
		}
		time.Sleep(scaled(100 * time.Millisecond))
		text, err2 := os.ReadFile(stat)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		sectors, err := strconv.ParseInt(strings.Fields(string(text))[6], 10, 64) // of 512 bytes
		if err != nil {
			t.Fatal(err)
		}
		return sectors * 512
	}
}
