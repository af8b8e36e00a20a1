package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// rows are what can be measured, in the order of the table.
var rows = []struct {
	name    string
	measure func(b *bench, t *table) error
}{
	{"raw", fullSpeed("raw", "raw lines", "mixed", floor(), rawLF, bars{cpu: 1.7, ratio: 1.35, rate: 500_000, disk: 55})},
	{"parsed", fullSpeed("parsed", "full records", "mixed", floor("-parse"), nil, bars{cpu: 2.7, ratio: 1.35, rate: 350_000})},
	{"rfc5424", fullSpeed("rfc5424", "full records, RFC 5424 only", "rfc5424", floor("-parse"), nil, bars{cpu: 2.7, ratio: 1.35, rate: 350_000})},
	{"vault", fullSpeed("vault", "audit entries of 1.4 KiB, raw", "vault", floor(), rawLF, bars{cpu: 8.5, ratio: 1.25})},
	{"steady", steady},
	{"idle", idle},
	{"udp", udp},
	{"outage", outage},
	{"s3", objects},
	{"size", size},
}

// rawLF is raw lines of a TCP input as the goals have them.
var rawLF = append(raw("TCP"), "SPILLWAY_INPUT_TCP_FRAMING=delimiter")

// bars are the goals of a row at full speed; 0: none.
type bars struct {
	cpu   float64 // CPU seconds for a million messages
	ratio float64 // of them to those of the speed-of-light program
	rate  float64 // messages per second
	disk  float64 // MB for a million messages
}

