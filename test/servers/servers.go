package servers

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// process is a server's process, which dies with the test's own.
type process struct {
	name  string
	log   string // file
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has ended; nil: not started, or ended and waited for
}

// binary returns the path of a server that `make tools` built.
func binary(t testing.TB, name string) string {
	t.Helper()
	bin := os.Getenv("SPILLWAY_BIN")
	if bin == "" {
		bin = filepath.Join("..", "..", "bin")
	}
	path, err := filepath.Abs(filepath.Join(bin, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make tools` first", err)
	}
	return path
}

// newProcess returns the process of a server. What it says goes to a file, and to
// the test's log if that fails. It is killed when the test ends.
func newProcess(t testing.TB, name string) *process {
	p := &process{name: name, log: filepath.Join(t.TempDir(), name+".log")}
	t.Cleanup(func() {
		p.end(t, syscall.SIGKILL)
		if t.Failed() {
			t.Logf("%s said:\n%s", name, p.said())
		}
	})
	return p
}

func (p *process) said() string {
	text, _ := os.ReadFile(p.log)
	return string(text)
}

// start runs the server and returns when ready says so.
func (p *process) start(t testing.TB, ready func() error, args ...string) {
	t.Helper()
	if p.ended != nil {
		t.Fatalf("%s runs already", p.name)
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(binary(t, p.name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	p.cmd, p.ended = cmd, ended
	go func() {
		_ = cmd.Wait() // its end is asked for
		close(ended)
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s ended:\n%s", p.name, p.said())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not ready: %v", p.name, err)
		}
	}
}

// end sends sig and waits for the end. A process that has ended is no error.
func (p *process) end(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if p.ended == nil {
		return
	}
	p.signal(t, sig)
	select {
	case <-p.ended:
	case <-time.After(time.Minute):
		t.Errorf("%s does not end on %v", p.name, sig)
		p.signal(t, syscall.SIGKILL)
		<-p.ended
	}
	p.ended = nil
}

func (p *process) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("%s: %v: %v", p.name, sig, err)
	}
}

// pause halts the process and returns when it stands still: a signal that was sent
// has not arrived yet.
func (p *process) pause(t testing.TB) {
	t.Helper()
	p.signal(t, syscall.SIGSTOP)
	for deadline := time.Now().Add(time.Minute); !p.halted(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not stop", p.name)
		}
	}
}

// halted reports whether every thread of the process is stopped: the field behind
// the name in parentheses, see proc_pid_stat(5).
func (p *process) halted() bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if err == nil && !strings.HasPrefix(string(text[bytes.LastIndexByte(text, ')')+1:]), " T") {
			return false
		}
	}
	return len(threads) > 0
}

// FreePort returns a TCP port of 127.0.0.1 that nobody listens on now. It lies below
// those that the kernel gives to outgoing connections: it stays free while its
// server is restarted. No other test gets it until this one ends.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 10000 + rand.IntN(22000)
		unlock := lockPort(t, port)
		if unlock == nil {
			continue
		}
		if l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port)); err == nil {
			l.Close()
			t.Cleanup(unlock)
			return port
		}
		unlock()
	}
	t.Fatal("no free port")
	return 0
}

// FixedPorts are ports of localhost, tcp and udp, that a test needs because its
// subject has them built in. Other tests that want them wait for its end, two minutes
// at most; a process of nobody's test that has one is an error.
func FixedPorts(t testing.TB, ports ...int) {
	t.Helper()
	for _, port := range ports {
		deadline := time.Now().Add(2 * time.Minute)
		unlock := lockPort(t, port)
		for ; unlock == nil; unlock = lockPort(t, port) {
			if time.Now().After(deadline) {
				t.Fatalf("port %d: another test has it for two minutes", port)
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Cleanup(unlock)
		for _, host := range []string{"127.0.0.1", "[::1]"} { // a host without IPv6 has another error for it
			l, err := net.Listen("tcp", fmt.Sprint(host, ":", port))
			if err == nil {
				l.Close()
				var c net.PacketConn
				if c, err = net.ListenPacket("udp", fmt.Sprint(host, ":", port)); err == nil {
					c.Close()
				}
			}
			if errors.Is(err, syscall.EADDRINUSE) {
				t.Fatalf("%v: this test can't run beside another agent or `make run`: stop it (`ss -lntup sport = :%d` shows who it is)", err, port)
			}
		}
	}
}

// lockPort keeps a port from other tests until unlock; nil: one of them has it.
func lockPort(t testing.TB, port int) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(os.TempDir(), fmt.Sprintf("spillway-test-port-%d", port)), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	named, statErr := os.Stat(f.Name())
	if err != nil || statErr != nil || !os.SameFile(ours, named) { // the one before may have removed it meanwhile
		f.Close()
		return nil
	}
	return func() { os.Remove(f.Name()); f.Close() }
}

func freeAddress(t testing.TB) string { return fmt.Sprint("127.0.0.1:", FreePort(t)) }
