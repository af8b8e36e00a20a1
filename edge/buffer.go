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
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"spillway/buffer"
	"spillway/outputs"
)

const bufferUsage = `usage: spillway buffer ls|cat|stats DIR [--json]
       spillway buffer verify DIR [--deep] [--json]
       spillway buffer salvage DIR NEWDIR [--epoch E] [--agent NAME] [--json]
       spillway buffer rewind DIR --to N|--since TIME [--json]
       spillway buffer trim DIR --delivered|--to N|--before TIME [--undelivered] [--json]
These change nothing, and read the directory of a running agent too:
  ls       the segments, and what is delivered
  cat      every record that can be read, as NDJSON
  verify   every checksum, seal and number; exit code 1 if something is damaged or lost
             --deep          decompress everything too, and count its lines
  stats    batches, records, bytes, sizes and ages; what is delivered, pending and lost
  salvage  write what can still be read to NEWDIR, a buffer of its own, with the same identities; exit code 1
           if something could not be saved. NEWDIR must not exist, or be empty
             --epoch E       of this epoch only, where two buffers lie together
             --agent NAME    who wrote the segments whose names do not tell it
These change DIR, and refuse while an agent runs:
  rewind   go back within what is kept, so that it is delivered again with the same identities
             --to N          so that record N is the next
             --since TIME    so that every record received since then is sent again
  trim     remove whole segments, the oldest first; the newest one stays
             --delivered     all that are delivered
             --to N          those that end with record N or before
             --before TIME   those whose last record was received before
             --undelivered   also those that are not delivered: they are LOST, and a gap record tells
DIR is <state>/buffer/<lane>, or a copy of one; for what only reads also rejected/ or quarantine/
in it. TIME is as in 2026-11-21T18:00:00Z, or an age as in 90m.`

// bufferTool is one of `spillway buffer`.
type bufferTool struct {
	name   string
	dirs   int      // arguments
	values []string // options with a value
	flags  []string // options without
	run    func(*bufferCall) (good bool, err error)
}

var bufferTools = []bufferTool{
	{"ls", 1, nil, nil, func(c *bufferCall) (bool, error) { return true, bufferLs(c.dir, c.json, c.stdout) }},
	{"cat", 1, nil, nil, func(c *bufferCall) (bool, error) { return bufferCat(c.dir, c.stdout, c.stderr), nil }},
	{"verify", 1, nil, []string{"--deep"}, bufferVerify},
	{"stats", 1, nil, nil, bufferStats},
	{"salvage", 2, []string{"--epoch", "--agent"}, nil, bufferSalvage},
	{"rewind", 1, []string{"--to", "--since"}, nil, bufferRewind},
	{"trim", 1, []string{"--to", "--before"}, []string{"--delivered", "--undelivered"}, bufferTrim},
}

// bufferCall is one call of a bufferTool.
type bufferCall struct {
	dir, into      string
	json           bool
	options        map[string]string // that were given; of a flag ""
	stdout, stderr io.Writer
}

// usageError is a wrong argument.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

// given returns which of options were given.
func (c *bufferCall) given(options ...string) (out []string) {
	for _, o := range options {
		if _, ok := c.options[o]; ok {
			out = append(out, o)
		}
	}
	return out
}

// record is the value of option, a record number; 0 if it was not given.
func (c *bufferCall) record(option string) (uint64, error) {
	v, ok := c.options[option]
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || n == 0 {
		return 0, usageError{fmt.Sprintf("%s %s: want the number of a record, as ls prints them", option, v)}
	}
	return n, nil
}

// time is the value of option, a time or an age; zero if it was not given.
func (c *bufferCall) time(option string) (time.Time, error) {
	v, ok := c.options[option]
	if !ok {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, v); err == nil {
		return t, nil
	}
	if d, err := time.ParseDuration(v); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	return time.Time{}, usageError{fmt.Sprintf("%s %s: want a time as in 2026-11-21T18:00:00Z, or an age as in 90m", option, v)}
}

