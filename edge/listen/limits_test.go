package listen

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/framing"
)

// Many senders that trickle messages without an end hold no more than they may, all
// is counted, and a sender that behaves notices nothing.
func TestMemory(t *testing.T) {
	for _, policy := range []framing.Oversize{framing.Truncate, framing.Split, framing.Drop, framing.Close} {
		t.Run(policy.String(), func(t *testing.T) {
			const limit, senders, each = 4 << 20, 50, 400 << 10
			r, log := newRecorder(), &logs{}
			m := NewMemory(limit)
			s, stop := serve(t, Options{Network: "tcp", Open: r.open, Memory: m, Log: log.logger(), Framing: framing.Options{Oversize: policy}})
			var wg sync.WaitGroup
			for i := range senders {
				c := dial(t, s)
				rnd := rand.New(rand.NewPCG(1, uint64(i)))
				wg.Go(func() {
					for sent := 0; sent < each; {
						n := 1 + rnd.IntN(32<<10)
						if _, err := c.Write([]byte(strings.Repeat("x", n))); err != nil {
							if policy != framing.Close {
								t.Error(err)
							}
							return
						}
						sent += n
					}
				})
			}
			most := int64(0)
			done := make(chan struct{})
			go func() { wg.Wait(); close(done) }()
			good := dial(t, s)
			lines := 0
			for end := false; !end; {
				select {
				case <-done:
					end = true
				default:
				}
				most = max(most, m.Held())
				fmt.Fprintln(good, "good")
				lines++
				time.Sleep(time.Millisecond)
			}
			eventually(t, "all is read", func() bool {
				return s.Stats.Bytes.Load() >= senders*each || policy == framing.Close && s.Stats.MemoryCut.Load() >= 5
			})
			stop()
			// Each may read once more before it looks, and its buffer may grow by as much.
			if bound := int64(limit + senders*2*readSize); most > bound {
				t.Errorf("%d bytes held, bound %d", most, bound)
			}
			if m.Held() != 0 || len(m.uses) != 0 {
				t.Errorf("%d bytes held by %d when all are gone", m.Held(), len(m.uses))
			}
			if n := s.Stats.MemoryCut.Load(); n < 5 || n > s.Stats.Oversize.Load() {
				t.Errorf("%d cut, %d over-size", n, s.Stats.Oversize.Load())
			}
			if n := strings.Count(log.String(), "take all the memory"); n != 1 {
				t.Errorf("told %d times", n)
			}
			n := 0
			for _, g := range r.got {
				if g == "good" {
					n++
				}
			}
			if n != lines {
				t.Errorf("%d of %d messages of a sender that behaves", n, lines)
			}
		})
	}
}

// A connection that waits when its message is chosen is woken for it.
func TestMemoryWakes(t *testing.T) {
	r := newRecorder()
	m := NewMemory(1 << 20)
	s, _ := serve(t, Options{Network: "tcp", Open: r.open, Memory: m})
	large, small := dial(t, s), dial(t, s)
	fmt.Fprint(large, strings.Repeat("l", 700<<10))
	eventually(t, "the large one", func() bool { return m.Held() >= 700<<10 })
	fmt.Fprint(small, strings.Repeat("s", 400<<10))
	eventually(t, "the cut", func() bool { return r.len() == 1 && m.Held() < 1<<20 })
	if r.at(0)[0] != 'l' || s.Stats.MemoryCut.Load() != 1 {
		t.Errorf("%.10q was cut, %d counted", r.at(0), s.Stats.MemoryCut.Load())
	}
	fmt.Fprint(small, "\n")
	fmt.Fprint(large, "\nnext\n")
	eventually(t, "the others", func() bool { return r.len() == 3 })
}

