package listen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"spillway/framing"
)

// logs is a log that tests read while it is written.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *logs) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }
func (l *logs) logger() *slog.Logger        { return slog.New(slog.NewTextHandler(l, nil)) }

// serve starts a server for o, with defaults, and returns it and what stops it and waits.
func serve(t *testing.T, o Options) (s *Server, stop func()) {
	t.Helper()
	o.Name, o.Variable = "in", "SPILLWAY_INPUT_IN_"
	if o.Log == nil {
		o.Log = quietLog
	}
	if o.Address == "" {
		o.Address = "127.0.0.1:0"
	}
	s, err := Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	hard, kill := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Serve(ctx, hard); close(done) }()
	stop = sync.OnceFunc(func() { cancel(); <-done; kill() })
	t.Cleanup(stop)
	return s, stop
}

func TestLocalKinds(t *testing.T) {
	for _, address := range []string{"path", "@spillway-test-" + fmt.Sprint(os.Getpid())} {
		for network, want := range map[string]string{
			"unix":       "one|two|5 <1>ab|open end", // delimiter: the count is text
			"unixpacket": "one\ntwo|<1>ab|open end",
			"unixgram":   "one\ntwo|<1>ab|open end",
		} {
			t.Run(network+address[:1], func(t *testing.T) {
				r := newRecorder()
				o := Options{Network: network, Address: address, Open: r.open, Framing: framing.Options{Mode: framing.Delimiter}}
				if address == "path" {
					o.Address = filepath.Join(t.TempDir(), "a b.sock")
				}
				s, stop := serve(t, o)
				c := dial(t, s)
				for _, m := range []string{"one\ntwo\n", "5 <1>ab\n", "open end"} {
					fmt.Fprint(c, m)
				}
				n := strings.Count(want, "|") + 1
				if network == "unix" {
					n-- // the open end comes with the end
				}
				eventually(t, "the messages", func() bool { return r.len() == n })
				stop()
				if got := strings.Join(r.got, "|"); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				if len(r.from) != 1 || r.from[netip.AddrPort{}] != len(r.got) {
					t.Errorf("local messages have a source: %v", r.from)
				}
				if _, err := os.Lstat(o.Address); o.Address[0] != '@' && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the socket file is left: %v", err)
				}
				if _, err := c.Write([]byte("x")); err == nil {
					t.Error("a write after the stop succeeds")
				}
			})
		}
	}
}

// One packet is one message, also an empty one, which is none, and one too large,
// which is cut and flagged.
func TestPackets(t *testing.T) {
	for _, network := range []string{"unixpacket", "unixgram"} {
		for _, policy := range []framing.Oversize{framing.Truncate, framing.Drop} {
			t.Run(network+policy.String(), func(t *testing.T) {
				r := newRecorder()
				s, stop := serve(t, Options{Network: network, Address: filepath.Join(t.TempDir(), "s"), Open: r.open, Framing: framing.Options{MaxMessageSize: 1000, Oversize: policy}})
				c := dial(t, s)
				c.(*net.UnixConn).SetWriteBuffer(1 << 20)
				big := strings.Repeat("x", localMax+1)
				for _, m := range []string{"", "a", "", "", strings.Repeat("y", 1001), strings.Repeat("z", 1000), big, "b"} {
					if _, err := c.Write([]byte(m)); err != nil {
						t.Fatal(err)
					}
				}
				want := []string{"a", strings.Repeat("y", 1000), strings.Repeat("z", 1000), big[:1000], "b"}
				if policy == framing.Drop {
					want = []string{"a", strings.Repeat("z", 1000), "b"}
				}
				eventually(t, "the last", func() bool { return r.len() == len(want) })
				stop()
				if strings.Join(r.got, "|") != strings.Join(want, "|") {
					t.Errorf("got %.20q", r.got)
				}
				if s.Stats.Oversize.Load() != 2 || s.Stats.Empty.Load() != 3 {
					t.Errorf("%d over-size, %d empty", s.Stats.Oversize.Load(), s.Stats.Empty.Load())
				}
			})
		}
	}
}