// fullSpeed measures the speed-of-light program and the agent in turn, with lines
// as fast as they are taken.
func fullSpeed(row, what, profile string, floor program, env []string, goal bars) func(*bench, *table) error {
	return func(b *bench, t *table) error {
		load := traffic{profile: profile, n: b.n, dial: dialTCP}
		if profile == "vault" {
			load.n /= 4 // as many bytes
		}
		base, ours, err := b.pairs(row, b.count, load, floor, spillway(startHub, "TCP", env...))
		if err != nil {
			return err
		}
		cpu, ratio := median(ours, cpuOf), medianRatio(ours, base, cpuOf)
		t.add(line{row, "CPU, " + what, fmt.Sprintf("≤ %.1f s/M, ≤ %.2f times", goal.cpu, goal.ratio),
			fmt.Sprintf("%s s/M; floor %.2f", span(ours, cpuOf), median(base, cpuOf)), ratio, cpu <= goal.cpu && ratio <= goal.ratio})
		rate := median(ours, rateOf)
		l := line{row: row, goal: "throughput", measured: fmt.Sprintf("%s/s; floor %s/s", thousands(rate), thousands(median(base, rateOf))),
			ratio: medianRatio(ours, base, rateOf), met: rate >= goal.rate}
		if goal.rate > 0 {
			l.bar = "≥ " + thousands(goal.rate) + "/s"
		}
		t.add(l)
		t.add(peakLine(row, ours))
		if goal.disk > 0 {
			disk := median(ours, diskOf)
			t.add(line{row, "written to disk", fmt.Sprintf("≤ %.0f MB/M", goal.disk), fmt.Sprintf("%.1f MB/M; floor %.1f", disk, median(base, diskOf)),
				medianRatio(ours, base, diskOf), disk <= goal.disk})
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

// steady measures what 10,000 messages a second cost, each in a write of its own:
// most of it is waking up. CPU seconds a million are then percents of one CPU.
func steady(b *bench, t *table) error {
	const rate = 10_000
	load := traffic{profile: "mixed", n: b.n / 10, rate: rate, dial: dialTCP}
	for _, c := range []struct {
		what  string
		floor program
		env   []string
		bar   float64
	}{{"raw lines", floor(), rawLF, 9}, {"full records", floor("-parse"), nil, 10}} {
		base, ours, err := b.pairs("steady", 1, load, c.floor, spillway(startHub, "TCP", c.env...))
		if err != nil {
			return err
		}
		percent := median(ours, cpuOf) * rate / 1e4
		t.add(line{"steady", thousands(rate) + " writes/s, " + c.what, fmt.Sprintf("≤ %.0f %% of a CPU", c.bar),
			fmt.Sprintf("%.1f %%; floor %.1f %%", percent, median(base, cpuOf)*rate/1e4), medianRatio(ours, base, cpuOf), percent <= c.bar})
	}
	return nil
}

// idle measures how soon the agent is there, and what it costs when nobody talks to it.
func idle(b *bench, t *table) error {
	var listening, ready []float64
	var w *world
	for range 5 {
		if w != nil {
			w.close()
		}
		var err error
		if w, err = b.open(spillway(startHub, "TCP"), traffic{profile: "mixed"}); err != nil {
			return err
		}
		listening, ready = append(listening, w.listening.Seconds()*1e3), append(ready, w.ready.Seconds()*1e3)
	}
	defer w.close()
	time.Sleep(10 * b.settle)
	m, err := w.begin()
	if err != nil {
		return err
	}
	time.Sleep(b.idle)
	now, err := w.usage()
	if err != nil {
		return err
	}
	rss, cpu, wrote := float64(now.rss)/(1<<20), (now.cpu-m.before.cpu)/b.idle.Seconds()*100, now.written-m.before.written
	t.add(line{row: "idle", goal: "RSS", bar: "≤ 20 MiB", measured: fmt.Sprintf("%.1f MiB", rss), met: rss <= 20})
	t.add(line{row: "idle", goal: fmt.Sprintf("CPU over %v", b.idle), bar: "≤ 0.1 %", measured: fmt.Sprintf("%.2f %%", cpu), met: cpu <= 0.1})
	t.add(line{row: "idle", goal: fmt.Sprintf("written to disk over %v", b.idle), bar: "0", measured: fmt.Sprintf("%d bytes", wrote), met: wrote == 0})
	t.add(line{row: "idle", goal: "start to listening", bar: "≤ 30 ms", measured: fmt.Sprintf("%.0f ms, to /readyz %.0f ms", middle(listening), middle(ready)), met: middle(listening) <= 30})
	return w.stop()
}

// udp looks for the rate at which datagrams begin to be lost, and compares what was
// lost with what the agent counts.
func udp(b *bench, t *table) error {
	var sent, received, counted int
	var cpu float64
	for _, c := range []struct {
		what string
		size int // bytes; the kernel doubles it
		bar  float64
	}{{"the kernel's default buffer", 106_496, 50_000}, {"8 MiB of buffer", 8 << 20, 200_000}} {
		program := spillway(startHub, "UDP", append(raw("UDP"), "SPILLWAY_INPUT_UDP_SO_RCVBUF="+strconv.Itoa(c.size))...)
		var without float64
		lossy := []string{}
		for _, rate := range b.rates {
			r, n, lost, told, err := b.datagrams(program, rate)
			if err != nil {
				return err
			}
			sent, received, counted = sent+n, received+n-lost, counted+told
			switch {
			case lost > 0:
				lossy = append(lossy, fmt.Sprintf("%.2g %% at %s", 100*float64(lost)/float64(n), thousands(rate)))
			case len(lossy) == 0:
				without = rate
			}
			if rate == b.rates[len(b.rates)/3] { // 100,000
				cpu = r.CPU
			}
			if lost > n/5 {
				break
			}
		}
		t.add(line{row: "udp", goal: "no loss, " + c.what, bar: "≥ " + thousands(c.bar) + "/s", measured: strings.Join(append([]string{thousands(without) + "/s"}, lossy...), "; "), met: without >= c.bar})
	}
	t.add(line{row: "udp", goal: "CPU at 100,000/s, raw", bar: "≤ 3.0 s/M", measured: fmt.Sprintf("%.2f s/M", cpu), met: cpu <= 3})
	t.add(line{row: "udp", goal: "sent, received, counted as dropped", bar: "all", measured: fmt.Sprintf("%d, %d, %d", sent, received, counted), met: sent == received+counted})
	return nil
}

// datagrams runs a program at a rate (datagrams per second) for two seconds and
// returns how many were sent, how many of them did not arrive, and how many the
// agent says were dropped.
func (b *bench) datagrams(pr program, rate float64) (r trial, sent, lost, told int, err error) {
	w, err := b.open(pr, traffic{profile: "mixed", n: int(rate) * b.n / 1e6, rate: rate, dial: dialUDP})
	if err != nil {
		return
	}
	defer w.close()
	m, err := w.begin()
	if err != nil {
		return
	}
	if err = w.send(); err != nil {
		return
	}
	if err = w.arrived(func() int { return drops(w.address) }, 2*time.Second); err != nil && !errors.Is(err, errQuiet) {
		return
	}
	sent = w.traffic.n
	lost = sent - int(w.account.once.Load())
	if r, err = m.end("udp", fmt.Sprintf("%s at %.0f/s", pr.name, rate), 0, sent-lost); err != nil {
		return
	}
	// The kernel says how many it dropped with the next datagram that it delivers.
	c, err := dialUDP(w.address)
	if err != nil {
		return
	}
	defer c.Close()
	if _, err = c.Write([]byte("the last one")); err != nil {
		return
	}
	time.Sleep(b.settle)
	dropped, err := metric(w, `spillway_input_dropped_total{input="udp"`)
	if err != nil {
		return
	}
	return r, sent, lost, int(dropped), w.stop()
}

// drops is what the kernel threw away at the UDP socket bound to address.
func drops(address string) (n int) {
	_, port, _ := net.SplitHostPort(address)
	want, _ := strconv.ParseUint(port, 10, 16)
	text, _ := os.ReadFile("/proc/net/udp")
	for _, l := range strings.Split(string(text), "\n") {
		if f := strings.Fields(l); len(f) >= 13 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", want)) {
			d, _ := strconv.Atoi(f[len(f)-1])
			n += d
		}
	}
	return n
}

// outage measures the agent while the server is away and then drains.
func outage(b *bench, t *table) error {
	w, err := b.open(spillway(startHub, "TCP", rawLF...), traffic{profile: "mixed", n: b.n, dial: dialTCP})
	if err != nil {
		return err
	}
	defer w.close()
	m, err := w.begin()
	if err != nil {
		return err
	}
	h := w.far.(*hub)
	if err := h.stop(); err != nil {
		return err
	}
	if err := w.send(); err != nil {
		return err
	}
	for admitted := 0.0; admitted < float64(w.traffic.n); time.Sleep(10 * time.Millisecond) {
		if admitted, err = metric(w, `spillway_lane_records_admitted_total{lane="main"}`); err != nil {
			return err
		}
	}
	spool := float64(w.traffic.n) / time.Since(m.at).Seconds()
	if err := h.start(); err != nil {
		return err
	}
	m.far = usage{} // another process
	for w.account.once.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	first := time.Now()
	if err := w.arrived(none, 20*time.Second); err != nil {
		return err
	}
	took := time.Since(first).Seconds()
	r, err := m.end("outage", "spillway", 0, w.traffic.n)
	if err != nil {
		return err
	}
	t.add(line{row: "outage", goal: "CPU, spooled and drained, raw", bar: "≤ 1.9 s/M", measured: fmt.Sprintf("%.2f s/M", r.CPU), met: r.CPU <= 1.9})
	t.add(peakLine("outage", []trial{r}))
	t.add(line{row: "outage", goal: "spooled, then drained", measured: fmt.Sprintf("%s/s, %s/s (%.0f MB/s)", thousands(spool), thousands(float64(w.traffic.n)/took), float64(w.account.bytes.Load())/1e6/took)})
	return w.stop()
}

// metric sums the values of the agent's metrics whose names and labels begin with prefix.
func metric(w *world, prefix string) (sum float64, err error) {
	r, err := http.Get(w.admin + "/metrics")
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	found := false
	for s := bufio.NewScanner(r.Body); s.Scan(); {
		if strings.HasPrefix(s.Text(), prefix) {
			v, err := strconv.ParseFloat(s.Text()[strings.LastIndexByte(s.Text(), ' ')+1:], 64)
			if err != nil {
				return 0, err
			}
			sum, found = sum+v, true
		}
	}
	if !found {
		return 0, fmt.Errorf("no metric %s", prefix)
	}
	return sum, nil
}

// objects measures delivery to S3 in turn with delivery to a stream.
func objects(b *bench, t *table) error {
	stream, ours, err := b.pairs("s3", b.count, traffic{profile: "mixed", n: b.n, dial: dialTCP}, spillway(startHub, "TCP", rawLF...), spillway(startBucket, "TCP", rawLF...))
	if err != nil {
		return err
	}
	cpu := median(ours, cpuOf)
	t.add(line{"s3", "CPU, raw lines, to S3", "≤ 1.95 s/M", fmt.Sprintf("%s s/M; to JetStream %.2f", span(ours, cpuOf), median(stream, cpuOf)), medianRatio(ours, stream, cpuOf), cpu <= 1.95})
	t.add(peakLine("s3", ours))
	return nil
}

func size(b *bench, t *table) error {
	st, err := os.Stat(b.agent)
	if err != nil {
		return err
	}
	mb := float64(st.Size()) / 1e6
	t.add(line{row: "size", goal: "binary, JetStream and S3", bar: "≤ 16 MB", measured: fmt.Sprintf("%.1f MB", mb), met: mb <= 16})
	return nil
}

// pairs measures two programs in turn, count times each.
func (b *bench) pairs(row string, count int, t traffic, first, second program) (one, two []trial, err error) {
	for round := range count {
		for _, p := range []struct {
			program
			trials *[]trial
		}{{first, &one}, {second, &two}} {
			r, err := b.measure(row, round, p.program, t)
			if err != nil {
				return nil, nil, err
			}
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
