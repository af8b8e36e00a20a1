// Package file is the output that stores runs as files in a directory tree, one
// object each, for whatever carries them on: rsync, a mounted share, a USB disk.
//
// An object appears whole or not at all, under its key and never over another:
//
//	<dir>/<lane>/dt=…/site=…/hr=…/<agent>/.spillway-*.tmp    written, fsynced
//	      link(2) ──> <epoch>-<first>-<last>-<crc>.ndjson.zst, then unlink, then fsync of the directory
//
// A consumer moves or deletes objects as it likes; names that begin with a dot
// are not for it. Files have mode 0600, directories 0700: logs hold secrets. Give
// a consumer its access by a group ACL on the directory or by running it as the
// same user.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"spillway/buffer/batch"
	"spillway/outputs"
)

// Config is SPILLWAY_OUTPUT_<NAME>_* of a file output.
type Config struct {
	Dir string `env:"-"` // from file:///dir; a relative one is below the working directory

	MaxBytes    outputs.Size  `env:"MAX_BYTES" envDefault:"256MiB" doc:"most bytes of files in the directory; while they are used up the output counts as failed, until a consumer takes some"`
	RollAge     time.Duration `env:"ROLL_AGE" envDefault:"1s" doc:"how long the first batch of a file may wait for more"`
	RollBytes   outputs.Size  `env:"ROLL_BYTES" envDefault:"8MiB" doc:"most bytes of one file, at most MAX_BYTES"`
	RollBatches int           `env:"ROLL_BATCHES" envDefault:"200" doc:"most batches in one file"`
}

// Validate returns what is wrong with c, one line for each option.
func (c *Config) Validate() error {
	var errs []error
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(c.Dir == "", "URL: want file:///directory")
	bad(c.MaxBytes <= 0, "MAX_BYTES=%v: want a size above 0", c.MaxBytes)
	bad(c.RollBytes <= 0 || c.RollBytes > c.MaxBytes, "ROLL_BYTES=%v: want a size above 0 and at most MAX_BYTES (%v)", c.RollBytes, c.MaxBytes)
	bad(c.RollBatches <= 0, "ROLL_BATCHES=%d: want a number above 0", c.RollBatches)
	bad(c.RollAge < 0, "ROLL_AGE=%v: want 0 or more", c.RollAge)
	return errors.Join(errs...)
}

// Modes of what the output makes.
const (
	fileMode = 0o600
	dirMode  = 0o700
)

// Output is a directory that runs are stored in. It is an outputs.Planner, safe
// for concurrent use. Calls end soon after their context only as far as the disk
// does: a system call on a hung network mount can't be interrupted.
type Output struct {
	name, site string
	c          Config

	mu sync.Mutex
	// guarded by mu
	used     int64           // bytes of files in Dir as far as known: as last counted, and added since
	inFlight int64           // part of used that is being written
	counted  bool            // used was counted in this life
	durable  map[string]bool // directories whose entries up to Dir were fsynced in this life

	wanted atomic.Int64 // bytes of the last run for which there was no room; 0: there was

	delivered, alreadyThere, bytes atomic.Uint64
}

// New returns the output name for c. It removes what an earlier life left half
// written in c.Dir, which need not exist yet.
func New(name, site string, c Config) (*Output, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("output %s: %w", name, err)
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("output %s: URL: %w", name, err)
	}
	c.Dir = dir
	o := &Output{name: name, site: site, c: c, durable: map[string]bool{}}
	o.sweep()
	return o, nil
}

// Name is the output's name in SPILLWAY_OUTPUTS.
func (o *Output) Name() string { return o.name }

// Limits are the ROLL_* settings; a batch larger than MAX_BYTES is unfit.
func (o *Output) Limits() batch.Limits {
	return batch.Limits{Bytes: int64(o.c.RollBytes), Batches: o.c.RollBatches, Age: o.c.RollAge, BatchBytes: int64(o.c.MaxBytes), Hour: true}
}

// Key is the object's path below the directory, with slashes.
func (o *Output) Key(run *batch.Run) string { return outputs.Key("", o.site, run) }

// Counts returns what was accepted since New.
func (o *Output) Counts() outputs.Counts {
	return outputs.Counts{Delivered: o.delivered.Load(), AlreadyThere: o.alreadyThere.Load(), Bytes: o.bytes.Load()}
}

