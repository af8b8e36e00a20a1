// Package faults stands between an agent and the far sides of the tests and does
// to their traffic what networks and servers do: it falls silent, loses answers,
// refuses, resets, crawls, or answers with an error. What happens is chosen while
// it runs.
package faults

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Proxy moves bytes between whoever connects to Address and one TCP server, which
// need not run. It begins with Forward. Each of Forward, Slow, Silence,
// DropAnswers and Refuse takes the place of the one before, for connections that
// are there and for new ones. Safe for concurrent use.
type Proxy struct {
	Address string // 127.0.0.1:port, for the proxy's whole life

	target string
	port   int                // socket that is bound to Address and never listens: while nothing else does, it refuses
	ctx    context.Context    // ends with Close
	end    context.CancelFunc // ends ctx
	wg     sync.WaitGroup

	mu sync.Mutex
	// guarded by mu
	mode     mode
	rate     int // bytes a second in each direction, 0: no limit
	delay    time.Duration
	changed  chan struct{} // closed when one of the above changes
	free     [2]time.Time  // per direction: when rate lets the next byte through
	listener net.Listener  // nil while refusing
	conns    map[*conn]bool
	taken    int
}

type mode uint8

const (
	forward     mode = 0
	silent      mode = 1
	dropAnswers mode = 2
	refuse      mode = 3
)

// Directions.
const (
	requests = 0
	answers  = 1
)

// New returns a proxy before target (host:port, or a URL whose host is meant). It
// ends with the test.
func New(t testing.TB, target string) *Proxy {
	t.Helper()
	if _, rest, ok := strings.Cut(target, "://"); ok {
		target, _, _ = strings.Cut(rest, "/")
	}
	p := &Proxy{target: target, port: -1, changed: make(chan struct{}), conns: map[*conn]bool{}}
	p.ctx, p.end = context.WithCancel(context.Background())
	l, err := p.listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.Address = l.Addr().String()
	if p.port, err = reserve(l.Addr().(*net.TCPAddr)); err != nil {
		t.Fatal(errors.Join(err, l.Close()))
	}
	p.serve(l)
	t.Cleanup(p.Close)
	return p
}

// listen opens a socket that shares its port with the one that reserve keeps.
func (p *Proxy) listen(address string) (net.Listener, error) {
	share := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}), err)
	}}
	return share.Listen(p.ctx, "tcp4", address)
}

// reserve binds address without listening, so that nobody else gets its port while
// the proxy refuses.
func reserve(address *net.TCPAddr) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: address.Port, Addr: [4]byte(address.IP.To4())})
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// Close ends the proxy, its connections (reset) and every goroutine of it.
// Idempotent.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.end()
	p.reset(func(*conn) bool { return true })
	p.unlisten()
	if p.port >= 0 {
		_ = unix.Close(p.port)
		p.port = -1
	}
	p.mu.Unlock()
	p.wg.Wait()
}

// Forward moves every byte, as if the proxy were not there. What Silence held back
// goes on its way; a connection that DropAnswers took something from is reset.
func (p *Proxy) Forward() { p.set(forward, 0, 0) }

// Slow is Forward with at most bytesPerSecond in each direction, all connections
// together, and every byte delayed. 0 is no limit and no delay. Up to 128 KiB of
// each connection and direction are under way in the proxy.
func (p *Proxy) Slow(bytesPerSecond int, delay time.Duration) { p.set(forward, bytesPerSecond, delay) }

// Silence keeps connections and accepts new ones, but moves no byte either way,
// and tells neither side when the other one closes: every packet is lost.
func (p *Proxy) Silence() { p.set(silent, 0, 0) }

// DropAnswers moves what goes to the server and loses all that comes from it.
func (p *Proxy) DropAnswers() { p.set(dropAnswers, 0, 0) }

// Refuse resets connections and refuses new ones.
func (p *Proxy) Refuse() { p.set(refuse, 0, 0) }

// Reset resets the connections that there are.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reset(func(*conn) bool { return true })
}

// Connections returns how many connections there are, and how many were accepted
// since the start.
func (p *Proxy) Connections() (now, ever int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns), p.taken
}

func (p *Proxy) set(m mode, rate int, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return
	}
	p.mode, p.rate, p.delay, p.free = m, rate, delay, [2]time.Time{}
	close(p.changed)
	p.changed = make(chan struct{})
	switch m {
	case refuse:
		p.unlisten()
		p.reset(func(*conn) bool { return true })
		return
	case forward:
		p.reset(func(c *conn) bool { return c.lost })
	}
	if p.listener == nil {
		l, err := p.listen(p.Address)
		if err != nil {
			panic(err) // the port is ours
		}
		p.serve(l)
	}
}

// serve accepts connections of l.
func (p *Proxy) serve(l net.Listener) {
	p.listener = l
	p.wg.Go(func() {
		for {
			client, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(time.Millisecond) // out of descriptors
				continue
			}
			p.begin(l, client.(*net.TCPConn))
		}
	})
}

// unlisten ends serve. mu is held.
func (p *Proxy) unlisten() {
	if p.listener != nil {
		_ = p.listener.Close()
		p.listener = nil
	}
}

