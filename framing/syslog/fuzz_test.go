package syslog

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"
)

// checkSound holds what is true of any parse of any input.
func checkSound(t *testing.T, m *Message, in []byte, received time.Time) {
	t.Helper()
	line := bytes.TrimRight(in, "\r\n\x00")
	inside := func(name string, b []byte) {
		if b == nil {
			return
		}
		if len(b) == 0 {
			t.Errorf("%s is empty, not nil", name)
			return
		}
		at := uintptr(unsafe.Pointer(&b[0])) - uintptr(unsafe.Pointer(&in[0]))
		if at >= uintptr(len(line)) || at+uintptr(len(b)) > uintptr(len(line)) {
			t.Errorf("%s %q is not a part of the input", name, b)
		}
	}
	inside("version", m.Version)
	inside("hostname", m.Hostname)
	inside("appname", m.AppName)
	inside("procid", m.ProcID)
	inside("msgid", m.MsgID)
	inside("sd", m.SD)
	inside("sequence", m.Sequence)
	inside("text", m.Text)
	inside("fault", m.Fault)

	// The text is the end of the line, but for the space behind structured data
	// that was put into it.
	end := line
	if m.Flags&SDInText != 0 {
		end = bytes.TrimSuffix(line, []byte(" "))
	}
	if !bytes.HasSuffix(end, m.Text) {
		t.Errorf("text %q is not the end of the input", m.Text)
	}
	bare := m.Priority < 0 && m.Version == nil && !m.HasTime && m.Hostname == nil && m.AppName == nil && m.Sequence == nil && m.Flags&^Mark == 0
	whole := bytes.TrimPrefix(bytes.TrimPrefix(line, []byte(bom)), []byte(bom)) // one of the line, one of the text
	if bare && m.Err != errTime && len(m.Text) != len(whole) {
		t.Errorf("nothing parsed, but text is %q", m.Text)
	}

	// With a priority only, the text is all that is behind it, less a space.
	if m.Priority >= 0 && m.Version == nil && !m.HasTime && m.Hostname == nil && m.AppName == nil && m.ProcID == nil && m.MsgID == nil && m.SD == nil &&
		m.Sequence == nil && m.Flags&^Mark == 0 && m.Err != errTime {
		_, behind, _ := bytes.Cut(line, []byte(">"))
		if n := len(behind) - len(m.Text); n != 0 && string(behind[:n]) != " " && string(behind[:n]) != bom && string(behind[:n]) != " "+bom {
			t.Errorf("behind the priority is %q, but text is %q", behind, m.Text)
		}
	}

	if rest := leftOver(m, end); !nothingLost(m).MatchString(rest) {
		t.Errorf("%q: in no field and not in the text: %q", in, rest)
	}

	if strings.HasPrefix(m.Err, "input ends") && len(m.Text) != len(bytes.TrimPrefix(line, []byte(bom))) {
		t.Errorf("the header is not whole, but text is %q", m.Text)
	}

	if m.Priority < -1 || m.Priority > 191 {
		t.Errorf("priority %d", m.Priority)
	}
	if (m.Err == "") != (m.Pos == 0) || m.Pos < 0 || m.Pos > len(in)+1 {
		t.Errorf("error %q at %d of %d", m.Err, m.Pos, len(in))
	}
	if m.HasTime && m.Flags&YearGuessed != 0 && m.Time.After(received.Add(24*time.Hour)) {
		t.Errorf("%v was guessed, received %v", m.Time, received)
	}
	if !m.HasTime && !m.Time.IsZero() {
		t.Errorf("time without HasTime: %v", m.Time)
	}
	if m.HasTime && m.Time.Location() != time.UTC {
		t.Errorf("time in %v", m.Time.Location())
	}

	elements := 0
	for sd := m.SD; len(sd) > 0; elements++ {
		id, params, rest, ok := NextElement(sd)
		if !ok || len(id) == 0 {
			t.Fatalf("structured data %q: no element at %q", m.SD, sd)
		}
		size := len("[]") + len(id) + len(params)
		for len(params) > 0 {
			name, value, more, ok := NextParam(params)
			if !ok || len(name) == 0 {
				t.Fatalf("structured data %q: no parameter at %q", m.SD, params)
			}
			if n := len(AppendUnescaped(nil, value)); n > len(value) {
				t.Fatalf("%q grew to %d bytes", value, n)
			}
			params = more
		}
		if size+len(rest) != len(sd) {
			t.Fatalf("structured data %q: bytes between elements", m.SD)
		}
		sd = rest
	}
	if m.SD != nil && elements == 0 {
		t.Errorf("structured data %q has no element", m.SD)
	}
}

// What stands for a field in what leftOver returns.
const (
	aVersion  = "\ue000"
	aHost     = "\ue001"
	anApp     = "\ue002"
	aPid      = "\ue003"
	aMsgid    = "\ue004"
	anSD      = "\ue005"
	aSequence = "\ue006"
	aFault    = "\ue007"
)

// leftOver returns what of a line, which ends in the text of m, is in front of
// the text, with a rune in the place of each field and the other bytes as
// Latin-1.
func leftOver(m *Message, line []byte) string {
	header := len(line) - len(m.Text)
	fields := []struct {
		a string
		b []byte
	}{
		{aVersion, m.Version}, {aHost, m.Hostname}, {anApp, m.AppName}, {aPid, m.ProcID}, {aMsgid, m.MsgID},
		{anSD, m.SD}, {aSequence, m.Sequence}, {aFault, m.Fault},
	}
	var out strings.Builder
	for i := 0; i < header; {
		next := i
		for _, f := range fields {
			if len(f.b) > 0 && &f.b[0] == &line[i] {
				out.WriteString(f.a)
				next = i + len(f.b)
			}
		}
		if next == i {
			out.WriteRune(rune(line[i]))
			next++
		}
		i = next
	}
	return out.String()
}

