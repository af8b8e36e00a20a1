package listen

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// v2 draws a header of version 2.
func v2(command, family byte, rest ...byte) string {
	b := append([]byte(proxyV2), 0x20|command, family, 0, 0)
	binary.BigEndian.PutUint16(b[14:], uint16(len(rest)))
	return string(append(b, rest...))
}

var inet = []byte{192, 0, 2, 7, 192, 0, 2, 1, 0xac, 0xb4, 0, 80} // from 192.0.2.7:44212

// tlv is one type, length, value.
func tlv(typ byte, value string) []byte {
	return append([]byte{typ, byte(len(value) >> 8), byte(len(value))}, value...)
}

// summed is header, whose last four bytes are the value of its checksum, with that set.
func summed(header string) string {
	b := []byte(header)
	sum := b[len(b)-4:]
	clear(sum)
	binary.BigEndian.PutUint32(sum, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return string(b)
}

// broken is s with its last byte changed.
func broken(s string) string { return s[:len(s)-1] + string(s[len(s)-1]^1) }

var proxyHeaders = []struct {
	name   string
	p      ProxyProtocol
	header string
	from   string // "": the peer itself
	err    error
}{
	{"v1", ProxyV1, "PROXY TCP4 192.0.2.7 192.0.2.1 44214 6514\r\n", "192.0.2.7:44214", nil},
	{"v1, the shortest", ProxyAny, "PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n", "1.1.1.1:1", nil},
	{"v1, the longest", ProxyV1, "PROXY TCP6 " + strings.Repeat("ffff:", 7) + "ffff " + strings.Repeat("ffff:", 7) + "ffff 65535 65535\r\n",
		"[" + strings.Repeat("ffff:", 7) + "ffff]:65535", nil},
	{"v1, the shortest of IPv6", ProxyV1, "PROXY TCP6 :: :: 1 1\r\n", "[::]:1", nil},
	{"v1, an IPv4 address in IPv6", ProxyV1, "PROXY TCP6 ::ffff:192.0.2.7 :: 1 1\r\n", "192.0.2.7:1", nil},
	{"v1, as nginx mixes them", ProxyV1, "PROXY TCP6 192.0.2.7 :: 1 1\r\n", "192.0.2.7:1", nil},
	{"v1, unknown", ProxyV1, "PROXY UNKNOWN\r\n", "", nil},
	{"v1, unknown with words", ProxyV1, "PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", "", nil},
	{"v1, but v2 is wanted", ProxyV2, "PROXY TCP4 192.0.2.7 192.0.2.1 44214 6514\r\n", "", errOtherHeader},
	{"v1 without CR", ProxyV1, "PROXY TCP4 192.0.2.7 192.0.2.1 44214 6514\n", "", errBadHeader},
	{"v1 without LF", ProxyV1, "PROXY TCP4 192.0.2.7 192.0.2.1 44214 6514\rx", "", errBadHeader},
	{"v1, two spaces", ProxyV1, "PROXY TCP4 192.0.2.7  192.0.2.1 44214 6514\r\n", "", errBadHeader},
	{"v1, no such port", ProxyV1, "PROXY TCP4 192.0.2.7 192.0.2.1 65536 6514\r\n", "", errBadHeader},
	{"v1, a port of another form", ProxyV1, "PROXY TCP4 192.0.2.7 192.0.2.1 +4421 6514\r\n", "", errBadHeader},
	{"v1, a zone", ProxyV1, "PROXY TCP6 fe80::1%eth0 fe80::2 44214 6514\r\n", "", errBadHeader},
	{"v1, IPv6 in TCP4", ProxyV1, "PROXY TCP4 2001:db8::7 2001:db8::1 44214 6514\r\n", "", errBadHeader},
	{"v1, UDP4", ProxyV1, "PROXY UDP4 192.0.2.7 192.0.2.1 44214 6514\r\n", "", errBadHeader},
	{"v1 without an end", ProxyV1, "PROXY UNKNOWN " + strings.Repeat("x", 200), "", errLongHeader},
	{"v2", ProxyV2, v2(1, 0x11, inet...), "192.0.2.7:44212", nil},
	{"v2 or v1", ProxyAny, v2(1, 0x11, inet...), "192.0.2.7:44212", nil},
	{"v2, IPv6", ProxyV2, v2(1, 0x21, append(netip.MustParseAddr("2001:db8::7").AsSlice(), append(make([]byte, 16), 0, 9, 0, 80)...)...), "[2001:db8::7]:9", nil},
	{"v2, LOCAL", ProxyV2, v2(0, 0), "", nil},
	{"v2, LOCAL with an address", ProxyV2, v2(0, 0x11, inet...), "", nil},
	{"v2, LOCAL with anything", ProxyV2, v2(0, 0x11, 1, 2, 3), "", nil},
	{"v2, not told", ProxyV2, v2(1, 0), "", nil},
	{"v2, a unix socket", ProxyV2, v2(1, 0x31, make([]byte, 216)...), "", nil},
	{"v2, datagrams", ProxyV2, v2(1, 0x12, inet...), "", nil},
	{"v2, TLVs", ProxyV2, v2(1, 0x11, append(bytes.Clone(inet), append(tlv(4, ""), tlv(0xea, "\x01vpce-08d2bf15fac5001c9")...)...)...), "192.0.2.7:44212", nil},
	{"v2, checksum", ProxyV2, summed(v2(1, 0x11, append(bytes.Clone(inet), append(tlv(2, "example.com"), tlv(3, "xxxx")...)...)...)), "192.0.2.7:44212", nil},
	{"v2, wrong checksum", ProxyV2, broken(summed(v2(1, 0x11, append(bytes.Clone(inet), tlv(3, "xxxx")...)...))), "", errHeaderCRC},
	{"v2, half a checksum", ProxyV2, v2(1, 0x11, append(bytes.Clone(inet), tlv(3, "xx")...)...), "", errBadHeader},
	{"v2, half a TLV", ProxyV2, v2(1, 0x11, append(bytes.Clone(inet), 4, 0, 9, 1)...), "", errBadHeader},
	{"v2, half an address", ProxyV2, v2(1, 0x11, inet[:11]...), "", errBadHeader},
	{"v2, half a path", ProxyV2, v2(1, 0x31, inet...), "", errBadHeader},
	{"v2, no such family", ProxyV2, v2(1, 0x41, inet...), "", errBadHeader},
	{"v2, no such protocol", ProxyV2, v2(1, 0x13, inet...), "", errBadHeader},
	{"v2, no such command", ProxyV2, v2(2, 0x11, inet...), "", errBadHeader},
	{"v2, version 3", ProxyV2, strings.Replace(v2(1, 0x11, inet...), "\x21", "\x31", 1), "", errBadHeader},
	{"v2, but v1 is wanted", ProxyV1, v2(1, 0x11, inet...), "", errOtherHeader},
	{"v2, announces too much", ProxyV2, v2(1, 0x11, append(bytes.Clone(inet), make([]byte, proxyV2Max-len(inet)+1)...)...), "", errLongHeader},
	{"neither", ProxyAny, "<13>text\n", "", errNoHeader},
	{"nearly v1", ProxyAny, "PROXX TCP4", "", errNoHeader},
	{"TLS", ProxyAny, "\x16\x03\x01\x02\x00\x01", "", errNoHeader},
}

// parse reads a header from b the way proxied does, in the pieces that more asks for and
// no read giving more than step bytes, and returns what is left.
func (p ProxyProtocol) parse(b string, step int) (from netip.AddrPort, rest string, err error) {
	var head []byte
	for {
		more, err := p.more(head)
		if err != nil {
			return from, "", err
		}
		if more == 0 {
			from, err = proxySource(head)
			return from, b, err
		}
		n := min(more, step, len(b))
		if n == 0 {
			return from, "", io.ErrUnexpectedEOF
		}
		head, b = append(head, b[:n]...), b[n:]
	}
}

// In pieces of any size a header is read to its end and not one byte further.
func TestProxyHeader(t *testing.T) {
	const next = "<13>text\n"
	for _, tt := range proxyHeaders {
		for _, step := range []int{1, 2, 3, 7, 1 << 20} {
			from, rest, err := tt.p.parse(tt.header+next, step)
			if !errors.Is(err, tt.err) {
				t.Errorf("%s, %d at a time: error %v, want %v", tt.name, step, err, tt.err)
			}
			if err == nil && rest != next {
				t.Errorf("%s, %d at a time: %q is left", tt.name, step, rest)
			}
			if want, _ := netip.ParseAddrPort(tt.from); from != want {
				t.Errorf("%s, %d at a time: from %v, want %s", tt.name, step, from, tt.from)
			}
		}
	}
}

// badTLVs reports whether what stands behind the addresses of h is wrong.
func badTLVs(h *proxyproto.Header, err error) bool {
	all, bad := h.TLVs()
	for _, l := range all {
		if l.Type == proxyproto.PP2_TYPE_CRC32C && (len(l.Value) != 4 || errors.Is(err, errHeaderCRC)) {
			return true
		}
	}
	return bad != nil
}

// agree compares what we and go-proxyproto make of b.
func agree(t *testing.T, b string) {
	t.Helper()
	from, rest, err := ProxyAny.parse(b, 1<<20)
	if len(rest) > len(b) || err == nil && !strings.HasSuffix(b, rest) {
		t.Fatalf("%q: %q is left", b, rest)
	}
	r := bufio.NewReaderSize(strings.NewReader(b), 1<<16)
	h, theirs := proxyproto.Read(r)
	if (err == nil) != (theirs == nil) {
		switch {
		case err == nil && errors.Is(theirs, proxyproto.ErrUnsupportedAddressFamilyAndProtocol) && b[13] == 0: // PROXY and not told: either may be
		case err == nil && errors.Is(theirs, proxyproto.ErrInvalidAddress) && strings.HasPrefix(b, "PROXY TCP6 "): // an IPv4 address
		case err == nil && b[0] == 'P' && from == netip.AddrPort{}: // UNKNOWN, and anything behind it
		case theirs == nil && h.Version == 2 && badTLVs(h, err): // which theirs leaves to the caller
		default:
			t.Fatalf("%q: error %v, theirs %v", b, err, theirs)
		}
		return
	}
	if err != nil {
		return
	}
	left, _ := io.ReadAll(r)
	if string(left) != rest {
		t.Fatalf("%q: %q is left, theirs leave %q", b, rest, left)
	}
	var want netip.AddrPort
	if src, _, ok := h.TCPAddrs(); ok && h.Command.IsProxy() {
		want = unmap(src.AddrPort())
	}
	if from != want {
		t.Fatalf("%q: from %v, theirs %v", b, from, want)
	}
}

// What go-proxyproto writes is read as it was meant, and what becomes of it when a byte
// changes is what go-proxyproto makes of it too.
func TestProxyOracle(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		addr := func() *net.TCPAddr {
			if rnd.IntN(2) == 0 {
				return &net.TCPAddr{IP: net.IPv4(byte(rnd.Uint32()), byte(rnd.Uint32()), 2, 1), Port: rnd.IntN(1 << 16)}
			}
			ip := make(net.IP, 16)
			binary.BigEndian.PutUint64(ip, rnd.Uint64()|1<<61)
			return &net.TCPAddr{IP: ip, Port: rnd.IntN(1 << 16)}
		}
		from, to := addr(), addr()
		for (from.IP.To4() == nil) != (to.IP.To4() == nil) {
			to = addr()
		}
		h := proxyproto.HeaderProxyFromAddrs(byte(1+rnd.IntN(2)), from, to)
		if h.Version == 2 && rnd.IntN(2) == 0 {
			if err := h.SetTLVs([]proxyproto.TLV{{Type: proxyproto.PP2_TYPE_AUTHORITY, Value: []byte("example.com")}}); err != nil {
				t.Fatal(err)
			}
		}
		b, err := h.Format()
		if err != nil {
			t.Fatal(err)
		}
		agree(t, string(b)+"<13>x\n")
		if got, _, err := ProxyAny.parse(string(b), 1<<20); err != nil || got != unmap(from.AddrPort()) {
			t.Fatalf("%q: %v %v, want %v", b, got, err, from)
		}
		for range 1 + rnd.IntN(2) {
			b[rnd.IntN(len(b))] = byte(rnd.Uint32())
		}
		agree(t, string(b)+"<13>x\n")
	}
}

