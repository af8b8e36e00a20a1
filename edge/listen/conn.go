package listen

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errAgain says that nothing is there to be read now. It is temporary for
// crypto/tls, which goes on after it where it was.
var errAgain net.Error = again{}

type again struct{}

func (again) Error() string   { return "nothing to read now" }
func (again) Timeout() bool   { return false }
func (again) Temporary() bool { return true }

// sock is one connected socket. Waiting for its peer is one call and reading what is
// there another, so that a connection holds no memory for reading while it waits (TLS
// keeps its own: up to a record, after one came in pieces).
// Its closures are made once: a read allocates nothing.
type sock struct {
	net.Conn
	rc        syscall.RawConn
	wait      bool // Read waits for the peer, as a net.Conn does
	onPeek    func(fd uintptr) bool
	onRead    func(fd uintptr) bool
	onReceive func(fd uintptr) bool

	head  [3]byte // the first bytes that are there
	heads int     // how many
	buf   []byte  // what onRead reads to
	n     int
	err   error
}

func (s *sock) init(c net.Conn) error {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return errors.New("no socket")
	}
	rc, err := sc.SyscallConn()
	s.Conn, s.rc = c, rc
	s.onPeek, s.onRead, s.onReceive = s.peek, s.read, s.receive
	return err
}

// readable waits until the peer has sent something or has ended, or for the deadline.
// It leaves in head what there is.
func (s *sock) readable() error {
	if err := s.rc.Read(s.onPeek); err != nil {
		return err
	}
	if s.n < 0 {
		return s.err
	}
	return nil
}

func (s *sock) peek(fd uintptr) bool {
	s.n, s.err = recvfrom(fd, s.head[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if s.n < 0 && s.err == unix.EAGAIN {
		return false
	}
	s.heads = max(s.n, 0)
	return true
}

// Read is net.Conn's. Without wait it returns errAgain when nothing is there.
func (s *sock) Read(b []byte) (int, error) {
	if s.wait {
		return s.Conn.Read(b)
	}
	return s.take(b, s.onRead)
}

// writeTime bounds a write. Only TLS writes, answers to its peer; one that asks and
// never reads must hold nobody.
const writeTime = 5 * time.Second

// Write is net.Conn's, but gives up after writeTime.
func (s *sock) Write(b []byte) (int, error) {
	s.Conn.SetWriteDeadline(time.Now().Add(writeTime))
	return s.Conn.Write(b)
}

// readPacket reads one packet. A longer one is cut to b; n is its whole length.
func (s *sock) readPacket(b []byte) (n int, err error) { return s.take(b, s.onReceive) }

func (s *sock) take(b []byte, how func(fd uintptr) bool) (int, error) {
	s.buf = b
	err := s.rc.Read(how)
	s.buf = nil
	switch {
	case err != nil:
		return 0, err
	case s.n < 0 && s.err == unix.EAGAIN:
		return 0, errAgain
	case s.n < 0:
		return 0, s.err
	case s.n == 0 && len(b) > 0 && s.err == nil:
		return 0, io.EOF
	}
	return s.n, nil
}

func (s *sock) read(fd uintptr) bool {
	s.n, s.err = recvfrom(fd, s.buf, unix.MSG_DONTWAIT)
	return true
}

// errEmpty is an empty packet, which looks like the end.
var errEmpty = errors.New("empty packet")

// receive is read for packets. Of an empty packet and of the end recv(2) says the
// same; what follows tells them apart.
func (s *sock) receive(fd uintptr) bool {
	s.n, s.err = recvfrom(fd, s.buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
	if s.n != 0 {
		return true
	}
	if more, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil && more > 0 {
		s.err = errEmpty
		return true
	}
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	if n, err := unix.Poll(p, 0); err == nil && n == 0 {
		s.err = errEmpty
	}
	return true
}

// recvfrom is recv(2) without the address, which the wrapper of package unix would
// allocate for.
func recvfrom(fd uintptr, b []byte, flags int) (int, error) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(flags), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return -1, errno
		}
	}
}

// event is what a connection waited for.
type event uint8

const (
	readable event = 0
	drained  event = 1 // the drain after the stop is complete
	idle     event = 2
	cut      event = 3 // the lane's memory of unfinished messages is used up, and this one holds most
	ended    event = 4
	evicted  event = 5 // it has said nothing, and others want its place
	stale    event = 6 // its unfinished message is too old
	ripe     event = 7 // a message that only what follows ends has waited long enough
)

