package framing

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"unsafe"
)

// chunks is a stream that arrives in pieces of the sizes that next gives.
type chunks struct {
	b    []byte
	next func() int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.next())], c.b)
	c.b = c.b[n:]
	return n, nil
}

func whole(in []byte) io.Reader    { return &chunks{in, func() int { return 1 << 30 }} }
func bytewise(in []byte) io.Reader { return &chunks{in, func() int { return 1 }} }
func threes(in []byte) io.Reader   { return &chunks{in, func() int { return 3 }} }
func halves(in []byte, at int) io.Reader {
	first := true
	return &chunks{in, func() int {
		if first && at > 0 {
			first = false
			return at
		}
		return 1 << 30
	}}
}
func random(in []byte, seed uint64) io.Reader {
	rng := rand.New(rand.NewPCG(seed, 1))
	most := 1 + rng.IntN(40)
	return &chunks{in, func() int { return 1 + rng.IntN(most) }}
}

// run is what an owner does with a Splitter: fill, take every message, end. release says
// whether the peer is quiet for long now; nil: never.
func run(t testing.TB, r io.Reader, opt Options, release ...func() bool) outcome {
	t.Helper()
	s := NewSplitter(opt)
	var o outcome
	sent := 0
	keep := func(m Message) {
		if len(m.Data) == 0 {
			t.Fatalf("empty message, flags %b", m.Flags)
		}
		if len(m.Data) > opt.maxMessageSize() {
			t.Fatalf("message of %d bytes, limit %d", len(m.Data), opt.maxMessageSize())
		}
		if cap(m.Data) != len(m.Data) {
			t.Fatalf("message of %d bytes has a capacity of %d: an append would write into the next", len(m.Data), cap(m.Data))
		}
		if (m.Err != "") != (m.Flags&Invalid != 0) {
			t.Fatalf("flags %b with error %q", m.Flags, m.Err)
		}
		o.at = append(o.at, sent-len(s.buf)+int(uintptr(unsafe.Pointer(&m.Data[0]))-uintptr(unsafe.Pointer(&s.buf[0]))))
		m.Data, m.Err = bytes.Clone(m.Data), ""
		o.messages = append(o.messages, m)
	}
	for fills := 1; !s.Broken(); fills++ {
		n, err := s.Fill(r)
		sent += n
		for m, ok := s.Next(); ok; m, ok = s.Next() {
			keep(m)
		}
		if len(release) > 0 && release[0]() {
			for m, ok := s.Release(); ok; m, ok = s.Release() {
				keep(m)
			}
			if s.Waiting() {
				t.Fatalf("%q waits, although it was released", s.buf[s.start:])
			}
		}
		if fills%3 == 0 { // as if the peer paused
			held := len(s.buf) - s.start
			if n := s.Settle(); n != cap(s.buf) || (n == 0) != (held == 0) || len(s.buf)-s.start != held {
				t.Fatalf("%d bytes held, %d after Settle, in %d", held, len(s.buf)-s.start, n)
			}
		}
		if limit := min(opt.maxMessageSize()+512<<10, max(minBuf, 4*sent)); cap(s.buf) > limit {
			t.Fatalf("buffer of %d bytes, bound %d", cap(s.buf), limit)
		}
		if err == io.EOF {
			for m, ok := s.End(); ok; m, ok = s.End() {
				keep(m)
			}
			if s.Buffered() != 0 {
				t.Fatalf("%d bytes left after End", s.Buffered())
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	o.stats, o.broken = s.Stats(), s.Err()
	return o
}

var framings = map[string]*regexp.Regexp{} // compiling them takes longer than a test

// complete says whether what was handed out is all of in, except framing.
func (o *outcome) complete(in []byte, opt Options) error {
	if o.broken != nil || o.stats.Discarded > 0 {
		return nil
	}
	delim := opt.Delimiter
	if delim == nil || opt.Mode == JSONX || opt.Mode == NUL {
		delim = []byte{'\n'}
	}
	framing := regexp.QuoteMeta(string(delim)) + `|[\r\n\x00]`
	if opt.Mode == Auto || opt.Mode == RFC6587 || opt.Mode == Octet {
		framing += "|[1-9][0-9]{0,8} "
	}
	if opt.Mode == Auto {
		framing += "| "
	}
	only := framings[framing]
	if only == nil {
		only = regexp.MustCompile("^(?:" + framing + ")*$")
		framings[framing] = only
	}
	end := 0
	for i, m := range o.messages {
		at := o.at[i]
		if at < end || at+len(m.Data) > len(in) || !bytes.Equal(in[at:at+len(m.Data)], m.Data) {
			return fmt.Errorf("message %q is not what was sent at %d", m.Data, at)
		}
		if !only.Match(in[end:at]) {
			return fmt.Errorf("%q is lost, in front of message %q", in[end:at], m.Data)
		}
		end = at + len(m.Data)
	}
	if !only.Match(in[end:]) {
		return fmt.Errorf("%q is lost, at the end", in[end:])
	}
	return nil
}

// show prints messages as a table cell does: quoted, with flags behind.
func show(ms []Message) []string {
	out := []string{}
	for _, m := range ms {
		out = append(out, fmt.Sprintf("%q%s", m.Data, flagNames(m.Flags)))
	}
	return out
}

func flagNames(f Flags) string {
	var s string
	for i, name := range []string{"truncated", "unterminated", "invalid", "counted", "multiline", "part"} {
		if f&(1<<i) != 0 {
			s += " " + name
		}
	}
	return s
}

// like compares two outcomes of one stream. What was buffered when the stream broke goes
// along with the error, so there one may be the beginning of the other; and how much of
// the rest was read and thrown away follows the reads.
func like(a, b outcome) error {
	a.stats.Discarded, b.stats.Discarded = 0, 0
	if a.broken != nil && b.broken != nil { // perhaps before as much was read as tells it
		a.stats.LooksJSONX, b.stats.LooksJSONX = 0, 0
	}
	if a.broken == ErrCount && b.broken == ErrCount && len(a.messages) > 0 && len(b.messages) > 0 {
		x, y := &a.messages[len(a.messages)-1], &b.messages[len(b.messages)-1]
		if n := min(len(x.Data), len(y.Data)); bytes.Equal(x.Data[:n], y.Data[:n]) && x.Flags&y.Flags&Invalid != 0 {
			a.messages, b.messages = a.messages[:len(a.messages)-1], b.messages[:len(b.messages)-1]
		}
	}
	if x, y := show(a.messages), show(b.messages); !slices.Equal(x, y) {
		return fmt.Errorf("messages\n  %s\nwant\n  %s", strings.Join(x, "\n  "), strings.Join(y, "\n  "))
	}
	if a.stats != b.stats {
		return fmt.Errorf("stats %+v, want %+v", a.stats, b.stats)
	}
	if a.broken != b.broken {
		return fmt.Errorf("broken: %v, want %v", a.broken, b.broken)
	}
	return nil
}

var (
	auto   = Options{}
	lf     = Options{Mode: Delimiter}
	rfc    = Options{Mode: RFC6587}
	octet  = Options{Mode: Octet}
	nul    = Options{Mode: NUL}
	endTag = Options{Mode: Delimiter, Delimiter: []byte("<END>")}
	nosys  = Options{NonSyslog: true}

	lfPRI     = Options{Mode: Delimiter, Multiline: MultilinePRI}
	rfcPRI    = Options{Mode: RFC6587, Multiline: MultilinePRI}
	priLines  = Options{Multiline: MultilinePRI}
	jsonxMode = Options{Mode: JSONX}
	autoTag   = Options{Delimiter: []byte("<END>")}
)

func with(o Options, limit int, p Oversize) Options {
	o.MaxMessageSize, o.Oversize = limit, p
	return o
}

// Members of JSONx records.
const (
	tagAuth = `<json:object name="auth"><json:string name="id">1</json:string></json:object>`
	tagTime = `<json:string name="time">2026-11-20T12:00:00Z</json:string>`
	tagType = `<json:string name="type">request</json:string>`
	record3 = tagAuth + "<json:string name=\"error\">1 error:\n\t* a < b\n\n</json:string>" + tagTime + tagType
)

func quoted(s string) string { return fmt.Sprintf("%q", s) }

var streams = []struct {
	name string
	opt  Options
	in   string
	want []string // as show prints them
	st   Stats
	err  error
}{
	// What is ambiguous: a count, or text that looks like one.
	{"text that begins with a number and a space", auto, "10 users logged in\n", []string{`"10 users logged in"`}, Stats{}, nil},
	{"the same, where a count needs no proof", rfc, "10 users logged in\n", []string{`"users logg"`, `"ed in"`}, Stats{}, nil},
	{"a date, auto", auto, "2026-11-20 12:00:00 text\n", []string{`"2026-11-20 12:00:00 text"`}, Stats{}, nil},
	{"a date, rfc6587", rfc, "2026-11-20 12:00:00 text\n", []string{`"2026-11-20 12:00:00 text"`}, Stats{}, nil},
	{"a year alone before the text, auto", auto, "2026 was good\n", []string{`"2026 was good"`}, Stats{}, nil},
	{"count and LF", auto, "5 <13>x\n", []string{`"<13>x"`}, Stats{}, nil},
	{"count and LF, rfc6587 sees an empty line", rfc, "5 <13>x\n", []string{`"<13>x"`}, Stats{Empty: 1}, nil},
	{"count shorter than the text", auto, "5 <13>xyz\n<13>next\n", []string{`"<13>x"`, `"yz"`, `"<13>next"`}, Stats{}, nil},
	{"count shorter than the text, rfc6587", rfc, "5 <13>xyz\n", []string{`"<13>x"`, `"yz"`}, Stats{}, nil},
	{"count longer than the text swallows the next frame's head", auto, "9 <13>x\n5 <13>y\nz\n", []string{`"<13>x\n5 <"`, `"13>y"`, `"z"`}, Stats{}, nil},
	{"count, then the stream ends", auto, "100 <13>short", []string{}, Stats{Partial: 1, Discarded: 9}, nil},
	{"count, then the stream ends, rfc6587", rfc, "100 <13>short", []string{}, Stats{Partial: 1, Discarded: 9}, nil},
	{"count, then the stream ends, octet", octet, "5 <13>x100 <13>short", []string{`"<13>x"`}, Stats{Partial: 1, Discarded: 9}, nil},
	{"stream ends inside the digits, auto", auto, "45", []string{`"45" unterminated`}, Stats{}, nil},
	{"stream ends inside the digits, rfc6587", rfc, "45", []string{`"45" unterminated`}, Stats{}, nil},
	{"stream ends inside the digits, octet", octet, "45", []string{}, Stats{Partial: 1, Discarded: 2}, nil},
	{"stream ends behind the space, auto", auto, "45 ", []string{`"45 " unterminated`}, Stats{}, nil},
	{"stream ends behind the space, rfc6587", rfc, "45 ", []string{}, Stats{Partial: 1}, nil},
	{"text that begins with digits, end of stream, auto", auto, "12 users", []string{`"12 users" unterminated`}, Stats{}, nil},
	{"text that begins with digits, end of stream, rfc6587", rfc, "12 users", []string{}, Stats{Partial: 1, Discarded: 5}, nil},
	{"digits and LF", auto, "12345\n<13>x\n", []string{`"12345"`, `"<13>x"`}, Stats{}, nil},
	{"nine digits are a count", auto, "999999999 <13>x", []string{}, Stats{Partial: 1, Discarded: 5}, nil},
	{"ten digits are text", auto, "1234567890 <13>x\n", []string{`"1234567890 <13>x"`}, Stats{}, nil},
	{"ten digits are text, rfc6587", rfc, "1234567890 <13>x\n", []string{`"1234567890 <13>x"`}, Stats{}, nil},
	{"ten digits, octet", octet, "1234567890 <13>x\n", []string{`"1234567890 <13>x\n" invalid`}, Stats{Errors: 1}, ErrCount},
	{"JSON behind a count is text for a syslog input", auto, "7 {\"a\":1}\n", []string{`"7 {\"a\":1}"`}, Stats{}, nil},
	{"JSON behind a count", nosys, "7 {\"a\":1}7 {\"b\":2}\n10 users\n", []string{`"{\"a\":1}"`, `"{\"b\":2}"`, `"10 users"`}, Stats{}, nil},
	{"byte order mark behind a count", nosys, "6 \xef\xbb\xbfabc\n", []string{`"\ufeffabc"`}, Stats{}, nil},
	{"what only begins like a byte order mark", nosys, "6 \xef\xbb\x81abc\n", []string{`"6 ﻁabc"`}, Stats{}, nil},
	{"stream ends inside a byte order mark", nosys, "6 \xef\xbb", []string{`"6 \xef\xbb" unterminated`}, Stats{}, nil},

	// What three implementations do differently.
	{"framing is chosen per message", auto, "5 <13>a<13>b\n5 <13>c", []string{`"<13>a"`, `"<13>b"`, `"<13>c"`}, Stats{}, nil},
	{"framing is chosen per message, rfc6587", rfc, "5 <13>a<13>b\n5 <13>c", []string{`"<13>a"`, `"<13>b"`, `"<13>c"`}, Stats{}, nil},
	{"leading zeros", auto, "0005 <13>x\n", []string{`"0005 <13>x"`}, Stats{}, nil},
	{"leading zeros, rfc6587", rfc, "0005 <13>x\n", []string{`"0005 <13>x"`}, Stats{}, nil},
	{"leading zeros, octet", octet, "0005 <13>x\n", []string{`"0005 <13>x\n" invalid`}, Stats{Errors: 1}, ErrCount},
	{"count of zero", auto, "0 <13>x\n", []string{`"0 <13>x"`}, Stats{}, nil},
	{"count of zero, octet", octet, "0 <13>x", []string{`"0 <13>x" invalid`}, Stats{Errors: 1}, ErrCount},
	{"a letter between count and space", auto, "1q <13>x\n123abc <13>y\n", []string{`"1q <13>x"`, `"123abc <13>y"`}, Stats{}, nil},
	{"a letter between count and space, octet", octet, "5 <13>a1q <13>x", []string{`"<13>a"`, `"1q <13>x" invalid`}, Stats{Errors: 1}, ErrCount},
	{"lines in octet mode", octet, "<13>x\n<13>y\n", []string{`"<13>x\n<13>y\n" invalid`}, Stats{Errors: 1}, ErrCount},
	{"OpenBSD's plain lines", auto, "000002 ab\n2bc\n", []string{`"000002 ab"`, `"2bc"`}, Stats{}, nil},
	{"LF with and without CR", lf, "a\r\nb\nc\r\r\nd\re\n", []string{`"a"`, `"b"`, `"c\r"`, `"d\re"`}, Stats{}, nil},
	{"empty lines", lf, "a\n\n\r\n\x00\nb\n", []string{`"a"`, `"b"`}, Stats{Empty: 3}, nil},
	{"empty lines, auto", auto, "a\n\n\r\n\x00\nb\n", []string{`"a"`, `"b"`}, Stats{Empty: 4}, nil},
	{"LF and NUL inside a counted frame", auto, "9 <13>a\nb\x00c5 <13>d", []string{`"<13>a\nb\x00c"`, `"<13>d"`}, Stats{}, nil},
	{"space behind LF, Cisco ASA", auto, "<166>a\n <166>b\n 7 <166>cc\n ", []string{`"<166>a"`, `"<166>b"`, `"<166>cc"`}, Stats{}, nil},
	{"space between counted frames", auto, "5 <13>a 5 <13>b", []string{`"<13>a"`, `"<13>b"`}, Stats{}, nil},
	{"indented text keeps its spaces", auto, "x\n y\n  z\n 10 users\n", []string{`"x"`, `" y"`, `"  z"`, `" 10 users"`}, Stats{}, nil},
	{"space behind LF, rfc6587 skips nothing", rfc, "<166>a\n <166>b\n", []string{`"<166>a"`, `" <166>b"`}, Stats{}, nil},
	{"end of stream inside a line", auto, "<13>a\n<13>b", []string{`"<13>a"`, `"<13>b" unterminated`}, Stats{}, nil},
	{"end of stream behind CR", lf, "a\r", []string{`"a\r" unterminated`}, Stats{}, nil},
	{"nothing but line ends", auto, "\r\n\x00\n", []string{}, Stats{Empty: 3}, nil},
	{"TLS ClientHello on a plain port", auto, "\x16\x03\x01\x02\x00\x01\n", []string{`"\x16\x03\x01\x02"`, `"\x01"`}, Stats{}, nil},

	// Senders.
	{"rsyslog counts the LF of its template", auto, "14 <13>1 - hello\n14 <13>1 - world\n", []string{`"<13>1 - hello"`, `"<13>1 - world"`}, Stats{}, nil},
	{"rsyslog counts the LF, octet", octet, "14 <13>1 - hello\n", []string{`"<13>1 - hello"`}, Stats{}, nil},
	{"rsyslog with frame delimiter NUL", auto, "<13>a\x00<13>b\x00", []string{`"<13>a"`, `"<13>b"`}, Stats{}, nil},
	{"Python, several lines in one message", auto, "<11>one\x00<11>two\nlines\x00", []string{`"<11>one"`, `"<11>two\nlines"`}, Stats{}, nil},
	{"Python, LF at the end of a message", auto, "<11>one\x00<11>two\n\x00<11>three\n\n at f\n\x00", []string{`"<11>one"`, `"<11>two"`, `"<11>three\n\n at f"`}, Stats{}, nil},
	{"Python, several lines in the very first message", auto, "<11>one\nline\x00<11>two\x00", []string{`"<11>one"`, `"line"`, `"<11>two"`}, Stats{}, nil},
	{"Python on an LF input", lf, "<11>one\x00<11>two\nlines\x00", []string{`"<11>one\x00<11>two"`, `"lines" unterminated`}, Stats{}, nil},
	{"Python on a NUL input", nul, "<11>one\nx\x00<11>two\nlines\n\x00", []string{`"<11>one\nx"`, `"<11>two\nlines"`}, Stats{}, nil},
	{"a NUL sender changes to LF", auto, "<1>a\x00<1>b\n<1>c\nd\n<1>e\x00\nf\n", []string{`"<1>a"`, `"<1>b"`, `"<1>c"`, `"d"`, `"<1>e"`, `"f"`}, Stats{Empty: 1}, nil},
	{"a NUL sender changes to counts", auto, "<1>a\x00<1>b\n5 x\n4 <1>c\n<1>d\n", []string{`"<1>a"`, `"<1>b\n5 x" multiline`, `"<1>c"`, `"<1>d"`}, Stats{}, nil},
	{"NUL sender, a number behind the last LF", auto, "<1>a\x00<1>b\n45", []string{`"<1>a"`, `"<1>b\n45" unterminated multiline`}, Stats{}, nil},
	{"NUL behind text without a priority", auto, "a\x00b\nc\n", []string{`"a"`, `"b"`, `"c"`}, Stats{}, nil},
	{"NUL sender, a line without a priority", auto, "<1>a\x00b\nc\x00", []string{`"<1>a"`, `"b"`, `"c"`}, Stats{}, nil},
	{"NUL sender, end of stream behind LF", auto, "<1>a\x00<1>b\nc\n", []string{`"<1>a"`, `"<1>b\nc" multiline`}, Stats{}, nil},
	{"Go log/syslog over TCP", auto, "<132>2026-11-20T12:24:47Z vm myapp[25463]: line one\nline two\n", []string{`"<132>2026-11-20T12:24:47Z vm myapp[25463]: line one"`, `"line two"`}, Stats{}, nil},
	{"counted sender on an LF input", lf, "8 <13>abc\n8 <13>def\nx\n", []string{`"8 <13>abc"`, `"8 <13>def"`, `"x"`}, Stats{LooksCounted: 2}, nil},
	{"log4j2 without line ends", auto, "<13>a<13>b", []string{`"<13>a<13>b" unterminated`}, Stats{}, nil},

	// Delimiters.
	{"several bytes", endTag, "a<END>b\n<E<END><END>c<EN", []string{`"a"`, `"b\n<E"`, `"c<EN" unterminated`}, Stats{Empty: 1}, nil},
	{"half a delimiter twice", endTag, "a<EN<EN<END>b<END<END>", []string{`"a<EN<EN"`, `"b<END"`}, Stats{}, nil},
	{"a delimiter that repeats itself", Options{Mode: Delimiter, Delimiter: []byte("aab")}, "xaaabyaab", []string{`"xa"`, `"y"`}, Stats{}, nil},
	{"CR LF is taken off exactly", Options{Mode: Delimiter, Delimiter: []byte("\r\n")}, "a\nb\r\r\nc\r\n", []string{`"a\nb\r"`, `"c"`}, Stats{}, nil},
	{"LF given, not by default", Options{Mode: Delimiter, Delimiter: []byte("\n")}, "a\r\nb\n", []string{`"a"`, `"b"`}, Stats{}, nil},
	{"NUL mode keeps LF", nul, "a\nb\x00\x00c\x00", []string{`"a\nb"`, `"c"`}, Stats{Empty: 1}, nil},
	{"a delimiter in auto", autoTag, "a\n<END> b\x00c<END>5 <13>x<END>", []string{`"a\n"`, `" b"`, `"c"`, `"<13>x"`}, Stats{Empty: 1}, nil},
	{"a delimiter with NUL in auto", Options{Delimiter: []byte("\x00;")}, "a\x00b\x00;c\x00;", []string{`"a\x00b"`, `"c"`}, Stats{}, nil},
	{"a delimiter in rfc6587", Options{Mode: RFC6587, Delimiter: []byte(";")}, "a\nb;5 <13>xc;", []string{`"a\nb"`, `"<13>x"`, `"c"`}, Stats{}, nil},
	{"trailing NULs before LF", lf, "a\x00\x00\nb\x00c\r\n", []string{`"a"`, `"b\x00c"`}, Stats{}, nil},

	// Lines joined by their PRI.
	{"a trace", priLines, "<13>a\n  at f()\n\tat g()\n<13>b\n", []string{`"<13>a\n  at f()\n\tat g()" multiline`, `"<13>b"`}, Stats{}, nil},
	{"a trace, delimiter", lfPRI, "<13>a\r\n  at f()\r\n<13>b\r\n", []string{`"<13>a\r\n  at f()" multiline`, `"<13>b"`}, Stats{}, nil},
	{"a trace, rfc6587", rfcPRI, "<13>a\nb\n<13>c\n", []string{`"<13>a\nb" multiline`, `"<13>c"`}, Stats{}, nil},
	{"a trace, octet has no lines", Options{Mode: Octet, Multiline: MultilinePRI}, "7 <13>a\nb5 <13>c", []string{`"<13>a\nb"`, `"<13>c"`}, Stats{}, nil},
	{"a trace, nul has no lines", Options{Mode: NUL, Multiline: MultilinePRI}, "<13>a\nb\x00c\x00<13>d\x00", []string{`"<13>a\nb"`, `"c"`, `"<13>d"`}, Stats{}, nil},
	{"a first line without PRI", priLines, "text\nmore\n<13>b\n", []string{`"text\nmore" multiline`, `"<13>b"`}, Stats{}, nil},
	{"no PRI at all", priLines, "a\nb\nc", []string{`"a\nb\nc" unterminated multiline`}, Stats{}, nil},
	{"what is a PRI", lfPRI, "<1>a\n<12>b\n<191>c\n<999>d\n", []string{`"<1>a"`, `"<12>b"`, `"<191>c"`, `"<999>d"`}, Stats{}, nil},
	{"what is no PRI", lfPRI, "<1>a\n<>b\n<1234>c\n<1x>d\n <1>e\n<\n13>f\n<-1>", []string{`"<1>a\n<>b\n<1234>c\n<1x>d\n <1>e\n<\n13>f\n<-1>" unterminated multiline`}, Stats{}, nil},
	{"line ends behind the last line", priLines, "<13>a\n\r\n\n\x00<13>b\n\n", []string{`"<13>a"`, `"<13>b"`}, Stats{}, nil},
	{"line ends behind the last line, delimiter", lfPRI, "<13>a\n\r\n\n<13>b\n\n", []string{`"<13>a"`, `"<13>b"`}, Stats{}, nil},
	{"line ends alone", lfPRI, "\n\n\n<13>a\n", []string{`"<13>a"`}, Stats{Empty: 1}, nil},
	{"an empty line inside", lfPRI, "<13>a\n\nb\n<13>c\n", []string{`"<13>a\n\nb" multiline`, `"<13>c"`}, Stats{}, nil},
	{"half a PRI, end of stream", lfPRI, "<13>a\n<1", []string{`"<13>a\n<1" unterminated multiline`}, Stats{}, nil},
	{"NUL ends a message at once", priLines, "<13>Traceback\n  File\nValueError\x00<13>b\nc\x00<13>d", []string{`"<13>Traceback\n  File\nValueError" multiline`, `"<13>b\nc" multiline`, `"<13>d" unterminated`}, Stats{}, nil},
	{"NUL and PRI, the NUL sender's rule is the weaker", priLines, "<13>a\x00<13>b\n<c>\n5 <x>\n<13>d\n", []string{`"<13>a"`, `"<13>b\n<c>\n5 <x>" multiline`, `"<13>d"`}, Stats{}, nil},
	{"a counted frame behind lines", priLines, "<13>a\nb\n5 <13>c5 <13>d\n<13>e\n", []string{`"<13>a\nb" multiline`, `"<13>c"`, `"<13>d"`, `"<13>e"`}, Stats{}, nil},
	{"a counted frame behind lines, rfc6587", rfcPRI, "<13>a\n2 bc\n5 <13>c<13>d\n", []string{`"<13>a\n2 bc" multiline`, `"<13>c"`, `"<13>d"`}, Stats{}, nil},
	{"a line behind a counted frame", priLines, "5 <13>ab\nc\n<13>d\n", []string{`"<13>a"`, `"b\nc" multiline`, `"<13>d"`}, Stats{}, nil},
	{"Cisco ASA's space before a PRI", priLines, "<166>a\n <166>b\n  c\n <166>d\n ", []string{`"<166>a"`, `"<166>b\n  c" multiline`, `"<166>d"`}, Stats{}, nil},
	{"another delimiter", Options{Mode: Delimiter, Delimiter: []byte("<END>"), Multiline: MultilinePRI}, "<13>a<END>b<END><END><13>c<END>", []string{`"<13>a<END>b<END>" multiline`, `"<13>c"`}, Stats{}, nil},
	{"a counted sender on a multi-line input", lfPRI, "8 <13>abc\n8 <13>def\n", []string{`"8 <13>abc\n8 <13>def" multiline`}, Stats{LooksCounted: 1}, nil},
	{"lines over the limit", with(lfPRI, 8, Truncate), "<13>a\nbcdef\n<13>1234\n<13>x\ny\n", []string{`"<13>a\nbc" truncated multiline`, `"<13>1234"`, `"<13>x\ny" multiline`}, Stats{Oversize: 1, Discarded: 3}, nil},
	{"lines over the limit, split", with(lfPRI, 8, Split), "<13>a\nbcdef\n\n<13>1234\n", []string{`"<13>a\nbc" multiline part`, `"def" part`, `"<13>1234"`}, Stats{Oversize: 1}, nil},
	{"lines over the limit, drop", with(lfPRI, 8, Drop), "<13>a\nbcdef\nx\n<13>1234\n", []string{`"<13>1234"`}, Stats{Oversize: 1, Discarded: 13}, nil},
	{"lines over the limit, close", with(lfPRI, 8, Close), "<13>a\nbcdef\nx\n<13>1234\n", []string{`"<13>a\nbc" truncated multiline`}, Stats{Oversize: 1}, ErrOversize},

	// JSONx.
	{"three records with raw LF and <", jsonxMode, record3 + record3 + record3, []string{quoted(record3), quoted(record3), quoted(record3)}, Stats{}, nil},
	{"a relay's line ends", jsonxMode, "\n" + tagType + "\r\n\x00\n" + tagType + "\n", []string{quoted(tagType), quoted(tagType)}, Stats{}, nil},
	{"a prefix belongs to its record", jsonxMode, "vault: " + tagType + "vault: " + tagType, []string{quoted("vault: " + tagType), quoted("vault: " + tagType)}, Stats{}, nil},
	{"a prefix that looks like a tag", jsonxMode, "<14><json></json:x><json:objec: " + tagType + "<" + tagType, []string{quoted("<14><json></json:x><json:objec: " + tagType), quoted("<" + tagType)}, Stats{}, nil},
	{"a nested type", jsonxMode, `<json:object name="request"><json:string name="type">a</json:string></json:object>` + tagType, []string{quoted(`<json:object name="request"><json:string name="type">a</json:string></json:object>` + tagType)}, Stats{}, nil},
	{"a nested type in front of a member", jsonxMode, `<json:object name="r"><json:string name="type">a</json:string><json:null name="typo" /></json:object>` + tagType, []string{quoted(`<json:object name="r"><json:string name="type">a</json:string><json:null name="typo" /></json:object>` + tagType)}, Stats{}, nil},
	{"a nested type with the end of a string", jsonxMode, `<json:object name="r"><json:string name="type">a</json:string></json:string></json:object>` + tagType, []string{quoted(`<json:object name="r"><json:string name="type">a</json:string></json:string></json:object>` + tagType)}, Stats{}, nil},
	{"an array's strings have no name", jsonxMode, `<json:array name="type"><json:string>type</json:string><json:string>a</json:string></json:array><json:string name="types">x</json:string>`, []string{quoted(`<json:array name="type"><json:string>type</json:string><json:string>a</json:string></json:array><json:string name="types">x</json:string>`) + " unterminated"}, Stats{}, nil},
	{"an object called type", jsonxMode, `<json:object name="type"><json:string name="type">a</json:string></json:object>`, []string{quoted(`<json:object name="type"><json:string name="type">a</json:string></json:object>`) + " unterminated"}, Stats{}, nil},
	{"a number called type", jsonxMode, `<json:number name="type">1</json:number>`, []string{quoted(`<json:number name="type">1</json:number>`) + " unterminated"}, Stats{}, nil},
	{"an empty type, and nothing else", jsonxMode, `<json:string name="type"></json:string>`, []string{quoted(`<json:string name="type"></json:string>`)}, Stats{}, nil},
	{"empty containers and values", jsonxMode, `<json:object name="a"></json:object><json:array name="b"></json:array><json:string name="c"></json:string><json:object name="d" /><json:boolean name="e">true</json:boolean>` + tagType, []string{quoted(`<json:object name="a"></json:object><json:array name="b"></json:array><json:string name="c"></json:string><json:object name="d" /><json:boolean name="e">true</json:boolean>` + tagType)}, Stats{}, nil},
	{"end of stream inside a record", jsonxMode, tagType + `<json:object name="auth"><json:string name="x">a</js`, []string{quoted(tagType), quoted(`<json:object name="auth"><json:string name="x">a</js`) + " unterminated"}, Stats{}, nil},
	{"end of stream inside a prefix", jsonxMode, tagType + "vault: ", []string{quoted(tagType), `"vault: " unterminated`}, Stats{}, nil},
	{"records without type", jsonxMode, tagAuth + tagTime + tagAuth + tagTime + "\nvault: " + tagAuth + tagTime + tagTime, []string{quoted(tagAuth + tagTime), quoted(tagAuth + tagTime), quoted("vault: " + tagAuth + tagTime), quoted(tagTime)}, Stats{}, nil},
	{"one record without type", jsonxMode, tagAuth + tagTime, []string{quoted(tagAuth+tagTime) + " unterminated"}, Stats{}, nil},
	{"long names that begin alike are in order", jsonxMode, `<json:null name="abcdefghijklmnopq" /><json:null name="abcdefghijklmnopr" />` + tagType, []string{quoted(`<json:null name="abcdefghijklmnopq" /><json:null name="abcdefghijklmnopr" />` + tagType)}, Stats{}, nil},
	{"format=json", jsonxMode, "{\"time\":\"x\"}\n{\"time\":\"\\u003cjson:string\"}\r\n", []string{`"{\"time\":\"x\"}"`, `"{\"time\":\"\\u003cjson:string\"}"`}, Stats{}, nil},
	{"a delimiter is none here", Options{Mode: JSONX, Delimiter: []byte("json")}, tagType + tagType, []string{quoted(tagType), quoted(tagType)}, Stats{}, nil},
	{"exactly the limit, jsonx", with(jsonxMode, len(tagType), Truncate), tagType + tagType, []string{quoted(tagType), quoted(tagType)}, Stats{}, nil},
	{"one over, jsonx", with(jsonxMode, len(tagType)-1, Truncate), tagType + "\n" + tagType, []string{quoted(tagType[:len(tagType)-1]) + " truncated", quoted(tagType[:len(tagType)-1]) + " truncated"}, Stats{Oversize: 2, Discarded: 2}, nil},
	{"far over, jsonx", with(jsonxMode, len(tagType), Truncate), record3 + tagType, []string{quoted(record3[:len(tagType)]) + " truncated", quoted(tagType)}, Stats{Oversize: 1, Discarded: uint64(len(record3) - len(tagType))}, nil},
	{"over, jsonx, drop", with(jsonxMode, len(tagType), Drop), record3 + tagType, []string{quoted(tagType)}, Stats{Oversize: 1, Discarded: uint64(len(record3))}, nil},
	{"over, jsonx, split", with(jsonxMode, 90, Split), record3 + tagType, []string{quoted(record3[:90]) + " part", quoted(record3[90:180]) + " part", quoted(record3[180:]) + " part", quoted(tagType)}, Stats{Oversize: 1}, nil},
	{"over, jsonx, close", with(jsonxMode, 90, Close), record3 + tagType, []string{quoted(record3[:90]) + " truncated"}, Stats{Oversize: 1}, ErrOversize},

	// JSONx in another mode.
	{"JSONx, delimiter", lf, tagType + "\n" + tagType, []string{quoted(tagType), quoted(tagType) + " unterminated"}, Stats{LooksJSONX: 1}, nil},
	{"JSONx, auto", auto, tagType, []string{quoted(tagType) + " unterminated"}, Stats{LooksJSONX: 1}, nil},
	{"JSONx, rfc6587", rfc, tagType, []string{quoted(tagType) + " unterminated"}, Stats{LooksJSONX: 1}, nil},
	{"JSONx, nul", nul, tagType, []string{quoted(tagType) + " unterminated"}, Stats{LooksJSONX: 1}, nil},
	{"JSONx, behind a prefix", lf, "<14>vault: " + tagType + "\n", []string{quoted("<14>vault: " + tagType)}, Stats{LooksJSONX: 1}, nil},
	{"JSONx, behind half of a tag", lf, "<js<json" + tagType + "\n", []string{quoted("<js<json" + tagType)}, Stats{LooksJSONX: 1}, nil},
	{"JSONx, a tag that just ends within what is looked at", lf, strings.Repeat("x", maxFront-len(jsonxTag)) + jsonxTag + "\n", []string{quoted(strings.Repeat("x", maxFront-len(jsonxTag)) + jsonxTag)}, Stats{LooksJSONX: 1}, nil},
	{"JSONx, far behind", lf, strings.Repeat("x", maxFront-len(jsonxTag)+1) + jsonxTag + "\n", []string{quoted(strings.Repeat("x", maxFront-len(jsonxTag)+1) + jsonxTag)}, Stats{}, nil},
	{"JSONx, but not in the first line of the stream", lf, "x\n" + tagType + "\n", []string{`"x"`, quoted(tagType)}, Stats{}, nil},
	{"nearly JSONx", lf, "<json>\n" + tagType + "\n", []string{`"<json>"`, quoted(tagType)}, Stats{}, nil},
	{"half of JSONx", lf, "<json", []string{`"<json" unterminated`}, Stats{}, nil},

	// At the limit and over it.
	{"exactly the limit", with(lf, 4, Truncate), "abcd\nefgh\r\n", []string{`"abcd"`, `"efgh"`}, Stats{}, nil},
	{"one over", with(lf, 4, Truncate), "abcde\nefgh\n", []string{`"abcd" truncated`, `"efgh"`}, Stats{Oversize: 1, Discarded: 1}, nil},
	{"one over, CR LF", with(lf, 4, Truncate), "abcde\r\nefgh\n", []string{`"abcd" truncated`, `"efgh"`}, Stats{Oversize: 1, Discarded: 2}, nil},
	{"far over", with(lf, 4, Truncate), "abcdefghijklmnop\nqr\n", []string{`"abcd" truncated`, `"qr"`}, Stats{Oversize: 1, Discarded: 12}, nil},
	{"far over, half a delimiter in the rest", with(endTag, 4, Truncate), "abcdefghi<ENjkl<END>qr<END>", []string{`"abcd" truncated`, `"qr"`}, Stats{Oversize: 1, Discarded: 11}, nil},
	{"exactly the limit and a long delimiter", with(endTag, 4, Truncate), "abcd<END>abcde<END>", []string{`"abcd"`, `"abcd" truncated`}, Stats{Oversize: 1, Discarded: 1}, nil},
	{"exactly the limit, auto", with(auto, 4, Truncate), "<1>a\n<1>b\r\n4 <1>c<1>d\x00", []string{`"<1>a"`, `"<1>b"`, `"<1>c"`, `"<1>d"`}, Stats{}, nil},
	{"one over, auto", with(auto, 4, Truncate), "<1>aa\n5 <1>bb5 <1>cc\n<1>d\n<1>ee\x00<1>f\n", []string{`"<1>a" truncated`, `"<1>b" truncated`, `"<1>c" truncated`, `"<1>d"`, `"<1>e" truncated`, `"<1>f"`}, Stats{Oversize: 4, Discarded: 4}, nil},
	{"one over, octet", with(octet, 4, Truncate), "4 abcd5 abcde4 efgh", []string{`"abcd"`, `"abcd" truncated`, `"efgh"`}, Stats{Oversize: 1, Discarded: 1}, nil},
	{"one over, nul", with(nul, 4, Truncate), "abcd\x00abcde\x00e\x00", []string{`"abcd"`, `"abcd" truncated`, `"e"`}, Stats{Oversize: 1, Discarded: 1}, nil},
	{"one over, rfc6587", with(rfc, 4, Truncate), "abcde\nabcd\n5 abcde4 abcd", []string{`"abcd" truncated`, `"abcd"`, `"abcd" truncated`, `"abcd"`}, Stats{Oversize: 2, Discarded: 2}, nil},
	{"a counted LF is part of the count", with(octet, 4, Truncate), "5 abcd\n4 efgh", []string{`"abcd" truncated`, `"efgh"`}, Stats{Oversize: 1, Discarded: 1}, nil},
	{"over, end of stream", with(lf, 4, Truncate), "abcdefghijk", []string{`"abcd" truncated`}, Stats{Oversize: 1, Discarded: 7}, nil},
	{"just over, end of stream", with(lf, 4, Truncate), "abcde", []string{`"abcd" truncated`}, Stats{Oversize: 1, Discarded: 1}, nil},
	{"over by count, end of stream before the limit", with(octet, 4, Truncate), "9 abc", []string{}, Stats{Partial: 1, Discarded: 3}, nil},
	{"over by count, end of stream behind the limit", with(octet, 4, Truncate), "9 abcdef", []string{`"abcd" truncated`}, Stats{Oversize: 1, Discarded: 2}, nil},
	{"NUL sender, over in the second line", with(auto, 6, Truncate), "<1>a\x00<1>b\ncdef\ng\n<1>h\n", []string{`"<1>a"`, `"<1>b\nc" truncated`, `"<1>h"`}, Stats{Oversize: 1, Discarded: 5}, nil},
	{"NUL sender, exactly the limit", with(auto, 6, Truncate), "<1>a\x00<1>b\nc\x00<1>bcd\r\n<1>e\n", []string{`"<1>a"`, `"<1>b\nc"`, `"<1>bcd"`, `"<1>e"`}, Stats{}, nil},

	{"split", with(lf, 4, Split), "abcdefghijk\nlm\n", []string{`"abcd" part`, `"efgh" part`, `"ijk" part`, `"lm"`}, Stats{Oversize: 1}, nil},
	{"split, the last part is full", with(lf, 4, Split), "abcdefgh\r\n", []string{`"abcd" part`, `"efgh" part`}, Stats{Oversize: 1}, nil},
	{"split, a count within the message is none", with(auto, 4, Split), "<1>a5 <1>b\n5 <1>c\n", []string{`"<1>a" part`, `"5 <1" part`, `">b" part`, `"<1>c" part`}, Stats{Oversize: 2}, nil},
	{"split, octet", with(octet, 4, Split), "11 abcdefghij\n2 lm", []string{`"abcd" part`, `"efgh" part`, `"ij" part`, `"lm"`}, Stats{Oversize: 1}, nil},
	{"split, nothing but NULs left", with(lf, 4, Split), "abcd\x00\x00\nlm\n", []string{`"abcd" part`, `"lm"`}, Stats{Oversize: 1}, nil},
	{"split, end of stream", with(lf, 4, Split), "abcdefghijk", []string{`"abcd" part`, `"efgh" part`, `"ijk" unterminated part`}, Stats{Oversize: 1}, nil},
	{"split, counted, end of stream", with(octet, 4, Split), "11 abcdefg", []string{`"abcd" part`}, Stats{Oversize: 1, Partial: 1, Discarded: 3}, nil},
	{"drop", with(lf, 4, Drop), "abcdefghijk\nlm\n", []string{`"lm"`}, Stats{Oversize: 1, Discarded: 11}, nil},
	{"drop, octet", with(octet, 4, Drop), "5 abcde2 lm", []string{`"lm"`}, Stats{Oversize: 1, Discarded: 5}, nil},
	{"close", with(lf, 4, Close), "ab\nabcdefghijk\nlm\n", []string{`"ab"`, `"abcd" truncated`}, Stats{Oversize: 1}, ErrOversize},
	{"close, octet", with(octet, 4, Close), "2 ab5 abcde2 lm", []string{`"ab"`, `"abcd" truncated`}, Stats{Oversize: 1}, ErrOversize},
	{"limit of one byte", with(auto, 1, Truncate), "a\nbc\n\n1 <2 <>\n", []string{`"a"`, `"b" truncated`, `"<"`, `"<" truncated`}, Stats{Empty: 1, Oversize: 2, Discarded: 2}, nil},
}

// Each stream comes to the same, however it is cut into reads, and the model agrees.
func TestStreams(t *testing.T) {
	for _, c := range streams {
		t.Run(c.name, func(t *testing.T) {
			in := []byte(c.in)
			got := run(t, whole(in), c.opt)
			if g := show(got.messages); !slices.Equal(g, c.want) {
				t.Fatalf("%q in mode %s:\n  %s\nwant\n  %s", in, c.opt.Mode, strings.Join(g, "\n  "), strings.Join(c.want, "\n  "))
			}
			st := got.stats
			if c.err != nil {
				st.Discarded = 0 // what was read behind the error
			}
			if st != c.st {
				t.Errorf("stats %+v, want %+v", st, c.st)
			}
			if got.broken != c.err {
				t.Errorf("broken: %v, want %v", got.broken, c.err)
			}
			if err := like(model(in, c.opt), got); err != nil {
				t.Errorf("the model says otherwise: %v", err)
			}
			if err := like(run(t, bytewise(in), c.opt), got); err != nil {
				t.Errorf("byte by byte: %v", err)
			}
			if err := like(run(t, threes(in), c.opt), got); err != nil {
				t.Errorf("three bytes at a time: %v", err)
			}
			for at := range len(in) {
				if err := like(run(t, halves(in, at), c.opt), got); err != nil {
					t.Errorf("%d bytes, then the rest: %v", at, err)
				}
			}
			for seed := range uint64(20) {
				if err := like(run(t, random(in, seed), c.opt), got); err != nil {
					t.Errorf("random reads, seed %d: %v", seed, err)
				}
			}
		})
	}
}

// atoms are what framing looks at; streams made of them hit more cases than bytes do.
var atoms = []string{
	"\n", "\n", "\r\n", "\r", "\x00", " ", "<", "<13>", "<1>a", "x", "abc", "5 ", "5 <13>x", "12 <", "4 ", "1", "0", "9", "10 users",
	"999999999 <", "1234567890 ", "<END>", "<EN", "D>", "{", "3 {", "\xef\xbb\xbf", "4 \xef\xbb", "\n ", "\n <1>", "\x00<1>", "8 <13>a\nb\n", "long text with spaces", "<json:", "<13", "<1234>", "\n<json:x",
}

// tags are the same for JSONx.
var tags = []string{
	`<json:object name="auth">`, `<json:object name="request">`, `<json:object>`, "</json:object>", "</json:object>", `<json:array name="keys">`, "</json:array>",
	`<json:string name="type">request</json:string>`, `<json:string name="type">request</json:string>`, `<json:string name="type">`, `<json:string name="error">a`, `<json:string name="time">2026</json:string>`,
	`<json:string name="zone">`, "<json:string>x</json:string>", "</json:string>", "</json:string>", `<json:number name="n">1</json:number>`, `<json:boolean name="forwarded">true</json:boolean>`, `<json:null name="n" />`,
	`<json:object name="abcdefghijklmnopq">`, `<json:string name="abcdefghijklmnopr">`, `<json:array name="`, "<json:str", "</json:", "<", ">", "x", "\n", "\r\n", "\x00", "vault: ", "<13>vault: ", `{"time":1}` + "\n",
}

func randomStream(rng *rand.Rand, m Mode) []byte {
	from := atoms
	if m == JSONX {
		from = tags
	}
	var b []byte
	for range rng.IntN(30) {
		b = append(b, from[rng.IntN(len(from))]...)
	}
	return b
}

func randomOptions(rng *rand.Rand) Options {
	o := Options{
		Mode:           Mode(rng.IntN(len(modeNames))),
		MaxMessageSize: 1 + rng.IntN(12),
		Oversize:       Oversize(rng.IntN(4)),
		NonSyslog:      rng.IntN(2) == 0,
		Multiline:      MultilineRule(rng.IntN(2)),
	}
	if o.Mode == JSONX {
		o.MaxMessageSize *= 1 + rng.IntN(20)
	}
	if rng.IntN(2) == 0 {
		o.MaxMessageSize = 1000
	}
	if delims := []string{"", "", "", "", "\n", "<END>", "\r\n", "ab", "\x00\n", "\x00"}; rng.IntN(2) == 0 {
		o.Delimiter = []byte(delims[rng.IntN(len(delims))])
	}
	return o
}

func TestModel(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 2))
	n := 20_000
	if testing.Short() {
		n = 5_000
	}
	for i := range n {
		opt := randomOptions(rng)
		in := randomStream(rng, opt.Mode)
		want := model(in, opt)
		for name, r := range map[string]io.Reader{"whole": whole(in), "byte by byte": bytewise(in), "random": random(in, rng.Uint64())} {
			got := run(t, r, opt)
			if err := errors.Join(like(got, want), got.complete(in, opt)); err != nil {
				t.Fatalf("seed %d, stream %d, %s, options %+v\n%q\n%v", seed, i, name, opt, in, err)
			}
		}
		got := run(t, random(in, rng.Uint64()), opt, func() bool { return rng.IntN(2) == 0 })
		if err := got.complete(in, opt); err != nil {
			t.Fatalf("seed %d, stream %d, with pauses, options %+v\n%q\n%v", seed, i, opt, in, err)
		}
	}
}

func FuzzSplitter(f *testing.F) {
	for _, c := range streams {
		seed := uint64(0)
		for o := (Options{Mode: 99}); o.Mode != c.opt.Mode || o.Multiline != c.opt.Multiline; seed++ {
			o = randomOptions(rand.New(rand.NewPCG(seed+1, 3)))
		}
		f.Add([]byte(c.in), seed)
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 3))
		opt := randomOptions(rng)
		want := model(in, opt)
		for name, r := range map[string]io.Reader{"whole": whole(in), "random": random(in, seed)} {
			got := run(t, r, opt) // also checks limit and memory
			if err := like(got, want); err != nil {
				t.Fatalf("%s, options %+v\n%q\n%v", name, opt, in, err)
			}
			if err := got.complete(in, opt); err != nil {
				t.Fatalf("%s, options %+v\n%q\n%v", name, opt, in, err)
			}
			handed := 0
			for _, m := range got.messages {
				handed += len(m.Data)
			}
			if handed+int(got.stats.Discarded) > len(in) {
				t.Fatalf("%d bytes handed out and %d discarded of %d", handed, got.stats.Discarded, len(in))
			}
		}
		got := run(t, random(in, seed), opt, func() bool { return rng.IntN(2) == 0 })
		if err := got.complete(in, opt); err != nil {
			t.Fatalf("with pauses, options %+v\n%q\n%v", opt, in, err)
		}
	})
}

