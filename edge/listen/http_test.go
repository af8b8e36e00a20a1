package listen

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"spillway/framing"
)

// storer makes sinks that keep what was stored.
type storer struct {
	*recorder
	full  atomic.Bool
	never atomic.Bool // what is handed over does not become durable
	fails error       // what it becomes instead; nil: durable
	panic atomic.Bool
	after int // Store has no room from this call on; 0: always
	calls atomic.Int64

	opened, closed atomic.Int64 // sinks
}

type storeSink struct {
	recSink
	s *storer
}

func newStorer() *storer { return &storer{recorder: newRecorder()} }

func (s *storer) open() Storer { s.opened.Add(1); return &storeSink{recSink{r: s.recorder}, s} }

func (s *storeSink) Close() { s.s.closed.Add(1) }

func (s *storeSink) Message(m framing.Message, from Sender, now time.Time) {
	if s.s.panic.Load() {
		panic("a defect")
	}
	s.recSink.Message(m, from, now)
}

func (s *storeSink) Store(ctx context.Context) (<-chan error, error) {
	if n := s.s.calls.Add(1); s.s.full.Load() || s.s.after > 0 && n >= int64(s.s.after) {
		s.held = nil
		return nil, ErrFull
	}
	durable := make(chan error, 1)
	if !s.s.never.Load() {
		if err := s.Flush(ctx); err != nil {
			return nil, err
		}
		durable <- s.s.fails
	}
	s.held = nil
	return durable, nil
}

// serveHTTP is serve of requests. url is where they go.
func serveHTTP(t *testing.T, o HTTPOptions, edit func(*HTTPServer)) (h *HTTPServer, url string, stop func()) {
	t.Helper()
	if o.Address == "" {
		o.Address = "127.0.0.1:0"
	}
	if o.Log == nil {
		o.Log = quietLog
	}
	o.Name, o.Variable = "hook", "SPILLWAY_INPUT_HOOK_"
	h, err := ListenHTTP(o)
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(h)
	}
	ctx, cancel := context.WithCancel(context.Background())
	hard, now := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { h.Serve(ctx, hard); close(done) }()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); <-done; now() }) }
	t.Cleanup(func() { now(); stop() })
	scheme := "http://"
	if o.TLS != nil {
		scheme = "https://"
	}
	return h, scheme + h.Addrs()[0].String() + o.Path, stop
}

// client is a client with connections of its own.
func client(t *testing.T, c *tls.Config) *http.Client {
	tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: c != nil}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// do sends one request and returns status and body of the answer.
func do(t *testing.T, c *http.Client, method, url string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	a, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a, string(text)
}

// pack is text as gzip.
func pack(text string) string {
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	io.WriteString(z, text)
	z.Close()
	return b.String()
}

// counted are the counters that are not 0.
func (s *HTTPStats) counted() string {
	var b strings.Builder
	sum := int64(0)
	for _, c := range []struct {
		name string
		n    *atomic.Int64
	}{{"stored", &s.Stored}, {"full", &s.Full}, {"late", &s.Late}, {"stopped", &s.Stopped}, {"too large", &s.TooLarge}, {"unauthorized", &s.Unauthorized},
		{"slow", &s.Slow}, {"invalid", &s.Invalid}, {"gone", &s.Gone}, {"panics", &s.Panics}} {
		if n := c.n.Load(); n > 0 {
			fmt.Fprintf(&b, "%s %d ", c.name, n)
			sum += n
		}
	}
	if all := s.Requests.Load(); all != sum {
		fmt.Fprintf(&b, "of %d ", all)
	}
	return strings.TrimSpace(b.String())
}

