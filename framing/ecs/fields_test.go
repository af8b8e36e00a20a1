package ecs

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"spillway/framing"
	"spillway/framing/syslog"
)

// full is a record in which every member has a value.
func full(t testing.TB, change func(*Options, *framing.Message)) map[string]any {
	t.Helper()
	raw := `<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog 1024 ID47 [a@1 x="1"] hello`
	o := options
	o.Pipeline, o.Tags, o.PreserveOriginal = "p", []string{"forwarded"}, OriginalText
	msg := framing.Message{Data: []byte(raw)}
	if change != nil {
		change(&o, &msg)
	}
	var m syslog.Message
	syslog.NewParser(syslog.Auto, nil).Parse(&m, msg.Data, received)
	got, err := decode(line(encoder(t, o, sender), msg, &m))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestFields goes through the fields of a record one by one: what each is called,
// and of which type its value is. A number is a json.Number, a keyword a string.
func TestFields(t *testing.T) {
	raw := `<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog 1024 ID47 [a@1 x="1"] hello`
	got := full(t, func(_ *Options, msg *framing.Message) { msg.Flags, msg.Err = framing.Truncated, "cut" })
	for path, want := range map[string]any{
		"@timestamp":                       "2003-10-11T22:14:15.003Z",
		"message":                          "hello",
		"event/original":                   raw,
		"event/dataset":                    "tcp.generic",
		"event/created":                    "2026-11-20T12:00:00Z",
		"data_stream/type":                 "logs",
		"data_stream/dataset":              "tcp.generic",
		"data_stream/namespace":            "default",
		"input/type":                       "tcp",
		"source/ip":                        "192.0.2.7",
		"source/port":                      json.Number("44214"),
		"source/address":                   "192.0.2.7",
		"log/source/address":               "192.0.2.7:44214",
		"log/syslog/priority":              json.Number("165"),
		"log/syslog/facility/code":         json.Number("20"),
		"log/syslog/facility/name":         "local4",
		"log/syslog/severity/code":         json.Number("5"),
		"log/syslog/severity/name":         "Notice",
		"log/syslog/hostname":              "mymachine.example.com",
		"log/syslog/appname":               "evntslog",
		"log/syslog/procid":                "1024",
		"log/syslog/msgid":                 "ID47",
		"log/syslog/version":               "1",
		"log/syslog/structured_data/a@1/x": "1",
		"error/message":                    "framing: cut",
		"host/name":                        "gw1.example.net",
		"agent/name":                       "gw1",
		"ecs/version":                      "8.11.0",
		"labels/pipeline":                  "p",
		"spillway/epoch":                   "00c0ffee00c0ffee",
		"spillway/seq":                     json.Number("123"),
	} {
		if v := member(got, path); v != want {
			t.Errorf("%s is %#v, want %#v", path, v, want)
		}
	}
	for path, want := range map[string]string{"log/flags": "[truncated]", "tags": "[forwarded preserve_original_event]"} {
		if v := fmt.Sprint(member(got, path)); v != want {
			t.Errorf("%s is %s, want %s", path, v, want)
		}
	}
	// And no member that is not in one of the lists.
	names := map[string][]string{
		"":            {"@timestamp", "event", "data_stream", "ecs", "input", "host", "agent", "labels", "source", "message", "log", "error", "tags", "spillway"},
		"event":       {"created", "original", "dataset"},
		"data_stream": {"type", "dataset", "namespace"},
		"source":      {"address", "ip", "port"},
		"log":         {"source", "syslog", "flags"},
		"log/syslog":  {"priority", "facility", "severity", "version", "appname", "procid", "msgid", "structured_data", "hostname"},
	}
	for path, want := range names {
		o := got
		if path != "" {
			o, _ = member(got, path).(map[string]any)
		}
		if len(o) != len(want) {
			t.Errorf("%q has %d members, want %d", path, len(o), len(want))
		}
		for _, n := range want {
			if _, ok := o[n]; !ok {
				t.Errorf("%q has no %s", path, n)
			}
		}
	}
}

// TestDataset: event.dataset and data_stream.dataset are one value.
func TestDataset(t *testing.T) {
	for _, d := range []string{"udp.generic", "vault.audit", "é"} {
		got := full(t, func(o *Options, _ *framing.Message) { o.Dataset = d })
		if member(got, "event/dataset") != d || member(got, "data_stream/dataset") != d {
			t.Errorf("dataset %s: %v, %v", d, got["event"], got["data_stream"])
		}
	}
}

// TestPriorities holds all 192 of them, with the names of Elastic and those of
// syslog.conf.
func TestPriorities(t *testing.T) {
	facilities := [2]string{
		"kernel,user-level,mail,system,security/authorization,syslogd,line printer,network news,UUCP,clock,security/authorization,FTP,NTP,log audit,log alert,clock," +
			"local0,local1,local2,local3,local4,local5,local6,local7",
		"kern,user,mail,daemon,auth,syslog,lpr,news,uucp,cron,authpriv,ftp,ntp,audit,alert,clock,local0,local1,local2,local3,local4,local5,local6,local7",
	}
	severities := [2]string{
		"Emergency,Alert,Critical,Error,Warning,Notice,Informational,Debug",
		"emerg,alert,crit,err,warning,notice,info,debug",
	}
	for short := range 2 {
		o := options
		o.ShortNames = short == 1
		e := encoder(t, o, sender)
		f, s := strings.Split(facilities[short], ","), strings.Split(severities[short], ",")
		for pri := range 192 {
			check(t, line(e, framing.Message{}, &syslog.Message{Priority: pri}), fmt.Sprintf(
				`{"log":{"syslog":{"priority":%d,"facility":{"code":%d,"name":%q},"severity":{"code":%d,"name":%q}}}}`, pri, pri/8, f[pri/8], pri%8, s[pri%8]))
		}
		check(t, line(e, framing.Message{}, &syslog.Message{Priority: -1, AppName: []byte("a")}), `{"log":{"syslog":{"appname":"a"}}}`,
			"log/syslog/priority", "log/syslog/facility", "log/syslog/severity")
	}
}

// TestFlagNames: each flag has its word in log.flags, but for two.
func TestFlagNames(t *testing.T) {
	e := encoder(t, options, sender)
	flags := func(f framing.Flags, h syslog.Flags) (words []any, tags []any) {
		got, err := decode(line(e, framing.Message{Data: []byte("x"), Flags: f}, &syslog.Message{Priority: -1, Flags: h}))
		if err != nil {
			t.Fatal(err)
		}
		words, _ = member(got, "log/flags").([]any)
		tags, _ = got["tags"].([]any)
		return words, tags
	}
	for f, want := range map[framing.Flags]string{
		framing.Truncated: "truncated", framing.Unterminated: "unterminated", framing.Invalid: "invalid_framing",
		framing.Counted: "octet_counted", framing.Multiline: "multiline", framing.Part: "part",
	} {
		if got, _ := flags(f, 0); len(got) != 1 || got[0] != want {
			t.Errorf("framing flag %b: %v, want %s", f, got, want)
		}
	}
	for h, want := range map[syslog.Flags]string{
		syslog.ClockUnset: "clock_unset", syslog.ClockLost: "clock_lost", syslog.Uptime: "uptime", syslog.UnknownZone: "unknown_zone",
		syslog.FractionCut: "fraction_cut", syslog.LeapSecond: "leap_second", syslog.SDInText: "structured_data_in_message",
		syslog.DuplicateID: "duplicate_sd_id", syslog.OctetCount: "octet_counted",
	} {
		if got, _ := flags(0, h); len(got) != 1 || got[0] != want {
			t.Errorf("header flag %b: %v, want %s", h, got, want)
		}
	}
	if got, tags := flags(0, syslog.YearGuessed); got != nil || tags != nil {
		t.Errorf("a guessed year: %v, %v", got, tags)
	}
	if got, tags := flags(0, syslog.Mark); got != nil || len(tags) != 1 || tags[0] != "mark" {
		t.Errorf("a mark: %v, %v", got, tags)
	}
	if got, _ := flags(framing.Counted, syslog.OctetCount); len(got) != 1 {
		t.Errorf("an octet count, told twice: %v", got)
	}
}

// TestErrors holds the texts of error.message, as the parser finds the faults:
// users search for these.
func TestErrors(t *testing.T) {
	const syslogFailed = `syslog failed to process field "message": parsing error at position `
	for _, tt := range []struct {
		name, parse, raw, framing string
		want                      any    // string or []any
		message                   string // "-": none
	}{
		{name: "none", parse: "auto", raw: "<13>Oct 11 22:14:15 h a: x", message: "x"},
		{name: "plain text is none", parse: "auto", raw: "Not a valid message.", message: "Not a valid message."},
		{name: "no header", parse: "rfc3164", raw: "Not a valid message.", want: syslogFailed + "1: no priority, timestamp or tag", message: "Not a valid message."},
		{name: "priority", parse: "auto", raw: "<192>Oct 11 22:14:15 h a: x", want: syslogFailed + "2: priority is not <0> to <191>", message: "<192>Oct 11 22:14:15 h a: x"},
		{name: "version", parse: "auto", raw: "<13>A 2003-08-24T05:14:15Z h a - - - m", want: syslogFailed + "5: version is not a number from 1 to 999: A", message: "m"},
		{
			name: "no version", parse: "rfc5424", raw: "<34>Oct 11 22:14:15 mymachine su: x",
			want: syslogFailed + "5: version is not a number from 1 to 999", message: "Oct 11 22:14:15 mymachine su: x",
		},
		{
			name: "timestamp", parse: "auto", raw: "<165>1 10-11-2003T22:14:15.003Z mymachine.example.com evntslog - ID47 - hi",
			want: syslogFailed + "8: invalid timestamp: 10-11-2003T22:14:15.003Z", message: "hi",
		},
		{name: "timestamp of two words", parse: "auto", raw: "<13>1 2018-13-21 17:25:25 h a - - - m", want: syslogFailed + "7: invalid timestamp: 2018-13-21 17:25:25", message: "m"},
		{name: "BSD timestamp", parse: "auto", raw: "<13>Feb 30 10:00:00 h a: x", want: syslogFailed + "5: invalid timestamp: Feb 30 10:00:00", message: "x"},
		{name: "timestamp that needs escapes", parse: "auto", raw: "<13>1 2003-08-24T\"\\\x01 h a p m - x", want: syslogFailed + "7: invalid timestamp: 2003-08-24T\"\\\x01", message: "x"},
		{name: "timestamp behind an empty column", parse: "rfc5424", raw: "<13>1  2003-08-24T h a p m - x", want: syslogFailed + "8: invalid timestamp: 2003-08-24T", message: "x"},
		{name: "empty column", parse: "rfc5424", raw: "<13>1 -  h a p m - x", want: syslogFailed + "9: empty header field", message: "x"},
		{name: "control character", parse: "auto", raw: "<13>1 - h\x01 a p m - x", want: syslogFailed + "10: control character in the header", message: "x"},
		{name: "end", parse: "auto", raw: "<13>1 2003-08-24T05:14:15Z h", want: syslogFailed + "29: input ends before the app-name", message: "<13>1 2003-08-24T05:14:15Z h"},
		{name: "structured data is none", parse: "auto", raw: `<13>1 - h a p m [a="] x`, message: `[a="] x`},
		{name: "framing", parse: "auto", raw: "<13>Oct 11 22:14:15 h a: x", framing: "bad octet count", want: "framing: bad octet count", message: "x"},
		{
			name: "framing and header", parse: "rfc3164", raw: "x", framing: "bad octet count",
			want: []any{"framing: bad octet count", syslogFailed + "1: no priority, timestamp or tag"}, message: "x",
		},
		{name: "empty message", parse: "auto", raw: "<13>1 - - - - - -", message: "-"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := syslog.ParseFormat(tt.parse)
			if err != nil {
				t.Fatal(err)
			}
			var m syslog.Message
			syslog.NewParser(f, nil).Parse(&m, []byte(tt.raw), received)
			got, err := decode(line(encoder(t, options, sender), framing.Message{Data: []byte(tt.raw), Err: tt.framing}, &m))
			if err != nil {
				t.Fatal(err)
			}
			if v := member(got, "error/message"); fmt.Sprintf("%#v", v) != fmt.Sprintf("%#v", tt.want) {
				t.Errorf("error.message is %q, want %q", v, tt.want)
			}
			if v, _ := got["message"].(string); v != strings.TrimPrefix(tt.message, "-") {
				t.Errorf("message is %q, want %q", v, tt.message)
			}
			_, there := got["message"]
			if there == (tt.message == "-") {
				t.Errorf("message is there: %v", there)
			}
			tagged := fmt.Sprint(got["tags"]) == "[_syslogparsefailure]"
			if tagged != (m.Err != "") {
				t.Errorf("tags are %v, the parser said %q", got["tags"], m.Err)
			}
		})
	}
	t.Run("a fault that is not UTF-8", func(t *testing.T) {
		var m syslog.Message
		syslog.NewParser(syslog.Auto, nil).Parse(&m, []byte("<13>1 2003-\xff h a p m - x"), received)
		check(t, line(encoder(t, options, sender), framing.Message{}, &m),
			`{"error":{"message":`+strconv.Quote(syslogFailed+"7: invalid timestamp: 2003-\ufffd")+`},"tags":["_syslogparsefailure","invalid_utf8"]}`)
	})
}

