// Package bench measures the real binary: what a million messages cost on the
// whole path, socket to acknowledged JetStream message, and what idling costs.
//
//	make bench                                     everything
//	cd test && go test -run xxx -bench Path ./bench -v
package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/test/servers"
)

const (
	messages    = 1_000_000
	connections = 4
)

// corpus renders about 24 MiB of RFC 5424 lines as a gateway sees them: sshd,
// nginx, the kernel's firewall, cron, an application's JSON, structured data;
// 247 bytes on average. The seed is fixed.
func corpus() []byte {
	rng := rand.New(rand.NewPCG(2026, 11))
	hosts := []string{"gw-0117.plant4.example.net", "edge-a", "cam-12.line3", "plc-gateway-07.site-berlin.example.com"}
	var b []byte
	t := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	for len(b) < 24<<20 {
		t = t.Add(time.Duration(rng.IntN(3_000_000)))
		pri := rng.IntN(24)<<3 | rng.IntN(8)
		b = fmt.Appendf(b, "<%d>1 %s %s ", pri, t.Format("2006-01-02T15:04:05.000000Z07:00"), hosts[rng.IntN(len(hosts))])
		ip := fmt.Sprintf("%d.%d.%d.%d", 10+rng.IntN(180), rng.IntN(256), rng.IntN(256), rng.IntN(256))
		switch rng.IntN(6) {
		case 0:
			b = fmt.Appendf(b, "sshd %d - - Failed password for invalid user user%d from %s port %d ssh2: connection reset by authenticating peer after %d attempts, preauth, fingerprint SHA256:%016x%08x", 1000+rng.IntN(30000), rng.IntN(500), ip, 1024+rng.IntN(60000), rng.IntN(9), rng.Uint64(), rng.Uint32())
		case 1:
			b = fmt.Appendf(b, "nginx 911 access - %s - - \"GET /api/v%d/devices/%06x/telemetry?limit=%d HTTP/1.1\" %d %d \"-\" \"Mozilla/5.0 (X11; Linux aarch64) device-agent/%d.%d\" rt=%.3f", ip, 1+rng.IntN(3), rng.IntN(1<<24), rng.IntN(500), []int{200, 204, 304, 404, 500}[rng.IntN(5)], rng.IntN(90000), rng.IntN(9), rng.IntN(30), rng.Float64())
		case 2:
			b = fmt.Appendf(b, "kernel - - - [UFW BLOCK] IN=eth0 OUT= MAC=%012x SRC=%s DST=192.168.%d.%d LEN=%d TOS=0x00 PREC=0x00 TTL=%d ID=%d DF PROTO=TCP SPT=%d DPT=%d WINDOW=%d RES=0x00 SYN URGP=0", rng.Uint64()>>16, ip, rng.IntN(256), rng.IntN(256), 40+rng.IntN(1400), 40+rng.IntN(80), rng.IntN(65536), 1024+rng.IntN(64000), rng.IntN(65536), rng.IntN(65536))
		case 3:
			b = fmt.Appendf(b, "CRON %d - - (root) CMD (   /usr/lib/collector/run-parts --report /etc/cron.hourly/job-%d && logger -t cron done %d)", rng.IntN(32768), rng.IntN(40), rng.IntN(10000))
		case 4:
			b = fmt.Appendf(b, "telemetry %d MSG%d - {\"level\":\"info\",\"ts\":%d.%06d,\"caller\":\"mqtt/client.go:%d\",\"msg\":\"published\",\"topic\":\"plant/4/line/%d/temp\",\"bytes\":%d,\"trace\":\"%016x\"}", rng.IntN(32768), rng.IntN(90), 1763640000+rng.IntN(100000), rng.IntN(1000000), rng.IntN(900), rng.IntN(12), rng.IntN(4096), rng.Uint64())
		default:
			b = fmt.Appendf(b, "evntslog %d ID%d [exampleSDID@32473 iut=\"%d\" eventSource=\"Application\" eventID=\"%d\"][meta sequenceId=\"%d\" sysUpTime=\"%d\"] An application event log entry for unit %d, value %.4f", rng.IntN(32768), rng.IntN(99), rng.IntN(9), rng.IntN(5000), rng.IntN(1000000), rng.IntN(1000000), rng.IntN(300), rng.Float64()*100)
		}
		b = append(b, '\n')
	}
	return b
}

type proc struct {
	t     testing.TB
	cmd   *exec.Cmd
	tcp   int
	admin int
	start time.Duration // exec to /readyz
}