func TestAllow(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			r, log := newRecorder(), &logs{}
			allow := []netip.Prefix{netip.MustParsePrefix("127.0.0.2/31"), netip.MustParsePrefix("192.0.2.0/24")}
			s, _ := serve(t, Options{Network: network, Address: "[::]:0", Open: r.open, Allow: allow, Log: log.logger()})
			_, port, _ := net.SplitHostPort(s.Addrs()[0].String())
			send := func(from string) {
				t.Helper()
				var a net.Addr = &net.TCPAddr{IP: net.ParseIP(from)}
				if network == "udp" {
					a = &net.UDPAddr{IP: net.ParseIP(from)}
				}
				c, err := (&net.Dialer{LocalAddr: a}).Dial(network, "127.0.0.1:"+port)
				if errors.Is(err, syscall.ECONNRESET) {
					return // denied, and noticed already
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				fmt.Fprintf(c, "from %s\n", from)
			}
			for range 3 {
				send("127.0.0.1")
			}
			send("127.0.0.3")
			eventually(t, "three denied and a message", func() bool { return s.Stats.Denied.Load() == 3 && r.len() == 1 })
			if r.at(0) != "from 127.0.0.3" || strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "SPILLWAY_INPUT_IN_ALLOW") {
				t.Errorf("got %q, log\n%s", r.at(0), log)
			}
		})
	}
}

// Connections that say nothing make no sink, and do not disturb the others.
func TestConnectionsThatSayNothing(t *testing.T) {
	r := newRecorder()
	var sinks atomic.Int64
	s, stop := serve(t, Options{Network: "tcp", MaxConnections: 200, Open: func() Sink { sinks.Add(1); return r.open() }})
	good := dial(t, s)
	fmt.Fprint(good, "first\n")
	eventually(t, "the first message", func() bool { return r.len() == 1 })
	lines := 1
	for i := range 1000 {
		c, err := net.Dial("tcp", s.Addrs()[0].String())
		if errors.Is(err, syscall.ECONNRESET) {
			continue // refused
		}
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			c.Close() // a port check
		} else {
			t.Cleanup(func() { c.Close() })
		}
		if i%10 == 0 {
			fmt.Fprint(good, "more\n")
			lines++
		}
	}
	eventually(t, "all messages", func() bool { return r.len() == lines })
	eventually(t, "all connections", func() bool { return s.Stats.Connections.Load() == 1001 })
	stop()
	if n := s.Stats.Evicted.Load(); n < 200 || s.Stats.Refused.Load() != 0 || sinks.Load() != 1 {
		t.Errorf("%d gave way to others, %d refused, %d sinks", n, s.Stats.Refused.Load(), sinks.Load())
	}
}

// A count of nine digits costs nothing until the bytes come.
func TestAnnouncedCostsNothing(t *testing.T) {
	r := newRecorder()
	m := NewMemory(64 << 20)
	s, stop := serve(t, Options{Network: "tcp", Open: r.open, Memory: m})
	for range 100 {
		fmt.Fprint(dial(t, s), "999999999 <13>x")
	}
	eventually(t, "all", func() bool { return s.Stats.Bytes.Load() == 1500 })
	eventually(t, "what they hold", func() bool { return m.Held() > 0 })
	time.Sleep(2 * gather)
	eventually(t, "at most 4 KiB for each", func() bool { return m.Held() <= 100*(4<<10) })
	stop()
}

// The kernel's drops are counted exactly, and told to a sink that wants to know.
func TestKernelDrops(t *testing.T) {
	sink := &dropSink{countSink: countSink{pause: 50 * time.Millisecond}}
	log := &logs{}
	s, _ := serve(t, Options{Network: "udp", ReceiveBuffer: 64 << 10, Open: func() Sink { return sink }, Log: log.logger()})
	c := dial(t, s)
	const n = 20_000
	payload := []byte(strings.Repeat("x", 200))
	for range n {
		c.Write(payload)
	}
	eventually(t, "sent = received + dropped", func() bool { return sink.flushed.Load()+s.Stats.KernelDrops.Load() == n })
	c.Write(payload)
	eventually(t, "one more", func() bool { return sink.flushed.Load()+s.Stats.KernelDrops.Load() == n+1 })
	if d := s.Stats.KernelDrops.Load(); d == 0 || sink.dropped.Load() != d || strings.Count(log.String(), "the kernel dropped datagrams") != 1 {
		t.Errorf("%d dropped, %d told, log\n%s", d, sink.dropped.Load(), log)
	}
	if got := s.Stats.ReceiveBuffer.Load(); got != 64<<10 {
		t.Errorf("receive buffer of %d", got)
	}
}

