package syslog

import (
	"math"
	"time"
)

const (
	daySeconds = 24 * 60 * 60
	maxAhead   = daySeconds // a guessed year never puts a time further ahead of its reception
)

// stamp is a time as it was written.
type stamp struct {
	year   int // meaningful with hasYear
	month  int
	day    int
	second int // of the day
	nsec   int
	offset int // seconds east of UTC; meaningful with hasOffset
	flags  Flags

	hasYear   bool
	hasOffset bool
	noDigits  bool // a dot or comma without a fraction behind it
	bad       bool // it has the form of a time, but is none (hour 25, month 13)
}

// setTime makes st, found at b[i], the time of m.
func (p *Parser) setTime(m *Message, st *stamp, received int64) {
	m.Flags |= st.flags
	var sec int64
	if st.hasYear {
		sec = p.instant(st, st.year)
	} else {
		// The latest year that puts the time no more than a day ahead is also
		// the one that puts it closest to now. 29 February goes back to the
		// latest year that had one, eight years away at most.
		m.Flags |= YearGuessed
		limit := received + maxAhead
		y := p.year.of(limit + daySeconds)
		for range 10 {
			if st.day < 29 || st.day <= monthDays(y, st.month) {
				if sec = p.instant(st, y); sec <= limit {
					break
				}
			}
			y--
		}
	}
	m.Time = time.Unix(sec, int64(st.nsec)).UTC()
	m.HasTime = true
}

// instant returns st in year y as Unix seconds.
func (p *Parser) instant(st *stamp, y int) int64 {
	civil := days(y, st.month, st.day)*daySeconds + int64(st.second)
	if st.hasOffset {
		return civil - int64(st.offset)
	}
	return p.zone.unix(civil)
}

// check completes what the forms have in common: it sets st.bad when the
// numbers make no time. February has 29 days in a year that is not known.
func (st *stamp) check(hour, min, sec int) {
	y := st.year
	if !st.hasYear {
		y = 2000
	}
	if st.month < 1 || st.month > 12 || st.day < 1 || hour > 23 || min > 59 || sec > 60 || st.day > monthDays(y, st.month) {
		st.bad = true
		return
	}
	if sec == 60 {
		// There is no such second in Unix time. A record of the leap second
		// itself keeps its place at the end of the minute.
		sec, st.nsec = 59, 999999999
		st.flags |= LeapSecond
	}
	st.second = hour*3600 + min*60 + sec
}

// iso parses at b[i] and returns the offset behind it, 0 for none:
//
//	yyyy-mm-dd ("T" / "t" / SP) hh:mm:ss [fraction] [offset]
//
// This is the time of RFC 5424 (RFC 3339), and what lenient senders make of it.
func (st *stamp) iso(b []byte, i int) int {
	if len(b)-i < 19 {
		return 0
	}
	s := b[i : i+19]
	if s[4] != '-' || s[7] != '-' || s[10] != 'T' && s[10] != ' ' && s[10] != 't' || s[13] != ':' || s[16] != ':' {
		return 0
	}
	c, y := two(s[0], s[1]), two(s[2], s[3])
	mo, d := two(s[5], s[6]), two(s[8], s[9])
	h, mi, sec := two(s[11], s[12]), two(s[14], s[15]), two(s[17], s[18])
	if c|y|mo|d|h|mi|sec < 0 {
		return 0
	}
	st.year, st.hasYear = c*100+y, true
	st.month, st.day = mo, d
	i = st.fraction(b, i+19)
	st.check(h, mi, sec)
	return st.zoneOffset(b, i)
}

// column parses a time that is a column of RFC 5424: nothing may follow it, nor
// a dot without digits be in it. If it is not ok, end is 0 or behind what has the
// form of a time, which may have a space in it.
func (st *stamp) column(b []byte, i int) (end int, ok bool) {
	end = st.iso(b, i)
	return end, end > 0 && !st.bad && !st.noDigits && (end == len(b) || b[end] == ' ')
}

// clock parses "hh:mm:ss" [fraction] at b[i], with month, day and year set. It
// returns the offset behind it, 0 for none.
func (st *stamp) clock(b []byte, i int) int {
	if len(b)-i < 8 {
		return 0
	}
	s := b[i : i+8]
	h, mi, sec := two(s[0], s[1]), two(s[3], s[4]), two(s[6], s[7])
	if h|mi|sec < 0 || s[2] != ':' || s[5] != ':' {
		return 0
	}
	i = st.fraction(b, i+8)
	st.check(h, mi, sec)
	return i
}

