package ledger_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spillway/buffer/batch"
	"spillway/edge/ledger"
)

// TestDirectory seeds faults into what the file output stored.
func TestDirectory(t *testing.T) {
	rewrite := func(t *testing.T, name string, f func([]byte) []byte) {
		t.Helper()
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, f(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name  string
		fault func(t *testing.T, names []string)
		want  string // kinds
		names string // what the first fault must say
	}{
		{"clean", func(*testing.T, []string) {}, "", ""},
		{"a deleted object", func(t *testing.T, n []string) { remove(t, n[2]) }, "gap", "records 61 to 90 are missing, 30 of them unexplained"},
		{"the first object removed, as by retention", func(t *testing.T, n []string) { remove(t, n[0]) }, "", ""},
		{"a truncated body", func(t *testing.T, n []string) {
			rewrite(t, n[1], func(b []byte) []byte { return b[:len(b)-7] })
		}, "bytes gap", "CRC32C"},
		{"an empty body", func(t *testing.T, n []string) { rewrite(t, n[1], func([]byte) []byte { return nil }) }, "bytes gap", "CRC32C"},
		{"a bit flip", func(t *testing.T, n []string) {
			rewrite(t, n[1], func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		}, "bytes gap", "CRC32C"},
		{"two bodies exchanged", func(t *testing.T, n []string) {
			a, err := os.ReadFile(n[1])
			if err != nil {
				t.Fatal(err)
			}
			var c []byte
			rewrite(t, n[2], func(b []byte) []byte { c = b; return a })
			rewrite(t, n[1], func([]byte) []byte { return c })
		}, "bytes bytes gap", "CRC32C"},
		{"another body under a name with its CRC", func(t *testing.T, n []string) {
			// The same numbers and a CRC that fits: only the chain of seals can tell.
			l := newLane(t, batch.Zstd, 7, 1)
			l.salt = "forged"
			runs := history(l)
			dir := t.TempDir()
			publish(t, dir, runs...)
			remove(t, n[1])
			b, err := os.ReadFile(files(t, dir)[1])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(filepath.Dir(n[1]), filepath.Base(files(t, dir)[1])), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "seal", "the epoch after it tells another seal of its record 120"},
		{"a changed name", func(t *testing.T, n []string) {
			to := strings.Replace(n[1], "000000000000001f-000000000000003c", "0000000000000020-000000000000003d", 1)
			if to == n[1] {
				t.Fatal("no such name", n[1])
			}
			if err := os.Rename(n[1], to); err != nil {
				t.Fatal(err)
			}
		}, "gap numbers", "record 32 says that it is 31"},
		{"a second epoch without the record that names the first", func(t *testing.T, n []string) { remove(t, n[4]) },
			"epoch", "its records before 151 are missing"},
		{"the end of the first epoch", func(t *testing.T, n []string) { remove(t, n[3]) }, "gap", "records 91 to 120 are missing"},
		{"strangers", func(t *testing.T, n []string) {
			if err := os.WriteFile(filepath.Join(filepath.Dir(n[0]), "README"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "", ""},
	} {
		for _, codec := range []batch.Codec{batch.Zstd, batch.Gzip, batch.None} {
			t.Run(test.name+"/"+codec.String(), func(t *testing.T) {
				want := test.want
				if codec == batch.None && want == "seal" {
					want = "" // plain lines without sizes have no seals that could be recomputed
				}
				dir := t.TempDir()
				publish(t, dir, history(newLane(t, codec, 7, 1))...)
				test.fault(t, files(t, dir))
				l := ledger.New(ledger.Options{})
				readDir(t, l, dir)
				r := l.Report()
				if got := kinds(r); got != want {
					t.Fatalf("found %q, want %q\n%s", got, want, show(r))
				}
				if r.Complete != (want == "") {
					t.Errorf("complete: %v", r.Complete)
				}
				if want != "" && !strings.Contains(show(r), test.names) {
					t.Errorf("nothing says %q:\n%s", test.names, show(r))
				}
			})
		}
	}
}

// history is four objects of 30 records in one epoch, and two in the next one.
func history(l *lane) (runs []*batch.Run) {
	for range 4 {
		runs = append(runs, l.run(3, 10))
	}
	return append(runs, l.newEpoch(9, 10), l.run(3, 10))
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}
