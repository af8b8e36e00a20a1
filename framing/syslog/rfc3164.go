package syslog

import "time"

// Classes of bytes in names.
const (
	sdByte   = 1 << 0 // SD-ID and PARAM-NAME
	tagByte  = 1 << 1 // a tag: no bracket, quote, separator
	hostByte = 1 << 2 // a host that is no IPv6 address
)

var class = func() (t [256]uint8) {
	for c := range t {
		if c <= ' ' || c == 0x7f {
			continue
		}
		t[c] = sdByte | tagByte
	}
	for _, c := range []byte(`=]"`) {
		t[c] &^= sdByte
	}
	for _, c := range []byte("[]{}<>:;,=|\\\"'`") {
		t[c] &^= tagByte
	}
	for c := range t {
		if c >= 0x80 || isDigit(byte(c)) || isAlpha(byte(c)) {
			t[c] |= hostByte
		}
	}
	for _, c := range []byte("-._/@~+#%") {
		t[c] |= hostByte
	}
	return t
}()

const maxHost = 255 // bytes; a longer word is no host

// parse3164 parses what follows the priority, at b[i:], and reports whether it
// found a time or a tag.
func (p *Parser) parse3164(m *Message, b []byte, i int, received int64) bool {
	at := skipSpaces(b, i)
	end := p.marked(m, b, at, received)
	if end == 0 {
		if end = p.cisco(m, b, at, received); end == 0 {
			// No time: no host either, only a tag.
			next, ok := m.tag(b, at, true)
			switch {
			case ok:
			case m.Priority >= 0:
				next = skipSpace(b, i)
			default:
				next = i
			}
			m.setText(b, next)
			m.noteMark()
			return ok
		}
	}
	m.body(b, end, m.Priority < 0 && isDigit(b[at]))
	m.noteMark()
	return true
}

// body parses host, tag and text behind a time that ends at b[i]. With needTag a
// word is a host only if a tag follows.
func (m *Message) body(b []byte, i int, needTag bool) {
	at := skipSpaces(b, i)
	if at == len(b) {
		return
	}
	switch b[at] {
	case ':':
		at = skipColon(b, at)
	case '-':
		if hasPrefix(b, at, mark) {
			m.setText(b, at)
			return
		}
	case 'l':
		if hasPrefix(b, at, "last message repeated ") {
			m.setText(b, at)
			return
		}
	case 'M':
		if n := len("Message forwarded from "); hasPrefix(b, at, "Message forwarded from ") {
			end := hostEnd(b, at+n)
			if ip := ipEnd(b, at+n); ip > end && b[ip-1] == ':' {
				end = ip - 1 // an IPv6 address and the colon behind it
			}
			if end > at+n && end < len(b) && b[end] == ':' {
				m.Hostname = b[at+n : end]
				i, at = end+1, skipSpaces(b, end+1)
			}
		}
	}
	end, all := wordClass(b, at)
	if end < len(b) && b[end] != ' ' {
		if next, ok := m.tag(b, at, false); ok {
			m.setText(b, next)
			return
		}
	}
	if m.Hostname == nil {
		if all&hostByte != 0 && end < len(b) && b[end] == ' ' && b[at] != '%' && end-at <= maxHost {
			m.setHost(b[at:end])
		} else {
			end = m.host(b, at)
		}
		if end > 0 {
			at = skipColon(b, skipSpaces(b, end))
			if next, ok := m.tag(b, at, false); ok {
				m.setText(b, next)
				return
			}
			if needTag {
				m.Hostname = nil
				m.setText(b, skipSpace(b, i))
				return
			}
			i = end
		}
	}
	m.setText(b, skipSpace(b, i))
}

// host takes the word at b[i], which is followed by a space, as host and
// returns the offset of that space, or 0 if it can't be one.
func (m *Message) host(b []byte, i int) int {
	from, end, skip := i, 0, 0
	switch {
	case b[i] == '%':
		return 0
	case b[i] == '[':
		from++
		if end = ipEnd(b, from); end == from || end == len(b) || b[end] != ']' {
			return 0
		}
		skip = 1
	case hasPrefix(b, i, `("`): // UniFi: ("model,address,version")
		from += 2
		for end = from; end < len(b) && b[end] > ' ' && b[end] != '"'; {
			end++
		}
		if !hasPrefix(b, end, `")`) {
			return 0
		}
		skip = 2
	default:
		if end = hostEnd(b, i); end < len(b) && b[end] == ':' {
			end = ipEnd(b, i)
			if end < len(b) && b[end] == '%' {
				end = hostEnd(b, end) // the zone of an IPv6 address
			}
		}
	}
	if end == from || end-from > maxHost || end+skip >= len(b) || b[end+skip] != ' ' {
		return 0
	}
	m.setHost(b[from:end])
	return end + skip
}

