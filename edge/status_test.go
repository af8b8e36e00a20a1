package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// running is an agent in this process, with real sockets and real files.
type running struct {
	*agent
	t     *testing.T
	state string
	log   *lockedBuffer
	stop  chan<- os.Signal
	ended <-chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
func (l *lockedBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

// start runs an agent with vars, on free ports, until the end of the test.
func start(t *testing.T, vars ...string) *running {
	t.Helper()
	return startIn(t, t.TempDir(), vars...)
}

// startIn is start with a state directory.
func startIn(t *testing.T, state string, vars ...string) *running {
	t.Helper()
	r := &running{t: t, state: state, log: &lockedBuffer{}}
	cfg, err := loadConfig(append([]string{"SPILLWAY_SHUTDOWN_GRACE=100ms", "SPILLWAY_BATCH_MAX_AGE=10ms", "SPILLWAY_BATCH_MAX_AGE_HELD=10ms"},
		append(vars, "SPILLWAY_STATE_DIR="+r.state, "SPILLWAY_ADMIN_ADDRESS=127.0.0.1:0", "SPILLWAY_INPUT_TCP_URL=tcp://127.0.0.1:0", "SPILLWAY_INPUT_UDP_URL=udp://127.0.0.1:0")...))
	if err != nil {
		t.Fatal(err)
	}
	r.agent = &agent{cfg: cfg, log: slog.New(slog.NewTextHandler(r.log, nil))}
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	signals, ended := make(chan os.Signal, 2), make(chan struct{})
	r.stop, r.ended = signals, ended
	go func() {
		defer close(ended)
		r.run(t.Context(), signals)
	}()
	t.Cleanup(func() {
		select {
		case signals <- syscall.SIGTERM:
			<-ended
		case <-ended:
		}
		if t.Failed() {
			t.Logf("log\n%s", r.log)
		}
	})
	return r
}

// get asks the agent's admin address.
func (r *running) get(path string) (code int, body string) {
	r.t.Helper()
	resp, err := http.Get("http://" + r.admin[0].Addr().String() + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// metrics is a scrape: values by name and labels as printed.
func (r *running) metrics() map[string]float64 {
	r.t.Helper()
	_, body := r.get("/metrics")
	m := map[string]float64{}
	s := bufio.NewScanner(strings.NewReader(body))
	for s.Scan() {
		if i := strings.LastIndexByte(s.Text(), ' '); i > 0 && s.Text()[0] != '#' {
			v, err := strconv.ParseFloat(s.Text()[i+1:], 64)
			if err != nil {
				r.t.Fatal(err)
			}
			m[s.Text()[:i]] = v
		}
	}
	return m
}

// until waits until f is so.
func (r *running) until(what string, f func() bool) {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			_, ready := r.get("/readyz")
			r.t.Fatalf("not within a minute: %s\n%s", what, ready)
		}
	}
}

// dial connects to the input called name.
func (r *running) dial(name string) net.Conn {
	r.t.Helper()
	c, err := r.tryDial(name)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// tryDial is dial, for an input that may refuse.
func (r *running) tryDial(name string) (net.Conn, error) {
	r.t.Helper()
	for _, in := range r.inputs {
		if in.cfg.Name == name {
			a := in.Addrs()[0]
			c, err := net.Dial(a.Network(), a.String())
			if err == nil {
				r.t.Cleanup(func() { c.Close() })
			}
			return c, err
		}
	}
	r.t.Fatalf("no input %s", name)
	return nil, nil
}

// away are two outputs that can't be used until mend is called: files stand where
// their directories should be.
func away(t *testing.T) (vars []string, mend func()) {
	dir := t.TempDir()
	vars = []string{"SPILLWAY_OUTPUTS=a,b", "SPILLWAY_FAILOVER_AFTER=200ms", "SPILLWAY_FAILBACK_INTERVAL=1s"}
	for _, name := range []string{"a", "b"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		under := "SPILLWAY_OUTPUT_" + strings.ToUpper(name) + "_"
		vars = append(vars, under+"URL=file://"+path, under+"ROLL_AGE=0s")
	}
	return vars, func() {
		for _, name := range []string{"a", "b"} {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Outputs that are away are no reason not to accept; records that get nowhere are
// one not to be called ready, and it ends with the cause.
func TestReadyStalled(t *testing.T) {
	t.Parallel()
	vars, mend := away(t)
	a := start(t, vars...)
	if code, body := a.get("/readyz"); code != http.StatusOK {
		t.Fatalf("without records: %d %s", code, body)
	}
	fmt.Fprintln(a.dial("tcp"), "<13>one")
	a.until("not ready", func() bool { code, _ := a.get("/readyz"); return code == http.StatusServiceUnavailable })
	_, body := a.get("/readyz")
	for _, want := range []string{"lane main: 1 records wait and no output acknowledged any for ", "it uses output ", "not a directory"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
	if code, body := a.get("/readyz/accept"); code != http.StatusOK {
		t.Errorf("/readyz/accept: %d %s", code, body)
	}
	m := a.metrics()
	if m["spillway_ready"] != 0 || m[`spillway_lane_stalled{lane="main"}`] != 1 || m[`spillway_output_failures_total{class="misconfigured",output="a"}`] == 0 {
		t.Errorf("metrics: ready %v, stalled %v", m["spillway_ready"], m[`spillway_lane_stalled{lane="main"}`])
	}
	if at := time.Unix(int64(m[`spillway_output_last_failure_timestamp_seconds{class="misconfigured",output="a"}`]), 0); time.Since(at).Abs() > time.Minute {
		t.Errorf("the last failure of a was at %v", at)
	}
	mend()
	a.until("ready", func() bool { code, _ := a.get("/readyz"); return code == http.StatusOK })
	m = a.metrics()
	if m["spillway_ready"] != 1 || m[`spillway_lane_records_delivered_total{lane="main"}`] != 1 ||
		m[`spillway_output_latency_seconds_count{output="a"}`]+m[`spillway_output_latency_seconds_count{output="b"}`] != 1 {
		t.Errorf("after that: %v", m)
	}
}

// A lane without room accepts nothing.
func TestReadyFull(t *testing.T) {
	t.Parallel()
	vars, mend := away(t)
	a := start(t, append(vars, "SPILLWAY_BUFFER_MAX_BYTES=4MiB", "SPILLWAY_COMPRESSION=none")...)
	c := a.dial("tcp")
	var enough atomic.Bool
	go func() {
		line := []byte("<13>" + strings.Repeat("x", 8<<10) + "\n")
		for range 4096 {
			if _, err := c.Write(line); err != nil || enough.Load() {
				return
			}
		}
	}()
	a.until("full", func() bool { code, _ := a.get("/readyz/accept"); return code == http.StatusServiceUnavailable })
	if _, body := a.get("/readyz"); !strings.Contains(body, "lane main: there has been no room for a second or longer: see what the output says, or raise SPILLWAY_BUFFER_MAX_BYTES") {
		t.Errorf("not why: %s", body)
	}
	if m := a.metrics(); m[`spillway_lane_full{lane="main"}`] != 1 || m["spillway_ready"] != 0 {
		t.Errorf("full %v, ready %v", m[`spillway_lane_full{lane="main"}`], m["spillway_ready"])
	}
	enough.Store(true)
	mend()
	a.until("ready", func() bool { code, _ := a.get("/readyz"); return code == http.StatusOK })
}

// A lane whose disk fails accepts nothing: the directory is gone, so that no
// segment can be made.
func TestReadyDisk(t *testing.T) {
	t.Parallel()
	a := start(t, "SPILLWAY_BUFFER_MEMORY=0")
	if err := os.RemoveAll(filepath.Join(a.state, "buffer", "main")); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(a.dial("tcp"), "<13>one")
	a.until("the disk fails", func() bool { code, _ := a.get("/readyz/accept"); return code == http.StatusServiceUnavailable })
	if _, body := a.get("/readyz"); !strings.Contains(body, "lane main: the disk fails: ") || !strings.Contains(body, "no such file or directory") {
		t.Errorf("not why: %s", body)
	}
	if m := a.metrics(); m[`spillway_lane_disk_failed{lane="main"}`] != 1 || m["spillway_ready"] != 0 {
		t.Errorf("disk failed %v, ready %v", m[`spillway_lane_disk_failed{lane="main"}`], m["spillway_ready"])
	}
}

// With memory to keep records in, such a lane goes on: it is ready, and says how.
func TestReadyDegraded(t *testing.T) {
	t.Parallel()
	a := start(t)
	if err := os.RemoveAll(filepath.Join(a.state, "buffer", "main")); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(a.dial("tcp"), "<13>one")
	a.until("degraded", func() bool {
		m := a.metrics()
		return m[`spillway_buffer_degraded{lane="main"}`] == 1 && m[`spillway_lane_records_delivered_total{lane="main"}`] == 1
	})
	code, body := a.get("/readyz")
	if code != http.StatusOK || !strings.HasPrefix(body, "ready\nlane main: degraded: the disk takes no writes, and what is not delivered is in memory only (") || !strings.Contains(body, "no such file or directory") {
		t.Errorf("%d: %s", code, body)
	}
	if m := a.metrics(); m[`spillway_lane_disk_failed{lane="main"}`] != 1 || m[`spillway_buffer_memory_bytes{lane="main"}`] == 0 || m["spillway_ready"] != 1 {
		t.Errorf("%v", m)
	}
}

// The clock of a stall begins when there is something to deliver, however long
// the output has been away by then.
func TestReadyStallBegins(t *testing.T) {
	t.Parallel()
	vars, _ := away(t)
	a := start(t, vars...)
	time.Sleep(600 * time.Millisecond) // longer than a stall: twice FAILOVER_AFTER
	begin := time.Now()
	fmt.Fprintln(a.dial("tcp"), "<13>one")
	a.until("not ready", func() bool { code, _ := a.get("/readyz"); return code == http.StatusServiceUnavailable })
	if took := time.Since(begin); took < 400*time.Millisecond {
		t.Errorf("stalled %v after the first record", took)
	}
}

// An output that gathers does not stall the lane.
func TestReadyGathers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := start(t, "SPILLWAY_OUTPUTS=a,b", "SPILLWAY_FAILOVER_AFTER=100ms", "SPILLWAY_OUTPUT_A_URL=file://"+dir+"/a", "SPILLWAY_OUTPUT_A_ROLL_AGE=1h",
		"SPILLWAY_OUTPUT_B_URL=file://"+dir+"/b")
	fmt.Fprintln(a.dial("tcp"), "<13>one")
	a.until("pending", func() bool { return a.metrics()[`spillway_lane_pending_records{lane="main"}`] == 1 })
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if code, body := a.get("/readyz"); code != http.StatusOK {
			t.Fatalf("not ready: %s", body)
		}
	}
}

// sum adds up the samples of a metric that have all of labels.
func sum(m map[string]float64, name string, labels ...string) (n float64) {
	for k, v := range m {
		if rest, ok := strings.CutPrefix(k, name+"{"); ok && !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(rest, l) }) {
			n += v
		}
	}
	return n
}

// The conservation law, by what a scrape says and by what lies in the directories
// at the end: nothing is missing that no counter has, nothing is there twice.
func TestConservation(t *testing.T) {
	t.Parallel()
	vars, mend := away(t)
	a := start(t, append(vars, "SPILLWAY_BUFFER_MAX_BYTES=4MiB", "SPILLWAY_COMPRESSION=none", "SPILLWAY_BATCH_MAX_RECORDS=500")...)
	text := strings.Repeat("x", 2<<10)
	var senders sync.WaitGroup
	const perSender = 1500
	for i := range 2 { // 6 MB
		c := a.dial("tcp")
		senders.Go(func() {
			for n := range perSender {
				if _, err := fmt.Fprintf(c, "<13>tcp%d-%d %s\n", i, n, text); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	a.until("full", func() bool { return a.metrics()[`spillway_lane_full{lane="main"}`] == 1 })
	u := a.dial("udp")
	for n := range 300 {
		fmt.Fprintf(u, "<13>udp-%d %s", n, text)
	}
	a.until("datagrams are dropped", func() bool {
		return sum(a.metrics(), "spillway_input_dropped_total", `input="udp"`, `reason="buffer_full"`) > 0
	})
	mend()
	senders.Wait()
	a.until("all is delivered", func() bool {
		m := a.metrics()
		admitted := m[`spillway_input_records_admitted_total{input="tcp"}`]
		fmt.Fprintf(u, "<13>late %s", text) // so that the kernel says what it dropped
		return admitted == 2*perSender && sum(m, "spillway_lane_pending_records") == 0
	})
	// Gap records come last, within a second or so, and a scrape sees one counter after the
	// other: it balances when the last datagrams have gone their way.
	var m map[string]float64
	var d deliveries
	taken := func(in string) (got, went float64) {
		dropped := sum(m, "spillway_input_dropped_total", `input="`+in+`"`) - sum(m, "spillway_input_dropped_total", `input="`+in+`"`, `reason="kernel"`)
		return m[`spillway_input_messages_total{input="`+in+`"}`], m[`spillway_input_records_admitted_total{input="`+in+`"}`] + dropped
	}
	a.until("all that was dropped is told, and nothing moves", func() bool {
		before := m
		m, d = a.metrics(), a.delivered()
		for _, name := range []string{"spillway_input_messages_total", "spillway_lane_records_admitted_total", "spillway_lane_records_delivered_total"} {
			if sum(before, name) != sum(m, name) {
				return false
			}
		}
		got, taken := taken("udp")
		return got == taken && sum(m, "spillway_lane_unstored_records") == 0 && sum(m, "spillway_lane_pending_records") == 0 &&
			float64(len(d.records)) == sum(m, "spillway_lane_records_delivered_total") && d.told["udp"] == sum(m, "spillway_input_dropped_total", `input="udp"`)
	})
	if got, taken := taken("tcp"); got != taken {
		t.Errorf("tcp: received %v, admitted or dropped %v", got, taken)
	}
	if n := m[`spillway_input_messages_total{input="tcp"}`]; n != 2*perSender || sum(m, "spillway_input_dropped_total", `input="tcp"`) != 0 {
		t.Errorf("tcp: %v of %v, %v dropped", n, 2*perSender, sum(m, "spillway_input_dropped_total", `input="tcp"`))
	}
	admitted := m[`spillway_lane_records_admitted_total{lane="main"}`]
	delivered, pending, lost := sum(m, "spillway_lane_records_delivered_total"), sum(m, "spillway_lane_pending_records"), sum(m, "spillway_lane_records_lost_total")
	if admitted != delivered+pending+lost {
		t.Errorf("lane: admitted %v, delivered %v, pending %v, lost %v", admitted, delivered, pending, lost)
	}

	for seq, n := range d.records {
		if n != 1 {
			t.Errorf("record %d is there %d times", seq, n)
		}
	}
	if inputs := sum(m, "spillway_input_records_admitted_total"); float64(len(d.records)) != delivered || admitted != inputs+float64(d.gaps) {
		t.Errorf("%d records are there, %d of them gap records; delivered %v, admitted %v, by inputs %v", len(d.records), d.gaps, delivered, admitted, inputs)
	}
	if n := d.told["udp"]; n == 0 {
		t.Error("no gap record tells of datagrams")
	}
}

// What an earlier life left is in the balance too.
func TestConservationRestart(t *testing.T) {
	t.Parallel()
	vars, mend := away(t)
	vars = append(vars, "SPILLWAY_COMPRESSION=none")
	state := t.TempDir()
	a := startIn(t, state, vars...)
	c := a.dial("tcp")
	for n := range 1000 {
		fmt.Fprintf(c, "<13>first-%d\n", n)
	}
	a.until("all is stored", func() bool { return a.metrics()[`spillway_lane_pending_records{lane="main"}`] == 1000 })
	a.stop <- syscall.SIGTERM
	<-a.ended

	a = startIn(t, state, vars...)
	c = a.dial("tcp")
	for n := range 500 {
		fmt.Fprintf(c, "<13>second-%d\n", n)
	}
	a.until("all is stored", func() bool { return a.metrics()[`spillway_lane_pending_records{lane="main"}`] >= 1500 })
	balance := func(m map[string]float64) (before, after float64) {
		before = sum(m, "spillway_lane_records_at_start") + sum(m, "spillway_lane_records_admitted_total")
		return before, sum(m, "spillway_lane_unstored_records") + sum(m, "spillway_lane_pending_records") + sum(m, "spillway_lane_records_delivered_total") + sum(m, "spillway_lane_records_lost_total")
	}
	m := a.metrics()
	if before, after := balance(m); before != after || before != 1500 || sum(m, "spillway_lane_records_at_start") != 1000 {
		t.Errorf("while nothing is delivered: %v at start, %v and %v in all", sum(m, "spillway_lane_records_at_start"), before, after)
	}
	if age := sum(m, "spillway_lane_pending_age_seconds"); age <= 0 || age > 60 {
		t.Errorf("the oldest record is %v s old", age)
	}
	mend()
	a.until("all is delivered", func() bool {
		m = a.metrics() // one counter after the other
		return sum(m, "spillway_lane_pending_records") == 0 && sum(m, "spillway_lane_records_delivered_total") == 1500
	})
	if before, after := balance(m); before != after || sum(m, "spillway_lane_records_delivered_total") != 1500 || len(a.delivered().records) != 1500 {
		t.Errorf("%v and %v; delivered %v, %d there", before, after, sum(m, "spillway_lane_records_delivered_total"), len(a.delivered().records))
	}
	if sum(m, "spillway_lane_pending_bytes") != 0 || sum(m, "spillway_lane_pending_age_seconds") != 0 || sum(m, "spillway_lane_time_to_drain_seconds") != 0 || !math.IsInf(sum(m, "spillway_lane_time_to_full_seconds"), 1) && sum(m, "spillway_lane_time_to_full_seconds") <= 0 {
		t.Errorf("at the end: %v bytes, age %v, time to drain %v, to full %v", sum(m, "spillway_lane_pending_bytes"), sum(m, "spillway_lane_pending_age_seconds"), sum(m, "spillway_lane_time_to_drain_seconds"),
			sum(m, "spillway_lane_time_to_full_seconds"))
	}
}

// deliveries is what lies in the directories of file outputs.
type deliveries struct {
	records map[uint64]int     // how often each is there, by its number
	gaps    int                // gap records among them
	told    map[string]float64 // records that gap records tell of, by input
}

func (r *running) delivered() deliveries {
	r.t.Helper()
	out := deliveries{records: map[uint64]int{}, told: map[string]float64{}}
	for _, o := range r.cfg.Outputs {
		err := filepath.WalkDir(strings.TrimPrefix(o.URL, "file://"), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // that output got nothing, or a temporary file is gone
			}
			if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), ".") {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for line := range bytes.Lines(text) {
				var rec struct {
					Spillway struct {
						Seq uint64
						Gap *struct {
							Input string
							Count float64
						}
					}
				}
				if err := json.Unmarshal(line, &rec); err != nil {
					return err
				}
				out.records[rec.Spillway.Seq]++
				if g := rec.Spillway.Gap; g != nil {
					out.gaps++
					out.told[g.Input] += g.Count
				}
			}
			return nil
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	return out
}

// An input that refuses says so while it does, and the sender notices.
func TestReadyRefuses(t *testing.T) {
	t.Parallel()
	vars, mend := away(t)
	a := start(t, append(vars, "SPILLWAY_BUFFER_MAX_BYTES=4MiB", "SPILLWAY_COMPRESSION=none", "SPILLWAY_INPUTS=tcp", "SPILLWAY_INPUT_TCP_ON_FULL=refuse")...)
	c := a.dial("tcp")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		line := []byte("<13>" + strings.Repeat("x", 8<<10) + "\n")
		for range 4096 {
			if _, err := c.Write(line); err != nil {
				return
			}
		}
		t.Error("32 MiB were taken")
	}()
	a.until("it refuses", func() bool { return a.metrics()[`spillway_input_accepting{input="tcp"}`] == 0 })
	code, body := a.get("/readyz/accept")
	if code != http.StatusServiceUnavailable || !strings.Contains(body, "input tcp: does not accept: lane main has no room beside its reserve\n") {
		t.Errorf("%d %s", code, body)
	}
	m := a.metrics()
	if m[`spillway_lane_gate_shut{lane="main"}`] != 1 || m[`spillway_input_shut_total{input="tcp"}`] != 1 {
		t.Errorf("gate shut %v, %v times", m[`spillway_lane_gate_shut{lane="main"}`], m[`spillway_input_shut_total{input="tcp"}`])
	}
	<-ended
	if c, err := net.Dial("tcp", c.RemoteAddr().String()); err == nil {
		c.Close()
		t.Error("it accepts a connection")
	}
	mend()
	a.until("ready", func() bool { code, _ := a.get("/readyz"); return code == http.StatusOK })
	a.dial("tcp")
}

// While it stops the agent accepts nothing, and says so until its end.
func TestReadyStopping(t *testing.T) {
	t.Parallel()
	vars, _ := away(t)
	a := start(t, append(vars, "SPILLWAY_SHUTDOWN_GRACE=1h")...)
	fmt.Fprintln(a.dial("tcp"), "<13>one")
	a.until("pending", func() bool { return a.metrics()[`spillway_lane_pending_records{lane="main"}`] == 1 })
	a.stop <- syscall.SIGTERM
	a.until("stopping", func() bool { code, _ := a.get("/readyz/accept"); return code == http.StatusServiceUnavailable })
	if _, body := a.get("/readyz"); !strings.HasPrefix(body, "stopping: inputs accept no more\n") {
		t.Errorf("not why: %s", body)
	}
	if code, _ := a.get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d", code)
	}
	a.stop <- syscall.SIGTERM
	<-a.ended
}

// Nobody but the agent's user reads what it writes, whatever the umask.
func TestModes(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "state")
	a := startIn(t, state)
	fmt.Fprintln(a.dial("tcp"), "<13>one")
	a.until("delivered", func() bool { return a.metrics()[`spillway_lane_records_delivered_total{lane="main"}`] == 1 })
	a.stop <- syscall.SIGTERM
	<-a.ended
	files := map[string]bool{}
	err := filepath.WalkDir(state, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %#o, want %#o", path, got, want)
		}
		files[cmp.Or(filepath.Ext(path), d.Name())] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{".seg", ".zst", "cursor"} {
		if !files[kind] {
			t.Errorf("no file of kind %q in %v", kind, files)
		}
	}
}
