package admin

import (
	"errors"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite golden files")

func sources(ready error) Sources {
	return Sources{
		Version: "v1.2.3",
		Inputs: func() []InputStats {
			return []InputStats{
				{Name: "tcp", Messages: 1, MessageBytes: 2, ReadBytes: 3, ParseFailures: 4, Truncated: 5, Oversize: 6, DiscardedBytes: 7, Dropped: 8,
					EmptyFrames: 9, FramingErrors: 10, CutFrames: 11, Connections: 12, OpenConnections: 13, RefusedConnections: 14, IdleConnections: 15},
				{Name: "udp"},
			}
		},
		Lanes: func() []LaneStats {
			return []LaneStats{{Name: "main", Admitted: 1, Delivered: 2, Resent: 12, Lost: map[string]uint64{"full_oldest": 3, "damaged": 4}, PendingRecords: 5,
				PendingAge: 6500 * time.Millisecond, LiveBytes: 7, DiskBytes: 8, Full: true, DiskFailed: true, TornBytes: 9, CorruptBytes: 10, Syncs: 11}}
		},
		Outputs: func() []OutputStats {
			return []OutputStats{{Name: "hub", Lanes: []OutputLane{{Lane: "main", State: "failing", Active: true, Failures: 3}}, Delivered: 4, AlreadyThere: 5, Bytes: 6},
				{Name: "archive", Lanes: []OutputLane{{Lane: "main", State: "up"}}}}
		},
		Switches: func() []Switch { return []Switch{{Lane: "main", From: "hub", To: "archive", Count: 7}} },
		Ready:    func() error { return ready },
	}
}

func get(t *testing.T, s Sources, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	Handler(s).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

// TestMetrics holds every name, type, help and value that is ours.
func TestMetrics(t *testing.T) {
	code, body := get(t, sources(nil), "/metrics")
	if code != http.StatusOK {
		t.Fatalf("status %d: %s", code, body)
	}
	var ours strings.Builder
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "spillway_") || strings.HasPrefix(line, "# HELP spillway_") || strings.HasPrefix(line, "# TYPE spillway_") {
			ours.WriteString(line)
		}
	}
	const golden = "testdata/metrics.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(ours.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if ours.String() != string(want) {
		t.Errorf("metrics differ from %s (-update rewrites it):\n%s", golden, ours.String())
	}
	for _, other := range []string{"go_goroutines", "process_open_fds"} {
		if !strings.Contains(body, "\n"+other+" ") {
			t.Errorf("no %s", other)
		}
	}
}

func TestReady(t *testing.T) {
	const states = "output hub for lane main: failing, in use\noutput archive for lane main: up\n"
	if code, body := get(t, sources(nil), "/readyz"); code != http.StatusOK || body != "ready\n"+states {
		t.Errorf("ready: %d %q", code, body)
	}
	notReady := errors.Join(errors.New("input tcp is not bound"), errors.New("lane main is full"))
	code, body := get(t, sources(notReady), "/readyz")
	if want := "input tcp is not bound\nlane main is full\n" + states; code != http.StatusServiceUnavailable || body != want {
		t.Errorf("not ready: %d %q, want 503 %q", code, body, want)
	}
	if _, body := get(t, sources(notReady), "/metrics"); !strings.Contains(body, "\nspillway_ready 0\n") {
		t.Error("spillway_ready is not 0")
	}
}

func TestPaths(t *testing.T) {
	for path, want := range map[string]int{
		"/": 200, "/healthz": 200, "/debug/pprof/": 200, "/debug/pprof/heap": 200, "/debug/pprof/cmdline": 200, "/debug/pprof/symbol": 200, "/nothing": 404,
	} {
		if code, _ := get(t, sources(errors.New("no")), path); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
	w := httptest.NewRecorder()
	Handler(sources(nil)).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/healthz", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST /healthz: %d", w.Code)
	}
}
