package listen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/framing"
)

const (
	// drainTime bounds how long a connection is read after the stop: what its
	// sender had sent by then is in the socket buffer.
	drainTime = time.Second
	// refuseTime is drainTime when there is no room: what is drained takes the reserve.
	refuseTime = 200 * time.Millisecond
	// quiet is how long a tcp connection must send nothing to be called drained.
	quiet = 50 * time.Millisecond
	// lastLook bounds the reading of a sender that never pauses as its connection is reset.
	lastLook = 100 * time.Millisecond
	// pending is how long a listening socket that is about to be closed may yield
	// no connection to be called empty.
	pending = 20 * time.Millisecond

	// releaseAfter is how long a connection must send nothing for a message that only
	// what follows can end (lines that belong together) to be whole.
	releaseAfter = time.Second

	// A sender of many small writes wakes the reader for each: at 10,000 messages
	// a second that is most of the cost. When a socket had little and that soon after
	// the last time, the reader lets messages gather in it for a moment.
	little   = 16 << 10
	gather   = 20 * time.Millisecond
	gathered = 16 << 10 // or until so much is there; more might lower the window that TCP offers

	// Datagrams gather less long: without room the kernel drops them.
	gatherDatagrams = 5 * time.Millisecond

	// localMax is the largest message of a unixgram or unixpacket socket. Senders get
	// 208 KiB through unless the system's limits were raised.
	localMax = 256 << 10
)

// packetBufs are *[localMax]byte.
var packetBufs = sync.Pool{New: func() any { return new([localMax]byte) }}

// accept takes connections until ctx ends, then those that wait, and closes the
// listening socket.
func (s *Server) accept(ctx, hard context.Context, k *socket, wg *sync.WaitGroup) {
	pause := time.Duration(0)
	var end, empty time.Time // of the stop; when the queue will be called empty
	shut := false            // nobody joins the queue any more
	for {
		if end.IsZero() && ctx.Err() != nil {
			// Whoever is in the queue believes to be connected, and may have sent.
			end = time.Now().Add(lastLook)
			shut = k.shut(context.Cause(ctx) == errNoRoom)
		}
		if !end.IsZero() {
			now := time.Now()
			if !shut && now.After(end) {
				break
			}
			empty = now.Add(pending)
			k.l.SetDeadline(empty)
		}
		c, err := k.l.Accept()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if end.IsZero() || time.Now().Before(empty) {
				continue // it was round's, which wakes us for the stop
			}
			c, err = k.queued() // it may have passed before Accept looked
		}
		switch {
		case err != nil && (ctx.Err() != nil || errors.Is(err, net.ErrClosed)):
			s.stopAccepting(ctx, k)
			return
		case err != nil:
			pause = s.acceptFailed(ctx, k, err, pause)
			continue
		}
		pause = 0
		s.Stats.Connections.Add(1)
		if conn := s.admit(c, k); conn != nil {
			wg.Go(func() {
				defer s.gone(conn)
				s.serve(ctx, hard, conn)
			})
		} else {
			turnAway(c)
		}
	}
	s.stopAccepting(ctx, k)
}

// acceptFailed says that a connection can't be taken and waits, longer than the last
// time. Out of file descriptors or memory, neither the listener nor the agent may die
// of it, and a loop without pause would take a core.
func (s *Server) acceptFailed(ctx context.Context, k *socket, err error, last time.Duration) (pause time.Duration) {
	if n, due := s.notices.due("accept"); due {
		s.o.Log.Warn("can't accept connections; trying again", "input", s.o.Name, "address", k.name, "error", err, "times", n, "hint", s.hintAccept(err))
	}
	pause = min(max(2*last, 10*time.Millisecond), time.Second)
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
	return pause
}

// turnAway closes a connection that is not wanted.
func turnAway(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0) // a reset, so that who only writes notices
	}
	c.Close()
}

func (s *Server) stopAccepting(ctx context.Context, k *socket) {
	k.close()
	if context.Cause(ctx) == errNoRoom {
		k.refuse()
	}
}

func (s *Server) hintAccept(err error) string {
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return "raise the limit of open files (LimitNOFILE=, ulimit -n) or lower " + s.o.Variable + "MAX_CONNECTIONS"
	}
	return ""
}