func TestSocketFile(t *testing.T) {
	dir := t.TempDir()
	open := newRecorder().open
	try := func(o Options) (*Server, error) {
		o.Variable, o.Open, o.Log = "SPILLWAY_INPUT_IN_", open, quietLog
		return Listen(o)
	}
	t.Run("mode", func(t *testing.T) {
		for want, mode := range map[os.FileMode]os.FileMode{0o660: 0, 0o622: 0o622} {
			s, err := try(Options{Network: "unix", Address: filepath.Join(dir, "mode"), Socket: SocketFile{Mode: mode, Owner: fmt.Sprint(os.Getuid()), Group: fmt.Sprint(os.Getgid())}})
			if err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(filepath.Join(dir, "mode")); err != nil || info.Mode().Perm() != want {
				t.Errorf("mode %v, %v, want %v", info.Mode(), err, want)
			}
			s.Close()
		}
	})
	for _, tt := range []struct {
		name, network, address string
		socket                 SocketFile
		prepare                func(path string)
		want                   string // of the error; "": none
	}{
		{name: "too long", network: "unix", address: strings.Repeat("x", 108-len(dir)-1), want: "a path of 108 bytes: the kernel takes 107"},
		{name: "no directory", network: "unix", address: "missing/s", want: "no directory for it: no such file or directory: create " + dir + "/missing"},
		{name: "directory is a file", network: "unix", address: "file/s", prepare: func(path string) { os.WriteFile(filepath.Dir(path), nil, 0o600) }, want: "no directory for it: not a directory"},
		{name: "a file", network: "unixgram", address: "plain", prepare: func(path string) { os.WriteFile(path, nil, 0o600) }, want: "a file that is no socket is there"},
		{name: "a link", network: "unix", address: "link", prepare: func(path string) { os.Symlink("/dev/null", path) }, want: "a file that is no socket is there"},
		{name: "no user", network: "unix", address: "o", socket: SocketFile{Owner: "nobody-of-this-name"}, want: "no user is called nobody-of-this-name"},
		{name: "no group", network: "unix", address: "g", socket: SocketFile{Group: "nobody-of-this-name"}, want: "no group is called nobody-of-this-name"},
		{name: "stale", network: "unix", address: "stale", prepare: func(path string) { left(t, "unix", path) }},
		{name: "stale of another kind", network: "unixgram", address: "stale2", prepare: func(path string) { left(t, "unixgram", path) }},
		{name: "in use", network: "unix", address: "used", prepare: func(path string) { used(t, "unix", path) }, want: "is in use: stop what listens there"},
		{name: "in use by another kind", network: "unixgram", address: "used2", prepare: func(path string) { used(t, "unix", path) }, want: "is in use: stop what listens there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, tt.address)
			if tt.prepare != nil {
				tt.prepare(path)
			}
			before, _ := os.Lstat(path)
			s, err := try(Options{Network: tt.network, Address: path, Socket: tt.socket})
			if err == nil {
				s.Close()
			}
			if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "SPILLWAY_INPUT_IN_URL: ")) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			after, _ := os.Lstat(path)
			if tt.want != "" && (before == nil) != (after == nil) {
				t.Errorf("before %v, after %v", before, after)
			}
		})
	}
	t.Run("another's at the end", func(t *testing.T) {
		path := filepath.Join(dir, "mine")
		s, err := try(Options{Network: "unix", Address: path})
		if err != nil {
			t.Fatal(err)
		}
		os.Remove(path)
		used(t, "unix", path)
		s.Close()
		if _, err := os.Stat(path); err != nil {
			t.Errorf("the socket of another program was removed: %v", err)
		}
	})
}

// used is a socket of another program at path; left one whose program is gone.
func used(t *testing.T, network, path string) {
	t.Helper()
	var err error
	var c interface{ Close() error }
	if network == "unixgram" {
		c, err = net.ListenUnixgram(network, &net.UnixAddr{Net: network, Name: path})
	} else {
		c, err = net.ListenUnix(network, &net.UnixAddr{Net: network, Name: path})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
}

func left(t *testing.T, network, path string) {
	t.Helper()
	typ := map[string]int{"unix": syscall.SOCK_STREAM, "unixgram": syscall.SOCK_DGRAM}[network]
	fd, err := syscall.Socket(syscall.AF_UNIX, typ, 0)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: path})
		syscall.Close(fd)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A sender that writes while its server stops loses nothing: what the kernel took is
// delivered, and what comes after that fails.
func TestLocalStopLosesNothing(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			for range 20 {
				r := newRecorder()
				s, stop := serve(t, Options{Network: network, Address: filepath.Join(t.TempDir(), "s"), Open: r.open})
				c := dial(t, s)
				sent := make(chan int)
				go func() {
					n := 0
					for {
						if _, err := fmt.Fprintf(c, "message %d\n", n); err != nil {
							sent <- n
							return
						}
						n++
					}
				}()
				eventually(t, "a message", func() bool { return r.len() > 0 })
				stop()
				if n := <-sent; r.len() != n {
					t.Fatalf("%d sent, %d arrived", n, r.len())
				}
				if last := r.got[len(r.got)-1]; last != fmt.Sprintf("message %d", len(r.got)-1) {
					t.Fatalf("the last is %q", last)
				}
			}
		})
	}
}

// What helps against "permission denied" depends on what the address is.
func TestExplainPermission(t *testing.T) {
	for address, want := range map[string]string{
		"/run/a.sock":   "/run/a.sock is not allowed to this user: let it write the directory /run, or choose another path",
		"127.0.0.1:514": "127.0.0.1:514 is not allowed to this user: ports below 1024 need CAP_NET_BIND_SERVICE; grant it, or choose a higher port",
	} {
		err := Explain(address, &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EACCES)})
		if err.Error() != want || !errors.Is(err, os.ErrPermission) {
			t.Errorf("%s: %v", address, err)
		}
	}
}
