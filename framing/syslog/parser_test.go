package syslog

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestMain gives each property a thousand draws, which take a tenth of a second;
// -rapid.checks says otherwise. A failure prints its seed.
func TestMain(m *testing.M) {
	flag.Parse()
	checks := "1000"
	flag.Visit(func(f *flag.Flag) {
		if f.Name == "rapid.checks" {
			checks = f.Value.String()
		}
	})
	if err := flag.Set("rapid.checks", checks); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func TestFormat(t *testing.T) {
	for _, f := range []Format{Auto, RFC3164, RFC5424} {
		if got, err := ParseFormat(f.String()); got != f || err != nil {
			t.Errorf("ParseFormat(%q) = %v, %v", f.String(), got, err)
		}
	}
	if _, err := ParseFormat("vault"); err == nil || !strings.Contains(err.Error(), `"vault"`) {
		t.Errorf("ParseFormat(vault): %v", err)
	}
}

func TestNames(t *testing.T) {
	for code, want := range []string{
		0: "kernel", 1: "user-level", 2: "mail", 3: "system", 4: "security/authorization", 5: "syslogd", 6: "line printer", 7: "network news",
		8: "UUCP", 9: "clock", 10: "security/authorization", 11: "FTP", 12: "NTP", 13: "log audit", 14: "log alert", 15: "clock",
		16: "local0", 17: "local1", 18: "local2", 19: "local3", 20: "local4", 21: "local5", 22: "local6", 23: "local7", 24: "",
	} {
		if got := FacilityName(code); got != want {
			t.Errorf("facility %d: %q, want %q", code, got, want)
		}
	}
	for code, want := range []string{
		0: "Emergency", 1: "Alert", 2: "Critical", 3: "Error", 4: "Warning", 5: "Notice", 6: "Informational", 7: "Debug", 8: "",
	} {
		if got := SeverityName(code); got != want {
			t.Errorf("severity %d: %q, want %q", code, got, want)
		}
	}
	if FacilityName(-1) != "" || SeverityName(-1) != "" {
		t.Error("codes that are none have names")
	}
}

// rfc5424 is a message as a strict sender means it; String prints it by the
// grammar of RFC 5424 section 6.
type rfc5424 struct {
	pri, version           int
	time                   time.Time // zero: NIL
	digits                 int       // of the fraction
	host, app, proc, msgid string    // "": NIL
	sd                     []element
	bom                    bool
	text                   string
}

type element struct {
	id     string
	params []sdParam
}

type sdParam struct {
	name, value string
	as          int // how value is printed
}

// Ways to print the value of a parameter.
const (
	asStrict = 0 // all that can be escaped is
	asLazy   = 1 // a backslash stays bare where it can't be taken for an escape
	asBare   = 2 // without quotes, as VMware does
)

func (p sdParam) String() string {
	switch p.as {
	case asBare:
		return p.name + "=" + p.value
	case asLazy:
		var b strings.Builder
		for i := range len(p.value) {
			c := p.value[i]
			if c == '"' || c == ']' || c == '\\' && (i+1 == len(p.value) || strings.IndexByte(`"\]`, p.value[i+1]) >= 0) {
				b.WriteByte('\\')
			}
			b.WriteByte(c)
		}
		return p.name + `="` + b.String() + `"`
	}
	return p.name + `="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`).Replace(p.value) + `"`
}

func (r *rfc5424) String() string {
	nilOr := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	stamp := ""
	if !r.time.IsZero() {
		layout := "2006-01-02T15:04:05"
		if r.digits > 0 {
			layout += "." + strings.Repeat("0", r.digits)
		}
		stamp = r.time.Format(layout + "Z07:00")
	}
	var sd strings.Builder
	for _, e := range r.sd {
		sd.WriteString("[" + e.id)
		for _, p := range e.params {
			sd.WriteString(" " + p.String())
		}
		sd.WriteString("]")
	}
	s := fmt.Sprintf("<%d>%d %s %s %s %s %s %s", r.pri, r.version, nilOr(stamp), nilOr(r.host), nilOr(r.app), nilOr(r.proc), nilOr(r.msgid), nilOr(sd.String()))
	if r.bom {
		return s + " " + bom + r.text
	}
	if r.text != "" {
		s += " " + r.text
	}
	return s
}

