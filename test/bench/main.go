// Command bench measures the spillway binary against its performance goals and
// prints them as a table: goal, bar, what was measured, the ratio to a program that
// does only what can't be left out (`bench sol`, measured in turn with it), and
// whether the goal is met. Servers, agent and that program are processes of their
// own on loopback; this one sends, and reads everything back.
//
//	make bench                                      all rows
//	make bench ROWS=raw,parsed N=2000000 COUNT=3    some
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 0 && args[0] == "sol" {
		return cmdSol(args[1:])
	}
	var names []string
	for _, r := range rows {
		names = append(names, r.name)
	}
	f := flag.NewFlagSet("bench", flag.ExitOnError)
	only := f.String("rows", "", "rows to measure, with commas between them: "+strings.Join(names, ", ")+"; all without")
	n := f.Int("n", 2_000_000, "messages of a run at full speed")
	count := f.Int("count", 3, "how often a row is repeated; the table has medians")
	dir := f.String("dir", filepath.Join("tmp", "bench"), "directory on the disk to measure")
	out := f.String("o", filepath.Join("tmp", "bench.jsonl"), "file to which each run is added as a line of JSON")
	f.Parse(args)

	chosen := names
	if *only != "" {
		chosen = strings.Split(*only, ",")
	}
	for _, name := range chosen {
		if !slices.Contains(names, name) {
			return fmt.Errorf("no row %q: there are %s", name, strings.Join(names, ", "))
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b := &bench{bin: filepath.Dir(self), self: self, n: *n, count: *count, poolSize: 48 << 20, idle: time.Minute, settle: 300 * time.Millisecond, rates: []float64{20e3, 50e3, 100e3, 200e3, 300e3, 400e3}, pools: map[string]*pool{}}
	if b.agent, err = agentPath(b.bin); err != nil {
		return err
	}
	if b.dir, err = filepath.Abs(*dir); err != nil {
		return err
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(b.dir, "bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted // children are killed with this process
		os.RemoveAll(b.dir)
		os.Exit(130)
	}()
	log, err := os.OpenFile(*out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	b.log = json.NewEncoder(log)

	// What was running before counts, not what this program does.
	before := load()
	fmt.Printf("%s, %s\n%s, %d CPUs, %s; load %.2f before\n\n", version(b.agent), time.Now().UTC().Format("2006-01-02 15:04 MST"), cpuModel(), runtime.NumCPU(), kernel(), before)
	t := newTable(os.Stdout)
	var failed []error
	for _, r := range rows {
		if !slices.Contains(chosen, r.name) {
			continue
		}
		if err := r.measure(b, t); err != nil {
			failed = append(failed, err)
			t.add(line{row: r.name, goal: "failed", measured: firstLine(err)})
		}
	}
	fmt.Printf("\nEach run is a line of %s.\n", *out)
	if before > quietLoad || b.others > quietOthers {
		fmt.Printf("The machine was NOISY: load %.2f before, and others used up to %.2f of a CPU during a run. No figure here is one to quote.\n", before, b.others)
	}
	return errors.Join(failed...)
}

// A machine is quiet when its load average was at most quietLoad before the first
// run, and others used at most quietOthers CPUs during each (kernel threads and
// interrupts are among them).
const (
	quietLoad   = 0.7
	quietOthers = 0.25
)

// line is one goal of the table.
type line struct {
	row, goal, bar, measured string
	ratio                    float64 // to the program that it is compared with; 0: with none
	met                      bool
}

// table prints lines as they come, as Markdown with aligned columns.
type table struct{ w io.Writer }

const layout = "| %-8s | %-38s | %-26s | %-48s | %-5s | %-3s |\n"

func newTable(w io.Writer) *table {
	fmt.Fprintf(w, layout, "row", "goal", "bar", "measured", "ratio", "met")
	fmt.Fprintln(w, "|---|---|---|---|---|---|")
	return &table{w}
}

func (t *table) add(l line) {
	ratio, met := "", "no"
	if l.ratio != 0 {
		ratio = fmt.Sprintf("%.2f", l.ratio)
	}
	if l.met {
		met = "yes"
	}
	if l.bar == "" {
		met = "–"
	}
	fmt.Fprintf(t.w, layout, l.row, l.goal, l.bar, l.measured, ratio, met)
}

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}

func version(agent string) string {
	out, err := exec.Command(agent, "version").Output()
	if err != nil {
		return err.Error()
	}
	s, _, _ := strings.Cut(string(out), "\n")
	return s
}

func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for _, l := range strings.Split(string(text), "\n") {
		if k, v, _ := strings.Cut(l, ":"); strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}

func kernel() string {
	text, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return "Linux " + strings.TrimSpace(string(text))
}

// agentPath is the spillway to measure: SPILLWAY_BIN is the program or the
// directory that it is in, without it the directory of this program.
func agentPath(bin string) (string, error) {
	path := bin
	if v := os.Getenv("SPILLWAY_BIN"); v != "" {
		path = v
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		path = filepath.Join(path, "spillway")
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the agent: %w: run `make build`, or name one in SPILLWAY_BIN", err)
	}
	return path, nil
}
