package main

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// holder is the process that has something: a lock, a port. pid 0 is one that
// can't be told: of another user, or in another container.
type holder struct {
	pid  int
	name string
}

func (h holder) String() string {
	if h.pid == 0 {
		return "a process that this user can't see"
	}
	return fmt.Sprintf("%s (pid %d)", h.name, h.pid)
}

// visible reports whether this user can see which files and sockets h has.
func (h holder) visible() bool {
	_, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.pid))
	return err == nil
}

func newHolder(pid int) holder {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return holder{}
	}
	return holder{pid, strings.TrimSpace(string(name))}
}

// agentOf returns who holds the lock of a lane's directory: a running agent.
func agentOf(dir string) (h holder, running bool) {
	f, err := os.Open(dir)
	if err != nil {
		return h, false
	}
	defer f.Close() // lets go of the lock
	if !errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK) {
		return h, false
	}
	var s unix.Stat_t
	if unix.Fstat(int(f.Fd()), &s) != nil {
		return h, true
	}
	return lockHolder(fmt.Sprintf("%02x:%02x:%d", unix.Major(s.Dev), unix.Minor(s.Dev), s.Ino)), true
}

// lockHolder finds the owner of a flock in /proc/locks, see proc(5):
//
//	1: FLOCK  ADVISORY  WRITE 1234 fd:00:2531452 0 EOF
func lockHolder(file string) holder {
	f, err := os.Open("/proc/locks")
	if err != nil {
		return holder{}
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		p := strings.Fields(lines.Text())
		if len(p) >= 6 && p[1] == "FLOCK" && p[5] == file {
			if pid, err := strconv.Atoi(p[4]); err == nil && pid > 0 {
				return newHolder(pid)
			}
		}
	}
	return holder{}
}

// portHolder returns who listens on address: host:port, or a path for the networks
// of unix sockets.
func portHolder(network, address string) holder {
	var inodes []string
	if strings.HasPrefix(network, "unix") {
		inodes = unixInodes(address)
	} else if host, port, err := net.SplitHostPort(address); err == nil {
		n, _ := strconv.ParseUint(port, 10, 16) // it was checked
		hosts := []netip.Addr{netip.IPv4Unspecified()}
		if a, err := netip.ParseAddr(host); err == nil {
			hosts = []netip.Addr{a}
		} else if host == "localhost" {
			hosts = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
		}
		table := "tcp"
		if network == "udp" {
			table = "udp"
		}
		for _, h := range hosts {
			want := netip.AddrPortFrom(h, uint16(n))
			inodes = append(inodes, append(inetInodes(table, want), inetInodes(table+"6", want)...)...)
		}
	}
	if len(inodes) == 0 {
		return holder{}
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		target, err := os.Readlink(link)
		inode, ok := strings.CutPrefix(target, "socket:[")
		if err != nil || !ok || !slices.Contains(inodes, strings.TrimSuffix(inode, "]")) {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(link, "/")[2]); err == nil {
			return newHolder(pid)
		}
	}
	return holder{}
}

// inetInodes are the sockets in /proc/net/tcp and its like (proc_pid_net(5)) that
// are bound to the port of want and to its address, or to all. Connections of a tcp
// listener are left out: they have a remote port.
func inetInodes(table string, want netip.AddrPort) (inodes []string) {
	f, err := os.Open("/proc/net/" + table)
	if err != nil {
		return nil
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		p := strings.Fields(lines.Text())
		if len(p) < 10 || !strings.HasSuffix(p[2], ":0000") {
			continue
		}
		local, ok := parseLocal(p[1])
		if !ok || local.Port() != want.Port() {
			continue
		}
		if a, w := local.Addr().Unmap(), want.Addr().Unmap(); a == w || a.IsUnspecified() || w.IsUnspecified() {
			inodes = append(inodes, p[9])
		}
	}
	return inodes
}

// parseLocal reads 0100007F:14E6 as 127.0.0.1:5350: each four bytes of the address
// are a number in the byte order of the host.
func parseLocal(s string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(n)), ok
}

// unixInodes are the unix sockets in /proc/net/unix whose path is name.
func unixInodes(name string) (inodes []string) {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if p := strings.Fields(lines.Text()); len(p) >= 8 && strings.Join(p[7:], " ") == name {
			inodes = append(inodes, p[6])
		}
	}
	return inodes
}

// fsyncs is how often slowness is measured.
const fsyncs = 16

// syncLatency writes 4 KiB and calls fdatasync, fsyncs times, in a file of its own
// in dir. It returns the middle and the longest time.
func syncLatency(dir string) (middle, worst time.Duration, err error) {
	f, err := os.CreateTemp(dir, ".spillway-check-*")
	if err != nil {
		return 0, 0, pathCause(err)
	}
	defer f.Close()
	defer os.Remove(f.Name())
	block := make([]byte, 4<<10)
	var took []time.Duration
	for range fsyncs {
		start := time.Now()
		if _, err := f.Write(block); err != nil {
			return 0, 0, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return 0, 0, fmt.Errorf("fdatasync: %w", err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)-1], nil
}

// hostClock is buffer.Options.Clock. One that can't be asked counts as not synchronised.
func hostClock() (up time.Duration, synchronised bool) {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0, false
	}
	synchronised, _, _ = clock()
	return time.Duration(t.Nano()), synchronised
}

// clock reports whether the kernel's clock is kept in step by somebody, and how far
// it may be off. See adjtimex(2).
func clock() (synchronised bool, off time.Duration, err error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return false, 0, err
	}
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, time.Duration(t.Maxerror) * time.Microsecond, nil
}