func drawRFC5424(t *rapid.T) *rfc5424 {
	column := func(name string, max int) string {
		s := rapid.StringMatching(fmt.Sprintf(`[!-~]{0,%d}`, max)).Draw(t, name)
		if s == "-" { // would be NIL
			return ""
		}
		return s
	}
	sdName := rapid.StringMatching(`[!#-<>-\\^-~]{1,32}`)
	bareValue := rapid.StringMatching(`[!#-<>-Z^-~]{1,16}(\\[!#-<>-Z^-~]{1,4})?`)
	value := rapid.OneOf(rapid.String(), rapid.StringMatching(`(\\|"|\]|\[|n|=| ){0,8}`))
	r := &rfc5424{
		pri:     rapid.IntRange(0, 191).Draw(t, "pri"),
		version: rapid.IntRange(1, 999).Draw(t, "version"),
		host:    column("host", 255),
		app:     column("app", 48),
		proc:    column("proc", 128),
		msgid:   column("msgid", 32),
		bom:     rapid.Bool().Draw(t, "bom"),
		text:    strings.TrimRight(rapid.String().Draw(t, "text"), "\r\n\x00"),
	}
	if strings.HasPrefix(r.text, bom) {
		r.text = "x" + r.text
	}
	if rapid.Bool().Draw(t, "has time") {
		r.digits = rapid.IntRange(0, 9).Draw(t, "digits")
		unit := int64(1)
		for range 9 - r.digits {
			unit *= 10
		}
		// Years 0001 to 9998, so that no offset leaves 0..9999.
		sec := rapid.Int64Range(-62135596800, 253370764799).Draw(t, "seconds")
		nsec := rapid.Int64Range(0, 1e9-1).Draw(t, "nanoseconds") / unit * unit
		offset := rapid.IntRange(-23*60-59, 23*60+59).Draw(t, "offset")
		r.time = time.Unix(sec, nsec).In(time.FixedZone("", offset*60))
	}
	for range rapid.IntRange(0, 4).Draw(t, "elements") {
		e := element{id: sdName.Draw(t, "id")}
		for range rapid.IntRange(0, 3).Draw(t, "params") {
			p := sdParam{name: sdName.Draw(t, "name"), as: rapid.IntRange(asStrict, asBare).Draw(t, "printed as")}
			if p.as == asBare {
				p.value = bareValue.Draw(t, "bare value")
			} else {
				p.value = value.Draw(t, "value")
			}
			e.params = append(e.params, p)
		}
		r.sd = append(r.sd, e)
	}
	return r
}

// What the grammar prints is what is parsed, whatever the columns hold, and
// whether RFC 5424 is required or found out.
func TestRFC5424RoundTrip(t *testing.T) {
	p, auto := NewParser(RFC5424, nil), NewParser(Auto, nil)
	rapid.Check(t, func(t *rapid.T) {
		want := drawRFC5424(t)
		in := want.String()
		var m, found Message
		p.Parse(&m, []byte(in), time.Unix(0, 0))
		auto.Parse(&found, []byte(in), time.Unix(0, 0))
		if f, r := describe(&found), describe(&m); !slices.Equal(f, r) {
			t.Fatalf("%q\nfound out %q\nrequired  %q", in, f, r)
		}
		got := &rfc5424{
			pri: m.Priority, host: string(m.Hostname), app: string(m.AppName), proc: string(m.ProcID), msgid: string(m.MsgID),
			text: string(m.Text), bom: want.bom, digits: want.digits,
		}
		fmt.Sscan(string(m.Version), &got.version)
		if m.HasTime {
			got.time = m.Time.In(want.time.Location())
			if !m.Time.Equal(want.time) {
				t.Errorf("time %v", m.Time)
			}
		}
		for sd := m.SD; len(sd) > 0; {
			id, params, rest, ok := NextElement(sd)
			if !ok || len(got.sd) == len(want.sd) {
				t.Fatalf("no element at %q", sd)
			}
			e := element{id: string(id)}
			printed := want.sd[len(got.sd)].params
			for len(params) > 0 {
				name, value, more, ok := NextParam(params)
				if !ok || len(e.params) == len(printed) {
					t.Fatalf("no parameter at %q", params)
				}
				p := sdParam{name: string(name), value: string(AppendUnescaped(nil, value)), as: printed[len(e.params)].as}
				if p != printed[len(e.params)] {
					t.Fatalf("%q: parameter %q, want %q", in, p, printed[len(e.params)])
				}
				e.params = append(e.params, p)
				params = more
			}
			got.sd = append(got.sd, e)
			sd = rest
		}
		if got.String() != in || m.Err != "" || m.Flags&^DuplicateID != 0 {
			t.Fatalf("%q\n%q\nerror %q, flags %b", in, got.String(), m.Err, m.Flags)
		}
		ids := map[string]bool{}
		for _, e := range want.sd {
			ids[e.id] = true
		}
		if (m.Flags&DuplicateID != 0) != (len(ids) < len(want.sd)) {
			t.Fatalf("%q: flags %b", in, m.Flags)
		}
	})
}