func FuzzDatagram(f *testing.F) {
	f.Add([]byte("45 <13>hello\r\n\x00"), 5)
	f.Fuzz(func(t *testing.T, in []byte, limit int) {
		m, ok := Datagram(in, Options{MaxMessageSize: limit})
		if ok != (len(m.Data) > 0) || !bytes.Contains(in, m.Data) {
			t.Fatalf("%q: %q, %v", in, m.Data, ok)
		}
		if limit > 0 && len(m.Data) > limit {
			t.Fatalf("%d bytes, limit %d", len(m.Data), limit)
		}
	})
}

func TestDatagram(t *testing.T) {
	short := Options{MaxMessageSize: 4}
	drop := Options{MaxMessageSize: 4, Oversize: Drop}
	for _, c := range []struct {
		name string
		opt  Options
		in   string
		want string
		ok   bool
	}{
		{"plain", auto, "<13>x", `"<13>x"`, true},
		{"LF", auto, "<13>x\n", `"<13>x"`, true},
		{"CR LF", auto, "<13>x\r\n", `"<13>x"`, true},
		{"Python", auto, "<11>one\x00", `"<11>one"`, true},
		{"Go, inner LF", auto, "<132>one\ntwo\n", `"<132>one\ntwo"`, true},
		{"LF and NUL", auto, "<13>x\n\x00\n", `"<13>x"`, true},
		{"inner NUL", auto, "a\x00b\x00", `"a\x00b"`, true},
		{"octet count", auto, "45 <13>Nov 20 12:36:02 vm myapp[42]: hello world", `"<13>Nov 20 12:36:02 vm myapp[42]: hello world" counted`, true},
		{"octet count that is wrong", auto, "450 <13>x\n", `"<13>x" counted`, true},
		{"a number is no count", auto, "10 users logged in\n", `"10 users logged in"`, true},
		{"a number alone", auto, "10", `"10"`, true},
		{"JSON behind a count", nosys, `7 {"a":1}`, `"{\"a\":1}" counted`, true},
		{"JSON behind a number, syslog", auto, `7 {"a":1}`, `"7 {\"a\":1}"`, true},
		{"half a byte order mark behind a number", nosys, "7 \xef\xbb", `"7 \xef\xbb"`, true},
		{"nothing", auto, "", `""`, false},
		{"only line ends", auto, "\r\n\x00\n", `""`, false},
		{"at the limit", short, "abcd\n", `"abcd"`, true},
		{"over", short, "abcde\n", `"abcd" truncated`, true},
		{"over, dropped", drop, "abcde\n", `"" truncated`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, ok := Datagram([]byte(c.in), c.opt)
			if got := show([]Message{m})[0]; got != c.want || ok != c.ok {
				t.Errorf("%q: %s, %v; want %s, %v", c.in, got, ok, c.want, c.ok)
			}
			if cap(m.Data) != len(m.Data) {
				t.Errorf("capacity %d of %d bytes", cap(m.Data), len(m.Data))
			}
		})
	}
}

