package main

import (
	"fmt"
	"slices"
)

// rows are what can be measured, in the order of the table.
var rows = []struct {
	name    string
	measure func(b *bench, t *table) error
}{
	{"raw", fullSpeed("raw", "raw lines", "mixed", raw, nil, bars{cpu: 1.7, ratio: 1.35, rate: 500_000, disk: 55})},
	{"parsed", fullSpeed("parsed", "full records", "mixed", parsed, []string{"-parse"}, bars{cpu: 2.7, ratio: 1.35, rate: 350_000})},
	{"rfc5424", fullSpeed("rfc5424", "full records, RFC 5424 only", "rfc5424", parsed, []string{"-parse"}, bars{cpu: 2.7, ratio: 1.35, rate: 350_000})},
	{"vault", fullSpeed("vault", "audit entries of 1.4 KiB, raw", "vault", raw, nil, bars{cpu: 8.5, ratio: 1.25})},
}

// bars are the goals of a row at full speed; 0: none.
type bars struct {
	cpu   float64 // CPU seconds for a million messages
	ratio float64 // of them to those of the speed-of-light program
	rate  float64 // messages per second
	disk  float64 // MB for a million messages
}

// fullSpeed measures the speed-of-light program and the agent in turn, count times,
// with lines as fast as they are taken.
func fullSpeed(row, what, profile string, env, sol []string, goal bars) func(*bench, *table) error {
	return func(b *bench, t *table) error {
		load := traffic{profile: profile, n: b.n, dial: dialTCP}
		if profile == "vault" {
			load.n /= 4
		}
		floor, ours, err := b.pairs(row, load, speedOfLight(sol...), spillway(env...))
		if err != nil {
			return err
		}
		cpu, ratio := median(ours, cpuOf), medianRatio(ours, floor, cpuOf)
		t.add(line{row, "CPU, " + what, fmt.Sprintf("≤ %.1f s/M, ≤ %.2f times", goal.cpu, goal.ratio),
			fmt.Sprintf("%s s/M; floor %.2f", span(ours, cpuOf), median(floor, cpuOf)), ratio, cpu <= goal.cpu && ratio <= goal.ratio})
		rate := median(ours, rateOf)
		l := line{row: row, goal: "throughput", measured: fmt.Sprintf("%s/s; floor %s/s", thousands(rate), thousands(median(floor, rateOf))),
			ratio: medianRatio(ours, floor, rateOf), met: rate >= goal.rate}
		if goal.rate > 0 {
			l.bar = "≥ " + thousands(goal.rate) + "/s"
		}
		t.add(l)
		t.add(peakLine(row, ours))
		if goal.disk > 0 {
			disk := median(ours, diskOf)
			t.add(line{row, "written to disk", fmt.Sprintf("≤ %.0f MB/M", goal.disk), fmt.Sprintf("%.1f MB/M; floor %.1f", disk, median(floor, diskOf)),
				medianRatio(ours, floor, diskOf), disk <= goal.disk})
		}
		return nil
	}
}

// peakRSS is the bar of every row, in MiB.
const peakRSS = 64

func peakLine(row string, ours []trial) line {
	peak := slices.Max(values(ours, peakOf))
	return line{row: row, goal: "peak RSS", bar: fmt.Sprintf("≤ %d MiB", peakRSS), measured: fmt.Sprintf("%.0f MiB", peak), met: peak <= peakRSS}
}

// pairs measures two programs in turn, count times.
func (b *bench) pairs(row string, t traffic, first, second program) (one, two []trial, err error) {
	for round := range b.count {
		for _, p := range []struct {
			program
			trials *[]trial
		}{{first, &one}, {second, &two}} {
			r, err := b.measure(row, round, p.program, t)
			if err != nil {
				return nil, nil, err
			}
			b.others = max(b.others, r.Others)
			*p.trials = append(*p.trials, r)
		}
	}
	return one, two, nil
}

func cpuOf(t trial) float64  { return t.CPU }
func rateOf(t trial) float64 { return t.Rate }
func peakOf(t trial) float64 { return t.Peak }
func diskOf(t trial) float64 { return t.Disk }

func values(ts []trial, of func(trial) float64) (v []float64) {
	for _, t := range ts {
		v = append(v, of(t))
	}
	return v
}

func median(ts []trial, of func(trial) float64) float64 { return middle(values(ts, of)) }

func middle(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// medianRatio is the median of the ratios of each pair of runs.
func medianRatio(a, b []trial, of func(trial) float64) float64 {
	var v []float64
	for i := range a {
		v = append(v, of(a[i])/of(b[i]))
	}
	return middle(v)
}

// span is the median, with the least and the most where there are several.
func span(ts []trial, of func(trial) float64) string {
	v := values(ts, of)
	if len(v) == 1 {
		return fmt.Sprintf("%.2f", v[0])
	}
	return fmt.Sprintf("%.2f (%.2f to %.2f)", middle(v), slices.Min(v), slices.Max(v))
}

// thousands renders a rate as 512,000.
func thousands(v float64) string {
	n := int(v+500) / 1000
	if n >= 1000 {
		return fmt.Sprintf("%d,%03d,000", n/1000, n%1000)
	}
	return fmt.Sprintf("%d,000", n)
}
