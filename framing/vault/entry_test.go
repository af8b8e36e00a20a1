package vault

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

const hash = "hmac-sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

// recorded are the entries that a Vault 1.21.0 wrote, one a line.
func recorded(t testing.TB) (lines [][]byte) {
	t.Helper()
	b, err := os.ReadFile("testdata/vault-1.21.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		lines = append(lines, bytes.TrimSuffix(line, []byte("\n")))
	}
	if len(lines) != 33 {
		t.Fatalf("%d lines", len(lines))
	}
	return lines
}

// jsonx writes an entry as format=jsonx does: members sorted by name, values as they
// are.
func jsonx(t testing.TB, entry []byte) []byte {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(entry))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return appendJSONX(nil, v)
}

func appendJSONX(dst []byte, object map[string]any) []byte {
	for _, name := range sorted(object) {
		dst = appendElement(dst, ` name="`+escapeXML(name)+`"`, object[name])
	}
	return dst
}

func appendElement(dst []byte, name string, v any) []byte {
	switch v := v.(type) {
	case nil:
		return fmt.Appendf(dst, "<json:null%s />", name)
	case string:
		return fmt.Appendf(dst, "<json:string%s>%s</json:string>", name, v)
	case json.Number:
		return fmt.Appendf(dst, "<json:number%s>%s</json:number>", name, v)
	case bool:
		return fmt.Appendf(dst, "<json:boolean%s>%t</json:boolean>", name, v)
	case []any:
		dst = fmt.Appendf(dst, "<json:array%s>", name)
		for _, item := range v {
			dst = appendElement(dst, "", item)
		}
		return append(dst, "</json:array>"...)
	case map[string]any:
		dst = fmt.Appendf(dst, "<json:object%s>", name)
		dst = appendJSONX(dst, v)
		return append(dst, "</json:object>"...)
	}
	panic("no value of JSON")
}

// places are where fields stand, typed from what Vault documents.
var places = [fields]string{
	Time: "time", Type: "type", Error: "error", Forwarded: "forwarded", ForwardedFrom: "forwarded_from",
	DisplayName: "auth/display_name", EntityID: "auth/entity_id", Accessor: "auth/accessor", ClientToken: "auth/client_token",
	Policies: "auth/policies", Email: "auth/metadata/email", Allowed: "auth/policy_results/allowed",
	RequestID: "request/id", Operation: "request/operation", Path: "request/path", RemoteAddress: "request/remote_address", RemotePort: "request/remote_port",
	MountType: "request/mount_type", MountPoint: "request/mount_point", NamespacePath: "request/namespace/path", ClientID: "request/client_id",
	CertificateSerial: "request/client_certificate_serial_number", RequestToken: "request/client_token", RequestAccessor: "request/client_token_accessor",
	ResponseToken: "response/auth/client_token", ResponseAccessor: "response/auth/accessor",
	WrapToken: "response/wrap_info/token", WrapAccessor: "response/wrap_info/accessor", WrappedAccessor: "response/wrap_info/wrapped_accessor",
}

// member returns what encoding/json has at a path; there is false without it.
func member(v map[string]any, path string) (value any, there bool) {
	value = v
	for name := range strings.SplitSeq(path, "/") {
		o, ok := value.(map[string]any)
		if !ok {
			return nil, false
		}
		if value, there = o[name]; !there {
			return nil, false
		}
	}
	return value, true
}

// same compares the fields of e with what encoding/json makes of its body.
func same(e *Entry, v map[string]any) error {
	for f := range Field(fields) {
		want, there := member(v, places[f])
		got := e.Get(f)
		if there != (got.Kind != None) {
			return fmt.Errorf("%s: there %t, kind %d", places[f], there, got.Kind)
		}
		switch want := want.(type) {
		case string:
			if text := string(got.AppendText(nil)); got.Kind != String || text != want || !got.Is(want) {
				return fmt.Errorf("%s is %q of kind %d, want %q", places[f], text, got.Kind, want)
			}
		case json.Number:
			if got.Kind != Number || string(got.Raw) != want.String() {
				return fmt.Errorf("%s is %q of kind %d, want %s", places[f], got.Raw, got.Kind, want)
			}
		case bool:
			if got.Kind != Bool || string(got.Raw) != fmt.Sprint(want) {
				return fmt.Errorf("%s is %q of kind %d, want %t", places[f], got.Raw, got.Kind, want)
			}
		case []any:
			if got.Kind != Array {
				return fmt.Errorf("%s is of kind %d, want an array", places[f], got.Kind)
			}
			for _, w := range want {
				item := got.Item()
				if s, ok := w.(string); item.Kind == None || ok != (item.Kind == String) || ok && !item.Is(s) {
					return fmt.Errorf("%s has %q of kind %d, want %v", places[f], item.Raw, item.Kind, w)
				}
			}
			if item := got.Item(); item.Kind != None {
				return fmt.Errorf("%s has one more, %q", places[f], item.Raw)
			}
		case map[string]any:
			if got.Kind != Object {
				return fmt.Errorf("%s is of kind %d, want an object", places[f], got.Kind)
			}
		}
	}
	return nil
}

