package chaos

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/test/agent"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// A schedule waits more than it works.
	if err := flag.Set("test.parallel", strconv.Itoa(setting("SPILLWAY_CHAOS_PARALLEL", 4))); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// setting is a whole number in the environment of the tests.
func setting(name string, otherwise int) int {
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		panic(fmt.Sprintf("%s=%q: want a whole number above 0", name, v))
	}
	return n
}

// Schedules from SPILLWAY_CHAOS_SEED on, SPILLWAY_CHAOS_N of them.
func TestSchedules(t *testing.T) {
	seed, n := setting("SPILLWAY_CHAOS_SEED", 1), setting("SPILLWAY_CHAOS_N", 5)
	t.Logf("seeds %d to %d", seed, seed+n-1)
	var sum totals
	t.Cleanup(func() { t.Log(sum.String()) })
	for i := range n {
		s := draw(uint64(seed + i))
		t.Run(fmt.Sprint("seed=", s.seed), func(t *testing.T) {
			t.Parallel()
			run(t, s, &sum)
		})
	}
}

// A schedule comes from its seed alone.
func TestDraw(t *testing.T) {
	for seed := range uint64(1000) {
		a, b := draw(seed), draw(seed)
		if a.String() != b.String() {
			t.Fatalf("seed %d gives\n%s\nand\n%s", seed, a, b)
		}
		if a.length > 10*time.Second || len(a.faults) == 0 {
			t.Errorf("seed %d: %s", seed, a)
		}
		ends := map[string]time.Duration{}
		for _, f := range a.faults {
			if f.begin < ends[f.thing] || f.end < f.begin || f.end > a.length {
				t.Errorf("seed %d: %v", seed, f)
			}
			ends[f.thing] = f.end
		}
	}
}

// totals are what happened in schedules that were judged.
type totals struct {
	mu                                              sync.Mutex
	schedules, lines, durable, records, twice, gaps int
	faults                                          map[string]int // by thing and what
	told                                            [4]int         // by the log
}

var told = [4]string{"failover", "failback", `"all outputs fail`, `"the buffer is full`}

func (a *totals) add(b *totals) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.schedules += b.schedules
	a.lines += b.lines
	a.durable += b.durable
	a.records += b.records
	a.twice += b.twice
	a.gaps += b.gaps
	for i, n := range b.told {
		a.told[i] += n
	}
	if a.faults == nil {
		a.faults = map[string]int{}
	}
	for f, n := range b.faults {
		a.faults[f] += n
	}
}

func (a *totals) String() string {
	var faults []string
	for _, f := range slices.Sorted(maps.Keys(a.faults)) {
		faults = append(faults, fmt.Sprint(f, " ", a.faults[f]))
	}
	return fmt.Sprintf("%d judged: %d lines sent, %d records durable, %d delivered, %d of them more than once, %d gaps told; %d failovers, %d failbacks, all outputs away %d times, a buffer full %d times; faults: %s",
		a.schedules, a.lines, a.durable, a.records, a.twice, a.gaps, a.told[0], a.told[1], a.told[2], a.told[3], strings.Join(faults, ", "))
}

// step is the begin or the end of a fault.
type step struct {
	at time.Duration
	do func(fault)
	f  fault
}

func run(t *testing.T, s *schedule, sum *totals) {
	begun := time.Now()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the schedule was:\n%s", s)
		}
	})
	w := build(t, s)
	a := w.agent
	a.Start(t)
	senders := StartSenders(s.loads...)
	t.Cleanup(func() { _ = senders.Stop() })

	var steps []step
	for _, f := range s.faults {
		steps = append(steps, step{f.begin, w.begin, f}, step{f.end, w.end, f})
	}
	slices.SortStableFunc(steps, func(a, b step) int { return cmp.Compare(a.at, b.at) })
	start := time.Now()
	for _, step := range steps {
		time.Sleep(time.Until(start.Add(step.at)))
		w.agent.MustRun(w.t)
		step.do(step.f)
	}
	time.Sleep(time.Until(start.Add(s.length)))
	w.agent.MustRun(w.t)
	t.Logf("faults over after %v", time.Since(begun).Round(time.Millisecond))

	// All is well now.
	w.back()
	if err := senders.Stop(); err != nil {
		t.Errorf("%v\n%s", err, a.LogTail(40))
	}
	w.drain()
	w.bounded()
	rules := s.rules()
	if text, err := os.ReadFile(a.Log); err != nil {
		t.Fatal(err)
	} else if bytes.Contains(text, []byte("the buffer is full")) || bytes.Contains(text, []byte("can't be stored")) {
		rules.Loss = 0 // back-pressure: what waits has any age
	}
	if senders.Broken() > 0 && !rules.Stops {
		t.Errorf("%d connections of senders broke although the agent ran all the time", senders.Broken())
	}
	rules.Kernel = kernelDrops(t, a.UDP)
	if code := a.Stop(t); code != 0 {
		t.Errorf("the agent exits %d at the end", code)
	}
	t.Logf("drained after %v", time.Since(begun).Round(time.Millisecond))
	w.judge(senders.Conns(), rules, sum)
	t.Logf("judged after %v", time.Since(begun).Round(time.Millisecond))
}

