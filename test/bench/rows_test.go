package bench

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"spillway/test/agent"
	"spillway/test/certs"
)

// rows are what can be measured, in the order of the table. Times are CPU seconds
// for a million messages (s/M).
var rows = []struct {
	name    string
	measure func(t *testing.T, b *bench)
}{
	{"raw", func(t *testing.T, b *bench) {
		b.fullSpeed(t, "raw lines", "mixed", floor(), raw, bars{cpu: 1.7, ratio: 1.35, rate: 500_000, disk: 55})
	}},
	{"parsed", func(t *testing.T, b *bench) {
		b.fullSpeed(t, "full records", "mixed", floor("-parse"), nil, bars{cpu: 2.7, ratio: 1.35, rate: 350_000})
	}},
	{"rfc5424", func(t *testing.T, b *bench) {
		b.fullSpeed(t, "full records of RFC 5424", "rfc5424", floor("-parse"), nil, bars{cpu: 2.7, ratio: 1.35, rate: 350_000})
	}},
	{"vault", func(t *testing.T, b *bench) {
		b.fullSpeed(t, "audit entries of 1.4 KiB, raw", "vault", floor(), raw, bars{cpu: 8.5, ratio: 1.25})
	}},
	{"steady", steady},
	{"idle", idle},
	{"udp", udp},
	{"tls", overTLS},
	{"outage", outage},
	{"s3", objects},
	{"buffer", buffers},
	{"wear", wear},
	{"size", size},
}

// raw makes the agent keep lines as they are. Without it nothing but addresses is
// set, and the agent makes full records.
var raw = []string{"SPILLWAY_ENCODING=raw", "SPILLWAY_INPUT_TCP_PARSE=none", "SPILLWAY_INPUT_TCP_FRAMING=delimiter"}

// bars are the goals of a row at full speed; 0: none.
type bars struct {
	cpu   float64 // s/M
	ratio float64 // of it to the speed-of-light program's
	rate  float64 // messages per second
	disk  float64 // MB for a million messages
}

// fullSpeed measures lines sent as fast as they are taken.
func (b *bench) fullSpeed(t *testing.T, what, corpus string, floor program, env []string, bar bars) {
	x := traffic{corpus: corpus, n: *messages}
	if corpus == "vault" {
		x.n /= 4
	}
	base, ours := b.inTurn(t, *rounds, x, floor, spillway((*world).stream, env...))
	cpu, ratio := median(ours, cpuOf), medianRatio(ours, base, cpuOf)
	b.goal(t, goal{"CPU, " + what, fmt.Sprintf("≤ %.1f s/M, ≤ %.2f times", bar.cpu, bar.ratio), fmt.Sprintf("%s s/M; floor %.2f", span(ours, cpuOf), median(base, cpuOf)),
		ratio, cpu <= bar.cpu && ratio <= bar.ratio})
	rate := median(ours, rateOf)
	g := goal{what: "throughput", ratio: medianRatio(ours, base, rateOf), met: rate >= bar.rate,
		measured: fmt.Sprintf("%s/s, first 9/10 %s/s; floor %s/s, %s/s", thousands(rate), thousands(median(ours, mostOf)), thousands(median(base, rateOf)), thousands(median(base, mostOf)))}
	if bar.rate > 0 {
		g.bar = "≥ " + thousands(bar.rate) + "/s"
	}
	b.goal(t, g)
	b.peak(t, ours)
	if bar.disk > 0 {
		disk := median(ours, diskOf)
		b.goal(t, goal{"written to disk", fmt.Sprintf("≤ %.0f MB/M", bar.disk), fmt.Sprintf("%.1f MB/M; floor %.1f", disk, median(base, diskOf)), medianRatio(ours, base, diskOf), disk <= bar.disk})
	}
}

func (b *bench) peak(t *testing.T, ours []trial) {
	peak := slices.Max(values(ours, peakOf))
	b.goal(t, goal{what: "peak RSS", bar: "≤ 64 MiB", measured: fmt.Sprintf("%.0f MiB", peak), met: peak <= 64})
}