// reset resets the connections that which says. mu is held.
func (p *Proxy) reset(which func(*conn) bool) {
	for c := range p.conns {
		if which(c) {
			c.reset()
		}
	}
}

// begin starts the goroutines of a connection that l accepted.
func (p *Proxy) begin(l net.Listener, client *net.TCPConn) {
	c := &conn{p: p, client: client}
	c.ctx, c.cancel = context.WithCancel(p.ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != l {
		c.reset() // accepted before Refuse or Close, and begun after
		return
	}
	p.conns[c] = true
	p.taken++
	p.wg.Go(func() {
		c.run()
		p.mu.Lock()
		delete(p.conns, c)
		p.mu.Unlock()
	})
}

// conn is one connection of a client and the one to the server that belongs to it.
type conn struct {
	p      *Proxy
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc

	client *net.TCPConn
	server *net.TCPConn // nil until it is there; guarded by p.mu
	lost   bool         // answers of it were dropped; guarded by p.mu
}

// reset ends both connections, with RST. p.mu is held.
func (c *conn) reset() {
	c.cancel()
	for _, t := range []*net.TCPConn{c.client, c.server} {
		if t != nil {
			_ = t.SetLinger(0)
			_ = t.Close()
		}
	}
}

func (c *conn) run() {
	defer func() {
		c.p.mu.Lock()
		c.reset()
		c.p.mu.Unlock()
	}()
	if _, _, ok := c.gate(requests); !ok {
		return
	}
	var d net.Dialer
	s, err := d.DialContext(c.ctx, "tcp", c.p.target)
	if err != nil {
		return
	}
	c.p.mu.Lock()
	c.server = s.(*net.TCPConn)
	if c.ctx.Err() != nil {
		c.reset()
	}
	c.p.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { c.flow(requests, c.client, c.server) })
	wg.Go(func() { c.flow(answers, c.server, c.client) })
	wg.Wait()
	// Both ways ended in order: no reset.
	if c.ctx.Err() == nil {
		_, _ = c.client.Close(), c.server.Close()
	}
}

// gate waits until bytes of direction dir move, or are dropped. changed is closed
// when that is over; ok is false when the connection has ended.
func (c *conn) gate(dir int) (drop bool, changed <-chan struct{}, ok bool) {
	p := c.p
	for {
		p.mu.Lock()
		m, changed := p.mode, p.changed
		p.mu.Unlock()
		switch {
		case c.ctx.Err() != nil:
			return false, nil, false
		case m == forward || m == dropAnswers:
			return m == dropAnswers && dir == answers, changed, true
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
		}
	}
}

// until waits for t. It returns false when changed is closed or the connection ends
// before that.
func (c *conn) until(t time.Time, changed <-chan struct{}) bool {
	d := time.Until(t)
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-changed:
	case <-c.ctx.Done():
	}
	return false
}

// pace returns how many of n bytes may be moved next, and when.
func (p *Proxy) pace(dir, n int) (int, time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == 0 {
		return n, time.Time{}
	}
	n = min(n, max(1, p.rate/50)) // steps of 20 ms
	due := p.free[dir]
	if now := time.Now(); due.Before(now) {
		due = now
	}
	p.free[dir] = due.Add(time.Duration(n) * time.Second / time.Duration(p.rate))
	return n, due
}

// piece is what was read at once, and the error that came with it.
type piece struct {
	b   []byte
	due time.Time
	err error
}

// flow moves the bytes of one direction until they end.
func (c *conn) flow(dir int, from, to *net.TCPConn) {
	pieces := make(chan piece, 2) // with the one that was read and the one that is written: 128 KiB
	c.p.wg.Go(func() {
		defer close(pieces)
		for {
			if _, _, ok := c.gate(dir); !ok {
				return
			}
			b := make([]byte, 32<<10)
			n, err := from.Read(b)
			c.p.mu.Lock()
			delay := c.p.delay
			c.p.mu.Unlock()
			select {
			case pieces <- piece{b[:n], time.Now().Add(delay), err}:
			case <-c.ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	for p := range pieces {
		if !c.move(dir, p, to) {
			return
		}
	}
}

// move writes p to to, when the proxy says so. It returns false when nothing more
// is to come.
func (c *conn) move(dir int, p piece, to *net.TCPConn) bool {
	for {
		drop, changed, ok := c.gate(dir)
		switch {
		case !ok:
			return false
		case drop:
			c.p.mu.Lock()
			c.lost = true
			c.p.mu.Unlock()
			if p.err == nil {
				return true
			}
			<-c.ctx.Done() // the end is lost, too
			return false
		case !c.until(p.due, changed):
			continue
		case len(p.b) > 0:
			n, due := c.p.pace(dir, len(p.b))
			if !c.until(due, changed) {
				continue
			}
			if _, err := to.Write(p.b[:n]); err != nil {
				// What that side said before it closed is still on its way: the other
				// direction ends the connection.
				return false
			}
			p.b = p.b[n:]
		case p.err == nil:
			return true
		case errors.Is(p.err, io.EOF):
			_ = to.CloseWrite()
			return false
		default:
			c.p.mu.Lock()
			c.reset()
			c.p.mu.Unlock()
			return false
		}
	}
}
