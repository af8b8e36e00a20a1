package listen

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"spillway/framing"
)

const (
	// drainTime bounds how long a connection is read after the stop: what its
	// sender had sent by then is in the socket buffer.
	drainTime = time.Second
	// quiet is how long a connection must send nothing to be called drained.
	quiet = 50 * time.Millisecond

	// A sender of many small writes wakes the reader for each: at 10,000 messages
	// a second that is most of the cost. After a short read that came soon after
	// the one before, the reader lets messages gather in the socket for a moment.
	shortRead = 4 << 10
	gather    = 5 * time.Millisecond
)

// streams are listening sockets whose connections are streams.
type streams struct {
	o     Options
	ls    []net.Listener
	stats *Stats

	mu    sync.Mutex
	conns map[net.Conn]struct{} // guarded by mu
	told  time.Time             // when the limit was told, guarded by mu
}

// listenTCP binds the address; "localhost" binds both ::1 and 127.0.0.1.
func listenTCP(o Options, stats *Stats) (*streams, error) {
	lc := net.ListenConfig{KeepAlive: 30 * time.Second}
	ls, err := bind("tcp", o.Address, func(network, address string) (net.Listener, error) {
		return lc.Listen(context.Background(), network, address)
	}, func(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port })
	if err != nil {
		for _, l := range ls {
			l.Close()
		}
		return nil, err
	}
	return &streams{o: o, ls: ls, stats: stats, conns: map[net.Conn]struct{}{}}, nil
}

// addrs are the bound addresses.
func (s *streams) addrs() (a []net.Addr) {
	for _, l := range s.ls {
		a = append(a, l.Addr())
	}
	return a
}

// close closes the listening sockets; serve does it too when it ends.
func (s *streams) close() {
	for _, l := range s.ls {
		l.Close()
	}
}

// serve accepts and reads until ctx ends; then it accepts no more, takes what the
// open connections have sent, hands it over and returns. hard ends all waiting.
func (s *streams) serve(ctx, hard context.Context) {
	var wg sync.WaitGroup
	for _, l := range s.ls {
		wg.Go(func() { s.accept(ctx, hard, l, &wg) })
	}
	<-ctx.Done()
	s.close()
	s.mu.Lock()
	for c := range s.conns {
		c.SetReadDeadline(time.Now()) // wakes readers; each drains its connection
	}
	s.mu.Unlock()
	wg.Wait()
}

func (s *streams) accept(ctx, hard context.Context, l net.Listener, wg *sync.WaitGroup) {
	pause := time.Duration(0)
	for {
		c, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return // the stop; a connection accepted just before it is drained like the others
		case err != nil:
			// Out of file descriptors or memory: neither the listener nor the agent may
			// die of it, and a loop without pause would take a core.
			if pause == 0 {
				s.o.Log.Warn("can't accept connections; trying again", "input", s.o.Name, "address", l.Addr().String(), "error", err,
					"hint", hintAccept(err))
			}
			pause = min(max(2*pause, 10*time.Millisecond), time.Second)
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		s.stats.Connections.Add(1)
		if !s.admit(c) {
			s.stats.Refused.Add(1)
			c.Close()
			continue
		}
		wg.Go(func() {
			defer s.gone(c)
			s.read(ctx, hard, c)
		})
	}
}

func hintAccept(err error) string {
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return "raise the limit of open files (LimitNOFILE=, ulimit -n) or set MAX_CONNECTIONS of the input"
	}
	return ""
}

func (s *streams) admit(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.o.MaxConnections > 0 && len(s.conns) >= s.o.MaxConnections {
		if now := time.Now(); s.told.IsZero() || now.Sub(s.told) > time.Minute {
			s.told = now
			s.o.Log.Warn("too many connections; new ones are closed at once", "input", s.o.Name, "limit", s.o.MaxConnections,
				"peer", c.RemoteAddr().String(), "hint", "raise MAX_CONNECTIONS of the input")
		}
		return false
	}
	s.conns[c] = struct{}{}
	s.stats.Open.Add(1)
	return true
}

func (s *streams) gone(c net.Conn) {
	c.Close()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.stats.Open.Add(-1)
}

// read reads one connection to its end. It is the only reader of c.
func (s *streams) read(ctx, hard context.Context, c net.Conn) {
	peer := peerOf(c)
	sink := s.o.Open(peer)
	defer sink.Close()
	sp := framing.NewSplitter(s.o.Framing)
	var seen framing.Stats
	defer func() { s.count(sp.Stats(), &seen) }()

	var last time.Time  // of the last read
	var until time.Time // end of the drain, zero while serving
	for {
		if !until.IsZero() {
			if time.Now().After(until) {
				break
			}
			c.SetReadDeadline(time.Now().Add(quiet))
		} else if s.o.IdleTimeout > 0 {
			c.SetReadDeadline(time.Now().Add(s.o.IdleTimeout))
		}
		// The stop sets a deadline in the past; the one above may have overwritten it.
		if until.IsZero() && ctx.Err() != nil {
			until = time.Now().Add(drainTime)
			continue
		}
		n, err := sp.Fill(c)
		now := time.Now()
		if n > 0 {
			s.stats.Bytes.Add(int64(n))
			held := 0
			for m, ok := sp.Next(); ok; m, ok = sp.Next() {
				sink.Message(m, peer, now)
				if held += len(m.Data) + perMessage; held >= handOver {
					held = 0
					if sink.Flush(hard) != nil {
						return
					}
				}
			}
			if looks := sp.Stats().LooksCounted; looks > 0 && seen.LooksCounted == 0 {
				s.o.Log.Warn("messages look octet counted", "input", s.o.Name, "peer", peer.String(),
					"hint", "set FRAMING=auto or rfc6587 of the input, or the sender to line framing")
			}
			s.count(sp.Stats(), &seen)
			if sink.Flush(hard) != nil {
				return
			}
		}
		if broken := sp.Err(); broken != nil {
			s.o.Log.Warn("connection closed: its framing can't be followed", "input", s.o.Name, "peer", peer.String(), "error", broken,
				"hint", "check the sender's framing against FRAMING of the input")
			break
		}
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				if until.IsZero() && ctx.Err() != nil {
					until = time.Now().Add(drainTime)
					continue
				}
				if until.IsZero() {
					s.stats.Idle.Add(1)
					s.o.Log.Debug("connection closed: idle", "input", s.o.Name, "peer", peer.String(), "for", s.o.IdleTimeout)
				}
			} else if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
				s.o.Log.Debug("connection ended", "input", s.o.Name, "peer", peer.String(), "error", err)
			}
			break
		}
		if n < shortRead && now.Sub(last) < 2*gather && until.IsZero() {
			time.Sleep(gather)
		}
		last = now
	}
	now := time.Now()
	for m, ok := sp.End(); ok; m, ok = sp.End() {
		sink.Message(m, peer, now)
	}
	sink.Flush(hard)
}

// count adds what a splitter counted since seen.
func (s *streams) count(now framing.Stats, seen *framing.Stats) {
	s.stats.addFraming(now, *seen)
	*seen = now
}

func peerOf(c net.Conn) netip.AddrPort {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return unmap(a.AddrPort())
	}
	return netip.AddrPort{}
}
