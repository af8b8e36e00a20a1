package faults

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Disk is a small file system of its own (tmpfs), which can be filled and made
// read-only. It needs root, or CAP_SYS_ADMIN in a container.
type Disk struct{ Dir string }

// NewDisk makes a file system of size bytes. It goes with the test.
func NewDisk(t testing.TB, size int64) *Disk {
	t.Helper()
	d := &Disk{Dir: t.TempDir()}
	if err := unix.Mount("tmpfs", d.Dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", size)); err != nil {
		t.Fatalf("mount a small tmpfs: %v: this needs root, or CAP_SYS_ADMIN in a container", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.Dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", d.Dir, err)
		}
	})
	return d
}

func (d *Disk) ballast() string { return filepath.Join(d.Dir, ".ballast") }

// Fill leaves room for no more than room bytes.
func (d *Disk) Fill(t testing.TB, room int64) {
	t.Helper()
	f, err := os.OpenFile(d.ballast(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 4096); ; {
		var s unix.Statfs_t
		if err := unix.Statfs(d.Dir, &s); err != nil {
			t.Fatal(err)
		}
		if int64(s.Bavail)*s.Bsize <= room {
			return
		}
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// Free undoes Fill.
func (d *Disk) Free(t testing.TB) {
	t.Helper()
	if err := os.Remove(d.ballast()); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// ReadOnly makes the file system read-only, or writable again. Nobody may have a
// file of it open for writing.
func (d *Disk) ReadOnly(t testing.TB, yes bool) {
	t.Helper()
	flags := uintptr(unix.MS_REMOUNT)
	if yes {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount("", d.Dir, "", flags, ""); err != nil {
		t.Fatalf("mount %s anew, read-only %v: %v", d.Dir, yes, err)
	}
}
