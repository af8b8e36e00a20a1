// Package admin answers people and monitoring about a running agent:
//
//	/healthz        200 while the process answers
//	/readyz         200 while records are accepted and get on, else 503 and why, one reason a
//	                line; then lanes that keep records in memory only, and the state of the outputs, for people: one that is down is no
//	                reason by itself
//	/readyz/accept  the same for accepting alone: a load balancer that has only agents with the
//	                same far side must not stop sending because that one is away
//	/metrics        Prometheus text; metrics.go lists every name
//	/debug/pprof/   profiles of the Go runtime, for go tool pprof
//
// It starts nothing and owns nothing: what it shows it asks for when asked.
package admin

import (
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Sources is where the answers come from. The functions are called once a
// request, by several goroutines at once, and must not wait for anybody.
type Sources struct {
	Version string
	Inputs  func() []InputStats
	Lanes   func() []LaneStats
	Outputs func() []OutputStats
	// Switches are the ways that lanes took from one output to another.
	Switches func() []Switch

	// Refuses returns why records are not accepted, one reason for each input or lane;
	// none: all are. Stalls returns which lanes have records and deliver none.
	Refuses, Stalls func() []string

	// Degraded returns which lanes accept records and do not make them durable, and why.
	Degraded func() []string
}

// InputStats are the counters of one input since the start. Fields grow only,
// except those called gauges.
type InputStats struct {
	Name      string // of the input
	Accepts   bool   // its sockets are bound
	Datagrams bool   // it has no connections
	TLS       bool

	Messages      int64
	MessageBytes  int64             // without framing
	Admitted      int64             // records that their lane took
	ParseFailures int64             // messages whose header could not be read: kept, with error.message
	Truncated     int64             // messages cut at MAX_MESSAGE_SIZE
	Dropped       map[string]uint64 // records that got no number, by reason; all reasons are there

	Filtered map[string]uint64 // messages that became no record, by reason; all reasons are there

	ReadBytes      int64 // from sockets, with framing
	EmptyFrames    int64
	Oversize       int64 // messages over MAX_MESSAGE_SIZE, whatever became of them
	DiscardedBytes int64 // behind MAX_MESSAGE_SIZE
	FramingErrors  int64
	CutFrames      int64 // counted frames that the sender did not finish
	MemoryCut      int64 // unfinished messages treated as over-size for lack of memory
	Denied         int64 // connections and datagrams of senders that are not in ALLOW or PEER_UID

	Connections        int64             // accepted
	OpenConnections    int64             // gauge
	RefusedConnections map[string]uint64 // by reason; all reasons are there
	IdleConnections    int64             // closed after IDLE_TIMEOUT
	StaleConnections   int64             // closed after MAX_MESSAGE_AGE
	Mismatched         map[string]uint64 // connections framed otherwise than FRAMING says, by what they look like
	Shut               int64             // times that it stopped accepting for lack of room

	Vault    *VaultStats       // nil: not PARSE=vault
	Requests map[string]uint64 // by how they ended; nil: it takes none, else all endings are there

	HandshakeFailures  map[string]uint64 // by reason; all reasons are there
	CertificateExpires time.Time         // gauge
	Reloads            map[string]uint64 // of TLS files, by result, "ok" or "failed"

	ReceiveBuffer int64 // gauge: bytes that the kernel granted; 0: not asked
}

// VaultStats are the counters of an input of audit entries since the start.
type VaultStats struct {
	Entries       int64             // messages that are entries
	Probes        int64             // of them, those that enabling an audit device wrote
	Torn          int64             // entries that were cut off with their connection
	Resent        int64             // of these, those that came again as a whole
	Duplicates    int64             // entries that came before, byte for byte
	RawSecrets    int64             // entries with a token that is not hashed
	PrefixMissing int64             // messages without PREFIX
	Missing       map[string]uint64 // halves of a pair that did not come, by type, "request" or "response"
	Unwatched     int64             // requests that were not waited for: there were too many
	Alerts        int64             // records that tell what is missing
}

// Never is a duration that does not end.
const Never = time.Duration(math.MaxInt64)

// LaneStats are the counters and the state of one lane.
type LaneStats struct {
	Name string // of the lane

	// Where the records are: AtStart + Admitted = Unstored + Pending + Delivered + what
	// of Lost was lost since the start.
	AtStart   uint64            // stored and not delivered when the agent started
	Admitted  uint64            // given a number since then
	Unstored  uint64            // of these, not stored yet
	Pending   uint64            // stored and not delivered
	Delivered uint64            // acknowledged by an output
	Lost      map[string]uint64 // by reason, over all lives of the buffer; all reasons are there

	Resent     uint64 // records sent again since the start, because a stream had lost them
	Batches    uint64 // stored since the start
	BatchBytes uint64 // of their payloads

	PendingAge    time.Duration // since the oldest of them was received; 0: none
	TimeToFull    time.Duration // as records come and go now; Never: it does not fill
	TimeToDrain   time.Duration // until nothing is pending; Never: it does not get less
	LiveBytes     int64         // of segments with pending records
	DiskBytes     int64         // of all segments, delivered ones that are kept included
	MaxBytes      int64         // that they may be
	FreeBytes     int64         // of the file system
	Full          bool          // no room: inputs wait or drop
	Shut          bool          // inputs that refuse do so now
	DiskFailed    bool          // the last write did not succeed
	Degraded      bool          // the disk takes no writes, and records are kept in memory
	BufferMemory  int64         // bytes of them, as they would be on the disk
	Stalled       bool          // records wait and no output takes any
	MessageMemory int64         // bytes of messages that are not finished yet
	TornBytes     uint64        // passed over since the start: writes that were cut off
	CorruptBytes  uint64        // passed over since the start: bytes that were durable once
	Quarantined   uint64        // segments moved to quarantine/ since the start
	Syncs         uint64        // fsyncs of segments since the start
}

// OutputStats is the state of one output.
type OutputStats struct {
	Name string // of the output

	Lanes []OutputLane // that have asked for an output so far

	Delivered    uint64 // messages or objects that the far side acknowledged as new
	AlreadyThere uint64 // that it had already: repeats whose first answer was lost
	Bytes        uint64 // of those delivered

	InFlightBatches int   // handed over, no answer yet
	InFlightBytes   int64 // of their payloads
	Retries         uint64
	Failures        map[string]uint64    // calls that failed, by class; all classes are there
	Failed          map[string]time.Time // when the last one of a class failed; only classes that have
	Latency         Histogram            // of runs that were accepted whole
	Probes          map[string]uint64    // by result, "ok" or "failed"
}

// Histogram is what Prometheus makes one of.
type Histogram struct {
	Count   uint64
	Sum     time.Duration
	Buckets map[float64]uint64 // observations up to each bound in seconds, smaller bounds included
}

// OutputLane is the state of an output for one lane.
type OutputLane struct {
	Lane     string
	State    string // one of States
	Active   bool   // the lane uses it now
	Untried  bool   // up by presumption: nothing of the lane was sent yet
	Failures int    // in a row
	Error    string // of the last failure; "" when up
}

// States are those of an output: of outputs.Health, in its order.
var States = []string{"up", "failing", "down", "trial"}

// Switch is how often a lane went from one output to another.
type Switch struct {
	Lane, From, To string
	Count          uint64
}

// Server returns a server of Handler that bounds what a peer can hold on to: 16 KiB
// of headers, ten seconds for a request to arrive, two minutes of an idle connection.
// Answers have no deadline, as a profile takes as long as it was asked to.
func Server(s Sources, log *slog.Logger) *http.Server {
	return &http.Server{Handler: Handler(s), ReadTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
}

// Handler returns the handler of all paths.
func Handler(s Sources) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collector{s})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "spillway %s\n\n/healthz\n/readyz\n/readyz/accept\n/metrics\n/debug/pprof/\n", s.Version)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { s.answer(w, slices.Concat(s.Refuses(), s.Stalls())) })
	mux.HandleFunc("GET /readyz/accept", func(w http.ResponseWriter, _ *http.Request) { s.answer(w, s.Refuses()) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /debug/pprof/{$}", profiles)
	mux.HandleFunc("GET /debug/pprof/{name}", profile)
	return mux
}

// answer says "ready" or why not, then how outputs are.
func (s Sources) answer(w http.ResponseWriter, why []string) {
	var text strings.Builder
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if len(why) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	} else {
		text.WriteString("ready\n")
	}
	for _, reason := range append(why, s.Degraded()...) {
		text.WriteString(line(reason))
	}
	for _, o := range s.Outputs() {
		for _, l := range o.Lanes {
			state := l.State
			if l.Untried {
				state += " (nothing was sent yet)"
			}
			if l.Active {
				state += ", in use"
			}
			if l.Error != "" {
				state += fmt.Sprintf(", failed %d times in a row, last: %s", l.Failures, l.Error)
			}
			text.WriteString(line(fmt.Sprintf("output %s for lane %s: %s", o.Name, l.Lane, state)))
		}
	}
	io.WriteString(w, text.String())
}

// line is s as one line: an error may hold what a far side said.
func line(s string) string { return strings.ReplaceAll(strings.TrimSpace(s), "\n", " ") + "\n" }