// The year that is guessed is the latest that puts the stamp no more than a day
// ahead, found here by trying all of them, and it does not depend on what the
// parser remembers.
func TestGuessedYear(t *testing.T) {
	loc, err := time.LoadLocation("America/New_York")
	if err != nil {
		t.Fatal(err)
	}
	warm := NewParser(Auto, loc)
	rapid.Check(t, func(t *rapid.T) {
		received := time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "received"), 0)
		near := rapid.Int64Range(-3*86400, 3*86400)
		if rapid.Bool().Draw(t, "far") {
			near = rapid.Int64Range(-400*86400, 400*86400)
		}
		sent := time.Unix(received.Unix()+near.Draw(t, "late"), 0).In(loc)
		var want time.Time
		for y := received.Year() + 1; ; y-- {
			want = time.Date(y, sent.Month(), sent.Day(), sent.Hour(), sent.Minute(), sent.Second(), 0, loc)
			if want.Day() == sent.Day() && !want.After(received.Add(24*time.Hour)) {
				break
			}
		}
		in := []byte("<13>" + sent.Format(time.Stamp) + " h a: x")
		for _, p := range []*Parser{NewParser(Auto, loc), warm} {
			var m Message
			p.Parse(&m, in, received)
			if !m.HasTime || !m.Time.Equal(want) {
				t.Fatalf("%s received %v: %v, want %v", in, received.In(loc), m.Time.In(loc), want)
			}
		}
	})
}

func TestHugeStructuredData(t *testing.T) {
	value := strings.Repeat(`a\"\\\]`, 64<<10/8)
	in := []byte(`<13>1 - h a - - [id@1 v="` + value + `"] x`)
	var m Message
	NewParser(Auto, nil).Parse(&m, in, time.Now())
	if m.Err != "" || string(m.Text) != "x" || len(m.SD) != len(`[id@1 v=""]`)+len(value) {
		t.Errorf("error %q, text %q, %d bytes of structured data", m.Err, m.Text, len(m.SD))
	}
}

func TestManyElements(t *testing.T) {
	for _, c := range []struct {
		n    int
		want Flags
	}{{32, 0}, {33, DuplicateID}} {
		var in bytes.Buffer
		in.WriteString("<13>1 - - - - - ")
		for i := range c.n {
			fmt.Fprintf(&in, "[e%d]", i)
		}
		var m Message
		NewParser(Auto, nil).Parse(&m, in.Bytes(), time.Now())
		if m.Flags != c.want {
			t.Errorf("%d elements: flags %b", c.n, m.Flags)
		}
	}
}

func TestParseResetsMessage(t *testing.T) {
	p, m := NewParser(Auto, nil), Message{}
	p.Parse(&m, []byte(`<13>1 2003-08-24T05:14:15Z h a p m [id] x`), time.Now())
	p.Parse(&m, []byte("plain"), time.Now())
	if got := describe(&m); len(got) != 1 || got[0] != `text "plain"` {
		t.Errorf("left over: %s", got)
	}
}

func TestZones(t *testing.T) {
	seen := map[zoneName]bool{}
	for _, z := range zones {
		if seen[z.name] {
			t.Errorf("zone %x is there twice", z.name)
		}
		seen[z.name] = true
		if z.minutes < -12*60 || z.minutes > 14*60 {
			t.Errorf("zone %x: %d minutes", z.name, z.minutes)
		}
	}
}

