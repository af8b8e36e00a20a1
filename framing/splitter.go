package framing

import (
	"bytes"
	"errors"
)

// Errors that break a stream.
var (
	ErrCount    = errors.New("framing: no octet count where one must be")
	ErrOversize = errors.New("framing: message over the size limit")
)

// Stats count what a Splitter did not hand out, or not as it came.
type Stats struct {
	Empty        uint64 // frames without content, dropped
	Oversize     uint64 // messages over the limit, whatever the policy made of them
	Discarded    uint64 // bytes of messages that were thrown away
	Partial      uint64 // counted frames dropped because the stream ended inside them
	Errors       uint64 // framing errors: no count where one must be
	LooksCounted uint64 // messages that begin with an octet count in a mode that knows none: the sender is set to octet counting
	LooksJSONX   uint64 // 1: the stream's first line has a tag of JSONx, and the mode is another (not told of Octet, which breaks at its first byte)
}

// kind is what the frame under way is.
type kind uint8

const (
	between kind = 0 // no frame yet: start is at the first byte of the next one
	line    kind = 1 // up to a terminator
	counted kind = 2 // s.need bytes
	bad     kind = 3 // no frame at all, in Octet mode
)

// step is what looking at a frame led to.
type step uint8

const (
	again step = 0 // nothing to hand out, go on
	emit  step = 1 // a message
	wait  step = 2 // more bytes are needed
)

// Splitter cuts one stream into messages. Make it with NewSplitter.
type Splitter struct {
	mode      Mode
	oversize  Oversize
	nonSyslog bool
	max       int
	stripCR   bool // the delimiter is LF
	skip      bool // Auto with LF, and JSONX: skip what an earlier frame left behind
	endsInNUL bool // NUL ends a line too
	plain     bool // the delimiter ends a line, whatever comes behind it
	counts    bool // a frame may be counted
	multiline bool // a line that begins with no PRI goes on with the message before it
	tail      int  // bytes at the end of a line that may yet turn out to be its terminator

	buf   []byte // what was read; everything before start is done with
	start int    // first byte of the frame under way that was not handed out
	full  bool   // the last read filled all the room it had
	burst int    // bytes read since Settle gave the buffer back
	last  int    // the same between the two times before

	kind kind
	need int    // counted: bytes from start to the end of the frame, here or still to come
	over bool   // the rest of this frame is discarded
	part bool   // parts of this frame were handed out
	pri  bool   // line: its first byte is '<'
	from int    // line: an LF before this position does not end it
	eof  bool   // End was called
	prev prevAs // how the frame before this one ended

	delim  finder
	nul    finder
	jsonx  jsonx
	begun  int // how many bytes of a JSONx tag the stream's last one ends; all that it has: don't look
	sought int // bytes of the stream that were looked at for one
	stats  Stats
	err    error
}

// prevAs is what a frame has to know of the one before it.
type prevAs uint8

const (
	asLine  prevAs = 0
	asNUL   prevAs = 1 // it began with '<' and ended in NUL: so will the next, probably
	asCount prevAs = 2 // it was counted: a terminator behind it is no empty frame
)

// NewSplitter returns a Splitter for one stream. It holds no memory before the first Fill.
func NewSplitter(o Options) *Splitter {
	delim := o.Delimiter
	switch {
	case o.Mode == NUL:
		delim = []byte{0}
	case len(delim) == 0 || o.Mode == JSONX:
		delim = []byte{'\n'}
	}
	lf := len(delim) == 1 && delim[0] == '\n'
	tail := len(delim) + len("\r")
	if o.Mode == Auto {
		tail += len(" 123456789 ") + len(bom) // see terminator
	}
	multiline := o.Multiline == MultilinePRI && (o.Mode == Auto || o.Mode == Delimiter || o.Mode == RFC6587)
	if multiline {
		tail = len(delim) + len("\r") + len(" 123456789 <191>")
	}
	begun := 0
	switch o.Mode {
	case JSONX:
		tail = jsonxTail
		begun = len(jsonxTag)
	case Octet:
		begun = len(jsonxTag)
	}
	endsInNUL := o.Mode == Auto && bytes.IndexByte(delim, 0) < 0
	return &Splitter{
		mode:      o.Mode,
		oversize:  o.Oversize,
		nonSyslog: o.NonSyslog,
		max:       o.maxMessageSize(),
		stripCR:   lf,
		skip:      lf && (o.Mode == Auto || o.Mode == JSONX),
		endsInNUL: endsInNUL,
		plain:     !endsInNUL && !multiline && o.Mode != JSONX,
		counts:    o.Mode == Auto || o.Mode == RFC6587 || o.Mode == Octet,
		multiline: multiline,
		begun:     begun,
		jsonx:     jsonx{lastLen: -1},
		tail:      tail,
		delim:     finder{what: delim},
		nul:       finder{what: []byte{0}},
	}
}

