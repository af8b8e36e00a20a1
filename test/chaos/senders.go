package chaos

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// Load is what one sender sends: numbered lines over one connection at a time. When
// that breaks it makes another one.
type Load struct {
	Input   string        // the input's name, which is that of its network: tcp or udp, and digits
	Address string        // host:port
	Rate    int           // lines a second, at most
	Lines   int           // how many in all; 0: until it is stopped
	Pad     int           // random characters in a line, at most
	Seed    uint64        // of their number and content
	Drain   time.Duration // how long the last line may wait for the agent to take it
}

// Conn is one connection of a sender, or its only socket. Line n of connection c
// has the message "c<c> i<n> <pad> .", n counted from 0.
type Conn struct {
	ID    int
	Input string
	Sent  int  // lines that the kernel took in whole
	Whole bool // the agent has read all of them: it closed the connection behind us

	marks []mark // when lines were sent
	ended time.Time
}

// mark says that a line and those before it were sent by a time.
type mark struct {
	line int
	at   time.Time
}

// age is how old a line was when its connection ended.
func (c *Conn) age(line int) time.Duration {
	for _, m := range c.marks {
		if m.line >= line {
			return c.ended.Sub(m.at)
		}
	}
	return 0
}

func (c *Conn) datagrams() bool { return c.Input[:3] == "udp" }

// Senders are the loads that run.
type Senders struct {
	wg   sync.WaitGroup
	ctx  context.Context // ends with Stop
	stop context.CancelFunc

	mu     sync.Mutex
	conns  []*Conn // guarded by mu; what they point to belongs to their sender until Stop
	errs   []error
	broken int
}

// StartSenders starts one goroutine for each load. Stop ends them.
func StartSenders(loads ...Load) *Senders {
	s := &Senders{}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.Add(loads...)
	return s
}

// Add starts more of them, before Stop.
func (s *Senders) Add(loads ...Load) {
	for _, l := range loads {
		s.wg.Go(func() { s.run(s.ctx, l) })
	}
}

// Stop ends all senders in order: what they wrote is read by the agent before it
// returns, or there is an error.
func (s *Senders) Stop() error {
	s.stop()
	return s.Wait()
}

// Wait waits until each sender has sent the lines of its load.
func (s *Senders) Wait() error {
	s.wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.errs...)
}

// Conns are all connections that there were. After Stop or Wait only.
func (s *Senders) Conns() (cs []Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		cs = append(cs, *c)
	}
	return cs
}

// Broken is how many connections ended before their sender ended them.
func (s *Senders) Broken() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

func (s *Senders) open(l Load) *Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &Conn{ID: len(s.conns), Input: l.Input}
	s.conns = append(s.conns, c)
	return c
}

// run sends l. When ctx ends it finishes the line that it is at, however long the
// agent takes for it, up to l.Drain.
func (s *Senders) run(ctx context.Context, l Load) {
	rnd := rand.New(rand.NewPCG(l.Seed, 0))
	left := l.Lines
	for (l.Lines == 0 || left > 0) && ctx.Err() == nil {
		sock, err := (&net.Dialer{}).DialContext(ctx, l.Input[:3], l.Address)
		if err != nil {
			wait(ctx, 20*time.Millisecond)
			continue
		}
		c := s.open(l)
		err = send(ctx, sock, c, l, &left, rnd)
		if err == nil && !c.datagrams() {
			err = finish(sock.(*net.TCPConn), l.Drain)
			c.Whole = err == nil
		}
		sock.Close()
		c.ended = time.Now()
		if err == nil {
			continue
		}
		s.mu.Lock()
		s.broken++
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.errs = append(s.errs, fmt.Errorf("connection %d to input %s: the agent has not taken %d lines in %v after the end", c.ID, c.Input, c.Sent, l.Drain))
		}
		s.mu.Unlock()
	}
}

