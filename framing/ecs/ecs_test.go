package ecs

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"spillway/framing"
	"spillway/framing/syslog"
)

var update = flag.Bool("update", false, "write testdata anew")

var (
	received = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	sender   = Source{Addr: netip.MustParseAddrPort("192.0.2.7:44214")}
	options  = Options{Dataset: "tcp.generic", Agent: "gw1", Host: "gw1.example.net", InputType: "tcp"}
)

const epoch = 0x00c0ffee00c0ffee

func encoder(t testing.TB, o Options, s Source) *Encoder {
	t.Helper()
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	e := NewEncoder(o)
	e.SetSource(s)
	return e
}

// line is a complete record.
func line(e *Encoder, msg framing.Message, m *syslog.Message) []byte {
	return AppendTail(e.AppendRecord(nil, msg, m, received), epoch, 123)
}

// decode reads a line as a strict reader does: one line of UTF-8, one value,
// and no name twice in one object at any level.
func decode(line []byte) (map[string]any, error) {
	if i := bytes.IndexByte(line, '\n'); i != len(line)-1 {
		return nil, fmt.Errorf("line feed at %d of %d", i, len(line))
	}
	if !json.Valid(line) {
		return nil, errors.New("not valid JSON")
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	v, err := decodeValue(d)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("more than one value: %v", err)
	}
	o, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("a %T is no object", v)
	}
	return o, nil
}

func decodeValue(d *json.Decoder) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('{'):
		o := map[string]any{}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return nil, err
			}
			if _, twice := o[name.(string)]; twice {
				return nil, fmt.Errorf("member %q twice", name)
			}
			if o[name.(string)], err = decodeValue(d); err != nil {
				return nil, err
			}
		}
		_, err := d.Token()
		return o, err
	case json.Delim('['):
		a := []any{}
		for d.More() {
			v, err := decodeValue(d)
			if err != nil {
				return nil, err
			}
			a = append(a, v)
		}
		_, err := d.Token()
		return a, err
	case nil:
		return nil, errors.New("a member is null: it should be left out")
	}
	return t, nil
}