// endless is a line without an end.
type endless struct{ left, step int }

func (e *endless) Read(p []byte) (int, error) {
	n := min(len(p), e.left, e.step)
	if n == 0 {
		return 0, io.EOF
	}
	for i := range p[:n] {
		p[i] = 'x'
	}
	e.left -= n
	return n, nil
}

// A line of 100 MB in small reads costs the limit and a read buffer, and its bytes are
// looked at once for each terminator.
func TestEndlessLine(t *testing.T) {
	const size = 100_000_000
	for _, opt := range []Options{{}, {Delimiter: []byte("<END>")}, {MaxMessageSize: 1 << 20, Oversize: Split}, {Oversize: Drop}, lfPRI, priLines, {Mode: JSONX}, {Mode: JSONX, Oversize: Drop}} {
		s := NewSplitter(opt)
		next := "next"
		if opt.Multiline == MultilinePRI {
			next = "<1>x"
		}
		r := io.MultiReader(&endless{left: size, step: 16 << 10}, strings.NewReader("<END>\n"+next+string(s.delim.what)))
		most, got, last := 0, 0, ""
		for {
			_, err := s.Fill(r)
			most = max(most, cap(s.buf))
			for m, ok := s.Next(); ok; m, ok = s.Next() {
				got += len(m.Data)
				last = string(m.Data[:min(4, len(m.Data))])
			}
			if err != nil {
				break
			}
		}
		if limit := s.max + 512<<10; most > limit {
			t.Errorf("%+v: a buffer of %d bytes, bound %d", opt, most, limit)
		}
		if s.Stats().Oversize != 1 {
			t.Errorf("%+v: %+v", opt, s.Stats())
		}
		for m, ok := s.End(); ok; m, ok = s.End() {
			last = string(m.Data)
		}
		if opt.Delimiter == nil && last != next {
			t.Errorf("%+v: the message behind it is %q", opt, last)
		}
		if cap(s.buf) > readSize {
			t.Errorf("%+v: still holds %d bytes", opt, cap(s.buf))
		}
		for _, f := range []finder{s.delim, s.nul} {
			if bound := uint64(size + size/100); f.looked > bound {
				t.Errorf("%+v: looked at %d bytes for %q, sent %d", opt, f.looked, f.what, size)
			}
		}
	}
}

