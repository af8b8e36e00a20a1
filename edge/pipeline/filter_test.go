package pipeline

import (
	"math"
	"regexp"
	"testing"
)

func TestFilter(t *testing.T) {
	probe := regexp.MustCompile(`^GET /health`)
	for _, tt := range []struct {
		name     string
		filter   *Filter
		severity int
		text     string
		want     filtered
	}{
		{"none", nil, 7, "x", filteredNot},
		{"nothing to drop", &Filter{SeverityAbove: -1}, 7, "x", filteredNot},
		{"as severe as the limit", &Filter{SeverityAbove: 6}, 6, "x", filteredNot},
		{"less severe", &Filter{SeverityAbove: 6}, 7, "x", filteredSeverity},
		{"emergencies only", &Filter{SeverityAbove: 0}, 1, "x", filteredSeverity},
		{"an emergency", &Filter{SeverityAbove: 0}, 0, "x", filteredNot},
		{"no severity was parsed", &Filter{SeverityAbove: 0}, -1, "x", filteredNot},
		{"text", &Filter{SeverityAbove: -1, Drop: probe}, 6, "GET /healthz 200", filteredText},
		{"text without severity", &Filter{SeverityAbove: 3, Drop: probe}, -1, "GET /healthz 200", filteredText},
		{"another text", &Filter{SeverityAbove: -1, Drop: probe}, 6, "POST /health", filteredNot},
		{"no text", &Filter{SeverityAbove: -1, Drop: probe}, 6, "", filteredNot},
		{"both", &Filter{SeverityAbove: 3, Drop: probe}, 6, "GET /healthz 200", filteredSeverity},
	} {
		if got := tt.filter.drops(tt.severity, []byte(tt.text)); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestFilterAllocates nothing, for messages that stay and those that go.
func TestFilterAllocates(t *testing.T) {
	f := &Filter{SeverityAbove: 6, Drop: regexp.MustCompile(`(?i)health|probe`)}
	stays, goes := []byte("session opened for user root"), []byte("GET /Health 200")
	least := math.Inf(1)
	for range 50 { // the race detector makes a sync.Pool, which regexp has, forget now and then
		least = min(least, testing.AllocsPerRun(1, func() {
			f.drops(6, stays)
			f.drops(6, goes)
			f.drops(7, stays)
		}))
	}
	if least != 0 {
		t.Errorf("%v allocations", least)
	}
}
