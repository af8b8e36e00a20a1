package admin

import (
	"context"
	"flag"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

var update = flag.Bool("update", false, "rewrite golden files and docs/operations.md")

// sources is an agent whose stream is away: the bucket takes what comes.
func sources() Sources {
	return Sources{
		Version: "v1.2.3",
		Inputs: func() []InputStats {
			return []InputStats{
				{Name: "tls", Accepts: true, TLS: true, Messages: 184220, Admitted: 184218, MessageBytes: 41449500, ReadBytes: 41633720, ParseFailures: 12, Truncated: 3, Oversize: 4, DiscardedBytes: 73400320,
					Dropped: map[string]uint64{"buffer_full": 0, "stopped": 2, "kernel": 0}, Filtered: map[string]uint64{"severity": 0, "text": 0, "duplicate": 0, "raw_secret": 0}, EmptyFrames: 9, FramingErrors: 1, CutFrames: 5, MemoryCut: 6, Denied: 7,
					Connections: 412, OpenConnections: 37, RefusedConnections: map[string]uint64{"max_connections": 14, "silent": 3, "tls_on_plain": 0, "proxy_header": 21}, IdleConnections: 88, StaleConnections: 19, Shut: 1,
					Mismatched:         map[string]uint64{"octet_counted": 20, "jsonx": 0},
					HandshakeFailures:  map[string]uint64{"plain": 15, "timeout": 16, "certificate": 17, "other": 18},
					CertificateExpires: time.Unix(1826809200, 0), Reloads: map[string]uint64{"ok": 3, "failed": 1}},
				{Name: "udp", Accepts: true, Datagrams: true, Messages: 90341, Admitted: 90239, MessageBytes: 16707350, ReadBytes: 16797660, ParseFailures: 1,
					Dropped: map[string]uint64{"buffer_full": 71, "stopped": 0, "kernel": 640}, Filtered: map[string]uint64{"severity": 29, "text": 2, "duplicate": 0, "raw_secret": 0}, EmptyFrames: 10, Denied: 8, ReceiveBuffer: 8388608},
				{Name: "vault", Accepts: true, Messages: 5204, Admitted: 5202, MessageBytes: 11709000, ReadBytes: 11714204, ParseFailures: 1,
					Dropped: map[string]uint64{"buffer_full": 0, "stopped": 0, "kernel": 0}, Filtered: map[string]uint64{"severity": 0, "text": 0, "duplicate": 2, "raw_secret": 3},
					Connections: 4, OpenConnections: 1, RefusedConnections: map[string]uint64{"max_connections": 0, "silent": 0, "tls_on_plain": 0, "proxy_header": 0}, Mismatched: map[string]uint64{"octet_counted": 0, "jsonx": 0},
					Vault: &VaultStats{Entries: 5203, Probes: 1, Missing: map[string]uint64{"request": 1, "response": 2}, Alerts: 3, Unwatched: 11, Torn: 1, Resent: 1, Duplicates: 2, RawSecrets: 3, PrefixMissing: 12}},
				{Name: "hook", Accepts: true, Messages: 22, Admitted: 22, MessageBytes: 49500, ReadBytes: 49500,
					Dropped: map[string]uint64{"buffer_full": 0, "stopped": 0, "kernel": 0}, Filtered: map[string]uint64{"severity": 0, "text": 0, "duplicate": 0, "raw_secret": 0},
					Connections: 3, OpenConnections: 2, RefusedConnections: map[string]uint64{"max_connections": 0, "silent": 0, "tls_on_plain": 0, "proxy_header": 0}, Mismatched: map[string]uint64{"octet_counted": 0, "jsonx": 0},
					Requests: map[string]uint64{"stored": 22, "full": 23, "late": 24, "stopped": 25, "too_large": 26, "unauthorized": 27, "slow": 28, "invalid": 29, "gone": 30, "panic": 0}},
			}
		},
		Lanes: func() []LaneStats {
			return []LaneStats{{Name: "main", AtStart: 1000, Admitted: 274460, Unstored: 20, Pending: 20318, Delivered: 250112, Resent: 900,
				Lost: map[string]uint64{"full_oldest": 5000, "damaged": 10, "expired": 0, "rejected": 0, "stopped": 0}, Batches: 3120, BatchBytes: 9606100,
				PendingAge: 42500 * time.Millisecond, TimeToFull: 38 * time.Hour, TimeToDrain: Never, LiveBytes: 1048576, DiskBytes: 9961472,
				MaxBytes: 1 << 30, FreeBytes: 12 << 30, MessageMemory: 20480, TornBytes: 511, CorruptBytes: 4096, Quarantined: 1, Syncs: 2840}}
		},
		Outputs: func() []OutputStats {
			none := map[string]uint64{"retry": 0, "failover": 0, "unfit": 0, "misconfigured": 0}
			return []OutputStats{
				{Name: "hub", Lanes: []OutputLane{{Lane: "main", State: "down", Failures: 7, Error: "hub: publish to logs.plant.gw1.main: no answer within 5s"}},
					Delivered: 2711, AlreadyThere: 6, Bytes: 8343020, Retries: 8, Failures: map[string]uint64{"retry": 6, "failover": 0, "unfit": 1, "misconfigured": 0},
					Failed:  map[string]time.Time{"retry": time.UnixMilli(1795273322250), "unfit": time.UnixMilli(1795270001000)},
					Latency: Histogram{Count: 540, Sum: 9180 * time.Millisecond, Buckets: map[float64]uint64{0.005: 11, 0.025: 523, 1: 540}},
					Probes:  map[string]uint64{"ok": 1, "failed": 4}},
				{Name: "archive", Lanes: []OutputLane{{Lane: "main", State: "up", Active: true}}, Delivered: 8, Bytes: 1231000, InFlightBatches: 31, InFlightBytes: 99400, Retries: 1,
					Failures: none, Latency: Histogram{Count: 8, Sum: 1600 * time.Millisecond, Buckets: map[float64]uint64{0.005: 0, 0.025: 0, 1: 8}},
					Probes: map[string]uint64{"ok": 0, "failed": 0}},
			}
		},
		Switches: func() []Switch { return []Switch{{Lane: "main", From: "hub", To: "archive", Count: 1}} },
		Refuses:  func() []string { return nil },
		Stalls:   func() []string { return nil },
		Degraded: func() []string { return nil },
	}
}

func get(t *testing.T, s Sources, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	Handler(s).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

// scrape is what /metrics says, our part of it.
func scrape(t *testing.T, s Sources) string {
	t.Helper()
	code, body := get(t, s, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("status %d: %s", code, body)
	}
	for _, other := range []string{"go_goroutines", "process_open_fds"} {
		if !strings.Contains(body, "\n"+other+" ") {
			t.Errorf("no %s", other)
		}
	}
	var ours strings.Builder
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "spillway_") || strings.HasPrefix(line, "# HELP spillway_") || strings.HasPrefix(line, "# TYPE spillway_") {
			ours.WriteString(line)
		}
	}
	return ours.String()
}