// TestTimestamp: the header's time, else the receive time, and when it was
// received in any case.
func TestTimestamp(t *testing.T) {
	for raw, want := range map[string]string{
		"<13>Oct 11 22:14:15 h a: x":                    "2026-10-11T22:14:15Z",
		"<13>1 2003-10-11T22:14:15.003-07:00 - - - - -": "2003-10-12T05:14:15.003Z",
		"<13>1 - - - - - -":                             "2026-11-20T12:00:00.000000007Z",
		"<13>Feb 30 10:00:00 h a: x":                    "2026-11-20T12:00:00.000000007Z",
		"a: x":                                          "2026-11-20T12:00:00.000000007Z",
	} {
		var m syslog.Message
		at := received.Add(7)
		syslog.NewParser(syslog.Auto, time.UTC).Parse(&m, []byte(raw), at)
		e := encoder(t, options, sender)
		got, err := decode(AppendTail(e.AppendRecord(nil, framing.Message{Data: []byte(raw)}, &m, at), epoch, 1))
		if err != nil {
			t.Fatal(err)
		}
		if got["@timestamp"] != want || member(got, "event/created") != "2026-11-20T12:00:00.000000007Z" {
			t.Errorf("%s: %v, created %v; want %s", raw, got["@timestamp"], member(got, "event/created"), want)
		}
	}
}
