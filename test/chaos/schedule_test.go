package chaos

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// schedule is everything that is decided before a run. It is drawn from its seed
// alone.
type schedule struct {
	seed     uint64
	length   time.Duration
	outputs  []string // in failover order
	env      []string // of the agent, but for addresses
	loads    []Load   // but for addresses
	drops    bool     // SPILLWAY_BUFFER_FULL=drop_oldest
	small    bool     // state and directory are on a small file system of their own
	audit    bool     // there is a second lane, of input tcp2
	unfit    bool     // there are records that no output takes
	failback bool     // SPILLWAY_FAILBACK
	faults   []fault  // by begin
}

// fault is something that is wrong with one thing for a while.
type fault struct {
	thing, what string
	begin, end  time.Duration
	n           int // of it: HTTP status, bytes a second
}

func (f fault) String() string {
	text := fmt.Sprintf("%5.2fs to %5.2fs  %-8s %s", f.begin.Seconds(), f.end.Seconds(), f.thing, f.what)
	if f.n > 0 {
		text += fmt.Sprint(" ", f.n)
	}
	return text
}

// String is for people: all that was drawn.
func (s *schedule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d, %v\n", s.seed, s.length.Round(time.Millisecond))
	for _, e := range s.env {
		fmt.Fprintf(&b, "  %s\n", e)
	}
	if s.small {
		fmt.Fprintf(&b, "  the state on a file system of %d MiB\n", smallDisk>>20)
	}
	for _, l := range s.loads {
		fmt.Fprintf(&b, "  %s: %d lines/s with at most %d random characters\n", l.Input, l.Rate, l.Pad)
	}
	for _, f := range s.faults {
		fmt.Fprintf(&b, "  %v\n", f)
	}
	return b.String()
}

const (
	dirBytes  = 256 << 20 // that the directory output holds: more than a schedule sends
	smallDisk = 48 << 20  // less than two buffers may take
)

// What can be wrong, with how often it is drawn in proportion. Each ends with its
// fault's end. "reset" and "restart" are over at once.
var wrongs = map[string][]string{
	"hub": {
		"killed", "killed", "stopped", "paused", "paused", "refuses", "reset", "silent", "silent", "silent", "deaf", "slow",
		"full",  // the stream takes nothing more
		"gone",  // no stream has the subject
		"other", // another stream has the subject
	},
	"archive": {
		"killed", "killed", "stopped", "paused", "refuses", "reset", "silent", "silent", "deaf", "slow",
		"answers", "answers", "answers", // an error to each PUT, which is not stored
		"lost", "lost", // objects are stored, their answers get lost
		"stored", // objects are stored, and answered by an error
		"flips",  // a bit of each object changes on its way
	},
	"outdir": {"full", "full", "absent"},
	"agent":  {"killed", "killed", "killed", "stopped", "paused"},
	"disk":   {"full"},
}

// statuses are what S3 answers with; codes has their codes.
var statuses = []int{403, 404, 409, 429, 500, 500, 503, 503, 507}