// conn is one connection. One goroutine reads it; kick and the fields that say so
// are for others.
type conn struct {
	sock
	tls     *tls.Conn // nil: plain
	peer    netip.AddrPort
	about   Conn
	local   bool // a unix socket
	packets bool // SOCK_SEQPACKET
	uses    use  // of the lane's memory

	one    [1]byte   // of TLS: the byte that was read to wait for more
	has    bool      // one is not handed out yet
	more   bool      // the last Read may have left something
	last   time.Time // of the last read
	until  time.Time // end of the drain; zero while serving
	stale  time.Time // when the unfinished message is too old; zero: never
	ripe   time.Time // when a message has waited long enough for what follows; zero: none waits
	armed  bool      // a deadline is set
	due    time.Time // that deadline
	failed error     // with ended
	cutNow atomic.Bool
	outNow atomic.Bool   // it is evicted
	place  *list.Element // in Server.silent until the first byte; guarded by Server.mu
}

// sender is who sends the messages of c.
func (c *conn) sender() Sender { return Sender{Addr: c.peer, Conn: &c.about} }

// kick wakes the reader, which looks at what it has to look at.
func (c *conn) kick() { c.Conn.SetReadDeadline(longAgo) }

var longAgo = time.Unix(1, 0)

// next waits until there is something to do.
func (c *conn) next(ctx context.Context, idleTimeout time.Duration) event {
	for {
		if c.until.IsZero() && ctx.Err() != nil {
			if context.Cause(ctx) == errNoRoom {
				c.drain(refuseTime)
			} else {
				c.drain(drainTime)
			}
		}
		if c.outNow.Load() {
			return evicted
		}
		if c.cutNow.Load() {
			return cut
		}
		// The deadline is not moved with each read, which would cost as much as the
		// read: when it ends, the time of the last read decides.
		deadline, what := time.Time{}, idle
		switch {
		case !c.until.IsZero() && c.local: // it ends by itself, see drain
		case !c.until.IsZero():
			deadline, what = c.last.Add(quiet), drained
			if deadline.After(c.until) {
				deadline = c.until
			}
		default:
			if idleTimeout > 0 {
				deadline = c.last.Add(idleTimeout)
			}
			if !c.stale.IsZero() && (deadline.IsZero() || c.stale.Before(deadline)) {
				deadline, what = c.stale, stale
			}
			if !c.ripe.IsZero() && (deadline.IsZero() || c.ripe.Before(deadline)) {
				deadline, what = c.ripe, ripe
			}
		}
		sooner := !deadline.IsZero() && (c.due.IsZero() || deadline.Before(c.due))
		if !c.armed || what == drained || sooner {
			if !deadline.IsZero() && !time.Now().Before(deadline) {
				return what
			}
			c.Conn.SetReadDeadline(deadline)
			c.armed, c.due = true, deadline
			// Whoever kicked before this said first what for.
			if c.until.IsZero() && ctx.Err() != nil || c.cutNow.Load() || c.outNow.Load() {
				continue
			}
		}
		err := c.ready()
		if err == nil {
			return readable
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			c.failed = err
			return ended
		}
		c.armed = false
	}
}

// drain begins the end of the connection: what the peer has sent is still read, on tcp
// for limit at most. On a unix socket its next write fails from here on, so what is here
// is all there is, and behind it comes the end: that takes as long as it takes.
func (c *conn) drain(limit time.Duration) {
	c.last = time.Now()
	c.until = c.last.Add(limit)
	if u, ok := c.Conn.(*net.UnixConn); ok {
		u.CloseRead()
	}
}

// ready waits for what the peer sends, or the deadline. Of TLS only the bytes in the
// records count, and reading one is the only way to know.
func (c *conn) ready() error {
	if c.tls == nil {
		return c.readable()
	}
	if c.has {
		return nil
	}
	c.wait = true
	n, err := c.tls.Read(c.one[:])
	c.wait = false
	if c.has = n > 0; c.has {
		return nil
	}
	return err
}

// Read reads what is there and never waits: then it returns errAgain.
func (c *conn) Read(b []byte) (int, error) {
	if c.tls == nil {
		n, err := c.sock.Read(b)
		c.more = n == len(b)
		return n, err
	}
	n := 0
	c.more = true // a read is one record at most
	if c.has && len(b) > 0 {
		b[0], c.has, n = c.one[0], false, 1
		if len(b) == 1 {
			return 1, nil
		}
	}
	m, err := c.tls.Read(b[n:])
	if err == errAgain {
		c.more = false
		if n > 0 {
			err = nil
		}
	}
	return n + m, err
}

// reset ends the connection so that the peer's next write fails: a sender that only
// writes learns of a FIN only after one more message, which would be lost. It must be
// called while nothing is left to read, see (*reader).finish.
func reset(fd uintptr) {
	var unspec unix.RawSockaddr // AF_UNSPEC: connect(2) dissolves the association; on tcp that is a RST
	unix.Syscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
}
