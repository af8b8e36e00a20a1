package syslog

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// zoneOffsets are the names that a time may have behind it, in minutes east of
// UTC, as they are read aloud: the list in time.go is checked against it.
var zoneOffsets = map[string]int{
	"UTC": 0, "GMT": 0, "UCT": 0, "WET": 0, "WEST": 60,
	"CET": 60, "CEST": 120, "MET": 60, "MEST": 120, "EET": 120, "EEST": 180, "MSK": 180, "SAST": 120,
	"EST": -300, "EDT": -240, "CST": -360, "CDT": -300, "MST": -420, "MDT": -360, "PST": -480, "PDT": -420,
	"HST": -600, "AKST": -540, "AKDT": -480, "NST": -210, "NDT": -150, "BRT": -180,
	"PKT": 300, "HKT": 480, "SGT": 480, "AWST": 480, "JST": 540, "KST": 540,
	"ACST": 570, "ACDT": 630, "AEST": 600, "AEDT": 660, "NZST": 720, "NZDT": 780,
}

// bsdTime is a time as BSD syslog may write it, and what it means.
type bsdTime struct {
	printed string
	instant time.Time
	flags   Flags
	zone    string // that nobody knows
	colonTo string // what must follow: "%" behind the name of a zone that nobody knows
}

// drawBSDTime draws any time of the grammar in doc.go, in all its forms.
func drawBSDTime(t *rapid.T, loc *time.Location, received time.Time) bsdTime {
	var out bsdTime
	form := rapid.SampledFrom([]string{"bsd", "bsd", "year first", "slashes", "iso"}).Draw(t, "form")
	y := rapid.IntRange(1970, 2105).Draw(t, "year")
	mo := rapid.IntRange(1, 12).Draw(t, "month")
	d := rapid.IntRange(1, monthDays(2000, mo)).Draw(t, "day")
	h, mi, s := rapid.IntRange(0, 23).Draw(t, "hour"), rapid.IntRange(0, 59).Draw(t, "minute"), rapid.IntRange(0, 60).Draw(t, "second")
	yearAt := "none" // in front of the clock, behind it, or nowhere
	switch form {
	case "bsd":
		yearAt = rapid.SampledFrom([]string{"none", "none", "before", "behind", "behind the zone"}).Draw(t, "year at")
	default:
		yearAt = "before"
	}
	if yearAt != "none" && d > monthDays(y, mo) {
		d = 28
	}

	half := ""
	if form != "iso" && s < 60 {
		half = rapid.SampledFrom([]string{"", "", "", "AM", "PM", "pm"}).Draw(t, "half")
	}
	shown := h
	if half != "" {
		shown = (h+11)%12 + 1 // 12, 1 … 11
		if h >= 12 != strings.EqualFold(half, "PM") {
			h = (h + 12) % 24
		}
	}
	clock := fmt.Sprintf("%02d:%02d:%02d", shown, mi, s)
	nsec := 0
	fraction := ""
	if rapid.Bool().Draw(t, "has fraction") {
		digits := rapid.StringMatching(`[0-9]{0,12}`).Draw(t, "fraction")
		fraction = rapid.SampledFrom([]string{".", ","}).Draw(t, "dot") + digits
		nsec, _ = strconv.Atoi((digits + "000000000")[:9])
		if len(digits) > 9 {
			out.flags |= FractionCut
		}
	}
	if s == 60 {
		s, nsec = 59, 999999999
		out.flags |= LeapSecond
	}

	var b strings.Builder
	monthName := time.Month(mo).String()[:3]
	switch rapid.IntRange(0, 2).Draw(t, "case") {
	case 1:
		monthName = strings.ToUpper(monthName)
	case 2:
		monthName = strings.ToLower(monthName)
	}
	day := fmt.Sprintf(rapid.SampledFrom([]string{"%d", "%2d", "%02d"}).Draw(t, "day as"), d)
	switch form {
	case "bsd":
		fmt.Fprintf(&b, "%s %s ", monthName, day)
		if yearAt == "before" {
			fmt.Fprintf(&b, "%d ", y)
		}
	case "year first":
		fmt.Fprintf(&b, "%d %s %s ", y, monthName, day)
	case "slashes":
		first, second := mo, d
		if d > 12 && rapid.Bool().Draw(t, "day first") {
			first, second = d, mo
		}
		fmt.Fprintf(&b, "%02d/%02d/%d:", first, second, y)
	case "iso":
		fmt.Fprintf(&b, "%d-%02d-%02d%s", y, mo, d, rapid.SampledFrom([]string{"T", "t", " "}).Draw(t, "T"))
	}
	b.WriteString(clock)
	if half == "" || rapid.Bool().Draw(t, "fraction in front") {
		b.WriteString(fraction)
		fraction = ""
	}
	if half != "" {
		if strings.HasPrefix(fraction, ",") {
			fraction = "." + fraction[1:]
		}
		b.WriteString(" " + half + fraction)
	}

	if yearAt == "behind" {
		fmt.Fprintf(&b, " %d", y)
	}
	offset, hasOffset := 0, false
	kinds := []string{"none", "none", "none", "name", "Z", "offset", "hours behind GMT"}
	if half == "" && yearAt != "behind" {
		kinds = append(kinds, "attached")
	}
	if yearAt != "behind the zone" {
		kinds = append(kinds, "unknown name")
	}
	switch rapid.SampledFrom(kinds).Draw(t, "zone") {
	case "name":
		names := make([]string, 0, len(zoneOffsets))
		for n := range zoneOffsets {
			names = append(names, n)
		}
		slices.Sort(names)
		n := rapid.SampledFrom(names).Draw(t, "zone name")
		offset, hasOffset = zoneOffsets[n], true
		if rapid.Bool().Draw(t, "zone in lower case") {
			n = strings.ToLower(n)
		}
		b.WriteString(" " + n)
	case "hours behind GMT":
		n := rapid.IntRange(-14, 14).Draw(t, "zone hours")
		offset, hasOffset = n*60, true
		fmt.Fprintf(&b, " %s%+d", rapid.SampledFrom([]string{"GMT", "UTC", "TZ"}).Draw(t, "zone base"), n)
	case "offset":
		b.WriteString(" " + drawOffset(t, &offset))
		hasOffset = true
	case "attached":
		if rapid.Bool().Draw(t, "Z") {
			b.WriteString(rapid.SampledFrom([]string{"Z", "z"}).Draw(t, "which Z"))
		} else {
			b.WriteString(drawOffset(t, &offset))
		}
		hasOffset = true
	case "Z":
		b.WriteString(" Z")
		hasOffset = true
	case "unknown name":
		out.zone = rapid.SampledFrom([]string{"IST", "BST", "XYZ", "AB", "QUXLY"}).Draw(t, "unknown zone")
		b.WriteString(" " + out.zone + ":")
		out.flags |= UnknownZone
		out.colonTo = "%"
	}
	if yearAt == "behind the zone" {
		fmt.Fprintf(&b, " %d", y)
	}
	if out.colonTo == "" && rapid.Bool().Draw(t, "colon") {
		b.WriteByte(':')
	}
	out.printed = b.String()

	at := func(y int) time.Time {
		if hasOffset {
			return time.Date(y, time.Month(mo), d, h, mi, s, nsec, time.UTC).Add(-time.Duration(offset) * time.Minute)
		}
		return time.Date(y, time.Month(mo), d, h, mi, s, nsec, loc)
	}
	if yearAt != "none" {
		out.instant = at(y).UTC()
		return out
	}
	out.flags |= YearGuessed
	for y := received.Year() + 2; ; y-- {
		if d <= monthDays(y, mo) && at(y).Unix() <= received.Unix()+24*60*60 {
			out.instant = at(y).UTC()
			return out
		}
	}
}