// Every byte is looked at once for each terminator, whatever the messages and reads are:
// a large message in small reads, a stream without NUL, one without LF, one whose LFs end
// nothing.
func TestLooksOnce(t *testing.T) {
	for _, c := range []struct {
		name string
		opt  Options
		in   string
		read int
	}{
		{"20 MiB in 4 KiB reads", auto, strings.Repeat("x", 20<<20-1) + "\n", 4 << 10},
		{"many lines, no NUL", auto, strings.Repeat("<13>line\n", 1<<17), 64 << 10},
		{"many NUL lines, no LF", auto, strings.Repeat("<13>line\x00", 1<<17), 64 << 10},
		{"one message of many lines, ended by NUL", auto, "<13>a\x00<13>" + strings.Repeat("\n", 1<<20) + "\x00", 1 << 10},
		{"long delimiter in small reads", endTag, strings.Repeat(strings.Repeat("<EN", 4000)+"<END>", 100), 1 << 10},
		{"lines between counted frames", rfc, strings.Repeat("x\n9 <13>abc\nd", 1<<16), 64 << 10},
		{"lines of one message in small reads", lfPRI, "<13>a" + strings.Repeat("\n<x", 1<<18), 100},
		{"a line of text in small reads", jsonxMode, strings.Repeat("<x", 1<<20) + "\n", 1 << 10},
		{"records in small reads", jsonxMode, strings.Repeat(record3, 1000), 100},
		{"a long value in small reads", jsonxMode, `<json:string name="a">` + strings.Repeat("</json:strin>", 1<<16) + "</json:string>" + tagType, 100},
		{"a long value with ends in it", jsonxMode, `<json:object><json:string name="a">` + strings.Repeat("</json:string>x", 1<<16) + "</json:string></json:object>" + tagType, 100},
		{"a long name", jsonxMode, `<json:object name="` + strings.Repeat("a", 1<<20) + `"></json:object>` + tagType, 100},
		{"many that are open", jsonxMode, strings.Repeat("<json:array>", 1<<16) + strings.Repeat("</json:array>", 1<<16) + tagType, 100},
	} {
		s := NewSplitter(c.opt)
		r := &chunks{[]byte(c.in), func() int { return c.read }}
		for {
			_, err := s.Fill(r)
			for _, ok := s.Next(); ok; _, ok = s.Next() {
			}
			if err != nil {
				break
			}
		}
		for _, f := range []finder{s.delim, s.nul} {
			bound := uint64(len(c.in)) + uint64(len(c.in)/c.read+1)*uint64(len(f.what)) // a longer delimiter may begin in the last bytes of each read
			if f.looked > bound {
				t.Errorf("%s: looked at %d bytes for %q, of %d sent", c.name, f.looked, f.what, len(c.in))
			}
		}
		if bound := uint64(len(c.in)) + uint64(len(c.in)/c.read+1)*uint64(jsonxTail); s.jsonx.looked > bound {
			t.Errorf("%s: looked at %d bytes, of %d sent", c.name, s.jsonx.looked, len(c.in))
		}
		if c.opt.Mode == JSONX && s.jsonx.looked < uint64(len(c.in)) {
			t.Errorf("%s: looked at %d bytes only, of %d sent", c.name, s.jsonx.looked, len(c.in))
		}
	}
}

