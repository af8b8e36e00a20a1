package listen

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/framing"
)

// A sender that never ends its message is not idle, and its connection ends all the
// same; what it sent arrives. One whose messages come in pieces stays.
func TestMessageAge(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	for _, kind := range []string{"tcp", "tls", "unix"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			secure := kind == "tls"
			r, log := newRecorder(), &logs{}
			o := Options{Network: "tcp", Open: r.open, Log: log.logger(), IdleTimeout: time.Minute, MaxMessageAge: 2 * time.Second}
			switch kind {
			case "tls":
				o.TLS, _ = tlsOptions(t, a)
			case "unix":
				o.Network, o.Address = kind, t.TempDir()+"/s"
			}
			s, stop := serve(t, o)
			connect := func() net.Conn {
				c := dial(t, s)
				if !secure {
					return c
				}
				sc, err := shake(c, &tls.Config{RootCAs: a.pool(), ServerName: "127.0.0.1"})
				if err != nil {
					t.Fatal(err)
				}
				return sc
			}
			slow, good := connect(), connect()
			end := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() { // there is always half a message, and never one for long
				defer good.Close()
				for {
					fmt.Fprintf(good, "half\nand")
					select {
					case <-time.After(100 * time.Millisecond):
					case <-end:
						fmt.Fprint(good, "half\n")
						return
					}
				}
			})
			began := time.Now()
			sent := 0
			var err error
			for ; err == nil && time.Since(began) < 30*time.Second; sent++ {
				_, err = slow.Write([]byte("x"))
				time.Sleep(10 * time.Millisecond)
			}
			if took := time.Since(began); err == nil || took < o.MaxMessageAge {
				t.Errorf("after %v: %v", took, err)
			}
			time.Sleep(2 * o.MaxMessageAge)
			close(end)
			wg.Wait()
			eventually(t, "both have gone", func() bool { return s.Stats.Open.Load() == 0 })
			stop()
			xs, halves := "", 0
			for i, m := range r.got {
				if strings.HasPrefix(m, "x") {
					xs = m
					if r.flags[i] != framing.Unterminated {
						t.Errorf("flags %v", r.flags[i])
					}
				} else {
					halves++
				}
			}
			if len(xs) < 10 || len(xs) > sent || strings.Trim(xs, "x") != "" {
				t.Errorf("%d bytes of %d arrived", len(xs), sent)
			}
			if halves < 10 || s.Stats.Stale.Load() != 1 || s.Stats.Idle.Load() != 0 {
				t.Errorf("%d other messages, %d connections ended for age, %d for being idle", halves, s.Stats.Stale.Load(), s.Stats.Idle.Load())
			}
			if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "SPILLWAY_INPUT_IN_MAX_MESSAGE_AGE") {
				t.Errorf("log\n%s", log)
			}
		})
	}
}

// A message does not age while the agent has no room and so does not read on.
func TestMessageAgeWhileBlocked(t *testing.T) {
	t.Parallel()
	r := newRecorder()
	r.block = make(chan struct{})
	const age = 3 * time.Second
	s, stop := serve(t, Options{Network: "tcp", Open: r.open, MaxMessageAge: age})
	c := dial(t, s)
	fmt.Fprint(c, "begin ")
	eventually(t, "the beginning", func() bool { return s.Stats.Bytes.Load() == 6 })
	for range cap(s.turns.sem) {
		fmt.Fprint(dial(t, s), "x\n")
	}
	eventually(t, "no turn is free", func() bool { return len(s.turns.sem) == cap(s.turns.sem) })
	fmt.Fprint(c, "and ")
	time.Sleep(age + age/5)
	read := s.Stats.Bytes.Load()
	close(r.block)
	eventually(t, "it to be read on", func() bool { return s.Stats.Bytes.Load() > read })
	fmt.Fprint(c, "end\n")
	eventually(t, "the messages", func() bool { return r.len() == cap(s.turns.sem)+1 })
	stop()
	if !slices.Contains(r.got, "begin and end") || s.Stats.Stale.Load() != 0 {
		t.Errorf("%d ended for age, got %q", s.Stats.Stale.Load(), r.got)
	}
}

