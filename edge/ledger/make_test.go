package ledger_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/buffer/batch"
	"spillway/edge/ledger"
	"spillway/framing/ecs"
	"spillway/outputs"
	"spillway/outputs/file"
)

// lane makes the records, batches and seals of one lane as the agent does.
type lane struct {
	t      testing.TB
	agent  string
	name   string
	enc    *batch.Encoder
	gap    *ecs.Encoder
	sealer batch.Sealer
	next   uint64
	now    time.Time
	raw    bool
	salt   string // in every message: two lanes with the same numbers and other bytes
}

func newLane(t testing.TB, codec batch.Codec, epoch batch.Epoch, next uint64) *lane {
	enc, err := batch.NewEncoder(codec, 0)
	if err != nil {
		t.Fatal(err)
	}
	return &lane{t: t, agent: "gw1", name: "main", enc: enc, gap: ecs.NewEncoder(ecs.Options{Dataset: "test", Agent: "gw1"}),
		sealer: batch.Sealer{Epoch: epoch}, next: next, now: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)}
}

// batch seals one batch of n records; gaps come first and count among them.
func (l *lane) batch(n int, gaps ...ecs.Gap) batch.Batch {
	var open batch.Open
	open.Reset(l.next, 0)
	if l.raw {
		open.Flags |= batch.RawLines
	}
	for i := range n {
		switch {
		case i < len(gaps):
			open.Lines = l.gap.AppendGap(open.Lines, gaps[i], l.now)
			open.Lines = ecs.AppendTail(open.Lines, uint64(l.sealer.Epoch), open.Next())
		case l.raw:
			open.Lines = fmt.Appendf(open.Lines, "<13>line %d %s\n", open.Next(), l.salt)
		default:
			open.Lines = fmt.Appendf(open.Lines, `{"@timestamp":%[1]q,"event":{"created":%[1]q,"dataset":"test"},"message":"line %[2]d %[3]s","spillway":{`,
				l.now.Format(time.RFC3339Nano), open.Next(), l.salt)
			open.Lines = ecs.AppendTail(open.Lines, uint64(l.sealer.Epoch), open.Next())
		}
		open.Added(l.now.UnixNano())
		l.now = l.now.Add(time.Millisecond)
	}
	made, _, err := l.enc.Encode(nil, &open, nil)
	if err != nil || len(made) != 1 {
		l.t.Fatalf("encode: %d batches, %v", len(made), err)
	}
	l.sealer.Seal(made[0])
	l.next += uint64(n)
	return *made[0]
}

// run is batches of n records each, in one run.
func (l *lane) run(batches, n int) *batch.Run {
	r := l.begin()
	for range batches {
		r.Batches = append(r.Batches, l.batch(n))
	}
	return r
}

func (l *lane) begin() *batch.Run {
	return &batch.Run{Lane: l.name, Agent: l.agent, Epoch: l.sealer.Epoch, Before: l.sealer.Prev, Attempt: 1}
}

// of is a run of one batch that l made.
func (l *lane) of(before batch.Seal, bs ...batch.Batch) *batch.Run {
	return &batch.Run{Lane: l.name, Agent: l.agent, Epoch: l.sealer.Epoch, Before: before, Attempt: 1, Batches: bs}
}

// object is run as a far side with metadata returns it.
func object(run *batch.Run) *outputs.Object {
	key := outputs.Key("", "plant", run)
	o, err := outputs.ParseKey(key)
	if err != nil {
		panic(err)
	}
	o.Before, o.Seal, o.Attempt = run.Before, run.Seal(), run.Attempt
	if o.Sizes, err = batch.ParseSizes(run.Sizes()); err != nil {
		panic(err)
	}
	return body(o, payloads(run))
}

func payloads(run *batch.Run) (b []byte) {
	for i := range run.Batches {
		b = append(b, run.Batches[i].Payload...)
	}
	return b
}

func body(o *outputs.Object, b []byte) *outputs.Object {
	o.Body = io.NopCloser(bytes.NewReader(b))
	return o
}

// message is batch i of run as a stream returns it.
func message(run *batch.Run, i int) *outputs.Object {
	one := *run
	one.Before, one.Batches = run.BeforeOf(i), run.Batches[i:i+1]
	o := object(&one)
	o.Name = fmt.Sprintf("logs.plant.gw1.main@%d", one.First())
	o.Duplicate = one.Batches[0].Identity(one.Agent, one.Epoch).String()
	return o
}

// bare takes away what a directory does not have.
func bare(o *outputs.Object) *outputs.Object {
	o.Before, o.Seal, o.Sizes, o.Attempt = batch.Seal{}, batch.Seal{}, nil, 0
	return o
}

// publish stores runs as the file output does.
func publish(t testing.TB, dir string, runs ...*batch.Run) {
	t.Helper()
	out, err := file.New("outdir", "plant", file.Config{Dir: dir, MaxBytes: 1 << 30, RollBytes: 1 << 30, RollBatches: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		r.Key = out.Key(r)
		if _, err := out.Publish(context.Background(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// files are the objects in dir, in their order.
func files(t testing.TB, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.Contains(path, ".ndjson") {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// readDir enters what a directory holds.
func readDir(t testing.TB, l *ledger.Ledger, dir string) {
	t.Helper()
	s := l.Source(dir, false)
	ctx := outputs.WithStrangers(context.Background(), func(string, error) { s.Stranger() })
	for o, err := range file.NewSource(dir).Objects(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		s.Object(o)
	}
}

// kinds are the kinds of faults in r, sorted, each as often as it is there.
func kinds(r *ledger.Report) string {
	var s []string
	for _, f := range r.Faults {
		s = append(s, f.Kind)
	}
	slices.Sort(s)
	return strings.Join(s, " ")
}

func show(r *ledger.Report) string {
	var b strings.Builder
	for _, f := range r.Faults {
		fmt.Fprintf(&b, "%+v\n", f)
	}
	for _, e := range r.Epochs {
		fmt.Fprintf(&b, "%+v %+v\n", e, e.Previous)
	}
	return b.String()
}

// newEpoch begins another epoch behind the present one, as after a power cut under
// a weak sync policy, and returns its first run of three batches.
func (l *lane) newEpoch(e batch.Epoch, n int) *batch.Run {
	g := ecs.Gap{Reason: "epoch", Epoch: uint64(l.sealer.Epoch), Last: l.next - 1, SealBefore: l.sealer.Prev}
	l.sealer = batch.Sealer{Epoch: e}
	l.now = l.now.Add(time.Hour)
	r := l.begin()
	r.Batches = append(r.Batches, l.batch(n, g), l.batch(n), l.batch(n))
	return r
}