func FuzzProxyHeader(f *testing.F) {
	for _, h := range proxyHeaders {
		f.Add([]byte(h.header))
	}
	f.Fuzz(func(t *testing.T, b []byte) { agree(t, string(b)) })
}

// What comes through a balancer is told of its sender.
func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	for _, tt := range proxyHeaders {
		t.Run(tt.name, func(t *testing.T) {
			r, log := newRecorder(), &logs{}
			s, stop := serve(t, Options{Network: "tcp", Open: r.open, Log: log.logger(), ProxyProtocol: tt.p, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
			c := dial(t, s)
			peer := c.LocalAddr().(*net.TCPAddr).AddrPort()
			fmt.Fprint(c, tt.header+"<13>one\n")
			if tt.err != nil {
				if _, err := c.Read(make([]byte, 1)); err == nil {
					t.Error("it stays open")
				}
				stop()
				if s.Stats.ProxyHeader.Load() != 1 || r.len() != 0 {
					t.Errorf("%d counted, messages %q", s.Stats.ProxyHeader.Load(), r.got)
				}
				if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "PROXY_PROTOCOL") || !strings.Contains(log.String(), "peer="+peer.String()) || !strings.Contains(log.String(), tt.err.Error()) {
					t.Errorf("log\n%s", log)
				}
				return
			}
			fmt.Fprint(c, "two\n")
			eventually(t, "two messages", func() bool { return r.len() == 2 })
			stop()
			from, proxy := peer, netip.AddrPort{}
			if tt.from != "" {
				from, proxy = netip.MustParseAddrPort(tt.from), peer
			}
			if r.got[0] != "<13>one" || r.from[from] != 2 || r.conn(0).Proxy != proxy || r.conn(0) != r.conn(1) {
				t.Errorf("%q from %v through %v, want %v through %v", r.got, r.from, r.conn(0).Proxy, from, proxy)
			}
			if log.String() != "" {
				t.Errorf("log\n%s", log)
			}
		})
	}
}