// steady measures 10,000 messages a second for 20 s, each in a write of its own:
// most of what they cost is waking up.
func steady(t *testing.T, b *bench) {
	const rate = 10_000
	const percent = rate / 1e6 * 100 // of a CPU, for 1 s/M
	for _, c := range []struct {
		what  string
		floor program
		env   []string
		bar   float64
	}{{"raw lines", floor(), raw, 9}, {"full records", floor("-parse"), nil, 10}} {
		base, ours := b.inTurn(t, 1, traffic{corpus: "mixed", n: *messages / 10, rate: rate}, c.floor, spillway((*world).stream, c.env...))
		cpu := ours[0].CPU * percent
		b.goal(t, goal{thousands(rate) + " writes/s, " + c.what, fmt.Sprintf("≤ %.0f %% of a CPU", c.bar), fmt.Sprintf("%.1f %%; floor %.1f %%", cpu, base[0].CPU*percent),
			medianRatio(ours, base, cpuOf), cpu <= c.bar})
	}
}

// idle measures how soon the agent is there, and what it costs for a minute in which
// nobody talks to it.
func idle(t *testing.T, b *bench) {
	long := scaled(time.Minute)
	many := *messages / 200
	b.trial(t, spillway((*world).stream, "SPILLWAY_INPUT_TCP_MAX_CONNECTIONS=0"), many, func(w *world) trial {
		var listening, ready []float64
		w.stop()
		for range 5 {
			l, r := startTimes(w)
			listening, ready = append(listening, l.Seconds()*1e3), append(ready, r.Seconds()*1e3)
		}
		w.agent.Start(w)
		w.pid = w.agent.PID()
		time.Sleep(scaled(3 * time.Second))
		before := used(w, w.pid)
		time.Sleep(long)
		after := used(w, w.pid)
		rss, cpu, wrote := float64(after.rss)/(1<<20), (after.cpu-before.cpu)/long.Seconds()*100, after.written-before.written
		b.goal(t, goal{what: "RSS", bar: "≤ 20 MiB", measured: fmt.Sprintf("%.1f MiB", rss), met: rss <= 20})
		b.goal(t, goal{what: fmt.Sprint("CPU over ", long), bar: "≤ 0.1 %", measured: fmt.Sprintf("%.2f %%", cpu), met: cpu <= 0.1})
		b.goal(t, goal{what: fmt.Sprint("written to disk over ", long), bar: "0 bytes", measured: fmt.Sprintf("%d bytes", wrote), met: wrote == 0})
		b.goal(t, goal{what: "start to listening", bar: "≤ 30 ms", measured: fmt.Sprintf("%.0f ms; to /readyz %.0f ms", middle(listening), middle(ready)), met: middle(listening) <= 30})

		var open []net.Conn
		for range many {
			c := w.dial()
			defer c.Close()
			open = append(open, c)
		}
		agent.Eventually(w, "all are accepted", time.Minute, func() bool { return w.agent.Metric(w, `spillway_input_open_connections{input="tcp"}`) >= float64(many) })
		time.Sleep(scaled(3 * time.Second))
		silent := float64(used(w, w.pid).rss) / (1 << 20)
		for _, c := range open {
			if _, err := c.Write([]byte("<13>hello\n")); err != nil {
				w.Fatal(err)
			}
		}
		agent.Eventually(w, "a line of each", time.Minute, func() bool { return w.agent.Metric(w, `spillway_input_messages_total{input="tcp"}`) >= float64(many) })
		time.Sleep(scaled(5 * time.Second))
		rss = float64(used(w, w.pid).rss) / (1 << 20)
		b.goal(t, goal{what: fmt.Sprint("RSS with ", many, " idle connections"), bar: "≤ 100 MiB", measured: fmt.Sprintf("%.0f MiB; once each has sent a line %.0f MiB", silent, rss), met: rss <= 100})
		return trial{At: time.Now(), Messages: many, Peak: rss}
	})
}

// startTimes starts w's agent once and returns how long it took until connections
// were accepted, and until /readyz said yes.
func startTimes(w *world) (listening, ready time.Duration) {
	cmd := exec.Command(w.agent.Bin, "run")
	cmd.Env = w.agent.Env
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Signal(os.Interrupt)
	for ready == 0 && time.Since(begin) < 10*time.Second {
		switch {
		case listening == 0 && listens(w.address):
			listening = time.Since(begin)
		case listening != 0 && isReady(w.agent.Admin):
			ready = time.Since(begin)
		default:
			time.Sleep(500 * time.Microsecond)
		}
	}
	return listening, ready
}

