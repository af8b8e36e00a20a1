package pipeline

import (
	"maps"
	"regexp"
	"slices"
	"testing"
	"time"

	"spillway/framing/ecs"
)

// TestInputFilter: what an input's options drop becomes no record, is counted by its
// reason, and leaves nothing to flush.
func TestInputFilter(t *testing.T) {
	m := &memory{}
	b := start(t, t.TempDir(), m, Block, nil)
	filter := &Filter{SeverityAbove: 6, Drop: regexp.MustCompile(`^GET /health`)}
	for _, c := range []struct {
		name  string
		parse bool
		count map[string]uint64
	}{
		{"parsed", true, map[string]uint64{"severity": 1, "text": 2, "duplicate": 0, "raw_secret": 0}},
		{"not parsed", false, map[string]uint64{"severity": 0, "text": 1, "duplicate": 0, "raw_secret": 0}},
	} {
		in := NewInput(InputOptions{Name: "in", Lane: b.lane, Parse: c.parse, Zone: time.UTC, Filter: filter, Records: ecs.Options{Dataset: "d", Agent: "gw1"}})
		s := in.Open().(*sink)
		for _, text := range []string{"<15>1 - - - - - - debug", "<13>1 - - - - - - GET /health"} {
			s.Message(msg(text), from, time.Now())
			if c.parse && s.block != nil {
				t.Errorf("%s: %q opened a block", c.name, text)
			}
		}
		for _, text := range []string{"<13>1 - - - - - - kept", "GET /x", "GET /healthz", "no header"} {
			s.Message(msg(text), from, time.Now())
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Close()
		if got := in.Filtered(); !maps.Equal(got, c.count) {
			t.Errorf("%s: filtered %v", c.name, got)
		}
		if in.Messages.Load() != 6 || way(in) != 0 {
			t.Errorf("%s: %d messages, %d admitted, filtered %v", c.name, in.Messages.Load(), in.Admitted.Load(), in.Filtered())
		}
	}
	b.stop()
	var got []string
	for _, r := range m.records(t, b.buf.Begin().Epoch) {
		got = append(got, r.Message)
	}
	want := []string{"kept", "GET /x", "no header", "<15>1 - - - - - - debug", "<13>1 - - - - - - GET /health", "<13>1 - - - - - - kept", "GET /x", "no header"}
	if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("%q", got)
	}
}