// The header comes before TLS, in whatever pieces.
func TestProxyTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	o, _ := tlsOptions(t, a)
	r, log := newRecorder(), &logs{}
	s, stop := serve(t, Options{Network: "tcp", TLS: o, Open: r.open, Log: log.logger(), ProxyProtocol: ProxyAny})
	conf := &tls.Config{RootCAs: a.pool(), ServerName: "127.0.0.1"}
	for i, header := range []string{"PROXY TCP4 192.0.2.7 192.0.2.1 44214 6514\r\n", v2(1, 0x11, inet...)} {
		raw := dial(t, s)
		for _, b := range []byte(header) {
			raw.Write([]byte{b})
			time.Sleep(time.Millisecond)
		}
		c, err := shake(raw, conf)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, "one\n")
		eventually(t, "a message", func() bool { return r.len() == i+1 })
		if r.conn(i).Proxy != raw.LocalAddr().(*net.TCPAddr).AddrPort() || r.conn(i).TLS == nil {
			t.Errorf("%+v", r.conn(i))
		}
	}
	c := dial(t, s)
	fmt.Fprint(c, "PROXY TCP4 192.0.2.7 192.0.2.1 44214 6514\r\n<13>plain\n")
	io.Copy(io.Discard, c)
	stop()
	if s.Stats.HandshakePlain.Load() != 1 || s.Stats.ProxyHeader.Load() != 0 || !strings.Contains(log.String(), "192.0.2.7:44214 through "+c.LocalAddr().String()) {
		t.Errorf("%d plain, %d without a header, log\n%s", s.Stats.HandshakePlain.Load(), s.Stats.ProxyHeader.Load(), log)
	}
	if r.from[netip.MustParseAddrPort("192.0.2.7:44214")] != 1 || r.from[netip.MustParseAddrPort("192.0.2.7:44212")] != 1 {
		t.Errorf("from %v", r.from)
	}
}