// A peer who announces much and sends little costs what it sent.
func TestTrickle(t *testing.T) {
	s := NewSplitter(Options{MaxMessageSize: 1 << 30})
	in := []byte("999999999 <13>" + strings.Repeat("x", 300_000))
	r := &chunks{in, func() int { return 7 }}
	for sent := 0; ; {
		n, err := s.Fill(r)
		if err != nil {
			break
		}
		sent += n
		if _, ok := s.Next(); ok {
			t.Fatal("a message")
		}
		if bound := max(4096, 4*sent); cap(s.buf) > bound {
			t.Fatalf("%d bytes sent cost %d", sent, cap(s.buf))
		}
		if want := max(0, sent-len("999999999 ")); sent > 11 && s.Buffered() != want {
			t.Fatalf("%d bytes sent, buffered %d", sent, s.Buffered())
		}
	}
}

// A connection gives its buffer back as soon as its peer has no more to send.
func TestIdle(t *testing.T) {
	for _, tail := range []int{0, 100, 1000} {
		s := NewSplitter(Options{})
		read := func(in []byte) {
			t.Helper()
			if _, err := s.Fill(bytes.NewReader(in)); err != nil {
				t.Fatal(err)
			}
			for _, ok := s.Next(); ok; _, ok = s.Next() {
			}
		}
		for s.fit(); cap(s.buf) < readSize; {
			read(bytes.Repeat([]byte("<13>hello\n"), readSize/10))
		}
		read(append([]byte("<13>hello\n"), strings.Repeat("x", tail)...))
		want := s.Buffered()
		_, err := s.Fill(iotest.ErrReader(errors.New("timeout"))) // the read that an idle connection waits in
		if err == nil || cap(s.buf) != minBuf || s.Buffered() != want {
			t.Errorf("with %d bytes of a message: holds %d, of which %d are used; want %d, %d", tail, cap(s.buf), s.Buffered(), minBuf, want)
		}
	}
	if s := NewSplitter(Options{}); s.buf != nil {
		t.Error("a buffer before the first Fill")
	}
}

