package crash

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/buffer"
	"spillway/test/agent"
	"spillway/test/chaos"
	"spillway/test/faults"
)

// balance is the law of conservation as the agent's metrics say it: what there was
// at its start and what it has admitted since is somewhere. It returns both sides.
// What is lost counts over all starts.
func balance(m map[string]float64) (in, out float64) {
	for name, v := range m {
		switch name, _, _ := strings.Cut(name, "{"); name {
		case "spillway_lane_records_at_start", "spillway_lane_records_admitted_total":
			in += v
		case "spillway_lane_unstored_records", "spillway_lane_pending_records", "spillway_lane_records_delivered_total", "spillway_lane_records_lost_total":
			out += v
		}
	}
	return in, out
}

// watched is an agent whose disk fails under load.
type watched struct {
	*agent.Agent
	t        *testing.T
	dir      string // of its output, on another disk
	s        *senders
	lost     float64 // records, in earlier lives
	scrape   int     // how many
	overlaps bool    // objects may overlap, in the end
}

// Start begins a life.
func (w *watched) Start(t *testing.T) {
	t.Helper()
	w.lost = 0
	lane := filepath.Join(w.State, "buffer", "main")
	if _, err := os.Stat(lane); err == nil {
		p, _, err := buffer.ReadPosition(lane)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range p.Lost {
			w.lost += float64(n)
		}
	}
	w.Agent.Start(t)
}

const mainLane = `{lane="main"}`

// watch makes an agent with its state on another disk and its output away, and
// has senders send to it.
func watch(t *testing.T, state string, env ...string) *watched {
	t.Helper()
	dir := t.TempDir()
	w := &watched{t: t, dir: filepath.Join(dir, "outdir")}
	w.Agent = agent.New(t, dir, append([]string{
		"SPILLWAY_INPUTS=tcp",
		"SPILLWAY_STATE_DIR=" + state,
		"SPILLWAY_BATCH_MAX_AGE=20ms", "SPILLWAY_BATCH_MAX_AGE_HELD=20ms",
		"SPILLWAY_BATCH_MAX_BYTES=128KiB",
		"SPILLWAY_BUFFER_MIN_FREE=0", "SPILLWAY_BUFFER_KEEP_ACKED=0",
		"SPILLWAY_COMPRESSION=none",
		"SPILLWAY_OUTPUTS=outdir",
		"SPILLWAY_OUTPUT_OUTDIR_URL=file://" + w.dir,
		fmt.Sprint("SPILLWAY_OUTPUT_OUTDIR_MAX_BYTES=", dirBytes), "SPILLWAY_OUTPUT_OUTDIR_ROLL_AGE=50ms",
		"SPILLWAY_SHUTDOWN_GRACE=1s",
	}, env...)...)
	w.State = state
	w.away()
	return w
}

// away fills the output's directory: it takes nothing more.
func (w *watched) away() {
	w.t.Helper()
	if err := errors.Join(os.Mkdir(w.dir, 0o700), os.WriteFile(w.filler(), nil, 0o600), os.Truncate(w.filler(), dirBytes+1)); err != nil {
		w.t.Fatal(err)
	}
}

// back makes room in it.
func (w *watched) back() {
	w.t.Helper()
	if err := os.Remove(w.filler()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *watched) filler() string { return filepath.Join(w.dir, "filler") }

const dirBytes = 4 << 30 // of the output; more than any test sends

// load has a sender send lines of up to pad bytes over TCP.
func (w *watched) load(seed uint64, pad int) {
	w.s = newSenders(w.t)
	w.s.wg.Go(func() {
		w.s.stream(w.s.ctx, "tcp", fmt.Sprint("127.0.0.1:", w.TCP), newSource(seed, 1, pad, time.Millisecond))
	})
}

// metrics scrapes, and judges the law each time.
func (w *watched) metrics() map[string]float64 {
	w.t.Helper()
	w.MustRun(w.t)
	m, err := w.Metrics()
	if err != nil {
		w.t.Fatal(err)
	}
	w.scrape++
	if in, out := balance(m); in+w.lost != out {
		w.t.Fatalf("scrape %d: %v records came in, %v had been lost before, and %v are anywhere", w.scrape, in, w.lost, out)
	}
	return m
}

func (w *watched) until(what string, ok func(m map[string]float64) bool) {
	w.t.Helper()
	agent.Eventually(w.t, what, time.Minute, func() bool { return ok(w.metrics()) })
}

// during scrapes for a while.
func (w *watched) during(d time.Duration) {
	w.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		w.metrics()
	}
}