func TestHTTPRequests(t *testing.T) {
	const ndjson, limit = "application/x-ndjson", 1000
	exact := strings.Repeat("x", limit)
	for _, c := range []struct {
		name   string
		method string // POST
		path   string // /audit
		body   string
		header []string
		status int // 204
		want   []string
		count  string // stored 1
		says   string
	}{
		{name: "one message", body: `{"a":1}`, want: []string{`{"a":1}`}},
		{name: "put", method: "PUT", body: "x", want: []string{"x"}},
		{name: "its newline is not part of it", body: "{}\r\n", want: []string{"{}"}},
		{name: "several lines of text are one", body: "at f()\n  at g()\n", header: []string{"Content-Type", "text/plain; charset=utf-8"}, want: []string{"at f()\n  at g()"}},
		{name: "json on several lines is one", body: "{\n\"a\": 1\n}", header: []string{"Content-Type", "application/json"}, want: []string{"{\n\"a\": 1\n}"}},
		{name: "ndjson", body: "{\"a\":1}\n{\"a\":2}\r\n\n{\"a\":3}", header: []string{"Content-Type", ndjson}, want: []string{`{"a":1}`, `{"a":2}`, `{"a":3}`}},
		{name: "ndjson by its other name", body: "1\n2\n", header: []string{"Content-Type", "Application/NDJSON;x=y"}, want: []string{"1", "2"}},
		{name: "jsonl", body: "1\n2\n", header: []string{"Content-Type", "application/jsonl"}, want: []string{"1", "2"}},
		{name: "empty", status: 400, count: "invalid 1", says: "empty"},
		{name: "newlines only", body: "\n\r\n", status: 400, count: "invalid 1", says: "empty"},
		{name: "ndjson without lines", body: "\n\n", header: []string{"Content-Type", ndjson}, status: 400, count: "invalid 1"},
		{name: "gzip", body: pack("packed"), header: []string{"Content-Encoding", "gzip"}, want: []string{"packed"}},
		{name: "gzip of two members", body: pack("one ") + pack("two"), header: []string{"Content-Encoding", "x-gzip"}, want: []string{"one two"}},
		{name: "ndjson in gzip", body: pack("1\n2\n"), header: []string{"Content-Encoding", "GZIP", "Content-Type", ndjson}, want: []string{"1", "2"}},
		{name: "no gzip", body: "plain", header: []string{"Content-Encoding", "gzip"}, status: 400, count: "invalid 1", says: "no valid gzip"},
		{name: "empty gzip", header: []string{"Content-Encoding", "gzip"}, status: 400, count: "invalid 1"},
		{name: "gzip cut off", body: pack("packed")[:20], header: []string{"Content-Encoding", "gzip"}, status: 400, count: "invalid 1", says: "no valid gzip"},
		{name: "gzip with something behind", body: pack("packed") + "more", header: []string{"Content-Encoding", "gzip"}, status: 400, count: "invalid 1"},
		{name: "another coding", body: "x", header: []string{"Content-Encoding", "br"}, status: 415, count: "invalid 1", says: "gzip"},
		{name: "as large as may be", body: exact, want: []string{exact}},
		{name: "larger", body: exact + "x", status: 413, count: "too large 1", says: "larger than 1000 bytes"},
		{name: "as large as may be in gzip", body: pack(exact), header: []string{"Content-Encoding", "gzip"}, want: []string{exact}},
		{name: "larger in gzip", body: pack(exact + "x"), header: []string{"Content-Encoding", "gzip"}, status: 413, count: "too large 1"},
		{name: "bomb", body: pack(strings.Repeat("x", 16<<20)), header: []string{"Content-Encoding", "gzip"}, status: 413, count: "too large 1"},
		{name: "lines that together are larger", body: strings.Repeat("x\n", limit), header: []string{"Content-Type", ndjson}, status: 413, count: "too large 1"},
		{name: "another path", path: "/other", body: "x", status: 404, count: "invalid 1", says: "/audit"},
		{name: "a path below", path: "/audit/", body: "x", status: 404, count: "invalid 1"},
		{name: "get", method: "GET", status: 405, count: "invalid 1", says: "POST"},
		{name: "delete", method: "DELETE", body: "x", status: 405, count: "invalid 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newStorer()
			memory := NewMemory(1 << 20)
			h, url, stop := serveHTTP(t, HTTPOptions{Path: "/audit", MaxMessageSize: limit, Open: r.open, Memory: memory}, nil)
			if c.path != "" {
				url = strings.TrimSuffix(url, "/audit") + c.path
			}
			if c.method == "" {
				c.method = "POST"
			}
			if c.status == 0 {
				c.status, c.count = 204, "stored 1"
			}
			for _, chunked := range []bool{false, true} {
				var body io.Reader = strings.NewReader(c.body)
				if chunked {
					body = struct{ io.Reader }{body} // whose length is not known
				}
				a, text := do(t, client(t, nil), c.method, url, body, c.header...)
				if a.StatusCode != c.status || !strings.Contains(text, c.says) || strings.Count(text, "\n") != min(1, len(text)) {
					t.Errorf("chunked %v: %d %q, want %d %q in one line", chunked, a.StatusCode, text, c.status, c.says)
				}
				if a.StatusCode == 405 && a.Header.Get("Allow") != "POST, PUT" {
					t.Errorf("allow %q", a.Header.Get("Allow"))
				}
				r.mu.Lock()
				if got := strings.Join(r.got, "|"); got != strings.Join(c.want, "|") {
					t.Errorf("chunked %v: stored %.100q, want %.100q", chunked, got, c.want)
				}
				for i, f := range r.flags {
					if f != 0 {
						t.Errorf("message %d has flags %v", i, f)
					}
				}
				r.got, r.flags = nil, nil
				r.mu.Unlock()
				if got, want := h.Requests.counted(), strings.ReplaceAll(c.count, "1", fmt.Sprint(1+b2i(chunked))); got != want {
					t.Errorf("chunked %v: counted %s, want %s", chunked, got, want)
				}
			}
			stop()
			if n := memory.Held(); n != 0 {
				t.Errorf("%d bytes are held after all", n)
			}
		})
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// What is not durable is not 204, and the sender is told what it may do.
func TestHTTPNotStored(t *testing.T) {
	many := strings.Repeat(strings.Repeat("x", 999)+"\n", 5000)
	for _, c := range []struct {
		name  string
		set   func(*storer)
		body  string
		count string
		says  string
	}{
		{"full", func(s *storer) { s.full.Store(true) }, "x", "full 1", "nothing is stored"},
		{"full half way", func(s *storer) { s.after = 3 }, many, "full 1", "may be stored"},
		{"late", func(s *storer) { s.never.Store(true) }, "x", "late 1", "not durable within 50ms"},
		{"lost", func(s *storer) { s.fails = errors.New("stopped") }, "x", "stopped 1", "could not be stored"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newStorer()
			c.set(r)
			o := HTTPOptions{Open: r.open, StoreTimeout: time.Minute}
			if c.name == "late" {
				o.StoreTimeout = 50 * time.Millisecond
			}
			h, url, _ := serveHTTP(t, o, nil)
			a, text := do(t, client(t, nil), "POST", url, strings.NewReader(c.body), "Content-Type", "application/x-ndjson")
			if a.StatusCode != 503 || a.Header.Get("Retry-After") != "1" || !strings.Contains(text, c.says) || h.Requests.counted() != c.count {
				t.Errorf("%d, retry after %q, %q, counted %s", a.StatusCode, a.Header.Get("Retry-After"), text, h.Requests.counted())
			}
		})
	}
}

