package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"spillway/outputs/jetstream"
	"spillway/test/agent"
	"spillway/test/chaos"
	"spillway/test/faults"
	"spillway/test/servers"
)

// full runs the tests of failover with the figures of docs/reliability.md, as
// `make failover` does; otherwise they take seconds.
var full = os.Getenv("SPILLWAY_FAILOVER_FULL") != ""

func either[T any](big, small T) T {
	if full {
		return big
	}
	return small
}

// beside lets a test that mostly waits run beside others, unless its figures count.
func beside(t *testing.T) {
	if !full {
		t.Parallel()
	}
}

// pair is an agent with a hub and behind it an archive.
type pair struct {
	*agent.Agent
	t       *testing.T
	n       *servers.NATS
	s       *servers.S3
	sources []string
}

// newPair prepares the agent. It reaches the hub at hubAddress, "" for its own.
func newPair(t *testing.T, hubAddress string, n *servers.NATS, env ...string) *pair {
	t.Helper()
	p := &pair{t: t, n: n, s: servers.StartS3(t, t.TempDir())}
	p.s.Bucket(t, "logs")
	url := n.URL
	if hubAddress != "" {
		url = "nats://" + hubAddress
	}
	p.sources = []string{n.URL + "/LOGS", "s3://logs/edge?endpoint=" + p.s.Endpoint}
	p.Agent = agent.New(t, t.TempDir(), append([]string{
		"SPILLWAY_OUTPUTS=hub,archive",
		"SPILLWAY_OUTPUT_HUB_URL=" + url, "SPILLWAY_OUTPUT_HUB_STREAM=LOGS", "SPILLWAY_OUTPUT_HUB_RECONNECT_MAX=1s", "SPILLWAY_OUTPUT_HUB_IGNORE_DISCOVERED=true",
		"SPILLWAY_OUTPUT_ARCHIVE_URL=s3://logs/edge", "SPILLWAY_OUTPUT_ARCHIVE_ENDPOINT=" + p.s.Endpoint, "SPILLWAY_OUTPUT_ARCHIVE_ROLL_AGE=1s",
		"AWS_ACCESS_KEY_ID=" + p.s.AccessKey, "AWS_SECRET_ACCESS_KEY=" + p.s.Secret, "AWS_REGION=" + p.s.Region,
	}, env...)...)
	return p
}

// hubOf starts a server with the stream LOGS, which keeps what it has in dir.
func hubOf(t *testing.T, dir string) *servers.NATS {
	t.Helper()
	n := servers.StartNATS(t, dir)
	servers.CreateStream(t, n.URL, servers.StreamConfig{Name: "LOGS", Subjects: []string{"logs.>"}, AllowDirect: true})
	return n
}

func (p *pair) load(rate, lines int) chaos.Load {
	return chaos.Load{Input: "tcp", Address: fmt.Sprintf("127.0.0.1:%d", p.TCP), Rate: rate, Lines: lines, Pad: 60, Drain: time.Minute}
}

// idle waits until nothing is pending and no batch is open.
func (p *pair) idle() {
	p.t.Helper()
	var admitted float64
	since := time.Now()
	agent.Eventually(p.t, "everything is delivered", time.Minute, func() bool {
		m, err := p.Metrics()
		if err != nil {
			p.t.Fatal(err)
		}
		now := m[`spillway_lane_records_admitted_total{lane="main"}`]
		if now != admitted || m[`spillway_lane_pending_records{lane="main"}`] > 0 {
			admitted, since = now, time.Now()
		}
		return time.Since(since) > 1500*time.Millisecond
	})
}

// event is one line of the agent's log.
type event struct {
	at   time.Time
	text string
}

// events are the lines with this message, in order.
func (p *pair) events(msg string) (all []event) {
	p.t.Helper()
	text, err := os.ReadFile(p.Log)
	if err != nil {
		p.t.Fatal(err)
	}
	if strings.Contains(msg, " ") {
		msg = fmt.Sprintf("%q", msg)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, " msg="+msg) {
			continue
		}
		stamp, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil {
			p.t.Fatalf("log: %q: %v", line, err)
		}
		all = append(all, event{at, strings.TrimSpace(line)})
	}
	return all
}

// delivered is when an output was first given something after at.
func (p *pair) delivered(output string, at time.Time) time.Time {
	p.t.Helper()
	for _, e := range p.events("delivered") {
		if strings.Contains(e.text, "output="+output+" ") && e.at.After(at) {
			return e.at
		}
	}
	p.t.Fatalf("nothing was delivered to %s after %v", output, at.Format(time.TimeOnly))
	return time.Time{}
}

