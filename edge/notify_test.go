package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manager is the service manager's end: a datagram socket that NOTIFY_SOCKET names.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T, name string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	return &manager{t, conn}
}

// next returns the next datagram.
func (m *manager) next() string {
	m.t.Helper()
	b := make([]byte, 4096)
	m.conn.SetReadDeadline(time.Now().Add(time.Minute))
	n, err := m.conn.Read(b)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b[:n])
}

// nothing fails the test if a datagram is there.
func (m *manager) nothing() {
	m.t.Helper()
	raw, err := m.conn.SyscallConn()
	if err != nil {
		m.t.Fatal(err)
	}
	b := make([]byte, 4096)
	var n int
	if cerr := raw.Control(func(fd uintptr) { n, _, err = unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT) }); cerr != nil {
		m.t.Fatal(cerr)
	}
	if err == nil {
		m.t.Fatalf("%q", b[:n])
	} else if !errors.Is(err, unix.EAGAIN) {
		m.t.Fatal(err)
	}
}

func (m *manager) want(text string) {
	m.t.Helper()
	if got := m.next(); got != text {
		m.t.Fatalf("%q, want %q", got, text)
	}
}

func TestNotify(t *testing.T) {
	for _, c := range []struct{ name, socket string }{
		{"path", filepath.Join(t.TempDir(), "notify")},
		{"abstract", fmt.Sprintf("@spillway-notify-test-%d", os.Getpid())},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newManager(t, c.socket)
			n := &notifier{log: slog.New(slog.DiscardHandler)}
			n.ready()
			m.want("READY=1")
			n.status("lane main sends to hub, 3 pending")
			m.want("STATUS=lane main sends to hub, 3 pending")
			n.status("lane main sends to hub, 3 pending")
			m.nothing()

			before := monotonic(t)
			n.reloading()
			state, usec, _ := strings.Cut(m.next(), "\n")
			at, err := strconv.ParseInt(strings.TrimPrefix(usec, "MONOTONIC_USEC="), 10, 64)
			if state != "RELOADING=1" || err != nil || at < before || at > monotonic(t) {
				t.Errorf("%q %q, want a time from %d on", state, usec, before)
			}
			n.ready()
			m.want("READY=1")
			n.stopping()
			m.want("STOPPING=1")
			m.nothing()
		})
	}
}

// monotonic is the clock of MONOTONIC_USEC.
func monotonic(t *testing.T) int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return now.Nano() / 1000
}

// An agent that nobody manages says nothing, and one whose manager is gone says so
// once.
func TestNotifyNobody(t *testing.T) {
	for _, c := range []struct {
		name, socket string
		lines        int
	}{
		{"not set", "", 0},
		{"gone", filepath.Join(t.TempDir(), "gone"), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", c.socket)
			var log strings.Builder
			n := &notifier{log: slog.New(slog.NewTextHandler(&log, nil))}
			n.ready()
			n.status("x")
			n.stopping()
			if got := strings.Count(log.String(), "\n"); got != c.lines {
				t.Errorf("%d lines, want %d:\n%s", got, c.lines, log.String())
			}
		})
	}
}

func TestWatchdog(t *testing.T) {
	for _, c := range []struct {
		name, usec, pid string
		pings           bool
	}{
		{"ours", "20000", strconv.Itoa(os.Getpid()), true},
		{"of any process", "20000", "", true},
		{"another process's", "20000", "1", false},
		{"off", "", "", false},
		{"no number", "soon", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newManager(t, filepath.Join(t.TempDir(), "notify"))
			t.Setenv("WATCHDOG_USEC", c.usec)
			t.Setenv("WATCHDOG_PID", c.pid)
			n := &notifier{log: slog.New(slog.DiscardHandler)}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan struct{})
			asked := make(chan time.Duration)
			answer := make(chan bool)
			go func() {
				defer close(ended)
				n.watchdog(ctx, func(within time.Duration) bool {
					select {
					case asked <- within:
						return <-answer
					case <-ctx.Done():
						return true
					}
				})
			}()
			if !c.pings {
				<-ended
				m.nothing()
				return
			}
			for i, healthy := range []bool{true, true, false, false, true} {
				if within := <-asked; within != 20*time.Millisecond {
					t.Fatalf("asked for %v", within)
				}
				m.nothing() // while the agent thinks, and after it said no
				answer <- healthy
				if healthy {
					m.want("WATCHDOG=1")
				} else if i == 3 {
					m.nothing()
				}
			}
			cancel()
			<-ended
		})
	}
}