// A large body is handed over in pieces, and is durable when all of them are.
func TestHTTPLargeBody(t *testing.T) {
	r := newStorer()
	_, url, _ := serveHTTP(t, HTTPOptions{Open: r.open, StoreTimeout: time.Minute}, nil)
	var body strings.Builder
	for i := range 30000 {
		fmt.Fprintf(&body, "line %d %s\n", i, strings.Repeat("x", 100))
	}
	if a, text := do(t, client(t, nil), "POST", url, strings.NewReader(body.String()), "Content-Type", "application/x-ndjson"); a.StatusCode != 204 {
		t.Fatal(a.Status, text)
	}
	if strings.Join(r.got, "\n")+"\n" != body.String() || r.calls.Load() < 5 {
		t.Errorf("%d lines in %d pieces", len(r.got), r.calls.Load())
	}
}

func TestHTTPToken(t *testing.T) {
	r, token, problem := newStorer(), "s3cret", error(nil)
	var mu sync.Mutex
	h, url, _ := serveHTTP(t, HTTPOptions{Open: r.open, Token: func() ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		return []byte(token), problem
	}}, nil)
	set := func(s string, err error) error {
		mu.Lock()
		token, problem = s, err
		mu.Unlock()
		return h.Reload()
	}
	c := client(t, nil)
	check := func(header string, want int) {
		t.Helper()
		a, text := do(t, c, "POST", url, strings.NewReader("x"), "Authorization", header)
		if a.StatusCode != want || want == 401 && (a.Header.Get("WWW-Authenticate") != "Bearer" || strings.Contains(text, "s3cret")) {
			t.Errorf("%q: %d %q, want %d", header, a.StatusCode, text, want)
		}
	}
	check("Bearer s3cret", 204)
	check("bearer  s3cret", 204)
	for _, h := range []string{"", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3crets", "Bearer S3CRET", "Basic s3cret", "s3cret"} {
		check(h, 401)
	}
	if err := set("other", nil); err != nil {
		t.Error(err)
	}
	check("Bearer s3cret", 401)
	check("Bearer other", 204)
	for _, err := range []error{set("", nil), set("third", errors.New("no such file"))} {
		if err == nil || !strings.HasPrefix(err.Error(), "SPILLWAY_INPUT_HOOK_TOKEN: ") {
			t.Errorf("reload: %v", err)
		}
	}
	check("Bearer other", 204)
	check("Bearer ", 401)
	if n := h.Requests.Unauthorized.Load(); n != 10 {
		t.Errorf("%d counted", n)
	}
	for token, want := range map[string]string{"": "empty", "token ": "begins or ends with a blank", "\ttoken": "begins or ends with a blank", "to\nken": "has a character"} {
		_, err := ListenHTTP(HTTPOptions{Address: "127.0.0.1:0", Variable: "V_", Open: r.open, Log: quietLog, Token: func() ([]byte, error) { return []byte(token), nil }})
		if err == nil || !strings.HasPrefix(err.Error(), "V_TOKEN: "+want) {
			t.Errorf("the token %q: %v", token, err)
		}
	}
}

