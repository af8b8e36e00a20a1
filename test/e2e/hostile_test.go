package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/test/agent"
	"spillway/test/certs"
	"spillway/test/servers"
)

// A neighbour sends a line every millisecond while others misbehave: all of its
// lines must be stored.
type neighbour struct {
	conn net.Conn
	stop chan struct{}
	done chan struct{}
	sent int
	err  error
	gap  time.Duration // longest write
}

func newNeighbour(t *testing.T, port int) *neighbour {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	n := &neighbour{conn: c, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(n.done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-n.stop:
				return
			case <-tick.C:
			}
			begin := time.Now()
			if _, n.err = fmt.Fprintf(c, "<13>1 2026-11-21T12:00:00Z good neighbour - - - line %d\n", n.sent); n.err != nil {
				return
			}
			n.gap = max(n.gap, time.Since(begin))
			n.sent++
		}
	}()
	return n
}

// end stops the neighbour and returns how many lines it sent.
func (n *neighbour) end(t *testing.T) int {
	t.Helper()
	close(n.stop)
	<-n.done
	n.conn.Close()
	if n.err != nil {
		t.Errorf("the other sender: %v", n.err)
	}
	t.Logf("the other sender: %d lines, no write took longer than %v", n.sent, n.gap.Round(time.Microsecond))
	return n.sent
}

// files raises the limit of open files of this process, and with it the agent's.
func files(t *testing.T, need uint64) {
	t.Helper()
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	if l.Cur >= need {
		return
	}
	l.Cur, l.Max = need, max(need, l.Max)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		t.Fatalf("this test opens %d files: %v: raise the limit (ulimit -n)", need, err)
	}
}