func isReady(admin int) bool {
	r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", admin))
	if err != nil {
		return false
	}
	r.Body.Close()
	return r.StatusCode == http.StatusOK
}

// udp looks for the rate at which datagrams begin to be lost, in two seconds at each,
// and compares what was lost with what the agent counts.
func udp(t *testing.T, b *bench) {
	var sent, received, counted int
	var cpu float64
	for _, c := range []struct {
		what string
		size int // bytes; the kernel doubles it
		bar  float64
	}{{"the kernel's default buffer", 106_496, 50_000}, {"8 MiB of buffer", 8 << 20, 200_000}} {
		var without float64
		said := []string{""}
		for _, rate := range []float64{20e3, 50e3, 100e3, 200e3, 300e3, 400e3} {
			r, n, lost, dropped := b.datagrams(t, rate, c.size)
			sent, received, counted = sent+n, received+n-lost, counted+dropped
			if rate == 100e3 {
				cpu = r.CPU
			}
			rate = min(rate, r.Rate)
			if lost > 0 {
				said = append(said, fmt.Sprintf("%.2g %% at %s", 100*float64(lost)/float64(n), thousands(rate)))
			} else if len(said) == 1 {
				without = rate
			}
			if lost > n/5 {
				break
			}
		}
		said[0] = thousands(without) + "/s"
		b.goal(t, goal{what: "no loss, " + c.what, bar: "≥ " + thousands(c.bar) + "/s", measured: strings.Join(said, ", "), met: without >= 0.98*c.bar})
	}
	b.goal(t, goal{what: "CPU at 100,000/s, raw", bar: "≤ 3.0 s/M", measured: fmt.Sprintf("%.2f s/M", cpu), met: cpu <= 3})
	b.goal(t, goal{what: "sent = received + counted as dropped", bar: "exactly", measured: fmt.Sprintf("%d = %d + %d", sent, received, counted), met: sent == received+counted})
}

// datagrams sends at a rate (datagrams per second) and returns how many were sent,
// how many of them did not arrive, and how many the agent says were dropped.
func (b *bench) datagrams(t *testing.T, rate float64, buffer int) (r trial, sent, lost, dropped int) {
	x := traffic{corpus: "mixed", n: int(rate) * *messages / 1e6, rate: rate}
	x.n -= x.n % connections
	p := spillway((*world).stream, "SPILLWAY_ENCODING=raw", "SPILLWAY_INPUT_UDP_SO_RCVBUF="+strconv.Itoa(buffer))
	p.name += "-" + strconv.Itoa(int(rate))
	r = b.trial(t, p, x.n, func(w *world) trial {
		b.pool(x.corpus)
		w.network, w.address = "udp", fmt.Sprint("127.0.0.1:", w.agent.UDP)
		cost := w.meter()
		begin := time.Now()
		w.send(x)
		took := time.Since(begin).Seconds()
		w.arrived(x.n, func() int { return drops(w.agent.UDP) }, 2*time.Second)
		lost = x.n - int(w.account.once.Load())
		r := cost(max(1, x.n-lost))
		r.Rate = float64(x.n) / took // which may be less than was asked of the sender
		// The kernel tells how many it dropped with the next datagram that it delivers.
		c := w.dial()
		defer c.Close()
		if _, err := c.Write([]byte("one more")); err != nil {
			w.Fatal(err)
		}
		agent.Eventually(w, "one more is received", 5*time.Second, func() bool {
			m, err := w.agent.Metrics()
			if err != nil {
				w.Fatal(err)
			}
			dropped = 0
			for name, v := range m {
				if strings.HasPrefix(name, `spillway_input_dropped_total{input="udp"`) {
					dropped += int(v)
				}
			}
			return int(m[`spillway_input_messages_total{input="udp"}`]) > x.n-lost
		})
		return r
	})
	return r, x.n, lost, dropped
}

// drops is what the kernel has thrown away at the UDP sockets of a port.
func drops(port int) (n int) {
	text, _ := os.ReadFile("/proc/net/udp")
	for l := range strings.Lines(string(text)) {
		if f := strings.Fields(l); strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
			d, _ := strconv.Atoi(f[len(f)-1])
			n += d
		}
	}
	return n
}

