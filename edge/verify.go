package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/edge/ledger"
	"spillway/outputs"
)

const verifyUsage = `usage: spillway verify SOURCE... [--json] [--from-start]
Reads all sources together, each once, and says what is missing, doubled or changed. Exit code 0: complete, 1: not.
  --json        one JSON document
  --from-start  records below the first ones are missing, not removed for their age
SOURCE: a directory of a file output, one of its files, a directory or segment of a buffer, or a URL:
  s3://bucket/prefix[?endpoint=…&region=…&path_style=…]   nats://host/STREAM[?subject=…]`

// cmdVerify is `spillway verify`: one ledger over all sources.
func cmdVerify(ctx context.Context, args []string, stdout, stderr io.Writer, _ []string) int {
	var asJSON bool
	var o ledger.Options
	var sources []string
	for _, a := range args {
		switch {
		case a == "--json":
			asJSON = true
		case a == "--from-start":
			o.FromStart = true
		case strings.HasPrefix(a, "-"):
			fmt.Fprintln(stderr, verifyUsage)
			return exitUsage
		default:
			sources = append(sources, a)
		}
	}
	if len(sources) == 0 {
		fmt.Fprintln(stderr, verifyUsage)
		return exitUsage
	}
	if err := checkSources(sources); err != nil {
		fmt.Fprintln(stderr, err)
		return exitUsage
	}
	l := ledger.New(o)
	for _, s := range sources {
		verifySource(ctx, l, s)
	}
	r := l.Report()
	var err error
	if asJSON {
		err = printJSON(stdout, r)
	} else {
		err = printReport(stdout, r)
	}
	if err != nil {
		fmt.Fprintf(stderr, "stdout: %v\n", err)
		return exitFailure
	}
	if !r.Complete {
		return exitFailure
	}
	return exitOK
}

// verifySource enters everything that one source holds.
func verifySource(ctx context.Context, l *ledger.Ledger, raw string) {
	scheme, _, _ := strings.Cut(raw, "://")
	in := l.Source(redact(raw), schemes[scheme] == "jetstream")
	fault := func(object string, err error) { in.Fault(ledger.KindUnreadable, object, err) }
	strangers := 0
	ctx = outputs.WithStrangers(ctx, func(name string, err error) {
		if strangers++; err != nil {
			in.Fault(ledger.KindMetadata, name, err)
		} else {
			in.Stranger()
		}
	})
	s, err := verifiable(ctx, raw, fault)
	if err != nil {
		fault("", err)
		return
	}
	n := 0
	for o, err := range s.Objects(ctx) {
		if err != nil {
			fault("", err)
			return
		}
		n++
		in.Object(o)
	}
	if n == 0 && strangers > 0 && scheme == raw {
		fault("", errNothingHere)
	}
}

// verifiable returns what raw names: a URL or a path. fault is told what a buffer
// can't give while it is read.
func verifiable(ctx context.Context, raw string, fault func(object string, err error)) (outputs.Source, error) {
	if strings.Contains(raw, "://") {
		s, _, err := openSource(ctx, raw)
		return s, err
	}
	info, err := os.Stat(raw)
	if err != nil {
		return nil, pathCause(err)
	}
	abs, err := filepath.Abs(raw)
	switch {
	case err != nil:
		return nil, err
	case !info.IsDir():
		return fileSource{abs, fault}, nil
	case isBuffer(abs):
		return bufferSource{abs, fault}, nil
	}
	return openDirectory(ctx, abs)
}

// bufferSource reads the batches in a lane's directory.
type bufferSource struct {
	dir   string
	fault func(object string, err error)
}

// Objects implements outputs.Source: one object is one batch.
func (s bufferSource) Objects(ctx context.Context) iter.Seq2[*outputs.Object, error] {
	return func(yield func(*outputs.Object, error) bool) {
		_, err := buffer.Verify(s.dir, func(f buffer.Finding) {
			if f.Bad() && f.What != "lost" { // the ledger adds up what is lost
				s.fault(fmt.Sprintf("%s: bytes %d to %d", f.File, f.Off, f.End), fmt.Errorf("%s: %w", f.What, f.Err))
			}
		})
		if err == nil {
			err = buffer.Cat(s.dir, func(b *batch.Batch, agent string, e batch.Epoch, before batch.Seal) error {
				if err := ctx.Err(); err != nil {
					return err
				}
				if !yield(batchObject(b, laneOf(s.dir), agent, e, before), nil) {
					return errEnough
				}
				return nil
			})
		}
		if err != nil && !errors.Is(err, errEnough) {
			yield(nil, err)
		}
	}
}

