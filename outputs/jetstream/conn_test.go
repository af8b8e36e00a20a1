package jetstream

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/buffer/batch"
	"spillway/outputs"
)

const stall = 200 * time.Millisecond

// pipe returns the two ends of a TCP connection on loopback.
func pipe(t *testing.T) (here, there net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if here, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if there, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close(); there.Close() })
	return here, there
}

// logs is a log that tests read while it is written.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *logs) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func readAll(r io.Reader) []byte {
	b, _ := io.ReadAll(r)
	return b
}

// A peer that takes nothing ends the write, and the connection, after stall.
func TestWireStall(t *testing.T) {
	here, there := pipe(t)
	w := &wire{Conn: here, d: newDialer(stall, stall, 0)}
	var err error
	for range 1000 { // until all buffers between the two are full
		if _, err = w.Write(make([]byte, 1<<20)); err != nil {
			break
		}
	}
	if !os.IsTimeout(err) {
		t.Fatalf("a write to a peer that takes nothing ends with %v", err)
	}
	if _, err := here.Write([]byte("x")); err == nil {
		t.Error("the connection is open after a write that failed")
	}
	there.Close()
}

// A write is cut into pieces with a deadline each, and nothing is lost between.
func TestWire(t *testing.T) {
	here, there := pipe(t)
	w := &wire{Conn: here, d: newDialer(stall, stall, 0)}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	got := make(chan []byte, 1)
	go func() { got <- readAll(there) }()
	if n, err := w.Write(sent); n != len(sent) || err != nil {
		t.Fatalf("wrote %d of %d: %v", n, len(sent), err)
	}
	here.Close()
	if g := <-got; !bytes.Equal(g, sent) {
		t.Errorf("%d bytes arrived, not the %d that were sent", len(g), len(sent))
	}
}

// New waits for nobody: neither for a server that is not there nor for one that
// takes the connection and says nothing.
func TestNewDoesNotWait(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, servers := range []string{"nats://127.0.0.1:1", "nats://" + l.Addr().String(), "nats://127.0.0.1:1,127.0.0.1:2," + l.Addr().String()} {
		begin := time.Now()
		o, err := New("hub", "default", "gw1", Config{Servers: servers, ConnectTimeout: time.Minute}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("%s: New took %v", servers, took)
		}
		if o.Connected() {
			t.Errorf("%s: connected", servers)
		}
		if lim := o.Limits(); lim.Bytes != 8<<20 || lim.Batches != 16 || lim.BatchBytes != 1<<20-headerRoom || lim.Age != 0 {
			t.Errorf("limits before a server is known: %+v", lim)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("%s: Close took until %v", servers, took)
		}
	}
}

// server answers each connection with answer(n) once it was asked for a PONG, n from
// 0, and returns its address. It ends with the test.
func server(t *testing.T, answer func(n int) string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			fmt.Fprintf(c, "INFO {\"server_id\":\"x\",\"version\":\"2.15.2\",\"headers\":true,\"max_payload\":%d}\r\n", 4096*(n+1))
			for s := bufio.NewScanner(c); s.Scan() && s.Text() != "PING"; {
			}
			io.WriteString(c, answer(n))
		}
	}()
	return l.Addr().String()
}

