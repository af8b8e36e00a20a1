// Package e2e drives the real binary with real senders against real servers.
package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// sh runs a shell line, as a person would, and returns what it printed.
func sh(t testing.TB, line string, env ...string) string {
	t.Helper()
	cmd := exec.Command("bash", "-o", "pipefail", "-c", line)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// record is what the tests read of a record.
type record struct {
	Time    string `json:"@timestamp"`
	Message string
	Event   struct{ Dataset, Created, Kind string }
	Input   struct{ Type string }
	Source  struct {
		IP   string
		Port int
	}
	Log struct {
		Syslog struct {
			Priority *int
			Appname  string
			Hostname string
		}
	}
	Error    *struct{ Message string }
	Spillway struct {
		Epoch string
		Seq   uint64
		Gap   *struct {
			Reason, Input      string
			First, Last, Count uint64
		}
	}
}

func parse(t testing.TB, ndjson string) (rs []record) {
	t.Helper()
	for i, line := range strings.Split(strings.TrimSuffix(ndjson, "\n"), "\n") {
		if line == "" {
			continue
		}
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("line %d: %v: %.200q", i+1, err, line)
		}
		rs = append(rs, r)
	}
	return rs
}

// find returns the one record with this message.
func find(t testing.TB, rs []record, message string) record {
	t.Helper()
	var found []record
	for _, r := range rs {
		if r.Message == message {
			found = append(found, r)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d records say %q among %d", len(found), message, len(rs))
	}
	return found[0]
}

// syncBuffer is a bytes.Buffer that a child writes while a test reads.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