var errEnough = errors.New("enough")

// laneOf is the lane in whose buffer the directory dir is; "" of a copy.
func laneOf(dir string) string {
	if base := filepath.Base(dir); base == "rejected" || base == "quarantine" {
		dir = filepath.Dir(dir)
	}
	if filepath.Base(filepath.Dir(dir)) != "buffer" {
		return ""
	}
	return filepath.Base(dir)
}

// batchObject is b as an object of its own. A seal that does not follow from before
// is left out: the batch that it follows is not there.
func batchObject(b *batch.Batch, lane, agent string, e batch.Epoch, before batch.Seal) *outputs.Object {
	o := &outputs.Object{
		Name: fmt.Sprintf("records %d to %d", b.First, b.Last()),
		Lane: lane, Agent: agent, Epoch: e, First: b.First, Last: b.Last(), CRC: b.CRC, Codec: b.Codec,
		Raw: b.Flags&batch.RawLines != 0, Attempt: 1, Duplicate: b.Identity(agent, e).String(),
		Sizes: []batch.Size{{Bytes: uint64(b.Length), Count: uint64(b.Count)}},
		Body:  io.NopCloser(bytes.NewReader(b.Payload)),
	}
	if b.Chain(before, e) == b.Seal {
		o.Before, o.Seal = before, b.Seal
	}
	return o
}

// fileSource reads one file: a segment of a buffer, or an object of a file output.
type fileSource struct {
	path  string
	fault func(object string, err error)
}

// Objects implements outputs.Source.
func (s fileSource) Objects(context.Context) iter.Seq2[*outputs.Object, error] {
	return func(yield func(*outputs.Object, error) bool) {
		f, err := os.Open(s.path)
		if err != nil {
			yield(nil, pathCause(err))
			return
		}
		var magic [4]byte
		if n, _ := f.ReadAt(magic[:], 0); n == 4 && bytes.Equal(magic[:], segmentMagic) {
			s.segment(f, yield)
			f.Close()
			return
		}
		o, err := outputs.ParseKey(filepath.ToSlash(s.path))
		if err != nil {
			f.Close()
			yield(nil, errors.New("its path does not say what it holds: give it as it was stored, in …/<lane>/dt=…/site=…/hr=…/<agent>/"))
			return
		}
		o.Body = f
		yield(o, nil)
	}
}

// segmentName is a segment's file name (docs/format.md): epoch and agent.
var segmentName = regexp.MustCompile(`^[0-9a-f]{16}-([0-9a-f]{16})-[0-9a-f]{16}-[0-9a-f]{16}-(.+)\.seg$`)

func (s fileSource) segment(f *os.File, yield func(*outputs.Object, error) bool) {
	m := segmentName.FindStringSubmatch(filepath.Base(s.path))
	if m == nil {
		yield(nil, errors.New("it is a segment of a buffer under a name that is none: its name says epoch and agent"))
		return
	}
	epoch, err := batch.ParseEpoch(m[1])
	if err != nil {
		yield(nil, err)
		return
	}
	info, err := f.Stat()
	if err != nil {
		yield(nil, err)
		return
	}
	var before batch.Seal
	for e := range buffer.Scan(f, info.Size(), filepath.Base(s.path)) {
		switch e.Kind {
		case buffer.KindBatch:
			if !yield(batchObject(&e.Batch, laneOf(filepath.Dir(s.path)), m[2], epoch, before), nil) {
				return
			}
			before = e.Batch.Seal
		case buffer.KindDamage:
			s.fault(fmt.Sprintf("bytes %d to %d", e.Off, e.End), e.Err)
		}
	}
}

// most is how many of many like things are printed.
const most = 8

