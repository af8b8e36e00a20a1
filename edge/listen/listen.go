// Package listen is sockets only: it accepts, reads, frames and hands messages
// to a Sink. What becomes of them is the sink's business.
//
// A server owns its sockets from Listen on. Serve runs until its context ends
// and returns when every goroutine it started has returned: one for each listening
// socket and one for each connection.
package listen

import (
	"container/list"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"spillway/framing"
)

// What was taken is handed over at handOver bytes, though more is waiting. A
// message counts perMessage bytes more than it has: the record of a tiny one is
// many times its length.
const (
	handOver   = 256 << 10
	perMessage = 256
)

// deadliner is what wakes a goroutine that waits for a socket.
type deadliner interface{ SetDeadline(time.Time) error }

// Sink takes messages. It is used by one goroutine at a time.
type Sink interface {
	// Message takes one message of from, received at now. m.Data is valid during the
	// call only.
	Message(m framing.Message, from Sender, now time.Time)

	// Flush hands over what Message took. It waits while there is no room and the
	// input's policy is to wait; an error means that the connection must end.
	Flush(ctx context.Context) error

	// Close gives the sink back. What was not flushed is flushed before.
	Close()
}

// Sender is who sent a message.
type Sender struct {
	Addr netip.AddrPort // not valid: a local program
	Conn *Conn          // nil: of a datagram
}

// Conn is what is known of a connection. It is made once for each, is not changed
// from its first message on but for Told, and its address tells it from others.
type Conn struct {
	Since time.Time      // accepted
	Proxy netip.AddrPort // who told the address of the sender (PROXY protocol); not valid: nobody, it is the peer's
	TLS   *TLSFacts      // nil: plain

	// Told is the sinks': what they made of the rest, once for the connection.
	Told any
}

// TLSFacts are what a finished handshake says of a connection.
type TLSFacts struct {
	Version string            // 1.2 or 1.3
	Cipher  string            // name of the suite, as IANA lists it
	Client  *x509.Certificate // nil: the client showed none
}

// Dropper is a Sink that is told of messages that were lost before they could be
// read: n of them since a time.
type Dropper interface {
	Dropped(n uint64, since time.Time)
}

// Gate says when an input refuses.
type Gate interface {
	// Shut returns a channel that is closed once there is no room for new senders'
	// records: the server stops accepting, drains its connections and closes them.
	Shut() <-chan struct{}

	// Wait returns nil when there is room again (Shut then returns a new channel), or
	// ctx's error.
	Wait(ctx context.Context) error
}

// Options configure a Server.
type Options struct {
	Name     string // of the input
	Variable string // what the names of the input's variables begin with, for messages: SPILLWAY_INPUT_TCP_

	// Network is tcp, udp, unix, unixgram, unixpacket, or fd: sockets that systemd
	// has opened (sd_listen_fds(3)), which are of the kind that they are.
	Network string

	// Address is host:port ("localhost" is both loopback addresses); a path, or
	// @name for an abstract one; with fd a name in LISTEN_FDNAMES.
	Address string

	Socket SocketFile // unix paths only

	// TLS makes streams of tcp TLS connections. Nil: plain.
	TLS *TLSOptions

	Framing        framing.Options
	ReceiveBuffer  int            // bytes of socket buffer to ask for; 0: DefaultReceiveBuffer for udp, else the kernel's choice
	MaxConnections int            // 0: no limit
	IdleTimeout    time.Duration  // 0: never
	MaxMessageAge  time.Duration  // a connection that takes longer for one message is closed; 0: never
	KeepAlive      time.Duration  // between two probes of a silent tcp connection; 0: none
	Allow          []netip.Prefix // of tcp and udp senders; none: all
	PeerUIDs       []uint32       // users that may connect to a unix socket; none: all who can open it
	ProxyProtocol  ProxyProtocol  // of tcp connections: they come through a balancer that says from whom
	Memory         *Memory        // shared by the inputs of a lane; nil: no limit
	Gate           Gate           // of streams; nil: the server never refuses

	// Open returns a sink. A datagram socket has one, and the connections of a server
	// share a few.
	Open func() Sink
	Log  *slog.Logger
}