func drawOffset(t *rapid.T, minutes *int) string {
	h, m := rapid.IntRange(0, 23).Draw(t, "offset hours"), rapid.IntRange(0, 59).Draw(t, "offset minutes")
	layout := rapid.SampledFrom([]string{"%02d:%02d", "%02d%02d", "%02d"}).Draw(t, "offset as")
	*minutes = h*60 + m
	s := ""
	if layout == "%02d" {
		*minutes = h * 60
		s = fmt.Sprintf(layout, h)
	} else {
		s = fmt.Sprintf(layout, h, m)
	}
	if rapid.Bool().Draw(t, "west") {
		*minutes = -*minutes
		return "-" + s
	}
	return "+" + s
}

// A name that a tail of a time can't be taken for, nor a text with a meaning.
const plainName = `[A-Za-z]{1,6}[0-9_][A-Za-z0-9_/@~+#%-]{0,12}`

// What the grammar prints is what is parsed: every part of a BSD header, in all
// its forms, where they are not ambiguous.
func TestRFC3164Grammar(t *testing.T) {
	budapest, err := time.LoadLocation("Europe/Budapest")
	if err != nil {
		t.Fatal(err)
	}
	parsers := map[*time.Location]*Parser{time.UTC: NewParser(Auto, nil), budapest: NewParser(Auto, budapest)}
	rapid.Check(t, func(t *rapid.T) {
		loc := rapid.SampledFrom([]*time.Location{time.UTC, budapest}).Draw(t, "loc")
		received := time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "received"), 0)
		want := Message{Priority: -1}
		var b strings.Builder

		if rapid.IntRange(0, 9).Draw(t, "has priority") > 0 {
			if rapid.IntRange(0, 9).Draw(t, "count") == 0 {
				fmt.Fprintf(&b, "%d ", rapid.IntRange(1, 999999999).Draw(t, "octet count"))
				want.Flags |= OctetCount
			}
			want.Priority = rapid.IntRange(0, 191).Draw(t, "priority")
			fmt.Fprintf(&b, "<%d>", want.Priority)
		}
		spaces := strings.Repeat(" ", rapid.SampledFrom([]int{0, 0, 0, 1, 2, 5}).Draw(t, "spaces"))
		b.WriteString(spaces)
		header := b.Len()

		// The front: nothing, a time, an uptime.
		front := rapid.SampledFrom([]string{"none", "time", "time", "time", "uptime"}).Draw(t, "front")
		mustBe := "" // what the tag begins with
		if front != "none" {
			switch rapid.SampledFrom([]string{"none", "none", "sequence", "colon"}).Draw(t, "sequence") {
			case "sequence":
				want.Sequence = []byte(rapid.StringMatching(`[0-9]{1,12}`).Draw(t, "number"))
				b.WriteString(string(want.Sequence) + ": ")
			case "colon":
				b.WriteString(": ")
			}
			if rapid.IntRange(0, 3).Draw(t, "origin") == 0 {
				want.Hostname = []byte(rapid.StringMatching(plainName).Draw(t, "origin name"))
				b.WriteString(string(want.Hostname) + ": ")
			}
		}
		switch front {
		case "time":
			mark := rapid.SampledFrom([]string{"", "", "*", "."}).Draw(t, "clock mark")
			tm := drawBSDTime(t, loc, received)
			b.WriteString(mark + tm.printed)
			want.HasTime, want.Time = true, tm.instant
			want.Flags |= tm.flags | map[string]Flags{"": 0, "*": ClockUnset, ".": ClockLost}[mark]
			mustBe = tm.colonTo
			want.Fault = []byte(tm.zone)
		case "uptime":
			b.WriteString(rapid.SampledFrom([]string{"1w2d:", "00:00:46:", "3y12w:", "*5d01h:"}).Draw(t, "uptime"))
			want.Flags |= Uptime
			mustBe = "%"
		}

		// Host, tag, text.
		host := ""
		if front == "time" && want.Hostname == nil && mustBe == "" {
			kind := rapid.SampledFrom([]string{"none", "name", "name", "v4", "v6", "[v4]", "[v6]", "quoted", "-"}).Draw(t, "host")
			var v4, v6 [16]byte
			copy(v4[:], rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "v4"))
			copy(v6[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "v6"))
			a4, a6 := netip.AddrFrom4([4]byte(v4[:4])).String(), netip.AddrFrom16(v6).String()
			if netip.AddrFrom16(v6).Is4In6() {
				a6 = "::1"
			}
			switch kind {
			case "name":
				host = rapid.StringMatching(plainName).Draw(t, "host name")
				want.Hostname = []byte(host)
			case "v4", "v6":
				host = map[string]string{"v4": a4, "v6": a6}[kind]
				want.Hostname = []byte(host)
			case "[v4]", "[v6]":
				a := map[string]string{"[v4]": a4, "[v6]": a6}[kind]
				host, want.Hostname = "["+a+"]", []byte(a)
			case "quoted":
				a := rapid.StringMatching(`[A-Z0-9]{1,6},[0-9a-f]{12},v[0-9.]{1,6}`).Draw(t, "model")
				host, want.Hostname = `("`+a+`")`, []byte(a)
			case "-":
				host = "-"
			}
		}
		if host != "" {
			b.WriteString(" " + host)
		}

		gap := " "
		if b.Len() == header {
			gap = ""
		}
		tags := []string{"name:", "name[pid]:", "name[pid]:text", "none"}
		if front != "none" {
			tags = append(tags, "name[pid]")
		}
		if mustBe != "" {
			tags = []string{"name:"}
		}
		text := strings.TrimRight(rapid.String().Draw(t, "text"), "\r\n\x00")
		text = strings.TrimLeft(text, "\ufeff")
		switch tag := rapid.SampledFrom(tags).Draw(t, "tag"); tag {
		case "none":
			switch {
			case front == "none":
				// No time, no tag: all of it is text, less a space behind a priority.
				text = "{" + text
				whole := spaces + text
				if want.Priority >= 0 {
					whole = strings.TrimPrefix(spaces, " ") + text
				}
				b.WriteString(text)
				want.Text = []byte(whole)
			case host == "":
				// The first word would be the host, but for what no host has.
				text = "{" + text
				b.WriteString(gap + text)
				want.Text = []byte(text)
			case want.Priority < 0 && isDigit(b.String()[header]):
				// An application's own log: no host without a tag.
				text = "{" + text
				b.WriteString(gap + text)
				want.Hostname, want.Text = nil, []byte(host+" "+text)
			default:
				if text != "" {
					text = "{" + text
				}
				b.WriteString(gap + text)
				want.Text = []byte(text)
			}
		default:
			app := rapid.StringMatching(`[A-Za-z]{1,6}[0-9_/(][A-Za-z0-9_/().@+#%-]{0,12}`).Draw(t, "app")
			if mustBe == "%" || rapid.IntRange(0, 3).Draw(t, "message code") == 0 {
				app = rapid.StringMatching(`%[A-Z]{1,8}-[0-7]-[A-Z_]{1,12}`).Draw(t, "code")
			}
			want.AppName = []byte(app)
			b.WriteString(gap + app)
			if tag != "name:" {
				pid := rapid.StringMatching(`[!-Z\\^-~]{0,12}`).Draw(t, "pid")
				b.WriteString("[" + pid + "]")
				want.ProcID = []byte(pid)
			}
			if tag != "name[pid]" {
				b.WriteByte(':')
			}
			if tag == "name[pid]:text" {
				if text = strings.TrimLeft(text, " "); strings.HasPrefix(text, "\ufeff") {
					text = ""
				}
			} else if text != "" || rapid.Bool().Draw(t, "space at the end") {
				b.WriteByte(' ')
			}
			b.WriteString(text)
			want.Text = []byte(text)
		}

		in := b.String() + rapid.SampledFrom([]string{"", "\n", "\r\n", "\x00", "\n\x00"}).Draw(t, "end")
		for _, f := range []*[]byte{&want.ProcID, &want.Text, &want.Fault} {
			if len(*f) == 0 {
				*f = nil
			}
		}
		var got Message
		parsers[loc].Parse(&got, []byte(in), received)
		if g, w := describe(&got), describe(&want); !slices.Equal(g, w) {
			t.Fatalf("%q received %v:\n got  %s\n want %s", in, received.UTC(), strings.Join(g, "\n      "), strings.Join(w, "\n      "))
		}
	})
}

