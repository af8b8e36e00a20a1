package main

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"spillway/buffer"
	"spillway/buffer/batch"
)

// TestBufferLs: what ls says of hand-overs, doubts and what was rejected, and that
// the other commands read rejected/.
func TestBufferLs(t *testing.T) {
	dir := t.TempDir()
	if err := makeBuffer(dir, 6, batch.Zstd); err != nil {
		t.Fatal(err)
	}
	b, err := buffer.Open(dir, buffer.Options{Agent: "gw1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, answer := range []func(*batch.Run) error{
		func(run *batch.Run) error { return b.Commit(run.Last(), "hub") },
		func(run *batch.Run) error {
			return b.InDoubt("hub", buffer.Range{First: run.First(), Last: run.Last()})
		},
		func(run *batch.Run) error { return b.Commit(run.Last(), "archive") },
		func(run *batch.Run) error { return b.Reject(run, "too large") },
		func(run *batch.Run) error { return b.Commit(run.Last(), "archive") },
	} {
		run, err := b.Next(t.Context(), batch.Limits{Batches: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := answer(&run); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	spillway := func(args ...string) string {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if code := cmdBuffer(context.Background(), args, &stdout, &stderr, nil); code != exitOK {
			t.Fatalf("%v: exit code %d: %s", args, code, &stderr)
		}
		return stdout.String()
	}
	aside := filepath.Join(dir, "rejected")
	out := spillway("ls", dir)
	for _, want := range []string{
		`(?m)^delivered up to record 40; when that was saved, record 61 came next$`,
		`(?m)^output hub took records 1 to 10$`,
		`(?m)^output archive took records 11 to 20, 31 to 40$`,
		`(?m)^in doubt at output hub: records 11 to 20$`,
		`(?m)^lost \(rejected\): 10 records$`,
		`(?m)^1 segment that no output takes, .*: read them with ` + "`spillway buffer cat " + regexp.QuoteMeta(aside) + "`$",
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	var list struct {
		Rejected []struct{ First, Last uint64 }
		Cursor   struct {
			Doubts []struct {
				Output      string
				First, Last uint64
			} `json:"in_doubt"`
			HandOvers []json.RawMessage `json:"hand_overs"`
		}
	}
	if err := json.Unmarshal([]byte(spillway("ls", "--json", dir)), &list); err != nil {
		t.Fatal(err)
	}
	if c := list.Cursor; len(list.Rejected) != 1 || list.Rejected[0].First != 21 || list.Rejected[0].Last != 30 || len(c.Doubts) != 1 || c.Doubts[0].Output != "hub" ||
		c.Doubts[0].First != 11 || c.Doubts[0].Last != 20 || len(c.HandOvers) != 3 {
		t.Errorf("%+v", list)
	}
	if out := spillway("verify", aside); !strings.HasSuffix(out, "clean\n") {
		t.Error(out)
	}
	if out := spillway("cat", aside); strings.Count(out, "\n") != 10 || !strings.HasPrefix(out, `{"n":21}`) {
		t.Error(out)
	}
}
