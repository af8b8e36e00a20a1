// Package agent runs the real binary for tests: with an environment, ports and a
// state directory of its own, again and again, ended in every way.
package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/test/servers"
)

// Agent is one `spillway run` of the real binary, and what is needed to start it
// again. Its methods are for one goroutine.
type Agent struct {
	Bin             string // the binary
	State           string // directory
	Log             string // file of all lives
	TCP, UDP, Admin int    // ports of 127.0.0.1
	Env             []string

	cmd   *exec.Cmd     // nil: not running
	ended chan struct{} // closed when cmd has ended
}

// Binary is the agent under test, as `make build` leaves it.
func Binary(t testing.TB) string {
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

// New prepares an agent called gw1 with state, log and ports of its own below
// dir. env adds to its environment and wins. It is killed when the test ends.
func New(t testing.TB, dir string, env ...string) *Agent {
	t.Helper()
	a := &Agent{Bin: Binary(t), State: filepath.Join(dir, "state"), Log: filepath.Join(dir, "agent.log"), TCP: servers.FreePort(t), UDP: servers.FreePort(t), Admin: servers.FreePort(t)}
	a.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir,
		"SPILLWAY_STATE_DIR=" + a.State,
		"SPILLWAY_AGENT=gw1",
		"SPILLWAY_INPUT_TCP_URL=tcp://127.0.0.1:" + strconv.Itoa(a.TCP),
		"SPILLWAY_INPUT_UDP_URL=udp://127.0.0.1:" + strconv.Itoa(a.UDP),
		"SPILLWAY_ADMIN_ADDRESS=127.0.0.1:" + strconv.Itoa(a.Admin),
		"SPILLWAY_LOG_LEVEL=debug",
	}, env...)
	t.Cleanup(func() {
		a.Kill()
		if t.Failed() {
			t.Logf("the agent said last:\n%s", a.LogTail(60))
		}
	})
	return a
}

// Start starts the agent and returns when its admin port answers: inputs listen by
// then.
func (a *Agent) Start(t testing.TB) {
	t.Helper()
	if a.cmd != nil {
		t.Fatal("the agent runs already")
	}
	log, err := os.OpenFile(a.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(a.Bin, "run")
	cmd.Env = a.Env
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // ProcessState says it
		close(done)
	}()
	a.cmd, a.ended = cmd, done
	Eventually(t, "the agent answers on its admin port", 30*time.Second, func() bool {
		a.MustRun(t)
		r, err := http.Get(a.url("/healthz"))
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
}

func (a *Agent) url(path string) string { return "http://127.0.0.1:" + strconv.Itoa(a.Admin) + path }

// MustRun ends the test if the agent has ended by itself. One that was stopped, or
// killed, or not started yet is no error.
func (a *Agent) MustRun(t testing.TB) {
	t.Helper()
	if a.cmd == nil {
		return
	}
	select {
	case <-a.ended:
		state := a.cmd.ProcessState
		a.cmd = nil
		t.Fatalf("the agent ended by itself: %v\n%s", state, a.LogTail(30))
	default:
	}
}

// Stop sends SIGTERM, waits, and returns the exit code. The grace must be shorter
// than 30 s.
func (a *Agent) Stop(t testing.TB) int {
	t.Helper()
	a.Signal(t, syscall.SIGTERM)
	if !a.Ended(time.Minute) {
		a.Signal(t, syscall.SIGQUIT) // its goroutines go to the log
		a.Ended(10 * time.Second)
		a.Kill()
		t.Fatal("the agent did not stop within 30 s of SIGTERM")
	}
	code := a.cmd.ProcessState.ExitCode()
	a.cmd = nil
	return code
}

// Kill ends the agent at once. One that does not run is no error.
func (a *Agent) Kill() {
	if a.cmd == nil {
		return
	}
	_ = a.cmd.Process.Kill() // it may have ended
	<-a.ended
	a.cmd = nil
}

// Signal sends a signal to the running agent.
func (a *Agent) Signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := a.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("%v to the agent: %v", s, err)
	}
}

