package main

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"spillway/edge/listen"
)

// inputURLs are the URLs of inputs whose name says all.
var inputURLs = map[string]string{
	"tcp": "tcp://localhost:5514", "udp": "udp://localhost:5514", "tls": "tls://localhost:6514", "unix": "unix:///run/spillway/syslog.sock", "vault": "tcp://localhost:9090",
}

const kindsOfInputs = "tcp://, tls://, udp://, unix://, unixgram://, unixpacket://, http://, https:// or fd://"

// url takes the input's URL apart.
func (in *Input) url(e *environment, under string) bool {
	name := under + "URL"
	u, err := url.Parse(in.URL)
	if err != nil {
		e.problem(name, "%v: write it as in tcp://localhost:5514", urlCause(err))
		return false
	}
	switch in.Scheme = u.Scheme; u.Scheme {
	case "tcp", "tls", "udp":
		if u.User != nil || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
			e.problem(name, "has more than a host and a port: write it as in %s://localhost:5514", u.Scheme)
			return false
		}
		if in.Address, err = checkAddress(u.Host); err != nil {
			e.problem(name, "%v", err)
			return false
		}
	case "unix", "unixgram", "unixpacket":
		switch {
		case u.Host != "" || u.User != nil:
			e.problem(name, "%q stands where a host would: write three slashes, as in %s:///run/spillway/syslog.sock", u.Host, u.Scheme)
			return false
		case u.RawQuery != "" || u.Fragment != "":
			e.problem(name, "has more than a path: write ? and # in it as %%3F and %%23")
			return false
		case len(u.Path) < 2 || u.Path == "/@":
			e.problem(name, "names no socket: write it as in %s:///run/spillway/syslog.sock", u.Scheme)
			return false
		case strings.ContainsRune(u.Path, 0):
			e.problem(name, "a path has no NUL in it: write an abstract name as in %s:///@spillway", u.Scheme)
			return false
		}
		if in.Address = filepath.Clean(u.Path); strings.HasPrefix(u.Path, "/@") {
			in.Address = u.Path[1:]
		}
	case "fd":
		if _, in.Address, _ = strings.Cut(in.URL, "://"); in.Address == "" || strings.ContainsAny(in.Address, "/?#:") {
			e.problem(name, "names no socket: write FileDescriptorName= of its .socket unit, as in fd://syslog")
			return false
		}
	case "http", "https":
		if u.User != nil {
			e.problem(name, "has a user in it: ask for a token instead, with %sTOKEN_FILE", under)
			return false
		} else if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
			e.problem(name, "has more than a host, a port and a path: write it as in %s://localhost:8088/audit", u.Scheme)
			return false
		}
		if in.Address, err = checkAddress(u.Host); err != nil {
			e.problem(name, "%v", err)
			return false
		}
		in.Path = cmp.Or(u.Path, "/")
	case "":
		e.problem(name, "has no scheme: write it as in tcp://localhost:5514")
		return false
	default:
		e.problem(name, "%s is no kind of input: use %s", u.Scheme, kindsOfInputs)
		return false
	}
	return true
}

// handedOver is the scheme of an input with a socket like the first that systemd
// handed over by this name; "fd" if it did not.
func handedOver(name string) string {
	switch kind, datagrams := listen.HandedOver(name); {
	case kind == "":
		return "fd"
	case kind == "unix" && datagrams:
		return "unixgram"
	default:
		return kind
	}
}