// Without a bound of age, and with one that is not due, a message may take its time.
func TestMessageAgeOff(t *testing.T) {
	t.Parallel()
	for _, age := range []time.Duration{0, time.Minute} {
		r := newRecorder()
		s, _ := serve(t, Options{Network: "tcp", Open: r.open, MaxMessageAge: age})
		c := dial(t, s)
		for range 20 {
			fmt.Fprint(c, "x")
			time.Sleep(10 * time.Millisecond)
		}
		fmt.Fprint(c, "\n")
		eventually(t, "the message", func() bool { return r.len() == 1 })
		if s.Stats.Stale.Load() != 0 || len(r.at(0)) != 20 {
			t.Errorf("%v: %q", age, r.at(0))
		}
	}
}

// A message of several lines, which only the next one would end, is handed out when its
// sender pauses, and not before.
func TestReleased(t *testing.T) {
	for _, tt := range []struct {
		name    string
		framing framing.Options
		pieces  []string // with a short pause between them
		want    string
		flags   framing.Flags
	}{
		{"lines that belong together", framing.Options{Multiline: framing.MultilinePRI}, []string{"<13>trace\n", "  at f()\n", "  at g()\n"}, "<13>trace\n  at f()\n  at g()", framing.Multiline},
		{"one line", framing.Options{Multiline: framing.MultilinePRI}, []string{"<13>text\n"}, "<13>text", 0},
		{"after NUL", framing.Options{}, []string{"<13>first\x00<13>a line\n"}, "<13>first|<13>a line", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRecorder()
			s, _ := serve(t, Options{Network: "tcp", Open: r.open, Framing: tt.framing, MaxMessageAge: time.Minute})
			c := dial(t, s)
			var last time.Time // just before the last piece
			for i, p := range tt.pieces {
				if i > 0 {
					time.Sleep(100 * time.Millisecond)
				}
				last = time.Now()
				fmt.Fprint(c, p)
			}
			n := 1 + strings.Count(tt.want, "|")
			eventually(t, "the message", func() bool { return r.len() == n })
			if took := time.Since(last); took < releaseAfter {
				t.Errorf("after %v", took)
			}
			fmt.Fprint(c, "<13>next\n")
			c.Close()
			eventually(t, "what follows", func() bool { return r.len() == n+1 })
			if got := strings.Join(r.got, "|"); got != tt.want+"|<13>next" || r.flags[n-1] != tt.flags {
				t.Errorf("%q, flags %v", got, r.flags)
			}
		})
	}
}

// A message that goes on for ever, line by line, is handed out at the bound of age; its
// connection stays.
func TestReleasedByAge(t *testing.T) {
	t.Parallel()
	r := newRecorder()
	s, _ := serve(t, Options{Network: "tcp", Open: r.open, Framing: framing.Options{Multiline: framing.MultilinePRI}, MaxMessageAge: time.Second})
	c := dial(t, s)
	began := time.Now()
	for r.len() < 3 && time.Since(began) < 30*time.Second {
		if _, err := fmt.Fprint(c, "  at f()\n"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if r.len() < 3 || s.Stats.Stale.Load() != 0 || !strings.Contains(r.at(1), "\n") {
		t.Errorf("messages %q, %d connections ended", r.got, s.Stats.Stale.Load())
	}
}

// The framing that a sender uses and its input does not expect is told once for each
// connection, and counted by connections.
func TestLooks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, send, hint string
		framing          framing.Mode
		count            func(*Stats) int64
	}{
		{"counted", "9 <13>texts\n9 <13>texts\n9 <13>texts\n", "FRAMING=auto or rfc6587", framing.Delimiter, func(s *Stats) int64 { return s.LooksCounted.Load() }},
		{"jsonx", "<json:object name=\"auth\"><json:string name=\"a\">x\n</json:string>\n</json:object>\n", "FRAMING=jsonx", framing.Delimiter, func(s *Stats) int64 { return s.LooksJSONX.Load() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, log := newRecorder(), &logs{}
			s, stop := serve(t, Options{Network: "tcp", Open: r.open, Log: log.logger(), Framing: framing.Options{Mode: tt.framing}})
			var conns []net.Conn
			for i := range 3 {
				conns = append(conns, dial(t, s))
				for k := range 2 {
					fmt.Fprint(conns[i], tt.send)
					eventually(t, "the messages", func() bool { return r.len() == (2*i+k+1)*3 })
				}
			}
			stop()
			if n := tt.count(&s.Stats); n != 3 {
				t.Errorf("%d counted", n)
			}
			if n := strings.Count(log.String(), "\n"); n != 3 {
				t.Errorf("%d log lines\n%s", n, log)
			}
			for _, c := range conns {
				if strings.Count(log.String(), "peer="+c.LocalAddr().String()) != 1 || !strings.Contains(log.String(), tt.hint) {
					t.Errorf("not told of %v in\n%s", c.LocalAddr(), log)
				}
			}
		})
	}
}

