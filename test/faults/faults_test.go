package faults

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// echo is a server that sends back what it gets.
func echo(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func dial(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("received %q, %v; want %q", got, err, want)
	}
}

// quiet fails if anything comes, the end included.
func quiet(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	var timeout net.Error
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("read %d bytes, %v, where nothing should come", n, err)
	}
}

func isReset(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d bytes, %v, want a reset", n, err)
	}
}

// noneLeft fails if goroutines of this package go on.
func noneLeft(t *testing.T) {
	t.Helper()
	buf := make([]byte, 1<<20)
	if all := string(buf[:runtime.Stack(buf, true)]); strings.Contains(all, "faults.(*conn)") || strings.Contains(all, "faults.(*Proxy).serve") {
		t.Errorf("goroutines go on after Close:\n%s", all)
	}
}

func TestForward(t *testing.T) {
	p := New(t, "tcp://"+echo(t)+"/x")
	c := dial(t, p.Address)
	big := strings.Repeat("0123456789abcdef", 1<<16)
	go func() {
		_, _ = io.WriteString(c, big)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != big {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, ever := p.Connections(); ever != 1 {
		t.Errorf("%d connections", ever)
	}
	dial(t, p.Address)
	p.Close()
	p.Close()
	p.Forward()
	noneLeft(t)
	if _, err := net.Dial("tcp", p.Address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after Close: %v", err)
	}
}

func TestSilence(t *testing.T) {
	p := New(t, echo(t))
	c, closed := dial(t, p.Address), dial(t, p.Address)
	send(t, c, "a")
	receive(t, c, "a")
	p.Silence()
	send(t, c, "b")
	if err := closed.Close(); err != nil {
		t.Error(err)
	}
	late := dial(t, p.Address)
	send(t, late, "c")
	quiet(t, c)
	quiet(t, late)
	p.Forward()
	receive(t, c, "b")
	receive(t, late, "c")
	p.Silence()
	p.Close()
	noneLeft(t)
	isReset(t, c)
}

func TestDropAnswers(t *testing.T) {
	var got bytes.Buffer
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	arrived := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		b := make([]byte, 3)
		_, _ = io.ReadFull(c, b)
		_, _ = io.WriteString(c, "answer")
		_ = c.Close()
		got.Write(b)
		arrived <- got.String()
	}()
	p := New(t, l.Addr().String())
	p.DropAnswers()
	c := dial(t, p.Address)
	send(t, c, "ask")
	if s := <-arrived; s != "ask" {
		t.Errorf("the server got %q", s)
	}
	quiet(t, c)
	p.Silence()
	quiet(t, c)
	p.Forward()
	isReset(t, c)
}

func TestRefuse(t *testing.T) {
	p := New(t, echo(t))
	for range 20 {
		c := dial(t, p.Address)
		send(t, c, "a")
		receive(t, c, "a")
		p.Refuse()
		isReset(t, c)
		if _, err := net.Dial("tcp", p.Address); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("refused as %v", err)
		}
		p.Forward()
	}
	c := dial(t, p.Address)
	send(t, c, "a")
	receive(t, c, "a")
	p.Reset()
	isReset(t, c)
	c = dial(t, p.Address)
	send(t, c, "a")
	receive(t, c, "a")
	// A server that is gone refuses what the proxy accepted.
	dead := New(t, p.Address)
	p.Refuse()
	if c, err := net.Dial("tcp", dead.Address); err == nil {
		isReset(t, c)
		_ = c.Close()
	} else if !errors.Is(err, syscall.ECONNRESET) { // so soon that connect(2) sees it
		t.Error(err)
	}
	p.Close()
	dead.Close()
	noneLeft(t)
}

