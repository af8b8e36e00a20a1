package crash

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/test/agent"
	"spillway/test/chaos"
	"spillway/test/servers"
)

// kills are what happened in one directory, or in all of them together.
type kills struct {
	killed, stopped, early     int // lives that ended by kill -9, by SIGTERM, and before the buffer was open
	records, twice, sent, gaps int
	durable                    uint64
}

// The real binary is killed at any moment, and stopped now and then, while four
// inputs send; SPILLWAY_KILL_N times. Whatever its log called durable before, and
// whatever a request was answered for, is delivered.
func TestKill(t *testing.T) {
	n, seed := setting("SPILLWAY_KILL_N", 20), seed()
	t.Logf("SPILLWAY_CRASH_SEED=%d", seed)
	begun := time.Now()
	var sum kills
	const each = 50 // lives of one directory
	for done := 0; done < n; done += each {
		t.Run(fmt.Sprint("from=", done), func(t *testing.T) {
			killLoop(t, rand.New(rand.NewPCG(seed, uint64(done))), min(each, n-done), &sum)
		})
	}
	t.Logf("%d times kill -9, %d times SIGTERM, %d of them before the buffer was open: %d lines sent, %d records durable, %d delivered, %d of them more than once, %d gaps told, in %v",
		sum.killed, sum.stopped, sum.early, sum.sent, sum.durable, sum.records, sum.twice, sum.gaps, time.Since(begun).Round(time.Second))
}

func killLoop(t *testing.T, r *rand.Rand, n int, sum *kills) {
	dir := t.TempDir()
	hook := servers.FreePort(t)
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	a := agent.New(t, dir,
		"SPILLWAY_INPUTS=tcp,udp,unix,hook",
		"SPILLWAY_INPUT_UNIX_URL=unix://"+filepath.Join(dir, "sock"),
		fmt.Sprintf("SPILLWAY_INPUT_HOOK_URL=http://127.0.0.1:%d", hook),
		"SPILLWAY_INPUT_HOOK_PARSE=none",
		"SPILLWAY_BATCH_MAX_AGE="+pick("5ms", "20ms", "80ms"),
		"SPILLWAY_BATCH_MAX_AGE_HELD=100ms",
		"SPILLWAY_BATCH_MAX_BYTES="+pick("8KiB", "64KiB"),
		"SPILLWAY_BUFFER_SYNC="+pick("group", "group", "interval", "never"), // a killed process loses nothing, whatever it is
		"SPILLWAY_BUFFER_MAX_BYTES="+pick("8MiB", "64MiB"),
		"SPILLWAY_BUFFER_MIN_FREE=0",
		"SPILLWAY_BUFFER_KEEP_ACKED="+pick("0", "100ms", "10m"),
		"SPILLWAY_COMPRESSION="+pick("zstd", "gzip", "none"),
		"SPILLWAY_OUTPUTS=outdir",
		"SPILLWAY_OUTPUT_OUTDIR_URL=file://"+filepath.Join(dir, "outdir"),
		"SPILLWAY_OUTPUT_OUTDIR_MAX_BYTES=8GiB",
		"SPILLWAY_OUTPUT_OUTDIR_ROLL_AGE="+pick("20ms", "100ms"),
		"SPILLWAY_SHUTDOWN_GRACE="+pick("50ms", "1s"),
	)
	settings := strings.Join(a.Env, "\n")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the settings were:\n%s", settings)
		}
	})
	to := targets{tcp: fmt.Sprint("127.0.0.1:", a.TCP), udp: fmt.Sprint("127.0.0.1:", a.UDP), unix: filepath.Join(dir, "sock"), hook: fmt.Sprint("127.0.0.1:", hook)}
	s := send(t, to, r.Uint64(), 300, time.Millisecond)
	for range n {
		wait := time.Duration(2+r.IntN(199)) * time.Millisecond
		if r.IntN(4) == 0 {
			sum.stopped++
			lifeOf(t, a, wait, syscall.SIGTERM, time.Duration(r.IntN(3))*40*time.Millisecond, sum)
		} else {
			sum.killed++
			lifeOf(t, a, wait, syscall.SIGKILL, 0, sum)
		}
		if t.Failed() {
			return
		}
	}
	a.Start(t)
	conns, err := s.end()
	if err != nil {
		t.Error(err)
	}
	drain(t, a)
	if code := a.Stop(t); code != 0 {
		t.Errorf("the agent exits %d at the end", code)
	}
	judge(t, a, filepath.Join(dir, "outdir"), conns, chaos.Rules{Stops: true}, false, sum)
}