// Token and TLS files are read again together: when one is bad, none is used.
func TestHTTPReload(t *testing.T) {
	a := newAuthority(t)
	o, dir := tlsOptions(t, a)
	token := "one"
	h, url, _ := serveHTTP(t, HTTPOptions{Open: newStorer().open, TLS: o, Token: func() ([]byte, error) { return []byte(token), nil }}, nil)
	put(t, dir, a.issue("server 2", time.Now().Add(time.Hour)))
	token = ""
	if err := h.Reload(); err == nil || h.Stats.Reloads.Load() != 0 {
		t.Errorf("a bad token: %v, %d reloads of certificates", err, h.Stats.Reloads.Load())
	}
	write(t, o.CertFile, nil)
	token = "two"
	if err := h.Reload(); err == nil {
		t.Error("a bad certificate is no error")
	}
	if a, text := do(t, client(t, &tls.Config{RootCAs: a.pool()}), "POST", url, strings.NewReader("x"), "Authorization", "Bearer one"); a.StatusCode != 204 {
		t.Error(a.Status, text)
	}
}

// Bodies that are being read take no more of the lane's memory than there is, whatever
// they announce, and hold no sink.
func TestHTTPMemory(t *testing.T) {
	r, memory := newStorer(), NewMemory(1<<20)
	opened := atomic.Int64{}
	h, url, _ := serveHTTP(t, HTTPOptions{Memory: memory, Open: func() Storer { opened.Add(1); return r.open() }}, nil)
	var bodies []*io.PipeWriter
	answers := make(chan int, 100)
	half := strings.Repeat("x", 200<<10)
	for range 5 {
		body, w := io.Pipe()
		bodies = append(bodies, w)
		go func() {
			req, _ := http.NewRequest("POST", url, body)
			req.ContentLength = 20 << 20
			a, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				answers <- 0
				return
			}
			a.Body.Close()
			answers <- a.StatusCode
		}()
		io.WriteString(w, "x")
	}
	eventually(t, "the headers", func() bool { return h.Requests.Requests.Load() == 5 })
	eventually(t, "what was sent, and not what was announced", func() bool { n := memory.Held(); return n == 5*4<<10 })
	for _, w := range bodies {
		go io.WriteString(w, half)
	}
	if got := <-answers; got != 503 {
		t.Errorf("%d without memory", got)
	}
	if n := memory.Held(); n > 1<<20 {
		t.Errorf("%d bytes held", n)
	}
	if opened.Load() != 0 {
		t.Error("a body that is read holds a sink")
	}
	for _, w := range bodies {
		w.CloseWithError(io.ErrUnexpectedEOF)
	}
	eventually(t, "memory to be given back", func() bool { return memory.Held() == 0 })
	if a, text := do(t, client(t, nil), "POST", url, strings.NewReader(half)); a.StatusCode != 204 {
		t.Error(a.Status, text)
	}
}

// Bodies that come slowly leave half of the lane's memory to the messages of streams.
func TestHTTPMemoryOfOthers(t *testing.T) {
	memory, r := NewMemory(4<<20), newRecorder()
	h, _, _ := serveHTTP(t, HTTPOptions{Memory: memory, Open: newStorer().open}, nil)
	s, _ := serve(t, Options{Network: "tcp", Open: r.open, Memory: memory})
	for range 5 { // each takes 1 MiB, and never ends
		c := raw(t, h, head+"Content-Length: 5000000\r\n\r\n")
		go c.Write(make([]byte, 600<<10))
	}
	eventually(t, "three refused", func() bool { return h.Requests.Full.Load() == 3 })
	if n := memory.Held(); n > 2<<20 {
		t.Errorf("bodies hold %d bytes", n)
	}
	c := dial(t, s)
	want := strings.Repeat("y", 1<<20)
	io.WriteString(c, want)
	io.WriteString(c, "\n")
	eventually(t, "the message", func() bool { return r.len() > 0 })
	if n := s.Stats.MemoryCut.Load(); n != 0 || r.at(0) != want {
		t.Errorf("%d messages cut, got %d bytes of %d", n, len(r.at(0)), len(want))
	}
}

