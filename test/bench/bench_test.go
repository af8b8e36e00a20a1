// Package bench measures the spillway binary against its performance goals and
// prints them as a table: goal, bar, what was measured, the ratio to a program that
// does only what can't be left out (sol.go, measured in turn with it), and whether
// the goal is met. Agent, servers and that program are processes of their own on
// loopback; the test itself sends, and reads everything back.
//
//	make bench                                      all rows
//	make bench ROWS=raw,parsed N=2000000 COUNT=3    some
//
// As an ordinary test it runs the same with few messages: nothing is timed then,
// but every row must run and every message arrive.
package bench

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"spillway/test/agent"
	"spillway/test/servers"
)

var (
	only     = flag.String("rows", "", "rows to measure, with commas between them; all without")
	messages = flag.Int("messages", 4000, "messages of a run at full speed; all other times and numbers go with it; 2000000 is full size")
	rounds   = flag.Int("rounds", 1, "how often rows at full speed are measured; the table has medians")
	results  = flag.String("results", "", "file to which each run is added as a line of JSON")
	profiles = flag.String("profile", "", "directory for CPU profiles of the agent at full speed, ROW.pprof; profiling costs a few percent")
)

// full is what the rows are made for.
const full = 2_000_000

// scaled is d at full size.
func scaled(d time.Duration) time.Duration { return d * time.Duration(*messages) / full }

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "sol" { // this binary is the speed-of-light program, too
		if err := sol(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "sol:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 2 && os.Args[1] == "backlog" {
		if err := drainBacklog(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "backlog:", err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	os.Exit(m.Run())
}

// bench is what the rows share.
type bench struct {
	agent   string // the binary
	version string // what it says of itself
	pools   map[string]*pool
	log     *json.Encoder
	others  float64 // the most CPUs that others used during a run
	goals   int
	met     int
}

func TestGoals(t *testing.T) {
	b := &bench{agent: binaries(t), pools: map[string]*pool{}, log: json.NewEncoder(&strings.Builder{})}
	if *results != "" {
		f, err := os.OpenFile(*results, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b.log = json.NewEncoder(f)
	}
	if err := os.MkdirAll(cmp.Or(*profiles, "."), 0o755); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range rows {
		names = append(names, r.name)
	}
	chosen := names
	if *only != "" {
		chosen = strings.Split(*only, ",")
	}
	for _, name := range chosen {
		if !slices.Contains(names, name) {
			t.Fatalf("no row %q: there are %s", name, strings.Join(names, ", "))
		}
	}
	version, err := exec.Command(b.agent, "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	b.version = strings.TrimSpace(string(version))
	before := load() // later it is this test's own
	fmt.Printf("%s, %s\n%s; load %.2f before\n\n", b.version, time.Now().UTC().Format("2006-01-02 15:04 MST"), host(), before)
	fmt.Printf(layout, "row", "goal", "bar", "measured", "ratio", "met")
	fmt.Println("|---|---|---|---|---|---|")
	for _, r := range rows {
		if slices.Contains(chosen, r.name) {
			t.Run(r.name, func(t *testing.T) { r.measure(t, b) })
		}
	}
	fmt.Printf("\n%d of %d goals met. Load %.2f after, this run's own included.\n", b.met, b.goals, load())
	if before > quietLoad || b.others > quietOthers {
		fmt.Printf("The machine was NOISY: load %.2f before, and others used up to %.2f of a CPU during a run. No figure here is one to quote.\n", before, b.others)
	}
}

// A machine is quiet when its load average was at most quietLoad before the first
// run, and others used at most quietOthers CPUs during each, kernel threads and
// interrupts among them.
const (
	quietLoad   = 0.7
	quietOthers = 0.25
)

// binaries returns the agent to measure. SPILLWAY_BIN is the directory of all
// binaries, or the agent alone, beside the servers that were built here.
func binaries(t *testing.T) string {
	t.Helper()
	path := os.Getenv("SPILLWAY_BIN")
	if st, err := os.Stat(path); err != nil || st.IsDir() {
		return agent.Binary(t)
	}
	t.Setenv("SPILLWAY_BIN", "")
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// goal is a line of the table.
type goal struct {
	what, bar, measured string  // bar "": none, a figure for information
	ratio               float64 // to what the row compares with; 0: nothing
	met                 bool
}

const layout = "| %-8s | %-38s | %-23s | %-60s | %-5s | %-3s |\n"

func (b *bench) goal(t *testing.T, g goal) {
	_, row, _ := strings.Cut(t.Name(), "/")
	ratio, met := "", ""
	if g.ratio != 0 {
		ratio = fmt.Sprintf("%.2f", g.ratio)
	}
	if g.bar != "" {
		b.goals++
		met = "no"
		if g.met {
			b.met++
			met = "yes"
		}
	}
	fmt.Printf(layout, row, g.what, g.bar, g.measured, ratio, met)
}

// world is a program that runs with its far side, and everything read back there.
// All of it ends with the test.
type world struct {
	*testing.T
	b       *bench
	dir     string
	account *account

	hub              *servers.NATS // if it is the far side
	agent            *agent.Agent  // if it is the program
	pid              int
	network, address string    // that takes messages: tcp, udp or tls
	most             time.Time // when nine tenths of what arrived waits for were there
}

// program starts something that takes messages in w, with its far side.
type program struct {
	name  string
	start func(w *world)
}

const connections = 4

// open starts a program that n messages will be sent to.
func (b *bench) open(t *testing.T, p program, n int) *world {
	t.Helper()
	w := &world{T: t, b: b, dir: t.TempDir(), network: "tcp", account: newAccount(connections, n/connections)}
	p.start(w)
	time.Sleep(scaled(300 * time.Millisecond)) // for what starting has put off
	return w
}

// floor is the speed-of-light program.
func floor(args ...string) program {
	return program{"sol", func(w *world) {
		w.stream()
		w.address = fmt.Sprint("127.0.0.1:", servers.FreePort(w))
		cmd := exec.Command(os.Args[0], append([]string{"sol", "-address", w.address, "-dir", w.dir, "-nats", w.hub.URL}, args...)...)
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			w.Fatal(err)
		}
		w.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		w.pid = cmd.Process.Pid
		agent.Eventually(w, "sol listens", 10*time.Second, func() bool { return listens(w.address) })
	}}
}

func listens(address string) bool {
	c, err := net.Dial("tcp", address)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// spillway is the agent with an output to a far side. Nothing but addresses is set
// unless far or env do; messages go to the tcp input.
func spillway(far func(w *world) (output []string), env ...string) program {
	return program{"spillway", func(w *world) {
		w.agent = agent.New(w, w.dir, slices.Concat([]string{"SPILLWAY_LOG_LEVEL=warn"}, far(w), env)...)
		w.agent.Bin, w.address = w.b.agent, fmt.Sprint("127.0.0.1:", w.agent.TCP)
		w.agent.Env = append(w.agent.Env, "SPILLWAY_INPUT_TCP_URL="+w.network+"://"+w.address)
		w.agent.Start(w)
		w.pid = w.agent.PID()
	}}
}

// stream makes the far side a stream on a nats-server. What is stored goes to the account.
func (w *world) stream() []string {
	w.hub = servers.StartNATS(w, filepath.Join(w.dir, "stream"))
	servers.CreateStream(w, w.hub.URL, servers.StreamConfig{Name: "LOGS", Subjects: []string{"logs.>"}})
	nc, err := nats.Connect(w.hub.URL, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		w.Fatal(err)
	}
	c, err := js.OrderedConsumer(context.Background(), "LOGS", jetstream.OrderedConsumerConfig{})
	if err != nil {
		w.Fatal(err)
	}
	if _, err := c.Consume(func(m jetstream.Msg) { w.account.payload(m.Data()) }, jetstream.PullMaxMessages(64)); err != nil {
		w.Fatal(err)
	}
	return []string{"SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_HUB_URL=" + w.hub.URL}
}

// bucket makes the far side a bucket. Its objects are files, which appear whole.
func (w *world) bucket() []string {
	dir := filepath.Join(w.dir, "objects")
	s := servers.StartS3(w, dir)
	s.Bucket(w, "logs")
	stop, stopped := make(chan struct{}), make(chan struct{})
	w.Cleanup(func() { close(stop); <-stopped })
	go func() {
		defer close(stopped)
		seen := map[string]bool{}
		for {
			filepath.WalkDir(filepath.Join(dir, "logs"), func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, ".zst") && !seen[path] {
					if object, err := os.ReadFile(path); err == nil {
						seen[path] = true
						w.account.payload(object)
					}
				}
				return nil // a file that is gone is a temporary one
			})
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return []string{"SPILLWAY_OUTPUTS=archive", "SPILLWAY_OUTPUT_ARCHIVE_URL=s3://logs", "SPILLWAY_OUTPUT_ARCHIVE_ENDPOINT=" + s.Endpoint, "SPILLWAY_OUTPUT_ARCHIVE_REGION=" + s.Region,
		"SPILLWAY_OUTPUT_ARCHIVE_ROLL_AGE=1s", "AWS_ACCESS_KEY_ID=" + s.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s.Secret, "AWS_EC2_METADATA_DISABLED=true"}
}

// traffic is what is sent to a program, over connections of equal shares.
type traffic struct {
	corpus string
	n      int
	rate   float64 // messages per second; 0: as fast as they are taken
}

func (w *world) dial() net.Conn {
	w.Helper()
	var c net.Conn
	var err error
	if w.network == "tls" {
		c, err = tls.Dial("tcp", w.address, &tls.Config{InsecureSkipVerify: true})
	} else {
		c, err = net.Dial(w.network, w.address)
	}
	if err != nil {
		w.Fatal(err)
	}
	return c
}

// send returns when the last byte is written.
func (w *world) send(t traffic) {
	w.Helper()
	p := w.b.pool(t.corpus)
	errs := make(chan error, connections)
	for i := range connections {
		c := w.dial()
		go func() {
			defer c.Close()
			errs <- p.send(c, i, t.n/connections, t.rate/connections)
		}()
	}
	for range connections {
		if err := <-errs; err != nil {
			w.Fatal("send: ", err)
		}
	}
}

func (b *bench) pool(corpus string) *pool {
	if b.pools[corpus] == nil {
		b.pools[corpus] = newPool(corpus, min(48<<20, *messages<<9))
	}
	return b.pools[corpus]
}

// arrived waits until all but lost() of n messages have come, and reports false when
// none has for quiet.
func (w *world) arrived(n int, lost func() int, quiet time.Duration) bool {
	last, since := int64(-1), time.Now()
	for {
		now := w.account.once.Load()
		if w.most.IsZero() && int(now) >= n/10*9 {
			w.most = time.Now()
		}
		if int(now)+lost() >= n {
			return true
		}
		if now != last {
			last, since = now, time.Now()
		} else if time.Since(since) > quiet {
			return false
		}
		if w.agent != nil {
			w.agent.MustRun(w)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// all waits until n messages have come.
func (w *world) all(n int) {
	w.Helper()
	if !w.arrived(n, func() int { return 0 }, 20*time.Second) {
		w.Fatalf("%d of %d messages arrived", w.account.once.Load(), n)
	}
}

// stop ends the agent as an operator would, and looks at what has come by then.
func (w *world) stop() {
	w.Helper()
	if w.agent != nil {
		if code := w.agent.Stop(w); code != 0 {
			w.Fatalf("the agent exits %d", code)
		}
	}
	if err := w.account.fault(); err != nil {
		w.Fatal(err)
	}
}

// trial is what one run of a program has cost: CPU in seconds and sizes in megabytes
// (10^6 bytes) for a million messages.
type trial struct {
	Row      string    `json:"row"`
	Program  string    `json:"program"`
	Version  string    `json:"version"` // of the agent
	At       time.Time `json:"at"`
	Messages int       `json:"messages"`
	CPU      float64   `json:"cpu_s"`
	Rate     float64   `json:"messages_per_s"`      // until the last has come
	Most     float64   `json:"messages_per_s_most"` // of the first nine tenths: the last batch waits for more to come
	Peak     float64   `json:"peak_mib"`            // largest resident set
	Disk     float64   `json:"disk_mb"`
	Stored   float64   `json:"stored_mb"`
	Others   float64   `json:"others_cpus"` // what the rest of the machine used, starting and stopping included
}

// meter returns a function that says what n messages have cost since.
func (w *world) meter() func(n int) trial {
	before, begin := used(w, w.pid), time.Now()
	return func(n int) trial {
		took, after, millions := time.Since(begin).Seconds(), used(w, w.pid), float64(n)/1e6
		r := trial{At: begin, Messages: n, CPU: (after.cpu - before.cpu) / millions, Rate: float64(n) / took, Peak: float64(after.peak) / (1 << 20),
			Disk: float64(after.written-before.written) / 1e6 / millions, Stored: float64(w.account.bytes.Load()) / 1e6 / millions}
		if !w.most.IsZero() {
			r.Most = float64(n/10*9) / w.most.Sub(begin).Seconds()
		}
		return r
	}
}

// trial runs one program for n messages, which do measures. On return all of it has
// ended, what others did meanwhile is known, and the trial is logged.
func (b *bench) trial(t *testing.T, p program, n int, do func(w *world) trial) (r trial) {
	t.Helper()
	others, begin := foreign(), time.Now()
	if !t.Run(p.name, func(t *testing.T) {
		w := b.open(t, p, n)
		r = do(w)
		w.stop()
	}) {
		t.FailNow()
	}
	_, r.Row, _ = strings.Cut(t.Name(), "/")
	r.Program, r.Version, r.Others = p.name, b.version, max(0, foreign()-others)/time.Since(begin).Seconds()
	b.others = max(b.others, r.Others)
	if err := b.log.Encode(r); err != nil {
		t.Fatal(err)
	}
	return r
}

// at sends x to a program and waits for all of it.
func (b *bench) at(t *testing.T, p program, x traffic) trial {
	t.Helper()
	x.n -= x.n % connections
	return b.trial(t, p, x.n, func(w *world) trial {
		b.pool(x.corpus)
		cost := w.meter()
		profiled := w.profile(t.Name())
		w.send(x)
		w.all(x.n)
		r := cost(x.n)
		<-profiled
		return r
	})
}

// profile writes a CPU profile of the next seconds, if it is asked for.
func (w *world) profile(name string) (done <-chan struct{}) {
	ended := make(chan struct{})
	if *profiles == "" || w.agent == nil {
		close(ended)
		return ended
	}
	go func() {
		defer close(ended)
		r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/profile?seconds=%d", w.agent.Admin, 1+*messages/full))
		if err != nil {
			w.Error(err)
			return
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		if err == nil {
			err = os.WriteFile(filepath.Join(*profiles, filepath.Base(name)+".pprof"), text, 0o644)
		}
		if err != nil {
			w.Error(err)
		}
	}()
	return ended
}

// inTurn measures two programs count times each.
func (b *bench) inTurn(t *testing.T, count int, x traffic, first, second program) (one, two []trial) {
	t.Helper()
	for range count {
		one = append(one, b.at(t, first, x))
		two = append(two, b.at(t, second, x))
	}
	return one, two
}