// draw makes the schedule of a seed.
func draw(seed uint64) *schedule {
	r := rand.New(rand.NewPCG(seed, 0x5b111a7))
	chance := func(percent int) bool { return r.IntN(100) < percent }
	// between is rather small than large: its logarithm is even.
	between := func(low, high time.Duration) time.Duration {
		f := float64(high) / float64(low)
		return (time.Duration(float64(low) * math.Pow(f, r.Float64()))).Round(time.Millisecond)
	}
	number := func(low, high int) int {
		return int(between(time.Duration(low)*time.Second, time.Duration(high)*time.Second) / time.Second)
	}

	s := &schedule{seed: seed, length: between(4*time.Second, 9500*time.Millisecond)}
	s.outputs = []string{"hub", "archive", "outdir"}
	r.Shuffle(3, func(i, j int) { s.outputs[i], s.outputs[j] = s.outputs[j], s.outputs[i] })
	if n := r.IntN(10); n < 3 {
		s.outputs = s.outputs[:1+min(n, 1)]
	}
	s.audit, s.drops, s.small, s.failback = chance(25), chance(25), chance(20), !chance(20)

	set := func(name string, v any) { s.env = append(s.env, fmt.Sprintf("SPILLWAY_%s=%v", name, v)) }
	set("OUTPUTS", strings.Join(s.outputs, ","))
	inputs := []string{"tcp"}
	if s.audit {
		inputs = append(inputs, "tcp2")
	}
	if chance(20) {
		inputs = append(inputs, "udp")
	}
	set("INPUTS", strings.Join(inputs, ","))
	age := between(50*time.Millisecond, 500*time.Millisecond)
	set("BATCH_MAX_AGE", age)
	set("BATCH_MAX_AGE_HELD", age+between(50*time.Millisecond, 500*time.Millisecond))
	set("BATCH_MAX_RECORDS", number(200, 5000))
	set("BATCH_MAX_BYTES", number(32<<10, 512<<10))
	flood := chance(25) // the buffer gets full if nobody takes what is in it
	most := 64 << 20
	if flood {
		most = 5 << 20
	}
	set("BUFFER_MAX_BYTES", number(4<<20, most))
	set("BUFFER_KEEP_ACKED", []any{0, time.Second, 10 * time.Minute}[r.IntN(3)])
	set("BUFFER_SYNC", []string{"group", "group", "group", "group", "interval", "never"}[r.IntN(6)])
	if s.drops {
		set("BUFFER_FULL", "drop_oldest")
	}
	set("COMPRESSION", []string{"zstd", "zstd", "gzip", "none"}[r.IntN(4)])
	set("SHUTDOWN_GRACE", between(100*time.Millisecond, 2*time.Second))
	if s.small {
		set("BUFFER_MIN_FREE", []int{0, 1 << 20}[r.IntN(2)])
	}
	if len(s.outputs) > 1 {
		set("FAILOVER_AFTER", between(200*time.Millisecond, time.Second))
		set("FAILBACK", s.failback)
		if s.failback {
			set("FAILBACK_INTERVAL", between(100*time.Millisecond, time.Second))
			set("FAILBACK_PROBES", 1+r.IntN(3))
			set("FAILBACK_DWELL", between(100*time.Millisecond, time.Second))
		}
	}
	for _, name := range s.outputs {
		under := "OUTPUT_" + strings.ToUpper(name) + "_"
		switch name {
		case "hub":
			set(under+"ACK_TIMEOUT", between(200*time.Millisecond, 2*time.Second))
			set(under+"MAX_INFLIGHT", number(1, 64))
			set(under+"RECONNECT_MIN", between(50*time.Millisecond, 250*time.Millisecond))
			set(under+"RECONNECT_MAX", between(250*time.Millisecond, time.Second))
			set(under+"PING_INTERVAL", between(time.Second, 2*time.Second))
			set(under+"CONNECT_TIMEOUT", between(500*time.Millisecond, time.Second))
		case "archive":
			set(under+"TIMEOUT", between(500*time.Millisecond, 2*time.Second))
			fallthrough
		case "outdir":
			set(under+"ROLL_AGE", between(50*time.Millisecond, time.Second))
			set(under+"ROLL_BYTES", number(64<<10, 8<<20))
			set(under+"ROLL_BATCHES", number(1, 200))
		}
	}
	for i := range 2 + r.IntN(3) {
		l := Load{Input: "tcp", Rate: number(50, 3000), Pad: []int{0, 50, 1000}[r.IntN(3)], Seed: r.Uint64()}
		if flood {
			l.Rate, l.Pad = number(500, 2000), 2000
		}
		s.loads = append(s.loads, l)
		if s.audit && i%2 == 1 {
			s.loads[i].Input = "tcp2"
		}
	}
	if chance(20) { // records too large for JetStream, some of them
		s.loads = append(s.loads, Load{Input: "tcp", Rate: 2, Pad: 2 << 20, Seed: r.Uint64()})
		s.unfit = slices.Equal(s.outputs, []string{"hub"})
	}
	if slices.Contains(inputs, "udp") {
		s.loads = append(s.loads, Load{Input: "udp", Rate: number(50, 1000), Pad: 50, Seed: r.Uint64()})
	}

	// In a storm all outputs are away at once, for a while.
	storm := chance(30)
	from, to := between(300*time.Millisecond, 2*time.Second), between(3*time.Second, 6*time.Second)
	for _, thing := range append(slices.Clone(s.outputs), "agent", "disk") {
		if thing == "disk" && !s.small {
			continue
		}
		at, n := between(100*time.Millisecond, 3*time.Second), r.IntN(4)
		stormy := storm && thing != "agent" && thing != "disk"
		if stormy {
			at = from + between(time.Millisecond, 300*time.Millisecond)
		}
		if thing == s.outputs[0] || stormy {
			n++
		}
		for i := range n {
			f := fault{thing: thing, what: wrongs[thing][r.IntN(len(wrongs[thing]))], begin: at}
			f.end = at + between(100*time.Millisecond, 5*time.Second)
			switch {
			case f.what == "reset" || thing == "agent" && f.what == "stopped":
				f.end = f.begin
			case thing == "agent":
				f.end = at + between(time.Millisecond, 2*time.Second)
			case stormy && i == 0:
				f.end = to - between(time.Millisecond, 300*time.Millisecond)
			}
			switch f.what {
			case "answers", "stored":
				f.n = statuses[r.IntN(len(statuses))]
			case "slow":
				f.n = number(2<<10, 200<<10)
			}
			f.end = min(f.end, s.length)
			if f.begin >= s.length-50*time.Millisecond {
				break
			}
			s.faults = append(s.faults, f)
			at = f.end + between(50*time.Millisecond, 2*time.Second)
		}
	}
	slices.SortStableFunc(s.faults, func(a, b fault) int { return cmp.Compare(a.begin, b.begin) })
	return s
}