// raw opens a connection and sends text.
func raw(t *testing.T, h *HTTPServer, text string) net.Conn {
	c := dial(t, h)
	io.WriteString(c, text)
	return c
}

// ends fails unless the server closes c, and returns what it said before.
func ends(t *testing.T, c net.Conn) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	all, err := io.ReadAll(c)
	if errors.Is(err, context.DeadlineExceeded) || err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("not closed: %v", err)
	}
	return string(all)
}

const head = "POST / HTTP/1.1\r\nHost: x\r\n"

// Senders that are slow, break off or never end hold nobody for long.
func TestHTTPSlow(t *testing.T) {
	for _, c := range []struct {
		name, send, says, count string
	}{
		{"slow body", head + "Content-Length: 10\r\n\r\n12345", "408", "slow 1"},
		{"slow chunk", head + "Transfer-Encoding: chunked\r\n\r\n5\r\n123", "408", "slow 1"},
		{"slow gzip", head + "Content-Encoding: gzip\r\nContent-Length: 100\r\n\r\n" + pack("packed")[:12], "408", "slow 1"},
		{"slow body that nobody wants", "POST /other HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345", "404", "invalid 1"},
		{"slow header", head + "X-Slow: ", "", ""},
		{"large header", head + "X-Large: " + strings.Repeat("x", 30<<10) + "\r\n\r\n", "431", ""},
		{"no http", "<13>Nov 20 12:00:00 host app: a line\n", "400", ""},
		{"broken chunk", head + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "400", "gone 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newStorer()
			h, _, stop := serveHTTP(t, HTTPOptions{Open: r.open}, func(h *HTTPServer) {
				if strings.HasPrefix(c.name, "slow") {
					h.bodyTime, h.headerTime = time.Second, time.Second
				}
			})
			got := ends(t, raw(t, h, c.send))
			if !strings.HasPrefix(got, "HTTP/1.1 "+c.says) && got != c.says {
				t.Errorf("answered %q, want %s", got, c.says)
			}
			if n := h.Requests.counted(); n != c.count {
				t.Errorf("counted %s, want %s", n, c.count)
			}
			stop()
			if r.len() != 0 || h.Stats.Open.Load() != 0 {
				t.Errorf("stored %q, %d connections open", r.got, h.Stats.Open.Load())
			}
		})
	}
}

// Where the body is not wanted, nobody waits for it longer than a moment.
func TestHTTPUnwantedBody(t *testing.T) {
	t.Parallel()
	r := newStorer()
	h, _, _ := serveHTTP(t, HTTPOptions{Open: r.open, MaxMessageSize: 100, Token: func() ([]byte, error) { return []byte("token"), nil }}, func(h *HTTPServer) { h.bodyTime = time.Hour })
	const bearer = "Authorization: Bearer token\r\n"
	conns := map[net.Conn]string{}
	for send, status := range map[string]string{
		head + "Content-Length: 10\r\n\r\n12345":                                  "401",
		head + bearer + "Content-Length: 101\r\n\r\n12345":                        "413",
		head + bearer + "Content-Encoding: br\r\nContent-Length: 10\r\n\r\n12345": "415",
		"POST /other HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345":      "404",
		"PATCH / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345":          "405",
	} {
		conns[raw(t, h, send)] = status
	}
	for c, status := range conns {
		if got := ends(t, c); !strings.HasPrefix(got, "HTTP/1.1 "+status) {
			t.Errorf("answered %q, want %s", got, status)
		}
	}
}

// A sender that never reads what it is answered is let go.
func TestHTTPNeverReads(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mute, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	gone := 0
	c := &httpConn{TCPConn: nc.(*net.TCPConn), gone: func() { gone++ }}
	held := time.AfterFunc(time.Minute, func() { nc.Close() })
	for err == nil {
		_, err = c.Write(make([]byte, 1<<20))
	}
	if !held.Stop() || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("held for a minute: %v", err)
	}
	c.Close()
	if c.Close(); gone != 1 {
		t.Errorf("gone %d times", gone)
	}
}

