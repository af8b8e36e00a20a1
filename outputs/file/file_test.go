package file

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/buffer/batch"
	"spillway/outputs"
	"spillway/outputs/outputtest"
)

func config(dir string) Config {
	return Config{Dir: dir, MaxBytes: 16 << 20, RollAge: time.Second, RollBytes: 8 << 20, RollBatches: 200}
}

func TestConformance(t *testing.T) {
	outputtest.Run(t, outputtest.Harness{New: func(t *testing.T) *outputtest.FarSide {
		dir := filepath.Join(t.TempDir(), "a", "outbox")
		return &outputtest.FarSide{
			Agent: "gw1", Site: "plant", Bare: true,
			Output: func(t *testing.T) outputs.Output { return open(t, config(dir)) },
			Source: NewSource(dir),
			Refuse: func(t *testing.T) func() {
				// A file where the directory belongs: refuses root, too.
				if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(dir, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				return func() {
					if err := os.Remove(dir); err != nil {
						t.Fatal(err)
					}
				}
			},
		}
	}})
}

func open(t *testing.T, c Config) *Output {
	t.Helper()
	o, err := New("outbox", "plant", c)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// newRun returns a run of plain lines with its key for o.
func newRun(o *Output, lane, text string) *batch.Run {
	p := []byte(text + "\n")
	h := batch.Header{Codec: batch.None, Length: uint32(len(p)), Raw: uint32(len(p)), First: 1, Count: 1,
		FirstTime: time.Date(2026, 11, 20, 14, 5, 0, 0, time.UTC).UnixNano(), CRC: batch.CRC32C(p), Sum: sha256.Sum256(p)}
	run := &batch.Run{Lane: lane, Agent: "gw1", Epoch: 7, Batches: []batch.Batch{{Header: h, Payload: p}}, Attempt: 1}
	run.Key = o.Key(run)
	return run
}

func publish(t *testing.T, o *Output, run *batch.Run) {
	t.Helper()
	if n, err := o.Publish(t.Context(), run); err != nil || n != len(run.Batches) {
		t.Fatalf("accepted %d: %v", n, err)
	}
}

// tree lists everything below dir.
func tree(t *testing.T, dir string) (names []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

// Two lives that race with one plan store it once, and both say so.
func TestRacingPlans(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, config(dir)), open(t, config(dir))
	for i := range 50 {
		run := newRun(a, fmt.Sprintf("l%d", i), "x")
		var wg sync.WaitGroup
		for _, o := range []*Output{a, b} {
			wg.Go(func() { publish(t, o, run) })
		}
		wg.Wait()
	}
	if n := len(tree(t, dir)); n != 50 {
		t.Errorf("%d files after 50 plans", n)
	}
	s, r := a.Counts(), b.Counts()
	if s.Delivered+r.Delivered != 50 || s.AlreadyThere+r.AlreadyThere != 50 || s.Bytes+r.Bytes != 100 {
		t.Errorf("counted %+v and %+v", s, r)
	}
}

// What is at a key is never written over.
func TestStranger(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"other bytes":    func(p string) error { return os.WriteFile(p, []byte("a\n"), 0o600) },
		"shorter":        func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"a directory":    func(p string) error { return os.Mkdir(p, 0o700) },
		"a symlink":      func(p string) error { return os.Symlink("/etc/hostname", p) },
		"a dead symlink": func(p string) error { return os.Symlink("nowhere", p) },
		"a pipe":         func(p string) error { return syscall.Mkfifo(p, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			o := open(t, config(t.TempDir()))
			run := newRun(o, "main", "x")
			path := filepath.Join(o.c.Dir, run.Key)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := make(path); err != nil {
				t.Fatal(err)
			}
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			n, err := o.Publish(t.Context(), run)
			if s, a := outputs.Classify(err); n != 0 || s != outputs.StoredNo || a != outputs.Misconfigured {
				t.Errorf("accepted %d, stored %v, %v: %v", n, s, a, err)
			}
			after, err := os.Lstat(path)
			if err != nil || after.Mode() != before.Mode() || after.Size() != before.Size() {
				t.Errorf("it was %v and is %v, %v", before, after, err)
			}
			if err := os.Rename(path, path+".stranger"); err != nil {
				t.Fatal(err)
			}
			publish(t, o, run)
		})
	}
}

// A full directory is a failed output until a consumer takes something.
func TestFull(t *testing.T) {
	c := config(t.TempDir())
	c.MaxBytes, c.RollBytes = 1000, 1000
	if err := os.WriteFile(filepath.Join(c.Dir, "of somebody else"), make([]byte, 300), 0o600); err != nil {
		t.Fatal(err)
	}
	o := open(t, c)
	text := strings.Repeat("x", 399)
	first, second := newRun(o, "a", text), newRun(o, "b", text)
	publish(t, o, first)
	n, err := o.Publish(t.Context(), second)
	var e *outputs.Error
	if !errors.As(err, &e) || n != 0 || e.Stored != outputs.StoredNo || e.Action != outputs.Failover || e.Hint == "" {
		t.Fatalf("accepted %d with 300 bytes of room: %v", n, err)
	}
	publish(t, o, first) // is there already: needs no room
	if err := o.Probe(t.Context(), "main"); err == nil {
		t.Error("the probe finds room where the last run found none")
	}
	if err := open(t, c).Probe(t.Context(), "main"); err != nil {
		t.Errorf("no run was refused, 300 bytes are left: %v", err)
	}
	if err := os.Remove(filepath.Join(c.Dir, first.Key)); err != nil {
		t.Fatal(err)
	}
	publish(t, o, second)
	if err := os.WriteFile(filepath.Join(c.Dir, "more"), make([]byte, 300), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(t, c).Probe(t.Context(), "main"); err == nil {
		t.Error("the probe succeeds in a full directory")
	} else if _, a := outputs.Classify(err); a != outputs.Failover {
		t.Errorf("full is told by the probe as %v", a)
	}
}

// The system's own errors, by the real calls as far as a test can cause them.
func TestErrorClasses(t *testing.T) {
	for _, c := range []struct {
		err  error
		want outputs.Action
	}{
		{syscall.ENOSPC, outputs.Failover}, {syscall.EDQUOT, outputs.Failover}, {syscall.EIO, outputs.Failover}, {syscall.ESTALE, outputs.Failover},
		{syscall.EROFS, outputs.Misconfigured}, {syscall.EACCES, outputs.Misconfigured}, {syscall.EPERM, outputs.Misconfigured},
		{syscall.EOPNOTSUPP, outputs.Misconfigured}, {syscall.ENOTDIR, outputs.Misconfigured}, {syscall.ENAMETOOLONG, outputs.Misconfigured},
		{syscall.EMFILE, outputs.Retry}, {syscall.ENOMEM, outputs.Retry}, {context.Canceled, outputs.Retry}, {io.ErrShortWrite, outputs.Retry},
	} {
		o := open(t, config(t.TempDir()))
		var e *outputs.Error
		if !errors.As(o.error("write k", outputs.StoredNo, &fs.PathError{Op: "write", Path: "k", Err: c.err}), &e) || e.Action != c.want ||
			(e.Action != outputs.Retry) != (e.Hint != "") || !errors.Is(e, c.err) {
			t.Errorf("%v is told as %+v, want %v", c.err, e, c.want)
		}
	}
	o := open(t, config("/proc/self/no"))
	if _, err := o.Publish(t.Context(), newRun(o, "main", "x")); err == nil || o.Probe(t.Context(), "main") == nil {
		t.Error("/proc takes files")
	}
}

func TestModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := t.TempDir()
	o := open(t, config(filepath.Join(dir, "x", "outbox")))
	publish(t, o, newRun(o, "main", "x"))
	if err := filepath.WalkDir(filepath.Join(dir, "x"), func(p string, d fs.DirEntry, err error) error {
		info, ierr := d.Info()
		if err := errors.Join(err, ierr); err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", p, info.Mode().Perm(), want)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A new life removes what an earlier one left half written, and nothing else: not
// what another process is writing, not what has another name.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	o := open(t, config(dir))
	publish(t, o, newRun(o, "main", "x"))
	sub := filepath.Dir(tree(t, dir)[0])
	stale := filepath.Join(sub, tempPrefix+"1"+tempSuffix)
	for _, p := range []string{stale, filepath.Join(dir, tempPrefix+"2"+tempSuffix), filepath.Join(sub, "mine.tmp"), filepath.Join(dir, ".spillway-note")} {
		if err := os.WriteFile(p, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	live, err := o.temp(sub)
	if err != nil {
		t.Fatal(err)
	}
	open(t, config(dir))
	left := tree(t, dir)
	if len(left) != 4 || !slices.Contains(left, live.Name()) || slices.Contains(left, stale) {
		t.Errorf("left after a new life:\n%s", strings.Join(left, "\n"))
	}
	remove(live)
}

// Directories that a consumer removed when they were empty are made again.
func TestDirectoriesTaken(t *testing.T) {
	o := open(t, config(filepath.Join(t.TempDir(), "outbox")))
	run := newRun(o, "main", "x")
	for range 3 {
		publish(t, o, run)
		if err := os.RemoveAll(o.c.Dir); err != nil {
			t.Fatal(err)
		}
	}
	if s := o.Counts(); s.Delivered != 3 || s.AlreadyThere != 0 {
		t.Errorf("counted %+v", s)
	}
}

// The order is that of keys as strings, whatever the directories are called.
func TestSourceOrder(t *testing.T) {
	dir := t.TempDir()
	o := open(t, config(dir))
	var want []string
	for _, agent := range []string{"gw", "gw-1", "gw_1", "Gw", "a"} {
		run := newRun(o, "main", agent)
		run.Agent = agent
		run.Key = o.Key(run)
		publish(t, o, run)
		want = append(want, run.Key)
	}
	slices.Sort(want)
	for _, p := range []string{"main/note.txt", want[0] + "~", "x.ndjson.zst", "main/" + tempPrefix + "1" + tempSuffix} {
		if err := os.WriteFile(filepath.Join(dir, p), []byte("no object"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for object, err := range NewSource(dir).Objects(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(object.Body)
		if err != nil || !bytes.Equal(body, []byte(object.Agent+"\n")) {
			t.Errorf("%s holds %q, %v", object.Name, body, err)
		}
		if err := object.Body.Close(); err != nil {
			t.Error(err)
		}
		got = append(got, object.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("read\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, err := range NewSource(filepath.Join(dir, "absent")).Objects(t.Context()) {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("an absent directory reads as %v", err)
		}
	}
}

func TestNew(t *testing.T) {
	for name, change := range map[string]func(c *Config){
		"URL":          func(c *Config) { c.Dir = "" },
		"MAX_BYTES":    func(c *Config) { c.MaxBytes = 0 },
		"ROLL_BYTES":   func(c *Config) { c.RollBytes = c.MaxBytes + 1 },
		"ROLL_BATCHES": func(c *Config) { c.RollBatches = 0 },
		"ROLL_AGE":     func(c *Config) { c.RollAge = -1 },
	} {
		c := config(t.TempDir())
		change(&c)
		if _, err := New("outbox", "plant", c); err == nil || !strings.Contains(err.Error(), " "+name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A key that does not carry the bytes' CRC, or leads out of the directory, is refused.
	o := open(t, config(t.TempDir()))
	run := newRun(o, "main", "x")
	for _, key := range []string{"", "../" + run.Key, newRun(o, "main", "y").Key} {
		run.Key = key
		if n, err := o.Publish(t.Context(), run); err == nil || n != 0 {
			t.Errorf("key %q is taken", key)
		}
	}
}

// BenchmarkPublish stores one batch of half a MiB per operation, fsyncs included.
func BenchmarkPublish(b *testing.B) {
	o, err := New("outbox", "plant", Config{Dir: b.TempDir(), MaxBytes: 1 << 40, RollBytes: 8 << 20, RollBatches: 200})
	if err != nil {
		b.Fatal(err)
	}
	run := newRun(o, "main", strings.Repeat("x", 512<<10))
	b.SetBytes(run.Bytes())
	b.ReportAllocs()
	for b.Loop() {
		run.Batches[0].First++
		run.Key = o.Key(run)
		if _, err := o.Publish(b.Context(), run); err != nil {
			b.Fatal(err)
		}
	}
}
