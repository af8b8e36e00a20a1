package framing

import (
	"bufio"
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// toJSONX writes the members of a JSON object as Vault's `format=jsonx` does: sorted, the
// names escaped, the values not.
func toJSONX(t testing.TB, object []byte) []byte {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(object))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return appendMembers(nil, v)
}

func appendMembers(b []byte, members map[string]any) []byte {
	names := make([]string, 0, len(members))
	for name := range members {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		b = appendElement(b, name, members[name])
	}
	return b
}

func appendElement(b []byte, name string, v any) []byte {
	attribute := ""
	if name != "" {
		var escaped strings.Builder
		xml.EscapeText(&escaped, []byte(name))
		attribute = fmt.Sprintf(" name=%c%s%c", '"', escaped.String(), '"')
	}
	switch v := v.(type) {
	case nil:
		return fmt.Appendf(b, "<json:null%s />", attribute)
	case bool:
		return fmt.Appendf(b, "<json:boolean%s>%t</json:boolean>", attribute, v)
	case json.Number:
		return fmt.Appendf(b, "<json:number%s>%s</json:number>", attribute, v)
	case string:
		return fmt.Appendf(b, "<json:string%s>%s</json:string>", attribute, v)
	case []any:
		b = fmt.Appendf(b, "<json:array%s>", attribute)
		for _, item := range v {
			b = appendElement(b, "", item)
		}
		return append(b, "</json:array>"...)
	default:
		b = fmt.Appendf(b, "<json:object%s>", attribute)
		b = appendMembers(b, v.(map[string]any))
		return append(b, "</json:object>"...)
	}
}

// vaultRecords are what a Vault server wrote, as JSONx.
func vaultRecords(t testing.TB) (records [][]byte) {
	t.Helper()
	f, err := os.Open("vault/testdata/vault-1.21.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		records = append(records, toJSONX(t, lines.Bytes()))
	}
	if lines.Err() != nil || len(records) < 30 {
		t.Fatalf("%d records, %v", len(records), lines.Err())
	}
	return records
}

// The records of a real Vault come out as they went in, whatever stands between and in
// front of them, and however they are cut.
func TestVaultJSONX(t *testing.T) {
	records := vaultRecords(t)
	for _, c := range []struct{ name, prefix, between string }{
		{"nothing between them", "", ""},
		{"a prefix", "vault-a: ", ""},
		{"a prefix like a PRI", "<14>vault: ", ""},
		{"a relay's LF", "", "\n"},
		{"a relay's CR LF, and a prefix", "@cee: ", "\r\n"},
		{"NUL", "", "\x00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var in []byte
			var want []string
			for _, r := range records {
				in = append(in, c.prefix...)
				in = append(in, r...)
				in = append(in, c.between...)
				want = append(want, fmt.Sprintf("%q", c.prefix+string(r)))
			}
			readers := map[string]io.Reader{"whole": whole(in), "byte by byte": bytewise(in), "data and error at once": iotest.DataErrReader(bytes.NewReader(in))}
			for range 2 {
				seed := rand.Uint64()
				readers[fmt.Sprint("random reads, seed ", seed)] = random(in, seed)
			}
			for name, r := range readers {
				got := run(t, r, jsonxMode)
				if g := show(got.messages); !slices.Equal(g, want) {
					t.Fatalf("%s: %d records of %d\n%s", name, len(g), len(want), firstDifference(g, want))
				}
				if got.stats != (Stats{}) {
					t.Errorf("%s: %+v", name, got.stats)
				}
			}
		})
	}
}

func firstDifference(got, want []string) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("record %d is\n%s\nwant\n%s", i, got[i], want[i])
		}
	}
	return "the rest is missing"
}

// vaultEntry is a request whose path somebody chose.
func vaultEntry(path string, more ...string) []byte {
	members := map[string]any{
		"auth":    map[string]any{"policy_results": map[string]any{"granting_policies": []any{map[string]any{"name": "dev", "type": "acl"}}}},
		"request": map[string]any{"id": "1", "path": path, "remote_address": "192.0.2.7"},
		"time":    "2026-11-20T12:00:00Z", "type": "request",
	}
	for i := 0; i < len(more); i += 2 {
		members[more[i]] = more[i+1]
	}
	return appendMembers(nil, members)
}