// Close does nothing: no call leaves anything open.
func (o *Output) Close() error { return nil }

// Publish stores run under run.Key, durably, and accepts all of it or nothing. A
// file that is there already with these bytes is an acceptance.
func (o *Output) Publish(ctx context.Context, run *batch.Run) (int, error) {
	if stored, err := o.publish(ctx, run); err != nil {
		return 0, o.error("write "+run.Key, stored, err)
	}
	return len(run.Batches), nil
}

func (o *Output) publish(ctx context.Context, run *batch.Run) (outputs.Stored, error) {
	size, crc := run.Bytes(), run.CRC()
	for i := range run.Batches {
		if n := len(run.Batches[i].Payload); int64(n) > int64(o.c.MaxBytes) {
			return outputs.StoredNo, &unfitError{n, o.c.MaxBytes}
		}
	}
	if key, err := outputs.ParseKey(run.Key); err != nil {
		return outputs.StoredNo, err
	} else if key.CRC != crc || !filepath.IsLocal(run.Key) {
		return outputs.StoredNo, fmt.Errorf("the run's bytes (CRC %08x) are not those its key was planned for", crc)
	}
	if err := ctx.Err(); err != nil {
		return outputs.StoredNo, err
	}
	path := filepath.Join(o.c.Dir, filepath.FromSlash(run.Key))
	there, err := holds(path, size, crc)
	if err != nil {
		return outputs.StoredNo, err
	}
	if !there {
		if there, err = o.create(ctx, path, size, run); err != nil {
			if isFull(err) {
				o.wanted.Store(size)
			}
			return outputs.StoredNo, err
		}
		o.wanted.Store(0)
	}
	// Also when the file was there: the life that linked it may have ended before
	// this step.
	if err := o.settle(filepath.Dir(path)); err != nil {
		return outputs.StoredMaybe, err
	}
	if there {
		o.alreadyThere.Add(1)
	} else {
		o.delivered.Add(1)
		o.bytes.Add(uint64(size))
	}
	return outputs.StoredYes, nil
}

// create writes run's payloads to a temporary file and links it to path. there
// says that another was faster and the same bytes are at path.
func (o *Output) create(ctx context.Context, path string, size int64, run *batch.Run) (there bool, err error) {
	if err := o.reserve(size); err != nil {
		return false, err
	}
	defer func() { o.release(size, err == nil && !there) }()
	f, err := o.temp(filepath.Dir(path))
	if err != nil {
		return false, err
	}
	defer remove(f)
	for i := range run.Batches {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if _, err := f.Write(run.Batches[i].Payload); err != nil {
			return false, err
		}
		outputs.Moved(ctx)
	}
	if err := f.Sync(); err != nil {
		return false, err
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	err = os.Link(f.Name(), path)
	if errors.Is(err, fs.ErrExist) {
		return holds(path, size, run.CRC())
	}
	return false, err
}

// Probe proves by the real steps (write, fsync, link, unlink) that there is
// permission, and room: for the run that found none last, else for a few bytes.
func (o *Output) Probe(ctx context.Context, _ string) error {
	if err := o.probe(ctx); err != nil {
		return o.error("probe "+o.c.Dir, outputs.StoredNo, err)
	}
	return nil
}

func (o *Output) probe(ctx context.Context) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	const text = "spillway probe\n"
	size := max(int64(len(text)), o.wanted.Load())
	if err := o.reserve(size); err != nil {
		return err
	}
	defer o.release(size, false)
	f, err := o.temp(o.c.Dir)
	if err != nil {
		return err
	}
	defer remove(f)
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	// Blocks that are allocated and never written wear no flash. Where the file system
	// can't, the next run finds out.
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, size); isFull(err) {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	second := strings.TrimSuffix(f.Name(), tempSuffix) + "-link" + tempSuffix
	if err := os.Link(f.Name(), second); err != nil {
		return err
	}
	if err := os.Remove(second); err != nil {
		return err
	}
	return syncDir(o.c.Dir)
}

// reserve takes size bytes of MAX_BYTES. When they seem to be used up, the
// directory is counted anew: a consumer may have taken files.
func (o *Output) reserve(size int64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.counted || o.used+size > int64(o.c.MaxBytes) {
		n, err := count(o.c.Dir)
		if err != nil {
			return err
		}
		o.used, o.counted = n+o.inFlight, true
	}
	if o.used+size > int64(o.c.MaxBytes) {
		return &fullError{o.used, size, o.c.MaxBytes}
	}
	o.used += size
	o.inFlight += size
	return nil
}

