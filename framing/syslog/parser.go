package syslog

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"
)

// Format says which header a Parser expects.
type Format uint8

// Formats.
const (
	Auto    Format = 0 // either, found out per message; a line without any header is plain text
	RFC3164 Format = 1 // BSD syslog in the relaxed grammar; a line without any header is an error
	RFC5424 Format = 2 // RFC 5424 only
)

// ParseFormat returns the Format named "auto", "rfc3164" or "rfc5424".
func ParseFormat(s string) (Format, error) {
	switch s {
	case "auto":
		return Auto, nil
	case "rfc3164":
		return RFC3164, nil
	case "rfc5424":
		return RFC5424, nil
	}
	return 0, fmt.Errorf("unknown syslog format %q: use auto, rfc3164 or rfc5424", s)
}

// String returns the name that ParseFormat takes.
func (f Format) String() string {
	switch f {
	case RFC3164:
		return "rfc3164"
	case RFC5424:
		return "rfc5424"
	}
	return "auto"
}

// A Parser parses headers. It keeps what it learned from the last message (the
// bounds of the zone offset in force, the year), so it is not safe for
// concurrent use: have one per connection or per reader.
type Parser struct {
	format Format
	zone   zone
	year   yearOf
	minute minute
	ids    [32]span // SD-IDs of the message at hand, to find duplicates
}

// span is a part of the input: from <= offset < to.
type span struct{ from, to int }

// NewParser returns a Parser for format f. Stamps without an offset or a zone
// name are times in loc; nil means UTC.
func NewParser(f Format, loc *time.Location) *Parser {
	if loc == nil {
		loc = time.UTC
	}
	return &Parser{format: f, zone: zone{loc: loc}}
}

// Texts of Message.Err. errHeader is also what Elastic users look for.
const (
	errHeader   = "no priority, timestamp or tag"
	errPriority = "priority is not <0> to <191>"
	errVersion  = "version is not a number from 1 to 999"
	errTime     = "invalid timestamp"
	errEmpty    = "empty header field"
	errControl  = "control character in the header"
)

// errEnd is what is said when the input ends before a column of RFC 5424.
var errEnd = [...]string{
	"input ends before the timestamp",
	"input ends before the hostname",
	"input ends before the app-name",
	"input ends before the procid",
	"input ends before the msgid",
	"input ends before the structured data",
}

// Parse fills m with what the header of data says. It never fails: what could
// not be parsed is told in m.Err and m.Flags, and stays in m.Text. It does not
// allocate, and m aliases data. received chooses the year of stamps that have
// none; it does not become m.Time.
func (p *Parser) Parse(m *Message, data []byte, received time.Time) {
	*m = Message{Priority: -1}
	b := data
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == 0 || b[len(b)-1] == '\r') {
		b = b[:len(b)-1]
	}
	start := 0
	if len(b) > 0 && b[0] == bom[0] {
		start = skipBOM(b, 0)
	}

	i := start
	if i < len(b) && b[i] != '<' {
		if j := skipCount(b, i); j > 0 {
			m.Flags |= OctetCount
			i = j
		}
	}
	switch {
	case i < len(b) && b[i] == '<':
		pri, end := priority(b, i)
		if pri < 0 {
			m.fail(errPriority, end)
			m.setText(b, start)
			return
		}
		m.Priority = pri
		i = end
	case p.format == RFC5424:
		m.fail(errPriority, start)
		m.setText(b, start)
		return
	}

	if p.format != RFC3164 && m.Priority >= 0 {
		if v := versionEnd(b, i); v > 0 && (p.format == RFC5424 || columns(b, v+1)) {
			m.Version = b[i:v]
			if !p.parse5424(m, b, v+1) {
				m.setText(b, start)
			}
			return
		}
		if v := oddVersion(b, i); v > 0 {
			m.failWord(errVersion, b, i, v)
			if !p.parse5424(m, b, v+1) {
				m.setText(b, start)
			}
			return
		}
		if p.format == RFC5424 {
			m.fail(errVersion, i)
			m.setText(b, i)
			return
		}
	}
	if !p.parse3164(m, b, i, received.Unix()) && m.Priority < 0 && p.format == RFC3164 {
		m.fail(errHeader, start)
	}
}

