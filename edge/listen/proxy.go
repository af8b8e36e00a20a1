package listen

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ProxyProtocol says which header of the PROXY protocol stands before everything else
// that a tcp connection brings, also before TLS. With any but ProxyOff a connection
// without one is closed: whoever may connect (Allow) is believed when it says who sends.
type ProxyProtocol uint8

// Values of SPILLWAY_INPUT_<NAME>_PROXY_PROTOCOL.
const (
	ProxyOff ProxyProtocol = 0
	ProxyV1  ProxyProtocol = 1 // text
	ProxyV2  ProxyProtocol = 2 // binary
	ProxyAny ProxyProtocol = 3 // either
)

var proxyNames = []string{"off", "v1", "v2", "any"}

// String returns the name of the setting.
func (p ProxyProtocol) String() string { return proxyNames[p] }

// MarshalText returns the name of the setting.
func (p ProxyProtocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads the name of the setting.
func (p *ProxyProtocol) UnmarshalText(text []byte) error {
	for i, name := range proxyNames {
		if strings.EqualFold(string(text), name) {
			*p = ProxyProtocol(i)
			return nil
		}
	}
	return fmt.Errorf("unknown %q: use off, v1, v2 or any", text)
}

// The header of version 1 is a line of at most 107 bytes:
//
//	PROXY TCP4 192.0.2.7 192.0.2.1 44214 6514\r\n      from, to, their ports
//	PROXY TCP6 2001:db8::7 2001:db8::1 44214 6514\r\n
//	PROXY UNKNOWN[ anything]\r\n                       nobody can tell
//
// That of version 2, numbers big-endian:
//
//	 0 signature 0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A
//	12 u8  version 2 in the high half; command: 0 LOCAL (the balancer's own), 1 PROXY
//	13 u8  family in the high half: 1 inet, 2 inet6, 3 unix; protocol: 1 stream, 2 datagram;
//	       or 0: not told
//	14 u16 length of what follows
//	16 from, to, port of from u16, port of to u16: 4+4+2+2 bytes, or 16+16+2+2
//	   then any number of: type u8, length u16, value. Type 3 is the CRC32C of the whole
//	   header with its own value as zeros.
const (
	proxyV1     = "PROXY "
	proxyV2     = "\r\n\r\n\x00\r\nQUIT\n"
	proxyV1Max  = 107
	proxyV2Head = 16
	proxyV2Max  = 4096 // of what follows; balancers send certificates' names, at most
	proxyCRC    = 3
)

var (
	errNoHeader    = errors.New("no header of the PROXY protocol")
	errOtherHeader = errors.New("a header of the PROXY protocol, but of the other version")
	errBadHeader   = errors.New("a damaged header of the PROXY protocol")
	errLongHeader  = errors.New("a header of the PROXY protocol that is too long")
	errHeaderCRC   = errors.New("a header of the PROXY protocol with a wrong checksum")

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// more returns how many bytes can be read behind b, the beginning of a header, and still
// belong to it. 0: it is complete.
func (p ProxyProtocol) more(b []byte) (int, error) {
	v1 := bytes.HasPrefix(b, []byte(proxyV1)[:min(len(b), len(proxyV1))])
	v2 := bytes.HasPrefix(b, []byte(proxyV2)[:min(len(b), len(proxyV2))])
	switch {
	case len(b) == 0:
		return len("PROXY UNKNOWN\r\n"), nil // the shortest of all
	case !v1 && !v2:
		return 0, errNoHeader
	case v1 && p == ProxyV2 || v2 && p == ProxyV1:
		return 0, errOtherHeader
	case v1:
		return moreV1(b)
	case len(b) < proxyV2Head:
		return proxyV2Head - len(b), nil
	}
	n := int(binary.BigEndian.Uint16(b[14:]))
	if n > proxyV2Max {
		return 0, errLongHeader
	}
	return proxyV2Head + n - len(b), nil
}

func moreV1(b []byte) (int, error) {
	end := bytes.IndexAny(b, "\r\n")
	shortest := len("PROXY UNKNOWN\r\n")
	switch {
	case bytes.HasPrefix(b, []byte("PROXY TCP4 ")):
		shortest = len("PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n")
	case bytes.HasPrefix(b, []byte("PROXY TCP6 ")):
		shortest = len("PROXY TCP6 :: :: 1 1\r\n")
	}
	switch {
	case end < 0 && len(b)+2 > proxyV1Max:
		return 0, errLongHeader
	case end < 0:
		return max(2, shortest-len(b)), nil
	case b[end] == '\r' && end == len(b)-1:
		return 1, nil
	case b[end] == '\r' && b[end+1] == '\n' && end+2 == len(b):
		return 0, nil
	}
	return 0, errBadHeader
}

// proxySource returns who sends, according to a complete header; an address that is not
// valid if the header does not tell.
func proxySource(b []byte) (netip.AddrPort, error) {
	if b[0] == proxyV1[0] {
		return sourceV1(string(b[len(proxyV1) : len(b)-2]))
	}
	return sourceV2(b)
}

func sourceV1(line string) (from netip.AddrPort, err error) {
	f := strings.Split(line, " ")
	if f[0] == "UNKNOWN" {
		return from, nil
	}
	if len(f) != 5 || f[0] != "TCP4" && f[0] != "TCP6" {
		return from, errBadHeader
	}
	var ports [2]uint16
	for i := range 2 {
		a, err := netip.ParseAddr(f[1+i])
		// nginx writes IPv4 addresses behind TCP6 if only one end has one.
		if err != nil || a.Zone() != "" || f[0] == "TCP4" && !a.Is4() {
			return from, errBadHeader
		}
		n, err := strconv.ParseUint(f[3+i], 10, 16)
		if err != nil || f[3+i] != strconv.FormatUint(n, 10) {
			return from, errBadHeader
		}
		ports[i] = uint16(n)
	}
	return unmap(netip.AddrPortFrom(netip.MustParseAddr(f[1]), ports[0])), nil
}

func sourceV2(b []byte) (from netip.AddrPort, err error) {
	family, protocol := b[13]>>4, b[13]&15
	if b[12]>>4 != 2 || b[12]&15 > 1 || b[13] != 0 && (family == 0 || family > 3 || protocol == 0 || protocol > 2) {
		return from, errBadHeader
	}
	if b[12]&15 == 0 {
		return from, nil // LOCAL: what follows says nothing
	}
	size := 0 // of an address
	switch family {
	case 1:
		size = 4
	case 2:
		size = 16
	}
	rest := b[proxyV2Head:]
	switch {
	case size > 0 && len(rest) < 2*size+4:
		return from, errBadHeader
	case size > 0:
		if protocol == 1 {
			a, _ := netip.AddrFromSlice(rest[:size])
			from = unmap(netip.AddrPortFrom(a, binary.BigEndian.Uint16(rest[2*size:])))
		}
		rest = rest[2*size+4:]
	case family == 3: // unix: two paths
		if len(rest) < 2*108 {
			return from, errBadHeader
		}
		rest = rest[2*108:]
	}
	for len(rest) > 0 {
		if len(rest) < 3 {
			return netip.AddrPort{}, errBadHeader
		}
		n := int(binary.BigEndian.Uint16(rest[1:]))
		if len(rest) < 3+n || rest[0] == proxyCRC && n != 4 {
			return netip.AddrPort{}, errBadHeader
		}
		if rest[0] == proxyCRC {
			at := len(b) - len(rest) + 3
			crc := crc32.Update(0, castagnoli, b[:at])
			crc = crc32.Update(crc, castagnoli, make([]byte, 4))
			crc = crc32.Update(crc, castagnoli, b[at+4:])
			if crc != binary.BigEndian.Uint32(b[at:]) {
				return netip.AddrPort{}, errHeaderCRC
			}
		}
		rest = rest[3+n:]
	}
	return from, nil
}

// proxied reads the header that stands first in c, and not one byte more. It returns
// false if the connection is to be closed.
func (s *Server) proxied(ctx context.Context, c *conn, began time.Time) bool {
	var b []byte
	end, stopping := began.Add(s.handshakeTime), false
	c.wait = true
	defer func() { c.wait, c.armed = false, false }()
	for {
		more, err := s.o.ProxyProtocol.more(b)
		if err == nil && more == 0 {
			break
		}
		if err != nil {
			s.proxyFailed(c, err)
			return false
		}
		c.Conn.SetReadDeadline(end)
		// Whoever kicked before this said first what for.
		if c.outNow.Load() {
			c.abort()
			return false
		}
		if ctx.Err() != nil && !stopping {
			// What the sender has sent is still read.
			stopping, end = true, earlier(end, time.Now().Add(quiet))
			continue
		}
		if cap(b)-len(b) < more {
			b = append(make([]byte, 0, 2*(len(b)+more)), b...)
		}
		n, err := c.sock.Read(b[len(b) : len(b)+more])
		b = b[:len(b)+n]
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(end):
			continue // it was a kick
		case stopping:
			c.abort()
			return false
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.proxyFailed(c, fmt.Errorf("not complete within %v: %w", s.handshakeTime, errNoHeader))
			return false
		case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
			s.proxyFailed(c, fmt.Errorf("it went away within the header: %w", errBadHeader))
			return false
		default:
			s.proxyFailed(c, err)
			return false
		}
	}
	from, err := proxySource(b)
	if err != nil {
		s.proxyFailed(c, err)
		return false
	}
	if from.IsValid() {
		s.mu.Lock() // evict names c
		c.about.Proxy, c.peer = c.peer, from
		s.mu.Unlock()
	}
	return true
}

// proxyFailed counts and tells of a connection without a header.
func (s *Server) proxyFailed(c *conn, err error) {
	s.Stats.ProxyHeader.Add(1)
	c.abort()
	if n, due := s.notices.due("proxy: " + c.peer.Addr().String()); due {
		v := s.o.Variable + "PROXY_PROTOCOL"
		hint := "let the balancer send it (send-proxy or send-proxy-v2 in haproxy), or remove " + v + " if senders connect themselves"
		if errors.Is(err, errOtherHeader) {
			hint = "set " + v + "=any, or the balancer to " + s.o.ProxyProtocol.String()
		}
		s.o.Log.Warn("connection closed: it does not begin with a header of the PROXY protocol", "input", s.o.Name, "peer", c.name(), "error", err, "times", n, "hint", hint)
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