// admit returns nil if the connection is not wanted.
func (s *Server) admit(nc net.Conn, k *socket) *conn {
	now := time.Now()
	c := &conn{local: k.local, packets: k.kind == packets, last: now, about: Conn{Since: now}}
	if c.sock.init(nc) != nil {
		return nil
	}
	if c.local && !s.peerMay(c) {
		return nil
	}
	if t, ok := nc.(*net.TCPConn); ok {
		c.peer = unmap(t.RemoteAddr().(*net.TCPAddr).AddrPort())
		t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: s.o.KeepAlive > 0, Idle: s.o.KeepAlive, Interval: s.o.KeepAlive, Count: 3})
		if !s.allowed(c.peer.Addr()) {
			s.deny(c.peer.String(), "closed at once")
			return nil
		}
	}
	c.uses.c = c
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.o.MaxConnections > 0 && len(s.conns) >= s.o.MaxConnections && !s.evict() {
		s.Stats.Refused.Add(1)
		if n, due := s.notices.due("connections"); due {
			s.o.Log.Warn("too many connections; new ones are closed at once", "input", s.o.Name, "limit", s.o.MaxConnections,
				"peer", c.name(), "times", n, "hint", "raise "+s.o.Variable+"MAX_CONNECTIONS")
		}
		return nil
	}
	s.conns[c] = struct{}{}
	c.place = s.silent.PushBack(c)
	s.Stats.Open.Add(1)
	return c
}

// peerMay reports whether the user at the other end of a unix socket may send.
func (s *Server) peerMay(c *conn) bool {
	if len(s.o.PeerUIDs) == 0 {
		return true
	}
	var peer *unix.Ucred
	var err error
	cerr := c.rc.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(cerr, err); err != nil {
		s.Stats.Denied.Add(1)
		return false // it can't be told who it is
	}
	if slices.Contains(s.o.PeerUIDs, peer.Uid) {
		return true
	}
	s.Stats.Denied.Add(1)
	if n, due := s.notices.due("uid: " + strconv.FormatUint(uint64(peer.Uid), 10)); due {
		s.o.Log.Warn("a user that is not allowed: closed at once", "input", s.o.Name, "uid", peer.Uid, "pid", peer.Pid, "times", n, "hint", "add the uid to "+s.o.Variable+"PEER_UID if it may send")
	}
	return false
}

// evict makes room for a connection by ending the one that has been silent for
// longest since it began: at the limit, who says nothing must not keep out who
// does. It returns false if there is none. s.mu is held.
func (s *Server) evict() bool {
	front := s.silent.Front()
	if front == nil {
		return false
	}
	c := front.Value.(*conn)
	s.silent.Remove(front)
	c.place = nil
	delete(s.conns, c)
	c.outNow.Store(true)
	c.kick()
	s.Stats.Evicted.Add(1)
	if n, due := s.notices.due("evicted"); due {
		s.o.Log.Warn("too many connections; the oldest that have said nothing yet are closed for new ones", "input", s.o.Name, "limit", s.o.MaxConnections,
			"peer", c.name(), "times", n, "hint", "see who connects and says nothing, or raise "+s.o.Variable+"MAX_CONNECTIONS")
	}
	return true
}

// speaks notes that c has said something. It returns false if c was evicted just before.
func (s *Server) speaks(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.place != nil {
		s.silent.Remove(c.place)
		c.place = nil
	}
	return !c.outNow.Load()
}

// abort makes the end of the connection a reset, so that its sender notices at its
// next write.
func (c *conn) abort() {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
}

// name is the peer in a log line.
func (c *conn) name() string {
	if c.local {
		return "a local program"
	}
	if c.about.Proxy.IsValid() {
		return c.peer.String() + " through " + c.about.Proxy.String()
	}
	return c.peer.String()
}

func (s *Server) gone(c *conn) {
	c.Close()
	s.speaks(c)
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.Stats.Open.Add(-1)
}

// serve reads one connection to its end. It is the only reader of c. Until the first
// byte there is neither a sink nor a splitter: a connection that says nothing costs
// its goroutine and its socket.
func (s *Server) serve(ctx, hard context.Context, c *conn) {
	if s.greet(ctx, c) {
		s.read(ctx, hard, c)
	}
}