const bom = "\xef\xbb\xbf"

func skipBOM(b []byte, i int) int {
	if len(b)-i >= len(bom) && string(b[i:i+len(bom)]) == bom {
		return i + len(bom)
	}
	return i
}

// setText makes b[i:] the text.
func (m *Message) setText(b []byte, i int) {
	if i < len(b) && b[i] == bom[0] {
		i = skipBOM(b, i)
	}
	if i < len(b) {
		m.Text = b[i:]
	}
}

// mark is what syslogd sends to say that it is alive.
const mark = "-- MARK --"

func (m *Message) noteMark() {
	if len(m.Text) > 0 && m.Text[0] == '-' && hasPrefix(m.Text, 0, mark) {
		m.Flags |= Mark
	}
}

// skipCount returns the offset of the "<" behind an octet count that framing
// left in front of a message, and 0 when there is none: a count has one to nine
// digits, no leading zero, one space behind it, and then a valid priority.
func skipCount(b []byte, i int) int {
	if b[i] < '1' || b[i] > '9' {
		return 0
	}
	j := i
	for j < len(b) && j-i < 9 && isDigit(b[j]) {
		j++
	}
	if len(b)-j < 2 || b[j] != ' ' || b[j+1] != '<' {
		return 0
	}
	if pri, _ := priority(b, j+1); pri < 0 {
		return 0
	}
	return j + 1
}

// priority parses "<" 0..191 ">" at b[i], which is the "<": no sign, no leading
// zero. It returns the value and the offset behind it, or -1 and the offset of
// the first byte that can't be.
func priority(b []byte, i int) (pri, end int) {
	i++
	for j := i; j < len(b); j++ {
		c := b[j]
		switch {
		case isDigit(c) && j < i+3 && (pri > 0 || j == i):
			pri = pri*10 + int(c-'0')
		case c == '>' && j > i && pri <= 191:
			return pri, j + 1
		case c == '>' && j > i:
			return -1, i
		default:
			return -1, j
		}
	}
	return -1, len(b)
}

// versionEnd returns the offset of the space behind a VERSION at b[i]: one to
// three digits, no leading zero (RFC 5424 section 6). 0: there is none.
func versionEnd(b []byte, i int) int {
	if i >= len(b) || b[i] < '1' || b[i] > '9' {
		return 0
	}
	for j := i + 1; j < len(b) && j <= i+3; j++ {
		if b[j] == ' ' {
			return j
		}
		if !isDigit(b[j]) {
			return 0
		}
	}
	return 0
}

// oddVersion is versionEnd for what stands in the place of a version, but is
// none: digits or one letter, and an RFC 3339 time behind it.
func oddVersion(b []byte, i int) int {
	j := i
	for j < len(b) && j < i+10 && isDigit(b[j]) {
		j++
	}
	if j == i && j < len(b) && isAlpha(b[j]) {
		j++
	}
	if j == i || j >= len(b) || b[j] != ' ' {
		return 0
	}
	var st stamp
	if _, ok := st.column(b, j+1); !ok {
		return 0
	}
	return j
}

// columns reports whether b[i:], behind a version, looks like RFC 5424 and not
// like a text that begins with a number ("<14>3 files copied"): a date, or
// STRUCTURED-DATA in its column.
func columns(b []byte, i int) bool {
	j := i
	for j < len(b) && j < i+4 && isDigit(b[j]) {
		j++
	}
	if j > i && j < len(b) && b[j] == '-' {
		return true
	}
	for range 5 {
		n := i
		for i < len(b) && b[i] != ' ' {
			i++
		}
		if i == n || i == len(b) {
			return false
		}
		i++
	}
	return i < len(b) && (b[i] == '[' || b[i] == '-' && (i+1 == len(b) || b[i+1] == ' '))
}