// Who is not allowed is asked of the balancer, which might tell any address.
func TestProxyAllow(t *testing.T) {
	r := newRecorder()
	s, stop := serve(t, Options{Network: "tcp", Open: r.open, ProxyProtocol: ProxyV1, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	// It may be closed before it is more than begun.
	if c, err := net.Dial("tcp", s.Addrs()[0].String()); err == nil {
		fmt.Fprint(c, "PROXY TCP4 192.0.2.7 192.0.2.1 44214 6514\r\n<13>one\n")
		io.Copy(io.Discard, c)
		c.Close()
	}
	eventually(t, "the denial", func() bool { return s.Stats.Denied.Load() == 1 })
	stop()
	if s.Stats.Denied.Load() != 1 || r.len() != 0 {
		t.Errorf("%d denied, messages %q", s.Stats.Denied.Load(), r.got)
	}
}

// A balancer that looks whether the port is open, with a header or without, is no
// reason to say anything.
func TestProxyQuiet(t *testing.T) {
	r, log := newRecorder(), &logs{}
	s, stop := serve(t, Options{Network: "tcp", Open: r.open, Log: log.logger(), ProxyProtocol: ProxyAny})
	dial(t, s).Close()
	for _, header := range []string{v2(0, 0), "PROXY UNKNOWN\r\n", "PROXY TCP4 192.0.2.7 192.0.2.1 44214 6514\r\n"} {
		c := dial(t, s)
		fmt.Fprint(c, header)
		c.Close()
	}
	eventually(t, "all have gone", func() bool { return s.Stats.Connections.Load() == 4 && s.Stats.Open.Load() == 0 })
	stop()
	if log.String() != "" || s.Stats.ProxyHeader.Load() != 0 || r.len() != 0 {
		t.Errorf("messages %q, log\n%s", r.got, log)
	}
}

// A header must be there in time; what comes behind it may take as long as it likes.
func TestProxyLate(t *testing.T) {
	t.Parallel()
	r, log := newRecorder(), &logs{}
	s, err := Listen(Options{Network: "tcp", Address: "127.0.0.1:0", Open: r.open, Log: log.logger(), ProxyProtocol: ProxyAny})
	if err != nil {
		t.Fatal(err)
	}
	s.handshakeTime = 3 * time.Second
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Serve(ctx, context.Background()); close(done) }()
	good := dial(t, s)
	fmt.Fprint(good, "PROXY UNKNOWN\r\n")
	silent, slow := dial(t, s), dial(t, s)
	fmt.Fprint(slow, "PROXY TCP4 192")
	for _, c := range []net.Conn{silent, slow} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("it stays open")
		}
	}
	eventually(t, "both are counted", func() bool { return s.Stats.ProxyHeader.Load() == 2 })
	if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "within 3s") {
		t.Errorf("log\n%s", log)
	}
	fmt.Fprint(good, "later\n")
	eventually(t, "a message", func() bool { return r.len() == 1 })
	cancel()
	<-done
}

