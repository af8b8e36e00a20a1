package admin

import (
	"fmt"
	"net/http"
	"runtime/pprof"
	"runtime/trace"
	"slices"
	"strconv"
	"time"
)

// Profiles of the Go runtime, for `go tool pprof URL`: those of package
// runtime/pprof by name, a CPU profile as profile, an execution trace as trace.
// Package net/http/pprof would do the same for 3 % of the binary.

// longestProfile is how many seconds one profile may take.
const longestProfile = 300

func profiles(w http.ResponseWriter, _ *http.Request) {
	names := []string{"profile", "trace"}
	for _, p := range pprof.Profiles() {
		names = append(names, p.Name())
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintln(w, name)
	}
}

// profile answers with the profile that the path names. debug=1 or 2 makes text of
// it, as runtime/pprof does; seconds is how long a CPU profile (30) or a trace (1)
// takes.
func profile(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	number := func(key string, most, def int) (int, bool) {
		text := r.FormValue(key)
		if text == "" {
			return def, true
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > most {
			http.Error(w, fmt.Sprintf("%s: use 0 to %d", key, most), http.StatusBadRequest)
			return 0, false
		}
		return n, true
	}
	begin, end, seconds := func() error { return pprof.StartCPUProfile(w) }, pprof.StopCPUProfile, 30
	switch name {
	case "profile":
	case "trace":
		begin, end, seconds = func() error { return trace.Start(w) }, trace.Stop, 1
	default:
		p := pprof.Lookup(name)
		if p == nil {
			http.NotFound(w, r)
			return
		}
		debug, ok := number("debug", 2, 0)
		if !ok {
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		if debug > 0 {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		}
		p.WriteTo(w, debug)
		return
	}
	seconds, ok := number("seconds", longestProfile, seconds)
	if !ok {
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := begin(); err != nil {
		http.Error(w, err.Error()+": wait until the other one ends", http.StatusConflict)
		return
	}
	defer end()
	t := time.NewTimer(time.Duration(seconds) * time.Second)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.Context().Done():
	}
}
