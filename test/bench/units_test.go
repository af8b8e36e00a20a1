package bench

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// What is sent over a connection is in the account exactly once; what comes again
// or from nobody is found.
func TestAccount(t *testing.T) {
	const n = 3000
	p := newPool("mixed", 256<<10) // goes round
	here, there := net.Pipe()
	var sent error
	go func() { defer here.Close(); sent = p.send(here, 1, n, 0) }()
	text, err := io.ReadAll(there)
	if err != nil || sent != nil {
		t.Fatal(err, sent)
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	lines = lines[:len(lines)-1]
	if len(lines) != n {
		t.Fatalf("%d lines of %d", len(lines), n)
	}
	a := newAccount(2, n)
	for _, l := range lines[1:] {
		a.lines(l)
	}
	if a.once.Load() != n-1 || a.twice.Load() != 0 || a.unknown.Load() != 0 {
		t.Fatalf("once %d, twice %d, unknown %d", a.once.Load(), a.twice.Load(), a.unknown.Load())
	}
	a.lines(lines[7])
	a.lines([]byte("no ~00 mark, ~1 another, ~99000000001~ one of nobody"))
	if a.once.Load() != n-1 || a.twice.Load() != 1 || a.unknown.Load() != 1 {
		t.Fatalf("then once %d, twice %d, unknown %d", a.once.Load(), a.twice.Load(), a.unknown.Load())
	}
}

// The speed-of-light program's documents are JSON with the header's parts.
func TestDocument(t *testing.T) {
	var h header
	for _, profile := range []string{"mixed", "rfc5424"} {
		p := newPool(profile, 64<<10)
		for i := range p.len() {
			line := p.data[p.start[i] : p.start[i+1]-1]
			var doc struct {
				At      time.Time `json:"@timestamp"`
				Message string
				Log     struct {
					Syslog struct {
						Hostname, Appname string
						Priority          int
					}
				}
			}
			text := h.appendDocument(nil, line)
			if err := json.Unmarshal(text, &doc); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			header := doc.Log.Syslog
			if !bytes.HasSuffix(line, []byte(doc.Message)) || !strings.Contains(doc.Message, blank) {
				t.Fatalf("message %q of %q", doc.Message, line)
			}
			if doc.At.Format("2006-01") != "2026-11" || header.Hostname == "" || header.Appname == "" || header.Priority == 13 {
				t.Fatalf("%s of %q", text, line)
			}
		}
	}
	p, dst := newPool("mixed", 64<<10), make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { dst = h.appendDocument(dst[:0], p.data[p.start[1]:p.start[2]-1]) }); n != 0 {
		t.Errorf("%v allocations a line", n)
	}
	if got, want := string(appendText(nil, []byte("a\"b\\c\nd\x01efghijklmnop"))), `a\"b\\c\u000ad\u0001efghijklmnop`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