// setHost makes b the host, unless it is "-".
func (m *Message) setHost(b []byte) {
	if len(b) > 1 || b[0] != '-' {
		m.Hostname = b
	}
}

// wordClass returns the offset behind the bytes of a tag name at b[i] and the
// classes that all of them have.
func wordClass(b []byte, i int) (end int, all uint8) {
	for all = 0xff; i < len(b); i++ {
		c := class[b[i]]
		if c&tagByte == 0 {
			break
		}
		all &= c
	}
	return i, all
}

// hostEnd returns the offset behind the bytes of a host name at b[i].
func hostEnd(b []byte, i int) int {
	for i < len(b) && class[b[i]]&hostByte != 0 {
		i++
	}
	return i
}

// ipEnd returns the offset behind the IP address at b[i], i if there is none.
// It is as exact as telling an address from a tag or a word takes.
func ipEnd(b []byte, i int) int {
	from, colons, dots, digits := i, 0, 0, 0
	for ; i < len(b); i++ {
		switch c := b[i]; {
		case c == ':':
			colons, digits = colons+1, 0
		case c == '.':
			dots, digits = dots+1, 0
		case isDigit(c) || c|0x20-'a' < 6 && dots == 0:
			if digits++; digits > 4 {
				return from
			}
		default:
			goto end
		}
	}
end:
	if colons >= 2 && colons <= 8 || colons == 0 && dots == 3 {
		return i
	}
	return from
}

// tag parses a tag at b[i] and returns the offset of the text behind it:
//
//	name ":" (SP / end)
//	name "[" pid "]" ":" [SP]
//	name "[" pid "]" (SP / end)      not if the colon is required
//
// A name of digits alone, without a pid, is none.
func (m *Message) tag(b []byte, i int, colon bool) (next int, ok bool) {
	from := i
	digits := true
	for i < len(b) && class[b[i]]&tagByte != 0 {
		digits = digits && isDigit(b[i])
		i++
	}
	if i == from || i == len(b) {
		return from, false
	}
	switch b[i] {
	case ':':
		if digits || i+1 < len(b) && b[i+1] != ' ' {
			return from, false
		}
		m.AppName = b[from:i]
		return skipSpace(b, i+1), true
	case '[':
		end := pidEnd(b, i+1)
		if end == len(b) || b[end] != ']' {
			return from, false
		}
		next = end + 1
		switch {
		case next < len(b) && b[next] == ':':
			next++
		case colon || next < len(b) && b[next] != ' ':
			return from, false
		}
		m.AppName = b[from:i]
		if end > i+1 {
			m.ProcID = b[i+1 : end]
		}
		return skipSpace(b, next), true
	}
	return from, false
}

// pidEnd returns the offset of the bracket that closes a pid at b[i], or of
// what can't be part of one.
func pidEnd(b []byte, i int) int {
	for i < len(b) && b[i] > ' ' && b[i] != ']' && b[i] != '[' {
		i++
	}
	return i
}

// cisco parses what Cisco devices send in front of a time, or in place of it:
//
//	[sequence ":"] [origin ":"] ["*" / "."] (time / uptime / "%"...)
//
// It returns the offset behind it, 0 for none of it.
func (p *Parser) cisco(m *Message, b []byte, i int, received int64) int {
	seq := i
	for seq < len(b) && isDigit(b[seq]) {
		seq++
	}
	at := i
	if seq+1 < len(b) && b[seq] == ':' && b[seq+1] == ' ' {
		at = skipSpaces(b, seq+1)
		if at == len(b) {
			return 0
		}
	}
	end := 0
	if at > i {
		end = p.marked(m, b, at, received)
	}
	if end == 0 {
		if o := hostEnd(b, at); o > at && o-at <= maxHost && o+1 < len(b) && b[o] == ':' && b[o+1] == ' ' && b[at] != '%' {
			after := skipSpaces(b, o+1)
			if end = p.marked(m, b, after, received); end == 0 {
				end = m.uptime(b, after)
			}
			if end > 0 {
				m.Hostname = b[at:o]
			}
		}
	}
	if end == 0 {
		end = m.uptime(b, at)
	}
	if end == 0 && at > i && b[at] == '%' {
		if _, ok := m.tag(b, at, true); ok {
			end = at
		}
	}
	if end > 0 && at > i && seq > i {
		m.Sequence = b[i:seq]
	}
	return end
}

