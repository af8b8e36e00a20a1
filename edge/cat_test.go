package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/outputs/file"
)

// batches returns n sealed batches of ten lines each, `{"n":1}` and so on.
func batches(n int, codec batch.Codec, next uint64, sealer *batch.Sealer) ([]*batch.Batch, error) {
	enc, err := batch.NewEncoder(codec, 1)
	if err != nil {
		return nil, err
	}
	var all []*batch.Batch
	for range n {
		var o batch.Open
		o.Reset(next, 0)
		for range 10 {
			o.Lines = fmt.Appendf(o.Lines, "{\"n\":%d}\n", next)
			o.Added(time.Date(2026, 11, 20, 12, 0, 0, int(next), time.UTC).UnixNano())
			next++
		}
		made, _, err := enc.Encode(nil, &o, nil)
		if err != nil {
			return nil, err
		}
		for _, b := range made {
			sealer.Seal(b)
		}
		all = append(all, made...)
	}
	return all, nil
}

// makeBuffer makes a buffer with n batches in dir and closes it.
func makeBuffer(dir string, n int, codec batch.Codec) error {
	b, err := buffer.Open(dir, buffer.Options{Agent: "gw1"})
	if err != nil {
		return err
	}
	s := b.Begin()
	all, err := batches(n, codec, s.Next, &batch.Sealer{Epoch: s.Epoch, Prev: s.Seal})
	if err != nil {
		return err
	}
	// One by one, so that their order on disk is not a matter of one call.
	for _, x := range all {
		if err := b.Append(context.Background(), x); err != nil {
			return err
		}
	}
	return b.Close()
}

// makeOutbox stores one run of n batches in the tree of a file output.
func makeOutbox(dir string, n int, codec batch.Codec) error {
	o, err := file.New("outbox", "plant", file.Config{Dir: dir, MaxBytes: 1 << 20, RollBytes: 1 << 20, RollBatches: 100})
	if err != nil {
		return err
	}
	run := &batch.Run{Lane: "main", Agent: "gw1", Epoch: 1}
	all, err := batches(n, codec, 1, &batch.Sealer{Epoch: 1})
	if err != nil {
		return err
	}
	for _, b := range all {
		run.Batches = append(run.Batches, *b)
	}
	run.Key = o.Key(run)
	if _, err := o.Publish(context.Background(), run); err != nil {
		return err
	}
	return o.Close()
}

// scriptMake is `make buffer|outbox DIR BATCHES CODEC`.
func scriptMake(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	codec, err := batch.ParseCodec(args[3])
	ts.Check(err)
	switch args[0] {
	case "buffer":
		ts.Check(makeBuffer(ts.MkAbs(args[1]), n, codec))
	case "outbox":
		ts.Check(makeOutbox(ts.MkAbs(args[1]), n, codec))
	default:
		ts.Fatalf("make %s: not known", args[0])
	}
}

// scriptOnly is `only PATTERN NAME`: the one file that matches is linked to NAME.
func scriptOnly(ts *testscript.TestScript, _ bool, args []string) {
	found, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(found) != 1 {
		ts.Fatalf("%s matches %d files", args[0], len(found))
	}
	ts.Check(os.Link(found[0], ts.MkAbs(args[1])))
}

// scriptFlip is `flip FILE OFFSET`: one bit of one byte is changed. Negative
// offsets count from the end.
func scriptFlip(ts *testscript.TestScript, _ bool, args []string) {
	off, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	if off < 0 {
		off += int64(len(b))
	}
	b[off] ^= 4
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// scriptLines is `lines FIRST LAST NAME`: a file of the lines that batches made.
func scriptLines(ts *testscript.TestScript, _ bool, args []string) {
	first, err := strconv.Atoi(args[0])
	ts.Check(err)
	last, err := strconv.Atoi(args[1])
	ts.Check(err)
	var text []byte
	for n := first; n <= last; n++ {
		text = fmt.Appendf(text, "{\"n\":%d}\n", n)
	}
	f, err := os.OpenFile(ts.MkAbs(args[2]), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	ts.Check(err)
	_, err = f.Write(text)
	ts.Check(err)
	ts.Check(f.Close())
}

// TestCatIsBounded holds that cat does not take memory in proportion to what it
// prints.
func TestCatIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "large.ndjson")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte{'x'}, 1<<20)
	block[len(block)-1] = '\n'
	const blocks = 32
	for range blocks {
		if _, err := f.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var n counter
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if code := cmdCat(t.Context(), []string{path}, &n, &n, nil); code != exitOK || n != blocks<<20 {
		t.Fatalf("exit code %d after %d bytes, want %d", code, n, blocks<<20)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 2<<20 {
		t.Errorf("%d bytes allocated for a file of %d", got, blocks<<20)
	}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
