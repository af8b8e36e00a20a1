package listen

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"spillway/framing"
)

// DefaultReceiveBuffer is what a UDP socket asks for, in bytes. It is what
// prevents loss in bursts; the kernel's default of 208 KiB holds about 300 lines.
const DefaultReceiveBuffer = 8 << 20

const (
	perCall     = 32    // taken from the kernel in one call
	datagramMax = 65535 // the largest payload there is (IPv6 without jumbograms)
)

// datagrams are sockets of datagrams: one message each.
type datagrams struct {
	o     Options
	conns []*net.UDPConn
	stats *Stats
}

// listenUDP binds the address; "localhost" binds both ::1 and 127.0.0.1.
func listenUDP(o Options, stats *Stats) (*datagrams, error) {
	conns, err := bind("udp", o.Address, func(network, address string) (*net.UDPConn, error) {
		a, err := net.ResolveUDPAddr(network, address)
		if err != nil {
			return nil, err
		}
		return net.ListenUDP(network, a)
	}, func(c *net.UDPConn) int { return c.LocalAddr().(*net.UDPAddr).Port })
	s := &datagrams{o: o, conns: conns, stats: stats}
	if err != nil {
		s.close()
		return nil, err
	}
	want := o.ReceiveBuffer
	if want == 0 {
		want = DefaultReceiveBuffer
	}
	for _, c := range conns {
		got, err := receiveBuffer(c, want)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("receive buffer of udp %s: %w", c.LocalAddr(), err)
		}
		if got < want {
			o.Log.Warn("the kernel grants a smaller receive buffer than asked; bursts may be lost", "input", o.Name, "address", c.LocalAddr().String(),
				"asked", want, "granted", got, "hint", "raise net.core.rmem_max to "+strconv.Itoa(want)+", or set SO_RCVBUF of the input to what is enough")
		}
	}
	return s, nil
}

// receiveBuffer asks for want bytes, above the system's limit where the process
// may (CAP_NET_ADMIN), and returns what the kernel granted.
func receiveBuffer(c *net.UDPConn, want int) (got int, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := rc.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, want) != nil {
			if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, want); err != nil {
				return
			}
		}
		got, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
	})
	// The kernel doubles the value for its own bookkeeping and reports the double.
	return got / 2, errors.Join(cerr, err)
}

// addrs are the bound addresses.
func (s *datagrams) addrs() (a []net.Addr) {
	for _, c := range s.conns {
		a = append(a, c.LocalAddr())
	}
	return a
}

// close closes the sockets; serve does it too when it ends.
func (s *datagrams) close() {
	for _, c := range s.conns {
		c.Close()
	}
}

// serve reads until ctx ends, then what the kernel still holds, and returns.
// hard ends all waiting.
func (s *datagrams) serve(ctx, hard context.Context) {
	var wg sync.WaitGroup
	for _, c := range s.conns {
		wg.Go(func() { s.read(ctx, hard, c) })
	}
	<-ctx.Done()
	for _, c := range s.conns {
		c.SetReadDeadline(time.Now()) // wakes the readers
	}
	wg.Wait()
	s.close()
}