// overTLS measures lines behind TLS 1.3 in turn with plain ones.
func overTLS(t *testing.T, b *bench) {
	behind := spillway(func(w *world) []string {
		cert, key := certs.New(w).Issue("server", time.Now().Add(time.Hour))
		w.network = "tls"
		return append(w.stream(), "SPILLWAY_INPUT_TCP_TLS_CERT_FILE="+cert, "SPILLWAY_INPUT_TCP_TLS_KEY_FILE="+key)
	}, raw...)
	plain, ours := b.inTurn(t, *rounds, traffic{corpus: "mixed", n: *messages}, spillway((*world).stream, raw...), behind)
	more := median(ours, cpuOf) - median(plain, cpuOf)
	b.goal(t, goal{"CPU, raw lines over TLS", "≤ 0.15 s/M above plain", fmt.Sprintf("%s s/M; plain %.2f: %+.2f", span(ours, cpuOf), median(plain, cpuOf), more),
		medianRatio(ours, plain, cpuOf), more <= 0.15})
}

// outage measures the agent while the server is away and until all is there.
func outage(t *testing.T, b *bench) {
	var spool, drain, stored float64
	n := *messages / connections * connections
	r := b.trial(t, spillway((*world).stream, raw...), n, func(w *world) trial {
		b.pool("mixed")
		w.hub.Stop(w)
		cost := w.meter()
		begin := time.Now()
		w.send(traffic{corpus: "mixed", n: n})
		agent.Eventually(w, "all is spooled", time.Minute, func() bool {
			return w.agent.Metric(w, `spillway_lane_records_admitted_total{lane="main"}`) >= float64(n)
		})
		spool = float64(n) / time.Since(begin).Seconds()
		w.hub.Start(w)
		agent.Eventually(w, "the first arrive", time.Minute, func() bool { return w.account.once.Load() > 0 })
		begin = time.Now()
		left := n - int(w.account.once.Load())
		w.all(n)
		drain, stored = float64(left)/time.Since(begin).Seconds(), float64(w.account.bytes.Load())/float64(n)
		return cost(n)
	})
	b.goal(t, goal{what: "CPU, spooled and drained, raw", bar: "≤ 1.9 s/M", measured: fmt.Sprintf("%.2f s/M", r.CPU), met: r.CPU <= 1.9})
	b.peak(t, []trial{r})
	b.goal(t, goal{what: "spooled at, drained at", measured: fmt.Sprintf("%s/s, %s/s (%.0f MB/s)", thousands(spool), thousands(drain), drain*stored/1e6)})
}

// objects measures S3 in turn with JetStream.
func objects(t *testing.T, b *bench) {
	stream, ours := b.inTurn(t, *rounds, traffic{corpus: "mixed", n: *messages}, spillway((*world).stream, raw...), spillway((*world).bucket, raw...))
	cpu := median(ours, cpuOf)
	b.goal(t, goal{"CPU, raw lines, to S3", "≤ 1.95 s/M", fmt.Sprintf("%s s/M; to JetStream %.2f", span(ours, cpuOf), median(stream, cpuOf)), medianRatio(ours, stream, cpuOf), cpu <= 1.95})
	b.peak(t, ours)
}

// size is the binary's.
func size(t *testing.T, b *bench) {
	st, err := os.Stat(b.agent)
	if err != nil {
		t.Fatal(err)
	}
	mb := float64(st.Size()) / 1e6
	b.goal(t, goal{what: "binary, JetStream and S3 in it", bar: "≤ 16 MB", measured: fmt.Sprintf("%.1f MB", mb), met: mb <= 16})
}

func cpuOf(t trial) float64  { return t.CPU }
func rateOf(t trial) float64 { return t.Rate }
func mostOf(t trial) float64 { return t.Most }
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

// thousands renders a rate, rounded, as in 512,000.
func thousands(v float64) string {
	switch n := int(v+500) / 1000; {
	case n == 0:
		return "0"
	case n < 1000:
		return fmt.Sprintf("%d,000", n)
	default:
		return fmt.Sprintf("%d,%03d,000", n/1000, n%1000)
	}
}
