package conformance

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/buffer/batch"
	"spillway/outputs"
	"spillway/outputs/file"
	"spillway/test/faults"
)

// outbox returns an output into a directory of disk.
func outbox(t *testing.T, disk *faults.Disk) (*file.Output, string) {
	t.Helper()
	dir := filepath.Join(disk.Dir, "outbox")
	o, err := file.New("outbox", "plant", file.Config{Dir: dir, MaxBytes: 16 << 20, RollAge: time.Second, RollBytes: 8 << 20, RollBatches: 200})
	if err != nil {
		t.Fatal(err)
	}
	return o, dir
}

func fileRun(o *file.Output, epoch batch.Epoch, size int) *batch.Run {
	run := noiseRun(epoch, size)
	run.Key = o.Key(run)
	return run
}

// fileFails publishes run and probes: neither may succeed, nothing may be left, and
// both say action and hint.
func fileFails(t *testing.T, o *file.Output, dir string, run *batch.Run, action outputs.Action, hint string) {
	t.Helper()
	n, err := o.Publish(t.Context(), run)
	for _, err := range []error{err, o.Probe(t.Context(), "main")} {
		var e *outputs.Error
		if !errors.As(err, &e) || n != 0 || e.Stored != outputs.StoredNo || e.Action != action || !strings.Contains(e.Hint, hint) {
			t.Errorf("accepted %d, want %v, %q: %v", n, action, hint, err)
		}
	}
	for _, name := range files(t, dir) {
		if name == run.Key || strings.HasSuffix(name, ".tmp") {
			t.Errorf("%s is left", name)
		}
	}
}

// fileRecovers probes and publishes run: both must succeed at once.
func fileRecovers(t *testing.T, o *file.Output, dir string, run *batch.Run) {
	t.Helper()
	if err := o.Probe(t.Context(), "main"); err != nil {
		t.Errorf("the probe afterwards: %v", err)
	}
	if n, err := o.Publish(t.Context(), run); n != 1 || err != nil {
		t.Fatalf("afterwards accepted %d: %v", n, err)
	}
	body, err := os.ReadFile(filepath.Join(dir, run.Key))
	if err != nil || batch.CRC32C(body) != run.CRC() {
		t.Errorf("%d bytes, %v", len(body), err)
	}
}

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, rerr := filepath.Rel(dir, p)
			names, err = append(names, filepath.ToSlash(rel)), rerr
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return names
}

// The disk fills up. The probe proves room for what found none.
func TestFileDiskFull(t *testing.T) {
	disk := faults.NewDisk(t, 8<<20)
	o, dir := outbox(t, disk)
	before, run := fileRun(o, 1, 300<<10), fileRun(o, 2, 2<<20)
	fileRecovers(t, o, dir, before)
	disk.Fill(t, 1<<20)
	fileFails(t, o, dir, run, outputs.Failover, "free space")
	if n, err := o.Publish(t.Context(), before); n != 1 || err != nil { // is there: needs no room
		t.Errorf("accepted %d: %v", n, err)
	}
	disk.Free(t)
	fileRecovers(t, o, dir, run)
	// Not even a directory can be made.
	disk.Fill(t, 0)
	other := fileRun(o, 3, 1<<10)
	other.Lane = "other"
	other.Key = o.Key(other)
	fileFails(t, o, dir, other, outputs.Failover, "free space")
	disk.Free(t)
	fileRecovers(t, o, dir, other)
}

func TestFileReadOnly(t *testing.T) {
	disk := faults.NewDisk(t, 8<<20)
	o, dir := outbox(t, disk)
	before, run := fileRun(o, 1, 1<<10), fileRun(o, 2, 1<<10)
	fileRecovers(t, o, dir, before)
	disk.ReadOnly(t, true)
	fileFails(t, o, dir, run, outputs.Misconfigured, "writable")
	disk.ReadOnly(t, false)
	fileRecovers(t, o, dir, run)
}

// The agent's user may not write. Root may always, so the test becomes another for
// the time of the calls: credentials of files belong to a thread.
func TestFileDenied(t *testing.T) {
	disk := faults.NewDisk(t, 8<<20)
	o, dir := outbox(t, disk)
	run := fileRun(o, 1, 1<<10)
	const nobody = 65534
	runtime.LockOSThread()
	t.Cleanup(func() {
		if err := unix.Setfsuid(0); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
	if err := errors.Join(os.Chmod(filepath.Dir(disk.Dir), 0o755), os.Mkdir(dir, 0o755), unix.Setfsuid(nobody)); err != nil {
		t.Fatal(err)
	}
	fileFails(t, o, dir, run, outputs.Misconfigured, "ReadWritePaths")
	if err := errors.Join(unix.Setfsuid(0), os.Chown(dir, nobody, -1), unix.Setfsuid(nobody)); err != nil {
		t.Fatal(err)
	}
	fileRecovers(t, o, dir, run)
}

// The directory is taken away, whole or in part, or is no directory any more.
func TestFileDirectory(t *testing.T) {
	disk := faults.NewDisk(t, 8<<20)
	o, dir := outbox(t, disk)
	run := fileRun(o, 1, 1<<10)
	for _, gone := range []string{dir, filepath.Join(dir, "main"), filepath.Dir(filepath.Join(dir, run.Key))} {
		fileRecovers(t, o, dir, run)
		if err := os.RemoveAll(gone); err != nil {
			t.Fatal(err)
		}
	}
	fileRecovers(t, o, dir, run)
	if err := os.Rename(dir, dir+"-"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fileFails(t, o, dir, run, outputs.Misconfigured, "must be a directory")
	if err := errors.Join(os.Remove(dir), os.Rename(dir+"-", dir)); err != nil {
		t.Fatal(err)
	}
	counts := o.Counts()
	fileRecovers(t, o, dir, run)
	if o.Counts().AlreadyThere != counts.AlreadyThere+1 {
		t.Errorf("counted %+v, then %+v", counts, o.Counts())
	}
}