// release ends a reservation; kept says that its bytes are in the directory.
func (o *Output) release(size int64, kept bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.inFlight -= size
	if !kept {
		o.used -= size
	}
}

// count sums the sizes of the regular files below dir, without temporary ones.
func count(dir string) (n int64, err error) {
	err = walk(dir, "", func(_ string, d fs.DirEntry) error {
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) || isTemp(d.Name()) {
			return nil
		}
		if err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
		return err
	})
	return n, err
}

// holds reports whether path is a file of exactly these bytes. A stranger there
// is an error: nothing is ever written over.
func holds(path string, size int64, crc uint32) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() || info.Size() != size {
		return false, errStranger
	}
	var sum crcWriter
	if _, err := io.Copy(&sum, f); err != nil {
		return false, err
	}
	if uint32(sum) != crc {
		return false, errStranger
	}
	return true, nil
}

// crcWriter is the CRC32C of what was written to it.
type crcWriter uint32

func (c *crcWriter) Write(p []byte) (int, error) {
	*c = crcWriter(batch.UpdateCRC32C(uint32(*c), p))
	return len(p), nil
}

// settle makes the entries of dir, and dir itself, survive a power cut.
func (o *Output) settle(dir string) error {
	o.mu.Lock()
	err := o.mkdirs(dir)
	o.mu.Unlock()
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// mkdirs makes dir and what is missing above it, and fsyncs the parents: once in
// this life also of directories that were there, since the life that made them may
// have ended in between. o.mu is held.
func (o *Output) mkdirs(dir string) error {
	if o.durable[dir] {
		return nil
	}
	parent := filepath.Dir(dir)
	inside := strings.HasPrefix(dir, o.c.Dir+string(filepath.Separator))
	if inside {
		if err := o.mkdirs(parent); err != nil {
			return err
		}
	}
	err := os.Mkdir(dir, dirMode)
	if errors.Is(err, fs.ErrNotExist) && !inside && parent != dir {
		if err := o.mkdirs(parent); err != nil {
			return err
		}
		err = os.Mkdir(dir, dirMode)
	}
	switch {
	case err == nil, inside && errors.Is(err, fs.ErrExist):
		err = syncDir(parent)
	case errors.Is(err, fs.ErrExist):
		err = nil // the directory was given, its parents are not ours
	}
	if err != nil {
		return err
	}
	const enough = 1024 // a new directory per agent, lane and hour; forgetting costs an fsync
	if len(o.durable) >= enough {
		clear(o.durable)
	}
	o.durable[dir] = true
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Names of temporary files; a consumer and Source step over them.
const (
	tempPrefix = ".spillway-"
	tempSuffix = ".tmp"
)

func isTemp(name string) bool {
	return strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix)
}

// temp creates a temporary file in dir, making dir when it is missing. The file
// is locked (flock) as long as it is open, which tells it from a leftover.
func (o *Output) temp(dir string) (*os.File, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for again := false; ; again = true {
		if err := o.mkdirs(dir); err != nil {
			return nil, err
		}
		f, err := os.CreateTemp(dir, tempPrefix+"*"+tempSuffix) // mode 0600
		if errors.Is(err, fs.ErrNotExist) && !again {
			clear(o.durable) // a consumer removed empty directories
			continue
		}
		if err != nil {
			return nil, err
		}
		// Without locks on this file system a leftover stays: it costs space only.
		_ = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		return f, nil
	}
}

// remove unlinks and closes a temporary file, whatever became of it: what is kept
// has another name by now, and was fsynced.
func remove(f *os.File) {
	_ = os.Remove(f.Name())
	_ = f.Close()
}

// sweep removes temporary files that nobody writes any more. What can't be looked
// at is left to the first Publish to report.
func (o *Output) sweep() {
	_ = walk(o.c.Dir, "", func(rel string, d fs.DirEntry) error {
		if !isTemp(d.Name()) || !d.Type().IsRegular() {
			return nil
		}
		path := filepath.Join(o.c.Dir, rel)
		f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
		if err != nil {
			return nil
		}
		defer f.Close()
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.Remove(path)
		}
		return nil
	})
}