// An owner who never takes messages out is stopped at the bound.
func TestFillOnly(t *testing.T) {
	s := NewSplitter(Options{MaxMessageSize: 100})
	r := &endless{left: 10 << 20, step: 1 << 20}
	var err error
	for err == nil {
		_, err = s.Fill(r)
	}
	if err != io.ErrShortBuffer || cap(s.buf) > 512<<10 {
		t.Errorf("%v, %d bytes", err, cap(s.buf))
	}
}

func TestBrokenStops(t *testing.T) {
	s := NewSplitter(octet)
	if _, err := s.Fill(strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	m, ok := s.Next()
	if !ok || m.Flags != Invalid || m.Err == "" || !s.Broken() {
		t.Fatalf("%+v, %v, broken %v", m, ok, s.Broken())
	}
	if n, err := s.Fill(strings.NewReader("5 <13>x")); n != 0 || err != ErrCount {
		t.Errorf("Fill of a broken stream: %d, %v", n, err)
	}
	if m, ok := s.End(); ok {
		t.Errorf("End of a broken stream: %q", m.Data)
	}
}

// Cut frees what is held of a message and the next one is intact, wherever it cuts.
func TestCut(t *testing.T) {
	for _, c := range []struct {
		opt  Options
		in   string
		next string
	}{
		{lf, "abcdefgh\r\nnext\n", "next"},
		{endTag, "abcdefgh<END>next<END>", "next"},
		{auto, "<13>abcdefgh\r\n<13>next\n", "<13>next"},
		{auto, "12 <13>abcdefgh8 <13>next", "<13>next"},
		{auto, "<1>a\x00<13>ab\ncd\nef\n<13>next\n", "<13>next"},
		{octet, "8 abcdefgh4 next", "next"},
		{lfPRI, "<13>abcdefgh\n  ijklmnopqrstuvwxyz\n  0123456789\r\n<13>next\n", "<13>next"},
		{priLines, "<13>abcdefgh\n  ijklmnopqrstuvwxyz\n  0123456789\n5 <13>x<13>next\n", "<13>next"},
		{jsonxMode, "vault: " + record3 + tagType, tagType},
	} {
		for _, policy := range []Oversize{Truncate, Split, Drop} {
			for at := 1; at < len(c.in)-len(c.next); at++ {
				opt := c.opt
				opt.Oversize = policy
				s := NewSplitter(opt)
				var got []string
				var flags Flags
				take := func(m Message, ok bool) bool {
					if ok {
						got = append(got, string(m.Data))
						flags |= m.Flags
					}
					return ok
				}
				_, _ = s.Fill(strings.NewReader(c.in[:at]))
				for take(s.Next()) {
				}
				take(s.Cut())
				if s.Stats().Oversize > 0 && s.kind == line && policy != Split {
					for take(s.Next()) {
					}
					if s.Buffered() > s.tail {
						t.Fatalf("%q cut at %d: still %d bytes", c.in, at, s.Buffered())
					}
				}
				_, _ = s.Fill(strings.NewReader(c.in[at:]))
				for take(s.Next()) {
				}
				for take(s.End()) {
				}
				if len(got) == 0 || got[len(got)-1] != c.next {
					t.Fatalf("%q cut at %d, %s: %q", c.in, at, policy, got)
				}
				if cut := s.Stats().Oversize == 1; cut != (flags&(Truncated|Part) != 0) && policy != Drop {
					t.Fatalf("%q cut at %d, %s: %+v, flags %b", c.in, at, policy, s.Stats(), flags)
				}
				if policy == Split {
					if all, want := strings.Join(got, ""), model([]byte(c.in), c.opt); all != string(bytes.Join(datas(want.messages), nil)) {
						t.Fatalf("%q cut at %d: %q", c.in, at, got)
					}
				}
			}
		}
	}
}

// A connection that waits costs what it holds, and what it was sent next comes whole.
func TestSettle(t *testing.T) {
	for _, held := range []int{0, 1, 100, minBuf - 1, minBuf, minBuf + 1, 16 << 10, readSize, 3 * readSize, 1 << 20} {
		s := NewSplitter(lf)
		line := bytes.Repeat([]byte{'x'}, held)
		r := bytes.NewReader(line)
		for r.Len() > 0 {
			s.Fill(r)
			if _, ok := s.Next(); ok {
				t.Fatal("a message without an end")
			}
		}
		if n := s.Settle(); n < held || n > max(8*held, minBuf) || (n == 0) != (held == 0) {
			t.Errorf("%d bytes held in %d", held, n)
		}
		for _, text := range []string{"y", "z\n"} {
			if n, err := s.Fill(strings.NewReader(text)); n != len(text) || err != nil {
				t.Fatalf("%d bytes held: %d, %v", held, n, err)
			}
			if m, ok := s.Next(); ok != (text != "y") || ok && string(m.Data) != string(line)+"yz" {
				t.Errorf("%d bytes held: %d bytes came", held, len(m.Data))
			}
			s.Settle()
		}
	}
}

func datas(ms []Message) (b [][]byte) {
	for _, m := range ms {
		b = append(b, m.Data)
	}
	return b
}

// loop is a stream without an end.
type loop struct {
	b  []byte
	at int
}

func (l *loop) Read(p []byte) (int, error) {
	n := copy(p, l.b[l.at:])
	l.at = (l.at + n) % len(l.b)
	return n, nil
}

const text226 = "<165>1 2026-11-20T12:24:47.003Z gateway-17.site.example telemetry 8710 ID47 [meta sequenceId=\"29\"] pump 3 pressure 4.21 bar temperature 61.5 C flow 12.7 l/min state running since 2026-11-18T04:11:09Z, next check in 86400 s ok."

var benchStreams = []struct {
	name string
	opt  Options
	in   string
}{
	{"lf", lf, text226 + "\n"},
	{"octet", octet, "226 " + text226},
	{"rfc6587/octet", rfc, "226 " + text226},
	{"auto/lf", auto, text226 + "\n"},
	{"auto/octet", auto, "226 " + text226},
	{"auto/nul", auto, text226 + "\x00"},
	{"auto/text", auto, text226[1:] + "\n"},
	{"auto/pri", priLines, text226 + "\n"},
	{"delimiter/pri/trace", Options{Mode: Delimiter, Multiline: MultilinePRI}, text226 + strings.Repeat("\n  at org.example.Pump.read(Pump.java:42)", 20) + "\n"},
	{"jsonx", jsonxMode, string(vaultEntry("secret/data/app/config", "error", "1 error occurred:\n\t* permission denied\n\n"))},
}

func TestNoAllocations(t *testing.T) {
	if len(text226) != 226 {
		t.Fatalf("the message has %d bytes", len(text226))
	}
	for _, c := range benchStreams {
		s := NewSplitter(c.opt)
		r := &loop{b: bytes.Repeat([]byte(c.in), 5000)}
		messages := 0
		read := func() {
			if _, err := s.Fill(r); err != nil {
				t.Fatal(err)
			}
			for _, ok := s.Next(); ok; _, ok = s.Next() {
				messages++
			}
		}
		for range 10 {
			read()
		}
		if n := testing.AllocsPerRun(100, read); n != 0 {
			t.Errorf("%s: %v allocations per read", c.name, n)
		}
		if least := 100 * readSize / 2 / len(c.in); messages < least {
			t.Errorf("%s: %d messages, want %d", c.name, messages, least)
		}
	}
}

// Nor does a connection that is read empty again and again, although it gives its buffer
// back each time. (The race detector makes a sync.Pool forget; without one it were four.)
func TestBurstsHardlyAllocate(t *testing.T) {
	s := NewSplitter(auto)
	burst := bytes.Repeat([]byte(text226+"\n"), 400)
	r := bytes.NewReader(nil)
	most := 0
	n := testing.AllocsPerRun(200, func() {
		r.Reset(burst)
		for r.Len() > 0 {
			if _, err := s.Fill(r); err != nil {
				t.Fatal(err)
			}
			most = max(most, cap(s.buf))
			for _, ok := s.Next(); ok; _, ok = s.Next() {
			}
		}
	})
	if n > 2 {
		t.Errorf("%v allocations per burst", n)
	}
	if most <= 16<<10 {
		t.Errorf("the buffer had at most %d bytes: no burst", most)
	}
}

// Connections hand their buffers to each other, and never what is in them.
func TestManyConnections(t *testing.T) {
	seed := rand.Uint64()
	var wg sync.WaitGroup
	for c := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(c)))
			var in []byte
			var want []string
			for i := range 2000 {
				m := fmt.Sprintf("<13>%d.%d %s", c, i, strings.Repeat(string(rune('a'+c)), rng.IntN(1500)))
				want = append(want, m)
				switch rng.IntN(3) {
				case 0:
					in = fmt.Appendf(in, "%s\n", m)
				case 1:
					in = fmt.Appendf(in, "%s\x00", m)
				default:
					in = fmt.Appendf(in, "%d %s", len(m), m)
				}
			}
			s := NewSplitter(auto)
			r := &chunks{in, func() int {
				if rng.IntN(4) == 0 {
					return 1 + rng.IntN(100)
				}
				return 1 + rng.IntN(100_000)
			}}
			next := 0
			check := func(m Message, ok bool) bool {
				if ok && (next == len(want) || string(m.Data) != want[next]) {
					t.Errorf("seed %d, connection %d, message %d: %.60q", seed, c, next, m.Data)
					return false
				}
				if ok {
					next++
				}
				return ok
			}
			for err := error(nil); err == nil; {
				_, err = s.Fill(r)
				runtime.Gosched()
				for check(s.Next()) {
				}
			}
			for check(s.End()) {
			}
			if next != len(want) {
				t.Errorf("seed %d, connection %d: %d messages, want %d", seed, c, next, len(want))
			}
		})
	}
	wg.Wait()
}

