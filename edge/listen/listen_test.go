package listen

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/framing"
)

// TestMain runs more parallel tests at a time than there are processors: they sleep.
func TestMain(m *testing.M) {
	flag.Set("test.parallel", "8") // before the flags of the command line are read
	os.Exit(m.Run())
}

// recorder collects what sinks were given.
type recorder struct {
	mu    sync.Mutex
	got   []string
	from  map[netip.AddrPort]int
	conns []*Conn         // of got
	flags []framing.Flags // of got
	block chan struct{}   // when set, Flush of anything waits for it
}

type recSink struct {
	r    *recorder
	held []heldMessage
}

type heldMessage struct {
	text  string
	conn  *Conn
	flags framing.Flags
}

func (s *recSink) Message(m framing.Message, from Sender, _ time.Time) {
	s.held = append(s.held, heldMessage{string(m.Data), from.Conn, m.Flags})
	s.r.mu.Lock()
	s.r.from[from.Addr]++
	s.r.mu.Unlock()
}

func (s *recSink) Flush(ctx context.Context) error {
	if s.r.block != nil && len(s.held) > 0 {
		select {
		case <-s.r.block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.r.mu.Lock()
	for _, h := range s.held {
		s.r.got, s.r.conns, s.r.flags = append(s.r.got, h.text), append(s.r.conns, h.conn), append(s.r.flags, h.flags)
	}
	s.r.mu.Unlock()
	s.held = nil
	return nil
}

func (s *recSink) Close() {}

func newRecorder() *recorder { return &recorder{from: map[netip.AddrPort]int{}} }

func (r *recorder) open() Sink { return &recSink{r: r} }

func (r *recorder) at(i int) string { r.mu.Lock(); defer r.mu.Unlock(); return r.got[i] }

func (r *recorder) conn(i int) *Conn { r.mu.Lock(); defer r.mu.Unlock(); return r.conns[i] }

func (r *recorder) len() int { r.mu.Lock(); defer r.mu.Unlock(); return len(r.got) }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

var quietLog = slog.New(slog.DiscardHandler)

func dial(t *testing.T, s interface{ Addrs() []net.Addr }) net.Conn {
	t.Helper()
	a := s.Addrs()[0]
	c, err := net.Dial(a.Network(), a.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestTCPMessagesAndPeer(t *testing.T) {
	r := newRecorder()
	s, stop := serve(t, Options{Network: "tcp", Open: r.open})
	c := dial(t, s)
	fmt.Fprint(c, "one\ntwo\r\n5 <1>ab<13>three\nlast without end")
	c.Close()
	eventually(t, "five messages", func() bool { return r.len() == 5 })
	stop()
	if got := strings.Join(r.got, "|"); got != "one|two|<1>ab|<13>three|last without end" {
		t.Errorf("got %q", got)
	}
	if peer := c.LocalAddr().(*net.TCPAddr).AddrPort(); r.from[peer] != 5 {
		t.Errorf("messages by peer %v, want 5 of %v", r.from, peer)
	}
}

// What a sender had written before the stop arrives, also the line it had not
// ended, and Serve returns although the sender keeps its connection.
func TestTCPStopDrains(t *testing.T) {
	r := newRecorder()
	s, stop := serve(t, Options{Network: "tcp", Open: r.open})
	c := dial(t, s)
	fmt.Fprint(c, "first\n")
	eventually(t, "the first line", func() bool { return r.len() == 1 })
	var want int
	for range 1000 {
		want++
		fmt.Fprintf(c, "line %d\n", want)
	}
	fmt.Fprint(c, "open end")
	stop()
	if r.len() != want+2 || r.got[len(r.got)-1] != "open end" {
		t.Errorf("%d messages, the last %q; want %d and the open end", r.len(), r.got[len(r.got)-1], want+2)
	}
	if n := s.Stats.Open.Load(); n != 0 {
		t.Errorf("%d connections open after the stop", n)
	}
}

// A lane without room holds its connections back, and hard lets them go.
func TestTCPStopWhileBlocked(t *testing.T) {
	r := newRecorder()
	r.block = make(chan struct{})
	s, err := Listen(Options{Network: "tcp", Name: "tcp", Address: "127.0.0.1:0", Open: r.open, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	hard, kill := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Serve(ctx, hard); close(done) }()
	fmt.Fprint(dial(t, s), "x\n")
	eventually(t, "the byte count", func() bool { return s.Stats.Bytes.Load() == 2 })
	cancel()
	select {
	case <-done:
		t.Fatal("Serve returned while a record waited for room")
	case <-time.After(100 * time.Millisecond):
	}
	kill()
	<-done
}

func TestTCPMaxConnections(t *testing.T) {
	r := newRecorder()
	s, _ := serve(t, Options{Network: "tcp", Open: r.open, MaxConnections: 2})
	a, b := dial(t, s), dial(t, s)
	fmt.Fprint(a, "first\n")
	fmt.Fprint(b, "second\n")
	eventually(t, "two connections that have spoken", func() bool { return r.len() == 2 })
	if c, err := net.Dial("tcp", s.Addrs()[0].String()); err == nil { // the refusal may come before Dial has looked
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a third connection was served")
		}
		c.Close()
	}
	eventually(t, "the refusal", func() bool { return s.Stats.Refused.Load() == 1 })
	fmt.Fprint(a, "still\n")
	eventually(t, "a message of the first", func() bool { return r.len() == 3 })
	b.Close()
	eventually(t, "room again", func() bool { return s.Stats.Open.Load() == 1 })
	d := dial(t, s)
	fmt.Fprint(d, "again\n")
	eventually(t, "a message of the next", func() bool { return r.len() == 4 })
}

// At the limit, connections that have said nothing give way, the oldest first.
func TestSilentConnectionsGiveWay(t *testing.T) {
	r := newRecorder()
	s, _ := serve(t, Options{Network: "tcp", Open: r.open, MaxConnections: 8})
	spoken := dial(t, s)
	fmt.Fprint(spoken, "early\n")
	eventually(t, "its message", func() bool { return r.len() == 1 })
	var silent []net.Conn
	for i := range 7 {
		silent = append(silent, dial(t, s))
		eventually(t, "one more", func() bool { return s.Stats.Open.Load() == int64(i+2) })
	}
	for i := range 7 {
		fmt.Fprintf(dial(t, s), "honest %d\n", i)
		eventually(t, "an honest sender's message", func() bool { return r.len() == i+2 })
		if _, err := silent[i].Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("silent connection %d: %v, want a reset", i, err)
		}
	}
	fmt.Fprint(spoken, "late\n")
	eventually(t, "the first connection's", func() bool { return r.len() == 9 })
	if n := s.Stats.Evicted.Load(); n != 7 {
		t.Errorf("%d evicted, want 7", n)
	}
	if c, err := net.Dial("tcp", s.Addrs()[0].String()); err == nil {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a connection beyond those that speak was served")
		}
		c.Close()
	}
	eventually(t, "the refusal", func() bool { return s.Stats.Refused.Load() == 1 })
}

func TestTCPIdle(t *testing.T) {
	r := newRecorder()
	s, _ := serve(t, Options{Network: "tcp", Open: r.open, IdleTimeout: 100 * time.Millisecond})
	c := dial(t, s)
	fmt.Fprint(c, "partial")
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("an idle connection was kept")
	}
	eventually(t, "the partial message", func() bool { return r.len() == 1 && s.Stats.Idle.Load() == 1 })
}

// localhost is both loopback addresses, on one port.
func TestLocalhost(t *testing.T) {
	r := newRecorder()
	s, _ := serve(t, Options{Network: "tcp", Open: r.open, Address: "localhost:0"})
	u, err := Listen(Options{Network: "udp", Name: "udp", Address: "localhost:0", Open: r.open, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	has6 := false
	if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		has6 = true
		l.Close()
	}
	for _, addrs := range [][]net.Addr{s.Addrs(), u.Addrs()} {
		ports := map[int]bool{}
		var ips []string
		for _, a := range addrs {
			ap := netip.MustParseAddrPort(a.String())
			ports[int(ap.Port())] = true
			ips = append(ips, ap.Addr().String())
		}
		want := "127.0.0.1"
		if has6 {
			want += " ::1"
		}
		if len(ports) != 1 || strings.Join(ips, " ") != want {
			t.Errorf("localhost bound %v, want %s on one port", addrs, want)
		}
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Listen(Options{Network: "tcp", Name: "tcp", Address: l.Addr().String(), Log: quietLog})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), l.Addr().String()) || !strings.Contains(err.Error(), "choose another port") {
		t.Errorf("error %v", err)
	}
}

func serveUDP(t *testing.T, r *recorder, address string) (*Server, func()) {
	t.Helper()
	s, err := Listen(Options{Network: "udp", Name: "udp", Address: address, Open: r.open, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Serve(ctx, context.Background()); close(done) }()
	stop := sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return s, stop
}

func TestUDP(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::]:0"} {
		r := newRecorder()
		s, stop := serveUDP(t, r, address)
		_, port, _ := net.SplitHostPort(s.Addrs()[0].String())
		c, err := net.Dial("udp4", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		big := strings.Repeat("x", 65507)
		for _, m := range []string{"one", "two\nlines\n", "three\x00", "", big} {
			if _, err := c.Write([]byte(m)); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "four messages", func() bool { return r.len() == 4 })
		stop()
		if r.got[0] != "one" || r.got[1] != "two\nlines" || r.got[2] != "three" || r.got[3] != big {
			t.Errorf("%s: got %.80q", address, r.got)
		}
		if peer := c.LocalAddr().(*net.UDPAddr).AddrPort(); r.from[peer] != 4 {
			t.Errorf("%s: messages by peer %v, want 4 of %v", address, r.from, peer)
		}
		if s.Stats.Empty.Load() != 1 {
			t.Errorf("%s: %d empty datagrams counted", address, s.Stats.Empty.Load())
		}
		c.Close()
	}
}

// What the kernel holds at the stop is taken.
func TestUDPStopDrains(t *testing.T) {
	r := newRecorder()
	r.block = make(chan struct{})
	s, stop := serveUDP(t, r, "127.0.0.1:0")
	c := dial(t, s)
	const n = 200
	for i := range n {
		fmt.Fprintf(c, "datagram %d", i)
	}
	close(r.block)
	stop()
	if r.len() != n {
		t.Errorf("%d of %d datagrams", r.len(), n)
	}
}