// finish ends the senders, waits until everything is delivered, stops the agent and
// judges what has arrived.
func (w *watched) finish(rules chaos.Rules) {
	w.t.Helper()
	conns, err := w.s.end()
	if err != nil {
		w.t.Error(err)
	}
	drain(w.t, w.Agent)
	m := w.metrics()
	if n := m["spillway_lane_disk_failed"+mainLane] + m["spillway_lane_full"+mainLane]; n != 0 {
		w.t.Errorf("all is well again, and the agent says that its disk fails or is full")
	}
	if code := w.ready(); code != http.StatusOK {
		w.t.Errorf("/readyz answers %d", code)
	}
	w.t.Logf("%d scrapes; admitted %v, delivered %v, lost %v", w.scrape, m["spillway_lane_records_admitted_total"+mainLane], m["spillway_lane_records_delivered_total"+mainLane], lost(m))
	if code := w.Stop(w.t); code != 0 {
		w.t.Errorf("the agent exits %d at the end", code)
	}
	var sum kills
	judge(w.t, w.Agent, w.dir, conns, rules, w.overlaps, &sum)
	if loops, err := chaos.Repeats(w.Log, 5); err != nil || len(loops) > 0 {
		w.t.Errorf("the log repeats itself: %v %s", err, strings.Join(loops, "\n"))
	}
}

func lost(m map[string]float64) string {
	var all []string
	for name, v := range m {
		if _, reason, ok := strings.Cut(name, `records_lost_total{lane="main",reason="`); ok && v > 0 {
			all = append(all, fmt.Sprint(strings.TrimSuffix(reason, `"}`), " ", v))
		}
	}
	return strings.Join(all, ", ")
}

func (w *watched) ready() int {
	w.t.Helper()
	r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", w.Admin))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Body.Close()
	return r.StatusCode
}

// The agent on a disk that fills under it while its output is away: it does not
// exit, its counters are exact at every moment, and it goes on by itself when a third
// party frees room, or the output is back.
func TestAgentDiskFills(t *testing.T) {
	for _, policy := range []string{"hold", "drop_oldest"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			disk := faults.NewDisk(t, 64<<20)
			w := watch(t, filepath.Join(disk.Dir, "state"), "SPILLWAY_BUFFER_FULL="+policy, "SPILLWAY_BUFFER_MAX_BYTES=128MiB")
			w.Start(t)
			disk.Fill(t, 24<<20)
			w.load(seed(), 60_000)
			w.until("the disk is full", func(m map[string]float64) bool {
				return disk.Used(t) > 61<<20 && (policy == "hold" && m["spillway_lane_full"+mainLane] == 1 || policy == "drop_oldest" && lost(m) != "")
			})
			w.during(500 * time.Millisecond)
			disk.Free(t) // a third party
			before := w.metrics()["spillway_lane_records_admitted_total"+mainLane]
			w.until("it takes more", func(m map[string]float64) bool {
				return m["spillway_lane_records_admitted_total"+mainLane] > before+100 && m["spillway_lane_full"+mainLane] == 0
			})
			w.until("the disk is full again", func(m map[string]float64) bool {
				return disk.Used(t) > 61<<20 && (policy == "drop_oldest" || m["spillway_lane_full"+mainLane] == 1)
			})
			w.Kill() // and started on a full disk
			w.Start(t)
			w.during(500 * time.Millisecond)
			w.back()
			w.until("what waits is delivered", func(m map[string]float64) bool {
				return m["spillway_lane_records_delivered_total"+mainLane] > 500 && disk.Used(t) < 60<<20
			})
			w.finish(chaos.Rules{Stops: true, Drops: policy == "drop_oldest"})
		})
	}
}
