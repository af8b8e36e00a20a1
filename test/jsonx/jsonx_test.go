// Package jsonx holds the splitter to what github.com/jefferai/jsonx writes, the library
// behind Vault's `format=jsonx`.
package jsonx

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"

	"github.com/jefferai/jsonx"

	"spillway/framing"
)

// split cuts a stream into records as an input with FRAMING=jsonx does.
func split(t *testing.T, r io.Reader) (records []string) {
	t.Helper()
	s := framing.NewSplitter(framing.Options{Mode: framing.JSONX})
	keep := func(m framing.Message) {
		if m.Flags != 0 {
			t.Errorf("flags %b of %.60q", m.Flags, m.Data)
		}
		records = append(records, string(m.Data))
	}
	for {
		_, err := s.Fill(r)
		for m, ok := s.Next(); ok; m, ok = s.Next() {
			keep(m)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for m, ok := s.End(); ok; m, ok = s.End() {
		keep(m)
	}
	return records
}

// shuffled returns what is there in reads of 1 to 1,000 bytes.
type shuffled struct {
	b   []byte
	rng *rand.Rand
}

func (s *shuffled) Read(p []byte) (int, error) {
	if len(s.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 1+s.rng.IntN(1000))], s.b)
	s.b = s.b[n:]
	return n, nil
}

func check(t *testing.T, entries [][]byte, prefix, between string) {
	t.Helper()
	var in []byte
	var want []string
	for _, e := range entries {
		record, err := jsonx.EncodeJSONBytes(e)
		if err != nil {
			t.Fatalf("%.100s: %v", e, err)
		}
		in = append(in, prefix...)
		in = append(in, record...)
		in = append(in, between...)
		want = append(want, prefix+string(record))
	}
	seed := rand.Uint64()
	for name, r := range map[string]io.Reader{
		"whole":                           bytes.NewReader(in),
		"byte by byte":                    iotest.OneByteReader(bytes.NewReader(in)),
		fmt.Sprint("random, seed ", seed): &shuffled{in, rand.New(rand.NewPCG(seed, 1))},
	} {
		got := split(t, r)
		if len(got) != len(want) {
			t.Fatalf("%s: %d records, want %d", name, len(got), len(want))
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("%s: record %d is\n%q\nwant\n%q", name, i, got[i], want[i])
			}
		}
	}
}

// The entries of a real Vault, as the library writes them.
func TestVault(t *testing.T) {
	lines, err := os.ReadFile("../../framing/vault/testdata/vault-1.21.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	entries := bytes.Split(bytes.TrimSpace(lines), []byte{'\n'})
	if len(entries) < 30 {
		t.Fatalf("%d entries", len(entries))
	}
	check(t, entries, "", "")
	check(t, entries, "vault-a: ", "")
	check(t, entries, "", "\n")
}

// Entries of every shape, with keys and values that look like tags, quotes, line ends and
// no text at all.
func TestRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	names := []string{"id", "type", "types", "time", "a", "z", "<json:object", `q"uote`, "l\nf", "", "name with spaces", "\x00"}
	const forged = "</json:string> x" // ends a record in a type, and nothing elsewhere
	values := []string{"", "request", "a\nb", "<", ">", `"`, "<json:object name=\"x\">", "<json:string name=\"type\">", "</json:object>", "</json:array>", "</json:strin", "</json:string>", forged, "]]>", "\x00"}
	var value func(deep int) any
	value = func(deep int) any {
		switch n := rng.IntN(8); {
		case n == 0 && deep < 4:
			object := map[string]any{}
			for range rng.IntN(4) {
				name, v := names[rng.IntN(len(names))], value(deep+1)
				if name == "type" && v == forged {
					continue
				}
				object[name] = v
			}
			return object
		case n == 1 && deep < 4:
			list := []any{}
			for range rng.IntN(4) {
				list = append(list, value(deep+1))
			}
			return list
		case n == 2:
			return rng.Int64()
		case n == 3:
			return rng.IntN(2) == 0
		case n == 4:
			return nil
		}
		return values[rng.IntN(len(values))]
	}
	for range 300 {
		var entries [][]byte
		for range 1 + rng.IntN(10) {
			entry := map[string]any{"type": "request"}
			for _, top := range []string{"auth", "request", "response"} {
				if rng.IntN(2) == 0 {
					entry[top] = map[string]any{"data": value(0), "path": value(4)}
				}
			}
			if rng.IntN(2) == 0 {
				entry["error"] = "1 error:\n\t* <denied>\n\n"
			}
			b, err := json.Marshal(entry)
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, b)
		}
		check(t, entries, "", "")
		check(t, entries, "vault: ", "")
	}
}
