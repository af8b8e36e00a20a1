package main

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/outputs"
)

// spread is a buffer.Spread for programs: the batches below each power of two, and not
// below the one before.
type spread struct {
	Below   uint64 `json:"below"`
	Batches uint64 `json:"batches"`
}

func asSpread(s *buffer.Spread) []spread {
	out := []spread{}
	for i, n := range s {
		if n > 0 {
			out = append(out, spread{2 << i, n})
		}
	}
	return out
}

func bufferStats(c *bufferCall) (good bool, err error) {
	u, err := buffer.Measure(c.dir, time.Now())
	if err != nil {
		return false, err
	}
	for _, f := range u.Failed {
		fmt.Fprintf(c.stderr, "%s: %s\n", c.dir, f.String())
	}
	good = len(u.Failed) == 0
	if c.json {
		return good, printJSON(c.stdout, struct {
			*buffer.Usage
			Ratio  float64  `json:"ratio"`
			Sizes  []spread `json:"batch_bytes"`
			Counts []spread `json:"batch_records"`
			Ages   []spread `json:"pending_age_seconds"`
		}{u, u.Ratio(), asSpread(&u.Sizes), asSpread(&u.Counts), asSpread(&u.Ages)})
	}
	w := tabwriter.NewWriter(c.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "SEGMENT\tSTATE\tBATCHES\tRECORDS\tRAW\tPAYLOAD\tRATIO\tFROM\tUNTIL")
	for _, s := range u.Segments {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%.1f\t%s\t%s\n", s.Name, s.State, s.Batches, s.Records, s.Raw, s.Payload, s.Ratio(), moment(s.From), moment(s.Until))
	}
	w.Flush()
	out := func(format string, args ...any) { fmt.Fprintf(c.stdout, format+"\n", args...) }
	out("")
	out("%s, %s: %s", count(uint64(len(u.Segments)), "segment"), outputs.Human(u.Bytes), totals(&u.Totals))
	if u.Batches > 0 {
		out("received from %s until %s", moment(u.From), moment(u.Until))
		out("bytes per batch: half below %s, nine of ten below %s, all below %s", power(&u.Sizes, 0.5, outputs.Human), power(&u.Sizes, 0.9, outputs.Human), power(&u.Sizes, 1, outputs.Human))
		plain := func(n int64) string { return fmt.Sprint(n) }
		out("records per batch: half below %s, nine of ten below %s, all below %s", power(&u.Counts, 0.5, plain), power(&u.Counts, 0.9, plain), power(&u.Counts, 1, plain))
	}
	out("delivered and kept: %s", totals(&u.Delivered))
	out("pending: %s", totals(&u.Pending))
	if u.Pending.Batches > 0 {
		age := func(n int64) string { return (time.Duration(n) * time.Second).String() }
		out("pending for: half below %s, nine of ten below %s, all below %s", power(&u.Ages, 0.5, age), power(&u.Ages, 0.9, age), power(&u.Ages, 1, age))
	}
	if !u.Cursor {
		out("no cursor that can be read: what is here counts as pending")
	}
	for _, reason := range slices.Sorted(maps.Keys(u.Lost)) {
		if n := u.Lost[reason]; n > 0 {
			out("lost (%s): %s", reason, count(n, "record"))
		}
	}
	if u.Missing > 0 {
		out("missing, as the numbers tell: %s; `spillway buffer verify %s` says which", count(u.Missing, "record"), c.dir)
	}
	if u.Unread > 0 {
		out("of no batch: %d bytes; `spillway buffer verify %s` says whether they are damage", u.Unread, c.dir)
	}
	for _, a := range []struct {
		sub string
		*buffer.Aside
	}{{"rejected", &u.Rejected}, {"quarantine", &u.Quarantine}} {
		if a.Files > 0 {
			out("%s: %s, %s: %s", a.sub, count(uint64(a.Files), "file"), outputs.Human(a.Bytes), totals(&a.Totals))
		}
	}
	return good, nil
}

// totals is t in a line.
func totals(t *buffer.Totals) string {
	if t.Batches == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%s, %s, %s raw, %s compressed (%.1f to 1)", count(t.Batches, "batch"), count(t.Records, "record"), outputs.Human(int64(t.Raw)),
		outputs.Human(int64(t.Payload)), t.Ratio())
}

func power(s *buffer.Spread, q float64, name func(int64) string) string {
	return name(int64(s.Below(q)))
}