// greet waits for the first byte behind what a balancer says, and for TLS shakes hands.
// It returns false if that was all.
func (s *Server) greet(ctx context.Context, c *conn) bool {
	began, secure := c.last, s.tls != nil && !c.local
	if s.o.ProxyProtocol != ProxyOff && !c.local {
		if !s.first(ctx, c, func() { s.proxyFailed(c, fmt.Errorf("nothing within %v: %w", s.handshakeTime, errNoHeader)) }) {
			return false
		}
		if !s.proxied(ctx, c, began) {
			return false
		}
		if !secure {
			c.last = time.Now()
		}
	}
	var late func()
	if secure {
		late = func() { s.handshakeFailed(c, os.ErrDeadlineExceeded) }
	}
	if !s.first(ctx, c, late) {
		return false
	}
	if !s.speaks(c) {
		c.abort()
		return false
	}
	// RFC 8446 section 5.1: a record begins with its type, handshake, and version 3.x.
	plain := c.heads > 0 && c.head[0] != 22 || c.heads > 1 && c.head[1] != 3
	switch {
	case c.local:
	case secure && plain:
		s.handshakeFailed(c, errPlain)
		return false
	case secure:
		return s.handshake(ctx, c, began)
	case c.heads > 1 && !plain:
		s.Stats.TLSOnPlain.Add(1)
		if n, due := s.notices.due("tls"); due {
			s.o.Log.Warn("connection closed: the sender speaks TLS and this port does not", "input", s.o.Name, "peer", c.name(), "times", n,
				"hint", "send without TLS, or to an input with it (tls://, https://)")
		}
		return false
	}
	return true
}

// first waits for a first byte. With late it must come within the time of a handshake,
// else late is called. It returns false if the connection is to be closed.
func (s *Server) first(ctx context.Context, c *conn, late func()) bool {
	idleTimeout := s.o.IdleTimeout
	if late != nil {
		idleTimeout = s.handshakeTime
	}
	for {
		switch c.next(ctx, idleTimeout) {
		case readable:
			// Without a byte it connected and went away: somebody looked whether the port is open.
			return c.heads > 0 || c.packets
		case idle:
			if late != nil {
				late()
				return false
			}
			s.idle(c)
		case cut: // nothing is held
			c.cutNow.Store(false)
		case drained:
			return !c.silent() && s.tls == nil
		case evicted:
			c.abort()
			return false
		case ended:
			return false
		}
	}
}

// silent resets a connection that has sent nothing at all. It returns false if it has.
func (c *conn) silent() (silent bool) {
	c.rc.Control(func(fd uintptr) {
		if _, err := recvfrom(fd, c.head[:], unix.MSG_PEEK|unix.MSG_DONTWAIT); err == unix.EAGAIN {
			silent = true
			reset(fd)
		}
	})
	return silent
}

// old ends a connection whose message takes too long.
func (s *Server) old(c *conn) {
	s.Stats.Stale.Add(1)
	if n, due := s.notices.due("stale"); due {
		s.o.Log.Warn("connection closed: a message was not finished in time", "input", s.o.Name, "peer", c.name(), "for", s.o.MaxMessageAge, "times", n,
			"hint", "see why the sender does not end it, or raise "+s.o.Variable+"MAX_MESSAGE_AGE")
	}
	c.drain(drainTime)
}

func (s *Server) idle(c *conn) {
	s.Stats.Idle.Add(1)
	s.o.Log.Debug("connection closed: idle", "input", s.o.Name, "peer", c.name(), "for", s.o.IdleTimeout)
	c.drain(drainTime)
}

// reader is what a connection has from its first byte on.
type reader struct {
	s    *Server
	c    *conn
	sink Sink // during a turn
	sp   *framing.Splitter
	seen framing.Stats

	taken uint64 // messages
}

func (s *Server) read(ctx, hard context.Context, c *conn) {
	r := &reader{s: s, c: c, sp: framing.NewSplitter(s.o.Framing)}
	defer s.o.Memory.drop(&c.uses)
	if !r.loop(ctx, hard) || !r.begin(hard) {
		return
	}
	for m, ok := r.sp.End(); ok; m, ok = r.sp.End() {
		r.sink.Message(m, c.sender(), c.last)
	}
	r.count()
	r.end(hard)
	if r.sp.Err() != nil {
		c.abort()
	}
}

// begin takes a turn, end hands over what it brought and gives it back. They return
// false when hard has ended.
func (r *reader) begin(hard context.Context) bool {
	began := time.Now()
	r.sink = r.s.turns.take(hard)
	r.c.rests(began)
	return r.sink != nil
}

// rests says that c was not read since began, and so its message does not age for it.
func (c *conn) rests(began time.Time) {
	if !c.stale.IsZero() {
		c.stale = c.stale.Add(time.Since(began))
	}
}

func (r *reader) end(hard context.Context) bool {
	err := r.sink.Flush(hard)
	r.s.turns.give(r.sink)
	r.sink = nil
	return err == nil
}