func TestDecodeRefuses(t *testing.T) {
	for name, l := range map[string]string{
		"two members of one name": `{"a":{"b":"1","b":"2"}}` + "\n",
		"escaped spelling":        `{"b":"1","\u0062":"2"}` + "\n",
		"two lines":               "{\"a\":\"1\"\n}\n",
		"no line feed":            `{"a":"1"}`,
		"invalid JSON":            `{"a":"1",}` + "\n",
		"null":                    `{"a":null}` + "\n",
	} {
		if _, err := decode([]byte(l)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// diff says where got lacks what want has; members that only got has are fine.
func diff(path string, want, got any) []string {
	w, ok := want.(map[string]any)
	if !ok {
		if !reflect.DeepEqual(want, got) {
			return []string{fmt.Sprintf("%s: %v, want %v", path, got, want)}
		}
		return nil
	}
	g, ok := got.(map[string]any)
	if !ok {
		return []string{fmt.Sprintf("%s: %v, want an object", path, got)}
	}
	var all []string
	for name := range w {
		if _, ok := g[name]; !ok {
			all = append(all, fmt.Sprintf("%s.%s: absent", path, name))
			continue
		}
		all = append(all, diff(path+"."+name, w[name], g[name])...)
	}
	return all
}

func check(t *testing.T, l []byte, want string, absent ...string) map[string]any {
	t.Helper()
	got, err := decode(l)
	if err != nil {
		t.Fatalf("%v\n%q", err, l)
	}
	w, err := decode([]byte(strings.NewReplacer("\n", "", "\t", "").Replace(want) + "\n"))
	if err != nil {
		t.Fatalf("want: %v", err)
	}
	for _, d := range diff("", w, got) {
		t.Error(d)
	}
	for _, path := range absent {
		if v := member(got, path); v != nil {
			t.Errorf("%s is %v, want none", path, v)
		}
	}
	if t.Failed() {
		t.Logf("%s", l)
	}
	return got
}

// member is the value at a path of names joined by slashes, nil without one.
func member(o any, path string) any {
	for name := range strings.SplitSeq(path, "/") {
		m, _ := o.(map[string]any)
		o = m[name]
	}
	return o
}

const common = `"data_stream":{"type":"logs","dataset":"tcp.generic","namespace":"default"},
	"event":{"dataset":"tcp.generic","created":"2026-11-20T12:00:00Z"},"input":{"type":"tcp"},
	"host":{"name":"gw1.example.net"},"agent":{"name":"gw1"},"ecs":{"version":"8.11.0"},
	"source":{"address":"192.0.2.7","ip":"192.0.2.7","port":44214},
	"spillway":{"epoch":"00c0ffee00c0ffee","seq":123}`

// goldens are the examples of the field mapping. header is what the parser
// finds, so that the encoder can be tested without it.
var goldens = []struct {
	name   string
	parse  string // "", auto, rfc3164
	raw    string
	header *syslog.Message
	want   string
	absent []string
}{
	{
		name: "5424", parse: "auto",
		raw: `<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog 1024 ID47 [exampleSDID@32473 iut="3" eventSource="Application" eventID="1011"][examplePriority@32473 class="high"] this is the message`,
		header: &syslog.Message{
			Priority: 165, Version: []byte("1"), HasTime: true, Time: time.Date(2003, 10, 11, 22, 14, 15, 3e6, time.UTC),
			Hostname: []byte("mymachine.example.com"), AppName: []byte("evntslog"), ProcID: []byte("1024"), MsgID: []byte("ID47"),
			SD:   []byte(`[exampleSDID@32473 iut="3" eventSource="Application" eventID="1011"][examplePriority@32473 class="high"]`),
			Text: []byte("this is the message"),
		},
		want: `{"@timestamp":"2003-10-11T22:14:15.003Z",` + common + `,
			"log":{"source":{"address":"192.0.2.7:44214"},"syslog":{"priority":165,"facility":{"code":20,"name":"local4"},
			"severity":{"code":5,"name":"Notice"},"version":"1","hostname":"mymachine.example.com","appname":"evntslog","procid":"1024","msgid":"ID47",
			"structured_data":{"exampleSDID@32473":{"iut":"3","eventSource":"Application","eventID":"1011"},"examplePriority@32473":{"class":"high"}}}},
			"message":"this is the message"}`,
		absent: []string{"error", "tags", "event/original", "event/kind", "log/flags"},
	},
	{
		name: "3164", parse: "auto",
		raw: `<13>Oct 11 22:14:15 test-host su[1024]: this is the message`,
		header: &syslog.Message{
			Priority: 13, HasTime: true, Time: time.Date(2026, 10, 11, 22, 14, 15, 0, time.UTC),
			Hostname: []byte("test-host"), AppName: []byte("su"), ProcID: []byte("1024"), Text: []byte("this is the message"),
		},
		want: `{"@timestamp":"2026-10-11T22:14:15Z",` + common + `,"message":"this is the message",
			"log":{"source":{"address":"192.0.2.7:44214"},"syslog":{"priority":13,"facility":{"code":1,"name":"user-level"},
			"severity":{"code":5,"name":"Notice"},"hostname":"test-host","appname":"su","procid":"1024"}}}`,
		absent: []string{"error", "tags", "log/syslog/version", "log/syslog/msgid", "log/syslog/structured_data"},
	},
	{
		name: "5424 all nil", parse: "auto",
		raw:    `<13>1 - - - - - -`,
		header: &syslog.Message{Priority: 13, Version: []byte("1")},
		want: `{"@timestamp":"2026-11-20T12:00:00Z",` + common + `,
			"log":{"syslog":{"priority":13,"facility":{"code":1,"name":"user-level"},"severity":{"code":5,"name":"Notice"},"version":"1"}}}`,
		absent: []string{
			"message", "error", "tags", "log/syslog/hostname", "log/syslog/appname", "log/syslog/procid", "log/syslog/msgid",
			"log/syslog/structured_data",
		},
	},
	{
		name: "not parsed",
		raw:  `<34>Oct 11 22:14:15 h su: x`,
		want: `{"@timestamp":"2026-11-20T12:00:00Z",` + common + `,"message":"<34>Oct 11 22:14:15 h su: x",
			"log":{"source":{"address":"192.0.2.7:44214"}}}`,
		absent: []string{"log/syslog", "error", "tags"},
	},
	{
		name: "failure", parse: "rfc3164",
		raw: `Not a valid message.`,
		header: &syslog.Message{
			Priority: -1, Text: []byte("Not a valid message."), Err: "no priority, timestamp or tag", Pos: 1,
		},
		want: `{"@timestamp":"2026-11-20T12:00:00Z",` + common + `,"message":"Not a valid message.",
			"error":{"message":"syslog failed to process field \"message\": parsing error at position 1: no priority, timestamp or tag"},
			"log":{"source":{"address":"192.0.2.7:44214"}},"tags":["_syslogparsefailure"]}`,
		absent: []string{"log/syslog"},
	},
	{
		name: "bad timestamp", parse: "auto",
		raw: `<165>1 10-11-2003T22:14:15.003Z mymachine.example.com evntslog - ID47 - hi`,
		header: &syslog.Message{
			Priority: 165, Version: []byte("1"), Hostname: []byte("mymachine.example.com"), AppName: []byte("evntslog"), MsgID: []byte("ID47"),
			Text: []byte("hi"), Err: "invalid timestamp", Pos: 8, Fault: []byte("10-11-2003T22:14:15.003Z"),
		},
		want: `{"@timestamp":"2026-11-20T12:00:00Z",` + common + `,"message":"hi",
			"error":{"message":"syslog failed to process field \"message\": parsing error at position 8: invalid timestamp: 10-11-2003T22:14:15.003Z"},
			"log":{"syslog":{"priority":165,"facility":{"code":20,"name":"local4"},"severity":{"code":5,"name":"Notice"},"version":"1",
			"hostname":"mymachine.example.com","appname":"evntslog","msgid":"ID47"}}}`,
		absent: []string{"log/syslog/procid", "log/syslog/structured_data"},
	},
	{
		name: "Check Point", parse: "auto",
		raw: `<134>1 2018-03-21 17:25:25 MDS-72 CheckPoint 13752 - [action:"Update"; flags:"150784"] `,
		header: &syslog.Message{
			Priority: 134, Version: []byte("1"), HasTime: true, Time: time.Date(2018, 3, 21, 17, 25, 25, 0, time.UTC),
			Hostname: []byte("MDS-72"), AppName: []byte("CheckPoint"), ProcID: []byte("13752"),
			Text: []byte(`[action:"Update"; flags:"150784"]`), Flags: syslog.SDInText,
		},
		want: `{"@timestamp":"2018-03-21T17:25:25Z",` + common + `,"message":"[action:\"Update\"; flags:\"150784\"]",
			"log":{"flags":["structured_data_in_message"],"syslog":{"priority":134,"hostname":"MDS-72","appname":"CheckPoint","procid":"13752"}}}`,
		absent: []string{"error", "log/syslog/msgid", "log/syslog/structured_data"},
	},
	{
		name: "invalid UTF-8", parse: "auto",
		raw: "<13>1 - h a - - - caf\xe9 \xf0\x9f\x98 \xe4\xbd\xa0",
		header: &syslog.Message{
			Priority: 13, Version: []byte("1"), Hostname: []byte("h"), AppName: []byte("a"), Text: []byte("caf\xe9 \xf0\x9f\x98 \xe4\xbd\xa0"),
		},
		want:   `{` + common + `,"message":"caf\ufffd \ufffd\ufffd\ufffd 你","tags":["invalid_utf8"],"log":{"syslog":{"hostname":"h","appname":"a"}}}`,
		absent: []string{"error"},
	},
}

func TestGolden(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			e := encoder(t, options, sender)
			check(t, line(e, framing.Message{Data: []byte(g.raw)}, g.header), g.want, g.absent...)
		})
	}
}

