package listen

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// However a stream is cut into writes, whatever pauses there are, and whether the
// sender or the stop ends it: what was written arrives, in order, once.
func TestAnyWrites(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	a := newAuthority(t)
	for _, network := range []string{"tcp", "tls", "unix"} {
		t.Run(network, func(t *testing.T) {
			r := newRecorder()
			o := Options{Network: network, Open: r.open, Memory: NewMemory(256 << 20)}
			switch network {
			case "tls":
				o.Network, o.TLS = "tcp", first(tlsOptions(t, a))
			case "unix":
				o.Address = filepath.Join(t.TempDir(), "s")
			}
			s, stop := serve(t, o)
			const senders = 8
			want := make([]int, senders) // lines that were written
			var wg sync.WaitGroup
			for i := range senders {
				rnd := rand.New(rand.NewPCG(seed, uint64(i)))
				c := dial(t, s)
				wg.Go(func() {
					if network == "tls" {
						c = tls.Client(c, &tls.Config{RootCAs: a.pool(), ServerName: "127.0.0.1"})
					}
					var text bytes.Buffer
					for range 40 {
						size := rnd.IntN(200)
						if rnd.IntN(5) == 0 {
							size = rnd.IntN(300 << 10)
						}
						fmt.Fprintf(&text, "%d %d %s\n", i, want[i], strings.Repeat("x", size))
						want[i]++
					}
					b := text.Bytes()
					for len(b) > 0 {
						n := min(len(b), 1+rnd.IntN(1<<rnd.IntN(18)))
						if _, err := c.Write(b[:n]); err != nil {
							t.Error(err)
							return
						}
						b = b[n:]
						if rnd.IntN(10) == 0 {
							time.Sleep(time.Duration(rnd.IntN(3000)) * time.Microsecond)
						}
					}
					if i%2 == 0 {
						c.Close()
					}
				})
			}
			wg.Wait()
			stop()
			next := make([]int, senders)
			for _, m := range r.got {
				var i, n int
				fmt.Sscan(m, &i, &n)
				if n != next[i] {
					t.Fatalf("seed %d: sender %d: message %d, want %d", seed, i, n, next[i])
				}
				next[i]++
			}
			for i := range want {
				if next[i] != want[i] {
					t.Errorf("seed %d: sender %d: %d messages, want %d", seed, i, next[i], want[i])
				}
			}
			if n := s.o.Memory.Held(); n != 0 {
				t.Errorf("seed %d: %d bytes held at the end", seed, n)
			}
		})
	}
}

// Whatever kind of server it was and whoever was connected, nothing is left of it.
func TestNothingLeft(t *testing.T) {
	a := newAuthority(t)
	for _, network := range []string{"tcp", "tls", "unix", "unixpacket", "unixgram", "udp"} {
		t.Run(network, func(t *testing.T) {
			before := runtime.NumGoroutine()
			r := newRecorder()
			o := Options{Network: network, Open: r.open, IdleTimeout: time.Hour}
			switch network {
			case "tls":
				o.Network, o.TLS = "tcp", first(tlsOptions(t, a))
			case "unix", "unixpacket", "unixgram":
				o.Address = filepath.Join(t.TempDir(), "s")
			}
			s, stop := serve(t, o)
			for i := range 20 {
				c := dial(t, s)
				switch {
				case i%4 == 0: // says nothing
				case network == "tls" && i%4 == 1:
					c.Write([]byte{22, 3, 1, 0, 200, 1})
				case network == "tls":
					tc, err := shake(c, &tls.Config{InsecureSkipVerify: true})
					if err != nil {
						t.Fatal(err)
					}
					fmt.Fprint(tc, "x\n")
				default:
					fmt.Fprint(c, "x\n")
				}
			}
			least := 15
			if network == "tls" {
				least = 10
			}
			eventually(t, "the messages", func() bool { return r.len() >= least })
			stop()
			eventually(t, "all goroutines ended", func() bool { return runtime.NumGoroutine() <= before })
			if n := len(s.conns); n != 0 || s.Stats.Open.Load() != 0 || len(s.turns.sem) != 0 || len(s.turns.idle) != 0 {
				t.Errorf("%d connections, %d turns, %d sinks", n, len(s.turns.sem), len(s.turns.idle))
			}
		})
	}
}