// At the stop half a header is nothing, and what was sent behind a whole one arrives.
func TestProxyStop(t *testing.T) {
	r := newRecorder()
	s, stop := serve(t, Options{Network: "tcp", Open: r.open, ProxyProtocol: ProxyAny})
	half, good := dial(t, s), dial(t, s)
	fmt.Fprint(half, "PROXY TCP4 192")
	fmt.Fprint(good, "PROXY TCP4 192.0.2.7 192.0.2.1 44214 6514\r\n<13>one\n<13>open end")
	eventually(t, "both", func() bool { return s.Stats.Open.Load() == 2 })
	began := time.Now()
	stop()
	if strings.Join(r.got, "|") != "<13>one|<13>open end" {
		t.Errorf("messages %q", r.got)
	}
	if took := time.Since(began); took > handshakeTimeout/2 {
		t.Errorf("the stop took %v", took)
	}
	if s.Stats.ProxyHeader.Load() != 0 {
		t.Error("half a header at the stop is counted")
	}
}

// Behind a balancer the sockets that have brought no message give way too, whose
// header was read or not.
func TestProxyGivesWay(t *testing.T) {
	r := newRecorder()
	s, _ := serve(t, Options{Network: "tcp", Open: r.open, ProxyProtocol: ProxyAny, MaxConnections: 2})
	first, second := dial(t, s), dial(t, s)
	fmt.Fprint(first, "PROXY UNKNOWN\r\n")
	fmt.Fprint(second, "PROXY UNKN")
	eventually(t, "both", func() bool { return s.Stats.Open.Load() == 2 })
	for i := range 2 {
		c := dial(t, s)
		fmt.Fprintf(c, "PROXY UNKNOWN\r\n<13>%d\n", i)
		eventually(t, "the message", func() bool { return r.len() == i+1 })
	}
	for _, c := range []net.Conn{first, second} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("it stays open")
		}
	}
	if s.Stats.Evicted.Load() != 2 || s.Stats.Refused.Load() != 0 || s.Stats.ProxyHeader.Load() != 0 {
		t.Errorf("%d gave way, %d refused, %d without a header", s.Stats.Evicted.Load(), s.Stats.Refused.Load(), s.Stats.ProxyHeader.Load())
	}
}

// A connection is idle since its last byte, and the header has some too.
func TestProxyIdle(t *testing.T) {
	t.Parallel()
	r := newRecorder()
	s, _ := serve(t, Options{Network: "tcp", Open: r.open, ProxyProtocol: ProxyAny, IdleTimeout: 4 * time.Second})
	c := dial(t, s)
	time.Sleep(2500 * time.Millisecond)
	fmt.Fprint(c, "PROXY UNKNOWN\r\n")
	time.Sleep(2500 * time.Millisecond)
	fmt.Fprint(c, "<13>one\n")
	eventually(t, "the message", func() bool { return r.len() == 1 || s.Stats.Open.Load() == 0 })
	if r.len() != 1 || s.Stats.Idle.Load() != 0 {
		t.Errorf("messages %q, %d idle", r.got, s.Stats.Idle.Load())
	}
}