// parseBuffer reads the arguments of `spillway buffer`; a nil tool without an error says
// that usage helps.
func parseBuffer(args []string) (*bufferTool, *bufferCall, error) {
	if len(args) == 0 || slices.Contains([]string{"help", "-h", "-help", "--help"}, args[0]) {
		return nil, nil, nil
	}
	i := slices.IndexFunc(bufferTools, func(t bufferTool) bool { return t.name == args[0] })
	if i < 0 {
		return nil, nil, usageError{args[0] + ": no such tool; `spillway buffer` alone prints what there is"}
	}
	tool := &bufferTools[i]
	call := &bufferCall{options: map[string]string{}}
	var dirs []string
	for args = args[1:]; len(args) > 0; args = args[1:] {
		name, value, joined := strings.Cut(args[0], "=")
		switch {
		case args[0] == "--json":
			call.json = true
		case !strings.HasPrefix(args[0], "-"):
			dirs = append(dirs, args[0])
		case slices.Contains(tool.flags, args[0]):
			call.options[args[0]] = ""
		case !slices.Contains(tool.values, name):
			return nil, nil, usageError{fmt.Sprintf("%s: no option %s; `spillway buffer` alone prints what there is", tool.name, args[0])}
		case joined:
			call.options[name] = value
		case len(args) == 1:
			return nil, nil, usageError{args[0] + ": a value is missing"}
		default:
			call.options[args[0]] = args[1]
			args = args[1:]
		}
	}
	if len(dirs) != tool.dirs {
		want := "DIR"
		if tool.dirs == 2 {
			want = "DIR and NEWDIR"
		}
		return nil, nil, usageError{fmt.Sprintf("%s: %s given, want %s; `spillway buffer` alone prints what there is", tool.name, count(uint64(len(dirs)), "argument"), want)}
	}
	call.dir = dirs[0]
	if tool.dirs == 2 {
		call.into = dirs[1]
	}
	return tool, call, nil
}

// cmdBuffer is `spillway buffer`.
func cmdBuffer(_ context.Context, args []string, stdout, stderr io.Writer, _ []string) int {
	tool, call, err := parseBuffer(args)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitUsage
	}
	if tool == nil {
		fmt.Fprintln(stderr, bufferUsage)
		return exitUsage
	}
	call.stdout, call.stderr = stdout, stderr
	if info, err := os.Stat(call.dir); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", call.dir, pathCause(err))
		return exitFailure
	} else if !info.IsDir() {
		fmt.Fprintf(stderr, "%s: no directory: give that of a lane, as in <state>/buffer/main\n", call.dir)
		return exitFailure
	}
	good, err := true, noBuffer(tool.name, call.dir)
	if err == nil {
		good, err = tool.run(call)
	}
	var usage usageError
	switch {
	case errors.As(err, &usage):
		fmt.Fprintln(stderr, err)
		return exitUsage
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\n", call.dir, hinted(err))
		return exitFailure
	case !good:
		return exitFailure
	}
	return exitOK
}

// noBuffer is an error if nothing in dir is a buffer's: it says where one may be. A
// look at the wrong directory must not find that all is well.
func noBuffer(tool, dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	l, err := buffer.Segments(dir)
	if err != nil {
		return err
	}
	if tool != "ls" && tool != "salvage" && len(l.Misnamed) > 0 && len(l.Segments) == 0 && !l.Cursor {
		return fmt.Errorf("segments, but all under other names (%s): salvage makes a buffer of them", strings.Join(l.Misnamed, ", "))
	}
	if name := filepath.Base(abs); !l.Empty() || name == "rejected" || name == "quarantine" {
		return nil
	}
	var lanes []string
	for _, below := range []string{"*", "*/*"} {
		found, _ := filepath.Glob(filepath.Join(globEscape(dir), below, "cursor"))
		for _, cursor := range found {
			lanes = append(lanes, filepath.Dir(cursor))
		}
	}
	if len(lanes) == 0 {
		return errors.New("no buffer: neither a segment nor a cursor is in it: give the directory of a lane, as in <state>/buffer/main")
	}
	return fmt.Errorf("no buffer: neither a segment nor a cursor is in it: do you mean %s?", or(lanes))
}