// What follows the clock, as regular expressions, for TestRFC3164Ambiguous.
var (
	modelYear  = regexp.MustCompile(`^ (?:19|20|21)[0-9]{2}(?: |$|:(?: |$))`)
	modelHalf  = regexp.MustCompile(`^ [AaPp][Mm](?:\.[0-9]*)?(?: |$|:(?: |$))`)
	modelZone  = regexp.MustCompile(`^ (?:(?:GMT|UTC|TZ)[+-](?:[0-9]|0[0-9]|1[0-4])|[A-Za-z]{3,4}|Z|[+-][0-9]{2}(?::?[0-9]{2})?)(?: |$|:(?: |$))`)
	modelAlien = regexp.MustCompile(`^ [A-Z]{2,5}: %[A-Z]`)
	modelRelay = regexp.MustCompile(`^Message forwarded from ([0-9a-fA-F]*(?::[0-9a-fA-F]*){2,8}|[A-Za-z0-9._/@~+#%-]+):`)
	modelTag   = regexp.MustCompile("^([^][{}<>:;,=|\\\\\"'` \\x00-\\x1f\\x7f]+)(?::(?: |$)|\\[([^][ \\x00-\\x1f]*)\\](?::|(?: |$)))")
	modelHost  = regexp.MustCompile(`^[A-Za-z0-9\x{80}-\x{10ffff}._/@~+#-][A-Za-z0-9\x{80}-\x{10ffff}._/@~+#%-]*$`)
	modelUniFi = regexp.MustCompile(`^\("([^" ]+)"\)$`)
)

