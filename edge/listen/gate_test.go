package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// testGate is shut and opened by a test.
type testGate struct {
	mu   sync.Mutex
	shut chan struct{}
	open chan struct{}
}

func newTestGate() *testGate { return &testGate{shut: make(chan struct{})} }

func (g *testGate) Shut() <-chan struct{} { g.mu.Lock(); defer g.mu.Unlock(); return g.shut }

func (g *testGate) Wait(ctx context.Context) error {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	if open == nil {
		return nil
	}
	select {
	case <-open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *testGate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
	close(g.shut)
}

func (g *testGate) reopen() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = make(chan struct{})
	close(g.open)
	g.open = nil
}

// auditor sends as a Vault audit device does: it connects when it has something to
// write, never reads, and after an error connects and writes once more.
type auditor struct {
	addr    net.Addr
	c       net.Conn
	written int          // entries that the kernel took
	failed  atomic.Int64 // both attempts
}

func (a *auditor) send() {
	entry := []byte(fmt.Sprintf("entry %d\n", a.written))
	for range 2 {
		if a.c == nil {
			c, err := net.DialTimeout(a.addr.Network(), a.addr.String(), time.Second)
			if err != nil {
				continue
			}
			a.c = c
		}
		a.c.SetWriteDeadline(time.Now().Add(time.Minute))
		if _, err := a.c.Write(entry); err == nil {
			a.written++
			return
		}
		a.c.Close()
		a.c = nil
	}
	a.failed.Add(1)
}

// ownAddress is one that no other program has: while the input refuses, somebody else
// could take a port of 127.0.0.1, and the sender's entries.
func ownAddress() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d:9090", 1+pid>>16&63, pid>>8&255, pid&255)
}

// An input that refuses takes what was sent, refuses what comes, and comes back where
// it was. A sender that tries again loses nothing on a unix socket, and on tcp at most
// what was on its way as the connection was reset.
func TestRefuse(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket", "tcp"} {
		t.Run(network, func(t *testing.T) {
			r, log, g := newRecorder(), &logs{}, newTestGate()
			o := Options{Network: network, Gate: g, Open: r.open, Log: log.logger()}
			if network != "tcp" {
				o.Address = filepath.Join(t.TempDir(), "s")
			} else {
				o.Address = ownAddress()
			}
			s, stop := serve(t, o)
			addr := s.Addrs()[0]
			a := &auditor{addr: addr}
			var rest sync.WaitGroup
			var end atomic.Bool
			rest.Go(func() {
				for !end.Load() {
					a.send()
					if a.written%20 == 0 {
						time.Sleep(300 * time.Microsecond)
					}
				}
			})
			const rounds = 3
			for i := range rounds {
				n := r.len()
				eventually(t, "messages", func() bool { return r.len() > n+50 })
				g.close()
				eventually(t, "refusal", func() bool { return s.Stats.Shut.Load() == int64(i+1) })
				failed := a.failed.Load()
				eventually(t, "an entry that is refused", func() bool { return a.failed.Load() > failed })
				if c, err := net.Dial(addr.Network(), addr.String()); err == nil {
					t.Error("a connection while the input refuses")
					c.Close()
				}
				g.reopen()
			}
			n := r.len()
			eventually(t, "messages at the end", func() bool { return r.len() > n+50 })
			stop()
			end.Store(true)
			rest.Wait()
			lost := a.written - r.len()
			t.Logf("%d written, %d failed, %d lost in %d closes", a.written, a.failed.Load(), lost, rounds+1)
			if network == "tcp" && lost > rounds+1 || network != "tcp" && lost != 0 {
				t.Errorf("%d of %d lost", lost, a.written)
			}
			if strings.Count(log.String(), "refused until there is") != rounds || strings.Count(log.String(), "has room again") != rounds {
				t.Errorf("log\n%s", log)
			}
			if s.Addrs()[0].String() != addr.String() {
				t.Errorf("came back at %v, was at %v", s.Addrs()[0], addr)
			}
		})
	}
}

// A stop while the input refuses is a stop.
func TestStopWhileRefusing(t *testing.T) {
	g := newTestGate()
	s, stop := serve(t, Options{Network: "tcp", Gate: g, Open: newRecorder().open})
	g.close()
	eventually(t, "refusal", func() bool { return s.Stats.Shut.Load() == 1 })
	stop()
}

func TestRefuseIsNotForDatagrams(t *testing.T) {
	for _, network := range []string{"udp", "unixgram"} {
		_, err := Listen(Options{Network: network, Address: map[string]string{"udp": "127.0.0.1:0", "unixgram": "@spillway-test-refuse"}[network], Variable: "SPILLWAY_INPUT_IN_", Gate: newTestGate(), Log: quietLog})
		if err == nil || !strings.HasPrefix(err.Error(), "SPILLWAY_INPUT_IN_ON_FULL=refuse is not for datagrams") {
			t.Errorf("%s: %v", network, err)
		}
	}
}

// Whoever was connected when the connection was ended learns of it with its next
// write, also one that never reads.
func TestEndIsNoticed(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket", "tcp"} {
		for _, how := range []string{"stop", "idle"} {
			t.Run(network+how, func(t *testing.T) {
				r := newRecorder()
				o := Options{Network: network, Open: r.open}
				if network != "tcp" {
					o.Address = filepath.Join(t.TempDir(), "s")
				}
				if how == "idle" {
					o.IdleTimeout = 500 * time.Millisecond
				}
				s, stop := serve(t, o)
				c, silent := dial(t, s), dial(t, s)
				eventually(t, "both connections", func() bool { return s.Stats.Connections.Load() == 2 })
				fmt.Fprint(c, "one\n")
				eventually(t, "a message", func() bool { return r.len() == 1 })
				if how == "stop" {
					stop()
				}
				eventually(t, "the end", func() bool { return s.Stats.Open.Load() == 0 })
				for _, c := range []net.Conn{c, silent} {
					if _, err := fmt.Fprint(c, "two\n"); !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
						t.Errorf("the next write: %v", err)
					}
				}
				if want := map[string]int64{"idle": 2, "stop": 0}[how]; s.Stats.Idle.Load() != want {
					t.Errorf("%d idle", s.Stats.Idle.Load())
				}
			})
		}
	}
}
