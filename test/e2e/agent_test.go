// Package e2e drives the real binary with real senders against real servers.
package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/test/servers"
)

// binary is the agent under test, as `make build` leaves it.
func binary(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("SPILLWAY_BIN")
	if dir == "" {
		dir = filepath.Join("..", "..", "bin")
	}
	p, err := filepath.Abs(filepath.Join(dir, "spillway"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p); err != nil {
		t.Fatalf("%v: run `make build` first", err)
	}
	return p
}

// agent is one `spillway run` and what is needed to start it again.
type agent struct {
	t        testing.TB
	bin      string
	state    string
	tcp, udp int
	admin    int
	env      []string
	log      string

	cmd  *exec.Cmd
	done chan error
}

// newAgent prepares an agent with its own state directory and ports; env adds to
// the environment and wins.
func newAgent(t testing.TB, env ...string) *agent {
	t.Helper()
	dir := t.TempDir()
	a := &agent{t: t, bin: binary(t), state: filepath.Join(dir, "state"), tcp: servers.FreePort(t), udp: servers.FreePort(t), admin: servers.FreePort(t), log: filepath.Join(dir, "agent.log")}
	a.env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir,
		"SPILLWAY_STATE_DIR=" + a.state,
		"SPILLWAY_AGENT=gw1",
		"SPILLWAY_INPUT_TCP_URL=tcp://127.0.0.1:" + strconv.Itoa(a.tcp),
		"SPILLWAY_INPUT_UDP_URL=udp://127.0.0.1:" + strconv.Itoa(a.udp),
		"SPILLWAY_ADMIN_ADDRESS=127.0.0.1:" + strconv.Itoa(a.admin),
		"SPILLWAY_LOG_LEVEL=debug",
	}, env...)
	t.Cleanup(func() {
		if a.cmd != nil {
			a.kill()
		}
		if t.Failed() {
			b, _ := os.ReadFile(a.log)
			t.Logf("agent log:\n%s", tail(b, 60))
		}
	})
	return a
}

func tail(b []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func (a *agent) start() {
	a.t.Helper()
	f, err := os.OpenFile(a.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		a.t.Fatal(err)
	}
	defer f.Close()
	a.cmd = exec.Command(a.bin, "run")
	a.cmd.Env = a.env
	a.cmd.Stdout, a.cmd.Stderr = f, f
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := a.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	done := make(chan error, 1)
	cmd := a.cmd
	go func() { done <- cmd.Wait() }()
	a.done = done
	a.until("the agent is ready", func() bool {
		select {
		case err := <-done:
			b, _ := os.ReadFile(a.log)
			a.t.Fatalf("the agent ended: %v\n%s", err, tail(b, 30))
		default:
		}
		r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", a.admin))
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
}

// stop sends SIGTERM and returns the exit code.
func (a *agent) stop() int {
	a.t.Helper()
	a.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-a.done:
	case <-time.After(30 * time.Second):
		a.cmd.Process.Signal(syscall.SIGQUIT)
		<-a.done
		a.t.Error("the agent did not stop within 30 s of SIGTERM")
	}
	code := a.cmd.ProcessState.ExitCode()
	a.cmd = nil
	return code
}

func (a *agent) kill() {
	a.cmd.Process.Kill()
	<-a.done
	a.cmd = nil
}

func (a *agent) until(what string, ok func() bool) {
	a.t.Helper()
	eventually(a.t, what, 30*time.Second, ok)
}

func eventually(t testing.TB, what string, within time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// metric reads one sample, its name with labels as it is printed; -1 when absent.
func (a *agent) metric(name string) float64 {
	a.t.Helper()
	r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", a.admin))
	if err != nil {
		a.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			f, err := strconv.ParseFloat(v, 64)
			if err != nil {
				a.t.Fatal(err)
			}
			return f
		}
	}
	return -1
}

// command runs the binary with the agent's environment and returns its standard
// output and exit code.
func (a *agent) command(arg ...string) (stdout string, code int) {
	a.t.Helper()
	cmd := exec.Command(a.bin, arg...)
	cmd.Env = a.env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		a.t.Fatal(err)
	}
	if errs.Len() > 0 {
		a.t.Logf("%s: %s", strings.Join(arg, " "), tail(errs.Bytes(), 10))
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// sh runs a shell line, as a person would, and returns what it printed.
func sh(t testing.TB, line string, env ...string) string {
	t.Helper()
	cmd := exec.Command("bash", "-o", "pipefail", "-c", line)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// record is what the tests read of a record.
type record struct {
	Time    string `json:"@timestamp"`
	Message string
	Event   struct{ Dataset, Created, Kind string }
	Input   struct{ Type string }
	Source  struct {
		IP   string
		Port int
	}
	Log struct {
		Syslog struct {
			Priority *int
			Appname  string
			Hostname string
		}
	}
	Error    *struct{ Message string }
	Spillway struct {
		Epoch string
		Seq   uint64
		Gap   *struct {
			Reason, Input      string
			First, Last, Count uint64
		}
	}
}

func parse(t testing.TB, ndjson string) (rs []record) {
	t.Helper()
	for i, line := range strings.Split(strings.TrimSuffix(ndjson, "\n"), "\n") {
		if line == "" {
			continue
		}
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("line %d: %v: %.200q", i+1, err, line)
		}
		rs = append(rs, r)
	}
	return rs
}

// find returns the one record with this message.
func find(t testing.TB, rs []record, message string) record {
	t.Helper()
	var found []record
	for _, r := range rs {
		if r.Message == message {
			found = append(found, r)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d records say %q among %d", len(found), message, len(rs))
	}
	return found[0]
}

// syncBuffer is a bytes.Buffer that a child writes while a test reads.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