// loop reads until the connection has ended, or is to. It returns false if nothing
// can be handed over any more.
func (r *reader) loop(ctx, hard context.Context) bool {
	s, c := r.s, r.c
	got := 0            // bytes since the socket was empty
	var empty time.Time // when it was
	for {
		if !c.more || ctx.Err() != nil || c.cutNow.Load() {
			if held := r.sp.Settle(); held > 0 || c.uses.n > 0 {
				s.o.Memory.set(&c.uses, int64(held))
			}
			switch c.next(ctx, s.o.IdleTimeout) {
			case idle:
				s.idle(c)
				continue
			case stale:
				if !r.sp.Waiting() {
					s.old(c)
				} else if !r.release(hard) {
					return false
				}
				continue
			case ripe:
				if !r.release(hard) {
					return false
				}
				continue
			case cut:
				if !r.cut(hard) {
					return false
				}
				if r.broken() {
					return true
				}
				c.more = false
				continue
			case drained:
				return r.finish(hard)
			case evicted, ended:
				r.ended(c.failed)
				return true
			}
		}
		s.o.Memory.ease(c)
		if !r.begin(hard) {
			return false
		}
		taken := r.taken
		n, err := r.take(hard)
		ok := err == nil || errors.Is(err, errAgain)
		if !r.end(hard) || err == errHard {
			return false
		}
		if r.broken() {
			return true
		}
		if held := r.sp.Buffered(); held > readSize {
			s.o.Memory.set(&c.uses, int64(held))
		}
		r.age(r.taken != taken)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // somebody kicked late
			c.armed, c.more = false, false
			continue
		case !ok:
			r.ended(err)
			return true
		case n > 0:
			c.last = time.Now()
			got += n
		}
		if !c.more {
			if got > 0 && got < little && c.last.Sub(empty) < 2*gather && c.until.IsZero() && s.gathers(c) {
				c.gather()
			}
			empty, got = c.last, 0
		}
	}
}

// age notes since when a message is unfinished (now, if one came meanwhile), and how
// long one that is whole may wait for what follows.
func (r *reader) age(came bool) {
	c := r.c
	switch {
	case r.s.o.MaxMessageAge == 0:
	case r.sp.Buffered() == 0:
		c.stale = time.Time{}
	case came || c.stale.IsZero():
		c.stale = time.Now().Add(r.s.o.MaxMessageAge)
	}
	if c.ripe = (time.Time{}); r.sp.Waiting() {
		c.ripe = time.Now().Add(releaseAfter)
	}
}

// release hands out the message that waits for what follows, which has not come.
func (r *reader) release(hard context.Context) bool {
	if !r.begin(hard) {
		return false
	}
	now := time.Now()
	for m, ok := r.sp.Release(); ok; m, ok = r.sp.Release() {
		r.sink.Message(m, r.c.sender(), now)
	}
	r.count()
	r.age(true)
	return r.end(hard)
}

// gather waits for a moment. Sleeping is not enough: whatever arrives for a tcp
// socket wakes the runtime's poller, also if nobody waits for it. It is half of the
// cost at 10,000 messages a second, and the low-water mark (SO_RCVLOWAT) ends it.
func (c *conn) gather() {
	c.lowWater(gathered)
	time.Sleep(gather)
	c.lowWater(1)
}

// gathers reports whether messages may gather in the socket of c: not in a unix one,
// which holds few before its sender waits, nor in a small buffer.
func (s *Server) gathers(c *conn) bool {
	return !c.local && (s.o.ReceiveBuffer == 0 || s.o.ReceiveBuffer >= 4*gathered)
}

// lowWater sets how many bytes must be there before the poller hears of them. It is a
// matter of cost alone, and an error of no consequence: the connection has ended.
func (c *conn) lowWater(bytes int) {
	c.rc.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, bytes) })
}

// readSize is how much of an unfinished message is held before it is asked whether
// the lane's memory has room.
const readSize = 64 << 10

var errHard = errors.New("stopped at once")

// take reads once what is there and hands the messages to the sink, which it flushes
// when much has gathered. Without anything there the error is errAgain.
func (r *reader) take(hard context.Context) (n int, err error) {
	if r.c.packets {
		return r.takePackets()
	}
	n, err = r.sp.Fill(r.c)
	if n == 0 {
		return n, err
	}
	r.s.Stats.Bytes.Add(int64(n))
	now, held := time.Now(), 0
	for m, ok := r.sp.Next(); ok; m, ok = r.sp.Next() {
		r.sink.Message(m, r.c.sender(), now)
		r.taken++
		if held += len(m.Data) + perMessage; held >= handOver {
			held = 0
			if r.sink.Flush(hard) != nil {
				return n, errHard
			}
		}
	}
	r.count()
	return n, err
}