// judge reads back all that was delivered. The agent has ended.
func (p *pair) judge(conns []chaos.Conn, rules chaos.Rules) *chaos.Delivered {
	p.t.Helper()
	promises, err := chaos.Promises(p.Log)
	if err != nil {
		p.t.Fatal(err)
	}
	d := chaos.NewDelivered()
	for i, source := range p.sources {
		cmd := exec.Command(p.Bin, "cat", source)
		cmd.Env = p.Env
		if err := d.Cat(cmd, i); err != nil {
			p.t.Error(err)
		}
	}
	if err := d.Judge(promises, conns, rules); err != nil {
		p.t.Errorf("what has arrived is not what should have:\n%v", err)
	}
	if err := p.Verify(p.t, p.sources...); err != nil {
		p.t.Error(err)
	}
	return d
}

// seconds prints a duration as people read it.
func seconds(d time.Duration) string { return fmt.Sprintf("%.2fs", d.Seconds()) }

// loggers runs logger(1) twice a second, as any host does, until stop; each call
// must end within three seconds, whatever is away. messages are what they sent.
func (p *pair) loggers() (stop func() (messages []string)) {
	ctx, cancel := context.WithCancel(context.Background())
	var sent []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			message := fmt.Sprintf("logger says %d", i)
			limit, end := context.WithTimeout(context.Background(), time.Minute)
			out, err := exec.CommandContext(limit, "logger", "-n", "127.0.0.1", "-P", fmt.Sprint(p.TCP), "-T", message).CombinedOutput()
			end()
			if err != nil {
				p.t.Errorf("%s: %v: %s", message, err, out)
			}
			sent = append(sent, message)
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	}()
	return func() []string {
		cancel()
		<-done
		return sent
	}
}

