package outputs

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Disk is the file system that a directory is on.
type Disk struct {
	Kind  string // ext4, xfs, nfs4, …; "" when the kernel does not tell
	Free  int64  // bytes that an ordinary user may still write
	Total int64  // bytes
}

// DiskOf looks at the file system that dir is, or would be, on.
func DiskOf(dir string) (d Disk, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return d, err
	}
	var s unix.Statfs_t
	for {
		err = unix.Statfs(dir, &s)
		if up := filepath.Dir(dir); err == unix.ENOENT && up != dir {
			dir = up
			continue
		}
		break
	}
	if err != nil {
		return d, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return Disk{Kind: kindOf(dir), Free: int64(s.Bavail) * int64(s.Bsize), Total: int64(s.Blocks) * int64(s.Bsize)}, nil
}

// kindOf is the type of the mount that dir is on, from proc_pid_mountinfo(5):
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//	(mount ID)                                   (type)
func kindOf(dir string) string {
	var s unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID, &s) != nil || s.Mask&unix.STATX_MNT_ID == 0 {
		return ""
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	id := strconv.FormatUint(s.Mnt_id, 10) + " "
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if !strings.HasPrefix(lines.Text(), id) {
			continue
		}
		if _, behind, ok := strings.Cut(lines.Text(), " - "); ok {
			kind, _, _ := strings.Cut(behind, " ")
			return kind
		}
	}
	return ""
}
