// Package chaos stops the parts of a delivery in every way and at any moment, and
// judges what has arrived. What it needs for that (senders whose lines are numbered,
// an oracle) serves the end-to-end tests as well.
package chaos

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Number is a record's place: numbers of a lane only go up, also from one epoch to
// the next, and no two lanes share an epoch.
type Number struct {
	Epoch string
	Seq   uint64
}

// Promise is what the agent's log called durable in one life: records first to
// last of a lane.
type Promise struct {
	Lane, Epoch string
	First, Last uint64
}

var (
	opened  = regexp.MustCompile(`msg="buffer open" lane=(\S+) .*epoch=([0-9a-f]{16}) next=(\d+)`)
	durable = regexp.MustCompile(`msg=durable lane=(\S+) last=(\d+)`)
)

// Promises reads an agent's log of level debug. An epoch that goes on after a life
// that was ready and that nobody stopped is an error: numbers of that life may be
// elsewhere, with other content.
func Promises(log string) (all []Promise, err error) {
	f, err := os.Open(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	now := map[string]int{}      // by lane, index in all
	running := map[string]bool{} // by lane: ready, and not stopped
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if m := opened.FindStringSubmatch(lines.Text()); m != nil {
			next, err := strconv.ParseUint(m[3], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %q: %w", log, lines.Text(), err)
			}
			if i, ok := now[m[1]]; ok && running[m[1]] && all[i].Epoch == m[2] {
				return nil, fmt.Errorf("%s: %q: the epoch goes on although nobody stopped the agent before", log, lines.Text())
			}
			now[m[1]], running[m[1]] = len(all), false
			all = append(all, Promise{Lane: m[1], Epoch: m[2], First: next, Last: next - 1})
		} else if m := durable.FindStringSubmatch(lines.Text()); m != nil {
			i, ok := now[m[1]]
			last, err := strconv.ParseUint(m[2], 10, 64)
			if !ok || err != nil || last < all[i].Last {
				return nil, fmt.Errorf("%s: %q: after %d", log, lines.Text(), all[i].Last)
			}
			all[i].Last = last
		} else if ready := strings.Contains(lines.Text(), " msg=ready "); ready || strings.Contains(lines.Text(), ` msg="stopping; `) {
			for lane := range running {
				running[lane] = ready
			}
		}
	}
	return all, lines.Err()
}

// Gap is what a gap record tells.
type Gap struct {
	Reason, Input, Epoch string
	First, Last, Count   uint64
}

// allowed reports whether g may tell of records that were durable.
func (g *Gap) allowed() bool { return g.Reason == "full_oldest" || g.Reason == "rejected" }

// Delivered is what has arrived, of all sources together.
type Delivered struct {
	Records map[Number]Record
	Gaps    []Gap          // of different records
	Twice   int            // records that came again
	Others  map[string]int // messages that no sender sent whole, and how often each is there

	seed     maphash.Seed
	problems []error
}

// Record is one record's line, shortened.
type Record struct {
	Conn, Line int32 // -1: not of a sender's line
	Source     int16 // the first one that had it
	sum        uint64
}

// NewDelivered returns an empty one.
func NewDelivered() *Delivered {
	return &Delivered{Records: map[Number]Record{}, Others: map[string]int{}, seed: maphash.MakeSeed()}
}

// Cat adds what the command `spillway cat SOURCE` prints; source is a number for
// Record.Source.
func (d *Delivered) Cat(cmd *exec.Cmd, source int) error {
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err = d.read(out, source); err != nil {
		_ = cmd.Process.Kill() // nobody reads it any more
	}
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args[1:], " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return nil
}

func (d *Delivered) read(r io.Reader, source int) error {
	lines := bufio.NewReaderSize(r, 16<<20)
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("line %.100q: %w", line, err)
		}
		if err := d.add(line, source); err != nil {
			return fmt.Errorf("line %.200q: %w", line, err)
		}
	}
}

// The end of a record, and where its message begins. Senders' messages hold
// nothing that JSON escapes.
var (
	tail    = regexp.MustCompile(`"epoch":"([0-9a-f]{16})","seq":(\d+)\}\}\n$`)
	message = []byte(`"message":"`)
)

