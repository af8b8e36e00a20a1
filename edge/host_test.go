package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPortHolder finds this process behind each kind of socket.
func TestPortHolder(t *testing.T) {
	self := newHolder(os.Getpid())
	if self.pid == 0 || self.name == "" {
		t.Fatalf("this process is %+v", self)
	}
	path := filepath.Join(t.TempDir(), "a socket")
	for _, tt := range []struct {
		name, network, address string
		ask                    func(bound string) string
	}{
		{"tcp", "tcp4", "127.0.0.1:0", nil},
		{"tcp on all addresses", "tcp", ":0", nil},
		{"tcp6", "tcp6", "[::1]:0", nil},
		{"localhost", "tcp6", "[::1]:0", func(bound string) string { return strings.Replace(bound, "[::1]", "localhost", 1) }},
		{"one of all", "tcp", "0.0.0.0:0", func(bound string) string { return "127.0.0.1" + bound[strings.LastIndex(bound, ":"):] }},
		{"udp", "udp4", "127.0.0.1:0", nil},
		{"udp6", "udp6", "[::1]:0", nil},
		{"unix", "unix", path, nil},
		{"unixgram", "unixgram", path + "gram", nil},
		{"abstract", "unix", fmt.Sprintf("@spillway-test-holder-%d", os.Getpid()), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var bound string
			if strings.HasPrefix(tt.network, "udp") || tt.network == "unixgram" {
				c, err := net.ListenPacket(tt.network, tt.address)
				if absent(t, err) {
					return
				}
				defer c.Close()
				bound = c.LocalAddr().String()
			} else {
				l, err := net.Listen(tt.network, tt.address)
				if absent(t, err) {
					return
				}
				defer l.Close()
				bound = l.Addr().String()
			}
			if tt.ask != nil {
				bound = tt.ask(bound)
			}
			network := strings.TrimRight(tt.network, "46")
			if got := portHolder(network, bound); got != self {
				t.Errorf("%s %s is held by %+v, want %+v", network, bound, got, self)
			}
		})
	}
	if got := portHolder("tcp", "127.0.0.1:1"); got.pid != 0 {
		t.Errorf("nobody's port is held by %v", got)
	}
	if got := (holder{}).String(); got != "a process that this user can't see" {
		t.Errorf("%q", got)
	}
}

// absent reports whether this host lacks the addresses of a test.
func absent(t *testing.T, err error) bool {
	t.Helper()
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
		t.Logf("not on this host: %v", err)
		return true
	}
	if err != nil {
		t.Fatal(err)
	}
	return false
}