// TestGoldenParsed is TestGolden with the parser that finds the header.
func TestGoldenParsed(t *testing.T) {
	for _, g := range goldens {
		if g.header == nil {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			f, err := syslog.ParseFormat(g.parse)
			if err != nil {
				t.Fatal(err)
			}
			var m syslog.Message
			syslog.NewParser(f, time.UTC).Parse(&m, []byte(g.raw), received)
			e := encoder(t, options, sender)
			check(t, line(e, framing.Message{Data: []byte(g.raw)}, &m), g.want, g.absent...)
		})
	}
}

// TestRecord holds what the goldens don't show.
func TestRecord(t *testing.T) {
	type change = func(*Options)
	tests := []struct {
		name   string
		change change
		source Source
		msg    framing.Message
		header *syslog.Message
		want   string
		absent []string
	}{
		{
			name:   "IPv6 with a zone",
			source: Source{Addr: netip.MustParseAddrPort("[fe80::1%eth\"0]:601")},
			want:   `{"source":{"address":"fe80::1%eth\"0","ip":"fe80::1","port":601},"log":{"source":{"address":"[fe80::1]:601"}}}`,
		},
		{
			name:   "IPv4 in IPv6",
			source: Source{Addr: netip.MustParseAddrPort("[::ffff:192.0.2.7]:601")},
			want:   `{"source":{"address":"192.0.2.7","ip":"192.0.2.7","port":601},"log":{"source":{"address":"192.0.2.7:601"}}}`,
		},
		{
			name:   "local message gets the host of the agent",
			change: func(o *Options) { o.InputType = "unix" },
			source: Source{Path: "/run/spillway/syslog.sock"},
			header: &syslog.Message{Priority: 30, AppName: []byte("sshd"), Text: []byte("hello")},
			want:   `{"input":{"type":"unix"},"log":{"source":{"address":"/run/spillway/syslog.sock"},"syslog":{"hostname":"gw1.example.net","appname":"sshd"}}}`,
			absent: []string{"source"},
		},
		{
			name:   "local message with a host keeps it",
			change: func(o *Options) { o.InputType = "unix" },
			header: &syslog.Message{Priority: 30, Hostname: []byte("vm"), Text: []byte("hello")},
			want:   `{"log":{"syslog":{"hostname":"vm"}}}`,
			absent: []string{"log/source"},
		},
		{
			name:   "local message without a header",
			change: func(o *Options) { o.InputType = "unix" },
			msg:    framing.Message{Data: []byte("plain")},
			header: &syslog.Message{Priority: -1, Text: []byte("plain")},
			want:   `{"message":"plain"}`,
			absent: []string{"log", "source"},
		},
		{
			name:   "remote message without a host gets none",
			header: &syslog.Message{Priority: 30, AppName: []byte("dnsmasq"), Text: []byte("started")},
			want:   `{"log":{"syslog":{"appname":"dnsmasq"}}}`,
			absent: []string{"log/syslog/hostname"},
		},
		{
			name:   "flags without a source",
			msg:    framing.Message{Data: []byte("x"), Flags: framing.Truncated | framing.Multiline},
			want:   `{"log":{"flags":["truncated","multiline"]}}`,
			absent: []string{"log/source", "log/syslog", "error"},
		},
		{
			name:   "all flags, source and header",
			source: sender,
			msg:    framing.Message{Data: []byte("x"), Flags: 0xff, Err: `octet count "x"`},
			header: &syslog.Message{Priority: 0, AppName: []byte("a"), Text: []byte("x")},
			want: `{"log":{"flags":["truncated","unterminated","invalid_framing","octet_counted","multiline","part"],"syslog":{"priority":0,
				"facility":{"code":0,"name":"kernel"},"severity":{"code":0,"name":"Emergency"},"appname":"a"}},
				"error":{"message":"framing: octet count \"x\""}}`,
			absent: []string{"tags"},
		},
		{
			name:   "framing and header both wrong",
			msg:    framing.Message{Data: []byte("x"), Flags: framing.Invalid, Err: "bad octet count"},
			header: &syslog.Message{Priority: -1, Text: []byte("x"), Err: "nothing", Pos: 7},
			want: `{"error":{"message":["framing: bad octet count","syslog failed to process field \"message\": parsing error at position 7: nothing"]},
				"tags":["_syslogparsefailure"]}`,
		},
		{
			name:   "tags in their order",
			change: func(o *Options) { o.Tags = []string{"forwarded", `a"b`}; o.PreserveOriginal = OriginalText },
			msg:    framing.Message{Data: []byte("<13>\xff")},
			header: &syslog.Message{Priority: 13, Text: []byte("\xff"), Err: "e", Pos: 5},
			want: `{"tags":["forwarded","a\"b","preserve_original_event","_syslogparsefailure","invalid_utf8"],
				"event":{"original":"<13>\ufffd"},"message":"\ufffd"}`,
		},
		{
			name:   "original in base64",
			change: func(o *Options) { o.PreserveOriginal = OriginalBase64 },
			msg:    framing.Message{Data: []byte("<13>\xff")},
			header: &syslog.Message{Priority: 13, Text: []byte("ok")},
			want: `{"tags":["preserve_original_event","event_original_base64"],"message":"ok",
				"event":{"original":"` + base64.StdEncoding.EncodeToString([]byte("<13>\xff")) + `","dataset":"tcp.generic"}}`,
		},
		{
			name:   "invalid UTF-8 in the header",
			header: &syslog.Message{Priority: 13, Hostname: []byte("h\xff"), Text: []byte("ok")},
			want:   `{"tags":["invalid_utf8"],"log":{"syslog":{"hostname":"h\ufffd"}}}`,
		},
		{
			name:   "pipeline, short names",
			change: func(o *Options) { o.Pipeline = "nginx"; o.ShortNames = true },
			header: &syslog.Message{Priority: 84, Text: []byte("ok")},
			want: `{"labels":{"pipeline":"nginx"},"log":{"syslog":{"facility":{"code":10,"name":"authpriv"},
				"severity":{"code":4,"name":"warning"}}}}`,
		},
		{
			name:   "nothing optional",
			change: func(o *Options) { *o = Options{Dataset: "d", Agent: "a"} },
			want:   `{"agent":{"name":"a"}}`,
			absent: []string{"host", "input", "labels", "source", "log", "message", "error", "tags"},
		},
		{
			name:   "flags of the header",
			msg:    framing.Message{Flags: framing.Truncated | framing.Counted},
			header: &syslog.Message{Priority: -1, Flags: syslog.OctetCount | syslog.ClockUnset | syslog.YearGuessed | syslog.LeapSecond},
			want:   `{"log":{"flags":["truncated","octet_counted","clock_unset","leap_second"]}}`,
			absent: []string{"tags"},
		},
		{
			name:   "flag without a name",
			msg:    framing.Message{Flags: 0x80},
			header: &syslog.Message{Priority: -1, Flags: syslog.YearGuessed | syslog.Mark},
			want:   `{"tags":["mark"]}`,
			absent: []string{"log"},
		},
		{
			name:   "sequence",
			header: &syslog.Message{Priority: -1, Sequence: []byte("000029")},
			want:   `{"event":{"sequence":29,"dataset":"tcp.generic"}}`,
		},
		{
			name:   "zone that is not known",
			header: &syslog.Message{Priority: -1, Flags: syslog.UnknownZone, Fault: []byte(`I"T`)},
			want:   `{"event":{"timezone":"I\"T","dataset":"tcp.generic"},"log":{"flags":["unknown_zone"]}}`,
		},
		{
			name:   "sequence of zeros",
			header: &syslog.Message{Priority: -1, Sequence: []byte("000")},
			want:   `{"event":{"sequence":0}}`,
		},
		{
			name:   "sequence beyond 64 bits",
			header: &syslog.Message{Priority: -1, Sequence: []byte("1234567890123456789")},
			want:   `{}`,
			absent: []string{"event/sequence"},
		},
		{
			name:   "time in a zone, all digits",
			header: &syslog.Message{Priority: 13, HasTime: true, Time: time.Date(2026, 1, 1, 0, 30, 0, 1, time.FixedZone("", 3600))},
			want:   `{"@timestamp":"2025-12-31T23:30:00.000000001Z","event":{"created":"2026-11-20T12:00:00Z"}}`,
		},
		{
			name:   "time before the year 0",
			header: &syslog.Message{Priority: 13, HasTime: true, Time: time.Date(0, 1, 1, 0, 0, 0, 0, time.FixedZone("", 1))},
			want:   `{"@timestamp":"2026-11-20T12:00:00Z"}`,
		},
		{
			name:   "time after the year 9999",
			header: &syslog.Message{Priority: 13, HasTime: true, Time: time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -1))},
			want:   `{"@timestamp":"2026-11-20T12:00:00Z"}`,
		},
		{
			name:   "first and last second",
			header: &syslog.Message{Priority: 13, HasTime: true, Time: time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)},
			want:   `{"@timestamp":"0000-01-01T00:00:00Z"}`,
		},
		{
			name:   "priority out of range",
			header: &syslog.Message{Priority: 192, AppName: []byte("a")},
			want:   `{"log":{"syslog":{"appname":"a"}}}`,
			absent: []string{"log/syslog/priority"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := options
			if tt.change != nil {
				tt.change(&o)
			}
			check(t, line(encoder(t, o, tt.source), tt.msg, tt.header), tt.want, tt.absent...)
		})
	}
}