func BenchmarkSplitter(b *testing.B) {
	for _, c := range benchStreams {
		b.Run(c.name, func(b *testing.B) {
			s := NewSplitter(c.opt)
			r := &loop{b: bytes.Repeat([]byte(c.in), 5000)}
			b.ReportAllocs()
			b.SetBytes(int64(len(c.in)))
			for n := 0; n < b.N; {
				if _, err := s.Fill(r); err != nil {
					b.Fatal(err)
				}
				for _, ok := s.Next(); ok; _, ok = s.Next() {
					n++
				}
			}
		})
	}
}

func BenchmarkDatagram(b *testing.B) {
	d := []byte(text226 + "\n")
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := Datagram(d, Options{}); !ok {
			b.Fatal("no message")
		}
	}
}

// What a sender that ends its messages in LF and space leaves behind is no message under way,
// whose age would end the connection, and is content yet if no message follows.
func TestBufferedSpace(t *testing.T) {
	s := NewSplitter(auto)
	for _, c := range []struct {
		in, want string
		held     int
	}{{"<166>a\n ", "<166>a", 0}, {"", "", 0}, {"7 <166>bb\n ", "<166>bb", 0}, {"  c", "", 4}, {"\n ", "   c", 0}, {"1", "", 2}} {
		if _, err := s.Fill(strings.NewReader(c.in)); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		var got string
		for m, ok := s.Next(); ok; m, ok = s.Next() {
			got += string(m.Data)
		}
		s.Settle()
		if got != c.want || s.Buffered() != c.held {
			t.Errorf("behind %q: %q, %d bytes held; want %q, %d", c.in, got, s.Buffered(), c.want, c.held)
		}
	}
}