// The stream server is killed under load and comes back: everything goes to the
// bucket meanwhile, and to the stream again, once each, and the log tells both once.
func TestFailover(t *testing.T) {
	n := hubOf(t, t.TempDir())
	p := newPair(t, "", n, "SPILLWAY_FAILOVER_AFTER=1s", "SPILLWAY_FAILBACK_INTERVAL="+either("1s", "200ms"), "SPILLWAY_FAILBACK_DWELL=1s")
	p.Start(t)
	lines, from, to := either(1_000_000, 125_000), either(10*time.Second, time.Second), either(30*time.Second, 4*time.Second)
	start := time.Now()
	senders := chaos.StartSenders(slices.Repeat([]chaos.Load{p.load(25_000/4, lines/4)}, 4)...)
	stop := p.loggers()
	time.Sleep(time.Until(start.Add(from)))
	n.Kill(t)
	killed := time.Now()
	time.Sleep(time.Until(start.Add(to)))
	n.Start(t)
	restarted := time.Now()
	if err := senders.Wait(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	senders.Add(p.load(100, 0)) // failback needs something to send
	agent.Eventually(t, "failback", 30*time.Second, func() bool { return len(p.events("failback")) > 0 })
	messages := stop()
	if err := senders.Stop(); err != nil {
		t.Fatal(err)
	}
	if senders.Broken() > 0 {
		t.Errorf("%d connections broke", senders.Broken())
	}
	p.idle()
	if code := p.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	d := p.judge(senders.Conns(), chaos.Rules{Others: messages})

	out, back := p.events("failover"), p.events("failback")
	if len(out) != 1 || len(back) != 1 {
		t.Fatalf("failover is told %d times, failback %d times:\n%v\n%v", len(out), len(back), out, back)
	}
	for _, want := range []string{"from=hub", "to=archive", "lane=main", "error=", "failing_for=", "pending=", "next="} {
		if !strings.Contains(out[0].text, want) {
			t.Errorf("no %s in %s", want, out[0].text)
		}
	}
	for _, want := range []string{"from=archive", "to=hub", "lane=main", "away_for="} {
		if !strings.Contains(back[0].text, want) {
			t.Errorf("no %s in %s", want, back[0].text)
		}
	}
	objects := 0
	for _, key := range p.s.Keys(t, "logs") {
		if strings.HasPrefix(key, "edge/failover/main/") {
			objects++
		} else if !strings.HasPrefix(key, "edge/_probe/") {
			t.Errorf("object %s is not marked as one of a failover", key)
		}
	}
	t.Logf("%d lines in %s; kill to failover %s, to the first object %s; restart to the first message %s; %d objects, %d records twice",
		len(d.Records), seconds(took), seconds(out[0].at.Sub(killed)), seconds(p.delivered("archive", killed).Sub(killed)),
		seconds(p.delivered("hub", restarted).Sub(restarted)), objects, d.Twice)
}

// The same while the agent itself is killed three times: before, during and after
// the outage. What was durable is delivered.
func TestFailoverAgentKilled(t *testing.T) {
	n := hubOf(t, t.TempDir())
	p := newPair(t, "", n, "SPILLWAY_FAILOVER_AFTER=1s", "SPILLWAY_FAILBACK_INTERVAL="+either("1s", "200ms"), "SPILLWAY_FAILBACK_DWELL=1s")
	p.Start(t)
	lines, from, to := either(1_000_000, 150_000), either(10*time.Second, time.Second), either(30*time.Second, 4*time.Second)
	start := time.Now()
	senders := chaos.StartSenders(slices.Repeat([]chaos.Load{p.load(25_000/4, lines/4)}, 4)...)
	again := func(at time.Duration) {
		time.Sleep(time.Until(start.Add(at)))
		p.Kill()
		p.Start(t)
	}
	again(from * 7 / 10)
	time.Sleep(time.Until(start.Add(from)))
	n.Kill(t)
	again((from + to) / 2)
	time.Sleep(time.Until(start.Add(to)))
	n.Start(t)
	again(to + either(4*time.Second, 500*time.Millisecond))
	if err := senders.Wait(); err != nil {
		t.Fatal(err)
	}
	p.idle()
	if code := p.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	d := p.judge(senders.Conns(), chaos.Rules{Stops: true, Loss: 3 * time.Second})
	sent := 0
	for _, c := range senders.Conns() {
		sent += c.Sent
	}
	t.Logf("%d lines sent, %d records delivered, %d of them more than once", sent, len(d.Records), d.Twice)
}

// A stream server that says nothing more, and closes nothing, is left as soon as
// one that refuses, costs no goroutine, and is used again when it speaks.
func TestFailoverSilent(t *testing.T) {
	beside(t)
	const after, interval, dwell = time.Second, 200 * time.Millisecond, 500 * time.Millisecond
	n := hubOf(t, t.TempDir())
	link := faults.New(t, n.URL)
	p := newPair(t, link.Address, n, fmt.Sprint("SPILLWAY_FAILOVER_AFTER=", after), fmt.Sprint("SPILLWAY_FAILBACK_INTERVAL=", interval),
		fmt.Sprint("SPILLWAY_FAILBACK_DWELL=", dwell), "SPILLWAY_BATCH_MAX_AGE=100ms", "SPILLWAY_OUTPUT_ARCHIVE_ROLL_AGE=200ms", "SPILLWAY_OUTPUT_HUB_PING_INTERVAL=1s")
	p.Start(t)
	senders := chaos.StartSenders(p.load(500, 0), p.load(500, 0))
	const rounds = 2
	var goroutines [rounds]int
	m := watchMachine(t)
	for i := range rounds {
		time.Sleep(time.Second)
		link.Silence()
		at := time.Now()
		m.late()
		agent.Eventually(t, "failover", after+10*time.Second, func() bool { return len(p.events("failover")) > i })
		took := p.events("failover")[i].at.Sub(at)
		if _, late := m.late(); took > after+time.Second+late {
			t.Errorf("the switch comes %v after the last packet, want at most SPILLWAY_FAILOVER_AFTER (%v) and a second, and the machine was late by %v", took, after, late)
		}
		// In the last round the connection is given up meanwhile, and made anew.
		time.Sleep([]time.Duration{time.Second, 4 * time.Second}[i])
		link.Forward()
		healed := time.Now()
		agent.Eventually(t, "failback", 20*time.Second, func() bool { return len(p.events("failback")) > i })
		t.Logf("silence to failover %s, packets to failback %s", seconds(took), seconds(p.events("failback")[i].at.Sub(healed)))
		// The archive's idle connections are those of the first round too.
		var stacks string
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			var err error
			if goroutines[i], stacks, err = p.Goroutines(); err != nil {
				t.Fatal(err)
			}
			if i == 0 || goroutines[i] <= goroutines[0] || time.Now().After(end) {
				break
			}
		}
		if goroutines[i] > goroutines[0] {
			t.Errorf("%d goroutines after round %d, %d after the first:\n%s", goroutines[i], i+1, goroutines[0], stacks)
		}
	}
	t.Logf("goroutines after each round: %v", goroutines)
	if err := senders.Stop(); err != nil {
		t.Fatal(err)
	}
	p.idle()
	if code := p.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	p.judge(senders.Conns(), chaos.Rules{})
}