func TestStructuredData(t *testing.T) {
	var many, tooMany strings.Builder
	for i := range maxParams - 1 {
		fmt.Fprintf(&many, ` p%d="%d"`, i%(maxParams-2), i)
	}
	for range maxParams + 1 {
		tooMany.WriteString("[a]")
	}
	tests := []struct {
		name, sd string
		want     string // of structured_data; "": none
		tags     []any
		flags    []any // of log.flags
	}{
		{name: "empty element", sd: `[foobar]`, want: `{"foobar":{}}`},
		{name: "escapes", sd: `[id a="x\"y" b="p\\q" c="s\]t" d="\n\x"]`, want: `{"id":{"a":"x\"y","b":"p\\q","c":"s]t","d":"\\n\\x"}}`},
		{name: "control characters", sd: "[id a=\"1\n\x00\t\"]", want: `{"id":{"a":"1\n\u0000\t"}}`},
		{name: "element twice", sd: `[dupe e="1"][id1][dupe class="l"]`, want: `{"dupe":{"e":"1","class":"l"},"id1":{}}`},
		{name: "element and parameter twice", sd: `[d e="2"][x e="3"][d e="1" f="4"]`, want: `{"d":{"e":["2","1"],"f":"4"},"x":{"e":"3"}}`},
		{name: "empty element twice", sd: `[d][d][d a="1"]`, want: `{"d":{"a":"1"}}`},
		{
			name: "parameter twice", sd: `[origin ip="192.0.2.1" software="x" ip="192.0.2.129"]`,
			want: `{"origin":{"ip":["192.0.2.1","192.0.2.129"],"software":"x"}}`,
		},
		{name: "one name in two elements", sd: `[a x="1"][b x="1"]`, want: `{"a":{"x":"1"},"b":{"x":"1"}}`},
		{
			name: "names that replacement makes equal", sd: "[a\xff x\xfe=\"1\"][a\xfe x\xff=\"2\\\"\"]",
			want: `{"a` + "\ufffd" + `":{"x` + "\ufffd" + `":["1","2\""]}}`, tags: []any{"invalid_utf8"},
		},
		{name: "name that replacement makes equal to a valid one", sd: "[a x=\"1\"][\xff][\xef\xbf\xbd]", want: `{"a":{"x":"1"},"` + "\ufffd" + `":{}}`, tags: []any{"invalid_utf8"}},
		{name: "too many", sd: tooMany.String(), flags: []any{"structured_data_in_message"}},
		{name: "too many parameters", sd: `[a` + strings.Repeat(` b="1"`, maxParams) + `]`, flags: []any{"structured_data_in_message"}},
		{name: "much that is not UTF-8", sd: "[a b=\"" + strings.Repeat("\xff", maxScratch) + `"]`, want: `{"a":{"b":"` + strings.Repeat("\ufffd", maxScratch) + `"}}`, tags: []any{"invalid_utf8"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := encoder(t, options, sender)
			m := &syslog.Message{Priority: -1, SD: []byte(tt.sd), Text: []byte("text")}
			l := line(e, framing.Message{}, m)
			got, err := decode(l)
			if err != nil {
				t.Fatalf("%v\n%s", err, l)
			}
			sd := member(got, "log/syslog/structured_data")
			message := "text"
			if tt.want == "" {
				message = tt.sd + " text"
				if sd != nil {
					t.Errorf("structured_data is %v, want none", sd)
				}
			} else {
				var want map[string]any
				if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(sd, any(want)) {
					t.Errorf("structured_data is %v, want %v", sd, want)
				}
			}
			if got["message"] != message {
				t.Errorf("message is %q, want %q", got["message"], message)
			}
			if tags, _ := got["tags"].([]any); !reflect.DeepEqual(tags, tt.tags) {
				t.Errorf("tags are %v, want %v", tags, tt.tags)
			}
			if flags, _ := member(got, "log/flags").([]any); !reflect.DeepEqual(flags, tt.flags) {
				t.Errorf("flags are %v, want %v", flags, tt.flags)
			}
			if cap(e.scratch) > maxScratch {
				t.Errorf("%d bytes are kept for the next record", cap(e.scratch))
			}
			if len(e.params) != 0 || len(e.scratch) != 0 {
				t.Errorf("%d params and %d bytes left behind", len(e.params), len(e.scratch))
			}
			for _, p := range e.params[:cap(e.params)] {
				if p.id != nil || p.name != nil || p.value != nil {
					t.Fatal("the encoder holds on to a message")
				}
			}
		})
	}
	t.Run("as many as allowed", func(t *testing.T) {
		e := encoder(t, options, sender)
		l := line(e, framing.Message{}, &syslog.Message{Priority: -1, SD: []byte("[a" + many.String() + "]")})
		got, err := decode(l)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := member(got, "log/syslog/structured_data/a").(map[string]any)
		if len(a) != maxParams-2 || !reflect.DeepEqual(a["p0"], []any{"0", "510"}) || a["p509"] != "509" {
			t.Errorf("%d parameters, p0 %v, p509 %v", len(a), a["p0"], a["p509"])
		}
	})
}