func TestSlow(t *testing.T) {
	p := New(t, echo(t))
	for _, c := range []struct {
		rate  int
		delay time.Duration
		least time.Duration
	}{
		{rate: 100_000, least: 80 * time.Millisecond}, // 10,000 bytes in steps of 2,000, the first at once
		{delay: 60 * time.Millisecond, least: 120 * time.Millisecond},
	} {
		p.Slow(c.rate, c.delay)
		text := strings.Repeat("x", 10_000)
		conn := dial(t, p.Address)
		begin := time.Now()
		send(t, conn, text)
		receive(t, conn, text)
		if took := time.Since(begin); took < c.least {
			t.Errorf("rate %d, delay %v: took %v", c.rate, c.delay, took)
		}
	}
	// What crawls is let go at once.
	p.Slow(1, 0)
	conn := dial(t, p.Address)
	send(t, conn, "0123456789")
	p.Forward()
	receive(t, conn, "0123456789")
}

// Faults that change while many connections are in use leave nothing behind.
func TestChanging(t *testing.T) {
	p := New(t, echo(t))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.Dial("tcp", p.Address)
				if err != nil {
					continue
				}
				_ = c.SetDeadline(time.Now().Add(5 * time.Millisecond))
				for range 10 {
					if _, err := io.WriteString(c, "hello"); err != nil {
						break
					}
					b := make([]byte, 5)
					if _, err := io.ReadFull(c, b); err != nil {
						break
					} else if string(b) != "hello" {
						t.Errorf("%q", b)
					}
				}
				_ = c.Close()
			}
		})
	}
	for range 20 {
		for _, f := range []func(){p.Silence, p.Forward, p.DropAnswers, p.Refuse, p.Reset, p.Forward, func() { p.Slow(1000, time.Millisecond) }} {
			f()
			time.Sleep(time.Millisecond)
		}
	}
	close(stop)
	wg.Wait()
	p.Close()
	noneLeft(t)
	if now, _ := p.Connections(); now != 0 {
		t.Errorf("%d connections after Close", now)
	}
}

func TestS3(t *testing.T) {
	var mu sync.Mutex
	stored := map[string]string{}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		stored[r.URL.Path] = string(body)
	}))
	defer server.Close()
	s := NewS3(t, server.URL)
	put := func(key string) (status int, body string, err error) {
		req, err := http.NewRequest(http.MethodPut, s.URL+"/b/"+key, strings.NewReader("text"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b), err
	}
	for _, c := range []struct {
		name   string
		fault  Fault
		status int
		body   string
		stored string
	}{
		{"refused", Fault{Status: 403, Code: "AccessDenied"}, 403, "<Code>AccessDenied</Code>", ""},
		{"no body", Fault{Status: 503}, 503, "", ""},
		{"stored", Fault{Status: 500, Code: "InternalError", Stored: true}, 500, "InternalError", "text"},
		{"cut", Fault{Stored: true}, 0, "", "text"},
		{"flipped", Fault{Flip: true}, 200, "", "teyt"},
		{"another key", Fault{Status: 403, Key: "else"}, 200, "", "text"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.Fail(2, c.fault)
			for i := range 2 {
				status, body, err := put(c.name)
				if status != c.status || !strings.Contains(body, c.body) || (c.body == "") != (body == "") || (err != nil) != (c.status == 0) {
					t.Errorf("put %d: %d %q, %v", i, status, body, err)
				}
			}
			mu.Lock()
			if got := stored["/b/"+c.name]; got != c.stored {
				t.Errorf("stored %q, want %q", got, c.stored)
			}
			mu.Unlock()
			if status, _, err := put("after"); status != 200 || err != nil {
				t.Errorf("afterwards: %d, %v", status, err)
			}
		})
	}
	s.Fail(-1, Fault{Status: 500})
	for range 3 {
		if status, _, _ := put("x"); status != 500 {
			t.Errorf("answered %d", status)
		}
	}
	s.Heal()
	if status, _, _ := put("x"); status != 200 {
		t.Errorf("healed: %d", status)
	}
	if s.Puts() != 22 {
		t.Errorf("%d PUTs", s.Puts())
	}
	http.DefaultClient.CloseIdleConnections()
}