// printReport prints r for people.
func printReport(w io.Writer, r *ledger.Report) error {
	var b bytes.Buffer
	for _, e := range r.Epochs {
		lane := cmp.Or(e.Lane, "(lane not known)")
		if e.Records == 0 {
			fmt.Fprintf(&b, "%s %s, epoch %s: nothing is here\n", e.Agent, lane, e.Epoch)
		} else {
			fmt.Fprintf(&b, "%s %s, epoch %s: records %d to %d\n", e.Agent, lane, e.Epoch, e.First, e.Last)
		}
		line := func(name, format string, args ...any) {
			fmt.Fprintf(&b, "  %-10s  "+format+"\n", append([]any{name}, args...)...)
		}
		switch {
		case e.Records == 0:
		case e.Begins == "first":
			line("begins", "with number 1")
		case e.Begins == "follows":
			here := ""
			if !e.Previous.Here {
				here = ", which is not here"
			}
			line("begins", "after record %d of epoch %s%s", e.Previous.Last, e.Previous.Epoch, here)
		default:
			line("begins", "in the middle: what was before is not here")
		}
		if e.Records > 0 {
			line("there", "%s in %s", count(e.Records, "record"), count(e.Batches, "batch"))
		}
		for _, s := range r.Sources {
			var list []string
			for _, x := range e.Ranges {
				if x.Source == s.Source {
					list = append(list, numbers(x.First, x.Last))
				}
			}
			if len(list) > 0 {
				line("from", "%s: %s", s.Source, few(list))
			}
		}
		for i, h := range e.Holes {
			if i == most {
				line("missing", "… and %d more, see --json", len(e.Holes)-most)
				break
			}
			switch {
			case h.Missing == 0:
				line("missing", "%s: %s, explained: %s", numbers(h.First, h.Last), count(h.Explained, "record"), strings.Join(h.Reasons, ", "))
			case h.Explained == 0:
				line("missing", "%s: %s, NOT explained", numbers(h.First, h.Last), count(h.Missing, "record"))
			default:
				line("missing", "%s: %s explained (%s), %d NOT", numbers(h.First, h.Last), count(h.Explained, "record"), strings.Join(h.Reasons, ", "), h.Missing)
			}
		}
		if d := e.Duplicates; d.Batches > 0 {
			line("again", "%s with %s, equal bytes", count(d.Batches, "batch"), count(d.Records, "record"))
		}
		if e.SentAgain > 0 {
			line("late", "%s behind higher numbers, marked as sent again", count(e.SentAgain, "message"))
		}
		switch {
		case e.Records == 0:
		case e.Seals.Chains == 0:
			line("seals", "not checked: nothing states the seal before any record")
		case e.Seals.Unchecked > 0:
			line("seals", "recomputed, in %s; not for %s, before which no seal is known", count(e.Seals.Chains, "chain"), count(e.Seals.Unchecked, "record"))
		default:
			line("seals", "recomputed, in %s", count(e.Seals.Chains, "chain"))
		}
		fmt.Fprintln(&b)
	}
	for _, s := range r.Sources {
		fmt.Fprintf(&b, "%s: %s, %s, %s", s.Source, count(s.Objects, "object"), count(s.Records, "record"), outputs.Human(int64(s.Bytes)))
		if s.Strangers > 0 {
			fmt.Fprintf(&b, "; %s not of Spillway", count(s.Strangers, "object"))
		}
		if s.Bare > 0 && strings.Contains(s.Source, "://") {
			fmt.Fprintf(&b, "; %s without seals, the first is %s", count(s.Bare, "object"), s.FirstBare)
		}
		fmt.Fprintln(&b)
	}
	for _, f := range r.Faults {
		where := slices.DeleteFunc([]string{f.Source, f.Object}, func(s string) bool { return s == "" })
		if f.Epoch != "" && f.Object == "" {
			where = append(where, fmt.Sprintf("%s %s, epoch %s", f.Agent, f.Lane, f.Epoch))
		}
		fmt.Fprintf(&b, "\n%s: %s: %s\n  %s\n", f.Kind, strings.Join(where, ": "), f.Error, f.Hint)
	}
	fmt.Fprintln(&b)
	var all uint64
	for _, n := range r.Counts {
		all += n
	}
	if more := all - uint64(len(r.Faults)); more > 0 {
		fmt.Fprintf(&b, "… and %s more\n\n", count(more, "fault"))
	}
	verdict := "complete"
	if !r.Complete {
		verdict = "NOT complete: " + count(all, "fault")
	}
	sum := []string{count(r.Records, "record"), count(r.Batches, "batch")}
	if r.Explained > 0 {
		sum = append(sum, fmt.Sprintf("%d missing and explained", r.Explained))
	}
	if r.Missing > 0 {
		sum = append(sum, fmt.Sprintf("%d missing and NOT explained", r.Missing))
	}
	if r.Duplicates > 0 {
		sum = append(sum, count(r.Duplicates, "batch")+" there again")
	}
	fmt.Fprintf(&b, "%s: %s\n", verdict, strings.Join(sum, ", "))
	_, err := w.Write(b.Bytes())
	return err
}

// numbers is "5" or "5 to 9".
func numbers(first, last uint64) string {
	if first == last {
		return strconv.FormatUint(first, 10)
	}
	return fmt.Sprintf("%d to %d", first, last)
}

// few joins the first of many.
func few(list []string) string {
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s, … and %d more", strings.Join(list[:most], ", "), len(list)-most)
}