// read is the only reader of c.
func (s *datagrams) read(ctx, hard context.Context, c *net.UDPConn) {
	sink := s.o.Open(netip.AddrPort{})
	defer sink.Close()
	rc, err := c.SyscallConn()
	if err != nil {
		return
	}
	b := newBatch()
	var n int
	var rerr error
	wait := false // may the call below park until something comes?
	held := 0     // taken and not handed over yet, see handOver
	told := false // that the socket can't be read
	var last time.Time
	recv := func(fd uintptr) bool {
		n, rerr = b.receive(int(fd))
		return rerr != unix.EAGAIN || !wait
	}
	for rc.Read(recv) == nil { // until the deadline that the stop sets
		switch {
		case rerr == nil:
			held += s.take(sink, b, n)
			if wait = n < perCall; !wait && held < handOver {
				continue // more is waiting in the kernel
			}
			held, told = 0, false
			if sink.Flush(hard) != nil {
				return
			}
			now := time.Now()
			if wait && now.Sub(last) < 2*gather {
				time.Sleep(gather) // as with streams: many small wake-ups are most of the cost
			}
			last = now
		case rerr == unix.EAGAIN:
			held = 0
			if sink.Flush(hard) != nil {
				return
			}
			wait = true
		case rerr == unix.EINTR || rerr == unix.ECONNREFUSED: // an ICMP error of no concern to a receiver
		default:
			if !told {
				told = true
				s.o.Log.Warn("can't read datagrams; trying again each second", "input", s.o.Name, "address", c.LocalAddr().String(), "error", rerr)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	// What the kernel holds at the stop; not what a sender that never pauses sends on.
	wait = false
	end := time.Now().Add(drainTime)
	c.SetReadDeadline(time.Time{})
	for time.Now().Before(end) && rc.Read(recv) == nil && (rerr == nil || rerr == unix.EINTR) {
		held += s.take(sink, b, n)
		if held >= handOver {
			held = 0
			if sink.Flush(hard) != nil {
				return
			}
		}
	}
	sink.Flush(hard)
}

// take hands n datagrams to sink and returns what they count towards handOver.
func (s *datagrams) take(sink Sink, b *mbatch, n int) (held int) {
	now := time.Now()
	for i := range n {
		data := b.data(i)
		held += len(data) + perMessage
		s.stats.Bytes.Add(int64(len(data)))
		m, ok := framing.Datagram(data, s.o.Framing)
		if !ok {
			s.stats.Empty.Add(1)
			continue
		}
		if b.truncated(i) {
			m.Flags |= framing.Truncated
		}
		if m.Flags&framing.Truncated != 0 {
			s.stats.Oversize.Add(1)
		}
		sink.Message(m, b.from(i), now)
	}
	return held
}

// mbatch is the memory of recvmmsg(2): one call takes up to perCall datagrams.
type mbatch struct {
	hdrs  [perCall]mmsghdr
	iovs  [perCall]unix.Iovec
	addrs [perCall]unix.RawSockaddrInet6 // large enough for IPv4 too
	bufs  []byte                         // perCall × datagramMax; pages are touched only by datagrams that fill them
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

func newBatch() *mbatch {
	b := &mbatch{bufs: make([]byte, perCall*datagramMax)}
	for i := range b.hdrs {
		b.iovs[i].Base = &b.bufs[i*datagramMax]
		b.iovs[i].SetLen(datagramMax)
		b.hdrs[i].hdr.Iov = &b.iovs[i]
		b.hdrs[i].hdr.SetIovlen(1)
		b.hdrs[i].hdr.Name = (*byte)(unsafe.Pointer(&b.addrs[i]))
	}
	return b
}

// receive takes what the kernel has now and never waits.
func (b *mbatch) receive(fd int) (int, error) {
	for i := range b.hdrs {
		b.hdrs[i].hdr.Namelen = uint32(unsafe.Sizeof(b.addrs[i]))
		b.hdrs[i].hdr.Flags = 0
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.hdrs[0])), perCall, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, syscall.Errno(errno)
	}
	return int(n), nil
}

func (b *mbatch) data(i int) []byte { return b.bufs[i*datagramMax:][:b.hdrs[i].n] }

func (b *mbatch) truncated(i int) bool { return b.hdrs[i].hdr.Flags&unix.MSG_TRUNC != 0 }

func (b *mbatch) from(i int) netip.AddrPort {
	a := &b.addrs[i]
	// The port is in network order whatever the host's is.
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&a.Port))[:])
	switch a.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(a)).Addr), port)
	case unix.AF_INET6:
		return unmap(netip.AddrPortFrom(netip.AddrFrom16(a.Addr), port))
	}
	return netip.AddrPort{}
}
