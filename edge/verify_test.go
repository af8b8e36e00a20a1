package main

import (
	"context"
	"fmt"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"spillway/buffer/batch"
	"spillway/framing/ecs"
	"spillway/outputs/file"
)

// makeRecords stores records 1 to 80 of epoch 7 as a file output does, two batches of
// ten in an object; 41 to 50 are missing, and record 51 is the gap record for them.
func makeRecords(dir string) error {
	o, err := file.New("outbox", "plant", file.Config{Dir: dir, MaxBytes: 1 << 20, RollBytes: 1 << 20, RollBatches: 100})
	if err != nil {
		return err
	}
	enc, err := batch.NewEncoder(batch.Zstd, 1)
	if err != nil {
		return err
	}
	gaps := ecs.NewEncoder(ecs.Options{Agent: "gw1"})
	sealer := batch.Sealer{Epoch: 7}
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	run := &batch.Run{Lane: "main", Agent: "gw1", Epoch: 7}
	send := func() error {
		if len(run.Batches) == 0 {
			return nil
		}
		run.Key = o.Key(run)
		_, err := o.Publish(context.Background(), run)
		run.Batches, run.Before = nil, sealer.Prev
		return err
	}
	var last batch.Seal // before the hole
	for first := uint64(1); first <= 80; first += 10 {
		var open batch.Open
		open.Reset(first, 0)
		for n := first; n < first+10; n++ {
			if n == 51 {
				open.Lines = gaps.AppendGap(open.Lines, ecs.Gap{Reason: "full_oldest", Count: 10, Epoch: 7, First: 41, Last: 50, SealBefore: last}, now)
			} else {
				open.Lines = fmt.Appendf(open.Lines, `{"message":"line %d","spillway":{`, n)
			}
			open.Lines = ecs.AppendTail(open.Lines, 7, n)
			open.Added(now.UnixNano())
		}
		made, _, err := enc.Encode(nil, &open, nil)
		if err != nil {
			return err
		}
		if first == 41 {
			last = sealer.Prev
		}
		sealer.Seal(made[0])
		if first == 41 {
			if err := send(); err != nil {
				return err
			}
			run.Before = sealer.Prev
			continue
		}
		run.Batches = append(run.Batches, *made[0])
		if len(run.Batches) == 2 {
			if err := send(); err != nil {
				return err
			}
		}
	}
	if err := send(); err != nil {
		return err
	}
	return o.Close()
}

// scriptRecords is `records DIR`: see makeRecords.
func scriptRecords(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(makeRecords(ts.MkAbs(args[0])))
}
