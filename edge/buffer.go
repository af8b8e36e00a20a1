package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"spillway/buffer"
	"spillway/outputs"
)

const bufferUsage = `usage: spillway buffer ls|cat|verify DIR [--json]
  ls      the segments, and what is delivered
  cat     every record that can be read, as NDJSON
  verify  every checksum, seal and number; exit code 1 if something is damaged or lost
DIR is <state>/buffer/<lane>, also of a running agent, or a copy of one; or rejected/ or
quarantine/ in it. Nothing is changed.`

// cmdBuffer is `spillway buffer`: it looks into a buffer and changes nothing.
func cmdBuffer(_ context.Context, args []string, stdout, stderr io.Writer, _ []string) int {
	asJSON := slices.Contains(args, "--json")
	args = slices.DeleteFunc(slices.Clone(args), func(a string) bool { return a == "--json" })
	if len(args) != 2 || strings.HasPrefix(args[1], "-") {
		fmt.Fprintln(stderr, bufferUsage)
		return exitUsage
	}
	dir := args[1]
	if info, err := os.Stat(dir); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", dir, pathCause(err))
		return exitFailure
	} else if !info.IsDir() {
		fmt.Fprintf(stderr, "%s: no directory: give that of a lane, as in <state>/buffer/main\n", dir)
		return exitFailure
	}
	var err error
	good := true
	switch args[0] {
	case "ls":
		err = bufferLs(dir, asJSON, stdout)
	case "cat":
		good = bufferCat(dir, stdout, stderr)
	case "verify":
		good, err = bufferVerify(dir, asJSON, stdout)
	default:
		fmt.Fprintln(stderr, bufferUsage)
		return exitUsage
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", dir, err)
		return exitFailure
	}
	if !good {
		return exitFailure
	}
	return exitOK
}

func bufferLs(dir string, asJSON bool, stdout io.Writer) error {
	segments, foreign, err := buffer.Segments(dir)
	if err != nil {
		return err
	}
	pos, ok, err := buffer.ReadPosition(dir)
	if err != nil {
		return err
	}
	aside := filepath.Join(dir, "rejected")
	rejected, _, err := buffer.Segments(aside)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if asJSON {
		list := struct {
			Segments []buffer.SegmentInfo `json:"segments"`
			Rejected []buffer.SegmentInfo `json:"rejected,omitempty"`
			Cursor   *buffer.Position     `json:"cursor"` // null: none that can be read
			Foreign  []string             `json:"foreign,omitempty"`
		}{segments, rejected, nil, foreign}
		if ok {
			list.Cursor = &pos
		}
		if list.Segments == nil {
			list.Segments = []buffer.SegmentInfo{}
		}
		return printJSON(stdout, list)
	}
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "SEGMENT\tSTATE\tCREATED\tBYTES\tEPOCH\tFIRST\tLAST")
	var bytes int64
	for _, s := range segments {
		last := "?" // only its batches know
		if s.Last > 0 {
			last = fmt.Sprint(s.Last)
		}
		created := "?"
		if !s.Created.IsZero() {
			created = s.Created.UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%d\t%s\n", s.Name, s.State, created, s.Bytes, s.EpochHx, s.First, last)
		bytes += s.Bytes
	}
	w.Flush()
	fmt.Fprintf(stdout, "\n%s, %s\n", count(uint64(len(segments)), "segment"), outputs.Human(bytes))
	if !ok {
		fmt.Fprintln(stdout, "no cursor that can be read: what is here counts as not delivered")
	} else {
		fmt.Fprintf(stdout, "delivered up to record %d, next record %d\n", pos.Committed, pos.Next)
		for _, o := range slices.Sorted(maps.Keys(pos.Acked)) {
			fmt.Fprintf(stdout, "output %s has up to record %d\n", o, pos.Acked[o])
		}
		if p := pos.Plan; p != nil {
			fmt.Fprintf(stdout, "planned for output %s: records %d to %d as %s\n", p.Output, p.First, p.Last, p.Key)
		}
		taken := map[string]string{}
		for _, h := range pos.HandOvers {
			taken[h.Output] += fmt.Sprintf(", %d to %d", h.First, h.Last)
		}
		for _, o := range slices.Sorted(maps.Keys(taken)) {
			fmt.Fprintf(stdout, "output %s took records %s\n", o, taken[o][2:])
		}
		for _, d := range pos.Doubts {
			if d.Output == "" {
				fmt.Fprintf(stdout, "in doubt after a stop without warning: records %d to %d\n", d.First, d.Last)
			} else {
				fmt.Fprintf(stdout, "in doubt at output %s: records %d to %d\n", d.Output, d.First, d.Last)
			}
		}
		for _, reason := range slices.Sorted(maps.Keys(pos.Lost)) {
			if n := pos.Lost[reason]; n > 0 {
				fmt.Fprintf(stdout, "lost (%s): %s\n", reason, count(n, "record"))
			}
		}
	}
	if len(rejected) > 0 {
		bytes = 0
		for _, s := range rejected {
			bytes += s.Bytes
		}
		fmt.Fprintf(stdout, "%s that no output takes, %s: read them with `spillway buffer cat %s`\n", count(uint64(len(rejected)), "segment"), outputs.Human(bytes), aside)
	}
	if len(foreign) > 0 {
		fmt.Fprintf(stdout, "not of the buffer: %s\n", strings.Join(foreign, ", "))
	}
	return nil
}