// A sender that says one thing without a line end and goes is looked at too.
func TestLooksAtTheEnd(t *testing.T) {
	r := newRecorder()
	s, _ := serve(t, Options{Network: "tcp", Open: r.open, Framing: framing.Options{Mode: framing.Delimiter}})
	c := dial(t, s)
	fmt.Fprint(c, "9 <13>texts")
	c.Close()
	eventually(t, "the message", func() bool { return r.len() == 1 })
	eventually(t, "it to be noticed", func() bool { return s.Stats.LooksCounted.Load() == 1 })
}

// Who connects to a unix socket is who its kernel says.
func TestPeerUID(t *testing.T) {
	me := uint32(os.Getuid())
	for _, network := range []string{"unix", "unixpacket"} {
		for _, tt := range []struct {
			uids []uint32
			may  bool
		}{
			{nil, true},
			{[]uint32{me}, true},
			{[]uint32{me + 1, me}, true},
			{[]uint32{me + 1}, false},
		} {
			t.Run(fmt.Sprint(network, tt.uids), func(t *testing.T) {
				r, log := newRecorder(), &logs{}
				s, stop := serve(t, Options{Network: network, Address: t.TempDir() + "/s", Open: r.open, Log: log.logger(), PeerUIDs: tt.uids})
				for range 2 {
					c := dial(t, s)
					fmt.Fprint(c, "one\n")
					if !tt.may {
						if _, err := c.Read(make([]byte, 1)); err == nil {
							t.Error("it stays open")
						}
					}
				}
				if tt.may {
					eventually(t, "the messages", func() bool { return r.len() == 2 })
				}
				stop()
				if tt.may != (s.Stats.Denied.Load() == 0) || tt.may != (r.len() == 2) {
					t.Errorf("%d denied, messages %q", s.Stats.Denied.Load(), r.got)
				}
				told := fmt.Sprintf("uid=%d pid=%d ", me, os.Getpid())
				if !tt.may && (s.Stats.Denied.Load() != 2 || strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), told)) {
					t.Errorf("%d denied, no %s once in\n%s", s.Stats.Denied.Load(), told, log)
				}
			})
		}
	}
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "udp": "127.0.0.1:0", "unixgram": t.TempDir() + "/s"} {
		if s, err := Listen(Options{Network: network, Address: address, Variable: "SPILLWAY_INPUT_IN_", PeerUIDs: []uint32{me}, Log: quietLog}); err == nil || !strings.HasPrefix(err.Error(), "SPILLWAY_INPUT_IN_PEER_UID: ") {
			t.Errorf("%s: %v", network, err)
			if err == nil {
				s.Close()
			}
		}
	}
	for network, address := range map[string]string{"udp": "127.0.0.1:0", "unix": t.TempDir() + "/s"} {
		if s, err := Listen(Options{Network: network, Address: address, Variable: "SPILLWAY_INPUT_IN_", ProxyProtocol: ProxyV1, Log: quietLog}); err == nil || !strings.HasPrefix(err.Error(), "SPILLWAY_INPUT_IN_PROXY_PROTOCOL: ") {
			t.Errorf("%s: %v", network, err)
			if err == nil {
				s.Close()
			}
		}
	}
}

// A port that needs a privilege is refused by name. The thread that asks has none.
func TestPrivilegedPort(t *testing.T) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		err := unix.Capget(&header, &caps[0])
		if err == nil {
			caps[0].Effective &^= 1 << unix.CAP_NET_BIND_SERVICE
			err = unix.Capset(&header, &caps[0])
		}
		if err != nil {
			done <- fmt.Errorf("capset: %w", err)
			return
		}
		s, err := Listen(Options{Network: "tcp", Address: "127.0.0.1:7", Variable: "SPILLWAY_INPUT_IN_", Log: quietLog})
		if err == nil {
			s.Close()
		}
		done <- err
	}()
	err := <-done
	if err == nil {
		if b, _ := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); strings.TrimSpace(string(b)) < "8" && len(strings.TrimSpace(string(b))) == 1 {
			return // this host asks for no privilege
		}
	}
	if !errors.Is(err, os.ErrPermission) || !strings.HasPrefix(err.Error(), "SPILLWAY_INPUT_IN_URL: 127.0.0.1:7 is not allowed") || !strings.Contains(err.Error(), "CAP_NET_BIND_SERVICE") {
		t.Errorf("%v", err)
	}
}