// Broken says that the stream can't be split any further: the connection is to be
// closed. Next and Fill do nothing from then on.
func (s *Splitter) Broken() bool { return s.err != nil }

// Err is ErrCount or ErrOversize when the Splitter is Broken, else nil.
func (s *Splitter) Err() error { return s.err }

// Stats returns the counts since NewSplitter.
func (s *Splitter) Stats() Stats { return s.stats }

// Buffered returns how many bytes are held of what was not handed out; after Next
// said no, that is the unfinished message. The space behind a Cisco ASA's LF is none.
func (s *Splitter) Buffered() int {
	if s.kind == between && s.counts && s.blank(s.buf[s.start:]) {
		return 0
	}
	return len(s.buf) - s.start
}

// blank says whether b, the last of what was read, is nothing, or the one space that begin
// skips.
func (s *Splitter) blank(b []byte) bool { return len(b) == 0 || s.skip && len(b) == 1 && b[0] == ' ' }

// Next returns the next complete message of what was read. Without one it returns
// false: Fill again, unless Broken.
func (s *Splitter) Next() (Message, bool) {
	for s.err == nil && s.begin() {
		var m Message
		var st step
		switch s.kind {
		case line:
			m, st = s.line()
		case counted:
			m, st = s.counted()
		case bad:
			s.stats.Errors++
			m, st = s.breakOff(len(s.buf)-s.start, Invalid, ErrCount, "no octet count where one must be"), emit
		}
		switch st {
		case emit:
			return m, true
		case wait:
			return Message{}, false
		}
	}
	return Message{}, false
}

// End returns what is left when the stream has ended, one message per call, until it
// says no. No Fill may follow.
func (s *Splitter) End() (Message, bool) {
	s.eof = true
	return s.Next()
}

// Waiting says that a whole message is held that only what follows would end: under
// Options.Multiline, behind a frame that ended in NUL, and of JSONx without its type. It may be
// the rest of one that is over-size, of which Release hands out nothing. Call it after Next
// said no.
func (s *Splitter) Waiting() bool {
	switch {
	case s.kind != line || s.err != nil:
		return false
	case s.mode == JSONX:
		return s.complete()
	default:
		// A delimiter that was found, and ended nothing yet.
		at := s.delim.at
		return s.delim.next > 0 && at >= s.start && s.blank(s.buf[at+len(s.delim.what):])
	}
}

// Release hands out the message that is Waiting, the parts of it one per call, until it says
// no. It is for an owner whose peer has been quiet for a while: what goes on with the
// message later is a message of its own.
func (s *Splitter) Release() (Message, bool) {
	for s.Waiting() {
		s.eof = true // it ends what waits
		m, st := s.line()
		s.eof = false
		if st == emit {
			return m, true
		}
	}
	return Message{}, false
}

// Cut treats the unfinished message as over-size now, whatever its length, so that its
// memory is free at the next Fill. It is for an owner who bounds the memory of many
// connections; call it after Next said no. It returns false if there is nothing to hand
// out, because too little is held, or under Drop.
func (s *Splitter) Cut() (Message, bool) {
	n := s.Buffered()
	if s.kind == line {
		n -= s.tail
	}
	if s.kind == between || s.over || s.err != nil || n <= 0 {
		return Message{}, false
	}
	m, st := s.tooLong(min(n, s.max))
	return m, st == emit
}

