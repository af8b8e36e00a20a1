package listen

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"spillway/framing"
)

// socketFiles are what systemd would hand over: a tcp and a udp socket and all kinds
// of unix ones.
func socketFiles(t *testing.T) (files []*os.File, addrs []net.Addr) {
	t.Helper()
	dir := t.TempDir()
	for _, network := range []string{"tcp", "udp", "unix", "unixpacket", "unixgram"} {
		var s interface {
			File() (*os.File, error)
			Close() error
		}
		var err error
		path := filepath.Join(dir, network)
		switch network {
		case "tcp":
			// A port of one's own choice, as in a unit: shutdown(2) lets go of one that the kernel chose.
			var l net.Listener
			lc := net.ListenConfig{}
			lc.SetMultipathTCP(false) // as systemd's, by default
			if l, err = lc.Listen(t.Context(), network, "127.0.0.1:0"); err == nil {
				l.Close()
				if l, err = lc.Listen(t.Context(), network, l.Addr().String()); err == nil {
					s = l.(*net.TCPListener)
				}
			}
		case "udp":
			s, err = net.ListenUDP(network, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		case "unixgram":
			s, err = net.ListenUnixgram(network, &net.UnixAddr{Net: network, Name: path})
		default:
			var l *net.UnixListener
			if l, err = net.ListenUnix(network, &net.UnixAddr{Net: network, Name: path}); err == nil {
				l.SetUnlinkOnClose(false)
			}
			s = l
		}
		if err != nil {
			t.Fatal(err)
		}
		switch s := s.(type) {
		case net.Listener:
			addrs = append(addrs, s.Addr())
		case net.PacketConn:
			addrs = append(addrs, s.LocalAddr())
		}
		f, err := s.File()
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	return files, addrs
}

// TestActivatedAgent is the other half of TestActivation, in a process of its own.
func TestActivatedAgent(t *testing.T) {
	if os.Getenv("LISTEN_TEST_AGENT") == "" {
		return
	}
	if kind, datagrams := HandedOver("log"); kind != "tcp" || datagrams {
		fmt.Println("log is", kind, datagrams)
	}
	if kind, datagrams := HandedOver("dev"); kind != "unix" || !datagrams {
		fmt.Println("dev is", kind, datagrams)
	}
	_, err := Listen(Options{Variable: "SPILLWAY_INPUT_IN_", Network: "fd", Address: "syslog", Log: quietLog})
	fmt.Println(err)
	r := newRecorder()
	var stops []func()
	for _, name := range []string{"log", "dev"} {
		_, stop := serve(t, Options{Network: "fd", Address: name, Open: r.open, Framing: framing.Options{Mode: framing.Delimiter}})
		stops = append(stops, stop)
	}
	_, err = Listen(Options{Variable: "SPILLWAY_INPUT_IN_", Network: "fd", Address: "log", Log: quietLog})
	fmt.Println(err)
	fmt.Println("ready")
	eventually(t, "a message by each socket", func() bool { return r.len() == 5 })
	fmt.Println("all")
	io.Copy(io.Discard, os.Stdin)
	for _, stop := range stops {
		stop()
	}
	for _, m := range r.got {
		fmt.Println("got", m)
	}
}

// Sockets of systemd's are served as what they are, and stay open behind the agent.
func TestActivation(t *testing.T) {
	files, addrs := socketFiles(t)
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run='^TestActivatedAgent$'`, os.Args[0])
	cmd.Env = append(os.Environ(), "LISTEN_TEST_AGENT=1", "LISTEN_FDS=5", "LISTEN_FDNAMES=log:log:log:log:dev")
	cmd.ExtraFiles = files
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out logs
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent", func() bool { return strings.Contains(out.String(), "ready") || cmd.ProcessState != nil })
	for _, a := range addrs {
		c, err := net.Dial(a.Network(), a.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "by %s\n", a.Network())
	}
	// A datagram that is not read at the stop would be the next agent's.
	eventually(t, "all messages", func() bool { return strings.Contains(out.String(), "\nall\n") })
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, &out)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	slices.Sort(lines)
	want := []string{"PASS",
		`SPILLWAY_INPUT_IN_URL: no socket called "log" was handed over, nor any other that is not taken: start the agent through its .socket unit`,
		`SPILLWAY_INPUT_IN_URL: no socket called "syslog" was handed over: there are dev, log: see FileDescriptorName= of the .socket unit`,
		"all",
		"got by tcp", "got by udp", "got by unix", "got by unixgram", "got by unixpacket", "ready"}
	if !slices.Equal(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	for _, a := range addrs {
		c, err := net.Dial(a.Network(), a.String())
		if err != nil {
			t.Errorf("after the agent: %v", err)
			continue
		}
		c.Close()
	}
}

// handOverTo makes Listen find files under name, as if systemd had started the test.
func handOverTo(name string, files ...*os.File) {
	passed.mu.Lock()
	defer passed.mu.Unlock()
	passed.files = map[string][]*os.File{name: files}
}

// A tcp socket of systemd's can refuse, and listens again on the same address.
func TestActivatedRefuse(t *testing.T) {
	files, addrs := socketFiles(t)
	killed := &socket{file: files[0]} // of an agent that was killed as it began to refuse
	if err := killed.adopt(); err != nil {
		t.Fatal(err)
	}
	killed.shut(true)
	killed.l.Close()
	handOverTo("log", files[0])
	r, g := newRecorder(), newTestGate()
	s, _ := serve(t, Options{Network: "fd", Address: "log", Gate: g, Open: r.open})
	for i := range 3 {
		c := dial(t, s)
		fmt.Fprintf(c, "before %d\n", i)
		eventually(t, "a message", func() bool { return r.len() == i+1 })
		g.close()
		eventually(t, "refusal", func() bool { return s.Stats.Shut.Load() == int64(i+1) })
		if c, err := net.Dial("tcp", addrs[0].String()); err == nil {
			t.Error("a connection while the input refuses")
			c.Close()
		}
		if _, err := fmt.Fprint(c, "lost\n"); err == nil {
			t.Error("a write while the input refuses")
		}
		g.reopen()
		eventually(t, "listening", func() bool { return s.Stats.Refuses.Load() == 0 })
	}
	for _, f := range files[1:] {
		handOverTo("log", f)
		_, err := Listen(Options{Variable: "SPILLWAY_INPUT_IN_", Network: "fd", Address: "log", Gate: g, Log: quietLog})
		if err == nil || !strings.Contains(err.Error(), "ON_FULL=refuse") {
			t.Errorf("%v", err)
		}
	}
}

func TestActivationProblems(t *testing.T) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	for want, f := range map[string]*os.File{"a connection, not a listening socket: set Accept=no": accepted, "no socket: ": file} {
		handOverTo("x", f)
		_, err := Listen(Options{Variable: "SPILLWAY_INPUT_IN_", Network: "fd", Address: "x", Log: quietLog})
		if err == nil || !strings.HasPrefix(err.Error(), "SPILLWAY_INPUT_IN_URL: socket 1 called x: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