// A message that only the next frame would end is Waiting, and can be had.
func TestRelease(t *testing.T) {
	for _, c := range []struct {
		name string
		opt  Options
		in   []string // reads; behind each the peer is quiet for long
		want []string // what is released is in brackets
	}{
		{"one line", priLines, []string{"<13>a\n"}, []string{`[<13>a]`}},
		{"several lines", priLines, []string{"<13>a\nb\n"}, []string{`[<13>a\nb] multiline`}},
		{"several messages", lfPRI, []string{"<13>a\nb\n<13>c\n"}, []string{`<13>a\nb multiline`, `[<13>c]`}},
		{"line ends behind it", rfcPRI, []string{"<13>a\r\n\r\n"}, []string{`[<13>a]`}},
		{"only line ends", lfPRI, []string{"\n\n", "<13>a\n"}, []string{`[<13>a]`}},
		{"its lines come with pauses", lfPRI, []string{"<13>a\n", "  b\n", "  c\n  d\n", "<13>e\n"}, []string{`[<13>a]`, `[  b]`, `[  c\n  d] multiline`, `[<13>e]`}},
		{"a line under way does not wait", lfPRI, []string{"<13>a\n  b", "\n"}, []string{`[<13>a\n  b] multiline`}},
		{"half a PRI is a line under way", lfPRI, []string{"<13>a\n<", "13>b\n"}, []string{`<13>a`, `[<13>b]`}},
		{"half a count is a line under way", priLines, []string{"<13>a\n5", " <13>b"}, []string{`<13>a`, `<13>b`}},
		{"CR is a line under way", lfPRI, []string{"<13>a\r", "\n"}, []string{`[<13>a]`}},
		{"NUL", priLines, []string{"<13>a\nb\x00", "<13>c\n\x00"}, []string{`<13>a\nb multiline`, `<13>c`}},
		{"a counted frame under way", priLines, []string{"5 <13>\n", "x\n"}, []string{`<13>`, `[x]`}},
		{"another delimiter", Options{Mode: Delimiter, Delimiter: []byte("<END>"), Multiline: MultilinePRI}, []string{"<13>a<END>b<EN", "D>"}, []string{`[<13>a<END>b] multiline`}},
		{"half a delimiter", Options{Mode: Delimiter, Delimiter: []byte("\r\n"), Multiline: MultilinePRI}, []string{"a", "b\r", "\n"}, []string{"[ab]"}},
		{"less than a delimiter, in all", Options{Mode: RFC6587, Delimiter: []byte("<END>"), Multiline: MultilinePRI}, []string{"1 xy", "<END>"}, []string{"x", "[y]"}},
		{"too long", with(lfPRI, 6, Truncate), []string{"<13>a\nbcd\n", "<13>e\n"}, []string{`[<13>a\n] truncated multiline`, `[<13>e]`}},
		{"too long, split", with(lfPRI, 8, Split), []string{"<13>a\nbcdefghijklmnopqrstuvwxyzABCDEFGHIJ\n", "<13>e\n"}, []string{`<13>a\nbc multiline part`, `defghijk part`, `[lmnopqrs] part`, `[tuvwxyzA] part`, `[BCDEFGHI] part`, `[J] part`, `[<13>e]`}},
		{"too long, dropped", with(lfPRI, 5, Drop), []string{"<13>a\n", "<13>abcdefghijklmnopqrstuvwxyz123456\n  b\n", "<13>e\n"}, []string{`[<13>a]`, `[<13>e]`}},

		{"Cisco ASA's space", priLines, []string{"<166>a\n ", "<166>b\n c\n ", "<166>d\n <", "166>e\n  "}, []string{`[<166>a]`, `[<166>b\n c] multiline`, `<166>d`}},
		{"a space is content elsewhere", rfcPRI, []string{"<13>a\n ", "<13>b\n"}, []string{`[<13>a\n <13>b] multiline`}},

		{"lines do not wait", auto, []string{"<13>a\n", "b\n"}, []string{`<13>a`, `b`}},
		{"a NUL sender changes to LF", auto, []string{"<13>a\x00", "<13>b\n", "<13>c\n", "<13>d\ne\n"}, []string{`<13>a`, `[<13>b]`, `<13>c`, `<13>d`, `e`}},
		{"a NUL sender changes to Cisco ASA's LF and space", auto, []string{"<13>a\x00", "<13>b\n ", "<13>c\n ", "<13>d\x00<13>e\n <13>f\n "}, []string{`<13>a`, `[<13>b]`, `<13>c`, `<13>d`, `<13>e`, `<13>f`}},
		{"a NUL sender's trace comes with a pause", auto, []string{"<13>a\x00", "<13>b\n  at\n", "<13>c\nd\x00", "<13>e\nf\x00"}, []string{`<13>a`, `[<13>b\n  at] multiline`, `<13>c`, `d`, `<13>e`, `f`}},
		{"a NUL sender's line under way does not wait", auto, []string{"<13>a\x00<13>b\n  at", " f\x00"}, []string{`<13>a`, `<13>b\n  at f`}},

		{"a record without type, the first", jsonxMode, []string{tagAuth + tagTime}, nil},
		{"a record without type, behind another", jsonxMode, []string{tagTime + tagTime, tagAuth + tagTime}, []string{tagTime, "[" + tagTime + "]", "[" + tagAuth + tagTime + "]"}},
		{"a record under way does not wait", jsonxMode, []string{tagTime + tagTime + tagAuth[:len(tagAuth)-1], ">" + tagTime + "<", tagType[1:]}, []string{tagTime, tagTime, tagAuth + tagTime + tagType}},
		{"a prefix does not wait", jsonxMode, []string{tagTime + "vault: ", tagTime + "vault: "}, []string{tagTime, "vault: " + tagTime}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := NewSplitter(c.opt)
			var got []string
			for _, in := range c.in {
				if _, err := s.Fill(strings.NewReader(in)); err != nil {
					t.Fatal(err)
				}
				for m, ok := s.Next(); ok; m, ok = s.Next() {
					got = append(got, strings.ReplaceAll(string(m.Data), "\n", `\n`)+flagNames(m.Flags))
				}
				held, waiting := s.Buffered(), s.Waiting()
				if s.Settle(); s.Waiting() != waiting {
					t.Errorf("behind %q: waiting %v, and %v behind Settle", in, waiting, !waiting)
				}
				for m, ok := s.Release(); ok; m, ok = s.Release() {
					got = append(got, "["+strings.ReplaceAll(string(m.Data), "\n", `\n`)+"]"+flagNames(m.Flags))
				}
				left := held
				if waiting {
					left = 0
				}
				if s.Buffered() != left {
					t.Errorf("behind %q: waiting %v, %d bytes left of %d", in, waiting, s.Buffered(), held)
				}
				if s.Waiting() {
					t.Errorf("still waiting behind %q", in)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%q:\n  %s\nwant\n  %s", c.in, strings.Join(got, "\n  "), strings.Join(c.want, "\n  "))
			}
		})
	}
}