// SocketFile is the file of a unix socket.
type SocketFile struct {
	Mode  os.FileMode // permission bits; 0: DefaultSocketMode
	Owner string      // name or number; "": whoever runs the agent
	Group string      // name or number; "": that of whoever runs the agent
}

// DefaultSocketMode lets the owner and the group write.
const DefaultSocketMode = 0o660

// TLSOptions say who a server is and whom it believes. A client must meet all that is
// set of it.
type TLSOptions struct {
	CertFile       string                 // PEM: certificate and intermediates
	KeyFile        string                 // PEM
	Passphrase     func() ([]byte, error) // of KeyFile if that is encrypted, asked for whenever it is read; nil: there is none
	PassphraseFile string                 // that Passphrase reads, to see when it changes; "": none

	ClientCAFile       string        // PEM: who may sign client certificates; "": anybody, themselves too
	ClientAuth         ClientAuth    // not ClientNone needs ClientCAFile or ClientFingerprints, and those need it
	ClientFingerprints []Fingerprint // certificates that may send, also self-signed and expired ones if there is no ClientCAFile; none: any
	ClientNames        []ClientName  // needs ClientCAFile: elsewhere anybody could write any name; none: any

	MinVersion   uint16        // 0: tls.VersionTLS12
	MaxVersion   uint16        // 0: the newest
	CipherSuites []uint16      // of TLS 1.2; none: those of crypto/tls
	Curves       []tls.CurveID // key exchanges; none: those of crypto/tls
}

// ClientAuth says whether clients need a certificate.
type ClientAuth uint8

// Values of SPILLWAY_INPUT_<NAME>_TLS_CLIENT_AUTH.
const (
	ClientNone     ClientAuth = 0 // not asked for
	ClientOptional ClientAuth = 1 // one that is given must be good
	ClientRequired ClientAuth = 2
)

// Stats counts what a server saw. Its fields only grow, except those called gauges.
type Stats struct {
	Connections atomic.Int64 // accepted
	Open        atomic.Int64 // gauge: connections now
	Refused     atomic.Int64 // closed at once: over the limit of connections
	Evicted     atomic.Int64 // closed for another, at the limit: they had said nothing yet
	Denied      atomic.Int64 // connections closed at once and datagrams dropped: not in Allow or PeerUIDs
	Idle        atomic.Int64 // closed for being idle
	Stale       atomic.Int64 // closed for a message that was unfinished for longer than MaxMessageAge
	Bytes       atomic.Int64 // read
	Empty       atomic.Int64 // empty frames and datagrams
	Oversize    atomic.Int64 // messages over the limit
	Discarded   atomic.Int64 // bytes thrown away behind the limit
	Framing     atomic.Int64 // framing errors
	Cut         atomic.Int64 // counted frames that the sender did not finish
	MemoryCut   atomic.Int64 // unfinished messages treated as over-size: those of the lane together had reached its limit

	LooksCounted atomic.Int64 // connections whose messages begin with an octet count, and the framing has none
	LooksJSONX   atomic.Int64 // connections of Vault's jsonx, and the framing is another

	KernelDrops   atomic.Int64 // datagrams that the kernel dropped: the receive buffer was full
	ReceiveBuffer atomic.Int64 // gauge: bytes of receive buffer that the kernel granted (udp)

	HandshakePlain       atomic.Int64 // TLS handshakes that failed: it was not TLS
	HandshakeTimeout     atomic.Int64 // not finished in time
	HandshakeCertificate atomic.Int64 // no client certificate, or one that is expired or untrusted
	HandshakeOther       atomic.Int64 // all else
	TLSOnPlain           atomic.Int64 // connections closed: they spoke TLS to a port without it
	ProxyHeader          atomic.Int64 // connections closed: no valid header of the PROXY protocol, or not in time

	CertificateExpires atomic.Int64 // gauge: Unix seconds, NotAfter of the server's certificate; 0: no TLS
	Reloads            atomic.Int64 // of TLS files
	ReloadFailures     atomic.Int64 // the old ones stay

	Shut    atomic.Int64 // times that the input stopped accepting because there was no room (Gate)
	Refuses atomic.Int64 // gauge: 1 from then until its sockets are bound again
}

