package buffer

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Check returns why Open would refuse dir, nil when it would not: its owner, its
// mode, its file system. It does not look at the lock, and changes nothing. dir
// need not exist yet; then the file system of what there is above it counts.
func Check(dir string, networkFS bool) error {
	d, err := openDir(dir)
	if err == nil {
		defer d.Close()
		return d.check(networkFS)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s, err := statfs(dir)
	if err != nil {
		return fmt.Errorf("open buffer %s: %w", dir, err)
	}
	return refuseRemote(dir, &s, networkFS)
}

// Sizes returns the MaxBytes and MinFree that Open would use in dir, which need
// not exist yet: the defaults depend on the size of its file system. minFree is 0
// when nothing is left to others.
func (o Options) Sizes(dir string) (maxBytes, minFree int64, err error) {
	s, err := statfs(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("size of the file system of %s: %w", dir, err)
	}
	o, err = o.withDefaults(int64(s.Blocks) * int64(s.Bsize))
	return o.MaxBytes, max(0, o.MinFree), err
}

// statfs asks about the file system that dir is, or would be, on.
func statfs(dir string) (s unix.Statfs_t, err error) {
	for {
		err = unix.Statfs(dir, &s)
		if up := filepath.Dir(dir); err == unix.ENOENT && up != dir {
			dir = up
			continue
		}
		return s, err
	}
}

func refuseRemote(path string, s *unix.Statfs_t, networkFS bool) error {
	if name, ok := remote[uint32(s.Type)]; ok && !networkFS {
		return fmt.Errorf("open buffer %s: on %s neither locks nor syncs can be relied on: use a local disk, or set SPILLWAY_BUFFER_NETWORK_FS=true: %w", path, name, errors.ErrUnsupported)
	}
	return nil
}