// uptime skips a Cisco uptime stamp, "1w2d:" or "00:00:46:" in front of " %",
// and returns the offset behind it, 0 for none.
func (m *Message) uptime(b []byte, i int) int {
	if i < len(b) && b[i] == '*' {
		i++
	}
	j := i
	for j < len(b) && (isDigit(b[j]) || isUnit(b[j]) || b[j] == ':' || b[j] == '.') {
		j++
	}
	if j-i < 3 || !isDigit(b[i]) || b[j-1] != ':' || !hasPrefix(b, j, " %") {
		return 0
	}
	m.Flags |= Uptime
	return j
}

func isUnit(c byte) bool {
	return c == 'y' || c == 'w' || c == 'd' || c == 'h' || c == 'm' || c == 's'
}

// marked parses a time with the mark that Cisco puts in front of it.
func (p *Parser) marked(m *Message, b []byte, i int, received int64) int {
	if i >= len(b) {
		return 0
	}
	var mark Flags
	switch b[i] {
	case '*':
		mark = ClockUnset
		i++
	case '.':
		mark = ClockLost
		i++
	}
	end := p.time3164(m, b, i, received)
	if end > 0 {
		m.Flags |= mark
	}
	return end
}

// time3164 parses a time at b[i] in any of the forms that are met in BSD
// syslog, and returns the offset behind it and its final colon. 0: there is no
// time. A time with impossible numbers is a fault, and is stepped over.
//
//	Mmm d [yyyy] clock tail
//	yyyy Mmm d clock tail
//	mm/dd/yyyy:clock tail
//	RFC 3339 or with a space, tail
func (p *Parser) time3164(m *Message, b []byte, i int, received int64) int {
	if i >= len(b) {
		return 0
	}
	var st stamp
	end := 0
	if isAlpha(b[i]) {
		if p.sameMinute(m, b, i, received) {
			return i + len("Mmm dd hh:mm:ss")
		}
		end = st.bsd(b, i)
	} else if isDigit(b[i]) {
		if end = st.iso(b, i); end == 0 {
			if y := year(b, i); y > 0 && i+4 < len(b) && b[i+4] == ' ' {
				st.year, st.hasYear = y, true
				end = st.bsd(b, i+5)
			} else {
				end = st.slashes(b, i)
			}
		}
	}
	if end == 0 {
		return 0
	}
	if end == len(b) || b[end] != ' ' || end+1 < len(b) && beginsTail[b[end+1]] {
		end = st.tail(b, end)
	}
	word := end
	if end < len(b) && b[end] == ':' {
		end++
	}
	if end < len(b) && b[end] != ' ' {
		return 0
	}
	if st.bad {
		m.failWord(errTime, b, i, word)
		return end
	}
	p.setTime(m, &st, received)
	if st.flags&UnknownZone != 0 {
		zone := word // the last word of the time
		for isAlpha(b[zone-1]) {
			zone--
		}
		m.Fault = b[zone:word]
	}
	if end-i == len("Mmm dd hh:mm:ss") && b[i+12] == ':' && st.flags == 0 && !st.hasOffset && !st.hasYear {
		p.minute.text = [12]byte(b[i:])
		p.minute.unix = m.Time.Unix() - int64(st.second%60)
	}
	return end
}

// minute is the last one seen in the common form, "Mmm dd hh:mm" of a stamp that
// ends with its seconds. Messages come in bursts: most times are in the minute
// of the one before.
type minute struct {
	text [12]byte
	unix int64
}