// TestLines holds whole lines byte by byte: the order of members is part of
// the format, since what compresses well depends on it.
func TestLines(t *testing.T) {
	var b []byte
	e := encoder(t, options, sender)
	for i, g := range goldens {
		b = AppendTail(e.AppendRecord(b, framing.Message{Data: []byte(g.raw)}, g.header, received.Add(time.Duration(i)*1234567*time.Microsecond)), epoch, uint64(i)+1)
	}
	o := options
	o.InputType, o.Dataset, o.Tags, o.Pipeline, o.PreserveOriginal = "unix", "unix.generic", []string{"forwarded"}, "p", OriginalText
	e = encoder(t, o, Source{Path: "/run/spillway/syslog.sock"})
	b = AppendTail(e.AppendRecord(b, framing.Message{Data: []byte("<30>sshd[1]: \"a\"\t\\\x01é\x7f\u2028"), Flags: framing.Truncated, Err: "cut"},
		&syslog.Message{Priority: 30, AppName: []byte("sshd"), ProcID: []byte("1"), Text: []byte("\"a\"\t\\\x01é\x7f\u2028")}, received), epoch, 100)
	e = encoder(t, Options{Dataset: "spillway.gap", Agent: "gw1", Host: "gw1.example.net"}, Source{})
	b = AppendTail(e.AppendGap(b, fullGap, received), epoch, 1501)
	b = AppendTail(e.AppendGap(b, Gap{Reason: "kernel", Input: "udp", Count: 7}, received), epoch, 1<<64-1)

	path := filepath.Join("testdata", "lines.ndjson")
	if *update {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, lines := bytes.SplitAfter(b, []byte("\n")), bytes.SplitAfter(want, []byte("\n"))
	if len(got) != len(lines) {
		t.Fatalf("%d lines, want %d", len(got), len(lines))
	}
	for i := range got {
		if !bytes.Equal(got[i], lines[i]) {
			t.Errorf("line %d is\n%s\nwant\n%s", i+1, got[i], lines[i])
		}
	}
}

var fullGap = Gap{
	Reason: "drop_oldest", Input: "tcp", Count: 500,
	Since: received.Add(-time.Hour), Until: received.Add(-time.Nanosecond),
	Epoch: epoch, First: 1001, Last: 1500,
	SealBefore: [32]byte{0: 0xab, 31: 1}, SealAfter: [32]byte{0: 0xcd, 31: 2},
}

func TestGap(t *testing.T) {
	e := encoder(t, Options{Dataset: "spillway.gap", Agent: "gw1", Tags: []string{"t"}}, sender)
	check(t, AppendTail(e.AppendGap(nil, fullGap, received), epoch, 1501),
		`{"@timestamp":"2026-11-20T12:00:00Z","event":{"kind":"pipeline_error","dataset":"spillway.gap","created":"2026-11-20T12:00:00Z"},
		"message":"gap: 500 records: drop_oldest","tags":["t"],
		"spillway":{"gap":{"reason":"drop_oldest","input":"tcp","count":500,"since":"2026-11-20T11:00:00Z","until":"2026-11-20T11:59:59.999999999Z",
		"epoch":"00c0ffee00c0ffee","first":1001,"last":1500,
		"seal_before":"ab00000000000000000000000000000000000000000000000000000000000001",
		"seal_after":"cd00000000000000000000000000000000000000000000000000000000000002"},"epoch":"00c0ffee00c0ffee","seq":1501}}`,
		"source", "log", "input")
	check(t, AppendTail(e.AppendGap(nil, Gap{Reason: `a"b`}, received), epoch, 1),
		`{"message":"gap: a\"b","spillway":{"gap":{"reason":"a\"b"},"epoch":"00c0ffee00c0ffee","seq":1}}`,
		"spillway/gap/input", "spillway/gap/count", "spillway/gap/since", "spillway/gap/epoch", "spillway/gap/first", "spillway/gap/seal_before")
}

func TestSetSource(t *testing.T) {
	e := encoder(t, options, Source{})
	sources := []Source{
		sender, {}, {Path: "/a"}, {Addr: netip.MustParseAddrPort("[2001:db8::1]:9")}, sender, {Path: "/a"}, {},
	}
	for _, s := range sources {
		e.SetSource(s)
		got := line(e, framing.Message{Data: []byte("x")}, nil)
		want := line(encoder(t, options, s), framing.Message{Data: []byte("x")}, nil)
		if !bytes.Equal(got, want) {
			t.Errorf("%v: %s, want %s", s, got, want)
		}
	}
}

func TestAppendRaw(t *testing.T) {
	for _, tt := range []struct{ name, raw, want string }{
		{"plain", `<13>a \ "b"`, `<13>a \ "b"` + "\n"},
		{"every byte but LF", "\x00\r\xff", "\x00\r\xff\n"},
		{"empty", "", "\n"},
		{"inner line feeds", "a\nb\n\nc", `a\nb\n\nc` + "\n"},
		{"at the ends", "\na\n", `\na\n` + "\n"},
	} {
		if got := string(AppendRaw([]byte("x"), []byte(tt.raw))); got != "x"+tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, "x"+tt.want)
		}
	}
}