// moment is a time in a table.
func moment(t time.Time) string {
	if t.IsZero() {
		return "?"
	}
	return t.UTC().Format(time.RFC3339)
}

func bufferSalvage(c *bufferCall) (good bool, err error) {
	o := buffer.Salvaging{Agent: c.options["--agent"]}
	if e, ok := c.options["--epoch"]; ok {
		if o.Epoch, err = batch.ParseEpoch(e); err != nil {
			return false, usageError{fmt.Sprintf("--epoch %s: want 16 hex digits, as ls prints them", e)}
		}
	}
	if _, ok := c.options["--agent"]; ok && !buffer.ValidAgent(o.Agent) {
		return false, usageError{fmt.Sprintf("--agent %s: want 1 to %d of A-Z a-z 0-9 _ -", o.Agent, buffer.MaxAgent)}
	}
	found := []finding{}
	s, err := buffer.Salvage(c.dir, c.into, o, func(f buffer.Finding) {
		if c.json {
			found = append(found, asFinding(f))
		} else {
			fmt.Fprintln(c.stdout, f.String())
		}
	})
	if err != nil {
		return false, err
	}
	good = s.Bad == 0
	if c.json {
		return good, printJSON(c.stdout, struct {
			Complete bool `json:"complete"`
			*buffer.Salvaged
			Findings []finding `json:"findings"`
		}{good, s, found})
	}
	out := func(format string, args ...any) { fmt.Fprintf(c.stdout, format+"\n", args...) }
	out("saved to %s: %s: %s", c.into, count(uint64(s.Segments), "segment"), totals(&s.Totals))
	if s.Rejected.Files > 0 {
		out("saved to %s: %s: %s", filepath.Join(c.into, "rejected"), count(uint64(s.Rejected.Files), "segment"), totals(&s.Rejected.Totals))
	}
	out("position: record %d, %s", s.Committed, s.Position)
	out("an agent there begins a new epoch with record %d", s.Next)
	for _, name := range s.Foreign {
		out("not of the buffer: %s", name)
	}
	if good {
		out("complete")
	} else {
		out("NOT complete: %s, %s lost", count(s.Bad, "finding"), count(s.Lost, "record"))
	}
	return good, nil
}

func bufferRewind(c *bufferCall) (good bool, err error) {
	var to buffer.Back
	if len(c.given("--to", "--since")) != 1 {
		return false, usageError{"rewind: give either --to N or --since TIME"}
	}
	n, err := c.record("--to")
	since, err2 := c.time("--since")
	if err := cmp.Or(err, err2); err != nil {
		return false, err
	}
	to.To, to.Since = n, since
	r, err := buffer.Rewind(c.dir, to)
	if err != nil {
		return false, err
	}
	if c.json {
		return true, printJSON(c.stdout, r)
	}
	fmt.Fprintf(c.stdout, "records %d to %d are sent again, with the same identities: %s, %s, %s, received from %s until %s\n", r.First, r.Last,
		count(r.Batches, "batch"), count(r.Records, "record"), outputs.Human(int64(r.Bytes)), moment(r.From), moment(r.Until))
	if r.Hole {
		fmt.Fprintf(c.stdout, "there are older ones, and a hole behind them: these are not sent again\n")
	}
	return true, nil
}

func bufferTrim(c *bufferCall) (good bool, err error) {
	if len(c.given("--delivered", "--to", "--before")) != 1 {
		return false, usageError{"trim: give one of --delivered, --to N and --before TIME"}
	}
	var what buffer.Cut
	n, err := c.record("--to")
	before, err2 := c.time("--before")
	if err := cmp.Or(err, err2); err != nil {
		return false, err
	}
	what.To, what.Before = n, before
	what.Delivered = len(c.given("--delivered")) > 0
	what.Undelivered = len(c.given("--undelivered")) > 0
	if what.Delivered && what.Undelivered {
		return false, usageError{"trim: --delivered and --undelivered contradict each other: give --to N or --before TIME with --undelivered"}
	}
	t, err := buffer.Trim(c.dir, what)
	if t.Segments > 0 || err == nil {
		if c.json {
			err = cmp.Or(err, printJSON(c.stdout, t))
		} else {
			fmt.Fprintf(c.stdout, "removed: %s, %s\n", count(uint64(t.Segments), "segment"), outputs.Human(t.Bytes))
			if t.Lost > 0 {
				fmt.Fprintf(c.stdout, "lost: %s that were not delivered; a gap record will tell\n", count(t.Lost, "record"))
			}
		}
	}
	return err == nil, err
}