func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func startAgent(t testing.TB, env ...string) *proc {
	t.Helper()
	dir := os.Getenv("SPILLWAY_BIN")
	if dir == "" {
		dir = filepath.Join("..", "..", "bin")
	}
	p := &proc{t: t, tcp: freePort(t), admin: freePort(t)}
	p.cmd = exec.Command(filepath.Join(dir, "spillway"))
	p.cmd.Env = append([]string{
		"SPILLWAY_STATE_DIR=" + t.TempDir(), "SPILLWAY_AGENT=bench", "SPILLWAY_LOG_LEVEL=warn", "SPILLWAY_INPUTS=tcp",
		"SPILLWAY_INPUT_TCP_URL=tcp://127.0.0.1:" + strconv.Itoa(p.tcp), "SPILLWAY_ADMIN_ADDRESS=127.0.0.1:" + strconv.Itoa(p.admin),
	}, env...)
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begin := time.Now()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Signal(syscall.SIGTERM); p.cmd.Wait() })
	for end := begin.Add(10 * time.Second); ; time.Sleep(500 * time.Microsecond) {
		r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", p.admin))
		if err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Now().After(end) {
			t.Fatalf("the agent does not get ready: %v", err)
		}
	}
	p.start = time.Since(begin)
	return p
}

// cpu is user and system time so far.
func (p *proc) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
	u, _ := strconv.Atoi(f[11])
	s, _ := strconv.Atoi(f[12])
	return time.Duration(u+s) * 10 * time.Millisecond
}

// status reads a kB value of /proc/PID/status in MiB.
func (p *proc) status(name string) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			n, _ := strconv.Atoi(strings.Fields(v)[0])
			return float64(n) / 1024
		}
	}
	p.t.Fatalf("no %s", name)
	return 0
}

func (p *proc) written() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			n, _ := strconv.Atoi(v)
			return float64(n) / 1e6
		}
	}
	return 0
}

func (p *proc) metric(name string) float64 {
	r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", p.admin))
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	for _, line := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			f, _ := strconv.ParseFloat(v, 64)
			return f
		}
	}
	p.t.Fatalf("no metric %s", name)
	return 0
}

// BenchmarkPath sends a million lines over four connections as fast as they are
// taken, and waits until the stream has acknowledged all.
func BenchmarkPath(b *testing.B) {
	for _, c := range []struct {
		name string
		env  []string
	}{
		{"parsed", nil},
		{"raw", []string{"SPILLWAY_ENCODING=raw", "SPILLWAY_INPUT_TCP_PARSE=none", "SPILLWAY_INPUT_TCP_FRAMING=delimiter"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			lines := corpus()
			perConn := messages / connections
			for b.Loop() {
				n := servers.StartNATS(b, b.TempDir())
				servers.CreateStream(b, n.URL, servers.StreamConfig{Name: "LOGS", Subjects: []string{"logs.>"}})
				p := startAgent(b, append([]string{"SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_HUB_URL=" + n.URL}, c.env...)...)
				cpu, begin := p.cpu(), time.Now()
				var wg sync.WaitGroup
				for range connections {
					wg.Go(func() { send(b, p.tcp, lines, perConn) })
				}
				wg.Wait()
				for p.metric(`spillway_lane_records_delivered_total{lane="main"}`) < messages {
					if time.Since(begin) > 2*time.Minute {
						b.Fatal("not delivered within two minutes")
					}
					time.Sleep(20 * time.Millisecond)
				}
				took := time.Since(begin)
				b.ReportMetric((p.cpu()-cpu).Seconds()*1e6/messages, "cpu-s/M")
				b.ReportMetric(messages/took.Seconds(), "msgs/s")
				b.ReportMetric(p.status("VmHWM"), "peak-MiB")
				b.ReportMetric(p.written(), "disk-MB/M")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

// send writes n lines of the corpus, over and over.
func send(t testing.TB, port int, lines []byte, n int) {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	w := bufio.NewWriterSize(c, 256<<10)
	rest := lines
	for range n {
		if len(rest) == 0 {
			rest = lines
		}
		i := bytes.IndexByte(rest, 10) + 1
		if _, err := w.Write(rest[:i]); err != nil {
			t.Error(err)
			return
		}
		rest = rest[i:]
	}
	if err := w.Flush(); err != nil {
		t.Error(err)
	}
}

// BenchmarkIdle reports what an agent costs that nobody talks to.
func BenchmarkIdle(b *testing.B) {
	for b.Loop() {
		n := servers.StartNATS(b, b.TempDir())
		p := startAgent(b, "SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_HUB_URL="+n.URL)
		time.Sleep(2 * time.Second)
		cpu, wrote := p.cpu(), p.written()
		time.Sleep(20 * time.Second)
		b.ReportMetric(p.status("VmRSS"), "rss-MiB")
		b.ReportMetric((p.cpu()-cpu).Seconds()*100/20, "cpu-%")
		b.ReportMetric(p.written()-wrote, "disk-MB")
		b.ReportMetric(float64(p.start.Microseconds())/1000, "start-ms")
		b.ReportMetric(0, "ns/op")
	}
}
