package file

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spillway/outputs"
)

func TestInspect(t *testing.T) {
	for _, tt := range []struct {
		name string
		max  outputs.Size
		make func(dir string) error
		want string // level, What and parts of Text and Hint, one line for each finding
	}{
		{"new", 1 << 20, func(string) error { return nil }, fmt.Sprintf("1 write: a file was written, fsynced, linked and removed, as user %d, in \n1 disk: 0 B of MAX_BYTES=1MiB are used", os.Getuid())},
		{"full", 1 << 20, func(dir string) error { return os.WriteFile(filepath.Join(dir, "full"), make([]byte, 1<<20), 0o600) },
			"3 write: exceed 1MiB [let a consumer take files away, or raise MAX_BYTES]"},
		{"larger than the disk", math.MaxInt64, func(string) error { return nil }, "1 write: \n2 disk: are used [the disk is full before MAX_BYTES is reached"},
		{"no directory", 1 << 20, func(dir string) error { return os.WriteFile(filepath.Join(dir, "outbox"), nil, 0o600) },
			"3 write: not a directory [the path of the output must be a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			c := Config{Dir: dir, MaxBytes: tt.max, RollBytes: 1 << 20, RollBatches: 1}
			if tt.name != "full" {
				c.Dir = filepath.Join(dir, "outbox")
			}
			if err := tt.make(dir); err != nil {
				t.Fatal(err)
			}
			o, err := New("outbox", "plant", c)
			if err != nil {
				t.Fatal(err)
			}
			all := o.Inspect(t.Context(), outputs.Need{Lanes: []string{"main"}})
			lines := strings.Split(tt.want, "\n")
			if len(all) != len(lines) {
				t.Fatalf("%+v", all)
			}
			for i, f := range all {
				begin, rest, _ := strings.Cut(lines[i], ": ")
				text, hint, _ := strings.Cut(rest, " [")
				if got := fmt.Sprintf("%d %s", f.Level, f.What); got != begin || !strings.Contains(f.Text, text) || !strings.Contains(f.Hint, strings.TrimSuffix(hint, "]")) {
					t.Errorf("%+v, want %s", f, lines[i])
				}
			}
		})
	}
}