// fraction parses ("." / ",") *digit, if it is there, and returns the offset
// behind it. Nine digits count.
func (st *stamp) fraction(b []byte, i int) int {
	if i >= len(b) || b[i] != '.' && b[i] != ',' {
		return i
	}
	i++
	from, n := i, 0
	for ; i < len(b) && isDigit(b[i]); i++ {
		if i-from < 9 {
			n = n*10 + int(b[i]-'0')
		}
	}
	switch k := i - from; {
	case k == 0:
		st.noDigits = true
	case k > 9:
		st.flags |= FractionCut
	default:
		n *= pow10[9-k]
	}
	st.nsec = n
	return i
}

var pow10 = [...]int{1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9}

// zoneOffset parses "Z" / "z" / ("+" / "-") hh [[":"] mm], if it is there, and
// returns the offset behind it. "+24:00" and "-07:61" have the form, but are bad.
func (st *stamp) zoneOffset(b []byte, i int) int {
	if i >= len(b) {
		return i
	}
	switch c := b[i]; c {
	case 'Z', 'z':
		st.hasOffset = true
		return i + 1
	case '+', '-':
		if len(b)-i < 3 {
			return i
		}
		h, m, end := two(b[i+1], b[i+2]), 0, i+3
		if h < 0 {
			return i
		}
		at := end
		if at < len(b) && b[at] == ':' {
			at++
		}
		if len(b)-at >= 2 {
			if n := two(b[at], b[at+1]); n >= 0 {
				m, end = n, at+2
			}
		}
		st.hasOffset = true
		st.offset = h*3600 + m*60
		if c == '-' {
			st.offset = -st.offset
		}
		if h > 23 || m > 59 {
			st.bad = true
		}
		return end
	}
	return i
}

// two returns the number that two digits make, and a negative one if they are
// not digits.
func two(hi, lo byte) int {
	h, l := int(hi)-'0', int(lo)-'0'
	if h < 0 || h > 9 || l < 0 || l > 9 {
		return -1
	}
	return h*10 + l
}

// month returns 1..12 for an English month of three letters in any case at
// b[i], 0 for anything else.
func month(b []byte, i int) int {
	if len(b)-i < 3 {
		return 0
	}
	switch uint32(b[i]|0x20)<<16 | uint32(b[i+1]|0x20)<<8 | uint32(b[i+2]|0x20) {
	case 'j'<<16 | 'a'<<8 | 'n':
		return 1
	case 'f'<<16 | 'e'<<8 | 'b':
		return 2
	case 'm'<<16 | 'a'<<8 | 'r':
		return 3
	case 'a'<<16 | 'p'<<8 | 'r':
		return 4
	case 'm'<<16 | 'a'<<8 | 'y':
		return 5
	case 'j'<<16 | 'u'<<8 | 'n':
		return 6
	case 'j'<<16 | 'u'<<8 | 'l':
		return 7
	case 'a'<<16 | 'u'<<8 | 'g':
		return 8
	case 's'<<16 | 'e'<<8 | 'p':
		return 9
	case 'o'<<16 | 'c'<<8 | 't':
		return 10
	case 'n'<<16 | 'o'<<8 | 'v':
		return 11
	case 'd'<<16 | 'e'<<8 | 'c':
		return 12
	}
	return 0
}

// before holds the days of a common year before each month.
var before = [...]int{0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365}

func leap(y int) bool { return y%4 == 0 && (y%100 != 0 || y%400 == 0) }

// monthDays returns the length of month m, 1..12, of year y.
func monthDays(y, m int) int {
	n := before[m+1] - before[m]
	if m == 2 && leap(y) {
		n++
	}
	return n
}

// days returns the days from 1970-01-01 to a date of the proleptic Gregorian
// calendar, month 1..12. Years from -399 on.
func days(y, m, d int) int64 {
	n := before[m] + d - 1
	if m > 2 && leap(y) {
		n++
	}
	y += 399 // whole years since year -399, which begins a cycle of 400 as year 1 does
	return int64(y)*365 + int64(y/4-y/100+y/400+n) - 865259
}

