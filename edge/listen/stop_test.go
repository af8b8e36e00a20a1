package listen

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"spillway/framing"
)

// countSink counts messages: those that were flushed, those that Close gave up,
// and the most that one Flush had to hand over.
type countSink struct {
	held, flushed, lost, most atomic.Int64
	pause                     time.Duration // of each Flush
}

func (s *countSink) Message(framing.Message, Sender, time.Time) { s.held.Add(1) }

func (s *countSink) Flush(ctx context.Context) error {
	n := s.held.Swap(0)
	s.most.Store(max(s.most.Load(), n))
	s.flushed.Add(n)
	if s.pause > 0 {
		time.Sleep(s.pause)
	}
	return ctx.Err()
}

func (s *countSink) Close() { s.lost.Add(s.held.Swap(0)) }

// A sender that never pauses does not keep a datagram server from stopping, and
// what was taken is handed over.
func TestUDPStopUnderFlood(t *testing.T) {
	sink := &countSink{pause: 20 * time.Millisecond} // slower than the sender
	s, err := Listen(Options{Network: "udp", Name: "udp", Address: "127.0.0.1:0", Open: func() Sink { return sink }, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Serve(ctx, context.Background()); close(done) }()
	c := dial(t, s)
	end := make(chan struct{})
	flood := make(chan struct{})
	go func() {
		defer close(flood)
		for {
			select {
			case <-end:
				return
			default:
				c.Write([]byte("x"))
			}
		}
	}()
	eventually(t, "many datagrams", func() bool { return sink.flushed.Load() > 10_000 })
	cancel()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Error("the server does not stop while a sender sends")
	}
	close(end)
	<-flood
	<-done
	if n := sink.lost.Load(); n > 0 {
		t.Errorf("%d messages were taken and not handed over", n)
	}
	if n := sink.most.Load(); n > handOver/perMessage+perCall {
		t.Errorf("%d tiny messages in one hand-over", n)
	}
}

// Datagrams that were taken and not handed over when the stop came are handed over.
func TestUDPStopHandsOver(t *testing.T) {
	for range 20 {
		sink := &countSink{}
		s, err := Listen(Options{Network: "udp", Name: "udp", Address: "127.0.0.1:0", Open: func() Sink { return sink }, Log: quietLog})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		c := dial(t, s)
		for range perCall { // one full call of recvmmsg, and nothing behind it
			c.Write([]byte("x"))
		}
		done := make(chan struct{})
		go func() { s.Serve(ctx, context.Background()); close(done) }()
		for s.Stats.Bytes.Load() == 0 {
		}
		cancel()
		<-done
		if sink.flushed.Load() != perCall || sink.lost.Load() != 0 {
			t.Fatalf("%d handed over, %d given up", sink.flushed.Load(), sink.lost.Load())
		}
	}
}

// Memory follows what was sent: a read full of tiny messages, each of which
// becomes a record many times its length, is handed over in parts.
func TestTCPTinyMessages(t *testing.T) {
	sink := &countSink{}
	s, stop := serve(t, Options{Network: "tcp", Open: func() Sink { return sink }})
	c := dial(t, s)
	const n = 200_000
	fmt.Fprint(c, strings.Repeat("x\n", n))
	eventually(t, "all messages", func() bool { return sink.flushed.Load() == n })
	stop()
	if m := sink.most.Load(); m > handOver/perMessage+1 {
		t.Errorf("%d tiny messages in one hand-over", m)
	}
}

// once is a listener whose Accept returns one connection after the stop began.
type once struct {
	listener
	stop func()
}

func (l *once) Accept() (net.Conn, error) {
	c, err := l.listener.Accept()
	if err == nil {
		l.stop()
	}
	return c, err
}

// A connection that was accepted as the stop came is drained like the others.
func TestTCPAcceptedAtTheStop(t *testing.T) {
	r := newRecorder()
	s, err := Listen(Options{Network: "tcp", Name: "tcp", Address: "127.0.0.1:0", Open: r.open, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.sockets[0].l = &once{s.sockets[0].l, cancel}
	c := dial(t, s)
	fmt.Fprint(c, "sent before\n")
	s.Serve(ctx, context.Background())
	if r.len() != 1 {
		t.Error("what a connection had sent before the stop is lost")
	}
}

// tardy is a listener whose Accept comes late a few times, as on a busy machine: what
// is said about time is over by then.
type tardy struct {
	listener
	times int
}

func (l *tardy) Accept() (net.Conn, error) {
	if l.times > 0 {
		l.times--
		time.Sleep(2 * lastLook)
	}
	return l.listener.Accept()
}

// Whoever was in the queue at the stop is served, also when the agent gets to it late.
func TestAcceptedLate(t *testing.T) {
	for _, network := range []string{"tcp", "unix", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			r := newRecorder()
			o := Options{Network: network, Name: "in", Address: "127.0.0.1:0", Open: r.open, Log: quietLog}
			if network != "tcp" {
				o.Address = filepath.Join(t.TempDir(), "s")
			}
			s, err := Listen(o)
			if err != nil {
				t.Fatal(err)
			}
			s.sockets[0].l = &tardy{s.sockets[0].l, 2}
			ctx, cancel := context.WithCancel(context.Background())
			for i := range 3 {
				fmt.Fprintf(dial(t, s), "sent before %d\n", i)
			}
			cancel()
			s.Serve(ctx, context.Background())
			if r.len() != 3 {
				t.Errorf("%d of 3 messages arrived", r.len())
			}
		})
	}
}

// What a unix socket holds at the stop is read to its end, however long that takes: its
// sender was told that it arrived.
func TestUnixStopSlowly(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			sink := &countSink{pause: drainTime / 2}
			s, stop := serve(t, Options{Network: network, Address: filepath.Join(t.TempDir(), "s"), Open: func() Sink { return sink }, Framing: framing.Options{MaxMessageSize: handOver}})
			c, line := dial(t, s), []byte(strings.Repeat("x", 40<<10)+"\n")
			fmt.Fprint(c, "one\n")
			eventually(t, "the first message", func() bool { return s.Stats.Bytes.Load() == 4 })
			n := int64(1)
			for ; n < 5; n++ {
				if _, err := c.Write(line); err != nil {
					t.Fatal(err)
				}
			}
			stop()
			if got := sink.flushed.Load(); got != n {
				t.Errorf("%d of %d messages arrived", got, n)
			}
		})
	}
}

// scarce is a listener that is out of file descriptors a few times.
type scarce struct {
	listener
	times int
}

func (l *scarce) Accept() (net.Conn, error) {
	if l.times > 0 {
		l.times--
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return l.listener.Accept()
}

// Running out of file descriptors is told once, with what to do, and ends nothing.
func TestTCPOutOfFiles(t *testing.T) {
	var log bytes.Buffer
	r := newRecorder()
	s, err := Listen(Options{Network: "tcp", Name: "tcp", Address: "127.0.0.1:0", Open: r.open, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.sockets[0].l = &scarce{s.sockets[0].l, 4}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Serve(ctx, context.Background()); close(done) }()
	fmt.Fprint(dial(t, s), "after all\n")
	eventually(t, "the message", func() bool { return r.len() == 1 })
	cancel()
	<-done
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "LimitNOFILE") {
		t.Errorf("log:\n%s", log.String())
	}
}