func (d *Delivered) add(line []byte, source int) error {
	m := tail.FindSubmatch(line[max(0, len(line)-80):])
	if m == nil {
		return errors.New("it does not end in an epoch and a number")
	}
	seq, err := strconv.ParseUint(string(m[2]), 10, 64)
	if err != nil {
		return err
	}
	at := Number{string(m[1]), seq}
	r := Record{Conn: -1, Line: -1, Source: int16(source), sum: maphash.Bytes(d.seed, line)}
	if old, ok := d.Records[at]; ok {
		d.Twice++
		if old.sum != r.sum {
			d.problem("number %d of epoch %s stands for two records; one is %.300s", at.Seq, at.Epoch, line)
		}
		return nil
	}
	if bytes.Contains(line, []byte(`"kind":"pipeline_error"`)) {
		var j struct {
			Spillway struct {
				Gap *struct {
					Reason, Input, Epoch string
					First, Last, Count   uint64
				}
			}
		}
		if err := json.Unmarshal(line, &j); err != nil {
			return err
		}
		if g := j.Spillway.Gap; g != nil {
			d.Gaps = append(d.Gaps, Gap(*g))
		}
	} else if i := bytes.Index(line, message); i >= 0 {
		text, _, _ := bytes.Cut(line[i+len(message):], []byte(`"`))
		if conn, i, ok := parseMessage(text); ok {
			r.Conn, r.Line = int32(conn), int32(i)
		} else {
			d.Others[string(text)]++
		}
	}
	d.Records[at] = r
	return nil
}

func (d *Delivered) problem(format string, args ...any) {
	if len(d.problems) < 20 {
		d.problems = append(d.problems, fmt.Errorf(format, args...))
	}
}

// Rules say what may be missing.
type Rules struct {
	Drops bool // the lanes drop their oldest records when they are full
	Unfit bool // there are records that no output takes
	Stops bool // the agent was stopped or killed while senders sent

	Others []string // messages that others than the senders sent, each once

	// Loss, if not zero, is how old a line of a connection that broke may be and yet
	// be lost: not durable, since the agent had no time for it.
	Loss time.Duration

	Kernel uint64 // datagrams that the kernel dropped
}

