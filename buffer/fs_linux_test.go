package buffer

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain also is the process that holds a lock in TestLock.
func TestMain(m *testing.M) {
	if dir := os.Getenv("BUFFER_TEST_HOLD"); dir != "" {
		if _, err := Open(dir, Options{Agent: "other"}); err != nil {
			os.Stdout.WriteString(err.Error())
			os.Exit(1)
		}
		os.Stdout.WriteString("open\n")
		time.Sleep(time.Minute)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Mode().Perm()
}

func TestModes(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	for _, umask := range []int{0, 0o777} {
		syscall.Umask(umask)
		dir := filepath.Join(t.TempDir(), "lane")
		if umask == 0o777 {
			syscall.Umask(0)
			dir = filepath.Join(t.TempDir(), "lane")
			syscall.Umask(umask)
		}
		b := mustOpen(t, dir, Options{SyncGap: -1})
		if err := b.Append(t.Context(), newWriter(b.Begin()).seal(1, text(10, 1))); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if m := mode(t, dir); m != 0o700 {
			t.Errorf("umask %o: directory %o", umask, m)
		}
		files, err := os.ReadDir(dir)
		if err != nil || len(files) != 2 {
			t.Fatalf("%v, %v", files, err)
		}
		for _, f := range files {
			if m := mode(t, filepath.Join(dir, f.Name())); m != 0o600 {
				t.Errorf("umask %o: %s %o", umask, f.Name(), m)
			}
		}
	}
}

func TestMissingParentsAreCreated(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b", "c")
	mustOpen(t, dir, Options{})
	for _, d := range []string{dir, filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
		if m := mode(t, d); m != 0o700 {
			t.Errorf("%s has mode %o", d, m)
		}
	}
}

func TestRefusedDirectories(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(t *testing.T) string
		want error
	}{
		{"writable by the group", func(t *testing.T) string { return chmodDir(t, 0o770) }, fs.ErrPermission},
		{"writable by all", func(t *testing.T) string { return chmodDir(t, 0o707) }, fs.ErrPermission},
		{"of another user", func(t *testing.T) string {
			dir := chmodDir(t, 0o700)
			if err := os.Chown(dir, 12345, -1); err != nil && os.Getuid() == 0 {
				t.Fatal(err)
			} else if err != nil {
				t.Skipf("only root can give a directory away: %v", err)
			}
			return dir
		}, fs.ErrPermission},
		{"a file", func(t *testing.T) string {
			f := filepath.Join(t.TempDir(), "f")
			if err := os.WriteFile(f, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return f
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := tt.make(t)
			if _, err := Open(dir, Options{Agent: "gw-1"}); err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("%v", err)
			}
		})
	}
}

func chmodDir(t *testing.T, m fs.FileMode) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, m); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestLock(t *testing.T) {
	dir := chmodDir(t, 0o700)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BUFFER_TEST_HOLD="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var line [5]byte
	if _, err := out.Read(line[:]); err != nil || string(line[:4]) != "open" {
		t.Fatalf("%s, %v", line, err)
	}
	if _, err := Open(dir, Options{Agent: "gw-1"}); !errors.Is(err, ErrLocked) {
		t.Fatalf("%v", err)
	}
	if _, err := Segments(dir); err != nil { // the tools need no lock
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	b := mustOpen(t, dir, Options{}) // the kernel let go of it
	if _, err := Open(dir, Options{Agent: "gw-1"}); !errors.Is(err, ErrLocked) {
		t.Fatalf("a second one in this process: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, dir, Options{})
}

// TestLinks: neither a segment nor the cursor is followed out of the directory or
// to another file in it, and nothing but a file is read.
func TestLinks(t *testing.T) {
	dir, outside := chmodDir(t, 0o700), filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	seg := segmentName(1, 2, 3, 4, "gw-1")
	if err := os.Symlink(outside, filepath.Join(dir, seg)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(seg, filepath.Join(dir, cursorFile)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, segmentName(2, 2, 9, 4, "gw-1")), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := openDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, name := range []string{seg, cursorFile, segmentName(2, 2, 9, 4, "gw-1")} {
		if f, err := d.Open(name, false); err == nil {
			f.Close()
			t.Errorf("%s was opened", name)
		}
	}
	if files, err := d.List(""); err != nil || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
	b := mustOpen(t, dir, Options{SyncGap: -1})
	if err := b.Append(t.Context(), newWriter(b.Begin()).seal(1, text(10, 1))); err != nil {
		t.Fatal(err)
	}
	drain(t, b, 1)
	b.Maintain(time.Now().Add(time.Hour))
	b.Close()
	if got, err := os.ReadFile(outside); err != nil || string(got) != "secret" {
		t.Fatalf("%q, %v", got, err)
	}
}

// TestReadOnly: a directory that takes no write is drained all the same.
func TestReadOnly(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Log("root may write everywhere; the simulated disk covers EROFS")
	}
	im := makeImage(t, 5, 12, false)
	im.disk.fail = func(op string, call int, name string) error {
		if op == "write" || op == "create" || op == "remove" || op == "sync" || op == "syncdir" || op == "quarantine" {
			return syscall.EROFS
		}
		return nil
	}
	b, err := Open("sim", im.o)
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(b.Begin())
	if err := b.Append(t.Context(), w.seal(1, text(10, 1))); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("append: %v", err)
	}
	n := 0
	for _, x := range im.all {
		if x.h.Last() > im.done {
			n++
		}
	}
	if got := drain(t, b, n); len(got) != n {
		t.Fatalf("%d of %d batches", len(got), n)
	}
	if next := b.Maintain(time.Now().Add(time.Hour)); next.IsZero() {
		t.Fatal("nothing left to do, but the position is not saved")
	}
	if s := b.Stats(); s.PendingRecords != 0 || s.DiskError == nil || s.CursorErrors == 0 {
		t.Fatalf("%+v", s)
	}
}
