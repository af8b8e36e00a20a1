package ecs

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"
	"unicode/utf8"

	"spillway/framing"
	"spillway/framing/syslog"
)

// FuzzRecord holds the promises of the package for any bytes in any field.
func FuzzRecord(f *testing.F) {
	for _, g := range goldens {
		m := g.header
		if m == nil {
			m = &syslog.Message{}
		}
		f.Add([]byte(g.raw), m.Text, m.Hostname, m.AppName, m.SD, "", int64(m.Priority), m.Time.UnixNano(), uint16(0))
	}
	for _, raw := range []string{
		"<13>1 - - - - - [a x=\"1\" x=\"2\"][a y=z][\xff][\xfe y=\"\\\"\"] \xef\xbb\xbftext",
		"<189>0029: foo: *Apr 29 13:58:40.411: %SYS-5-CONFIG_I: Configured",
	} {
		f.Add([]byte(raw), []byte(nil), []byte(nil), []byte(nil), []byte(nil), "", int64(0), int64(0), uint16(0))
	}
	f.Add([]byte("\xff"), []byte("\x00\n\"\\\u2028"), []byte("\xed\xa0\x80"), []byte{}, []byte("[a x=\"1\" x=\"2\"][a][\xff][\xfe y=\"\\\"\"]"), "err\n", int64(191), int64(-1<<62), uint16(0xffff))
	f.Fuzz(func(t *testing.T, raw, text, host, app, sd []byte, fault string, priority, ns int64, bits uint16) {
		o := options
		o.PreserveOriginal = Original(bits >> 8 % 3)
		if bits>>10&1 != 0 {
			o.InputType = "unix"
		}
		if bits>>11&1 != 0 {
			o.Tags = []string{"t"}
		}
		e := NewEncoder(o)
		switch bits >> 12 & 3 {
		case 1:
			cert := &x509.Certificate{
				Raw: raw, Subject: pkix.Name{CommonName: string(host), Organization: []string{string(text)}}, Issuer: pkix.Name{CommonName: string(app)},
				NotBefore: time.Unix(ns>>8, 0), NotAfter: time.Unix(priority>>8, 0), SerialNumber: big.NewInt(ns), DNSNames: []string{string(app), string(text)}, EmailAddresses: []string{string(host)},
			}
			e.SetSource(Source{Addr: sender.Addr, Proxy: sender.Addr, TLS: NewTLS(string(app), fault, cert)})
		case 2:
			e.SetSource(Source{Path: string(app)})
		case 3:
			e.SetSource(Source{Addr: netip.AddrPortFrom(netip.IPv6LinkLocalAllNodes().WithZone(string(host)), 1)})
		}
		// ns*16 reaches beyond the years that can be written.
		m := &syslog.Message{
			Priority: int(priority), HasTime: bits>>14&1 != 0, Time: time.Unix(ns, ns&0xffff),
			Hostname: host, AppName: app, ProcID: app, MsgID: host, Version: app, SD: sd, Text: text, Err: fault, Pos: int(ns), Fault: app, Flags: syslog.Flags(bits),
			Sequence: strconv.AppendUint(nil, uint64(ns), 10),
		}
		msg := framing.Message{Data: raw, Flags: framing.Flags(bits), Err: fault}
		if bits>>15 != 0 {
			m, text = nil, raw
		}
		epoch, seq := uint64(priority), uint64(ns)

		const before = "what was there"
		line := e.AppendRecord([]byte(before), msg, m, received)
		if !bytes.HasPrefix(line, []byte(before)) {
			t.Fatalf("the block was changed: %q", line)
		}
		line = AppendTail(line[len(before):], epoch, seq)
		got, err := decode(line)
		if err != nil {
			t.Fatalf("%v\n%q", err, line)
		}
		if !utf8.Valid(line) {
			t.Fatalf("not UTF-8: %q", line)
		}
		if end := `"epoch":"` + hex16(epoch) + `","seq":` + strconv.FormatUint(seq, 10) + "}}\n"; !bytes.HasSuffix(line, []byte(end)) {
			t.Fatalf("ends in %q, want %q", line[max(0, len(line)-len(end)):], end)
		}
		if member(got, "spillway/epoch") != hex16(epoch) || member(got, "spillway/seq") != json.Number(strconv.FormatUint(seq, 10)) {
			t.Fatalf("epoch and seq are %v", got["spillway"])
		}
		if _, err := time.Parse(time.RFC3339Nano, got["@timestamp"].(string)); err != nil {
			t.Fatal(err)
		}
		message, _ := got["message"].(string)
		if flags, _ := member(got, "log/flags").([]any); m != nil && member(got, "log/syslog/structured_data") == nil && slices.Contains(flags, any("structured_data_in_message")) && m.Flags&syslog.SDInText == 0 {
			text = slices.Concat(sd, []byte(" "), text)
		}
		tags, _ := got["tags"].([]any)
		tagged := slices.Contains(tags, any(TagInvalidUTF8))
		if want := string([]rune(string(text))); message != want {
			t.Fatalf("message is %q, want %q", message, want)
		}
		if !utf8.Valid(text) && !tagged {
			t.Fatalf("%q is not tagged", text)
		}
		if m != nil {
			checkHeader(t, got, m, o)
			checkStructuredData(t, got, sd)
		}
		switch o.PreserveOriginal {
		case OriginalText:
			if len(raw) > 0 && member(got, "event/original") != string([]rune(string(raw))) {
				t.Fatalf("event.original is %q", member(got, "event/original"))
			}
		case OriginalBase64:
			if len(raw) > 0 && member(got, "event/original") != base64.StdEncoding.EncodeToString(raw) {
				t.Fatalf("event.original is %q", member(got, "event/original"))
			}
		}
		if len(e.params) > 0 {
			t.Fatal("parameters left behind")
		}
		if again := AppendTail(e.AppendRecord(nil, msg, m, received), epoch, seq); !bytes.Equal(again, line) {
			t.Fatalf("the second time it is %q, the first time %q", again, line)
		}

		// With the parser in front, raw as it may come from anyone.
		var parsed syslog.Message
		syslog.NewParser(syslog.Format(bits%3), nil).Parse(&parsed, raw, received)
		line = AppendTail(e.AppendRecord(nil, framing.Message{Data: raw}, &parsed, received), epoch, seq)
		if got, err = decode(line); err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		checkHeader(t, got, &parsed, o)
		checkStructuredData(t, got, parsed.SD)
		// 1 KiB is enough for the names of all members and for the words of flags and faults.
		most := len(AppendTail(e.AppendRecord(nil, framing.Message{}, &syslog.Message{Priority: -1}, received), epoch, seq)) + 1024 + 6*len(raw)
		if o.PreserveOriginal != OriginalNone {
			most += 6 * len(raw)
		}
		if len(line) > most {
			t.Fatalf("%d bytes became %d, want at most %d", len(raw), len(line), most)
		}
		if (got["error"] != nil) != (parsed.Err != "") {
			t.Fatalf("%q: error is %v, the parser said %q", raw, got["error"], parsed.Err)
		}

		gap := Gap{Reason: fault, Input: string(app), Count: seq, First: epoch, Since: received}
		if _, err := decode(AppendTail(e.AppendGap(nil, gap, received), epoch, seq)); err != nil {
			t.Fatal(err)
		}
		if l := AppendRaw(nil, raw); bytes.IndexByte(l, '\n') != len(l)-1 || !bytes.Equal(bytes.ReplaceAll(raw, []byte("\n"), []byte(`\n`)), l[:len(l)-1]) {
			t.Fatalf("raw line %q of %q", l, raw)
		}
	})
}