// modelBody is what the rules say of the text behind a clock: one rule after the
// other, whatever it costs.
func modelBody(rest string) (m Message) {
	year, half, zone := false, false, false
	for range 3 {
		word, _, _ := strings.Cut(strings.TrimPrefix(rest, " "), " ")
		word = strings.TrimSuffix(word, ":")
		_, named := zoneOffsets[strings.ToUpper(word)]
		switch {
		case !year && modelYear.MatchString(rest):
			year = true
		case !half && modelHalf.MatchString(rest):
			half = true
		case !zone && modelZone.MatchString(rest) && (named || !regexp.MustCompile(`^[A-Za-z]{3,4}$`).MatchString(word)):
			zone = true
		case !zone && modelAlien.MatchString(rest):
			zone = true
		default:
			word = ""
		}
		if word == "" {
			break
		}
		rest = rest[1+len(word):]
	}
	rest = strings.TrimPrefix(rest, ":")

	set := func(f *[]byte, s string) {
		if s != "" {
			*f = []byte(s)
		}
	}
	tag := func(s string) bool {
		t := modelTag.FindStringSubmatch(s)
		if t == nil || t[2] == "" && !strings.Contains(t[0], "[") && strings.Trim(t[1], "0123456789") == "" {
			return false
		}
		set(&m.AppName, t[1])
		set(&m.ProcID, t[2])
		set(&m.Text, strings.TrimPrefix(strings.TrimPrefix(s[len(strings.TrimSuffix(t[0], " ")):], ":"), " "))
		return true
	}
	colon := func(s string) string {
		if strings.HasPrefix(s, ": %") {
			return s[2:]
		}
		return s
	}

	text := strings.TrimPrefix(rest, " ")
	s := colon(strings.TrimLeft(rest, " "))
	if strings.HasPrefix(s, "-- MARK --") || strings.HasPrefix(s, "last message repeated ") {
		set(&m.Text, s)
		return m
	}
	if r := modelRelay.FindStringSubmatch(s); r != nil {
		m.Hostname = []byte(r[1])
		text = strings.TrimPrefix(s[len(r[0]):], " ")
		s = strings.TrimLeft(s[len(r[0]):], " ")
	}
	if tag(s) {
		return m
	}
	if word, behind, more := strings.Cut(s, " "); more && m.Hostname == nil && !strings.HasPrefix(s, " ") {
		host, ok := word, modelHost.MatchString(word)
		if u := modelUniFi.FindStringSubmatch(word); u != nil {
			host, ok = u[1], true
		}
		if inner := strings.TrimSuffix(strings.TrimPrefix(word, "["), "]"); len(inner) != len(word)-1 {
			if _, err := netip.ParseAddr(inner); err == nil {
				host, ok = inner, true
			}
		}
		if ok {
			if host != "-" {
				m.Hostname = []byte(host)
			}
			if tag(colon(strings.TrimLeft(behind, " "))) {
				return m
			}
			text = behind
		}
	}
	set(&m.Text, text)
	return m
}

