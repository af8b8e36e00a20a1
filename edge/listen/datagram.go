package listen

import (
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"strconv"
	"strings"
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
	perCall     = 32    // datagrams taken from the kernel in one call
	datagramMax = 65535 // the largest payload there is (IPv6 without jumbograms)
	localCall   = 8     // perCall of unix sockets, whose datagrams may be larger
)

// widen asks for the receive buffer of a udp socket.
func (s *Server) widen(k *socket) error {
	want := s.o.ReceiveBuffer
	if want == 0 {
		want = DefaultReceiveBuffer
	}
	rc, err := k.p.SyscallConn()
	if err != nil {
		return err
	}
	var got int
	cerr := rc.Control(func(fd uintptr) { got, err = receiveBuffer(fd, want, k.file != nil) })
	if cerr != nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	s.Stats.ReceiveBuffer.Store(int64(got))
	if got < want {
		s.o.Log.Warn("the kernel grants a smaller receive buffer than asked; bursts may be lost", "input", s.o.Name, "address", k.name,
			"asked", want, "granted", got, "hint", "raise net.core.rmem_max, or set "+s.o.Variable+"SO_RCVBUF to what is enough")
	}
	return nil
}

// receiveBuffer asks for want bytes, above the system's limit where the process
// may (CAP_NET_ADMIN), and returns what the kernel granted. What systemd gave a socket
// of its own is never lessened.
func receiveBuffer(fd uintptr, want int, given bool) (got int, err error) {
	if given {
		if got, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF); err == nil && got/2 >= want {
			return got / 2, nil
		}
	}
	if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, want) != nil {
		if given && got/2 >= systemLimit() {
			return got / 2, nil
		}
		if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, want); err != nil {
			return 0, err
		}
	}
	got, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
	// The kernel doubles the value for its own bookkeeping and reports the double.
	return got / 2, err
}

// systemLimit is the most that SO_RCVBUF grants, in bytes; 0: unknown.
func systemLimit() int {
	text, err := os.ReadFile("/proc/sys/net/core/rmem_max")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}

