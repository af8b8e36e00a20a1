package listen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/framing"
)

// A peer that never reads holds nobody for longer than writeTime: TLS answers some
// of what it is asked.
func TestWritesEnd(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	var s sock
	if err := s.init(nc); err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for range 1000 {
		if _, err = s.Write(block); err != nil {
			break
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// slowSink takes its time to hand over.
type slowSink struct {
	countSink
	dropped atomic.Int64
}

func (s *slowSink) Dropped(n uint64, _ time.Time) { s.dropped.Add(int64(n)) }

// What the kernel drops is counted while the queue is never empty.
func TestKernelDropsUnderFlood(t *testing.T) {
	sink := &slowSink{countSink: countSink{pause: 20 * time.Millisecond}}
	s, stop := serve(t, Options{Network: "udp", ReceiveBuffer: 256 << 10, Open: func() Sink { return sink }})
	c := dial(t, s)
	end := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() {
		b := bytes.Repeat([]byte("x"), 200)
		for {
			select {
			case <-end:
				return
			default:
				c.Write(b)
			}
		}
	})
	eventually(t, "drops are counted", func() bool { return s.Stats.KernelDrops.Load() > 1000 && sink.dropped.Load() > 1000 })
	stop()
	close(end)
	flood.Wait()
}

// hand gives a copy of f to the next agent as systemd does.
func hand(t *testing.T, name string, f *os.File) {
	t.Helper()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(fd, true)
	passed.mu.Lock()
	defer passed.mu.Unlock()
	if passed.files == nil {
		passed.files = map[string][]*os.File{}
	}
	passed.files[name] = append(passed.files[name], os.NewFile(uintptr(fd), name))
}

// onceGate shuts when it is told to, and opens when opened is closed.
type onceGate struct {
	shut, opened chan struct{}
	waited       atomic.Bool
}

func (g *onceGate) Shut() <-chan struct{} {
	if g.waited.Load() {
		return nil
	}
	return g.shut
}

func (g *onceGate) Wait(ctx context.Context) error {
	g.waited.Store(true)
	select {
	case <-g.opened:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// An agent that stops while it refuses on a socket of systemd's leaves one that the
// next agent can use, and so does one that is killed.
func TestNextAgentAfterRefusing(t *testing.T) {
	for _, killed := range []bool{false, true} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		l.Close()
		r := newRecorder()
		if killed {
			if err := unix.Shutdown(int(f.Fd()), unix.SHUT_RD); err != nil {
				t.Fatal(err)
			}
		} else {
			g := &onceGate{shut: make(chan struct{})}
			hand(t, "refusing", f)
			s, stop := serve(t, Options{Network: "fd", Address: "refusing", Gate: g, Open: r.open})
			close(g.shut)
			eventually(t, "it refuses", func() bool { return s.Stats.Refuses.Load() == 1 })
			stop()
		}
		hand(t, "refusing", f)
		s, stop := serve(t, Options{Network: "fd", Address: "refusing", Open: r.open})
		fmt.Fprint(dial(t, s), "to the next agent\n")
		eventually(t, "the message", func() bool { return r.len() == 1 })
		stop()
	}
}

// What systemd's udp socket lost before is not counted, and its buffer is not lessened.
func TestDatagramsOfSystemd(t *testing.T) {
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	address := p.LocalAddr().String()
	p.Close()
	size := func() int {
		n, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_RCVBUF)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 100 {
		c.Write(make([]byte, 500))
	}
	unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_RCVBUF, 128<<10)
	given := size()
	for range 2 { // lives of the agent
		r := newRecorder()
		hand(t, "datagrams", f)
		s, stop := serve(t, Options{Network: "fd", Address: "datagrams", ReceiveBuffer: 64 << 10, Open: r.open})
		c.Write([]byte("one"))
		eventually(t, "a datagram", func() bool { return r.len() > 0 })
		stop()
		if n := s.Stats.KernelDrops.Load(); n != 0 {
			t.Errorf("%d drops of before are counted", n)
		}
		if size() < given {
			t.Errorf("a receive buffer of %d was lessened to %d", given, size())
		}
	}
}

// SO_RCVBUF bounds what lies unread in the agent's sockets, whichever size it is.
func TestReceiveBufferOfConnections(t *testing.T) {
	for _, want := range []int{60 << 10, 64 << 10, 68 << 10} {
		sink := &blockedSink{wait: make(chan struct{})}
		s, stop := serve(t, Options{Network: "tcp", ReceiveBuffer: want, Open: func() Sink { return sink }})
		c := dial(t, s)
		lines := bytes.Repeat([]byte(strings.Repeat("x", 999)+"\n"), 64)
		for range 500 { // the kernel would raise the buffer by now
			c.Write(lines)
		}
		sink.blocked.Store(true)
		for err := error(nil); err == nil; {
			c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			_, err = c.Write(lines)
		}
		s.mu.Lock()
		for k := range s.conns {
			k.rc.Control(func(fd uintptr) {
				if n, _ := unix.IoctlGetInt(int(fd), unix.TIOCINQ); n > 4*want {
					t.Errorf("SO_RCVBUF=%d: %d bytes lie unread", want, n)
				}
			})
		}
		s.mu.Unlock()
		c.Close()
		close(sink.wait)
		stop()
	}
}

type blockedSink struct {
	blocked atomic.Bool
	wait    chan struct{}
}

func (s *blockedSink) Message(framing.Message, Sender, time.Time) {}
func (s *blockedSink) Close()                                     {}
func (s *blockedSink) Flush(ctx context.Context) error {
	if s.blocked.Load() {
		select {
		case <-s.wait:
		case <-ctx.Done():
		}
	}
	return nil
}

// A connection whose framing is broken ends in a reset: its sender's next write fails.
func TestBrokenEndsInReset(t *testing.T) {
	r := newRecorder()
	s, _ := serve(t, Options{Network: "tcp", Framing: framing.Options{MaxMessageSize: 100, Oversize: framing.Close}, Open: r.open})
	c := dial(t, s)
	fmt.Fprint(c, strings.Repeat("x", 200)+"\n")
	eventually(t, "it is closed", func() bool { return s.Stats.Open.Load() == 0 && r.len() == 1 })
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the sender sees %v, want a reset", err)
	}
}

// After a refusal all addresses are bound again or none: nobody connects to one that
// is not served.
func TestBoundAgainTogether(t *testing.T) {
	r := newRecorder()
	g := &onceGate{shut: make(chan struct{}), opened: make(chan struct{})}
	s, _ := serve(t, Options{Network: "tcp", Address: "localhost:0", Gate: g, Open: r.open})
	if len(s.Addrs()) < 2 {
		t.Log("this host has no ::1: there is one address only")
		return
	}
	first, second := s.Addrs()[0].String(), s.Addrs()[1].String()
	close(g.shut)
	eventually(t, "it refuses", func() bool { return s.Stats.Refuses.Load() == 1 })
	other, err := net.Listen("tcp", second)
	if err != nil {
		t.Fatal(err)
	}
	close(g.opened)
	for range 20 {
		if c, err := net.Dial("tcp", first); err == nil {
			c.Close() // it was bound for a moment, and is closed again
		}
		time.Sleep(10 * time.Millisecond)
	}
	if s.Stats.Refuses.Load() != 1 {
		t.Error("it serves, and one of its addresses is another's")
	}
	other.Close()
	eventually(t, "both are served", func() bool { return s.Stats.Refuses.Load() == 0 })
	before := r.len()
	fmt.Fprint(dial(t, s), "again\n")
	eventually(t, "a message", func() bool { return r.len() > before })
}

// Kinds that hold a peer's words have a bound of their own.
func TestNotices(t *testing.T) {
	var n notices
	told := 0
	for i := range 1000 {
		if _, due := n.due(fmt.Sprint("certificate: ", i)); due {
			told++
		}
	}
	if told > kindsMax+1 {
		t.Errorf("%d lines at once", told)
	}
	if _, due := n.due("drops"); !due {
		t.Error("another kind is not told any more")
	}
}