// A body may take longer than bodyTime if much of it comes; and what comes after it may
// take as long as it takes.
func TestHTTPPace(t *testing.T) {
	t.Parallel()
	r := newStorer()
	const bodyTime = time.Second
	_, url, _ := serveHTTP(t, HTTPOptions{Open: r.open, StoreTimeout: time.Minute}, func(h *HTTPServer) { h.bodyTime = bodyTime })
	c := client(t, nil)
	body, w := io.Pipe()
	go func() {
		io.WriteString(w, strings.Repeat("x", 60*bodyPace))
		time.Sleep(2 * bodyTime)
		io.WriteString(w, "x")
		w.Close()
	}()
	if a, text := do(t, c, "POST", url, body); a.StatusCode != 204 {
		t.Error(a.Status, text)
	}
	r.recorder.block = make(chan struct{})
	time.AfterFunc(2*bodyTime, func() { close(r.recorder.block) })
	if a, text := do(t, c, "POST", url, strings.NewReader("x")); a.StatusCode != 204 {
		t.Error(a.Status, text)
	}
}

// A sender that ends its side in the middle of a body is never told that it is stored.
func TestHTTPBrokenOff(t *testing.T) {
	r := newStorer()
	h, _, _ := serveHTTP(t, HTTPOptions{Open: r.open}, nil)
	c := raw(t, h, head+"Content-Length: 10\r\n\r\n12345")
	c.(*net.TCPConn).CloseWrite()
	if got := ends(t, c); !strings.HasPrefix(got, "HTTP/1.1 400") {
		t.Errorf("answered %q", got)
	}
	if r.len() != 0 || h.Requests.counted() != "gone 1" {
		t.Errorf("stored %q, counted %s", r.got, h.Requests.counted())
	}
}

// Connections are kept: many requests share one, and it is closed after IdleTimeout.
func TestHTTPKeepAlive(t *testing.T) {
	t.Parallel()
	r := newStorer()
	h, url, _ := serveHTTP(t, HTTPOptions{Open: r.open, IdleTimeout: 2 * time.Second, Path: "/a"}, nil)
	gone := client(t, nil)
	if a, _ := do(t, gone, "POST", url, strings.NewReader("x")); a.StatusCode != 204 {
		t.Error(a.Status)
	}
	gone.CloseIdleConnections()
	eventually(t, "it to have gone by itself", func() bool { return h.Stats.Open.Load() == 0 })
	c := client(t, nil)
	for i := range 20 {
		if a, _ := do(t, c, "POST", url, strings.NewReader(fmt.Sprint(i))); a.StatusCode != 204 {
			t.Error(a.Status)
		}
	}
	if n := h.Stats.Connections.Load(); n != 2 {
		t.Errorf("%d connections for 20 requests", n)
	}
	eventually(t, "the idle connection to be closed", func() bool { return h.Stats.Open.Load() == 0 })
	first := r.conn(1)
	if first.TLS != nil || time.Since(first.Since) > time.Minute || r.conn(20) != first || r.conn(0) == first {
		t.Errorf("connections %v, %v and %v", r.conn(0), first, r.conn(20))
	}
	if len(r.from) != 2 {
		t.Errorf("senders %v", r.from)
	}
	eventually(t, "it to be counted", func() bool { return h.Stats.Idle.Load() == 1 })
	silent := dial(t, h)
	ends(t, silent)
	if n := h.Stats.Idle.Load(); n != 2 {
		t.Errorf("%d connections were idle", n)
	}
}

// At the limit of connections one more is closed at once.
func TestHTTPConnections(t *testing.T) {
	r := newStorer()
	h, url, _ := serveHTTP(t, HTTPOptions{Open: r.open, MaxConnections: 2}, nil)
	one, two := client(t, nil), client(t, nil)
	for _, c := range []*http.Client{one, two} {
		if a, _ := do(t, c, "POST", url, strings.NewReader("x")); a.StatusCode != 204 {
			t.Error(a.Status)
		}
	}
	if _, err := client(t, nil).Post(url, "text/plain", strings.NewReader("x")); err == nil {
		t.Error("a third connection was served")
	}
	eventually(t, "it to be counted", func() bool { return h.Stats.Refused.Load() == 1 && h.Stats.Open.Load() == 2 })
	one.CloseIdleConnections()
	eventually(t, "a place", func() bool { return h.Stats.Open.Load() == 1 })
	if a, _ := do(t, client(t, nil), "POST", url, strings.NewReader("x")); a.StatusCode != 204 {
		t.Error(a.Status)
	}
}