// Judge compares what has arrived with what was promised and what was sent, and
// returns every violation:
//
//   - a record that was durable is there, unless a gap record tells that its lane
//     dropped it to make room, or that no output takes it, and the rules allow that;
//   - what is there twice is the same, byte for byte;
//   - what others sent is there once;
//   - the lines of a connection are in the order of their numbers, and none is
//     missing between two of them. Of a connection that broke with the agent, the
//     end may be missing, as Loss says; of another one, nothing.
//
// Records that a lane dropped, and datagrams that an input dropped, may be missing
// where gap records tell how many.
func (d *Delivered) Judge(promises []Promise, conns []Conn, rules Rules) error {
	for _, p := range promises {
		d.kept(p)
	}
	type placed struct {
		Number
		line int32
	}
	byConn := make([][]placed, len(conns))
	for at, r := range d.Records {
		if r.Conn < 0 {
			continue
		}
		if int(r.Conn) >= len(conns) || int(r.Line) >= conns[r.Conn].Sent {
			d.problem("number %d of epoch %s is line %d of connection %d, which nobody sent", at.Seq, at.Epoch, r.Line, r.Conn)
			continue
		}
		byConn[r.Conn] = append(byConn[r.Conn], placed{at, r.Line})
	}
	told := map[string]uint64{} // by input, "" for lanes
	for _, g := range d.Gaps {
		switch {
		case g.Reason == "full_oldest" && !rules.Drops:
			d.problem("records %d to %d of epoch %s were dropped to make room although the buffer holds", g.First, g.Last, g.Epoch)
		case g.Reason == "rejected" && !rules.Unfit:
			d.problem("records %d to %d of epoch %s were rejected although an output takes them", g.First, g.Last, g.Epoch)
		case g.allowed() || g.Input != "":
			told[g.Input] += g.Count
		}
	}
	for _, o := range rules.Others {
		if n := d.Others[o]; n != 1 {
			d.problem("%q is there %d times", o, n)
		}
	}
	for o := range d.Others {
		if !rules.Stops && !slices.Contains(rules.Others, o) {
			d.problem("%q was sent by nobody, and no connection broke that could have cut it", o)
		}
	}
	missing := map[string]uint64{}
	for i, c := range conns {
		got := byConn[i]
		slices.SortFunc(got, func(a, b placed) int {
			if a.Seq < b.Seq {
				return -1
			}
			return 1
		})
		next, holes := int32(0), uint64(0)
		var first string
		for _, g := range got {
			if g.line < next {
				d.problem("connection %d to %s: line %d, number %d of epoch %s, comes after line %d", c.ID, c.Input, g.line, g.Seq, g.Epoch, next-1)
				break
			}
			if g.line > next && first == "" {
				first = fmt.Sprintf("the first are %d to %d, before number %d of epoch %s", next, g.line-1, g.Seq, g.Epoch)
			}
			holes += uint64(g.line - next)
			next = g.line + 1
		}
		end := uint64(c.Sent - int(next))
		if end > 0 && first == "" {
			first = fmt.Sprintf("they are the last, from %d on", next)
		}
		if age := c.age(int(next)); rules.Loss > 0 && end > 0 && age > rules.Loss && !c.datagrams() {
			d.problem("connection %d to %s: line %d is lost, although it was sent %v before the end", c.ID, c.Input, next, age.Round(time.Millisecond))
		}
		switch {
		case c.datagrams() && !rules.Stops:
			missing[c.Input] += holes + end
		case c.datagrams():
		case (rules.Drops || rules.Unfit) && c.Whole:
			missing[""] += holes + end
		case rules.Drops || rules.Unfit:
			missing[""] += holes
		case holes > 0 || c.Whole && end > 0:
			d.problem("connection %d to %s: %d of %d lines are missing, %d of them at its end: %s", c.ID, c.Input, holes+end, c.Sent, end, first)
		}
	}
	for input, n := range missing {
		known := told[input]
		if input != "" {
			known += rules.Kernel
		}
		if input != "" {
			known += told[""]
		}
		if n > known || n < known && input != "" && told[""] == 0 {
			d.problem("%d lines are missing, and gap records tell of %d (input %q, the kernel dropped %d)", n, known, input, rules.Kernel)
		}
	}
	return errors.Join(d.problems...)
}

// kept checks one promise.
func (d *Delivered) kept(p Promise) {
	var missing []uint64
	for seq := p.First; seq <= p.Last; seq++ {
		if _, ok := d.Records[Number{p.Epoch, seq}]; !ok && !d.tells(p.Epoch, seq) {
			missing = append(missing, seq)
		}
	}
	if len(missing) > 0 {
		d.problem("lane %s, epoch %s: %d to %d were durable, and %d of them are not delivered: %d … %d", p.Lane, p.Epoch, p.First, p.Last, len(missing), missing[0], missing[len(missing)-1])
	}
}

func (d *Delivered) tells(epoch string, seq uint64) bool {
	return slices.ContainsFunc(d.Gaps, func(g Gap) bool {
		return g.allowed() && g.Epoch == epoch && g.First <= seq && seq <= g.Last
	})
}

// Repeats finds what a log says too often: it returns each message of level info
// or above of which more than most lines were written within a second. Numbers and
// other attributes do not make a message another one, its output and lane do.
func Repeats(log string, most int) (loops []string, err error) {
	f, err := os.Open(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	attribute := regexp.MustCompile(` (?:output|lane|input|from|to)=\S+`)
	text := regexp.MustCompile(`^time=(\S+) level=(\w+) msg=("(?:[^"\\]|\\.)*"|\S+)`)
	seen := map[string][]time.Time{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := text.FindStringSubmatch(lines.Text())
		if m == nil || m[2] == "DEBUG" {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, m[1])
		if err != nil {
			return nil, fmt.Errorf("%s: %q: %w", log, lines.Text(), err)
		}
		key := m[2] + " " + m[3] + strings.Join(attribute.FindAllString(lines.Text()[len(m[0]):], -1), "")
		times := append(seen[key], at)
		for at.Sub(times[0]) >= time.Second {
			times = times[1:]
		}
		if len(times) == most+1 {
			loops = append(loops, fmt.Sprintf("%d times in a second, at %v: %s", most+1, at.Format(time.TimeOnly), key))
		}
		seen[key] = times
	}
	return loops, lines.Err()
}