func decode(t testing.TB, b []byte) map[string]any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestRecorded reads what a real Vault wrote, as it is, with a prefix and as jsonx.
func TestRecorded(t *testing.T) {
	for i, line := range recorded(t) {
		v := decode(t, line)
		for name, data := range map[string][]byte{
			"json": line, "prefix": append([]byte("vault-a: "), line...), "jsonx": jsonx(t, line), "prefix and jsonx": append([]byte("vault-a: "), jsonx(t, line)...),
		} {
			var e Entry
			Parse(&e, data, nil)
			if e.Err != "" {
				t.Fatalf("%d, %s: %s at %d", i, name, e.Err, e.Pos)
			}
			if strings.Contains(name, "prefix") != (string(e.Prefix) == "vault-a: ") || len(e.Prefix)+len(e.Body) != len(data) || (e.Format == JSONX) != strings.Contains(name, "jsonx") {
				t.Errorf("%d, %s: prefix %q, format %d", i, name, e.Prefix, e.Format)
			}
			if err := same(&e, v); err != nil {
				t.Errorf("%d, %s: %v", i, name, err)
			}
			if probe := i == 0; e.IsProbe() != probe {
				t.Errorf("%d, %s: probe %t", i, name, !probe)
			}
			if e.RawToken() || e.RawAccessor() {
				t.Errorf("%d, %s: a token that is not hashed", i, name)
			}
			if _, ok := e.When(); !ok {
				t.Errorf("%d, %s: no time", i, name)
			}
		}
	}
}

// TestTorn cuts an entry at every byte: nothing but the whole is one, and each part is
// known as the beginning of one.
func TestTorn(t *testing.T) {
	line := recorded(t)[1]
	odd := []byte(`{"a":[-0.5e+7,{},[],"\u00e9\"é",null,true,false],"type":"request"}`)
	for name, whole := range map[string][]byte{
		"json": line, "odd": odd, "jsonx": jsonx(t, line), "odd jsonx": jsonx(t, odd), "prefix": append([]byte("p é: "), odd...),
	} {
		var e Entry
		for n := range whole {
			Parse(&e, whole[:n], nil)
			if e.Err == "" || !e.Torn || e.Body != nil {
				t.Fatalf("%s, %q: %q at %d, torn %t", name, whole[:n], e.Err, e.Pos, e.Torn)
			}
		}
		if Parse(&e, whole, nil); e.Err != "" {
			t.Fatalf("%s: %s at %d", name, e.Err, e.Pos)
		}
	}
}