// looks tells once of a connection whose framing looks like another.
func (r *reader) looks(now framing.Stats) {
	if now.LooksCounted > 0 && r.seen.LooksCounted == 0 {
		r.s.Stats.LooksCounted.Add(1)
		if n, due := r.s.notices.due("counted: " + r.c.name()); due {
			r.s.o.Log.Warn("messages look octet counted", "input", r.s.o.Name, "peer", r.c.name(), "times", n,
				"hint", "set "+r.s.o.Variable+"FRAMING=auto or rfc6587, or the sender to line framing")
		}
	}
	if now.LooksJSONX > 0 && r.seen.LooksJSONX == 0 {
		r.s.Stats.LooksJSONX.Add(1)
		if n, due := r.s.notices.due("jsonx: " + r.c.name()); due {
			r.s.o.Log.Warn("messages look like Vault's jsonx, which has no line ends", "input", r.s.o.Name, "peer", r.c.name(), "times", n,
				"hint", "set "+r.s.o.Variable+"FRAMING=jsonx, or format=json of Vault's audit device")
		}
	}
}

// takePackets is take of packets: as many as are there, up to handOver.
func (r *reader) takePackets() (n int, err error) {
	buf := packetBufs.Get().(*[localMax]byte)
	defer packetBufs.Put(buf)
	now := time.Now()
	for n < handOver {
		size, err := r.c.readPacket(buf[:])
		if err != nil {
			r.c.more = false
			if err == errAgain && n > 0 {
				err = nil
			}
			return n, err
		}
		r.s.datagram(r.sink, buf[:min(size, localMax)], size > localMax, r.c.sender(), now)
		n += size + perMessage
	}
	r.c.more = true
	return n, nil
}

// cut treats the unfinished message as over-size: the memory of the lane is used up.
func (r *reader) cut(hard context.Context) bool {
	r.c.cutNow.Store(false)
	if !r.begin(hard) {
		return false
	}
	was := r.sp.Stats().Oversize
	now := time.Now()
	if m, ok := r.sp.Cut(); ok {
		r.sink.Message(m, r.c.sender(), now)
	}
	for m, ok := r.sp.Next(); ok; m, ok = r.sp.Next() { // it is what lets go of the rest
		r.sink.Message(m, r.c.sender(), now)
	}
	if !r.end(hard) {
		return false
	}
	if r.sp.Stats().Oversize == was {
		return true // too little to be treated as anything
	}
	r.s.Stats.MemoryCut.Add(1)
	r.count()
	if n, due := r.s.notices.due("memory"); due {
		r.s.o.Log.Warn("the unfinished messages of a lane take all the memory they may; the largest are treated as over-size", "input", r.s.o.Name,
			"peer", r.c.name(), "times", n, "limit", r.s.o.Memory.limit, "hint", "raise SPILLWAY_MESSAGE_MEMORY, or lower "+r.s.o.Variable+"MAX_MESSAGE_SIZE")
	}
	return true
}

// broken reports whether the framing can't be followed any further.
func (r *reader) broken() bool {
	err := r.sp.Err()
	if err == nil {
		return false
	}
	if n, due := r.s.notices.due("broken"); due {
		r.s.o.Log.Warn("connection closed: its framing can't be followed", "input", r.s.o.Name, "peer", r.c.name(), "error", err, "times", n,
			"hint", "check the sender's framing against "+r.s.o.Variable+"FRAMING, and the size of its messages against MAX_MESSAGE_SIZE")
	}
	return true
}

// ended says how a connection ended.
func (r *reader) ended(err error) {
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		r.s.o.Log.Debug("connection ended", "input", r.s.o.Name, "peer", r.c.name(), "error", err)
	}
}

// finish takes what is there and resets the connection in one go, so that next to
// nothing can arrive in between: what does is lost, since its sender was told that it
// arrived. Unix sockets have nothing in between, see drain.
func (r *reader) finish(hard context.Context) (ok bool) {
	if r.c.local {
		return true
	}
	if !r.begin(hard) {
		return false
	}
	ok = true
	r.c.SetReadDeadline(time.Time{})
	if r.c.tls != nil {
		r.c.tls.CloseWrite() // says that this is the end; the reset fails the next write
	}
	r.c.rc.Control(func(fd uintptr) {
		for end := time.Now().Add(lastLook); time.Now().Before(end); {
			if n, err := r.take(hard); n == 0 || err != nil {
				ok = err != errHard
				break
			}
		}
		reset(fd)
	})
	return r.end(hard) && ok
}

// count adds what the splitter counted since the last time.
func (r *reader) count() {
	if now := r.sp.Stats(); now != r.seen {
		r.looks(now)
		r.s.Stats.addFraming(now, r.seen)
		r.seen = now
	}
}