// days against the standard library, over five centuries and at the ends.
func TestDays(t *testing.T) {
	check := func(y, m, d int) {
		if want := time.Date(y, time.Month(m), d, 0, 0, 0, 0, time.UTC).Unix() / daySeconds; days(y, m, d) != want {
			t.Fatalf("%04d-%02d-%02d: %d, want %d", y, m, d, days(y, m, d), want)
		}
	}
	for y := 1700; y < 2200; y++ {
		for m := 1; m <= 12; m++ {
			check(y, m, 1)
			check(y, m, monthDays(y, m))
		}
	}
	check(0, 1, 1)
	check(0, 2, 29)
	check(-399, 1, 1)
	check(9999, 12, 31)
}

// What a parser remembers of the messages before does not change what it finds.
func TestMemoryDoesNotShow(t *testing.T) {
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct{ name, zone, before, in string }{
		{"an hour that occurs twice, after summer", "Europe/Budapest", "Oct 24 12:00:00", "Oct 25 02:30:00"},
		{"an hour that occurs twice, after winter", "Europe/Budapest", "Oct 26 12:00:00", "Oct 25 02:30:00"},
		{"an hour that never is, after summer", "Europe/Budapest", "Mar 30 12:00:00", "Mar 29 02:30:00"},
		{"an hour that never is, after winter", "Europe/Budapest", "Mar 28 12:00:00", "Mar 29 02:30:00"},
		{"an hour that occurs twice, after summer, in the west", "America/New_York", "Oct 31 12:00:00", "Nov  1 01:30:00"},
		{"an hour that occurs twice, after winter, in the west", "America/New_York", "Nov  2 12:00:00", "Nov  1 01:30:00"},
		{"an hour that never is, after summer, in the west", "America/New_York", "Mar  9 12:00:00", "Mar  8 02:30:00"},
		{"an hour that never is, after winter, in the west", "America/New_York", "Mar  7 12:00:00", "Mar  8 02:30:00"},
		{"a short day with a colon, then two colons", "UTC", "Nov 2 12:00:30:", "Nov 2 12:00::30"},
	} {
		t.Run(c.name, func(t *testing.T) {
			loc, err := time.LoadLocation(c.zone)
			if err != nil {
				t.Fatal(err)
			}
			var m Message
			p := NewParser(Auto, loc)
			p.Parse(&m, []byte("<13>"+c.before+" h a: x"), at)
			if !m.HasTime {
				t.Fatalf("%s is no time", c.before)
			}
			sameAsNew(t, p, []byte("<13>"+c.in+" h a: x"), at)
		})
	}

	loc, err := time.LoadLocation("Europe/Budapest")
	if err != nil {
		t.Fatal(err)
	}
	received := rapid.Map(rapid.SampledFrom([]string{
		"2024-02-29T09:00:00Z", "2025-03-01T00:00:00Z", "2026-11-19T10:59:59Z", "2026-11-19T11:00:30Z", "2026-11-20T12:00:00Z", "2027-01-01T00:00:00Z", "2028-02-28T10:00:00Z",
	}), func(s string) time.Time {
		r, err := time.Parse(time.RFC3339, s)
		if err != nil {
			panic(err)
		}
		return r
	})
	minute := rapid.SampledFrom([]string{"Feb 29 10:00:", "Nov 20 12:00:", "Nov 20 12:01:", "Nov  2 12:00:", "Oct 25 02:30:", "Oct 27 02:30:"})
	second := rapid.SampledFrom([]string{"00", "30", "59", "60", "61", "1x"})
	rest := rapid.SampledFrom([]string{"", ":", " ", " h a: x", ".5 h a: x", ": h a: x", " GMT h a: x", " 2007 h a: x", " PM h a: x", " +0500 h a: x", " XYZ: %A-1-B: x", "x"})
	rapid.Check(t, func(t *rapid.T) {
		warm := NewParser(Auto, loc)
		for range 8 {
			in := []byte("<13>" + minute.Draw(t, "minute") + second.Draw(t, "second") + rest.Draw(t, "rest"))
			sameAsNew(t, warm, in, received.Draw(t, "received"))
		}
	})
}

// sameAsNew checks that p finds in a message what a new parser finds.
func sameAsNew(t interface{ Fatalf(string, ...any) }, p *Parser, in []byte, received time.Time) {
	var got, want Message
	p.Parse(&got, in, received)
	NewParser(p.format, p.zone.loc).Parse(&want, in, received)
	if g, w := describe(&got), describe(&want); !slices.Equal(g, w) {
		t.Fatalf("%q received %v:\n%q, a new parser:\n%q", in, received, g, w)
	}
}