func TestHTTPAllow(t *testing.T) {
	r := newStorer()
	h, url, _ := serveHTTP(t, HTTPOptions{Open: r.open, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, nil)
	if _, err := client(t, nil).Post(url, "text/plain", strings.NewReader("x")); err == nil || h.Stats.Denied.Load() != 1 {
		t.Errorf("%v, %d denied", err, h.Stats.Denied.Load())
	}
}

// A defect that one request finds costs that request only, and is told.
func TestHTTPPanic(t *testing.T) {
	r := newStorer()
	var log bytes.Buffer
	h, url, stop := serveHTTP(t, HTTPOptions{Open: r.open, Log: slog.New(slog.NewTextHandler(&log, nil))}, nil)
	c := client(t, nil)
	for range 100 { // more than there are turns
		r.panic.Store(true)
		if a, text := do(t, c, "POST", url, strings.NewReader("x")); a.StatusCode != 500 || !strings.Contains(text, "failed") {
			t.Error(a.Status, text)
		}
		r.panic.Store(false)
		if a, text := do(t, c, "POST", url, strings.NewReader("x")); a.StatusCode != 204 {
			t.Error(a.Status, text)
		}
	}
	if o, c := r.opened.Load(), r.closed.Load(); o != 101 || c != 100 {
		t.Errorf("%d sinks opened, %d closed, want a new one after each defect", o, c)
	}
	stop()
	if r.len() != 100 || h.Requests.counted() != "stored 100 panics 100" || !strings.Contains(log.String(), "a defect") || !strings.Contains(log.String(), "http_test.go") {
		t.Errorf("%d stored, counted %s; log: %.500s", r.len(), h.Requests.counted(), &log)
	}
}

// With TLS a client's certificate is asked for, and its facts are those of every message.
// A client that would rather speak HTTP/2 is served too.
func TestHTTPS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	o, dir := tlsOptions(t, a)
	o.ClientCAFile, o.ClientAuth = filepath.Join(dir, "ca.pem"), ClientRequired
	r := newStorer()
	var log bytes.Buffer
	h, url, stop := serveHTTP(t, HTTPOptions{Open: r.open, TLS: o, Log: slog.New(slog.NewTextHandler(&log, nil))}, func(h *HTTPServer) { h.bodyTime = 300 * time.Millisecond })
	mine := a.issue("sender", time.Now().Add(time.Hour))
	good := &tls.Config{RootCAs: a.pool(), Certificates: []tls.Certificate{mine}}
	for _, proto := range []string{"h2", "http/1.1"} {
		c := client(t, good.Clone())
		c.Transport.(*http.Transport).ForceAttemptHTTP2 = proto == "h2"
		for i := range 3 {
			res, text := do(t, c, "POST", url, strings.NewReader(fmt.Sprint(proto, i)))
			if res.StatusCode != 204 || res.ProtoMajor != 1 {
				t.Errorf("%s: %s %s by %s", proto, res.Status, text, res.Proto)
			}
		}
		f := r.conn(r.len() - 1).TLS
		if f == nil || f.Client == nil || f.Client.Subject.CommonName != "sender" || f.Version != "1.3" {
			t.Errorf("%s: facts %+v", proto, f)
		}
		// A slow body holds neither the connection nor the memory.
		body, w := io.Pipe()
		go io.WriteString(w, "slow")
		if res, _ := do(t, c, "POST", url, body); res.StatusCode != 408 {
			t.Errorf("%s: a slow body: %s", proto, res.Status)
		}
		w.Close()
		if res, text := do(t, c, "POST", url, strings.NewReader("again")); res.StatusCode != 204 {
			t.Errorf("%s: %s %s", proto, res.Status, text)
		}
	}
	if _, err := client(t, &tls.Config{RootCAs: a.pool()}).Post(url, "text/plain", strings.NewReader("x")); err == nil {
		t.Error("a sender without a certificate was served")
	}
	eventually(t, "it to be counted", func() bool { return h.Stats.HandshakeCertificate.Load() == 1 })
	raw(t, h, head+"Content-Length: 1\r\n\r\nx")
	eventually(t, "plain http to be counted", func() bool { return h.Stats.HandshakePlain.Load() == 1 })

	// New files are used by the next connection.
	next := newAuthority(t)
	put(t, dir, next.issue("127.0.0.1", time.Now().Add(time.Hour)))
	if err := h.Reload(); err != nil {
		t.Fatal(err)
	}
	if res, _ := do(t, client(t, &tls.Config{RootCAs: next.pool(), Certificates: good.Certificates}), "POST", url, strings.NewReader("x")); res.StatusCode != 204 {
		t.Error(res.Status)
	}
	stop()
	if !strings.Contains(log.String(), "handshake failed") {
		t.Errorf("log: %s", &log)
	}
}

