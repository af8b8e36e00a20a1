package faults

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestDisk(t *testing.T) {
	d := NewDisk(t, 1<<20)
	write := func(size int) error { return os.WriteFile(filepath.Join(d.Dir, "f"), make([]byte, size), 0o600) }
	if err := write(100 << 10); err != nil {
		t.Fatal(err)
	}
	d.Fill(t, 64<<10)
	if err := write(200 << 10); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	if err := write(50 << 10); err != nil {
		t.Errorf("what there is room for: %v", err)
	}
	d.Free(t)
	if err := write(200 << 10); err != nil {
		t.Error(err)
	}
	d.ReadOnly(t, true)
	if err := write(1); !errors.Is(err, syscall.EROFS) {
		t.Errorf("read-only: %v", err)
	}
	d.ReadOnly(t, false)
	if err := write(1); err != nil {
		t.Error(err)
	}
}