const golden = "testdata/metrics.golden"

// TestMetrics holds every name, type, help and value that is ours.
func TestMetrics(t *testing.T) {
	ours := scrape(t, sources())
	if *update {
		if err := os.WriteFile(golden, []byte(ours), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if ours != string(want) {
		t.Errorf("metrics differ from %s (-update rewrites it):\n%s", golden, ours)
	}
}

// TestConventions asks Prometheus' own linter, and for names that stay different
// where counters lose their _total (OpenMetrics).
func TestConventions(t *testing.T) {
	ours := scrape(t, sources())
	problems, err := promlint.New(strings.NewReader(ours)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	types := map[string]string{}
	for line := range strings.Lines(ours) {
		if f := strings.Fields(line); f[1] == "TYPE" {
			types[f[2]] = f[3]
		}
	}
	for name, kind := range types {
		if base, ok := strings.CutSuffix(name, "_total"); ok != (kind == "counter") || ok && types[base] != "" {
			t.Errorf("%s is a %s, %s is %q", name, kind, base, types[base])
		}
	}
}

// An output that nothing was sent to is not praised.
func TestReadyUntried(t *testing.T) {
	s := sources()
	s.Outputs = func() []OutputStats {
		return []OutputStats{{Name: "hub", Lanes: []OutputLane{{Lane: "main", State: "up", Active: true, Untried: true}}}}
	}
	if _, body := get(t, s, "/readyz"); body != "ready\noutput hub for lane main: up (nothing was sent yet), in use\n" {
		t.Errorf("%q", body)
	}
}

func TestReady(t *testing.T) {
	const states = "output hub for lane main: down, failed 7 times in a row, last: hub: publish to logs.plant.gw1.main: no answer within 5s\n" +
		"output archive for lane main: up, in use\n"
	refuses := []string{"lane main: the disk fails: write: input/output error", "input vault: does not accept"}
	stalls := []string{"lane main: 24328 records wait and no output acknowledged any for 2m5s: a\nb"}
	for _, tt := range []struct {
		name            string
		refuses, stalls []string
		path            string
		code            int
		want            string
	}{
		{"ready", nil, nil, "/readyz", 200, "ready\n"},
		{"accepts", nil, nil, "/readyz/accept", 200, "ready\n"},
		{"refuses", refuses, nil, "/readyz", 503, "lane main: the disk fails: write: input/output error\ninput vault: does not accept\n"},
		{"refuses to accept", refuses[:1], nil, "/readyz/accept", 503, "lane main: the disk fails: write: input/output error\n"},
		{"stalls", nil, stalls, "/readyz", 503, "lane main: 24328 records wait and no output acknowledged any for 2m5s: a b\n"},
		{"stalls and accepts", nil, stalls, "/readyz/accept", 200, "ready\n"},
		{"both", refuses[1:], stalls, "/readyz", 503, "input vault: does not accept\nlane main: 24328 records wait and no output acknowledged any for 2m5s: a b\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := sources()
			s.Refuses, s.Stalls = func() []string { return tt.refuses }, func() []string { return tt.stalls }
			if code, body := get(t, s, tt.path); code != tt.code || body != tt.want+states {
				t.Errorf("%d %q, want %d %q", code, body, tt.code, tt.want+states)
			}
			want := "\nspillway_ready 1\n"
			if tt.refuses != nil || tt.stalls != nil {
				want = "\nspillway_ready 0\n"
			}
			if !strings.Contains(scrape(t, s), want) {
				t.Errorf("no %q", want)
			}
			if code, body := get(t, s, "/healthz"); code != 200 || body != "ok\n" {
				t.Errorf("/healthz: %d %q", code, body)
			}
		})
	}
}

func TestPaths(t *testing.T) {
	for path, want := range map[string]int{
		"/": 200, "/healthz": 200, "/readyz": 200, "/readyz/accept": 200, "/readyz/": 404, "/debug/pprof/": 200, "/debug/pprof/heap": 200,
		"/debug/pprof/goroutine?debug=1": 200, "/debug/pprof/profile?seconds=0": 200, "/debug/pprof/trace?seconds=0": 200, "/debug/pprof/nothing": 404,
		"/debug/pprof/profile?seconds=301": 400, "/debug/pprof/heap?debug=x": 400, "/nothing": 404,
	} {
		if code, _ := get(t, sources(), path); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
	w := httptest.NewRecorder()
	Handler(sources()).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/healthz", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST /healthz: %d", w.Code)
	}
}

// Profiles are what the runtime's tools read, and end when nobody reads any more.
func TestProfiles(t *testing.T) {
	for name, magic := range map[string]string{"heap": "\x1f\x8b", "profile?seconds=0": "\x1f\x8b", "trace?seconds=0": "go 1.", "goroutine?debug=2": "goroutine "} {
		if _, body := get(t, sources(), "/debug/pprof/"+name); !strings.HasPrefix(body, magic) {
			t.Errorf("%s begins %.20q", name, body)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	Handler(sources()).ServeHTTP(w, httptest.NewRequestWithContext(gone, http.MethodGet, "/debug/pprof/profile?seconds=300", nil))
}

// Between scrapes nothing runs: a goroutine that outlived one would keep the bubble
// from ending.
func TestNothingRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { scrape(t, sources()) })
}

// BenchmarkScrape is what one scrape costs; between scrapes nothing runs.
func BenchmarkScrape(b *testing.B) {
	h := Handler(sources())
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		if w.Code != http.StatusOK {
			b.Fatal(w.Code)
		}
	}
}

