package syslog

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // cases name zones; the machine may have none
)

// The corpus is testdata/*.txt; testdata/README says how a case is written.
// Expectations are typed by hand and have no update mode.

type corpusCase struct {
	name     string // file:line id
	format   Format
	loc      *time.Location
	received time.Time
	in       []byte
	want     []string // "key value" lines, sorted
}

func TestCorpus(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range corpusFiles(t) {
		for _, c := range readCorpus(t, f) {
			if seen[c.name] {
				t.Errorf("%s: %s is there twice", f, c.name)
			}
			seen[c.name] = true
			t.Run(c.name, func(t *testing.T) {
				var m Message
				NewParser(c.format, c.loc).Parse(&m, c.in, c.received)
				if got := describe(&m); !slices.Equal(got, c.want) {
					t.Errorf("%s %q\n got  %s\n want %s", c.format, c.in, strings.Join(got, "\n      "), strings.Join(c.want, "\n      "))
				}
				checkSound(t, &m, c.in, c.received)
			})
		}
	}
}

func corpusFiles(t testing.TB) []string {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no corpus in testdata: %v", err)
	}
	return files
}

func readCorpus(t testing.TB, file string) (cases []corpusCase) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var c *corpusCase
	for n, line := range strings.Split(string(data), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, _ := strings.Cut(line, " ")
		bad := func(err any) { t.Fatalf("%s:%d: %v", file, n+1, err) }
		if key == "==" {
			id, _, _ := strings.Cut(value, " ")
			cases = append(cases, corpusCase{name: id, loc: time.UTC, received: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)})
			c = &cases[len(cases)-1]
			continue
		}
		if c == nil {
			bad("a case begins with ==")
		}
		var err error
		switch key {
		case "parse":
			c.format, err = ParseFormat(value)
		case "zone":
			c.loc, err = time.LoadLocation(value)
		case "received":
			c.received, err = time.Parse(time.RFC3339, value)
		case "in":
			c.in, err = unescape(value)
		case "pri", "time", "flags", "error":
			c.want = append(c.want, line)
		case "version", "host", "app", "pid", "msgid", "seq", "text", "sd", "fault":
			var b []byte
			if b, err = unescape(value); err == nil {
				c.want = append(c.want, fmt.Sprintf("%s %q", key, b))
			}
		default:
			err = fmt.Errorf("unknown key %q", key)
		}
		if err != nil {
			bad(err)
		}
	}
	for i := range cases {
		if cases[i].in == nil {
			t.Fatalf("%s: %s has no input", file, cases[i].name)
		}
		slices.Sort(cases[i].want)
	}
	return cases
}

var repeat = regexp.MustCompile(`\{(.)\*([0-9]+)\}`)

// unescape resolves {x*255} and Go escapes; quotes stand for themselves.
func unescape(s string) ([]byte, error) {
	s = repeat.ReplaceAllStringFunc(s, func(m string) string {
		part := repeat.FindStringSubmatch(m)
		n, _ := strconv.Atoi(part[2]) // digits
		return strings.Repeat(part[1], n)
	})
	b := []byte{}
	for s != "" {
		if s[0] == '"' || s[0] == '\'' {
			b, s = append(b, s[0]), s[1:]
			continue
		}
		r, multi, rest, err := strconv.UnquoteChar(s, 0)
		if err != nil {
			return nil, fmt.Errorf("bad escape at %q", s)
		}
		if multi {
			b = append(b, string(r)...)
		} else {
			b = append(b, byte(r))
		}
		s = rest
	}
	return b, nil
}

var flagNames = []struct {
	flag Flags
	name string
}{
	{ClockUnset, "clock-unset"}, {ClockLost, "clock-lost"}, {Uptime, "uptime"}, {YearGuessed, "year-guessed"},
	{UnknownZone, "unknown-zone"}, {FractionCut, "fraction-cut"}, {LeapSecond, "leap-second"}, {SDInText, "sd-in-text"},
	{DuplicateID, "duplicate-id"}, {OctetCount, "octet-count"}, {Mark, "mark"},
}

// describe prints m in the corpus's words: absent fields are not there.
// "guessed" behind the time stands for YearGuessed.
func describe(m *Message) (lines []string) {
	add := func(format string, a ...any) { lines = append(lines, fmt.Sprintf(format, a...)) }
	if m.Priority >= 0 {
		add("pri %d", m.Priority)
	}
	if m.HasTime {
		s := m.Time.Format(time.RFC3339Nano)
		if m.Flags&YearGuessed != 0 {
			s += " guessed"
		}
		add("time %s", s)
	}
	for _, f := range []struct {
		key string
		b   []byte
	}{
		{"version", m.Version}, {"host", m.Hostname}, {"app", m.AppName}, {"pid", m.ProcID}, {"msgid", m.MsgID},
		{"seq", m.Sequence}, {"text", m.Text}, {"fault", m.Fault},
	} {
		if f.b != nil {
			add("%s %q", f.key, f.b)
		}
	}
	for sd := m.SD; len(sd) > 0; {
		id, params, rest, ok := NextElement(sd)
		if !ok {
			add("sd: NextElement stops at %q", sd)
			break
		}
		s := string(id)
		for len(params) > 0 {
			name, value, more, ok := NextParam(params)
			if !ok {
				add("sd: NextParam stops at %q", params)
				break
			}
			s += " " + string(name) + "=" + string(AppendUnescaped(nil, value))
			params = more
		}
		add("sd %q", s)
		sd = rest
	}
	flags := ""
	for _, f := range flagNames {
		if m.Flags&f.flag != 0 && f.flag != YearGuessed {
			flags += " " + f.name
		}
	}
	if flags != "" {
		add("flags%s", flags)
	}
	if m.Err != "" {
		add("error %d %s", m.Pos, m.Err)
	}
	slices.Sort(lines)
	return lines
}
