package faults

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// S3 is an http proxy before an S3 server that answers PUTs in its place. The one
// who asks signs for the proxy's address, which the server gets to see. Safe for
// concurrent use.
type S3 struct {
	URL string // http://127.0.0.1:port

	front *httptest.Server
	back  *http.Transport

	mu sync.Mutex
	// guarded by mu
	fault Fault
	left  int // PUTs that still get fault, below 0: all
	puts  int
}

// Fault is what happens to a PUT.
type Fault struct {
	Status int    // answered in the server's place; 0: the connection breaks without an answer
	Code   string // S3's error code in the answer; "": an empty body, as from a proxy on the way
	Stored bool   // the server gets the request before: it stores the object, its answer is lost
	Flip   bool   // the server gets the request with one bit of the body changed, and its answer counts
	Key    string // only PUTs whose path contains it
	Header http.Header
}

// NewS3 returns a proxy before the server at endpoint (http://host:port). It ends
// with the test.
func NewS3(t testing.TB, endpoint string) *S3 {
	t.Helper()
	u, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	s := &S3{back: &http.Transport{DisableKeepAlives: true}} // nothing goes on behind a client that has closed
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			r.Out.Host = r.In.Host // it is signed
		},
		Transport: s.back,
		// What breaks behind the proxy breaks before it.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	s.front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f, ok := s.next(r); ok {
			f.answer(w, r, proxy)
		} else {
			proxy.ServeHTTP(w, r)
		}
	}))
	s.URL = s.front.URL
	t.Cleanup(s.Close)
	return s
}

// Close ends the proxy, its connections and every goroutine of it. Idempotent.
func (s *S3) Close() {
	s.front.CloseClientConnections()
	s.front.Close()
	s.back.CloseIdleConnections()
}

// Fail lets f happen to the next n PUTs, or to all from now on when n is below 0.
// It takes the place of what an earlier call left.
func (s *S3) Fail(n int, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left, s.fault = n, f
}

// Heal ends what Fail began.
func (s *S3) Heal() { s.Fail(0, Fault{}) }

// Puts returns how many PUTs came since the start, those that failed among them.
func (s *S3) Puts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.puts
}

// next returns what happens to r, if anything does.
func (s *S3) next(r *http.Request) (Fault, bool) {
	if r.Method != http.MethodPut {
		return Fault{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puts++
	if s.left == 0 || !strings.Contains(r.URL.Path, s.fault.Key) {
		return Fault{}, false
	}
	s.left = max(s.left-1, -1)
	return s.fault, true
}

// answer does to r what f says.
func (f Fault) answer(w http.ResponseWriter, r *http.Request, server http.Handler) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if f.Flip && len(body) > 0 {
		body[len(body)/2] ^= 1
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	switch {
	case f.Flip:
		server.ServeHTTP(w, r)
		return
	case f.Stored:
		server.ServeHTTP(httptest.NewRecorder(), r)
	}
	if f.Status == 0 {
		panic(http.ErrAbortHandler)
	}
	for k, v := range f.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(f.Status)
	if f.Code != "" {
		_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>a fault of the test</Message></Error>`, f.Code)
	}
}