// leftOver adds a note for sockets that systemd handed over (sd_listen_fds(3)) and that
// no input has, and returns the names of all that it did.
func (c *Config) leftOver(e *environment, environ []string) (names []string) {
	vars := map[string]string{}
	for _, kv := range environ {
		if k, v, _ := strings.Cut(kv, "="); strings.HasPrefix(k, "LISTEN_") {
			vars[k] = v
		}
	}
	if n, err := strconv.Atoi(vars["LISTEN_FDS"]); err != nil || n < 1 || vars["LISTEN_PID"] != strconv.Itoa(os.Getpid()) {
		return nil
	}
	names = strings.Split(vars["LISTEN_FDNAMES"], ":")
	left := slices.Compact(slices.Sorted(slices.Values(names)))
	left = slices.DeleteFunc(left, func(n string) bool {
		return n == "" || slices.ContainsFunc(c.Inputs, func(in Input) bool { return in.Scheme == "fd" && in.Address == n })
	})
	if len(left) > 0 {
		e.notes = append(e.notes, fmt.Sprintf("LISTEN_FDNAMES: systemd handed over sockets called %s, which no input has, so that nobody reads what is sent there: set SPILLWAY_INPUT_<NAME>_URL=fd://%s of an input, or stop the .socket unit",
			and(left), left[0]))
	}
	return names
}

// clientIdle is how long clients of Go's package net/http keep a connection.
const clientIdle = 90 * time.Second

// requests checks the options of inputs that take requests.
func (in *Input) requests(e *environment, under string) {
	if !in.http() {
		return
	}
	if in.StoreTimeout < 10*time.Millisecond || in.StoreTimeout > time.Minute {
		e.problem(under+"STORE_TIMEOUT", "out of bounds: use 10ms to 1m")
	}
	if in.IdleTimeout > 0 && in.IdleTimeout <= clientIdle {
		e.note(under+"IDLE_TIMEOUT", "a sender such as OpenBao keeps a connection for %v after a request, and one that it sends just when the connection is closed fails: use more than that", clientIdle)
	}
	if host, _, _ := net.SplitHostPort(in.Address); in.Scheme == "http" && in.Token != "" && host != "localhost" {
		if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
			e.note(under+"TOKEN", "whoever sees the network sees it: use an https:// URL")
		}
	}
}

// allow reads ALLOW.
func (in *Input) allow(e *environment, under string) {
	for _, a := range in.Allow {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			var addr netip.Addr
			if addr, err = netip.ParseAddr(a); err == nil {
				p = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen())
			}
		}
		if err != nil || p.Addr().Zone() != "" {
			e.problem(under+"ALLOW", "%q is neither an address nor a network: write them as in 192.0.2.7 and 10.0.0.0/8", a)
			return
		}
		in.AllowFrom = append(in.AllowFrom, p.Masked())
	}
}

// peers reads PEER_UID.
func (in *Input) peers(e *environment, under string) {
	in.PeerUIDs = each(e, under+"PEER_UID", in.PeerUsers, func(who string) (uint32, error) {
		if !number(who) {
			u, err := user.Lookup(who)
			if err != nil {
				return 0, fmt.Errorf("%w: name users of this host, or give numbers", err)
			}
			who = u.Uid
		}
		n, err := strconv.ParseUint(who, 10, 32)
		return uint32(n), err
	})
}

// socketFile checks the options of the file of a unix socket.
func (in *Input) socketFile(e *environment, under string) {
	if !strings.HasPrefix(in.Scheme, "unix") {
		return
	}
	if in.Address[0] == '@' {
		for _, o := range ofFiles {
			e.idle(under+o, "changes nothing for an abstract socket, which is no file and open to every local program: remove it")
		}
		return
	}
	mode, err := strconv.ParseUint(in.SocketModeText, 8, 32)
	if err != nil || mode > 0o777 || mode == 0 {
		e.problem(under+"SOCKET_MODE", "no permission bits: write them as in 0660")
	}
	in.SocketMode = os.FileMode(mode)
	if who := in.SocketOwner; who != "" && !number(who) {
		if _, err := user.Lookup(who); err != nil {
			e.problem(under+"SOCKET_OWNER", "%v: name a user of this host, or give a number", err)
		}
	}
	if who := in.SocketGroup; who != "" && !number(who) {
		if _, err := user.LookupGroup(who); err != nil {
			e.problem(under+"SOCKET_GROUP", "%v: name a group of this host, or give a number", err)
		}
	}
}

func number(s string) bool {
	_, err := strconv.ParseUint(s, 10, 31)
	return err == nil
}