func bufferCat(dir string, stdout, stderr io.Writer) (good bool) {
	c := newCat(stdout, stderr)
	c.buffer(dir)
	return c.close()
}

// finding is a buffer.Finding for programs.
type finding struct {
	buffer.Finding
	Epoch string `json:"epoch,omitempty"`
	Error string `json:"error,omitempty"`
	Bad   bool   `json:"bad"`
}

func bufferVerify(dir string, asJSON bool, stdout io.Writer) (good bool, err error) {
	found := []finding{}
	r, err := buffer.Verify(dir, func(f buffer.Finding) {
		if !asJSON {
			fmt.Fprintln(stdout, f.String())
			return
		}
		j := finding{Finding: f, Bad: f.Bad()}
		if f.First > 0 {
			j.Epoch = f.Epoch.String()
		}
		if f.Err != nil {
			j.Error = f.Err.Error()
		}
		found = append(found, j)
	})
	if err != nil {
		return false, err
	}
	good = r.Bad == 0
	if asJSON {
		return good, printJSON(stdout, struct {
			Clean      bool      `json:"clean"`
			Findings   []finding `json:"findings"`
			Segments   uint64    `json:"segments"`
			Batches    uint64    `json:"batches"`
			Records    uint64    `json:"records"`
			Bytes      int64     `json:"bytes"`
			Payload    int64     `json:"payload"`
			Lost       uint64    `json:"lost"`
			Damaged    int64     `json:"damaged"`
			Torn       int64     `json:"torn"`
			Duplicates uint64    `json:"duplicates"`
		}{good, found, r.Segments, r.Batches, r.Records, r.Bytes, r.Payload, r.Lost, r.Damaged, r.Torn, r.Duplicates})
	}
	fmt.Fprintf(stdout, "%s, %s, %s in %s\n", count(r.Segments, "segment"), count(r.Batches, "batch"), count(r.Records, "record"), outputs.Human(r.Bytes))
	if r.Duplicates > 0 {
		fmt.Fprintf(stdout, "%s lie there twice, as they do after a failed write\n", count(r.Duplicates, "batch"))
	}
	if r.Torn > 0 {
		fmt.Fprintf(stdout, "%d bytes of writes that were cut off, as they are after a crash\n", r.Torn)
	}
	if good {
		fmt.Fprintln(stdout, "clean")
	} else {
		fmt.Fprintf(stdout, "NOT clean: %s, %s lost, %d bytes damaged\n", count(r.Bad, "finding"), count(r.Lost, "record"), r.Damaged)
	}
	return good, nil
}

// count is "1 batch" or "2 batches".
func count(n uint64, what string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(what, "ch"):
		what += "es"
	default:
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