type dropSink struct {
	countSink
	dropped atomic.Int64
}

func (s *dropSink) Dropped(n uint64, since time.Time) {
	if since.IsZero() || time.Since(since) > time.Minute {
		panic(since)
	}
	s.dropped.Add(int64(n))
}

// A connection that says nothing costs little, and hardly more after it has sent.
func TestIdleCost(t *testing.T) {
	const n, most = 400, 12 << 10
	sink := &countSink{}
	s, stop := serve(t, Options{Network: "tcp", Open: func() Sink { return sink }, Memory: NewMemory(64 << 20), IdleTimeout: time.Hour})
	used := func() int64 {
		runtime.GC()
		runtime.GC() // what pools held is gone after two
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	before := used()
	// The clients are plain descriptors, which cost no memory of this process.
	port := s.Addrs()[0].(*net.TCPAddr).Port
	var clients []int
	for range n {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err == nil {
			err = syscall.Connect(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
		}
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, fd)
		defer syscall.Close(fd)
	}
	eventually(t, "all connections", func() bool { return s.Stats.Open.Load() == n })
	silent := (used() - before) / n
	for _, fd := range clients {
		if _, err := syscall.Write(fd, []byte("<13>Nov 21 12:00:00 host app[1]: a message\n")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all messages", func() bool { return sink.flushed.Load() == n })
	time.Sleep(2 * gather)
	spoken := (used() - before) / n
	for end := time.Now().Add(time.Minute); spoken > most && time.Now().Before(end); time.Sleep(gather) {
		spoken = (used() - before) / n // not all of them may have rested by then
	}
	t.Logf("%d bytes for a connection that says nothing, %d for one that has sent", silent, spoken)
	if silent > most || spoken > most {
		t.Errorf("%d and %d bytes for a connection, want at most %d", silent, spoken, most)
	}
	stop()
}

// Senders that are silent are asked whether they are there as often as was set.
func TestKeepAlive(t *testing.T) {
	for _, kind := range []string{"tcp", "http"} {
		for _, every := range []time.Duration{0, 45 * time.Second} {
			var s *Server
			if kind == "tcp" {
				s, _ = serve(t, Options{Network: "tcp", Open: newRecorder().open, KeepAlive: every})
			} else {
				h, _, _ := serveHTTP(t, HTTPOptions{Open: newStorer().open, KeepAlive: every}, nil)
				s = h.s
			}
			dial(t, s)
			eventually(t, "the connection", func() bool { return s.Stats.Open.Load() == 1 })
			get := func(level, option int) (n int) {
				s.mu.Lock()
				defer s.mu.Unlock()
				for c := range s.conns {
					c.rc.Control(func(fd uintptr) { n, _ = unix.GetsockoptInt(int(fd), level, option) })
				}
				return n
			}
			if on := get(unix.SOL_SOCKET, unix.SO_KEEPALIVE) == 1; on != (every > 0) {
				t.Errorf("%s %v: on %t", kind, every, on)
			}
			idle, interval, count := get(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE), get(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL), get(unix.IPPROTO_TCP, unix.TCP_KEEPCNT)
			if every > 0 && (idle != 45 || interval != 45 || count != 3) {
				t.Errorf("%s: after %d s, each %d s, %d times", kind, idle, interval, count)
			}
		}
	}
}