// receive reads the datagrams of k until ctx ends, then what the kernel still holds.
// It is the only reader of k.
func (s *Server) receive(ctx, hard context.Context, k *socket) {
	defer k.close()
	sink := s.o.Open()
	defer sink.Close()
	rc, err := k.p.SyscallConn()
	if err != nil {
		return
	}
	b := newBatch(k.local)
	lost := drops{since: time.Now()}
	var n int
	var rerr error
	wait := false // may the call below park until something comes?
	held := 0     // taken and not handed over yet, see handOver
	var last time.Time
	recv := func(fd uintptr) bool {
		n, rerr = b.receive(int(fd))
		if rerr == unix.EAGAIN && wait {
			return false
		}
		if n < len(b.hdrs) && !k.local { // the queue is empty: whatever was lost by now is counted
			lost.look(fd)
		}
		return true
	}
	// The default buffer holds the datagrams of 3 ms at 50,000 a second, and the queue of
	// a unix socket ten: they would be full before the wait is over.
	roomy := !k.local && s.Stats.ReceiveBuffer.Load() >= 1<<20
	look := func(fd uintptr) { lost.look(fd) }
	if k.file != nil { // what it lost before is not this agent's to tell
		rc.Control(look)
		lost.n = 0
	}
	flush := func() bool {
		held = 0
		if !k.local {
			rc.Control(look) // also while the queue is never empty
		}
		if lost.n > 0 {
			s.Stats.KernelDrops.Add(int64(lost.n))
			if d, ok := sink.(Dropper); ok {
				d.Dropped(lost.n, lost.since)
			}
			if n, due := s.notices.due("drops"); due {
				s.o.Log.Warn("the kernel dropped datagrams: the receive buffer was full", "input", s.o.Name, "address", k.name, "datagrams", lost.n, "times", n,
					"hint", "raise "+s.o.Variable+"SO_RCVBUF (and net.core.rmem_max), or give the senders tcp")
			}
			lost.n = 0
		}
		lost.since = time.Now()
		return sink.Flush(hard) == nil
	}
	for rc.Read(recv) == nil { // until the deadline that the stop sets
		switch {
		case rerr == nil:
			held += s.datagrams(sink, b, n)
			if wait = n < len(b.hdrs); !wait && held < handOver {
				continue // more is waiting in the kernel
			}
			if !flush() {
				return
			}
			now := time.Now()
			if wait && roomy && now.Sub(last) < 2*gatherDatagrams {
				time.Sleep(gatherDatagrams)
			}
			last = now
		case rerr == unix.EAGAIN:
			if !flush() {
				return
			}
			wait = true
		case rerr == unix.EINTR || rerr == unix.ECONNREFUSED: // an ICMP error of no concern to a receiver
		default:
			if _, due := s.notices.due("receive"); due {
				s.o.Log.Warn("can't read datagrams; trying again each second", "input", s.o.Name, "address", k.name, "error", rerr)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	// What the kernel holds at the stop; not what a sender that never pauses sends on.
	wait = false
	shut := k.shut(false)
	end := time.Now().Add(drainTime)
	k.p.SetReadDeadline(time.Time{})
	for (shut || time.Now().Before(end)) && rc.Read(recv) == nil && (rerr == nil || rerr == unix.EINTR) {
		held += s.datagrams(sink, b, n)
		if held >= handOver && !flush() {
			return
		}
	}
	flush()
}

// datagrams hands n datagrams to sink and returns what they count towards handOver.
func (s *Server) datagrams(sink Sink, b *mbatch, n int) (held int) {
	now := time.Now()
	for i := range n {
		data, from := b.data(i), b.from(i)
		held += len(data) + perMessage
		if len(s.o.Allow) > 0 && from.IsValid() && !s.allowed(from.Addr()) {
			s.deny(from.String(), "its datagrams are dropped")
			continue
		}
		s.datagram(sink, data, b.truncated(i), Sender{Addr: from}, now)
	}
	return held
}

// datagram hands one datagram, or one packet, to sink.
func (s *Server) datagram(sink Sink, data []byte, truncated bool, from Sender, now time.Time) {
	s.Stats.Bytes.Add(int64(len(data)))
	m, ok := framing.Datagram(data, s.o.Framing)
	if truncated {
		m.Flags |= framing.Truncated
	}
	if m.Flags&framing.Truncated != 0 {
		s.Stats.Oversize.Add(1)
		if s.o.Framing.Oversize == framing.Drop {
			s.Stats.Discarded.Add(int64(len(data)))
			return
		}
		s.Stats.Discarded.Add(int64(len(data) - len(m.Data)))
	}
	if !ok {
		s.Stats.Empty.Add(1)
		return
	}
	sink.Message(m, from, now)
}

// drops follows the kernel's count of what it dropped of a socket, which is modulo 2^32.
type drops struct {
	seen  uint32
	n     uint64    // since the last hand-over
	since time.Time // the last hand-over
}

// look reads the count. It is exact at any time, also without one more datagram
// (which the control message SO_RXQ_OVFL would need).
func (d *drops) look(fd uintptr) {
	var info [unix.SK_MEMINFO_VARS]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 || size < uint32(unsafe.Sizeof(info)) {
		return // a kernel before 4.12
	}
	now := info[unix.SK_MEMINFO_DROPS]
	d.n += uint64(now - d.seen)
	d.seen = now
}

// mbatch is the memory of recvmmsg(2): one call takes as many datagrams as it has headers.
type mbatch struct {
	hdrs  []mmsghdr
	iovs  []unix.Iovec
	addrs []unix.RawSockaddrInet6 // large enough for IPv4 too; nil: of unix sockets, which have none
	size  int                     // of one buffer
	bufs  []byte                  // pages are touched only by datagrams that fill them
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

func newBatch(local bool) *mbatch {
	n, size := perCall, datagramMax
	if local {
		n, size = localCall, localMax
	}
	b := &mbatch{hdrs: make([]mmsghdr, n), iovs: make([]unix.Iovec, n), size: size, bufs: make([]byte, n*size)}
	if !local {
		b.addrs = make([]unix.RawSockaddrInet6, n)
	}
	for i := range b.hdrs {
		b.iovs[i].Base = &b.bufs[i*size]
		b.iovs[i].SetLen(size)
		b.hdrs[i].hdr.Iov = &b.iovs[i]
		b.hdrs[i].hdr.SetIovlen(1)
		if !local {
			b.hdrs[i].hdr.Name = (*byte)(unsafe.Pointer(&b.addrs[i]))
		}
	}
	return b
}

// receive takes what the kernel has now and never waits.
func (b *mbatch) receive(fd int) (int, error) {
	for i := range b.hdrs {
		if b.addrs != nil {
			b.hdrs[i].hdr.Namelen = uint32(unsafe.Sizeof(b.addrs[i]))
		}
		b.hdrs[i].hdr.Flags = 0
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.hdrs[0])), uintptr(len(b.hdrs)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, syscall.Errno(errno)
	}
	return int(n), nil
}

func (b *mbatch) data(i int) []byte { return b.bufs[i*b.size:][:b.hdrs[i].n] }

func (b *mbatch) truncated(i int) bool { return b.hdrs[i].hdr.Flags&unix.MSG_TRUNC != 0 }

func (b *mbatch) from(i int) netip.AddrPort {
	if b.addrs == nil {
		return netip.AddrPort{}
	}
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