// A stream is restored from a copy that lacks its newest messages: the agent sends
// them again, in order and before anything new, and nothing that the bucket took.
func TestFailoverRestored(t *testing.T) {
	beside(t)
	store := filepath.Join(t.TempDir(), "store")
	saved := store + ".saved"
	n := hubOf(t, store)
	link := faults.New(t, n.URL)
	p := newPair(t, link.Address, n, "SPILLWAY_FAILOVER_AFTER=500ms", "SPILLWAY_FAILBACK_INTERVAL=200ms", "SPILLWAY_FAILBACK_DWELL=200ms", "SPILLWAY_BATCH_MAX_AGE=200ms")
	p.Start(t)
	senders := chaos.StartSenders()
	phase := func(lines int) {
		t.Helper()
		senders.Add(p.load(5000, lines))
		if err := senders.Wait(); err != nil {
			t.Fatal(err)
		}
		p.idle()
	}
	per := either(75_000, 3000) // 15 s: the copy lacks 30 s
	phase(per)                  // is in the copy
	n.Pause(t)
	sh(t, "cp -a "+store+" "+saved)
	n.Resume(t)
	phase(per) // was acknowledged, and is not
	link.Refuse()
	phase(per) // went to the bucket
	link.Forward()
	// until sends a little again and again: an output is used again by a run.
	until := func(msg string) {
		t.Helper()
		agent.Eventually(t, msg, 20*time.Second, func() bool {
			senders.Add(p.load(500, 10))
			return senders.Wait() == nil && len(p.events(msg)) > 0
		})
		p.idle()
	}
	until("failback")
	phase(per) // was acknowledged, and is not in the copy either
	n.Stop(t)
	sh(t, "rm -rf "+store+" && mv "+saved+" "+store)
	n.Start(t)
	phase(per) // new, and perhaps for the bucket: the stream was away
	until("the stream has again what it had lost")
	m, err := p.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	if code := p.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	d := p.judge(senders.Conns(), chaos.Rules{})
	if d.Twice > 0 {
		t.Errorf("%d records are there twice: nothing but what the stream had lost should be sent again", d.Twice)
	}
	resent := m[`spillway_lane_records_resent_total{lane="main"}`]
	if resent < float64(2*per) || resent > float64(2*per+1000) {
		t.Errorf("%v records were sent again, want the %d of two phases, and those between them that the hub took", resent, 2*per)
	}
	src, err := jetstream.NewSource(t.Context(), natsSource(n), jetstream.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var last uint64
	messages := 0
	for o, err := range src.Objects(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		o.Body.Close()
		if o.First <= last {
			t.Errorf("records %d to %d come after %d in the stream", o.First, o.Last, last)
		}
		last = o.Last
		messages++
	}
	t.Logf("%v records were sent again; %d messages in the stream, in order", resent, messages)
}

// cluster starts three servers with the stream LOGS in three replicas.
func cluster(t *testing.T) (nodes []*servers.NATS, urls string) {
	t.Helper()
	var routes, all []string
	var ports [3]int
	for i := range ports {
		ports[i] = servers.FreePort(t)
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", ports[i]))
	}
	for i, port := range ports {
		n := servers.StartNATS(t, t.TempDir(), servers.Config(fmt.Sprintf("server_name: n%d\ncluster: {name: c, listen: \"127.0.0.1:%d\", routes: [%s]}", i+1, port, strings.Join(routes, ", "))))
		nodes = append(nodes, n)
		all = append(all, n.URL)
	}
	urls = strings.Join(all, ",")
	nc, err := nats.Connect(urls)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := natsjs.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	// A cluster without a leader answers nothing: ask again.
	agent.Eventually(t, "a stream of three replicas", time.Minute, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s, err := js.CreateOrUpdateStream(ctx, natsjs.StreamConfig{Name: "LOGS", Subjects: []string{"logs.>"}, Replicas: 3, AllowDirect: true})
		return err == nil && s.CachedInfo().Cluster.Leader != ""
	})
	return nodes, urls
}

// current waits until every replica has everything again.
func current(t *testing.T, urls string) {
	t.Helper()
	nc, err := nats.Connect(urls, nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := natsjs.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	var last error
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		s, err := js.Stream(ctx, "LOGS")
		cancel()
		if err == nil {
			if err = uncertain(s.CachedInfo()); err == nil {
				return
			}
		}
		if last = err; time.Now().After(end) {
			t.Fatal(last)
		}
	}
}

func uncertain(info *natsjs.StreamInfo) error {
	if info.Cluster == nil || info.Cluster.Leader == "" || len(info.Cluster.Replicas) != 2 {
		return errors.New("the stream has no leader")
	}
	for _, r := range info.Cluster.Replicas {
		if !r.Current || r.Offline {
			return fmt.Errorf("replica %s is not current: %+v", r.Name, r)
		}
	}
	return nil
}

