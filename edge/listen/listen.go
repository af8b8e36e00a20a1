// Package listen is sockets only: it accepts, reads, frames and hands messages
// to a Sink. What becomes of them is the sink's business.
//
// A server owns its sockets from Listen on. Serve runs until its context ends
// and returns when every goroutine it started has returned.
package listen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"spillway/framing"
)

// What was taken is handed over at handOver bytes, though more is waiting. A
// message counts perMessage bytes more than it has: the record of a tiny one is
// many times its length.
const (
	handOver   = 256 << 10
	perMessage = 256
)

// Sink takes the messages of one connection, or of one datagram socket. It is
// used by one goroutine.
type Sink interface {
	// Message takes one message of from, received at now. m.Data is valid during the call only.
	Message(m framing.Message, from netip.AddrPort, now time.Time)

	// Flush hands over what Message took. It waits while there is no room and the
	// input's policy is to wait; an error means that the connection must end.
	Flush(ctx context.Context) error

	// Close gives the sink back. What was not flushed is flushed before.
	Close()
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
	KeepAlive      time.Duration  // between two probes of a silent tcp connection; 0: none
	Allow          []netip.Prefix // of tcp and udp senders; none: all
	Memory         *Memory        // shared by the inputs of a lane; nil: no limit
	Gate           Gate           // of streams; nil: the server never refuses

	// Open returns the sink of one connection, when its first bytes are there, or of
	// one datagram socket, whose peer is not valid. So is that of unix sockets.
	Open func(peer netip.AddrPort) Sink
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

// TLSOptions say who a server is and whom it believes.
type TLSOptions struct {
	CertFile     string     // PEM: certificate and intermediates
	KeyFile      string     // PEM, not encrypted
	ClientCAFile string     // PEM: who may sign client certificates; "": nobody is asked for one
	ClientAuth   ClientAuth // not ClientNone needs ClientCAFile
	MinVersion   uint16     // 0: tls.VersionTLS12
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
	Denied      atomic.Int64 // connections closed at once and datagrams dropped: not in Allow
	Idle        atomic.Int64 // closed for being idle
	Bytes       atomic.Int64 // read
	Empty       atomic.Int64 // empty frames and datagrams
	Oversize    atomic.Int64 // messages over the limit
	Discarded   atomic.Int64 // bytes thrown away behind the limit
	Framing     atomic.Int64 // framing errors
	Cut         atomic.Int64 // counted frames that the sender did not finish
	MemoryCut   atomic.Int64 // unfinished messages treated as over-size: those of the lane together had reached its limit

	KernelDrops   atomic.Int64 // datagrams that the kernel dropped: the receive buffer was full
	ReceiveBuffer atomic.Int64 // gauge: bytes of receive buffer that the kernel granted (udp)

	HandshakePlain       atomic.Int64 // TLS handshakes that failed: it was not TLS
	HandshakeTimeout     atomic.Int64 // not finished in time
	HandshakeCertificate atomic.Int64 // no client certificate, or one that is expired or untrusted
	HandshakeOther       atomic.Int64 // all else
	TLSOnPlain           atomic.Int64 // connections closed: they spoke TLS to a port without it

	CertificateExpires atomic.Int64 // gauge: Unix seconds, NotAfter of the server's certificate; 0: no TLS
	Reloads            atomic.Int64 // of TLS files
	ReloadFailures     atomic.Int64 // the old ones stay

	Shut atomic.Int64 // times that the input stopped accepting because there was no room (Gate)
}

// Server is the sockets of one input.
type Server struct {
	Stats Stats

	streams   *streams
	datagrams *datagrams
}

// Listen opens the sockets. It starts no goroutine.
func Listen(o Options) (*Server, error) {
	s := &Server{}
	var err error
	switch o.Network {
	case "tcp":
		s.streams, err = listenTCP(o, &s.Stats)
	case "udp":
		s.datagrams, err = listenUDP(o, &s.Stats)
	default:
		err = fmt.Errorf("no such network: %q", o.Network)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Addrs are the bound addresses.
func (s *Server) Addrs() []net.Addr {
	if s.streams != nil {
		return s.streams.addrs()
	}
	return s.datagrams.addrs()
}

// Close closes the listening sockets; Serve does it too when it ends.
func (s *Server) Close() {
	if s.streams != nil {
		s.streams.close()
	} else {
		s.datagrams.close()
	}
}

// Serve reads until ctx ends; then it takes what senders have sent by then, hands it
// over and returns. hard ends all waiting.
func (s *Server) Serve(ctx, hard context.Context) {
	if s.streams != nil {
		s.streams.serve(ctx, hard)
	} else {
		s.datagrams.serve(ctx, hard)
	}
}

// Reload reads the TLS files again. On an error the old ones stay.
func (s *Server) Reload() error { return nil }

// bind listens on every address that address stands for: "localhost" is both
// loopback addresses (whichever exist), everything else what net makes of it.
func bind[T any](network, address string, listen func(network, address string) (T, error), port func(T) int) ([]T, error) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if host != "localhost" {
		l, err := listen(network, address)
		if err != nil {
			return nil, explain(network, address, err)
		}
		return []T{l}, nil
	}
	var all []T
	l, err := listen(network+"4", net.JoinHostPort("127.0.0.1", p))
	if err != nil {
		return nil, explain(network, net.JoinHostPort("127.0.0.1", p), err)
	}
	all = append(all, l)
	// The same port on both: with port 0 the second takes what the first was given.
	v6 := net.JoinHostPort("::1", fmt.Sprint(port(l)))
	if l, err = listen(network+"6", v6); err == nil {
		all = append(all, l)
	} else if !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EAFNOSUPPORT) {
		return all, explain(network, v6, err)
	}
	return all, nil
}

// explain says what to do about an address that can't be bound.
func explain(network, address string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "; another program listens there: stop it or choose another port"
	case errors.Is(err, os.ErrPermission):
		hint = "; ports below 1024 need CAP_NET_BIND_SERVICE: grant it or choose a higher port"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "; this host has no such address"
	}
	return fmt.Errorf("listen on %s %s: %w%s", network, address, err, hint)
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