func TestAppendTail(t *testing.T) {
	for _, tt := range []struct {
		epoch, seq uint64
		want       string
	}{
		{0, 0, `"epoch":"0000000000000000","seq":0}}` + "\n"},
		{0x0123456789abcdef, 42, `"epoch":"0123456789abcdef","seq":42}}` + "\n"},
		{1<<64 - 1, 1<<64 - 1, `"epoch":"ffffffffffffffff","seq":18446744073709551615}}` + "\n"},
	} {
		if got := string(AppendTail(nil, tt.epoch, tt.seq)); got != tt.want {
			t.Errorf("%x %d: %q, want %q", tt.epoch, tt.seq, got, tt.want)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, d := range []string{"tcp.generic", "a", "vault.audit", "a_b", strings.Repeat("é", 100)} {
		o := options
		o.Dataset = d
		if err := o.Validate(); err != nil {
			t.Errorf("dataset %q: %v", d, err)
		}
	}
	for _, in := range []string{"", "tcp", "udp", "unix", "http"} {
		o := options
		o.InputType = in
		if err := o.Validate(); err != nil {
			t.Errorf("input type %q: %v", in, err)
		}
		got, err := decode(line(NewEncoder(o), framing.Message{}, nil))
		if err != nil {
			t.Fatal(err)
		}
		if v, _ := member(got, "input/type").(string); v != in {
			t.Errorf("input.type is %q, want %q", v, in)
		}
	}
	bad := map[string]func(*Options){
		"101 characters":  func(o *Options) { o.Dataset = strings.Repeat("a", 101) },
		"upper case":      func(o *Options) { o.Dataset = "Tcp" },
		"no dataset":      func(o *Options) { o.Dataset = "" },
		"no agent":        func(o *Options) { o.Agent = "" },
		"input type":      func(o *Options) { o.InputType = "tls" },
		"empty tag":       func(o *Options) { o.Tags = []string{"a", ""} },
		"tag not UTF-8":   func(o *Options) { o.Tags = []string{"\xff"} },
		"host not UTF-8":  func(o *Options) { o.Host = "\xff" },
		"unknown setting": func(o *Options) { o.PreserveOriginal = 3 },
	}
	for _, c := range "-\\/*?\"<>| ,#:\n\x7f\xff" {
		bad[fmt.Sprintf("dataset with %q", c)] = func(o *Options) { o.Dataset = "a" + string(c) }
	}
	for name, change := range bad {
		o := options
		change(&o)
		if err := o.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestOriginalText(t *testing.T) {
	for text, want := range map[string]Original{"false": OriginalNone, "TRUE": OriginalText, "on": OriginalText, "0": OriginalNone, "base64": OriginalBase64} {
		var o Original
		if err := o.UnmarshalText([]byte(text)); err != nil || o != want {
			t.Errorf("%q: %d, %v", text, o, err)
		}
		b, err := want.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		if err := o.UnmarshalText(b); err != nil || o != want {
			t.Errorf("%q: %d, %v", b, o, err)
		}
	}
	var o Original
	if err := o.UnmarshalText([]byte("hex")); err == nil {
		t.Error("hex: accepted")
	}
}

// TestClock compares with the layout that time knows, in an order that makes
// the kept second stale.
func TestClock(t *testing.T) {
	var c clock
	base := time.Date(2026, 12, 31, 23, 59, 58, 0, time.FixedZone("", 5400))
	for _, d := range []time.Duration{0, 1, time.Millisecond, time.Second - 1, time.Second, -1, -time.Hour, 2 * time.Second, 100 * time.Microsecond} {
		for _, tm := range []time.Time{base.Add(d), time.Unix(0, 0).Add(d)} {
			if got, want := string(c.appendTime(nil, tm)), tm.UTC().Format(time.RFC3339Nano); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
	}
	c = clock{}
	if got := string(c.appendTime(nil, time.Unix(0, 0))); got != "1970-01-01T00:00:00Z" {
		t.Errorf("a new clock writes %s for the second 0", got)
	}
}

// TestText compares with encoding/json for every byte at every place of a
// word, alone and beside others.
func TestText(t *testing.T) {
	for length := range 20 {
		for at := range length {
			for c := range 256 {
				s := bytes.Repeat([]byte{'a'}, length)
				s[at] = byte(c)
				checkText(t, s)
				checkText(t, append([]byte("é"), s...)) // valid beyond ASCII, but for c
				if at+1 < length {
					s[at+1] = 0x80
					checkText(t, s)
					s[at+1] = '\\' - 1
					checkText(t, s)
				}
			}
		}
	}
	for _, s := range []string{"", "é", "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc0\x80", "日本語のログ\n日本語", "\ufffd", "\U0010ffff\xf0\x9f\x98"} {
		checkText(t, []byte(s))
		checkText(t, []byte(s+s+"x"+s))
	}
}

func checkText(t *testing.T, s []byte) {
	t.Helper()
	b, valid := appendText([]byte{'"'}, s)
	var got string
	if err := json.Unmarshal(append(b, '"'), &got); err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	if want := string([]rune(string(s))); got != want {
		t.Fatalf("%q became %q", s, got)
	}
	if want := strings.ToValidUTF8(string(s), "") == string(s); valid != want {
		t.Fatalf("%q: valid is %v", s, valid)
	}
}

// TestAllocs holds that a record costs no allocation once the block it goes to
// is there.
func TestAllocs(t *testing.T) {
	e := encoder(t, options, sender)
	other := Source{Addr: netip.MustParseAddrPort("[fe80::1%eth0]:50000")}
	odd := *goldens[0].header
	odd.SD = []byte("[b a=\"\\\"\" a=\"\xff\"][b c=\"\\\\\"]")
	odd.Err, odd.Pos = strings.Repeat("e", 100), 3
	block := make([]byte, 0, 64<<10)
	run := func(name string, f func()) {
		t.Helper()
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	for _, g := range goldens {
		msg := framing.Message{Data: []byte(g.raw)}
		run(g.name, func() { AppendTail(e.AppendRecord(block[:0], msg, g.header, time.Now()), epoch, 1<<40) })
	}
	run("all that can be wrong", func() {
		e.AppendRecord(block[:0], framing.Message{Data: []byte("\xff"), Flags: 0xff, Err: "framing was wrong in a way that takes some words to tell"}, &odd, received)
	})
	run("alternating sources", func() { e.SetSource(sender); e.SetSource(other) })
	run("gap", func() { AppendTail(e.AppendGap(block[:0], fullGap, received), epoch, 1<<40) })
	run("raw", func() { AppendRaw(block[:0], []byte("a\nb")) })
}