// sameMinute sets the time from p.minute if the stamp at b[i] is in it and is of
// the same form.
func (p *Parser) sameMinute(m *Message, b []byte, i int, received int64) bool {
	const size = len("Mmm dd hh:mm:ss")
	if len(b)-i <= size || [12]byte(b[i:]) != p.minute.text {
		return false
	}
	s := b[i : i+size+1]
	sec := two(s[13], s[14])
	if s[12] != ':' || sec < 0 || sec > 59 || s[15] != ' ' {
		return false
	}
	// The year it was given must be the one it would be given now: the latest
	// that is not ahead. The next same date is 365 days later, give or take a
	// change of the offset.
	unix := p.minute.unix + int64(sec)
	if limit := received + maxAhead; unix > limit || unix < limit-360*daySeconds {
		return false
	}
	if mayBeTail(b, i+size+1) {
		var st stamp
		if st.tail(b, i+size) != i+size || st.flags != 0 {
			return false
		}
	}
	m.Flags |= YearGuessed
	m.Time = time.Unix(unix, 0).UTC()
	m.HasTime = true
	return true
}

// beginsTail holds the bytes that may begin a part of a tail behind a space.
var beginsTail = func() (t [256]bool) {
	for c := range t {
		t[c] = isDigit(byte(c)) || isAlpha(byte(c)) || c == '+' || c == '-'
	}
	return t
}()

// mayBeTail is false for most hosts and tags at b[i]: their letters end in what
// no part of a tail has there.
func mayBeTail(b []byte, i int) bool {
	if i >= len(b) || !beginsTail[b[i]] {
		return false
	}
	end := wordEnd(b, i)
	if end == i || stops(b, end) || b[end] == '.' {
		return true
	}
	return (b[end] == '+' || b[end] == '-') && zoneHasHours(b[i:end])
}

// zoneHasHours reports whether word is a name that may have an hour behind it.
func zoneHasHours(word []byte) bool {
	n := name(word)
	return n == nameTZ || n == nameGMT || n == nameUTC
}

// bsd parses "Mmm" 1*2SP 1*2digit SP [year SP] clock.
func (st *stamp) bsd(b []byte, i int) int {
	st.month = month(b, i)
	if st.month == 0 || len(b)-i < 14 || b[i+3] != ' ' {
		return 0
	}
	i += 4
	if b[i] == ' ' {
		i++
	}
	if !isDigit(b[i]) {
		return 0
	}
	st.day = int(b[i] - '0')
	if i++; isDigit(b[i]) {
		st.day = st.day*10 + int(b[i]-'0')
		i++
	}
	if b[i] != ' ' {
		return 0
	}
	i++
	if y := year(b, i); y > 0 && i+4 < len(b) && b[i+4] == ' ' {
		st.year, st.hasYear = y, true
		i += 5
	}
	return st.clock(b, i)
}

// slashes parses mm/dd/yyyy:clock (NetScaler); dd/mm when it can't be that.
func (st *stamp) slashes(b []byte, i int) int {
	if len(b)-i < 19 || b[i+2] != '/' || b[i+5] != '/' || b[i+10] != ':' {
		return 0
	}
	mo, d, y := two(b[i], b[i+1]), two(b[i+3], b[i+4]), year(b, i+6)
	if mo|d < 0 || y == 0 {
		return 0
	}
	if mo > 12 {
		mo, d = d, mo
	}
	st.month, st.day, st.year, st.hasYear = mo, d, y, true
	return st.clock(b, i+11)
}

// year returns the four digits at b[i] if they are a plausible year, else 0.
func year(b []byte, i int) int {
	if len(b)-i < 4 {
		return 0
	}
	c, y := two(b[i], b[i+1]), two(b[i+2], b[i+3])
	if c|y < 0 || c < 19 || c > 21 {
		return 0
	}
	return c*100 + y
}

