package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
)

// ruin does one more thing to a directory that has seen better days.
func ruin(t *testing.T, rng *rand.Rand, dir string) string {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return "nothing left"
	}
	pick := func() string { return entries[rng.IntN(len(entries))].Name() }
	name := pick()
	path := filepath.Join(dir, name)
	data, _ := os.ReadFile(path)
	switch what := rng.IntN(11); what {
	case 0:
		os.RemoveAll(path)
		return "removed " + name
	case 1: // as of a file system that knows no long names
		os.Rename(path, filepath.Join(dir, name[:min(len(name), 8)]))
		return "cut the name of " + name
	case 2:
		os.Rename(path, filepath.Join(dir, strings.ToUpper(name)))
		return "upper case of " + name
	case 3:
		os.Rename(path, filepath.Join(dir, pick()))
		return name + " under another's name"
	case 4:
		os.WriteFile(filepath.Join(dir, strings.Replace(name, "-", "-0", 1)), data, 0o600)
		return "copy of " + name
	case 5:
		os.Truncate(path, rng.Int64N(int64(len(data))+1))
		return "truncated " + name
	case 6:
		os.Truncate(path, int64(len(data))+rng.Int64N(1<<20))
		return "zeros behind " + name
	case 7:
		for range rng.IntN(4) {
			if len(data) > 0 {
				at := rng.IntN(len(data))
				for i := at; i < min(len(data), at+512); i++ {
					data[i] = byte(rng.Uint32())
				}
			}
		}
		os.WriteFile(path, data, 0o600)
		return "garbage in " + name
	case 8:
		os.Remove(path)
		os.Mkdir(path, 0o700)
		return name + " is a directory"
	case 9:
		os.Mkdir(filepath.Join(dir, "quarantine"), 0o700)
		os.Rename(path, filepath.Join(dir, "quarantine", name))
		return name + " in quarantine"
	default:
		os.Symlink(name, filepath.Join(dir, pick()+".1"))
		os.Remove(path)
		return name + " is a broken link"
	}
}

// TestToolsOnRuins: whatever is left of a directory, each tool ends, with 0 or 1, says
// why, prints one document with --json, and those that only read leave it as it was.
func TestToolsOnRuins(t *testing.T) {
	seed := uint64(rand.Uint32())
	t.Logf("seed %d", seed)
	for n := range 40 {
		rng := rand.New(rand.NewPCG(seed, uint64(n)))
		dir, _ := laneDir(t, 0)
		var done []string
		for range 1 + rng.IntN(6) {
			done = append(done, ruin(t, rng, dir))
		}
		was := treeOf(t, dir)
		for _, args := range [][]string{{"ls"}, {"stats"}, {"cat"}, {"verify"}, {"verify", "--deep"}, {"salvage", filepath.Join(t.TempDir(), "new")}} {
			for _, option := range [][]string{nil, {"--json"}} {
				if args[0] == "salvage" && option != nil {
					args[1] += "2"
				}
				call := append([]string{"buffer", args[0], dir}, append(args[1:], option...)...)
				code, out := runBuffer(t, call...)
				if code != exitOK && (code != exitFailure || out == "") {
					t.Fatalf("seed %d, round %d, %q: %v: exit code %d\n%s", seed, n, done, call, code, out)
				}
				if option != nil && args[0] != "cat" && code == exitOK && !json.Valid([]byte(out)) {
					t.Fatalf("seed %d, round %d, %q: %v:\n%s", seed, n, done, call, out)
				}
			}
		}
		if now := treeOf(t, dir); now != was {
			t.Fatalf("seed %d, round %d, %q: a tool that only reads has changed\n%s\nto\n%s", seed, n, done, was, now)
		}
		for _, call := range [][]string{{"buffer", "rewind", dir, "--to", "11"}, {"buffer", "trim", dir, "--delivered"}} {
			if code, out := runBuffer(t, call...); code != exitOK && (code != exitFailure || out == "") {
				t.Fatalf("seed %d, round %d, %q: %v: exit code %d\n%s", seed, n, done, call, code, out)
			}
		}
	}
}

// treeOf is what lies in dir, in a text.
func treeOf(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		data := []byte{}
		if d.Type().IsRegular() {
			data, err = os.ReadFile(path)
		}
		fmt.Fprintf(&b, "%s %v %08x\n", path, d.Type(), batch.CRC32C(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestToolsBesideAgent: while an agent appends, delivers and removes, the tools that
// only read see no damage, and no batch but whole ones.
func TestToolsBesideAgent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lane")
	b, err := buffer.Open(dir, buffer.Options{Agent: "gw1", SegmentBytes: 8 << 10, KeepAcked: -1, MinFree: -1, SyncGap: -1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	start := b.Begin()
	all, err := batches(20000, batch.Zstd, start.Next, &batch.Sealer{Epoch: start.Epoch, Prev: start.Seal})
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		for _, x := range all {
			if err := b.Append(context.Background(), x); err != nil || ctx.Err() != nil {
				return
			}
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			run, err := b.Next(ctx, batch.Limits{Batches: 16})
			if err != nil {
				return
			}
			if err := b.Commit(run.Last(), "hub"); err != nil {
				t.Error(err)
			}
			b.Maintain(time.Now())
		}
	})
	for begin := time.Now(); b.Stats().SegmentsRemoved < 30; {
		if time.Since(begin) > 30*time.Second {
			t.Error("segments stay")
			break
		}
		for _, tool := range []string{"ls", "stats", "verify", "cat"} {
			if code, out := runBuffer(t, "buffer", tool, dir); code != exitOK {
				t.Errorf("%s: exit code %d\n%s", tool, code, out)
			}
		}
	}
	stop()
	wg.Wait()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}