// begin makes sure that a frame is under way and says false if more bytes are needed
// to tell what it is.
func (s *Splitter) begin() bool {
	if s.kind != between {
		return true
	}
	if s.skip {
		s.skipLeftovers()
	}
	b := s.buf[s.start:]
	if len(b) == 0 {
		return false
	}
	if s.pri = b[0] == '<'; s.pri && s.mode != Octet || !s.counts {
		s.kind = line
		return true
	}
	space := 0
	if s.skip && b[0] == ' ' {
		space = 1
		if len(b) == 1 {
			if s.eof {
				s.start++ // the space behind a Cisco ASA's last LF
			}
			return false
		}
		s.pri = b[1] == '<'
	}
	count, n, more := octetCount(b[space:])
	if n > 0 && s.mode == Auto {
		var ok bool
		if ok, more = beginsMessage(b[space+n:], s.nonSyslog); !ok {
			n = 0
		}
	}
	switch {
	case more && !s.eof:
		return false
	case n > 0:
		s.kind, s.need = counted, count
		s.start += space + n
	case s.pri && s.mode != Octet:
		s.kind = line
		s.start += space
	case s.mode != Octet:
		s.kind = line
	case more:
		// The stream ended inside a count.
		s.stats.Partial++
		s.discard(len(b))
		return false
	default:
		s.kind = bad
	}
	return true
}

// skipLeftovers steps over line ends and NULs in front of a frame. Behind a counted
// frame, and between JSONx records, they are their sender's habit, else each is an empty
// frame.
func (s *Splitter) skipLeftovers() {
	for ; s.start < len(s.buf); s.start++ {
		switch s.buf[s.start] {
		case '\n', 0:
			if s.prev != asCount && s.mode != JSONX {
				s.stats.Empty++
			}
		case '\r':
		default:
			return
		}
	}
}

// line looks for the end of a frame that ends in a terminator.
func (s *Splitter) line() (Message, step) {
	var flags Flags
	end, width := s.terminator()
	if end < 0 {
		held := len(s.buf) - s.start
		switch {
		case s.eof:
			end, width, flags = len(s.buf), 0, Unterminated
		case s.over:
			s.discard(max(0, held-s.tail))
			return Message{}, wait
		case held > s.max+s.tail:
			return s.tooLong(s.max)
		default:
			return Message{}, wait
		}
	}
	if s.over {
		s.discard(end - s.start)
		s.finish(end+width, width)
		return Message{}, again
	}
	data := s.buf[s.start:end]
	if s.stripCR && width > 0 && s.buf[end] == '\n' {
		data = trimCR(data)
	}
	if len(data) > s.max {
		return s.tooLong(s.max)
	}
	if width == 1 && s.buf[end] == 0 || s.multiline && s.stripCR {
		data = trimEnd(data)
	} else {
		data = trimNUL(data)
	}
	if s.from > 0 && (s.multiline || width == 0 || s.buf[end] != 0) {
		flags |= s.joined(data)
	}
	if s.part {
		flags |= Part
	}
	empty := len(data) == 0
	if empty && !s.part {
		s.stats.Empty++
	}
	s.finish(end+width, width)
	if empty {
		return Message{}, again
	}
	if (s.mode == Delimiter || s.mode == NUL) && flags&Part == 0 && data[0] != '<' {
		if ok, _ := beginsFrame(data, false); ok {
			s.stats.LooksCounted++
		}
	}
	return Message{Data: data[:len(data):len(data)], Flags: flags}, emit
}

// terminator finds what ends the line under way: its position, -1 if it has not come
// yet, and its length.
func (s *Splitter) terminator() (end, width int) {
	switch {
	case s.plain:
		return s.delim.find(s.buf, s.start), len(s.delim.what)
	case s.mode == JSONX:
		return s.record()
	}
	end = s.delim.find(s.buf, max(s.start, s.from))
	nul := -1
	if s.endsInNUL {
		nul = s.nul.find(s.buf, s.start)
	}
	if s.multiline || s.prev == asNUL && s.pri && s.skip {
		// The delimiter is content unless a frame begins behind it.
		for end >= 0 && (nul < 0 || end < nul) {
			next := end + len(s.delim.what)
			ok, more := s.beginsNext(s.buf[next:])
			if ok || s.eof && s.blank(s.buf[next:]) {
				break
			}
			if more && !s.eof {
				return -1, 0
			}
			s.from = next
			end = s.delim.find(s.buf, s.from)
		}
	}
	if nul >= 0 && (end < 0 || nul < end) {
		return nul, 1
	}
	return end, len(s.delim.what)
}