// Server is the sockets of one input. It is made by Listen.
type Server struct {
	Stats Stats

	o       Options
	tls     *tlsFiles // nil: plain
	sockets []*socket
	turns   *turns
	notices notices

	handshakeTime time.Duration // handshakeTimeout, and less in tests

	mu     sync.Mutex
	conns  map[*conn]struct{} // guarded by mu
	silent list.List          // of those that have sent nothing yet, the oldest first; guarded by mu
}

// Listen opens the sockets. It starts no goroutine. Its errors begin with the variable
// that they are about.
func Listen(o Options) (*Server, error) {
	s := &Server{o: o, handshakeTime: handshakeTimeout, turns: newTurns(o.Open), conns: map[*conn]struct{}{}}
	var err error
	if o.TLS != nil {
		if s.tls, err = newTLSFiles(s); err != nil {
			return nil, err
		}
	}
	if s.sockets, err = bind(o); err != nil {
		return nil, err
	}
	for _, k := range s.sockets {
		switch {
		case k.kind == datagrams && o.Gate != nil:
			err = fmt.Errorf("%sON_FULL=refuse is not for datagrams (%s), whose senders would not notice: use drop", o.Variable, k.name)
		case k.kind == datagrams && !k.local:
			if err = s.widen(k); err != nil {
				err = fmt.Errorf("%sSO_RCVBUF: receive buffer of udp %s: %w", o.Variable, k.name, err)
			}
		}
		if o.TLS != nil && (k.local || k.kind == datagrams) {
			err = errors.Join(err, fmt.Errorf("%sTLS_CERT_FILE: TLS is for tcp only, and %s is not: remove it", o.Variable, k.name))
		}
		if o.ProxyProtocol != ProxyOff && (k.local || k.kind == datagrams) {
			err = errors.Join(err, fmt.Errorf("%sPROXY_PROTOCOL: it is for tcp only, and %s is not: remove it", o.Variable, k.name))
		}
		if len(o.PeerUIDs) > 0 && (!k.local || k.kind == datagrams) {
			err = errors.Join(err, fmt.Errorf("%sPEER_UID: only connections of unix sockets tell their user, and %s has none: remove it", o.Variable, k.name))
		}
		if err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// Addrs are the bound addresses.
func (s *Server) Addrs() (all []net.Addr) {
	for _, k := range s.sockets {
		all = append(all, k.addr)
	}
	return all
}

// Close closes the listening sockets; Serve does it too when it ends.
func (s *Server) Close() {
	for _, k := range s.sockets {
		k.close()
		if k.file != nil {
			k.file.Close()
		}
	}
}

// Reload reads the TLS files again. On an error the old ones stay. It may be called at
// any time, and does nothing without TLS.
func (s *Server) Reload() error {
	if s.tls == nil {
		return nil
	}
	return s.tls.reload()
}

// errNoRoom ends a round of serving because the gate is shut.
var errNoRoom = errors.New("no room")

// Serve reads until ctx ends; then it accepts no more, takes what senders have sent by
// then, hands it over and returns. hard ends all waiting. With a Gate it does the same
// each time the gate shuts, and goes on when it is open again.
func (s *Server) Serve(ctx, hard context.Context) {
	defer s.Close()
	defer s.turns.close()
	for s.round(ctx, hard) {
		began := time.Now()
		s.Stats.Refuses.Store(1)
		s.Stats.Shut.Add(1)
		if s.o.Gate.Wait(ctx) != nil || !s.bindAgain(ctx) {
			s.leaveListening()
			return
		}
		s.Stats.Refuses.Store(0)
		s.o.Log.Info("the buffer has room again; accepting", "input", s.o.Name, "refused_for", time.Since(began).Round(time.Millisecond))
	}
}

// round serves until ctx ends or there is no room, which it reports.
func (s *Server) round(ctx, hard context.Context) (refused bool) {
	var shut <-chan struct{}
	if s.o.Gate != nil {
		shut = s.o.Gate.Shut()
	}
	serving, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	for _, k := range s.sockets {
		if k.kind == datagrams {
			wg.Go(func() { s.receive(serving, hard, k) })
		} else {
			wg.Go(func() { s.accept(serving, hard, k, &wg) })
		}
	}
	select {
	case <-ctx.Done():
		stop(ctx.Err()) // ctx may not have told serving yet, and who is woken asks that
	case <-shut:
		refused = ctx.Err() == nil
		stop(errNoRoom)
	}
	for _, k := range s.sockets {
		if k.kind == datagrams {
			k.p.SetReadDeadline(longAgo)
		} else {
			k.l.SetDeadline(longAgo)
		}
	}
	s.mu.Lock()
	open := len(s.conns)
	for c := range s.conns {
		c.kick()
	}
	s.mu.Unlock()
	wg.Wait()
	if refused {
		s.o.Log.Info("no room in the buffer: connections were drained and closed, and new ones are refused until there is", "input", s.o.Name, "connections", open)
	}
	return refused
}

// bindAgain opens the sockets again, all or none: nobody is served yet by those that
// are open. It returns false if ctx ended first.
func (s *Server) bindAgain(ctx context.Context) bool {
	for {
		failed := 0
		var err error
		for failed < len(s.sockets) {
			if err = s.sockets[failed].bind(s.o); err != nil {
				break
			}
			failed++
		}
		if err == nil {
			return true
		}
		if n, due := s.notices.due("bind"); due {
			s.o.Log.Error("can't listen again; trying each second", "input", s.o.Name, "address", s.sockets[failed].name, "error", err, "times", n)
		}
		for _, k := range s.sockets[:failed] {
			k.close()
			k.refuse()
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(time.Second):
		}
	}
}

// leaveListening ends the refusing of systemd's sockets: whoever connects while no
// agent runs waits for the next one.
func (s *Server) leaveListening() {
	for _, k := range s.sockets {
		if k.file == nil || k.kind == datagrams {
			continue
		}
		if err := k.control(func(fd uintptr) error { return unix.Listen(int(fd), backlog) }); err != nil {
			s.o.Log.Error("a socket of systemd's can't be made to listen again", "input", s.o.Name, "address", k.name, "error", err)
		}
	}
}

// allowed reports whether a sender may send.
func (s *Server) allowed(a netip.Addr) bool {
	if len(s.o.Allow) == 0 {
		return true
	}
	a = a.WithZone("")
	for _, p := range s.o.Allow {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// deny counts a sender that is not allowed.
func (s *Server) deny(peer, what string) {
	s.Stats.Denied.Add(1)
	if n, due := s.notices.due("allow"); due {
		s.o.Log.Warn("a sender that is not allowed: "+what, "input", s.o.Name, "peer", peer, "times", n, "hint", "add it to "+s.o.Variable+"ALLOW if it may send")
	}
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}

// unmap turns an IPv4 address in IPv6 clothes (::ffff:a.b.c.d) into itself.
func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// addFraming adds what a splitter counted between two looks at it.
func (s *Stats) addFraming(now, seen framing.Stats) {
	s.Empty.Add(int64(now.Empty - seen.Empty))
	s.Oversize.Add(int64(now.Oversize - seen.Oversize))
	s.Discarded.Add(int64(now.Discarded - seen.Discarded))
	s.Framing.Add(int64(now.Errors - seen.Errors))
	s.Cut.Add(int64(now.Partial - seen.Partial))
}