func TestParse(t *testing.T) {
	deep := func(n int) string { return `{"x":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + "}" }
	deepX := func(n int) string {
		return strings.Repeat("<json:array>", n-1) + strings.Repeat("</json:array>", n-1) + `<json:string name="type">x</json:string>`
	}
	for _, c := range []struct {
		name, data, prefix string
		err                string
		pos                int
		torn               bool
		gotPrefix, body    string
	}{
		{name: "white space around", data: " {\"type\":\"request\"} \r\n", gotPrefix: " ", body: `{"type":"request"}`},
		{name: "empty object", data: `{}`, body: `{}`},
		{name: "cee cookie", data: `@cee: {"a":1}`, gotPrefix: "@cee: ", body: `{"a":1}`},
		{name: "prefix with a brace", data: `{v} {"a":1}`, prefix: "{v} ", gotPrefix: "{v} ", body: `{"a":1}`},
		{name: "prefix with a brace that is not known", data: `{v} {"a":1}`, err: "no name of a member", pos: 2},
		{name: "prefix that is absent", data: `b{"a":1}`, prefix: "a", gotPrefix: "b", body: `{"a":1}`},
		{name: "prefix alone", data: `aa`, prefix: "aaa", err: errTorn, pos: 3, torn: true},
		{name: "longest prefix", data: strings.Repeat("x", MaxPrefix) + "{}", gotPrefix: strings.Repeat("x", MaxPrefix), body: "{}"},
		{name: "too long a prefix", data: strings.Repeat("x", MaxPrefix+1) + "{}", err: errBegin, pos: 1},
		{name: "invalid UTF-8 in the prefix", data: "\xff{}", gotPrefix: "\xff", body: "{}"},
		{name: "text", data: `<134>1 - - - - - - text`, err: errBegin, pos: 1, torn: true},
		{name: "two entries", data: `{"a":1}{"a":2}`, err: "text behind the end of the entry", pos: 8},
		{name: "comma at the end", data: `{"a":1,}`, err: "no name of a member", pos: 8},
		{name: "comma at the end of an array", data: `{"a":[1,]}`, err: "no value of JSON", pos: 9},
		{name: "no comma", data: `{"a":1 "b":2}`, err: "neither , nor } behind a member", pos: 8},
		{name: "wrong bracket", data: `{"a":[1}`, err: "neither , nor ] behind an element", pos: 8},
		{name: "wrong brace", data: `{"x":{"a":1]`, err: "neither , nor } behind a member", pos: 12},
		{name: "no colon", data: `{"a" 1}`, err: "no colon behind the name of a member", pos: 6},
		{name: "leading zero", data: `{"a":01}`, err: "neither , nor } behind a member", pos: 7},
		{name: "plus", data: `{"a":+1}`, err: "no value of JSON", pos: 6},
		{name: "number without digits", data: `{"a":-}`, err: "no digit of a number", pos: 7},
		{name: "fraction without digits", data: `{"a":1.}`, err: "no digit of a number", pos: 8},
		{name: "exponent without digits", data: `{"a":1e+}`, err: "no digit of a number", pos: 9},
		{name: "not a number", data: `{"a":NaN}`, err: "no value of JSON", pos: 6},
		{name: "half a word", data: `{"a":tru}`, err: "no value of JSON", pos: 9},
		{name: "single quotes", data: `{'a':1}`, err: "no name of a member", pos: 2},
		{name: "control character", data: "{\"a\":\"x\ny\"}", err: "a control character in a string", pos: 8},
		{name: "control character in a long string", data: "{\"a\":\"0123456789\x1f\"}", err: "a control character in a string", pos: 17},
		{name: "NUL", data: "{\"a\":\x00}", err: "no value of JSON", pos: 6},
		{name: "unknown escape", data: `{"a":"\x"}`, err: "no escape of JSON in a string", pos: 8},
		{name: "short escape", data: `{"a":"\u12x4"}`, err: "no hex digit of an escape in a string", pos: 11},
		{name: "invalid UTF-8", data: "{\"a\":\"\xff\"}", err: "invalid UTF-8", pos: 7},
		{name: "invalid UTF-8 before another fault", data: "{\"a\":\"\xff\",}", err: "invalid UTF-8", pos: 7},
		{name: "invalid UTF-8 in a torn entry", data: "{\"a\":\"\xff", err: "invalid UTF-8", pos: 7},
		{name: "torn in a character", data: "{\"a\":\"\xc3", err: errTorn, pos: 8, torn: true},
		{name: "half a surrogate pair", data: `{"error":"\ud800"}`, body: `{"error":"\ud800"}`},
		{name: "deepest", data: deep(MaxDepth), body: deep(MaxDepth)},
		{name: "too deep", data: deep(MaxDepth + 1), err: errDepth, pos: 5 + MaxDepth},
		{name: "same field twice", data: `{"request":{"id":"a","id":"b"}}`, err: errTwice, pos: 22},
		{name: "same field twice, escaped", data: `{"time":"a","\u0074ime":"b"}`, err: errTwice, pos: 13},
		{name: "same object twice", data: `{"auth":{},"auth":{}}`, err: errTwice, pos: 12},
		{name: "array at the top", data: `[{"a":1}]`, err: "text behind the end of the entry", pos: 9},
		{name: "jsonx", data: `v <json:null name="error" /><json:string name="type">a<b</json:string>`, gotPrefix: "v ", body: `<json:null name="error" /><json:string name="type">a<b</json:string>`},
		{name: "jsonx type inside", data: `<json:object name="request"><json:string name="type">x</json:string></json:object>`, err: errTorn, pos: 83, torn: true},
		{name: "jsonx with more behind it", data: `<json:string name="type">x</json:string><json:string name="a">x</json:string>`, err: "text behind the end of the entry", pos: 41},
		{name: "jsonx of no kind", data: `<json:date name="a">x</json:date>`, err: "no kind of a jsonx element", pos: 1},
		{name: "jsonx without an end of a tag", data: `<json:string nam="a">x</json:string>`, err: "no end of a jsonx tag", pos: 13},
		{name: "jsonx with text between", data: `<json:null name="a" /> x`, err: "no element of jsonx", pos: 23},
		{name: "jsonx closed by another", data: `<json:array name="a"></json:object>`, err: "no element of jsonx", pos: 22},
		{name: "jsonx same twice", data: `<json:string name="time">x</json:string><json:string name="time">x</json:string>`, err: errTwice, pos: 41},
		{name: "jsonx deepest", data: deepX(MaxDepth), body: deepX(MaxDepth)},
		{name: "jsonx too deep", data: deepX(MaxDepth + 1), err: errDepth, pos: 12*MaxDepth + 1},
	} {
		var e Entry
		Parse(&e, []byte(c.data), []byte(c.prefix))
		if e.Err != c.err || e.Pos != c.pos || e.Torn != c.torn || string(e.Body) != c.body || c.err == "" && string(e.Prefix) != c.gotPrefix {
			t.Errorf("%s: %q at %d, torn %t, prefix %q, body %q", c.name, e.Err, e.Pos, e.Torn, e.Prefix, e.Body)
		}
		if want := c.prefix != "" && !strings.HasPrefix(c.data, c.prefix); e.NoPrefix != want {
			t.Errorf("%s: no prefix %t", c.name, e.NoPrefix)
		}
	}
}

func TestSpaced(t *testing.T) {
	for data, want := range map[string]bool{
		"{\"a\":1}": false, "{ \"a\": 1 }\r\n": false, "\n{\"a\":1}": false, "{\"a\":\n1}": true, "{\t\"request\":{}}": true, "{\"a\":{\"b\":[1,\r2]}}": true,
	} {
		var e Entry
		if Parse(&e, []byte(data), nil); e.Err != "" || e.Spaced != want {
			t.Errorf("%q: %q, spaced %t", data, e.Err, e.Spaced)
		}
	}
}

func TestRaw(t *testing.T) {
	for _, c := range []struct {
		data            string
		token, accessor bool
	}{
		{`{"auth":{"client_token":"` + hash + `","accessor":"` + hash + `"}}`, false, false},
		{`{"auth":{"client_token":"","accessor":""}}`, false, false},
		{`{"auth":{"client_token":null}}`, false, false},
		{`{"auth":{"client_token":"hvs.CAESI"}}`, true, false},
		{`{"request":{"client_token":"` + hash[:len(hash)-1] + `"}}`, true, false},
		{`{"request":{"client_token":"` + hash[:len(hash)-1] + `g"}}`, true, false},
		{`{"response":{"auth":{"client_token":"s.x"}}}`, true, false},
		{`{"response":{"wrap_info":{"token":"s.x"}}}`, true, false},
		{`{"response":{"data":{"client_token":"s.x"}}}`, false, false},
		{`{"auth":{"accessor":"x"}}`, false, true},
		{`{"request":{"client_token_accessor":"x"}}`, false, true},
		{`{"response":{"auth":{"accessor":"x"}}}`, false, true},
		{`{"response":{"wrap_info":{"accessor":"x"}}}`, false, true},
		{`{"response":{"wrap_info":{"wrapped_accessor":"x"}}}`, false, true},
	} {
		var e Entry
		for _, data := range [][]byte{[]byte(c.data), append(jsonx(t, []byte(c.data)), `<json:string name="type">x</json:string>`...)} {
			if Parse(&e, data, nil); e.Err != "" || e.RawToken() != c.token || e.RawAccessor() != c.accessor {
				t.Errorf("%s: %q, token %t, accessor %t", data, e.Err, e.RawToken(), e.RawAccessor())
			}
		}
	}
}

func TestWhen(t *testing.T) {
	for text, want := range map[string]string{
		"2026-11-20T12:00:00.356625452Z":     "2026-11-20T12:00:00.356625452Z",
		"2026-11-20T12:00:00Z":               "2026-11-20T12:00:00Z",
		"2026-11-20t12:00:00z":               "2026-11-20T12:00:00Z",
		"2026-11-20 12:00:00Z":               "2026-11-20T12:00:00Z",
		"2026-11-20T12:00:00.1+01:30":        "2026-11-20T10:30:00.1Z",
		"2026-11-20T23:30:00-02:00":          "2026-11-21T01:30:00Z",
		"2026-11-20T12:00:00.1234567891234Z": "2026-11-20T12:00:00.123456789Z",
		"2024-02-29T00:00:00Z":               "2024-02-29T00:00:00Z",
		"2026-12-31T23:59:60Z":               "2027-01-01T00:00:00Z",
		`2026-11-20T12:00:00\u002b00:00`:     "2026-11-20T12:00:00Z",
		"2026-02-29T00:00:00Z":               "",
		"2026-13-01T00:00:00Z":               "",
		"2026-11-20T24:00:00Z":               "",
		"2026-11-20T12:00:00":                "",
		"2026-11-20T12:00:00.Z":              "",
		"2026-11-20T12:00:00.5":              "",
		"2026-11-20T12:00:00+24:00":          "",
		"2026-11-20T12:00:00+0100":           "",
		"2026-11-20T12:00:00Zx":              "",
		"yesterday":                          "",
		"":                                   "",
		"-026-11-20T12:00:00Z":               "",
		strings.Repeat("2", 70):              "",
		hash:                                 "",
	} {
		var e Entry
		Parse(&e, fmt.Appendf(nil, `{"time":"%s"}`, text), nil)
		got, ok := e.When()
		if ok != (want != "") || ok && got.Format(time.RFC3339Nano) != want {
			t.Errorf("%s: %v, %t", text, got, ok)
		}
	}
	var e Entry
	for _, data := range []string{`{}`, `{"time":5}`, `{"time":null}`} {
		Parse(&e, []byte(data), nil)
		if _, ok := e.When(); ok {
			t.Errorf("%s has a time", data)
		}
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	line := recorded(t)[3]
	x := jsonx(t, line)
	var e Entry
	if n := testing.AllocsPerRun(100, func() {
		Parse(&e, line, nil)
		e.When()
		e.IsProbe()
		e.RawToken()
		Parse(&e, x, nil)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzEntry holds Parse against encoding/json.
func FuzzEntry(f *testing.F) {
	for i, line := range recorded(f) {
		f.Add(line)
		f.Add(line[:len(line)*i/40])
	}
	for _, s := range []string{
		`{"type":"request","request":{"id":"\u0061\ud83d\ude00\ud800","namespace":{"path":"n/"},"remote_port":1e5},"auth":{"policies":["a",1,null,["b"],{"c":"d"}],"metadata":{"email":"a@example.org"}}}`,
		"{\"a\":[1,-2.5e-7,true,false,null,{}],\n\"error\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"}", `{"\u0074ime":"x"}`, `{"request":5,"auth":[],"response":null}`,
		`p: {"forwarded":true,"forwarded_from":"h","response":{"wrap_info":{"token":"t","accessor":"a"},"auth":{"client_token":"c"}}}`, "{\"a\":\"\xff\"}", "{\"a\":\"\xc3",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var e Entry
		Parse(&e, data, nil)
		if e.Err != "" && (e.Pos < 1 || e.Pos > len(data)+1 || e.Body != nil) {
			t.Fatalf("%q at %d of %d, body %q", e.Err, e.Pos, len(data), e.Body)
		}
		start, _ := begin(data)
		if start < 0 || e.Format == JSONX {
			return
		}
		body := data[start:]
		valid := json.Valid(body) && utf8.Valid(body)
		if valid != (e.Err == "") {
			// There are bounds of our own.
			if !valid || e.Err != errDepth && e.Err != errTwice {
				t.Fatalf("valid %t, but %q at %d", valid, e.Err, e.Pos)
			}
			return
		}
		if !valid {
			if e.Torn && e.Pos != len(data)+1 {
				t.Fatalf("torn at %d of %d", e.Pos, len(data))
			}
			return
		}
		if string(e.Body) != strings.TrimRight(string(body), " \t\r\n") {
			t.Fatalf("body %q", e.Body)
		}
		if want := bytes.ContainsAny(e.Body, "\r\n\t"); e.Spaced != want {
			t.Fatalf("spaced %t", e.Spaced)
		}
		if twice(t, body) {
			return // encoding/json takes the last, and merges objects
		}
		if err := same(&e, decode(t, body)); err != nil {
			t.Fatal(err)
		}
		for n := range min(len(e.Body), 200) {
			var part Entry
			if Parse(&part, body[:n], nil); n > 0 && (part.Err == "" || !part.Torn) {
				t.Fatalf("%q: %q at %d, torn %t", body[:n], part.Err, part.Pos, part.Torn)
			}
		}
	})
}

// twice reports whether an object of v has two members of one name.
func twice(t *testing.T, v []byte) bool {
	d := json.NewDecoder(bytes.NewReader(v))
	d.UseNumber()
	var names []map[string]bool // nil: an array
	name := false
	for {
		tok, err := d.Token()
		if err == io.EOF {
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		inObject := len(names) > 0 && names[len(names)-1] != nil
		switch tok := tok.(type) {
		case json.Delim:
			switch tok {
			case '{':
				names = append(names, map[string]bool{})
				name = true
				continue
			case '[':
				names = append(names, nil)
				continue
			}
			names = names[:len(names)-1]
			name = true
			continue
		case string:
			if inObject && name {
				if names[len(names)-1][tok] {
					return true
				}
				names[len(names)-1][tok] = true
				name = false
				continue
			}
		}
		name = true
	}
}

// FuzzJSONXEntry writes what JSON says as jsonx, and reads it again; and it reads
// anything.
func FuzzJSONXEntry(f *testing.F) {
	for _, line := range recorded(f) {
		f.Add(line)
		f.Add(jsonx(f, line))
	}
	for _, s := range []string{
		`{"error":"a<b>&\"c\n]]>","type":"response","request":{"data":{"big":12345678901234567890,"n":null,"a<b\"&":[[],{},[1,[true]]]}}}`,
		`<json:object name="request"><json:object name="data"></json:object></json:object><json:string name="type">x</json:string>`,
		`<json:array name="a"><json:null /></json:array><json:string name="type">x</json:string>`, `<json:`, `p<json:obj`, `<json:string name="type">`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var e Entry
		if Parse(&e, data, nil); e.Format == JSONX {
			if e.Err != "" && (e.Pos < 1 || e.Pos > len(data)+1 || e.Torn && e.Pos != len(data)+1) {
				t.Fatalf("%q at %d of %d", e.Err, e.Pos, len(data))
			}
			if e.Err == "" {
				for n := len(e.Prefix) + len(opening); n < min(len(e.Prefix)+len(e.Body), 400); n++ {
					var part Entry
					if Parse(&part, data[:n], nil); part.Err == "" || !part.Torn {
						t.Fatalf("%q: %q at %d, torn %t", data[:n], part.Err, part.Pos, part.Torn)
					}
				}
			}
			return
		}
		if e.Err != "" || bytes.Contains(data, []byte("json:")) || twice(t, e.Body) {
			return // a value can hold what ends it
		}
		v := decode(t, e.Body)
		if depth(v) > MaxDepth {
			return
		}
		if _, ok := v["type"]; !ok {
			v["type"] = "request"
		}
		for name := range v {
			if name > "type" {
				delete(v, name) // Vault has none, and what is behind type is not part of it
			}
		}
		x := append([]byte(e.Prefix), appendJSONX(nil, v)...)
		if begin, _ := begin(x); begin != len(e.Prefix) {
			return
		}
		var again Entry
		if Parse(&again, x, nil); again.Err != "" || again.Format != JSONX {
			t.Fatalf("%q: %q at %d", x, again.Err, again.Pos)
		}
		if err := same(&again, v); err != nil {
			t.Fatalf("%q: %v", x, err)
		}
	})
}

var update = flag.Bool("update", false, "write testdata anew")

// TestJSONXStream makes the stream that the recorded entries are in jsonx, which is
// testdata of others too.
func TestJSONXStream(t *testing.T) {
	var stream []byte
	for _, line := range recorded(t) {
		stream = append(stream, jsonx(t, line)...)
	}
	const file = "testdata/vault-1.21.jsonx"
	if *update {
		if err := os.WriteFile(file, stream, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || !bytes.Equal(stream, want) {
		t.Errorf("%s differs: %v", file, err)
	}
}
