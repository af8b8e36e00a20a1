package outputs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestFindingOf(t *testing.T) {
	err := &Error{Output: "hub", Op: "publish to logs", Err: errors.New("two\n lines"), Hint: "do this"}
	if got, want := FindingOf("publish", err), (Finding{Problem, "publish", "publish to logs: two lines", "do this"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, want := FindingOf("disk", os.ErrExist), (Finding{Problem, "disk", "file already exists", ""}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestTook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for d, want := range map[time.Duration]string{2 * time.Second: "2s", 1234567 * time.Microsecond: "1.235s", 1234567 * time.Nanosecond: "1.2ms", 40 * time.Microsecond: "0s"} {
			start := time.Now()
			time.Sleep(d)
			if got := Took(start); got != want {
				t.Errorf("%v: %s, want %s", d, got, want)
			}
		}
	})
}

func TestDiskOf(t *testing.T) {
	dir := t.TempDir()
	d, err := DiskOf(dir)
	if err != nil || d.Kind == "" || d.Free <= 0 || d.Total < d.Free {
		t.Errorf("%+v, %v", d, err)
	}
	if above, err := DiskOf(filepath.Join(dir, "not", "yet")); err != nil || above.Kind != d.Kind || above.Total != d.Total {
		t.Errorf("%+v, %v; want that of what is above: %+v", above, err, d)
	}
	if d, err := DiskOf("/proc/self"); err != nil || d.Kind != "proc" {
		t.Errorf("%+v, %v", d, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := DiskOf(filepath.Join(file, "below")); err == nil {
		t.Error("below a file there is a file system")
	}
}

func TestHuman(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 200 << 10: "200 KiB", 1 << 30: "1.0 GiB", 3 << 40: "3.0 TiB", 5 << 50: "5120 TiB"} {
		if got := Human(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