// beginsNext says whether b, which follows a delimiter, begins another message than the
// one before it, and whether b ended before that was certain.
func (s *Splitter) beginsNext(b []byte) (ok, more bool) {
	if s.skip && len(b) > 0 && b[0] == ' ' {
		b = b[1:]
	}
	if !s.multiline {
		return beginsFrame(b, s.nonSyslog)
	}
	if s.counts {
		_, n, more := octetCount(b)
		if more {
			return false, true
		}
		b = b[n:]
	}
	return beginsPRI(b)
}

// joined is Multiline if data has several lines.
func (s *Splitter) joined(data []byte) Flags {
	if bytes.Contains(data, s.delim.what) {
		return Multiline
	}
	return 0
}

// counted waits for the bytes that the count announced.
func (s *Splitter) counted() (Message, step) {
	held := len(s.buf) - s.start
	switch {
	case s.over:
		s.discard(min(held, s.need))
		if s.need > 0 {
			return s.partial()
		}
		s.finish(s.start, 0)
		return Message{}, again
	case s.need > s.max && (held >= s.max || s.oversize == Drop):
		return s.tooLong(s.max)
	case held < s.need:
		return s.partial()
	}
	end := s.start + s.need
	data := trimEnd(s.buf[s.start:end])
	var flags Flags
	if s.part {
		flags = Part
	}
	empty := len(data) == 0
	if empty && !s.part {
		s.stats.Empty++
	}
	s.finish(end, 0)
	if empty {
		return Message{}, again
	}
	return Message{Data: data[:len(data):len(data)], Flags: flags}, emit
}

// partial drops a counted frame if its rest will never come.
func (s *Splitter) partial() (Message, step) {
	if s.eof {
		if !s.over {
			s.stats.Partial++
		}
		s.discard(len(s.buf) - s.start)
		s.finish(len(s.buf), 0)
	}
	return Message{}, wait
}

// tooLong applies the over-size policy to the frame under way, of which n bytes may be
// handed out.
func (s *Splitter) tooLong(n int) (Message, step) {
	if !s.part {
		s.stats.Oversize++
	}
	flags := Truncated
	switch s.oversize {
	case Drop:
		s.over = true
		return Message{}, again
	case Close:
		return s.breakOff(n, Truncated, ErrOversize, ""), emit
	case Split:
		s.part = true
		flags = Part
	default:
		s.over = true
	}
	data := s.take(n)
	if s.multiline && s.kind == line {
		flags |= s.joined(data)
	}
	return Message{Data: data, Flags: flags}, emit
}

// breakOff hands out up to n bytes and gives up the stream.
func (s *Splitter) breakOff(n int, flags Flags, err error, text string) Message {
	if n > s.max {
		n, flags = s.max, flags|Truncated
	}
	s.err = err
	data := s.take(n)
	if s.multiline && s.kind == line {
		flags |= s.joined(data)
	}
	m := Message{Data: data, Flags: flags, Err: text}
	s.discard(len(s.buf) - s.start)
	return m
}

// take steps over n bytes of the frame and returns them.
func (s *Splitter) take(n int) []byte {
	data := s.buf[s.start : s.start+n : s.start+n]
	s.start += n
	s.need -= n
	return data
}

// discard steps over n bytes of the frame that nobody gets.
func (s *Splitter) discard(n int) {
	s.take(n)
	s.stats.Discarded += uint64(n)
}

// finish ends the frame under way; the next one starts at next.
func (s *Splitter) finish(next, terminator int) {
	switch {
	case s.kind == counted:
		s.prev = asCount
	case s.pri && terminator > 0 && s.endsInNUL && s.buf[next-1] == 0:
		s.prev = asNUL
	default:
		s.prev = asLine
	}
	s.start, s.need, s.from = next, 0, 0
	s.kind, s.over, s.part = between, false, false
	if s.mode == JSONX {
		s.jsonx = jsonx{lastLen: -1, typeless: s.jsonx.typeless, looked: s.jsonx.looked}
	}
}