// zone turns civil times of a location into instants. It remembers the offset
// of the last one and where that holds.
type zone struct {
	loc      *time.Location
	from, to int64 // Unix seconds: offset holds in [from, to), a day inside its real bounds
	offset   int64
}

// unix returns the Unix seconds of a civil time, which is given as if it were
// UTC. A time that occurs twice or never at a change of the offset becomes what
// time.Date makes of it. The day's distance of from and to keeps that choice
// independent of what was asked before.
func (z *zone) unix(civil int64) int64 {
	if u := civil - z.offset; z.from <= u && u < z.to {
		return u
	}
	c := time.Unix(civil, 0).UTC()
	y, mo, d := c.Date()
	h, mi, s := c.Clock()
	t := time.Date(y, mo, d, h, mi, s, 0, z.loc)
	_, off := t.Zone()
	z.offset, z.from, z.to = int64(off), math.MinInt64, math.MaxInt64
	start, end := t.ZoneBounds()
	if !start.IsZero() {
		z.from = start.Unix() + daySeconds
	}
	if !end.IsZero() {
		z.to = end.Unix() - daySeconds
	}
	return t.Unix()
}

// yearOf tells the year of instants, and remembers that of the last.
type yearOf struct {
	year     int
	from, to int64 // Unix seconds
}

func (c *yearOf) of(unix int64) int {
	if unix < c.from || unix >= c.to {
		c.year = time.Unix(unix, 0).UTC().Year()
		c.from, c.to = days(c.year, 1, 1)*daySeconds, days(c.year+1, 1, 1)*daySeconds
	}
	return c.year
}

// zones are the names that are taken for a zone, with their offset in minutes.
// The list is closed: a word that is not in it may be a host. Of names with
// several meanings the American one is taken (CST, as in RFC 3164 section 5.4);
// those without a predominant one (IST, BST, AST) are left out.
var zones = [...]struct {
	name    zoneName
	minutes int
}{
	{name("UTC"), 0}, {name("GMT"), 0}, {name("UCT"), 0}, {name("WET"), 0},
	{name("EST"), -5 * 60}, {name("EDT"), -4 * 60}, {name("CST"), -6 * 60}, {name("CDT"), -5 * 60},
	{name("MST"), -7 * 60}, {name("MDT"), -6 * 60}, {name("PST"), -8 * 60}, {name("PDT"), -7 * 60},
	{name("CET"), 60}, {name("CEST"), 2 * 60}, {name("MET"), 60}, {name("MEST"), 2 * 60}, {name("WEST"), 60},
	{name("EET"), 2 * 60}, {name("EEST"), 3 * 60}, {name("MSK"), 3 * 60}, {name("PKT"), 5 * 60},
	{name("HKT"), 8 * 60}, {name("SGT"), 8 * 60}, {name("AWST"), 8 * 60}, {name("JST"), 9 * 60}, {name("KST"), 9 * 60},
	{name("ACST"), 9*60 + 30}, {name("ACDT"), 10*60 + 30}, {name("AEST"), 10 * 60}, {name("AEDT"), 11 * 60},
	{name("NZST"), 12 * 60}, {name("NZDT"), 13 * 60}, {name("HST"), -10 * 60}, {name("AKST"), -9 * 60}, {name("AKDT"), -8 * 60},
	{name("NST"), -3*60 - 30}, {name("NDT"), -2*60 - 30}, {name("BRT"), -3 * 60}, {name("SAST"), 2 * 60},
}

// zoneName is up to four letters, upper case, packed into a number.
type zoneName uint32

func name[T string | []byte](s T) (n zoneName) {
	for i := range len(s) {
		n = n<<8 | zoneName(s[i]&^0x20)
	}
	return n
}

// Names that may have an hour behind them.
var nameTZ, nameGMT, nameUTC = name("TZ"), name("GMT"), name("UTC")

// lookupZone finds a zone by its name in any case.
func lookupZone(word []byte) (seconds int, ok bool) {
	if len(word) < 3 || len(word) > 4 {
		return 0, false
	}
	n := name(word)
	for i := range zones {
		if zones[i].name == n {
			return zones[i].minutes * 60, true
		}
	}
	return 0, false
}