// lifeOf runs the agent for so long and ends it. After SIGTERM it has patience, or
// none: then SIGKILL follows.
func lifeOf(t *testing.T, a *agent.Agent, wait time.Duration, with syscall.Signal, patience time.Duration, sum *kills) {
	t.Helper()
	log, err := os.OpenFile(a.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	from, err := log.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(a.Bin, "run")
	cmd.Env, cmd.Stdout, cmd.Stderr = a.Env, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // ProcessState says it
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(wait):
	}
	_ = cmd.Process.Signal(with) // what it has come to is in ProcessState
	if with == syscall.SIGTERM {
		if patience == 0 {
			patience = time.Minute
		}
		select {
		case <-ended:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
		}
	}
	<-ended
	text, err := os.ReadFile(a.Log)
	if err != nil {
		t.Fatal(err)
	}
	open := strings.Contains(string(text[from:]), `msg="buffer open"`)
	if !open {
		sum.early++
	}
	switch status := cmd.ProcessState.Sys().(syscall.WaitStatus); {
	case status.Signaled() && status.Signal() == syscall.SIGKILL:
		if with == syscall.SIGTERM && patience == time.Minute {
			t.Error("the agent did not end within a minute of SIGTERM")
		}
	case status.Signaled() && status.Signal() == syscall.SIGTERM && !open: // it was too early to hear
	case with == syscall.SIGTERM && status.Exited() && status.ExitStatus() == 0:
	default:
		t.Errorf("the agent ended by itself: %v\n%s", cmd.ProcessState, text[from:])
	}
}

// drain waits until nothing is pending and nothing comes any more.
func drain(t *testing.T, a *agent.Agent) {
	t.Helper()
	const quiet = time.Second // longer than any batch stays open
	var admitted float64
	since := time.Now()
	agent.Eventually(t, "everything is delivered", 2*time.Minute, func() bool {
		a.MustRun(t)
		m, err := a.Metrics()
		if err != nil {
			return false
		}
		pending, now := m[`spillway_lane_pending_records{lane="main"}`], m[`spillway_lane_records_admitted_total{lane="main"}`]
		if pending > 0 || now != admitted {
			admitted, since = now, time.Now()
		}
		return time.Since(since) > quiet
	})
}

// judge compares what has arrived with what was sent and promised. The agent has
// ended.
func judge(t *testing.T, a *agent.Agent, source string, conns []chaos.Conn, rules chaos.Rules, overlaps bool, sum *kills) {
	t.Helper()
	promises, err := chaos.Promises(a.Log)
	if err != nil {
		t.Fatal(err)
	}
	d := chaos.NewDelivered()
	cat := exec.Command(a.Bin, "cat", source)
	cat.Env = a.Env
	if err := d.Cat(cat, 0); err != nil {
		t.Error(err)
	}
	if err := d.Judge(promises, conns, rules); err != nil {
		t.Errorf("what has arrived is not what should have:\n%v", err)
	}
	// Where no plan could be saved, an object may come again under other bounds.
	if err := a.Verify(t, source); err != nil && !(overlaps && onlyOverlaps(err.Error())) {
		t.Error(err)
	}
	if out, errs, code := a.Command(t, "buffer", "verify", a.State+"/buffer/main"); code != 0 {
		t.Errorf("spillway buffer verify exits %d:\n%s%s", code, out, errs)
	}
	sum.records += len(d.Records)
	sum.twice += d.Twice
	sum.gaps += len(d.Gaps)
	for _, c := range conns {
		sum.sent += c.Sent
	}
	for _, p := range promises {
		sum.durable += p.Last + 1 - p.First
	}
}

// onlyOverlaps reports whether `spillway verify` found no other fault.
func onlyOverlaps(said string) bool {
	m := regexp.MustCompile(`NOT complete: (\d+) fault`).FindStringSubmatch(said)
	return m != nil && m[1] == strconv.Itoa(strings.Count(said, "\noverlap: "))
}