// octetCount reads `[1-9][0-9]{0,8} ` at the front of b: the count, the length of it
// all (0: there is none), and whether b ended before that was certain.
func octetCount(b []byte) (count, n int, more bool) {
	for i, c := range b {
		switch {
		case c >= '1' && c <= '9' || c == '0' && i > 0:
			if i == 9 {
				return 0, 0, false
			}
			count = count*10 + int(c-'0')
		case c == ' ' && i > 0:
			return count, i + 1, false
		default:
			return 0, 0, false
		}
	}
	return 0, 0, true
}

const bom = "\xef\xbb\xbf"

// beginsMessage says whether b, which follows a count, begins like a message, and
// whether b ended before that was certain.
func beginsMessage(b []byte, nonSyslog bool) (ok, more bool) {
	switch {
	case len(b) == 0:
		return false, true
	case b[0] == '<':
		return true, false
	case !nonSyslog:
		return false, false
	case b[0] == '{':
		return true, false
	}
	n := min(len(b), len(bom))
	same := string(b[:n]) == bom[:n]
	return same && n == len(bom), same && n < len(bom)
}

// beginsFrame says whether b begins with '<' or a count that beginsMessage believes, and
// whether b ended before that was certain.
func beginsFrame(b []byte, nonSyslog bool) (ok, more bool) {
	if len(b) > 0 && b[0] == '<' {
		return true, false
	}
	_, n, more := octetCount(b)
	if n == 0 {
		return false, more
	}
	return beginsMessage(b[n:], nonSyslog)
}

// beginsPRI says whether b begins with `<`, one to three digits and `>`, and whether b
// ended before that was certain.
func beginsPRI(b []byte) (ok, more bool) {
	for i, c := range b {
		switch {
		case i == 0 && c == '<' || i > 0 && i <= 3 && c >= '0' && c <= '9':
		default:
			return i > 1 && c == '>', false
		}
	}
	return false, true
}

// maxFront bounds where JSONx is looked for: more than any prefix has.
const maxFront = 1 << 10

// look looks for a tag of JSONx in the first line of a stream, which b goes on with, since a
// prefix may stand before it.
func (s *Splitter) look(b []byte) {
	for _, c := range b {
		s.sought++
		switch {
		case c == jsonxTag[s.begun]:
			s.begun++
		case c == jsonxTag[0]:
			s.begun = 1
		default:
			s.begun = 0
		}
		if s.begun == len(jsonxTag) {
			s.stats.LooksJSONX++
			return
		}
		if c == '\n' || s.sought == maxFront {
			s.begun = len(jsonxTag)
			return
		}
	}
}

// trimNUL takes trailing NULs off.
func trimNUL(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return b
}

// trimCR takes one trailing CR off.
func trimCR(b []byte) []byte {
	if len(b) > 0 && b[len(b)-1] == '\r' {
		b = b[:len(b)-1]
	}
	return b
}

// trimEnd takes trailing NUL, LF and CR LF off, however many.
func trimEnd(b []byte) []byte {
	for len(b) > 0 {
		switch b[len(b)-1] {
		case 0:
			b = b[:len(b)-1]
		case '\n':
			b = trimCR(b[:len(b)-1])
		default:
			return b
		}
	}
	return b
}

// finder finds the occurrences of a byte string in a buffer that grows at its end, and
// looks at no byte twice (a longer string: at most its length times).
type finder struct {
	what   []byte
	at     int    // the occurrence found last; less than the position asked for: used up, or none
	next   int    // none begins before here, except at
	looked uint64 // bytes looked at: tests hold it linear in the bytes received
}

// find returns the first occurrence at or after from, or -1. Successive calls may only
// ask for later positions.
func (f *finder) find(buf []byte, from int) int {
	if f.at >= from && f.next > 0 {
		return f.at
	}
	from = max(from, f.next)
	if from >= len(buf) {
		return -1
	}
	var i int
	if len(f.what) == 1 {
		i = bytes.IndexByte(buf[from:], f.what[0])
	} else {
		i = bytes.Index(buf[from:], f.what)
	}
	if i < 0 {
		f.looked += uint64(len(buf) - from)
		f.at, f.next = -1, max(from, len(buf)-len(f.what)+1)
		return -1
	}
	f.looked += uint64(i + len(f.what))
	f.at, f.next = from+i, from+i+1
	return f.at
}

// shift tells the finder that the first n bytes of the buffer are gone.
func (f *finder) shift(n int) {
	f.at = max(-1, f.at-n)
	f.next = max(0, f.next-n)
}