// The agent says when it takes records, that it is alive, and when it stops.
func TestRunNotifies(t *testing.T) {
	m := newManager(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("WATCHDOG_USEC", "40000")
	t.Setenv("WATCHDOG_PID", "")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int)
	go func() {
		ended <- cmdRun(ctx, nil, os.Stdout, os.Stderr, []string{
			"SPILLWAY_STATE_DIR=" + t.TempDir(), "SPILLWAY_INPUTS=tcp,udp", "SPILLWAY_INPUT_TCP_URL=tcp://127.0.0.1:0", "SPILLWAY_INPUT_UDP_URL=udp://127.0.0.1:0",
			"SPILLWAY_ADMIN_ADDRESS=127.0.0.1:0", "SPILLWAY_LOG_LEVEL=error", "SPILLWAY_AGENT=gw1",
		})
	}()
	m.want("STATUS=lane main sends to outbox, 0 pending")
	m.want("READY=1")
	for range 3 {
		m.want("WATCHDOG=1")
	}
	// What else it says, between signs of life.
	said := func() (text string) {
		for text = m.next(); text == "WATCHDOG=1"; text = m.next() {
		}
		return text
	}
	if err := unix.Kill(os.Getpid(), unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if got := said(); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
		t.Errorf("%q", got)
	}
	if got := said(); got != "READY=1" {
		t.Errorf("%q", got)
	}
	cancel()
	if got := said(); got != "STOPPING=1" {
		t.Errorf("%q", got)
	}
	if code := <-ended; code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// The line for people follows what the lanes do.
func TestRunStatus(t *testing.T) {
	m := newManager(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("WATCHDOG_USEC", "40000")
	t.Setenv("WATCHDOG_PID", "")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int)
	go func() {
		ended <- cmdRun(ctx, nil, os.Stdout, os.Stderr, []string{
			"SPILLWAY_STATE_DIR=" + dir + "/state", "SPILLWAY_ADMIN_ADDRESS=127.0.0.1:0", "SPILLWAY_LOG_LEVEL=error", "SPILLWAY_AGENT=gw1", "SPILLWAY_SHUTDOWN_GRACE=100ms",
			"SPILLWAY_INPUTS=unix,vault", "SPILLWAY_INPUT_UNIX_URL=unix://" + dir + "/syslog.sock", "SPILLWAY_INPUT_VAULT_URL=unix://" + dir + "/vault.sock", "SPILLWAY_INPUT_VAULT_LANE=audit",
			"SPILLWAY_BATCH_MAX_AGE=10ms", "SPILLWAY_BATCH_MAX_AGE_HELD=10ms",
			"SPILLWAY_OUTPUTS=disk", "SPILLWAY_OUTPUT_DISK_URL=file://" + dir + "/file/under", // no directory can be there
		})
	}()
	m.want("STATUS=lane main sends to disk, 0 pending; lane audit sends to disk, 0 pending")
	m.want("READY=1")
	conn, err := net.Dial("unix", dir+"/vault.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintln(conn, "one")
	const want = "STATUS=lane main sends to disk, 0 pending; lane audit sends to disk (failing), 1 pending"
	for late := time.Now().Add(time.Minute); ; {
		if got := m.next(); got == want {
			break
		} else if time.Now().After(late) {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	cancel()
	if code := <-ended; code != exitOK {
		t.Errorf("exit code %d", code)
	}
}
