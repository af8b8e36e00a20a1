package buffer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCheck holds Check to what Open does, and to touching nothing.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name    string
		make    func(path string) error
		refused bool
	}{
		{"new", func(string) error { return nil }, false},
		{"ours", func(p string) error { return os.Mkdir(p, 0o700) }, false},
		{"writable for all", func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o777)) }, true},
		{"file", func(p string) error { return os.WriteFile(p, nil, 0o600) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, tt.name)
			if err := tt.make(path); err != nil {
				t.Fatal(err)
			}
			if err := Check(path, false); (err != nil) != tt.refused {
				t.Errorf("Check: %v, refused: %t", err, tt.refused)
			}
			if _, err := os.Stat(path); tt.name == "new" && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Check made %s: %v", path, err)
			}
			b, err := Open(path, Options{Agent: "gw1"})
			if (err != nil) != tt.refused {
				t.Errorf("Open: %v", err)
			}
			if err == nil {
				if err := Check(path, false); err != nil {
					t.Errorf("Check of a buffer that is open: %v", err)
				}
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	nfs := unix.Statfs_t{Type: unix.NFS_SUPER_MAGIC}
	if err := refuseRemote(dir, &nfs, false); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("nfs: %v", err)
	}
	if err := refuseRemote(dir, &nfs, true); err != nil {
		t.Errorf("nfs that is allowed: %v", err)
	}
}

// TestSizes holds Sizes to the limits of a buffer that is opened with the same
// options.
func TestSizes(t *testing.T) {
	for name, o := range map[string]Options{"defaults": {}, "set": {MaxBytes: 5 << 20, MinFree: 1 << 20}, "all may be used": {MinFree: -1}} {
		t.Run(name, func(t *testing.T) {
			o.Agent = "gw1"
			dir := filepath.Join(t.TempDir(), "not", "yet")
			most, free, err := o.Sizes(dir)
			if err != nil {
				t.Fatal(err)
			}
			b, err := Open(dir, o)
			if err != nil {
				t.Fatal(err)
			}
			if most != b.o.MaxBytes || free != max(0, b.o.MinFree) {
				t.Errorf("%d and %d, the buffer has %d and %d", most, free, b.o.MaxBytes, b.o.MinFree)
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