// tail parses what may follow the clock, in this order: AM or PM, with another
// fraction; a zone, attached or as a word; a year, before or behind the zone.
func (st *stamp) tail(b []byte, i int) int {
	if i < len(b) && !st.hasOffset {
		i = st.zoneOffset(b, i)
	}
	hasHalf := false
	for range 3 {
		if len(b)-i < 2 || b[i] != ' ' {
			break
		}
		at := i + 1
		end := wordEnd(b, at)
		switch word := b[at:end]; {
		case len(word) == 0 && isDigit(b[at]):
			y := year(b, at)
			if y == 0 || st.hasYear || !stops(b, at+4) {
				return i
			}
			st.year, st.hasYear = y, true
			st.recheck()
			i = at + 4
		case len(word) == 0 && !st.hasOffset:
			kept := *st
			j := st.zoneOffset(b, at)
			if j == at || !stops(b, j) {
				*st = kept
				return i
			}
			i = j
		case !hasHalf && len(word) == 2 && word[1]|0x20 == 'm' && (word[0]|0x20 == 'a' || word[0]|0x20 == 'p'):
			j := end
			if j < len(b) && b[j] == '.' {
				for j++; j < len(b) && isDigit(b[j]); j++ {
				}
			}
			if !stops(b, j) {
				return i
			}
			if j > end {
				st.fraction(b, end)
			}
			hasHalf = true
			st.halfDay(word[0]|0x20 == 'p')
			i = j
		case st.hasOffset:
			return i
		default:
			j := st.zoneWord(b, at, end)
			if j == at {
				return i
			}
			i = j
		}
	}
	return i
}

// zoneWord parses b[at:end], letters, as the name of a zone; "TZ", "GMT" and
// "UTC" may have an hour behind them. It returns at if it is none.
func (st *stamp) zoneWord(b []byte, at, end int) int {
	word := b[at:end]
	switch {
	case stops(b, end):
		if string(word) == "Z" { // in lower case it may be a host
			st.hasOffset = true
			return end
		}
		if sec, ok := lookupZone(word); ok {
			st.hasOffset, st.offset = true, sec
			return end
		}
		if len(word) >= 2 && len(word) <= 5 && areUpper(word) && hasPrefix(b, end, ": %") && end+3 < len(b) && areUpper(b[end+3:end+4]) {
			st.flags |= UnknownZone
			return end
		}
	case b[end] == '+' || b[end] == '-':
		if !zoneHasHours(word) {
			return at
		}
		h, i := 0, end+1
		for i < len(b) && i < end+3 && isDigit(b[i]) {
			h = h*10 + int(b[i]-'0')
			i++
		}
		if i == end+1 || h > 14 || !stops(b, i) {
			return at
		}
		if b[end] == '-' {
			h = -h
		}
		st.hasOffset, st.offset = true, h*3600
		return i
	}
	return at
}

// areUpper reports whether b holds nothing but upper-case letters.
func areUpper(b []byte) bool {
	for _, c := range b {
		if c-'A' >= 26 {
			return false
		}
	}
	return true
}

// halfDay makes the time one of a clock of twelve hours.
func (st *stamp) halfDay(pm bool) {
	switch h := st.second / 3600; {
	case h > 12 || h == 0:
		// 13 PM: the clock had 24 hours after all
	case pm && h < 12:
		st.second += 12 * 3600
	case !pm && h == 12:
		st.second -= 12 * 3600
	}
}

// recheck looks at the day again when the year came behind it.
func (st *stamp) recheck() {
	if !st.bad && st.day > monthDays(st.year, st.month) {
		st.bad = true
	}
}

// stops reports whether a part of a time may end at b[i]. A colon must be the
// last of its word: "2001:db8::1" is not a year.
func stops(b []byte, i int) bool {
	return i >= len(b) || b[i] == ' ' || b[i] == ':' && (i+1 == len(b) || b[i+1] == ' ')
}

// wordEnd returns the offset behind up to six letters at b[i].
func wordEnd(b []byte, i int) int {
	from := i
	for i < len(b) && i < from+6 && isAlpha(b[i]) {
		i++
	}
	return i
}

// skipColon skips ": " in front of a "%", as PIX and ASA send it behind the
// time or the host.
func skipColon(b []byte, i int) int {
	if hasPrefix(b, i, ": %") {
		return i + 2
	}
	return i
}

func skipSpaces(b []byte, i int) int {
	for i < len(b) && b[i] == ' ' {
		i++
	}
	return i
}

// skipSpace skips the one space that ends the header.
func skipSpace(b []byte, i int) int {
	if i < len(b) && b[i] == ' ' {
		i++
	}
	return i
}

func hasPrefix(b []byte, i int, s string) bool {
	return len(b)-i >= len(s) && string(b[i:i+len(s)]) == s
}
