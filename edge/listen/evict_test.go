package listen

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// A connection that is evicted just as it speaks is reset, and nobody looks at it again.
func TestEvictedAsItSpeaks(t *testing.T) {
	s, err := Listen(Options{Network: "tcp", Address: "127.0.0.1:0", Open: newRecorder().open, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	peer := dial(t, s)
	io.WriteString(peer, "x\n")
	nc, err := s.sockets[0].l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := s.admit(nc, s.sockets[0])
	if !s.first(t.Context(), c, nil) {
		t.Fatal("it has not spoken")
	}
	s.mu.Lock()
	s.evict()
	s.mu.Unlock()
	if s.speaks(c) {
		t.Error("it may speak, evicted as it is")
	}
	done := make(chan struct{})
	go func() { s.read(t.Context(), t.Context(), c); s.gone(c); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it is looked at for ever")
	}
}

// At the limit, senders that speak at about the time at which they are evicted. Some did
// so just then, and a server that spins on one of those does not stop.
func TestEvictedAnytime(t *testing.T) {
	const senders, limit, lasts = 64, 16, 1500 * time.Millisecond
	tcp, stopTCP := serve(t, Options{Network: "tcp", Open: newRecorder().open, MaxConnections: limit})
	requests, _, stopHTTP := serveHTTP(t, HTTPOptions{Open: newStorer().open, MaxConnections: limit}, nil)
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	for i := range senders {
		to, text := tcp.Addrs()[0].String(), "x\n"
		if i%2 == 0 {
			to, text = requests.Addrs()[0].String(), head+"Content-Length: 1\r\nConnection: close\r\n\r\nx"
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := net.Dial("tcp", to)
				if err != nil {
					continue
				}
				time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
				io.WriteString(c, text)
				c.SetReadDeadline(time.Now().Add(time.Millisecond))
				c.Read(make([]byte, 1))
				c.Close()
			}
		})
	}
	wg.Wait()
	for _, stats := range []*Stats{&tcp.Stats, requests.Stats} {
		eventually(t, "every connection has ended", func() bool { return stats.Open.Load() == 0 })
		if stats.Evicted.Load() == 0 {
			t.Error("none was evicted")
		}
	}
	stopTCP()
	stopHTTP()
}
