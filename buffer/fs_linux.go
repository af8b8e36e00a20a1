package buffer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// osFS is one directory of the operating system. Everything goes through an
// os.Root, so that no symbolic link leads out of it, and is opened O_NOFOLLOW,
// so that none leads anywhere.
type osFS struct {
	path string
	root *os.Root
	dir  *os.File            // the directory itself: flock and fsync
	subs map[string]struct{} // sub-directories that SyncDir has not made durable yet
}

// remote are file systems on which flock or fsync mean less than they say.
var remote = map[uint32]string{
	unix.NFS_SUPER_MAGIC:   "nfs",
	unix.SMB_SUPER_MAGIC:   "smb",
	unix.CIFS_SUPER_MAGIC:  "cifs",
	unix.SMB2_SUPER_MAGIC:  "smb2",
	unix.V9FS_MAGIC:        "9p",
	unix.AFS_SUPER_MAGIC:   "afs",
	unix.CODA_SUPER_MAGIC:  "coda",
	unix.CEPH_SUPER_MAGIC:  "ceph",
	unix.OCFS2_SUPER_MAGIC: "ocfs2",
}

// openOS opens, creates if absent, checks and locks the directory.
func openOS(path string, networkFS bool) (*osFS, error) {
	if err := makeDir(path); err != nil {
		return nil, err
	}
	d, err := openDir(path)
	if err != nil {
		return nil, err
	}
	if err := d.check(networkFS); err != nil {
		d.Close()
		return nil, err
	}
	// The lock is on the directory's own descriptor: there is no lock file to
	// leave behind or to delete, and the kernel lets go of it when we die.
	if err := unix.Flock(int(d.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("open buffer %s: %w", path, ErrLocked)
		}
		return nil, fmt.Errorf("lock buffer %s: %w", path, err)
	}
	return d, nil
}

// openDir opens an existing directory without a lock, for the read-only tools.
func openDir(path string) (*osFS, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open buffer: %w", err)
	}
	dir, err := root.Open(".")
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("open buffer: %w", err)
	}
	return &osFS{path: path, root: root, dir: dir}, nil
}

// makeDir creates path 0700 with its missing parents and makes their names
// durable: a synced file in a directory that a power cut forgets is lost too.
func makeDir(path string) error {
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDir(filepath.Dir(filepath.Clean(path))); err != nil {
			return err
		}
		err = os.Mkdir(path, 0o700)
	}
	if err != nil {
		return fmt.Errorf("create buffer: %w", err)
	}
	if err := os.Chmod(path, 0o700); err != nil { // whatever the umask
		return fmt.Errorf("create buffer: %w", err)
	}
	parent, err := os.Open(filepath.Dir(filepath.Clean(path)))
	if err != nil {
		return fmt.Errorf("create buffer: %w", err)
	}
	defer parent.Close()
	if err := parent.Sync(); err != nil {
		return fmt.Errorf("create buffer: sync %s: %w", parent.Name(), err)
	}
	return nil
}

func (d *osFS) check(networkFS bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.dir.Fd()), &st); err != nil {
		return fmt.Errorf("open buffer %s: %w", d.path, err)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("open buffer %s: it belongs to uid %d and this process is uid %d: run as that user or chown it: %w", d.path, st.Uid, os.Geteuid(), fs.ErrPermission)
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("open buffer %s: mode %04o lets others write: chmod it to 0700: %w", d.path, st.Mode&0o7777, fs.ErrPermission)
	}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(int(d.dir.Fd()), &sfs); err != nil {
		return fmt.Errorf("open buffer %s: statfs: %w", d.path, err)
	}
	return refuseRemote(d.path, &sfs, networkFS)
}

func (d *osFS) List(sub string) ([]FileInfo, error) {
	dir := d.dir
	if sub != "" {
		var err error
		dir, err = d.openSub(sub)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		defer dir.Close()
	} else if _, err := dir.Seek(0, 0); err != nil {
		return nil, err
	}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	out := make([]FileInfo, 0, len(entries))
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info() // ReadDir has asked for it: dir was opened in a Root
		if errors.Is(err, fs.ErrNotExist) {
			continue // a running agent removed it
		}
		if err != nil {
			return nil, err
		}
		out = append(out, FileInfo{Name: e.Name(), Size: info.Size()})
	}
	return out, nil
}

func (d *osFS) openSub(sub string) (*os.File, error) {
	return d.root.OpenFile(sub, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
}

// makeSub creates a sub-directory if it is absent. Its name is durable after the next SyncDir.
// What is in its place and no directory, a symbolic link for one, is ENOTDIR.
func (d *osFS) makeSub(sub string) error {
	err := d.root.Mkdir(sub, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := d.root.Lstat(sub)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "mkdir", Path: sub, Err: unix.ENOTDIR}
	}
	return err
}

// changed says that sub has a new entry, for the next SyncDir. What could not be changed
// is none of its business: it may be something else, or somebody else's.
func (d *osFS) changed(sub string) {
	if d.subs == nil {
		d.subs = map[string]struct{}{}
	}
	d.subs[sub] = struct{}{}
}

func (d *osFS) Create(name string) (File, error) {
	sub, _, inSub := strings.Cut(name, "/")
	if inSub {
		if err := d.makeSub(sub); err != nil {
			return nil, err
		}
	}
	f, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if inSub {
		d.changed(sub)
	}
	if err := f.Chmod(0o600); err != nil { // whatever the umask
		f.Close()
		return nil, err
	}
	return osFile{f}, nil
}

func (d *osFS) Open(name string, write bool) (File, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := d.root.OpenFile(name, flag|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return osFile{f}, nil
}

func (d *osFS) Remove(name string) error { return d.root.Remove(name) }

func (d *osFS) Quarantine(name string) error {
	if err := d.makeSub(quarantine); err != nil {
		return err
	}
	if err := d.root.Rename(name, quarantine+"/"+name); err != nil {
		return err
	}
	d.changed(quarantine)
	return nil
}

func (d *osFS) SyncDir() error {
	for sub := range d.subs {
		dir, err := d.openSub(sub)
		if err == nil {
			err = dir.Sync()
			dir.Close()
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		delete(d.subs, sub)
	}
	return d.dir.Sync()
}

func (d *osFS) Free() (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.dir.Fd()), &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), int64(st.Blocks) * int64(st.Bsize), nil // Bsize is 32 bits wide on some machines
}

func (d *osFS) Close() error { return errors.Join(d.dir.Close(), d.root.Close()) }

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f osFile) Evict() { unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }

func (f osFile) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			if err != nil {
				return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
			}
			return nil
		}
	}
}