// parse5424 parses from TIMESTAMP on, which begins at b[i]. It returns false if
// the input ends inside the header.
func (p *Parser) parse5424(m *Message, b []byte, i int) bool {
	i = skipEmpty(m, b, i)
	if i >= len(b) {
		m.fail(errEnd[0], len(b))
		return false
	}
	if b[i] == '-' && (i+1 == len(b) || b[i+1] == ' ') {
		i++
	} else {
		var st stamp
		end, ok := st.column(b, i)
		if ok {
			p.setTime(m, &st, 0)
		} else {
			end = tokenEnd(m, b, max(i, end))
			m.failWord(errTime, b, i, end)
		}
		i = end
	}

	for n := 1; n <= 4; n++ {
		if i >= len(b) {
			m.fail(errEnd[n], len(b))
			return false
		}
		i++
		if i >= len(b) || b[i] == ' ' {
			if i = skipEmpty(m, b, i); i >= len(b) {
				m.fail(errEnd[n], len(b))
				return false
			}
		}
		from := i
		i = columnEnd(b, i)
		if i < len(b) && b[i] != ' ' {
			i = tokenEnd(m, b, i)
		}
		if i-from == 1 && b[from] == '-' {
			continue
		}
		field := b[from:i]
		switch n {
		case 1:
			m.Hostname = field
		case 2:
			m.AppName = field
		case 3:
			m.ProcID = field
		case 4:
			m.MsgID = field
		}
	}

	if i < len(b) {
		i = skipEmpty(m, b, i+1)
	}
	if i >= len(b) {
		m.fail(errEnd[5], len(b))
		return false
	}
	end := i
	switch b[i] {
	case '-':
		end = i + 1
	case '[':
		end = p.structuredData(m, b, i)
	}
	if end == i || end < len(b) && b[end] != ' ' {
		// Elastic's rule: what is not conformant goes in front of the message.
		// Here it stands there already.
		m.Flags = m.Flags&^DuplicateID | SDInText
		if b[len(b)-1] == ' ' {
			b = b[:len(b)-1] // the end of the header, before an empty message
		}
		m.setText(b, i)
		return true
	}
	if b[i] == '[' {
		m.SD = b[i:end]
	}
	m.setText(b, end+1)
	m.noteMark()
	return true
}

// skipEmpty steps over empty columns, which are a fault, so that the others
// stay where they belong.
func skipEmpty(m *Message, b []byte, i int) int {
	for i < len(b) && b[i] == ' ' {
		m.fail(errEmpty, i)
		i++
	}
	return i
}

// columnEnd returns the offset of the next space or control character, or of the end.
func columnEnd(b []byte, i int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	// Eight bytes as one number: the subtraction borrows from the highest bit of a
	// byte that is below ' '+1, or that is DEL, unless it had that bit. The borrow goes
	// on to the next byte, so only the lowest bit found counts.
	for ; i+8 <= len(b); i += 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		del := x ^ ones*0x7f
		if m := ((x-ones*(' '+1))&^x | (del-ones)&^del) & highs; m != 0 {
			return i + bits.TrailingZeros64(m)>>3
		}
	}
	for i < len(b) && b[i] > ' ' && b[i] != 0x7f {
		i++
	}
	return i
}

// tokenEnd returns the offset of the next space, or of the end.
func tokenEnd(m *Message, b []byte, i int) int {
	for ; i < len(b) && b[i] != ' '; i++ {
		if b[i] < ' ' || b[i] == 0x7f {
			m.fail(errControl, i)
		}
	}
	return i
}

func isDigit(c byte) bool { return c-'0' <= 9 }

func isAlpha(c byte) bool { return c|0x20-'a' < 26 }