// Ended waits for the agent's end, no longer than within, and reports whether it
// came.
func (a *Agent) Ended(within time.Duration) bool {
	select {
	case <-a.ended:
		return true
	case <-time.After(within):
		return false
	}
}

// Metrics reads all samples, each name with its labels as it is printed.
func (a *Agent) Metrics() (map[string]float64, error) {
	body, err := a.get("/metrics")
	if err != nil {
		return nil, err
	}
	m := map[string]float64{}
	for line := range strings.Lines(body) {
		line = strings.TrimSuffix(line, "\n")
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || line[0] == '#' {
			continue
		}
		if m[line[:i]], err = strconv.ParseFloat(line[i+1:], 64); err != nil {
			return nil, fmt.Errorf("metric %q: %w", line, err)
		}
	}
	return m, nil
}

// Pending is how many records of all lanes are stored and not delivered.
func (a *Agent) Pending() (n float64, err error) {
	m, err := a.Metrics()
	for name, v := range m {
		if strings.HasPrefix(name, "spillway_lane_pending_records{") {
			n += v
		}
	}
	return n, err
}

// Goroutines is how many the agent has; stacks says which.
func (a *Agent) Goroutines() (n int, stacks string, err error) {
	stacks, err = a.get("/debug/pprof/goroutine?debug=1")
	if err != nil {
		return 0, "", err
	}
	if _, err := fmt.Sscanf(stacks, "goroutine profile: total %d", &n); err != nil {
		return 0, stacks, fmt.Errorf("goroutine profile: %w: %.100q", err, stacks)
	}
	return n, stacks, nil
}

// Descriptors are what the agent has open: "3 socket:[4711]" and so on.
func (a *Agent) Descriptors() (open []string, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", a.cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			open = append(open, e.Name()+" "+to)
		}
	}
	return open, nil
}

// PID is the process id of the running agent.
func (a *Agent) PID() int { return a.cmd.Process.Pid }

// Resident is the agent's memory, in bytes.
func (a *Agent) Resident() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", a.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(text))
	if len(f) < 2 {
		return 0, fmt.Errorf("statm: %q", text)
	}
	pages, err := strconv.ParseInt(f[1], 10, 64)
	return pages * int64(os.Getpagesize()), err
}

var client = &http.Client{Timeout: time.Minute}

func (a *Agent) get(path string) (string, error) {
	r, err := client.Get(a.url(path))
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, r.Status)
	}
	return string(body), err
}

// Metric is one of the Metrics; -1: there is none of this name.
func (a *Agent) Metric(t testing.TB, name string) float64 {
	t.Helper()
	m, err := a.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := m[name]; ok {
		return v
	}
	return -1
}

// Command runs the binary with the agent's environment. What it says on standard
// error when it fails is in the test's log, too.
func (a *Agent) Command(t testing.TB, arg ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(a.Bin, arg...)
	cmd.Env = a.Env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	code = cmd.ProcessState.ExitCode()
	if code != 0 {
		t.Logf("spillway %s exits %d: %s", strings.Join(arg, " "), code, tail(errs.String(), 10))
	}
	return out.String(), errs.String(), code
}

// Verify runs `spillway verify` over all sources together. Its error is what the
// command found.
func (a *Agent) Verify(t testing.TB, sources ...string) error {
	t.Helper()
	out, errs, code := a.Command(t, append([]string{"verify"}, sources...)...)
	if code != 0 {
		return fmt.Errorf("spillway verify exits %d:\n%s%s", code, out, errs)
	}
	return nil
}

// LogTail is the end of the log.
func (a *Agent) LogTail(lines int) string {
	text, _ := os.ReadFile(a.Log)
	return tail(string(text), lines)
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Eventually waits until ok, and ends the test when that takes longer than within, or
// than a minute if that is more.
func Eventually(t testing.TB, what string, within time.Duration, ok func() bool) {
	t.Helper()
	within = max(within, time.Minute) // for a machine that has other things to do
	for end := time.Now().Add(within); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}
