package vaultsender

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The rules that loss depends on: a close that the sender can't see costs nothing on
// a unix socket, where the write fails and is repeated on a new connection; and the
// entry that was repeated is whole.
func TestSenderDialsAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	lines := make(chan string, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(lines)
				return
			}
			line, _ := bufio.NewReader(c).ReadString('\n') // one of each connection
			c.Close()
			lines <- line
		}
	}()
	s := Sender{Network: "unix", Address: path}
	if s.Dials() != 0 {
		t.Error("it dials before the first write")
	}
	for _, entry := range []string{"one\n", "two\n", "three\n"} {
		if err := s.Write([]byte(entry)); err != nil {
			t.Fatal(err)
		}
		if got := <-lines; got != entry {
			t.Errorf("read %q, want %q", got, entry)
		}
	}
	if s.Dials() != 3 {
		t.Errorf("%d connections, want 3", s.Dials())
	}
	l.Close()
	if _, more := <-lines; more {
		t.Error("more than was written")
	}
	if err := s.Write([]byte("four\n")); err == nil {
		t.Error("accepted by nobody")
	}
	sent := s.Sent()
	if len(sent) != 4 || sent[2].Err != nil || sent[3].Err == nil || sent[3].Took > time.Minute {
		t.Errorf("sent %+v", sent)
	}
}

// A reader that stops reading costs two deadlines, and then the entry.
func TestSenderGivesUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := Sender{Network: "tcp", Address: l.Addr().String(), Timeout: 50 * time.Millisecond}
	defer s.Close()
	big := bytes.Repeat([]byte("x"), 64<<20)
	err = s.Write(big)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("write to one that does not read: %v", err)
	}
	if sent := s.Sent(); s.Dials() != 2 || sent[0].Took < 100*time.Millisecond || sent[0].Took > time.Minute {
		t.Errorf("%d connections, %v", s.Dials(), sent[0].Took)
	}
}

func TestHTTP(t *testing.T) {
	status := http.StatusNoContent
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method != http.MethodPost || string(body) != "entry\n" || r.Header.Get("Authorization") != "Bearer x" {
			t.Errorf("%s %q %v", r.Method, body, r.Header)
		}
		http.Error(w, "why", status)
	}))
	defer server.Close()
	h := HTTP{URL: server.URL, Header: http.Header{"Authorization": {"Bearer x"}}}
	if err := h.Write(t.Context(), []byte("entry\n")); err != nil {
		t.Error(err)
	}
	status = http.StatusServiceUnavailable
	if err := h.Write(t.Context(), []byte("entry\n")); err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "why") {
		t.Errorf("503: %v", err)
	}
}

// Operations are what Vault writes: two lines of JSON with one id, times in order.
func TestOperations(t *testing.T) {
	o, same := NewOperations(7), NewOperations(7)
	o.Pad, same.Pad = 1000, 1000
	now := time.Date(2026, 11, 20, 12, 0, 0, 123456789, time.UTC)
	ids := map[string]bool{}
	for range 200 {
		op, again := o.Next(now), same.Next(now)
		if !bytes.Equal(op.Request, again.Request) || !bytes.Equal(op.Response, again.Response) {
			t.Fatal("two of one seed differ")
		}
		var times [2]time.Time
		for i, entry := range [][]byte{op.Request, op.Response} {
			var e struct {
				Time    time.Time
				Type    string
				Request struct{ ID string }
			}
			if err := json.Unmarshal(entry, &e); err != nil || bytes.IndexByte(entry, '\n') != len(entry)-1 {
				t.Fatalf("%v: %s", err, entry)
			}
			if e.Request.ID != op.ID || e.Type != []string{"request", "response"}[i] {
				t.Fatalf("entry %d of %s: %s", i, op.ID, entry)
			}
			times[i] = e.Time
		}
		if ids[op.ID] || !times[1].After(times[0]) || len(op.Response) < 1000 {
			t.Fatalf("operation %s: %v", op.ID, times)
		}
		ids[op.ID] = true
	}
}

// The example that the format was measured with.
func TestJSONX(t *testing.T) {
	got, err := JSONX([]byte(`{"type":"request","request":{"id":"cd09","data":{"n":null,"big":12345678901234567890,"a<b":true}},"error":"a<b>&\"c\n","auth":{"policies":["root"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := `<json:object name="auth"><json:array name="policies"><json:string>root</json:string></json:array></json:object>` +
		"<json:string name=\"error\">a<b>&\"c\n</json:string>" +
		`<json:object name="request"><json:object name="data"><json:boolean name="a&lt;b">true</json:boolean><json:number name="big">12345678901234567890</json:number><json:null name="n" /></json:object><json:string name="id">cd09</json:string></json:object>` +
		`<json:string name="type">request</json:string>`
	if string(got) != want {
		t.Errorf("have %s\nwant %s", got, want)
	}
}
