package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"spillway/buffer"
	"spillway/test/faults"
)

// A disk that is really full, of bytes or of files: what the policies promise holds,
// nothing that was stored is lost, and it all goes on when there is room again.
func TestFull(t *testing.T) {
	type fs interface {
		Fill(t testing.TB, room int64)
		Free(t testing.TB)
	}
	const room = 12 << 20 // that a third party leaves
	kinds := []struct {
		name string
		make func(t *testing.T) (fs, string)
	}{
		{"tmpfs", func(t *testing.T) (fs, string) {
			d := faults.NewDisk(t, 24<<20, "nr_inodes=64")
			return d, d.Dir
		}},
		{"ext4", func(t *testing.T) (fs, string) {
			i := faults.NewImage(t, filepath.Join(faults.NewDisk(t, 1<<30).Dir, "image"), "ext4", 48<<20, "-N", "64", "-m", "0")
			return i, i.Dir
		}},
		{"xfs", func(t *testing.T) (fs, string) {
			i := faults.NewImage(t, filepath.Join(faults.NewDisk(t, 1<<30).Dir, "image"), "xfs", 300<<20)
			return i, i.Dir
		}},
	}
	for _, k := range kinds {
		for _, policy := range []buffer.Policy{buffer.Hold, buffer.DropOldest} {
			t.Run(fmt.Sprintf("%s/%v/bytes", k.name, policy), func(t *testing.T) {
				disk, dir := k.make(t)
				disk.Fill(t, room)
				l := newLane(t, filepath.Join(dir, "lane"), buffer.Options{Full: policy, MaxBytes: 1 << 30, MinFree: -1, SegmentBytes: 1 << 20, KeepAcked: -1})
				filled(t, l, 1000)
				disk.Fill(t, 0) // and now it is somebody else's
				l.again(t)
				if policy == buffer.Hold {
					// The third party frees what is its own.
					ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
					defer cancel()
					disk.Free(t)
					if err := l.b.Room(ctx, 0, 100<<10, 0); err != nil {
						t.Fatalf("there is room, and nobody hears of it: %v", err)
					}
				} else {
					disk.Free(t)
				}
				if _, err := l.fill(50<<10, 20); err != nil {
					t.Errorf("there is room again: %v", err)
				}
				l.finish()
			})
			if k.name == "xfs" {
				continue // it makes inodes where there are bytes
			}
			t.Run(fmt.Sprintf("%s/%v/files", k.name, policy), func(t *testing.T) {
				_, dir := k.make(t)
				l := newLane(t, filepath.Join(dir, "lane"), buffer.Options{Full: policy, MaxBytes: 1 << 30, MinFree: -1, SegmentBytes: 100 << 10, KeepAcked: -1})
				if _, err := l.fill(30<<10, 20); err != nil {
					t.Fatal(err)
				}
				var others []string
				for i := 0; ; i++ {
					name := filepath.Join(dir, fmt.Sprint("other-", i))
					f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL, 0o600)
					if errors.Is(err, syscall.ENOSPC) {
						break
					} else if err != nil {
						t.Fatal(err)
					}
					f.Close()
					others = append(others, name)
				}
				filled(t, l, 100)
				l.again(t)
				for _, name := range others {
					if err := os.Remove(name); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := l.fill(30<<10, 20); err != nil {
					t.Errorf("there is room again: %v", err)
				}
				l.finish()
			})
		}
	}
}

// filled appends up to n batches to a buffer whose disk can't hold them.
func filled(t *testing.T, l *lane, n int) {
	t.Helper()
	stored, err := l.fill(30<<10, n)
	switch {
	case l.o.Full == buffer.DropOldest && err != nil:
		t.Fatalf("%d batches are stored, and the oldest do not make room: %v", stored, err)
	case l.o.Full == buffer.Hold && !errors.Is(err, buffer.ErrFull):
		t.Fatalf("%d batches more are stored on a disk that has no room for them: %v", stored, err)
	}
	if l.o.Full == buffer.Hold {
		// What is delivered makes room.
		if took := l.deliver(80); took < 20 {
			t.Fatalf("%d batches were delivered", took)
		}
		l.b.Maintain(time.Now())
		if err := l.append(30 << 10); err != nil {
			t.Errorf("much is delivered, and there is no room for a batch: %v", err)
		}
	}
}

// again begins a life on a disk that may have no room at all, delivers a part there,
// and ends it.
func (l *lane) again(t *testing.T) {
	t.Helper()
	_ = l.b.Close() // the footer or the cursor may find no room
	l.open()
	l.deliver(20)
	if err := l.append(30 << 10); err != nil && !errors.Is(err, buffer.ErrFull) {
		t.Errorf("append on a full disk: %v", err)
	}
	l.b.Maintain(time.Now().Add(time.Minute))
}