// hinted is err with what to do about it.
func hinted(err error) error {
	switch {
	case errors.Is(err, buffer.ErrLocked):
		return fmt.Errorf("%w: an agent is running on it, stop that first", err)
	case errors.Is(err, buffer.ErrVersion):
		return fmt.Errorf("%w: use the spillway that wrote it, or a newer one", err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: the disk takes no writes: mount it for writing, or salvage to another one", err)
	case errors.Is(err, buffer.ErrUndelivered):
		return fmt.Errorf("%w: nothing is removed; to lose them, add --undelivered", err)
	}
	return err
}

func bufferLs(dir string, asJSON bool, stdout io.Writer) error {
	here, err := buffer.Segments(dir)
	if err != nil {
		return err
	}
	pos, ok, err := buffer.ReadPosition(dir)
	if err != nil {
		return err
	}
	aside := filepath.Join(dir, "rejected")
	var rejected []buffer.SegmentInfo
	if l, err := buffer.Segments(aside); err == nil {
		rejected = l.Segments
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if asJSON {
		list := struct {
			Segments []buffer.SegmentInfo `json:"segments"`
			Rejected []buffer.SegmentInfo `json:"rejected,omitempty"`
			Cursor   *buffer.Position     `json:"cursor"` // null: none that can be read
			Foreign  []string             `json:"foreign,omitempty"`
			Misnamed []string             `json:"misnamed,omitempty"` // of those, files that hold a segment
			Cursors  []string             `json:"cursors,omitempty"`  // of those, files that hold a cursor
		}{here.Segments, rejected, nil, here.Foreign, here.Misnamed, here.Cursors}
		if ok {
			list.Cursor = &pos
		}
		return printJSON(stdout, list)
	}
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "SEGMENT\tSTATE\tCREATED\tBYTES\tEPOCH\tFIRST\tLAST")
	var bytes int64
	for _, s := range here.Segments {
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
	fmt.Fprintf(stdout, "\n%s, %s\n", count(uint64(len(here.Segments)), "segment"), outputs.Human(bytes))
	if !ok {
		fmt.Fprintln(stdout, "no cursor that can be read: what is here counts as not delivered")
	} else {
		fmt.Fprintf(stdout, "delivered up to record %d; when that was saved, record %d came next\n", pos.Committed, pos.Next)
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
	if len(here.Foreign) > 0 {
		fmt.Fprintf(stdout, "not of the buffer: %s\n", strings.Join(here.Foreign, ", "))
	}
	if len(here.Misnamed) > 0 {
		fmt.Fprintf(stdout, "segments under other names: %s: salvage finds out what they are\n", strings.Join(here.Misnamed, ", "))
	}
	if len(here.Cursors) > 0 {
		fmt.Fprintf(stdout, "a cursor under another name: %s: called cursor, it would tell how far delivery had come\n", strings.Join(here.Cursors, ", "))
	}
	return nil
}

func bufferCat(dir string, stdout, stderr io.Writer) (good bool) {
	c := newCat(stdout, stderr)
	c.buffer(dir)
	return c.close()
}

// finding is a buffer.Finding for programs; see asFinding.
type finding struct {
	buffer.Finding
	Epoch string `json:"epoch,omitempty"`
	Error string `json:"error,omitempty"`
	Bad   bool   `json:"bad"`
}

func asFinding(f buffer.Finding) finding {
	j := finding{Finding: f, Bad: f.Bad()}
	if f.First > 0 {
		j.Epoch = f.Epoch.String()
	}
	if f.Err != nil {
		j.Error = f.Err.Error()
	}
	return j
}

func bufferVerify(c *bufferCall) (good bool, err error) {
	found, stdout, verify := []finding{}, c.stdout, buffer.Verify
	if len(c.given("--deep")) > 0 {
		verify = buffer.VerifyDeep
	}
	r, err := verify(c.dir, func(f buffer.Finding) {
		if !c.json {
			fmt.Fprintln(stdout, f.String())
			return
		}
		found = append(found, asFinding(f))
	})
	if err != nil {
		return false, err
	}
	good = r.Bad == 0
	if c.json {
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
