package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Image is a file system of its own in a file, behind a loop device: a disk whose
// power can be cut. It needs root and /dev/loop-control.
type Image struct {
	Dir  string // where it is mounted
	File string // that holds it
	kind string
}

// NewImage makes a file system of size bytes in file, which must not exist, and
// mounts it. kind is "ext4" or "xfs"; mkfs is for the program that makes it. The
// file is sparse. What is mounted goes with the test, and its loop device with that,
// also when the process is killed, if it has a mount namespace of its own.
func NewImage(t testing.TB, file, kind string, size int64, mkfs ...string) *Image {
	t.Helper()
	i := &Image{Dir: t.TempDir(), File: file, kind: kind}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-q"}, mkfs...)
	if kind == "ext4" {
		args = append(args, "-F")
	}
	command(t, "mkfs."+kind, append(args, file)...)
	t.Cleanup(func() {
		if err := unix.Unmount(i.Dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it is not mounted
			t.Errorf("unmount %s: %v", i.Dir, err)
		}
	})
	i.Mount(t, 0, "")
	return i
}

func command(t testing.TB, name string, arg ...string) {
	t.Helper()
	if out, err := exec.Command(name, arg...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(arg, " "), err, out)
	}
}

// Mount mounts it with the flags of mount(2) and the options of the file system.
func (i *Image) Mount(t testing.TB, flags uintptr, options string) {
	t.Helper()
	if err := i.mount(flags, options); err != nil {
		t.Fatalf("mount the %s in %s: %v: this needs root and loop devices (/dev/loop-control), as a machine of one's own has them", i.kind, i.File, err)
	}
}

func (i *Image) mount(flags uintptr, options string) error {
	loop, err := attach(i.File)
	if err != nil {
		return err
	}
	// The device lets go of the file when the last one who has it open, which is the
	// file system from now on, has closed it.
	defer loop.Close()
	return os.NewSyscallError("mount", unix.Mount(loop.Name(), i.Dir, i.kind, flags, options))
}

// attach puts a loop device before file.
func attach(file string) (*os.File, error) {
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, os.NewSyscallError("LOOP_CTL_GET_FREE", err)
		}
		loop, err := os.OpenFile(fmt.Sprint("/dev/loop", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		c := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &c)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			return nil, os.NewSyscallError("LOOP_CONFIGURE", err)
		}
	}
}

// Unmount unmounts it. Nobody may have a file of it open.
func (i *Image) Unmount(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		err := unix.Unmount(i.Dir, 0)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			t.Fatalf("unmount %s: %v", i.Dir, err)
		}
	}
}

// Mend checks and mends what is in the file while it is not mounted.
func (i *Image) Mend(t testing.TB) {
	t.Helper()
	if i.kind == "xfs" {
		command(t, "xfs_repair", "-f", i.File)
		return
	}
	out, err := exec.Command("e2fsck", "-f", "-y", i.File).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) { // 1: errors were found and are mended
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
}

// Fail makes every write to the device fail with EIO, or work again. The image's file
// must be on ext4: another Image, since that lets nobody write to an immutable file,
// whoever has it open.
func (i *Image) Fail(t testing.TB, yes bool) {
	t.Helper()
	Immutable(t, i.File, yes)
}

// Immutable makes a file or directory of an ext4 immutable, as chattr does.
func Immutable(t testing.TB, name string, yes bool) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const immutable = 0x10 // FS_IMMUTABLE_FL
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		t.Fatalf("flags of %s: %v", name, err)
	}
	flags &^= immutable
	if yes {
		flags |= immutable
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags); err != nil {
		t.Fatalf("make %s immutable, %v: %v", name, yes, err)
	}
}

// ReadOnly makes the mounted file system read-only, or writable again. Nobody may
// have a file of it open for writing.
func (i *Image) ReadOnly(t testing.TB, yes bool) {
	t.Helper()
	remount(t, i.Dir, yes)
}

// Fill leaves room for no more than room bytes.
func (i *Image) Fill(t testing.TB, room int64) {
	t.Helper()
	fill(t, i.Dir, room)
}

// Free undoes Fill.
func (i *Image) Free(t testing.TB) {
	t.Helper()
	free(t, i.Dir)
}

// Switch is the switch of a mounted image.
type Switch struct{ dir *os.File }

// Switch returns the image's switch. Until it is closed the image can't be unmounted.
func (i *Image) Switch(t testing.TB) *Switch {
	t.Helper()
	dir, err := os.Open(i.Dir)
	if err != nil {
		t.Fatal(err)
	}
	return &Switch{dir}
}

// goingDown is EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN, _IOR('X', 125, __u32), and
// the two ways in which nothing but the journal is written any more.
const (
	goingDown = 2<<30 | 4<<16 | 'X'<<8 | 125
	logFlush  = 1 // what is in the journal's memory is
	noFlush   = 2 // not even that
)

// Cut cuts the power: of what the file system has not handed to the device nothing
// gets there, and every call fails until the image is mounted anew. With flush,
// it still writes its journal.
func (s *Switch) Cut(flush bool) error {
	how := noFlush
	if flush {
		how = logFlush
	}
	return os.NewSyscallError("shutdown ioctl", unix.IoctlSetPointerInt(int(s.dir.Fd()), goingDown, how))
}

// Sync has the file system write everything, as a kernel does now and then.
func (s *Switch) Sync() error { return os.NewSyscallError("syncfs", unix.Syncfs(int(s.dir.Fd()))) }

// Close gives the switch back.
func (s *Switch) Close() error { return s.dir.Close() }