// rules are what may be missing after the faults of s.
func (s *schedule) rules() Rules {
	// The longest that a batch is open, and the machine's pauses.
	r := Rules{Drops: s.drops, Unfit: s.unfit, Loss: time.Second + 2*time.Second}
	for _, f := range s.faults {
		if f.thing == "agent" && f.what == "paused" {
			r.Loss += f.end - f.begin
		} else if f.thing == "agent" {
			r.Stops = true
		}
	}
	return r
}

// back waits until every lane uses the first output again, where there is failback.
func (w *world) back() {
	w.t.Helper()
	if !w.s.failback || len(w.s.outputs) == 1 {
		return
	}
	lanes := []string{"main"}
	if w.s.audit {
		lanes = append(lanes, "audit")
	}
	agent.Eventually(w.t, "every lane uses "+w.s.outputs[0]+" again", settle, func() bool {
		w.agent.MustRun(w.t)
		m, err := w.agent.Metrics()
		if err != nil {
			return false
		}
		for _, lane := range lanes {
			if m[fmt.Sprintf(`spillway_output_active{lane=%q,output=%q}`, lane, w.s.outputs[0])] != 1 {
				return false
			}
		}
		return true
	})
}

// drain waits until nothing is pending and nothing comes any more.
func (w *world) drain() {
	w.t.Helper()
	const quiet = 1200 * time.Millisecond // longer than any batch stays open
	var admitted float64
	since := time.Now()
	agent.Eventually(w.t, "everything is delivered", settle, func() bool {
		w.agent.MustRun(w.t)
		m, err := w.agent.Metrics()
		if err != nil {
			return false
		}
		pending, now := sum(m, "spillway_lane_pending_records{"), sum(m, "spillway_lane_records_admitted_total{")
		if pending > 0 || now != admitted {
			admitted, since = now, time.Now()
		}
		return time.Since(since) > quiet
	})
}

func sum(m map[string]float64, prefix string) (n float64) {
	for name, v := range m {
		if strings.HasPrefix(name, prefix) {
			n += v
		}
	}
	return n
}

// bounded checks that the faults left nothing behind in the agent's process. The
// bounds are for an agent at rest: a few goroutines and descriptors for each input,
// lane and connection that an output keeps.
func (w *world) bounded() {
	w.t.Helper()
	const goroutines, descriptors, resident = 40, 32, 256 << 20
	var stacks string
	n := 0
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var err error
		if n, stacks, err = w.agent.Goroutines(); err != nil {
			w.t.Fatal(err)
		}
		if n <= goroutines || time.Now().After(end) {
			break
		}
	}
	if n > goroutines {
		w.t.Errorf("%d goroutines at rest, want at most %d:\n%s", n, goroutines, stacks)
	}
	open, err := w.agent.Descriptors()
	if err != nil {
		w.t.Fatal(err)
	}
	if len(open) > descriptors {
		w.t.Errorf("%d descriptors at rest, want at most %d:\n%s", len(open), descriptors, strings.Join(open, "\n"))
	}
	memory, err := w.agent.Resident()
	if err != nil {
		w.t.Fatal(err)
	}
	if memory > resident {
		w.t.Errorf("%d MiB of memory at rest, want at most %d", memory>>20, resident>>20)
	}
	w.t.Logf("at rest: %d goroutines, %d descriptors, %d MiB", n, len(open), memory>>20)
}

// judge compares what has arrived with what was sent and promised. The agent has
// ended.
func (w *world) judge(conns []Conn, rules Rules, all *totals) {
	w.t.Helper()
	a := w.agent
	promises, err := Promises(a.Log)
	if err != nil {
		w.t.Fatal(err)
	}
	d := NewDelivered()
	for i, source := range w.sources {
		cmd := exec.Command(a.Bin, "cat", source)
		cmd.Env = a.Env
		if err := d.Cat(cmd, i); err != nil {
			w.t.Error(err)
		}
	}
	if err := d.Judge(promises, conns, rules); err != nil {
		w.t.Errorf("what has arrived is not what should have:\n%v", err)
	}
	text, err := os.ReadFile(a.Log)
	if err != nil {
		w.t.Fatal(err)
	}
	now := &totals{schedules: 1, records: len(d.Records), twice: d.Twice, gaps: len(d.Gaps), faults: map[string]int{}}
	for _, c := range conns {
		now.lines += c.Sent
	}
	for _, p := range promises {
		now.durable += int(p.Last + 1 - p.First)
	}
	for _, f := range w.s.faults {
		now.faults[f.thing+" "+f.what]++
	}
	for i, msg := range told {
		now.told[i] = bytes.Count(text, []byte("msg="+msg))
	}
	w.t.Log(now.String())
	all.add(now)
	if err := a.Verify(w.t, w.sources...); err != nil {
		w.t.Error(err)
	}
	for _, lane := range []string{"main", "audit"}[:1+btoi(w.s.audit)] {
		if out, errs, code := a.Command(w.t, "buffer", "verify", a.State+"/buffer/"+lane); code != 0 {
			w.t.Errorf("spillway buffer verify of lane %s exits %d:\n%s%s", lane, code, out, errs)
		}
	}
	loops, err := Repeats(a.Log, 5)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(loops) > 0 {
		w.t.Errorf("the log repeats itself:\n%s", strings.Join(loops, "\n"))
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
