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

// Stats counts what a server saw. Its fields only grow, Open excepted.
type Stats struct {
	Connections atomic.Int64 // accepted
	Open        atomic.Int64 // connections now
	Refused     atomic.Int64 // closed at once: over the limit of connections
	Idle        atomic.Int64 // closed for being idle
	Bytes       atomic.Int64 // read
	Empty       atomic.Int64 // empty frames and datagrams
	Oversize    atomic.Int64 // messages over the limit
	Discarded   atomic.Int64 // bytes thrown away behind the limit
	Framing     atomic.Int64 // framing errors
	Cut         atomic.Int64 // counted frames that the sender did not finish
}

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