// A value that holds tags may cut its record in pieces, or make it wait for the next one.
// No byte of it is lost, and the records behind it are whole, with and without a prefix.
func TestForgedJSONX(t *testing.T) {
	for _, c := range []struct {
		path   string
		pieces int // that the record comes in
	}{
		{"plain", 1},
		{"a<b>&\"c<]]>\nd", 1},
		{"a lone < and <json: and </json: and <json:object", 1},
		{"<json:object name=\"a\">", 1},
		{"</json:object></json:object></json:array>", 1},
		{"<json:string name=\"type\">request", 1},
		{"</json:string>", 1},
		{"</json:string> and text", 1},
		{"</json:string></json:string>", 1},
		{"x</json:string><json:object name=\"q\">y", 1},
		{"x</json:string><json:object name=\"q\"><json:array><json:object><json:object>y", 1},
		{"x</json:string><json:string name=\"q\">y", 1},
		{"x</json:string><json:string name=\"", 1},
		{"x</json:string><json:number name=\"q\">", 1},
		{"x</json:string><json:null name=\"q\" />", 1},
		{"x</json:string><json:object name=\"q\"></json:object><json:string name=\"r\">y", 1},
		{"x</json:string></json:object><json:string name=\"time\">y", 2},
		{"x</json:string></json:object></json:object><json:string name=\"time\">y", 2},
		{"x</json:string></json:object><json:string name=\"type\">request</json:string><json:object name=\"request\"><json:string name=\"path\">y", 2},
		{"x</json:string><json:string name=\"type\">y", 2},
		{"x</json:string><json:string name=\"type\">y</json:string><json:string name=\"a\">", 2},
	} {
		for _, prefix := range []string{"", "vault: ", "<13>"} {
			before, after := prefix+string(vaultEntry("before")), prefix+string(vaultEntry("after"))
			forged := prefix + string(vaultEntry(c.path))
			in := []byte(before + forged + after + after)
			for name, r := range map[string]io.Reader{"whole": whole(in), "byte by byte": bytewise(in)} {
				got := run(t, r, jsonxMode)
				var all string
				for _, m := range got.messages {
					all += string(m.Data)
					if m.Flags != 0 {
						t.Errorf("%q, prefix %q, %s: flags%s", c.path, prefix, name, flagNames(m.Flags))
					}
				}
				n := len(got.messages)
				if all != string(in) {
					t.Errorf("%q, prefix %q, %s: not all of it came", c.path, prefix, name)
				}
				if n < 3 || string(got.messages[0].Data) != before || string(got.messages[n-2].Data) != after || string(got.messages[n-1].Data) != after {
					t.Errorf("%q, prefix %q, %s: its neighbours suffer:\n%s", c.path, prefix, name, strings.Join(show(got.messages), "\n"))
				}
				if n-3 != c.pieces {
					t.Errorf("%q, prefix %q, %s: %d pieces, want %d\n%s", c.path, prefix, name, n-3, c.pieces, strings.Join(show(got.messages), "\n"))
				}
			}
		}
	}
}

// FuzzJSONX sends records with what the fuzzer thinks of as values. Without a forged end of
// a string in them they come out as they went in; with one nothing is lost and, behind two
// honest records, the next is whole.
func FuzzJSONX(f *testing.F) {
	f.Add("error: 1\n\t* <denied>\n", "secret/<json:object name=\"x\">", "", uint64(1))
	f.Add("", "x</json:string></json:object><json:string name=\"type\">y", "vault: ", uint64(2))
	f.Add("</json:string>", "\x00", "<13>", uint64(3))
	f.Fuzz(func(t *testing.T, fault, path, prefix string, seed uint64) {
		honest := !strings.Contains(fault+path, "</json:")
		if strings.ContainsAny(prefix, "\n\r\x00") || strings.Contains(prefix, "json:") {
			prefix = "vault: "
		}
		after := prefix + string(vaultEntry("after"))
		in := []byte(prefix + string(vaultEntry(path, "error", fault)) + after + after + after)
		for name, r := range map[string]io.Reader{"whole": whole(in), "random": random(in, seed)} {
			got := run(t, r, jsonxMode)
			if err := like(model(in, jsonxMode), got); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := got.complete(in, jsonxMode); err != nil {
				t.Fatalf("%s: %q: %v", name, in, err)
			}
			n := len(got.messages)
			if n < 2 || string(got.messages[n-1].Data) != after {
				t.Fatalf("%s: the last record is not whole: %q", name, in)
			}
			if honest && n != 4 {
				t.Fatalf("%s: %d records, want 4: %q", name, n, in)
			}
		}
	})
}