// Each node of a cluster is stopped and started in turn under load: nothing is
// lost or stored twice, and no other output is needed.
func TestFailoverCluster(t *testing.T) {
	beside(t)
	nodes, urls := cluster(t)
	p := newPair(t, "", nodes[0], "SPILLWAY_OUTPUT_HUB_URL="+urls, "SPILLWAY_OUTPUT_HUB_IGNORE_DISCOVERED=false")
	p.Start(t)
	rate, length := either(20_000, 4000), either(2*time.Minute, 8*time.Second)
	start := time.Now()
	senders := chaos.StartSenders(slices.Repeat([]chaos.Load{p.load(rate/4, 0)}, 4)...)
	stops := 0
	for time.Since(start) < length || stops < 3 {
		n := nodes[stops%3]
		time.Sleep(either(3*time.Second, 500*time.Millisecond))
		n.Stop(t)
		time.Sleep(either(5*time.Second, 500*time.Millisecond))
		n.Start(t)
		current(t, urls)
		stops++
	}
	if err := senders.Stop(); err != nil {
		t.Fatal(err)
	}
	p.idle()
	if code := p.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	d := p.judge(senders.Conns(), chaos.Rules{})
	if out := p.events("failover"); len(out) > 0 {
		t.Errorf("%d failovers although two of three nodes were there: %v", len(out), out[0].text)
	}
	if d.Twice > 0 {
		t.Errorf("%d records are stored twice", d.Twice)
	}
	t.Logf("%d records through %d stops of a node, %d stored twice", len(d.Records), stops, d.Twice)
}

// While no output works, inputs go on until the lane is full. Then streams wait,
// datagrams are dropped after at most a second, and the gap record tells how many.
func TestFailoverLaneFull(t *testing.T) {
	beside(t)
	n := hubOf(t, t.TempDir())
	link := faults.New(t, n.URL)
	a := agent.New(t, t.TempDir(), "SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_HUB_URL=nats://"+link.Address, "SPILLWAY_OUTPUT_HUB_STREAM=LOGS",
		"SPILLWAY_OUTPUT_HUB_RECONNECT_MAX=1s", "SPILLWAY_OUTPUT_HUB_IGNORE_DISCOVERED=true", "SPILLWAY_BUFFER_MAX_BYTES=4MiB")
	p := &pair{Agent: a, t: t, n: n, sources: []string{n.URL + "/LOGS"}}
	p.Start(t)
	link.Refuse()
	tcp := p.load(20_000, 0)
	tcp.Pad = 2000
	senders := chaos.StartSenders(tcp, chaos.Load{Input: "udp", Address: fmt.Sprintf("127.0.0.1:%d", a.UDP), Rate: 200, Pad: 60, Drain: time.Minute})
	value := func(name string) float64 { t.Helper(); return a.Metric(t, name) }
	agent.Eventually(t, "the lane is full", 30*time.Second, func() bool { return value(`spillway_lane_full{lane="main"}`) == 1 })
	if n := value(`spillway_lane_records_admitted_total{lane="main"}`); n < 1000 {
		t.Errorf("the lane is full with %v records", n)
	}
	full := time.Now()
	agent.Eventually(t, "datagrams are dropped", 5*time.Second, func() bool { return value(`spillway_input_dropped_total{input="udp",reason="buffer_full"}`) > 0 })
	t.Logf("the first datagrams are dropped %s after the lane was full", seconds(time.Since(full)))
	before := value(`spillway_input_messages_total{input="tcp"}`)
	time.Sleep(2 * time.Second)
	if after := value(`spillway_input_messages_total{input="tcp"}`); after != before {
		t.Errorf("%v lines came by tcp while there was no room", after-before)
	}
	if n := value(`spillway_input_dropped_total{input="tcp",reason="buffer_full"}`); n > 0 {
		t.Errorf("%v lines of tcp were dropped", n)
	}
	link.Forward()
	agent.Eventually(t, "room again", 60*time.Second, func() bool { return value(`spillway_lane_full{lane="main"}`) == 0 })
	if err := senders.Stop(); err != nil {
		t.Fatal(err)
	}
	if senders.Broken() > 0 {
		t.Errorf("%d connections broke", senders.Broken())
	}
	p.idle()
	if code := p.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	d := p.judge(senders.Conns(), chaos.Rules{})
	told := uint64(0)
	for _, g := range d.Gaps {
		if g.Input == "udp" {
			told += g.Count
		}
	}
	t.Logf("%d records delivered, gap records tell of %d datagrams", len(d.Records), told)
}