func resident(t *testing.T, a *agent.Agent) int64 {
	t.Helper()
	n, err := a.Resident()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

const mib = 1 << 20

// 10,000 connections of which half never say anything and half said one line cost
// at most 100 MiB.
func TestIdleConnections(t *testing.T) {
	const n = 10_000
	files(t, n+1000)
	a := agent.New(t, t.TempDir(), "SPILLWAY_INPUT_TCP_MAX_CONNECTIONS=20000", "SPILLWAY_LOG_LEVEL=info")
	a.Start(t)
	before := resident(t, a)
	conns := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range n {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", a.TCP))
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns = append(conns, c)
		if i%2 == 1 {
			fmt.Fprintf(c, "<13>1 2026-11-21T12:00:00Z host idle - - - connection %d\n", i)
		}
	}
	agent.Eventually(t, "all connections are accepted and all lines delivered", time.Minute, func() bool {
		a.MustRun(t)
		return a.Metric(t, `spillway_input_open_connections{input="tcp"}`) == n && a.Metric(t, `spillway_lane_records_delivered_total{lane="main"}`) == n/2
	})
	after := resident(t, a)
	t.Logf("%d connections: %d MiB resident, %d MiB before", n, after/mib, before/mib)
	if after-before > 100*mib {
		t.Errorf("%d idle connections cost %d MiB", n, (after-before)/mib)
	}
}

// A peer that sends a message of 20 MiB in small pieces costs what it has sent so
// far, and one that announces as much costs nothing.
func TestTrickle(t *testing.T) {
	a := agent.New(t, t.TempDir(), "SPILLWAY_LOG_LEVEL=info")
	a.Start(t)
	good := newNeighbour(t, a.TCP)
	time.Sleep(500 * time.Millisecond) // its batches have their memory by then
	before := resident(t, a)

	var announced []net.Conn
	for range 100 {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", a.TCP))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "20000000 <13>1 2026-11-21T12:00:00Z host announced - - - begin")
		announced = append(announced, c)
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", a.TCP))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "<13>1 2026-11-21T12:00:00Z host trickle - - - ")
	piece := strings.Repeat("0123456789abcdef", 64<<10/16)
	sent := 0
	for _, goal := range []int{1, 5, 19} {
		for ; sent < goal*mib; sent += len(piece) {
			if _, err := c.Write([]byte(piece)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		read := float64(sent)
		agent.Eventually(t, "what was sent is read", 30*time.Second, func() bool {
			return a.Metric(t, `spillway_input_read_bytes_total{input="tcp"}`) >= read
		})
		grown := resident(t, a) - before
		t.Logf("%d MiB sent: %.1f MiB more resident", goal, float64(grown)/mib)
		// Growing is copying: for a moment the old memory and the new one exist, and
		// what was let go is the runtime's until its next collection.
		if most := int64(4*sent + 16*mib); grown > most {
			t.Errorf("%d MiB sent cost %d MiB, more than %d", goal, grown/mib, most/mib)
		}
	}
	fmt.Fprint(c, "\n")
	agent.Eventually(t, "the large message is delivered", 30*time.Second, func() bool {
		return a.Metric(t, `spillway_input_message_bytes_total{input="tcp"}`) >= 19*mib && a.Metric(t, `spillway_lane_pending_records{lane="main"}`) == 0
	})
	lines := good.end(t)
	for _, c := range announced {
		c.Close()
	}
	agent.Eventually(t, "all is stored and what was announced is counted", 30*time.Second, func() bool {
		return a.Metric(t, `spillway_input_messages_total{input="tcp"}`) == float64(lines+1) && a.Metric(t, `spillway_input_cut_frames_total{input="tcp"}`) == 100
	})
	if n := a.Metric(t, `spillway_input_oversize_total{input="tcp"}`); n != 0 {
		t.Errorf("%v messages counted over-size", n)
	}
}

// A stream of nine-digit counts is a stream of messages over the limit: memory stays
// within what the lane allows for unfinished messages, and others go on.
func TestLargeCounts(t *testing.T) {
	const peers, each = 40, 4 * mib
	a := agent.New(t, t.TempDir(), "SPILLWAY_LOG_LEVEL=info", "SPILLWAY_INPUT_TCP_MAX_MESSAGE_SIZE=1MiB", "SPILLWAY_MESSAGE_MEMORY=16MiB")
	a.Start(t)
	good := newNeighbour(t, a.TCP)
	time.Sleep(500 * time.Millisecond)
	before, most := resident(t, a), int64(0)
	var wg sync.WaitGroup
	piece := []byte(strings.Repeat("x", 32<<10))
	for range peers {
		wg.Go(func() {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", a.TCP))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for sent := 0; sent < each; sent += len(piece) {
				if sent%mib == 0 {
					fmt.Fprint(c, "999999999 <13>1 2026-11-21T12:00:00Z host counts - - - ")
				}
				if _, err := c.Write(piece); err != nil {
					return // closed: that is an answer too
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(20 * time.Millisecond):
		}
		most = max(most, resident(t, a))
	}
	t.Logf("%d peers sent %d MiB: %d MiB resident at most, %d before", peers, peers*each/mib, most/mib, before/mib)
	// 16 MiB are unfinished, and truncated ones on their way to the disk are records of
	// 1 MiB each, of which a lane may hold 64 MiB.
	if most > before+128*mib {
		t.Errorf("%d MiB resident", most/mib)
	}
	lines := good.end(t)
	agent.Eventually(t, "the other sender's lines are stored and the large ones counted", time.Minute, func() bool {
		m, err := a.Metrics()
		return err == nil && m[`spillway_input_oversize_total{input="tcp"}`] >= peers && m[`spillway_input_messages_total{input="tcp"}`] >= float64(lines+peers)
	})
}

// Thousands of connections a second that say nothing: memory bounded, the other
// sender not held up, every one counted. SPILLWAY_HOSTILE_FULL=1: 2,000 a second for
// 10 s; else as many for two seconds.
func TestConnectionFlood(t *testing.T) {
	const rate = 2000
	seconds := 2
	if os.Getenv("SPILLWAY_HOSTILE_FULL") != "" {
		seconds = 10
	}
	files(t, 20_000)
	a := agent.New(t, t.TempDir(), "SPILLWAY_LOG_LEVEL=debug")
	a.Start(t)
	good := newNeighbour(t, a.TCP)
	time.Sleep(500 * time.Millisecond)
	before, most := resident(t, a), int64(0)
	begin, made := time.Now(), 0
	var held []net.Conn // for half a second each
	for made < rate*seconds {
		if due := int(time.Since(begin).Seconds() * rate); made >= due {
			time.Sleep(time.Millisecond)
			continue
		}
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", a.TCP))
		if err != nil {
			t.Fatalf("connection %d: %v", made, err)
		}
		made++
		c.(*net.TCPConn).SetLinger(0) // leaves no TIME_WAIT behind
		if held = append(held, c); len(held) > rate/2 {
			held[0].Close()
			held = held[1:]
		}
		if made%200 == 0 {
			most = max(most, resident(t, a))
		}
	}
	took := time.Since(begin)
	for _, c := range held {
		c.Close()
	}
	t.Logf("%d connections in %v: %d MiB resident at most, %d before", made, took.Round(time.Millisecond), most/mib, before/mib)
	if most > before+40*mib {
		t.Errorf("%d MiB resident", most/mib)
	}
	lines := good.end(t)
	agent.Eventually(t, "all is counted", 30*time.Second, func() bool {
		m, err := a.Metrics()
		return err == nil && m[`spillway_input_connections_total{input="tcp"}`] == float64(made+1) && m[`spillway_input_open_connections{input="tcp"}`] == 0 &&
			m[`spillway_input_messages_total{input="tcp"}`] == float64(lines)
	})
	if log := a.LogTail(1 << 20); strings.Count(log, "\n") > 200 {
		t.Errorf("%d lines of log", strings.Count(log, "\n"))
	}
}

// TLS clients that never finish their handshakes are let go and counted; others get
// theirs meanwhile.
func TestHandshakeNeverFinished(t *testing.T) {
	const stuck = 300
	files(t, 4000)
	ca := certs.New(t)
	cert, key := ca.Issue("server", time.Now().Add(time.Hour))
	address := fmt.Sprintf("127.0.0.1:%d", servers.FreePort(t))
	a := agent.New(t, t.TempDir(), "SPILLWAY_LOG_LEVEL=info", "SPILLWAY_INPUTS=tcp,tls", "SPILLWAY_INPUT_TLS_URL=tls://"+address,
		"SPILLWAY_INPUT_TLS_TLS_CERT_FILE="+cert, "SPILLWAY_INPUT_TLS_TLS_KEY_FILE="+key)
	a.Start(t)
	before := resident(t, a)
	begin := time.Now()
	for i := range stuck {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 { // half of a ClientHello
			c.Write([]byte{0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03})
		}
	}
	for i := range 20 {
		c, err := tls.Dial("tcp", address, ca.Client(""))
		if err != nil {
			t.Fatalf("a good client, while %d are stuck: %v", stuck, err)
		}
		fmt.Fprintf(c, "<13>1 2026-11-21T12:00:00Z host tls - - - line %d\n", i)
		c.Close()
	}
	t.Logf("%d stuck handshakes: %d MiB resident, %d before", stuck, resident(t, a)/mib, before/mib)
	if r := resident(t, a); r > before+30*mib {
		t.Errorf("%d MiB resident", r/mib)
	}
	agent.Eventually(t, "the stuck ones are closed and counted", 30*time.Second, func() bool {
		m, err := a.Metrics()
		return err == nil && m[`spillway_input_tls_failures_total{input="tls",reason="timeout"}`] == stuck && m[`spillway_input_messages_total{input="tls"}`] == 20 &&
			m[`spillway_input_open_connections{input="tls"}`] == 0
	})
	t.Logf("all let go %v after the first", time.Since(begin).Round(time.Millisecond))
}