// The stop lets running requests end, and takes no others.
func TestHTTPStop(t *testing.T) {
	t.Parallel()
	for _, https := range []bool{false, true} {
		t.Run(fmt.Sprint("tls ", https), func(t *testing.T) {
			r, o, config := newStorer(), HTTPOptions{}, (*tls.Config)(nil)
			if https {
				a := newAuthority(t)
				o.TLS, _ = tlsOptions(t, a)
				config = &tls.Config{RootCAs: a.pool()}
			}
			r.recorder.block = make(chan struct{})
			o.Open = r.open
			h, url, stop := serveHTTP(t, o, nil)
			answers := make(chan int)
			c := client(t, config)
			for range 5 {
				go func() {
					a, err := c.Post(url, "text/plain", strings.NewReader("x"))
					if err != nil {
						t.Error(err)
						answers <- 0
						return
					}
					a.Body.Close()
					answers <- a.StatusCode
				}()
			}
			eventually(t, "the requests", func() bool { return r.calls.Load() == 5 })
			silent := dial(t, h)
			half := dial(t, h)
			io.WriteString(half, "\x16\x03\x01"[:1+2*b2i(https)])
			eventually(t, "the connections", func() bool { return h.Stats.Connections.Load() >= 3 })
			done, began := make(chan struct{}), time.Now()
			go func() { stop(); close(done) }()
			eventually(t, "the port to be closed", func() bool {
				c, err := net.Dial("tcp", h.Addrs()[0].String())
				if err == nil {
					c.Close()
				}
				return err != nil
			})
			select {
			case <-done:
				t.Fatal("the stop did not wait for requests")
			default:
			}
			close(r.recorder.block)
			for range 5 {
				if got := <-answers; got != 204 {
					t.Errorf("a running request was answered %d", got)
				}
			}
			ends(t, silent)
			ends(t, half)
			<-done
			if took := time.Since(began); took >= h.stopTime {
				t.Errorf("half a header held the stop up for %v", took)
			}
			if n := h.Stats.Open.Load(); n != 0 {
				t.Errorf("%d connections open", n)
			}
		})
	}
}

// A body that does not end does not keep the agent from stopping, nor does a disk when
// all waiting is ended.
func TestHTTPStopEnds(t *testing.T) {
	r := newStorer()
	h, _, stop := serveHTTP(t, HTTPOptions{Open: r.open}, func(h *HTTPServer) { h.stopTime = 50 * time.Millisecond })
	c := raw(t, h, head+"Content-Length: 10\r\n\r\n12345")
	eventually(t, "the request", func() bool { return h.Requests.Requests.Load() == 1 })
	stop()
	ends(t, c)
	if got := h.Requests.counted(); got != "gone 1" {
		t.Errorf("counted %s", got)
	}

	r.never.Store(true)
	h, err := ListenHTTP(HTTPOptions{Address: "127.0.0.1:0", Open: r.open, Log: quietLog, StoreTimeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	hard, now := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { h.Serve(hard, hard); close(done) }()
	raw(t, h, head+"Content-Length: 1\r\n\r\nx")
	eventually(t, "it to wait", func() bool { return r.calls.Load() == 1 })
	now()
	<-done
	if got := h.Requests.counted(); got != "stopped 1" {
		t.Errorf("counted %s", got)
	}
}

// A sender that pipelines gets an answer for each, in order.
func TestHTTPPipelined(t *testing.T) {
	r := newStorer()
	h, _, _ := serveHTTP(t, HTTPOptions{Open: r.open}, nil)
	c := raw(t, h, strings.Repeat(head+"Content-Length: 1\r\n\r\nx", 10))
	b := bufio.NewReader(c)
	for range 10 {
		a, err := http.ReadResponse(b, nil)
		if err != nil || a.StatusCode != 204 {
			t.Fatal(a, err)
		}
	}
	if r.len() != 10 {
		t.Errorf("%d stored", r.len())
	}
}