// finish ends a connection from our side and waits for the agent to do the same.
func finish(sock *net.TCPConn, within time.Duration) error {
	if err := sock.CloseWrite(); err != nil {
		return err
	}
	if err := sock.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if n, err := sock.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%d bytes from the agent: %w", n, err)
	}
	return nil
}

// send sends lines until ctx ends, none are left, or the connection breaks.
func send(ctx context.Context, sock net.Conn, c *Conn, l Load, left *int, rnd *rand.Rand) error {
	// When ctx ends, the line that waits has l.Drain.
	cancel := context.AfterFunc(ctx, func() { _ = sock.SetWriteDeadline(time.Now().Add(l.Drain)) })
	defer cancel()
	const tick = 5 * time.Millisecond
	var text []byte
	var ends []int
	from, n := time.Now(), 0 // n lines since from
	for (l.Lines == 0 || *left > 0) && ctx.Err() == nil {
		due := int(float64(l.Rate)*time.Since(from).Seconds()) - n
		if due > l.Rate/10+1 { // it was held up: no burst makes up for that
			from, n = time.Now(), 0
			continue
		}
		if l.Lines > 0 {
			due = min(due, *left)
		}
		text, ends = text[:0], ends[:0]
		for i := range due {
			text = appendLine(text, c.ID, c.Sent+i, l.Pad, rnd)
			ends = append(ends, len(text))
		}
		took, err := write(sock, text, ends, c.datagrams())
		c.Sent += took
		*left -= took
		n += took
		if took > 0 {
			c.marks = append(c.marks, mark{c.Sent - 1, time.Now()})
		}
		if err != nil {
			return err
		}
		wait(ctx, tick)
	}
	return nil
}

// write returns how many lines went out whole.
func write(sock net.Conn, text []byte, ends []int, datagrams bool) (lines int, err error) {
	if !datagrams {
		n, err := sock.Write(text)
		for _, end := range ends {
			if end <= n {
				lines++
			}
		}
		return lines, err
	}
	start := 0
	for _, end := range ends {
		// An agent that is away refuses by ICMP, which a later call reports.
		for {
			if _, err = sock.Write(text[start : end-1]); err == nil {
				break
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return lines, err
			}
			time.Sleep(10 * time.Millisecond)
		}
		lines++
		start = end
	}
	return lines, nil
}

const header = "<14>1 2026-11-20T12:00:00Z host app - - - "

func appendLine(dst []byte, conn, i, pad int, rnd *rand.Rand) []byte {
	dst = append(dst, header...)
	dst = append(dst, 'c')
	dst = strconv.AppendInt(dst, int64(conn), 10)
	dst = append(dst, " i"...)
	dst = strconv.AppendInt(dst, int64(i), 10)
	dst = append(dst, ' ')
	if pad > 0 {
		var raw [48]byte
		for n := rnd.IntN(pad + 1); n > 0; n -= 64 {
			for k := 0; k < len(raw); k += 8 {
				v := rnd.Uint64()
				for j := range 8 {
					raw[k+j] = byte(v >> (8 * j))
				}
			}
			var chars [64]byte
			base64.RawURLEncoding.Encode(chars[:], raw[:])
			dst = append(dst, chars[:min(n, 64)]...)
		}
	}
	return append(dst, " .\n"...)
}

// parseMessage reads what appendLine wrote. One that was cut is not ok.
func parseMessage(m []byte) (conn, i int, ok bool) {
	if len(m) < 5 || m[0] != 'c' || !bytes.HasSuffix(m, []byte(" .")) {
		return 0, 0, false
	}
	a, rest, ok1 := bytes.Cut(m[1:], []byte(" i"))
	b, _, ok2 := bytes.Cut(rest, []byte(" "))
	conn, err1 := strconv.Atoi(string(a))
	i, err2 := strconv.Atoi(string(b))
	return conn, i, ok1 && ok2 && err1 == nil && err2 == nil
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