// nothingLost matches what leftOver may return for m: what separates fields, and
// the time that m has, in all its forms.
func nothingLost(m *Message) *regexp.Regexp {
	kind := "none"
	switch {
	case m.HasTime:
		kind = "time"
	case m.Fault != nil && m.Err == errTime:
		kind = "fault"
	case m.Flags&Uptime != 0:
		kind = "uptime"
	}
	rfc5424 := m.Version != nil || m.Err == errVersion
	key := fmt.Sprint(kind, rfc5424, m.Flags&UnknownZone)
	if re, ok := lossless.Load(key); ok {
		return re.(*regexp.Regexp)
	}

	const (
		clock = `[0-9]{2}:[0-9]{2}:[0-9]{2}(?:[.,][0-9]*)?`
		east  = `(?:[Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)`
		iso   = `[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]` + clock + east + `?`
		bsd   = `[A-Za-z]{3}  ?[0-9]{1,2} (?:[0-9]{4} )?`
		mark  = "(?:\u00ef\u00bb\u00bf)?" // a BOM in Latin-1
	)
	var re string
	if rfc5424 {
		when := map[string]string{"time": iso, "fault": aFault, "none": "-"}[kind]
		re = `[` + aVersion + aFault + `] +` + when + ` +[-` + aHost + `] +[-` + anApp + `] +[-` + aPid + `] +[-` + aMsgid + `] +(?:[-` + anSD + `] ?)?`
		re = `(?:` + re + `)?` // or all of the line is text
	} else {
		names := `Z|(?i:TZ|GMT|UTC)[+-][0-9]{1,2}`
		if m.Flags&UnknownZone != 0 {
			names += `|` + aFault
		}
		for n := range zoneOffsets {
			names += `|(?i:` + n + `)`
		}
		when := map[string]string{
			"time": `[*.]?(?:(?:` + bsd + `|[0-9]{4} ` + bsd + `|[0-9]{2}/[0-9]{2}/[0-9]{4}:)` + clock + east + `?|` + iso + `)` +
				`(?: (?:[0-9]{4}|[AaPp][Mm](?:\.[0-9]*)?|` + east + `|` + names + `)){0,3}:?`,
			"fault":  `[*.]?` + aFault + `:?`,
			"uptime": `\*?[0-9][0-9ywdhms.:]*:`,
		}[kind]
		cisco, host := `(?:`+aSequence+`?: +)?(?:`+aHost+`: +)?`, `(?:(?:Message forwarded from )?`+aHost+`:?|\[`+aHost+`\]|\("`+aHost+`"\)|-)?`
		if kind == "none" {
			cisco, host = `(?:`+aSequence+`: +)?`, ``
		}
		re = ` *` + cisco + when + ` *(?:: )?` + host + ` *(?:: )?(?:` + anApp + `(?:\[` + aPid + `?\])?:?)? ?`
	}
	compiled := regexp.MustCompile(`^` + mark + `(?:[0-9]{1,9} )?(?:<[0-9]{1,3}>)?` + re + mark + `$`)
	lossless.Store(key, compiled)
	return compiled
}

var lossless sync.Map // of key to *regexp.Regexp

func FuzzParse(f *testing.F) {
	for _, file := range corpusFiles(f) {
		for _, c := range readCorpus(f, file) {
			f.Add(c.in, uint8(c.format), c.received.Unix())
		}
	}
	budapest, err := time.LoadLocation("Europe/Budapest")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte, format uint8, unix int64) {
		received := time.Unix(unix%(1<<37), 0) // years -2386 to 6325
		kept := bytes.Clone(in)
		for _, loc := range []*time.Location{time.UTC, budapest} {
			p := NewParser(Format(format%3), loc)
			var m, again Message
			p.Parse(&m, in, received)
			if !bytes.Equal(in, kept) {
				t.Fatalf("the input was changed: %q", in)
			}
			checkSound(t, &m, in, received)
			// What a parser remembers must not change what it finds.
			p.Parse(&again, []byte("<13>Jul  1 00:00:00 h a: x"), received)
			p.Parse(&again, in, received)
			if !again.Time.Equal(m.Time) || again.Flags != m.Flags || again.Err != m.Err || !bytes.Equal(again.Text, m.Text) {
				t.Fatalf("parsed twice:\n%v\n%v", describe(&m), describe(&again))
			}
		}
	})
}

// The iterators are made for what Parse has validated, but anything is safe.
func FuzzStructuredData(f *testing.F) {
	f.Add([]byte(`[a@1 x="1" y="\"2\""][b]`))
	f.Add([]byte(`[a b="`))
	f.Fuzz(func(t *testing.T, sd []byte) {
		for {
			_, params, rest, ok := NextElement(sd)
			if !ok {
				return
			}
			for {
				_, value, more, ok := NextParam(params)
				if !ok {
					break
				}
				AppendUnescaped(nil, value)
				params = more
			}
			if len(rest) >= len(sd) {
				t.Fatalf("no progress at %q", sd)
			}
			sd = rest
		}
	})
}