const operations = "../../docs/operations.md"

// TestOperations holds docs/operations.md to what is there: the scrape, the names
// and labels in its expressions, and the messages of the log.
func TestOperations(t *testing.T) {
	page, err := os.ReadFile(operations)
	if err != nil {
		t.Fatal(err)
	}
	ours := scrape(t, sources())
	before, rest, _ := strings.Cut(string(page), "<!-- scrape -->\n")
	_, after, ok := strings.Cut(rest, "<!-- end -->\n")
	if !ok {
		t.Fatalf("%s has no <!-- scrape --> and <!-- end -->", operations)
	}
	want := before + "<!-- scrape -->\n```\n" + ours + "```\n<!-- end -->\n" + after
	if *update {
		if err := os.WriteFile(operations, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if string(page) != want {
		t.Errorf("the scrape in %s is not what /metrics says: rewrite it with go test ./edge/admin -update", operations)
	}

	series := map[string]bool{} // names, and name{label="value"} of each label alone
	for line := range strings.Lines(ours) {
		name, labels, _ := strings.Cut(strings.TrimSpace(line[:strings.LastIndexByte(line, ' ')]), "{")
		series[name] = true
		for l := range strings.SplitSeq(strings.TrimSuffix(labels, "}"), ",") {
			series[name+"{"+l+"}"] = true
		}
	}
	used := regexp.MustCompile("spillway_[a-z_]+({[^}]*})?").FindAllString(before, -1)
	if len(used) < 20 {
		t.Errorf("only %d metrics are used", len(used))
	}
	for _, u := range used {
		if !series[u] {
			t.Errorf("%s: no such series: %s", operations, u)
		}
	}

	_, log, _ := strings.Cut(before, "## What the log says")
	log, _, _ = strings.Cut(log, "\n## ")
	said := sourceText(t)
	n := 0
	for row := range strings.Lines(log) {
		cell, _, _ := strings.Cut(strings.TrimPrefix(row, "| `"), " | ")
		if cell == row || !strings.HasPrefix(row, "| `") {
			continue
		}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch("`"+cell, -1) {
			n++
			if !strings.Contains(said, `"`+m[1]+`"`) {
				t.Errorf("%s: nothing says %q", operations, m[1])
			}
		}
	}
	if n < 15 {
		t.Errorf("only %d messages found", n)
	}
}

// sourceText is all code that can log.
func sourceText(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, dir := range []string{"..", "../../outputs", "../../buffer"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			all.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}

// A peer that does not finish its request, or says nothing more, is let go.
func TestServerLetsGo(t *testing.T) {
	for _, tt := range []struct {
		name, send string
		after      time.Duration
	}{
		{"nothing", "", 10 * time.Second},
		{"half a request", "GET /metrics HTTP/1.1\r\nHost: a\r\n", 10 * time.Second},
		{"after an answer", "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 2 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				here, there := net.Pipe()
				l := &oneListener{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
				l.conn <- there
				srv := Server(sources(), slog.New(slog.DiscardHandler))
				go srv.Serve(l)
				defer srv.Close()
				begin := time.Now()
				if _, err := io.WriteString(here, tt.send); err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, here); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begin); took != tt.after {
					t.Errorf("closed after %v, want %v", took, tt.after)
				}
			})
		})
	}
}

// oneListener accepts one connection.
type oneListener struct {
	conn   chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *oneListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *oneListener) Addr() net.Addr { return &net.TCPAddr{} }