// TestCheckBesideAgent holds that an agent that runs is no failure, and that what
// others have is.
func TestCheckBesideAgent(t *testing.T) {
	r := start(t, "SPILLWAY_AGENT=gw1")
	self := newHolder(os.Getpid())
	tcp := r.inputs[0].server.Addrs()[0].String()
	vars := []string{"SPILLWAY_AGENT=gw1", "SPILLWAY_STATE_DIR=" + r.state, "SPILLWAY_ADMIN_ADDRESS=" + r.admin[0].Addr().String(),
		"SPILLWAY_INPUT_TCP_URL=tcp://" + tcp, "SPILLWAY_INPUT_UDP_URL=udp://" + r.inputs[1].server.Addrs()[0].String()}
	check := func(vars ...string) (code int, out, errs string) {
		var o, e strings.Builder
		code = cmdCheck(t.Context(), []string{"--probe"}, &o, &e, vars)
		return code, o.String(), e.String()
	}
	code, out, errs := check(vars...)
	if code != exitOK || errs != "" {
		t.Errorf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{", in use by " + self.String() + "; may take ", "an agent runs on this state directory",
		"\ninput tcp        tcp " + tcp + ", held by the running agent\n", "\nadmin            tcp " + r.admin[0].Addr().String() + ", held by the running agent\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	vars[1] = "SPILLWAY_STATE_DIR=" + t.TempDir()
	code, _, errs = check(vars...)
	if code != exitFailure || strings.Count(errs, "; "+self.String()+" has it\n") != 3 {
		t.Errorf("exit code %d, and not each of three sockets in use is told with its holder:\n%s", code, errs)
	}
}

// TestOurs: a holder that can't be seen is the agent as long as that can't be seen either.
func TestOurs(t *testing.T) {
	self, parent := newHolder(os.Getpid()), newHolder(os.Getppid())
	for _, tt := range []struct {
		name   string
		agent  *holder
		holder holder
		want   bool
	}{
		{"no agent", nil, holder{}, false},
		{"the agent", &self, self, true},
		{"another process", &self, parent, false},
		{"nobody knows", &holder{}, holder{}, true},
		{"another user's", &self, holder{}, false},
		{"the agent is another user's, the holder is not", &holder{}, self, false},
	} {
		if got := (&check{agent: tt.agent}).ours(tt.holder); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

// TestWarner holds that what a server logs is told once, in words.
func TestWarner(t *testing.T) {
	k := &check{}
	log := slog.New(warner{k})
	for _, a := range []string{"127.0.0.1:514", "[::1]:514"} {
		log.Info("nothing")
		log.Warn("the kernel grants less", "input", "udp", "address", a, "asked", 8<<20, "granted", 425984, "hint", "raise it")
	}
	if want := []string{"input udp: the kernel grants less (asked 8.0 MiB, granted 416 KiB): raise it"}; !slices.Equal(k.warnings, want) {
		t.Errorf("%q, want %q", k.warnings, want)
	}
}

// TestListenAdmin holds that localhost is both loopback addresses, with one port, and
// that no host is localhost.
func TestListenAdmin(t *testing.T) {
	for _, address := range []string{"localhost:0", ":0"} {
		c, err := load(t, "SPILLWAY_ADMIN_ADDRESS="+address)
		if err != nil {
			t.Fatal(err)
		}
		all, err := listenAdmin(c.AdminAddress)
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"127.0.0.1", "::1"}
		if l, err := net.Listen("tcp6", "[::1]:0"); absent(t, err) {
			want = want[:1]
		} else {
			l.Close()
		}
		var hosts, ports []string
		for _, l := range all {
			host, port, _ := net.SplitHostPort(l.Addr().String())
			hosts, ports = append(hosts, host), append(ports, port)
			l.Close()
		}
		if !slices.Equal(hosts, want) || len(slices.Compact(ports)) != 1 {
			t.Errorf("%s: %v with ports %v, want %v with one", address, hosts, ports, want)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := listenAdmin(l.Addr().String()); !errors.Is(err, unix.EADDRINUSE) || !strings.HasPrefix(err.Error(), "SPILLWAY_ADMIN_ADDRESS: ") {
		t.Errorf("in use: %v", err)
	}
}

func TestParseLocal(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Log("a big-endian host: the kernel's tables look otherwise")
		return
	}
	for in, want := range map[string]string{
		"0100007F:14E6": "127.0.0.1:5350", "00000000:0202": "0.0.0.0:514",
		"00000000000000000000000001000000:170C": "[::1]:5900", "0000000000000000FFFF00000100007F:0001": "[::ffff:127.0.0.1]:1",
	} {
		if got, ok := parseLocal(in); !ok || got != netip.MustParseAddrPort(want) {
			t.Errorf("%s is %v, want %s", in, got, want)
		}
	}
	for _, in := range []string{"", ":", "01:02", "0100007F", "0100007F:GGGG", "0100007F:12345", "0x100007F:1"} {
		if got, ok := parseLocal(in); ok {
			t.Errorf("%q is %v", in, got)
		}
	}
}

// TestAgentOf finds the process that holds the lock of a lane.
func TestAgentOf(t *testing.T) {
	dir := t.TempDir()
	if h, running := agentOf(dir); running {
		t.Errorf("nobody's directory is held by %v", h)
	}
	if _, running := agentOf(filepath.Join(dir, "none")); running {
		t.Error("a directory that is not there is held")
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	if h, running := agentOf(dir); !running || h != newHolder(os.Getpid()) {
		t.Errorf("held: %t, by %+v", running, h)
	}
}

func TestSyncLatency(t *testing.T) {
	dir := t.TempDir()
	middle, worst, err := syncLatency(dir)
	if err != nil || middle <= 0 || worst < middle {
		t.Errorf("%v in the middle, %v at worst, %v", middle, worst, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, _, err := syncLatency(filepath.Join(dir, "none")); err == nil {
		t.Error("a directory that is not there can be written")
	}
}