// checkHeader holds that a record says what the header did, and no more.
func checkHeader(t *testing.T, got map[string]any, m *syslog.Message, o Options) {
	t.Helper()
	host := string(m.Hostname)
	if host == "" && o.InputType == "unix" && (m.Priority >= 0 || m.HasTime || len(m.AppName) > 0) {
		host = o.Host
	}
	for path, b := range map[string]string{
		"hostname": host, "appname": string(m.AppName), "procid": string(m.ProcID), "msgid": string(m.MsgID), "version": string(m.Version),
	} {
		if s, _ := member(got, "log/syslog/"+path).(string); s != string([]rune(b)) {
			t.Fatalf("%s is %q, want %q", path, s, b)
		}
	}
	want := any(nil)
	if m.Priority >= 0 && m.Priority <= 191 {
		want = json.Number(strconv.Itoa(m.Priority))
	}
	if p := member(got, "log/syslog/priority"); p != want {
		t.Fatalf("priority is %v, want %v", p, want)
	}
	if m.Err != "" {
		told := `syslog failed to process field "message": parsing error at position ` + strconv.Itoa(m.Pos) + ": " + m.Err
		if len(m.Fault) > 0 {
			told += ": " + string(m.Fault)
		}
		all, several := member(got, "error/message").([]any)
		if !several {
			all = []any{member(got, "error/message")}
		}
		if all[len(all)-1] != string([]rune(told)) {
			t.Fatalf("error.message is %q, want %q", all, told)
		}
	}
}

// checkStructuredData holds that every value of sd is in the record, once, or that
// all of it is in front of the message.
func checkStructuredData(t *testing.T, got map[string]any, sd []byte) {
	t.Helper()
	want, n := map[string]map[string][]string{}, 0
	sd = []byte(string([]rune(string(sd))))
	for {
		id, params, rest, ok := syslog.NextElement(sd)
		if !ok {
			break
		}
		sd, n = rest, n+1
		if want[string(id)] == nil {
			want[string(id)] = map[string][]string{}
		}
		for {
			name, value, rest, ok := syslog.NextParam(params)
			if !ok {
				break
			}
			params, n = rest, n+1
			want[string(id)][string(name)] = append(want[string(id)][string(name)], string(syslog.AppendUnescaped(nil, value)))
		}
	}
	have, _ := member(got, "log/syslog/structured_data").(map[string]any)
	if n > maxParams {
		want = nil
	}
	if len(have) != len(want) {
		t.Fatalf("structured_data is %q, want %q", have, want)
	}
	for id, params := range want {
		element, _ := have[id].(map[string]any)
		if len(element) != len(params) {
			t.Fatalf("element %q is %q, want %q", id, element, params)
		}
		for name, values := range params {
			all, several := element[name].([]any)
			if !several {
				all = []any{element[name]}
			}
			if len(all) != len(values) || several && len(all) == 1 {
				t.Fatalf("parameter %q of %q is %q, want %q", name, id, all, values)
			}
			for i := range values {
				if all[i] != values[i] {
					t.Fatalf("parameter %q of %q is %q, want %q", name, id, all, values)
				}
			}
		}
	}
}

func hex16(n uint64) string {
	const zeros = "0000000000000000"
	s := strconv.FormatUint(n, 16)
	return zeros[len(s):] + s
}
