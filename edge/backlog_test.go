package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
)

// outage makes the buffer of lane main in state as an agent leaves it whose output was away: n
// batches of 10 records, one each hour, the newest an hour old. Records of more than
// maxAge have expired; 0: none.
func outage(t *testing.T, state string, n int, maxAge time.Duration) {
	t.Helper()
	now := time.Now()
	o := buffer.Options{Agent: "gw-1", SegmentBytes: 1, MaxBytes: 64 << 20, MinFree: -1, SyncGap: -1, MaxAge: maxAge}
	up := time.Duration(0)
	o.Clock = func() (time.Duration, bool) { return up, true }
	b, err := buffer.Open(filepath.Join(state, "buffer", "main"), o)
	if err != nil {
		t.Fatal(err)
	}
	s := b.Begin()
	sealer := batch.Sealer{Epoch: s.Epoch, Prev: s.Seal}
	enc, err := batch.NewEncoder(batch.None, 1)
	if err != nil {
		t.Fatal(err)
	}
	next := s.Next
	for i := range n {
		at := now.Add(-time.Duration(n-i) * time.Hour)
		var open batch.Open
		open.Reset(next, 0)
		for range 10 {
			open.Lines = fmt.Appendf(open.Lines, `{"message":"%x","spillway":{"epoch":"%v","seq":%d}}`+"\n", noise(200), s.Epoch, next)
			open.Added(at.UnixNano())
			next++
		}
		made, _, err := enc.Encode(nil, &open, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range made {
			sealer.Seal(x)
			if err := b.Append(t.Context(), x); err != nil {
				t.Fatal(err)
			}
		}
	}
	// An agent that has run for long sees this many segments.
	b.Maintain(now.Add(-time.Hour))
	up = time.Hour
	for range 3 * n {
		b.Maintain(now)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

func noise(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rand.Uint32())
	}
	return p
}

// TestConservationExpired: what expired is in the metrics, is told, and the law holds with it.
func TestConservationExpired(t *testing.T) {
	t.Parallel()
	state, out := t.TempDir(), t.TempDir()
	outage(t, state, 20, 5*time.Hour+30*time.Minute) // leaves those of 5, 4, 3, 2 and 1 hours ago
	a := startIn(t, state, "SPILLWAY_AGENT=gw-1", "SPILLWAY_BUFFER_MAX_AGE=24h", "SPILLWAY_COMPRESSION=none", "SPILLWAY_OUTPUTS=a", "SPILLWAY_OUTPUT_A_URL=file://"+out, "SPILLWAY_OUTPUT_A_ROLL_AGE=0s")
	fmt.Fprintf(a.dial("tcp"), "<13>new\n")
	var m map[string]float64
	a.until("all is delivered", func() bool {
		m = a.metrics()
		return sum(m, "spillway_input_records_admitted_total") == 1 && sum(m, "spillway_lane_pending_records") == 0 && sum(m, "spillway_lane_unstored_records") == 0
	})
	if n := m[`spillway_lane_records_lost_total{lane="main",reason="expired"}`]; n != 150 {
		t.Errorf("%v records are counted as expired", n)
	}
	// What expired before the start is in none of the numbers of this life.
	start, admitted, delivered := sum(m, "spillway_lane_records_at_start"), sum(m, "spillway_lane_records_admitted_total"), sum(m, "spillway_lane_records_delivered_total")
	lost := sum(m, "spillway_lane_records_lost_total") - 150
	if start != 50 || start+admitted != delivered+lost || lost != 0 {
		t.Errorf("%v were there and %v came; %v are delivered and %v lost", start, admitted, delivered, lost)
	}
	if told := a.delivered().told[""]; told != 150 {
		t.Errorf("gap records tell of %v", told)
	}
	if text := tree(t, out); !bytes.Contains(text, []byte(`"reason":"expired"`)) {
		t.Error("no gap record says expired")
	}
}

// tree is what all files under dir hold.
func tree(t *testing.T, dir string) (all []byte) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		all = append(all, text...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestDrainRateSetting: with it a backlog stays, whatever the output takes; the agent is ready
// and stops at once.
func TestDrainRateSetting(t *testing.T) {
	t.Parallel()
	for _, rate := range []string{"0", "1KiB"} {
		t.Run(rate, func(t *testing.T) {
			state, out := t.TempDir(), t.TempDir()
			outage(t, state, 20, 0) // 4 KiB each, and an object of each hour
			a := startIn(t, state, "SPILLWAY_AGENT=gw-1", "SPILLWAY_BUFFER_DRAIN_RATE="+rate, "SPILLWAY_FAILOVER_AFTER=100ms", "SPILLWAY_OUTPUTS=a,b",
				"SPILLWAY_OUTPUT_A_URL=file://"+out+"/a", "SPILLWAY_OUTPUT_A_ROLL_AGE=0s", "SPILLWAY_OUTPUT_B_URL=file://"+out+"/b", "SPILLWAY_OUTPUT_B_ROLL_AGE=0s")
			if rate == "0" {
				a.until("all is delivered", func() bool { return sum(a.metrics(), "spillway_lane_pending_records") == 0 })
				return
			}
			a.until("the first object is delivered", func() bool { return sum(a.metrics(), "spillway_lane_records_delivered_total") > 0 })
			time.Sleep(500 * time.Millisecond) // more than twice FAILOVER_AFTER
			m := a.metrics()
			if n := sum(m, "spillway_lane_records_delivered_total"); n > 30 {
				t.Errorf("%v records went out", n)
			}
			if code, text := a.get("/readyz"); code != 200 {
				t.Errorf("/readyz: %d %s", code, text)
			}
			if n := sum(m, "spillway_lane_stalled"); n != 0 || strings.Contains(a.log.String(), "failover") {
				t.Errorf("stalled %v", n)
			}
		})
	}
}

// TestBatchAgeHeld: while the output is away a batch stays open for BATCH_MAX_AGE_HELD.
func TestBatchAgeHeld(t *testing.T) {
	t.Parallel()
	vars, _ := away(t)
	a := start(t, append(vars, "SPILLWAY_BATCH_MAX_AGE_HELD=1h")...)
	c := a.dial("tcp")
	fmt.Fprintln(c, "<13>one")
	a.until("the output fails", func() bool { return sum(a.metrics(), "spillway_output_failures_total") > 0 })
	fmt.Fprintln(c, "<13>two")
	a.until("it has a number", func() bool { return sum(a.metrics(), "spillway_lane_records_admitted_total") == 2 })
	time.Sleep(300 * time.Millisecond) // thirty times BATCH_MAX_AGE
	if m := a.metrics(); sum(m, "spillway_lane_unstored_records") != 1 || sum(m, "spillway_lane_pending_records") != 1 {
		t.Errorf("%v records are stored and %v are not", sum(m, "spillway_lane_pending_records"), sum(m, "spillway_lane_unstored_records"))
	}
}

// TestReserveSetting: others than inputs that refuse leave BUFFER_RESERVE free.
func TestReserveSetting(t *testing.T) {
	t.Parallel()
	vars, _ := away(t)
	a := start(t, append(vars, "SPILLWAY_BUFFER_MAX_BYTES=4MiB", "SPILLWAY_BUFFER_RESERVE=2MiB", "SPILLWAY_COMPRESSION=none", "SPILLWAY_BATCH_MAX_RECORDS=100",
		"SPILLWAY_INPUTS=tcp,udp,audit", "SPILLWAY_INPUT_AUDIT_URL=tcp://127.0.0.1:0", "SPILLWAY_INPUT_AUDIT_ON_FULL=refuse")...)
	c, text := a.dial("tcp"), strings.Repeat("x", 2<<10)
	go func() {
		for range 3000 { // 6 MB; the end of the test ends it
			if _, err := fmt.Fprintf(c, "<13>%s\n", text); err != nil {
				return
			}
		}
	}()
	a.until("full", func() bool { return sum(a.metrics(), "spillway_lane_full") == 1 })
	a.until("stored", func() bool { return sum(a.metrics(), "spillway_lane_unstored_records") == 0 })
	if n := sum(a.metrics(), "spillway_lane_pending_bytes"); n < 1<<20 || n > 5<<19 {
		t.Errorf("%.0f bytes wait, where 2 MiB of 4 are kept for another input", n)
	}
}

// TestBufferOptions: every setting of the buffer reaches it.
func TestBufferOptions(t *testing.T) {
	for _, tt := range []struct {
		set  string
		want func(o *buffer.Options) bool
	}{
		{"", func(o *buffer.Options) bool {
			return o.MaxBytes == 0 && o.MinFree == 0 && o.KeepAcked == 10*time.Minute && o.QuarantineBytes == 64<<20 && o.RejectedBytes == 64<<20 &&
				o.MaxAge == 0 && !o.NetworkFS && o.Clock != nil && o.Agent == "gw-1" && o.Full == buffer.Hold && o.Sync == buffer.SyncGroup
		}},
		{"MAX_BYTES=5MiB", func(o *buffer.Options) bool { return o.MaxBytes == 5<<20 }},
		{"MIN_FREE=7MiB", func(o *buffer.Options) bool { return o.MinFree == 7<<20 }},
		{"MIN_FREE=0", func(o *buffer.Options) bool { return o.MinFree < 0 }},
		{"KEEP_ACKED=7m", func(o *buffer.Options) bool { return o.KeepAcked == 7*time.Minute }},
		{"KEEP_ACKED=0", func(o *buffer.Options) bool { return o.KeepAcked < 0 }},
		{"QUARANTINE_MAX_BYTES=7MiB", func(o *buffer.Options) bool { return o.QuarantineBytes == 7<<20 }},
		{"QUARANTINE_MAX_BYTES=0", func(o *buffer.Options) bool { return o.QuarantineBytes < 0 }},
		{"REJECTED_MAX_BYTES=7MiB", func(o *buffer.Options) bool { return o.RejectedBytes == 7<<20 }},
		{"REJECTED_MAX_BYTES=0", func(o *buffer.Options) bool { return o.RejectedBytes < 0 }},
		{"NETWORK_FS=true", func(o *buffer.Options) bool { return o.NetworkFS }},
		{"FULL=drop_oldest", func(o *buffer.Options) bool { return o.Full == buffer.DropOldest }},
		{"SYNC=never", func(o *buffer.Options) bool { return o.Sync == buffer.SyncNever }},
		{"MAX_AGE=168h", func(o *buffer.Options) bool { return o.MaxAge == 168*time.Hour }},
	} {
		vars := []string{"SPILLWAY_AGENT=gw-1"}
		if tt.set != "" {
			vars = append(vars, "SPILLWAY_BUFFER_"+tt.set)
		}
		c, err := load(t, vars...)
		if err != nil {
			t.Errorf("%s: %v", tt.set, err)
		} else if o := c.Buffer.options(c); !tt.want(&o) {
			t.Errorf("%s: %+v", tt.set, o)
		}
	}
	c, err := load(t, "SPILLWAY_BUFFER_SYNC=interval", "SPILLWAY_BUFFER_SYNC_INTERVAL=7s", "SPILLWAY_BUFFER_MAX_UNSYNCED=7MiB")
	if err != nil {
		t.Fatal(err)
	}
	if o := c.Buffer.options(c); o.Sync != buffer.SyncInterval || o.SyncInterval != 7*time.Second || o.MaxUnsynced != 7<<20 {
		t.Errorf("%+v", o)
	}
	for set, want := range map[string]string{
		"MAX_AGE=9m":        `SPILLWAY_BUFFER_MAX_AGE="9m": out of bounds: use 10m0s or more, or 0 for none`,
		"DRAIN_RATE=1000":   `SPILLWAY_BUFFER_DRAIN_RATE="1000": out of bounds: use 1KiB to 1024GiB`,
		"DRAIN_RATE=1MiB/s": `SPILLWAY_BUFFER_DRAIN_RATE="1MiB/s": size: want bytes, or a number with KiB, MiB or GiB, as in 512KiB`,
	} {
		if _, err := load(t, "SPILLWAY_BUFFER_"+set); err == nil || err.Error() != want {
			t.Errorf("%s: %v", set, err)
		}
	}
}