// Words that could be a part of the time, a host, a tag or text: the rules of
// doc.go say which, in whatever order they come.
func TestRFC3164Ambiguous(t *testing.T) {
	p := NewParser(Auto, nil)
	word := rapid.SampledFrom([]string{
		"EST", "gmt", "GMT+2", "UTC-15", "IST", "2009", "1899", "2009:", "PM", "AM.5", "pm:", "+0200", "-03:30", "+2", "Z", "-", "--", "MARK", "EST:",
		"last", "message", "repeated", "3", "times", "last message repeated 3 times", "-- MARK --",
		"Message", "forwarded", "from", "Message forwarded from aix7:", "Message forwarded from 2001:db8::1:", "Message forwarded from :",
		"h1", "h1:", "host.example.net", "a,b", "x=1", "1.2.3.4", "[1.2.3.4]", "2001:db8::1", "[2001:db8::1]", "::1", "[::", "[x]", `("U7,80,v4")`, `("U7`,
		"tag:", "tag[1]:", "tag[1]", "tag[1]x", "tag[", "tag[]:", "[audit]", "a/b[x y]:", "sshd(pam)[2]:", "12:", "12[1]:", "%X-1-Y:", "%X", "%", ":", ": %X:", "CEF:0|a|b", "{", "<13>", `"q"`, "é:", "é",
	})
	rapid.Check(t, func(t *rapid.T) {
		var b strings.Builder
		for range rapid.IntRange(0, 5).Draw(t, "words") {
			b.WriteString(rapid.SampledFrom([]string{" ", " ", " ", "  "}).Draw(t, "space") + word.Draw(t, "word"))
		}
		if rapid.Bool().Draw(t, "space at the end") {
			b.WriteByte(' ')
		}
		in := "<13>Nov 20 10:00:00" + b.String()
		var got Message
		p.Parse(&got, []byte(in), received)
		if !got.HasTime || got.Err != "" {
			t.Fatalf("%q: no time, %s", in, got.Err)
		}
		want := modelBody(b.String())
		if string(got.Hostname) != string(want.Hostname) || string(got.AppName) != string(want.AppName) || string(got.ProcID) != string(want.ProcID) || string(got.Text) != string(want.Text) {
			t.Fatalf("%q:\n got  host %q, app %q, pid %q, text %q\n want host %q, app %q, pid %q, text %q", in,
				got.Hostname, got.AppName, got.ProcID, got.Text, want.Hostname, want.AppName, want.ProcID, want.Text)
		}
	})
}
