package faults

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Disk is a small file system of its own (tmpfs), which can be filled and made
// read-only. It needs root, or CAP_SYS_ADMIN in a container.
type Disk struct{ Dir string }

// NewDisk makes a file system of size bytes, with further options of tmpfs. It goes
// with the test.
func NewDisk(t testing.TB, size int64, options ...string) *Disk {
	t.Helper()
	d := &Disk{Dir: t.TempDir()}
	if err := unix.Mount("tmpfs", d.Dir, "tmpfs", 0, strings.Join(append([]string{fmt.Sprintf("size=%d,mode=755", size)}, options...), ",")); err != nil {
		t.Fatalf("mount a small tmpfs: %v: this needs root, or CAP_SYS_ADMIN in a container", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.Dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", d.Dir, err)
		}
	})
	return d
}

// Resize makes it larger or smaller.
func (d *Disk) Resize(t testing.TB, size int64) {
	t.Helper()
	if err := unix.Mount("", d.Dir, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("mount %s anew with %d bytes: %v", d.Dir, size, err)
	}
}

// Used is how many bytes are taken.
func (d *Disk) Used(t testing.TB) int64 {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(d.Dir, &s); err != nil {
		t.Fatal(err)
	}
	return int64(s.Blocks-s.Bfree) * s.Bsize
}

// Fill leaves room for no more than room bytes.
func (d *Disk) Fill(t testing.TB, room int64) {
	t.Helper()
	fill(t, d.Dir, room)
}

func ballast(dir string) string { return filepath.Join(dir, ".ballast") }

func fill(t testing.TB, dir string, room int64) {
	t.Helper()
	f, err := os.OpenFile(ballast(dir), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 4096); ; {
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
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
	free(t, d.Dir)
}

func free(t testing.TB, dir string) {
	t.Helper()
	if err := os.Remove(ballast(dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// ReadOnly makes the file system read-only, or writable again. Nobody may have a
// file of it open for writing.
func (d *Disk) ReadOnly(t testing.TB, yes bool) {
	t.Helper()
	remount(t, d.Dir, yes)
}

func remount(t testing.TB, dir string, readOnly bool) {
	t.Helper()
	flags := uintptr(unix.MS_REMOUNT)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount("", dir, "", flags, ""); err != nil {
		t.Fatalf("mount %s anew, read-only %v: %v", dir, readOnly, err)
	}
}