// What is told of connections: that none could be made, once, with what to do; that
// one is there; and never who we are.
func TestConnectionsAreTold(t *testing.T) {
	const secret = "s3cr3t"
	refused := func(n int) string {
		if n < 3 {
			return "-ERR 'Authorization Violation'\r\n"
		}
		return "PONG\r\n"
	}
	for _, tt := range []struct {
		name, user string
		answer     func(n int) string // nil: nobody listens
		want       []string
	}{
		{"token", secret + "@", func(int) string { return "PONG\r\n" }, []string{`level=INFO msg=connected output=hub server=nats://127.0.0.1:`}},
		{"password", "gw1:" + secret + "@", func(int) string { return "PONG\r\n" }, []string{`level=INFO msg=connected output=hub server=nats://127.0.0.1:`}},
		{"nobody there", secret + "@", nil, []string{`level=WARN msg="can't connect; trying again" output=hub server=nats://127.0.0.1:1 error="dial tcp 127.0.0.1:1: connect: connection refused" hint="see whether a nats-server listens there`}},
		{"refused, then not", "gw1:" + secret + "@", refused, []string{`level=WARN msg="can't connect; trying again" output=hub server=nats://127.0.0.1:`,
			`error="nats: Authorization Violation"`, `hint="check SPILLWAY_OUTPUT_HUB_CREDS_FILE, `, "level=INFO msg=connected"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			address := "127.0.0.1:1"
			if tt.answer != nil {
				address = server(t, tt.answer)
			}
			var log logs
			o, err := New("hub", "default", "gw1", Config{Servers: "nats://" + tt.user + address, AckTimeout: stall, ConnectTimeout: time.Second, ReconnectMin: 10 * time.Millisecond, ReconnectMax: 10 * time.Millisecond},
				slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
			if err != nil {
				t.Fatal(err)
			}
			tries := func() int { o.l.dial.mu.Lock(); defer o.l.dial.mu.Unlock(); return o.l.dial.dials }
			told := func() bool {
				for _, want := range tt.want {
					if !strings.Contains(log.String(), want) {
						return false
					}
				}
				return true
			}
			for deadline := time.Now().Add(time.Minute); !told() || tt.answer == nil && tries() < 5; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("not each of %q in\n%s", tt.want, log.String())
				}
			}
			if _, err = o.Last(t.Context(), "main"); err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("the error has the secret: %v", err)
			}
			if err := o.Close(); err != nil {
				t.Error(err)
			}
			text := log.String()
			if strings.Contains(text, secret) {
				t.Errorf("the log has the secret:\n%s", text)
			}
			if warnings := strings.Count(text, "level=WARN"); warnings != strings.Count(strings.Join(tt.want, ""), "level=WARN") {
				t.Errorf("%d warnings:\n%s", warnings, text)
			}
		})
	}
}

// Whoever gives up waiting for a connection says why there is none.
func TestEndOfWaitNamesCause(t *testing.T) {
	o, err := New("hub", "default", "gw1", Config{Servers: "nats://127.0.0.1:1", ConnectTimeout: time.Minute}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	err = o.Probe(ctx, "main")
	if stored, action := outputs.Classify(err); stored != no || action != outputs.Retry || !strings.Contains(err.Error(), "not connected: dial tcp 127.0.0.1:1: connect: connection refused") {
		t.Errorf("stored %v, %v: %v", stored, action, err)
	}
	err = o.l.nor(fmt.Errorf("%w within %v", errSilent, stall))
	if c := classify(err); c.stored != maybe || c.action != outputs.Retry || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("no answer: %+v: %v", c, err)
	}
}

func TestBackoff(t *testing.T) {
	const least, most = 100 * time.Millisecond, 3 * time.Second
	limit := least
	for n := 1; n < 100; n++ {
		for range 20 {
			if d := backoff(n, least, most); d < limit/2 || d > limit {
				t.Fatalf("pause %d is %v, want %v to %v", n, d, limit/2, limit)
			}
		}
		limit = min(most, 2*limit)
	}
}

// What nats.go takes for final is not final here: another connection is made.
func TestConnectionEndedForGood(t *testing.T) {
	address := server(t, func(n int) string {
		if n == 0 {
			return "PONG\r\n-ERR 'Something Final'\r\n"
		}
		return "PONG\r\n"
	})
	var log logs
	o, err := New("hub", "default", "gw1", Config{Servers: "nats://" + address, AckTimeout: stall, ConnectTimeout: time.Second}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	payload := []byte("line\n")
	run := sealed(&batch.Run{Lane: "main", Agent: "gw1", Epoch: 9, Attempt: 1},
		batch.Batch{Header: batch.Header{First: 1, Count: 1, CRC: batch.CRC32C(payload), Length: 5}, Payload: payload})
	for deadline := time.Now().Add(time.Minute); !o.Connected() || o.Limits().BatchBytes != 2*4096-headerRoom; time.Sleep(time.Millisecond) {
		_, err := o.Publish(t.Context(), run)
		if _, action := outputs.Classify(err); err == nil || action != outputs.Retry {
			t.Errorf("a server that answers nothing: %v", err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("no second connection: %v", err)
		}
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
	if _, err := o.Publish(t.Context(), run); err == nil || !strings.Contains(err.Error(), "connection closed") {
		t.Errorf("publish after close: %v", err)
	}
	if !strings.Contains(log.String(), "Something Final") {
		t.Errorf("the log does not say why:\n%s", log.String())
	}
}
