package jetstream

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
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
		if took := time.Since(begin); took > 10*time.Second {
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
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s: Close took until %v", servers, took)
		}
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
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
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
			fmt.Fprint(c, "PONG\r\n")
			if n == 0 {
				fmt.Fprint(c, "-ERR 'Something Final'\r\n")
			}
		}
	}()
	var log bytes.Buffer // slog's handler locks it; it is read after Close
	o, err := New("hub", "default", "gw1", Config{Servers: "nats://" + l.Addr().String(), AckTimeout: stall, ConnectTimeout: time.Second}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	payload := []byte("line\n")
	run := sealed(&batch.Run{Lane: "main", Agent: "gw1", Epoch: 9, Attempt: 1},
		batch.Batch{Header: batch.Header{First: 1, Count: 1, CRC: batch.CRC32C(payload), Length: 5}, Payload: payload})
	for deadline := time.Now().Add(20 * time.Second); !o.Connected() || o.Limits().BatchBytes != 2*4096-headerRoom; time.Sleep(time.Millisecond) {
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
