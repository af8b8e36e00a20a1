package crash

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"spillway/buffer"
	"spillway/test/faults"
)

// A disk that fails for real: an ext4 of 128 MiB whose device has only a few MiB,
// so that writes to it fail behind the file system's back and fsync says so. The
// kernel makes it read-only then. What was durable is delivered from it, and after
// it was mended there is all of it.
func TestFailingDisk(t *testing.T) {
	for _, sync := range []buffer.SyncPolicy{buffer.SyncGroup, buffer.SyncInterval} {
		t.Run(sync.String(), func(t *testing.T) {
			device := faults.NewDisk(t, 20<<20)
			image := faults.NewImage(t, filepath.Join(device.Dir, "image"), "ext4", 128<<20, "-e", "remount-ro")
			o := buffer.Options{Sync: sync, MaxBytes: 1 << 30, MinFree: -1, SegmentBytes: 1 << 20, KeepAcked: -1}
			l := newLane(t, filepath.Join(image.Dir, "lane"), o)
			stored, err := l.fill(50<<10, 5000)
			if err == nil {
				t.Fatal("128 MiB fit into 20")
			}
			t.Logf("after %d batches: %v", stored, err)
			if errors.Is(err, buffer.ErrFull) {
				t.Errorf("a disk that fails counts as full")
			}
			if err := os.WriteFile(filepath.Join(image.Dir, "f"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
				t.Fatalf("this kernel did not make the file system read-only: %v", err)
			}
			if sync == buffer.SyncInterval {
				// Not all that Append returned for was durable. What is handed out was.
				l.promised = nil
			}
			// It can still be read.
			if took := l.deliver(stored / 2); took < stored/2 {
				t.Errorf("%d of %d batches were delivered from the read-only disk", took, stored/2)
			}
			if err := l.b.Close(); err == nil {
				t.Error("Close says that all is well")
			}
			// Also by a life that begins there.
			l.open()
			l.deliver(20)
			_ = l.b.Close() // as above

			image.Unmount(t)
			device.Resize(t, 200<<20)
			image.Mend(t)
			image.Mount(t, 0, "")
			l.open()
			if _, err := l.fill(50<<10, 100); err != nil {
				t.Errorf("the disk is whole again: %v", err)
			}
			l.finish()
		})
	}
}

// A disk that fails for a while: the file system has no journal, so that it takes
// writes again as soon as its device does. What it did not take meanwhile waits in
// memory, is delivered from there, and is on the disk in the end.
func TestDiskComesBack(t *testing.T) {
	image := failing(t, "-O", "^has_journal", "-e", "continue")
	l := newLane(t, filepath.Join(image.Dir, "lane"), buffer.Options{MaxBytes: 1 << 30, MinFree: -1, SegmentBytes: 1 << 20, KeepAcked: -1, Memory: 4 << 20})
	stored, err := l.fill(50<<10, 100)
	if err != nil {
		t.Fatal(err)
	}
	image.Fail(t, true)
	kept := 0
	for err = l.append(50 << 10); errors.Is(err, buffer.ErrMemory); err = l.append(50 << 10) {
		kept++
	}
	t.Logf("%d batches on the disk, %d in memory, then: %v", stored, kept, err)
	if st := l.b.Stats(); !st.Degraded || kept < 60 || kept > 82 || err == nil {
		t.Errorf("%d batches of 50 KiB in a ring of 4 MiB, degraded %v, then %v", kept, st.Degraded, err)
	}
	if took := l.deliver(stored + 20); took < stored+20 {
		t.Errorf("%d batches were delivered, of %d on the disk and %d in memory", took, stored, kept)
	}
	if err := l.append(50 << 10); !errors.Is(err, buffer.ErrMemory) {
		t.Errorf("a part of the ring is delivered, and a batch finds this: %v", err)
	}
	image.Fail(t, false)
	for end := time.Now().Add(time.Minute); l.b.Stats().Degraded; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the disk takes writes again, and nobody finds out")
		}
		l.b.Maintain(time.Now())
	}
	if _, err := l.fill(50<<10, 20); err != nil {
		t.Error(err)
	}
	// Now everything is durable.
	l.promised = slices.Sorted(maps.Keys(l.content))
	if err := l.b.Close(); err != nil {
		t.Error(err)
	}
	image.Unmount(t)
	image.Mount(t, 0, "")
	l.open()
	l.finish()
}

// failing makes a disk whose device can fail.
func failing(t *testing.T, mkfs ...string) *faults.Image {
	t.Helper()
	below := faults.NewImage(t, filepath.Join(faults.NewDisk(t, 1<<30).Dir, "device"), "ext4", 200<<20)
	return faults.NewImage(t, filepath.Join(below.Dir, "image"), "ext4", 128<<20, mkfs...)
}
