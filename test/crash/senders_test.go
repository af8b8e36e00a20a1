package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/test/chaos"
)

// senders send numbered lines, as chaos.Conn says, to four inputs at once, for as
// long as there is nothing wrong with them: an agent that is away is tried again.
type senders struct {
	wg   sync.WaitGroup
	ctx  context.Context // ends with stop
	stop context.CancelFunc

	mu    sync.Mutex
	conns []*chaos.Conn // guarded by mu; what they point to belongs to its sender until it ends
	errs  []error
}

func (s *senders) open(input string) *chaos.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &chaos.Conn{ID: len(s.conns), Input: input}
	s.conns = append(s.conns, c)
	return c
}

func (s *senders) problem(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, err)
}

// targets are the addresses of the inputs tcp, udp, unix and hook.
type targets struct{ tcp, udp, unix, hook string }

// send starts one sender for each input; each sends pad bytes a line and pauses up
// to twice rest between the lines that it sends together.
func send(t *testing.T, to targets, seed uint64, pad int, rest time.Duration) *senders {
	s := newSenders(t)
	s.wg.Go(func() { s.stream(s.ctx, "tcp", to.tcp, newSource(seed, 1, pad, rest)) })
	s.wg.Go(func() { s.stream(s.ctx, "unix", to.unix, newSource(seed, 2, pad, rest)) })
	s.wg.Go(func() { s.datagrams(s.ctx, to.udp, newSource(seed, 3, pad, rest)) })
	s.wg.Go(func() { s.requests(s.ctx, to.hook, newSource(seed, 4, pad, rest)) })
	return s
}

// newSenders returns none, that are ended with the test.
func newSenders(t *testing.T) *senders {
	s := &senders{}
	s.ctx, s.stop = context.WithCancel(context.Background())
	t.Cleanup(func() { s.stop(); s.wg.Wait() })
	return s
}

// end ends all senders in order. It returns their connections, and an error if the
// agent has not taken all that was sent at last.
func (s *senders) end() (all []chaos.Conn, err error) {
	s.stop()
	s.wg.Wait()
	for _, c := range s.conns {
		all = append(all, *c)
	}
	return all, errors.Join(s.errs...)
}

// source is what a sender draws from.
type source struct {
	r    *rand.Rand
	pad  int
	rest time.Duration
}

func newSource(seed, n uint64, pad int, rest time.Duration) *source {
	return &source{rand.New(rand.NewPCG(seed, n)), pad, rest}
}

func (d *source) line(b *bytes.Buffer, c *chaos.Conn, i int, header bool) {
	if header {
		b.WriteString("<14>1 2026-11-20T12:00:00Z host app - - - ")
	}
	const chars = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-_"
	fmt.Fprintf(b, "c%d i%d ", c.ID, i)
	for range d.r.IntN(d.pad + 1) {
		b.WriteByte(chars[d.r.IntN(len(chars))])
	}
	b.WriteString(" .\n")
}

func (d *source) pause(ctx context.Context) {
	pause(ctx, time.Duration(d.r.Int64N(int64(2*d.rest)+1)))
}

// How long an agent may take for what waits when the sender ends.
const drainTime = time.Minute

func (s *senders) stream(ctx context.Context, network, address string, d *source) {
	for ctx.Err() == nil {
		sock, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			pause(ctx, 2*time.Millisecond)
			continue
		}
		c := s.open(network)
		if err := s.over(ctx, sock, c, d); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
			s.problem(fmt.Errorf("connection %d to %s: the agent has not taken %d lines within %v: %w", c.ID, network, c.Sent, drainTime, err))
		}
		sock.Close()
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// over sends over one connection until it breaks or ctx ends.
func (s *senders) over(ctx context.Context, sock net.Conn, c *chaos.Conn, d *source) error {
	late := context.AfterFunc(ctx, func() { _ = sock.SetDeadline(time.Now().Add(drainTime)) })
	defer late()
	var b bytes.Buffer
	for ctx.Err() == nil {
		b.Reset()
		n := 1 + d.r.IntN(20)
		ends := make([]int, n)
		for i := range n {
			d.line(&b, c, c.Sent+i, true)
			ends[i] = b.Len()
		}
		wrote, err := sock.Write(b.Bytes())
		for _, end := range ends {
			if end <= wrote {
				c.Sent++
			}
		}
		if err != nil {
			return err
		}
		d.pause(ctx)
	}
	if err := sock.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return err
	}
	n, err := sock.Read(make([]byte, 1))
	if n == 0 && errors.Is(err, io.EOF) {
		c.Whole = true // it has read everything, and closed behind us
		return nil
	}
	return err
}

func (s *senders) datagrams(ctx context.Context, address string, d *source) {
	sock, err := net.Dial("udp", address)
	if err != nil {
		s.problem(err)
		return
	}
	defer sock.Close()
	c := s.open("udp")
	for ctx.Err() == nil {
		for range 1 + d.r.IntN(20) {
			var b bytes.Buffer
			d.line(&b, c, c.Sent, true)
			// An agent that is away refuses by ICMP, which a later call reports.
			if _, err := sock.Write(bytes.TrimSuffix(b.Bytes(), []byte("\n"))); err == nil {
				c.Sent++
			}
		}
		d.pause(ctx)
	}
}

// requests sends each request as if it were a connection of its own. One that is
// answered 204 is as durable as anything.
func (s *senders) requests(ctx context.Context, address string, d *source) {
	client := &http.Client{Timeout: drainTime, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for ctx.Err() == nil {
		c := s.open("hook")
		var b bytes.Buffer
		c.Sent = 1 + d.r.IntN(10)
		for i := range c.Sent {
			d.line(&b, c, i, false)
		}
		res, err := client.Post("http://"+address, "application/x-ndjson", strings.NewReader(b.String()))
		if err != nil {
			if isTimeout(err) {
				s.problem(err)
			}
			pause(ctx, 2*time.Millisecond)
			continue
		}
		_, _ = io.Copy(io.Discard, res.Body) // so that the connection is used again
		res.Body.Close()
		c.Whole = res.StatusCode == http.StatusNoContent
		d.pause(ctx)
	}
}
